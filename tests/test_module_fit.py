"""A module whose outputs do not fit its targets is answered in the words of its job, before and in a run."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jobs.catalogue import load_job
from jobs.job import Member
from jobs.module import Data, ModuleJob, ModuleParams, Random, param
from jobs.module.pack import trial_of
from orchestrator.cli import main

NET = """\
from dataclasses import dataclass

from torch import nn

from jobs.module import Data, ModuleJob, ModuleParams, param


class Net(ModuleJob):
    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        outputs: int = param(3, low=1, meaning="outputs")

    def model(self, params):
        return nn.Linear(4, params.outputs)

    def data(self, params, random):
        x, y = random.normal("x", 60, 4), random.integers("y", 5, 60)
        return Data(train=(x[:40], y[:40]), test=(x[40:], y[40:]))
"""
SAID = (
    "Net.model ({folder}/mine.py:13) has an output of shape (3,) for an example, and the targets have 5 classes "
    "(0 to 4): return 5 outputs in its last dimension, or define `loss`"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    load_job.cache_clear()
    Path("mine.py").write_text(NET)
    Path("sweep.yaml").write_text(
        "job: mine:Net\naxes: {learning_rate: [0.01, 0.1]}\nfixed: {steps: 20, curve_points: 3}\n"
        'tracking: {uri: "sqlite:///record.db"}\n'
    )
    return tmp_path


def test_too_few_outputs_are_named_with_the_classes_and_the_line_of_the_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = SAID.format(folder=folder)
    for command in (["plan", "sweep.yaml", "--inline"], ["check", "sweep.yaml", "--rehearse"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert re.search(r"sweep.yaml: rehearsal failed( in \d of \d trials)?: ValueError: ", error), error
        assert f"ValueError: {said}\n" in error
        assert f"  next:  correct {folder}/mine.py:13, or the values" in error
    assert main(["verify-job", "mine:Net"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"phasefront verify-job: JOB: a trial failed: ValueError: {said}\n  value: ")
    assert error.endswith(f"  next:  correct {folder}/mine.py:13, or the values\n") and "Traceback" not in error
    assert main(["run", "sweep.yaml", "--inline", "--quiet"]) == 1
    assert f"learning_rate=0.01, replicate=0: ValueError: {said}\n" in capsys.readouterr().err
    assert main(["run", "sweep.yaml", "--inline", "--quiet", "--set", "fixed.outputs=5"]) == 0


class Fitting(ModuleJob):
    """Its output has the shape `shape`, a number for each dimension; `targets` names its targets."""

    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        shape: str = param("3", meaning="shape of an output")
        targets: str = param("classes", meaning="what the targets are")

    def model(self, params: Any) -> nn.Module:
        sizes = [int(size) for size in params.shape.split("x")]
        return Counting(nn.Linear(4, torch.Size(sizes).numel()), nn.Unflatten(1, sizes))

    def data(self, params: Any, random: Random) -> Data:
        x, y = random.normal("x", 60, 4), random.integers("y", 3, 60)
        y[:3] = y[40:43] = torch.arange(3)
        targets: dict[str, Tensor] = {
            "classes": y,
            "numbers": x[:, :2],
            "short": y.short(),
            "int32": y.int(),
            "from -1": y - 1,
            "tokens": random.integers("t", 3, 60, 7) * 0 + 2,
        }
        chosen = targets[params.targets]
        return Data(train=(x[:40], chosen[:40]), test=(x[40:], chosen[40:]), classes=4)


class Counting(nn.Sequential):
    """Counts its forward passes."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class OwnLoss(Fitting):
    def loss(self, params: Any, output: Tensor, target: Tensor) -> Tensor:
        return output.sum(1)


def made(job: ModuleJob, **values: object) -> Any:
    return trial_of(job, 0, Member(params=job.params_for(values), seed=1))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shape": "2"}, "have 3 classes (0 to 2): return 3 outputs in its last dimension"),
        ({"shape": "3x2"}, "have 3 classes (0 to 2): return outputs of shape (3,), the classes last"),
        ({"shape": "3", "label_noise": 0.1}, "have 4 classes (0 to 3): return 4 outputs"),
        ({"shape": "3x7", "targets": "tokens"}, "and shape (7,): return outputs of shape (7, 3), the classes last"),
        ({"shape": "3", "targets": "numbers"}, "are numbers of shape (2,): return outputs of that shape"),
        ({"shape": "3", "targets": "short"}, "are torch.int16: make them int64 for classes"),
        ({"shape": "3", "targets": "from -1"}, "the smallest target is -1: count classes from 0"),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_do(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match="has an output of shape") as caught:
        made(Fitting(), **values)
    assert said in str(caught.value)
    assert made(OwnLoss(), **values), "a loss of one's own takes any targets"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"shape": "5"},
        {"shape": "3", "targets": "int32"},
        {"shape": "4", "label_noise": 0.1},
        {"shape": "2x1", "targets": "numbers"},
        {"shape": "7x3", "targets": "tokens"},
    ],
)
def test_what_fits_is_made_and_its_module_is_not_called(values: dict[str, object]) -> None:
    assert made(Fitting(), **values).network.module.calls == 0


PROBING = """

class Probing(Net):
    def probe(self, params, model, weights, data):
        return {"weight_norm": weights["weight"].norm()}


class Numbers(Net):
    def data(self, params, random):
        x = random.normal("x", 60, 4)
        return Data(train=(x[:40], x[:40, :3]), test=(x[40:], x[40:, :3]))
"""
GRID = "axes: {learning_rate: [0.01, 0.1], weight_decay: [0.0, 0.1]}\nfixed: {steps: 20, curve_points: 3, outputs: 5}\n"
SEARCH = GRID.replace("[0.01, 0.1]", "{scale: log, from: 0.01, to: 0.1}").replace("[0.0, 0.1]", "0.0")
SEARCH = SEARCH.replace(", weight_decay: 0.0", "")
RECORD = 'tracking: {uri: "sqlite:///record.db"}\n'
LEVEL = "phases: {rule: level, metric: METRIC, level: 0.5}\n"
PEAK = "analysis: [{kind: peak, of: METRIC, along: weight_decay}]\n"
PANELS = "figure: {panels: [phase, METRIC]}\n"
TARGET = "search: {kind: boundary, budget: 9, target: {metric: METRIC, level: 0.5}}\n"


def refused(command: str, job: str, text: str, metric: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says of a misspelt metric; "" where it goes on."""
    Path("mine.py").write_text(NET + PROBING)
    Path("sweep.yaml").write_text(f"job: mine:{job}\n" + text.replace("METRIC", metric) + RECORD)
    capsys.readouterr()
    code = main([command, "sweep.yaml", *["--inline"] * (command != "check")])
    assert code in (0, 2)
    return capsys.readouterr().err if code else ""


@pytest.mark.parametrize(
    ("text", "metric", "place", "near"),
    [
        (GRID + LEVEL, "test_acuracy", "4:31", "final_test_accuracy"),
        (GRID + PEAK, "final_tst_loss", "4:29", "final_test_loss"),
        (GRID + PANELS, "test_acuracy", "4:26", "final_test_accuracy"),
        (GRID + PANELS, "generalization_step", "4:26", "generalisation_step"),
        (SEARCH + TARGET, "generalization_step", "4:54", "generalisation_step"),
        (SEARCH + TARGET, "test_loss", "4:54", "final_test_loss"),
    ],
)
def test_a_metric_that_no_module_reports_is_refused_by_check_and_recorded_trials_are_shown(
    text: str, metric: str, place: str, near: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("check", "Net", text, metric, capsys)
    assert f"phasefront check: sweep.yaml:{place}: " in said and f"'{metric}'" in said
    assert re.search(r"  valid: (phase, )?memorisation_step, ", said) and f"  next:  did you mean '{near}'?" in said
    assert main(["status", "sweep.yaml"]) == 0
    assert f"warning: sweep.yaml:{place}: " in capsys.readouterr().err
    assert not refused("check", "Net", text, near, capsys)


def test_what_a_probe_reports_is_known_before_the_first_trial(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GRID + LEVEL
    assert not refused("check", "Probing", text, "weihgt_norm", capsys), "not known without its data"
    said = refused("plan", "Probing", text, "weihgt_norm", capsys)
    assert "sweep.yaml:4:31: job 'mine:Probing' has no observation 'weihgt_norm'" in said
    assert "final_weight_norm, " in said
    assert "next:  did you mean 'final_weight_norm'? A metric of your own is what the job's `probe` returns" in said
    assert not refused("plan", "Probing", text, "weight_norm", capsys)
    assert "no observation 'final_weihgt_norm'" in refused(
        "plan", "Probing", SEARCH + TARGET, "final_weihgt_norm", capsys
    )
    assert "figure.panels: job 'mine:Probing' has no observation 'final_weihgt_norm'" in refused(
        "plan", "Probing", GRID + PANELS, "final_weihgt_norm", capsys
    )
    assert not refused("plan", "Probing", GRID + PANELS, "final_weight_norm", capsys)
    assert "analysis 'peak_final_x_weight_decay': job" in refused("plan", "Probing", GRID + PEAK, "final_x", capsys)
    assert not refused("check", "Numbers", text, "test_accuracy", capsys)
    assert "no observation 'test_accuracy'" in refused(
        "plan", "Numbers", text.replace(", outputs: 5", ""), "test_accuracy", capsys
    )


def test_after_the_first_trials_the_advice_is_for_modules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("run", "Probing", GRID + LEVEL, "weihgt_norm", capsys)
    assert "sweep.yaml:4:31: no trial reports 'weihgt_norm', the metric of 'phases': 4 trials finished" in said
    assert "did you mean 'weight_norm'? " in said and "what the job's `probe` returns" in said
    assert "train.metrics" not in said


def test_a_metric_or_a_rule_without_the_other_is_told_the_line_to_write(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("check", "Net", GRID + LEVEL.replace("rule: level, ", ""), "test_loss", capsys)
    assert "'metric' needs rule: level\n" in said
    assert "  next:  write phases: {rule: level, metric: test_loss, level: 0.5}\n" in said
    said = refused("check", "Net", GRID + "phases: {rule: level}\n", "", capsys)
    assert "  next:  write phases: {rule: level, metric: test_accuracy, level: 0.7}\n" in said


def test_a_level_outside_of_what_a_metric_can_be_is_refused_and_recorded_trials_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    percent = GRID + LEVEL.replace("0.5", "90")
    for name, column in (("test_accuracy", 53), ("final_train_accuracy", 60)):
        said = refused("check", "Net", percent, name, capsys)
        metric = name.removeprefix("final_")
        assert f"sweep.yaml:4:{column}: '{metric}' is from 0 to 1 in every trial" in said, said
        assert "  value: 90.0\n  next:  if it is a percentage, write 'level: 0.9'\n" in said
    assert main(["status", "sweep.yaml"]) == 0
    assert "warning: sweep.yaml:4:" in capsys.readouterr().err
    for level in ("0", "1", "0.9"):
        assert not refused("check", "Net", GRID + LEVEL.replace("0.5", level), "test_accuracy", capsys)
    Path("sweep.yaml").write_text("job: mine:Net\n" + percent.replace("METRIC", "test_loss") + RECORD)
    assert main(["run", "sweep.yaml", "--inline"]) == 0, "a loss may be anything"
    said = capsys.readouterr().out
    assert re.search(r"warning: all are 'below': test_loss ends at \S+ to \S+, and the level is 90", said), said


FUNCTION = """
def train(params, seed, device, report):
    report(1, loss=params["a"], accuracy=0.5)
"""


def test_a_panel_that_a_function_does_not_report_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(FUNCTION)
    grid = f"job: mine:train\naxes: {{a: [1, 2]}}\n{RECORD}{PANELS}"
    Path("sweep.yaml").write_text(grid.replace("METRIC", "final_acuracy"))
    rule = "sweep.yaml: figure.panels: no finished trial has the observation 'final_acuracy', and it is left out\n"
    for command in (["check", "sweep.yaml"], ["run", "sweep.yaml", "--inline"], ["map", "sweep.yaml"]):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert (f"warning: {rule}" in said) is (command[0] != "check"), said
        assert ("  next:  did you mean 'final_accuracy'?" in said) is (command[0] != "check"), said
    Path("sweep.yaml").write_text(grid.replace("METRIC", "final_accuracy"))
    assert main(["map", "sweep.yaml"]) == 0 and "left out" not in capsys.readouterr().out
    Path("named.py").write_text(f'{FUNCTION}\n\ntrain.metrics = ("loss", "accuracy")\n')
    Path("sweep.yaml").write_text(grid.replace("METRIC", "acuracy").replace("mine", "named"))
    assert main(["check", "sweep.yaml"]) == 2
    said = capsys.readouterr().err
    assert "sweep.yaml:4:26: job 'named:train' has no observation 'acuracy'\n" in said
    assert "  valid: phase, final_loss, final_accuracy\n  next:  did you mean 'final_accuracy'?\n" in said

"""Rules that forbid new trials of a sweep: what an earlier version, without the rule, has recorded stays readable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import phasefront
from jobs.catalogue import load_job
from orchestrator.cli import main
from orchestrator.errors import UserError

JOB = """\
from dataclasses import dataclass

import numpy as np

from jobs.job import FINAL, Cost, Job, Params, Report, param


@dataclass(frozen=True, kw_only=True)
class Own(Params):
    a: float = param(meaning="a")


class Mine(Job):
    Thresholds, Params = Params, Own
    metrics = ("accuracy",)
    phases = ("finished",)

    def pack_key(self, params):
        return ()

    def cost(self, params, *, extent, models):
        return Cost(launches=1, matmul_flop=0, element_visits=0, memory_bytes=0)

    def train(self, pack, *, device):
        all_ = np.arange(len(pack))
        values = np.array([member.params.a for member in pack])
        yield Report(step=1, members=all_, values={"accuracy": values}, finished=all_)

    def observe(self, params, curves, thresholds):
        return {f"{FINAL}accuracy": float(curves.values["accuracy"][-1])}

    def phase(self, params, observations, thresholds):
        return "finished"
"""
LEVEL = "search: {kind: boundary, budget: 8, target: {metric: final_accuracy, level: 90}}"
FUNCTION = """\
def train(params, seed, device, report):
    report(1, loss=params["a"])
"""
HEAD = 'axes: {a: {scale: linear, from: 0, to: 1}}\ntracking: {uri: "sqlite:///record.db"}\n'
CASES = {
    "a level of a share": (JOB, JOB + '    shares = ("accuracy",)\n', f"job: mine:Mine\n{HEAD}{LEVEL}\n", 4, "level"),
    "a metric that is not named": (
        FUNCTION,
        FUNCTION + '\n\ntrain.metrics = ("accuracy",)\n',
        f"job: mine:train\n{HEAD}phases: {{metric: loss, level: 0.5}}\nsearch: {{kind: boundary, budget: 8}}\n",
        4,
        "names no metric 'loss'",
    ),
    "a search with one label": (
        JOB.replace('("finished",)', '("finished", "other")'),
        JOB,
        f"job: mine:Mine\n{HEAD}search: {{kind: boundary, budget: 8}}\n",
        4,
        "every trial has the label 'finished'",
    ),
}


def load_anew(text: str) -> None:
    Path("mine.py").write_text(text)
    sys.modules.pop("mine", None)
    load_job.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    sys.modules.pop("mine", None)
    load_job.cache_clear()


@pytest.mark.parametrize("case", CASES)
def test_recorded_trials_are_shown_and_no_further_ones_are_run(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now, sweep, line, rule = CASES[case]
    Path("sweep.yaml").write_text(sweep)
    load_anew(before)
    assert main(["run", "sweep.yaml", "--inline", "--quiet"]) == 0
    load_anew(now)
    capsys.readouterr()
    for command in ("status", "map", "report", "audit", "export"):
        assert main([command, "sweep.yaml"]) == 0, command
        printed = capsys.readouterr()
        assert f"warning: sweep.yaml:{line}:" in printed.err and rule in printed.err, command
        assert "8 finished" in printed.out or command != "status"
    results = phasefront.load("sweep.yaml")
    assert len(results.trials()) == 8
    for command in ("check", "plan", "run"):
        assert main([command, "sweep.yaml"]) == 2, command
        assert f"phasefront {command}: sweep.yaml:{line}:" in capsys.readouterr().err
    with pytest.raises(UserError, match=rule):
        phasefront.run(results)
    Path("longer.yaml").write_text("extends: sweep.yaml\nsearch: {budget: 9}\n")
    assert main(["status", "longer.yaml"]) == 0

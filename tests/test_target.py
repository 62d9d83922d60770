"""Targets: one rule for the class of a trial, and one place to add a kind of target."""

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import optuna
import pytest

from jobs.job import Censored, Observations
from orchestrator.records import Status, TrialResult
from orchestrator.search.space import slices_of
from orchestrator.target import NO_VALUE, TARGETS, LevelTarget, PhaseTarget, RidgeTarget, target_type
from tests.driving import environment, run
from tests.searching import AXES, boundary

PHASES = ("memorised", "generalised", "diverged")
LEVEL = LevelTarget(metric="loss", level=2.0)
RIDGE = RidgeTarget(ridge="loss", along="learning_rate")

JOB = """\
import math


def train(params, seed, device, report):
    x, y = params["width"], params["rate"]
    is_lost = x > 0.8 and y > 0.8
    report(1, acc=math.nan if is_lost else 1 / (1 + math.exp(20 * (0.5 - math.hypot(x, y)))))
"""
SWEEP = """\
name: corner
job: science:train
axes:
  width: {scale: linear, from: 0, to: 1}
  rate: {scale: linear, from: 0, to: 1}
search: {kind: boundary, budget: 40, start: 32, batch: 8, target: {metric: final_acc, level: 0.5}}
"""


def ended(
    status: Status = Status.FINISHED, phase: str | None = "memorised", **observed: float | Censored
) -> TrialResult:
    return TrialResult(trial_id="t", status=status, phase=phase, observations=observed)


@pytest.mark.parametrize(
    ("observed", "label", "value", "censored"),
    [
        ({"loss": 1.0}, "below", 1.0, False),
        ({"loss": 2.0}, "at or above", 2.0, False),
        ({"loss": Censored(3.0)}, "at or above", 3.0, True),
        ({"loss": Censored(1.0)}, None, 1.0, True),
        ({"loss": math.nan}, NO_VALUE, math.nan, False),
        ({"loss": math.inf}, NO_VALUE, math.nan, False),
        ({"loss": -math.inf}, NO_VALUE, math.nan, False),
        ({"loss": Censored(math.inf)}, NO_VALUE, math.nan, True),
        ({"accuracy": 1.0}, NO_VALUE, math.nan, False),
        ({}, NO_VALUE, math.nan, False),
    ],
)
@pytest.mark.parametrize("phase", ["memorised", "diverged", None])
def test_a_finished_trial_is_on_a_side_of_the_level_or_on_none(
    observed: Observations, label: str | None, value: float, censored: bool, phase: str | None
) -> None:
    result = TrialResult(trial_id="t", status=Status.FINISHED, phase=phase, observations=observed)
    classes = LEVEL.classes(PHASES)
    evidence = LEVEL.evidence(result, classes)
    assert evidence is not None
    assert (None if evidence.label < 0 else classes[evidence.label]) == label
    assert evidence.value == pytest.approx(value, nan_ok=True) and evidence.censored is censored
    of_ridge = RIDGE.evidence(result, RIDGE.classes(PHASES))
    assert of_ridge is not None and of_ridge.label == -1
    assert of_ridge.value == pytest.approx(value, nan_ok=True) and of_ridge.censored is censored


def test_a_trial_shows_its_phase_and_a_diverged_one_too() -> None:
    classes = PhaseTarget().classes(PHASES)
    labels = [PhaseTarget().evidence(ended(phase=phase), classes).label for phase in PHASES]  # type: ignore[union-attr]
    assert labels == [0, 1, 2]
    assert PhaseTarget().evidence(ended(phase=None), classes) is None


@pytest.mark.parametrize("target", [PhaseTarget(), LEVEL, RIDGE], ids=lambda target: target.kind)
@pytest.mark.parametrize("status", [Status.FAILED, Status.KILLED, Status.RUNNING])
def test_a_trial_that_did_not_finish_says_nothing(target, status: Status) -> None:
    assert target.evidence(ended(status, loss=1.0), target.classes(PHASES)) is None


@pytest.mark.parametrize("target", [PhaseTarget(), LEVEL, RIDGE], ids=lambda target: target.kind)
def test_a_target_reads_what_it_writes(target) -> None:
    written = target.model_dump()
    assert type(target) in TARGETS and target_type(written) is type(target)
    assert type(target).model_validate(written) == target
    assert len(target.class_titles(PHASES)) == len(target.classes(PHASES))


def test_a_level_search_with_trials_that_are_not_finite_draws_its_map(tmp_path: Path) -> None:
    (tmp_path / "science.py").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    code, text = run("run", "sweep.yaml", "--inline", cwd=tmp_path)
    assert code == 0, text
    page = (tmp_path / "phasefront-out/corner/phase_diagram.html").read_text()
    data = json.loads(page.split('<script id="data" type="application/json">')[1].split("</script>")[0])
    names = {trace["name"] for trace in data["views"][0]["slices"][0]["traces"]}
    assert {"final acc below 0.5", "final acc 0.5 or more", NO_VALUE} <= names
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/optuna.db", study_name=None)
    lost = [t for t in study.trials if t.params["width"] > 0.8 and t.params["rate"] > 0.8]
    assert lost and {t.user_attrs["phase"] for t in lost} == {NO_VALUE}


FOURTH = """\
import sys
from typing import Any

from orchestrator import target
from orchestrator.axes import key
from orchestrator.surface.phase import PhaseSurrogate


class BandTarget(target.MetricTarget):
    \"\"\"Where a metric enters and leaves a band of values.\"\"\"

    kind = "band"
    example = "{metric: NAME, low: NUMBER, high: NUMBER}"
    metric: str = key(meaning="An observation of the job.", valid="text", min_length=1)
    low: float = key(meaning="The lower edge.", valid="a number")
    high: float = key(meaning="The upper edge.", valid="a number")

    @property
    def description(self):
        return f"where {self.metric} lies from {self.low:g} to {self.high:g}"

    def classes(self, phases):
        return "under", "within", "over", target.NO_VALUE

    def side(self, observed):
        if not isinstance(observed, float):
            return -1
        return int(observed >= self.low) + int(observed > self.high)

    def surrogate(self, classes, axes, replicates=1):
        return PhaseSurrogate(classes=classes, replicates=replicates)


target.TARGETS += (BandTarget,)

from orchestrator.cli import main

sys.exit(main())
"""


def test_a_fourth_kind_of_target_needs_its_class_and_its_surrogate_alone(tmp_path: Path) -> None:
    (tmp_path / "science.py").write_text(JOB)
    (tmp_path / "fourth.py").write_text(textwrap.dedent(FOURTH))
    band = "target: {metric: final_acc, low: 0.2, high: 0.9}"
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("target: {metric: final_acc, level: 0.5}", band))

    def phasefront(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "fourth.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment({}), capture_output=True, text=True, timeout=240)

    checked = phasefront("check", "sweep.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "where final_acc lies from 0.2 to 0.9" in checked.stdout
    misspelt = phasefront("check", "sweep.yaml", "--set", "search.target={metric: final_acc, low: 0.2, hihg: 0.9}")
    assert misspelt.returncode == 2 and "unknown key 'hihg'" in misspelt.stderr and "mean 'high'?" in misspelt.stderr
    missing = phasefront("check", "sweep.yaml", "--set", "search.target=3")
    assert missing.returncode == 2 and "{metric: NAME, low: NUMBER, high: NUMBER}" in missing.stderr
    assert '"BandTarget"' in phasefront("schema").stdout
    done = phasefront("run", "sweep.yaml", "--inline")
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/optuna.db", study_name=None)
    assert {t.user_attrs["phase"] for t in study.trials} == {"under", "within", "over", NO_VALUE}
    page = (tmp_path / "phasefront-out/corner/phase_diagram.html").read_text()
    assert '"under"' in page and '"within"' in page


def test_a_surrogate_needs_the_axis_that_a_ridge_runs_along() -> None:
    (space,) = slices_of(AXES, {}, {})
    axes = [coordinate.names for coordinate in space.coordinates]
    assert RIDGE.surrogate(0, axes).along == 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="width is not an axis"):
        RidgeTarget(ridge="loss", along="width").surrogate(0, axes)


def test_a_search_uses_the_surrogate_of_its_target() -> None:
    sampler = boundary(target=LevelTarget(metric="depth", level=0.0), surrogate=LEVEL.surrogate(3, [("a",), ("b",)]))
    assert np.isfinite(sampler.proposer.uncertain_area())

"""Final states that are kept, and longer trainings that continue from them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.catalogue import load_job
from jobs.job import log_spaced_steps
from orchestrator.checkpoints.contents import decoded, encoded
from orchestrator.checkpoints.kept import KeptStates
from orchestrator.checkpoints.known import Checkpoints
from orchestrator.checkpoints.store import open_store
from orchestrator.cli import main
from orchestrator.dispatch.environment import IN_ONE_PIECE
from orchestrator.dispatch.inline import InlineDispatcher
from orchestrator.dispatch.source import source_of
from orchestrator.plan.calibration import Calibration
from orchestrator.plan.planner import Planner
from orchestrator.progress import Silent
from orchestrator.runner import Runner
from orchestrator.trial import Trial
from tests.runner_kit import Kept, Listed

SHORT, LONG, LONGER = 30, 70, 100
SETTINGS: dict[str, dict[str, Any]] = {
    "grokking": {"modulus": 11, "width": 16, "batch_size": 20},
    "double_descent": {"pool": 60, "sample_count": 40, "test_count": 20, "width": 6, "batch_size": 16},
    "ridge": {"solver": "gradient_descent", "sample_count": 12, "inputs": 8, "features": 8},
    "image_double_descent": {
        "data": "mnist1d",
        "model": "cnn_1d",
        "augment": False,
        "pool": 60,
        "width": 2,
        "sample_count": 40,
        "test_count": 20,
        "batch_size": 16,
    },
}


def trials_of(name: str, steps: int, *, curve_until: int = SHORT, **params: Any) -> list[Trial]:
    """Two trials with other seeds; of the shortest training, reports are at the same steps without `curve_until`."""
    job = load_job(name)
    values = {**SETTINGS[name], "steps": steps, "curve_points": 7, "curve_until": curve_until, **params}
    setting = job.params_for(values)
    return [Trial(job=name, job_version=job.version, params=setting, replicate=k) for k in range(2)]


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def trained(trials: Sequence[Trial], folder: Path | None) -> tuple[Kept, list[str]]:
    """The record of these trials, and what the run said; final states are kept in the folder."""
    name, tracker, said = trials[0].job, Kept(), Said()
    job = load_job(name)
    checkpoints = None
    if folder is not None:
        kept = str(folder / "final")
        states = KeptStates(kept, job=job, source=source_of(name).text, say=said.say)
        checkpoints = Checkpoints(str(folder / "own"), say=said.say, kept=kept, keeps=True, states=states)
    summary = Runner(
        job_name=name,
        planner=Planner(job_name=name, job=job, calibration=Calibration(), memory_budget_bytes=1e9),
        sampler=Listed(trials),
        tracker=tracker,
        pool=InlineDispatcher,
        progress=said,
        thresholds=job.Thresholds(),
        fingerprint="",
        checkpoints=checkpoints,
    ).run()
    assert summary.done == len(trials), summary.failures
    return tracker, said.lines


def recorded(tracker: Kept, trials: Sequence[Trial]) -> list[Any]:
    """Curves, observations and phases, in a form that compares bit for bit."""
    index, curves = tracker.index([t.id for t in trials]), dict(tracker.curves([t.id for t in trials]))
    return [
        (
            index[t.id].phase,
            dict(index[t.id].observations),
            curves[t.id].step.tolist(),
            {name: values.tobytes() for name, values in curves[t.id].values.items()},
        )
        for t in trials
    ]


def continued_at(tracker: Kept, trials: Sequence[Trial]) -> set[int]:
    """The steps at which they were continued."""
    return {json.loads(row.trained)["continued"] for row in tracker.rows([t.id for t in trials])}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_extended_training_is_the_longer_one(tmp_path: Path, name: str) -> None:
    """Twice: also where the shorter one has ended at a step at which the longer one does not report."""
    short, long, longer = trials_of(name, SHORT, curve_until=0), trials_of(name, LONG), trials_of(name, LONGER)
    trained(short, tmp_path)
    for trials, before in ((long, SHORT), (longer, LONG)):
        undisturbed, _ = trained(trials, None)
        extended, said = trained(trials, tmp_path)
        assert recorded(extended, trials) == recorded(undisturbed, trials)
        assert continued_at(extended, trials) == {before}
        share = f"{2 * before} of {2 * (LONG if trials is long else LONGER)} steps"
        assert len(said) == 1 and said[0].startswith(
            f"2 trials continue from the final states of shorter ones: {share}"
        )
    last = trials_of(name, LONG)[0].params
    assert LONG not in load_job(name).schedule(trials_of(name, LONGER)[0].params) and last.steps == LONG


def test_what_is_not_a_longer_training_of_the_same_trial_starts(tmp_path: Path) -> None:
    trained(trials_of("ridge", SHORT, curve_until=0), tmp_path)
    for other in ({"learning_rate": 0.05}, {"steps": SHORT - 1}):
        trials = trials_of("ridge", **{"steps": LONG, **other})
        tracker, said = trained(trials, tmp_path / "elsewhere")
        again, said = trained(trials, tmp_path)
        assert said == [] and recorded(again, trials) == recorded(tracker, trials)


def test_other_report_steps_are_refused_with_the_reason(tmp_path: Path) -> None:
    """The rows between them were never measured; the curve would not be that of the longer training."""
    trained(trials_of("ridge", SHORT, curve_until=0), tmp_path)
    for changes in ({"curve_until": 0}, {"curve_points": 8}):
        trials = trials_of("ridge", LONG, **changes)
        undisturbed, _ = trained(trials, None)
        tracker, said = trained(trials, tmp_path)
        assert len(said) == 1 and said[0].startswith("2 trials start although the final state of a shorter one is kept")
        assert f"`curve_until: {SHORT}` and `curve_points: 7` keep these" in said[0]
        assert recorded(tracker, trials) == recorded(undisturbed, trials)


def test_the_advice_for_other_report_steps_is_right() -> None:
    """Also where the shorter training has itself gone on with the spacing of a still shorter one."""
    job = load_job("ridge")
    for until in (0, SHORT):
        shorter, longer = (trials_of("ridge", steps, curve_until=until)[0].params for steps in (LONG, LONGER))
        why = job.why_not_extended(shorter, replace(longer, curve_until=0))
        advice = re.search(r"`curve_until: (\d+)` and `curve_points: (\d+)`", why)
        assert advice is not None
        advised = replace(longer, curve_until=int(advice[1]), curve_points=int(advice[2]))
        assert job.why_not_extended(shorter, advised) == ""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_is_shortened_to_so_many_reports(name: str) -> None:
    """The rehearsal takes the time between two reports for that of the steps between them."""
    job, params = load_job(name), trials_of(name, LONGER, curve_until=10)[0].params
    assert job.schedule(job.shortened(params, steps=SHORT, reports=2)).tolist() == [1, SHORT]


def test_states_of_an_edited_job_are_not_continued_and_it_is_said(tmp_path: Path) -> None:
    """The same sweep file, but the job's code has changed: another training."""
    trained(trials_of("ridge", SHORT, curve_until=0), tmp_path)
    store = open_store(str(tmp_path / "final"))
    (name,) = store.names()
    data, table = store.read(name), store.table(name)
    assert data is not None
    kept = [replace(t, setting=table.settings[t.trial_id]) for t in decoded(data, source="").values()]
    store.write(name, encoded(kept, source="1.0+edited"))
    trials = trials_of("ridge", LONG)
    tracker, said = trained(trials, tmp_path)
    assert said == [
        "2 trials start although the final state of a shorter one is kept: it was trained by another version of the job"
    ]
    assert recorded(tracker, trials) == recorded(trained(trials, None)[0], trials)


def test_a_training_that_ended_by_a_criterion_is_not_continued(tmp_path: Path) -> None:
    """A longer one ends there, too: it trains from the start, and is the same."""
    easy = {"stop_accuracy": 1e-6}
    trained(trials_of("grokking", SHORT, curve_until=0, **easy), tmp_path)
    assert open_store(str(tmp_path / "final")).names() == []
    diverging = {"learning_rate": 1e6}
    trained(trials_of("ridge", SHORT, curve_until=0, **diverging), tmp_path)
    finished, _ = trained(trials_of("ridge", SHORT, curve_until=0, **diverging), None)
    (curves, *_) = [
        c for _, c in finished.curves([t.id for t in trials_of("ridge", SHORT, curve_until=0, **diverging)])
    ]
    assert not np.isfinite(curves.values["train_loss"][-1])
    assert open_store(str(tmp_path / "final")).names() == []


def test_a_search_for_crossings_is_not_kept(tmp_path: Path) -> None:
    """What it looks for between two reports depends on where the training ended."""
    trained(trials_of("grokking", SHORT, curve_until=0, train_level=0.999), tmp_path)
    assert open_store(str(tmp_path / "final")).names() == []


def test_a_kept_state_that_is_damaged_or_gone_costs_the_work_only(tmp_path: Path) -> None:
    trials = trials_of("ridge", LONG)
    undisturbed, _ = trained(trials, None)
    trained(trials_of("ridge", SHORT, curve_until=0), tmp_path)
    store = open_store(str(tmp_path / "final"))
    (name,) = store.names()
    data = store.read(name)
    assert data is not None
    store.write(name, data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    tracker, said = trained(trials, tmp_path)
    assert "2 trials continue" in said[0] and "digest differs" in said[1] and "start again" in said[1]
    assert recorded(tracker, trials) == recorded(undisturbed, trials)
    assert continued_at(tracker, trials) == {IN_ONE_PIECE}


def test_many_kept_states_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.safetensors").write_bytes(b"no checkpoint")
    said: list[str] = []
    states = KeptStates(str(tmp_path), job=load_job("ridge"), source="", say=said.append)
    assert states.extend(trials_of("ridge", LONG)).of_trial == {}
    assert len(said) == 1 and "0.safetensors" in said[0] and "any other such file" in said[0]


def test_a_job_that_does_not_state_its_horizon_is_not_extended() -> None:
    job = load_job("tests.jobs_for_checkpoints:Walk")
    short, long = (job.params_for({"steps": steps}) for steps in (10, 20))
    assert "Job.horizon_params" in job.why_not_extended(short, long)


@given(st.integers(2, 10**6), st.integers(2, 320), st.lists(st.integers(1, 10**7), min_size=2, max_size=3, unique=True))
def test_report_steps_of_a_longer_training_begin_with_those_of_a_shorter_one(
    until: int, points: int, horizons: list[int]
) -> None:
    schedules = [log_spaced_steps(horizon, points, until) for horizon in sorted(horizons)]
    for horizon, steps in zip(sorted(horizons), schedules, strict=True):
        assert steps[-1] == horizon and (np.diff(steps) > 0).all() and steps[0] >= 1
    for shorter, longer in pairwise(schedules):
        common = longer[longer <= shorter[-1]]
        assert common.tolist() in (shorter.tolist(), shorter[:-1].tolist())
    assert log_spaced_steps(until, points, until).tolist() == log_spaced_steps(until, points).tolist()


def sweep_file(folder: Path, *, steps: int, **resources: Any) -> None:
    content = {
        "name": "ridges",
        "job": "ridge",
        "axes": {"weight_decay": [0.0, 0.1]},
        "fixed": {**SETTINGS["ridge"], "steps": steps, "curve_points": 7, "curve_until": SHORT},
        "resources": {"device": "cpu", **resources},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "output": str(folder / "out"),
    }
    (folder / "sweep.yaml").write_text(json.dumps(content))


def test_a_sweep_with_more_steps_continues_and_plan_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep_file(tmp_path, steps=SHORT, keep="final")
    assert main(["run", "sweep.yaml", "--inline", "--quiet", "--no-map"]) == 0
    sweep_file(tmp_path, steps=LONG, keep="final")
    capfd.readouterr()
    assert main(["plan", "sweep.yaml", "--inline"]) == 0
    line = "2 trials continue from the final states of shorter ones: 60 of 140 steps (43%) are not trained again"
    assert f"kept      {line}" in capfd.readouterr().out.splitlines()
    assert main(["run", "sweep.yaml", "--inline", "--no-map"]) == 0
    assert line in capfd.readouterr().out
    assert main(["audit", "sweep.yaml"]) == 0


@pytest.mark.parametrize("resources", [{"checkpoints": None}, {}])
def test_final_states_that_cannot_be_kept_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, resources: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep_file(tmp_path, steps=SHORT, keep="final", **resources)
    if not resources:
        content = json.loads((tmp_path / "sweep.yaml").read_text())
        content |= {"job": "tests.jobs_for_checkpoints:Walk", "axes": {"start": [0.1]}, "fixed": {}}
        (tmp_path / "sweep.yaml").write_text(json.dumps(content))
    for command in (["run", "sweep.yaml", "--inline", "--no-map"], ["plan", "sweep.yaml", "--inline"]):
        assert main(command) == 2
        text = capfd.readouterr().err
        assert "final states cannot be kept" in text and "resources.keep" in text

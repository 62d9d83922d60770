"""A plain function that takes a `state` continues after a loss."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch

from jobs import function
from jobs.catalogue import load_job
from jobs.function import FunctionJob
from jobs.function_state import FunctionState, UnsavedError, from_arrays, to_arrays
from jobs.job import Member, ParamError
from jobs.state import StateError, TrialState
from orchestrator.checkpoints.saving import Saving
from orchestrator.dispatch.base import PackEnded, PackProgress, PackTask
from orchestrator.dispatch.worker import execute
from orchestrator.records import Status
from orchestrator.trial import Trial
from tests.runner_kit import task
from tests.test_checkpoints import latest, results, rows

WALK, BY_NAME = "tests.jobs_for_states:walk", "tests.jobs_for_states:by_name"
PREPARED = "tests.jobs_for_states:prepared"


def trial(job: str = WALK, **params: Any) -> Trial:
    return Trial(job=job, job_version=1, params=load_job(job).params_for(params), replicate=0)


@pytest.fixture(autouse=True)
def _quick_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "_PULSE_S", 0.0)
    monkeypatch.setattr(function, "_POLL_S", 0.002)


def ran(pack: PackTask, *, until: int | None = None) -> tuple[list[PackProgress], Any]:
    """The events of a pack, up to a number of checkpoints; then its worker dies."""
    events: list[PackProgress] = []
    run = execute(pack, device="cpu", flush_s=0.0)
    for event in run:
        if not isinstance(event, PackProgress):
            return events, event
        events.append(event)
        if until is not None and sum(e.saved is not None for e in events) >= until:
            run.close()
            break
    return events, None


def pack_of(trials: Sequence[Trial], folder: Path, **continues: str) -> PackTask:
    return replace(task(trials), saving=Saving(folder=str(folder), continues=continues, interval_s=1e-6))


@pytest.mark.parametrize("job", [WALK, BY_NAME])
def test_a_function_continues_where_it_was_saved(tmp_path: Path, job: str) -> None:
    """With the rows, the returned metrics and the observations of the undisturbed trials."""
    waits = {"wait_s": 0.005} if job == WALK else {}
    trials = [trial(job, start=start, steps=120, **waits) for start in (0.1, 0.2)]
    undisturbed, _ = ran(task(trials))
    kept: dict[str, Any] = {}
    events: list[PackProgress] = []
    left = list(trials)
    continues: dict[str, str] = {}
    for _ in range(3):
        part, last = ran(pack_of(left, tmp_path, **continues), until=2)
        events += part
        kept |= results(part)
        continues |= {t: saved.file for e in part if (saved := e.saved) is not None for t in saved.steps}
        left = [t for t in left if t.id not in kept]
        if last is not None:
            break
    if left:
        assert continues, "a function that runs for a while is saved"
        part, last = ran(pack_of(left, tmp_path, **{t: f for t, f in continues.items() if t in {x.id for x in left}}))
        assert isinstance(last, PackEnded) and not any(event.notice for event in part)
        kept |= results(part)
        expected = rows(undisturbed)
        assert repr(rows(part)) == repr({t.id: expected[t.id] for t in left})
    assert kept == results(undisturbed)
    assert {status for status, _, _ in kept.values()} == {Status.FINISHED}


def test_little_is_trained_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one = trial(start=0.1, steps=60, wait_s=0.01, log=str(log))
    first, _ = ran(pack_of([one], tmp_path), until=3)
    step = latest(first).steps[one.id]
    assert step % 3 == 0
    stopped = len(log.read_text().splitlines())
    ran(pack_of([one], tmp_path, **{one.id: latest(first).file}))
    steps = [int(line.split()[1]) for line in log.read_text().splitlines()]
    assert steps[stopped + 1 :] == list(range(steps[stopped + 1], 61)), "a step that was under way at most"
    assert steps[stopped + 1] in (step + 1, step + 2)


def test_a_checkpoint_has_the_state_of_the_moment_at_which_it_is_due() -> None:
    """Not the one that was saved soon after the checkpoint before."""
    steps: SimpleQueue[int] = SimpleQueue()
    saved: SimpleQueue[int] = SimpleQueue()

    def train(params: Any, seed: int, device: str, report: Any, state) -> None:  # type: ignore[no-untyped-def]
        while step := steps.get():
            report(step, x=float(step))
            state.save(step=step)
            saved.put(step)

    job = FunctionJob(train)
    reports = job.train([Member(params=job.params_for({}), seed=1)], device="cpu")
    next(reports)  # it has begun
    offered: list[int] = []
    for first in (1, 12, 23):
        for step in range(first, first + 10):  # no checkpoint is due meanwhile
            steps.put(step)
            assert saved.get(timeout=60) == step
        assert next(r.state for r in reports if r.state is not None)() == {}, "the function has not saved since"
        steps.put(first + 10)
        assert saved.get(timeout=60) == first + 10
        states = next(found for r in reports if r.state is not None and (found := r.state()))
        offered.append(states[0].step)
        assert from_arrays(states[0])["step"] == states[0].step
    steps.put(0)
    assert [p for r in reports for p in r.finished] == [0]
    assert offered == [11, 22, 33]


def test_a_state_may_be_saved_before_the_first_report(tmp_path: Path) -> None:
    """What is costly to prepare is not prepared again, and no row is lost, that of step 0 included."""
    one = trial(PREPARED, folder=str(tmp_path))
    undisturbed, _ = ran(task([one]))
    (tmp_path / "hold").touch()
    first, _ = ran(pack_of([one], tmp_path), until=1)
    (tmp_path / "hold").unlink()
    assert rows(first) == {} and latest(first).steps == {one.id: 0}
    again, last = ran(pack_of([one], tmp_path, **{one.id: latest(first).file}))
    assert isinstance(last, PackEnded) and not any(event.notice for event in again)
    assert rows(again) == rows(undisturbed) and results(again) == results(undisturbed)
    assert (tmp_path / "log").read_text().split() == ["prepared"] * 2, "undisturbed, and once before the loss"


def test_an_argument_that_is_called_state_may_be_a_parameter_as_before() -> None:
    job = load_job("tests.jobs_for_states:state_is_a_parameter")
    assert not job.declaration.takes_state  # type: ignore[attr-defined]
    events, _ = ran(task([trial("tests.jobs_for_states:state_is_a_parameter", state="liquid")]))
    assert [values for curve in rows(events).values() for values in curve.values()] == [(6.0,)]
    events, _ = ran(task([trial("tests.jobs_for_states:odd")]))
    assert [values for curve in rows(events).values() for values in curve.values()] == [(1.0,)]
    with pytest.raises(ParamError, match="every trial of this function gets"):
        trial(BY_NAME, state="x")


def test_a_value_that_cannot_be_saved_fails_the_trial_with_its_place(tmp_path: Path) -> None:
    events, _ = ran(pack_of([trial("tests.jobs_for_states:unsaved")], tmp_path))
    (result,) = [r for event in events for r in event.results]
    assert result.status is Status.FAILED
    assert "UnsavedError: state.save['model'] must be made of numbers" in (result.error or "")


def test_values_come_back_as_they_were() -> None:
    values: dict[str, Any] = {
        "step": 2**70,
        "rng": (3, (1, 2, 3), None),
        "flags": [True, 0.1, float("inf"), "text"],
        "table": np.arange(6, dtype=np.int16).reshape(2, 3),
        "number": np.float32(0.25),
        "model": {
            "w": torch.arange(6.0).reshape(2, 3).T,
            "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "none": torch.empty(0, 4),
            "count": torch.tensor(7),
            3: {"nested": torch.tensor([True, False])},
        },
    }
    found = from_arrays(TrialState(step=1, arrays=to_arrays(values)))
    assert found["step"] == 2**70 and found["rng"] == values["rng"] and found["flags"] == values["flags"]
    np.testing.assert_array_equal(found["table"], values["table"])
    assert found["table"].dtype == np.int16 and float(found["number"]) == 0.25
    for name in ("w", "half", "none", "count"):
        assert torch.equal(found["model"][name], values["model"][name])
        assert found["model"][name].dtype == values["model"][name].dtype
    assert torch.equal(found["model"][3]["nested"], values["model"][3]["nested"])


def test_what_is_kept_is_a_copy() -> None:
    weights, table = torch.zeros(3), np.zeros(3)
    kept: list[dict[str, Any]] = []
    FunctionState({}, lambda: True, kept.append).save(weights=weights, table=table)
    weights += 1
    table += 1
    found = from_arrays(TrialState(step=0, arrays=kept[0]))
    assert not found["weights"].any() and not found["table"].any()


def test_save_does_nothing_where_no_checkpoint_is_due() -> None:
    kept: list[dict[str, Any]] = []
    state = FunctionState({}, lambda: False, kept.append)
    state.save(model=object())
    assert not kept and not state.due and not state and state.get("step", 0) == 0


@pytest.mark.parametrize(
    "layout",
    [
        {"dict": [["x", {"tensor": ["a", "__class__", [1]]}]]},
        {"dict": [["x", {"tensor": ["a", "float64", [99]]}]]},
        {"dict": [["x", {"array": "missing"}]]},
        {"dict": [["x", {"call": "os.system"}]]},
        {"value": 3},
        {"dict": 3},
        [],
    ],
)
def test_a_layout_that_is_not_valid_is_refused(layout: Any) -> None:
    arrays = {"layout": np.frombuffer(json.dumps(layout).encode(), dtype=np.uint8), "a": np.zeros(8, dtype=np.uint8)}
    with pytest.raises(StateError):
        from_arrays(TrialState(step=1, arrays=arrays))


def test_values_of_other_types_are_named() -> None:
    with pytest.raises(UnsavedError, match=r"state.save\['a'\]\[1\] must be made of"):
        to_arrays({"a": [1, {2}]})
    with pytest.raises(UnsavedError, match="keys"):
        to_arrays({"a": {(1, 2): 3}})
    with pytest.raises(UnsavedError, match="ndarray"):
        to_arrays({"a": np.array([object()])})

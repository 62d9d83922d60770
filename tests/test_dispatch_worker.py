"""How a worker runs one pack."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.job import Censored, Cost, Curves, Job, Member, Params, Report
from orchestrator.dispatch.base import Cause, Event, PackEnded, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.worker import execute
from orchestrator.records import Status, TrialResult
from orchestrator.reduce import reduce_curves
from tests.jobs_for_runner import STEPS, Ramp, RampParams
from tests.runner_kit import RAMP, ramp, task


def ran(pack: PackTask, **options: object) -> tuple[list[PackProgress], Event]:
    *progress, last = execute(pack, device="cpu", **options)  # type: ignore[arg-type]
    assert all(isinstance(event, PackProgress) for event in progress)
    return [event for event in progress if isinstance(event, PackProgress)], last


def results(progress: list[PackProgress]) -> dict[str, TrialResult]:
    found = [result for event in progress for result in event.results]
    assert len({result.trial_id for result in found}) == len(found)
    return {result.trial_id: result for result in found}


def rows(progress: list[PackProgress]) -> dict[tuple[str, int, str], float]:
    found = {}
    for event in progress:
        if event.rows is not None:
            for r, t in enumerate(event.rows.trial):
                for k, metric in enumerate(event.rows.metrics):
                    if event.rows.present is None or event.rows.present[r, k]:
                        key = (event.rows.trial_ids[t], int(event.rows.step[r]), metric)
                        assert key not in found
                        found[key] = float(event.rows.values[r, k])
    return found


def test_every_row_is_sent_once_and_every_trial_ends_once() -> None:
    trials = [ramp(slope=float(s)) for s in (0.5, 1, 2)]
    progress, last = ran(task(trials))
    assert isinstance(last, PackEnded)
    expected = {
        (t.id, step, metric): t.settings()["slope"] * step * share  # type: ignore[operator]
        for t in trials
        for step in range(1, STEPS + 1)
        for metric, share in (("value", 1.0), ("half", 0.5))
    }
    assert rows(progress) == expected
    assert {r.status for r in results(progress).values()} == {Status.FINISHED}


def test_how_often_rows_are_flushed_changes_nothing_but_the_number_of_messages() -> None:
    trials = [ramp(slope=float(s)) for s in range(3)] + [ramp(trouble="diverge")]
    seldom, _ = ran(task(trials), flush_s=1e9)
    often, _ = ran(task(trials), flush_s=0.0)
    assert len(seldom) == 1
    assert len(often) == STEPS
    assert repr(rows(seldom)) == repr(rows(often))  # repr: NaN is NaN
    assert repr(results(seldom)) == repr(results(often))


def test_curves_are_reduced_with_the_thresholds_of_the_task() -> None:
    trial = ramp(slope=1.0)
    low = results(ran(task([trial], level=100.0))[0])[trial.id]
    high = results(ran(task([trial], level=2.0))[0])[trial.id]
    assert (low.phase, low.observations["high_at"]) == ("low", Censored(float(STEPS)))
    assert (high.phase, high.observations["high_at"]) == ("high", 2.0)


def test_a_diverged_trial_is_a_result() -> None:
    trial = ramp(trouble="diverge")
    result = results(ran(task([trial]))[0])[trial.id]
    assert (result.status, result.phase) == (Status.FINISHED, "diverged")


def test_an_error_of_a_trial_alone_fails_it_with_its_traceback() -> None:
    trial = ramp(trouble="raise")
    progress, last = ran(task([trial]))
    assert isinstance(last, PackEnded)
    result = results(progress)[trial.id]
    assert result.status is Status.FAILED
    assert "ValueError: this setting is impossible" in (result.error or "")
    assert "jobs_for_runner.py" in (result.error or "")


def test_an_error_among_others_fails_the_pack_after_what_had_been_measured() -> None:
    fine, broken = ramp(trouble="diverge"), ramp(trouble="raise")
    progress, last = ran(task([fine, broken]))
    assert isinstance(last, PackFailed)
    assert last.cause is Cause.USER_ERROR
    assert set(results(progress)) == {fine.id}  # it had ended at step 2
    assert {step for _, step, _ in rows(progress)} == {1, 2}


@pytest.mark.parametrize("others", [0, 1])
def test_out_of_memory_always_fails_the_pack(others: int) -> None:
    _, last = ran(task([ramp(trouble="memory"), *(ramp(replicate=r + 1) for r in range(others))]))
    assert isinstance(last, PackFailed)
    assert last.cause is Cause.OUT_OF_MEMORY


def test_a_trial_that_cannot_be_observed_fails_alone() -> None:
    fine, broken = ramp(), ramp(trouble="observe")
    progress, last = ran(task([fine, broken]))
    assert isinstance(last, PackEnded)
    assert results(progress)[fine.id].status is Status.FINISHED
    assert "cannot be observed" in (results(progress)[broken.id].error or "")


def test_a_member_that_train_omits_fails_with_a_reason() -> None:
    fine, silent = ramp(), ramp(trouble="silent")
    progress, _ = ran(task([fine, silent]))
    assert results(progress)[fine.id].status is Status.FINISHED
    assert "finished" in (results(progress)[silent.id].error or "")


def test_a_job_that_cannot_be_loaded_is_a_user_error() -> None:
    trial = ramp()
    task_ = PackTask(pack_id="p", job=RAMP + "x", trial_ids=(trial.id,), params=({},), seeds=(1,), thresholds={})
    (last,) = execute(task_, device="cpu")
    assert isinstance(last, PackFailed)
    assert last.cause is Cause.USER_ERROR
    assert "Ramp" in last.error


@pytest.mark.parametrize(
    ("observations", "label", "rule"),
    [
        ({"ratio": None}, "low", "an observation is a number, or Censored"),
        ({"a//b": 1.0}, "low", "letters, digits"),
        ({"ratio": 1.0}, "typo", "not in the job's phases: low, high"),
    ],
)
def test_a_value_that_the_record_cannot_store_fails_its_trial(
    observations: dict[str, Any], label: str, rule: str
) -> None:
    class Careless(Job[Params]):
        Params, Thresholds = Params, Params
        metrics, phases = ("loss",), ("low", "high")

        def pack_key(self, params: Params) -> None:
            return None

        def cost(self, params: Params, *, extent: tuple[int, ...], models: int) -> Cost:
            raise NotImplementedError

        def train(self, pack: Any, *, device: str) -> Any:
            raise NotImplementedError

        def observe(self, params: Params, curves: Curves, thresholds: Params) -> dict[str, Any]:
            return observations

        def phase(self, params: Params, observations: Any, thresholds: Params) -> str:
            return label

    curves = Curves(step=np.array([1]), values={"loss": np.array([1.0])})
    with pytest.raises((TypeError, ValueError), match=re.escape(rule)):
        reduce_curves(Careless(), Params(), curves, Params())


class Odd(Ramp):
    """Reports one step that it is given by a class attribute, or a value."""

    step: Any = 1
    value: Any = 1.0

    def train(self, pack: Sequence[Member[RampParams]], *, device: str) -> Iterator[Report]:
        live = np.arange(len(pack))
        yield Report(step=0, members=live, values={"value": np.ones(len(pack))}, finished=live[:0])
        yield Report(step=self.step, members=live, values={"value": self.value}, finished=live)


@pytest.mark.parametrize(
    ("step", "value", "rule"),
    [
        (2**63 - 1, 1.0, "train reported step 9223372036854775807 of type int: must be a whole number from 0 to 2**62"),
        pytest.param(10**5000, 1.0, "must be a whole number from 0 to 2**62", id="immense"),
        (-1, 1.0, "train reported step -1 of type int: must be"),
        (True, 1.0, "train reported step True of type bool: must be"),
        (np.nan, 1.0, "train reported step nan of type float: must be"),
        ("1", 1.0, "train reported step '1' of type str: must be"),
        (0, 1.0, "train measured member 0 at step 0 after step 0; steps must increase"),
        (1, "low", "train reported 'value' for 1 members: could not convert string to float"),
        (1, np.array([10**400]), "train reported 'value' for 1 members: int too large"),
        (1, np.ones(2), "train reported 'value' for 1 members: could not broadcast"),
    ],
)
def test_a_report_that_the_record_cannot_hold_fails_its_trial_and_sends_no_row(
    step: Any, value: Any, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "step", step)
    monkeypatch.setattr(Odd, "value", value)
    trial = ramp(f"{__name__}:Odd")
    progress, last = ran(task([trial]))
    assert isinstance(last, PackEnded)
    assert rule in (results(progress)[trial.id].error or "")
    assert {step for _, step, _ in rows(progress)} == {0}


def stuck(params: dict[str, Any], seed: int, device: str, report: Callable[..., None]) -> None:
    """Waits for ever where the sweep says so."""
    report(1, x=1.0)
    if params["stuck"]:
        threading.Event().wait()


@pytest.fixture
def late_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm comes only where this process does not run Python for a minute beyond a trial's time."""
    monkeypatch.setattr("orchestrator.dispatch.worker.ALARM_S", 60.0)


@pytest.mark.usefixtures("late_alarm")
def test_a_function_that_hangs_is_named_with_the_place_where_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """The alarm for workers that cannot run Python stays away: it crashes a process in which Python runs."""
    pack = PackTask(
        pack_id="p",
        job=f"{__name__}:stuck",
        trial_ids=("first", "second", "third"),
        params=({"stuck": False}, {"stuck": True}, {"stuck": False}),
        seeds=(0, 1, 2),
        thresholds={},
        timeout_s=0.1,
    )
    progress, last = ran(pack)
    assert set(results(progress)) == {"first"}
    assert isinstance(last, PackFailed)
    assert (last.cause, last.trial_id) == (Cause.TIMED_OUT, "second")
    assert "threading.Event().wait()" in last.error
    assert last.error.endswith("TimeoutError: the trial had not ended after 0.1 s (resources.trial_timeout)")
    assert "Timeout" not in capfd.readouterr().err


class Slow(Ramp):
    """Its trials end one after another, each in less than its time."""

    def train(self, pack: Sequence[Member[RampParams]], *, device: str) -> Iterator[Report]:
        for position in range(len(pack)):
            time.sleep(0.2)
            members = np.array([position])
            yield Report(step=1, members=members, values={"value": np.ones(1)}, finished=members)


@pytest.mark.usefixtures("late_alarm")
def test_a_pack_whose_trials_end_in_time_raises_no_alarm(capfd: pytest.CaptureFixture[str]) -> None:
    trials = [ramp(f"{__name__}:Slow", replicate=r) for r in range(5)]
    progress, last = ran(replace(task(trials), timeout_s=0.3))
    assert isinstance(last, PackEnded)
    assert {result.status for result in results(progress).values()} == {Status.FINISHED}
    assert "Timeout" not in capfd.readouterr().err

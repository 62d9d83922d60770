"""The runner: what is recorded, what is run again, and how a failure affects other trials."""

import threading
import tracemalloc
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.catalogue import load_job
from orchestrator.dispatch.base import Event, PackEnded, PackProgress, PackTask
from orchestrator.dispatch.inline import InlineDispatcher
from orchestrator.progress import Silent
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.trial import Trial
from tests.jobs_for_runner import STEPS
from tests.runner_kit import COSTLY, Kept, Listed, ramp, run


def slopes(count: int, job: str = COSTLY) -> list[Trial]:
    return [ramp(job, slope=float(s), width=1 + s % 3) for s in range(count)]


def test_every_trial_ends_once_with_its_whole_curve() -> None:
    trials, tracker = slopes(20), Kept()
    summary = run(trials, tracker)
    assert (summary.done, summary.failed, summary.skipped) == (20, 0, 0)
    assert set(tracker.ended.values()) == {1}
    for trial in trials:
        slope = trial.settings()["slope"]
        assert isinstance(slope, float)
        assert tracker.curve(trial) == {step: slope * step for step in range(1, STEPS + 1)}


def test_a_finished_sweep_starts_no_worker_and_tells_the_sampler_everything() -> None:
    trials, tracker = slopes(6), Kept()
    run(trials, tracker)

    def no_pool() -> InlineDispatcher:
        raise AssertionError("a worker was started")

    sampler = Listed(trials)
    summary = run(trials, tracker, pool=no_pool, sampler=sampler)
    assert (summary.done, summary.skipped) == (0, 6)
    assert {o.trial_id: (o.phase, o.observations) for o in sampler.told} == {
        t.id: (tracker.result(t).phase, tracker.result(t).observations) for t in trials
    }


@given(finished=st.sets(st.integers(0, 11)))
@settings(max_examples=15)
def test_resume_runs_exactly_what_is_missing(finished: set[int]) -> None:
    trials, tracker = slopes(12), Kept()
    if finished:
        run([trials[i] for i in sorted(finished)], tracker)
    before = dict(tracker.begun)
    summary = run(trials, tracker)
    assert (summary.skipped, summary.done) == (len(finished), 12 - len(finished))
    assert all(tracker.begun[t.id] == 1 for t in trials)
    assert {t for t in tracker.begun if tracker.begun[t] != before.get(t)} == {
        trials[i].id for i in set(range(12)) - finished
    }


def test_failed_and_killed_trials_are_run_again() -> None:
    trials, tracker = slopes(3), Kept()
    tracker.begin(trials)
    tracker.end(
        [
            TrialResult(trial_id=trials[0].id, status=Status.FAILED, error="once"),
            TrialResult(trial_id=trials[1].id, status=Status.KILLED),
        ]
    )
    assert run(trials, tracker).done == 3
    assert set(tracker.status.values()) == {Status.FINISHED}


@given(bad=st.sets(st.integers(0, 15), max_size=4))
@settings(max_examples=20)
def test_bisection_fails_exactly_the_trials_that_raise(bad: set[int]) -> None:
    trials = [ramp(COSTLY, replicate=r, trouble="raise" if r in bad else "none") for r in range(16)]
    tracker = Kept()
    summary = run(trials, tracker)
    assert {i for i, t in enumerate(trials) if tracker.status[t.id] is Status.FAILED} == bad
    assert (summary.done, summary.failed) == (16 - len(bad), len(bad))
    assert {trial.id for trial, _ in summary.failures} == {trials[i].id for i in bad}
    assert all("this setting is impossible" in (result.error or "") for _, result in summary.failures)
    assert set(tracker.ended.values()) == {1}


def test_a_trial_out_of_memory_alone_fails_with_advice_and_the_rest_goes_on() -> None:
    trials = [ramp(COSTLY, replicate=r, trouble="memory" if r == 3 else "none") for r in range(8)]
    tracker = Kept()
    summary = run(trials, tracker)
    assert (summary.done, summary.failed) == (7, 1)
    assert "resources.workers" in (summary.failures[0][1].error or "")


def test_whatever_happens_the_record_is_asked_to_settle_after_it() -> None:
    """So rows do not wait for more than a turn of the loop, though no trial ends with them."""
    calls: list[str] = []

    class Watched(Kept):
        def record(self, rows: CurveRows) -> None:
            calls.append("record")
            super().record(rows)

        def end(self, results: Sequence[TrialResult]) -> None:
            calls.append("end")
            super().end(results)

        def settle(self) -> None:
            calls.append("settle")
            super().settle()

    run([ramp(slope=float(s)) for s in range(3)], Watched())
    assert {"record", "end"} < set(calls)
    last = max(i for i, call in enumerate(calls) if call != "settle")
    assert "settle" in calls[last + 1 :]
    for i, call in enumerate(calls):
        if call == "end":
            assert calls[i + 1] == "settle"


def test_a_diverged_trial_is_a_result() -> None:
    tracker = Kept()
    summary = run([ramp(trouble="diverge"), ramp()], tracker)
    assert (summary.done, summary.failed) == (2, 0)
    assert summary.phases == {"diverged": 1, "high": 1}


def test_a_sweep_that_can_only_fail_stops_early() -> None:
    trials = [ramp(replicate=r, trouble="raise") for r in range(200)]
    tracker = Kept()
    summary = run(trials, tracker)
    assert "this setting is impossible" in summary.gave_up
    assert 5 <= summary.failed < 200
    assert Status.RUNNING not in tracker.status.values()


def test_one_success_and_failures_are_the_trials_own() -> None:
    trials = [ramp(), *(ramp(replicate=r, trouble="raise") for r in range(12))]
    summary = run(trials, Kept(), sampler=Listed(trials, at_once=1))
    assert (summary.gave_up, summary.done, summary.failed) == ("", 1, 12)


def test_a_sampler_is_asked_again_as_trials_end() -> None:
    trials = slopes(7)
    sampler = Listed(trials, at_once=3)
    assert run(trials, Kept(), sampler=sampler).done == 7
    assert [o.trial_id for o in sampler.told[:3]] != []
    assert {o.trial_id for o in sampler.told} == {t.id for t in trials}


def test_other_thresholds_relabel_without_training() -> None:
    trials, tracker = slopes(5), Kept()
    run(trials, tracker)
    tracker.open(1000.0)
    summary = run(trials, tracker, level=1000.0)
    assert (summary.done, summary.skipped, summary.relabelled) == (0, 5, 5)
    assert {tracker.result(t).phase for t in trials} == {"low"}
    again = run(trials, tracker, level=1000.0)
    assert (again.skipped, again.relabelled) == (5, 0)


class StopsAfter(InlineDispatcher):
    """Sets a stop once it has given so many events."""

    def __init__(self, stop: threading.Event, events: int) -> None:
        super().__init__(flush_s=0.0)
        self._stop, self._left, self.closed = stop, events, False

    def poll(self, timeout_s: float) -> list[Event]:
        self._left -= 1
        if self._left == 0:
            self._stop.set()
        return super().poll(timeout_s)

    def close(self) -> None:
        self.closed = True
        super().close()


@given(events=st.integers(1, 40))
@settings(max_examples=15)
def test_stopped_anywhere_no_trial_is_left_running_and_the_next_run_completes(events: int) -> None:
    trials, tracker = slopes(6), Kept()
    stop = threading.Event()
    pool = StopsAfter(stop, events)
    first = run(trials, tracker, pool=lambda: pool, stop=stop, sampler=Listed(trials, at_once=2))
    assert pool.closed
    assert Status.RUNNING not in tracker.status.values()
    stood = tracker.kept.sweeps["sweep"]
    second = run(trials, tracker)
    assert first.done + second.done == 6
    assert second.skipped == first.done
    assert {len(tracker.curve(t)) for t in trials} == {STEPS}
    assert stood == ("KILLED" if first.stopped else "RUNNING")


class NeverReady(InlineDispatcher):
    """Holds packs, as a cluster without a node does; the run is stopped meanwhile."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def running(self) -> list[str]:
        return []

    def poll(self, timeout_s: float) -> list[Event]:
        self._stop.set()
        return []


def test_trials_that_wait_for_a_worker_are_not_counted_as_interrupted() -> None:
    trials, tracker, stop = slopes(6), Kept(), threading.Event()
    summary = run(trials, tracker, pool=lambda: NeverReady(stop), stop=stop)
    assert (summary.stopped, summary.killed, summary.handed_out) == (True, 0, 6), "`status` counts six as stopped"
    assert set(tracker.status.values()) == {Status.KILLED}


class Greedy(InlineDispatcher):
    """Remembers how many packs it held at most."""

    held = 0
    most = 0

    def submit(self, tasks: "list[PackTask]") -> None:  # type: ignore[override]
        self.held += len(tasks)
        self.most = max(self.most, self.held)
        super().submit(tasks)

    def poll(self, timeout_s: float) -> list[Event]:
        events = super().poll(timeout_s)
        self.held -= sum(type(e).__name__ == "PackEnded" for e in events)
        return events


def test_packs_are_handed_out_as_they_are_needed() -> None:
    pool, tracker = Greedy(), Kept()
    run([ramp(replicate=r) for r in range(600)], tracker, pool=lambda: pool)
    assert pool.most <= 16
    assert tracker.largest_begin <= 600 // 4


def test_an_observation_that_is_not_a_number_survives() -> None:
    tracker = Kept()
    trial = ramp(trouble="diverge")
    run([trial], tracker)
    last = tracker.result(trial).observations["last"]
    assert isinstance(last, float)
    assert np.isnan(last)


class Endless(InlineDispatcher):
    """Streams so many large batches of rows for the one trial that it is given."""

    ROWS = 20_000

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._left = batches
        self._task: PackTask | None = None

    def submit(self, tasks: Sequence[PackTask]) -> None:
        (self._task,) = tasks

    def poll(self, timeout_s: float) -> list[Event]:
        assert self._task is not None
        self._left -= 1
        if self._left < 0:
            result = TrialResult(trial_id=self._task.trial_ids[0], status=Status.FINISHED, phase="high")
            return [
                PackProgress(pack_id=self._task.pack_id, rows=None, results=(result,)),
                PackEnded(pack_id=self._task.pack_id, train_s=1.0),
            ]
        rows = CurveRows(
            trial_ids=self._task.trial_ids,
            metrics=("value",),
            trial=np.zeros(self.ROWS, dtype=np.int32),
            step=np.arange(self.ROWS),
            values=np.zeros((self.ROWS, 1)),
        )
        return [PackProgress(pack_id=self._task.pack_id, rows=rows, results=())]


class Weighing(Kept):
    """Keeps no row, and weighs the driver each time that it is given some."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[int] = []

    def record(self, rows: CurveRows) -> None:
        self.weights.append(tracemalloc.get_traced_memory()[0])


def test_the_driver_s_memory_does_not_grow_with_the_length_of_the_curves() -> None:
    tracker = Weighing()
    tracemalloc.start()
    try:
        run([ramp()], tracker, pool=lambda: Endless(50))
    finally:
        tracemalloc.stop()
    assert len(tracker.weights) == 50
    one_batch = Endless.ROWS * (4 + 8 + 8)
    assert tracker.weights[-1] - tracker.weights[5] < one_batch


def test_whether_anything_was_measured_is_known_at_the_end() -> None:
    job = "tests.jobs_for_runner:wordless"
    params = [load_job(job).params_for({"lr": float(k)}) for k in range(3)]
    summary = run([Trial(job=job, job_version=1, params=each, replicate=0) for each in params], Kept())
    assert (summary.done, summary.measured) == (3, False)
    assert run(slopes(2), Kept()).measured


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_retry_is_mentioned_with_the_values_of_the_axes() -> None:
    said = Said()
    run([ramp(slope=2.0, trouble="raise")], Kept(), progress=said)
    expected = (
        "trial slope=2.0, replicate=0 failed (ValueError: this setting is impossible); such trials are retried once"
    )
    assert said.lines == [expected]


def test_the_error_of_a_pack_is_said_once_while_it_is_split() -> None:
    said = Said()
    run([ramp(COSTLY, replicate=r, trouble="raise" if r == 3 else "none") for r in range(8)], Kept(), progress=said)
    first, *others = [line for line in said.lines if line.startswith("a pack of ")]
    assert first.startswith("a pack of 8 trials failed (")
    assert "ValueError: this setting is impossible); to retry: 8 trials, in packs of 4 + 4" in first
    assert others == [
        "a pack of 4 trials failed as before; to retry: 4 trials, in packs of 2 + 2",
        "a pack of 2 trials failed as before; to retry: 2 trials, in packs of 1 + 1",
    ]


def test_a_retry_after_no_memory_is_mentioned_once_for_all_trials() -> None:
    said = Said()
    run([ramp(slope=float(s), trouble="memory") for s in (2, 3)], Kept(), progress=said)
    alone = [line for line in said.lines if line.startswith("trial ")]
    assert len(alone) == 1
    assert alone[0].endswith("; such trials are retried once, with no other pack on their node")


class Holds(NeverReady):
    """Begins all packs at once."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(stop)
        self.tasks: dict[str, PackTask] = {}

    def submit(self, tasks: Sequence[PackTask]) -> None:
        self.tasks.update((task.pack_id, task) for task in tasks)

    def running(self) -> list[str]:
        return list(self.tasks)


def test_of_a_pack_that_trains_one_by_one_a_single_trial_runs() -> None:
    job = "tests.jobs_for_runner:wordless"
    params = [load_job(job).params_for({"lr": float(k)}) for k in range(300)]
    one_by_one = [Trial(job=job, job_version=1, params=each, replicate=0) for each in params]
    for trials, at_once in ((one_by_one, 1), ([ramp(slope=float(s)) for s in range(300)], 300)):
        stop = threading.Event()
        pool = Holds(stop)
        summary = run(trials, Kept(), pool=[pool].pop, stop=stop)
        sizes = [len(task.trial_ids) for task in pool.tasks.values()]
        assert max(sizes) > 1
        assert summary.killed == sum(min(size, at_once) for size in sizes)

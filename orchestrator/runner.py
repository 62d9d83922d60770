"""The loop of a run: ask, skip what is recorded, plan, dispatch, record, tell. Abstract bases only.

The runner keeps trials that have not ended and counts of those that have; rows of curves pass
through it. Every pack costs it the same work, however many packs there are.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from jobs.job import Params, as_dict
from orchestrator.dispatch.base import Dispatcher, Event, PackEnded, PackFailed, PackProgress, PackTask
from orchestrator.failures import FailureWatch, Remedy, decide, last_line
from orchestrator.plan.planner import Pack, Planner
from orchestrator.progress import ProgressDisplay, Snapshot
from orchestrator.records import Recorded, Status, TrialResult
from orchestrator.relabel import relabel_stale
from orchestrator.search.base import Sampler
from orchestrator.tracking.base import Tracker
from orchestrator.trial import Trial

PACKS_AHEAD = 2
"""Packs handed to the dispatcher for each worker: what runs and what comes next."""
TRIALS_AHEAD = 16
"""Where packs are tiny: so many trials for each worker, whatever number of packs that is."""
POLL_S = 0.2
"""The longest wait for news, and so the delay before a stop is noticed."""
FAILURES_KEPT = 50
"""Failed trials that the summary holds for printing; all are in the record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One failed trial, for the end of a run."""

    trial: Trial
    error: str


@dataclass(kw_only=True)
class Summary:
    """What a run did."""

    done: int = 0
    """Trials finished in this run."""
    failed: int = 0
    skipped: int = 0
    """Trials found finished in the record."""
    relabelled: int = 0
    """Of those, how many got their phase anew because the thresholds had changed."""
    killed: int = 0
    """Trials that were running when the run was stopped."""
    stopped: bool = False
    """Whether the run was stopped from outside."""
    gave_up: str = ""
    """Why the run stopped by itself, where it did."""
    phases: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    """The first few failed trials."""
    seconds: float = 0.0
    """From the first dispatched pack to the last recorded trial; start-up apart."""
    workers: int = 0
    """Packs that could run at the same time when the pool stood; 0 where no worker was needed."""
    startup_s: float = 0.0
    """Until the pool of workers stood, where one was needed."""
    train_s: float = 0.0
    """Sum of the ended packs' training seconds."""
    estimated_s: float = 0.0
    """What those packs were estimated at."""
    trained: int = 0
    """Trials of those packs."""
    record_s: float = 0.0
    """Seconds spent in the tracker for trials of this run."""
    measured: bool = False
    """Whether any trial of this run reported a metric."""


@dataclass(kw_only=True, slots=True)
class _Out:
    """A pack that was dispatched."""

    pack: Pack
    left: dict[str, Trial]
    """Its trials that have not ended."""


class Runner:
    """Runs one sweep to its end.

    Args:
        job_name: the job as workers load it.
        planner: cuts trials into packs.
        sampler: says which trials to run.
        tracker: an open tracker whose sweep is open too.
        pool: makes the dispatcher; called at the first trial that is missing, so that a finished
            sweep starts no worker.
        progress: is shown how far the run is.
        thresholds: what phases are reduced with.
        fingerprint: the thresholds' fingerprint, compared with the record's.
        stop: set from outside (a signal handler) to stop the run.
        stopped: called once a stopped run is recorded, before its workers are let go of.
        starting: what `pool` does, for people.
    """

    def __init__(
        self,
        *,
        job_name: str,
        planner: Planner,
        sampler: Sampler,
        tracker: Tracker,
        pool: Callable[[], Dispatcher],
        progress: ProgressDisplay,
        thresholds: Params,
        fingerprint: str,
        stop: threading.Event | None = None,
        stopped: Callable[[Summary], None] | None = None,
        starting: str = "starting workers",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job_name, self._planner, self._sampler, self._tracker = job_name, planner, sampler, tracker
        self._pool, self._progress, self._starting, self._clock = pool, progress, starting, clock
        self._thresholds, self._fingerprint = thresholds, fingerprint
        self._stop = stop or threading.Event()
        self._stopped = stopped
        self._dispatcher: Dispatcher | None = None
        self._queue: deque[Pack] = deque()
        self._out: dict[str, _Out] = {}
        self._trials_out = 0
        self._begun: set[str] = set()
        """Trials with a RUNNING run: those handed out, and those of broken packs that wait to run again."""
        self._number = 0
        self._started: float | None = None
        self._planned = 0
        """Trials planned so far, and the seconds their packs were estimated at."""
        self._planned_s = 0.0
        self._watch = FailureWatch()
        self._summary = Summary()

    def run(self) -> Summary:
        """Run until nothing is left, or until stopped; the record then says how every trial stands.

        The sweep itself is ended only where the run was stopped (as KILLED) or broke: what follows a whole
        run, such as the diagram, is the caller's.

        Raises:
            Whatever the tracker or the dispatcher raises; running trials are then recorded as KILLED and the
            sweep as FAILED, where the tracker still works, and workers are stopped.
        """
        broke = True
        try:
            self._tracker.reconcile()
            while not self._stop.is_set() and not self._summary.gave_up and self._advance():
                pass
            if self._started is not None:
                self._summary.seconds = self._clock() - self._started
            broke = False
        finally:
            # The record first: workers die in no time, but letting go of Ray takes a second or two of the
            # three that a stopped job has.
            try:
                self._end_as_killed()
                self._summary.stopped = self._stop.is_set()
                if broke or self._summary.stopped:
                    self._tracker.end_sweep(Status.KILLED.value if self._summary.stopped else Status.FAILED.value, {})
                if self._summary.stopped:
                    self._progress.close()
                    if self._stopped is not None:
                        self._stopped(self._summary)
            finally:
                if self._dispatcher is not None:
                    self._dispatcher.close()
        self._show()
        return self._summary

    def _advance(self) -> bool:
        """One turn of the loop; whether there may be another."""
        asked = self._ask()
        if not self._queue and not self._out:
            if asked:
                return True
            if not self._sampler.exhausted:
                raise RuntimeError("the sampler asks for nothing, waits for nothing, and is not exhausted")
            return False
        dispatcher = self._ready_dispatcher()
        if self._stop.is_set():
            return False
        self._feed(dispatcher)
        events = dispatcher.poll(POLL_S)
        self._handle(events)
        self._show()
        return True

    def _ready_dispatcher(self) -> Dispatcher:
        if self._dispatcher is None:
            began = self._clock()
            self._show(note=self._starting)
            self._dispatcher = self._pool()
            self._summary.startup_s = self._clock() - began
            self._summary.workers = self._dispatcher.workers
            self._started = self._clock()
            # The plan waited for the number of workers.
            trials = [trial for pack in self._queue for trial in pack.trials]
            self._queue = deque(self._plan(trials, self._dispatcher))
        return self._dispatcher

    def _plan(self, trials: Sequence[Trial], dispatcher: Dispatcher) -> list[Pack]:
        packs = self._planner.plan(trials, workers=dispatcher.workers)
        self._planned += len(trials)
        self._planned_s += math.fsum(pack.seconds for pack in packs)
        return packs

    # --- ask, and skip what is recorded ---

    def _ask(self) -> bool:
        """Ask for trials where none wait; whether any came."""
        if self._queue or self._sampler.exhausted:
            return False
        trials = self._sampler.ask(max(1, self._sampler.expected_trials))
        if not trials:
            return False
        recorded = self._tracker.index([trial.id for trial in trials])
        missing: list[Trial] = []
        stale: list[Trial] = []
        for trial in trials:
            found = recorded.get(trial.id)
            if found is None or found.status is not Status.FINISHED:
                missing.append(trial)
            elif found.thresholds != self._fingerprint:
                stale.append(trial)
            else:
                self._skip(trial, found)
        self._relabel(stale)
        if missing:
            if self._dispatcher is None:
                self._queue.append(Pack(trials=tuple(missing), seconds=0.0))  # planned once workers are known
            else:
                self._queue.extend(self._plan(missing, self._dispatcher))
        return True

    def _skip(self, trial: Trial, found: Recorded) -> None:
        self._summary.skipped += 1
        if found.phase is not None:
            self._summary.phases[found.phase] += 1
        self._watch.success()
        result = TrialResult(trial_id=trial.id, status=found.status, phase=found.phase, observations=found.observations)
        self._sampler.tell(result)

    def _relabel(self, stale: Sequence[Trial]) -> None:
        by_id = {trial.id: trial for trial in stale}
        for result in relabel_stale(self._tracker, self._planner.job, stale, self._thresholds):
            trial = by_id.pop(result.trial_id)
            if result.status is Status.FAILED:
                self._fail_quietly(trial, f"its curves could not be reduced anew:\n{result.error or ''}")
            else:
                self._summary.skipped += 1
                self._summary.relabelled += 1
                self._watch.success()
            if result.phase is not None:
                self._summary.phases[result.phase] += 1
            self._sampler.tell(result)
        for trial in by_id.values():  # finished, but without a single row: nothing to reduce
            self._summary.skipped += 1
            self._sampler.tell(TrialResult(trial_id=trial.id, status=Status.FAILED))

    # --- dispatch ---

    def _feed(self, dispatcher: Dispatcher) -> None:
        """Hand out packs, so many that workers are never idle and no more."""
        packs: list[Pack] = []
        workers, trials = dispatcher.workers, self._trials_out
        while self._queue and (
            len(self._out) + len(packs) < PACKS_AHEAD * workers
            or trials + len(self._queue[0].trials) <= TRIALS_AHEAD * workers
        ):
            pack = self._queue.popleft()
            packs.append(pack)
            trials += len(pack.trials)
        if not packs:
            return
        began = self._clock()
        self._tracker.begin([trial for pack in packs for trial in pack.trials])
        self._begun.update(trial.id for pack in packs for trial in pack.trials)
        self._summary.record_s += self._clock() - began
        tasks = []
        for pack in packs:
            self._number += 1
            pack_id = f"pack-{self._number}"
            self._out[pack_id] = _Out(pack=pack, left={trial.id: trial for trial in pack.trials})
            self._trials_out += len(pack.trials)
            tasks.append(self._task(pack_id, pack))
        dispatcher.submit(tasks)

    def _task(self, pack_id: str, pack: Pack) -> PackTask:
        return PackTask(
            pack_id=pack_id,
            job=self._job_name,
            trial_ids=tuple(trial.id for trial in pack.trials),
            params=tuple(dict(trial.settings()) for trial in pack.trials),
            seeds=tuple(trial.seed for trial in pack.trials),
            thresholds=as_dict(self._thresholds),
        )

    # --- record and tell ---

    def _handle(self, events: Iterable[Event]) -> None:
        """Record what has happened: rows first, then the trials that ended with them, in one call."""
        ended: list[tuple[Trial, TrialResult]] = []
        began = self._clock()
        for event in events:
            out = self._out.get(event.pack_id)
            if out is None:
                continue  # a late word of a pack that was given up
            if isinstance(event, PackProgress):
                if event.rows is not None:
                    self._summary.measured |= bool(event.rows.metrics)
                    self._tracker.record(event.rows)
                for result in event.results:
                    trial = out.left.pop(result.trial_id, None)
                    if trial is not None:
                        ended.append((trial, result))
            elif isinstance(event, PackEnded):
                self._pack_ended(event, out, ended)
            else:
                self._pack_failed(event, out, ended)
        if ended:
            self._tracker.end([result for _, result in ended])
            self._trials_out -= len(ended)
            self._begun.difference_update(trial.id for trial, _ in ended)
            for trial, result in ended:
                self._tell(trial, result)
        self._tracker.settle()
        self._summary.record_s += self._clock() - began

    def _pack_ended(self, event: PackEnded, out: _Out, ended: list[tuple[Trial, TrialResult]]) -> None:
        del self._out[event.pack_id]
        for trial in out.left.values():
            error = "the pack ended without a word on this trial"
            ended.append((trial, TrialResult(trial_id=trial.id, status=Status.FAILED, error=error)))
        self._planner.took(out.pack, event.train_s if event.busy_s is None else event.busy_s)
        self._summary.train_s += event.train_s
        self._summary.estimated_s += out.pack.seconds
        self._summary.trained += len(out.pack.trials)

    def _pack_failed(self, event: PackFailed, out: _Out, ended: list[tuple[Trial, TrialResult]]) -> None:
        del self._out[event.pack_id]
        left = list(out.left.values())
        if not left:
            return
        # A pack that got somewhere is not what kills its workers.
        losses = 1 if len(left) < len(out.pack.trials) else out.pack.losses + 1
        decision = decide(event.cause, size=len(left), losses=losses, error=event.error)
        if decision.remedy is Remedy.FAIL:
            for trial in left:
                ended.append((trial, TrialResult(trial_id=trial.id, status=Status.FAILED, error=decision.error)))
            return
        self._trials_out -= len(left)
        if decision.remedy is Remedy.RETRY:
            again = [self._planner.pack(tuple(left), losses=losses)]
        else:
            again = self._planner.split(left)
        self._queue.extendleft(reversed(again))  # at once: a culprit is found before much else runs
        self._progress.say(
            f"a pack of {len(out.pack.trials)} broke ({event.cause.value}: {last_line(event.error)}); "
            f"{len(left)} trials run again as {' + '.join(str(len(pack.trials)) for pack in again)}"
        )

    def _tell(self, trial: Trial, result: TrialResult) -> None:
        if result.status is Status.FINISHED:
            self._summary.done += 1
            if result.phase is not None:
                self._summary.phases[result.phase] += 1
            self._watch.success()
        else:
            error = result.error or ""
            self._fail_quietly(trial, error)
            if self._watch.failure(error) and not self._summary.gave_up:
                self._summary.gave_up = (
                    f"the first {self._summary.failed} trials failed, none succeeded, and at least 5 of them failed "
                    f"alike: {last_line(error)}"
                )
        self._sampler.tell(result)

    def _fail_quietly(self, trial: Trial, error: str) -> None:
        self._summary.failed += 1
        if len(self._summary.failures) < FAILURES_KEPT:
            self._summary.failures.append(Failure(trial=trial, error=error))

    def _end_as_killed(self) -> None:
        """Every trial that was begun and has not ended is recorded as KILLED; a next run takes it up."""
        self._out.clear()
        self._summary.killed = len(self._begun)
        if self._begun:
            killed = [
                TrialResult(trial_id=trial_id, status=Status.KILLED, error="the run was stopped")
                for trial_id in sorted(self._begun)
            ]
            self._tracker.end(killed)
            self._begun.clear()

    def _running(self) -> int:
        """Trials of the packs that workers have started: the oldest, one for each worker."""
        workers = 0 if self._dispatcher is None else self._dispatcher.workers
        return sum(len(out.left) for out in islice(self._out.values(), workers))

    def _show(self, note: str = "") -> None:
        summary = self._summary
        self._progress.update(
            Snapshot(
                total=self._sampler.expected_trials,
                skipped=summary.skipped,
                done=summary.done,
                running=self._running(),
                failed=summary.failed,
                workers=0 if self._dispatcher is None else self._dispatcher.workers,
                phases=dict(summary.phases),
                note=note,
                left_s=self._left_s(),
            )
        )

    def _left_s(self) -> float | None:
        """Seconds until the sweep has trained, by the plan at the pace of the packs that ended; None: not known."""
        summary = self._summary
        if not summary.workers or self._started is None or not summary.estimated_s:
            return None
        pace = summary.train_s / summary.estimated_s
        # Since the start every worker was busy: what was spent beyond the ended packs is in those that run.
        running_s = summary.workers * (self._clock() - self._started) - summary.train_s
        planned_s = self._planned_s
        if self._planned:  # a sampler may have asked for a part of the sweep so far
            planned_s *= max(1.0, (self._sampler.expected_trials - summary.skipped) / self._planned)
        left_s = (planned_s - summary.estimated_s) * pace - max(0.0, running_s)
        return max(left_s, 0.0) / summary.workers

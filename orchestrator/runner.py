"""The loop of a run: ask, skip what is recorded, plan, dispatch, record, tell. It depends on abstract bases only.

The runner holds the trials that have not ended and counts the others; curve rows pass through it. Its work per pack
does not depend on the number of packs.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from jobs.job import Params, as_dict
from orchestrator.checkpoints.known import Checkpoints
from orchestrator.dispatch.base import Cause, Dispatcher, Event, PackEnded, PackFailed, PackProgress, PackTask
from orchestrator.failures import (
    IDENTICAL_FAILURES_BEFORE_STOP,
    LOSSES_BEFORE_BLAME,
    Attempt,
    Decision,
    FailureWatch,
    Remedy,
    decide,
    signature,
)
from orchestrator.plan.pack import Pack
from orchestrator.plan.planner import Planner
from orchestrator.printable import last_line
from orchestrator.progress import ProgressDisplay, Snapshot, counted
from orchestrator.records import Status, Summary, TrialResult
from orchestrator.relabel import is_stale, relabel_stale
from orchestrator.sanity import FirstTrials, explained
from orchestrator.search.base import Sampler
from orchestrator.tracking.base import Tracker
from orchestrator.trial import Trial

TRIALS_AHEAD = 16
"""Trials handed out per worker in any case, so that workers do not run out of very small packs."""
POLL_S = 0.2
"""The longest wait for events, and so the delay before a stop is noticed."""
SAVE_S = 2.0
"""The longest wait for checkpoints when a run is stopped."""
WORKER_GONE = frozenset({Cause.WORKER_LOST, Cause.NODE_LOST, Cause.OUT_OF_MEMORY, Cause.TIMED_OUT})
"""Causes with which the last news of a pack may be lost: its worker died, or was killed."""
RETRIED = {
    Cause.WORKER_LOST: f"in new workers, until they have lost {LOSSES_BEFORE_BLAME} in a row",
    Cause.OUT_OF_MEMORY: "once, with no other pack on their node",
}
"""How a trial that is alone in its pack is retried."""
FAILURES_KEPT = 50
"""Failed trials that the summary keeps for printing; the record holds all of them."""


@dataclass(kw_only=True, slots=True)
class _Dispatched:
    """A pack that was dispatched."""

    pack: Pack
    attempt: Attempt
    left: dict[str, Trial]
    """Its trials that have not ended, by id."""
    continues: bool = False
    """Whether any of them continues from a checkpoint."""
    saved: bool = False
    """Whether it has written one."""


class Runner:
    """Runs one sweep to its end.

    Args:
        job_name: the job as workers load it.
        planner: groups trials into packs.
        sampler: decides which trials to run.
        tracker: an open tracker with an open sweep.
        pool: makes the dispatcher. Called at the first missing trial, so that a finished sweep starts no worker.
        progress: displays the state of the run.
        thresholds: of the job, used to reduce curves to phases.
        fingerprint: of the thresholds, compared with the recorded one.
        retired: observations that trials need although the job has retired them.
        axes: the parameters that vary, which name a trial in messages.
        trial_timeout_s: seconds after which a trial counts as hanging; None: never.
        stop: set from outside (a signal handler) to stop the run.
        stopped: called once a stopped run is recorded, before its workers are released.
        starting: the note to display while `pool` runs.
        first: watches the first trials.
        checkpoints: of the sweep's packs; None: none are written.
        save_s: the longest wait for checkpoints when the run is stopped.
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
        retired: Sequence[str] = (),
        axes: Sequence[str] = (),
        trial_timeout_s: float | None = None,
        stop: threading.Event | None = None,
        stopped: Callable[[Summary], None] | None = None,
        starting: str = "starting workers",
        first: FirstTrials | None = None,
        checkpoints: Checkpoints | None = None,
        save_s: Callable[[], float] = lambda: SAVE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job_name, self._planner, self._sampler, self._tracker = job_name, planner, sampler, tracker
        self._pool, self._progress, self._starting, self._clock = pool, progress, starting, clock
        self._thresholds, self._fingerprint, self._axes = thresholds, fingerprint, axes
        self._trial_timeout_s, self._retired, self._first = trial_timeout_s, tuple(retired), first
        self._checkpoints, self._save_s = checkpoints, save_s
        self._stop = stop or threading.Event()
        self._stopped = stopped
        self._dispatcher: Dispatcher | None = None
        self._waiting: list[Trial] = []
        """Missing trials that are not planned yet: the plan needs the number of workers."""
        self._queue: deque[tuple[Pack, Attempt]] = deque()
        self._out: dict[str, _Dispatched] = {}
        self._trials_out = 0
        self._first_s: dict[str, float] = {}
        """The first estimate of the packs that have lost a worker, by trial."""
        self._begun: set[str] = set()
        """Trials with a RUNNING run: those dispatched, and those of failed packs that wait for their retry."""
        self._number = 0
        self._started: float | None = None
        self._planned, self._planned_s = 0, 0.0
        """Trials planned so far, and the estimate for their packs."""
        self._watch = FailureWatch()
        self._said: set[tuple[str, ...]] = set()
        """Kinds of errors whose retry was mentioned, for a trial and for a pack."""
        self._summary = Summary()

    def run(self) -> Summary:
        """Run until no trial is left, or until stopped. No trial is left RUNNING in the record.

        The sweep is ended as KILLED if the run was stopped and as FAILED if it raised. Otherwise the caller ends it,
        after the diagram is drawn.

        Raises:
            Any exception of the tracker or the dispatcher. Running trials are then recorded as KILLED, if the tracker
            still works, and workers are stopped.
        """
        broke = True
        try:
            self._tracker.reconcile()
            while not self._stop.is_set() and not self._summary.gave_up and self._advance():
                pass
            if self._started is not None:
                self._summary.seconds = self._clock() - self._started
            if self._checkpoints is not None and not self._stop.is_set():
                if not self._summary.gave_up:
                    self._checkpoints.complete()
                if self._checkpoints.releases:
                    self._tracker.flush()  # files of the last packs are deleted at the end
                    self._take_refusals()
            broke = False
        finally:
            # Record first: a stopped job has three seconds, of which disconnecting from Ray takes one or two.
            try:
                if self._stop.is_set() and self._dispatcher is not None:
                    self._dispatcher.prepare_to_close()
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
                    if self._summary.stopped:
                        self._dispatcher.await_saved(self._save_s())
                    self._dispatcher.close()
                if self._checkpoints is not None:
                    self._tidy()
                    self._checkpoints.close()
        self._show()
        return self._summary

    def _advance(self) -> bool:
        """Run one turn of the loop; return whether there may be another."""
        asked = self._ask()
        if not self._waiting and not self._queue and not self._out:
            if asked:
                return True
            if not self._sampler.exhausted:
                raise RuntimeError(
                    "the sampler proposes no trial although none is running; this is a bug in phasefront"
                )
            if self._first is not None:
                self._first.close()
            return False
        dispatcher = self._ready_dispatcher()
        if self._stop.is_set():
            return False
        if self._waiting:
            self._plan(dispatcher.planned_workers)
        if not self._tracker.ready(POLL_S):  # it says why; meanwhile workers wait
            self._show(note="waiting for the record")
            return True
        self._tidy()
        self._feed(dispatcher)
        self._handle(dispatcher.poll(POLL_S))
        for notice in dispatcher.notices():
            self._progress.say(notice)
        self._show(note=dispatcher.note)
        return True

    def _tidy(self) -> None:
        """Delete checkpoints that are not needed, once the record holds the results that replace them."""
        if self._checkpoints is not None and self._checkpoints.releases and self._tracker.settled():
            self._checkpoints.tidy()

    def _ready_dispatcher(self) -> Dispatcher:
        if self._dispatcher is None:
            began = self._clock()
            self._show(note=self._starting)
            self._dispatcher = self._pool()
            self._summary.startup_s = self._clock() - began
            self._summary.workers = self._dispatcher.workers
            self._started = self._clock()
        return self._dispatcher

    def _plan(self, workers: int) -> None:
        packs = [pack for trials in self._alike() for pack in self._planner.plan(trials, workers=workers)]
        self._planned += len(self._waiting)
        self._planned_s += math.fsum(pack.seconds for pack in packs)
        self._queue.extend((pack, Attempt()) for pack in packs)
        self._waiting = []

    def _alike(self) -> list[list[Trial]]:
        """The trials to plan, where only those share a pack that continue at the same step; the longest way first."""
        if self._checkpoints is None:
            return [self._waiting]
        groups: dict[int, list[Trial]] = {}
        for trial in self._waiting:
            groups.setdefault(self._checkpoints.step_of(trial.id), []).append(trial)
        return [trials for _, trials in sorted(groups.items())]

    # --- ask, and skip what is recorded ---

    def _ask(self) -> bool:
        """Ask the sampler for trials if none wait; return whether there were any."""
        if self._waiting or self._queue or self._sampler.exhausted:
            return False
        trials = self._sampler.ask(max(1, self._sampler.expected_trials))
        if not trials:
            return False
        recorded = self._tracker.index([trial.id for trial in trials])
        stale: list[Trial] = []
        interrupted: list[str] = []
        for trial in trials:
            known = recorded.get(trial.id)
            if known is None or known.status is not Status.FINISHED:
                self._waiting.append(trial)
                if known is not None and known.status is Status.KILLED:
                    interrupted.append(trial.id)
            elif is_stale(known, self._fingerprint, self._retired):
                stale.append(trial)
            else:
                self._skip(TrialResult(trial.id, known.status, known.phase, known.observations))
        self._relabel(stale)
        if self._checkpoints is not None and interrupted and (found := self._checkpoints.find(interrupted)):
            self._progress.say(f"{found} trials continue from checkpoints")
        if self._checkpoints is not None:
            for line in self._checkpoints.extend(self._waiting).lines:
                self._progress.say(line)
        return True

    def _skip(self, result: TrialResult) -> None:
        """Count and tell a trial that had finished before."""
        if self._first is not None:
            self._first.finished(result)
        self._summary.skipped += 1
        if result.phase is not None:
            self._summary.phases[result.phase] += 1
        if result.status is Status.FINISHED:
            self._watch.success()
        self._sampler.tell(result)

    def _relabel(self, stale: Sequence[Trial]) -> None:
        by_id = {trial.id: trial for trial in stale}
        job, retired = self._planner.job, self._retired
        for result in relabel_stale(self._tracker, job, stale, self._thresholds, retired=retired):
            trial = by_id.pop(result.trial_id)
            if result.status is Status.FAILED:
                error = f"its curves could not be reduced under the new `phases:`\n{result.error or ''}"
                self._count_failure(trial, replace(result, error=error))
                self._sampler.tell(result)
            else:
                self._summary.relabelled += 1
                self._skip(result)
        for trial_id in by_id:  # finished without a curve: there is nothing to reduce
            self._skip(TrialResult(trial_id, Status.FAILED))

    # --- dispatch ---

    def _feed(self, dispatcher: Dispatcher) -> None:
        """Dispatch as many packs as keep all workers busy, and no more."""
        packs: list[tuple[Pack, Attempt]] = []
        workers, ahead, trials = dispatcher.workers, dispatcher.packs_ahead, self._trials_out
        while self._queue and (
            len(self._out) + len(packs) < ahead * workers
            or trials + len(self._queue[0][0].trials) <= TRIALS_AHEAD * workers
        ):
            packs.append(self._queue.popleft())
            trials += len(packs[-1][0].trials)
        if not packs:
            return
        began = self._clock()
        self._tracker.begin([trial for pack, _ in packs for trial in pack.trials])
        self._begun.update(trial.id for pack, _ in packs for trial in pack.trials)
        self._summary.record_s += self._clock() - began
        tasks = []
        for pack, attempt in packs:
            self._number += 1
            pack_id = f"pack-{self._number}"
            left = {trial.id: trial for trial in pack.trials}
            self._out[pack_id] = _Dispatched(pack=pack, attempt=attempt, left=left)
            self._trials_out += len(pack.trials)
            tasks.append(self._task(pack_id, pack, attempt))
            saving = tasks[-1].saving
            self._out[pack_id].continues = saving is not None and saving.resumes
        dispatcher.submit(tasks)

    def _task(self, pack_id: str, pack: Pack, attempt: Attempt) -> PackTask:
        saving = None if self._checkpoints is None else self._checkpoints.saving([t.id for t in pack.trials])
        expected_s = pack.seconds if saving is None or not saving.resumes else self._left_s_of(pack)
        return PackTask(
            pack_id=pack_id,
            job=self._job_name,
            trial_ids=tuple(trial.id for trial in pack.trials),
            params=tuple(dict(trial.settings()) for trial in pack.trials),
            seeds=tuple(trial.seed for trial in pack.trials),
            thresholds=as_dict(self._thresholds),
            retired=self._retired,
            label=pack.trials[0].text(self._axes),
            avoid_nodes=attempt.avoid_nodes,
            fresh_worker=attempt.fresh_worker,
            alone=attempt.alone,
            timeout_s=self._trial_timeout_s,
            expected_s=expected_s,
            saving=saving,
        )

    def _left_s_of(self, pack: Pack) -> float:
        """The estimate for what the states of a pack leave; for all of it where the job states no schedule.

        Estimates are compared where packs wait: it is made from the first one, as those of the packs that were planned
        together with this one.
        """
        assert self._checkpoints is not None
        whole_s = min(pack.seconds, max(self._first_s.get(trial.id, pack.seconds) for trial in pack.trials))
        shares = []
        for trial in pack.trials:
            steps = self._planner.job.schedule(trial.params)
            horizon = 0 if steps is None or not len(steps) else int(steps[-1])
            shares.append(max(0.0, 1.0 - self._checkpoints.step_of(trial.id) / horizon) if horizon else 1.0)
        return whole_s * max(shares)

    # --- record and tell ---

    def _handle(self, events: Iterable[Event]) -> None:
        """Record events: first the rows, then all trials that ended, in one call."""
        ended: list[tuple[Trial, TrialResult]] = []
        began = self._clock()
        for event in events:
            out = self._out.get(event.pack_id)
            if out is None:
                continue  # a late event of a pack that has ended
            if isinstance(event, PackProgress):
                if event.rows is not None:
                    self._summary.measured |= bool(event.rows.metrics)
                    self._tracker.record(event.rows)
                    if self._first is not None:
                        self._first.rows(event.rows)
                if event.unread and self._first is not None:
                    self._first.unread(event.unread)
                if self._checkpoints is not None:
                    self._take_checkpoint(self._checkpoints, out, event)
                for result in event.results:
                    trial = out.left.pop(result.trial_id, None)
                    if trial is None:
                        continue
                    if result.status is Status.FAILED:
                        error = result.error or ""
                        decision = self._decide(Cause.USER_ERROR, out, [trial], error=error, node=event.node)
                        self._carry_out(decision, [trial], result, ended)
                    else:
                        ended.append((trial, result))
            elif isinstance(event, PackEnded):
                self._pack_ended(event, out, ended)
            else:
                self._pack_failed(event, out, ended)
        if ended:
            self._tracker.end([result for _, result in ended])
            self._trials_out -= len(ended)
            self._begun.difference_update(trial.id for trial, _ in ended)
            if self._checkpoints is not None:
                self._checkpoints.ended(trial.id for trial, _ in ended)
            for trial, result in ended:
                self._tell(trial, result)
                if self._first is not None:
                    self._first.ended(trial, result)
        self._tracker.settle()
        self._take_refusals()
        self._summary.record_s += self._clock() - began

    def _take_checkpoint(self, checkpoints: Checkpoints, out: _Dispatched, event: PackProgress) -> None:
        if event.saved is not None:
            out.saved = True
            checkpoints.saved(event.saved, left=out.left)
        if event.notice:
            checkpoints.note(event.notice)

    def _take_refusals(self) -> None:
        """Trials that the record could not hold have failed, whatever they were counted as; it says so itself."""
        for refusal in self._tracker.refused():
            error = f"the record cannot hold a value of this trial: {refusal.error}"
            name = refusal.trial_id
            out = next((out for out in self._out.values() if refusal.trial_id in out.left), None)
            if out is not None:
                trial = out.left.pop(refusal.trial_id)
                name = trial.text(self._axes)
                self._trials_out -= 1
                self._begun.discard(trial.id)
                self._tell(trial, TrialResult(trial.id, Status.FAILED, error=error))
            elif refusal.ended_as is Status.FINISHED:
                self._summary.done -= 1
                self._summary.failed += 1
                if refusal.phase is not None:
                    self._summary.phases -= Counter([refusal.phase])
            self._progress.say(f"trial {name} is recorded as failed: {error}")

    def _pack_ended(self, event: PackEnded, out: _Dispatched, ended: list[tuple[Trial, TrialResult]]) -> None:
        del self._out[event.pack_id]
        if left := list(out.left.values()):
            error = "the pack ended without reporting this trial"
            decision = self._decide(Cause.USER_ERROR, out, left, error=error, node="")
            self._carry_out(decision, left, TrialResult("", Status.FAILED, error=decision.error), ended)
        if not out.continues:  # what is left of a training says nothing of a whole one
            self._planner.ended(out.pack, event.train_s if event.busy_s is None else event.busy_s)
            self._summary.train_s += event.train_s
            self._summary.estimated_s += out.pack.seconds

    def _pack_failed(self, event: PackFailed, out: _Dispatched, ended: list[tuple[Trial, TrialResult]]) -> None:
        del self._out[event.pack_id]
        blamed = out.left.pop(event.trial_id, None)
        if blamed is not None:
            ended.append((blamed, TrialResult(blamed.id, Status.FAILED, error=event.error)))
        left = list(out.left.values())
        if not left:
            return
        if self._checkpoints is not None and event.cause in WORKER_GONE:
            self._checkpoints.lost([trial.id for trial in out.pack.trials], left=out.left)
            for trial_id in out.left:
                self._first_s.setdefault(trial_id, out.pack.seconds)
        if blamed is not None:
            decision = Decision(remedy=Remedy.RETRY, attempt=out.attempt)
        else:
            decision = self._decide(event.cause, out, left, error=event.error, node=event.node)
        again = self._carry_out(decision, left, TrialResult("", Status.FAILED, error=decision.error), ended)
        if not again or event.cause is Cause.NODE_LOST:
            return
        if len(out.pack.trials) == 1:
            if event.cause in RETRIED:
                self._say_retry(left[0], event.error, RETRIED[event.cause], key=(event.cause.value, ""))
        else:
            key = ("pack", *signature(event.error))
            how = "as before" if key in self._said else f"({event.cause.value}: {last_line(event.error)})"
            if len(self._said) < FAILURES_KEPT:
                self._said.add(key)
            self._progress.say(
                f"a pack of {len(out.pack.trials)} trials failed {how}; to retry: {counted(len(left), 'trial')}, "
                f"in packs of {' + '.join(str(len(pack.trials)) for pack in again)}"
            )

    def _decide(self, cause: Cause, out: _Dispatched, left: Sequence[Trial], *, error: str, node: str) -> Decision:
        """What to do with the trials of a pack that have not ended, or with one of them that raised."""
        attempt, alone = out.attempt, len(out.pack.trials) == 1
        progressed = len(left) < len(out.pack.trials) or out.saved
        decision = decide(cause, size=len(left), attempt=attempt, error=error, node=node, progressed=progressed)
        if cause not in (Cause.USER_ERROR, Cause.TIMED_OUT):
            return decision
        if decision.remedy is Remedy.RETRY:
            if self._watch.is_confirmed(error):
                return replace(decision, attempt=replace(decision.attempt, fresh_worker=False))
            self._say_retry(left[0], error)
        elif decision.remedy is Remedy.FAIL and alone and signature(attempt.error) == signature(error):
            self._watch.raised_again(error)
        return decision

    def _carry_out(
        self, decision: Decision, left: Sequence[Trial], result: TrialResult, ended: list[tuple[Trial, TrialResult]]
    ) -> list[Pack]:
        """End these trials like `result`, or queue them again; return the packs in which they are retried."""
        if decision.remedy is Remedy.FAIL:
            ended += [(trial, replace(result, trial_id=trial.id, error=decision.error)) for trial in left]
            return []
        self._trials_out -= len(left)
        retry = decision.remedy is Remedy.RETRY
        again = [self._planner.pack(tuple(left))] if retry else self._planner.split(left)
        # First: the trial that raised is found early.
        self._queue.extendleft((pack, decision.attempt) for pack in reversed(again))
        return again

    def _say_retry(self, trial: Trial, error: str, how: str = "once", key: tuple[str, str] | None = None) -> None:
        """Mention a trial that is retried, once for each kind of error (or `key`)."""
        key = key or signature(error)
        if key not in self._said and len(self._said) < FAILURES_KEPT:
            self._said.add(key)
            self._progress.say(
                f"trial {trial.text(self._axes)} failed ({explained(error, trial.settings())}); such trials are "
                f"retried {how}"
            )

    def _tell(self, trial: Trial, result: TrialResult) -> None:
        if result.status is Status.FINISHED:
            self._summary.done += 1
            if result.phase is not None:
                self._summary.phases[result.phase] += 1
            self._watch.success()
        else:
            error = result.error or ""
            self._count_failure(trial, result)
            if self._watch.failure(error) and not self._summary.gave_up:
                self._summary.gave_up = (
                    f"the first {self._summary.failed} trials failed, none succeeded, and at least "
                    f"{IDENTICAL_FAILURES_BEFORE_STOP} of them with the same error: "
                    f"{explained(error, trial.settings())}"
                )
        self._sampler.tell(result)

    def _count_failure(self, trial: Trial, result: TrialResult) -> None:
        self._summary.failed += 1
        if len(self._summary.failures) < FAILURES_KEPT:
            self._summary.failures.append((trial, result))

    def _end_as_killed(self) -> None:
        """Record every trial that was begun and has not ended as KILLED; the next run retries it."""
        self._summary.killed, self._summary.handed_out = self._running(), len(self._begun)
        self._out.clear()
        if self._begun:
            error = "the run was stopped"
            self._tracker.end([TrialResult(trial, Status.KILLED, error=error) for trial in sorted(self._begun)])
            self._begun.clear()

    def _running(self) -> int:
        """Trials that train in the packs that run; if these are not known, in the oldest packs, one per worker."""
        if self._dispatcher is None:
            return 0
        packs = self._dispatcher.running()
        if packs is None:
            running = list(islice(self._out.values(), self._dispatcher.workers))
        else:
            running = [self._out[pack] for pack in packs if pack in self._out]
        at_once = 1 if self._planner.job.one_by_one else math.inf
        return sum(int(min(len(out.left), at_once)) for out in running)

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
        """Seconds of training left: the plan, corrected by the packs that ended. None if unknown."""
        summary = self._summary
        if not summary.workers or self._started is None or not summary.estimated_s:
            return None
        pace = summary.train_s / summary.estimated_s
        # Every worker has been busy since the start: time not spent on ended packs was spent on running ones.
        running_s = summary.workers * (self._clock() - self._started) - summary.train_s
        planned_s = self._planned_s
        if self._planned:  # the sampler may have asked for only a part of the sweep so far
            planned_s *= max(1.0, (self._sampler.expected_trials - summary.skipped) / self._planned)
        left_s = (planned_s - summary.estimated_s) * pace - max(0.0, running_s)
        return max(left_s, 0.0) / summary.workers

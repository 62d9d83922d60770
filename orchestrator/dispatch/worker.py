"""What a worker does with a pack: train it, stream the curve rows, reduce each trial's curves at its end.

Every dispatcher runs the same generator, `execute`. A trial's rows are kept until the trial ends, because its
observations need the whole curve. Rows are sent in columnar chunks, so that a long training is visible while it runs.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.catalogue import load_job
from jobs.function import described, running_stack, shown
from jobs.job import LARGEST_STEP, Curves, Job, Member, Observations, Params, Report, params_from
from orchestrator.checkpoints.contents import SavedCurve, SavedTrial
from orchestrator.checkpoints.saving import PackSaver
from orchestrator.dispatch.base import Cause, Event, PackEnded, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.environment import IN_ONE_PIECE, TrainingRecord, environment_of, pack_digest
from orchestrator.dispatch.source import source_of
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.reduce import reduce_curves

FLUSH_S = 2.0
"""Rows wait at most this long before they are sent."""
ALARM_S = 2.0
"""Beyond `PackTask.timeout_s`: when a worker that cannot run Python prints where it is, before it is killed
(`pool.GRACE_S`)."""
_LONGEST_ALARM_S = 1e8
FLUSH_VALUES = 50_000
"""A chunk is sent earlier once it has this many values."""

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


def prepare(*, threads: int, job: str | None = None) -> None:
    """Warm up this process: set the threads of tensor operations and load the job.

    torch is not imported for a job whose attribute `needs_torch` is False (a plain function).
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    wants_torch = job is not None and getattr(load_job(job), "needs_torch", True)
    if job is not None:
        source_of(job)  # now: the file may be edited while this process lives
    if wants_torch or "torch" in sys.modules:
        from jobs.packed.loop import set_threads

        set_threads(threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the exception means that host or device memory ran out. Does not import torch."""
    if {cls.__name__ for cls in type(error).__mro__} & {"MemoryError", "OutOfMemoryError"}:
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def busy_clock(job: Job[Any], device: str) -> Callable[[], float]:
    """Return a clock that leaves out time spent waiting for a core, where that is possible.

    That is the thread's CPU time if torch trains in one thread on a CPU. Other trainings may wait for something other
    than a core, so the wall clock is returned.
    """
    torch = getattr(job, "needs_torch", True)
    alone = torch and device.startswith("cpu") and os.environ.get("OMP_NUM_THREADS") == "1"
    return time.thread_time if alone else time.monotonic


def execute(
    task: PackTask,
    *,
    device: str,
    flush_s: float = FLUSH_S,
    clock: Callable[[], float] = time.monotonic,
    asked: Callable[[], float | None] = lambda: None,
) -> Generator[Event, None, None]:
    """Run one pack. The last event is its `PackEnded` or `PackFailed`.

    An exception of the job fails the trial if the pack has one trial, and otherwise the pack (`Cause.USER_ERROR`), so
    that the runner can find the trial that raised it. Out of memory always fails the pack. Trials that ended earlier
    are reported first. No exception of the job is passed on.

    If the job states which trial runs (`Report.running`), and this one exceeds `task.timeout_s`, the pack fails with
    `Cause.TIMED_OUT` and the trial's id. The trial may still be running then.

    A pack that was made from another source of the job is refused (`Cause.OTHER_SOURCE`).

    A pack with `task.saving` continues its trials from checkpoints, and is saved from time to time, and when `asked`
    says so: the `life_s` of `Engine.ask_to_save`, or None.
    """
    if (refusal := _refusal(task)) is not None:
        yield refusal
        return
    started = clock()
    try:
        job = load_job(task.job)
        busy = busy_clock(job, device)
        busy_from = busy()
        thresholds = params_from(job.Thresholds, task.thresholds)
        pairs = zip(task.params, task.seeds, strict=True)
        members = [Member(params=job.params_for(values), seed=seed) for values, seed in pairs]
        source = "" if task.saving is None else task.source or source_of(task.job).text
    except Exception as error:  # the job's own code runs here: any error is the user's
        yield PackFailed(pack_id=task.pack_id, cause=Cause.USER_ERROR, error=described(error))
        return

    curves = _OpenCurves(task, job, members, thresholds, device)
    saver = None if task.saving is None else PackSaver(task.saving, task.trial_ids, source, clock, asked)
    ends = None if saver is None else partial(saver.end, so_far=curves.so_far, params=task.params, seeds=task.seeds)
    train = partial(job.train, device=device)
    flushed = clock()
    deadline = _Deadline(task.timeout_s, clock)
    try:
        for report in train(members) if saver is None else saver.reports(train, members, curves):
            curves.add(report, ends)
            if deadline.passed(report):
                yield from curves.flush_rest()
                yield deadline.failure(task)
                return
            if saver is not None and saver.due(report):
                yield from curves.flush_rest()
                saved, notice = saver.save(report, curves.so_far)
                yield PackProgress(pack_id=task.pack_id, rows=None, results=(), saved=saved, notice=notice)
            waits = curves.waits or report.state is None
            if curves.waiting_values >= FLUSH_VALUES or (waits and clock() - flushed >= flush_s):
                yield curves.flush()
                flushed = clock()
    except (Exception, SystemExit) as error:  # likewise
        cause = Cause.OUT_OF_MEMORY if is_out_of_memory(error) else Cause.USER_ERROR
        text = described(error)
        if cause is Cause.OUT_OF_MEMORY or len(members) > 1:
            yield from curves.flush_rest()
            yield PackFailed(pack_id=task.pack_id, cause=cause, error=text)
            return
        curves.fail_rest(text)
    finally:
        deadline.close()
    curves.fail_rest(
        f"{task.job}: train ended without naming this trial in `Report.finished`: "
        "every member of a pack must be named there exactly once"
    )
    yield from curves.flush_rest()
    yield PackEnded(pack_id=task.pack_id, train_s=clock() - started, busy_s=busy() - busy_from)


def _refusal(task: PackTask) -> PackFailed | None:
    """The refusal of a pack whose job is not here, or is another version; the driver has loaded it."""
    if not task.source:
        return None
    try:
        own = source_of(task.job)
    except Exception as raised:  # importing the module runs the user's code
        return PackFailed(pack_id=task.pack_id, cause=Cause.OTHER_SOURCE, error=described(raised))
    if own.text == task.source:
        return None
    error = f"this worker has {own.text}, the driver {task.source}"
    return PackFailed(pack_id=task.pack_id, cause=Cause.OTHER_SOURCE, error=error, source=own)


class _Deadline:
    """Notices a trial that runs for too long, in a job that trains its trials one after another."""

    def __init__(self, timeout_s: float | None, clock: Callable[[], float]) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._running = 0
        self._start()

    def _start(self) -> None:
        self._since = self._clock()
        if self._timeout_s is not None:
            # A trial that keeps the interpreter's lock stops this thread too. Then the dispatcher kills the worker, and
            # this prints to the worker's output where the trial was. The alarm does not take the lock: it crashes the
            # process if Python runs meanwhile, so it must not fire where this thread notices the end of the time.
            faulthandler.dump_traceback_later(min(self._timeout_s + ALARM_S, _LONGEST_ALARM_S), file=2)

    def passed(self, report: Report) -> bool:
        """Whether the running trial has exceeded its time."""
        if self._timeout_s is None:
            return False
        running = self._running if report.running is None else report.running
        if running != self._running or len(report.finished) or report.failed:
            self._running = running
            self._start()
        if self._clock() - self._since <= self._timeout_s:
            return False
        self.close()
        return report.running is not None

    def failure(self, task: PackTask) -> PackFailed:
        """The event of the trial that has exceeded its time."""
        return PackFailed(
            pack_id=task.pack_id,
            cause=Cause.TIMED_OUT,
            error=f"The trial is at (most recent call last):\n{running_stack()}{timed_out(self._timeout_s)}",
            trial_id=task.trial_ids[self._running],
        )

    def close(self) -> None:
        """Cancel the alarm."""
        if self._timeout_s is not None:
            faulthandler.cancel_dump_traceback_later()


def timed_out(timeout_s: float | None) -> str:
    """The last line of the error of a trial that did not end in time."""
    return f"TimeoutError: the trial had not ended after {timeout_s:g} s (resources.trial_timeout)"


class _OpenCurves:
    """The curves of a pack's unfinished trials, and the rows and results that wait to be sent."""

    def __init__(
        self, task: PackTask, job: Job[Any], members: Sequence[Member[Any]], thresholds: Params, device: str
    ) -> None:
        self._task, self._job, self._members, self._thresholds = task, job, members, thresholds
        self._device = device
        self._group: dict[int, tuple[str, int, int]] = {}
        """Member -> digest of the members that train together, its place among them, and their number."""
        self.together(range(len(members)))
        self._continued: dict[int, int] = {}
        """Member -> the step at which it was continued."""
        self._metrics: list[str] = list(job.metrics_of(members[0].params))
        self._column = {name: k for k, name in enumerate(self._metrics)}
        self._names_as_it_goes = not self._metrics
        self._open: dict[int, list[tuple[int, Values, Flags]]] = {i: [] for i in range(len(members))}
        """For each unfinished member, report by report: the step, (K,) values, and (K,) whether each was reported."""
        self._blocks: list[tuple[NDArray[np.int64], int, Values, Flags]] = []
        self._results: list[TrialResult] = []
        self._unread: dict[str, tuple[str, ...]] = {}
        self.waiting_values = 0

    def add(self, report: Report, ends: Callable[[Report], object] | None = None) -> None:
        """Keep the report's values, and end the trials that finished or failed with it; before that call `ends`."""
        if len(report.members):
            step = _checked_step(report.step)
            block, reported = self._block(report.values, len(report.members))
            for position, row in zip(report.members.tolist(), block, strict=True):
                curve = self._open.get(position)
                if curve is None:
                    raise ValueError(f"train measured member {position} after it had finished (or there is none)")
                if curve and step <= curve[-1][0]:
                    raise ValueError(
                        f"train measured member {position} at step {step} after step {curve[-1][0]}; "
                        "steps must increase, with all metrics of a step in one report"
                    )
                curve.append((step, row, reported))
            self._blocks.append((report.members, step, block, reported))
            self.waiting_values += block.size
        if ends is not None:
            ends(report)
        for position, names in report.unread.items():
            self._unread[self._task.trial_ids[position]] = names
        for position, error in report.failed.items():
            self._end(int(position), error)
        for position in report.finished.tolist():
            if position not in report.failed:
                self._end(position)

    def _block(self, values: Mapping[str, Values], count: int) -> tuple[Values, Flags]:
        """(m, K) values of one report. K grows if the job names its metrics as it goes."""
        for name in values:
            self._place_of(name)
        block = np.full((count, len(self._metrics)), np.nan)
        reported = np.zeros(len(self._metrics), dtype=np.bool_)
        for name, column in values.items():
            try:
                block[:, self._column[name]] = column
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"train reported {name!r} for {count} members: {error}") from error
            reported[self._column[name]] = True
        return block, reported

    def _place_of(self, name: str) -> int:
        """The column of a metric."""
        if name not in self._column:
            if not self._names_as_it_goes:
                raise ValueError(
                    f"train reported {name!r}, which is not in the job's metrics ({', '.join(self._metrics)})"
                )
            self._column[name] = len(self._metrics)
            self._metrics.append(name)
        return self._column[name]

    def _end(self, position: int, error: str | None = None) -> None:
        measured = self._open.pop(position, None)
        if measured is None:
            raise ValueError(f"train named member {position} in `Report.finished` twice (or there is none)")
        status, phase = Status.FAILED, None
        observations: Observations = {}
        if error is None:
            try:
                params, curves = self._members[position].params, self._curves(measured)
                phase, observations = reduce_curves(
                    self._job, params, curves, self._thresholds, retired=self._task.retired
                )
                status = Status.FINISHED
            except Exception as raised:  # the job's own code: the trial fails with what it raised
                error = described(raised)
        pack, at, of = self._group[position]
        trained = TrainingRecord(
            pack=pack,
            at=at,
            of=of,
            seed=self._task.seeds[position],
            version=self._job.version,
            environment=environment_of(self._task.job, self._device),
            continued=self._continued.get(position, IN_ONE_PIECE),
        ).text()
        trial_id = self._task.trial_ids[position]
        self._results.append(TrialResult(trial_id, status, phase, observations, error, trained))

    def _curves(self, measured: Sequence[tuple[int, Values, Flags]]) -> Curves:
        table = self._widen([row[None, :] for _, row, _ in measured], np.nan)
        held = self._widen([reported[None, :] for _, _, reported in measured], False)
        return Curves(
            step=np.array([step for step, _, _ in measured], dtype=np.int64),
            values={name: table[:, k] for k, name in enumerate(self._metrics)},
            present=None if held.all() else {name: held[:, k] for k, name in enumerate(self._metrics)},
        )

    def fail_rest(self, error: str) -> None:
        """End every unfinished trial as failed."""
        for position in list(self._open):
            self._end(position, error)

    def together(self, positions: Sequence[int]) -> None:
        """These members train together, without the others."""
        pack = pack_digest([self._task.trial_ids[p] for p in positions])
        self._group.update({position: (pack, at, len(positions)) for at, position in enumerate(positions)})

    def restore(self, position: int, saved: SavedTrial) -> None:
        """The rows of a trial that continues; they are sent again, because its curve starts again in the record."""
        self._continued[position], curve = saved.state.step, saved.curve
        place = [self._place_of(name) for name in curve.metrics]
        one = np.array([position], dtype=np.int64)
        for step, values, present in zip(curve.step.tolist(), curve.values, curve.present, strict=True):
            block = np.full((1, len(self._metrics)), np.nan)
            reported = np.zeros(len(self._metrics), dtype=np.bool_)
            block[0, place], reported[place] = values, present
            self._open[position].append((step, block[0], reported))
            self._blocks.append((one, step, block, reported))
        self.waiting_values += curve.values.size

    def so_far(self, position: int) -> SavedCurve:
        """The rows of an unfinished trial."""
        measured = self._open[position]
        return SavedCurve(
            metrics=tuple(self._metrics),
            step=np.array([step for step, _, _ in measured], dtype=np.int64),
            values=self._widen([row[None, :] for _, row, _ in measured], np.nan),
            present=self._widen([reported[None, :] for _, _, reported in measured], False).astype(np.bool_),
        )

    @property
    def waits(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._blocks or self._results)

    def flush(self) -> PackProgress:
        """Return everything that waits to be sent."""
        results, unread = tuple(self._results), self._unread
        message = PackProgress(pack_id=self._task.pack_id, rows=self._rows(), results=results, unread=unread)
        self._blocks, self._results, self._unread, self.waiting_values = [], [], {}, 0
        return message

    def flush_rest(self) -> Iterator[PackProgress]:
        """The same, if anything waits."""
        if self.waits:
            yield self.flush()

    def _rows(self) -> CurveRows | None:
        if not self._blocks:
            return None
        members, steps, values, flags = zip(*self._blocks, strict=True)
        counts = [len(positions) for positions in members]
        reported = self._widen([row[None, :] for row in flags], False)
        positions, trial = np.unique(np.concatenate(members), return_inverse=True)
        return CurveRows(
            trial_ids=tuple(self._task.trial_ids[p] for p in positions.tolist()),
            metrics=tuple(self._metrics),
            trial=trial.astype(np.int32),
            step=np.repeat(np.array(steps, dtype=np.int64), counts),
            values=self._widen(values, np.nan),
            present=None if reported.all() else np.repeat(reported, counts, axis=0),
        )

    def _widen(self, blocks: Sequence[NDArray[Any]], fill: float) -> NDArray[Any]:
        """Concatenate the blocks' rows to (R, K); blocks from before K grew have fewer columns."""
        width = len(self._metrics)
        if not blocks:
            return np.empty((0, width))
        if blocks[0].shape[1] < width:
            pads = [((0, 0), (0, width - block.shape[1])) for block in blocks]
            blocks = [np.pad(block, pad, constant_values=fill) for block, pad in zip(blocks, pads, strict=True)]
        return np.concatenate(blocks)


def _checked_step(step: object) -> int:
    """A step of a report as an int.

    Raises:
        ValueError: it is not a whole number from 0 to `LARGEST_STEP`.
    """
    if isinstance(step, (int, np.integer)) and not isinstance(step, bool) and 0 <= step <= LARGEST_STEP:
        return int(step)
    rule = "must be a whole number from 0 to 2**62"
    raise ValueError(f"train reported step {shown(step)} of type {type(step).__name__}: {rule}")

"""What a worker does with a pack, wherever it runs: train, stream the rows, reduce the curves.

One generator, `execute`, serves every dispatcher. A trial's rows are kept until it ends, because
its observations need the whole curve; they are freed then. Rows leave in columnar chunks, so that
a long training shows up in the record while it runs.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.catalogue import load_job
from jobs.job import Curves, Job, Member, Params, Report, params_from
from orchestrator.dispatch.base import Cause, Event, PackEnded, PackFailed, PackTask, Progress
from orchestrator.dispatch.environment import Trained, pack_digest, setting
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.reduce import reduce_curves

FLUSH_S = 2.0
"""Rows wait at most this long before they are sent."""
FLUSH_VALUES = 50_000
"""Values that make a chunk, however little time has passed."""

Values = NDArray[np.float64]


def prepare(*, threads: int, job: str | None = None) -> None:
    """Make this process a warm worker: `threads` threads for tensor operations, the job loaded.

    A job whose attribute `needs_torch` is
    False (a plain function) is spared the import of torch.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    wants_torch = job is not None and getattr(load_job(job), "needs_torch", True)
    if wants_torch or "torch" in sys.modules:
        from jobs.packed.loop import set_threads

        set_threads(threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on the device (torch not imported)."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def busy_clock(job: Job[Any], device: str) -> Callable[[], float]:
    """What tells the work of a training from its waiting for a core that others use too.

    A training by torch in one thread on a CPU takes its thread's processor time; any other (it may
    wait for something else than a core) takes the time on the wall.
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
) -> Iterator[Event]:
    """Run one pack; the last event is its `PackEnded` or `PackFailed`.

    An exception of the job fails the trial where the pack is a single trial, and else the pack
    (`Cause.USER_ERROR`), so that the runner can find the culprit. Out of memory always fails the
    pack. Trials that ended before are reported before. Nothing that the job raises passes through.
    """
    started = clock()
    try:
        job = load_job(task.job)
        busy = busy_clock(job, device)
        busy_from = busy()
        thresholds = params_from(job.Thresholds, task.thresholds)
        members = [
            Member(params=job.params_for(values), seed=seed)
            for values, seed in zip(task.params, task.seeds, strict=True)
        ]
    except Exception:
        yield PackFailed(pack_id=task.pack_id, cause=Cause.USER_ERROR, error=traceback.format_exc())
        return

    course = _Course(task, job, members, thresholds, device)
    flushed = clock()
    try:
        for report in job.train(members, device=device):
            course.take(report)
            if course.values >= FLUSH_VALUES or clock() - flushed >= flush_s:
                yield course.flush()
                flushed = clock()
    except (Exception, SystemExit) as error:
        cause = Cause.OUT_OF_MEMORY if is_out_of_memory(error) else Cause.USER_ERROR
        text = traceback.format_exc()
        if cause is Cause.USER_ERROR and len(members) == 1:
            course.fail_rest(text)
        else:
            yield from course.flush_rest()
            yield PackFailed(pack_id=task.pack_id, cause=cause, error=text)
            return
    course.fail_rest(
        f"{task.job}: train ended without naming this trial in `Report.finished`: "
        "every member of a pack must be named there exactly once"
    )
    yield from course.flush_rest()
    yield PackEnded(pack_id=task.pack_id, train_s=clock() - started, busy_s=busy() - busy_from)


_Measured = tuple[list[int], list[Values], list[NDArray[np.bool_]]]
"""Of one trial, report by report: the step, the (K,) values, and which of them were reported."""


class _Course:
    """The curves of a pack's unfinished trials, and the rows and results that were not sent yet."""

    def __init__(
        self, task: PackTask, job: Job[Any], members: Sequence[Member[Any]], thresholds: Params, device: str
    ) -> None:
        self._task, self._job, self._members, self._thresholds = task, job, members, thresholds
        self._device, self._pack = device, pack_digest(task.trial_ids)
        self._metrics: list[str] = list(job.metrics_of(members[0].params))
        self._column = {name: k for k, name in enumerate(self._metrics)}
        self._open_ended = not self._metrics
        self._open: dict[int, _Measured] = {i: ([], [], []) for i in range(len(members))}
        self._blocks: list[tuple[NDArray[np.int64], int, Values, NDArray[np.bool_]]] = []
        self._results: list[TrialResult] = []
        self.values = 0
        """Values that wait to be sent."""

    def take(self, report: Report) -> None:
        """Keep what was measured, and end the trials that have finished with it."""
        members = report.members
        count = len(members)
        if count:
            block, reported = self._block(report.values, count)
            self._blocks.append((members, report.step, block, reported))
            self.values += block.size
            for position, row in zip(members.tolist(), block, strict=True):
                curve = self._open.get(position)
                if curve is None:
                    raise ValueError(f"train measured member {position} after it had finished (or there is none)")
                if curve[0] and report.step <= curve[0][-1]:
                    raise ValueError(
                        f"train measured member {position} at step {report.step} after step {curve[0][-1]}; "
                        "steps must increase, with all metrics of a step in one report"
                    )
                curve[0].append(report.step)
                curve[1].append(row)
                curve[2].append(reported)
        for position in report.failed:
            self._end(int(position), error=report.failed[position])
        for position in report.finished.tolist():
            if position not in report.failed:
                self._end(position)

    def _block(self, values: Mapping[str, Values], count: int) -> tuple[Values, NDArray[np.bool_]]:
        """(m, K) values of one report; K grows where a job names its metrics as it goes."""
        for name in values:
            if name not in self._column:
                if not self._open_ended:
                    raise ValueError(
                        f"train reported {name!r}, which is not in the job's metrics ({', '.join(self._metrics)})"
                    )
                self._column[name] = len(self._metrics)
                self._metrics.append(name)
        block = np.full((count, len(self._metrics)), np.nan)
        reported = np.zeros(len(self._metrics), dtype=np.bool_)
        for name, column in values.items():
            block[:, self._column[name]] = column
            reported[self._column[name]] = True
        return block, reported

    def _end(self, position: int, error: str | None = None) -> None:
        measured = self._open.pop(position, None)
        if measured is None:
            raise ValueError(f"train named member {position} in `Report.finished` twice (or there is none)")
        if error is not None:
            self._results.append(self._result(position, status=Status.FAILED, error=error))
            return
        try:
            phase, observations = reduce_curves(
                self._job, self._members[position].params, self._curves(*measured), self._thresholds
            )
        except Exception:
            self._results.append(self._result(position, status=Status.FAILED, error=traceback.format_exc()))
        else:
            self._results.append(self._result(position, status=Status.FINISHED, phase=phase, observations=observations))

    def _result(self, position: int, **ended: Any) -> TrialResult:
        """How the member ended, with how it was trained."""
        trained = Trained(
            pack=self._pack,
            at=position,
            of=len(self._members),
            seed=self._task.seeds[position],
            version=self._job.version,
            setting=setting(self._task.job, self._device),
        )
        return TrialResult(trial_id=self._task.trial_ids[position], trained=trained.text(), **ended)

    def _curves(self, steps: list[int], rows: list[Values], reported: list[NDArray[np.bool_]]) -> Curves:
        width = len(self._metrics)
        table = _widen([row[None, :] for row in rows], width, np.nan)
        held = _widen([row[None, :] for row in reported], width, False)
        return Curves(
            step=np.array(steps, dtype=np.int64),
            values={name: table[:, k] for k, name in enumerate(self._metrics)},
            present=None if held.all() else {name: held[:, k] for k, name in enumerate(self._metrics)},
        )

    def fail_rest(self, error: str) -> None:
        """End every trial that has not ended as failed."""
        for position in list(self._open):
            self._end(position, error=error)

    def flush(self) -> Progress:
        """Everything that waits, as one message."""
        message = Progress(pack_id=self._task.pack_id, rows=self._rows(), results=tuple(self._results))
        self._blocks, self._results, self.values = [], [], 0
        return message

    def flush_rest(self) -> Iterator[Progress]:
        """The same, where anything waits."""
        if self._blocks or self._results:
            yield self.flush()

    def _rows(self) -> CurveRows | None:
        if not self._blocks:
            return None
        counts = [len(members) for members, _, _, _ in self._blocks]
        width = len(self._metrics)
        reported = _widen([r[None, :] for _, _, _, r in self._blocks], width, False)
        positions, trial = np.unique(np.concatenate([m for m, _, _, _ in self._blocks]), return_inverse=True)
        return CurveRows(
            trial_ids=tuple(self._task.trial_ids[p] for p in positions.tolist()),
            metrics=tuple(self._metrics),
            trial=trial.astype(np.int32),
            step=np.repeat(np.array([step for _, step, _, _ in self._blocks], dtype=np.int64), counts),
            values=_widen([values for _, _, values, _ in self._blocks], width, np.nan),
            present=None if reported.all() else np.repeat(reported, counts, axis=0),
        )


def _widen(blocks: Sequence[NDArray[Any]], width: int, fill: float) -> NDArray[Any]:
    """The blocks' rows as one array of `width` columns; earlier blocks may have fewer."""
    if blocks and blocks[0].shape[1] == width:
        return np.concatenate(blocks)
    return np.concatenate(
        [np.pad(block, ((0, 0), (0, width - block.shape[1])), constant_values=fill) for block in blocks]
        or [np.empty((0, width))]
    )

"""A tracker that outlives outages of its record: a restarted database, a locked file, a full disk, a busy server.

While the record does not answer, training goes on. What begins, is measured and ends waits in a spool on disk and is
written, in order, once the record is back; it is tried again with growing pauses. If the spool is full, the runner
takes no more events, and workers wait. Everything else (reading, the sweep's own metrics, artifacts) waits for the
record. After `tracking.patience` the run ends with an `Outage`; what was not written is dropped, and these trials train
again when the same command is run again.

Writes are idempotent (see `Tracker`), so a write whose answer was lost is simply repeated: it does not matter whether
it took effect.

A value that the record cannot hold is the fault of its trial: that trial fails, and the others are recorded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from jobs.job import Curves
from orchestrator.errors import Outage
from orchestrator.outages import PATIENCE_S, RESUMES, SAY_EVERY_S, Kind, Patience, kind_of, reason
from orchestrator.progress import amount_of_bytes, duration
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.tracking.base import Refusal, Refused, SweepRecord, Tracker, TrialRow
from orchestrator.tracking.heartbeat import Heartbeat
from orchestrator.tracking.spool import SPOOL_BYTES, Spool, Write
from orchestrator.trial import Trial

WATCH_S = 10.0
"""How often it is checked whether a request hangs."""
ROWS_AT_ONCE = 1_000
"""Rows of trials that are read between two checks whether the record answers."""

T = TypeVar("T")


class ResilientTracker(Tracker):
    """Any tracker, with patience.

    Args:
        inner: The tracker that writes.
        what: The record, as the subject of a sentence, without a password.
        folder: Where the spool is.
        patience_s: How long the record may stay away.
        resumes: What is true when the same command is run again, see `Patience`.
        spool_bytes: Size of the spool at which the runner has to wait.
        stopping: Whether the run is being stopped: then nothing is waited for.
        clock: Seconds by a monotonic clock.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        inner: Tracker,
        *,
        what: str,
        folder: Path,
        patience_s: float = PATIENCE_S,
        resumes: str = RESUMES,
        spool_bytes: int = SPOOL_BYTES,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner, self._folder, self._spool_bytes = inner, folder, spool_bytes
        self._patience = Patience(
            what,
            limit_s=patience_s,
            resumes=resumes,
            say=self._say,
            stopping=stopping,
            clock=clock,
            sleep=sleep,
            meanwhile=self._state,
        )
        self._spool: Spool | None = None
        """None while the record answers."""
        self._outage: Outage | None = None
        """Why the tracker has given up."""
        self._bad: set[str] = set()
        """Trials that were refused and have not begun again: their further rows and results are dropped."""
        self._refusals: list[Refusal] = []
        self._failing: list[TrialResult] = []
        """Results of refused trials that are not written yet."""
        self._closed = self._blocks = False
        """Whether the tracker is closed, and whether its caller waits for the record."""
        self._asked_at: float | None = None
        """When the request began that the record has not answered yet."""
        self._warned_at = 0.0
        """When such a request was last mentioned."""
        self._watch: Heartbeat | None = None

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        self._asked_at = time.monotonic()
        try:
            yield
        finally:
            self._asked_at = None

    def _warn(self) -> None:
        """Say that a request hangs, and cut its connection if the record is hung; on a thread of its own."""
        asked_at, now = self._asked_at, time.monotonic()
        if asked_at is None or now - asked_at < SAY_EVERY_S - WATCH_S:
            return
        if now - max(self._warned_at, asked_at) >= SAY_EVERY_S - WATCH_S:
            self._warned_at = now
            self._say(f"{self._patience.what} has not answered a request for {duration(now - asked_at)}; still waiting")
        self._inner.cut_if_hung()

    def _say(self, line: str) -> None:
        self.say(line)

    def _state(self) -> str:
        spool = self._spool
        if spool is None or not len(spool):
            return ""
        amount = f"{spool.rows:,} rows wait on disk ({amount_of_bytes(spool.size)})"
        if self._blocks:
            return amount
        return f"{amount}, and training waits until they are written" if spool.full else f"training goes on, {amount}"

    # --- writes that wait in the spool ---

    def begin(self, trials: Sequence[Trial]) -> None:
        self._bad.difference_update(trial.id for trial in trials)
        self._write(Write(begun=tuple(trials)))

    def record(self, rows: CurveRows) -> None:
        self._write(Write(rows=rows))

    def end(self, results: Sequence[TrialResult]) -> None:
        self._write(Write(results=tuple(results)))

    def _write(self, write: Write) -> None:
        self._check()
        if self._spool is None:
            try:
                with self._asking():
                    self._apply(write)
            except Exception as error:  # of any database driver or server
                if not self._patience.is_away(error):
                    raise
                self._lost(error).append(write)
            return
        self._spool.append(write)
        self._recover_if_due()

    def _apply(self, write: Write) -> None:
        """Let the inner tracker write; trials that it refuses are recorded as failed."""
        while True:
            part = self._without_bad(write)
            try:
                if part.begun:
                    self._inner.begin(part.begun)
                elif part.rows is not None and len(part.rows.step):
                    self._inner.record(part.rows)
                elif part.results:
                    self._inner.end(part.results)
            except Refused as error:
                self._refuse(error.trials)
            except Exception as error:  # of any database driver or server
                if kind_of(error) is not Kind.DATA:
                    raise
                self._bisect(part, error)
                return
            else:
                return

    def _bisect(self, write: Write, error: Exception) -> None:
        """Write the trials of a refused write in halves, until the refused ones are found."""
        trials = _trials_of(write)
        if len(trials) == 1:
            if write.begun:
                raise error  # the parameters of the sweep itself
            ended, phase = (write.results[0].status, write.results[0].phase) if write.results else (None, None)
            self._refuse([Refusal(trial_id=trials[0], error=reason(error), ended_as=ended, phase=phase)])
            return
        middle = len(trials) // 2
        for half in (trials[:middle], trials[middle:]):
            self._apply(_only(write, frozenset(half)))

    def _refuse(self, refusals: Sequence[Refusal]) -> None:
        """Record trials as failed."""
        for refusal in refusals:
            if refusal.trial_id not in self._bad:
                self._bad.add(refusal.trial_id)
                self._refusals.append(refusal)
                error = f"the record cannot hold a value of this trial: {refusal.error}"
                self._failing.append(TrialResult(refusal.trial_id, Status.FAILED, error=error))
        self._end_refused()

    def _end_refused(self) -> None:
        while self._failing:
            results = list(self._failing)
            try:
                self._inner.end(results)
            except Refused as error:
                if not self._bad.isdisjoint(refusal.trial_id for refusal in error.trials):
                    raise
                self._refuse(error.trials)
            del self._failing[: len(results)]

    def _without_bad(self, write: Write) -> Write:
        if self._bad.isdisjoint(_trials_of(write)):
            return write
        return _only(write, frozenset(_trials_of(write)) - self._bad)

    def refused(self) -> list[Refusal]:
        refusals, self._refusals = self._refusals, []
        return refusals

    def settle(self) -> None:
        """Write what is due, and try a record again that is away."""
        if self._outage is not None or self._closed:
            return
        if self._spool is not None:
            self._recover_if_due()
            return
        try:
            self._settle()
        except Exception as error:  # of any database driver or server
            if not self._patience.is_away(error):
                raise
            self._lost(error)

    def _settle(self) -> None:
        try:
            with self._asking():
                self._inner.settle()
        except Refused as error:
            self._refuse(error.trials)

    def settled(self) -> bool:
        """False while anything is in the spool, and once the tracker has given up."""
        if self._outage is not None or self._spool is not None or self._failing:
            return False
        return self._inner.settled()

    def ready(self, timeout_s: float) -> bool:
        """False while the spool is full."""
        if self._spool is None or not self._spool.full:
            return True
        self._patience.wait(timeout_s)
        self._recover_if_due()
        return self._spool is None or not self._spool.full

    # --- outages ---

    def _lost(self, error: BaseException) -> Spool:
        """The record does not answer: writes go to the spool from now on.

        Raises:
            Outage: It has been away for too long.
        """
        try:
            self._patience.failed(error)
        except Outage as outage:
            self._outage = outage
            self._end_spool()
            raise
        if self._spool is None:
            self._spool = Spool(self._folder, limit_bytes=self._spool_bytes)
        return self._spool

    def _end_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _recover_if_due(self) -> None:
        """If it is time, try to reach the record and to write what waits."""
        if self._spool is not None and self._recovered():
            self._patience.succeeded()

    def _recovered(self) -> bool:
        """If it is time, try to reach the record and to write what waits; return whether nothing waits any more."""
        spool = self._spool
        if spool is None:
            return True
        if not self._patience.due:
            self._patience.report()
            return False
        try:
            try:
                with self._asking():
                    self._inner.reconnect()
            except Refused as error:
                self._refuse(error.trials)
            self._end_refused()
            while len(spool):
                with self._asking():
                    self._apply(spool.first())
                spool.drop_first()
                self._patience.progressed()
            self._flush()
        except Exception as error:  # of any database driver or server
            if not self._patience.is_away(error):
                raise
            self._lost(error)
            return False
        self._end_spool()
        return True

    def _flush(self) -> None:
        try:
            self._inner.flush()
        except Refused as error:
            self._refuse(error.trials)
            self._inner.flush()

    def _now(self, do: Callable[[], T]) -> T:
        """Do something for which the record must answer; wait for it if it does not.

        A record that can be reached but refuses this is still away.
        """
        self._check()
        while True:
            self._blocks = True
            try:
                while not self._recovered():
                    self._patience.wait()
            finally:
                self._blocks = False
            try:
                try:
                    with self._asking():
                        result = do()
                except Refused as error:
                    self._refuse(error.trials)
                    continue
            except Exception as error:  # of any database driver or server
                if not self._patience.is_away(error):
                    raise
                self._lost(error)
            else:
                self._patience.succeeded()
                return result

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the tracker is closed")
        if self._outage is not None:
            raise self._outage

    # --- everything else waits for the record ---

    @property
    def experiment_id(self) -> str | None:
        return self._now(lambda: self._inner.experiment_id)

    @property
    def sweep_start_ms(self) -> int:
        return self._inner.sweep_start_ms

    def open_sweep(self, sweep: SweepRecord, *, running: bool = True) -> str:
        self._inner.say = self._say
        parent = self._now(lambda: self._inner.open_sweep(sweep, running=running))
        self._watch = self._watch or Heartbeat(self._warn, WATCH_S)
        return parent

    def find_sweep(self, sweep_id: str) -> str | None:
        return self._now(lambda: self._inner.find_sweep(sweep_id))

    def trials_of(self, sweep_id: str) -> list[str]:
        return self._now(lambda: self._inner.trials_of(sweep_id))

    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        wanted = list(trial_ids)
        return self._now(lambda: self._inner.index(wanted))

    def reconcile(self) -> int:
        return self._now(self._inner.reconcile)

    def relabel(self, results: Sequence[TrialResult]) -> None:
        self._now(lambda: self._inner.relabel(results))

    def statuses(self, trial_ids: Iterable[str]) -> dict[str, Status]:
        wanted = list(trial_ids)
        return self._now(lambda: self._inner.statuses(wanted))

    def complete(self, trials: Sequence[Trial]) -> int:
        return self._now(lambda: self._inner.complete(trials))

    def describe(self, text: str) -> None:
        self._now(lambda: self._inner.describe(text))

    def rows(self, trial_ids: Iterable[str], *, settings: bool = True) -> Iterator[TrialRow]:
        read = partial(self._inner.rows, settings=settings)
        return self._each(read, trial_ids, lambda row: row.trial_id, at_once=ROWS_AT_ONCE)

    def curves(self, trial_ids: Iterable[str], metrics: Sequence[str] | None = None) -> Iterator[tuple[str, Curves]]:
        return self._each(lambda trials: self._inner.curves(trials, metrics), trial_ids, lambda curve: curve[0])

    def _each(
        self,
        read: Callable[[Sequence[str]], Iterator[T]],
        trial_ids: Iterable[str],
        name: Callable[[T], str],
        *,
        at_once: int = 1,
    ) -> Iterator[T]:
        """Read one after the other, or so many `at_once`; after an outage, go on behind the last ones."""
        wanted = list(dict.fromkeys(trial_ids))
        place = {trial: position for position, trial in enumerate(wanted)}
        start = 0
        reading: Iterator[T] | None = None

        def following() -> list[T]:
            nonlocal reading
            if reading is None:
                reading = read(wanted[start:])
            try:
                return list(islice(reading, at_once))
            except Exception:  # the iterator has ended with it
                reading = None
                raise

        while items := self._now(following):
            start = place[name(items[-1])] + 1
            yield from items

    def attach(self, files: Mapping[str, Path]) -> None:
        self._now(lambda: self._inner.attach(files))

    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        wanted = tuple(paths)
        return self._now(lambda: self._inner.detach(wanted))

    def annotate(self, metrics: Mapping[str, float]) -> None:
        self._now(lambda: self._inner.annotate(metrics))

    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        given = list(points)
        self._now(lambda: self._inner.trace(name, given))

    def end_sweep(self, status: str, metrics: Mapping[str, float]) -> None:
        self._now(lambda: self._inner.end_sweep(status, metrics))

    def flush(self) -> None:
        self._now(self._inner.flush)

    def close(self) -> None:
        """What cannot be written after all patience is dropped."""
        if self._closed:
            return
        try:
            if self._outage is None and self._patience.answered:
                self._now(self._inner.flush)
        finally:
            self._closed = True
            if self._watch is not None:
                self._watch.close()
            self._end_spool()
            if self._outage is None:
                self._inner.close()
            else:
                with contextlib.suppress(Exception):  # of a driver or server that does not answer
                    self._inner.abandon()


def _trials_of(write: Write) -> list[str]:
    if write.rows is not None:
        return list(write.rows.trial_ids)
    return [trial.id for trial in write.begun] or [result.trial_id for result in write.results]


def _only(write: Write, trials: frozenset[str]) -> Write:
    """The part of a write that belongs to these trials."""
    rows = write.rows
    if rows is not None:
        kept = np.array([trial in trials for trial in rows.trial_ids], dtype=np.bool_)
        number = np.cumsum(kept) - 1
        r = kept[rows.trial]
        return Write(
            rows=replace(
                rows,
                trial_ids=tuple(trial for trial in rows.trial_ids if trial in trials),
                trial=number[rows.trial[r]].astype(np.int32),
                step=rows.step[r],
                values=rows.values[r],
                present=None if rows.present is None else rows.present[r],
            )
        )
    return Write(
        begun=tuple(trial for trial in write.begun if trial.id in trials),
        results=tuple(result for result in write.results if result.trial_id in trials),
    )

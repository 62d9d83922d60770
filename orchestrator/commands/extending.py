"""Finished trials of the sweeps that a sweep extends: `plan` counts them, and `run` does not train them again.

In the same experiment of the same record a finished trial is found by its id, whichever sweep ran it. Trials of another
record are copied into the sweep's own, once: a copy is a trial of the sweep like any other, with the curve, the
observations and the training record of the original. A search begins with the finished trials that lie in its space.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.commands.searching import known_trials
from orchestrator.commands.wiring import lasting, open_tracker
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.reduce import reduce_curves
from orchestrator.sweep.sweep import Sweep

if TYPE_CHECKING:
    from jobs.job import Curves
    from orchestrator.tracking.base import Tracker, TrialRow
    from orchestrator.trial import Trial

BATCH = 200
"""Trials that are copied at once."""


@dataclass(frozen=True, kw_only=True)
class Extended:
    """A sweep that is extended, and its finished trials that belong to the sweep that extends it."""

    sweep: Sweep
    is_elsewhere: bool
    """Whether they are in another record or experiment."""
    trials: tuple[Trial, ...] = field(repr=False)

    @property
    def text(self) -> str:
        """The sweep, with its record where that is another one."""
        return f"{self.sweep.name} ({self.sweep.record_shown})" if self.is_elsewhere else self.sweep.name


def ancestors(sweep: Sweep) -> list[Sweep]:
    """The sweeps that it extends, the nearest first.

    Raises:
        UserError: one of them has a mistake.
    """
    made: list[Sweep] = []
    while sweep.extends is not None:
        sweep = lasting(Sweep.load(sweep.extends), Path.cwd())
        made.append(sweep)
    return made


def is_elsewhere(sweep: Sweep, base: Sweep) -> bool:
    """Whether two sweeps are recorded in different records or experiments."""
    return (sweep.tracking.uri, sweep.tracking.experiment) != (base.tracking.uri, base.tracking.experiment)


def extended(
    sweep: Sweep, bases: Sequence[Sweep], tracker: Tracker, trials: Sequence[Trial], finished: Collection[str]
) -> list[Extended]:
    """The finished trials of the sweeps that it extends, each once: at the nearest sweep that has them.

    Args:
        sweep: The sweep.
        bases: Those that it extends, the nearest first.
        tracker: Its record.
        trials: Of the sweep: all of a grid. A search may take any trial of its space.
        finished: Ids of those that are finished in its record.
    """
    made: list[Extended] = []
    own = {trial.id: trial for trial in trials}
    taken: set[str] = set()
    for base in bases:
        elsewhere = is_elsewhere(sweep, base)
        with contextlib.closing(open_tracker(base)) if elsewhere else contextlib.nullcontext(tracker) as reader:
            shared = _shared(sweep, own, known_trials(base, reader))
            wanted = [i for i in shared if i not in taken and not (elsewhere and i in finished)]
            states = reader.index(wanted) if wanted else {}
        done = [i for i in wanted if i in states and states[i].status is Status.FINISHED]
        taken.update(done)
        made.append(Extended(sweep=base, is_elsewhere=elsewhere, trials=tuple(shared[i] for i in done)))
    return made


def _shared(sweep: Sweep, own: Mapping[str, Trial], theirs: Sequence[Trial]) -> dict[str, Trial]:
    """The trials of another sweep that are trials of this one, by id."""
    if sweep.is_search:
        return {trial.id: trial for trial in theirs if sweep.holds(trial)}
    known = {trial.id for trial in theirs}
    return {trial_id: trial for trial_id, trial in own.items() if trial_id in known}


def take_over(
    sweep: Sweep, tracker: Tracker, *, say: Callable[[str], None], stopping: Callable[[], bool] = lambda: False
) -> list[Trial]:
    """Copy the finished trials of the sweeps that it extends from other records, and say how many.

    Args:
        sweep: The sweep.
        tracker: Its record, in which the sweep is open.
        say: Shows a line.
        stopping: Whether to end early; the next run copies what is left.

    Returns:
        For a search, the finished trials that it begins with.
    """
    bases = [base for base in ancestors(sweep) if sweep.is_search or is_elsewhere(sweep, base)]
    if not bases:
        return []
    trials = known_trials(sweep, tracker)
    recorded = tracker.index([trial.id for trial in trials])
    finished = {trial_id for trial_id, state in recorded.items() if state.status is Status.FINISHED}
    held = extended(sweep, bases, tracker, trials, finished)
    for each in held:
        if each.is_elsewhere and each.trials:
            copied = _copy_all(each.sweep, sweep, each.trials, tracker, stopping)
            say(f"copied {copied} finished trials of {each.text}")
    return [trial for each in held for trial in each.trials] if sweep.is_search else []


def _copy_all(
    base: Sweep, sweep: Sweep, trials: Sequence[Trial], tracker: Tracker, stopping: Callable[[], bool]
) -> int:
    copied = 0
    with contextlib.closing(open_tracker(base)) as source:
        for start in range(0, len(trials), BATCH):
            if stopping():
                break
            copied += _copy(base, sweep, trials[start : start + BATCH], source, tracker)
    return copied


def _copy(base: Sweep, sweep: Sweep, trials: Sequence[Trial], source: Tracker, tracker: Tracker) -> int:
    """Copy finished trials; how many. One that cannot be labelled under the sweep's thresholds is left out."""
    rows = {row.trial_id: row for row in source.rows([trial.id for trial in trials])}
    curves = dict(source.curves(list(rows)))
    results: list[tuple[Trial, TrialResult]] = []
    for trial in trials:
        if trial.id in rows:
            result = _result(base, sweep, trial, rows[trial.id], curves.get(trial.id))
            results += [(trial, result)] if result is not None else []
    tracker.begin([trial for trial, _ in results])
    for trial, _ in results:
        if trial.id in curves:
            tracker.record(_rows(trial.id, curves[trial.id]))
    tracker.end([result for _, result in results])
    return len(results)


def _result(base: Sweep, sweep: Sweep, trial: Trial, row: TrialRow, curves: Curves | None) -> TrialResult | None:
    """The result of a copy, labelled under the thresholds of the sweep."""
    phase, observations = row.recorded.phase, row.recorded.observations
    if row.recorded.thresholds != sweep.thresholds_fingerprint() and curves is not None:
        job, thresholds = sweep.job_object(), sweep.thresholds()
        try:
            phase, observations = reduce_curves(job, trial.params, curves, thresholds, retired=sweep.retired)
        except Exception:  # the job's own code, on the curve of an earlier version
            return None
    return TrialResult(
        trial.id,
        Status.FINISHED,
        phase,
        observations,
        trained=row.trained,
        copied_from=f"run {row.run_id} of {base.record_shown}",
    )


def _rows(trial_id: str, curves: Curves) -> CurveRows:
    names = tuple(curves.values)
    present = None if curves.present is None else np.stack([curves.present[name] for name in names], axis=1)
    return CurveRows(
        trial_ids=(trial_id,),
        metrics=names,
        trial=np.zeros(len(curves.step), dtype=np.int32),
        step=np.asarray(curves.step, dtype=np.int64),
        values=np.stack([curves.values[name] for name in names], axis=1),
        present=present,
    )

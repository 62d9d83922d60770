"""Trials that a search has chosen: the sampler of a sweep, and what was asked so far."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.records import Status
from orchestrator.search.base import Sampler
from orchestrator.search.grid import GridSampler
from orchestrator.search.space import locate

if TYPE_CHECKING:
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import Tracker
    from orchestrator.trial import Trial

CURVE = "uncertain_area"
"""The metric of a searched sweep's parent run whose steps are the trials told so far."""
SHOWN_TO_PLAN = 64
"""Trials that stand for a search's where its cost is asked for."""


@contextlib.contextmanager
def opened_sampler(sweep: Sweep, tracker: Tracker, *, workers: int) -> Iterator[Sampler]:
    """What decides which trials run.

    Raises:
        UserError: the study's storage cannot be opened.
    """
    if not sweep.is_search:
        yield GridSampler(sweep.trials())
        return
    from orchestrator.search.boundary import BoundarySampler, StoppingRule
    from orchestrator.search.study import SweepStudy

    search = sweep.search
    study = SweepStudy(search.storage, study_name(sweep))
    try:
        yield BoundarySampler(
            study=study,
            space=sweep.slices,
            axes=sweep.axes,
            target=search.target,
            phases=sweep.job_object().phases,
            trial_of=sweep.trial,
            stop=StoppingRule(
                budget=sweep.most_trials, uncertain_area=search.until.uncertain_area if search.until else None
            ),
            replicates=sweep.replicates,
            start=search.start,
            batch=search.batch,
            workers=workers,
            seed=sweep.search_seed,
            metric_place=sweep.metric_place,
            progress=lambda points: tracker.trace(CURVE, points),
            remembered=[*_studied(sweep, finished=True), *recorded_trials(sweep, tracker, finished=True)],
        )
    finally:
        study.close()


def study_name(sweep: Sweep) -> str:
    """Of the sweep's study: labels under other thresholds are another study."""
    return f"{_search_name(sweep)}{sweep.thresholds_fingerprint()[:6]}"


def _search_name(sweep: Sweep) -> str:
    """What the names of all its studies begin with."""
    return f"{sweep.name} {sweep.id[:12]} "


def trials_at_hand(sweep: Sweep, tracker: Tracker) -> list[Trial]:
    """The trials that a sweep consists of: all of a grid; what a search has asked so far, in that order."""
    if not sweep.is_search:
        return sweep.trials()
    asked = {trial.id: trial for trial in [*_studied(sweep), *recorded_trials(sweep, tracker)]}
    return list(asked.values())


def _studied(sweep: Sweep, *, finished: bool = False) -> list[Trial]:
    """The trials of the sweep's studies, under whatever thresholds."""
    from orchestrator.search.study import TRIAL_ID, read_trials

    asked: dict[str, Trial] = {}
    names = {axis.name for axis in sweep.axes}
    for row in read_trials(sweep.search.storage, _search_name(sweep)):
        found = locate(sweep.slices, row.params, names)
        if found is None or TRIAL_ID not in row.user_attrs or (finished and row.state.name != "COMPLETE"):
            continue
        trial = sweep.trial(sweep.slices[found[0]].setting(found[1]), row.user_attrs["replicate"])
        if trial is not None and trial.id == row.user_attrs[TRIAL_ID]:
            asked[trial.id] = trial
    return list(asked.values())


def history(sweep: Sweep) -> list[tuple[int, float]]:
    """(trials, uncertain area) as the sweep's search went, as far as its study is there; empty for a grid."""
    if not sweep.is_search:
        return []
    from orchestrator.search.study import history_of, read_trials

    return history_of(read_trials(sweep.search.storage, study_name(sweep)))


def recorded_trials(sweep: Sweep, tracker: Tracker, *, finished: bool = False) -> list[Trial]:
    """The trials that are recorded as this sweep's own, or those that have finished.

    Trials that another sweep has run, and this one found, are recorded there.
    """
    trials = []
    for row in tracker.rows(tracker.trials_of(sweep.id)):
        trial = sweep.trial(row.params, row.replicate)
        known = trial is not None and trial.id == row.trial_id  # of this version of the job
        if trial is not None and known and (not finished or row.recorded.status is Status.FINISHED):
            trials.append(trial)
    return trials


def trials_to_come(sweep: Sweep, asked: int) -> list[Trial]:
    """Trials as a search may still ask for, to estimate what they take."""
    return sweep.sample(max(0, sweep.most_trials - asked))


def examples(sweep: Sweep) -> list[Trial]:
    """All trials of a grid, or some like those of a search: what they cost is asked before any is known."""
    return sweep.sample(SHOWN_TO_PLAN) if sweep.is_search else sweep.trials()

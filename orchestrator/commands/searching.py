"""The sampler of a sweep, and the trials that it has asked for so far."""

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
"""A metric of the parent run of a search; its steps are the trials that have ended."""


@contextlib.contextmanager
def opened_sampler(sweep: Sweep, tracker: Tracker, *, workers: int) -> Iterator[Sampler]:
    """The sampler that decides which trials run.

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
            stop=StoppingRule(budget=sweep.most_trials, uncertain_area=sweep.uncertain_area),
            replicates=sweep.replicates,
            start=search.start,
            batch=search.batch,
            workers=workers,
            seed=sweep.search_seed,
            metric_place=sweep.metric_place,
            progress=lambda points: tracker.trace(CURVE, points),
            remembered=known_trials(sweep, tracker, finished=True),
        )
    finally:
        study.close()


def study_name(sweep: Sweep) -> str:
    """The name of the sweep's study: under other thresholds, trials have other labels, and the study another name."""
    return f"{_study_prefix(sweep)}{sweep.thresholds_fingerprint()[:6]}"


def _study_prefix(sweep: Sweep) -> str:
    """The beginning of the names of all the sweep's studies."""
    return f"{sweep.name} {sweep.id[:12]} "


def known_trials(sweep: Sweep, tracker: Tracker, *, finished: bool = False) -> list[Trial]:
    """The trials of a sweep: all of a grid; those that a search has asked for so far, in that order.

    A search's trials are in its studies and in the record. A study also has those that another sweep had run before;
    the record remains where a study is lost.

    Args:
        sweep: The sweep.
        tracker: Its record.
        finished: Leave out the trials of a search that have not finished.
    """
    if not sweep.is_search:
        return sweep.trials()
    from orchestrator.search.study import TRIAL_ID, read_trials

    asked: list[tuple[str, Trial | None]] = []
    names = {axis.name for axis in sweep.axes}
    for row in read_trials(sweep.search.storage, _study_prefix(sweep)):
        located = locate(sweep.slices, row.params, names)
        if located and TRIAL_ID in row.user_attrs and (not finished or row.state.name == "COMPLETE"):
            setting = sweep.slices[located[0]].setting(located[1])
            asked.append((row.user_attrs[TRIAL_ID], sweep.trial(setting, row.user_attrs["replicate"])))
    for recorded in tracker.rows(tracker.trials_of(sweep.id)):
        if not finished or recorded.recorded.status is Status.FINISHED:
            asked.append((recorded.trial_id, sweep.trial(recorded.params, recorded.replicate)))
    # Another id: of another version of the job.
    return list({trial.id: trial for trial_id, trial in asked if trial is not None and trial.id == trial_id}.values())


def history(sweep: Sweep) -> list[tuple[int, float]]:
    """(trials, uncertain area) in the course of the sweep's search, as far as its study has it; empty for a grid."""
    if not sweep.is_search:
        return []
    from orchestrator.search.study import history_of, read_trials

    return history_of(read_trials(sweep.search.storage, study_name(sweep)))

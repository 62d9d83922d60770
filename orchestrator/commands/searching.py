"""The sampler of a sweep, and the trials that it has asked for so far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.catalogue import is_built_in
from orchestrator.outages import Patience
from orchestrator.records import Status
from orchestrator.search.base import Sampler
from orchestrator.search.grid import GridSampler
from orchestrator.search.space import locate
from orchestrator.tracking.address import record_digest

if TYPE_CHECKING:
    from orchestrator.search.study import StudyNames
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import Tracker
    from orchestrator.trial import Trial

LOOKED_UP = 1_000
"""Trials of an earlier version's study that are looked up in the record."""
CURVE = "uncertain_area"
"""A metric of the parent run of a search; its steps are the trials that have ended."""


@contextlib.contextmanager
def opened_sampler(
    sweep: Sweep,
    tracker: Tracker,
    *,
    workers: int,
    stopping: Callable[[], bool] = lambda: False,
    begun: Sequence[Trial] = (),
) -> Iterator[Sampler]:
    """The sampler that decides which trials run.

    Args:
        sweep: The sweep.
        tracker: Its record.
        workers: Of the pool.
        stopping: Whether the run is being stopped: then an outage of the study's storage is not waited for.
        begun: Finished trials of other sweeps that a search begins with.

    Raises:
        UserError: the study's storage cannot be opened.
    """
    if not sweep.is_search:
        yield GridSampler(sweep.trials())
        return
    from orchestrator.search.boundary import BoundarySampler, StoppingRule
    from orchestrator.search.study import SweepStudy

    search = sweep.search
    patience = Patience(
        f"the study ({sweep.storage_shown})",
        limit_s=sweep.tracking.patience,
        say=lambda line: tracker.say(line),
        stopping=stopping,
    )
    study = SweepStudy(search.storage, study_names(sweep, tracker), patience=patience)
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
            metric_known=is_built_in(sweep.job),
            progress=lambda points: tracker.trace(CURVE, points),
            remembered=[*known_trials(sweep, tracker, finished=True), *begun],
        )
    finally:
        study.close()


def study_names(sweep: Sweep, tracker: Tracker) -> StudyNames:
    """The names of the sweep's studies in its record."""
    from orchestrator.search.study import StudyNames

    def holds(trial_ids: Sequence[str]) -> bool:
        return bool(tracker.index(trial_ids[:LOOKED_UP]))

    return StudyNames(
        sweep=f"{sweep.name} {sweep.id[:12]} ",
        thresholds=sweep.thresholds_fingerprint()[:6],
        record=record_digest(sweep.tracking.uri, sweep.tracking.experiment),
        holds=holds,
    )


def used_study(sweep: Sweep, tracker: Tracker) -> str:
    """The name of the sweep's study in its record; empty for a grid."""
    if not sweep.is_search:
        return ""
    from orchestrator.search.study import study_name

    return study_name(sweep.search.storage, study_names(sweep, tracker))


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
    for row in read_trials(sweep.search.storage, study_names(sweep, tracker), all_thresholds=True):
        located = locate(sweep.slices, row.params, names)
        if located and TRIAL_ID in row.user_attrs and (not finished or row.state.name == "COMPLETE"):
            setting = sweep.slices[located[0]].setting(located[1])
            asked.append((row.user_attrs[TRIAL_ID], sweep.trial(setting, row.user_attrs["replicate"])))
    for recorded in tracker.rows(tracker.trials_of(sweep.id)):
        if not finished or recorded.recorded.status is Status.FINISHED:
            asked.append((recorded.trial_id, sweep.trial(recorded.params, recorded.replicate)))
    # Another id: of another version of the job.
    return list({trial.id: trial for trial_id, trial in asked if trial is not None and trial.id == trial_id}.values())


def first_asked(sweep: Sweep) -> list[Trial]:
    """The trials that a new search asks for before any has ended: they are spread evenly, and need no study."""
    from orchestrator.search.boundary import BATCH
    from orchestrator.search.proposals import Proposer

    search, most = sweep.search, sweep.most_trials
    phases = sweep.job_object().phases
    start = min(search.start, max(1, most // 2))
    proposer = Proposer(
        sweep.slices,
        lambda part: search.target.surrogate(
            len(search.target.classes(phases)), [c.names for c in part.coordinates], sweep.replicates
        ),
        start=start,
        seed=sweep.search_seed,
        replicates=sweep.replicates,
        accept=lambda setting, replicate: sweep.trial(setting, replicate) is not None,
    )
    count = min(most, max(search.batch or BATCH, start))
    asked = [sweep.trial(each.setting, each.replicate) for each in proposer.propose(count)]
    return list({trial.id: trial for trial in asked if trial is not None}.values())


def history(sweep: Sweep, tracker: Tracker) -> list[tuple[int, float]]:
    """(trials, uncertain area) in the course of the sweep's search, as far as its study has it; empty for a grid."""
    if not sweep.is_search:
        return []
    from orchestrator.search.study import history_of, read_trials

    return history_of(read_trials(sweep.search.storage, study_names(sweep, tracker)))

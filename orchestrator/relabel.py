"""Computes phases again from recorded curves after the thresholds have changed. Nothing is trained."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from jobs.job import Job, Params
from orchestrator.records import Recorded, Status, TrialResult
from orchestrator.reduce import reduce_curves
from orchestrator.tracking.base import Tracker
from orchestrator.trial import Trial

BATCH = 500
"""Trials whose new labels are written at once."""


def is_stale(recorded: Recorded, fingerprint: str, retired: Collection[str] = ()) -> bool:
    """Whether a finished trial was reduced under other thresholds, or without one of these observations."""
    return recorded.thresholds != fingerprint or not recorded.observations.keys() >= set(retired)


def relabel_stale(
    tracker: Tracker, job: Job[Any], trials: Iterable[Trial], thresholds: Params, *, retired: Collection[str] = ()
) -> Iterator[TrialResult]:
    """Reduce the recorded curves of these finished trials under `thresholds`, and record the results.

    Observations that the job has `retired` are made only if they are named.

    A trial whose reduction raises keeps its record and is yielded as FAILED.
    """
    by_id = {trial.id: trial for trial in trials}
    if not by_id:
        return
    batch: list[TrialResult] = []
    for trial_id, curves in tracker.curves(list(by_id)):
        try:
            phase, observations = reduce_curves(job, by_id[trial_id].params, curves, thresholds, retired=retired)
        except Exception:  # the job's own code
            yield TrialResult(trial_id, Status.FAILED, error=traceback.format_exc())
            continue
        batch.append(TrialResult(trial_id, Status.FINISHED, phase, observations))
        if len(batch) >= BATCH:
            tracker.relabel(batch)
            yield from batch
            batch = []
    if batch:
        tracker.relabel(batch)
        yield from batch

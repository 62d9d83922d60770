"""Trials of `double_descent` with given observations and curves, as analyses read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.job import Censored, Curves, Scalar
from orchestrator.analyses.source import Source
from orchestrator.axes import Axis
from orchestrator.phases.table import collect
from orchestrator.records import Recorded, Status
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

STEPS = np.unique(np.geomspace(1, 20_000, 80).astype(np.int64))


def trial(replicate: int, **params: Scalar) -> Trial:
    values = {"data": "gaussian_teacher", "pool": 4000, **params}
    return Trial(job="double_descent", job_version=1, params=DoubleDescentParams(**values), replicate=replicate)


def row(of: Trial, status: Status = Status.FINISHED, **observed: float | Censored) -> TrialRow:
    recorded = Recorded(status=status, phase="underfitted", observations=observed, thresholds="t", through_step=-1)
    return TrialRow(trial_id=of.id, run_id="r", params=of.settings(), replicate=of.replicate, recorded=recorded)


def axis(name: str, *values: Scalar) -> Axis:
    return Axis(name=name, values=values, scale="values")


def source(
    rows: Sequence[tuple[Trial, TrialRow]], *axes: Axis, curves: dict[str, Curves] | None = None, job: Any = None
) -> Source:
    table = collect([one for one, _ in rows], {one.id: recorded for one, recorded in rows})
    params = {one.id: one.params for one, _ in rows}

    def read(trial_ids: Sequence[str], metrics: Sequence[str]) -> Iterator[tuple[str, Curves]]:
        return ((trial_id, (curves or {})[trial_id]) for trial_id in trial_ids if trial_id in (curves or {}))

    return Source(
        job=job or DoubleDescent(),
        axes=axes,
        table=table,
        params=[params[trial_id] for trial_id in table.trial_id],
        read=read,
    )

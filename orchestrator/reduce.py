"""Reduces a trial's curves to its phase and observations."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from jobs.job import Censored, Curves, Job, Observations, Params, is_metric_name
from orchestrator.records import LONGEST_OBSERVATIONS, observations_text


def reduce_curves(
    job: Job[Any], params: Params, curves: Curves, thresholds: Params, *, retired: Collection[str] = ()
) -> tuple[str, Observations]:
    """Return a trial's phase and its observations, in a form that the record can hold.

    Args:
        job: of the trial.
        params: of the trial.
        curves: all that it has measured.
        thresholds: of the sweep.
        retired: observations to make although the job has retired them (`Job.retired`).

    Raises:
        TypeError, ValueError: the job returned an observation that is not a number, more observations than the record
            holds, or a phase that it does not declare. Exceptions of the job itself are passed on.
    """
    made = job.observe(params, curves, thresholds)
    if retired:
        former = job.observe_retired(params, curves, thresholds)
        made = {**made, **{name: former[name] for name in retired if name in former}}
    observations = {name: _observation(name, value) for name, value in made.items()}
    if (length := len(observations_text(observations))) > LONGEST_OBSERVATIONS:
        raise ValueError(
            f"the {len(observations)} observations of a trial have {length:,} characters as JSON, and MLflow's tag for "
            f"them holds {LONGEST_OBSERVATIONS:,}: report fewer metrics, or shorter names"
        )
    phase = job.phase(params, observations, thresholds)
    if phase not in job.phases:
        raise ValueError(f"phase returned {phase!r}, which is not in the job's phases: {', '.join(job.phases)}")
    return phase, observations


def doubts(job: Job[Any], finished: Iterable[tuple[Params, Observations]]) -> Counter[str]:
    """How many finished trials the job doubts for which reason (`Job.doubt`)."""
    reasons = (job.doubt(params, observations) for params, observations in finished)
    return Counter(reason for reason in reasons if reason)


def doubt_lines(doubted: Counter[str]) -> list[str]:
    """What `status` and `map` say of `doubts`, a line for each reason."""
    return [f"{count} finished: {reason}" for reason, count in doubted.items()]


def without_bounds_lines(trials: int) -> list[str]:
    """What `status` and `map` say of finished trials whose observations are completed (`Job.completed`)."""
    if not trials:
        return []
    return [
        f"those of {trials} trials of an earlier version are known by their reports alone, as (report before, step]"
    ]


def _observation(name: object, value: object) -> float | Censored:
    if not is_metric_name(name):
        raise ValueError(
            f"observe named an observation {name!r}; letters, digits, _ - . : and spaces, joined by single /"
        )
    if isinstance(value, Censored):
        return Censored(float(value.at))
    if not isinstance(value, (bool, numbers.Real, np.bool_)):
        raise TypeError(f"observe returned {value!r} for {name!r}; an observation is a number, or Censored(bound)")
    return float(value)

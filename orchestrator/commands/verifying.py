"""verify-job: whether a job's packed trials are what they are alone."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from jobs.catalogue import load_job
from jobs.job import Job, JobNotFound, Member, ParamError, as_dict
from orchestrator.errors import UserError
from orchestrator.host import visible_gpus

MODELS = 4
REPORTS = 6
TOLERANCE = 1e-3
"""Largest difference of two values, plus this share of the value; rounding stays below it for some dozens of steps."""

Curve = dict[str, list[tuple[int, float]]]
"""Metric -> (step, value) in order."""


def verify_job(arguments: argparse.Namespace) -> int:
    """Train the same trials in several ways; 0 if their curves agree, 1 if they do not."""
    job, params = _job(arguments)
    short = job.shortened(params, steps=arguments.steps, reports=REPORTS) or params
    members = [Member(params=_varied(job, short, k), seed=k + 1) for k in range(MODELS)]
    whole = _curves(job, members, "cpu")
    print(f"{arguments.job}: {MODELS} trials of {_text(short)}")
    for line in job.remarks([short]):
        print(line)
    alone = [_curves(job, [member], "cpu")[0] for member in members]
    other = _curves(job, members[:0:-1], "cpu")
    verdicts = [
        _verdict("a pack and each trial alone", whole, alone),
        _verdict("a pack and another pack, as after a resume", whole[:0:-1], other),
    ]
    if visible_gpus():
        verdicts.append(_verdict("CPU and GPU", whole, _curves(job, members, "cuda")))
    else:
        print("not compared  CPU and GPU: no GPU is visible")
    good = all(verdicts)
    print("verdict       " + ("a packed trial is the trial" if good else "the curves of a trial depend on its pack"))
    return 0 if good else 1


def _job(arguments: argparse.Namespace) -> tuple[Job[Any], Any]:
    try:
        job = load_job(arguments.job)
    except JobNotFound as error:
        raise UserError(str(error), place="JOB", choices=error.choices, next_step=error.next_step) from error
    values = {}
    for text in arguments.values:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError("must be NAME=VALUE", place="--set", value=text)
        values[name] = yaml.safe_load(value)
    try:
        return job, job.params_for(values)
    except ParamError as error:
        raise UserError(str(error), place="--set", next_step="give it by --set NAME=VALUE") from error


def _varied(job: Job[Any], params: Any, k: int) -> Any:
    """The k-th of trials that differ in what trials of one pack usually may differ in.

    A rate that is 0 stays 0: label noise is not defined for every job.
    """
    factor = 1 - 0.1 * k
    for name in ("learning_rate", "weight_decay", "label_noise", "steps"):
        value = as_dict(params).get(name)
        if not value or isinstance(value, str):
            continue
        other = max(1, value - k) if name == "steps" else value * factor
        try:
            varied = dataclasses.replace(params, **{name: other})
        except ParamError:
            continue
        if job.pack_key(varied) == job.pack_key(params):
            params = varied
    return params


def _text(params: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in as_dict(params).items())


def _curves(job: Job[Any], members: Sequence[Member[Any]], device: str) -> list[Curve]:
    """The curves of each member, trained as one pack."""
    curves: list[Curve] = [{} for _ in members]
    for report in job.train(members, device=device):
        if report.failed:
            rule = f"a trial failed:\n{next(iter(report.failed.values()))}"
            raise UserError(rule, place="JOB", next_step="correct the job")
        for k, position in enumerate(report.members.tolist()):
            for name, values in report.values.items():
                curves[position].setdefault(name, []).append((report.step, float(values[k])))
    return curves


def _verdict(what: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> bool:
    """Print how much the curves differ at most; whether they agree."""
    worst, where = 0.0, ""
    for one, other in zip(first, second, strict=True):
        for name in {**one, **other}:
            if [step for step, _ in one.get(name, [])] != [step for step, _ in other.get(name, [])]:
                print(f"{'differ':<13} {what}: {name} is reported at other steps")
                return False
            difference = _difference(*(np.array([value for _, value in c[name]]) for c in (one, other)))
            if difference >= worst:
                worst, where = difference, name
    good = worst <= TOLERANCE
    print(f"{'agree' if good else 'differ':<13} {what}: at most {worst:.1e} ({where}; allowed {TOLERANCE:g})")
    return good


def _difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The largest |a - b| / (1 + |a|); infinite where only one is finite."""
    finite = np.isfinite(one)
    if (finite != np.isfinite(other)).any():
        return float("inf")
    return float(np.max(np.abs(one - other)[finite] / (1 + np.abs(one[finite])), initial=0.0))

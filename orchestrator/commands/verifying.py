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
from jobs.function import described
from jobs.job import Job, JobNotFound, Member, ParamError, as_dict
from orchestrator.commands.rehearsing import users_line
from orchestrator.commands.varying import Variation, members_of, variation
from orchestrator.errors import UserError
from orchestrator.host import visible_gpus
from orchestrator.output import importing
from orchestrator.printable import last_line
from orchestrator.sanity import explained
from orchestrator.sweep.check import where_raised

REPORTS = 6
_FAILED = "a trial failed: "
TOLERANCE = 1e-3
"""Largest difference of two values, plus this share of the value; rounding stays below it for some dozens of steps."""

Curve = dict[str, list[tuple[int, float]]]
"""Metric -> (step, value) in order."""


def verify_job(arguments: argparse.Namespace) -> int:
    """Train the same trials in several ways; 0 if their curves agree, 1 if they do not."""
    job, params = _job(arguments)
    short = job.shortened(params, steps=arguments.steps, reports=REPORTS) or params
    members, alone, varies = _trials(job, short)
    print(f"{arguments.job}: {len(members)} trials of {_text(as_dict(short))}")
    _describe(varies, short)
    for line in job.remarks([member.params for member in members]):
        print(line)
    named = _names(members, varies)
    try:
        whole = _curves(job, members, "cpu")
        reverse, other = (_curves(job, pack, "cpu") for pack in (members[::-1], members[1:]))
    except Exception as error:  # by the job's own code
        print(f"differ        each trial trains alone, and a pack of them does not: {_cause(error)}")
        for line in named:
            print(f"{'':<13} {line}")
        return _end(False)
    verdicts = [
        _verdict("a pack and each trial alone", whole, alone, named),
        _verdict("a pack and the same trials in another order", whole, reverse[::-1], named),
        _verdict("a pack and another pack, as after a resume", whole[1:], other, named[1:]),
    ]
    if visible_gpus():
        verdicts.append(_verdict("CPU and GPU", whole, _curves(job, members, "cuda"), named))
    else:
        print("not compared  CPU and GPU: no GPU is visible")
    return _end(all(verdicts))


def _end(good: bool) -> int:
    print("verdict       " + ("a packed trial is the trial" if good else "the curves of a trial depend on its pack"))
    return 0 if good else 1


def _job(arguments: argparse.Namespace) -> tuple[Job[Any], Any]:
    try:
        with importing():
            job = load_job(arguments.job)
    except JobNotFound as error:
        raise UserError(
            str(error), place="JOB", value=arguments.job, choices=error.choices, next_step=error.next_step
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the module raises at import, SystemExit included
        rule, step = f"cannot be loaded: {last_line(described(error))}", f"correct {where_raised(error, arguments.job)}"
        raise UserError(rule, place="JOB", value=arguments.job, next_step=step) from error
    values = {}
    for text in arguments.values:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError("must be NAME=VALUE", place="--set", value=text)
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            step = "quote the value, for the shell and for YAML"
            raise UserError("does not read as YAML", place=f"--set {name}", value=value, next_step=step) from error
    try:
        return job, job.params_for(values)
    except ParamError as error:
        raise UserError(str(error), place="--set", next_step="give it by --set NAME=VALUE") from error
    except Exception as error:  # the job's own check may raise anything
        rule, step = f"the job refuses these values: {last_line(described(error))}", where_raised(error, arguments.job)
        raise UserError(rule, place="--set", value=values, next_step=f"change them, or correct {step}") from error


def _trials(job: Job[Any], params: Any) -> tuple[list[Member[Any]], list[Curve], Variation]:
    """Trials of one pack, the curve of each trained alone, and what they differ in.

    A parameter keeps its value if no trial can be trained with the other one, such as label noise without labels.
    """
    varies = variation(job, params)
    first = _alone(job, params, 1)
    try:
        members = members_of(job, params, varies.others)
        return members, [first, *(_alone(job, each.params, each.seed) for each in members[1:])], varies
    except UserError:
        failing = {}
        for name, value in varies.others.items():
            try:
                _alone(job, dataclasses.replace(params, **{name: value}), 1)
            except UserError as error:
                failing[name] = f"with {value} a trial fails: {_cause(error)}"
        if not failing:
            raise
    varies = varies.without(failing)
    members = members_of(job, params, varies.others)
    return members, [first, *(_alone(job, each.params, each.seed) for each in members[1:])], varies


def _alone(job: Job[Any], params: Any, seed: int) -> Curve:
    try:
        return _curves(job, [Member(params=params, seed=seed)], "cpu")[0]
    except UserError:
        raise
    except Exception as error:
        raise _failure(described(error), params) from error


def _failure(error: str, params: Any) -> UserError:
    rule, step = _FAILED + explained(error, as_dict(params)), f"correct {users_line(error)}, or the values"
    return UserError(rule, place="JOB", value=_text(as_dict(params)), next_step=step)


def _cause(error: Exception) -> str:
    """The last line of what the job's code raised, or of the traceback that it reported."""
    return error.mistakes[0].rule.removeprefix(_FAILED) if isinstance(error, UserError) else last_line(described(error))


def _describe(varies: Variation, params: Any) -> None:
    values = {name: f"{getattr(params, name)} and {value}" for name, value in varies.others.items()}
    print("varied        seed" + "".join(f", {name} ({text})" for name, text in values.items()))
    if varies.equal:
        print(f"equal         {', '.join(varies.equal)}: every other value that was tried has another pack_key")
    for name, reason in varies.kept.items():
        print(f"not varied    {name}: {reason}")


def _names(members: Sequence[Member[Any]], varies: Variation) -> list[str]:
    """How a message names each trial: by its place in the pack, and by what it may differ in."""
    return [
        f"trial {k}: " + _text({"seed": each.seed, **{name: getattr(each.params, name) for name in varies.others}})
        for k, each in enumerate(members, 1)
    ]


def _text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _curves(job: Job[Any], members: Sequence[Member[Any]], device: str) -> list[Curve]:
    """The curves of each member, trained as one pack."""
    curves: list[Curve] = [{} for _ in members]
    for report in job.train(members, device=device):
        if report.failed:
            position, error = next(iter(report.failed.items()))
            raise _failure(error, members[position].params)
        for k, position in enumerate(report.members.tolist()):
            for name, values in report.values.items():
                curves[position].setdefault(name, []).append((report.step, float(values[k])))
    return curves


def _verdict(
    what: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], named: Sequence[str]
) -> bool:
    """Print how much the curves differ at most, and the trials that differ; whether they agree."""
    worst, where, differ = 0.0, "", []
    for one, other, name in zip(first, second, named, strict=True):
        largest, metric = _largest(one, other)
        if largest > TOLERANCE:
            differ.append(f"{name} ({metric})")
        if largest >= worst:
            worst, where = largest, metric
    print(f"{'differ' if differ else 'agree':<13} {what}: at most {worst:.1e} ({where}; allowed {TOLERANCE:g})")
    for line in differ:
        print(f"{'':<13} {line}")
    return not differ


def _largest(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, str]:
    """The largest difference of two trials' curves, and its metric; infinite if they are reported at other steps."""
    largest, where = 0.0, ""
    for name in {**one, **other}:
        if [step for step, _ in one.get(name, [])] != [step for step, _ in other.get(name, [])]:
            return float("inf"), f"{name} is reported at other steps"
        difference = _difference(*(np.array([value for _, value in c[name]]) for c in (one, other)))
        if difference >= largest:
            largest, where = difference, name
    return largest, where


def _difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The largest |a - b| / (1 + |a|); infinite where only one is finite."""
    finite = np.isfinite(one)
    if (finite != np.isfinite(other)).any():
        return float("inf")
    return float(np.max(np.abs(one - other)[finite] / (1 + np.abs(one[finite])), initial=0.0))

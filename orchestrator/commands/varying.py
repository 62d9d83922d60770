"""Which trials `verify-job` trains: those of one pack that differ in all that `pack_key` lets them differ in."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.job import Job, Member, ParamError, ParamSpec, Scalar, specs

FEWEST = 4
"""Trials of a pack, if few parameters vary."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What the trials of a pack may differ in."""

    others: dict[str, Scalar]
    """Parameter -> its other value, for those that vary."""
    equal: tuple[str, ...]
    """Parameters that are equal in each pack: every other value that was tried gives another pack key."""
    kept: dict[str, str]
    """Parameter -> why it keeps its value, for the rest."""

    def without(self, reasons: dict[str, str]) -> Variation:
        """The same, with these parameters kept, for these reasons."""
        others = {name: value for name, value in self.others.items() if name not in reasons}
        return dataclasses.replace(self, others=others, kept={**self.kept, **reasons})


def variation(job: Job[Any], params: Any) -> Variation:
    """Another value of each parameter with which a trial shares a pack with `params` and is not longer."""
    others: dict[str, Scalar] = {}
    equal, kept = [], {}
    key, longest = job.pack_key(params), _length(job, params)
    for name, spec in specs(type(params)).items():
        apart, longer = False, ""
        for value in _candidates(spec, getattr(params, name)):
            try:
                varied = dataclasses.replace(params, **{name: value})
            except ParamError:
                continue
            if job.pack_key(varied) != key:
                apart = True
            elif _length(job, varied) > longest:
                longer = longer or f"with {value} the trial is longer"
            else:
                others[name] = getattr(varied, name)
                break
        else:
            if apart and not longer:
                equal.append(name)
            else:
                kept[name] = longer or (
                    "text" if spec.type is str and not spec.choices else "no other value found is valid"
                )
    return Variation(others=others, equal=tuple(equal), kept=kept)


def members_of(job: Job[Any], params: Any, others: dict[str, Scalar]) -> list[Member[Any]]:
    """Trials of one pack, the first with `params`; each parameter has both values, and no two change together.

    Trial k + 2 has the other value of the n-th parameter, counted from 1, if bit k of n is set: no two parameters have
    the same bits. Trials that need no bit have all other values. Where two values exclude each other, a trial has the
    first, and another trial is added.
    """
    bits = len(others).bit_length()
    settings = [
        _changed(job, params, {name: v for n, (name, v) in enumerate(others.items(), 1) if k >= bits or n >> k & 1})
        for k in range(max(FEWEST - 1, bits))
    ]
    designed = len(settings)
    patterns: set[tuple[bool, ...]] = set()
    for name, value in others.items():
        pattern = tuple(getattr(each, name) == value for each in settings[:designed])
        if not any(pattern) or pattern in patterns:
            settings.append(_changed(job, params, {name: value}))
        patterns.add(pattern)
    return [Member(params=each, seed=k) for k, each in enumerate([params, *settings], 1)]


def _changed(job: Job[Any], params: Any, changes: dict[str, Scalar]) -> Any:
    """The parameters with those of the changes that are valid together and leave the pack key as it is."""
    key, longest = job.pack_key(params), _length(job, params)
    for name, value in changes.items():
        with contextlib.suppress(ParamError):
            changed = dataclasses.replace(params, **{name: value})
            if job.pack_key(changed) == key and _length(job, changed) <= longest:
                params = changed
    return params


def _length(job: Job[Any], params: Any) -> int:
    """The last step of the trial; 0: unknown."""
    steps = job.schedule(params)
    return 0 if steps is None else int(steps[-1])


def _candidates(spec: ParamSpec, value: Any) -> Iterator[Scalar]:
    """Other values of a parameter, the best first; they may be invalid. Smaller ones come first: they cost less."""
    if spec.choices:
        yield from (choice for choice in spec.choices if choice != value)
    elif spec.type is bool:
        yield not value
    elif spec.type is int and value == 0:
        yield from (1, *(factor << n for n in range(20) for factor in (2, 3)))
    elif spec.type is int:
        yield from (each for each in (value // 2, value * 3 // 2, value - 1, value + 1) if each != value)
    elif spec.type is float:
        yield from (0.5 * value, 1.5 * value, 0.9 * value) if value else (0.1, 0.01, 1.0, 10.0)
        bounds = (spec.low, spec.above, spec.high, spec.below)
        yield from ((value + bound) / 2 for bound in bounds if bound is not None and bound != value)

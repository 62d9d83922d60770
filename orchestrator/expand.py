"""From axes to settings: the product of the axes, zipped groups together, conditions obeyed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from jobs.job import Scalar
from orchestrator.axes import Axis

MOST_TRIALS = 2_000_000
"""A sweep is held in the driver's memory; beyond this it is surely a slip."""


class TooManyTrials(ValueError):
    """The axes stand for more than `MOST_TRIALS`."""


class Cycle(ValueError):
    """Axes whose conditions wait for each other: their names are the arguments."""


def dimensions(axes: Sequence[Axis]) -> list[tuple[Axis, ...]]:
    """What the grid is the product of: single axes and zipped groups, in the file's order.

    A dimension whose condition names another axis comes after it.

    Raises:
        Cycle: that is not possible.
    """
    groups: dict[object, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(axis.name if axis.group is None else axis.group, []).append(axis)
    waiting = [tuple(group) for group in groups.values()]
    ordered: list[tuple[Axis, ...]] = []
    while waiting:
        unknown = {axis.name for dimension in waiting for axis in dimension}
        ready = next((d for d in waiting if not any(unknown & set(axis.when) for axis in d)), None)
        if ready is None:
            raise Cycle(*(axis.name for dimension in waiting for axis in dimension if unknown & set(axis.when)))
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def expand(
    axes: Sequence[Axis],
    fixed: Mapping[str, Scalar],
    defaults: Mapping[str, Scalar],
    *,
    replicates: int = 1,
) -> tuple[list[dict[str, Scalar]], set[str]]:
    """Every setting of the sweep, the last axis varying fastest, and the axes that exist in none of them.

    A setting holds the fixed parameters and the axes that exist there. Conditions see, besides,
    the job's `defaults`. Settings may coincide where zipped axes or conditions make them.

    Raises:
        Cycle: see `dimensions`.
        TooManyTrials: there are more than `MOST_TRIALS`, replicates counted.
    """
    ordered = dimensions(axes)
    certain = math.prod(len(d[0].values) for d in ordered if not any(axis.when for axis in d))
    if certain * replicates > MOST_TRIALS:
        raise TooManyTrials(certain * replicates)
    never = {axis.name for axis in axes}
    seen: dict[str, Scalar] = {**defaults, **fixed}
    chosen: dict[str, Scalar] = dict(fixed)

    def settings(depth: int) -> Iterator[dict[str, Scalar]]:
        if depth == len(ordered):
            yield dict(chosen)
            return
        existing = [axis for axis in ordered[depth] if axis.exists(seen)]
        if not existing:
            yield from settings(depth + 1)
            return
        never.difference_update(axis.name for axis in existing)
        before = [(axis.name, seen.get(axis.name), axis.name in fixed) for axis in existing]
        for values in zip(*(axis.values for axis in existing), strict=True):
            for axis, value in zip(existing, values, strict=True):
                chosen[axis.name] = seen[axis.name] = value
            yield from settings(depth + 1)
        for name, old, is_fixed in before:
            if old is None:
                del seen[name]
            else:
                seen[name] = old
            if is_fixed:
                chosen[name] = fixed[name]
            else:
                del chosen[name]

    found: list[dict[str, Scalar]] = []
    for setting in settings(0):
        found.append(setting)
        if len(found) * replicates > MOST_TRIALS:
            raise TooManyTrials(len(found) * replicates)
    return found, never

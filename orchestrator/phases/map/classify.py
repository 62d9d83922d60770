"""From a table of trials to a map drawn by a classifier: which classes there are, and what each trial says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.axes import Axis
from orchestrator.phases.diagram import UNLABELLED, PhaseDiagram
from orchestrator.phases.map.box import TrialSlice, cut
from orchestrator.phases.map.surface_map import Fit, FittedMap, FittedSlice
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import number, words
from orchestrator.records import Status
from orchestrator.surface.base import Evidence, Surface, Surrogate


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a map shows: the phases, the two sides of a metric's level, or where a metric peaks along an axis."""

    kind: Literal["phase", "level", "ridge"] = "phase"
    metric: str = ""
    """Of a level and a ridge: the observation."""
    level: float = float("nan")
    along: str = ""
    """Of a ridge: the axis."""
    listed: bool = False
    """Whether each of an axis's listed numbers is a slice of its own, as for a search; else there is a between."""


PHASES = Aim()
"""The phases, whatever the axes."""

VALUELESS = "no value"
"""The label of a finished trial that has no finite value of a level's metric, nor a bound of it."""


def labels_of(aim: Aim, diagram: PhaseDiagram) -> tuple[str, ...]:
    """(K,) what the classes are called; those of a level are below, at or above, and no value. A ridge has none."""
    if aim.kind == "phase":
        return diagram.labels
    sides = (f"{words(aim.metric)} below {number(aim.level)}", f"{words(aim.metric)} {number(aim.level)} or more")
    return (*sides, VALUELESS) if aim.kind == "level" else ()


def evidence_of(
    aim: Aim, labels: Sequence[str], table: TrialTable, one: TrialSlice, order: Mapping[str, int]
) -> tuple[Evidence, NDArray[np.int64]]:
    """What the trials of a slice say, and the row of the table of each: those that finished, by their place in `order`.

    A failed trial says nothing; a diverged one has a label like any other.
    """
    finished = np.array([table.status[row] == Status.FINISHED.value for row in one.rows], dtype=np.bool_)
    place = np.array([order.get(table.trial_id[row], len(order)) for row in one.rows], dtype=np.int64)
    chosen = np.argsort(place, kind="stable")
    chosen = chosen[finished[chosen]]
    rows = one.rows[chosen]
    count = len(rows)
    value, censored = np.full(count, np.nan), np.zeros(count, dtype=np.bool_)
    column = table.observations.get(aim.metric)
    if column is not None:
        censored = column.censored[rows]
        value = np.where(censored, column.censored_at[rows], np.where(column.reached[rows], column.value[rows], np.nan))
        value = np.where(np.isfinite(value), value, np.nan)
    index = {label: k for k, label in enumerate(labels)}
    if aim.kind == "phase":
        label = np.array([index[table.phase[row] or UNLABELLED] for row in rows], dtype=np.int64)
    elif aim.kind == "level":
        side = (value >= aim.level) | censored
        silent = np.isnan(value)
        label = np.array(
            [
                index[table.phase[row] or VALUELESS] if s else int(v)
                for row, s, v in zip(rows, silent, side, strict=True)
            ],
            dtype=np.int64,
        )
    else:
        label = np.full(count, -1, dtype=np.int64)
    return Evidence(x=one.x[chosen], label=label, value=value, censored=censored), rows


def target_for(aim: Aim, labels: Sequence[str], dimension_names: Sequence[str]) -> Surrogate[Any]:
    """What fits such evidence: the classifier that a search uses."""
    if aim.kind == "level":
        from orchestrator.surface.level import LevelSurrogate

        return LevelSurrogate(level=aim.level, classes=len(labels))
    if aim.kind == "ridge":
        from orchestrator.surface.ridge import RidgeSurrogate

        return RidgeSurrogate(along=list(dimension_names).index(aim.along))
    from orchestrator.surface.phase import PhaseSurrogate

    return PhaseSurrogate(classes=len(labels))


def classify(
    aim: Aim,
    diagram: PhaseDiagram,
    table: TrialTable,
    axes: Sequence[Axis],
    order: Sequence[str] = (),
    target: Surrogate[Any] | None = None,
) -> FittedMap:
    """The map that the classifier draws of these trials.

    Args:
        aim: what it shows.
        diagram: of the same table, nothing joined.
        table: the trials.
        axes: of the sweep.
        order: trial ids in the order in which they were told; the table's order where it is silent.
        target: what fits instead of the usual classifier.
    """
    labels = labels_of(aim, diagram)
    slices = cut(diagram, axes, listed=aim.listed)
    place = {trial_id: k for k, trial_id in enumerate(order)}
    found = []
    for one in slices:
        seen, rows = evidence_of(aim, labels, table, one, place)
        names = [axis.name for axis in one.axes]
        usable = len(names) >= 2 and len(seen) > 0 and (aim.kind != "ridge" or aim.along in names)
        fit: Fit = (target or target_for(aim, labels, names)).fit if usable else _nothing
        found.append(FittedSlice(slice=one, evidence=seen, rows=rows, surface=fit(seen) if usable else None, fit=fit))
    return FittedMap(labels=labels, slices=tuple(found))


def _nothing(evidence: Evidence) -> Surface:
    raise ValueError(f"{len(evidence)} trials of a slice that has too few axes")


def describe(aim: Aim) -> str:
    """What the map shows, in words."""
    if aim.kind == "ridge":
        return f"peak of {words(aim.metric)} along {words(aim.along)}"
    return f"{words(aim.metric)} = {number(aim.level)}" if aim.kind == "level" else "phases"

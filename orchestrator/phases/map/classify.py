"""From a table of trials to a map drawn by a classifier, by the same rules as a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.axes import Axis
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.map.box import TrialSlice, cut
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice
from orchestrator.phases.table import TrialTable
from orchestrator.surface.base import Evidence, Surface, Surrogate
from orchestrator.target import Target


def evidence_of(
    target: Target, phases: Sequence[str], table: TrialTable, slice_: TrialSlice, order: Mapping[str, int]
) -> tuple[Evidence, NDArray[np.int64]]:
    """The evidence of a slice's trials, and the (n,) row of the table of each.

    Args:
        target: what the map shows.
        phases: all that occur.
        table: the trials.
        slice_: of the sweep.
        order: trial id -> place among the evidence; trials that are not named come last.
    """
    classes = target.classes(phases)
    place = np.array([order.get(table.trial_id[row], len(order)) for row in slice_.rows], dtype=np.int64)
    kept, trials = [], []
    for index in np.argsort(place, kind="stable").tolist():
        result = table.result(int(slice_.rows[index]))
        evidence = None if result is None else target.evidence(result, classes)
        if evidence is not None:
            kept.append(index)
            trials.append(evidence)
    chosen = np.array(kept, dtype=np.int64)
    return Evidence.of(slice_.x[chosen], trials), slice_.rows[chosen]


def classify(
    target: Target,
    diagram: PhaseDiagram,
    table: TrialTable,
    axes: Sequence[Axis],
    order: Sequence[str] = (),
    surrogate: Surrogate[Any] | None = None,
    *,
    listed: bool = False,
) -> FittedMap:
    """Fit the target's surrogate to every slice of these trials.

    Args:
        target: what the map shows.
        diagram: of the same table, no cells joined.
        table: the trials.
        axes: of the sweep.
        order: trial ids in the order in which they were told; the others follow in the table's order.
        surrogate: fitted in place of the target's own.
        listed: whether every value of an axis that lists its values is a slice of its own, as in a search.
    """
    labels = target.class_titles(diagram.labels)
    place = {trial_id: k for k, trial_id in enumerate(order)}
    fitted = []
    for slice_ in cut(diagram, axes, listed=listed):
        evidence, rows = evidence_of(target, diagram.labels, table, slice_, place)
        names = [axis.name for axis in slice_.axes]
        if len(names) < 2 or not len(evidence) or (target.axis is not None and target.axis not in names):
            fitted.append(FittedSlice(slice=slice_, evidence=evidence, rows=rows, surface=None, fit=_not_fitted))
            continue
        fit = (surrogate or target.surrogate(len(labels), [(name,) for name in names])).fit
        surface, replicate = fit(evidence), table.replicate[rows]
        fitted.append(
            FittedSlice(slice=slice_, evidence=evidence, rows=rows, surface=surface, fit=fit, replicate=replicate)
        )
    return FittedMap(labels=labels, slices=tuple(fitted))


def _not_fitted(evidence: Evidence) -> Surface:
    raise ValueError(f"a slice with {len(evidence)} trials is not fitted: it has fewer than two axes, or no evidence")

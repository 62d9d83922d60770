"""The interactive picture of a sweep as it is recorded now, for a page that is drawn again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import specs
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.layout import summary
from orchestrator.phases.publish import MOST_INTERACTIVE_CELLS, sweep_metrics
from orchestrator.phases.style import with_labels
from orchestrator.phases.table import SweepView, TrialTable, collect
from orchestrator.records import Status
from orchestrator.target import MetricTarget, Target
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactive:
    """What `phase_diagram.html` would show now."""

    page: dict[str, Any]
    """See `draw.html.page_of`."""
    summary: str
    table: TrialTable
    cell: NDArray[np.int64]
    """(N,) the cell of each trial of the table, by which the page's texts are found."""

    def rows_of(self, cell: int) -> list[int]:
        """The rows of the table that are in a cell, by replicate."""
        rows = np.flatnonzero(self.cell == cell).tolist()
        return sorted(rows, key=lambda row: int(self.table.replicate[row]))


def interactive(
    sweep: SweepView, trials: Sequence[Trial], rows: Mapping[str, TrialRow], target: Target | None
) -> Interactive:
    """Draw the views of the page; nothing is written.

    Args:
        sweep: its name, axes and job.
        trials: all its trials so far, in the order in which they were proposed.
        rows: trial id -> what is recorded.
        target: what a search looks for: then its map is fitted and drawn too. None for a grid.
    """
    from orchestrator.phases.draw.html import page_of

    job = sweep.job_object()
    table = collect(trials, rows, job)
    kinds: list[Any] = list(dict.fromkeys(type(trial.params) for trial in trials))
    params = {name: spec for kind in kinds for name, spec in specs(kind).items()}
    diagram = phase_diagram(sweep.name, sweep.axes, job.phases, table, params)
    metrics, _ = sweep_metrics(sweep, trials, table, diagram)
    shown = diagram
    if len(diagram.codes) > MOST_INTERACTIVE_CELLS:
        shown = phase_diagram(sweep.name, sweep.axes, job.phases, table, params, most_cells=MOST_INTERACTIVE_CELLS)
    before = [] if target is None else _fitted(target, sweep, diagram, shown, table, [trial.id for trial in trials])
    page = page_of(shown, table, job.headline, metrics, before=before)
    return Interactive(page=page, summary=summary(shown), table=table, cell=shown.cell)


def _fitted(
    target: Target,
    sweep: SweepView,
    diagram: PhaseDiagram,
    shown: PhaseDiagram,
    table: TrialTable,
    order: Sequence[str],
) -> list[dict[str, Any]]:
    """The view of the map that a search knows so far; none before it can be fitted."""
    from orchestrator.phases.draw.html_surface import map_view, ridge_view
    from orchestrator.phases.draw.panels import panels_of, ridge_panels
    from orchestrator.phases.map.classify import classify

    fitted = classify(target, diagram, table, sweep.axes, order, listed=True)
    if not fitted.fitted:
        return []
    ridges = ridge_panels(fitted)
    if ridges:
        return [ridge_view(ridges, target.observation if isinstance(target, MetricTarget) else "")]
    failed = [row for row, status in enumerate(table.status) if status == Status.FAILED.value]
    return [with_labels(fitted.labels, map_view)(fitted, panels_of(fitted, failed), shown)]

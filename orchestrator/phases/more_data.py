"""Where more data hurts, over the settings of a sweep."""

from __future__ import annotations

import re

import numpy as np

from orchestrator.analysis.more_data import FAMILY_WISE_ERROR, Doubling, more_data_hurts
from orchestrator.phases.against import Floats, Quantity
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.layout import cut
from orchestrator.phases.points import PointFigure, PointGroup
from orchestrator.phases.step_text import interval_text
from orchestrator.phases.steps import error_of
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import number, percent, plural, words


def doubling_figure(diagram: PhaseDiagram, table: TrialTable, y: Quantity, x: int) -> PointFigure:
    """The change of y, an error, when the samples double, along the axis `x`; a group per setting of the other axes.

    Args:
        diagram: of the table, nothing joined.
        table: all trials.
        y: an error of each trial; of an accuracy, 1 - accuracy is compared.
        x: index of the axis that counts samples, or is proportional to them.
    """
    axis = diagram.axes[x]
    sizes = np.array(axis.values[axis.special :], dtype=np.float64)
    panels = cut(diagram, [a for a in range(len(diagram.axes)) if a != x])
    error = np.where(y.censored, np.nan, error_of(y.name, y.value))
    values: list[Floats] = []
    cells: list[dict[float, int]] = []
    numbers, replicate = np.unique(table.replicate, return_inverse=True)
    for panel in panels:
        here = panel.cells[diagram.codes[panel.cells, x] >= axis.special]
        place = diagram.codes[:, x] - axis.special
        rows = np.flatnonzero(np.isin(diagram.cell, here))
        of_panel = np.full((len(numbers), len(sizes)), np.nan)
        of_panel[replicate[rows], place[diagram.cell[rows]]] = error[rows]
        values.append(of_panel)
        cells.append({float(sizes[place[cell]]): int(cell) for cell in here})
    compared = more_data_hurts([(sizes, of_panel) for of_panel in values])
    groups = [
        _group(panel.title, own, doublings)
        for panel, own, doublings in zip(panels, cells, compared, strict=True)
        if doublings
    ]
    flat = [(panel.title, doubling) for panel, own in zip(panels, compared, strict=True) for doubling in own]
    return PointFigure(
        file=re.sub(r"[^A-Za-z0-9_.-]", "_", f"more_data_{y.name}"),
        title=f"{diagram.name}: change of {words(y.name)} with twice the data",
        x_name=axis.name,
        y_name=f"change of {words(y.name)}",
        diagram=diagram,
        groups=tuple(groups),
        lines=tuple(_lines(flat, axis.name)),
        mark=f"more data hurts (family-wise error {percent(FAMILY_WISE_ERROR)})",
        zero=True,
    )


def _group(title: str, cells: dict[float, int], doublings: tuple[Doubling, ...]) -> PointGroup:
    x = np.array([d.samples for d in doublings])
    return PointGroup(
        title=title,
        cells=np.array([cells[d.samples] for d in doublings], dtype=np.int64),
        x=x,
        x_low=x,
        x_high=x,
        y=np.array([d.difference.value for d in doublings]),
        low=np.array([d.difference.low for d in doublings]),
        high=np.array([d.difference.high for d in doublings]),
        count=np.array([d.replicates for d in doublings], dtype=np.int64),
        marked=np.array([d.hurts() for d in doublings], dtype=np.bool_),
        more={
            "doubled": [d.doubled for d in doublings],
            "interpolated": [d.interpolated for d in doublings],
            "p_value": [None if np.isnan(d.p_value) else d.p_value for d in doublings],
            "p_adjusted": [None if np.isnan(d.adjusted) else d.adjusted for d in doublings],
            "hurts": [d.hurts() for d in doublings],
        },
    )


def _lines(compared: list[tuple[str, Doubling]], axis: str) -> list[str]:
    tested = [(title, d) for title, d in compared if not np.isnan(d.p_value)]
    hurts = [(title, d) for title, d in tested if d.hurts()]
    if not tested:
        return [f"more data: not tested, it takes two replicates and {axis} up to twice the smallest"]
    replicates = [d.replicates for _, d in tested]
    text = f"more data hurts at {len(hurts) or 'none'} of {plural(len(tested), 'comparison')} of n with 2n"
    range_ = f"{min(replicates)}" if min(replicates) == max(replicates) else f"{min(replicates)} to {max(replicates)}"
    text += f" (Holm, family-wise error {percent(FAMILY_WISE_ERROR)}; {range_} replicates)"
    lines = [text]
    for title, d in sorted(hurts, key=lambda item: -item[1].difference.value)[:3]:
        where = f"{title}, " if title else ""
        change = interval_text(d.difference)
        lines.append(
            f"{where}{axis} {number(d.samples)} to {number(d.doubled)}: {change}, adjusted p = {d.adjusted:.2g}"
        )
    return lines

"""The interactive picture of metrics over an axis and the step: a view per metric, a slider per further axis."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.phases.draw.html import write_page
from orchestrator.phases.draw.html_traces import Trace, as_list, called, map_layout, scatter, slices_view
from orchestrator.phases.draw.png_steps import ALONG_AXIS, ALONG_STEPS, legend_texts, peak_places
from orchestrator.phases.layout import value_range
from orchestrator.phases.scale import round_values
from orchestrator.phases.step_text import heading, peak_lines
from orchestrator.phases.steps import MetricMap, StepMap, StepSlice
from orchestrator.phases.text import INK, named, number, on_page, plain

MOST_TEXTS = 40_000
"""Cells and steps up to which hovering shows the setting, the mean's interval and the number of replicates."""


def write_step_page(step_map: StepMap, path: Path) -> None:
    """Write the page."""
    views = []
    for of in step_map.maps:
        layout = map_layout(step_map.axis, step_map.step_axis)
        slices = [(plain(one.panel.called), _traces(step_map, of, one), layout) for one in of.slices]
        views.append(slices_view(plain(named(of.metric)), slices, [one.panel.called_where for one in of.slices]))
    of = step_map.maps[0]
    numbers = [(of.metric, line) for of in step_map.maps for line in peak_lines(step_map, of)]
    write_page(path, f"{step_map.diagram.name}: step as an axis", heading(step_map, of), views, numbers=numbers)


def _traces(step_map: StepMap, of: MetricMap, one: StepSlice) -> list[Trace]:
    across, up = step_map.axis, step_map.step_axis
    low, high, log = value_range(of.metric, of.mean)
    bar: dict[str, Any] = {
        "title": {"text": on_page(named(of.metric)), "side": "right"},
        "thickness": 14,
        "outlinewidth": 0,
    }
    padded = np.full((len(of.mean) + 1, len(step_map.steps) + 1), np.nan)
    padded[:-1, :-1] = of.mean
    if log:
        at = round_values(low, high, 7, log=True)
        bar |= {"tickvals": [math.log10(v) for v in at], "ticktext": [number(v) for v in at]}
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high, padded = math.log10(low), math.log10(high), np.log10(padded)
    edges_x, index_x = across.edges()
    edges_y, index_y = up.edges()
    cells = np.append(one.cell, -1)[index_x]
    heat: Trace = {"type": "heatmap", "x": as_list(edges_x), "y": as_list(edges_y), "name": "", "hoverongaps": False}
    values = padded[np.ix_(cells, index_y)].T
    # Five digits are more than a colour shows, and keep the page small.
    heat |= {"z": [[None if v is None else float(f"{v:.5g}") for v in as_list(row)] for row in values]}
    heat |= {"colorscale": "Viridis", "showscale": True, "colorbar": bar, "zmin": low, "zmax": high}
    if of.mean.size <= MOST_TEXTS:
        heat |= {"text": [[_text(step_map, of, one, x, s) for x in index_x] for s in index_y]}
        heat |= {"hovertemplate": "%{text}<extra></extra>"}
    else:
        heat |= {"hoverinfo": "z"}
    traces = [heat]
    marks = zip(
        peak_places(step_map, one),
        legend_texts(step_map, of),
        (("circle", ALONG_AXIS), ("triangle-up", ALONG_STEPS)),
        strict=True,
    )
    for points, name, (symbol, colour) in marks:
        marker = {"symbol": symbol, "size": 9, "color": colour, "line": {"width": 1, "color": INK}}
        # Without a point the legend still says that there is none.
        shown = points if len(points) else np.full((1, 2), np.nan)
        traces.append(scatter("markers", shown[:, 0], shown[:, 1], on_page(name), marker=marker))
    return traces


def _text(step_map: StepMap, of: MetricMap, one: StepSlice, x: int, step: int) -> str:
    cell = int(one.cell[x]) if x >= 0 else -1
    if cell < 0 or step < 0:
        return ""
    lines = [f"<b>{called(step_map.axis.name)}</b> {step_map.axis.text(x)}", f"<b>step</b> {step_map.steps[step]:,}"]
    count = int(of.count[cell, step])
    mean, low, high = (float(part[cell, step]) for part in (of.mean, of.low, of.high))
    value = number(mean) + (f" [{number(low)}, {number(high)}]" if count > 1 else "") if count else "no finite value"
    return "<br>".join([*lines, f"{called(of.metric)}: {value}", f"n = {count}"])

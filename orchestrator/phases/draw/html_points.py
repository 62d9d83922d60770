"""The interactive picture of one quantity against another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.phases.draw.html import write_page
from orchestrator.phases.draw.html_traces import Trace, as_list, axis_layout, base_layout, called, scatter, slices_view
from orchestrator.phases.draw.png_points import MOST_GROUPS, group_colour
from orchestrator.phases.points import PointFigure, PointGroup, position
from orchestrator.phases.text import INK, named, number, on_page


def write_points_page(figure: PointFigure, path: Path) -> None:
    """Write the page; hovering over a point shows its setting, both intervals and n."""
    traces: list[Trace] = []
    for g, group in enumerate(figure.groups):
        traces += _traces(figure, group, group_colour(g, len(figure.groups)), legend=len(figure.groups) <= MOST_GROUPS)
    up: dict[str, Any] = {
        "title": {"text": on_page(named(figure.y_name))},
        "gridcolor": "#E6E6E6",
        "zeroline": figure.zero,
    }
    layout = base_layout() | {
        "xaxis": axis_layout(figure.x_scale),
        "yaxis": up | {"type": "log" if figure.y_log else "linear"},
    }
    numbers = [("", line) for line in figure.lines]
    write_page(path, figure.title, figure.lines[0], [slices_view("all", [("", traces, layout)])], numbers=numbers)


def _traces(figure: PointFigure, group: PointGroup, colour: str, *, legend: bool) -> list[Trace]:
    u = position(figure.x_scale, group.x)
    texts = [_text(figure, group, p) for p in range(len(u))]
    half = {"type": "data", "symmetric": False, "color": colour, "thickness": 1, "width": 0}
    bars = {"array": as_list(group.high - group.y), "arrayminus": as_list(group.y - group.low)}
    style = {"line": {"color": colour, "width": 1.5}, "marker": {"size": 6, "color": colour}}
    shown = {"text": texts, "hovertemplate": "%{text}<extra></extra>", "error_y": half | bars}
    traces = [scatter("lines+markers", u, group.y, group.title if legend else "", **style, **shown)]
    if group.marked.any():
        ring = {"symbol": "circle-open", "size": 13, "color": INK, "line": {"width": 1.5}}
        at = u[group.marked], group.y[group.marked]
        traces.append(scatter("markers", *at, figure.mark, marker=ring))
    return traces


def _text(figure: PointFigure, group: PointGroup, p: int) -> str:
    codes = figure.diagram.codes[group.cells[p]]
    lines = [
        f"<b>{called(axis.name)}</b> {axis.text(int(c))}" for axis, c in zip(figure.diagram.axes, codes, strict=True)
    ]
    for name, value, low, high in (
        (figure.x_name, group.x[p], group.x_low[p], group.x_high[p]),
        (figure.y_name, group.y[p], group.low[p], group.high[p]),
    ):
        interval = f" [{number(float(low))}, {number(float(high))}]" if np.isfinite(low) and high > low else ""
        lines.append(f"{called(name)}: {number(float(value))}{interval}")
    return "<br>".join([*lines, f"n = {group.count[p]}"])

"""The interactive picture's plotly traces, as plain data, and the texts that hovering shows.

A trace's `meta` says which text list of the page it shows, so that a text is kept once for all views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.diagram import CellValues, PhaseDiagram
from orchestrator.phases.layout import BOUNDARY, Panel, along, boundary_of, grid_of, markers, mesh_of, value_range
from orchestrator.phases.scale import AxisScale, round_values
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import (
    INK,
    LINE_STYLES,
    MARKER_PLOTLY_DASHES,
    NOT_REACHED,
    SOFT,
    label_colour,
    named,
    number,
    on_page,
)
from orchestrator.phases.theory.overlay import COLOURS, MEAN, Overlay, caption

Trace = dict[str, Any]
Floats = NDArray[np.float64]
_RUNS_SHOWN = 4
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def scatter(mode: str, x: Floats, y: Floats, name: str = "", **more: Any) -> Trace:
    """Points or a line; in the legend if it has a name, without text on hovering unless `more` gives one."""
    silent = {} if "hovertemplate" in more or "hoverinfo" in more else {"hoverinfo": "skip"}
    trace: Trace = {"type": "scatter", "mode": mode, "x": as_list(x), "y": as_list(y), "name": name}
    return trace | {"showlegend": bool(name)} | silent | more


def polylines(lines: Sequence[Floats], name: str, colour: str, width: float, dash: str = "solid") -> Trace:
    """Several lines of (P, 2) points as one trace, with gaps between; in the legend even if there are none."""
    gap = np.full((1, 2), np.nan)
    points = np.concatenate([part for line in lines for part in (line, gap)] or [gap])
    return scatter("lines", points[:, 0], points[:, 1], name, line={"color": colour, "width": width, "dash": dash})


def hover(cells: Any) -> Trace:
    """Shows the texts of cells (`hover_texts`) on hovering: one per point, nested like the values of the trace."""
    return {"meta": {"texts": "cells", "cells": cells}, "hovertemplate": "%{text}<extra></extra>"}


def legend_entry(name: str, colour: str) -> Trace:
    """A legend entry without anything drawn."""
    nowhere = np.full(1, np.nan)
    return scatter("markers", nowhere, nowhere, name, marker={"symbol": "square", "size": 13, "color": colour})


def as_list(values: NDArray[Any]) -> list[float | None]:
    """As JSON can hold it: NaN and infinity become null."""
    return [float(v) if np.isfinite(v) else None for v in values]


def stepped(colours: Sequence[str]) -> list[tuple[float, str]]:
    """A colour scale with one step for each colour."""
    return [(edge / len(colours), colour) for i, colour in enumerate(colours) for edge in (i, i + 1)]


def hover_texts(diagram: PhaseDiagram, table: TrialTable, shown: Sequence[str]) -> list[str]:
    """(C,) the text shown when hovering over a cell: parameters, phase counts, medians of `shown` and run ids."""
    order = np.argsort(diagram.cell, kind="stable")
    start = np.searchsorted(diagram.cell[order], np.arange(len(diagram.codes)))
    many = np.bincount(diagram.cell, minlength=len(diagram.codes))
    observed = [(name, values) for name, values in diagram.observations.items() if name in shown]
    texts = []
    for c in range(len(diagram.codes)):
        rows = order[start[c] : start[c] + many[c]]
        lines = [
            f"<b>{called(axis.name)}</b> {_safe(axis.text(int(diagram.codes[c, a])))}"
            + ("" if diagram.joined == 1 or not axis.numeric else " and beside")
            for a, axis in enumerate(diagram.axes)
        ]
        for partner in (p for partners in diagram.partners.values() for p in partners):
            lines.append(f"<b>{called(partner)}</b> {_safe(str(table.params[partner][rows[0]]))}")
        counts = [
            (int(n), called(label, label)) for label, n in zip(diagram.labels, diagram.counts[c], strict=True) if n
        ]
        counts += [(int(diagram.failed[c]), "failed")] * bool(diagram.failed[c])
        counts += [(int(diagram.missing[c]), "missing")] * bool(diagram.missing[c])
        lines.append(", ".join(f"{n} × {label}" for n, label in sorted(counts, key=lambda item: -item[0])))
        for name, values in observed:
            lines.append(f"{called(name)}: {_median_text(values, c)}")
        ids = [run for row in rows[: _RUNS_SHOWN + 1] if (run := table.run_id[row]) is not None]
        if ids:
            more = f" and {many[c] - _RUNS_SHOWN} more" if many[c] > _RUNS_SHOWN else ""
            lines.append(f"<span style='color:#999'>run {', '.join(map(_safe, ids[:_RUNS_SHOWN]))}{more}</span>")
        texts.append("<br>".join(lines))
    return texts


def _median_text(values: CellValues, c: int) -> str:
    reached, censored, odd = int(values.reached[c]), int(values.censored[c]), int(values.not_finite[c])
    if not reached + censored + odd:
        return "none"
    median = values.median[c]
    text = f"median {number(float(median))}" if np.isfinite(median) else "median not reached"
    if np.isfinite(values.to[c]):
        text += f", in ({number(float(values.above[c]))}, {number(float(values.to[c]))}]"
    if reached and values.is_open[c]:
        text += f" (from {number(float(values.least[c]))})"
    elif reached > 1 and values.low[c] < values.high[c]:
        text += f" ({number(float(values.low[c]))} to {number(float(values.high[c]))})"
    if censored:
        text += f"; {censored} of {reached + censored + odd} not reached within {number(float(values.bound[c]))}"
    return text + (f"; {odd} not finite" if odd else "")


def called(name: str, otherwise: str | None = None) -> str:
    """What the page calls an axis, observation or phase when hovering."""
    return on_page(_safe(named(name, otherwise)))


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def label_traces(diagram: PhaseDiagram, panel: Panel, x: int, y: int | None, theory: Overlay | None) -> list[Trace]:
    """The label map of one panel: colours, holes, cells whose replicates disagree, boundaries, legend."""
    cells, majority = panel.cells, diagram.majority
    grid = grid_of(diagram, panel, x, y)
    traces: list[Trace] = []
    if grid is None:
        colours = [label_colour(int(majority[c])) if majority[c] >= 0 else "#FFFFFF" for c in cells]
        traces += _points(diagram, cells, x, y, color=colours)
    else:
        count = len(diagram.labels)
        scale = stepped([label_colour(i) for i in range(count)])
        shown = {"colorscale": scale, "zmin": -0.5, "zmax": count - 0.5, "showscale": False}
        traces.append(_heat(diagram, grid, x, y, np.where(majority < 0, np.nan, majority)) | shown)
    traces += _holes(diagram, panel, x, y)
    if diagram.joined == 1:
        split = cells[diagram.runner_up[cells] >= 0]
        traces += _marks(diagram, split, x, y, "replicates disagree", symbol="diamond-open", size=6, line={"width": 1})
    if grid is not None and y is not None:
        if lines := boundary_of(diagram, panel, x, y):
            traces.append(polylines(lines, BOUNDARY, INK, 1.6))
        predicted = theory.map_of(diagram, panel, x, y) if theory is not None else None
        if predicted is not None:
            text = caption(predicted.compared, predicted.differ)
            traces.append(polylines(predicted.lines, text, COLOURS[0], 2.2, "dash"))
    return traces + phase_entries(diagram)


def phase_entries(diagram: PhaseDiagram) -> list[Trace]:
    """Legend entries of the labels that occur."""
    return [legend_entry(on_page(named(diagram.labels[i], diagram.labels[i])), label_colour(i)) for i in diagram.used]


def value_traces(diagram: PhaseDiagram, panel: Panel, x: int, y: int | None, name: str) -> list[Trace]:
    """A heat map of an observation's median, grey where it was not reached."""
    values = diagram.observations[name]
    low, high, log = value_range(name, values.median)
    bar: dict[str, Any] = {"title": {"text": on_page(named(name)), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    z = np.where(np.isfinite(values.median), values.median, np.nan)
    if log:
        at = round_values(low, high, 7, log=True)
        bar |= {"tickvals": [math.log10(v) for v in at], "ticktext": [number(v) for v in at]}
        low, high, z = math.log10(low), math.log10(high), np.log10(z)
    scale = {"colorscale": "Viridis", "showscale": True, "colorbar": bar}
    grid = grid_of(diagram, panel, x, y)
    unreached = panel.cells[values.not_reached[panel.cells]]
    if grid is None:
        shown = panel.cells[np.isfinite(z[panel.cells])]
        points = _points(diagram, shown, x, y, color=as_list(z[shown]), cmin=low, cmax=high, **scale)
        grey = {"symbol": "circle", "size": 8, "color": NOT_REACHED, "line": {"width": 1}}
        return points + _marks(diagram, unreached, x, y, "not reached", **grey)
    traces = [_heat(diagram, grid, x, y, z) | scale | {"zmin": low, "zmax": high}]
    if len(unreached):
        flat = np.where(values.not_reached, 1.0, np.nan)
        grey = {"colorscale": stepped([NOT_REACHED]), "showscale": False}
        traces.append(_heat(diagram, grid, x, y, flat) | grey)
        traces.append(legend_entry("median not reached", NOT_REACHED))
    return traces + _holes(diagram, panel, x, y)


def line_traces(
    diagram: PhaseDiagram,
    panel: Panel,
    names: Sequence[str],
    x: int,
    metrics: Mapping[str, float],
    theory: Overlay | None,
    top: float,
) -> list[Trace]:
    """Medians along x with the replicates' range, theory dashed; the phases as coloured bars below.

    A range that has no upper end is drawn up to `top`.
    """
    axis = diagram.axes[x]
    cells, u, placed = along(diagram, panel, x)
    traces: list[Trace] = []
    for k, name in enumerate(names):
        values = diagram.observations[name].of(cells)
        colour, dash, _ = LINE_STYLES[k % len(LINE_STYLES)]
        some = np.isfinite(values.least) & placed
        if diagram.replicates > 1 and some.any():
            outline = np.concatenate([u[some], u[some][::-1]])
            high = np.where(values.is_open, top, values.high)
            edge = np.concatenate([values.least[some], high[some][::-1]])
            fill = {"fill": "toself", "fillcolor": colour, "opacity": 0.16, "line": {"width": 0}}
            text = f"{on_page(named(name))}: range" + ", no upper end if not reached" * bool(values.is_open.any())
            traces.append(scatter("lines", outline, edge, text, **fill))
        style = {"line": {"color": colour, "dash": _DASHES[dash], "width": 2}, "marker": {"size": 6}}
        style |= _between_reports(values)
        traces.append(
            scatter("lines+markers", u, values.median, on_page(named(name)), **style, **hover(cells.tolist()))
        )
        off = values.not_reached & (values.censored > 0)
        if off.any():
            open_mark = {"symbol": "triangle-up-open", "size": 9, "color": colour}
            text, on_hover = f"{on_page(named(name))}: lower bound, not reached", hover(cells[off].tolist())
            traces.append(scatter("markers", u[off], values.bound[off], text, marker=open_mark, **on_hover))
    for k, name in enumerate(names):
        if theory is not None and name in theory.lines:
            label = theory.lines[name].label(name, len(names) > 1)
            traces += _theory_line(theory, name, label, u, cells, COLOURS[k % len(COLOURS)])
    for k, mark in enumerate(markers(metrics, axis, panel)):
        line = {"color": SOFT, "width": 1.5, "dash": MARKER_PLOTLY_DASHES[k % len(MARKER_PLOTLY_DASHES)]}
        ends = np.full(2, mark.position), np.array([0.0, 1.0])
        traces.append(scatter("lines", *ends, mark.text, yaxis="y3", line=line))
    left, right = axis.low[diagram.codes[cells, x]], axis.high[diagram.codes[cells, x]]
    colours = [label_colour(int(i)) if i >= 0 else "#FFFFFF" for i in diagram.majority[cells]]
    bars: Trace = {"type": "bar", "x": as_list(left), "y": [1] * len(u), "width": as_list(right - left), "offset": 0}
    bars |= {"yaxis": "y2", "showlegend": False, "name": "phase", "textposition": "none"}
    bars |= {"marker": {"color": colours, "line": {"width": 0}}} | hover(cells.tolist())
    return [*traces, bars, *phase_entries(diagram)]


def _between_reports(values: CellValues) -> dict[str, Any]:
    """Error bars of medians that are known to lie between two reports; none where there are no such medians."""
    up, down = (as_list(np.nan_to_num(side)) for side in (values.to - values.median, values.median - values.above))
    if not any(up) and not any(down):
        return {}
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2, "width": 3}
    return {"error_y": bars}


def _theory_line(
    theory: Overlay, name: str, label: str, u: Floats, cells: NDArray[np.int64], colour: str
) -> list[Trace]:
    """What theory predicts, and the measured means if means are predicted."""
    line = theory.lines[name]
    value, mean, error = line.value[cells], line.mean[cells], line.mean_error[cells]
    if not np.isfinite(value).any():
        return []
    style = {"color": colour, "dash": "dash", "width": 2.2}
    text = "theory: %{y:.4g}<extra></extra>"
    traces = [scatter("lines", u, value, label, line=style, connectgaps=False, hovertemplate=text)]
    if (some := np.isfinite(error)).any():
        marker = {"symbol": "diamond-open", "size": 7, "color": colour}
        bars = {"type": "data", "array": as_list(error[some]), "color": colour, "thickness": 1.2, "width": 0}
        more = {"error_y": bars, "hovertemplate": "mean %{y:.4g}<extra></extra>"}
        traces.append(scatter("markers", u[some], mean[some], MEAN, marker=marker, **more))
    return traces


def _heat(diagram: PhaseDiagram, grid: NDArray[np.int64], x: int, y: int | None, z: NDArray[Any]) -> Trace:
    edges_x, edges_y, cells = mesh_of(diagram, grid, x, y)
    padded = np.append(z.astype(np.float64), np.nan)
    trace: Trace = {"type": "heatmap", "x": as_list(edges_x), "y": as_list(edges_y), "name": "", "hoverongaps": False}
    return trace | {"z": [as_list(row) for row in padded[cells]]} | hover(cells.tolist())


def _points(diagram: PhaseDiagram, cells: NDArray[np.int64], x: int, y: int | None, **marker: Any) -> list[Trace]:
    size = float(np.clip(260 / max(len(cells), 1) ** 0.5, 3, 11))
    return _marks(diagram, cells, x, y, "", size=size, line={"width": 0.5, "color": "white"}, **marker)


def _holes(diagram: PhaseDiagram, panel: Panel, x: int, y: int | None) -> list[Trace]:
    holes = panel.cells[diagram.majority[panel.cells] < 0]
    return _marks(diagram, holes, x, y, "no result", symbol="x-thin", size=8, line={"width": 1.2, "color": SOFT})


def _marks(
    diagram: PhaseDiagram, cells: NDArray[np.int64], x: int, y: int | None, name: str, **marker: Any
) -> list[Trace]:
    """A marker in each of these cells; none if there are none."""
    if not len(cells):
        return []
    u = diagram.axes[x].position[diagram.codes[cells, x]]
    v = np.full(len(cells), 0.5) if y is None else diagram.axes[y].position[diagram.codes[cells, y]]
    return [scatter("markers", u, v, name, marker={"color": INK} | marker, **hover(cells.tolist()))]


def axis_layout(axis: AxisScale) -> dict[str, Any]:
    """An axis of the plot; its ticks are in values although its coordinate is the drawing position."""
    at, texts = axis.ticks(9)
    shown = {
        "title": {"text": on_page(named(axis.name, axis.label))},
        "range": list(axis.span),
        "tickvals": at,
        "ticktext": texts,
    }
    lines = {"zeroline": False, "showgrid": False, "showline": True, "linecolor": SOFT, "tickcolor": SOFT}
    return shown | lines | {"ticks": "outside"}


def base_layout() -> dict[str, Any]:
    """What all plots share."""
    legend = {"x": 1.02, "y": 1, "xanchor": "left", "itemclick": False, "itemdoubleclick": False}
    label = {"bgcolor": "white", "bordercolor": "#999", "align": "left", "font": {"color": INK}}
    return {
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 80, "r": 20, "t": 34, "b": 60},
        "autosize": True,
        "legend": legend,
        "hoverlabel": label,
        "hovermode": "closest",
        "showlegend": True,
    }


def map_layout(x: AxisScale, y: AxisScale | None) -> dict[str, Any]:
    """The layout of a map; without y, of one row."""
    upright = {"visible": False, "range": [0, 1]} if y is None else axis_layout(y)
    base = base_layout()
    # The colour bar stands at the right edge of the plot; the legend goes below it all.
    legend = base["legend"] | {"orientation": "h", "x": 0, "y": -0.16, "xanchor": "left", "yanchor": "top"}
    return base | {"xaxis": axis_layout(x), "yaxis": upright, "legend": legend}


def slices_view(
    name: str,
    slices: Sequence[tuple[str, list[Trace], dict[str, Any]]],
    where: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """A view of the page: its slices are given by title, traces and layout.

    With `where`, the values (axis -> text) of the axes that each slice fixes, the page has a slider for each of them.
    """
    made = [{"title": t, "traces": traces, "layout": layout} for t, traces, layout in slices]
    for one, fixed in zip(made, where, strict=bool(where)):
        one["where"] = dict(fixed)
    return {"name": name, "slices": made}

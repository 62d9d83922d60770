"""The interactive picture's plotly traces, as plain data, and the texts that hovering shows.

A trace's `meta` says which text list of the page it shows, so that a text is kept once for all views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.layout import Panel, grid_of, markers, spread_out, wants_log
from orchestrator.phases.map.contour import boundary
from orchestrator.phases.scale import AxisScale, log_ticks
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import (
    INK,
    LINE_STYLES,
    MARKER_PLOTLY_DASHES,
    NOT_REACHED,
    SOFT,
    label_colour,
    number,
    words,
)
from orchestrator.phases.theory.overlay import COLOURS, MEAN, Overlay, TheoryLine, caption

Trace = dict[str, Any]
_RUNS_SHOWN = 4


def hover_texts(diagram: PhaseDiagram, table: TrialTable, shown: Sequence[str]) -> list[str]:
    """(C,) what hovering over a cell tells: its parameters, phase counts, medians of `shown` and run ids."""
    order = np.argsort(diagram.cell, kind="stable")
    start = np.searchsorted(diagram.cell[order], np.arange(len(diagram.codes)))
    many = np.bincount(diagram.cell, minlength=len(diagram.codes))
    runs = [(name, shown_at) for name, shown_at in diagram.observations.items() if name in shown]
    texts = []
    for c in range(len(diagram.codes)):
        rows = order[start[c] : start[c] + many[c]]
        lines = [
            f"<b>{_safe(words(axis.name))}</b> {_safe(axis.text(int(diagram.codes[c, a])))}"
            + ("" if diagram.joined == 1 or not axis.numeric else " and beside")
            for a, axis in enumerate(diagram.axes)
        ]
        for partner in (p for partners in diagram.partners.values() for p in partners):
            lines.append(f"<b>{_safe(words(partner))}</b> {_safe(str(table.params[partner][rows[0]]))}")
        counts = [(int(n), diagram.labels[i]) for i, n in enumerate(diagram.counts[c]) if n]
        counts += [(int(diagram.failed[c]), "failed")] * bool(diagram.failed[c])
        counts += [(int(diagram.missing[c]), "missing")] * bool(diagram.missing[c])
        lines.append(", ".join(f"{n} × {_safe(label)}" for n, label in sorted(counts, key=lambda item: -item[0])))
        for name, values in runs:
            lines.append(f"{_safe(words(name))}: {_median_text(values, c)}")
        ids = [run for row in rows[: _RUNS_SHOWN + 1] if (run := table.run_id[row]) is not None]
        if ids:
            more = f" and {many[c] - _RUNS_SHOWN} more" if many[c] > _RUNS_SHOWN else ""
            lines.append(f"<span style='color:#999'>run {', '.join(map(_safe, ids[:_RUNS_SHOWN]))}{more}</span>")
        texts.append("<br>".join(lines))
    return texts


def _median_text(values: Any, c: int) -> str:
    reached, censored, odd = int(values.reached[c]), int(values.censored[c]), int(values.not_finite[c])
    if not reached + censored + odd:
        return "none"
    median = values.median[c]
    text = f"median {number(float(median))}" if np.isfinite(median) else "median not reached"
    if reached > 1 and values.low[c] < values.high[c]:
        text += f" ({number(float(values.low[c]))} to {number(float(values.high[c]))})"
    if censored:
        text += f"; {censored} of {reached + censored + odd} not reached by {number(float(values.bound[c]))}"
    return text + (f"; {odd} not finite" if odd else "")


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def label_traces(
    diagram: PhaseDiagram, panel: Panel, x: int, y: int | None, texts: str, theory: Overlay | None = None
) -> list[Trace]:
    """The label map of one panel: colours, holes, cells whose replicates disagree, boundaries, legend."""
    cells = panel.cells
    majority = diagram.majority
    total = diagram.counts.sum(axis=0)
    used = [i for i in range(len(diagram.labels)) if total[i]]
    traces: list[Trace] = []
    grid = _grid(diagram, panel, x, y)
    if grid is None:
        traces += _points(
            diagram, cells, x, y, [label_colour(int(i)) if i >= 0 else "#FFFFFF" for i in majority], texts
        )
    else:
        count = len(diagram.labels)
        colours = [
            [edge / count, label_colour(i)] for i in range(count) for edge in (i, i + 1)
        ]  # Two entries per label: a stepped scale.
        traces.append(
            _heat(diagram, grid, x, y, np.where(majority < 0, np.nan, majority), texts)
            | {"colorscale": colours, "zmin": -0.5, "zmax": count - 0.5, "showscale": False}
        )
    traces += _marks(diagram, cells[majority[cells] < 0], x, y, "no result", {"symbol": "x-thin", "size": 8}, texts)
    if diagram.joined == 1:
        split = cells[diagram.runner_up[cells] >= 0]
        traces += _marks(diagram, split, x, y, "replicates disagree", {"symbol": "diamond-open", "size": 6}, texts)
    if grid is not None and y is not None:
        share = np.where(grid[:, :, None] < 0, np.nan, diagram.share[grid])
        drawn = boundary(diagram.axes[x], diagram.axes[y], share)
        if drawn:
            traces.append(_polylines(drawn, "boundary (share 1/2)", {"color": INK, "width": 1.6}))
        told = theory.map_of(diagram, panel, x, y) if theory is not None else None
        if told is not None:
            style = {"color": COLOURS[0], "width": 2.2, "dash": "dash"}
            traces.append(_polylines(told.lines, caption(told.compared, told.differ), style))
    for i in used:
        traces.append(_legend_entry(diagram.labels[i], label_colour(i)))
    return traces


def _polylines(lines: Sequence[NDArray[np.float64]], name: str, style: dict[str, Any]) -> Trace:
    across: list[float | None] = []
    up: list[float | None] = []
    for line in lines:
        across += [*map(float, line[:, 0]), None]
        up += [*map(float, line[:, 1]), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": across or [None],
        "y": up or [None],
        "line": style,
        "hoverinfo": "skip",
        "name": name,
        "showlegend": True,
    }


def value_traces(diagram: PhaseDiagram, panel: Panel, x: int, y: int | None, name: str, texts: str) -> list[Trace]:
    """A heat map of an observation's median; what was not reached is grey."""
    values = diagram.observations[name]
    median = values.median
    log = wants_log(name, median)
    finite = median[np.isfinite(median)]
    z = np.log10(np.where(np.isfinite(median), median, np.nan)) if log else median
    low, high = (float(np.nanmin(z)), float(np.nanmax(z))) if len(finite) else (0.0, 1.0)
    bar: dict[str, Any] = {"title": {"text": words(name), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    if log:
        at = log_ticks(low, high, 7)
        bar |= {"tickvals": [math.log10(v) for v in at], "ticktext": [number(v) for v in at]}
    traces: list[Trace] = []
    grid = _grid(diagram, panel, x, y)
    scale = {"colorscale": "Viridis", "showscale": True, "colorbar": bar}
    if grid is None:
        shown = panel.cells[np.isfinite(z[panel.cells])]
        made = _points(diagram, shown, x, y, [], texts)
        for trace in made:
            trace["marker"] |= scale | {"color": _list(z[shown]), "cmin": low, "cmax": high}
        traces += made
        off = panel.cells[values.not_reached[panel.cells]]
        traces += _marks(
            diagram, off, x, y, "not reached", {"symbol": "circle", "size": 8, "color": NOT_REACHED}, texts
        )
        return traces
    traces.append(_heat(diagram, grid, x, y, z, texts) | scale | {"zmin": low, "zmax": high})
    if values.not_reached[panel.cells].any():
        flat = np.where(values.not_reached, 1.0, np.nan)
        grey = [[0, NOT_REACHED], [1, NOT_REACHED]]
        traces.append(_heat(diagram, grid, x, y, flat, texts) | {"colorscale": grey, "showscale": False})
        traces.append(_legend_entry("not reached by the median replicate", NOT_REACHED))
    holes = panel.cells[diagram.majority[panel.cells] < 0]
    return traces + _marks(diagram, holes, x, y, "no result", {"symbol": "x-thin", "size": 8}, texts)


def line_traces(
    diagram: PhaseDiagram,
    panel: Panel,
    x: int,
    names: Sequence[str],
    metrics: Mapping[str, float],
    texts: str,
    theory: Overlay | None = None,
) -> list[Trace]:
    """Medians along x with the replicates' range, theory dashed; the phases as coloured squares below."""
    axis = diagram.axes[x]
    cells = panel.cells[np.argsort(diagram.codes[panel.cells, x])]
    u = axis.position[diagram.codes[cells, x]]
    at = [int(c) for c in cells]
    traces: list[Trace] = []
    for k, name in enumerate(names):
        values = diagram.observations[name]
        colour, dash, _ = LINE_STYLES[k % len(LINE_STYLES)]
        dashes = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
        if (values.high[cells] > values.low[cells]).any():
            some = np.isfinite(values.low[cells]) & (diagram.codes[cells, x] >= axis.special)
            traces.append(
                {
                    "type": "scatter",
                    "x": _list(np.concatenate([u[some], u[some][::-1]])),
                    "y": _list(np.concatenate([values.low[cells][some], values.high[cells][some][::-1]])),
                    "fill": "toself",
                    "fillcolor": colour,
                    "opacity": 0.16,
                    "line": {"width": 0},
                    "mode": "lines",
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "name": f"{words(name)}: range",
                }
            )
        traces.append(
            {
                "type": "scatter",
                "x": _list(u),
                "y": _list(values.median[cells]),
                "mode": "lines+markers",
                "line": {"color": colour, "dash": dashes[dash], "width": 2},
                "marker": {"size": 6},
                "name": words(name),
                "meta": {"texts": texts, "cells": at},
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
        off = values.not_reached[cells] & (values.censored[cells] > 0)
        if off.any():
            traces.append(
                {
                    "type": "scatter",
                    "x": _list(u[off]),
                    "y": _list(values.bound[cells][off]),
                    "mode": "markers",
                    "marker": {"symbol": "triangle-up-open", "size": 9, "color": colour},
                    "name": f"{words(name)}: not reached by",
                    "meta": {"texts": texts, "cells": [int(c) for c in cells[off]]},
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    for k, name in enumerate(names):
        told = theory.lines.get(name) if theory is not None else None
        if told is not None and np.isfinite(told.value[cells]).any():
            traces.append(
                {
                    "type": "scatter",
                    "x": _list(u),
                    "y": _list(told.value[cells]),
                    "mode": "lines",
                    "line": {"color": COLOURS[k % len(COLOURS)], "dash": "dash", "width": 2.2},
                    "connectgaps": False,
                    "name": told.label(name, len(names) > 1),
                    "hovertemplate": "theory: %{y:.4g}<extra></extra>",
                }
            )
            traces += _means(told, u, cells, COLOURS[k % len(COLOURS)])
    for k, mark in enumerate(markers(metrics, axis, panel)):
        place = axis.to_position(mark.value)
        if place is not None:
            traces.append(
                {
                    "type": "scatter",
                    "x": [place, place],
                    "y": [0, 1],
                    "yaxis": "y3",
                    "mode": "lines",
                    "hoverinfo": "skip",
                    "line": {"color": SOFT, "width": 1.5, "dash": MARKER_PLOTLY_DASHES[k % len(MARKER_PLOTLY_DASHES)]},
                    "name": f"{mark.name}: {number(mark.value)}",
                }
            )
    colours = [label_colour(int(i)) if i >= 0 else "#FFFFFF" for i in diagram.majority[cells]]
    traces.append(
        {
            "type": "bar",
            "x": _list(axis.low[diagram.codes[cells, x]]),
            "y": [1] * len(u),
            "offset": 0,
            "yaxis": "y2",
            "showlegend": False,
            "name": "phase",
            "width": _list(axis.high[diagram.codes[cells, x]] - axis.low[diagram.codes[cells, x]]),
            "marker": {"color": colours, "line": {"width": 0}},
            "meta": {"texts": texts, "cells": at},
            "hovertemplate": "%{text}<extra></extra>",
            "textposition": "none",
        }
    )
    total = diagram.counts.sum(axis=0)
    return traces + [_legend_entry(diagram.labels[i], label_colour(i)) for i in range(len(total)) if total[i]]


def _means(told: TheoryLine, u: NDArray[np.float64], cells: NDArray[np.int64], colour: str) -> list[Trace]:
    some = np.isfinite(told.mean_error[cells])
    if not some.any():
        return []
    error = {"type": "data", "array": _list(told.mean_error[cells][some]), "color": colour, "thickness": 1.2}
    return [
        {
            "type": "scatter",
            "x": _list(u[some]),
            "y": _list(told.mean[cells][some]),
            "mode": "markers",
            "marker": {"symbol": "diamond-open", "size": 7, "color": colour},
            "error_y": error | {"width": 0},
            "name": MEAN,
            "hovertemplate": "mean %{y:.4g}<extra></extra>",
        }
    ]


def _grid(diagram: PhaseDiagram, panel: Panel, x: int, y: int | None) -> NDArray[np.int64] | None:
    if y is not None:
        return grid_of(diagram, panel, x, y)
    row = np.full((len(diagram.axes[x].values), 1), -1, dtype=np.int64)
    row[diagram.codes[panel.cells, x], 0] = panel.cells
    return row


def _heat(diagram: PhaseDiagram, grid: NDArray[np.int64], x: int, y: int | None, z: NDArray[Any], texts: str) -> Trace:
    wide = spread_out(diagram.axes[x], grid)
    full = wide if y is None else spread_out(diagram.axes[y], wide.T).T
    padded = np.append(z.astype(np.float64), np.nan)
    edges_y = [0.0, 1.0] if y is None else _list(diagram.axes[y].edges()[0])
    return {
        "type": "heatmap",
        "x": _list(diagram.axes[x].edges()[0]),
        "y": edges_y,
        "z": [_list(row) for row in padded[full.T]],
        "xgap": 0,
        "ygap": 0,
        "hoverongaps": False,
        "meta": {"texts": texts, "cells": full.T.tolist()},
        "hovertemplate": "%{text}<extra></extra>",
        "name": "",
    }


def _points(
    diagram: PhaseDiagram, cells: NDArray[np.int64], x: int, y: int | None, colours: Sequence[str], texts: str
) -> list[Trace]:
    size = float(np.clip(260 / max(len(cells), 1) ** 0.5, 3, 11))
    mark: dict[str, Any] = {"size": size, "line": {"width": 0.5, "color": "white"}}
    return _marks(diagram, cells, x, y, "", mark | ({"color": [colours[c] for c in cells]} if colours else {}), texts)


def _marks(
    diagram: PhaseDiagram,
    cells: NDArray[np.int64],
    x: int,
    y: int | None,
    name: str,
    marker: dict[str, Any],
    texts: str,
) -> list[Trace]:
    if not len(cells):
        return []
    line = {"width": 1.2, "color": SOFT} if "thin" in str(marker.get("symbol")) else marker.get("line", {"width": 1})
    up = np.full(len(cells), 0.5) if y is None else diagram.axes[y].position[diagram.codes[cells, y]]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": _list(diagram.axes[x].position[diagram.codes[cells, x]]),
            "y": _list(up),
            "marker": {"color": INK} | marker | {"line": line},
            "name": name,
            "showlegend": bool(name),
            "meta": {"texts": texts, "cells": [int(c) for c in cells]},
            "hovertemplate": "%{text}<extra></extra>",
        }
    ]


def _legend_entry(name: str, colour: str) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "name": name,
        "hoverinfo": "skip",
        "marker": {"symbol": "square", "size": 13, "color": colour},
        "showlegend": True,
    }


def _list(values: NDArray[Any]) -> list[float | None]:
    """As JSON can hold it: NaN and infinity become null."""
    return [float(v) if np.isfinite(v) else None for v in values]


def axis_layout(axis: AxisScale) -> dict[str, Any]:
    """An axis of the plot, its ticks in values although its coordinate is the drawing position."""
    at, texts = axis.ticks(9)
    return {
        "title": {"text": axis.label},
        "range": list(axis.span),
        "tickvals": at,
        "ticktext": texts,
        "zeroline": False,
        "showgrid": False,
        "ticks": "outside",
        "tickcolor": SOFT,
        "linecolor": SOFT,
        "showline": True,
    }

"""The interactive picture's views that a classifier draws: the map, a ridge, and how the search went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.draw.html import base_layout
from orchestrator.phases.draw.html_traces import axis_layout
from orchestrator.phases.draw.png_ridge import held_text, ridge_field
from orchestrator.phases.draw.png_surface import MapPanel
from orchestrator.phases.map.boundary_data import ridge_lines
from orchestrator.phases.map.box import BoxAxis
from orchestrator.phases.map.progress_curve import ProgressCurve
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice
from orchestrator.phases.text import INK, SOFT, label_colour, words
from orchestrator.phases.theory.overlay import COLOURS
from orchestrator.phases.theory.plane import TheoryPlane, plane_caption
from orchestrator.surface.base import RidgeSurface

View = dict[str, Any]
_TINT, _BAND_TINT = 0.5, 0.2


def map_view(found: FittedMap, panels: Sequence[MapPanel], diagram: PhaseDiagram) -> View:
    """The map: a slice of the page for every panel. Hovering over a trial tells of its cell of `diagram`."""
    slices = []
    for panel in panels:
        plane = panel.plane
        traces = [_field(panel)]
        across, up = _broken([c.points for c in plane.lines], plane.x, plane.y)
        if across:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": across,
                    "y": up,
                    "line": {"color": INK, "width": 2.2},
                    "hoverinfo": "skip",
                    "name": "boundary (equal belief)",
                }
            )
        if panel.theory is not None:
            traces.append(_theory(panel.theory))
        cells = diagram.cell[panel.rows]
        for label in np.unique(panel.labels):
            here = panel.labels == label
            colour = label_colour(int(label)) if label >= 0 else "rgba(0,0,0,0)"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": _list(plane.x.drawn(plane.at[here, 0])),
                    "y": _list(plane.y.drawn(plane.at[here, 1])),
                    "showlegend": True,
                    "name": found.labels[label] if label >= 0 else "not reached: which side is open",
                    "marker": {
                        "size": float(np.clip(260 / max(len(plane.at), 1) ** 0.5, 3, 8)),
                        "color": colour,
                        "line": {"width": 0.8, "color": "white" if label >= 0 else INK},
                    },
                    "meta": {"texts": "cells", "cells": [int(c) for c in cells[here]]},
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
        if len(panel.failed):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": _list(plane.x.drawn(panel.failed[:, 0])),
                    "y": _list(plane.y.drawn(panel.failed[:, 1])),
                    "name": "failed",
                    "hoverinfo": "name",
                    "marker": {"symbol": "x-thin", "size": 8, "line": {"width": 1.4, "color": INK}},
                }
            )
        slices.append({"title": plane.title, "traces": traces, "layout": _layout(plane.x, plane.y)})
    return {"name": "phase, drawn by the classifier", "slices": slices}


def _theory(told: TheoryPlane) -> dict[str, Any]:
    """Where the predicted class changes; a legend entry where that is nowhere, too."""
    points = [point for line in told.lines for point in (*line.tolist(), (None, None))] or [(None, None)]
    across, up = zip(*points, strict=True)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(across),
        "y": list(up),
        "hoverinfo": "skip",
        "showlegend": True,
        "name": plane_caption([told]),
        "line": {"color": COLOURS[0], "width": 2.2, "dash": "dash"},
    }


def _field(panel: MapPanel) -> dict[str, Any]:
    """The leading class, paler in the band: two colours a class, as one stepped scale."""
    raster = panel.plane.raster
    stride = 2 if len(raster.belief) > 250 else 1
    label, band = raster.label[::stride, ::stride], raster.in_band[::stride, ::stride]
    count = 2 * raster.belief.shape[2]
    colours = [_tinted(label_colour(k), t) for k in range(count // 2) for t in (_TINT, _BAND_TINT)]
    steps = [[edge / count, colour] for i, colour in enumerate(colours) for edge in (i, i + 1)]
    at = raster.points[::stride]
    lead = np.rint(100 * raster.lead[::stride, ::stride]).astype(np.int64)
    return {
        "type": "heatmap",
        "x": _list(panel.plane.x.drawn(at)),
        "y": _list(panel.plane.y.drawn(at)),
        "z": (2 * label + band).T.tolist(),
        "zmin": -0.5,
        "zmax": count - 0.5,
        "colorscale": steps,
        "showscale": False,
        "customdata": lead.T.tolist(),
        "hovertemplate": "belief %{customdata}%<extra></extra>",
        "name": "",
    }


def ridge_view(found: Sequence[tuple[FittedSlice, RidgeSurface]], metric: str) -> View:
    """The expected metric as colour, the peak and its 90% band as lines."""
    slices = []
    for one, ridge in found:
        for line in ridge_lines(one, ridge):
            field = ridge_field(one, ridge, line)
            side = np.linspace(0, 1, len(field.mean))
            x, y = field.x, field.y
            traces: list[dict[str, Any]] = [
                {
                    "type": "heatmap",
                    "x": _list(x.drawn(side)),
                    "y": _list(y.drawn(side)),
                    "z": np.round(field.mean.T, 6).tolist(),
                    "colorscale": "Viridis",
                    "name": "",
                    "colorbar": {
                        "title": {"text": f"{words(metric)}, expected", "side": "right"},
                        "thickness": 14,
                        "outlinewidth": 0,
                    },
                    "hovertemplate": f"{words(metric)} %{{z}}<extra></extra>",
                },
                _curve(field.across, field.low, "its 90% band", 1.2, "dash"),
                _curve(field.across, field.high, "", 1.2, "dash"),
                _curve(field.across, field.middle, "peak (median)", 3, "solid"),
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": _list(x.drawn(one.evidence.x[:, field.over])),
                    "y": _list(y.drawn(one.evidence.x[:, ridge.along])),
                    "name": "trials",
                    "hoverinfo": "skip",
                    "marker": {"size": 5, "color": "white", "line": {"width": 1, "color": INK}},
                },
            ]
            slices.append({"title": held_text(line), "traces": traces, "layout": _layout(x, y)})
    return {"name": f"{words(metric)}, drawn by the surface", "slices": slices}


def progress_view(curve: ProgressCurve) -> View:
    """The uncertain area against trials spent."""
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [int(n) for n in curve.trials],
        "y": _list(curve.uncertain_area),
        "line": {"color": INK, "width": 2},
        "name": "uncertain area",
        "hovertemplate": "%{x} trials: %{y:.2%}<extra></extra>",
        "showlegend": False,
    }
    axis = {"type": "log", "zeroline": False, "gridcolor": "#E6E6E6", "linecolor": SOFT, "showline": True}
    title = "uncertain area" + (" (refitted afterwards)" if curve.refitted else "")
    layout = base_layout() | {
        "xaxis": axis | {"title": {"text": "trials spent"}, "dtick": "D2"},
        "yaxis": axis | {"title": {"text": title}, "tickformat": "~%", "dtick": "D2"},
    }
    return {"name": "uncertain area against trials", "slices": [{"title": "", "traces": [trace], "layout": layout}]}


def _curve(x: NDArray[np.float64], y: NDArray[np.float64], name: str, width: float, dash: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": _list(x),
        "y": _list(y),
        "name": name,
        "hoverinfo": "skip",
        "showlegend": bool(name),
        "line": {"color": "white", "width": width, "dash": dash},
    }


def _layout(x: BoxAxis, y: BoxAxis) -> dict[str, Any]:
    base = base_layout()
    legend = {"orientation": "h", "x": 0, "y": -0.16, "xanchor": "left", "yanchor": "top"}
    return base | {"xaxis": axis_layout(x.scale), "yaxis": axis_layout(y.scale), "legend": base["legend"] | legend}


def _broken(
    lines: Sequence[NDArray[np.float64]], x: BoxAxis, y: BoxAxis
) -> tuple[list[float | None], list[float | None]]:
    """Several polylines as one trace, with gaps between."""
    across: list[float | None] = []
    up: list[float | None] = []
    for line in lines:
        across += [*_list(x.drawn(line[:, 0])), None]
        up += [*_list(y.drawn(line[:, 1])), None]
    return across, up


def _list(values: NDArray[Any]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _tinted(colour: str, strength: float) -> str:
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * strength):02X}" for part in parts)

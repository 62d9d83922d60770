"""The interactive picture's views of a fitted map: its classes, a ridge, and how the search progressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.draw.html_traces import (
    Floats,
    Trace,
    as_list,
    base_layout,
    hover,
    map_layout,
    polylines,
    scatter,
    slices_view,
    stepped,
)
from orchestrator.phases.draw.panels import (
    BAND_TINT,
    BOUNDARY,
    GIVEN_SEEDS,
    OPEN,
    OVER_SEEDS,
    TINT,
    MapPanel,
    RidgePanel,
)
from orchestrator.phases.map.progress_curve import ProgressCurve
from orchestrator.phases.map.surface_map import FittedMap, Plane
from orchestrator.phases.text import INK, SOFT, label_colour, named, on_page, plain, tinted
from orchestrator.phases.theory.overlay import COLOURS
from orchestrator.phases.theory.plane import plane_caption


def map_view(fitted: FittedMap, panels: Sequence[MapPanel], diagram: PhaseDiagram) -> dict[str, Any]:
    """The map, with a slice for every panel; hovering over a trial shows the text of its cell of `diagram`."""
    slices = []
    for panel in panels:
        traces = [_field(panel)]
        if panel.pale.any():
            band = GIVEN_SEEDS if panel.plane.over_seeds is None else OVER_SEEDS
            square = {"symbol": "square", "size": 12, "color": "#E9E9E9"}
            nowhere = np.full(1, np.nan)
            traces.append(scatter("markers", nowhere, nowhere, f"{band} (paler)", marker=square))
        if panel.edges:
            traces.append(polylines(panel.edges, GIVEN_SEEDS, INK, 0.8, "dash"))
        if panel.lines:
            traces.append(polylines(panel.lines, BOUNDARY, INK, 2.2))
        if panel.theory is not None:
            traces.append(polylines(panel.theory.lines, plane_caption([panel.theory]), COLOURS[0], 2.2, "dash"))
        at, cells = panel.drawn(panel.plane.at), diagram.cell[panel.rows]
        size = float(np.clip(260 / max(len(at), 1) ** 0.5, 3, 8))
        for label in np.unique(panel.labels):
            here, known = panel.labels == label, label >= 0
            marker = {"size": size, "color": label_colour(int(label)) if known else "rgba(0,0,0,0)"}
            marker["line"] = {"width": 0.8, "color": "white" if known else INK}
            name = on_page(named(fitted.labels[label], fitted.labels[label])) if known else OPEN
            on_hover = hover(cells[here].tolist())
            traces.append(scatter("markers", at[here, 0], at[here, 1], name, marker=marker, **on_hover))
        if len(panel.failed):
            cross = {"symbol": "x-thin", "size": 8, "line": {"width": 1.4, "color": INK}}
            x, y = panel.drawn(panel.failed).T
            traces.append(scatter("markers", x, y, "failed", marker=cross, hoverinfo="name"))
        slices.append((_titled(panel.plane), traces, map_layout(panel.plane.x.scale, panel.plane.y.scale)))
    return slices_view("phase, drawn by the classifier", slices)


def _titled(panel: Plane | RidgePanel) -> str:
    return plain("  ·  ".join(filter(None, (panel.called, panel.shown))))


def _field(panel: MapPanel) -> Trace:
    """The leading class, paler in the wider band: two steps of a colour scale for each class."""
    raster = panel.plane.raster
    stride = 2 if len(raster.belief) > 250 else 1
    label, band = raster.label[::stride, ::stride], panel.pale[::stride, ::stride]
    count = raster.belief.shape[2]
    colours = [tinted(label_colour(k), tint) for k in range(count) for tint in (TINT, BAND_TINT)]
    at = raster.points[::stride]
    lead = np.rint(100 * raster.lead[::stride, ::stride]).astype(np.int64)
    field: Trace = {"type": "heatmap", "x": as_list(panel.plane.x.drawn(at)), "y": as_list(panel.plane.y.drawn(at))}
    scale = {"zmin": -0.5, "zmax": 2 * count - 0.5, "colorscale": stepped(colours), "showscale": False}
    text = {"customdata": lead.T.tolist(), "hovertemplate": "belief %{customdata}%<extra></extra>", "name": ""}
    return field | {"z": (2 * label + band).T.tolist()} | scale | text


def ridge_view(panels: Sequence[RidgePanel], metric: str) -> dict[str, Any]:
    """The expected metric as colour, the peak and its 90% band as lines."""
    title = {"text": f"{on_page(named(metric))}, expected", "side": "right"}
    bar = {"colorbar": {"title": title, "thickness": 14, "outlinewidth": 0}, "colorscale": "Viridis"}
    slices = []
    for panel in panels:
        side = np.linspace(0, 1, len(panel.mean))
        field: Trace = {"type": "heatmap", "x": as_list(panel.x.drawn(side)), "y": as_list(panel.y.drawn(side))}
        text = {"hovertemplate": f"{on_page(named(metric))} %{{z}}<extra></extra>", "name": ""}
        marker = {"size": 5, "color": "white", "line": {"width": 1, "color": INK}}
        traces = [
            field | {"z": np.round(panel.mean.T, 6).tolist()} | bar | text,
            _white(panel, panel.low, "its 90% band", 1.2, "dash"),
            _white(panel, panel.high, "", 1.2, "dash"),
            _white(panel, panel.middle, "peak (median)", 3, "solid"),
            scatter("markers", panel.trials[:, 0], panel.trials[:, 1], "trials", marker=marker),
        ]
        slices.append((_titled(panel), traces, map_layout(panel.x.scale, panel.y.scale)))
    return slices_view(f"{plain(named(metric))}, drawn by the surface", slices)


def _white(panel: RidgePanel, y: Floats, name: str, width: float, dash: str) -> Trace:
    return scatter("lines", panel.across, y, name, line={"color": "white", "width": width, "dash": dash})


def progress_view(curve: ProgressCurve) -> dict[str, Any]:
    """The uncertain area over trials."""
    line, text = {"color": INK, "width": 2}, "%{x} trials: %{y:.2%}<extra></extra>"
    spent = curve.trials.astype(np.float64)
    trace = scatter("lines+markers", spent, curve.uncertain_area, line=line, hovertemplate=text)
    axis = {"type": "log", "dtick": "D2", "zeroline": False, "gridcolor": "#E6E6E6", "showline": True}
    axis["linecolor"] = SOFT
    title = "uncertain area" + (" (refitted afterwards)" if curve.refitted else "")
    layout = base_layout() | {
        "xaxis": axis | {"title": {"text": "trials spent"}},
        "yaxis": axis | {"title": {"text": title}, "tickformat": "~%"},
    }
    return slices_view("uncertain area against trials", [("", [trace], layout)])

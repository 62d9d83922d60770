"""The still pictures of a fitted map: fields of classes or a ridge, the trials, and how the search progressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from orchestrator.phases.draw import png
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
from orchestrator.phases.map.box import BoxAxis
from orchestrator.phases.map.progress_curve import ProgressCurve
from orchestrator.phases.map.surface_map import FittedMap
from orchestrator.phases.text import INK, SOFT, label_colour, named, number, percent, plural, rgb
from orchestrator.phases.theory.overlay import COLOURS, DASH
from orchestrator.phases.theory.plane import plane_caption


def draw_surface(
    name: str,
    summary: str,
    fitted: FittedMap,
    panels: Sequence[MapPanel],
    curve: ProgressCurve | None,
    path: png.Output,
) -> None:
    """Draw a map of classes: a panel per plane, and beside a single one the uncertain area over trials.

    Args:
        name: of the sweep.
        summary: lines below it.
        fitted: the map.
        panels: what to draw, in order; at least one.
        curve: how the search progressed, if known.
        path: where it goes.
    """
    draw = [partial(draw_map_panel, panel=panel) for panel in panels]
    handles = _map_handles(fitted, panels[: png.MOST_PANELS])
    _write(name, summary, draw, (6.0, 4.6), (4.3, 3.6), handles, 3, curve, path)


def draw_ridges(
    name: str, summary: str, metric: str, panels: Sequence[RidgePanel], curve: ProgressCurve | None, path: png.Output
) -> None:
    """Draw ridges: the expected metric as colour, the peak as a line with its 90% band, the trials.

    Args:
        name: of the sweep.
        summary: lines below it.
        metric: what peaks.
        panels: what to draw, in order; at least one.
        curve: how the search progressed, if known.
        path: where it goes.
    """
    draw = [partial(draw_ridge, panel=panel, metric=metric) for panel in panels]
    handles = [
        png.stroke("peak (median)", "white", linewidth=2, path_effects=_outline()),
        png.swatch("its 90% band", "white", alpha=0.5, edgecolor=INK, linewidth=0.5),
        png.symbol("trials", "o", "white", INK, 5),
    ]
    _write(name, summary, draw, (6.4, 4.6), (4.5, 3.6), handles, 4, curve, path)


def draw_progress(name: str, curve: ProgressCurve, path: png.Output) -> None:
    """Draw the uncertain area over trials."""
    last = f"{percent(float(curve.uncertain_area[-1]))} after {plural(int(curve.trials[-1]), 'trial')}"
    with png.figure(path, name, last, (6.4, 4.6)) as fig:
        _draw_progress(fig.add_subplot(), curve)


def _write(
    name: str,
    summary: str,
    panels: Sequence[Callable[[Any], None]],
    single: tuple[float, float],
    several: tuple[float, float],
    handles: Sequence[Any],
    per_row: int,
    curve: ProgressCurve | None,
    path: png.Output,
) -> None:
    """Write panels of a size in inches (`single`: if there is one only), the curve beside a single one, the legend."""
    left_out, panels = max(len(panels) - png.MOST_PANELS, 0), panels[: png.MOST_PANELS]
    if left_out:
        summary += f"  ·  {plural(left_out, 'more slice')} in the HTML"
    beside = curve is not None and len(panels) == 1 and not png.on_page()
    across = png.columns_for(len(panels))
    rows = -(-len(panels) // across)
    per_row = per_row if across + beside < 3 else 4
    width, height = single if len(panels) == 1 else several
    widths = [width] * across + [3.9] * beside
    heights = [height] * rows + [0.24 * -(-len(handles) // per_row) + 0.15]
    with png.sheet(path, name, summary, widths, heights, least_width=8.2) as (fig, grid):
        axes = [fig.add_subplot(grid[k // across, k % across]) for k in range(len(panels))]
        for ax, draw in zip(axes, panels, strict=True):
            draw(ax)
        png.shared_labels(axes, across)
        if beside and curve is not None:
            _draw_progress(fig.add_subplot(grid[0, across]), curve)
        png.draw_legend(fig.add_subplot(grid[rows, :]), handles, per_row)


def frame(ax: Any, x: BoxAxis, y: BoxAxis) -> None:
    """Set up the axes of a plane, in their own units."""
    png.set_axis(ax, "x", x.scale, 7)
    png.set_axis(ax, "y", y.scale, 8)


def draw_map_panel(ax: Any, panel: MapPanel) -> None:
    """One plane of a fitted map: classes, boundary with its bands, theory and trials."""
    draw_fields(ax, panel)
    if panel.theory is not None:
        png.draw_predicted(ax, panel.theory.lines, 2.1)
    draw_trials(ax, panel)
    ax.set_title("\n".join(filter(None, (panel.plane.called, panel.plane.shown))))


def draw_fields(ax: Any, panel: MapPanel) -> None:
    """The leading class of every point, paler in the wider band, the other's edges, and the lines between classes."""
    plane, raster = panel.plane, panel.plane.raster
    colours = np.array([rgb(label_colour(k)) for k in range(raster.belief.shape[2])])
    shown = 1 - (1 - colours[raster.label]) * np.where(panel.pale, BAND_TINT, TINT)[:, :, None]
    half = 0.5 / (len(shown) - 1)
    ends = [float(e) for axis in (plane.x, plane.y) for e in axis.drawn(np.array([-half, 1 + half]))]
    image = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    ax.imshow(shown.transpose(1, 0, 2), extent=ends, **image)
    frame(ax, plane.x, plane.y)
    for edge in panel.edges:
        ax.plot(*edge.T, color=INK, linewidth=0.6, linestyle=(0, (4, 2.5)), alpha=0.7)
    png.draw_edged(ax, panel.lines, 1.7, 1.7)


def draw_trials(ax: Any, panel: MapPanel) -> None:
    """A dot per setting in the colour of its most frequent label, ringed by the runner-up's; crosses: failed."""
    at, labelled = panel.plane.at, panel.labels >= 0
    size = float(np.clip(5200 / max(len(at), 1), 2.2, 26))
    style: dict[str, Any] = {"clip_on": False, "zorder": 3}
    if labelled.any():
        places, member = np.unique(np.round(at[labelled], 9), axis=0, return_inverse=True)
        counts = np.zeros((len(places), panel.plane.raster.belief.shape[2]), dtype=np.int64)
        np.add.at(counts, (member.reshape(-1), panel.labels[labelled]), 1)
        first = counts.argmax(axis=1)
        rest = counts.copy()
        rest[np.arange(len(rest)), first] = 0
        split = rest.max(axis=1) > 0
        colour = np.array([label_colour(int(k)) for k in first])
        ring = np.where(split, [label_colour(int(k)) for k in rest.argmax(axis=1)], "white")
        for chosen, width in ((~split, 0.5 if size > 8 else 0.25), (split, 1.6 if size > 8 else 0.8)):
            dots = {"c": colour[chosen], "edgecolors": ring[chosen], "linewidths": width}
            ax.scatter(*panel.drawn(places[chosen]).T, s=size, **dots, **style)
    ax.scatter(*panel.drawn(at[~labelled]).T, s=size, facecolors="none", edgecolors=INK, linewidths=0.8, **style)
    if len(panel.failed):
        ax.scatter(*panel.drawn(panel.failed).T, marker="x", s=30, c=INK, linewidths=1.1, **style | {"zorder": 4})


def _map_handles(fitted: FittedMap, panels: Sequence[MapPanel]) -> list[Any]:
    """Legend entries for what occurs in these panels."""
    shown: set[int] = set()
    for panel in panels:
        shown |= {*np.unique(panel.plane.raster.label).tolist(), *panel.labels[panel.labels >= 0].tolist()}
    handles = [png.swatch(named(fitted.labels[k], fitted.labels[k]), label_colour(k)) for k in sorted(shown)]
    if any(panel.plane.lines for panel in panels):
        handles.append(png.stroke(BOUNDARY, INK, linewidth=1.7))
    if any(panel.plane.over_seeds is not None for panel in panels):
        handles.append(png.swatch(f"{OVER_SEEDS} (paler)", "#E9E9E9"))
        handles.append(png.stroke(GIVEN_SEEDS, INK, linewidth=0.7, linestyle=(0, (4, 2.5))))
    elif any(panel.pale.any() for panel in panels):
        handles.append(band_swatch(f"{GIVEN_SEEDS} (paler)"))
    predicted = [panel.theory for panel in panels if panel.theory is not None]
    if predicted:
        handles.append(png.stroke(plane_caption(predicted), COLOURS[0], linestyle=DASH, linewidth=2))
    where = " beside the slice" if any(len(panel.of.slice.axes) > 2 for panel in panels) else ""
    handles.append(png.symbol(f"trials{where}, coloured by their own label", "o", SOFT, "white"))
    if any(_disagree(panel) for panel in panels):
        handles.append(png.symbol("ring: other replicates", "o", SOFT, INK, markeredgewidth=1.4))
    if any((panel.labels < 0).any() for panel in panels):
        handles.append(png.symbol(OPEN, "o", "none", INK))
    if any(len(panel.failed) for panel in panels):
        handles.append(png.symbol("failed", "x", INK, INK))
    return handles


def band_swatch(label: str) -> Any:
    """The legend entry of a band."""
    return png.swatch(label, "#E9E9E9", edgecolor=INK, linestyle=(0, (3, 2)), linewidth=0.7)


def _disagree(panel: MapPanel) -> bool:
    at = np.round(panel.plane.at, 9)
    return len(np.unique(np.column_stack([at, panel.labels]), axis=0)) > len(np.unique(at, axis=0))


def draw_ridge(ax: Any, panel: RidgePanel, metric: str) -> None:
    """The expected metric as colour, with the line of its peaks."""
    image = {"origin": "lower", "aspect": "auto", "interpolation": "bilinear", "cmap": "viridis"}
    drawn = ax.imshow(panel.mean.T, extent=(*panel.x.span, *panel.y.span), **image)
    ax.fill_between(panel.across, panel.low, panel.high, color="white", alpha=0.4, linewidth=0)
    ax.plot(panel.across, panel.middle, color="white", linewidth=2, path_effects=_outline())
    value = np.nan_to_num(panel.value, nan=float(panel.mean.min()))
    dots = {"cmap": "viridis", "norm": drawn.norm, "edgecolors": INK, "linewidths": 0.5, "clip_on": False, "zorder": 3}
    ax.scatter(*panel.trials.T, s=float(np.clip(5200 / max(len(value), 1), 3, 18)), c=value, **dots)
    frame(ax, panel.x, panel.y)
    ax.set_title("\n".join(filter(None, (panel.called, panel.shown))))
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    png.set_round_ticks(bar.ax.yaxis, 6)
    bar.set_label(f"{named(metric)}, expected")


def _outline() -> list[Any]:
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=3.4, foreground=INK), Normal()]


def _draw_progress(ax: Any, curve: ProgressCurve) -> None:
    """The curve on two log axes: it is a power law while a boundary is being fitted."""
    area = np.maximum(curve.uncertain_area, 1e-5)
    ax.loglog(curve.trials, area, color=INK, linewidth=1.7, marker="o", markersize=4, clip_on=False)
    low, high = float(area.min()), float(area.max())
    ax.set_ylim(low / 1.6, min(max(high * 1.6, low * 4), 1.2))
    ax.set_xlim(float(curve.trials[0]) / 1.25, float(curve.trials[-1]) * 1.25)
    png.set_round_ticks(ax.xaxis, 6)
    png.set_round_ticks(ax.yaxis, 6, lambda v: f"{number(100 * v)}%")
    ax.set_xlabel("trials spent")
    ax.set_title("uncertain area" + (" (refitted afterwards)" if curve.refitted else ""))
    ax.grid(axis="y")

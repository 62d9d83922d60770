"""The still picture of a phase map that a classifier draws: its fields, their boundary with its band, the trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.draw.png import DPI, columns_for, figure
from orchestrator.phases.draw.png_map import draw_legend, set_axis
from orchestrator.phases.map.box import BoxAxis
from orchestrator.phases.map.progress_curve import ProgressCurve
from orchestrator.phases.map.raster import SURE
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice, Plane, planes, without_result
from orchestrator.phases.scale import log_ticks
from orchestrator.phases.text import INK, SOFT, label_colour, number, plural
from orchestrator.phases.theory.overlay import COLOURS, DASH
from orchestrator.phases.theory.plane import TheoryPlane, plane_caption
from orchestrator.surface.base import ClassSurface, Points

MOST_PANELS = 12
_TINT, _BAND_TINT = 0.5, 0.2
"""How much of its colour a label's field has: where it is sure, and in the band."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MapPanel:
    """One panel: a plane, the trials in it, and those that failed there."""

    of: FittedSlice
    plane: Plane
    labels: NDArray[np.int64]
    """(n,) the class of each trial at `plane.at`; -1 where it says nothing of the side."""
    rows: NDArray[np.int64]
    """(n,) its row of the table."""
    failed: Points
    """(f, 2) positions in the plane."""
    theory: TheoryPlane | None = None
    """What the job's theory predicts in the plane."""


def panels_of(found: FittedMap, failed: Sequence[int]) -> list[MapPanel]:
    """A panel for every plane of every slice of classes; `failed` are rows of the table."""
    made = []
    for one in found.fitted:
        if isinstance(one.surface, ClassSurface):
            for plane in planes(one):
                crosses = without_result(one, failed, plane)
                near = plane.near
                made.append(
                    MapPanel(of=one, plane=plane, labels=one.evidence.label[near], rows=one.rows[near], failed=crosses)
                )
    return made


def draw_fields(ax: Any, plane: Plane) -> None:
    """The leading class of every point, paler in the band, and the lines between the classes."""
    from matplotlib.collections import LineCollection

    colours = np.array([_rgb(label_colour(k)) for k in range(plane.raster.belief.shape[2])])
    strength = np.where(plane.raster.in_band, _BAND_TINT, _TINT)[:, :, None]
    shown = 1 - (1 - colours[plane.raster.label]) * strength
    frame(ax, plane.x, plane.y)
    (left, right), (bottom, top) = plane.x.span, plane.y.span
    half_x, half_y = (right - left) / 2 / (len(shown) - 1), (top - bottom) / 2 / (len(shown) - 1)
    ax.imshow(
        shown.transpose(1, 0, 2),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(left - half_x, right + half_x, bottom - half_y, top + half_y),
    )
    frame(ax, plane.x, plane.y)
    if plane.raster.in_band.any() and not plane.raster.in_band.all():
        at = plane.raster.points
        ax.contour(
            plane.x.drawn(at),
            plane.y.drawn(at),
            plane.raster.lead.T,
            levels=[SURE],
            colors=[INK],
            linewidths=0.6,
            linestyles=[(0, (4, 2.5))],
            alpha=0.7,
        )
    lines = [np.column_stack([plane.x.drawn(c.points[:, 0]), plane.y.drawn(c.points[:, 1])]) for c in plane.lines]
    for colour, width in (("white", 3.4), (INK, 1.7)):
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="round"))


def draw_theory(ax: Any, told: TheoryPlane) -> None:
    """Where the predicted class changes, dashed."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    # Dashes edged in white are seen on any field, and between them the boundary of the map below.
    dashes = LineCollection(told.lines, colors=COLOURS[0], linewidths=2.1, linestyles=[DASH])
    dashes.set(path_effects=[withStroke(linewidth=3.6, foreground="white")], zorder=2.5)
    ax.add_collection(dashes)


def draw_trials(ax: Any, panel: MapPanel) -> None:
    """A dot per setting in the colour of its most frequent label, ringed by the runner-up's; crosses: failed."""
    plane = panel.plane
    size = float(np.clip(5200 / max(len(plane.at), 1), 2.2, 26))
    said = panel.labels >= 0
    if said.any():
        places, member = np.unique(np.round(plane.at[said], 9), axis=0, return_inverse=True)
        counts = np.zeros((len(places), plane.raster.belief.shape[2]), dtype=np.int64)
        np.add.at(counts, (member.reshape(-1), panel.labels[said]), 1)
        first = counts.argmax(axis=1)
        rest = counts.copy()
        rest[np.arange(len(rest)), first] = 0
        split = rest.max(axis=1) > 0
        colour = np.array([label_colour(int(k)) for k in first])
        ring = np.where(split, [label_colour(int(k)) for k in rest.argmax(axis=1)], "white")
        for chosen, width in ((~split, 0.5 if size > 8 else 0.25), (split, 1.6 if size > 8 else 0.8)):
            ax.scatter(
                plane.x.drawn(places[chosen, 0]),
                plane.y.drawn(places[chosen, 1]),
                s=size,
                c=colour[chosen],
                edgecolors=ring[chosen],
                linewidths=width,
                zorder=3,
                clip_on=False,
            )
    silent = plane.at[~said]
    ax.scatter(
        plane.x.drawn(silent[:, 0]),
        plane.y.drawn(silent[:, 1]),
        s=size,
        facecolors="none",
        edgecolors=INK,
        linewidths=0.8,
        zorder=3,
        clip_on=False,
    )
    if len(panel.failed):
        ax.scatter(
            plane.x.drawn(panel.failed[:, 0]),
            plane.y.drawn(panel.failed[:, 1]),
            marker="x",
            s=30,
            c=INK,
            linewidths=1.1,
            zorder=4,
            clip_on=False,
        )


def frame(ax: Any, x: BoxAxis, y: BoxAxis) -> None:
    """The axes of a plane, in their own units."""
    set_axis(ax, "x", x.scale, 7)
    set_axis(ax, "y", y.scale, 8)
    ax.spines[["top", "right"]].set_visible(False)


def marks(found: FittedMap, panels: Sequence[MapPanel]) -> list[Any]:
    """Handles for what occurs in these panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    seen: set[int] = set()
    for panel in panels:
        seen |= set(np.unique(panel.plane.raster.label).tolist()) | set(
            np.unique(panel.labels[panel.labels >= 0]).tolist()
        )
    handles: list[Any] = [Patch(facecolor=label_colour(k), label=found.labels[k]) for k in sorted(seen)]
    if any(panel.plane.lines for panel in panels):
        handles.append(Line2D([], [], color=INK, linewidth=1.7, label="boundary (equal belief)"))
    if any(panel.plane.raster.in_band.any() for panel in panels):
        handles.append(
            Patch(
                facecolor="#E9E9E9", edgecolor=INK, linestyle=(0, (3, 2)), linewidth=0.7, label="its 90% band (paler)"
            )
        )
    told = [panel.theory for panel in panels if panel.theory is not None]
    if told:
        handles.append(Line2D([], [], color=COLOURS[0], linestyle=DASH, linewidth=2, label=plane_caption(told)))
    where = " beside the slice" if any(len(panel.of.slice.axes) > 2 for panel in panels) else ""
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markerfacecolor": SOFT, "markersize": 6}
    handles.append(Line2D([], [], **dot, markeredgecolor="white", label=f"trials{where}, coloured by their own label"))
    if any(_disagree(panel) for panel in panels):
        handles.append(Line2D([], [], **dot, markeredgecolor=INK, markeredgewidth=1.4, label="ring: other replicates"))
    if any((panel.labels < 0).any() for panel in panels):
        open_dot = {**dot, "markerfacecolor": "none", "markeredgecolor": INK}
        handles.append(Line2D([], [], **open_dot, label="not reached: which side is open"))
    if any(len(panel.failed) for panel in panels):
        handles.append(Line2D([], [], linestyle="none", marker="x", color=INK, markersize=6, label="failed"))
    return handles


def draw_surface(
    name: str, summary: str, found: FittedMap, panels: Sequence[MapPanel], curve: ProgressCurve | None, path: Path
) -> None:
    """Write the PNG: a panel per plane; beside a single one, the uncertain area against trials spent.

    Args:
        name: of the sweep.
        summary: lines below it.
        found: the map.
        panels: what to draw, in order; one at least.
        curve: how the search went, where that is known.
        path: where to write.
    """
    shown = panels[:MOST_PANELS]
    beside = curve is not None and len(shown) == 1
    across = columns_for(len(shown))
    rows = -(-len(shown) // across)
    handles = marks(found, shown)
    per_row = 3 if across + beside < 3 else 4
    below = 0.24 * -(-len(handles) // per_row) + 0.15
    if len(panels) > len(shown):
        summary += f"  ·  {plural(len(panels) - len(shown), 'more slice')} in the HTML"
    each = (6.0, 4.6) if len(shown) == 1 else (4.3, 3.6)
    width = max(each[0] * across + (3.9 if beside else 0) + 0.4, 8.2)
    height = each[1] * rows + 0.85 + below + 0.19 * summary.count("\n")
    with figure(name, summary, (width, height)) as fig:
        ratios = [each[0]] * across + [3.9] * beside
        grid = fig.add_gridspec(rows + 1, len(ratios), height_ratios=[each[1]] * rows + [below], width_ratios=ratios)
        for k, panel in enumerate(shown):
            ax = fig.add_subplot(grid[k // across, k % across])
            draw_fields(ax, panel.plane)
            if panel.theory is not None:
                draw_theory(ax, panel.theory)
            draw_trials(ax, panel)
            ax.set_title(panel.plane.title)
            if k % across:
                ax.set_ylabel("")
            if k + across < len(shown):
                ax.set_xlabel("")
        if beside and curve is not None:
            draw_progress(fig.add_subplot(grid[0, across]), curve)
        draw_legend(fig.add_subplot(grid[rows, :]), handles, per_row)
        fig.savefig(path, format="png", dpi=DPI)


def draw_progress(ax: Any, curve: ProgressCurve) -> None:
    """The curve on two log axes (its shape is a power law while a boundary is being found)."""
    area = np.maximum(curve.uncertain_area, 1e-5)
    ax.loglog(curve.trials, area, color=INK, linewidth=1.7, marker="o", markersize=4, clip_on=False)
    low, high = float(area.min()), float(area.max())
    ax.set_ylim(low / 1.6, min(max(high * 1.6, low * 4), 1.2))
    first, last = float(curve.trials[0]), float(curve.trials[-1])
    ax.set_xlim(first / 1.25, last * 1.25)
    for which, ends, most in (("x", ax.get_xlim(), 6), ("y", ax.get_ylim(), 6)):
        ticks = log_ticks(float(np.log10(ends[0])), float(np.log10(ends[1])), most)
        texts = [number(v) if which == "x" else f"{number(100 * v)}%" for v in ticks]
        getattr(ax, f"set_{which}ticks")(ticks, labels=texts)
    ax.minorticks_off()
    ax.set_xlabel("trials spent")
    ax.set_title("uncertain area" + (" (refitted afterwards)" if curve.refitted else ""))
    ax.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _disagree(panel: MapPanel) -> bool:
    at = np.round(panel.plane.at, 9)
    together = np.column_stack([at, panel.labels]) if len(at) else at
    return len(np.unique(together, axis=0)) > len(np.unique(at, axis=0))


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue

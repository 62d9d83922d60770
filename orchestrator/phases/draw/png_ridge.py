"""The still picture of a ridge: where a metric peaks along one axis, over the metric that is expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.draw.png import DPI, columns_for, figure
from orchestrator.phases.draw.png_map import draw_legend
from orchestrator.phases.draw.png_surface import MOST_PANELS, draw_progress, frame
from orchestrator.phases.map.boundary_data import BoundaryLine, ridge_lines
from orchestrator.phases.map.box import BoxAxis
from orchestrator.phases.map.progress_curve import ProgressCurve
from orchestrator.phases.map.raster import in_chunks
from orchestrator.phases.map.surface_map import FittedSlice
from orchestrator.phases.scale import linear_ticks
from orchestrator.phases.text import INK, number, words
from orchestrator.surface.base import RidgeSurface

RIDGE_RASTER = 161


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgeField:
    """What one panel of a ridge shows; positions along the axes as they are drawn."""

    x: BoxAxis
    y: BoxAxis
    over: int
    """Which axis of the slice `x` is."""
    mean: NDArray[np.float64]
    """(R, R) the expected metric, x first."""
    across: NDArray[np.float64]
    """(P,)"""
    low: NDArray[np.float64]
    """(P,) the 5% quantile of the peak's position."""
    middle: NDArray[np.float64]
    high: NDArray[np.float64]


def ridge_field(one: FittedSlice, ridge: RidgeSurface, line: BoundaryLine) -> RidgeField:
    """The expected metric over the plane of a ridge's line, and the line as it is drawn."""
    axes = one.slice.axes
    by_name = {axis.name: axis for axis in axes}
    x, y = by_name[line.axes[0]], by_name[line.axes[1]]
    over = axes.index(x)
    side = np.linspace(0, 1, RIDGE_RASTER)
    held = [float(a.unit(np.array(line.fixed[a.name]))) if a.name in line.fixed else 0.0 for a in axes]
    at = np.tile(np.array(held), (RIDGE_RASTER**2, 1))
    first, second = np.meshgrid(side, side, indexing="ij")
    at[:, over], at[:, ridge.along] = first.ravel(), second.ravel()
    low, middle, high = (y.drawn(y.unit(p[:, 1])) for p in (line.at_5, line.points, line.at_95))
    return RidgeField(
        x=x,
        y=y,
        over=over,
        mean=in_chunks(ridge.mean, at).reshape(RIDGE_RASTER, RIDGE_RASTER),
        across=x.drawn(x.unit(line.points[:, 0])),
        low=low,
        middle=middle,
        high=high,
    )


def draw_ridges(
    name: str,
    summary: str,
    metric: str,
    found: Sequence[tuple[FittedSlice, RidgeSurface]],
    curve: ProgressCurve | None,
    path: Path,
) -> None:
    """Write the PNG of ridges: the mean metric as colour, the peak as a line with its 90% band, the trials.

    Args:
        name: of the sweep.
        summary: lines below it.
        metric: what peaks.
        found: the slices and their ridges.
        curve: how the search went, where that is known.
        path: where to write.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    jobs = [(one, ridge, line) for one, ridge in found for line in ridge_lines(one, ridge)][:MOST_PANELS]
    beside = curve is not None and len(jobs) == 1
    across = columns_for(len(jobs))
    rows = -(-len(jobs) // across)
    each = (6.4, 4.6) if len(jobs) == 1 else (4.5, 3.6)
    below = 0.4
    width = max(each[0] * across + (3.9 if beside else 0) + 0.4, 8.2)
    height = each[1] * rows + 0.85 + below + 0.19 * summary.count("\n")
    handles: list[Any] = [
        Line2D([], [], color="white", linewidth=2, label="peak (median)", path_effects=_outline()),
        Patch(facecolor="white", alpha=0.5, edgecolor=INK, linewidth=0.5, label="its 90% band"),
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=INK,
            label="trials",
        ),
    ]
    with figure(name, summary, (width, height)) as fig:
        ratios = [each[0]] * across + [3.9] * beside
        grid = fig.add_gridspec(rows + 1, len(ratios), height_ratios=[each[1]] * rows + [below], width_ratios=ratios)
        for k, (one, ridge, line) in enumerate(jobs):
            field = ridge_field(one, ridge, line)
            x, y = field.x, field.y
            ax = fig.add_subplot(grid[k // across, k % across])
            drawn = ax.imshow(
                field.mean.T,
                origin="lower",
                aspect="auto",
                interpolation="bilinear",
                cmap="viridis",
                extent=(*x.span, *y.span),
            )
            ax.fill_between(field.across, field.low, field.high, color="white", alpha=0.4, linewidth=0)
            ax.plot(field.across, field.middle, color="white", linewidth=2, path_effects=_outline())
            at = one.evidence.x
            size = float(np.clip(5200 / max(len(at), 1), 3, 18))
            ax.scatter(
                x.drawn(at[:, field.over]),
                y.drawn(at[:, ridge.along]),
                s=size,
                c=np.nan_to_num(one.evidence.value, nan=float(field.mean.min())),
                cmap="viridis",
                norm=drawn.norm,
                edgecolors=INK,
                linewidths=0.5,
                clip_on=False,
                zorder=3,
            )
            frame(ax, x, y)
            ax.set_title(held_text(line))
            bar = fig.colorbar(drawn, ax=ax, pad=0.02, fraction=0.05)
            bar.outline.set_visible(False)
            ticks = linear_ticks(float(field.mean.min()), float(field.mean.max()), 6)
            bar.set_ticks(ticks, labels=[number(v) for v in ticks])
            bar.set_label(f"{words(metric)}, expected")
        if beside and curve is not None:
            draw_progress(fig.add_subplot(grid[0, across]), curve)
        draw_legend(fig.add_subplot(grid[rows, :]), handles, 4)
        fig.savefig(path, format="png", dpi=DPI)


def held_text(line: BoundaryLine) -> str:
    """What a line's plane holds, in words."""
    return ", ".join(f"{words(n)} {number(v) if isinstance(v, float) else v}" for n, v in line.fixed.items())


def _outline() -> list[Any]:
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=3.4, foreground=INK), Normal()]

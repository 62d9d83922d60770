"""The still picture of one quantity against another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.phases.draw import png
from orchestrator.phases.points import PointFigure, PointGroup, position
from orchestrator.phases.text import INK, PALETTE, SOFT, named, plural

MOST_GROUPS = 12
"""Groups in the legend; beyond that, colours run from the first to the last."""


def draw_points(figure: PointFigure, path: Path) -> None:
    """Write a PNG: points with intervals, joined within their groups."""
    groups = figure.groups
    rows = -(-min(len(groups), MOST_GROUPS) // 4)
    below = 0.3 + 0.24 * rows
    with png.sheet(path, figure.title, "\n".join(figure.lines[:6]), [8.6], [4.6, below]) as (fig, grid):
        ax = fig.add_subplot(grid[0, 0])
        scale = figure.x_scale
        png.set_axis(ax, "x", scale, 9)
        if figure.y_log:
            ax.set_yscale("log")
        if figure.zero:
            ax.axhline(0, color=SOFT, linewidth=1)
        ax.grid(axis="y")
        ax.set_ylabel(named(figure.y_name))
        for g, group in enumerate(groups):
            _draw_group(ax, figure, group, position(scale, group.x), group_colour(g, len(groups)))
        handles = []
        if groups and groups[0].title:
            shown = range(len(groups)) if len(groups) <= MOST_GROUPS else (0, len(groups) // 2, len(groups) - 1)
            handles = [png.stroke(groups[g].title, group_colour(g, len(groups)), marker="o") for g in shown]
        if figure.mark:
            handles.append(png.symbol(figure.mark, "o", "none", INK, 9))
        png.draw_legend(fig.add_subplot(grid[1, 0]), handles, 4)


def group_colour(index: int, groups: int) -> str:
    """The colour of a group, distinct for few groups and in order for many."""
    if groups <= MOST_GROUPS:
        return PALETTE[index % len(PALETTE)]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return str(to_hex(colormaps["viridis"](index / (groups - 1))))


def _draw_group(ax: Any, figure: PointFigure, group: PointGroup, u: Any, colour: str) -> None:
    ax.plot(u, group.y, color=colour, marker="o", markersize=4, linewidth=1.2, label=group.title or plural(1, "group"))
    both = np.isfinite(group.low) & np.isfinite(group.high)
    if both.any():
        ax.vlines(u[both], group.low[both], group.high[both], color=colour, linewidth=1, alpha=0.8)
    wide = np.isfinite(group.x_low) & (group.x_high > group.x_low)
    if wide.any():
        scale = figure.x_scale
        ends = position(scale, group.x_low[wide]), position(scale, group.x_high[wide])
        ax.hlines(group.y[wide], *ends, color=colour, linewidth=1, alpha=0.8)
    if group.marked.any():
        at = u[group.marked], group.y[group.marked]
        ax.plot(*at, linestyle="none", marker="o", markersize=9, markerfacecolor="none", markeredgecolor=INK)

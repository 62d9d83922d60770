"""The figures of analyses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jobs.job import specs
from orchestrator.analyses.base import STEP
from orchestrator.analyses.result import Figure, Panel, Result
from orchestrator.analyses.source import Source
from orchestrator.phases import text
from orchestrator.phases.draw import png

MOST_PANELS = 6
"""Settings that a figure shows, evenly chosen; the table has all."""


def spread(count: int, most: int) -> frozenset[int]:
    """At most `most` of the numbers below `count`, evenly chosen."""
    return frozenset(np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist())


def axis_label(source: Source, name: str) -> str:
    """The label of an axis with its unit."""
    if name == STEP:
        return text.named("step")
    return text.named(name, text.axis_label(name, specs(type(source.params[0])) if source.params else {}))


def wants_log(source: Source, name: str) -> bool:
    """Whether an axis is drawn on a logarithmic scale: the steps, and axes that are spaced so."""
    axis = source.axis(name)
    if axis is None:
        return True
    values = [v for v in axis.values if isinstance(v, int | float)]
    positive = bool(values) and min(values) > 0
    return positive and (axis.scale in ("log", "integer") or max(values) >= 20 * min(values))


def draw(sweep: str, result: Result, path: png.Output) -> None:
    """Write the figure of a result as PNG. `result.figure` is not None and has panels."""
    figure = result.figure
    assert figure is not None
    panels = figure.panels
    across = png.columns_for(len(panels))
    if png.titles_across([line for panel in panels for line in panel.title.splitlines()]) < across:
        across = 1
    rows = -(-len(panels) // across)
    widths = [6.4] if across == 1 else [4.6] * across
    labels = {line.label for panel in panels for line in panel.lines} | {what for p in panels for _, what in p.marks}
    labels = {*labels, figure.band, *(panel.level_label for panel in panels)} - {""}
    room = max(sum(widths), 9.0)
    per_row, below = png.legend_rows(sorted(labels), room)
    with png.sheet(path, sweep, caption(result, figure), widths, [3.9] * rows + [below], least_width=9.0) as (
        fig,
        grid,
    ):
        axes: list[Any] = []
        for k, panel in enumerate(panels):
            ax = fig.add_subplot(grid[k // across, k % across], sharey=axes[0] if axes else None)
            axes.append(ax)
            _draw_panel(ax, figure, panel)
        png.shared_labels(axes, across)
        handles = png.shared_legend(axes)
        if figure.band:
            bars = any(line.points and line.low is not None for panel in panels for line in panel.lines)
            grey = (
                png.stroke(figure.band, text.SOFT, linewidth=1)
                if bars
                else png.swatch(figure.band, text.SOFT, alpha=0.3)
            )
            handles.append(grey)
        png.draw_legend(fig.add_subplot(grid[rows, :]), handles, per_row, handlelength=2.2)


def _extent(figure: Figure) -> tuple[float, float]:
    """The places of all panels, with a margin; a panel has a line."""
    x = np.concatenate([line.x for panel in figure.panels for line in panel.lines])
    at = np.log10(x[x > 0]) if figure.x_log else x
    low, high = float(at.min()), float(at.max())
    margin = 0.05 * (high - low) or 0.5
    ends = low - margin, high + margin
    return (10 ** ends[0], 10 ** ends[1]) if figure.x_log else ends


def caption(result: Result, figure: Figure) -> str:
    """What the figure shows, and how many of the settings; a setting may have several rows."""
    settings, panels = len({tuple(row[name] for name in result.setting) for row in result.rows}), len(figure.panels)
    more = "" if settings <= panels else f", {panels} of {settings} settings"
    return f"{result.title}{more}"


def _draw_panel(ax: Any, figure: Figure, panel: Panel) -> None:
    if figure.x_log:
        ax.set_xscale("log")
    if figure.y_log:
        ax.set_yscale("log")
    if panel.lines and all(line.points and len(line.x) == 1 for line in panel.lines):
        ax.set_xlim(*_extent(figure))  # one place has no extent of its own
    for k, line in enumerate(panel.lines):
        place = k if line.colour is None else line.colour
        colour = (text.INK, *text.PALETTE)[place % (1 + len(text.PALETTE))]
        drawn = line.x > 0 if figure.x_log else np.ones(len(line.x), dtype=bool)
        x, y = line.x[drawn], line.y[drawn]
        style: dict[str, Any] = {"color": colour, "label": line.label, "linewidth": 1.6}
        if line.points:
            ax.plot(x, y, linestyle="none", marker="o", markersize=4, color=colour, label=line.label)
        else:
            ax.plot(x, y, drawstyle="steps-post" if line.steps else "default", **style)
        if line.low is not None and line.high is not None:
            low, high = line.low[drawn], line.high[drawn]
            if line.points:
                ax.vlines(x, low, high, color=colour, linewidth=1)
            else:
                step = "post" if line.steps else None
                ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, step=step)
    if panel.level is not None:
        ax.axhline(panel.level, color=text.SOFT, linewidth=1, linestyle=":", label=panel.level_label)
    left, right = ax.get_xlim()
    for k, (mark, what) in enumerate(panel.marks):
        if not math.isfinite(mark.value):
            continue
        colour = text.PALETTE[(2 + k) % len(text.PALETTE)]
        ax.axvline(mark.value, color=colour, linewidth=1.3, linestyle="--", label=what)
        low, high = max(mark.low, left), min(mark.high, right)
        if math.isfinite(low) and math.isfinite(high):  # NaN: no interval; infinite: it lies beyond the axis
            ax.axvspan(low, high, color=colour, alpha=0.12, linewidth=0)
    ax.set_xlim(left, right)
    if figure.x_log:
        png.set_round_ticks(ax.xaxis, 7)
    if figure.y_log:
        png.set_round_ticks(ax.yaxis, 7)
    ax.set_title(panel.title)
    ax.set_xlabel(figure.x_label)
    ax.set_ylabel(figure.y_label)
    ax.grid(axis="y")

"""The still picture of recorded curves beside the predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.phases.draw import png
from orchestrator.phases.layout import wants_log
from orchestrator.phases.text import INK, SOFT, named, plural
from orchestrator.phases.theory.curves import CurveBeside
from orchestrator.phases.theory.overlay import COLOURS, DASH

_WITHIN = "#EEEEEE"


def draw_theory_curves(name: str, curves: Sequence[CurveBeside], path: png.Output) -> None:
    """Draw a column per setting, a row per metric, and the deviation below each curve."""
    columns, rows = list(dict.fromkeys(c.place for c in curves)), list(dict.fromkeys(c.metric for c in curves))
    sources = ", ".join(dict.fromkeys(c.predicted.source for c in curves))
    read = int(max(c.count.max() for c in curves))
    heading = f"recorded curves, mean of {plural(read, 'replicate')}, beside theory: {sources}"
    heights = [4.5] * len(rows) + [0.6]
    with png.sheet(path, name, heading, [4.3] * len(columns), heights, least_width=8.0) as (fig, grid):
        for curve in curves:
            r, c = rows.index(curve.metric), columns.index(curve.place)
            inner = grid[r, c].subgridspec(2, 1, height_ratios=[3.4, 1], hspace=0.05)
            upper = fig.add_subplot(inner[0])
            _draw_curve(upper, curve, first=c == 0, top=r == 0)
            _draw_deviation(fig.add_subplot(inner[1], sharex=upper), curve, first=c == 0, last=r == len(rows) - 1)
        handles = [
            png.stroke("measured mean", INK, linewidth=2),
            png.swatch("± its standard error", INK, alpha=0.22),
            png.stroke("theory (band: ± its standard error)", COLOURS[0], linewidth=1.7, linestyle=DASH),
            png.swatch("within 2 standard errors", _WITHIN),
        ]
        style = {"fontsize": 10, "handlelength": 2.4, "columnspacing": 1.8}
        png.draw_legend(fig.add_subplot(grid[len(rows), :]), handles, 4, **style)


def _draw_curve(ax: Any, curve: CurveBeside, *, first: bool, top: bool) -> None:
    step, value = np.asarray(curve.predicted.step), np.asarray(curve.predicted.value)
    margin = np.broadcast_to(np.asarray(curve.predicted.standard_error), step.shape)
    ax.set_xscale("log" if step[-1] > 20 * max(int(step[0]), 1) and step[0] > 0 else "linear")
    if wants_log(curve.metric, np.concatenate([curve.mean, value])):
        ax.set_yscale("log")
    if (margin > 0).any():
        ax.fill_between(step, value - margin, value + margin, color=COLOURS[0], alpha=0.14, linewidth=0)
    if np.isfinite(curve.error).any():
        low, high = curve.mean - curve.error, curve.mean + curve.error
        ax.fill_between(curve.step, low, high, color=INK, alpha=0.22, linewidth=0)
    ax.plot(curve.step, curve.mean, color=INK, linewidth=2.2)
    ax.plot(step, value, color=COLOURS[0], linewidth=1.6, linestyle=DASH)
    png.set_round_ticks(ax.yaxis, 6)
    ax.grid(axis="y")
    ax.set_title((f"{curve.place}\n" if top and curve.place else "") + curve.text(), fontsize=png.points(10.5))
    if first:
        ax.set_ylabel(named(curve.metric))
    ax.tick_params(labelbottom=False)


def _draw_deviation(ax: Any, curve: CurveBeside, *, first: bool, last: bool) -> None:
    deviation = curve.deviation
    size = np.abs(deviation[np.isfinite(deviation)])
    top = max(3.0, 1.15 * float(size.max(initial=0.0)))
    ax.axhspan(-2, 2, color=_WITHIN, linewidth=0, zorder=0)
    ax.axhline(0, color=SOFT, linewidth=0.8)
    if len(size):
        ax.plot(curve.step, deviation, color=INK, linewidth=1.3)
    else:
        centred = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "no standard error", color=SOFT, fontsize=png.points(9.5), **centred)
    ax.set_ylim(-top, top)
    png.set_round_ticks(ax.yaxis, 4)
    png.set_round_ticks(ax.xaxis, 6)
    if first:
        ax.set_ylabel("deviation\n(std. errors)", fontsize=png.points(9.5))
    if last:
        ax.set_xlabel("step")

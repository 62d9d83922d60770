"""The picture of recorded curves beside those that theory predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.phases.draw.png import DPI, figure
from orchestrator.phases.layout import wants_log
from orchestrator.phases.scale import linear_ticks, log_ticks
from orchestrator.phases.text import INK, SOFT, number, plural, words
from orchestrator.phases.theory.curves import CurveBeside
from orchestrator.phases.theory.overlay import COLOURS, DASH


def draw_theory_curves(name: str, found: Sequence[CurveBeside], path: Path) -> None:
    """Write a PNG: a column per setting, a row per metric, and below each how far the two are apart."""
    columns, rows = list(dict.fromkeys(one.place for one in found)), list(dict.fromkeys(one.metric for one in found))
    size = max(4.3 * len(columns) + 0.5, 8.0), 4.5 * len(rows) + 1.45
    sources = ", ".join(dict.fromkeys(one.predicted.source for one in found))
    read = int(max(one.count.max() for one in found))
    heading = f"recorded curves, mean of {plural(read, 'replicate')}, beside theory: {sources}"
    with figure(name, heading, size) as fig:
        outer = fig.add_gridspec(len(rows) + 1, len(columns), height_ratios=[4.5] * len(rows) + [0.36])
        for one in found:
            r, c = rows.index(one.metric), columns.index(one.place)
            inner = outer[r, c].subgridspec(2, 1, height_ratios=[3.4, 1], hspace=0.05)
            upper = fig.add_subplot(inner[0])
            _draw_curve(upper, one, first=c == 0, top=r == 0)
            _draw_deviation(fig.add_subplot(inner[1], sharex=upper), one, first=c == 0, last=r == len(rows) - 1)
        _legend(fig.add_subplot(outer[len(rows), :]))
        fig.savefig(path, format="png", dpi=DPI)


def _draw_curve(ax: Any, one: CurveBeside, *, first: bool, top: bool) -> None:
    step, value = np.asarray(one.predicted.step), np.asarray(one.predicted.value)
    margin = np.broadcast_to(np.asarray(one.predicted.standard_error), step.shape)
    ax.set_xscale("log" if step[-1] > 20 * max(int(step[0]), 1) and step[0] > 0 else "linear")
    if wants_log(one.metric, np.concatenate([one.mean, value])):
        ax.set_yscale("log")
    if (margin > 0).any():
        ax.fill_between(step, value - margin, value + margin, color=COLOURS[0], alpha=0.14, linewidth=0)
    if np.isfinite(one.error).any():
        ax.fill_between(one.step, one.mean - one.error, one.mean + one.error, color=INK, alpha=0.22, linewidth=0)
    ax.plot(one.step, one.mean, color=INK, linewidth=2.2)
    ax.plot(step, value, color=COLOURS[0], linewidth=1.6, linestyle=DASH)
    _value_ticks(ax)
    ax.set_title((f"{one.place}\n" if top and one.place else "") + one.text(), fontsize=10.5)
    if first:
        ax.set_ylabel(words(one.metric))
    ax.tick_params(labelbottom=False)
    _plain(ax)


def _draw_deviation(ax: Any, one: CurveBeside, *, first: bool, last: bool) -> None:
    deviation = one.deviation
    size = np.abs(deviation[np.isfinite(deviation)])
    top = max(3.0, 1.15 * float(size.max(initial=0.0)))
    ax.axhspan(-2, 2, color="#EEEEEE", linewidth=0, zorder=0)
    ax.axhline(0, color=SOFT, linewidth=0.8)
    if len(size):
        ax.plot(one.step, deviation, color=INK, linewidth=1.3)
    else:
        place_it = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "no standard error", color=SOFT, fontsize=9.5, **place_it)
    ax.set_ylim(-top, top)
    at = linear_ticks(-top, top, 4)
    ax.set_yticks(at, labels=[number(v) for v in at])
    if first:
        ax.set_ylabel("deviation\n(std. errors)", fontsize=9.5)
    low, high = ax.get_xlim()
    log = ax.get_xscale() == "log"
    steps = log_ticks(math.log10(low), math.log10(high), 6) if log else linear_ticks(low, high, 6)
    ax.set_xticks(steps, labels=[number(v) for v in steps])
    ax.minorticks_off()
    if last:
        ax.set_xlabel("step")
    _plain(ax)


def _value_ticks(ax: Any) -> None:
    low, high = ax.get_ylim()
    log = ax.get_yscale() == "log"
    at = log_ticks(math.log10(low), math.log10(high), 6) if log else linear_ticks(low, high, 6)
    ax.set_yticks(at, labels=[number(v) for v in at])
    ax.minorticks_off()
    ax.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    ax.set_axisbelow(True)


def _plain(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def _legend(ax: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ax.set_axis_off()
    marks = [
        Line2D([], [], color=INK, linewidth=2, label="measured mean"),
        Patch(facecolor=INK, alpha=0.22, label="± its standard error"),
        Line2D([], [], color=COLOURS[0], linewidth=1.7, linestyle=DASH, label="theory (band: ± its standard error)"),
        Patch(facecolor="#EEEEEE", label="within 2 standard errors"),
    ]
    ax.legend(handles=marks, loc="upper left", ncols=4, fontsize=10, handlelength=2.4, columnspacing=1.8)

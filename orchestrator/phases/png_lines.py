"""Panels of the still picture that are lines: observations along one axis, and the phase as a strip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.layout import Layout, Panel, markers, shared_words, spread_out, wants_log
from orchestrator.phases.png_map import label_colours, set_axis
from orchestrator.phases.scale import linear_ticks, log_ticks
from orchestrator.phases.text import INK, LINE_STYLES, MARKER_DASHES, SOFT, label_colour, number, words


def draw_lines(
    ax: Any,
    strip: Any,
    diagram: PhaseDiagram,
    panel: Panel,
    layout: Layout,
    names: Sequence[str],
    metrics: Mapping[str, float],
) -> None:
    """Medians along x with the range of the replicates; open triangles at the bound where it was not reached."""
    assert layout.x is not None
    axis = diagram.axes[layout.x]
    cells = panel.cells[np.argsort(diagram.codes[panel.cells, layout.x])]
    u = axis.position[diagram.codes[cells, layout.x]]
    placed = diagram.codes[cells, layout.x] >= axis.special
    everything = np.concatenate([diagram.observations[name].median for name in names])
    if wants_log(names[0], everything):
        ax.set_yscale("log")
    for k, name in enumerate(names):
        values = diagram.observations[name]
        colour, dash, marker = LINE_STYLES[k % len(LINE_STYLES)]
        median = values.median[cells]
        ax.fill_between(u[placed], values.low[cells][placed], values.high[cells][placed], color=colour, alpha=0.16,
                        linewidth=0)  # fmt: skip
        if np.isfinite(median[placed]).any():
            ax.plot(u[placed], median[placed], color=colour, linestyle=dash, marker=marker, markersize=4.5,
                    linewidth=1.8, label=words(name))  # fmt: skip
        ax.plot(u[~placed], median[~placed], color=colour, linestyle="none", marker=marker, markersize=4.5)
        off = values.not_reached[cells] & (values.censored[cells] > 0)
        if off.any():
            ax.plot(u[off], values.bound[cells][off], linestyle="none", marker="^", markersize=6,
                    markerfacecolor="white", markeredgecolor=colour,
                    label=f"{words(name)}: not reached by")  # fmt: skip
    for k, mark in enumerate(markers(metrics, axis, panel)):
        at = axis.to_position(mark.value)
        if at is not None:
            ax.axvline(at, color=SOFT, linewidth=1.3, linestyle=MARKER_DASHES[k % len(MARKER_DASHES)],
                       label=f"{mark.name}: {number(mark.value)}", zorder=1)  # fmt: skip
    set_axis(ax, "x", axis, 9)
    ax.set_xlabel("")
    ax.tick_params(labelbottom=False)
    ax.set_ylabel(shared_words(names))
    low, high = ax.get_ylim()
    log = ax.get_yscale() == "log"
    ticks = log_ticks(math.log10(low), math.log10(high), 7) if log else linear_ticks(low, high, 7)
    ax.set_yticks(ticks, labels=[number(v) for v in ticks])
    ax.minorticks_off()
    ax.set_title(panel.title)
    ax.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best", fontsize=9.5, frameon=True, framealpha=0.85, edgecolor="none", handlelength=2.2)
    colours = np.concatenate([label_colours(diagram), np.zeros((1, 4))])
    by_value = np.full(len(axis.values), -1, dtype=np.int64)
    by_value[diagram.codes[cells, layout.x]] = cells
    strip.pcolormesh(
        axis.edges()[0], [0.0, 1.0], colours[spread_out(axis, by_value)][None], shading="flat", antialiased=False
    )
    set_axis(strip, "x", axis, 9)
    strip.set_yticks([])
    strip.set_ylabel("phase", rotation=0, ha="right", va="center", fontsize=10)
    strip.spines[["top", "right", "left", "bottom"]].set_visible(False)


def line_legend(ax: Any, diagram: PhaseDiagram) -> None:
    """The colours of the strips, and what the bands are."""
    from matplotlib.patches import Patch

    ax.set_axis_off()
    total = diagram.counts.sum(axis=0)
    handles = [Patch(facecolor=label_colour(i), label=label) for i, label in enumerate(diagram.labels) if total[i]]
    if diagram.replicates > 1:
        handles.append(Patch(facecolor=INK, alpha=0.16, label="range of the replicates about their median"))
    if handles:
        ax.legend(handles=handles, loc="upper left", ncols=6, fontsize=10.5, handlelength=1.3, columnspacing=1.6)

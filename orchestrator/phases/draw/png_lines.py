"""Panels of the still picture that are lines: observations along one axis, and the phase as a strip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.draw.png_map import label_colours, set_axis
from orchestrator.phases.layout import Layout, Panel, markers, shared_words, spread_out, wants_log
from orchestrator.phases.scale import linear_ticks, log_ticks
from orchestrator.phases.text import INK, LINE_STYLES, MARKER_DASHES, SOFT, label_colour, number, words
from orchestrator.phases.theory.overlay import COLOURS, DASH, MEAN, Overlay


def draw_lines(
    ax: Any,
    strip: Any,
    diagram: PhaseDiagram,
    panel: Panel,
    layout: Layout,
    names: Sequence[str],
    metrics: Mapping[str, float],
    theory: Overlay | None = None,
) -> None:
    """Medians along x with the range of the replicates; open triangles at the bound where it was not reached.

    What theory predicts is dashed.
    """
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
        beside = theory is not None and name in theory.lines and diagram.replicates > 1
        ax.fill_between(
            u[placed], values.low[cells][placed], values.high[cells][placed], color=colour, alpha=0.16, linewidth=0
        )
        if np.isfinite(median[placed]).any():
            ax.plot(
                u[placed],
                median[placed],
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=4.5,
                linewidth=1.8,
                label=words(name) + beside * " (median)",
            )
        ax.plot(u[~placed], median[~placed], color=colour, linestyle="none", marker=marker, markersize=4.5)
        off = values.not_reached[cells] & (values.censored[cells] > 0)
        if off.any():
            ax.plot(
                u[off],
                values.bound[cells][off],
                linestyle="none",
                marker="^",
                markersize=6,
                markerfacecolor="white",
                markeredgecolor=colour,
                label=f"{words(name)}: not reached by",
            )
    if theory is not None:
        _draw_theory(ax, theory, names, cells, u, placed)
    for k, mark in enumerate(markers(metrics, axis, panel)):
        at = axis.to_position(mark.value)
        if at is not None:
            ax.axvline(
                at,
                color=SOFT,
                linewidth=1.3,
                linestyle=MARKER_DASHES[k % len(MARKER_DASHES)],
                label=f"{mark.name}: {number(mark.value)}",
                zorder=1,
            )
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


def _draw_theory(
    ax: Any,
    theory: Overlay,
    names: Sequence[str],
    cells: NDArray[np.int64],
    u: NDArray[np.float64],
    placed: NDArray[np.bool_],
) -> None:
    for k, name in enumerate(names):
        line = theory.lines.get(name)
        if line is None or not np.isfinite(line.value[cells]).any():
            continue
        colour, value, error = COLOURS[k % len(COLOURS)], line.value[cells], line.error[cells]
        ax.plot(
            u[placed],
            value[placed],
            color=colour,
            linestyle=DASH,
            linewidth=1.6,
            zorder=3,
            label=line.label(name, len(names) > 1),
        )
        ax.plot(u[~placed], value[~placed], color=colour, linestyle="none", marker="_", markersize=13, zorder=3)
        mean, spread = line.mean[cells], line.mean_error[cells]
        if np.isfinite(spread).any():
            # A predicted mean is met by the mean, which is not the median that the line shows.
            bars = {"elinewidth": 1.1, "markeredgewidth": 1.1, "markersize": 3.6, "markerfacecolor": "white"}
            ax.errorbar(u, mean, yerr=np.nan_to_num(spread), fmt="D", color=colour, zorder=3.2, **bars)
        if (error > 0).any():
            ax.fill_between(
                u[placed], (value - error)[placed], (value + error)[placed], color=colour, alpha=0.14, linewidth=0
            )


def line_legend(ax: Any, diagram: PhaseDiagram, theory: Overlay | None = None) -> None:
    """The colours of the strips, what the bands are, and the marks of measured means beside theory."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ax.set_axis_off()
    total = diagram.counts.sum(axis=0)
    used = [i for i in range(len(total)) if total[i]]
    handles: list[Any] = [Patch(facecolor=label_colour(i), label=diagram.labels[i]) for i in used]
    if diagram.replicates > 1:
        handles.append(Patch(facecolor=INK, alpha=0.16, label="range of the replicates about their median"))
    if theory is not None and any(np.isfinite(line.mean_error).any() for line in theory.lines.values()):
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="D",
                markersize=4.5,
                markerfacecolor="white",
                markeredgecolor=COLOURS[0],
                label=MEAN,
            )
        )
    if handles:
        ax.legend(handles=handles, loc="upper left", ncols=6, fontsize=10.5, handlelength=1.3, columnspacing=1.6)

"""The still picture of observations along one axis, with the phases as a strip below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.draw import png
from orchestrator.phases.draw.png_map import label_colours
from orchestrator.phases.layout import (
    Layout,
    Marker,
    Panel,
    alike,
    along,
    grid_of,
    headline,
    markers,
    mesh_of,
    shared_words,
    summary,
    wants_log,
)
from orchestrator.phases.style import look
from orchestrator.phases.text import INK, LINE_STYLES, MARKER_DASHES, SOFT, named
from orchestrator.phases.theory.overlay import COLOURS, DASH, MEAN, Overlay


def draw_curves(
    diagram: PhaseDiagram,
    layout: Layout,
    wanted: Sequence[str],
    metrics: Mapping[str, float],
    path: png.Output,
    *,
    theory: Overlay | None = None,
) -> None:
    """Draw observations along x, a panel per value of y, with the phase as a strip below each.

    `layout.lines` and `headline` must not be empty. The predictions of `theory` are drawn beside the observations.
    """
    chosen = tuple(name for name in look().style.panels if name in diagram.observations)
    groups = alike(chosen or headline(wanted, diagram.observations)[:4])
    several = len(layout.lines) > 1
    panels = [(p, groups[0]) for p in layout.lines] if several else [(layout.lines[0], group) for group in groups[:3]]
    texts = [text for panel, names in panels for text in (panel.called, shared_words(names))]
    columns = min(len(panels), 3, png.most_across(), png.titles_across(texts))
    rows = -(-len(panels) // columns)
    marked = {panel.title: markers(metrics, diagram.axes[layout.x or 0], panel) for panel, _ in panels}
    drawn = [name for _, names in panels for name in names]
    labels = _labels(diagram, [panel for panel, _ in panels], drawn, theory)
    labels += list(dict.fromkeys(m.name if several else m.text for marks in marked.values() for m in marks))
    _, below = png.legend_rows(labels, max(5.6 * columns, 9.0))
    heights = [5.2 if png.on_page() else 4.1] * rows + [below]
    with png.sheet(path, diagram.name, summary(diagram), [5.6] * columns, heights, least_width=9.0) as (fig, grid):
        shared: Any = None
        drawn_in: list[Any] = []
        for k, (panel, names) in enumerate(panels):
            inner = grid[k // columns, k % columns].subgridspec(2, 1, height_ratios=[12, 1], hspace=0.02)
            ax = fig.add_subplot(inner[0], sharey=shared)
            drawn_in.append(ax)
            shared = (shared or ax) if several else None
            strip = fig.add_subplot(inner[1])
            _draw_lines(ax, strip, diagram, panel, layout.x or 0, names, marked[panel.title], theory, several=several)
        for ax, (panel, names) in zip(drawn_in, panels, strict=True):
            _draw_ranges(ax, diagram, panel, layout.x or 0, names)
        handles = [*png.shared_legend(drawn_in), *_handles(diagram, drawn, theory)]
        across, _ = png.legend_rows([str(h.get_label()) for h in handles], max(5.6 * columns, 9.0))
        png.draw_legend(fig.add_subplot(grid[rows, :]), handles, across, columnspacing=1.6, handlelength=2.2)


def _draw_lines(
    ax: Any,
    strip: Any,
    diagram: PhaseDiagram,
    panel: Panel,
    x: int,
    names: Sequence[str],
    marked: Sequence[Marker],
    theory: Overlay | None,
    *,
    several: bool,
) -> None:
    """Medians along x, with room for the replicates' range; open triangles at the bound where it was not reached."""
    axis = diagram.axes[x]
    cells, u, placed = along(diagram, panel, x)
    if wants_log(names[0], np.concatenate([diagram.observations[name].median for name in names])):
        ax.set_yscale("log")
    for k, name in enumerate(names):
        values = diagram.observations[name].of(cells)
        colour, dash, marker = LINE_STYLES[k % len(LINE_STYLES)]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5}
        beside = theory is not None and name in theory.lines and diagram.replicates > 1
        for edge in (values.least, values.high):
            ax.update_datalim(np.column_stack([u, edge])[placed])
        if np.isfinite(values.median[placed]).any():
            style["label"] = named(name) + beside * " (median)"
            ax.plot(u[placed], values.median[placed], linestyle=dash, linewidth=1.8, **style)
        ax.plot(u[~placed], values.median[~placed], linestyle="none", **style | {"label": None})
        between = np.isfinite(values.to)
        if between.any():
            low, high = (values.median - values.above)[between], (values.to - values.median)[between]
            bars = {"fmt": "none", "ecolor": colour, "elinewidth": 1.1, "capsize": 2.5}
            ax.errorbar(u[between], values.median[between], yerr=[low, high], **bars)
        off = values.not_reached & (values.censored > 0)
        if off.any():
            text, face = (
                _bound_label(name),
                {"markerfacecolor": "white", "markeredgecolor": colour},
            )
            ax.plot(u[off], values.bound[off], linestyle="none", marker="^", markersize=6, label=text, **face)
    if theory is not None:
        _draw_theory(ax, theory, names, cells, u, placed)
    for k, mark in enumerate(marked):
        style = {"color": SOFT, "linewidth": 1.3, "linestyle": MARKER_DASHES[k % len(MARKER_DASHES)], "zorder": 1}
        ax.axvline(mark.position, label=mark.name if several else mark.text, **style)
    png.set_axis(ax, "x", axis, 9)
    ax.set_xlabel("")
    ax.tick_params(labelbottom=False)
    ax.set_ylabel(shared_words(names))
    png.set_round_ticks(ax.yaxis, 7)
    ax.minorticks_off()
    places = "; ".join(mark.text for mark in marked) if several else ""
    ax.set_title("\n".join(filter(None, (panel.called, places))), fontsize=png.points(10.5) if places else None)
    ax.grid(axis="y")
    grid = grid_of(diagram, panel, x, None)
    assert grid is not None
    edges_x, edges_y, shown = mesh_of(diagram, grid, x, None)
    colours = np.concatenate([label_colours(diagram), np.zeros((1, 4))])
    strip.pcolormesh(edges_x, edges_y, colours[shown], shading="flat", antialiased=False)
    png.set_axis(strip, "x", axis, 9)
    strip.set_yticks([])
    strip.set_ylabel("phase", rotation=0, ha="right", va="center", fontsize=png.points(10))
    strip.spines[["left", "bottom"]].set_visible(False)


def _draw_ranges(ax: Any, diagram: PhaseDiagram, panel: Panel, x: int, names: Sequence[str]) -> None:
    """The range of the replicates, up to the top of a panel whose limits are final where it has no upper end."""
    if diagram.replicates < 2:
        return
    cells, u, placed = along(diagram, panel, x)
    limits = ax.get_ylim()
    for k, name in enumerate(names):
        values = diagram.observations[name].of(cells[placed])
        top = np.where(values.is_open, limits[1], values.high)
        colour = LINE_STYLES[k % len(LINE_STYLES)][0]
        ax.fill_between(u[placed], values.least, top, color=colour, alpha=0.16, linewidth=0, zorder=0.9)
    ax.set_ylim(limits)


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
        label, on, low = line.label(name, len(names) > 1), u[placed], (value - error)[placed]
        ax.plot(on, value[placed], color=colour, linestyle=DASH, linewidth=1.6, zorder=3, label=label)
        ax.plot(u[~placed], value[~placed], color=colour, linestyle="none", marker="_", markersize=13, zorder=3)
        mean, spread = line.mean[cells], line.mean_error[cells]
        if np.isfinite(spread).any():
            # A predicted mean is compared with the mean, which is not the median that the line shows.
            bars = {"elinewidth": 1.1, "markeredgewidth": 1.1, "markersize": 3.6, "markerfacecolor": "white"}
            ax.errorbar(u, mean, yerr=np.nan_to_num(spread), fmt="D", color=colour, zorder=3.2, **bars)
        if (error > 0).any():
            ax.fill_between(on, low, (value + error)[placed], color=colour, alpha=0.14, linewidth=0)


def _labels(diagram: PhaseDiagram, panels: Sequence[Panel], drawn: Sequence[str], theory: Overlay | None) -> list[str]:
    """What the legend will say, without the marks: its size is needed before anything is drawn."""
    labels = [str(handle.get_label()) for handle in _handles(diagram, drawn, theory)]
    cells = np.concatenate([panel.cells for panel in panels])
    for name in dict.fromkeys(drawn):
        values = diagram.observations[name].of(cells)
        labels += [named(name) + " (median)"] * bool(np.isfinite(values.median).any())
        labels += [_bound_label(name)] * bool((values.not_reached & (values.censored > 0)).any())
        if theory is not None and name in theory.lines:
            labels.append(theory.lines[name].label(name, len(set(drawn)) > 1))
    return labels


def _bound_label(name: str) -> str:
    return f"{named(name)}: lower bound, not reached"


def _handles(diagram: PhaseDiagram, drawn: Sequence[str], theory: Overlay | None) -> list[Any]:
    """Legend entries for the strips, the bands, the bars, and the measured means beside theory."""
    handles = png.phase_swatches(diagram)
    if diagram.replicates > 1:
        text = "range of the replicates about their median"
        if any(diagram.observations[name].is_open.any() for name in drawn):
            text = "range of the replicates; no upper end where one did not reach it"
        handles.append(png.swatch(text, INK, alpha=0.16))
    if any(np.isfinite(diagram.observations[name].to).any() for name in drawn):
        handles.append(png.symbol("bars: the reports between which the median step lies", "|", INK, INK, 7))
    if theory is not None and any(np.isfinite(line.mean_error).any() for line in theory.lines.values()):
        handles.append(png.symbol(MEAN, "D", "white", COLOURS[0], 4.5))
    return handles

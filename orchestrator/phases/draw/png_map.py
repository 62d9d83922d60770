"""Panels of the still picture that are maps: the labels, and observations as colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.layout import Layout, Panel, grid_of, spread_out, wants_log
from orchestrator.phases.map.contour import boundary
from orchestrator.phases.scale import AxisScale, linear_ticks, log_ticks
from orchestrator.phases.text import INK, NOT_REACHED, SOFT, label_colour, number, words
from orchestrator.phases.theory.overlay import COLOURS, DASH, Overlay, caption

_SPLIT_UP_TO = 10_000
"""Cells up to which disagreement is drawn as split cells; beyond, as paler colour."""


def draw_labels(
    ax: Any, diagram: PhaseDiagram, panel: Panel, x: int, y: int | None, title: str, theory: Overlay | None = None
) -> None:
    """The majority label of every cell; where replicates disagree, a corner as large as the runner-up's share.

    The boundary of the phases that theory predicts is dashed.
    """
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.patheffects import withStroke

    colours = _colours(diagram, pale=len(panel.cells) > _SPLIT_UP_TO)
    boxes = _frame(ax, diagram, x, y, title)
    grid = _grid(diagram, panel, x, y)
    if grid is None:
        assert y is not None
        _points(ax, diagram, panel, x, y, colours)
        return
    _mesh(ax, diagram, grid, x, y, colours)
    cells = panel.cells
    _hatch(ax, diagram, panel, x, y)
    split = cells[diagram.runner_up[cells] >= 0]
    if len(cells) <= _SPLIT_UP_TO and len(split):
        second = diagram.runner_up[split]
        leg = np.sqrt(2 * diagram.share[split, second])
        low_x, high_x, low_y, high_y = (side[split] for side in boxes)
        corner = np.stack(
            [
                np.column_stack([high_x, low_y]),
                np.column_stack([high_x - leg * (high_x - low_x), low_y]),
                np.column_stack([high_x, low_y + leg * (high_y - low_y)]),
            ],
            axis=1,
        )
        ax.add_collection(
            PolyCollection(list(corner), facecolors=[label_colour(i) for i in second], linewidths=0, antialiaseds=False)
        )
    if y is not None:
        share = np.where(grid[:, :, None] < 0, np.nan, diagram.share[grid])
        lines = boundary(diagram.axes[x], diagram.axes[y], share)
        # On a fine grid a bold line would hide the cells it runs between.
        width = float(np.clip(75 / max(grid.shape), 0.4, 1.5))
        for colour, drawn_width in (("white", width + 1.7), (INK, width)) if width > 1 else ((INK, width),):
            ax.add_collection(LineCollection(lines, colors=colour, linewidths=drawn_width, capstyle="round"))
        told = theory.map_of(diagram, panel, x, y) if theory is not None else None
        if told is not None:
            # Dashes edged in white are seen on any phase, and between them the measured line below.
            dashes = LineCollection(told.lines, colors=COLOURS[0], linewidths=width + 0.4, linestyles=[DASH])
            dashes.set(path_effects=[withStroke(linewidth=width + 1.9, foreground="white")], zorder=2.5)
            ax.add_collection(dashes)


def draw_values(
    fig: Any, ax: Any, below: Any, diagram: PhaseDiagram, panel: Panel, x: int, y: int | None, name: str
) -> None:
    """The median of an observation as colour, its colour bar in `below`; what was not reached is grey and hatched."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    values = diagram.observations[name]
    median = values.median
    boxes = _frame(ax, diagram, x, y, words(name))
    finite = median[np.isfinite(median)]
    log = wants_log(name, median)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = (low / 1.5, high * 1.5) if log else (low - 0.5, high + 0.5)
    norm = (LogNorm if log else Normalize)(low, high)
    colormap = colormaps["viridis"]
    colours = np.zeros((len(median), 4))
    colours[np.isfinite(median)] = colormap(norm(finite))
    colours[values.not_reached] = _rgba(NOT_REACHED)
    grid = _grid(diagram, panel, x, y)
    if grid is None:
        assert y is not None
        _points(ax, diagram, panel, x, y, colours)
    else:
        _mesh(ax, diagram, grid, x, y, colours)
        _hatch(ax, diagram, panel, x, y)
        unreached = panel.cells[values.not_reached[panel.cells]]
        _hatched(ax, boxes, unreached, face="none", edge="#A8A8A8", hatch="...")
    below.set_axis_off()
    bar = fig.colorbar(
        ScalarMappable(norm=norm, cmap=colormap),
        cax=below.inset_axes((0.04, 0.8, 0.92, 0.16)),
        orientation="horizontal",
    )
    bar.outline.set_visible(False)
    at = log_ticks(math.log10(low), math.log10(high), 6) if log else linear_ticks(low, high, 6)
    bar.set_ticks(at, labels=[number(v) for v in at])
    bar.minorticks_off()
    if values.not_reached[panel.cells].any():
        from matplotlib.patches import Patch

        below.legend(
            handles=[Patch(facecolor=NOT_REACHED, edgecolor="#A8A8A8", hatch="...", linewidth=0)],
            labels=["not reached by the median replicate"],
            loc="lower left",
            bbox_to_anchor=(0.0, -0.12),
            fontsize=10,
        )


def draw_bars(ax: Any, diagram: PhaseDiagram) -> None:
    """Where nothing varies: how many trials have each label."""
    total = diagram.counts.sum(axis=0)
    shown = [i for i in range(len(total)) if total[i]]
    ax.barh(range(len(shown)), total[shown], color=[label_colour(i) for i in shown])
    ax.set_yticks(range(len(shown)), [diagram.labels[i] for i in shown])
    ax.invert_yaxis()
    ax.set_xlabel("trials")
    ax.spines[["top", "right"]].set_visible(False)


def legend_marks(
    diagram: PhaseDiagram, panels: Sequence[Panel], layout: Layout, theory: Overlay | None = None
) -> list[Any]:
    """Handles that explain the colours and marks that occur."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    total = diagram.counts.sum(axis=0)
    marks: list[Any] = [
        Patch(facecolor=label_colour(i), label=label) for i, label in enumerate(diagram.labels) if total[i]
    ]
    if layout.x is None:
        return marks
    cells = np.concatenate([panel.cells for panel in panels])
    holes = diagram.majority[cells] < 0
    if (diagram.runner_up[cells] >= 0).any():
        pale = max(len(panel.cells) for panel in panels) > _SPLIT_UP_TO
        several = f"replicates disagree ({'paler' if pale else 'split cell'})"
        marks.append(
            Line2D(
                [],
                [],
                marker=(3, 0, 45),
                color="none",
                markerfacecolor=SOFT,
                markeredgecolor="none",
                markersize=9,
                label=several,
            )
        )
    if (holes & (diagram.failed[cells] > 0)).any():
        marks.append(Patch(facecolor="white", edgecolor=INK, hatch="xxxx", linewidth=0.5, label="failed"))
    if (holes & (diagram.failed[cells] == 0)).any():
        marks.append(Patch(facecolor="white", edgecolor="#AAAAAA", hatch="////", linewidth=0.5, label="missing"))
    told = [
        one
        for panel in panels
        if theory is not None
        if (one := theory.map_of(diagram, panel, layout.x, layout.y)) is not None
    ]
    if told:
        text = caption(sum(t.compared for t in told), sum(t.differ for t in told))
        marks.append(Line2D([], [], color=COLOURS[0], linestyle=DASH, linewidth=2, label=text))
    return marks


def draw_legend(ax: Any, marks: Sequence[Any], columns: int) -> None:
    """Put a legend into an otherwise empty `ax`."""
    ax.set_axis_off()
    if marks:
        legend = ax.legend(
            handles=marks,
            loc="upper left",
            ncols=columns,
            borderaxespad=0.2,
            fontsize=10.5,
            handlelength=1.3,
            columnspacing=1.4,
            labelspacing=0.35,
        )
        legend.set_in_layout(False)  # A long label must not push the panels apart.


def set_axis(ax: Any, which: str, axis: AxisScale, most: int) -> None:
    """Put an axis's span, ticks and label on one side of a panel."""
    from matplotlib.ticker import FixedLocator

    at, texts = axis.ticks(most)
    side = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}lim")(*axis.span)
    side.set_ticks(at, labels=texts)
    if which == "x" and (len(texts) + 1) * max(map(len, texts), default=0) > 42:
        side.set_tick_params(rotation=30)
        for text in side.get_ticklabels():
            text.set(horizontalalignment="right", rotation_mode="anchor")
    side.set_minor_locator(FixedLocator(axis.minor_ticks()))
    getattr(ax, f"set_{which}label")(axis.label)


def label_colours(diagram: PhaseDiagram) -> NDArray[np.float64]:
    """(C, 4) the colour of every cell's majority label, transparent in a hole."""
    return _colours(diagram, pale=False)


def _colours(diagram: PhaseDiagram, *, pale: bool) -> NDArray[np.float64]:
    palette = np.array([_rgba(label_colour(i)) for i in range(len(diagram.labels))] + [(0, 0, 0, 0)])
    colours = palette[diagram.majority]
    if pale:
        strength = np.nan_to_num(diagram.agreement, nan=1.0)[:, None]
        colours[:, :3] = 1 - (1 - colours[:, :3]) * (0.25 + 0.75 * strength)
    return np.asarray(colours, dtype=np.float64)


def _rgba(colour: str) -> tuple[float, float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, 1.0


def _grid(diagram: PhaseDiagram, panel: Panel, x: int, y: int | None) -> NDArray[np.int64] | None:
    if y is not None:
        return grid_of(diagram, panel, x, y)
    row = np.full((len(diagram.axes[x].values), 1), -1, dtype=np.int64)
    row[diagram.codes[panel.cells, x], 0] = panel.cells
    return row


Boxes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""(C,) each: left, right, bottom and top of every cell, in drawing positions."""


def _boxes(diagram: PhaseDiagram, x: int, y: int | None) -> Boxes:
    across, code = diagram.axes[x], diagram.codes
    if y is None:
        ones = np.ones(len(code))
        return across.low[code[:, x]], across.high[code[:, x]], 0 * ones, ones
    up = diagram.axes[y]
    return across.low[code[:, x]], across.high[code[:, x]], up.low[code[:, y]], up.high[code[:, y]]


def _frame(ax: Any, diagram: PhaseDiagram, x: int, y: int | None, title: str) -> Boxes:
    set_axis(ax, "x", diagram.axes[x], 7)
    if y is None:
        ax.set_ylim(0, 1)
        ax.set_yticks([])
    else:
        set_axis(ax, "y", diagram.axes[y], 8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title)
    return _boxes(diagram, x, y)


def _mesh(
    ax: Any, diagram: PhaseDiagram, grid: NDArray[np.int64], x: int, y: int | None, colours: NDArray[np.float64]
) -> None:
    wide = spread_out(diagram.axes[x], grid)
    tall = wide if y is None else spread_out(diagram.axes[y], wide.T).T
    edges_x = diagram.axes[x].edges()[0]
    edges_y = np.array([0.0, 1.0]) if y is None else diagram.axes[y].edges()[0]
    padded = np.concatenate([colours, np.zeros((1, 4))])
    ax.pcolormesh(edges_x, edges_y, padded[tall.T], shading="flat", antialiased=False, linewidth=0)


def _points(ax: Any, diagram: PhaseDiagram, panel: Panel, x: int, y: int, colours: NDArray[np.float64]) -> None:
    cells = panel.cells[colours[panel.cells, 3] > 0]
    at = diagram.axes[x].position[diagram.codes[:, x]], diagram.axes[y].position[diagram.codes[:, y]]
    size = float(np.clip(9000 / max(len(panel.cells), 1), 2, 45))
    edge = "white" if size > 12 else "none"
    ax.scatter(at[0][cells], at[1][cells], c=colours[cells], s=size, linewidths=0.4, edgecolors=edge)
    holes = panel.cells[diagram.majority[panel.cells] < 0]
    ax.scatter(at[0][holes], at[1][holes], marker="x", c=SOFT, s=size, linewidths=0.8)


def _hatch(ax: Any, diagram: PhaseDiagram, panel: Panel, x: int, y: int | None) -> None:
    boxes = _boxes(diagram, x, y)
    holes = panel.cells[diagram.majority[panel.cells] < 0]
    failed = diagram.failed[holes] > 0
    for cells, colour, hatch in ((holes[failed], INK, "xxxx"), (holes[~failed], "#AAAAAA", "////")):
        _hatched(ax, boxes, cells, face="white", edge=colour, hatch=hatch)


def _hatched(ax: Any, boxes: Boxes, cells: NDArray[np.int64], *, face: str, edge: str, hatch: str) -> None:
    """Hatch cells, as one shape: a shape each takes a minute for tens of thousands."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not len(cells):
        return
    left, right, bottom, top = (side[cells] for side in boxes)
    corners = ((left, bottom), (right, bottom), (right, top), (left, top), (left, bottom))
    outline = np.stack([np.column_stack(corner) for corner in corners], axis=1)
    shape = Path.make_compound_path_from_polys(outline)
    ax.add_patch(PathPatch(shape, facecolor=face, edgecolor=edge, hatch=hatch, linewidth=0))

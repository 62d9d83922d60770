"""The still picture of a phase diagram's cells: the labels, and observations as colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.draw import png
from orchestrator.phases.layout import (
    BOUNDARY,
    Layout,
    Panel,
    boundary_of,
    grid_of,
    headline,
    mesh_of,
    summary,
    value_range,
)
from orchestrator.phases.style import PHASE, look
from orchestrator.phases.text import INK, NOT_REACHED, SOFT, label_colour, named, plural, rgb
from orchestrator.phases.theory.overlay import COLOURS, DASH, Overlay, caption

_SPLIT_UP_TO = 10_000
"""Cells up to which disagreement is drawn as split cells; beyond, as paler colour."""
_HATCH_GREY = "#A8A8A8"


def draw_map(
    diagram: PhaseDiagram, layout: Layout, wanted: Sequence[str], path: png.Output, *, theory: Overlay | None = None
) -> None:
    """Draw the label map, with up to two heat maps of observations beside it.

    Args:
        diagram: what to draw.
        layout: its panels; with several, the observations are left to the interactive picture.
        wanted: the job's headline observations.
        path: where it goes.
        theory: its predicted phases are drawn over the measured ones.
    """
    panels = layout.panels[: png.MOST_PANELS]
    beside, phase = _chosen(wanted, diagram) if len(panels) == 1 and layout.x is not None else ((), True)
    across = png.columns_for(len(panels)) if phase else 0
    columns, rows = across + len(beside), -(-len(panels) // max(across, 1))
    handles = _handles(diagram, panels, layout, theory)
    labels = [str(handle.get_label()) for handle in handles]
    per_row = png.legend_columns(labels, 4.4, 2) if beside else max(2, int(columns * 4.4 / 2.3))
    below = max(0.8 if beside else 0.3, 0.24 * -(-len(handles) // per_row) + 0.1)
    left_out = len(layout.panels) - len(panels)
    heading = summary(diagram) + (f"  ·  {plural(left_out, 'more slice')} in the HTML" if left_out else "")
    heights = [3.3 if rows > 1 else 3.8] * rows + [below]
    with png.sheet(path, diagram.name, heading, [4.4] * columns, heights, least_width=8.0, below=bool(beside)) as (
        fig,
        grid,
    ):
        axes = [fig.add_subplot(grid[k // across, k % across]) for k in range(len(panels) * phase)]
        for ax, panel in zip(axes, panels[: len(axes)], strict=True):
            draw_panel(ax, diagram, panel, layout, panel.called or (named(PHASE) if beside else ""), theory)
        png.shared_labels(axes, max(across, 1))
        for k, name in enumerate(beside):
            ax, under = fig.add_subplot(grid[0, across + k]), fig.add_subplot(grid[1, across + k])
            _draw_values(fig, ax, under, diagram, panels[0], layout.x or 0, layout.y, name)
            ax.set_ylabel(ax.get_ylabel() if across + k == 0 else "")
        if phase:
            png.draw_legend(fig.add_subplot(grid[rows, : 1 if beside else columns]), handles, per_row)


def draw_panel(
    ax: Any,
    diagram: PhaseDiagram,
    panel: Panel,
    layout: Layout,
    title: str | None = None,
    theory: Overlay | None = None,
) -> None:
    """One slice of the label map; its title is its place on the further axes, unless given."""
    if layout.x is None:
        _draw_bars(ax, diagram)
    else:
        _draw_labels(ax, diagram, panel, layout.x, layout.y, panel.called if title is None else title, theory)


def _chosen(wanted: Sequence[str], diagram: PhaseDiagram) -> tuple[tuple[str, ...], bool]:
    """The observations that are drawn, and whether the labels are: the style's panels, else two headline ones."""
    named_ = look().style.panels
    if named_:
        observed = tuple(name for name in named_ if name in diagram.observations)
        return observed, PHASE in named_ or not observed
    few = 2 if png.most_across() > 2 else 0
    return headline(wanted, diagram.observations)[:few], True


def _draw_labels(
    ax: Any, diagram: PhaseDiagram, panel: Panel, x: int, y: int | None, title: str, theory: Overlay | None
) -> None:
    """The majority label of every cell; where replicates disagree, a corner as large as the runner-up's share."""
    from matplotlib.collections import PolyCollection

    cells = panel.cells
    colours = label_colours(diagram, pale=len(cells) > _SPLIT_UP_TO)
    boxes = _frame(ax, diagram, x, y, title)
    grid = grid_of(diagram, panel, x, y)
    if grid is None:
        assert y is not None
        _points(ax, diagram, panel, x, y, colours)
        return
    _mesh(ax, diagram, grid, x, y, colours)
    _hatch_holes(ax, diagram, panel, boxes)
    split = cells[diagram.runner_up[cells] >= 0]
    if len(cells) <= _SPLIT_UP_TO and len(split):
        second = diagram.runner_up[split]
        leg = np.sqrt(2 * diagram.share[split, second])
        left, right, bottom, top = (side[split] for side in boxes)
        corners = (right, bottom), (right - leg * (right - left), bottom), (right, bottom + leg * (top - bottom))
        triangles = np.stack([np.column_stack(corner) for corner in corners], axis=1)
        face = [label_colour(i) for i in second]
        ax.add_collection(PolyCollection(list(triangles), facecolors=face, linewidths=0, antialiaseds=False))
    if y is None:
        return
    # On a fine grid a bold line would hide the cells it runs between.
    width = float(np.clip(75 / max(grid.shape), 0.4, 1.5))
    png.draw_edged(ax, boundary_of(diagram, panel, x, y), width, 1.7 if width > 1 else 0)
    predicted = theory.map_of(diagram, panel, x, y) if theory is not None else None
    if predicted is not None:
        png.draw_predicted(ax, predicted.lines, width + 0.4)


def _draw_values(
    fig: Any, ax: Any, below: Any, diagram: PhaseDiagram, panel: Panel, x: int, y: int | None, name: str
) -> None:
    """The median of an observation as colour, with its colour bar in `below`; hatched grey where it was not reached."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    values = diagram.observations[name]
    boxes = _frame(ax, diagram, x, y, named(name))
    low, high, log = value_range(name, values.median)
    norm, colormap = (LogNorm if log else Normalize)(low, high), colormaps["viridis"]
    finite = np.isfinite(values.median)
    colours = np.zeros((len(finite), 4))
    colours[finite] = colormap(norm(values.median[finite]))
    colours[values.not_reached] = (*rgb(NOT_REACHED), 1)
    grid = grid_of(diagram, panel, x, y)
    unreached = panel.cells[values.not_reached[panel.cells]]
    if grid is None:
        assert y is not None
        _points(ax, diagram, panel, x, y, colours)
    else:
        _mesh(ax, diagram, grid, x, y, colours)
        _hatch_holes(ax, diagram, panel, boxes)
        _hatch(ax, boxes, unreached, face="none", edge=_HATCH_GREY, hatch="...")
    below.set_axis_off()
    place = below.inset_axes((0.04, 0.8, 0.92, 0.16))
    bar = fig.colorbar(ScalarMappable(norm=norm, cmap=colormap), cax=place, orientation="horizontal")
    bar.outline.set_visible(False)
    png.set_round_ticks(bar.ax.xaxis, 6, inset_in=below)
    if len(unreached):
        grey = png.swatch("median not reached", NOT_REACHED, edgecolor=_HATCH_GREY, hatch="...", lw=0)
        below.legend(handles=[grey], loc="lower left", bbox_to_anchor=(0.0, -0.12), fontsize=png.points(10))


def _draw_bars(ax: Any, diagram: PhaseDiagram) -> None:
    """How many trials have each label, where nothing varies."""
    used = diagram.used
    ax.barh(range(len(used)), diagram.counts.sum(axis=0)[used], color=[label_colour(i) for i in used])
    ax.set_yticks(range(len(used)), [diagram.labels[i] for i in used])
    ax.invert_yaxis()
    ax.set_xlabel("trials")


def _handles(diagram: PhaseDiagram, panels: Sequence[Panel], layout: Layout, theory: Overlay | None) -> list[Any]:
    """Legend entries for the colours and marks that occur."""
    handles = png.phase_swatches(diagram)
    if layout.x is None:
        return handles
    cells = np.concatenate([panel.cells for panel in panels])
    holes = diagram.majority[cells] < 0
    x, y = layout.x, layout.y
    if any(boundary_of(diagram, panel, x, y) for panel in panels):
        handles.append(png.stroke(BOUNDARY, INK, linewidth=1.5))
    if (diagram.runner_up[cells] >= 0).any():
        pale = max(len(panel.cells) for panel in panels) > _SPLIT_UP_TO
        text = f"replicates disagree ({'paler' if pale else 'split cell'})"
        handles.append(png.symbol(text, (3, 0, 45), SOFT, "none", 9))
    if (holes & (diagram.failed[cells] > 0)).any():
        handles.append(png.swatch("failed", "white", edgecolor=INK, hatch="xxxx", linewidth=0.5))
    if (holes & (diagram.failed[cells] == 0)).any():
        handles.append(png.swatch("missing", "white", edgecolor="#AAAAAA", hatch="////", linewidth=0.5))
    maps = [theory.map_of(diagram, panel, x, y) for panel in panels] if theory is not None else []
    if predicted := [one for one in maps if one is not None]:
        text = caption(sum(p.compared for p in predicted), sum(p.differ for p in predicted))
        handles.append(png.stroke(text, COLOURS[0], linestyle=DASH, linewidth=2))
    return handles


def label_colours(diagram: PhaseDiagram, *, pale: bool = False) -> NDArray[np.float64]:
    """(C, 4) the colour of every cell's majority label, transparent in a hole; `pale`: by how many agree."""
    palette = np.array([(*rgb(label_colour(i)), 1.0) for i in range(len(diagram.labels))] + [(0.0, 0.0, 0.0, 0.0)])
    colours = palette[diagram.majority]
    if pale:
        strength = np.nan_to_num(diagram.agreement, nan=1.0)[:, None]
        colours[:, :3] = 1 - (1 - colours[:, :3]) * (0.25 + 0.75 * strength)
    return np.asarray(colours, dtype=np.float64)


Boxes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""(C,) each: left, right, bottom and top of every cell, in drawing positions."""


def _frame(ax: Any, diagram: PhaseDiagram, x: int, y: int | None, title: str) -> Boxes:
    """Set up the axes of a panel; returns where its cells are."""
    png.set_axis(ax, "x", diagram.axes[x], 7)
    ax.set_title(title)
    across, code = diagram.axes[x], diagram.codes
    left, right = across.low[code[:, x]], across.high[code[:, x]]
    if y is None:
        ax.set_ylim(0, 1)
        ax.set_yticks([])
        return left, right, np.zeros(len(code)), np.ones(len(code))
    up = diagram.axes[y]
    png.set_axis(ax, "y", up, 8)
    return left, right, up.low[code[:, y]], up.high[code[:, y]]


def _mesh(
    ax: Any, diagram: PhaseDiagram, grid: NDArray[np.int64], x: int, y: int | None, colours: NDArray[np.float64]
) -> None:
    edges_x, edges_y, cells = mesh_of(diagram, grid, x, y)
    padded = np.concatenate([colours, np.zeros((1, 4))])
    ax.pcolormesh(edges_x, edges_y, padded[cells], shading="flat", antialiased=False, linewidth=0)


def _points(ax: Any, diagram: PhaseDiagram, panel: Panel, x: int, y: int, colours: NDArray[np.float64]) -> None:
    cells = panel.cells[colours[panel.cells, 3] > 0]
    u, v = diagram.axes[x].position[diagram.codes[:, x]], diagram.axes[y].position[diagram.codes[:, y]]
    size = float(np.clip(9000 / max(len(panel.cells), 1), 2, 45))
    edge = "white" if size > 12 else "none"
    ax.scatter(u[cells], v[cells], c=colours[cells], s=size, linewidths=0.4, edgecolors=edge)
    holes = panel.cells[diagram.majority[panel.cells] < 0]
    ax.scatter(u[holes], v[holes], marker="x", c=SOFT, s=size, linewidths=0.8)


def _hatch_holes(ax: Any, diagram: PhaseDiagram, panel: Panel, boxes: Boxes) -> None:
    holes = panel.cells[diagram.majority[panel.cells] < 0]
    failed = diagram.failed[holes] > 0
    _hatch(ax, boxes, holes[failed], face="white", edge=INK, hatch="xxxx")
    _hatch(ax, boxes, holes[~failed], face="white", edge="#AAAAAA", hatch="////")


def _hatch(ax: Any, boxes: Boxes, cells: NDArray[np.int64], *, face: str, edge: str, hatch: str) -> None:
    """Hatch cells as one shape: tens of thousands of separate shapes take a minute."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    if not len(cells):
        return
    left, right, bottom, top = (side[cells] for side in boxes)
    corners = ((left, bottom), (right, bottom), (right, top), (left, top), (left, bottom))
    outline = np.stack([np.column_stack(corner) for corner in corners], axis=1)
    shape = Outline.make_compound_path_from_polys(outline)
    ax.add_patch(PathPatch(shape, facecolor=face, edgecolor=edge, hatch=hatch, linewidth=0))

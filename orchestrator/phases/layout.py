"""Which axes a picture shows, how it is cut into panels, and what is drawn in each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.diagram import CellValues, PhaseDiagram
from orchestrator.phases.map.contour import Line, boundary
from orchestrator.phases.scale import AxisScale
from orchestrator.phases.text import named, number, place_text, plain, plural, words

FEW = 6
"""A second axis with at most this many values is also shown as one line plot per value."""
BOUNDARY = "boundary (equal shares)"
"""What the line between the phases of a grid is called in legends."""
_GRID_FILL = 0.25
"""A map is drawn as a grid if at least this fraction of its cells exists, else as points."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One slice of the diagram: the cells that share a value on every axis but x and y."""

    title: str
    """Those values as text; empty if there are none."""
    fixed: Mapping[str, Scalar | None]
    """Axis -> the value."""
    where: Mapping[str, str]
    """The same in words."""
    cells: NDArray[np.int64]
    """Indices of its cells."""

    @property
    def called(self) -> str:
        """The title in a figure, with the names of its style."""
        return place_text(self.fixed)

    @property
    def called_where(self) -> dict[str, str]:
        """`where` on a page, with the names of its style."""
        return {plain(named(name)): text for name, text in zip(self.fixed, self.where.values(), strict=True)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """How a diagram is laid out."""

    x: int | None
    """Index of the horizontal axis; None if nothing varies."""
    y: int | None
    panels: tuple[Panel, ...]
    """Over all values of the other axes (small multiples)."""
    lines: tuple[Panel, ...]
    """One per value of y, for line plots along x; empty if x is not numeric or y has too many values."""


def lay_out(diagram: PhaseDiagram) -> Layout:
    """Choose x and y (numbers before text, many values before few, then file order) and cut by the other axes."""
    axes = diagram.axes
    size = [len(axis.values) for axis in axes]
    best = sorted(range(len(axes)), key=lambda a: (not axes[a].numeric, -size[a] if len(axes) > 2 else 0, a))[:2]
    if len(best) == 2 and axes[best[0]].numeric == axes[best[1]].numeric:
        best.sort()
        if size[best[0]] <= FEW < size[best[1]]:
            best.reverse()
    x, y = (*best, None, None)[:2]
    others = [a for a in range(len(axes)) if a not in best]
    in_lines = x is not None and axes[x].numeric and len(axes) <= 2 and size[x] > 2 and (y is None or size[y] <= FEW)
    lines = cut(diagram, [] if y is None else [y]) if in_lines else ()
    return Layout(x=x, y=y, panels=cut(diagram, others), lines=lines)


def cut(diagram: PhaseDiagram, by: Sequence[int]) -> tuple[Panel, ...]:
    """A panel for each combination of values of the axes `by` (indices) that has cells."""
    panels = []
    for values in itertools.product(*(range(len(diagram.axes[a].values)) for a in by)):
        cells = np.flatnonzero((diagram.codes[:, list(by)] == np.array(values, dtype=np.int64)).all(axis=1))
        if len(cells) or not by:
            chosen = [(diagram.axes[a], v) for a, v in zip(by, values, strict=True)]
            where = {words(axis.name): axis.text(v) for axis, v in chosen}
            title = ", ".join(f"{name} {text}" for name, text in where.items())
            fixed = {axis.name: axis.values[v] for axis, v in chosen}
            panels.append(Panel(title=title, fixed=fixed, where=where, cells=cells))
    return tuple(panels)


def grid_of(diagram: PhaseDiagram, panel: Panel, x: int, y: int | None) -> NDArray[np.int64] | None:
    """(X, Y) index of the cell at each pair of values, -1 where there is none; None if too sparse for a grid.

    Without y, the grid has one row.
    """
    if y is None:
        row = np.full((len(diagram.axes[x].values), 1), -1, dtype=np.int64)
        row[diagram.codes[panel.cells, x], 0] = panel.cells
        return row
    shape = len(diagram.axes[x].values), len(diagram.axes[y].values)
    if len(panel.cells) < _GRID_FILL * shape[0] * shape[1]:
        return None
    grid = np.full(shape, -1, dtype=np.int64)
    grid[diagram.codes[panel.cells, x], diagram.codes[panel.cells, y]] = panel.cells
    return grid


def boundary_of(diagram: PhaseDiagram, panel: Panel, x: int, y: int | None) -> list[Line]:
    """The lines between the phases of a panel, in drawing positions; none where it is not a grid."""
    grid = None if y is None else grid_of(diagram, panel, x, y)
    if grid is None or y is None:
        return []
    share = np.where(grid[:, :, None] < 0, np.nan, diagram.share[grid])
    return boundary(diagram.axes[x], diagram.axes[y], share)


def mesh_of(
    diagram: PhaseDiagram, grid: NDArray[np.int64], x: int, y: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """A grid as drawn: edges along x, edges along y, and the cell in each rectangle (y first; -1 in a gap)."""
    padded = np.pad(grid, ((0, 1), (0, 1)), constant_values=-1)
    edges_x, index_x = diagram.axes[x].edges()
    edges_y, index_y = diagram.axes[y].edges() if y is not None else (np.array([0.0, 1.0]), np.zeros(1, dtype=np.int64))
    return edges_x, edges_y, padded[np.ix_(index_x, index_y)].T


def along(
    diagram: PhaseDiagram, panel: Panel, x: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """The cells of a panel in the order of x, their positions, and whether these are on the scale (not separate)."""
    cells = panel.cells[np.argsort(diagram.codes[panel.cells, x])]
    codes = diagram.codes[cells, x]
    return cells, diagram.axes[x].position[codes], codes >= diagram.axes[x].special


def headline(wanted: Sequence[str], observations: Mapping[str, CellValues]) -> tuple[str, ...]:
    """The observations to draw: those wanted and present, else the first two that have any finite value."""
    named = tuple(name for name in wanted if name in observations)
    return named or tuple(name for name, cells in observations.items() if cells.reached.any())[:2]


def quantity(name: str) -> str:
    """The quantity in an observation's name, e.g. `step` or `error`; else its last word."""
    parts = name.lower().split("_")
    return next((kind for kind in ("step", "error", "loss", "accuracy", "risk") if kind in parts), parts[-1])


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Group observations by quantity, in order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(quantity(name), []).append(name)
    return [tuple(group) for group in groups.values()]


def shared_words(names: Sequence[str]) -> str:
    """The label of an axis that shows these observations: the name of one, or the words that several share."""
    if len(names) == 1:
        return named(names[0])
    parts = [name.split("_") for name in names]
    common = [word for word in parts[0] if all(word in other for other in parts[1:])]
    return " ".join(word for word in common if word != "final") or quantity(names[0])


def wants_log(name: str, values: NDArray[np.float64]) -> bool:
    """Whether to use a log scale: all values are positive and span a factor of 20 or more.

    Errors and accuracies are fractions and stay linear.
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or quantity(name) in ("error", "accuracy"):
        return False
    return bool(finite.min() > 0 and finite.max() >= 20 * finite.min())


def value_range(name: str, median: NDArray[np.float64]) -> tuple[float, float, bool]:
    """The ends of an observation's colour scale, and whether it is logarithmic."""
    finite = median[np.isfinite(median)]
    log = wants_log(name, median)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = (low / 1.5, high * 1.5) if log else (low - 0.5, high + 0.5)
    return low, high, log


@dataclass(frozen=True, kw_only=True)
class Marker:
    """A value of the x axis that one or more of the sweep's metrics give."""

    name: str
    value: float
    position: float
    """Where it is drawn."""

    @property
    def text(self) -> str:
        """Name and value, for the legend."""
        return f"{self.name}: {number(self.value)}"


def markers(metrics: Mapping[str, float], axis: AxisScale, panel: Panel) -> list[Marker]:
    """The metrics `<name>_<axis>` (then, for one setting, `/<other axis> <value>`) of a panel that can be drawn.

    `interpolation_width/label_noise 0.15` marks `interpolation` on the axis `width` where `label_noise` is 0.15.
    """
    names: dict[float, list[str]] = {}
    for key, value in metrics.items():
        head, *rest = key.split("/")
        if head.endswith(f"_{axis.name}") and math.isfinite(value) and all(_holds(part, panel.fixed) for part in rest):
            names.setdefault(float(value), []).append(words(head.removesuffix(f"_{axis.name}")))
    return [
        Marker(name=", ".join(dict.fromkeys(marked)), value=value, position=at)
        for value, marked in names.items()
        if (at := axis.to_position(value)) is not None
    ]


def summary(diagram: PhaseDiagram) -> str:
    """Trials, settings, replicates, and failed and missing trials, in one line."""
    parts = [plural(len(diagram.cell), "trial")]
    if diagram.joined > 1:
        parts.append(f"{plural(len(diagram.codes), 'cell')}, each joining up to {diagram.joined} values of an axis")
    else:
        parts.append(f"{plural(len(diagram.codes), 'setting')} × {plural(diagram.replicates, 'replicate')}")
    failed, missing = int(diagram.failed.sum()), int(diagram.missing.sum())
    parts += [f"{failed:,} failed"] * (failed > 0) + [f"{missing:,} missing"] * (missing > 0)
    return "  ·  ".join(parts)


def _holds(condition: str, fixed: Mapping[str, Scalar | None]) -> bool:
    name, _, text = condition.replace("=", " ", 1).partition(" ")
    if name not in fixed:
        return True
    value = fixed[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return math.isclose(float(text), value, rel_tol=1e-6)
        except ValueError:
            return False
    return text.strip().lower() == str(value).lower()

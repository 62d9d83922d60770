"""Which axes a picture shows, how it is cut into panels, and what is drawn in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.diagram import CellValues, PhaseDiagram
from orchestrator.phases.scale import AxisScale
from orchestrator.phases.text import words

FEW = 6
"""A second axis of at most this many values is shown by a line plot for each, too."""
_GRID_FILL = 0.25
"""A map is drawn as a grid where at least this share of its cells exists, else as points."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One slice of the diagram: the cells that share a value on every axis but x and y."""

    title: str
    """Those values in words; empty where there are none."""
    fixed: Mapping[str, Scalar | None]
    """Axis -> the value."""
    cells: NDArray[np.int64]
    """Indices of its cells."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """How a diagram is laid out."""

    x: int | None
    """Index of the horizontal axis; None: nothing varies."""
    y: int | None
    panels: tuple[Panel, ...]
    """Over all values of the other axes (small multiples)."""
    lines: tuple[Panel, ...]
    """One per value of y, for line plots along x; empty where x is no number or y has too many values."""


def lay_out(diagram: PhaseDiagram) -> Layout:
    """Choose x and y (numbers before text, many values before few, then the file's order) and cut the rest."""
    axes = diagram.axes
    size = [len(axis.values) for axis in axes]
    best = sorted(range(len(axes)), key=lambda a: (not axes[a].numeric, -size[a] if len(axes) > 2 else 0, a))[:2]
    if len(best) == 2 and axes[best[0]].numeric == axes[best[1]].numeric:
        best.sort()
        if size[best[0]] <= FEW < size[best[1]]:
            best.reverse()
    x, y = (*best, None, None)[:2]
    others = [a for a in range(len(axes)) if a not in best]
    along = x is not None and axes[x].numeric and len(axes) <= 2 and size[x] > 2 and (y is None or size[y] <= FEW)
    return Layout(
        x=x,
        y=y,
        panels=_cut(diagram, others),
        lines=_cut(diagram, [] if y is None else [y]) if along else (),
    )


def _cut(diagram: PhaseDiagram, by: Sequence[int]) -> tuple[Panel, ...]:
    panels = []
    for values in itertools.product(*(range(len(diagram.axes[a].values)) for a in by)):
        cells = np.flatnonzero((diagram.codes[:, list(by)] == np.array(values, dtype=np.int64)).all(axis=1))
        if len(cells) or not by:
            chosen = [(diagram.axes[a], v) for a, v in zip(by, values, strict=True)]
            panels.append(
                Panel(
                    title=", ".join(f"{words(axis.name)} {axis.text(v)}" for axis, v in chosen),
                    fixed={axis.name: axis.values[v] for axis, v in chosen},
                    cells=cells,
                )
            )
    return tuple(panels)


def grid_of(diagram: PhaseDiagram, panel: Panel, x: int, y: int) -> NDArray[np.int64] | None:
    """(X, Y) index of the cell at each pair of values, -1 where there is none; None: too sparse for a grid."""
    shape = len(diagram.axes[x].values), len(diagram.axes[y].values)
    if len(panel.cells) < _GRID_FILL * shape[0] * shape[1]:
        return None
    grid = np.full(shape, -1, dtype=np.int64)
    grid[diagram.codes[panel.cells, x], diagram.codes[panel.cells, y]] = panel.cells
    return grid


def spread_out(axis: AxisScale, by_value: NDArray[np.int64]) -> NDArray[np.int64]:
    """Along its first dimension, from one entry per value to one per drawn column (-1 in the gaps)."""
    _, index = axis.edges()
    out = by_value[index]
    out[index < 0] = -1
    return np.asarray(out, dtype=np.int64)


def headline(wanted: Sequence[str], observations: Mapping[str, CellValues]) -> tuple[str, ...]:
    """The observations to draw: those wanted and present, else the first two that are ever a number."""
    named = tuple(name for name in wanted if name in observations)
    return named or tuple(name for name, cells in observations.items() if cells.reached.any())[:2]


def quantity(name: str) -> str:
    """The kind of quantity that an observation's name speaks of, e.g. `step` or `error`; else its last word."""
    parts = name.lower().split("_")
    return next((kind for kind in ("step", "error", "loss", "accuracy", "risk") if kind in parts), parts[-1])


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Group observations of one quantity, order kept."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(quantity(name), []).append(name)
    return [tuple(group) for group in groups.values()]


def shared_words(names: Sequence[str]) -> str:
    """What an axis is called on which all of these are drawn: the name of one, what the names of several share."""
    if len(names) == 1:
        return words(names[0])
    parts = [name.split("_") for name in names]
    common = [word for word in parts[0] if all(word in other for other in parts[1:])]
    return " ".join(word for word in common if word != "final") or quantity(names[0])


def wants_log(name: str, values: NDArray[np.float64]) -> bool:
    """Whether an observation's values span so much (a factor of 20, all positive) that a log scale tells more.

    Errors and accuracies are shares of one and stay linear.
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or quantity(name) in ("error", "accuracy"):
        return False
    return bool(finite.min() > 0 and finite.max() >= 20 * finite.min())


@dataclass(frozen=True, kw_only=True)
class Marker:
    """A value of the x axis that one or more of the sweep's metrics give."""

    name: str
    value: float


def markers(metrics: Mapping[str, float], axis: AxisScale, panel: Panel) -> list[Marker]:
    """The metrics `<name>_<axis>` (then, for one setting, `/<other axis> <value>`) that belong to a panel.

    `interpolation_width/label_noise 0.15` marks `interpolation` on the axis `width` where `label_noise` is 0.15.
    """
    found: dict[float, list[str]] = {}
    for key, value in metrics.items():
        head, *rest = key.split("/")
        if head.endswith(f"_{axis.name}") and math.isfinite(value) and all(_holds(part, panel.fixed) for part in rest):
            found.setdefault(float(value), []).append(words(head.removesuffix(f"_{axis.name}")))
    return [Marker(name=", ".join(dict.fromkeys(names)), value=value) for value, names in found.items()]


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

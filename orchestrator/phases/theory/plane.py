"""The boundary that a job's theory predicts in the planes of a map that a classifier draws.

There are no cells to ask it of: it is asked over a lattice of the plane, at the corners of coarse squares first, then
inside those whose corners differ. Everything else in a setting (fixed parameters, axes that are held, what is zipped
to an axis) is as the slice's own trials have it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Censored, Job, Params, Scalar
from orchestrator.phases.map.boundary import Edge, Line, contours
from orchestrator.phases.map.box import BoxAxis
from orchestrator.phases.map.classify import Aim
from orchestrator.phases.map.surface_map import FittedSlice, Plane
from orchestrator.phases.text import percent
from orchestrator.phases.theory.ask import predicted_phase, predictions
from orchestrator.phases.theory.overlay import drawn_once

SIDE = 96
"""Squares along a side of the lattice, where the axis has so many values."""
COARSE = 8
"""Squares of it between the points that are always asked."""
BISECTIONS = 5
"""Of the distance between two points of the lattice whose classes differ."""
MOST_SECONDS = 20.0
"""Time of the asking thread for all planes of a map: the squares that are left then take their nearest corner's."""

Ask = Callable[[Params], int]
"""The class that is predicted of a setting, by its index; -1 where none is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TheoryPlane:
    """What theory says of one plane."""

    lines: tuple[Line, ...]
    """Where the predicted class changes, in drawing positions."""
    compared: float
    """The share of the plane where a class is predicted."""
    differ: float
    """The share of the plane where it is another one than the map's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """The settings of a slice: its trials' parameters, and which axes move together."""

    params: Sequence[Params]
    """(n,) of the slice's trials."""
    x: NDArray[np.float64]
    """(n, d) their positions in the unit box."""
    partners: Mapping[str, Sequence[str]]
    """Axis -> the names that are zipped to it."""

    def along(self, axis: BoxAxis, index: int, position: NDArray[np.float64]) -> list[dict[str, Scalar]] | None:
        """What parameters have at positions (P,) of one axis; None where what is zipped to it has no between."""
        first = self.params[0]
        columns = {axis.name: axis.value(position)}
        zipped = self.partners.get(axis.name, ())
        order = np.argsort(self.x[:, index], kind="stable") if zipped else np.zeros(0, dtype=np.int64)
        for name in zipped:
            values = [getattr(self.params[i], name) for i in order]
            if any(isinstance(v, (bool, str)) for v in values):
                return None
            seen = np.array(values, dtype=np.float64)
            log = axis.kind == "log" and bool((seen > 0).all())
            between = np.interp(position, self.x[order, index], np.log(seen) if log else seen)
            columns[name] = np.exp(between) if log else between
        return [
            {name: _as(getattr(first, name), float(values[k])) for name, values in columns.items()}
            for k in range(len(position))
        ]


def _as(like: Scalar, value: float) -> Scalar:
    return round(value) if isinstance(like, int) else value


def theory_plane(
    plane: Plane, of: FittedSlice, settings: Settings, ask: Ask, classes: Iterable[int], *, seconds: float
) -> TheoryPlane | None:
    """Ask a theory over a plane; None where it says nothing there, or the plane's axes have no between.

    Args:
        plane: of the slice.
        of: the slice.
        settings: of its trials.
        ask: the theory.
        classes: all that it may answer.
        seconds: of this thread (see MOST_SECONDS).
    """
    axes = of.slice.axes
    by_name = {axis.name: index for index, axis in enumerate(axes)}
    held: dict[str, Scalar] = {}
    for index, axis in enumerate(axes):
        if axis.name not in (plane.x.name, plane.y.name):
            at = axis.unit(np.array([plane.fixed[axis.name]], dtype=np.float64))
            said = settings.along(axis, index, at)
            if said is None:
                return None
            held |= said[0]
    sides: list[_Side] = []
    for axis in (plane.x, plane.y):
        side = _Side.of(axis, by_name[axis.name], settings)
        if side is None:
            return None
        sides.append(side)
    across, up = sides
    template, until = settings.params[0], time.thread_time() + seconds

    def class_of(x: Mapping[str, Scalar], y: Mapping[str, Scalar]) -> int:
        try:
            return ask(dataclasses.replace(template, **held, **x, **y))
        except Exception:  # Parameters that do not go together, or a user's own code: a hole in the line.
            return -1

    u, v = across.position, up.position
    label = _spread_out(lambda i, j: class_of(across.values[i], up.values[j]), (len(u), len(v)), until=until)
    if not (label >= 0).any():
        return None

    @functools.cache
    def crossed(edge: Edge) -> tuple[float, float]:
        """Where the class changes along an edge of the lattice, in drawing positions."""
        direction, i, j = edge
        side, k = (across, i) if direction == 0 else (up, j)
        low, high = float(side.position[k]), float(side.position[k + 1])
        for _ in range(0 if side.whole else BISECTIONS):
            if time.thread_time() > until:
                break
            middle = (low + high) / 2
            value = side.at(middle)
            found = class_of(value, up.values[j]) if direction == 0 else class_of(across.values[i], value)
            low, high = (middle, high) if found == label[i, j] else (low, middle)
        middle = (low + high) / 2
        x, y = (middle, v[j]) if direction == 0 else (u[i], middle)
        return float(plane.x.drawn(np.array(x))), float(plane.y.drawn(np.array(y)))

    lines: list[Line] = []
    present = [k for k in classes if (label == k).any()]
    for k in present:
        excess = np.where(label < 0, np.nan, np.where(label == k, 0.5, -0.5))
        chains = contours(label == k, excess, saddle=k == present[0])
        lines += [np.array([crossed(edge) for edge in chain]) for chain in chains]
    shown = plane.raster.points
    beside = label[np.ix_(_nearest(u, shown), _nearest(v, shown))]
    known = beside >= 0
    return TheoryPlane(
        lines=tuple(drawn_once(lines)),
        compared=float(known.mean()),
        differ=float((known & (beside != plane.raster.label)).mean()),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """One side of the lattice."""

    axis: BoxAxis
    index: int
    """Of the axis in its slice."""
    settings: Settings
    whole: bool
    """Whether its positions are whole numbers: then there is nothing between neighbours, if they are neighbours."""
    position: NDArray[np.float64]
    values: Sequence[Mapping[str, Scalar]]
    """What the parameters have at each position."""

    @classmethod
    def of(cls, axis: BoxAxis, index: int, settings: Settings) -> _Side | None:
        """Evenly in the axis's scale, or at whole numbers; None where it has no between."""
        position = np.linspace(0, 1, SIDE + 1)
        whole = isinstance(getattr(settings.params[0], axis.name), int)
        if whole:
            values = np.unique(np.rint(axis.value(position)))
            position = axis.unit(values[(values >= axis.low - 1e-9) & (values <= axis.high + 1e-9)])
        said = settings.along(axis, index, position)
        if said is None or len(position) < 2:
            return None
        return cls(axis=axis, index=index, settings=settings, whole=whole, position=position, values=said)

    def at(self, position: float) -> Mapping[str, Scalar]:
        """What the parameters have between two positions."""
        said = self.settings.along(self.axis, self.index, np.array([position]))
        return said[0] if said is not None else {}


def _spread_out(class_at: Callable[[int, int], int], shape: tuple[int, int], *, until: float) -> NDArray[np.int64]:
    """(U, V) classes of a lattice: every COARSE-th point is asked, and all that lies between two that differ."""
    label = np.full(shape, -1, dtype=np.int64)
    known = np.zeros(shape, dtype=np.bool_)

    def corner(i: int, j: int) -> int:
        if not known[i, j]:
            label[i, j], known[i, j] = class_at(i, j), True
        return int(label[i, j])

    cuts = [[*range(0, size - 1, COARSE), size - 1] for size in shape]
    waiting = deque((i, k, j, m) for i, k in itertools.pairwise(cuts[0]) for j, m in itertools.pairwise(cuts[1]))
    while waiting:  # the coarse squares first, then their quarters: a budget ends all at about one fineness
        i, k, j, m = waiting.popleft()
        at = ((i, j), (k, j), (i, m), (k, m))
        late = time.thread_time() > until
        found = [int(label[p]) if late else corner(*p) for p in at]
        inside = np.s_[i : k + 1, j : m + 1]
        if late or len(set(found)) == 1 or (k - i <= 1 and m - j <= 1):
            first, second = np.meshgrid(np.arange(i, k + 1) - i, np.arange(j, m + 1) - j, indexing="ij")
            nearest = (2 * first > k - i).astype(np.int64) + 2 * (2 * second > m - j)
            label[inside] = np.where(known[inside], label[inside], np.array(found)[nearest])
            continue
        rows = [(i, k)] if k - i <= 1 else [(i, (i + k) // 2), ((i + k) // 2, k)]
        columns = [(j, m)] if m - j <= 1 else [(j, (j + m) // 2), ((j + m) // 2, m)]
        waiting.extend((*row, *column) for row in rows for column in columns)
    return label


def _nearest(nodes: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.int64]:
    """The nearest of ascending nodes to each position."""
    return np.asarray(np.searchsorted((nodes[:-1] + nodes[1:]) / 2, at), dtype=np.int64)


def asker(job: Job[Any], thresholds: Params, aim: Aim, labels: Sequence[str]) -> Ask:
    """The class that a job's theory predicts: the phase of what it predicts, or the side of a level."""
    index = {label: k for k, label in enumerate(labels)}

    def phase(params: Params) -> int:
        return index.get(predicted_phase(job, params, predictions(job, params), thresholds) or "", -1)

    def side(params: Params) -> int:
        found = predictions(job, params).get(aim.metric)
        value = None if found is None or found.step is not None else found.value
        return side_of_level(value if isinstance(value, float | Censored) else None, aim.level)

    return phase if aim.kind == "phase" else side


def side_of_level(value: float | Censored | None, level: float) -> int:
    """Below the level (0), at or above it (1), or nothing said of the side (-1)."""
    if value is None:
        return -1
    if isinstance(value, Censored):
        return 1 if value.at >= level else -1
    return -1 if np.isnan(value) else int(value >= level)


def plane_caption(told: Sequence[TheoryPlane]) -> str:
    """How far the predicted classes are those of the map."""
    compared, differ = sum(t.compared for t in told), sum(t.differ for t in told)
    return f"theory: {percent(differ / compared) if compared else 'none'} of the map differs"

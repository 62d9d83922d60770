"""The boundary that a job's theory predicts in the planes of a map that a classifier draws.

A theory is evaluated on a lattice of the plane: at the corners of coarse squares first, then inside the squares whose
corners differ. Every other parameter (fixed ones, held axes, axes zipped to another) is as in the slice's own trials.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Censored, Job, Params, Scalar
from orchestrator.phases.map.box import TrialSlice
from orchestrator.phases.map.contour import Line, outlines_of_labels
from orchestrator.phases.map.surface_map import Plane
from orchestrator.phases.text import percent
from orchestrator.phases.theory.ask import predicted_phase, predictions
from orchestrator.phases.theory.overlay import drawn_once
from orchestrator.target import MetricTarget, Target

SIDE = 96
"""Squares along a side of the lattice, where the axis has that many values."""
COARSE = 8
"""Squares of the lattice between the points that are always evaluated."""
BISECTIONS = 5
"""Of the distance between two points of the lattice whose classes differ."""
MOST_SECONDS = 20.0
"""CPU time of the calling thread for all planes of a map; squares that remain then take the nearest corner's class."""

Ask = Callable[[Params], int]
"""The index of the class that is predicted for a setting; -1 where none is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TheoryPlane:
    """What a theory predicts in one plane."""

    lines: tuple[Line, ...]
    """Where the predicted class changes, in drawing positions."""
    compared: float
    """The share of the plane where a class is predicted."""
    differ: float
    """The share of the plane where the predicted class is not the map's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceParams:
    """The parameters of a slice's trials, interpolated along its axes."""

    slice: TrialSlice
    params: Sequence[Params]
    """(n,) of the slice's trials."""
    partners: Mapping[str, Sequence[str]]
    """Axis -> the names that are zipped to it."""

    def along(self, index: int, position: NDArray[np.float64]) -> list[dict[str, Scalar]] | None:
        """The parameters at positions (P,) in [0, 1] of one axis; None where a zipped one cannot be interpolated."""
        axis = self.slice.axes[index]
        columns = {axis.name: axis.value(position)}
        zipped = self.partners.get(axis.name, ())
        order = np.argsort(self.slice.x[:, index], kind="stable") if zipped else np.zeros(0, dtype=np.int64)
        for name in zipped:
            values = [getattr(self.params[i], name) for i in order]
            if any(isinstance(v, (bool, str)) for v in values):
                return None
            numeric = np.array(values, dtype=np.float64)
            log = axis.kind == "log" and bool((numeric > 0).all())
            between = np.interp(position, self.slice.x[order, index], np.log(numeric) if log else numeric)
            columns[name] = np.exp(between) if log else between
        whole = {name: isinstance(getattr(self.params[0], name), int) for name in columns}
        return [
            {name: round(float(v)) if whole[name] else float(v) for name, v in zip(columns, row, strict=True)}
            for row in zip(*columns.values(), strict=True)
        ]


def theory_plane(plane: Plane, of: SliceParams, ask: Ask, *, seconds: float) -> TheoryPlane | None:
    """Evaluate a theory over a plane; None where it predicts nothing, or the plane's axes cannot be interpolated.

    Args:
        plane: over the first two axes of the slice.
        of: the slice's trials.
        ask: the theory.
        seconds: CPU time of this thread (see MOST_SECONDS).
    """
    held: dict[str, Scalar] = {}
    for index, axis in enumerate(of.slice.axes[2:], start=2):
        values = of.along(index, axis.unit(np.array([plane.fixed[axis.name]], dtype=np.float64)))
        if values is None:
            return None
        held |= values[0]
    across, up = _Side.of(of, 0), _Side.of(of, 1)
    if across is None or up is None:
        return None
    template, until = of.params[0], time.thread_time() + seconds

    def class_of(x: Mapping[str, Scalar], y: Mapping[str, Scalar]) -> int:
        try:
            return ask(dataclasses.replace(template, **held, **x, **y))
        except Exception:  # Incompatible parameters, or an error in the job's own theory: a hole in the line.
            return -1

    u, v = across.position, up.position
    label = _spread_out(lambda i, j: class_of(across.values[i], up.values[j]), (len(u), len(v)), until=until)
    if not (label >= 0).any():
        return None

    @functools.cache
    def crossed(s: float, t: float) -> tuple[float, float]:
        """Where the class changes along the edge of the lattice with this middle, in drawing positions."""
        i, j = int(s), int(t)
        side, k = (across, i) if s > i else (up, j)
        low, high = float(side.position[k]), float(side.position[k + 1])
        for _ in range(0 if side.whole else BISECTIONS):
            if time.thread_time() > until:
                break
            middle = (low + high) / 2
            value = side.at(middle)
            between = class_of(value, up.values[j]) if side is across else class_of(across.values[i], value)
            low, high = (middle, high) if between == label[i, j] else (low, middle)
        middle = (low + high) / 2
        x, y = (middle, v[j]) if side is across else (u[i], middle)
        return float(plane.x.drawn(np.array(x))), float(plane.y.drawn(np.array(y)))

    lines = [np.array([crossed(*point) for point in outline.tolist()]) for outline in outlines_of_labels(label)]
    raster = plane.raster.points
    nearest = label[np.ix_(_nearest(u, raster), _nearest(v, raster))]
    known = nearest >= 0
    return TheoryPlane(
        lines=tuple(drawn_once(lines)),
        compared=float(known.mean()),
        differ=float((known & (nearest != plane.raster.label)).mean()),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """One side of the lattice."""

    of_slice: SliceParams
    index: int
    """Of its axis in the slice."""
    whole: bool
    """Whether its positions are whole numbers, so that nothing lies between neighbours."""
    position: NDArray[np.float64]
    values: Sequence[Mapping[str, Scalar]]
    """The parameters at each position."""

    @classmethod
    def of(cls, of: SliceParams, index: int) -> _Side | None:
        """Evenly spaced in the axis's scale, or at whole numbers; None where it cannot be interpolated."""
        axis = of.slice.axes[index]
        position = np.linspace(0, 1, SIDE + 1)
        whole = isinstance(getattr(of.params[0], axis.name), int)
        if whole:
            values = np.unique(np.rint(axis.value(position)))
            position = axis.unit(values[(values >= axis.low - 1e-9) & (values <= axis.high + 1e-9)])
        along = of.along(index, position)
        if along is None or len(position) < 2:
            return None
        return cls(of_slice=of, index=index, whole=whole, position=position, values=along)

    def at(self, position: float) -> Mapping[str, Scalar]:
        """The parameters between two positions."""
        return (self.of_slice.along(self.index, np.array([position])) or [{}])[0]


def _spread_out(class_at: Callable[[int, int], int], shape: tuple[int, int], *, until: float) -> NDArray[np.int64]:
    """(U, V) classes of a lattice: every COARSE-th point is evaluated, and all that lies between two that differ."""
    label = np.full(shape, -1, dtype=np.int64)
    known = np.zeros(shape, dtype=np.bool_)

    def corner(i: int, j: int) -> int:
        if not known[i, j]:
            label[i, j], known[i, j] = class_at(i, j), True
        return int(label[i, j])

    cuts = [[*range(0, size - 1, COARSE), size - 1] for size in shape]
    waiting = deque((i, k, j, m) for i, k in itertools.pairwise(cuts[0]) for j, m in itertools.pairwise(cuts[1]))
    while waiting:  # Coarse squares first, then their quarters: when time runs out, all have about the same fineness.
        i, k, j, m = waiting.popleft()
        at = ((i, j), (k, j), (i, m), (k, m))
        late = time.thread_time() > until
        corners = [int(label[p]) if late else corner(*p) for p in at]
        inside = np.s_[i : k + 1, j : m + 1]
        if late or len(set(corners)) == 1 or (k - i <= 1 and m - j <= 1):
            first, second = np.meshgrid(np.arange(i, k + 1) - i, np.arange(j, m + 1) - j, indexing="ij")
            nearest = (2 * first > k - i).astype(np.int64) + 2 * (2 * second > m - j)
            label[inside] = np.where(known[inside], label[inside], np.array(corners)[nearest])
            continue
        rows = [(i, k)] if k - i <= 1 else [(i, (i + k) // 2), ((i + k) // 2, k)]
        columns = [(j, m)] if m - j <= 1 else [(j, (j + m) // 2), ((j + m) // 2, m)]
        waiting.extend((*row, *column) for row in rows for column in columns)
    return label


def _nearest(nodes: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.int64]:
    """The nearest of ascending nodes to each position."""
    return np.asarray(np.searchsorted((nodes[:-1] + nodes[1:]) / 2, at), dtype=np.int64)


def asker(job: Job[Any], thresholds: Params, target: Target, labels: Sequence[str]) -> Ask:
    """The class that a job's theory predicts: the phase of what it predicts, or the side of a predicted metric."""
    index = {label: k for k, label in enumerate(labels)}

    def phase(params: Params) -> int:
        return index.get(predicted_phase(job, params, predictions(job, params), thresholds) or "", -1)

    if not isinstance(target, MetricTarget):
        return phase

    def side(params: Params) -> int:
        predicted = predictions(job, params).get(target.observation)
        value = None if predicted is None or predicted.step is not None else predicted.value
        return target.side(value if isinstance(value, float | Censored) else None)

    return side


def plane_caption(planes: Sequence[TheoryPlane]) -> str:
    """How far the predicted classes are those of the map."""
    compared, differ = sum(t.compared for t in planes), sum(t.differ for t in planes)
    return f"theory: {percent(differ / compared) if compared else 'none'} of the map differs"

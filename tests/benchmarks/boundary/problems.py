"""Five phase diagrams whose truth is known, and the scorer of a map.

| | axes | what is hard |
|---|---|---|
| A | 2 | a smooth curve; 5% of the labels within 0.05 of it are flipped |
| B | 2 | four phases: comprehension, grokking, memorization, confusion, laid out as Liu et al. (2022) found them |
| C | 2 | an island, a disc of 3% of the area, and a thin tongue |
| D | 3 | a smooth surface, flipped as in A |
| E | 2 | labels drawn with a probability whose width grows along the boundary |

A problem's `seed` moves its phases and draws its trials' noise. Distances are in box widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter
from scipy.special import expit

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

NAMES = "ABCDE"
TURN = 6.28
"""A phase shift of one turn, to the digits that fixed the instances."""


def _steepness(slopes: list[Floats]) -> Floats:
    """Turns a height above a graph into the distance from it, to first order."""
    return np.asarray(np.sqrt(1 + sum(s * s for s in slopes)))


def _curve(x: Floats, u: Floats) -> Floats:
    k = 2 * np.pi * 0.9
    tilt = 0.2 * (u[1] - 0.5)
    height = 0.5 + 0.18 * np.sin(k * x[:, 0] + TURN * u[0]) + tilt * (x[:, 0] - 0.5)
    return (x[:, 1] - height) / _steepness([0.18 * k * np.cos(k * x[:, 0] + TURN * u[0]) + tilt])


def _surface(x: Floats, u: Floats) -> Floats:
    k = 2 * np.pi * 0.8
    turns = [k * x[:, i] + TURN * u[i] for i in (0, 1)]
    height = 0.5 + 0.14 * (np.sin(turns[0]) + np.sin(turns[1]))
    return (x[:, 2] - height) / _steepness([0.14 * k * np.cos(t) for t in turns])


def _widening(x: Floats, u: Floats) -> Floats:
    k = 2 * np.pi * 0.8
    turn = k * x[:, 0] + TURN * u[0]
    return (x[:, 1] - 0.5 - 0.2 * np.sin(turn)) / _steepness([0.2 * k * np.cos(turn)])


def _island_and_tongue(x: Floats, u: Floats) -> Floats:
    centre = np.array([0.6 + 0.25 * u[0], 0.2 + 0.25 * u[1]])
    island = np.sqrt(0.03 / np.pi) - np.linalg.norm(x - centre, axis=1)
    spine = 0.72 + 0.1 * u[2] + 0.05 * np.sin(6 * x[:, 0] + 6 * u[3])
    tongue = 0.03 * (1 - x[:, 0] / 0.6) - np.abs(x[:, 1] - spine)
    return np.maximum(island, tongue)


def _four(x: Floats, u: Floats) -> tuple[Floats, Floats, Floats]:
    """Signed depths: inside what trains at all, above what generalises at all, beyond what generalises at once."""
    a, b = x[:, 0], x[:, 1]
    trains = np.minimum(
        0.80 + 0.1 * u[0] - 0.2 * b - a + 0.03 * np.sin(8 * b + 6 * u[1]), 0.86 + 0.08 * u[2] - b - 0.15 * a**2
    )
    memorises = 0.24 + 0.1 * u[3] + 0.5 * (a - 0.4) ** 2 + 0.03 * np.sin(7 * a + 6 * u[4])
    return trains, b - memorises, b - memorises - (0.07 + 0.14 * a)


_DISTANCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "A": _curve,
    "C": _island_and_tongue,
    "D": _surface,
    "E": _widening,
}


@dataclass(frozen=True, eq=False)
class Problem:
    """One instance. Observing it moves its noise on: make a new one for each run."""

    name: str
    seed: int

    @property
    def dimensions(self) -> int:
        return 3 if self.name == "D" else 2

    @property
    def classes(self) -> int:
        return 4 if self.name == "B" else 2

    @property
    def resolution(self) -> int:
        """Points an axis of the reference grid."""
        return 60 if self.dimensions == 3 else 400

    @cached_property
    def _shape(self) -> Floats:
        return np.random.default_rng(77 + self.seed).random(6)

    @cached_property
    def _noise(self) -> np.random.Generator:
        return np.random.default_rng(10_000 + self.seed)

    @cached_property
    def reference(self) -> Floats:
        """(g^d, d) cell centres of the reference grid."""
        axis = (np.arange(self.resolution) + 0.5) / self.resolution
        return np.stack(np.meshgrid(*[axis] * self.dimensions, indexing="ij"), -1).reshape(-1, self.dimensions)

    @cached_property
    def truth(self) -> Labels:
        """(g^d,) labels on the reference grid."""
        return self.majority(self.reference)

    def majority(self, x: Floats, shift: Floats | None = None) -> Labels:
        """(n,) the most frequent label at each position; `shift` (n, 3) is added to the latent distances."""
        if self.name == "B":
            trains, generalises, at_once = self._depths(x, shift)
            return np.select([trains < 0, generalises < 0, at_once < 0], [3, 2, 1], 0)
        return (self._distance(x, shift) > 0).astype(np.int64)

    def _distance(self, x: Floats, shift: Floats | None) -> Floats:
        distance = _DISTANCES[self.name](x, self._shape)
        return distance if shift is None else distance + shift[:, 0]

    def _depths(self, x: Floats, shift: Floats | None) -> tuple[Floats, Floats, Floats]:
        trains, generalises, at_once = _four(x, self._shape)
        if shift is None:
            return trains, generalises, at_once
        return trains + shift[:, 0], generalises + shift[:, 1], at_once + shift[:, 2]

    def observe(self, x: Floats, shift: Floats | None = None) -> tuple[Labels, Floats]:
        """Trials at (n, d) positions: labels (n,), and order parameters (n, k) whose threshold is one half.

        `shift` (n, 3) is added to the latent distances.
        """
        random, n = self._noise, len(x)
        if self.name == "B":
            trains, generalises, at_once = self._depths(x, shift)
            train = expit(trains / 0.015)
            test = train * expit(generalises / 0.015)
            delay = np.where(test > 0.5, np.clip(0.5 - at_once / 0.3, 0, 1), 1.0)
            order = np.clip(np.stack([train, test, delay], 1) + 0.03 * random.standard_normal((n, 3)), 0, 1)
            return np.select([order[:, 0] < 0.5, order[:, 1] < 0.5, order[:, 2] > 0.5], [3, 2, 1], 0), order
        distance = self._distance(x, shift)
        if self.name == "E":
            label = (random.random(n) < expit(distance / (0.005 + 0.05 * x[:, 0]))).astype(np.int64)
            return label, np.clip(0.015 + 0.97 * label + 0.02 * random.standard_normal(n), 0, 1)[:, None]
        width, noise = (0.01, 0.02) if self.name == "C" else (0.015, 0.03)
        order = np.clip(expit(distance / width) + noise * random.standard_normal(n), 0, 1)
        if self.name in "AD":
            order = np.where((np.abs(distance) < 0.05) & (random.random(n) < 0.05), 1 - order, order)
        return (order > 0.5).astype(np.int64), order[:, None]

    def to_maximise(self, order: Floats) -> Floats:
        """(n,) what an optimiser is given: 0 on the boundary, negative elsewhere."""
        gap = np.abs(order - 0.5)
        if self.name == "B":
            gap[:, 2] = np.where((order[:, :2] > 0.5).all(axis=1), gap[:, 2], 1)
        return -gap.min(axis=1)

    def error(self, labels: Labels) -> float:
        """The share of the area that a map of the reference grid gets wrong."""
        return float((labels != self.truth).mean())

    def displacement(self, labels: Labels) -> float:
        """The mean distance in box widths from either boundary (mapped, true) to the other; 0.5 where none is drawn."""
        found, true = self._edges(labels), self._edges(self.truth)
        if not found.any():
            return 0.5
        from_found, from_true = distance_transform_edt(~found), distance_transform_edt(~true)
        return float(from_found[true].mean() + from_true[found].mean()) / 2 / self.resolution

    def boundary(self) -> Floats:
        """(m, d) the cells of the reference grid that the true boundary runs between."""
        return np.asarray(self.reference[self._edges(self.truth).reshape(-1)])

    def _edges(self, labels: Labels) -> NDArray[np.bool_]:
        """Cells of the reference grid with a neighbour along an axis of another label."""
        grid = labels.reshape((self.resolution,) * self.dimensions)
        out = np.zeros(grid.shape, dtype=bool)
        for axis in range(self.dimensions):
            change = np.swapaxes(np.diff(grid, axis=axis) != 0, 0, axis)
            view = np.swapaxes(out, 0, axis)
            view[:-1] |= change
            view[1:] |= change
        return out

    def drawn(self, label: Callable[[Floats], Labels]) -> Labels:
        """The map of a classifier on the reference grid.

        Every fourth cell an axis first (third in 3-D), then all cells of the blocks near which the label changes:
        the classifiers are smooth on that length, so nothing else can hold a boundary.
        """
        g, d, step = self.resolution, self.dimensions, 3 if self.dimensions == 3 else 4
        cells = self.reference.reshape((g,) * d + (d,))
        coarse = np.arange(step // 2, g, step)
        few = label(cells[np.ix_(*[coarse] * d)].reshape(-1, d)).reshape((len(coarse),) * d)
        owner = np.minimum(np.arange(g) // step, len(coarse) - 1)
        out = few[np.ix_(*[owner] * d)]
        mixed = (maximum_filter(few, 3) != minimum_filter(few, 3))[np.ix_(*[owner] * d)]
        out[mixed] = label(cells[mixed])
        return out.reshape(-1)

"""Surrogates given by a formula, whose boundaries are known, and trials drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from orchestrator.phases.map.box import BoxAxis, TrialSlice
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice
from orchestrator.surface.base import ClassSurface, Evidence, Points, Surface

Heights = Callable[[Points], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Formula(ClassSurface):
    """Class k has belief in proportion to exp(height_k / softness); for two, ndtr of the height difference."""

    heights: Heights
    """(q, d) -> (q, K)"""
    softness: float = 0.01
    d: int = 2
    label_noise_rate: float = 0.0

    @property
    def dimensions(self) -> int:
        return self.d

    @property
    def classes(self) -> int:
        return int(self.heights(np.zeros((1, self.d))).shape[1])

    def belief(self, x: Points) -> NDArray[np.float64]:
        height = self.heights(x) / self.softness
        if height.shape[1] == 2:
            p = ndtr(height[:, 1] - height[:, 0])
            return np.column_stack([1 - p, p])
        share = np.exp(height - height.max(axis=1, keepdims=True))
        return np.asarray(share / share.sum(axis=1, keepdims=True))

    def uncertain_area(self) -> float:
        return float(self.in_band(np.random.default_rng(0).random((4096, self.d))).mean())

    def noise(self) -> float:
        return self.label_noise_rate


def above(line: Callable[[Points], NDArray[np.float64]]) -> Heights:
    """Class 1 where the line's value is positive, class 0 where it is negative."""
    return lambda x: np.column_stack([np.zeros(len(x)), line(x)])


def evidence(x: Points, label: NDArray[np.int64]) -> Evidence:
    return Evidence(x=x, label=label, value=np.full(len(x), np.nan), censored=np.zeros(len(x), dtype=np.bool_))


AXES = (
    BoxAxis(name="heat", label="heat (K)", kind="log", low=0.1, high=10.0),
    BoxAxis(name="load", label="load", kind="linear", low=2.0, high=6.0),
    BoxAxis(name="speed", label="speed (1/s)", kind="linear", low=0.0, high=1.0),
    BoxAxis(name="width", label="width", kind="log", low=1.0, high=1000.0),
)


def one_slice(
    surface: Surface,
    seen: Evidence,
    fit: Callable[[Evidence], Surface] | None = None,
    replicate: NDArray[np.int64] | None = None,
) -> FittedSlice:
    rows = np.arange(len(seen))
    box = TrialSlice(title="", fixed={}, axes=AXES[: seen.x.shape[1]], rows=rows, x=seen.x)
    fit = fit or (lambda _: surface)
    return FittedSlice(slice=box, evidence=seen, rows=rows, surface=surface, fit=fit, replicate=replicate)


def one_map(
    surface: Surface,
    seen: Evidence,
    fit: Callable[[Evidence], Surface] | None = None,
    replicate: NDArray[np.int64] | None = None,
) -> FittedMap:
    labels = tuple(f"phase {k}" for k in range(surface.classes)) if isinstance(surface, ClassSurface) else ()
    return FittedMap(labels=labels, slices=(one_slice(surface, seen, fit, replicate),))

"""Where one metric passes one level: a latent function that trials near the level measure and all others bound.

The metric itself is a poor thing to model: it saturates away from the boundary, and a stationary Gaussian process that
must follow the cliff smears it. So the metric is warped by the logit of its place between its own plateaus, and a value
near a plateau is only the news that the latent function lies beyond a bound (level_values). What is left is smooth. A
trial that did not reach its value within the horizon gives a bound in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from orchestrator.surface.base import ClassSurface, Evidence, Points, Snap, Surrogate
from orchestrator.surface.kernel import Floats
from orchestrator.surface.level_placement import place, sobol
from orchestrator.surface.level_values import Warp, against
from orchestrator.surface.regression import Latent, LogNormal, Model, fit, sample
from orchestrator.surface.regression_ep import AT_LEAST, AT_MOST

_AREA_POINTS: Final = 13
"""log2 of the points that the uncertain area is measured with."""

_LEVEL: Final = Model(
    length=LogNormal(median=0.35, spread=0.6),
    amplitude=LogNormal(median=4.0, spread=1.2),
    noise=LogNormal(median=0.5, spread=1.5),
    constant=1.0,
    spoilt=0.02,
    spoilt_spread=10.0,
    # Values between the plateaus, seen nearly without noise; or both plateaus at random, and nothing between.
    starts=((1.0, 1.0), (10.0, 20.0)),
)
_LABEL: Final = Model(
    length=LogNormal(median=0.35, spread=0.6),
    amplitude=LogNormal(median=4.0, spread=0.8),
    noise=LogNormal(median=1.0, spread=1.0),
    constant=1.0,
    noise_known=True,
    spoilt=0.02,
    spoilt_spread=10.0,
)


@dataclass(frozen=True, eq=False)
class LevelSurface(ClassSurface):
    """Class 0 below the level, class 1 at or above it, further classes for trials that have no metric.

    The latent mean is compared with the level: where the trials of one setting scatter evenly about it, the class is
    the one that most of its replicates show.
    """

    _dimensions: int
    _classes: int
    metric: Latent | None
    """The belief of the warped metric minus the warped level; None where no trial has shown a value."""
    others: tuple[Latent | None, ...]
    """For classes 2, 3, ...: positive where most replicates show that class; None where no trial has."""
    shown: tuple[bool, bool]
    """Whether any trial showed class 0, class 1."""
    _noise: float
    warp: Warp

    @property
    def dimensions(self) -> int:
        return self._dimensions

    @property
    def classes(self) -> int:
        return self._classes

    def above(self, x: Points) -> Floats:
        """(q,) the probability that the metric is at or above the level, whatever other classes there are."""
        if self.metric is None:
            return np.full(len(x), 0.5)
        mean, variance = self.metric.moments(x)
        return np.asarray(ndtr(mean / np.sqrt(variance)), dtype=np.float64)

    def belief(self, x: Points) -> NDArray[np.float64]:
        out = np.zeros((len(x), self._classes))
        above = self.above(x)
        out[:, 0], out[:, 1] = 1 - above, above
        taken = np.zeros(len(x))
        for k, latent in enumerate(self.others, start=2):
            if latent is not None:
                mean, variance = latent.moments(x)
                out[:, k] = ndtr(mean / np.sqrt(variance))
                taken += out[:, k]
        crowded = np.maximum(taken, 1.0)
        out[:, 2:] /= crowded[:, None]
        out[:, :2] *= np.maximum(1 - taken, 0.0)[:, None]
        return _only_shown(out, np.array([*self.shown, *(o is not None for o in self.others)]))

    def label(self, x: Points) -> NDArray[np.int64]:
        if self.metric is None or not all(self.shown) or any(o is not None for o in self.others):
            return super().label(x)
        # The larger belief is that of the sign of the mean: no variance is needed for a map.
        out = np.empty(len(x), dtype=np.int64)
        for rows, phi in self.metric.chunks(x):
            out[rows] = phi @ self.metric.posterior.weights >= 0
        return out

    def noise(self) -> float:
        return self._noise

    def trials(self, x: Points, rng: np.random.Generator) -> Evidence:
        """What trials at (q, d) positions would show, were the expected latent function the truth."""
        label = self.label(x)
        value = np.full(len(x), np.nan)
        if self.metric is not None:
            mean = self.metric.moments(x)[0] + self.metric.noise_at(x) * rng.standard_normal(len(x))
            has_value = label < 2
            value[has_value] = self.warp.back(mean[has_value])
            label = np.where(has_value, mean >= 0, label)
        return Evidence(x=x, label=label.astype(np.int64), value=value, censored=np.zeros(len(x), dtype=np.bool_))

    def uncertain_area(self) -> float:
        return self._area

    @cached_property
    def _area(self) -> float:
        return float(self.in_band(sobol(self._dimensions, _AREA_POINTS)).mean())


def _only_shown(belief: NDArray[np.float64], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The belief in classes that were shown.

    With several, the rest is dropped and the rows are scaled to sum to 1. With one, what is not its own is spread
    evenly over the others where they are possible at all: nothing was seen there, and the map says so.
    """
    if shown.sum() > 1:
        kept = np.where(shown, belief, 0.0) + np.where(shown, 1e-12, 0.0)
        return np.asarray(kept / kept.sum(axis=1, keepdims=True))
    return belief


_SCATTER = 0.04
"""Replicates are asked for where more than this share of the trials contradicts what is believed for sure."""


@dataclass(frozen=True, kw_only=True)
class LevelSurrogate(Surrogate[LevelSurface]):
    """Looks for where `value` passes `level`. Holds no state."""

    level: float
    """In units of the metric."""
    classes: int = 2
    """K: 2, and one for each other label that a trial can show (Evidence.label 2, 3, ...), like diverged."""
    start: int = 64
    replicates: int = 1
    """How many trials a setting of a grid may have."""

    def fit(self, evidence: Evidence, *, previous: LevelSurface | None = None) -> LevelSurface:
        x, label = evidence.x, evidence.label
        other = label >= 2
        bounds = against(self.level, evidence.value[~other], evidence.censored[~other], label[~other])
        data = sample(x[~other], bounds.kind, bounds.value)
        metric = fit(data, _LEVEL) if len(data.seen) else None
        known = np.isfinite(bounds.value)
        others = tuple(self._other(evidence, known_metric=known, k=k) for k in range(2, self.classes))
        above, below = bounds.above & known, ~bounds.above & known
        return LevelSurface(
            x.shape[1],
            self.classes,
            metric,
            others,
            (bool(below.any()), bool(above.any())),
            _contrary(metric, x[~other][known], bounds.above[known]),
            bounds.warp,
        )

    @staticmethod
    def _other(evidence: Evidence, *, known_metric: NDArray[np.bool_], k: int) -> Latent | None:
        is_k = evidence.label == k
        if not is_k.any():
            return None
        use = evidence.label >= 2
        use[~use] = known_metric
        kind = np.where(is_k[use], AT_LEAST, AT_MOST).astype(np.int64)
        return fit(sample(evidence.x[use], kind, np.zeros(int(use.sum()))), _LABEL)

    def suggest(
        self,
        surface: LevelSurface,
        evidence: Evidence,
        *,
        pending: Points,
        count: int,
        snap: Snap,
        rng: np.random.Generator,
    ) -> Points:
        # Where values scatter little, a setting beside it tells more than another trial of the same.
        replicates = self.replicates if surface.noise() > _SCATTER else 1
        return place(surface, tried=evidence.x, pending=pending, count=count, snap=snap, rng=rng, replicates=replicates)


def _contrary(metric: Latent | None, x: Points, above: NDArray[np.bool_]) -> float:
    """The share of trials on the other side than the belief, where that is at least 95%."""
    if metric is None or not len(x):
        return 0.0
    mean, variance = metric.moments(x)
    z = mean / np.sqrt(variance)
    sure = np.abs(z) > 1.645
    return float(((z > 0) != above)[sure].mean()) if sure.any() else 0.0

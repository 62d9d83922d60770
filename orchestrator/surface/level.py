"""The surrogate of a level target: a latent function that is measured near the level and bounded elsewhere.

The metric itself is hard to model: it saturates away from the boundary, and a stationary Gaussian process that must
follow the cliff smooths it. Therefore the metric is transformed by the logit of its place between its own plateaus, and
a value near a plateau only bounds the latent function. What remains is smooth. A trial that did not reach its value
within the horizon is a bound, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from orchestrator.surface.base import ClassSurface, Evidence, Points, Snap, Surrogate
from orchestrator.surface.kernel import Floats
from orchestrator.surface.placement import POWER, Distances, is_grid, swap_probability, untried
from orchestrator.surface.regression import AT_LEAST, AT_MOST, EXACT, GpRegression, LogNormal, Model, Observations, fit

_LEVEL: Final = Model(
    lengthscale=LogNormal(median=0.35, sd=0.6),
    outputscale=LogNormal(median=4.0, sd=1.2),
    noise=LogNormal(median=0.5, sd=1.5),
    outlier_fraction=0.02,
    outlier_range=10.0,
    # Values between the plateaus with little noise; or values at both plateaus at random, and none between.
    starts=((1.0, 1.0), (10.0, 20.0)),
)
_LABEL: Final = Model(
    lengthscale=LogNormal(median=0.35, sd=0.6),
    outputscale=LogNormal(median=4.0, sd=0.8),
    noise=LogNormal(median=1.0, sd=1.0),
    fixed_noise=True,
    outlier_fraction=0.02,
    outlier_range=10.0,
)
_PLATEAU: Final = 0.02
"""The plateaus are these quantiles of the values, from below and from above."""
_SATURATED: Final = 0.8
"""A value further from the level than this share of the way to the plateau is only a bound."""
_DECADE: Final = 10.0
_SCATTER: Final = 0.04
"""Replicates are suggested where more than this share of the trials contradicts a belief of at least 95%."""
_POOL: Final = 4096
_VOID_SHARE: Final = 0.1
"""Share of a batch that goes to the emptiest parts of the box, whatever the belief there."""


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """From the metric to the latent function: the logit of its place between two plateaus, 0 at the level."""

    log: bool
    """Whether the metric and the other numbers here are logarithms."""
    level: float
    up: float
    """How far the plateaus are above and below the level; each positive."""
    down: float

    @property
    def at_level(self) -> float:
        """The level's place between the plateaus, from 0 to 1."""
        return self.down / (self.up + self.down)

    def place(self, scaled: Floats) -> Floats:
        """The place of values (of their logarithms where `log` is set)."""
        return np.asarray((scaled - self.level + self.down) / (self.up + self.down), dtype=np.float64)

    def inverse(self, latent: Floats) -> Floats:
        """The metric at these values of the latent function, in units of the metric."""
        place = expit(latent + _logit(np.float64(self.at_level)))
        scaled = place * (self.up + self.down) + self.level - self.down
        return np.asarray(np.exp(scaled) if self.log else scaled, dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelObservations:
    """Each trial as one observation of the latent function."""

    kind: NDArray[np.int64]
    """(n,) EXACT, AT_LEAST or AT_MOST."""
    value: Floats
    """(n,) the value or the bound; NaN where the trial is not informative."""
    above: NDArray[np.bool_]
    """(n,) whether the trial itself is at or above the level."""
    sided: NDArray[np.bool_]
    """(n,) whether it is known which side the trial is on: not where its value is only a bound below the level."""
    transform: LogitTransform


def level_observations(
    level: float, value: Floats, censored: NDArray[np.bool_], label: NDArray[np.int64]
) -> LevelObservations:
    """Observations of the latent function by trials (n,). A trial with no value but label 0 or 1 is a bound at 0."""
    finite = value[np.isfinite(value)]
    scaled = np.where(np.isnan(value), np.nan, np.clip(value, -1e300, 1e300))
    log = _spans_decades(finite, level)
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled, finite, level = np.log(scaled), np.log(finite), float(np.log(level))
    above = scaled >= level
    level = _between_values(finite, level)
    up, down = _plateaus(finite, level)
    transform = LogitTransform(log=log, level=level, up=up, down=down)
    at_level, place = transform.at_level, transform.place(scaled)
    low, high = at_level * (1 - _SATURATED), at_level + _SATURATED * (1 - at_level)
    kind = np.full(len(value), EXACT, dtype=np.int64)
    kind[place >= high] = AT_LEAST
    kind[place <= low] = AT_MOST
    latent = _logit(np.clip(place, low, high)) - _logit(np.float64(at_level))
    # Not reached within the horizon: the number is a lower bound, whichever side of the level it is on.
    kind[censored] = AT_LEAST
    labelled = np.isnan(value) & (label >= 0) & (label <= 1)
    kind[labelled] = np.where(label[labelled] == 1, AT_LEAST, AT_MOST)
    latent[labelled] = 0.0
    above = np.where(labelled, label == 1, above)
    latent = np.asarray(latent, dtype=np.float64)
    sided = np.isfinite(latent) & (above | ~censored)
    return LevelObservations(kind=kind, value=latent, above=above, sided=sided, transform=transform)


def _spans_decades(finite: Floats, level: float) -> bool:
    """Whether a logarithm suits: for steps and losses; not for shares, where 0.001 and 0.01 are the same plateau."""
    if not len(finite) or level <= 0 or finite.min() <= 0:
        return False
    return bool(finite.max() > _DECADE * finite.min() and finite.max() > 1.0)


def _between_values(finite: Floats, level: float) -> float:
    """The level, or half a step below where values lie exactly on it (a plateau, a metric with few values)."""
    if not (finite == level).any():
        return level
    below = finite[finite < level]
    return 0.5 * (float(below.max()) + level) if len(below) else level - max(1e-3, 1e-3 * abs(level))


def _plateaus(finite: Floats, level: float) -> tuple[float, float]:
    """How far the plateaus are above and below the level; each positive."""
    low, high = np.quantile(finite, [_PLATEAU, 1 - _PLATEAU]) if len(finite) else (level, level)
    up, down = float(high) - level, level - float(low)
    if max(up, down) <= 0:
        return 1.0, 1.0
    # A plateau that no trial has shown yet is assumed to be as far as the other one.
    least = 1e-3 * max(up, down)
    return (up if up > least else max(down, least)), (down if down > least else max(up, least))


def _logit(p: Floats | np.float64) -> Floats:
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class LevelSurface(ClassSurface):
    """Class 0 below the level, class 1 at or above it, further classes for trials that have no metric.

    The latent mean is compared with the level: where the trials of one setting scatter around it, the class is the one
    that most of its replicates show.
    """

    dimensions: int
    classes: int
    metric: GpRegression | None
    """The belief of the transformed metric, 0 at the level; None where no trial has shown a value."""
    others: tuple[GpRegression | None, ...]
    """For classes 2, 3, ...: positive where most replicates show that class; None where no trial has."""
    shown: NDArray[np.bool_]
    """(K,) whether any trial showed the class."""
    contradictions: float
    transform: LogitTransform

    def above(self, x: Points) -> Floats:
        """(q,) the probability that the metric is at or above the level, whatever other classes there are."""
        return np.full(len(x), 0.5) if self.metric is None else np.asarray(ndtr(self.metric.z_scores(x)))

    def belief(self, x: Points) -> NDArray[np.float64]:
        out = np.zeros((len(x), self.classes))
        above = self.above(x)
        out[:, 0], out[:, 1] = 1 - above, above
        for k, other in enumerate(self.others, start=2):
            if other is not None:
                out[:, k] = ndtr(other.z_scores(x))
        taken = out[:, 2:].sum(axis=1)
        out[:, 2:] /= np.maximum(taken, 1.0)[:, None]
        out[:, :2] *= np.maximum(1 - taken, 0.0)[:, None]
        # With several classes shown, the belief in the others is dropped. With one, it is kept where they are possible.
        if self.shown.sum() > 1:
            out = np.where(self.shown, out + 1e-12, 0.0)
            out /= out.sum(axis=1, keepdims=True)
        return out

    def label(self, x: Points) -> NDArray[np.int64]:
        if self.metric is None or not self.shown[:2].all() or self.shown[2:].any():
            return super().label(x)
        # The larger belief is that of the sign of the mean: a map needs no variance.
        out = np.empty(len(x), dtype=np.int64)
        for rows, phi in self.metric.chunks(x):
            out[rows] = phi @ self.metric.posterior.weights >= 0
        return out

    def noise(self) -> float:
        return self.contradictions

    def trials(self, x: Points, rng: Generator) -> Evidence:
        """Simulated trials at (q, d) positions, taking the expected latent function as the truth."""
        label = self.label(x)
        value = np.full(len(x), np.nan)
        if self.metric is not None:
            latent = self.metric.moments(x)[0] + self.metric.noise_at(x) * rng.standard_normal(len(x))
            has_value = label < 2
            value[has_value] = self.transform.inverse(latent[has_value])
            label = np.where(has_value, latent >= 0, label)
        return Evidence(x=x, label=label.astype(np.int64), value=value, censored=np.zeros(len(x), dtype=np.bool_))


@dataclass(frozen=True, kw_only=True)
class LevelSurrogate(Surrogate[LevelSurface]):
    """Searches for where `value` passes `level`."""

    level: float
    """In units of the metric."""
    classes: int = 2
    """K: 2, and one for each other label that a trial can show (Evidence.label 2, 3, ...), like diverged."""
    start: int = 64
    replicates: int = 1
    """How many trials a setting of a grid may have."""

    def fit(self, evidence: Evidence, *, previous: LevelSurface | None = None) -> LevelSurface:
        x, label = evidence.x, evidence.label
        on_side = label < 2
        seen = level_observations(self.level, evidence.value[on_side], evidence.censored[on_side], label[on_side])
        data = Observations.of(x[on_side], seen.kind, seen.value)
        metric = fit(data, _LEVEL) if len(data) else None
        known = np.isfinite(seen.value)
        # Another class is compared with the trials of all others that are informative.
        use = ~on_side
        use[on_side] = known
        others = []
        for k in range(2, self.classes):
            kind = np.where(label[use] == k, AT_LEAST, AT_MOST).astype(np.int64)
            data = Observations.of(x[use], kind, np.zeros(len(kind)))
            others.append(fit(data, _LABEL) if (kind == AT_LEAST).any() else None)
        above = seen.above[seen.sided]
        shown = np.array([(~above).any(), above.any(), *(other is not None for other in others)])
        contradictions = _contradictions(metric, x[on_side][seen.sided], above)
        return LevelSurface(x.shape[1], self.classes, metric, tuple(others), shown, contradictions, seen.transform)

    def suggest(
        self, surface: LevelSurface, evidence: Evidence, *, pending: Points, count: int, snap: Snap, rng: Generator
    ) -> Points:
        """Greedily the largest P^4 dist^d, P the probability that the two leading classes are swapped.

        See `phase`; a tenth of the batch goes to the largest voids. On a grid a setting may get `replicates` trials.
        """
        d = surface.dimensions
        tried = np.concatenate([evidence.x, pending])

        def draw(n: int) -> Points:
            pool = rng.random((n, d))
            if n > _POOL:
                return pool
            # A second set of positions, denser near the uncertain ones.
            weight = swap_probability(surface, pool) ** 2 + 1e-12
            near = pool[rng.choice(n, n // 2, p=weight / weight.sum())]
            near = np.clip(near + rng.normal(0, 0.5 * n ** (-1 / d), near.shape), 0, 1)
            return np.concatenate([pool, near])

        # Where values scatter little, a setting nearby is more informative than another trial of the same one.
        replicates = self.replicates if surface.noise() > _SCATTER else 1
        pool = untried(draw, tried, snap, least=count, first=_POOL)
        if replicates > 1:
            cells = snap(rng.random((_POOL, d)))
            if is_grid(cells):
                pool = np.unique(np.concatenate([pool, cells]), axis=0)
            else:
                replicates = 1
        if not len(pool):
            return np.empty((0, d))
        # Never zero: where the belief is certain everywhere, distance alone decides.
        worth = np.maximum(swap_probability(surface, pool) ** POWER, 1e-200)
        return Distances(pool, tried, replicates=replicates).greedy(worth, count, void_share=_VOID_SHARE)


def _contradictions(metric: GpRegression | None, x: Points, above: NDArray[np.bool_]) -> float:
    """The share of trials on the other side than the belief, where that is at least 95%."""
    if metric is None or not len(x):
        return 0.0
    z = metric.z_scores(x)
    sure = np.abs(z) > 1.645
    return float(((z > 0) != above)[sure].mean()) if sure.any() else 0.0

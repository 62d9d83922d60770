"""Where a metric peaks along one axis, as the other axes vary: the double-descent peak as a curve.

The metric is a Gaussian process over the whole box, so trials at one setting of the other axes tell of its neighbours.
Curves along the axis are drawn from the belief, and each drawn curve has its peak: their spread is the belief of where
the peak is. A curve's peak is its most prominent interior maximum: the point from which it falls furthest on both
sides, f(t) - max(min of f before t, min of f after t). A plateau at an end is therefore no peak, however high it is. A
curve on which that fall is nowhere more than `prominence` has no peak; then its position is that of its largest value,
mostly an end of the axis. `presence` is the share of curves that have a peak: near 0 the answer is "no peak here", and
in between the interval of `peak` is wide, since it joins an end with the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.surface.base import Evidence, Points, RidgeSurface, Snap, Surrogate
from orchestrator.surface.kernel import Floats
from orchestrator.surface.level_placement import sobol
from orchestrator.surface.regression import Latent, LogNormal, Model, fit, sample
from orchestrator.surface.regression_ep import AT_LEAST, EXACT
from orchestrator.surface.ridge_placement import Ensemble, curves_of, place

_DRAWS: Final = 256
_STEPS: Final = 129
"""Points of a curve; between them the peak is the top of a parabola."""
_SEED: Final = 20_190_212
_LOG2_COLUMNS: Final = 6
_DECADE: Final = 10.0

_METRIC: Final = Model(
    length=LogNormal(median=0.3, spread=0.6),
    amplitude=LogNormal(median=1.0, spread=0.7),
    noise=LogNormal(median=0.15, spread=1.2),
    constant=1.0,
    spoilt=0.02,
    spoilt_spread=20.0,
    uneven=True,
    rank=256,
)


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Standard units: (value - centre) / scale, of the logarithm where the values span more than a decade."""

    log: bool
    centre: float
    scale: float

    def forward(self, value: Floats) -> Floats:
        """Standard units of values in units of the metric; NaN stays NaN."""
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                value = np.log(value)
        return np.asarray((value - self.centre) / self.scale)

    def back(self, standard: Floats) -> Floats:
        """Units of the metric."""
        value = standard * self.scale + self.centre
        return np.asarray(np.exp(value) if self.log else value)


def warp_of(value: Floats) -> Warp:
    """From the finite values: positive ones that span more than a decade are seen on a logarithmic scale."""
    seen = np.sort(value[np.isfinite(value)])
    if not len(seen):
        return Warp(log=False, centre=0.0, scale=1.0)
    log = bool(seen[0] > 0 and seen[-1] > _DECADE * seen[0])
    if log:
        seen = np.log(seen)
    low, centre, high = np.quantile(seen, [0.1, 0.5, 0.9])
    # 2.563: the distance of these quantiles of a standard normal.
    scale = float(high - low) / 2.563 or float(seen[-1] - seen[0]) or 1.0
    return Warp(log=log, centre=float(centre), scale=scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class PeakSurface(RidgeSurface):
    """The belief of the metric, and of the peak of its curves."""

    ridge_dimensions: int
    ridge_along: int
    metric: Latent | None
    """In standard units; None where no trial has a value."""
    warp: Warp
    prominence: float
    """In standard units."""

    @property
    def dimensions(self) -> int:
        return self.ridge_dimensions

    @property
    def along(self) -> int:
        return self.ridge_along

    def mean(self, x: Points) -> NDArray[np.float64]:
        """(q,) the expected metric; where it is seen on a logarithmic scale, its median. NaN before any trial."""
        if self.metric is None:
            return np.full(len(x), np.nan)
        return self.warp.back(self.metric.moments(x)[0])

    def draws(self, others: Points) -> tuple[Floats, Floats]:
        """(q, draws) positions of the peak and how far each drawn curve falls on both sides of it."""
        if self.metric is None:
            even = (np.arange(_DRAWS) + 0.5) / _DRAWS
            return np.tile(even, (len(others), 1)), np.zeros((len(others), _DRAWS))
        weights = self.metric.weights(_DRAWS, _SEED)
        position = np.empty((len(others), _DRAWS))
        fall = np.empty((len(others), _DRAWS))
        for row, other in enumerate(others):
            curves = self.metric.features(curves_of(other, self.along, _STEPS)) @ weights
            position[row], fall[row] = peaks(curves, self.prominence)
        return position, fall

    def peak(self, others: Points) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        position, _ = self.draws(others)
        low, median, high = np.quantile(position, [0.05, 0.5, 0.95], axis=1)
        return median, low, high

    def presence(self, others: Points) -> NDArray[np.float64]:
        """(q,) the probability that the curve along the axis has a peak between its ends."""
        if self.metric is None:
            return np.full(len(others), 0.5)
        return np.asarray((self.draws(others)[1] > self.prominence).mean(axis=1), dtype=np.float64)

    def trials(self, x: Points, rng: np.random.Generator) -> Evidence:
        """What trials at (q, d) positions would show, were the expected metric the truth."""
        count = len(x)
        value = np.full(count, np.nan)
        if self.metric is not None:
            noise = self.metric.noise_at(x) * rng.standard_normal(count)
            value = self.warp.back(self.metric.moments(x)[0] + noise)
        return Evidence(x=x, label=np.full(count, -1), value=value, censored=np.zeros(count, dtype=np.bool_))

    def uncertain_area(self) -> float:
        """The width of the peak's 90% interval along the axis, in box widths, averaged over the other axes."""
        return self._area

    @cached_property
    def _area(self) -> float:
        _, low, high = self.peak(sobol(self.dimensions - 1, _LOG2_COLUMNS))
        return float((high - low).mean())


def peaks(curves: Floats, prominence: float) -> tuple[Floats, Floats]:
    """Position in [0, 1] and fall on both sides of the peak of each curve: (steps, draws) -> (draws,), (draws,).

    A curve that falls by no more than `prominence` has its position at its largest value.
    """
    steps = len(curves)
    before = np.minimum.accumulate(curves, axis=0)
    after = np.minimum.accumulate(curves[::-1], axis=0)[::-1]
    fall = curves - np.maximum(before, after)
    top = fall.argmax(axis=0)
    each = np.arange(curves.shape[1])
    most = fall[top, each]
    top = np.where(most > prominence, top, curves.argmax(axis=0))
    # The top of the parabola through the largest value and its neighbours.
    inner = (top > 0) & (top < steps - 1)
    i = np.clip(top, 1, steps - 2)
    left, mid, right = curves[i - 1, each], curves[i, each], curves[i + 1, each]
    bend = left - 2 * mid + right
    inner &= bend < -1e-12
    shift = np.where(inner, 0.5 * (left - right) / np.where(inner, bend, -1.0), 0.0)
    return (top + np.clip(shift, -0.5, 0.5)) / (steps - 1), most


@dataclass(frozen=True, kw_only=True)
class RidgeSurrogate(Surrogate[PeakSurface]):
    """Looks for where `value` peaks along one axis. Holds no state."""

    along: int
    """The axis, 0..d-1."""
    prominence: float | None = None
    """How far a curve must fall on both sides of a peak, in units of the metric (of its logarithm, where the values are
    positive and span more than a decade); None: a twentieth of the distance between the metric's 10% and 90%
    quantiles."""
    start: int = 24

    def fit(self, evidence: Evidence, *, previous: PeakSurface | None = None) -> PeakSurface:
        warp = warp_of(evidence.value)
        kind = np.where(evidence.censored, AT_LEAST, EXACT).astype(np.int64)
        data = sample(evidence.x, kind, warp.forward(evidence.value))
        least = 0.05 * 2.563 if self.prominence is None else self.prominence / warp.scale
        return PeakSurface(
            ridge_dimensions=evidence.x.shape[1],
            ridge_along=self.along,
            metric=fit(data, _METRIC) if len(data.seen) else None,
            warp=warp,
            prominence=least,
        )

    def suggest(
        self,
        surface: PeakSurface,
        evidence: Evidence,
        *,
        pending: Points,
        count: int,
        snap: Snap,
        rng: np.random.Generator,
    ) -> Points:
        def ensemble(x: Points, others: Points) -> Ensemble | None:
            """What the drawn functions are at x, and where each of their curves at `others` has its peak."""
            if surface.metric is None:
                return None
            weights = surface.metric.weights(_DRAWS, int(rng.integers(2**31)))
            values = np.concatenate([phi @ weights for _, phi in surface.metric.chunks(x)])
            drawn = (surface.metric.features(curves_of(o, self.along, _STEPS // 2)) @ weights for o in others)
            position = np.stack([peaks(curves, surface.prominence)[0] for curves in drawn])
            return Ensemble(values=values, positions=position, noise=surface.metric.noise_at(x))

        return place(ensemble, self.along, tried=evidence.x, pending=pending, count=count, snap=snap, rng=rng)

"""The surrogate of a ridge target: where a metric peaks along one axis as the other axes vary, e.g. double descent.

The metric is a Gaussian process over the whole box, so trials at one setting of the other axes inform its neighbours.
Curves along the axis are sampled from the posterior, and the spread of their peaks is the belief of where the peak is.
The peak of a curve is its most prominent interior maximum: the point from which it falls furthest on both sides,
f(t) - max(min of f before t, min of f after t). A plateau at an end is therefore no peak, however high it is. A curve
on which that fall is nowhere more than `prominence` has no peak; its position is then that of its largest value, mostly
an end of the axis. `presence` is the share of curves that have a peak. Near 0 there is no peak; in between, the
interval of `peak` is wide, since it joins an end with the middle.

The samples, with the positions of their peaks, form an ensemble. Its covariance between the outcome of a trial and the
positions of the peaks gives the expected reduction of the variance of those positions, summed over the other axes.
After each choice the ensemble is conditioned on it, whatever its outcome (the linear update of the ensemble Kalman
filter; Evensen 2003), so that the trials of a batch are not redundant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from orchestrator.surface.base import Evidence, Points, RidgeSurface, Snap, Surrogate, sobol
from orchestrator.surface.kernel import Floats
from orchestrator.surface.placement import farthest, untried
from orchestrator.surface.regression import AT_LEAST, EXACT, GpRegression, LogNormal, Model, Observations, fit

_SAMPLES: Final = 256
_STEPS: Final = 129
"""Points of a curve; between them the peak is the top of a parabola."""
_SEED: Final = 20_190_212
_LOG2_COLUMNS: Final = 6
_DECADE: Final = 10.0
_POOL: Final = 1024
_COLUMNS: Final = 48
_VOID_SHARE: Final = 0.125
"""Share of a batch that goes where the metric itself is least known, which finds second peaks."""
_REPLICATE_FACTOR: Final = 1.25
"""A replicate must be more informative than the best new setting by this factor."""

_METRIC: Final = Model(
    lengthscale=LogNormal(median=0.3, sd=0.6),
    outputscale=LogNormal(median=1.0, sd=0.7),
    noise=LogNormal(median=0.15, sd=1.2),
    outlier_fraction=0.02,
    outlier_range=20.0,
    heteroscedastic=True,
    rank=256,
)


@dataclass(frozen=True, kw_only=True)
class Standardisation:
    """Standard units: (value - centre) / scale, of the logarithm where the values span more than a decade."""

    log: bool
    centre: float
    scale: float

    @staticmethod
    def of(value: Floats) -> Standardisation:
        """From the finite values: positive ones that span more than a decade are put on a logarithmic scale."""
        finite = np.sort(value[np.isfinite(value)])
        if not len(finite):
            return Standardisation(log=False, centre=0.0, scale=1.0)
        log = bool(finite[0] > 0 and finite[-1] > _DECADE * finite[0])
        if log:
            finite = np.log(finite)
        low, centre, high = np.quantile(finite, [0.1, 0.5, 0.9])
        # 2.563: the distance of these quantiles of a standard normal.
        scale = float(high - low) / 2.563 or float(finite[-1] - finite[0]) or 1.0
        return Standardisation(log=log, centre=float(centre), scale=scale)

    def forward(self, value: Floats) -> Floats:
        """Standard units of values in units of the metric; NaN stays NaN."""
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                value = np.log(value)
        return np.asarray((value - self.centre) / self.scale)

    def inverse(self, standard: Floats) -> Floats:
        """Units of the metric."""
        value = standard * self.scale + self.centre
        return np.asarray(np.exp(value) if self.log else value)


@dataclass(frozen=True, kw_only=True, eq=False)
class PeakSurface(RidgeSurface):
    """The belief of the metric, and of the peaks of its curves."""

    dimensions: int
    along: int
    metric: GpRegression | None
    """In standard units; None where no trial has a value."""
    units: Standardisation
    prominence: float
    """In standard units."""

    def mean(self, x: Points) -> NDArray[np.float64]:
        """(q,) the expected metric; on a logarithmic scale, its median. NaN before any trial."""
        if self.metric is None:
            return np.full(len(x), np.nan)
        return self.units.inverse(self.metric.moments(x)[0])

    def peak_samples(self, others: Points, weights: Floats | None = None, steps: int = _STEPS) -> tuple[Floats, Floats]:
        """(q, samples) positions of the peak, and how far each sampled curve falls on both sides of it."""
        if self.metric is None:
            even = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
            return np.tile(even, (len(others), 1)), np.zeros((len(others), _SAMPLES))
        weights = self.metric.sample_weights(_SAMPLES, _SEED) if weights is None else weights
        position, fall = np.empty((2, len(others), _SAMPLES))
        for row, other in enumerate(others):
            curve = np.insert(np.tile(other, (steps, 1)), self.along, np.linspace(0, 1, steps), axis=1)
            position[row], fall[row] = peaks(self.metric.features(curve) @ weights, self.prominence)
        return position, fall

    def peak(self, others: Points) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        low, median, high = np.quantile(self.peak_samples(others)[0], [0.05, 0.5, 0.95], axis=1)
        return median, low, high

    def presence(self, others: Points) -> NDArray[np.float64]:
        """(q,) the probability that the curve along the axis has a peak between its ends."""
        if self.metric is None:
            return np.full(len(others), 0.5)
        return np.asarray((self.peak_samples(others)[1] > self.prominence).mean(axis=1), dtype=np.float64)

    def trials(self, x: Points, rng: Generator) -> Evidence:
        """Simulated trials at (q, d) positions, taking the expected metric as the truth."""
        count = len(x)
        value = np.full(count, np.nan)
        if self.metric is not None:
            noise = self.metric.noise_at(x) * rng.standard_normal(count)
            value = self.units.inverse(self.metric.moments(x)[0] + noise)
        return Evidence(x=x, label=np.full(count, -1), value=value, censored=np.zeros(count, dtype=np.bool_))

    def uncertain_area(self) -> float:
        """The width of the peak's 90% interval along the axis, in box widths, averaged over the other axes."""
        return self._uncertain_area

    @cached_property
    def _uncertain_area(self) -> float:
        _, low, high = self.peak(sobol(self.dimensions - 1, _LOG2_COLUMNS))
        return float((high - low).mean())


def peaks(curves: Floats, prominence: float) -> tuple[Floats, Floats]:
    """Position in [0, 1] and fall on both sides of the peak of each curve: (steps, s) -> (s,), (s,).

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


@dataclass(kw_only=True, eq=False)
class Ensemble:
    """Posterior samples; conditioned in place."""

    values: Floats
    """(q, samples) the function at the candidates."""
    positions: Floats
    """(columns, samples) positions of the peaks."""
    noise: Floats
    """(q,) standard deviation of one trial at each candidate."""

    def peak_gain(self) -> Floats:
        """(q,) by how much a trial would reduce the summed variance of the positions."""
        values, positions, samples = self._centred()
        variance = values.var(axis=1)
        shared = (values @ positions.T / samples) ** 2
        # The squared covariance that uncorrelated samples show by chance.
        chance = variance[:, None] * positions.var(axis=1)[None, :] * (2.0 / samples)
        return np.asarray(np.maximum(shared - chance, 0.0).sum(axis=1) / (variance + self.noise**2 + 1e-12))

    def value_gain(self) -> Floats:
        """(q,) by how much a trial would reduce the variance of the function at its own position."""
        variance = self.values.var(axis=1)
        return np.asarray(variance**2 / (variance + self.noise**2 + 1e-12))

    def condition(self, candidate: int, rng: Generator) -> None:
        """Condition on a trial at this candidate."""
        values, positions, samples = self._centred()
        trial = values[candidate] + self.noise[candidate] * rng.standard_normal(samples)
        trial -= trial.mean()
        total = float(trial @ trial) + 1e-12
        self.values -= np.outer(values @ trial / total, trial)
        self.positions -= np.outer(positions @ trial / total, trial)

    def _centred(self) -> tuple[Floats, Floats, int]:
        values = self.values - self.values.mean(axis=1, keepdims=True)
        positions = self.positions - self.positions.mean(axis=1, keepdims=True)
        return values, positions, values.shape[1]


@dataclass(frozen=True, kw_only=True)
class RidgeSurrogate(Surrogate[PeakSurface]):
    """Searches for where `value` peaks along one axis."""

    along: int
    """The axis, 0..d-1."""
    prominence: float | None = None
    """How far a curve must fall on both sides of a peak, in units of the metric (of its logarithm, where the values are
    positive and span more than a decade); None: a twentieth of the distance between the metric's 10% and 90%
    quantiles."""
    start: int = 24

    def fit(self, evidence: Evidence, *, previous: PeakSurface | None = None) -> PeakSurface:
        units = Standardisation.of(evidence.value)
        kind = np.where(evidence.censored, AT_LEAST, EXACT).astype(np.int64)
        data = Observations.of(evidence.x, kind, units.forward(evidence.value))
        return PeakSurface(
            dimensions=evidence.x.shape[1],
            along=self.along,
            metric=fit(data, _METRIC) if len(data) else None,
            units=units,
            prominence=0.05 * 2.563 if self.prominence is None else self.prominence / units.scale,
        )

    def suggest(
        self, surface: PeakSurface, evidence: Evidence, *, pending: Points, count: int, snap: Snap, rng: Generator
    ) -> Points:
        """Greedily the trials that are most informative about the peak; an eighth of them, about the metric."""
        d, metric = surface.dimensions, surface.metric
        tried = np.concatenate([evidence.x, pending])
        pool = untried(lambda n: rng.random((n, d)), tried, snap, least=count, first=_POOL)
        if not len(pool):
            return np.empty((0, d))
        # Candidates: new positions, then replicates, then pending trials, which are not chosen but conditioned on.
        settings = np.unique(evidence.x, axis=0)
        again = settings[rng.permutation(len(settings))[: _POOL // 4]]
        x = np.concatenate([pool, again, pending])
        new, free = len(pool), len(pool) + len(again)
        columns = np.unique(np.delete(snap(rng.random((_COLUMNS, d))), self.along, axis=1), axis=0)
        if metric is None:
            return farthest(pool, tried, count)
        weights = metric.sample_weights(_SAMPLES, int(rng.integers(2**31)))
        ensemble = Ensemble(
            values=np.concatenate([phi @ weights for _, phi in metric.chunks(x)]),
            positions=surface.peak_samples(columns, weights, _STEPS // 2)[0],
            noise=metric.noise_at(x),
        )
        taken = np.zeros(len(x), dtype=bool)
        taken[free:] = True
        for row in range(free, len(x)):
            ensemble.condition(row, rng)
        chosen: list[int] = []
        while len(chosen) < count and not taken[:new].all():
            turn = len(chosen)
            void = int((turn + 1) * _VOID_SHARE) > int(turn * _VOID_SHARE)
            gain = ensemble.value_gain() if void else ensemble.peak_gain()
            gain[taken] = -1.0
            best = int(gain[:new].argmax())
            if not void and len(again):
                replicate = new + int(gain[new:free].argmax())
                if gain[replicate] > _REPLICATE_FACTOR * gain[best]:
                    best = replicate
            chosen.append(best)
            taken[best] = best < new
            ensemble.condition(best, rng)
        return x[chosen]

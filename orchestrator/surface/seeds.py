"""Two bands of a boundary: given these seeds, and over seeds.

Replicates of the same number share a seed along the axes, so that each seed has a smooth boundary of its own. The
model is hierarchical: the latent function of a class (see `classifier`) is f_r(x) = m(x) + g_r(x) for seed r, with m
shared by all seeds and g_r independent for each. Both are Gaussian processes with a Matern-5/2 covariance.

- *Given these seeds*: where most of the seeds that were run change their class. It shrinks as trials are added.
- *Over seeds*: where another seed changes its class. It does not shrink below the spread of the seeds.

Lengthscales, outputscales and label noise rate maximise the marginal likelihood times weak priors. They are learned
from all trials, up to `_LEARNED`. A random sample of the trials of an adaptive search would be misleading: the search
put them where the labels of the others left the class open, and without these the labels look like coin flips. Of more
trials, those that lie farthest apart are taken; they are nearly the ones with which such a search begins.

Shapes: n trials, d axes, q query points, R seeds that were run, L latent functions, r features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import expit

from orchestrator.surface.base import ClassSurface, Points
from orchestrator.surface.classifier import LabelCounts, ProbitLikelihood, class_probabilities
from orchestrator.surface.ep import GaussianPosterior, Sites, propagate
from orchestrator.surface.kernel import Floats, matern52, matern52_gradients

Seeds = NDArray[np.int64]

_RANK: Final = 300
_LEARNED: Final = 512
"""Most trials that the hyperparameters are learned from; fewer with several latent functions, at the same cost."""
_MOST_TRIALS: Final = 4096
"""Of more trials, this many are used."""
_DRAWS: Final = 128
_MOST_SAMPLED: Final = 9
"""With more seeds, their majority is approximated by their mean."""
_CHUNK: Final = 512
_STEPS: Final = 40

PRIOR_MEDIAN: Final = (0.3, 20.0, 3.0, 0.6, 0.003)
"""Of the lengthscale, the outputscale, the seeds' outputscale, the seeds' lengthscale and the label noise rate."""
PRIOR_SD: Final = (0.5, 1.0, 1.5, 0.5, 0.8)
"""Standard deviations of their logarithms (of the logit, for the rate)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedKernel:
    """Covariance of f_r(x) and f_s(y): shared, and added where r = s."""

    lengthscale: Floats
    """(d,) of m."""
    outputscale: float
    seed_scale: float
    """Standard deviation of g_r."""
    seed_lengthscale: float
    label_noise_rate: float

    @staticmethod
    def of(theta: Floats) -> SeedKernel:
        *lengthscale, outputscale, seed_scale, seed_lengthscale = np.exp(theta[:-1])
        return SeedKernel(
            lengthscale=np.array(lengthscale),
            outputscale=float(outputscale),
            seed_scale=float(seed_scale),
            seed_lengthscale=float(seed_lengthscale),
            label_noise_rate=float(expit(theta[-1])),
        )

    @property
    def variance(self) -> float:
        """Of one seed's latent function."""
        return self.outputscale**2 + self.seed_scale**2

    def shared(self, x: Points, y: Points) -> Floats:
        return self.outputscale**2 * matern52(x, y, self.lengthscale)

    def own(self, x: Points, y: Points) -> Floats:
        return self.seed_scale**2 * matern52(x, y, np.full(x.shape[1], self.seed_lengthscale))


def _prior(d: int) -> tuple[Floats, Floats]:
    """Centre and standard deviation of theta: log lengthscale (d), the other logarithms, the logit of the rate."""
    first, *rest, rate = PRIOR_MEDIAN
    centre = np.concatenate([np.full(d, np.log(first)), np.log(rest), [np.log(rate / (1 - rate))]])
    return centre, np.concatenate([np.full(d, PRIOR_SD[0]), PRIOR_SD[1:]])


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedData:
    """Labelled trials, those of one setting and seed counted together."""

    x: Points
    """(n, d)"""
    seed: Seeds
    """(n,) 0 to R - 1."""
    counts: LabelCounts
    """(n, K) of the same rows."""
    seeds: int
    """R"""

    @staticmethod
    def of(x: Points, label: NDArray[np.int64], seed: Seeds, classes: int) -> SeedData:
        known = label >= 0
        distinct, place = np.unique(seed[known], return_inverse=True)
        rows = np.column_stack([x[known], place.reshape(-1)])
        counts = LabelCounts.of(rows, label[known], classes)
        return SeedData(
            x=counts.x[:, :-1], seed=counts.x[:, -1].astype(np.int64), counts=counts, seeds=max(1, len(distinct))
        )

    def spread(self, size: int) -> SeedData:
        """At most `size` of the trials, each as far from those before it as possible."""
        if len(self.x) <= size:
            return self
        away = np.full(len(self.x), np.inf)
        picks = [int(np.linalg.norm(self.x - self.x.mean(axis=0), axis=1).argmin())]
        while len(picks) < size:
            np.minimum(away, np.linalg.norm(self.x - self.x[picks[-1]], axis=1), out=away)
            away[picks[-1]] = -1.0
            picks.append(int(away.argmax()))
        at = np.sort(picks)
        return replace(
            self, x=self.x[at], seed=self.seed[at], counts=LabelCounts(self.counts.x[at], self.counts.counts[at])
        )


class _Objective:
    """Minus the log posterior density of theta (whitened by its prior), and its gradient."""

    def __init__(self, data: SeedData) -> None:
        self.data = data
        self.likelihoods = [data.counts.likelihood(k) for k in data.counts.latent]
        self.sites: list[Sites | None] = [None] * len(self.likelihoods)
        self.same = data.seed[:, None] == data.seed[None, :]
        self.centre, self.spread = _prior(data.x.shape[1])

    def __call__(self, whitened: Floats) -> tuple[float, Floats]:
        x, (n, d) = self.data.x, self.data.x.shape
        theta = self.centre + self.spread * whitened
        kernel = SeedKernel.of(theta)
        shared, by_lengthscale = matern52_gradients(x, kernel.lengthscale)
        own, by_seed_lengthscale = matern52_gradients(x, np.full(d, kernel.seed_lengthscale))
        shared *= kernel.outputscale**2
        own *= self.same * kernel.seed_scale**2
        gram = shared + own
        gram[np.diag_indices(n)] += 1e-8 * kernel.variance
        root: Floats = np.asarray(np.linalg.cholesky(gram), dtype=np.float64)
        total, gradient = -0.5 * float(whitened @ whitened), np.zeros_like(whitened)
        for index, labels in enumerate(self.likelihoods):
            labels = replace(labels, label_noise_rate=kernel.label_noise_rate)
            posterior = propagate(root, labels, first=self.sites[index], tolerance=3e-3)
            self.sites[index] = sites = posterior.sites
            total += posterior.log_evidence
            rate = kernel.label_noise_rate
            gradient[-1] += posterior.by_parameter * rate * (1 - rate)
            at = labels.at
            precision = np.bincount(at, labels.weight * sites.precision, minlength=n)
            residual = sites.linear - sites.precision * posterior.mean[at]
            alpha = np.bincount(at, labels.weight * residual, minlength=n)
            half = posterior.half * precision
            inner = np.outer(alpha, alpha) + half.T @ half
            inner[np.diag_indices(n)] -= precision
            inner *= 0.5
            gradient[:d] += kernel.outputscale**2 * np.einsum("kij,ij->k", by_lengthscale, inner)
            gradient[d] += 2 * float(np.vdot(shared, inner))
            gradient[d + 1] += 2 * float(np.vdot(own, inner))
            gradient[d + 2] += kernel.seed_scale**2 * float(np.vdot(by_seed_lengthscale.sum(axis=0) * self.same, inner))
        return -total, whitened - self.spread * gradient

    def maximise(self) -> SeedKernel:
        """The kernel of largest posterior density."""
        d = self.data.x.shape[1]
        low = [np.log(0.03)] * d + [np.log(0.5), np.log(1e-3), np.log(0.1), -8.0]
        high = [np.log(5.0)] * d + [np.log(100.0), np.log(50.0), np.log(5.0), -0.85]
        bounds = ((np.array([low, high]) - self.centre) / self.spread).T
        options = {"maxiter": _STEPS, "ftol": 1e-4, "gtol": 0.1}
        done = minimize(self, np.zeros(d + 4), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return SeedKernel.of(self.centre + self.spread * done.x)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fitted:
    """The latent functions."""

    kernel: SeedKernel
    inducing: Points
    """(r, d)"""
    inducing_seed: Seeds
    factor: Floats
    """(r, r) lower Cholesky factor of the covariance of the inducing points."""
    posteriors: tuple[GaussianPosterior, ...]

    @staticmethod
    def of(kernel: SeedKernel, data: SeedData) -> _Fitted:
        x, seed, n = data.x, data.seed, len(data.x)
        rank = min(_RANK, n)
        left, rows, pivots = np.full(n, kernel.variance), np.empty((rank, n)), list[int]()
        for step in range(rank):
            pivot = int(left.argmax())
            if left[pivot] < 0.01:
                break
            row = (kernel.shared(x[pivot][None], x) + (seed == seed[pivot]) * kernel.own(x[pivot][None], x))[0]
            row -= rows[:step, pivot] @ rows[:step]
            row /= np.sqrt(left[pivot])
            row[pivots] = 0.0
            rows[step] = row
            left -= row * row
            left[pivot] = -np.inf
            pivots.append(pivot)
        kept = rows[: len(pivots)]
        features = np.ascontiguousarray(kept.T)
        posteriors = []
        for k in data.counts.latent:
            labels: ProbitLikelihood = replace(data.counts.likelihood(k), label_noise_rate=kernel.label_noise_rate)
            posteriors.append(propagate(features, labels))
        return _Fitted(
            kernel=kernel,
            inducing=x[pivots],
            inducing_seed=seed[pivots],
            factor=np.tril(kept[:, pivots].T),
            posteriors=tuple(posteriors),
        )

    def _features(self, cross: Floats) -> Floats:
        """(q, r) from covariances (r, q) with the inducing points."""
        return np.asarray(solve_triangular(self.factor, cross, lower=True, check_finite=False).T)

    def another_seed(self, x: Points) -> tuple[Floats, Floats]:
        """(q, L) mean and standard deviation of the latent functions of a seed that was not run."""
        phi = self._features(self.kernel.shared(self.inducing, x))
        return self._moments(phi, self.kernel.variance)

    def _moments(self, phi: Floats, prior: float) -> tuple[Floats, Floats]:
        residual = np.maximum(prior - np.einsum("qr,qr->q", phi, phi), 0.0)
        mean, variance = np.empty((2, len(phi), len(self.posteriors)))
        for index, posterior in enumerate(self.posteriors):
            half = posterior.half_covariance(phi)
            mean[:, index] = phi @ posterior.weights
            variance[:, index] = np.einsum("rq,rq->q", half, half) + residual
        return mean, np.sqrt(variance)

    def most_seeds(self, x: Points, seeds: int) -> tuple[Floats, Floats]:
        """(q, L) mean and standard deviation of the median over the seeds that were run."""
        shared, own = self.kernel.shared(self.inducing, x), self.kernel.own(self.inducing, x)
        s2, t2 = self.kernel.outputscale**2, self.kernel.seed_scale**2
        if seeds == 1 or seeds > _MOST_SAMPLED:
            mean, sd = self._moments(self._features(shared + own / seeds), s2 + t2 / seeds)
            apart = 0.0 if seeds == 1 else (np.pi / 2 - 1) * t2 / seeds
            return mean, np.sqrt(sd**2 + apart)
        q, count = len(x), len(self.inducing)
        cross = shared[:, :, None] + own[:, :, None] * (self.inducing_seed[:, None, None] == np.arange(seeds))
        phi = self._features(cross.reshape(count, -1)).reshape(q, seeds, -1)
        prior = s2 + t2 * np.eye(seeds) - phi @ phi.transpose(0, 2, 1)
        draws = np.random.default_rng(0).standard_normal((seeds, _DRAWS // 2))
        draws = np.concatenate([draws, -draws], axis=1)
        mean, sd = np.empty((2, q, len(self.posteriors)))
        for index, posterior in enumerate(self.posteriors):
            half = posterior.half_covariance(phi.reshape(q * seeds, -1)).T.reshape(q, seeds, -1)
            values, vectors = np.linalg.eigh(prior + half @ half.transpose(0, 2, 1))
            root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
            median = np.median((phi @ posterior.weights)[:, :, None] + root @ draws, axis=1)
            mean[:, index], sd[:, index] = median.mean(axis=1), median.std(axis=1)
        return mean, np.maximum(sd, 1e-9)


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedSurface(ClassSurface):
    """One of the two beliefs: the class of most of these seeds, or that of another seed."""

    area_points_log2: ClassVar[int] = 10
    dimensions: int
    classes: int
    data: SeedData
    fitted: _Fitted
    over_seeds: bool

    def belief(self, x: Points) -> NDArray[np.float64]:
        out = np.zeros((len(x), self.classes))
        shown = self.data.counts.shown
        for part in _chunks(len(x)):
            fitted = self.fitted
            moments = fitted.another_seed(x[part]) if self.over_seeds else fitted.most_seeds(x[part], self.data.seeds)
            out[part, shown] = class_probabilities(*moments)
        return out

    def noise(self) -> float:
        return self.fitted.kernel.label_noise_rate


def _chunks(count: int) -> Iterator[slice]:
    for first in range(0, count, _CHUNK):
        yield slice(first, min(first + _CHUNK, count))


@dataclass(frozen=True, kw_only=True)
class SeedBands:
    """Both beliefs; the band of each is where no class has 95% of the belief."""

    given_seeds: SeedSurface
    over_seeds: SeedSurface | None
    """None where one seed was run: it says nothing of another one."""

    @property
    def both(self) -> tuple[SeedSurface, SeedSurface | None]:
        return self.given_seeds, self.over_seeds


def fit_bands(x: Points, label: NDArray[np.int64], seed: Seeds, *, classes: int) -> SeedBands | None:
    """Both beliefs from trials (n, d), their labels (-1: none) and seeds (n,); None where fewer than two classes show.

    The result does not depend on the order of the trials.
    """
    data = SeedData.of(np.asarray(x, dtype=np.float64), label, seed, classes)
    if len(data.counts.shown) < 2:
        return None
    data = data.spread(_MOST_TRIALS)
    learned = int(_LEARNED * len(data.counts.latent) ** (-1 / 3))
    fitted = _Fitted.of(_Objective(data.spread(learned)).maximise(), data)
    given = SeedSurface(dimensions=data.x.shape[1], classes=classes, data=data, fitted=fitted, over_seeds=False)
    return SeedBands(given_seeds=given, over_seeds=replace(given, over_seeds=True) if data.seeds > 1 else None)

"""A Gaussian-process classifier of phases: any number of classes, one lengthscale per axis, a learned label noise rate.

One latent function per class, one against the rest (a single one for two classes), with a Matern-5/2 covariance.
Inference is by expectation propagation under a probit likelihood with label noise. Lengthscales, outputscale and label
noise rate maximise the marginal likelihood times weak priors. The result depends on the set of trials alone: they are
sorted first, and replicates become counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_ndtr, ndtr

from orchestrator.surface.base import ClassSurface, Points
from orchestrator.surface.ep import GaussianPosterior, Likelihood, Sites, TiltedMoments, propagate
from orchestrator.surface.kernel import Floats, InducingFeatures, inducing_features, matern52_gradients

Labels = NDArray[np.int64]

_BLOCK = 4096
_GROWTH = 1.4
_RESIDUAL = 0.01
"""Variance of a latent function that its features may leave out: a hundredth of the probit's own."""
_HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbitLikelihood(Likelihood):
    """p(y | f) = e + (1 - 2 e) Phi(y f), y in {-1, 1}, e the label noise rate.

    Opper and Winther 2000; Kim and Ghahramani 2008 for the label noise. Latent functions are steep here: Laplace's
    approximation is known to be underconfident, and expectation propagation to be nearly exact (Kuss and Rasmussen
    2005).
    """

    y: Floats
    """(m,) 1 or -1."""
    label_noise_rate: float = 0.0

    damping: ClassVar[float] = 0.7
    least_damping: ClassVar[float] = 0.3
    least_precision: ClassVar[float] = 1e-9
    frozen_below: ClassVar[float] = 0.03
    stalled_tolerance: ClassVar[float] = 0.05

    def moments(self, mean: Floats, variance: Floats, rows: slice | Labels = slice(None)) -> TiltedMoments:
        """See `Likelihood.moments`; the hyperparameter is the label noise rate."""
        y, rate = self.y[rows], self.label_noise_rate
        scale = np.sqrt(1.0 + variance)
        z = y * mean / scale
        log_density = -0.5 * z * z - _HALF_LOG_2PI
        if rate > 0:
            mass = rate + (1 - 2 * rate) * ndtr(z)
            log_mass = np.log(mass)
            ratio = (1 - 2 * rate) * np.exp(log_density) / mass
            by_rate = (1 - 2 * ndtr(z)) / mass
        else:
            log_mass = log_ndtr(z)
            ratio = np.exp(log_density - log_mass)
            by_rate = np.zeros_like(z)
        second = -ratio * (z + ratio) / (1.0 + variance)
        return TiltedMoments(log_mass=log_mass, first=y * ratio / scale, second=second, by_parameter=by_rate)


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Prior of the hyperparameters: medians, and standard deviations of the logarithms."""

    lengthscale: float = 0.3
    """In box widths."""
    lengthscale_sd: float = 0.5
    outputscale: float = 20.0
    """Standard deviation of a latent function, in units of the probit's slope."""
    outputscale_sd: float = 1.0
    label_noise_rate: float = 0.003
    """Share of labels that are wrong where there are no replicates; its logit is normal."""
    label_noise_sd: float = 0.8
    label_noise_count: float = 100.0
    """How many replicates `label_noise_rate` counts for."""

    def centre(self, data: LabelCounts) -> Hyperparameters:
        """The medians. Replicates move that of the label noise rate: without them, noisy labels and a small
        outputscale explain the data equally well."""
        often = data.counts[data.counts.sum(axis=1) > 1]
        odd = float((often.sum(axis=1) - often.max(axis=1, initial=0)).sum())
        rate = (self.label_noise_rate * self.label_noise_count + odd) / (self.label_noise_count + float(often.sum()))
        lengthscale = np.full(data.x.shape[1], self.lengthscale)
        return Hyperparameters(lengthscale, self.outputscale, min(rate, 0.25))


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """Shared by the latent functions of all classes."""

    lengthscale: Floats
    """(d,) in box widths."""
    outputscale: float
    """Standard deviation of a latent function."""
    label_noise_rate: float
    """Share of labels that are wrong, anywhere in the box."""

    def unconstrained(self) -> Floats:
        """Logarithms, and the logit of the label noise rate."""
        rate = self.label_noise_rate
        return np.concatenate([np.log(self.lengthscale), [np.log(self.outputscale), np.log(rate / (1 - rate))]])

    @staticmethod
    def of(vector: Floats) -> Hyperparameters:
        return Hyperparameters(np.exp(vector[:-2]), float(np.exp(vector[-2])), float(expit(vector[-1])))


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """The labelled trials as a set: settings sorted, replicates counted."""

    x: Points
    """(u, d) distinct settings."""
    counts: NDArray[np.int64]
    """(u, K) how many replicates showed each class."""

    @staticmethod
    def of(x: Points, label: Labels, classes: int) -> LabelCounts:
        """From trials (n, d), (n,); those without a label (-1) are left out."""
        kept = label >= 0
        settings, inverse = np.unique(x[kept], axis=0, return_inverse=True)
        counts = np.zeros((len(settings), classes), dtype=np.int64)
        np.add.at(counts, (inverse.reshape(-1), label[kept]), 1)
        return LabelCounts(settings, counts)

    @property
    def shown(self) -> Labels:
        """The classes that any trial showed."""
        return np.flatnonzero(self.counts.sum(axis=0))

    @property
    def latent(self) -> tuple[int, ...]:
        """The classes that get a latent function: of two only the second, since the first is its mirror image."""
        shown = self.shown
        return tuple(int(k) for k in (shown[1:] if len(shown) == 2 else shown))

    def likelihood(self, positive: int) -> ProbitLikelihood:
        """Of the labels of one class against the rest: one observation per setting and outcome, weighted by count."""
        yes = self.counts[:, positive]
        no = self.counts.sum(axis=1) - yes
        at = np.concatenate([np.flatnonzero(yes), np.flatnonzero(no)])
        y = np.repeat([1.0, -1.0], [np.count_nonzero(yes), np.count_nonzero(no)])
        return ProbitLikelihood(at=at, weight=np.concatenate([yes[yes > 0], no[no > 0]]).astype(float), y=y)

    def subset(self, size: int) -> LabelCounts:
        """At most `size` settings, chosen by a hash of each, so that the choice changes little as trials are added."""
        if len(self.x) <= size:
            return self
        chosen = np.sort(np.argsort(_hash(self.x), kind="stable")[:size])
        return LabelCounts(self.x[chosen], self.counts[chosen])


def _hash(x: Points) -> NDArray[np.uint64]:
    """A 64-bit hash of each position (splitmix64 of the bits of its coordinates)."""
    out = np.full(len(x), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in np.ascontiguousarray(x.T + 0.0).view(np.uint64):
        out = out ^ column
        out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out ^= out >> np.uint64(31)
    return out


def learn(data: LabelCounts, prior: Prior, old: GpClassifier | None = None, steps: int = 40) -> Hyperparameters:
    """The hyperparameters of largest marginal likelihood times prior, starting from those of `old`."""
    d = data.x.shape[1]
    centre = prior.centre(data).unconstrained()
    spread = np.concatenate([np.full(d, prior.lengthscale_sd), [prior.outputscale_sd, prior.label_noise_sd]])
    if len(data.shown) < 2:
        return Hyperparameters.of(centre)
    likelihoods = [data.likelihood(k) for k in data.latent]
    sites = [_first_sites(old, data, labels, k) for k, labels in zip(data.latent, likelihoods, strict=True)]

    def loss(whitened: Floats) -> tuple[float, Floats]:
        hyper = Hyperparameters.of(centre + spread * whitened)
        rate, variance = hyper.label_noise_rate, hyper.outputscale**2
        total, gradient = -0.5 * float(whitened @ whitened), np.zeros_like(whitened)
        correlation, by_lengthscale = matern52_gradients(data.x, hyper.lengthscale)
        correlation[np.diag_indices(len(correlation))] += 1e-8
        root: Floats = np.asarray(np.linalg.cholesky(correlation) * hyper.outputscale, dtype=np.float64)
        for index, labels in enumerate(likelihoods):
            labels = replace(labels, label_noise_rate=rate)
            posterior = propagate(root, labels, first=sites[index], tolerance=3e-3)
            sites[index] = found = posterior.sites
            total += posterior.log_evidence
            gradient[-1] += posterior.by_parameter * rate * (1 - rate)
            at, n = labels.at, len(data.x)
            precision = np.bincount(at, labels.weight * found.precision, minlength=n)
            residual = found.linear - found.precision * posterior.mean[at]
            alpha = np.bincount(at, labels.weight * residual, minlength=n)
            half = posterior.half * precision
            inner = np.outer(alpha, alpha) + half.T @ half
            inner[np.diag_indices(n)] -= precision
            inner *= 0.5 * variance
            gradient[:d] += np.einsum("kij,ij->k", by_lengthscale, inner)
            gradient[d] += 2 * float(np.einsum("ij,ij->", correlation, inner))
        return -total, whitened - spread * gradient

    # In units of the prior's deviations the loss is of similar steepness along all axes: L-BFGS needs fewer steps.
    limits = np.array([(np.log(0.03), np.log(5.0))] * d + [(np.log(0.5), np.log(100.0)), (-8.0, -0.85)])
    low, high = ((limits - centre[:, None]) / spread[:, None]).T
    start = (old.hyper.unconstrained() - centre) / spread if old else np.zeros_like(centre)
    options = {"maxiter": steps, "ftol": 1e-4, "gtol": 0.1}
    bounds = np.stack([low, high], axis=1)
    done = minimize(loss, np.clip(start, low, high), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return Hyperparameters.of(centre + spread * done.x)


@dataclass(frozen=True, kw_only=True, eq=False)
class GpClassifier(ClassSurface):
    """The fitted classifier."""

    area_points_log2: ClassVar[int] = 12
    dimensions: int
    classes: int
    data: LabelCounts
    hyper: Hyperparameters
    learned_at: int
    """How many settings there were when the hyperparameters were learned."""
    inducing: InducingFeatures
    posteriors: tuple[GaussianPosterior, ...]
    """One for each class of `data.latent`."""

    def noise(self) -> float:
        return self.hyper.label_noise_rate

    def features(self, x: Points) -> Floats:
        """(q, r) of the latent functions, outputscale included."""
        return self.inducing.at(x) * self.hyper.outputscale

    def latent_moments(self, x: Points, features: Floats | None = None) -> tuple[Floats, Floats]:
        """(q, L) mean and variance of each latent function, with the variance that the features leave out."""
        phi = self.features(x) if features is None else features
        residual = np.maximum(self.hyper.outputscale**2 - np.einsum("qr,qr->q", phi, phi), 0.0)
        mean = np.empty((len(phi), len(self.posteriors)))
        variance = np.empty_like(mean)
        for index, posterior in enumerate(self.posteriors):
            half = posterior.half_covariance(phi)
            mean[:, index] = phi @ posterior.weights
            variance[:, index] = np.einsum("rq,rq->q", half, half) + residual
        return mean, variance

    def belief(self, x: Points) -> Floats:
        out = np.zeros((len(x), self.classes))
        shown = self.data.shown
        if len(shown) == 0:
            return np.full_like(out, 1.0 / self.classes)
        if len(shown) == 1 == self.classes:
            return np.ones_like(out)
        for first in range(0, len(x), _BLOCK):
            part = slice(first, first + _BLOCK)
            mean, variance = self.latent_moments(x[part])
            if len(shown) == 1:
                z = mean / np.sqrt(variance)
                out[part] = ndtr(-z) / (self.classes - 1)
                out[part, shown[0]] = ndtr(z)[:, 0]
            else:
                out[part, shown] = class_probabilities(mean, np.sqrt(variance))
        return out

    def label(self, x: Points) -> Labels:
        shown = self.data.shown
        if len(shown) < 2:
            return super().label(x)
        out = np.empty(len(x), dtype=np.int64)
        weights = np.stack([p.weights for p in self.posteriors], axis=1)
        for first in range(0, len(x), _BLOCK):
            part = slice(first, first + _BLOCK)
            mean = self.features(x[part]) @ weights
            # The largest belief is that of the largest mean: see class_probabilities.
            out[part] = shown[(mean[:, 0] > 0).astype(int)] if len(shown) == 2 else shown[mean.argmax(axis=1)]
        return out


def class_probabilities(mean: Floats, sd: Floats) -> Floats:
    """(q, K) the belief in each class that was shown.

    For two classes, the probability that the latent function is positive. For more, each class is compared with its
    strongest rival, taking their two latent functions as perfectly anticorrelated (a class against the rest), and the
    result is normalised.
    """
    if mean.shape[1] == 1:
        p = ndtr(mean / sd)
        return np.hstack([1 - p, p])
    out = np.ones_like(mean)
    for k in range(mean.shape[1]):
        for rival in range(mean.shape[1]):
            if rival != k:
                wins = ndtr((mean[:, k] - mean[:, rival]) / (sd[:, k] + sd[:, rival]))
                np.minimum(out[:, k], wins, out=out[:, k])
    out /= out.sum(axis=1, keepdims=True)
    return out


def _hyperparameters(
    data: LabelCounts, prior: Prior, old: GpClassifier | None, learn_from: int
) -> tuple[Hyperparameters, int]:
    """Hyperparameters, and how many settings there were when they were learned.

    Those of an earlier fit are kept while the number of settings has grown by less than _GROWTH and the same classes
    are shown. A fit that starts from an earlier one may therefore differ from one that does not.
    """
    known = len(data.x)
    if old is not None and np.array_equal(old.data.shown, data.shown) and len(data.shown) > 1:
        if 0 < old.learned_at <= known < _GROWTH * old.learned_at:
            return old.hyper, old.learned_at
    else:
        old = None
    return learn(data.subset(learn_from), prior, old), known


def _first_sites(old: GpClassifier | None, data: LabelCounts, labels: ProbitLikelihood, positive: int) -> Sites | None:
    """Sites to start from: those of the same settings and outcomes in an earlier fit, where there are any."""
    if old is None or positive not in old.data.latent:
        return None
    precision, linear = np.full(len(labels.at), labels.least_precision), np.zeros(len(labels.at))
    before = old.posteriors[old.data.latent.index(positive)].sites
    told = old.data.likelihood(positive)
    rows = {(row.tobytes(), y): i for i, (row, y) in enumerate(zip(old.data.x[told.at], told.y, strict=True))}
    for i, (row, y) in enumerate(zip(data.x[labels.at], labels.y, strict=True)):
        j = rows.get((row.tobytes(), y))
        if j is not None:
            precision[i], linear[i] = before.precision[j], before.linear[j]
    return Sites(precision=precision, linear=linear)


def fit_classifier(
    x: Points,
    label: Labels,
    *,
    classes: int,
    previous: ClassSurface | None = None,
    prior: Prior | None = None,
    rank: int = 320,
    learn_from: int = 400,
) -> GpClassifier:
    """Fit the classifier to trials: (n, d) settings in the unit box, (n,) labels, -1 where a trial has none.

    Args:
        x: Settings; equal ones are replicates.
        label: Index of the class that each trial showed, below `classes`.
        classes: K.
        previous: A fit to some of these trials, to start from; see `_hyperparameters` for what it may change.
        prior: Of the hyperparameters.
        rank: Most features; the covariance is exact up to as many settings.
        learn_from: How many settings the hyperparameters are learned from.
    """
    data = LabelCounts.of(np.asarray(x, dtype=float), np.asarray(label), classes)
    old = previous if isinstance(previous, GpClassifier) else None
    hyper, learned_at = _hyperparameters(data, prior or Prior(), old, learn_from)
    inducing = inducing_features(data.x, hyper.lengthscale, rank=rank, residual=_RESIDUAL / hyper.outputscale**2)
    features = inducing.train * hyper.outputscale
    posteriors = []
    for k in data.latent:
        labels = replace(data.likelihood(k), label_noise_rate=hyper.label_noise_rate)
        posteriors.append(propagate(features, labels, first=_first_sites(old, data, labels, k)))
    return GpClassifier(
        dimensions=data.x.shape[1],
        classes=classes,
        data=data,
        hyper=hyper,
        learned_at=learned_at,
        inducing=inducing,
        posteriors=tuple(posteriors),
    )

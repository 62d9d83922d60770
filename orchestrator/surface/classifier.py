"""A Gaussian-process classifier of phases: any number of labels, length scales an axis, a learned rate of odd labels.

One latent function a class, one against the rest (a single one for two classes), under a Matern-5/2 prior; expectation
propagation under a flip-robust probit likelihood; length scales, height and flip rate maximise the marginal likelihood
times a weak prior. Everything is a function of the set of trials: they are sorted first, and replicates become counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtr
from scipy.stats import qmc

from orchestrator.surface.base import ClassSurface, Points
from orchestrator.surface.ep import Posterior, Sites, propagate, start
from orchestrator.surface.kernel import Basis, Floats, basis, matern52_slopes

Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is believed of the hyper-parameters before any trial: medians and standard deviations of logarithms."""

    scale: float = 0.3
    """Length scale, in box widths."""
    scale_sd: float = 0.5
    height: float = 20.0
    """Standard deviation of a latent function, in units of the probit's slope."""
    height_sd: float = 1.0
    flips: float = 0.003
    """The share of flipped labels, where no replicates tell; its logit is normal."""
    flips_sd: float = 0.8
    flips_weight: float = 100.0
    """How many replicates `flips` counts for against those that there are."""

    def centre(self, counts: Counts) -> Hyper:
        """The medians. Replicates move that of the flip rate: without it, a flipped map and a timid one look alike."""
        often = counts.counts[counts.counts.sum(axis=1) > 1]
        odd = float((often.sum(axis=1) - often.max(axis=1, initial=0)).sum())
        flips = (self.flips * self.flips_weight + odd) / (self.flips_weight + float(often.sum()))
        return Hyper(scales=np.full(counts.x.shape[1], self.scale), height=self.height, flips=min(flips, 0.25))


@dataclass(frozen=True, kw_only=True, eq=False)
class Hyper:
    """The hyper-parameters, shared by all classes."""

    scales: Floats
    """(d,) length scales, in box widths."""
    height: float
    """Standard deviation of a latent function."""
    flips: float
    """The share of labels that are flipped, wherever they lie."""

    def vector(self) -> Floats:
        return np.concatenate([np.log(self.scales), [np.log(self.height), np.log(self.flips / (1 - self.flips))]])

    @staticmethod
    def of(vector: Floats) -> Hyper:
        return Hyper(scales=np.exp(vector[:-2]), height=float(np.exp(vector[-2])), flips=float(expit(vector[-1])))


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """The labelled trials as a set: settings sorted, replicates counted."""

    x: Points
    """(u, d) distinct settings."""
    counts: NDArray[np.int64]
    """(u, K) how many replicates showed each class."""

    @property
    def seen(self) -> Labels:
        """The classes that any trial showed."""
        return np.flatnonzero(self.counts.sum(axis=0))

    def rows(self, positive: int) -> tuple[Labels, Floats, Floats]:
        """One row a setting and outcome, this class (1) or another (-1): index of the setting, outcome, count."""
        yes = self.counts[:, positive]
        no = self.counts.sum(axis=1) - yes
        at = np.concatenate([np.flatnonzero(yes), np.flatnonzero(no)])
        y = np.repeat([1.0, -1.0], [np.count_nonzero(yes), np.count_nonzero(no)])
        return at, y, np.concatenate([yes[yes > 0], no[no > 0]]).astype(float)

    def part(self, size: int) -> Counts:
        """At most `size` settings, chosen by their content alone: a sample that changes little as trials are added."""
        if len(self.x) <= size:
            return self
        chosen = np.sort(np.argsort(_hash(self.x), kind="stable")[:size])
        return Counts(x=self.x[chosen], counts=self.counts[chosen])


def collapse(x: Points, label: Labels, classes: int) -> Counts:
    """Settings sorted and replicates counted; trials without a label (-1) are left out."""
    kept = label >= 0
    at, inverse = np.unique(x[kept], axis=0, return_inverse=True)
    counts = np.zeros((len(at), classes), dtype=np.int64)
    np.add.at(counts, (inverse.reshape(-1), label[kept]), 1)
    return Counts(x=at, counts=counts)


def _hash(x: Points) -> NDArray[np.uint64]:
    """A 64-bit number a position (splitmix64 of its coordinates' bits)."""
    out = np.full(len(x), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in np.ascontiguousarray(x.T + 0.0).view(np.uint64):
        out = out ^ column
        out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out ^= out >> np.uint64(31)
    return out


def _latents(seen: Labels) -> list[int]:
    """The classes that get a latent function: for two the second alone, the first is its mirror image."""
    return [int(k) for k in (seen[1:] if len(seen) == 2 else seen)]


def learn(counts: Counts, prior: Prior, old: GpClasses | None = None, steps: int = 40) -> Hyper:
    """The hyper-parameters of largest marginal likelihood times prior, starting from those of `old`."""
    d = counts.x.shape[1]
    centre = prior.centre(counts).vector()
    spread = np.concatenate([np.full(d, prior.scale_sd), [prior.height_sd, prior.flips_sd]])
    if len(counts.seen) < 2:
        return Hyper.of(centre)
    rows = [counts.rows(k) for k in _latents(counts.seen)]
    warm = [_warm(old, counts, at, y, k) for k, (at, y, _) in zip(_latents(counts.seen), rows, strict=True)]

    def loss(away: Floats) -> tuple[float, Floats]:
        hyper = Hyper.of(centre + spread * away)
        total, slope = -0.5 * float(away @ away), np.zeros_like(away)
        correlation, slopes = matern52_slopes(counts.x, hyper.scales)
        correlation[np.diag_indices(len(correlation))] += 1e-8
        root: Floats = np.asarray(np.linalg.cholesky(correlation) * hyper.height, dtype=np.float64)
        variance = hyper.height**2
        for index, (at, y, weight) in enumerate(rows):
            found = propagate(root[at], y, weight, flips=hyper.flips, first=warm[index], tolerance=3e-3)
            warm[index] = found.sites
            total += found.log_evidence
            slope[-1] += found.by_flips * hyper.flips * (1 - hyper.flips)
            precision = np.zeros(len(counts.x))
            alpha = np.zeros(len(counts.x))
            np.add.at(precision, at, weight * found.sites.precision)
            np.add.at(alpha, at, weight * (found.sites.linear - found.sites.precision * found.f_mean))
            half = found.spread(root) * precision
            inner = np.outer(alpha, alpha) + half.T @ half
            inner[np.diag_indices(len(inner))] -= precision
            inner *= 0.5 * variance
            slope[:d] += np.einsum("kij,ij->k", slopes, inner)
            slope[d] += 2 * float(np.einsum("ij,ij->", correlation, inner))
        return -total, away - spread * slope

    # In units of the prior's deviations the parameters are of like steepness, which saves L-BFGS most of its steps.
    limits = np.array([(np.log(0.03), np.log(5.0))] * d + [(np.log(0.5), np.log(100.0)), (-8.0, -0.85)])
    limits = (limits - centre[:, None]) / spread[:, None]
    began = (old.hyper.vector() - centre) / spread if old else np.zeros_like(centre)
    done = minimize(
        loss,
        np.clip(began, limits[:, 0], limits[:, 1]),
        jac=True,
        method="L-BFGS-B",
        bounds=limits,
        options={"maxiter": steps, "ftol": 1e-4, "gtol": 0.1},
    )
    return Hyper.of(centre + spread * done.x)


@dataclass(frozen=True, kw_only=True, eq=False)
class GpClasses(ClassSurface):
    """The fitted classifier."""

    count: int
    """K, with those that no trial has shown."""
    data: Counts
    hyper: Hyper
    learned_at: int
    """How many settings there were when the hyper-parameters were learned."""
    basis: Basis
    latent: tuple[int, ...]
    """The class that each latent function stands for."""
    posteriors: tuple[Posterior, ...]

    @property
    def classes(self) -> int:
        return self.count

    @property
    def dimensions(self) -> int:
        return int(self.data.x.shape[1])

    def noise(self) -> float:
        return self.hyper.flips

    def features(self, x: Points) -> Floats:
        """(q, r) of the latent functions, height included."""
        return self.basis.at(x) * self.hyper.height

    def latent_moments(self, x: Points, features: Floats | None = None) -> tuple[Floats, Floats]:
        """(q, L) mean and variance of each latent function, the variance that the basis leaves out included."""
        phi = self.features(x) if features is None else features
        left = np.maximum(self.hyper.height**2 - np.einsum("qr,qr->q", phi, phi), 0.0)
        mean = np.empty((len(phi), len(self.posteriors)))
        variance = np.empty_like(mean)
        for index, posterior in enumerate(self.posteriors):
            half = posterior.spread(phi)
            mean[:, index] = phi @ posterior.mean
            variance[:, index] = np.einsum("rq,rq->q", half, half) + left
        return mean, variance

    def belief(self, x: Points) -> Floats:
        out = np.zeros((len(x), self.count))
        seen = self.data.seen
        if len(seen) == 0:
            return np.full_like(out, 1.0 / self.count)
        for at in range(0, len(x), _BLOCK):
            part = slice(at, at + _BLOCK)
            mean, variance = self.latent_moments(x[part])
            if len(seen) == 1 and self.count > 1:
                out[part] = (ndtr(-mean / np.sqrt(variance))) / (self.count - 1)
                out[part, seen[0]] = ndtr(mean / np.sqrt(variance))[:, 0]
            elif len(seen) == 1:
                out[part] = 1.0
            else:
                out[part, seen] = _beliefs(mean, np.sqrt(variance))
        return out

    def label(self, x: Points) -> Labels:
        seen = self.data.seen
        if len(seen) < 2:
            return super().label(x)
        out = np.empty(len(x), dtype=np.int64)
        weights = np.stack([p.mean for p in self.posteriors], axis=1)
        for at in range(0, len(x), _BLOCK):
            part = slice(at, at + _BLOCK)
            mean = self.features(x[part]) @ weights
            # The largest belief is that of the largest mean: see _beliefs.
            out[part] = seen[(mean[:, 0] > 0).astype(int)] if len(seen) == 2 else seen[mean.argmax(axis=1)]
        return out

    def uncertain_area(self) -> float:
        return self._uncertain

    @cached_property
    def _uncertain(self) -> float:
        sobol = qmc.Sobol(self.dimensions, scramble=True, rng=np.random.default_rng(0))
        return float(np.mean(self.in_band(sobol.random_base2(12))))


_BLOCK = 4096
_GROWTH = 1.4
_LEFT = 0.01
"""Variance of a latent function that the basis may leave out: a hundredth of the probit's own."""


def _beliefs(mean: Floats, sd: Floats) -> Floats:
    """(q, K) the belief in each class seen.

    For two, the probability that the latent function is positive. For more, each class is held against its strongest
    rival, the two latent functions being taken as opposite ones (a class and the rest), and the result is normalised.
    """
    if mean.shape[1] == 1:
        p = ndtr(mean / sd)
        return np.hstack([1 - p, p])
    out = np.ones_like(mean)
    for k in range(mean.shape[1]):
        for other in range(mean.shape[1]):
            if other != k:
                against = ndtr((mean[:, k] - mean[:, other]) / (sd[:, k] + sd[:, other]))
                np.minimum(out[:, k], against, out=out[:, k])
    out /= out.sum(axis=1, keepdims=True)
    return out


def _hyper(data: Counts, prior: Prior, old: GpClasses | None, learn_from: int) -> tuple[Hyper, int]:
    """Hyper-parameters, and how many settings there were when they were learned.

    Those of an earlier belief stand while settings grew by less than _GROWTH and the same classes are seen, so that a
    belief with a past may differ from one without.
    """
    known = len(data.x)
    if old is not None and np.array_equal(old.data.seen, data.seen) and len(data.seen) > 1:
        if 0 < old.learned_at <= known < _GROWTH * old.learned_at:
            return old.hyper, old.learned_at
    else:
        old = None
    return learn(data.part(learn_from), prior, old), known


def _warm(old: GpClasses | None, data: Counts, at: Labels, y: Floats, positive: int) -> Sites:
    """Sites to start from: those of the same settings and outcomes in an earlier belief, where there are any."""
    sites = start(len(at))
    if old is None or positive not in old.latent:
        return sites
    before = old.posteriors[old.latent.index(positive)].sites
    old_at, old_y, _ = old.data.rows(positive)
    known = {(row.tobytes(), sign): i for i, (row, sign) in enumerate(zip(old.data.x[old_at], old_y, strict=True))}
    for i, (row, sign) in enumerate(zip(data.x[at], y, strict=True)):
        j = known.get((row.tobytes(), sign))
        if j is not None:
            sites.precision[i], sites.linear[i] = before.precision[j], before.linear[j]
    return sites


def fit_classifier(
    x: Points,
    label: Labels,
    *,
    classes: int,
    previous: ClassSurface | None = None,
    prior: Prior | None = None,
    rank: int = 320,
    learn_from: int = 400,
) -> GpClasses:
    """The belief after these trials: (n, d) settings in the unit box, (n,) labels, -1 where a trial has none.

    Args:
        x: Settings; equal ones are replicates.
        label: Index of the class that each trial showed, below `classes`.
        classes: K.
        previous: A belief after some of these trials: where to start; see `_hyper` for what it may change.
        prior: Of the hyper-parameters.
        rank: Size of the low-rank basis; exact up to as many settings.
        learn_from: How many settings the hyper-parameters are learned from.
    """
    data = collapse(np.asarray(x, dtype=float), np.asarray(label), classes)
    old = previous if isinstance(previous, GpClasses) else None
    hyper, learned_at = _hyper(data, prior or Prior(), old, learn_from)
    spanned = basis(data.x, hyper.scales, rank=rank, residual=_LEFT / hyper.height**2)
    features = spanned.features * hyper.height
    latent = _latents(data.seen)
    posteriors = []
    for k in latent:
        at, y, weight = data.rows(k)
        posteriors.append(propagate(features[at], y, weight, flips=hyper.flips, first=_warm(old, data, at, y, k)))
    return GpClasses(
        count=classes,
        data=data,
        hyper=hyper,
        learned_at=learned_at,
        basis=spanned,
        latent=tuple(latent),
        posteriors=tuple(posteriors),
    )

"""What a batch of labels is expected to leave of the area that the map gets wrong.

At a point where the gap between the two leading classes is Gaussian, mean m and deviation s, the map is wrong with
probability Phi(-|m| / s). Trials elsewhere will take a share c of the variance s^2 away, whatever they show; the mean
then moves by a Gaussian of variance c s^2, and the expected risk is a function of |m| / s and c alone (the stepwise
reduction of Bect et al. 2012 and Chevalier et al. 2014, for classes, as in Letham et al. 2022). A batch is grown one
trial at a time, each the one that lowers the risk summed over the band most.

What one label takes away: expected over its two outcomes, moment matching leaves v - v^2 k / (1 + v) of the latent
variance v, k = (1 - 2 e)^2 phi(z)^2 / (p (1 - p)), z = m / sqrt(1 + v), p = e + (1 - 2 e) Phi(z), e the flip rate.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from orchestrator.surface.base import Points
from orchestrator.surface.classifier import GpClasses
from orchestrator.surface.kernel import Floats

Indices = NDArray[np.int64]

FARTHEST = 4.5
"""Gaps in standard deviations beyond which the risk is nothing."""
_GAPS, _SHARES = 96, 128
SHARPER = 2.0
"""Gaps are multiplied by this first. On an instance of the island problem the belief expected five times the map error
that there was, so a batch that trusts it whole lies too far from the boundary. Tuned on that problem alone."""


@cache
def _risks() -> Floats:
    """(gaps, shares) expected risk, by |m| / s from 0 to FARTHEST and the square root of c from 0 to 1."""
    gap = np.linspace(0, FARTHEST, _GAPS)[:, None]
    moves = ndtri((np.arange(401) + 0.5) / 401)
    out = np.empty((_GAPS, _SHARES))
    for column, root in enumerate(np.linspace(0, 1, _SHARES)):
        out[:, column] = ndtr(-np.abs(gap + root * moves) / np.sqrt(max(1 - root * root, 1e-6))).mean(axis=1)
    return out


def leading(mean: Floats, variance: Floats) -> tuple[Indices, Floats, Floats]:
    """Of (q, L) latent moments: the leading latent function (q,), the gap to the next class, the gap's deviation."""
    if mean.shape[1] == 1:
        return np.zeros(len(mean), dtype=np.int64), np.abs(mean[:, 0]), np.sqrt(variance[:, 0])
    each = np.arange(len(mean))
    first, second = np.argsort(-mean, axis=1, kind="stable")[:, :2].T
    deviation = np.sqrt(variance)
    return first, mean[each, first] - mean[each, second], deviation[each, first] + deviation[each, second]


class LookAhead:
    """The risk left at reference points while a batch grows."""

    def __init__(self, surface: GpClasses, points: Points, candidates: int, pending: Points) -> None:
        """The risk is summed over (q, d) `points`, the first `candidates` of which can be picked; `pending` count."""
        everywhere = np.concatenate([points, pending])
        self._q, self._n = len(points), candidates
        phi = surface.features(everywhere)
        mean, self._variance = surface.latent_moments(everywhere, phi)
        self._left = np.maximum(surface.hyper.height**2 - np.einsum("qr,qr->q", phi, phi), 0.0)
        self._halves = [posterior.spread(phi) for posterior in surface.posteriors]
        flips = surface.hyper.flips
        z = mean / np.sqrt(1 + self._variance)
        p = flips + (1 - 2 * flips) * ndtr(z)
        self._information = (1 - 2 * flips) ** 2 * np.exp(-z * z) / (2 * np.pi) / (p * (1 - p))
        self._past: list[list[tuple[float, Floats]]] = [[] for _ in self._halves]
        first, gap, deviation = leading(mean[: self._q], self._variance[: self._q])
        self._first = first
        self._start = self._variance[np.arange(self._q), first]
        row = np.minimum(SHARPER * gap / deviation, FARTHEST) * ((_GAPS - 1) / FARTHEST) + 0.5
        self._row = (row.astype(np.int32) * _SHARES)[:, None]
        self._of = [np.flatnonzero(first == k) for k in range(len(self._halves))]
        self._covariance = np.empty((self._q, candidates))
        for half, rows in zip(self._halves, self._of, strict=True):
            self._covariance[rows] = half[:, rows].T @ half[:, :candidates]
        each = np.arange(candidates)
        self._covariance[each, each] += self._left[each]
        self._share = np.zeros(self._q)
        self._table = _risks().ravel()
        for at in range(self._q, len(everywhere)):
            self.pick(at)

    def _towards(self, k: int, at: int) -> Floats:
        """(q + pending,) covariance of the k-th latent function with its value at a point, the batch so far known."""
        covariance = self._halves[k].T @ self._halves[k][:, at]
        covariance[at] += self._left[at]
        for gain, before in self._past[k]:
            covariance -= gain * before[at] * before
        return np.asarray(covariance)

    def gains(self) -> Floats:
        """(candidates,) the risk, summed over the reference points, that a trial there is expected to take away."""
        rate = self._information[: self._n] / (1 + self._variance[: self._n])
        share = np.square(self._covariance)
        share *= rate.T[self._first]
        share /= self._start[:, None]
        share += self._share[:, None]
        np.minimum(share, 1.0, out=share)
        np.sqrt(share, out=share)
        share *= _SHARES - 1
        share += 0.5
        at = share.astype(np.int32)
        at += self._row
        before = self._table[(np.sqrt(self._share) * (_SHARES - 1) + 0.5).astype(np.int32) + self._row[:, 0]].sum()
        return np.asarray(before - self._table[at].sum(axis=0))

    def pick(self, at: int) -> None:
        """A trial is placed at the point of this index."""
        for k, rows in enumerate(self._of):
            covariance = self._towards(k, at)
            gain = float(self._information[at, k] / (1 + self._variance[at, k]))
            self._share[rows] += gain * covariance[rows] ** 2 / self._start[rows]
            self._past[k].append((gain, covariance))
            self._variance[:, k] = np.maximum(self._variance[:, k] - gain * covariance**2, 1e-9)
            self._covariance[rows] -= np.outer(gain * covariance[rows], covariance[: self._n])
        np.minimum(self._share, 1.0, out=self._share)

"""The exact four-phase map of grokking in ridge regression: losses, crossing steps, phases, the law of time.

Gradient descent on (1/2n)|X(theta - theta*)|^2 + (lam/2)|theta|^2; S = X'X/n = U diag(l) U', c = U'theta:
c_i(k) = f_i + (c_i(0) - f_i) (1 - eta (l_i + lam))^k, f_i = l_i c*_i / (l_i + lam) (0/0: c_i(0)).
L_train = sum l_i (c_i - c*_i)^2 and L_test = |c - c*|^2, each divided by its value at theta = 0.

Source: the closed form of gradient descent on a quadratic; that it groks when lam is small and theta_0 large as in
Liu, Michaud, Tegmark 2022 (Omnigrok, arXiv 2210.01117), phases of Liu et al. 2022 (arXiv 2205.10343), appendix A,
Table 1.
Domain: no noise, isotropic test inputs (L_test is the excess risk), full batch, constant eta and lam.

Shapes: R modes, K steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jobs.curves import gap as steps_between
from jobs.curves import learning_phase
from jobs.job import Censored
from jobs.theory.domain import DomainError, Floats, above, at_least

_SETTLED = 1e-40
_FIRST_CHUNK, _LARGEST_CHUNK = 256, 16_384
"""Steps evaluated together in the search for a crossing; the chunks grow, since most crossings are early."""


@dataclass(frozen=True, kw_only=True)
class Modes:
    """A teacher and a start in the eigenbasis of S; of the null space only norms."""

    eigenvalues: Floats
    """(R,) positive eigenvalues l_i of X'X/n."""
    teacher: Floats
    """(R,) c*_i."""
    start: Floats
    """(R,) c_i(0)."""
    null_teacher: float
    """|P0 theta*|^2, which no training can learn."""
    null_start: float
    """|P0 theta_0|^2, which only weight decay removes."""
    null_overlap: float
    """<P0 theta*, P0 theta_0>."""

    @property
    def signal(self) -> float:
        """|theta*|^2: the test loss at theta = 0."""
        return float(self.teacher @ self.teacher) + self.null_teacher


def modes_of(x: ArrayLike, *, teacher: ArrayLike, start: ArrayLike) -> Modes:
    """The modes of one data set: (n, p) training inputs, (p,) theta* and theta_0.

    Raises:
        DomainError: a shape or a number is wrong, or theta* vanishes on the training inputs.
    """
    inputs = at_least("x", x, -np.inf)
    if inputs.ndim != 2:
        raise DomainError("x", "must be a matrix of examples by features", inputs.shape)
    theta, theta_0 = at_least("teacher", teacher, -np.inf), at_least("start", start, -np.inf)
    if theta.shape != inputs.shape[1:] or theta_0.shape != inputs.shape[1:]:
        raise DomainError("teacher and start", f"must have shape {inputs.shape[1:]}", (theta.shape, theta_0.shape))
    _, singular, v = np.linalg.svd(inputs, full_matrices=False)
    held = singular > 1e-12 * singular.max(initial=0.0)
    v, eigen = v[held], singular[held] ** 2 / len(inputs)
    c, c_0 = v @ theta, v @ theta_0
    if not (eigen * c**2).sum() > 0:
        raise DomainError("teacher", "must not vanish on the training inputs", theta)
    rest, rest_0 = theta - v.T @ c, theta_0 - v.T @ c_0
    return Modes(
        eigenvalues=eigen,
        teacher=c,
        start=c_0,
        null_teacher=float(rest @ rest),
        null_start=float(rest_0 @ rest_0),
        null_overlap=float(rest @ rest_0),
    )


def losses(modes: Modes, steps: ArrayLike, *, learning_rate: float, weight_decay: float) -> tuple[Floats, Floats]:
    """(K,) L_train and (K,) L_test after `steps`, both divided by their value at theta = 0.

    Raises:
        DomainError: learning_rate <= 0, weight_decay < 0 or a negative step.
    """
    k = at_least("steps", steps, 0).reshape(-1, 1)
    eta, lam = float(above("learning_rate", learning_rate, 0)), float(at_least("weight_decay", weight_decay, 0))
    eigen = modes.eigenvalues
    goal = eigen * modes.teacher / (eigen + lam)
    with np.errstate(over="ignore", invalid="ignore"):
        rates = 1.0 - eta * (eigen + lam)
        # Once every mode has converged to far below rounding, only the null space still changes.
        settled = len(k) > 0 and bool((np.abs(rates) ** k.min() < _SETTLED).all())
        powers = np.zeros((1, len(eigen))) if settled else rates**k
        miss = goal - modes.teacher + (modes.start - goal) * powers
        # In the null space f = 0, or the start itself where lam = 0: both are the start times this.
        fade = (1.0 - eta * lam) ** k[:, 0]
        null = modes.null_teacher - 2 * fade * modes.null_overlap + fade**2 * modes.null_start
        train = (miss**2 @ eigen) / float(eigen @ modes.teacher**2)
        test = (np.einsum("kr,kr->k", miss, miss) + null) / modes.signal
        return np.broadcast_to(train, test.shape).copy(), test


@dataclass(frozen=True, kw_only=True)
class Crossings:
    """The first whole steps at which the losses are at or below their levels; None: not by the horizon."""

    train: int | None
    test: int | None


def crossing_steps(
    modes: Modes, *, learning_rate: float, weight_decay: float, train_level: float, test_level: float, horizon: int
) -> Crossings:
    """Crossing steps of the normalised losses, by a search of every step (a loss need not be monotone).

    Raises:
        DomainError: see `losses`; or a level is not positive, or the horizon is negative.
    """
    above("train_level and test_level", (train_level, test_level), 0)
    at_least("horizon", horizon, 0)
    first: list[int | None] = [None, None]
    begin, size = 0, _FIRST_CHUNK
    while begin <= horizon and None in first:
        steps: NDArray[np.int64] = np.arange(begin, min(begin + size, horizon + 1))
        curves = losses(modes, steps, learning_rate=learning_rate, weight_decay=weight_decay)
        for which, (curve, level) in enumerate(zip(curves, (train_level, test_level), strict=True)):
            hit = np.flatnonzero(curve <= level)
            if first[which] is None and len(hit):
                first[which] = begin + int(hit[0])
        begin, size = begin + size, min(2 * size, _LARGEST_CHUNK)
    return Crossings(train=first[0], test=first[1])


def phase(crossings: Crossings, *, gap: float) -> str:
    """The phase by `jobs.curves.learning_phase`; from `gap` steps between the crossings on it is grokking."""
    train, test = (Censored(math.inf) if k is None else float(k) for k in (crossings.train, crossings.test))
    return learning_phase(train, test, steps_between(train, test, math.inf), gap)


def generalisation_steps(
    null_start: ArrayLike, *, test_level: ArrayLike, learning_rate: ArrayLike, weight_decay: ArrayLike
) -> Floats:
    """The law of time: t_test ~ ln(|P0 theta_0|^2 / (eps |theta*|^2)) / (2 eta lam), at least 0.

    Source: the null-space term of `losses` alone, (1 - eta lam)^(2k) ~ exp(-2 eta lam k).
    Domain: teacher in the row space of X; eta lam << 1; lam << the eigenvalues of S, so that the row space has been
    learned by then.

    Args:
        null_start: |P0 theta_0|^2 / |theta*|^2, > 0.
        test_level: eps > 0.
        learning_rate: eta > 0.
        weight_decay: lam > 0 (without weight decay the null space never fades).

    Raises:
        DomainError: an argument is outside its range.
    """
    ratio = above("null_start", null_start, 0) / above("test_level", test_level, 0)
    rate = above("learning_rate", learning_rate, 0) * above("weight_decay", weight_decay, 0)
    return np.asarray(np.maximum(np.log(ratio), 0.0) / (2 * rate), dtype=np.float64)


def largest_learning_rate(modes: Modes, weight_decay: float) -> float:
    """2 / (l_max + lam): at and above it gradient descent does not converge."""
    rate = float(modes.eigenvalues.max()) + float(at_least("weight_decay", weight_decay, 0))
    return math.inf if rate == 0 else 2.0 / rate

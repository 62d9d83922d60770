"""Minimisation of many small smooth problems at once, by the BFGS method.

A fit with bootstrap is one problem from many starts, or many reweighted problems from one start. Solved together their
cost is that of a few hundred array operations (Nocedal and Wright 2006, Numerical Optimization, section 6.1).

Shapes: M problems, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from orchestrator.analysis.estimate import Booleans, Floats, Integers

Objective = Callable[[Floats, Integers], tuple[Floats, Floats]]
"""(K, P) parameters of the problems (K,) -> (K,) values and (K, P) gradients."""
_DECREASE: Final = 1e-4
_BACKTRACKS: Final = 40
_PATIENCE: Final = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Minima:
    """The ends of all minimisations."""

    theta: Floats
    """(M, P) parameters."""
    value: Floats
    """(M,) objective."""
    converged: Booleans
    """(M,) False where the number of iterations ended it."""


def minimise(
    objective: Objective,
    starts: Floats,
    *,
    metric: Floats | None = None,
    tolerance: float = 1e-10,
    iterations: int = 300,
) -> Minima:
    """Minimise M problems from one start each.

    Args:
        metric: (P, P) about the inverse Hessian of every problem, if it is known; saves most of the iterations.

    A problem ends when its value decreases by no more than `tolerance`, relative to the value or to 1, in two
    iterations in a row, or when no step along the gradient decreases it.
    """
    theta = np.array(starts, dtype=np.float64)
    count, width = theta.shape
    value, gradient = objective(theta, np.arange(count))
    value = np.where(np.isfinite(value), value, np.inf)
    first = np.eye(width) if metric is None else metric
    inverse = np.tile(first, (count, 1, 1))
    fresh = np.ones(count, dtype=bool)
    idle = np.zeros(count, dtype=np.int64)
    active = np.flatnonzero(np.isfinite(value))
    converged = np.ones(count, dtype=bool)
    for _ in range(iterations):
        if not len(active):
            break
        direction = -np.einsum("kpq,kq->kp", inverse[active], gradient[active])
        slope = (direction * gradient[active]).sum(1)
        uphill = ~(slope < 0)
        inverse[active[uphill]], fresh[active[uphill]] = first, True
        direction[uphill] = -gradient[active][uphill] @ first.T
        slope = (direction * gradient[active]).sum(1)
        step = np.ones(len(active))
        if metric is None:
            # Without knowledge of the curvature the first step has the length 1/4 at most.
            length = np.linalg.norm(direction, axis=1)
            step = np.where(fresh[active], np.minimum(1.0, 0.25 / np.maximum(length, 1e-300)), 1.0)
        found, new_theta, new_value, new_gradient = _backtrack(
            objective, active, theta[active], value[active], direction, slope, step
        )
        change, turn = new_theta - theta[active], new_gradient - gradient[active]
        decrease = value[active] - new_value
        small = decrease <= tolerance * np.maximum(np.abs(new_value), 1.0)
        idle[active] = np.where(small, idle[active] + 1, 0)
        theta[active], value[active], gradient[active] = new_theta, new_value, new_gradient
        # A line search that failed starts again from the gradient; if it does so there too, the minimum is reached.
        done = (~found & fresh[active]) | (idle[active] >= _PATIENCE)
        inverse[active] = _updated(inverse[active], change, turn, fresh[active] & (metric is None))
        inverse[active[~found]] = first
        fresh[active] = ~found
        active = active[~done]
    converged[active] = False
    return Minima(theta=theta, value=value, converged=converged)


def _backtrack(
    objective: Objective,
    problems: Integers,
    theta: Floats,
    value: Floats,
    direction: Floats,
    slope: Floats,
    step: Floats,
) -> tuple[Booleans, Floats, Floats, Floats]:
    """The first step length of each problem, halved or shortened, with a sufficient decrease; none: unchanged."""
    gradient = np.zeros_like(theta)
    new_theta, new_value = theta.copy(), value.copy()
    open_ = np.arange(len(problems))
    found = np.zeros(len(problems), dtype=bool)
    for _ in range(_BACKTRACKS):
        trial = theta[open_] + step[open_, None] * direction[open_]
        trial_value, trial_gradient = objective(trial, problems[open_])
        good = trial_value <= value[open_] + _DECREASE * step[open_] * slope[open_]
        good &= np.isfinite(trial_gradient).all(1)
        accepted = open_[good]
        new_theta[accepted], new_value[accepted] = trial[good], trial_value[good]
        gradient[accepted], found[accepted] = trial_gradient[good], True
        excess = trial_value - value[open_] - step[open_] * slope[open_]
        # The minimum of the parabola through what is known, between a tenth and a half of the step.
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            parabola = -slope[open_] * step[open_] / (2 * excess)
        factor = np.where(np.isfinite(parabola), np.clip(parabola, 0.1, 0.5), 0.1)
        step[open_] *= factor
        open_ = open_[~good]
        if not len(open_):
            break
    if len(open_):
        gradient[open_] = objective(theta[open_], problems[open_])[1]
    return found, new_theta, new_value, gradient


def _updated(inverse: Floats, change: Floats, turn: Floats, fresh: Booleans) -> Floats:
    """(K, P, P) inverse Hessians after the BFGS update, where the curvature along the step is positive."""
    curvature = (change * turn).sum(1)
    usable = curvature > 1e-14 * np.linalg.norm(change, axis=1) * np.linalg.norm(turn, axis=1)
    usable &= curvature > 0
    rho = np.where(usable, 1 / np.where(usable, curvature, 1.0), 0.0)
    squares = np.where(usable, (turn * turn).sum(1), 1.0)
    # The first matrix has the scale of the curvature that was just met.
    scale = np.where(fresh & usable, curvature / squares, 1.0)
    scaled = inverse * scale[:, None, None]
    identity = np.eye(change.shape[1])
    left = identity - rho[:, None, None] * change[:, :, None] * turn[:, None, :]
    new = left @ scaled @ left.transpose(0, 2, 1) + rho[:, None, None] * change[:, :, None] * change[:, None, :]
    result: Floats = np.where(usable[:, None, None], new, inverse)
    return result

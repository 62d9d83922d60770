"""Scaling laws y(x) with their parameters, and the starts from which each is fitted.

A law gives log y, from which the fit takes residuals, so that an error is relative. Sums are in log-sum-exp form, as in
Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3). `log_value` accepts complex parameters: its Jacobian is taken by a
complex step, exact to rounding (Squire and Trapp 1998, SIAM Rev. 40, 110).

Shapes: M parameter vectors, P parameters, N observations, D columns of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np

from orchestrator.analysis.estimate import Floats

_STEP: Final = 1e-30
_FAR: Final = 1e-12
"""Distance from the critical point, relative to the origin, below which the predicted time is taken as infinite."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """A formula for y > 0 as a function of x > 0."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    """(P,) names of the natural parameters, in the formula's order."""
    columns: int
    """D: how many quantities y depends on."""
    log_value: Callable[[Any, Floats, float], Any]
    """(M, P) internal parameters, (N, D) x, and the origin -> (M, N) log y. The origin is the smallest x at which the
    event was observed; the critical point lies below it."""
    natural: Callable[[Floats, float], Floats]
    """(M, P) internal parameters and the origin -> (M, P) natural parameters."""
    starts: Callable[[Floats, Floats, float], Floats]
    """(N, D) x, (N,) approximate log y and the origin -> (S, P) internal parameters."""

    def jacobian(self, theta_MP: Floats, x: Floats, origin: float) -> tuple[Floats, Floats]:
        """(M, N) log y and (P, M, N) its derivatives by the internal parameters."""
        derivatives = []
        value = np.real(self.log_value(theta_MP, x, origin))
        for p in range(theta_MP.shape[1]):
            shifted = theta_MP.astype(np.complex128)
            shifted[:, p] += 1j * _STEP
            derivatives.append(np.imag(self.log_value(shifted, x, origin)) / _STEP)
        return value, np.stack(derivatives)


def _log_sum_exp(*terms: Any) -> Any:
    largest = np.maximum.reduce([np.real(term) for term in terms])
    return largest + np.log(sum(np.exp(term - largest) for term in terms))


def _line(x: Floats, log_y: Floats) -> tuple[float, float]:
    """Slope and intercept of log y against log x; slope 0 if x does not vary."""
    u = np.log(x)
    spread = ((u - u.mean()) ** 2).sum()
    slope = float(((u - u.mean()) * log_y).sum() / spread) if spread > 0 else 0.0
    return slope, float(log_y.mean() - slope * u.mean())


def _exponential(*columns: int) -> Callable[[Floats, float], Floats]:
    """Natural parameters where some of the internal ones are logarithms."""

    def natural(theta: Floats, _origin: float) -> Floats:
        values = theta.copy()
        values[:, columns] = np.exp(np.clip(theta[:, columns], -700, 700))
        return values

    return natural


def _power(theta: Any, x: Floats, _origin: float) -> Any:
    return theta[:, :1] - theta[:, 1:2] * np.log(x[:, 0])


def _power_starts(x: Floats, log_y: Floats, _origin: float) -> Floats:
    slope, intercept = _line(x[:, 0], log_y)
    centre = float(np.log(x[:, 0]).mean())
    level = intercept + slope * centre
    return np.array([[level + b * centre, b] for b in (-slope, 0.0, -2 * slope, slope, 1.0)])


POWER: Final = Law(
    name="power law",
    formula="y = a x^-b",
    parameters=("a", "b"),
    columns=1,
    log_value=_power,
    natural=_exponential(0),
    starts=_power_starts,
)


def _floor(theta: Any, x: Floats, _origin: float) -> Any:
    return _log_sum_exp(theta[:, :1] - theta[:, 1:2] * np.log(x[:, 0]), theta[:, 2:3] + 0 * x[:, 0])


def _floor_starts(x: Floats, log_y: Floats, _origin: float) -> Floats:
    y, starts = np.exp(log_y - log_y.min()), []
    for share, factor in product((1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99), (0.5, 1.0, 2.0)):
        slope, intercept = _line(x[:, 0], np.log(y - share + 1e-3))
        centre = float(np.log(x[:, 0]).mean())
        b = -slope * factor
        starts.append([intercept + slope * centre + b * centre + log_y.min(), b, math.log(share) + log_y.min()])
    return np.array(starts)


POWER_WITH_FLOOR: Final = Law(
    name="power law with a floor",
    formula="y = a x^-b + c",
    parameters=("a", "b", "c"),
    columns=1,
    log_value=_floor,
    natural=_exponential(0, 2),
    starts=_floor_starts,
)


def _critical(theta: Any, x: Floats, origin: float) -> Any:
    distance = x[:, 0] - origin + np.exp(theta[:, 2:3])
    usable = np.real(distance) > _FAR * abs(origin)
    return theta[:, :1] - theta[:, 1:2] * np.where(usable, np.log(np.where(usable, distance, 1.0)), -700.0)


def _critical_natural(theta: Floats, origin: float) -> Floats:
    return np.stack([np.exp(np.clip(theta[:, 0], -700, 700)), theta[:, 1], origin - np.exp(theta[:, 2])], 1)


def _critical_starts(x: Floats, log_y: Floats, origin: float) -> Floats:
    beyond = x[:, 0] >= origin
    known, level = x[beyond, 0], log_y[beyond]
    span = float(known.max() - origin) or abs(origin) or 1.0
    starts = []
    for gap, factor in product(span * np.geomspace(1e-3, 3, 12), (0.5, 1.0, 1.5)):
        slope, intercept = _line(known - origin + gap, level)
        centre = float(np.log(known - origin + gap).mean())
        nu = -slope * factor
        starts.append([intercept + slope * centre + nu * centre, nu, math.log(gap)])
    return np.array(starts)


CRITICAL: Final = Law(
    name="critical divergence",
    formula="y = a (x - x_c)^-nu",
    parameters=("a", "nu", "x_c"),
    columns=1,
    log_value=_critical,
    natural=_critical_natural,
    starts=_critical_starts,
)
"""At x <= x_c the event is never reached: a censored observation there has the likelihood 1."""


def _two(theta: Any, x: Floats, _origin: float) -> Any:
    return _log_sum_exp(
        theta[:, :1] + 0 * x[:, 0],
        theta[:, 1:2] - theta[:, 2:3] * np.log(x[:, 0]),
        theta[:, 3:4] - theta[:, 4:5] * np.log(x[:, 1]),
    )


def _two_starts(x: Floats, log_y: Floats, _origin: float) -> Floats:
    n, d = np.log(x).mean(0)
    least, rest = float(log_y.min()), float(np.exp(log_y).mean())
    starts = []
    shares, exponents = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9), (0.05, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
    for floor, alpha, beta, part in product(shares, exponents, exponents, (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)):
        left = max(rest - floor * math.exp(least), 1e-3 * rest)
        starts.append(
            [
                math.log(floor) + least,
                math.log(part * left) + alpha * n,
                alpha,
                math.log((1 - part) * left) + beta * d,
                beta,
            ]
        )
    return np.array(starts)


TWO_POWERS: Final = Law(
    name="sum of two power laws with a floor",
    formula="y = e + a n^-alpha + b d^-beta",
    parameters=("e", "a", "alpha", "b", "beta"),
    columns=2,
    log_value=_two,
    natural=_exponential(0, 1, 3),
    starts=_two_starts,
)
"""Hoffmann et al. 2022, approach 3: n parameters and d training samples."""


def _broken(theta: Any, x: Floats, _origin: float) -> Any:
    u, width = np.log(x[:, 0]), np.exp(theta[:, 4:5])
    bend = _log_sum_exp(0 * theta[:, :1] + 0 * u, (u - theta[:, 3:4]) / width)
    return theta[:, :1] - theta[:, 1:2] * u - theta[:, 2:3] * width * bend


def _broken_starts(x: Floats, log_y: Floats, _origin: float) -> Floats:
    u, starts = np.log(x[:, 0]), []
    slope, intercept = _line(x[:, 0], log_y)
    span = float(np.ptp(u)) or 1.0
    for place, change, width in product(np.linspace(0.1, 0.9, 9), (-2.0, -1.0, -0.3, 0.3, 1.0, 2.0), (0.02, 0.1)):
        at = float(u.min()) + place * span
        bend = change * np.clip(u - at, 0, None)
        tilt, level = _line(x[:, 0], log_y + bend)
        starts.append([level, -tilt, change, at, math.log(width * span)])
    return np.array([*starts, [intercept, -slope, 0.0, float(u.mean()), math.log(0.1 * span)]])


BROKEN_POWER: Final = Law(
    name="broken power law",
    formula="y = a x^-b (1 + (x / d)^(1 / f))^(-c f)",
    parameters=("a", "b", "c", "d", "f"),
    columns=1,
    log_value=_broken,
    natural=_exponential(0, 3, 4),
    starts=_broken_starts,
)
"""One break at d, over a width of f in log x, from exponent b to b + c (Caballero et al. 2022, arXiv 2210.14891,
equation 1 with one break and without a floor)."""

LAWS: Final = (POWER, POWER_WITH_FLOOR, CRITICAL, TWO_POWERS, BROKEN_POWER)

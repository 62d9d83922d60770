"""Row 11: interpolation or extrapolation; the convex hull of a Gaussian sample, and of digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import integrate, special

from tests.gallery.row import DOES_NOT, LEVEL, SHOWS, UNDECIDED, Finding, Row, above, agrees, below, every

RESAMPLES, QUANTILES = 400, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
WIDEST = 1.5
"""Largest ratio of the bounds of an interval that shows a size."""


def orthant(count: int, r: float) -> float:
    """g_n(r): the probability that n normal numbers of covariance r + (1 if equal) are all below 0, r > -1 / n.

    Below r = 0 it is the analytic continuation of E Phi(sqrt(r) x)^n, x ~ N(0, 1).
    """
    scale = math.sqrt(abs(r))

    def density(x: float) -> float:
        below = special.ndtr(scale * x) if r >= 0 else 0.5 + 0.5j * special.erfi(scale * x / math.sqrt(2))
        return float(math.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (below**count).real)

    # Tiny numbers are multiplied by large binomials: the tolerance is relative, and the mass may lie far out.
    reach = 14.0 if r >= 0 else 12 / math.sqrt(1 + count * r)
    cuts = np.linspace(0 if r < 0 else -reach, reach, 57)
    parts = (integrate.quad(density, *cuts[k : k + 2], epsabs=0, epsrel=1e-11)[0] for k in range(56))
    return float((2 if r < 0 else 1) * sum(parts))


def absorbed(n: int, d: int) -> float:
    """The probability that a point of N(0, I_d) lies in the convex hull of n others.

    It does not if it is a vertex of the hull of all n + 1: 1 - E f_0 / (n + 1), with the expected number of vertices
    E f_0 = 2 sum over m = d, d - 2, ... >= 1 of C(n + 1, m) m g_{m-1}(-1/m) g_{n+1-m}(1/m).

    Source: Affentranger, Schneider 1992; Kabluchko, Zaporozhets 2020 (arXiv 1704.04968).
    """
    total = n + 1
    vertices = sum(
        2 * math.comb(total, m) * m * orthant(m - 1, -1 / m) * orthant(total - m, 1 / m) for m in range(d, 0, -2)
    )
    return 1 - vertices / total


def half(d: int) -> float:
    """The n, between two whole numbers, at which half of the points are absorbed; linear in between."""
    n = d + 1
    while absorbed(n, d) < 0.5:
        n = int(1.2 * n) + 1
    low = max(d + 1, int(n / 1.25) - 2)
    while n - low > 1:
        middle = (low + n) // 2
        low, n = (middle, n) if absorbed(middle, d) < 0.5 else (low, middle)
    first, second = absorbed(low, d), absorbed(n, d)
    return low + (0.5 - first) / (second - first)


def half_of(n: Any, share: Any) -> float:
    """The n at which a line through the logits over log n is one half; at most a factor e outside the n."""
    place, logit = np.log(np.asarray(n, dtype=float)), special.logit(np.asarray(share, dtype=float))
    slope, offset = np.polyfit(place, logit, 1)
    return float(np.exp(np.clip(-offset / slope, place.min() - 1, place.max() + 1)))


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """The share inside along the exact probability, and the n of one half by its own fit."""
    for d, shares in by_dimension(results[0].trials()):
        for n in shares:
            series = f"d = {d}"
            yield agrees(f"d {d}, n {n}", shares[n], absorbed(int(n), d), series=series, x=float(n))
        found, halves, expected = half_of(shares.columns, shares.mean()), resampled(shares), half(d)
        low, high = map(float, np.quantile(halves, QUANTILES))
        near = abs(math.log(found / expected)) <= 3 * float(np.std(np.log(halves)))
        yield Finding(
            what=f"d {d}: n of one half",
            expected=f"{expected:.4g}",
            found=found,
            low=low,
            high=high,
            n=len(shares),
            verdict=DOES_NOT if not near else SHOWS if high < WIDEST * low else UNDECIDED,
        )
    yield from digits(results[1].trials())


def by_dimension(trials: Any) -> Iterator[tuple[int, Any]]:
    """d and its shares: (seeds, n)."""
    for d, rows in trials.groupby("dimension"):
        yield int(d), rows.pivot(index="replicate", columns="sample_count", values="final_inside").dropna(axis=1)


def resampled(shares: Any) -> Any:
    """The n of one half of bootstrap samples of the seeds."""
    random = np.random.default_rng(0)
    drawn = (shares.iloc[random.integers(len(shares), size=len(shares))].mean() for _ in range(RESAMPLES))
    return np.array([half_of(shares.columns, row) for row in drawn])


def digits(trials: Any) -> Iterator[Finding]:
    """The n of one half beside that of Gaussian points, and its growth; many dimensions have no point inside."""
    tables = dict(by_dimension(trials))
    far = max(tables)
    yield every(f"digits, d {far}: no point inside", tables.pop(far).iloc[:, 0] == 0)
    halves = {d: np.append(half_of(shares.columns, shares.mean()), resampled(shares)) for d, shares in tables.items()}
    for d, found in halves.items():
        what = f"digits, d {d}: n of one half over that of Gaussian points"
        yield of_halves(what, found / half(d), below, 1.0, len(tables[d]))
    for fewer, more in itertools.pairwise(halves):
        what = f"digits: n of one half grows from d {fewer} to {more} (ratio)"
        yield of_halves(what, halves[more] / halves[fewer], above, 2.0, len(tables[fewer]))


def of_halves(what: str, ratios: Any, compare: Any, bound: float, n: int) -> Finding:
    """A ratio, first as found and then of bootstrap samples, against a bound."""
    low, high = map(float, np.quantile(ratios[1:], QUANTILES))
    finding: Finding = compare(what, float(ratios[0]), low, high, bound, n=n)
    return finding


ROW = Row(
    number=11,
    name="interpolation or extrapolation",
    source="Balestriero et al. 2021; Kabluchko, Zaporozhets 2020",
    sweeps=("balestriero2021/hull_small.yaml", "balestriero2021/digits_small.yaml"),
    check=check,
    axes=("points of the hull", "share of fresh points inside"),
    scale="linear",
    absent={f"digits, d {d}: n of one half over that of Gaussian points": DOES_NOT for d in (4, 6, 8)},
)

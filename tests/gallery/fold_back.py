"""Row 2: the second descent along the parameters, and its absence along the effective ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jobs.theory import minimum_norm
from tests.gallery.row import Finding, Row, above, agrees, mean_interval

N, INPUTS, NOISE = 60, 1000, 0.25
RISING = {"p < n": (20, 30, 40, 50), "p > n": (200, 120, 90, 70)}
"""Features in order of increasing effective parameters, from about 30 on."""


def expected_risk(p: int) -> float:
    """Excess risk with coefficients whose squares fall as 1 / j and sum to 1."""
    squares = 1 / np.arange(1, INPUTS + 1)
    squares /= squares.sum()
    used, unused = squares[:p].sum(), squares[p:].sum()
    return float(minimum_norm.belkin_hsu_xu_risk(N, p, used=used, unused=unused, noise_variance=NOISE)) - NOISE


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """The closed forms, the two descents along p, and one rise along the effective parameters."""
    trials = results[0].trials()
    risk = trials.pivot(index="replicate", columns="features", values="final_excess_risk")
    count = trials.pivot(index="replicate", columns="features", values="final_effective_parameters")
    for p in map(int, risk):
        effective, series = float(minimum_norm.effective_parameters(N, p)), "p < n" if p < N else "p > n"
        yield agrees(f"effective parameters, p {p}", count[p], effective)
        yield agrees(f"excess risk, p {p}", risk[p], expected_risk(p), series=series, x=effective)
    for side, place in (("before", 10), ("after", 300)):
        yield rise(f"along p: peak at 70 over the minimum {side} it (ratio)", risk[place], risk[70])
    for side, places in RISING.items():
        for fewer, more in itertools.pairwise(places):
            yield rise(f"along effective parameters, {side}: p {fewer} to {more} (ratio)", risk[fewer], risk[more])


def rise(what: str, fewer: Any, more: Any) -> Finding:
    """The geometric mean of the paired ratios is above 1."""
    found, low, high = map(float, np.exp(mean_interval(np.log(more / fewer))))
    return above(what, found, low, high, 1.0, n=len(more))


ROW = Row(
    number=2,
    name="effective parameters",
    source="Curth et al. 2023",
    sweeps=("curth2023/fold_back_small.yaml",),
    check=check,
    axes=("effective parameters on test inputs", "excess risk"),
)

"""Row 2: the second descent along the parameters, and its absence along the effective ones."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from jobs.theory import minimum_norm
from tests.gallery.row import DOES_NOT, UNDECIDED, Finding, Row, above, agrees, every, mean_interval

N, INPUTS, NOISE = 60, 1000, 0.25
RISING = {"p < n": (20, 30, 40, 50), "p > n": (200, 120, 90, 70)}
"""Features in order of increasing effective parameters, from about 30 on."""
LEAVES, TREES = (50, 100, 200, 1000), (50, 20, 5, 2, 1)
"""Of one tree, from the U's minimum on; and trees of 1,000 leaves: in order of increasing effective parameters."""


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
    yield from forests(results[1].trials())


def forests(trials: Any) -> Iterator[Finding]:
    """One tree of more leaves, then more trees: the error along this count, and along the effective parameters."""
    single = trials[trials.trees == 1]
    counted = np.isclose(single.final_train_effective_parameters, single.final_leaves)
    yield every("one tree: effective parameters on training inputs are its leaves", counted)
    for noise, rows in trials.groupby("label_noise"):
        cells = rows.sort_values("replicate").groupby(["leaves", "trees"])
        absent = partial(np.full, rows.replicate.nunique(), np.nan)
        error, count = (
            defaultdict(absent, {cell: of[f"final_{name}"].to_numpy() for cell, of in cells})
            for name in ("squared_error", "effective_parameters")
        )
        full, name = max(LEAVES), f"noise {noise:g}"
        for where, cell in (("fewer leaves", (LEAVES[0], 1)), ("more trees", (full, TREES[0]))):
            yield rise(f"{name}, along the count: one full tree over {where} (ratio)", error[cell], error[full, 1])
        for what, cells_of in (("leaves", [(k, 1) for k in LEAVES]), ("trees", [(full, k) for k in TREES])):
            for fewer, more in itertools.pairwise(cells_of):
                between = f"{fewer[what == 'trees']} to {more[what == 'trees']} {what}"
                yield rise(f"{name}, {between}: effective parameters (ratio)", count[fewer], count[more])
                yield rise(f"{name}, {between}: error (ratio)", error[fewer], error[more])


def rise(what: str, fewer: Any, more: Any) -> Finding:
    """The geometric mean of the paired ratios is above 1."""
    found, low, high = map(float, np.exp(mean_interval(np.log(more / fewer))))
    return above(what, found, low, high, 1.0, n=len(more))


ROW = Row(
    number=2,
    name="effective parameters",
    source="Curth et al. 2023",
    sweeps=("curth2023/fold_back_small.yaml", "curth2023/trees_small.yaml"),
    check=check,
    axes=("effective parameters on test inputs", "excess risk"),
    absent={
        "noise 0, 50 to 100 leaves: error (ratio)": DOES_NOT,
        # Without noise, trees of 200 and 1,000 leaves are the same but for few trials.
        "noise 0, 200 to 1000 leaves: effective parameters (ratio)": UNDECIDED,
        "noise 0, 200 to 1000 leaves: error (ratio)": UNDECIDED,
    },
)

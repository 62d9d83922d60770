"""Tests of whether settings differ in their times to an event: the log-rank test, between groups and in pairs.

The scores are those of Sun (1996, Statist. Med. 15, 1387) for interval-censored data; on exact and right-censored data
their sum over a group is observed minus expected events of the ordinary log-rank test. Significance is by permutation
(Fay and Shaw 2010, J. Statist. Softw. 36(2)): exact where there are few arrangements, by simulation otherwise. It holds
for few seeds, and needs the same censoring in all groups: one horizon and one schedule of reports.

Shapes: N observations, G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np

from orchestrator.analysis.estimate import LEVEL, SEED, Floats, Integers
from orchestrator.analysis.survival import Median, contains, intervals, median_time, turnbull

PERMUTATIONS: Final = 20_000
"""The number of arrangements up to which all of them are enumerated, and otherwise drawn."""
_CHUNK: Final = 1000


@dataclass(frozen=True, kw_only=True)
class LogRank:
    """A comparison of groups."""

    groups: tuple[Any, ...]
    """(G,) labels, sorted."""
    excess: tuple[float, ...]
    """(G,) observed minus expected events: positive for a group that is faster than the others."""
    statistic: float
    """Chi-squared with G - 1 degrees of freedom in large samples; 0 if no event distinguishes the groups."""
    p_value: float
    """Two-sided, by permutation."""
    exact: bool
    """Whether all arrangements were enumerated."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A comparison of two settings A and B over common seeds."""

    ratio: Median | None
    """Median over seeds of time A / time B, with its interval; its bounds are 0 and inf where neither was reached. None
    where a time is negative, so that the larger ratio is not that of the slower one."""
    excess: float
    """Sum over seeds of the difference of scores: positive if A is faster."""
    p_value: float
    """Two-sided, by exchanging A and B within seeds."""
    exact: bool
    pairs: int


def scores(above: Any, to: Any) -> Floats:
    """(N,) log-rank scores of interval-censored times; they add up to 0, and early events have the large ones."""
    a, b = intervals(above, to)
    curve = turnbull(a, b)
    after = curve.survival
    before = np.append(1.0, after[:-1])
    hazard = np.cumsum(np.divide(curve.mass, before, out=np.ones_like(before), where=before > 0))
    # S log S at the ends of the intervals, with log S = minus the cumulative hazard; 0 at S = 0.
    level = np.append(1.0, after)
    product = np.append(0.0, np.where(after > 1e-12, -after * hazard, 0.0))
    member = contains(curve, a, b)
    first = np.argmax(member, axis=1)
    last = member.shape[1] - np.argmax(member[:, ::-1], axis=1)
    values: Floats = (product[first] - product[last]) / (level[first] - np.where(level[last] > 1e-12, level[last], 0.0))
    return values


def logrank(above: Any, to: Any, group: Any, *, permutations: int = PERMUTATIONS) -> LogRank:
    """Whether the times of several groups differ.

    Args:
        above, to: (N,) observations, see `survival`.
        group: (N,) labels.
        permutations: number of arrangements; all of them are enumerated if there are no more, for two groups.

    Raises:
        ValueError: fewer than two groups, or other lengths.
    """
    values = scores(above, to)
    labels = np.asarray(group)
    names, index = np.unique(labels, return_inverse=True)
    if labels.shape != values.shape or len(names) < 2:
        raise ValueError(f"group: a label for each of {len(values)} observations, of at least two groups")
    sizes = np.bincount(index)
    observed: Floats = np.asarray(np.bincount(index, weights=values), dtype=np.float64)
    variance = float(values @ values) / (len(values) - 1)
    centre = values.mean()

    def statistic(sums: Floats) -> Floats:
        return (((sums - sizes * centre) ** 2) / sizes).sum(-1) / variance if variance > 1e-15 else 0 * sums[..., 0]

    exact = len(names) == 2 and math.comb(len(values), int(sizes[0])) <= permutations
    if exact:
        chosen = np.array(list(combinations(range(len(values)), int(sizes[0]))))
        first = values[chosen].sum(1)
        sums = np.stack([first, values.sum() - first], 1)
    else:
        sums = _permuted_sums(values, index, len(names), permutations)
    value = float(statistic(observed))
    extreme = int((statistic(sums) >= value * (1 - 1e-9) - 1e-9).sum())
    return LogRank(
        groups=tuple(names.tolist()),
        excess=tuple(float(x) for x in observed),
        statistic=value,
        p_value=extreme / len(sums) if exact else (1 + extreme) / (1 + len(sums)),
        exact=exact,
    )


def paired(
    above_a: Any, to_a: Any, above_b: Any, to_b: Any, *, level: float = LEVEL, permutations: int = PERMUTATIONS
) -> Paired:
    """Two settings compared over common seeds, e.g. two optimisers, each at its tuned learning rate and weight decay.

    The scores of the pooled sample are subtracted within pairs, and A and B are exchanged within pairs at random
    (O'Brien and Fleming 1987, Biometrics 43, 169, with log-rank scores).

    Args:
        above_a, to_a, above_b, to_b: (N,) observations of A and of B; row i has the same seed in both.
        level: confidence level of the interval of the ratio.

    Raises:
        ValueError: see `survival.intervals`; two lengths.
    """
    a, b = intervals(above_a, to_a), intervals(above_b, to_b)
    if a[0].shape != b[0].shape:
        raise ValueError("a and b: one observation of each seed in both")
    pairs = len(a[0])
    values = scores(np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]))
    difference = values[:pairs] - values[pairs:]
    exact = 2**pairs <= permutations
    if exact:
        signs = 1 - 2 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1)
    else:
        signs = np.random.default_rng(SEED).choice([-1, 1], size=(permutations, pairs))
    sums, observed = signs @ difference, float(difference.sum())
    extreme = int((np.abs(sums) >= abs(observed) - 1e-9).sum())
    return Paired(
        ratio=median_time(*_ratios(a, b), level=level) if min(a[0].min(), b[0].min()) >= 0 else None,
        excess=observed,
        p_value=extreme / len(sums) if exact else (1 + extreme) / (1 + len(sums)),
        exact=exact,
        pairs=pairs,
    )


def _ratios(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Bounds of time A / time B."""
    low = np.where(np.isinf(b[1]), 0.0, a[0] / np.where(b[1] > 0, b[1], 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        high = np.where(b[0] > 0, a[1] / b[0], np.inf)
    return low, np.maximum(high, low)


def _permuted_sums(values: Floats, index: Integers, groups: int, permutations: int) -> Floats:
    """(P, G) sums of scores of groups whose labels are permuted."""
    random = np.random.default_rng(SEED)
    member = np.eye(groups)[index]
    sums = []
    for start in range(0, permutations, _CHUNK):
        orders = random.permuted(np.tile(values, (min(_CHUNK, permutations - start), 1)), axis=1)
        sums.append(orders @ member)
    return np.concatenate(sums)

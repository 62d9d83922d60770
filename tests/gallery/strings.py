"""Row 5: emergence, or the choice of the metric; strings of K tokens, right if all tokens are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jobs.gallery.strings import FEW
from tests.gallery.row import LEVEL, UNDECIDED, Finding, Row, above, agrees, below, mean_interval

IMAGES, RESAMPLES = 1797, 1000
PRODUCTS = (250, 1000, 4000)


def all_right(p: Any, length: int, tokens: int) -> Any:
    """Expected share of right strings if p of the test tokens are right and strings are random parts of them.

    It is p^K but for terms of order 1 / tokens: the first token is right with probability p, the next of the others.
    """
    return np.prod([(p * tokens - k) / (tokens - k) for k in range(length)], axis=0)


def none_right(share: Any, count: int = FEW) -> Any:
    """The probability that a test set of so few strings has no right one."""
    return (1 - share) ** count


def rise(curve: Any) -> Any:
    """What a mean curve has gained of its whole change, 0 at the first place and 1 at the last."""
    return (curve - curve[0]) / (curve[-1] - curve[0])


def largest_step(token: Any, whole: Any) -> float:
    """Of the token's accuracy, as a share of its rise."""
    return float(np.abs(np.diff(rise(token))).max())


def at_half(token: Any, whole: Any) -> float:
    """The rise of the strings' accuracy where the tokens' has made half of its own, linear between two places."""
    risen = rise(token)
    after = max(1, int(np.argmax(risen >= 0.5)))
    part = (0.5 - risen[after - 1]) / (risen[after] - risen[after - 1])
    return float(rise(whole)[after - 1] * (1 - part) + rise(whole)[after] * part)


def score_ratio(token: Any, whole: Any) -> float:
    """The emergence score of Schaeffer et al. 2023, range over root median squared step, of strings over tokens."""
    scores = [np.ptp(curve) / np.sqrt(np.median(np.diff(curve) ** 2)) for curve in (whole, token)]
    return float(scores[0] / scores[1])


def over_seeds(trials: Any, axis: str, of: Callable[[Any, Any], float]) -> tuple[float, float, float]:
    """Of the mean curves, with its bootstrap interval over replicates."""
    random = np.random.default_rng(0)
    token, whole = (
        trials.pivot(index="replicate", columns=axis, values=f"final_{name}_accuracy").to_numpy()
        for name in ("test", "string")
    )
    drawn = [random.integers(len(token), size=len(token)) for _ in range(RESAMPLES)]
    values = [of(token[row].mean(0), whole[row].mean(0)) for row in drawn]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return of(token.mean(0), whole.mean(0)), float(low), float(high)


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """p^K for independent images and not for sums, the two curves, and the smallest share that a test set shows."""
    digits, sums = (sweep.trials() for sweep in results)
    for width, group in digits.groupby("width"):
        p, length = group.final_test_accuracy, int(group.length.iloc[0])
        strings = (IMAGES - int(group.sample_count.iloc[0])) // length
        expected, what = all_right(p, length, strings * length), f"digits, width {width}: all {length} right"
        if expected.mean() > 1 / strings:  # there are right strings to count
            point = {"series": f"digits, K = {length}", "x": round(float(p.mean()), 2)}
            yield agrees(what, *paired(group.final_string_accuracy, expected), resolution=0.5, **point)
    for count, group in sums.groupby("sample_count"):
        p, length, whole = group.final_test_accuracy, int(group.length.iloc[0]), group.final_string_accuracy
        sample, bound = paired(whole, p**length)
        point = {"series": f"addition, K = {length}", "x": round(float(p.mean()), 2), "curve": bound}
        yield below(f"addition, n {count}: below p^{length}", *mean_interval(sample), bound, n=len(p), **point)
        if count in PRODUCTS:
            ratio = mean_interval(whole / group.final_position_product)
            yield above(f"addition, n {count}: above the product of positions (ratio)", *ratio, 1.0, n=len(p))
    for task, trials, axis in (("digits", digits, "width"), ("addition", sums, "sample_count")):
        n = trials.replicate.nunique()
        yield below(f"{task}: largest step of p / its rise", *over_seeds(trials, axis, largest_step), 0.5, n=n)
        yield below(f"{task}: rise of K of K where p has half", *over_seeds(trials, axis, at_half), 0.25, n=n)
        yield above(f"{task}: emergence score of K of K / of p", *over_seeds(trials, axis, score_ratio), 1.0, n=n)
    zero, share = sums.final_few_accuracy == 0, sums.final_string_accuracy
    yield agrees(f"share of tests of {FEW} sums without a right one", *paired(zero, none_right(share)), resolution=0.5)
    what = f"share right of 10,000, where {FEW} show none"
    yield above(what, *mean_interval(share[zero]), 1e-4, n=int(zero.sum()))


def paired(found: Any, expected: Any) -> tuple[Any, float]:
    """Values whose differences from the mean expected value are those of each trial from its own."""
    return found - expected + expected.mean(), float(expected.mean())


ROW = Row(
    number=5,
    name="emergence",
    source="Schaeffer et al. 2023",
    sweeps=("schaeffer2023/digits_small.yaml", "schaeffer2023/addition_small.yaml"),
    check=check,
    axes=("accuracy p of a token", "share of strings that are right"),
    absent={f"{task}: emergence score of K of K / of p": UNDECIDED for task in ("digits", "addition")},
    either={"addition, n 250: above the product of positions (ratio)": UNDECIDED},
)

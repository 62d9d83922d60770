"""Row 15: least squares on its own predictions, with data that replace the earlier ones, or accumulate; a verifier."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tests.gallery import verifier
from tests.gallery.row import Finding, Row, agrees, below, mean_interval

INPUTS, EXAMPLES, LAST = 20, 60, 10


def expected(data: str, designs: str, generation: int, *, d: int = INPUTS, n: int = EXAMPLES, s2: float = 1.0) -> float:
    """Mean excess risk, exact at any size.

    A generation adds the variance s2 tr((X'X)^-1 X_i'X_i (X'X)^-1) of its own noise, X all inputs fitted. Replaced, and
    accumulated with the same inputs again, it is s2 d / (n - d - 1), and that over i^2. Accumulated with fresh inputs,
    the i parts of X are alike, so that it is s2 / i tr (X'X)^-1 with i n examples.
    """
    one = s2 * d / (n - d - 1)
    if data == "replace":
        return generation * one
    if designs == "repeated":
        return sum(one / i**2 for i in range(1, generation + 1))
    return sum(s2 * d / (i * n - d - 1) / i for i in range(1, generation + 1))


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """Every generation along the formula, and the bound at the last one; then the verifier."""
    curves = results[0].curves(["excess_risk"], axes=True)
    for (data, designs, step), group in curves.groupby(["data", "designs", "step"]):
        if step in (1, 2, 5, LAST):
            risk = expected(data, designs, int(step))
            series = f"{data}, {designs} inputs"
            yield agrees(f"{series}, generation {step}", group.excess_risk, risk, series=series, x=float(step))
    bound = math.pi**2 / 6 * expected("replace", "fresh", 1)
    for designs in ("fresh", "repeated"):
        last = curves[(curves.data == "accumulate") & (curves.designs == designs) & (curves.step == LAST)].excess_risk
        yield below(f"accumulate, {designs}: bounded", *mean_interval(last), bound, n=len(last))
    yield from verifier.check(*results[1:])


ROW = Row(
    number=15,
    name="synthetic data",
    source="Dohmatob et al. 2024; Gerstgrasser et al. 2024; Feng et al. 2024",
    sweeps=(
        "gerstgrasser2024/generations_small.yaml",
        "feng2024/breakdown_small.yaml",
        "feng2024/level_small.yaml",
    ),
    check=check,
    axes=("generation", "excess risk"),
)

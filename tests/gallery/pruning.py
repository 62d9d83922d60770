"""Row 12: large networks that are pruned against small ones, at equal compute and final parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.gallery.row import DOES_NOT, UNDECIDED, Finding, Row, below, every, mean_interval

CHOOSING = 4
"""The first replicates choose the rate of each network; the others compare."""
SMALL, LARGER = 20, (50, 120)
FINALS = (0, 1450)
"""Parameters that are left; 0: not pruned."""


def parameters(width: int) -> int:
    """Of the network: 40 inputs, two hidden layers, 10 classes, with biases."""
    return (40 + 1) * width + (width + 1) * width + (width + 1) * 10


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """Equal compute and size, and the paired ratios of the test errors."""
    trials = results[0].trials()
    before = trials.width.map(parameters)
    compute = before * trials.steps
    yield every("parameters x steps are equal within 0.1%", abs(compute / compute.median() - 1) < 1e-3)
    yield every(
        "parameters left are those asked for", trials.final_parameters == trials.final.where(trials.final > 0, before)
    )
    for final in FINALS:
        small = compared(trials, 0, SMALL)
        for width in LARGER:
            large = compared(trials, final, width)
            left = f"{final} parameters left" if final else "not pruned"
            ratio = map(float, np.exp(mean_interval(np.log(large / small))))
            yield below(f"{left}: error of width {width} / of {SMALL}", *ratio, 1.0, n=len(large), series=left, x=width)


def compared(trials: Any, final: int, width: int) -> Any:
    """Test errors of the replicates that compare, at the rate with the smallest mean error of those that choose."""
    of = trials[(trials.final == final) & (trials.width == width)].sort_values("replicate")
    if of.empty:
        return np.full(1, np.nan)
    choosing = of[of.replicate < CHOOSING]
    rate = choosing.groupby("learning_rate").final_test_accuracy.mean().idxmax()
    return 1 - of[(of.learning_rate == rate) & (of.replicate >= CHOOSING)].final_test_accuracy.to_numpy()


ROW = Row(
    number=12,
    name="train large, then compress",
    source="Li et al. 2020",
    sweeps=("li2020/train_then_compress_small.yaml",),
    check=check,
    axes=("width", "test error / that of width 20"),
    scale="linear",
    absent={
        "1450 parameters left: error of width 50 / of 20": UNDECIDED,
        "1450 parameters left: error of width 120 / of 20": DOES_NOT,
    },
)

"""Row 12: large networks that are pruned, or distilled, against small ones at equal compute and final parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.gallery.row import DOES_NOT, SHOWS, UNDECIDED, Finding, Row, below, every, mean_interval

CHOOSING = 4
"""The first replicates choose the rate of each network; the others compare."""
SMALL, LARGER = 20, (50, 120)
FINALS = (0, 1450)
"""Parameters that are left; 0: not pruned."""
COMPUTE, FORWARD = 1450 * 5697, 4000 / 100 / 3
"""Of distillation; and what the outputs of a teacher for all training examples cost, in steps of training it."""


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
        small = compared(trials[(trials.final == 0) & (trials.width == SMALL)])
        for width in LARGER:
            large = compared(trials[(trials.final == final) & (trials.width == width)])
            left = f"{final} parameters left" if final else "not pruned"
            what = f"{left}: error of width {width} / of {SMALL}"
            yield below(what, *ratio(large, small), 1.0, n=len(large), series=left, x=width)
    yield from distilled(results[1].trials())


def distilled(trials: Any) -> Iterator[Finding]:
    """The network of width SMALL that learns the outputs of a teacher against the one that learns the labels."""
    teacher = trials.teacher_width.map(lambda width: parameters(width) if width else 0)
    compute = teacher * (trials.final_teacher_steps + FORWARD) + parameters(SMALL) * trials.final_own_steps
    yield every("distilled: parameters x steps are equal within 0.1%", abs(compute / COMPUTE - 1) < 1e-3)
    trials = trials.assign(final_test_accuracy=1 - trials.final_test_error)
    small = compared(trials[trials.teacher_width == 0])
    for width in LARGER:
        student = compared(trials[trials.teacher_width == width])
        yield below(f"distilled from width {width}: error / from labels", *ratio(student, small), 1.0, n=len(student))


def ratio(large: Any, small: Any) -> tuple[float, float, float]:
    """The geometric mean of the paired ratios, and its interval."""
    mean, low, high = map(float, np.exp(mean_interval(np.log(large / small))))
    return mean, low, high


def compared(of: Any) -> Any:
    """Test errors of the replicates that compare, at the rate with the smallest mean error of those that choose."""
    if of.empty:
        return np.full(1, np.nan)
    of = of.sort_values("replicate")
    return 1 - of[(of.learning_rate == chosen(of)) & (of.replicate >= CHOOSING)].final_test_accuracy.to_numpy()


def chosen(of: Any) -> float:
    """The learning rate."""
    choosing = of[of.replicate < CHOOSING]
    return float(choosing.groupby("learning_rate").final_test_accuracy.mean().idxmax())


def notes(results: Sequence[Any]) -> Iterator[str]:
    """The chosen rates."""
    trials, distilled = (sweep.trials() for sweep in results)
    for (final, width), of in trials.groupby(["final", "width"]):
        yield f"width {width}, {final or 'all'} parameters left: chosen learning rate {chosen(of):g}"
    for width, of in distilled.assign(final_test_accuracy=1 - distilled.final_test_error).groupby("teacher_width"):
        yield f"teacher of width {width or 'none'}: chosen learning rate {chosen(of):g}"


ROW = Row(
    number=12,
    name="train large, then compress",
    source="Li et al. 2020; Hinton et al. 2015",
    sweeps=("li2020/train_then_compress_small.yaml", "hinton2015/distillation_small.yaml"),
    check=check,
    notes=notes,
    axes=("width", "test error / that of width 20"),
    scale="linear",
    absent={
        "1450 parameters left: error of width 50 / of 20": UNDECIDED,
        "1450 parameters left: error of width 120 / of 20": DOES_NOT,
        "distilled from width 50: error / from labels": UNDECIDED,
        "distilled from width 120: error / from labels": UNDECIDED,
    },
    either={
        "1450 parameters left: error of width 50 / of 20": SHOWS,
        "distilled from width 120: error / from labels": DOES_NOT,
    },
)

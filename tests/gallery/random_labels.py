"""Row 1: networks that learn also fit random labels, and true labels of random pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from orchestrator.analysis.logrank import paired
from tests.gallery.row import (
    DOES_NOT,
    LEVEL,
    SHOWS,
    UNDECIDED,
    Finding,
    Row,
    above,
    agrees,
    below,
    every,
    mean_interval,
)

CLASSES = 10
KINDS = ("original", "random")
"""Of pixels."""


def chance(classes: int = CLASSES) -> float:
    """Test error of labels that are guessed."""
    return 1 - 1 / classes


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """Training error 0 at every noise, test error of chance at noise 1, and how long fitting takes; random pixels."""
    trials, inputs = (sweep.trials() for sweep in results)
    for noise, group in trials.groupby("label_noise"):
        yield every(f"noise {noise:g}: training error 0", group.final_train_error == 0)
    errors = {noise: group.final_test_error for noise, group in trials.groupby("label_noise")}
    yield agrees("noise 1: test error is chance", errors[1.0], chance(), limit=2.0, resolution=0.02)
    yield below("noise 0: test error below chance", *mean_interval(errors[0.0]), chance(), n=len(errors[0.0]))
    kinds = [inputs[inputs.pixels == kind].sort_values("replicate") for kind in KINDS]
    yield every("random pixels: training error 0", kinds[1].final_train_error == 0)
    plain, mixed = (kind.final_test_error.to_numpy() for kind in kinds)
    ratio = map(float, np.exp(mean_interval(np.log(mixed / plain))))
    yield above("random pixels: test error / that of the original ones", *ratio, 1.0, n=len(plain))
    for what, *sides in pairs(results):
        yield later(what, *sides)


def pairs(results: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
    """What is compared, and the trials that should be fitted earlier and later."""
    trials, inputs = (sweep.trials() for sweep in results)
    noise = {level: trials[trials.label_noise == level] for level in (0.0, 0.5, 1.0)}
    kinds = [inputs[inputs.pixels == kind] for kind in KINDS]
    for less, more in ((0.0, 0.5), (0.0, 1.0), (0.5, 1.0)):
        yield f"noise {less:g} to {more:g}", noise[less], noise[more]
    yield "original to random pixels", kinds[0], kinds[1]
    yield "random pixels to noise 1", kinds[1], noise[1.0]


def notes(results: Sequence[Any]) -> Iterator[str]:
    """The p values."""
    for what, *sides in pairs(results):
        yield f"{what}: log-rank p = {logrank(*sides).p_value:.2g}, paired by seed"


def logrank(first: Any, second: Any) -> Any:
    """The steps of the second trials against those of the first, over common seeds."""
    sides = [trials.sort_values("replicate") for trials in (second, first)]
    return paired(*(side[name] for side in sides for name in (f"{STEP}_after", STEP)), level=LEVEL)


def later(what: str, first: Any, second: Any) -> Finding:
    """Fitting takes longer in the second trials: the log-rank test over common seeds, beside the median ratio."""
    compared = logrank(first, second)
    ratio, slower = compared.ratio, compared.excess < 0 and compared.p_value < 1 - LEVEL
    return Finding(
        what=f"{what}: fitting takes longer (ratio)",
        expected="> 1, p < .05",
        found=(ratio.above + ratio.to) / 2,  # a step is known to be between two reports, and so is a ratio
        low=ratio.low,
        high=ratio.high,
        n=compared.pairs,
        verdict=DOES_NOT if not slower else SHOWS if ratio.low > 1 else UNDECIDED,
    )


STEP = "interpolation_step"

ROW = Row(
    number=1,
    name="random labels",
    source="Zhang et al. 2017",
    sweeps=("zhang2017/random_labels_small.yaml", "zhang2017/random_pixels_small.yaml"),
    check=check,
    notes=notes,
    absent={
        "noise 0 to 0.5: fitting takes longer (ratio)": UNDECIDED,
        "noise 0 to 1: fitting takes longer (ratio)": UNDECIDED,
        "noise 0.5 to 1: fitting takes longer (ratio)": DOES_NOT,
        "original to random pixels: fitting takes longer (ratio)": DOES_NOT,
    },
    either={
        "noise 0 to 0.5: fitting takes longer (ratio)": SHOWS,
        "noise 0 to 1: fitting takes longer (ratio)": DOES_NOT,  # p = .04
    },
)

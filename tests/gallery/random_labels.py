"""Row 1: networks that learn also fit random labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.analysis.logrank import paired
from tests.gallery.row import DOES_NOT, LEVEL, SHOWS, UNDECIDED, Finding, Row, agrees, below, every, mean_interval

CLASSES = 10


def chance(classes: int = CLASSES) -> float:
    """Test error of labels that are guessed."""
    return 1 - 1 / classes


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """Training error 0 at every noise, test error of chance at noise 1, and how long fitting takes."""
    trials = results[0].trials()
    for noise, group in trials.groupby("label_noise"):
        yield every(f"noise {noise:g}: training error 0", group.final_train_error == 0)
    errors = {noise: group.final_test_error for noise, group in trials.groupby("label_noise")}
    yield agrees("noise 1: test error is chance", errors[1.0], chance(), limit=2.0, resolution=0.02)
    yield below("noise 0: test error below chance", *mean_interval(errors[0.0]), chance(), n=len(errors[0.0]))
    for less, more in ((0.0, 0.5), (0.0, 1.0), (0.5, 1.0)):
        yield later(trials, less, more)


def later(trials: Any, less: float, more: float) -> Finding:
    """Fitting takes longer with more noise: the log-rank test over common seeds, beside the median ratio."""
    sides = [trials[trials.label_noise == noise].sort_values("replicate") for noise in (more, less)]
    compared = paired(*(side[name] for side in sides for name in (f"{STEP}_after", STEP)), level=LEVEL)
    ratio, slower = compared.ratio, compared.excess < 0 and compared.p_value < 1 - LEVEL
    return Finding(
        what=f"noise {less:g} to {more:g}: fitting takes longer (ratio)",
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
    sweeps=("zhang2017/random_labels_small.yaml",),
    check=check,
    absent={
        "noise 0 to 0.5: fitting takes longer (ratio)": UNDECIDED,
        "noise 0 to 1: fitting takes longer (ratio)": UNDECIDED,
        "noise 0.5 to 1: fitting takes longer (ratio)": DOES_NOT,
    },
)

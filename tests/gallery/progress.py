"""Row 16: hidden progress; the order of memorisation, circuit formation and clean-up in modular addition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tests.gallery.row import (
    DOES_NOT,
    LEAST,
    SHOWS,
    UNDECIDED,
    Finding,
    Row,
    above,
    below,
    every,
    mean_interval,
    within,
)

METRICS = ("train_accuracy", "test_loss", "restricted_loss", "excluded_loss", "fourier_gini", "weight_norm")
MEMORISED = 0.9
ORDER = (
    ("memorised", below, "circuit"),
    ("circuit", below, "generalised"),
    ("generalised", above, "restricted"),
    ("gini", above, "circuit"),
    ("norm", above, "circuit"),
)
"""Events, each with one that it comes before (below) or after (above); Nanda et al. 2023, section 5."""
HALF_CHANCE = math.log(31) / 2


def events(curve: Any) -> dict[str, float]:
    """Steps of a trial, infinite where not reached.

    memorised: training accuracy 0.9; restricted and generalised: the restricted loss and the test loss below half of
    chance; circuit: half of the excluded loss's rise from its minimum; gini: half of its rise from the start; norm:
    half of the weight norm's fall from its maximum.
    """
    value, step = {name: curve[name].to_numpy() for name in METRICS}, curve.step.to_numpy().astype(float)
    excluded, norm, gini = value["excluded_loss"], value["weight_norm"], value["fourier_gini"]
    later = np.arange(len(step))
    found = {
        "memorised": value["train_accuracy"] >= MEMORISED,
        "restricted": value["restricted_loss"] <= HALF_CHANCE,
        "generalised": value["test_loss"] <= HALF_CHANCE,
        "circuit": (later > excluded.argmin()) & (excluded >= (excluded.min() + excluded[-1]) / 2),
        "gini": gini >= (gini[0] + gini[-1]) / 2,
        "norm": (later > norm.argmax()) & (norm <= (norm.max() + norm[-1]) / 2),
    }
    return {name: float(step[holds.argmax()]) if holds.any() else math.inf for name, holds in found.items()}


def interval(sample: Any) -> tuple[float, float, float]:
    """Mean and its interval; not a number, which shows nothing, of fewer than two values."""
    return mean_interval(sample) if len(sample) > 1 else (math.nan, math.nan, math.nan)


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """All events happen; their order at each weight decay, paired over seeds; what the weight decay does to them."""
    curves = results[0].curves(list(METRICS), axes=True)
    keys, rows = zip(
        *((key, events(curve)) for key, curve in curves.groupby(["weight_decay", "replicate"])), strict=True
    )
    index = pd.MultiIndex.from_tuples(keys, names=["decay", "replicate"])
    steps = np.log(pd.DataFrame(rows, index=index))
    for event in steps:
        yield every(f"{event} is reached", np.isfinite(steps[event]))
    for decay, of_decay in steps.groupby("decay"):
        for event, comparison, other in ORDER:
            both = of_decay[[event, other]][np.isfinite(of_decay[[event, other]]).all(axis=1)]
            mean = float(np.mean(both[other])) if len(both) else math.nan
            found, low, high = map(float, np.exp(interval(both[event] - both[other] + mean)))
            what, point = f"decay {decay:g}: step, {event} {comparison.__name__} {other}", {"series": event, "x": decay}
            yield comparison(what, found, low, high, float(np.exp(mean)), n=len(both), **point)
    for event in ("circuit", "generalised"):
        table = steps[event].unstack("decay")
        table = table[np.isfinite(table).all(axis=1)]
        slopes = [float(np.polyfit(np.log(table.columns.to_numpy()), row, 1)[0]) for row in table.to_numpy()]
        what = f"{event}: exponent of its step in the weight decay"
        yield within(what, *interval(slopes), -1.5, -0.5, n=len(slopes))


ROW = Row(
    number=16,
    name="hidden progress",
    source="Nanda et al. 2023",
    sweeps=("nanda2023/weight_decay_small.yaml",),
    check=check,
    axes=("weight decay", "step (geometric mean)"),
    absent={
        **{f"{event} is reached": DOES_NOT for event in ("memorised", "generalised", "norm")},
        **{f"decay {decay}: step, memorised below circuit": UNDECIDED for decay in (1, 2, 4)},
        **{f"decay {decay}: step, circuit below generalised": UNDECIDED for decay in (2, 4)},
        "decay 2: step, gini above circuit": UNDECIDED,
        "decay 4: step, gini above circuit": DOES_NOT,
        "decay 4: step, norm above circuit": UNDECIDED,
        "circuit: exponent of its step in the weight decay": DOES_NOT,
        "generalised: exponent of its step in the weight decay": UNDECIDED,
    },
    either={
        "memorised is reached": SHOWS,  # in 59 of 60 trials
        "decay 1: step, gini above circuit": UNDECIDED,
        "decay 2: step, circuit below generalised": SHOWS,  # on another processor
    },
    least={"memorised is reached": LEAST},
)

"""Row 10: a white-box transformer; what its layers are designed for, by layer, and its accuracy beside a ViT's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.gallery.row import DOES_NOT, UNDECIDED, Finding, Row, below, every, mean_interval, within

CHOOSING, LAYERS = 2, range(1, 7)
"""The first replicates choose the rate of each network; the others compare."""
FALLS = {"rate": "coding rate", "nonzeros": "non-zeros"}
TRAINED, UNTRAINED = -1, 0
"""Places of the reports: after all steps, and after the first one, whose rate is 1/50 of the full one."""


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """The coding rate and the non-zeros of neighbouring layers, trained and not; the paired accuracies."""
    trials = results[0].trials()
    names = [f"{name}_{k}" for name in ("rate_before", *FALLS) for k in LAYERS]
    curves = results[0].curves(names, axes=True)
    counted = [parameters(*of) for of in zip(trials.network, trials.width, strict=True)]
    yield every("parameters as counted", trials.final_parameters == counted)
    yield every("parameters are equal within 1%", abs(trials.final_parameters / np.median(counted) - 1) < 0.01)
    crate, vit = (chosen(trials, trials, network) for network in ("crate", "vit"))
    layers = chosen(trials, curves, "crate")
    before, after = (by_layer(layers, name, TRAINED) for name in ("rate_before", "rate"))
    for name, words in FALLS.items():
        trained, untrained = (by_layer(layers, name, place) for place in (TRAINED, UNTRAINED))
        for k in LAYERS[1:]:
            point = {"series": words, "x": float(k), "curve": 1.0}
            yield ratio(f"{words}: layer {k} / {k - 1}", trained[:, k - 1], trained[:, k - 2], **point)
        fall, other = (table[:, -1] / table[:, 0] for table in (trained, untrained))
        yield ratio(f"{words}: last / first layer", fall, 1.0)
        yield ratio(f"{words}: last / first layer, trained / untrained", fall, other)
    yield ratio(
        "coding rate after attention / before, mean of layers", *(np.exp(np.log(r).mean(1)) for r in (after, before))
    )
    difference = mean_interval(crate.final_test_accuracy.to_numpy() - vit.final_test_accuracy.to_numpy())
    yield within("test accuracy less that of the ViT", *difference, -0.05, 0.05, n=len(crate))


def notes(results: Sequence[Any]) -> Iterator[str]:
    """The chosen rates, and what is measured in each layer, trained and not, with 95% intervals."""
    trials = results[0].trials()
    for network in ("crate", "vit"):
        yield f"{network}: chosen learning rate {chosen(trials, trials, network).learning_rate.iloc[0]:g}"
    layers = chosen(trials, results[0].curves([f"{name}_{k}" for name in FALLS for k in LAYERS], axes=True), "crate")
    for name, words in FALLS.items():
        for when, place in (("trained", TRAINED), ("untrained", UNTRAINED)):
            cells = ("{:.3g} [{:.3g}, {:.3g}]".format(*mean_interval(of)) for of in by_layer(layers, name, place).T)
            yield f"{f'{words}, {when}, layers 1 to {len(LAYERS)}:':<40} {' | '.join(cells)}"


def parameters(network: str, width: int) -> int:
    """Of patches of 4 pixels, 16 positions, a norm and ten classes, and of the layers."""
    layer = 3 * width**2 + 5 * width if network == "crate" else 12 * width**2 + 13 * width
    return 33 * width + 10 + len(LAYERS) * layer


def chosen(trials: Any, table: Any, network: str) -> Any:
    """Rows of the replicates that compare, at the rate with the best mean accuracy of those that choose."""
    choosing = trials[(trials.network == network) & (trials.replicate < CHOOSING)]
    rate = choosing.groupby("learning_rate").final_test_accuracy.mean().idxmax()
    rows = table[(table.network == network) & (table.learning_rate == rate) & (table.replicate >= CHOOSING)]
    return rows.sort_values("replicate")


def by_layer(curves: Any, name: str, place: int) -> Any:
    """(seeds, layers) what is measured at one report."""
    step = sorted(curves.step.unique())[place]
    return curves[curves.step == step][[f"{name}_{k}" for k in LAYERS]].to_numpy()


def ratio(what: str, one: Any, other: Any, **point: Any) -> Finding:
    """The geometric mean of the paired ratios is below 1."""
    return below(what, *map(float, np.exp(mean_interval(np.log(one / other)))), 1.0, n=len(one), **point)


ROW = Row(
    number=10,
    name="white-box transformer",
    source="Yu et al. 2023",
    sweeps=("yu2023/white_box_small.yaml",),
    check=check,
    notes=notes,
    axes=("layer", "ratio to the layer before"),
    scale="linear",
    absent={
        "coding rate: layer 2 / 1": DOES_NOT,
        "coding rate: layer 3 / 2": UNDECIDED,
        "non-zeros: layer 4 / 3": UNDECIDED,
        "non-zeros: layer 5 / 4": DOES_NOT,
        "non-zeros: layer 6 / 5": DOES_NOT,
        "non-zeros: last / first layer, trained / untrained": DOES_NOT,
    },
    either={"non-zeros: layer 3 / 2": UNDECIDED, "non-zeros: layer 6 / 5": UNDECIDED},
)

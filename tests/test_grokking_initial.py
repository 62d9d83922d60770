"""The initial weights of grokking networks: every tensor has the distribution that its `init` states."""

import itertools
import math
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from jobs.grokking.initial import initial, layout
from jobs.grokking.params import GrokkingParams
from jobs.packed.cost import padded_width

SEEDS, WIDTH, WIDER, PRIME, SIZE = 120, 20, 37, 7, 6
LEVEL = 1e-4
"""Of each Kolmogorov-Smirnov test, of 840 to 20,000 numbers."""
MOST = 20_000
ZERO, ONE = 0.0, 1.0

PERCEPTRON = {"model": "embedding_mlp", "embedding": SIZE, "layers": 3}
ONE_HOT = {**PERCEPTRON, "embedding": 0}
TRANSFORMER = {"model": "transformer", "heads": 4, "layer_norm": True}
TOY = {**PERCEPTRON, "embedding": 1, "combine": "sum", "operation": "sum"}


def normal(deviation: float) -> Any:
    return stats.norm(scale=deviation)


def uniform(bound: float) -> Any:
    return stats.uniform(-bound, 2 * bound)


def by_fan_in(inputs: float) -> Any:
    return uniform(1 / math.sqrt(inputs))


def scaled_perceptron(inputs: int, width: int) -> dict[str, Any]:
    return {
        "embedding": normal(1 / math.sqrt(SIZE)),
        "for_.": normal(1 / math.sqrt(inputs)),
        "hidden/.|readout": normal(1 / math.sqrt(width)),
        "bias/.|readout bias": ZERO,
    }


def torch_perceptron(inputs: int, width: int) -> dict[str, Any]:
    return {
        "embedding": normal(1),
        "for_.|bias/0": by_fan_in(inputs),
        "hidden/.|bias/[12]|readout|readout bias": by_fan_in(width),
    }


NORMS = {".*norm.* gain|norm gain": ONE, ".*norm.* offset|norm offset": ZERO}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "scaled, quadratic": ({}, lambda w: {"u|v|w2": normal(0.5 / (2 * w) ** (1 / 3))}),
    "scaled, embeddings": (PERCEPTRON, lambda w: scaled_perceptron(SIZE, w)),
    "scaled, one-hot": (ONE_HOT, lambda w: scaled_perceptron(2 * PRIME, w)),
    "scaled, transformer": (
        TRANSFORMER,
        lambda w: {
            "tokens|positions|./(query|key|value|output|in)|readout": normal(1 / math.sqrt(w)),
            "./out": normal(1 / math.sqrt(4 * w)),
            "./(in|out) bias": ZERO,
            **NORMS,
        },
    ),
    "torch, quadratic": (
        {"init": "torch"},
        lambda w: {"u|v": by_fan_in(2 * PRIME), "w2": by_fan_in(w)},
    ),
    "torch, embeddings": ({**PERCEPTRON, "init": "torch"}, lambda w: torch_perceptron(2 * SIZE, w)),
    "torch, one-hot": ({**ONE_HOT, "init": "torch"}, lambda w: torch_perceptron(2 * PRIME, w)),
    "torch, no biases (Prieto et al.)": (
        {**ONE_HOT, "init": "torch", "biases": False},
        lambda w: {"bias/.|readout bias": ZERO, **torch_perceptron(2 * PRIME, w)},
    ),
    "torch, transformer (Power et al.)": (
        {
            **TRANSFORMER,
            "init": "torch",
            "biases": False,
            "positions": "sinusoidal",
            "sequence": "equation",
            "vocabulary": 12,
        },
        lambda w: {
            "tokens": normal(1),
            "./(query|key|value|output|in)|readout": by_fan_in(w),
            "./out": by_fan_in(4 * w),
            "./(in|out) bias": ZERO,
            **NORMS,
        },
    ),
    "torch, attention with biases (Lee et al.)": (
        {**TRANSFORMER, "init": "torch", "attention_biases": True, "norm_order": "grokfast"},
        lambda w: {
            "tokens|positions": normal(1),
            "./(query|key|value)": uniform(math.sqrt(6 / (w + 3 * w))),
            "./(query|key|value|output) bias": ZERO,
            "./(output|in|in bias)|readout": by_fan_in(w),
            "./(out|out bias)": by_fan_in(4 * w),
            **NORMS,
        },
    ),
    "liu": (
        {**TOY, "init": "liu"},
        lambda w: {**torch_perceptron(1, w), "embedding": uniform(0.5)},
    ),
    "nanda": (
        {**TRANSFORMER, "layer_norm": False, "init": "nanda", "vocabulary": PRIME + 1},
        lambda w: {
            "tokens|positions|./(query|key|value|output|in|out)": normal(1 / math.sqrt(w)),
            "./(in|out) bias": ZERO,
            "readout": normal(1 / math.sqrt(PRIME + 1)),
        },
    ),
}


@cache
def drawn(case: str) -> list[tuple[GrokkingParams, dict[str, np.ndarray]]]:
    """The parameters, and name -> (SEEDS, rows, columns) of the tensors without padding, of each width of one pack."""
    values, _ = CASES[case]
    widths = (WIDTH,) if values.get("model") == "transformer" else (WIDTH, WIDER)
    params = [GrokkingParams(**{"modulus": PRIME, **values, "width": width}) for width in widths for _ in range(SEEDS)]
    views = initial(params, range(len(params)), "cpu").views()
    layers = layout(params[0], padded_width(max(widths)))
    found = []
    for start, width in zip(range(0, len(params), SEEDS), widths, strict=True):
        real = {"width": width, "outputs": params[0].outputs}
        tensors = {}
        for layer, view in zip(layers, views, strict=True):
            rows, columns = (
                real.get(which, size) for which, size in zip((layer.rows, layer.columns), layer.shape, strict=True)
            )
            model = view[start : start + SEEDS].numpy().astype(float)
            if layer.role != "one":
                assert not model[:, rows:].any()
                assert not model[:, :, columns:].any()
            tensors[layer.name] = model[:, :rows, :columns]
        found.append((params[start], tensors))
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_has_the_stated_distribution(case: str) -> None:
    for params, tensors in drawn(case):
        laws = CASES[case][1](params.width)
        for name, values_SRC in tensors.items():
            law = next((law for pattern, law in laws.items() if re.fullmatch(pattern, name)), None)
            assert law is not None, f"no law is stated for {name}"
            if isinstance(law, float):
                assert (values_SRC == law).all(), name
                continue
            found = stats.kstest(values_SRC.ravel()[:MOST], law.cdf, method="asymp")
            assert found.pvalue > LEVEL, f"{name} at width {params.width}: {found}"
            lowest, highest = law.support()
            assert lowest <= values_SRC.min() and values_SRC.max() <= highest, name


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_seeds_are_drawn_independently(case: str) -> None:
    for _, tensors in drawn(case):
        random = {name: z.reshape(SEEDS, -1) for name, z in tensors.items() if z.std() > 0}
        for (one, first), (other, second) in itertools.combinations(random.items(), 2):
            if first.shape == second.shape:
                assert abs(correlation(first, second)) < 5 / math.sqrt(first.size), f"{one} and {other}"
        for name, z in random.items():
            assert abs(correlation(z[1:], z[:-1])) < 5 / math.sqrt(z.size), f"{name} of neighbouring seeds"


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_a_wrong_scale_or_distribution_is_found() -> None:
    """The tests above can fail: PyTorch's weights are told from normal ones, and from a bound that is a tenth off."""
    weights = torch.nn.Linear(WIDTH, 10 * WIDTH).weight.detach().double().numpy().ravel()
    assert stats.kstest(weights, by_fan_in(WIDTH).cdf).pvalue > LEVEL
    for wrong in (by_fan_in(1.21 * WIDTH), normal(1 / math.sqrt(3 * WIDTH))):
        assert stats.kstest(weights, wrong.cdf).pvalue < LEVEL

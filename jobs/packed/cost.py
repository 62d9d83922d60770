"""Sizes, operations and blocks of packed perceptrons, for cost estimates. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

WIDTH_MULTIPLE = 16
"""Widths are padded to a multiple of this: a batched product of narrower matrices costs as much."""
CACHE_BYTES = 3 << 20
"""Working set of one block of models on a CPU, about a core's cache; 1 to 20 MiB were equally fast when measured."""


def padded_width(width: int) -> int:
    """The width that a layer of `width` units is stored with."""
    return max(WIDTH_MULTIPLE, -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)


def layer_sizes(inputs: int, width: int, depth: int, outputs: int) -> tuple[int, ...]:
    """Units of each layer of a perceptron with `depth` hidden layers, from the inputs to the outputs."""
    return (inputs, *[width] * depth, outputs)


def parameters(sizes: Sequence[int]) -> int:
    """Number of parameters of one perceptron, biases included."""
    return sum((a + 1) * b for a, b in pairwise(sizes))


def multiply_adds(sizes: Sequence[int]) -> int:
    """Multiply-adds of one example's forward pass."""
    return sum(a * b for a, b in pairwise(sizes))


def step_bytes(sizes: Sequence[int], batch: int, optimiser: str) -> int:
    """Bytes one model touches in a step: parameters, the optimiser's state, activations and their gradients."""
    copies = 2 if optimiser == "sgd" else 4
    return 4 * (parameters(sizes) * copies + batch * (sizes[0] + 2 * sum(sizes[1:])))


def models_per_block(bytes_per_model: float, device: str) -> int:
    """How many models train together: as many as the cache holds, at least 4; on a GPU all of them."""
    return max(4, int(CACHE_BYTES / bytes_per_model)) if device.startswith("cpu") else 1 << 30


def evaluation_bytes(cache: int, device: str) -> int:
    """Bytes of activations held at once while measuring: `cache` on a CPU, more on a GPU."""
    return cache if device.startswith("cpu") else 1 << 28

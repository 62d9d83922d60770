"""What a pack of perceptrons costs, counted from the operations that `jobs.packed.mlp` does. No torch here."""

from __future__ import annotations

import math
from itertools import pairwise

from jobs.job import Cost

WIDTH_MULTIPLE = 16
"""Widths are stored padded to a multiple of this: a batched product of narrower matrices costs as much."""
CACHE_BYTES = 3 << 20
"""Working set of one block of models on a CPU, about what a core reaches fast; 1 to 20 MiB measured alike."""


def padded_width(width: int) -> int:
    """The width that a layer of `width` units is stored with."""
    return max(WIDTH_MULTIPLE, -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)


def parameters(inputs: int, width: int, depth: int, outputs: int) -> int:
    """Number of parameters of one perceptron with `depth` hidden layers of `width` units."""
    sizes = [inputs] + [width] * depth + [outputs]
    return sum((a + 1) * b for a, b in pairwise(sizes))


def multiply_adds(inputs: int, width: int, depth: int, outputs: int) -> int:
    """Multiply-adds of one example's forward pass."""
    sizes = [inputs] + [width] * depth + [outputs]
    return sum(a * b for a, b in pairwise(sizes))


def step_bytes(inputs: int, width: int, depth: int, outputs: int, batch: int, states: int) -> int:
    """Bytes one model touches in a step: parameters, `states` more of their size, activations and deltas."""
    size = parameters(inputs, width, depth, outputs)
    return 4 * (size * (1 + states) + batch * (inputs + 2 * width * depth + 2 * outputs))


def models_per_block(bytes_per_model: float, device: str) -> int:
    """How many models train together: as many as the cache holds, at least 4; on a GPU all of them."""
    return max(4, int(CACHE_BYTES / bytes_per_model)) if device.startswith("cpu") else 1 << 30


def pack_cost(
    *,
    inputs: int,
    width: int,
    depth: int,
    outputs: int,
    batch: int,
    steps: int,
    reports: int,
    evaluated: int,
    examples: int,
    models: int,
    adaptive: bool,
) -> Cost:
    """The cost of `models` perceptrons of the padded width, trained for `steps` and measured `reports` times."""
    width = padded_width(width)
    macs = multiply_adds(inputs, width, depth, outputs)
    size = parameters(inputs, width, depth, outputs)
    states = 3 if adaptive else 1
    per_model = step_bytes(inputs, width, depth, outputs, batch, states)
    blocks = math.ceil(models / models_per_block(per_model, "cpu"))
    step_macs = batch * (3 * macs - inputs * (width if depth else outputs))
    elements = batch * (inputs + 4 * width * depth + 12 * outputs) + size * (12 if adaptive else 3)
    measured = evaluated * (2 * width * depth + 8 * outputs + inputs)
    return Cost(
        launches=blocks * (steps * (11 + 6 * depth + (10 if adaptive else 0)) + reports * 40),
        matmul_flop=2.0 * models * (steps * step_macs + reports * evaluated * macs),
        element_visits=models * (steps * elements + reports * measured),
        memory_bytes=models * (per_model + 8.0 * examples * 2),
        steps=steps,
        reports=reports,
    )

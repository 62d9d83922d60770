"""The layers of a grokking network and their initial weights.

Shapes: M models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.grokking.cost import padded_outputs
from jobs.grokking.params import GrokkingParams
from jobs.packed import random
from jobs.packed.cost import padded_width
from jobs.packed.optim import FlatParameters

_PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One tensor of parameters."""

    name: str
    shape: tuple[int, int]
    """Padded."""
    role: str
    """"embedding", "weight" and "bias" are drawn by `init`; "zero" and "one" are constant."""
    rows: str = ""
    columns: str = ""
    """Which number of rows and columns is real: "width", "outputs", or all of them."""
    inputs: int = 0
    """Inputs of the layer that it belongs to, as PyTorch counts them (fan in); 0: the width."""


def initial(params: Sequence[GrokkingParams], seeds: Sequence[int], device: str) -> FlatParameters:
    """Initial parameters by `init`, times `init_scale`, and the embedding times `embedding_scale`.

    Layer-norm gains are one. Biases are zero, except where PyTorch's own initialisation is asked for.

    | init | weights | embeddings |
    |---|---|---|
    | scaled | normal, deviation 1 / sqrt(fan in) | normal, deviation 1 / sqrt(their size) |
    | torch | uniform on +-1 / sqrt(fan in), biases too (`torch.nn.Linear`) | standard normal (`torch.nn.Embedding`) |
    | liu | as torch | uniform on +-1/2 |
    | nanda | normal, deviation 1 / sqrt(width), readout 1 / sqrt(outputs) | normal, deviation 1 / sqrt(width) |

    With `scaled`, the quadratic perceptron has the deviation 0.5 / (2 width)^(1/3) for all weights (Doshi et al. 2024).
    With `torch`, attention with biases is that of `torch.nn.MultiheadAttention`: query, key and value uniform on
    +-sqrt(6 / (4 width)), biases zero.
    """
    first = params[0]
    layers = layout(first, padded_width(max(p.width for p in params)))
    parameters = FlatParameters([layer.shape for layer in layers], len(params), device)
    width = torch.tensor([p.width for p in params], device=device)
    scale = torch.tensor([p.init_scale for p in params], device=device)
    embedding_scale = torch.tensor([p.embedding_scale for p in params], device=device)
    for layer, view in zip(layers, parameters.views(), strict=True):
        if layer.role == "one":
            view.fill_(1.0)
        distribution, size = _spread(first, layer, width, scale)
        if not distribution:
            continue
        if layer is layers[0] and layer.role == "embedding":
            size = size * embedding_scale
        view.copy_(_draw(distribution, seeds, layer, first, width)).mul_(size[:, None, None])
    return parameters


def _spread(first: GrokkingParams, layer: Layer, width_M: Tensor, scale_M: Tensor) -> tuple[str, Tensor]:
    """Distribution ("normal", "uniform", or "" for a constant), and its deviation or largest absolute value, (M,)."""
    if layer.role in ("zero", "one") or (layer.role == "bias" and not first.biases):
        return "", scale_M
    inputs = torch.full_like(width_M, layer.inputs) if layer.inputs else width_M
    if first.init in ("torch", "liu"):
        if layer.role == "embedding":
            return ("normal", scale_M) if first.init == "torch" else ("uniform", scale_M / 2)
        if first.attention_biases and layer.name.endswith(_PROJECTIONS):
            return "uniform", scale_M * math.sqrt(6 / (4 * layer.inputs))
        return "uniform", scale_M / inputs.float().sqrt()
    if layer.role == "bias":
        return "", scale_M
    if first.init == "nanda":
        return "normal", scale_M * (first.outputs if layer.name == "readout" else first.width) ** -0.5
    if first.model == "quadratic_mlp":
        return "normal", scale_M * 0.5 / (2 * width_M) ** (1 / 3)
    if layer.role == "embedding":
        inputs = torch.full_like(width_M, layer.shape[1])
    elif first.embedding and layer.name in ("for_x", "for_y"):
        inputs = torch.full_like(width_M, first.embedding)  # each table counts its own inputs
    return "normal", scale_M / inputs.float().sqrt()


def _draw(distribution: str, seeds: Sequence[int], layer: Layer, first: GrokkingParams, width_M: Tensor) -> Tensor:
    """(M, *shape) standard normal numbers, or uniform ones on (-1, 1); zero beyond each model's rows and columns.

    The counter of an entry is its row and column, so padding does not change the draw.
    """
    row, column = (torch.arange(size, device=width_M.device) for size in layer.shape)
    counter = (row[:, None] * (1 << 24) + column).unsqueeze(0)
    keys = random.stream_keys(seeds, f"init/{layer.name}", width_M.device)
    values = random.normal(keys, counter) if distribution == "normal" else 2 * random.uniform(keys, counter) - 1
    rows, columns = (
        {"width": width_M, "outputs": torch.full_like(width_M, first.outputs)}.get(
            which, torch.full_like(width_M, size)
        )
        for which, size in zip((layer.rows, layer.columns), layer.shape, strict=True)
    )
    real = (row[:, None] < rows[:, None, None]) & (column < columns[:, None, None])
    return torch.where(real, values, 0.0)


def layout(first: GrokkingParams, width: int) -> list[Layer]:
    """The layers of a network of this padded width, in order. An embedding comes first."""
    elements, outputs = first.elements, padded_outputs(first.outputs)
    readout = Layer(name="readout", shape=(outputs, width), role="weight", rows="outputs", columns="width")
    if first.model == "quadratic_mlp":
        tables = [_first_layer(name, elements, 2 * elements, width) for name in ("u", "v")]
        return [*tables, Layer(name="w2", shape=(outputs, width), role="weight", rows="outputs", columns="width")]
    if first.model == "transformer":
        return _transformer_layout(first, outputs)
    inputs = first.first_inputs
    if first.model == "image_mlp":
        layers = [_first_layer("first", first.pixels, inputs, width)]
    else:
        size = first.embedding or elements
        layers = [Layer(name="embedding", shape=(elements, size), role="embedding")] if first.embedding else []
        layers += [_first_layer(name, size, inputs, width) for name in ("for_x", "for_y")[: first.tables]]
    layers += [Layer(name="bias/0", shape=(1, width), role="bias", columns="width", inputs=inputs)]
    for k in range(1, first.layers):
        layers += [
            Layer(name=f"hidden/{k}", shape=(width, width), role="weight", rows="width", columns="width"),
            Layer(name=f"bias/{k}", shape=(1, width), role="bias", columns="width"),
        ]
    return [*layers, readout, Layer(name="readout bias", shape=(outputs, 1), role="bias", rows="outputs")]


def _first_layer(name: str, rows: int, inputs: int, width: int) -> Layer:
    return Layer(name=name, shape=(rows, width), role="weight", columns="width", inputs=inputs)


def _transformer_layout(first: GrokkingParams, outputs: int) -> list[Layer]:
    d = first.width
    layers = [Layer(name="tokens", shape=(first.tokens, d), role="embedding")]
    if first.positions == "learned":
        layers += [Layer(name="positions", shape=(first.sequence_length, d), role="embedding")]
    for block in range(first.layers):
        for name in (*_PROJECTIONS, "output"):
            layers += [Layer(name=f"{block}/{name}", shape=(d, d), role="weight", inputs=d)]
            if first.attention_biases:
                layers += [Layer(name=f"{block}/{name} bias", shape=(1, d), role="zero")]
        for name, rows, columns in (("in", d, 4 * d), ("out", 4 * d, d)):
            layers += [
                Layer(name=f"{block}/{name}", shape=(rows, columns), role="weight", inputs=rows),
                Layer(name=f"{block}/{name} bias", shape=(1, columns), role="bias", inputs=rows),
            ]
        if first.layer_norm:
            layers += [layer for k in (1, 2) for layer in _norm_layers(f"{block}/norm {k}", d)]
    if first.final_norm:
        layers += _norm_layers("norm", d)
    return [*layers, Layer(name="readout", shape=(outputs, d), role="weight", rows="outputs", inputs=d)]


def _norm_layers(name: str, d: int) -> list[Layer]:
    return [
        Layer(name=f"{name} {part}", shape=(1, d), role=role) for part, role in (("gain", "one"), ("offset", "zero"))
    ]

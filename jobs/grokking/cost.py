"""What a pack of grokking networks costs, counted from the operations they do. No torch here."""

from __future__ import annotations

import math

from jobs.grokking.digits import SOURCES
from jobs.grokking.params import GrokkingParams
from jobs.job import Cost
from jobs.packed.cost import models_per_block, padded_width


def padded_outputs(elements: int) -> int:
    """Outputs that a network stores: a multiple of 16 where that adds at most an eighth."""
    padded = padded_width(elements)
    return padded if padded * 8 <= elements * 9 else elements


def parameters(params: GrokkingParams, width: int) -> int:
    """Number of parameters of one network of this (padded) width."""
    p, outputs = params.elements, params.outputs
    if params.model == "quadratic_mlp":
        return (2 * p + outputs) * width
    if params.model in ("embedding_mlp", "image_mlp"):
        hidden = (params.layers - 1) * width * (width + 1)
        return first_layer(params, width) + width + hidden + (width + 1) * outputs
    return (p + 1 + 3) * width + params.layers * (12 * width * width + 9 * width) + width * outputs


def first_layer(params: GrokkingParams, width: int) -> int:
    """Parameters of a perceptron's embedding and first layer, without its bias."""
    if params.images:
        return pixels(params) * width
    tables = 1 if params.combine == "sum" else 2
    if not params.embedding:
        return tables * params.elements * width
    return params.elements * params.embedding + tables * params.embedding * width


def pixels(params: GrokkingParams) -> int:
    """Inputs of a network that learns images; 0 for all others."""
    return SOURCES[params.operation].inputs if params.images else 0


def row_macs(params: GrokkingParams, width: int) -> float:
    """Multiply-adds of one pair's forward pass (tables over the elements left out: they are few)."""
    p = padded_outputs(params.outputs)
    if params.model == "quadratic_mlp":
        return width * p
    if params.model in ("embedding_mlp", "image_mlp"):
        return pixels(params) * width + (params.layers - 1) * width * width + width * p
    full = (params.layers - 1) * 3 * (12 * width * width)
    return full + 10 * width * width + width * p


def table_macs(params: GrokkingParams, width: int) -> float:
    """Multiply-adds of one step's tables over the elements, forward (they do not grow with the pairs)."""
    if params.model in ("quadratic_mlp", "image_mlp"):
        return 0.0
    if params.model == "embedding_mlp":
        return (1.0 if params.combine == "sum" else 2.0) * params.elements * params.embedding * width
    return 2.0 * (2 * params.elements + 1) * width * width


def row_elements(params: GrokkingParams, width: int) -> float:
    """Elements one pair's forward and backward pass visits outside of matrix products."""
    p = padded_outputs(params.outputs)
    if params.model == "quadratic_mlp":
        return 14 * width + 6 * p
    if params.model in ("embedding_mlp", "image_mlp"):
        return pixels(params) + 16 * width * params.layers + 12 * p
    return 90 * width * params.layers + 12 * p


def step_bytes(params: GrokkingParams, width: int, rows: int) -> float:
    """Bytes one model touches in a step."""
    perceptron = pixels(params) + 6 * width * params.layers
    live = {"quadratic_mlp": 4 * width, "embedding_mlp": perceptron, "image_mlp": perceptron}.get(
        params.model, 40 * width
    )
    return 4.0 * (5 * parameters(params, width) + rows * (live + 3 * padded_outputs(params.outputs)))


def block_models(params: GrokkingParams, width: int, rows: int, device: str) -> int:
    """How many models train together as one block."""
    return models_per_block(step_bytes(params, width, rows), device)


def vertices(params: GrokkingParams) -> int:
    """Vertices that one report of local complexity sends through the network; 0 where it has none."""
    if params.progress != "complexity":
        return 0
    train = min(params.complexity_points, params.train_pairs)
    test = min(params.complexity_points, params.measured - params.train_pairs)
    return 2 * params.complexity_directions * (train + test)


def pack_cost(params: GrokkingParams, *, extent: tuple[int, ...], models: int, reports: int) -> Cost:
    """The cost of `models` networks padded to `extent` = (width, training pairs), as far as they are paddable."""
    paddable = params.model != "transformer"
    width = padded_width(extent[0]) if paddable else params.width
    full = params.batch == params.train_pairs
    rows = extent[-1] if full else params.batch
    size = parameters(params, width)
    pairs = params.measured
    macs, elements, tables = row_macs(params, width), row_elements(params, width), table_macs(params, width)
    blocks = math.ceil(models / block_models(params, width, rows, "cpu"))
    launches = {"quadratic_mlp": 25, "embedding_mlp": 60, "image_mlp": 50}.get(params.model, 150 * params.layers)
    launches += 24 if params.perp_grad != "none" else 0
    # A report's passes over what it measures: outputs; for progress the gradient (3) and the ablations (2) too.
    passes = {"none": 1, "basic": 4, "fourier": 6, "complexity": 4}[params.progress]
    measured = reports * passes
    corners = reports * vertices(params)
    bent = corners * 6 * width * params.layers
    return Cost(
        launches=blocks * (params.steps * launches + measured * 30 + (reports * 60 if corners else 0)),
        matmul_flop=2.0
        * models
        * (params.steps * 3 * (rows * macs + tables) + measured * (pairs * macs + tables) + corners * macs),
        element_visits=models * (params.steps * (rows * elements + 14 * size) + measured * pairs * elements + bent),
        memory_bytes=models * (step_bytes(params, width, rows) + 40.0 * max(pairs, params.table_size)),
        steps=params.steps,
        reports=reports,
        at_most=params.stop_accuracy > 0,
    )

"""What a pack of grokking networks costs, counted from their operations. No torch here."""

from __future__ import annotations

import math

from jobs.grokking.params import PERCEPTRONS, GrokkingParams
from jobs.job import Cost, log_spaced_steps
from jobs.packed.cost import models_per_block, padded_width


def padded_outputs(outputs: int) -> int:
    """Outputs that a network stores: a multiple of 16 where that adds at most an eighth."""
    padded = padded_width(outputs)
    return padded if padded * 8 <= outputs * 9 else outputs


def parameters(params: GrokkingParams, width: int) -> int:
    """Number of parameters that one network of this (padded) width stores, at most."""
    elements, outputs = params.elements, params.outputs
    if params.model == "quadratic_mlp":
        return (2 * elements + outputs) * width
    if params.model == "transformer":
        tables = params.tokens + (params.sequence_length if params.positions == "learned" else 0)
        block = 12 * width * width + 9 * width + (4 * width if params.attention_biases else 0)
        return (tables + outputs + (2 if params.final_norm else 0)) * width + params.layers * block
    first = params.first_inputs * width
    if params.embedding and not params.images:
        first += elements * params.embedding
    return first + width + (params.layers - 1) * width * (width + 1) + (width + 1) * outputs


def trained_parameters(params: GrokkingParams) -> int:
    """Number of trained parameters of one network, without padding: biases that stay zero do not count."""
    count = parameters(params, params.width)
    if params.model == "transformer" and not params.layer_norm:
        count -= 4 * params.layers * params.width
    if params.model == "transformer" and not params.biases:
        count -= 5 * params.layers * params.width
    if params.model in PERCEPTRONS and not params.biases:
        count -= params.layers * params.width + params.outputs
    return count


def row_macs(params: GrokkingParams, width: int) -> float:
    """Multiply-adds of one pair's forward pass, without the tables over the elements."""
    readout = width * padded_outputs(params.outputs)
    if params.model == "quadratic_mlp":
        return readout
    if params.model == "transformer":
        whole = (params.layers - 1) * 12 * params.sequence_length
        return (whole + 10 * params.read_positions) * width * width + params.read_positions * readout
    return params.pixels * width + (params.layers - 1) * width * width + readout


def table_macs(params: GrokkingParams, width: int) -> float:
    """Multiply-adds of one step's tables over the elements, forward (they do not grow with the pairs)."""
    if params.model == "embedding_mlp":
        return float(params.tables * params.elements * params.embedding * width)
    return 2.0 * params.input_rows * width * width if params.model == "transformer" else 0.0


def row_elements(params: GrokkingParams, width: int) -> float:
    """Elements that one pair's forward and backward pass visits outside of matrix products."""
    outputs = padded_outputs(params.outputs)
    if params.model == "quadratic_mlp":
        return 14 * width + 6 * outputs
    if params.model == "transformer":
        return 30 * params.sequence_length * width * params.layers + 12 * params.read_positions * outputs
    return params.pixels + 16 * width * params.layers + 12 * outputs


def step_bytes(params: GrokkingParams, width: int, rows: int) -> float:
    """Bytes that one model touches in a step."""
    perceptron = params.pixels + 6 * width * params.layers
    transformer = 40 * width * params.sequence_length // 3
    live = {"quadratic_mlp": 4 * width, "transformer": transformer}.get(params.model, perceptron)
    return 4.0 * (5 * parameters(params, width) + rows * (live + 3 * padded_outputs(params.outputs)))


def vertices(params: GrokkingParams) -> int:
    """Vertices that one report of local complexity sends through the network; 0 without local complexity."""
    if params.progress != "complexity":
        return 0
    train = min(params.complexity_points, params.train_pairs)
    test = min(params.complexity_points, params.measured - params.train_pairs)
    return 2 * params.complexity_directions * (train + test)


def _repeated_steps(params: GrokkingParams) -> float:
    """Steps that a model is trained twice: at each level half of a report interval, here the last and longest."""
    schedule = log_spaced_steps(params.steps, params.curve_points, params.curve_until)
    before = schedule[-2] if len(schedule) > 1 else 0
    return params.levels * float(schedule[-1] - before) / 2


def pack_cost(
    params: GrokkingParams, *, extent: tuple[int, ...], models: int, reports: int, memory_bytes: float
) -> Cost:
    """The cost of `models` networks, padded to `extent` = (width, training pairs) where they can be padded."""
    width = params.width if params.model == "transformer" else padded_width(extent[0])
    rows = extent[-1] if params.batch == params.train_pairs else params.batch
    size, pairs, steps = parameters(params, width), params.measured, params.steps
    macs, elements, tables = row_macs(params, width), row_elements(params, width), table_macs(params, width)
    model_bytes = step_bytes(params, width, rows)
    blocks = math.ceil(models / models_per_block(model_bytes, "cpu"))
    launches = {"quadratic_mlp": 25, "embedding_mlp": 60, "image_mlp": 50}.get(params.model, 150 * params.layers)
    launches += 24 if params.perp_grad != "none" else 0
    # Passes of a report over the examples: outputs; for progress also the gradient (3) and the ablations (2).
    measured = reports * {"none": 1, "basic": 4, "fourier": 6, "complexity": 4}[params.progress]
    corners = reports * vertices(params)
    repeated = _repeated_steps(params)
    step_macs, measured_macs = 3 * (rows * macs + tables), measured * (pairs * macs + tables)
    bent = corners * 6 * width * params.layers
    measured_macs += repeated * (pairs * macs + tables)
    of_block = steps * launches + measured * 30 + (reports * 60 if corners else 0)
    searching = models * repeated * (launches + 30)
    return Cost(
        launches=blocks * of_block + searching,
        gpu_launches=of_block + searching,
        matmul_flop=2.0 * models * ((steps + repeated) * step_macs + measured_macs + corners * macs),
        element_visits=models
        * ((steps + repeated) * (rows * elements + 14 * size) + (measured + repeated) * pairs * elements + bent),
        memory_bytes=memory_bytes,
        steps=steps,
        reports=reports,
        at_most=params.stop_accuracy > 0,
    )

"""The peak memory of packs of perceptrons and of convolutional networks. No torch here.

Each term is a tensor of `block.py`, `image_block.py` or of what makes their data: see `jobs.packed.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from jobs.data.images import SOURCES
from jobs.double_descent import networks
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.params import DoubleDescentParams
from jobs.packed import memory
from jobs.packed.cost import evaluation_bytes, layer_sizes, models_per_block, padded_width, parameters, step_bytes
from jobs.packed.memory import NORMAL_BYTES, PERMUTED_BYTES, UNIFORM_BYTES, BlockBytes

MLP_CHUNK_STEPS = 64
"""Steps whose batches are drawn at once: one draw costs dozens of small operations."""
MLP_EVALUATION_BYTES = 1 << 21
"""Activations of perceptrons held at once while measuring: about a core's cache."""
IMAGE_CHUNK_STEPS = 16
"""Steps whose batches are drawn at once."""
EVALUATION_PIXELS = 1 << 18
"""Pixels (of all models) that are measured at once."""
_LABEL_BYTES = 29.0
"""Of one label while it gets its noise: clean and noisy ones, a uniform number and what is drawn in its place."""


def perceptron_bytes(
    params: DoubleDescentParams, schedule: NDArray[np.int64], *, width: int, models: int, device: str
) -> float:
    """Peak bytes of a pack of perceptrons of this width."""
    p = params
    sizes = layer_sizes(p.inputs, padded_width(width), p.depth, p.outputs)
    longest = memory.longest_gap(schedule)
    per_block = models_per_block(step_bytes(sizes, p.batch, p.optimiser), device)
    return memory.pack_bytes(models, per_block, lambda count: _perceptrons(p, sizes, count, longest, device))


def _perceptrons(p: DoubleDescentParams, sizes: tuple[int, ...], models: int, longest: int, device: str) -> BlockBytes:
    steps = min(MLP_CHUNK_STEPS, longest)
    inputs, outputs, batch, widest = p.inputs, p.outputs, p.batch, max(sizes[:-1])
    drawn = p.data not in SOURCES and p.data != "mnist1d"
    own = (drawn and p.data_seed <= 0) or (p.data == "mnist1d" and p.data_seed < 0)
    subset = p.used < p.pool
    sets, label = (models if own else 1), (4.0 if p.data == "gaussian_linear" else 8.0)
    pool = 4.0 * sets * (p.pool + p.test_count) * inputs
    drawing = sets * inputs * max(NORMAL_BYTES * p.pool, 4.0 * p.pool + NORMAL_BYTES * p.test_count) * drawn
    drawing += 8.0 * inputs * p.pool * drawn
    if p.pixels == "random":  # training examples, then test examples while both orders of the former are there
        ordering = max(PERMUTED_BYTES * p.pool, 4.0 * p.pool + PERMUTED_BYTES * p.test_count)
        drawing = max(drawing, pool + inputs * (sets * ordering + 8.0 * max(p.pool, p.test_count)))
    labelling = pool + 8.0 * sets * p.pool + _LABEL_BYTES * models * p.pool * (label == 8)
    if p.data == "gaussian_teacher":
        labelling = max(labelling, pool + 4.0 * sets * p.pool * (32 + outputs))
    data, subsetting = pool + label * (models * p.pool + sets * p.test_count), 0.0
    if subset:
        kept = 4.0 * models * inputs * (2 * p.used + p.test_count)
        subsetting = data + max(PERMUTED_BYTES * models * p.pool, 8.0 * models * p.pool + kept)
        data = models * (p.used + p.test_count) * (4.0 * inputs + label)
    trained = 4.0 * models * parameters(sizes)
    hidden = sum(sizes[1:-1])
    buffers = 4.0 * models * batch * (inputs + 2 * hidden + 2 * outputs + 3)
    held = data + trained * (2 if p.optimiser == "sgd" else 4) + buffers
    largest = max(a * b for a, b in pairwise(sizes))
    drawn_weights = largest * (models * (NORMAL_BYTES + 8 if p.weight_std else UNIFORM_BYTES) + 8)
    initialising = data + trained + drawn_weights
    order = "whole_epochs" if p.last_batch == "smaller" else p.batch_order
    draw = partial(
        memory.drawn_bytes,
        models,
        horizon=p.horizon,
        batch=batch,
        used=p.used,
        order=order,
        weights=order == "whole_epochs",
    )
    peak, rows = draw(steps=steps)
    apart = own or subset
    rounded = models * memory.rounded_bytes(p.matmul_precision, device, *_products(sizes, batch))
    if batch < p.used:
        # Rows, their places in order of the models, and targets; those of a chunk are there while the next is drawn.
        chunk = rows + 16.0 * models * steps * batch
        later = draw(steps=min(steps, longest - steps))[0] if longest > steps else 0.0
        training = max(peak, chunk + max(later, rounded))
    else:
        training = peak + label * models * batch + apart * 8.0 * models * batch * steps + rounded
    room = evaluation_bytes(MLP_EVALUATION_BYTES, device) // (4 * widest)
    layers = [a + b for a, b in pairwise(sizes)][1:] or [outputs]
    unit = 4.0 * (max(*layers, 2 * outputs + 4) + inputs * apart)
    measuring = unit * min(max(room, 64 * models), max(p.used, p.test_count) * models)
    return BlockBytes(
        held=held, setup=max(drawing, labelling, subsetting, initialising, held), work=max(training, measuring)
    )


def _products(sizes: tuple[int, ...], batch: int) -> Iterator[tuple[float, float]]:
    """Numbers of the operands of the products of a model's step."""
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        last = layer == len(sizes) - 2
        yield (fan_in * fan_out, batch * fan_in) if last else (batch * fan_in, fan_in * fan_out)
        yield (batch * fan_out, batch * fan_in) if last else (batch * fan_in, batch * fan_out)
        if layer:
            yield batch * fan_out, fan_in * fan_out


def image_bytes(params: ImageParams, schedule: NDArray[np.int64], *, width: int, models: int, device: str) -> float:
    """Peak bytes of a pack of convolutional networks of this width."""
    p = params
    pixels = p.shape[0] * p.shape[1] * p.shape[2]
    steps = min(IMAGE_CHUNK_STEPS, memory.longest_gap(schedule))
    per_block = networks.models_per_block(p.model, width, device)
    pixel = 4.0 if p.data == "mnist1d" else 1.0
    data = (p.pool_count + p.tested) * (pixel * pixels + 8)
    sets = models if p.data == "mnist1d" and p.data_seed < 0 else 1
    per_block = 1 if sets > 1 else per_block
    return data * sets + memory.pack_bytes(models, per_block, lambda count: _images(p, width, count, steps, pixels))


def _images(p: ImageParams, width: int, models: int, steps: int, pixels: int) -> BlockBytes:
    layers, sides = p.layers, p.shape[1:]
    size, batch, pool = networks.parameters(layers, width), p.batch, p.pool_count
    norms = sum(layer.channels.of(width) for layer in layers if isinstance(layer, networks.Norm))
    framed = pixels * (sides[0] + 8) * (sides[1] + 8) / (sides[0] * sides[1]) if p.augment else 0.0
    held = 8.0 * models * pool * (2 if p.used < pool else 1) + pool * framed
    labelling = _LABEL_BYTES * models * pool
    trained = 4.0 * models * size
    held += trained * (2 if p.optimiser == "sgd" else 4) + 8.0 * models * norms
    peak, rows = memory.drawn_bytes(models, steps=steps, horizon=p.horizon, batch=batch, used=p.used, order="shuffled")
    saved, piece = _activations(p, width)
    # A step has its images; augmented ones are gathered by places of 8 bytes.
    cropping = batch * models * (16.0 * pixels + framed + 2.0 * pixels) if p.augment else 8.0 * batch * models * pixels
    # Where operands are rounded (`matmul_precision`), fewer activations are there than at the peak.
    training = max(cropping, 4.0 * models * batch * (pixels + saved) + trained)
    measured = min(p.train_evaluated or p.used, p.used), p.tested
    place = sides[0] * sides[1]
    chunk = max(16 * models, min(EVALUATION_PIXELS // place, models * max(measured)))
    measuring = 4.0 * chunk * (pixels + piece)
    return BlockBytes(held=held, setup=max(held, labelling), work=max(peak, rows + training, measuring))


def _activations(p: ImageParams, width: int) -> tuple[float, float]:
    """Numbers of one image: those alive at the peak of a step, without the image, and at that of a measurement."""
    sides = p.shape[1:]
    convolutions = [layer for layer in p.layers if isinstance(layer, networks.Conv)]
    out = [layer.out.of(width) * layer.positions(sides) for layer in convolutions]
    if p.model == "cnn_1d":  # outputs of ReLU; then gradients of the last layers, the first being the largest
        return max(sum(out) + 2 * out[-1], 3 * out[0]), 2 * out[0]
    if p.model == "cnn5":
        # Outputs of convolutions and ReLU; pooled ones, with their places in int64; two gradients.
        pooled = 3 * (out[1] / 4 + out[2] / 4 + out[3] / convolutions[3].positions(sides))
        return 2 * sum(out) + pooled + 2 * out[3], max(a + 2 * b for a, b in pairwise(out))
    blocks = [layer for layer in convolutions[1:] if layer.kernel != (1, 1)][0::2]
    own = [layer.out.of(width) * layer.positions(sides) for layer in blocks]
    into = [out[0], *own[:-1]]
    shrunk = sum(a / layer.stride**2 for a, layer in zip(into, blocks, strict=True) if layer.stride > 1)
    return out[0] + 3 * sum(own) + sum(into) + shrunk, 5 * out[0]

"""The peak memory of packs of grokking networks. No torch here.

Each term is a tensor of the blocks (`block.py` and those of the networks), of their progress measures or of their
set-up: see `jobs.packed.memory`. Of a batch, B, a row is one pair of one model.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from jobs.grokking.cost import padded_outputs, parameters, step_bytes
from jobs.grokking.params import GrokkingParams
from jobs.packed import memory
from jobs.packed.cost import evaluation_bytes, models_per_block, padded_width
from jobs.packed.memory import NORMAL_BYTES, PERMUTED_BYTES, UNIFORM_BYTES, BlockBytes, rounded_bytes

CHUNK_STEPS = 32
"""Steps whose batches are drawn at once."""
EVALUATION_BYTES = 1 << 22
"""Activations held at once while measuring on a CPU."""
COMPLEXITY_BYTES = 1 << 22
"""Of one layer at the vertices at which local complexity is measured at once."""


def pack_bytes(
    params: GrokkingParams, schedule: NDArray[np.int64], *, extent: tuple[int, ...], models: int, device: str
) -> float:
    """Peak bytes of a pack of networks padded to `extent`, as in `jobs.grokking.cost.pack_cost`."""
    p = params
    width = p.width if p.model == "transformer" else padded_width(extent[0])
    full = p.batch == p.train_pairs
    pairs = extent[-1] if full else p.train_pairs
    batch = pairs if full else p.batch
    per_block = models_per_block(step_bytes(p, width, batch), device)
    longest = memory.longest_gap(schedule)
    shared = 24.0 * (p.table_size + p.official_tests) + 4.0 * p.pixels * (p.table_size + p.official_tests)
    return shared + memory.pack_bytes(
        models, per_block, lambda count: _Block(p, width, batch, pairs, count, longest, device).bytes()
    )


class _Block:
    """The counts of one block."""

    def __init__(
        self, params: GrokkingParams, width: int, batch: int, pairs: int, models: int, longest: int, device: str
    ) -> None:
        self.p, self.width, self.batch, self.pairs, self.models = params, width, batch, pairs, models
        self.device, self.longest = device, longest
        self.outputs = padded_outputs(params.outputs)
        self.weights = 4.0 * models * parameters(params, width)
        """Bytes of the parameters."""

    def bytes(self) -> BlockBytes:
        """Of the block."""
        p, models = self.p, self.models
        copies = (2 if p.optimiser == "sgd" else 4) + bool(p.grokfast_lambda) + bool(p.embedding_learning_rate) * 2
        examples = 18.0 * models * p.table_size
        batch = (32.0 if self.batch >= self.pairs else 8.0) * models * self.batch
        alone = examples + batch + self._buffers() + copies * self.weights
        # Where levels are looked for, the state at the last report is kept, and a copy of the block is trained again.
        held = alone + copies * self.weights * bool(p.levels)
        searching = alone * bool(p.levels)
        drawing = NORMAL_BYTES if p.init in ("scaled", "nanda") else UNIFORM_BYTES
        setup = examples + self.weights + (models * drawing + 8.0) * self._largest()
        splitting = max(PERMUTED_BYTES, 8.0 + 29.0) * models * p.table_size
        order = "whole_epochs" if p.last_batch == "smaller" else "shuffled"
        steps = min(CHUNK_STEPS, self.longest)
        draw = partial(
            memory.drawn_bytes,
            models,
            horizon=p.steps,
            batch=self.batch,
            used=self.pairs,
            order=order,
            weights=order == "whole_epochs",
        )
        peak, rows = draw(steps=steps)
        if self.longest > steps:  # the rows of a chunk are there while the next is drawn
            peak = max(peak, rows + draw(steps=min(steps, self.longest - steps))[0])
        training = rows + 56.0 * models * self.batch * (rows > 0) + self._step(self.batch, own=True)
        return BlockBytes(
            held=held, setup=max(setup, splitting, held), work=searching + max(peak, training, self._measuring())
        )

    def _largest(self) -> int:
        """Numbers of the largest layer."""
        p, width = self.p, self.width
        if p.model == "quadratic_mlp":
            return max(p.elements, self.outputs) * width
        if p.model == "transformer":
            return max(4 * width, p.tokens, self.outputs) * width
        first = p.pixels or max(p.embedding, 0 if p.embedding else p.elements)
        return max(first * width, width * width * (p.layers > 1), self.outputs * width, p.elements * p.embedding)

    def _buffers(self) -> float:
        p, models = self.p, self.models
        held = 0.0
        if p.model == "quadratic_mlp":
            held += models * self.batch * (4.0 * self.width + 4.0 * self.outputs + 4.0)
            held += (24.0 * models * self.batch + 32.0 * models * p.elements) * (self.batch >= self.pairs)
        if p.pixels and self.batch >= self.pairs:
            held += 4.0 * models * self.batch * p.pixels
        if p.progress == "complexity":
            held += models * (4.0 * p.complexity_directions * p.first_inputs + 18.0 * p.complexity_points)
        return held

    def _loss(self) -> float:
        """Bytes of one row's loss at its peak, beyond the outputs."""
        number = 8.0 if self.p.loss_precision == 64 else 4.0
        copies = {"squared": 1, "cross_entropy": 1, "stablemax": 3}[self.p.loss]
        return self.p.read_positions * self.p.outputs * (number * copies + (8.0 if number == 8 else 0.0))

    def _step(self, rows: float, *, own: bool) -> float:
        """Bytes of forward and backward pass of these rows of each model.

        `own`: of a training step, which the quadratic perceptron computes without autograd in buffers that it holds.
        """
        p, models, width = self.p, self.models, self.width
        out = 4.0 * self.outputs * p.read_positions
        rounded = models * rounded_bytes(p.matmul_precision, self.device, *self._products(rows)) if own else 0.0
        if p.model == "quadratic_mlp":
            if own:
                gradient = 8.0 * models * p.elements * width
                return models * rows * 4.0 * width + max(gradient, models * rows * (self._loss() - out), rounded)
            return models * rows * (5 * 4.0 * width + out) + 2 * self.weights
        if p.model == "transformer":
            return max(models * rows * (4.0 * width * self._transformer_step() + 2 * out) + rounded, 2 * self.weights)
        layers = p.layers + (p.layers if p.activation == "gelu" else 0)
        live = max(p.layers + layers, layers + 2) * 4.0 * width
        tables = 4.0 * models * p.tables * p.elements * width * (p.embedding > 0 and not p.pixels)
        pixels = 0.0 if own and self.batch >= self.pairs else 4.0 * p.pixels
        backward = models * rows * (layers * 4.0 * width + 2 * out + self._loss())
        return max(models * rows * (live + out + pixels), backward) + 2 * tables + rounded

    def _products(self, rows: float) -> Iterator[tuple[float, float]]:
        """Numbers of the operands of the largest products of a model's step on these rows."""
        p, width, outputs = self.p, self.width, self.outputs
        read = rows * p.read_positions
        yield outputs * width, read * width
        yield read * outputs, read * width
        if p.model == "transformer":
            whole = read if p.layers == 1 else rows * p.sequence_length
            yield whole * 4 * width, 4 * width * width
            yield whole * 4 * width, whole * width
        elif p.model != "quadratic_mlp":
            if p.layers > 1:
                yield rows * width, width * width
                yield rows * width, rows * width
            first, inputs = (rows, p.pixels) if p.pixels else (p.elements, p.embedding)
            yield first * inputs, inputs * width
            yield first * inputs, first * width

    def _transformer_step(self) -> float:
        """Numbers of one row, in units of the width, that are alive at the peak of a step."""
        positions, read = self.p.sequence_length, self.p.read_positions
        full = (self.p.layers - 1) * positions
        return 11.5 * full + 2.0 * positions + 16.4 * read + 3.6 * self.p.layer_norm * (full + read)

    def _outputs(self) -> float:
        """Bytes of one row's activations at the peak of a forward pass."""
        p, width = self.p, self.width
        out = 4.0 * self.outputs * p.read_positions
        if p.model == "quadratic_mlp":
            return max(4.0 * width + out, out + self._loss())
        if p.model == "transformer":
            positions, read = p.sequence_length, p.read_positions
            whole = p.layers > 1 or read > 1
            return 4.0 * width * (14 * positions if whole else 2 * positions + 11 * read)
        return max(4.0 * width * max(3.0, p.layers + 1.0) + 4.0 * p.pixels, 4.0 * width + out + self._loss())

    def _measuring(self) -> float:
        p, models = self.p, self.models
        rows, size = self._measured_rows()
        outputs = 4.0 * self.outputs * p.read_positions
        # The outputs of a piece are there while the next is computed.
        most = models * max(rows * self._outputs(), rows * outputs + max(0.0, min(rows, size - rows)) * self._outputs())
        if p.progress != "none":
            most = max(most, self._step(rows, own=False) + self.weights)
        if p.progress == "fourier":
            most = max(most, 4.0 * models * p.modulus * p.outputs * 4 + models * rows * self._outputs())
        if p.progress == "complexity":
            corners = 8.0 * p.complexity_directions * p.complexity_points * self.width * models
            layer = max(min(COMPLEXITY_BYTES, corners), 8.0 * p.complexity_directions * self.width * models)
            most = max(most, (4.25 if p.layers > 1 else 2.25) * layer + 4.0 * models * p.first_inputs * self.width)
        return most

    def _measured_rows(self) -> tuple[float, int]:
        """Examples of each model that are measured at once, and all of them."""
        p = self.p
        row = {
            "quadratic_mlp": 4.0 * (2 * self.width + 3 * self.outputs),
            "transformer": 16.0 * p.sequence_length * self.width,
        }.get(p.model, 16.0 * max(self.width, p.embedding))
        size = self.pairs + p.official_tests if p.official_tests else p.table_size
        return max(32.0, min(size, evaluation_bytes(EVALUATION_BYTES, self.device) // (row * self.models))), size

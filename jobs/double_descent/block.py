"""Multilayer perceptrons, many as one: forward and backward written out, no autograd.

Layers of width h are padded with zeros to a common width. A padded unit has zero weights in and out, so its activation
and every gradient that touches it are exactly zero under any optimiser here: padding changes no model.

The readout is stored as (outputs, width) and its outputs as (outputs, examples): products with ten columns, and a
softmax over ten neighbours in memory, cost several times those over ten rows.

Shape suffixes: M models, K steps, B batch, N training examples, T test examples, R examples measured at once, D inputs,
H padded width, O outputs, S data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import torch
from torch import Tensor

from jobs.double_descent import fused
from jobs.double_descent.memory import MLP_CHUNK_STEPS, MLP_EVALUATION_BYTES
from jobs.double_descent.params import DoubleDescentParams
from jobs.packed import random
from jobs.packed.batches import Batches
from jobs.packed.block import Block
from jobs.packed.capture import Step
from jobs.packed.cost import evaluation_bytes, layer_sizes, padded_width
from jobs.packed.loop import predicted
from jobs.packed.optim import FlatParameters, OptimiserSettings, make_optimiser
from jobs.state import TrialState


@dataclass(frozen=True, kw_only=True)
class PackData:
    """The examples of M models: inputs from S data sets, and targets of their own (the noise differs)."""

    x_SND: Tensor
    y_MN: Tensor
    """Training targets: int64 classes, or floats for regression."""
    xt_STD: Tensor
    yt_ST: Tensor
    """Test targets, without label noise."""
    source_M: Tensor
    """Which data set each model has."""

    def keep(self, index: Tensor) -> PackData:
        """The data of these models only."""
        index = index.to(self.y_MN.device)
        return replace(self, y_MN=self.y_MN[index], source_M=self.source_M[index])


class MLPBlock(Block):
    """M perceptrons of the same depth, trained by minibatches.

    The loss "cross_entropy" is the mean of -log softmax at the label; "squared" is the mean over examples of half the
    squared distance to the one-hot label (or to the target, for regression); "class_mean_squared" is the mean squared
    difference over examples and classes.
    """

    def __init__(self, data: PackData, params: Sequence[DoubleDescentParams], seeds: Sequence[int]) -> None:
        first = params[0]
        self.data, self._loss = data, first.loss
        self._squared_weight = 0.5 if first.loss == "squared" else 1.0 / first.outputs
        self._fp32 = first.matmul_precision == "fp32"
        self._rate_decay, self._decay_steps = first.rate_decay, first.decay_steps
        self._regression = data.y_MN.dtype != torch.int64
        self._device = data.x_SND.device
        used, batch_sizes = [p.used for p in params], [p.batch for p in params]
        order = "whole_epochs" if first.last_batch == "smaller" else first.batch_order
        self.batches = Batches(seeds, used, batch_sizes, order, self._device)
        sizes = layer_sizes(first.inputs, padded_width(max(p.width for p in params)), first.depth, first.outputs)
        hidden = ([(fan_in, fan_out), (1, fan_out)] for fan_in, fan_out in pairwise(sizes[:-1]))
        shapes = [*chain.from_iterable(hidden), (sizes[-1], sizes[-2]), (sizes[-1], 1)]
        self._parameters = FlatParameters(shapes, len(params), self._device)
        self._initialise(params, seeds)
        self._optimiser = make_optimiser(OptimiserSettings.of(params), self._parameters)
        self._allocate()

    def _initialise(self, params: Sequence[DoubleDescentParams], seeds: Sequence[int]) -> None:
        """PyTorch's default for linear layers: uniform in +-1/sqrt(fan in), times the model's scale.

        The weights of a model with a standard deviation of its own are normal.
        """
        scale = torch.tensor([p.init_scale for p in params], device=self._device)
        width_M = torch.tensor([p.width for p in params], device=self._device)
        std_M11 = torch.tensor([p.weight_std * p.init_scale for p in params], device=self._device)[:, None, None]
        any_normal = any(p.weight_std for p in params)
        depth = params[0].depth
        for layer in range(depth + 1):
            in_M = width_M if layer else torch.full_like(width_M, params[0].inputs)
            out_M = width_M if layer < depth else torch.full_like(width_M, params[0].outputs)
            bound_M11 = (scale / in_M.float().sqrt())[:, None, None]
            for kind, view in zip(("weight", "bias"), self._parameters.views()[2 * layer : 2 * layer + 2], strict=True):
                view = view.transpose(1, 2) if layer == depth else view
                rows = torch.arange(view.shape[1], device=self._device)
                columns = torch.arange(view.shape[2], device=self._device)
                keys = random.stream_keys(seeds, f"init/{kind}/{layer}", self._device)
                # The counter is the entry's place without padding, so padding does not change the draw.
                counter = (rows[:, None] * (1 << 24) + columns).unsqueeze(0)
                drawn = (2 * random.uniform(keys, counter) - 1) * bound_M11
                if any_normal and kind == "weight":
                    drawn = torch.where(std_M11 > 0, random.normal(keys, counter) * std_M11, drawn)
                real = columns < out_M[:, None, None]
                if kind == "weight":
                    real = real & (rows[:, None] < in_M[:, None, None])
                view.copy_(torch.where(real, drawn, 0.0))

    def _allocate(self) -> None:
        """Make buffers and views for the current number of models."""
        models, batch = self._parameters.models, self.batches.width
        views, grads = self._parameters.views(), self._optimiser.gradient.views()
        self._weights, self._biases = views[0::2], views[1::2]
        self._weight_grads, self._bias_grads = grads[0::2], grads[1::2]

        def empty(*shape: int) -> Tensor:
            return torch.empty(models, *shape, device=self._device)

        self._x_MBD = empty(batch, self.data.x_SND.shape[2])
        widths = [w.shape[2] for w in self._weights[:-1]]
        outputs = self._weights[-1].shape[1]
        self._activations = [empty(batch, width) for width in widths]
        self._deltas = [empty(batch, width) for width in widths]
        self._output_MOB, self._output_delta_MOB = empty(outputs, batch), empty(outputs, batch)
        self._ones_M1B = torch.ones(models, 1, batch, device=self._device)
        self._minus_one = torch.full((models, 1, batch), -1.0, device=self._device)
        self._delta_scale = self._scaled(self.batches.weights[:, None, : 1 if self.batches.uniform_weights else None])
        sets, examples = self.data.x_SND.shape[:2]
        self._row_offset = (self.data.source_M * examples)[:, None] if sets > 1 else None
        self._x_flat = self.data.x_SND.flatten(0, 1)
        self._step = Step(self._train_step, self._device)
        used = self._fp32 and fused.used_for(self._weights, self._optimiser, batch)
        self.fused = self._fused_trainer() if used else None

    def _fused_trainer(self) -> fused.Trainer:
        """Trains these models as `advance` does, many steps at once."""
        data = self.data
        return fused.Trainer(self._weights, self._optimiser, data.x_SND, data.y_MN, data.source_M, loss=self._loss)

    def _scaled(self, weight: Tensor) -> Tensor:
        """Weights (..., M, 1, B) of examples in the mean loss, as factors of the loss's gradient."""
        scale = self._optimiser.gradient_scale
        if self._loss != "cross_entropy" and self._squared_weight != 0.5:
            weight = weight * (2 * self._squared_weight)
        return weight if scale is None else weight * scale[:, None, None]

    def keep(self, index: Tensor) -> None:
        self.batches.keep(index)
        self.data = self.data.keep(index)
        self._parameters.keep(index)
        self._optimiser.keep(index)
        self._allocate()

    def save(self) -> Mapping[str, Tensor]:
        return self._optimiser.save()

    def load(self, states: Sequence[TrialState]) -> None:
        self._optimiser.load(states)
        self._allocate()

    @torch.no_grad()
    def advance(self, step: int, count: int) -> None:
        while count:
            steps = min(count, MLP_CHUNK_STEPS)
            train: Callable[..., None] = self._step
            if self._decay_steps and step:
                steps = min(steps, self._decay_steps - step % self._decay_steps)
                if self._decay(step // self._decay_steps):
                    # This step rescales the momentum too: it is not the one that is repeated.
                    steps, train = 1, self._train_step
            rows_KMB = self.batches.draw(step, steps)
            weights_KMB = self.batches.step_weights(step, steps)
            scales_KM1B = None if weights_KMB is None else self._scaled(weights_KMB[:, :, None])
            step += steps
            count -= steps
            if self.fused is not None:
                self.fused.train(rows_KMB, self._delta_scale if scales_KM1B is None else scales_KM1B)
                continue
            models = rows_KMB.shape[1]
            if steps == 1 or self.batches.full:
                targets_KMB = self.data.y_MN.gather(1, rows_KMB[0]).expand(steps, -1, -1)
            else:
                flat = rows_KMB.transpose(0, 1).reshape(models, -1)
                targets_KMB = self.data.y_MN.gather(1, flat).view(models, steps, -1).transpose(0, 1).contiguous()
            if self._row_offset is not None:
                rows_KMB = rows_KMB + self._row_offset
            if self.batches.full:
                self._gather(rows_KMB[0])
            for k in range(steps):
                if self.batches.full:
                    train(targets_KMB[k])
                elif scales_KM1B is None:
                    train(targets_KMB[k], rows_KMB[k])
                else:
                    train(targets_KMB[k], rows_KMB[k], scales_KM1B[k])

    def _decay(self, times: int) -> bool:
        """Set the learning rate after this number of decays; returns whether it has changed."""
        optimiser = self._optimiser
        before = optimiser.rate
        optimiser.set_rate(self._rate_decay**times)
        if optimiser.rate == before:
            return False
        self._allocate()
        return True

    def _gather(self, rows_MB: Tensor) -> None:
        torch.index_select(self._x_flat, 0, rows_MB.reshape(-1), out=self._x_MBD.flatten(0, 1))

    def _train_step(self, target_MB: Tensor, rows_MB: Tensor | None = None, scale_M1B: Tensor | None = None) -> None:
        """One step on these rows of the data; on those gathered before where there are none.

        `scale_M1B` are the examples' factors of the gradient where they change from step to step.
        """
        if rows_MB is not None:
            self._gather(rows_MB)
        activations, deltas = self._activations, self._deltas
        value = self._x_MBD
        for layer, activation in enumerate(activations):
            value = torch.baddbmm(self._biases[layer], value, self._weights[layer], out=activation)
            value.relu_()
        readout, output = self._weights[-1], self._output_MOB
        torch.baddbmm(self._biases[-1], readout, value.transpose(1, 2), out=output)
        delta_MOB = self._output_delta_MOB
        self._loss_gradient(output, target_MB, delta_MOB)
        delta_MOB.mul_(self._delta_scale if scale_M1B is None else scale_M1B)
        beta = self._optimiser.accumulate
        depth = len(activations)
        if depth:
            torch.bmm(delta_MOB.transpose(1, 2), readout, out=deltas[-1])
        _accumulate(self._weight_grads[-1], delta_MOB, value, beta)
        _accumulate(self._bias_grads[-1], delta_MOB, self._ones_M1B.transpose(1, 2), beta)
        for layer in range(depth - 1, -1, -1):
            below = activations[layer - 1] if layer else self._x_MBD
            delta = deltas[layer]
            torch.ops.aten.threshold_backward.grad_input(delta, activations[layer], 0, grad_input=delta)
            if layer:
                torch.bmm(delta, self._weights[layer].transpose(1, 2), out=deltas[layer - 1])
            _accumulate(self._weight_grads[layer], below.transpose(1, 2), delta, beta)
            _accumulate(self._bias_grads[layer], self._ones_M1B, delta, beta)
        self._optimiser.update()

    def _loss_gradient(self, output_MOB: Tensor, target_MB: Tensor, out: Tensor) -> None:
        """d(loss)/d(output) of each example."""
        if self._loss == "cross_entropy":
            torch.softmax(output_MOB, 1, out=out)
        else:
            out.copy_(output_MOB)
        if self._regression:
            out.sub_(target_MB[:, None, :])
        else:
            out.scatter_add_(1, target_MB[:, None, :], self._minus_one)

    @torch.no_grad()
    def measure(self) -> Mapping[str, Tensor]:
        """train_loss, train_error (with the noisy labels of the training), test_loss, test_error (clean labels).

        An error is the fraction of wrong classes; for regression, the mean squared difference.
        """
        data = self.data
        examples = self.batches.most
        ragged = self.batches.fewest < examples
        train = self._evaluate(data.x_SND[:, :examples], data.y_MN[:, :examples], self.batches.counts, ragged=ragged)
        tests = torch.full_like(self.batches.counts, data.xt_STD.shape[1])
        test = self._evaluate(data.xt_STD, data.yt_ST[data.source_M], tests)
        return {"train_loss": train[0], "train_error": train[1], "test_loss": test[0], "test_error": test[1]}

    def _evaluate(
        self, x_SND: Tensor, y_MN: Tensor, counts_M: Tensor, *, ragged: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(M,) mean loss and error over the first examples of each model; `ragged`: not all of some models."""
        models, examples = len(y_MN), x_SND.shape[1]
        widest = max([x_SND.shape[2], *(w.shape[2] for w in self._weights)])
        rows = max(
            64, min(examples, evaluation_bytes(MLP_EVALUATION_BYTES, self._device.type) // (4 * widest * models))
        )
        loss = torch.zeros(models, dtype=torch.float64, device=self._device)
        error = torch.zeros_like(loss)
        for start in range(0, examples, rows):
            x = x_SND[:, start : start + rows]
            x = x.expand(models, -1, -1) if len(x) == 1 else x[self.data.source_M]
            y = y_MN[:, start : start + rows]
            loss_MR, error_MR = self._row_losses(self._outputs(x), y)
            if ragged:
                held = torch.arange(start, start + y.shape[1], device=self._device) < counts_M[:, None]
                loss_MR, error_MR = torch.where(held, loss_MR, 0.0), torch.where(held, error_MR, 0.0)
            loss += loss_MR.sum(1, dtype=torch.float64)
            error += error_MR.sum(1, dtype=torch.float64)
        return loss / counts_M, error / counts_M

    def _outputs(self, x: Tensor) -> Tensor:
        """(M, O, R) outputs for inputs (M, R, D)."""
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            x = torch.baddbmm(bias, x, weight).relu_()
        return torch.baddbmm(self._biases[-1], self._weights[-1], x.transpose(1, 2))

    def _row_losses(self, output_MOR: Tensor, y_MR: Tensor) -> tuple[Tensor, Tensor]:
        if self._regression:
            squared = (output_MOR[:, 0] - y_MR).square_()
            return squared * self._squared_weight, squared
        wrong = (predicted(output_MOR) != y_MR).to(torch.float32)
        if self._loss == "cross_entropy":
            output_MOR = torch.log_softmax(output_MOR, 1)
        at_label = output_MOR.gather(1, y_MR[:, None, :]).squeeze(1)
        if self._loss == "cross_entropy":
            return -at_label, wrong
        return (output_MOR.square().sum(1) - 2 * at_label + 1) * self._squared_weight, wrong


def _accumulate(gradient: Tensor, left: Tensor, right: Tensor, beta: float) -> None:
    """The gradient becomes beta * gradient + left @ right."""
    if beta:
        torch.baddbmm(gradient, left, right, beta=beta, out=gradient)
    else:
        torch.bmm(left, right, out=gradient)

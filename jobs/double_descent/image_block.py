"""Training of M convolutional networks by minibatches, each with its own images, labels and augmentation.

Shape suffixes: M models, B images of a batch, N training images, C channels, H and W pixels, O outputs, T test images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from jobs.double_descent.convolution import (
    Applier,
    Running,
    alignment,
    by_layer,
    initialise,
    make_network,
    shapes,
)
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.memory import EVALUATION_PIXELS, IMAGE_CHUNK_STEPS
from jobs.packed import random
from jobs.packed.batches import Batches
from jobs.packed.block import Block
from jobs.packed.capture import Step
from jobs.packed.optim import FlatParameters, OptimiserSettings, make_optimiser
from jobs.packed.state import fill
from jobs.state import TrialState

CROP_PADDING = 4
"""Black pixels added on each side of an image before a crop of the original size (Nakkiran et al. 2019)."""


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """The images that all models share, and the labels of each model."""

    x_NCHW: Tensor
    """uint8, to be normalised by `mean_C` and `std_C`; or float, used unchanged."""
    y_MN: Tensor
    """(M, N) int64 labels, noise included."""
    rows_MN: Tensor | None
    """(M, N) the images of each model, of which it uses the first; None: all, in the order of the data."""
    x_TCHW: Tensor
    y_T: Tensor
    mean_C: Tensor
    """Per channel, in units of the largest value, 255; as `std_C`."""
    std_C: Tensor

    def keep(self, index: Tensor) -> ImageData:
        """The data of these models only."""
        index = index.to(self.y_MN.device)
        rows = None if self.rows_MN is None else self.rows_MN[index]
        return replace(self, y_MN=self.y_MN[index], rows_MN=rows)


class ImageBlock(Block):
    """M networks of one family."""

    def __init__(self, data: ImageData, params: Sequence[ImageParams], seeds: Sequence[int]) -> None:
        self.data, self._device = data, data.x_NCHW.device
        self._params = first = params[0]
        self._network = make_network(first.model, inputs=first.shape[0], outputs=first.classes)
        widths = [p.width for p in params]
        self._parameters = FlatParameters(
            shapes(self._network, max(widths)), len(params), self._device, alignment(self._device)
        )
        initialise(self._network, self._parameters, widths, seeds, torch.tensor([p.init_scale for p in params]))
        self._running = Running(self._network, max(widths), len(params), self._device)
        self._optimiser = make_optimiser(OptimiserSettings.of(params), self._parameters)
        used, batch_sizes = [p.used for p in params], [p.batch for p in params]
        self.batches = Batches(seeds, used, batch_sizes, "shuffled", self._device)
        self._crop_keys = random.stream_keys(seeds, "augmentation", self._device)
        self._padded = functional.pad(data.x_NCHW, (CROP_PADDING,) * 4) if first.augment else None
        self._step = Step(self._train_step, self._device)

    def keep(self, index: Tensor) -> None:
        self.batches.keep(index)
        self.data = self.data.keep(index)
        self._parameters.keep(index)
        self._running.keep(index)
        self._optimiser.keep(index)
        self._crop_keys = self._crop_keys[index.to(self._device)]
        self._step = Step(self._train_step, self._device)

    def save(self) -> Mapping[str, Tensor]:
        return {**self._optimiser.save(), **self._running.named()}

    def load(self, states: Sequence[TrialState]) -> None:
        self._optimiser.load(states)
        # No model reads what it has of padded channels, which is not zero.
        fill(self._running.named(), states, zero_padded=False)

    def advance(self, step: int, count: int) -> None:
        while count:
            steps = min(count, IMAGE_CHUNK_STEPS)
            for k, rows_MB in enumerate(self.batches.draw(step, steps)):
                self._set_rate(step + k)
                rows_MB = self._own(rows_MB)
                self._step(self._images(rows_MB, step + k), self.data.y_MN.gather(1, rows_MB))
            step += steps
            count -= steps

    def _set_rate(self, step: int) -> None:
        before = self._optimiser.rate
        if self._params.rate_every:
            self._optimiser.set_rate(1.0 / math.sqrt(1 + step // self._params.rate_every))
        if self._optimiser.rate != before:
            # A captured step holds the rate, and the first step at a rate rescales the velocity.
            self._step = Step(self._train_step, self._device)

    def _own(self, rows_MB: Tensor) -> Tensor:
        """Rows of the data set from rows of each model's subset."""
        return rows_MB if self.data.rows_MN is None else self.data.rows_MN.gather(1, rows_MB)

    @torch.no_grad()
    def _images(self, rows_MB: Tensor, step: int | None) -> Tensor:
        """(B, M * C, H, W) float images, augmented for this step (None: not augmented)."""
        models, batch = rows_MB.shape
        if step is None or self._padded is None:
            x = self.data.x_NCHW.index_select(0, rows_MB.reshape(-1))
        else:
            x = self._crops(self._padded.index_select(0, rows_MB.reshape(-1)), models, batch, step)
        x = self._normal(x).view(models, batch, *x.shape[1:]).transpose(0, 1)
        return x.flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def _crops(self, padded: Tensor, models: int, batch: int, step: int) -> Tensor:
        """A random crop of each image (M * B, C, H + 2P, W + 2P), flipped with probability 1/2."""
        counter = torch.arange(batch, device=self._device) + (step << 24)
        drawn = random.bits(self._crop_keys, counter).view(-1)
        span = 2 * CROP_PADDING + 1
        down, right = (((drawn >> shift) & 0xFFFF) * span >> 16 for shift in (40, 20))
        flip = (drawn >> 10) & 1
        height, width = (size - 2 * CROP_PADDING for size in padded.shape[2:])
        row = torch.arange(height, device=self._device) + down[:, None]
        column = torch.arange(width, device=self._device).expand(models * batch, -1)
        column = torch.where(flip[:, None] > 0, width - 1 - column, column) + right[:, None]
        place = (row[:, :, None] * padded.shape[3] + column[:, None, :]).flatten(1)
        flat = padded.flatten(2).gather(2, place[:, None].expand(-1, padded.shape[1], -1))
        return flat.view(*padded.shape[:2], height, width)

    def _normal(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            return x
        scale, shift = 1 / (255 * self.data.std_C), self.data.mean_C / self.data.std_C
        return x.float().mul_(scale[:, None, None]).sub_(shift[:, None, None])

    def _train_step(self, x: Tensor, label_MB: Tensor) -> None:
        flat = self._parameters.flat
        flat.requires_grad_(True)
        outputs_MBO = self._forward(x, training=True)
        loss = functional.cross_entropy(outputs_MBO.flatten(0, 1), label_MB.flatten(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss / label_MB.shape[1], flat)
        flat.requires_grad_(False)
        optimiser = self._optimiser
        with torch.no_grad():
            scale = optimiser.flat_scale()
            if scale is not None:
                gradient *= scale
            if optimiser.accumulate:
                optimiser.gradient.flat.mul_(optimiser.accumulate).add_(gradient)
            else:
                optimiser.gradient.flat.copy_(gradient)
            optimiser.update()

    def _forward(self, x: Tensor, *, training: bool) -> Tensor:
        """(M, B, O)"""
        layers = by_layer(self._network, self._parameters.views())
        apply = Applier(self._network.layers, layers, self._running.pairs(), training=training)
        return self._network.forward(apply, x)

    @torch.no_grad()
    def measure(self) -> Mapping[str, Tensor]:
        """train_loss, train_error (noisy labels, no augmentation), test_loss, test_error (clean labels)."""
        data = self.data
        models = len(data.y_MN)
        counts = self.batches.counts
        if self._params.train_evaluated:
            counts = counts.clamp(max=self._params.train_evaluated)
        pixels = data.x_NCHW.shape[2] * data.x_NCHW.shape[3] * models
        chunk = max(16, EVALUATION_PIXELS // pixels)
        train, test = torch.zeros(2, 2, models, dtype=torch.float64, device=self._device)
        longest = min(self.batches.most, self._params.train_evaluated or self.batches.most)
        for start in range(0, longest, chunk):
            column = torch.arange(start, min(start + chunk, longest), device=self._device)
            held = column < counts[:, None]
            rows = self._own(torch.minimum(column, counts[:, None] - 1))
            self._add(train, self._images(rows, None), data.y_MN.gather(1, rows), held)
        for start in range(0, len(data.y_T), chunk):
            x = self._normal(data.x_TCHW[start : start + chunk])
            y = data.y_T[start : start + chunk].expand(models, -1)
            x = x.repeat(1, models, 1, 1).contiguous(memory_format=torch.channels_last)
            self._add(test, x, y, torch.ones_like(y, dtype=torch.bool))
        (train_loss, train_error), (test_loss, test_error) = train / counts, test / len(data.y_T)
        return {
            "train_loss": train_loss,
            "train_error": train_error,
            "test_loss": test_loss,
            "test_error": test_error,
        }

    def _add(self, sums_2M: Tensor, x: Tensor, label_MB: Tensor, held_MB: Tensor) -> None:
        """Add the losses and errors of these images to the sums, losses first."""
        outputs_MBO = self._forward(x, training=False)
        loss = functional.cross_entropy(outputs_MBO.transpose(1, 2), label_MB, reduction="none")
        wrong = outputs_MBO.argmax(2) != label_MB
        sums_2M[0].add_(torch.where(held_MB, loss, 0.0).sum(1, dtype=torch.float64))
        sums_2M[1].add_((wrong & held_MB).sum(1, dtype=torch.float64))

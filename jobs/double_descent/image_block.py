"""Training of M convolutional networks by minibatches, each on its own images, labels and augmentation.

Shape suffixes: M models, B images of a batch, N training images, C channels, H and W pixels, O outputs, T test images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from jobs.double_descent.convolution import Applier, Network, Running, by_layer, initialise, shapes
from jobs.packed import random
from jobs.packed.batches import Batches
from jobs.packed.loop import Block
from jobs.packed.optim import FlatParameters, OptimiserSettings, make_optimiser

CROP_PADDING = 4
"""Black pixels around an image, of which a crop of the original size is taken (Nakkiran et al. 2019)."""
_CHUNK_STEPS = 16
"""Steps whose batches are drawn at once."""
_EVALUATION_PIXELS = 1 << 18
"""Pixels (of all models) that are measured at once."""


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """The images of all models, which they share, and the labels of each."""

    x_NCHW: Tensor
    """uint8, to be normalised by `mean` and `std`; or float, used as it is."""
    y_MN: Tensor
    """(M, N) int64 labels, noise included."""
    rows_MN: Tensor | None
    """(M, N') the images each model uses, in its own order; None: all, in the order of the data."""
    x_TCHW: Tensor
    y_T: Tensor
    mean_C: Tensor
    """In units of the largest value, 255."""
    std_C: Tensor

    def keep(self, index: Tensor) -> ImageData:
        """The data of these models only."""
        index = index.to(self.y_MN.device)
        return ImageData(
            x_NCHW=self.x_NCHW,
            y_MN=self.y_MN[index],
            x_TCHW=self.x_TCHW,
            y_T=self.y_T,
            rows_MN=None if self.rows_MN is None else self.rows_MN[index],
            mean_C=self.mean_C,
            std_C=self.std_C,
        )


class ImageBlock(Block):
    """M networks of one family.

    Args:
        rate_every: steps after which the learning rate follows 1 / sqrt(1 + step // rate_every); 0: constant.
        augment: random crops of the padded image and horizontal flips, drawn from each model's own key.
        train_evaluated: training images that are measured (the first of each model's own); 0: all.
    """

    def __init__(
        self,
        *,
        network: Network,
        data: ImageData,
        widths: Sequence[int],
        batches: Batches,
        seeds: Sequence[int],
        init_scale: Tensor,
        optimiser: OptimiserSettings,
        rate_every: int,
        augment: bool,
        train_evaluated: int,
    ) -> None:
        self.data, self.batches, self._network = data, batches, network
        self._device = data.x_NCHW.device
        width = max(widths)
        self._parameters = FlatParameters(shapes(network, width), len(widths), self._device)
        initialise(network, self._parameters, widths, seeds, init_scale)
        self._running = Running(network, width, len(widths), self._device)
        self._optimiser = make_optimiser(optimiser, self._parameters)
        self._rate_every, self._train_evaluated = rate_every, train_evaluated
        self._crop_keys = random.stream_keys(seeds, "augmentation", self._device)
        self._padded = functional.pad(data.x_NCHW, (CROP_PADDING,) * 4) if augment else None

    def keep(self, index: Tensor) -> None:
        self.batches.keep(index)
        self.data = self.data.keep(index)
        self._parameters.keep(index)
        self._running.keep(index)
        self._optimiser.keep(index)
        self._crop_keys = self._crop_keys[index.to(self._device)]

    def advance(self, step: int, count: int) -> None:
        while count:
            steps = min(count, _CHUNK_STEPS)
            for k, rows_MB in enumerate(self.batches.draw(step, steps)):
                if self._rate_every:
                    self._optimiser.set_rate(1.0 / math.sqrt(1 + (step + k) // self._rate_every))
                rows_MB = self._own(rows_MB)
                self._train_step(self._images(rows_MB, step + k), self.data.y_MN.gather(1, rows_MB))
            step += steps
            count -= steps

    def _own(self, rows_MB: Tensor) -> Tensor:
        """Rows of the data set from rows of each model's own subset."""
        return rows_MB if self.data.rows_MN is None else self.data.rows_MN.gather(1, rows_MB)

    @torch.no_grad()
    def _images(self, rows_MB: Tensor, step: int | None) -> Tensor:
        """(B, M * C, H, W) float images; augmented for this step, or not at all."""
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
            if optimiser.gradient_scale is not None:
                gradient *= self._parameters.spread(optimiser.gradient_scale)
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
        """train_loss, train_error (noisy labels, images not augmented), test_loss, test_error (clean labels)."""
        data = self.data
        models = len(data.y_MN)
        counts = self.batches.counts.clamp(max=self._train_evaluated) if self._train_evaluated else self.batches.counts
        pixels = data.x_NCHW.shape[2] * data.x_NCHW.shape[3] * models
        chunk = max(16, _EVALUATION_PIXELS // pixels)
        train = self._zeros(models)
        longest = int(counts.max())
        for start in range(0, longest, chunk):
            column = torch.arange(start, min(start + chunk, longest), device=self._device)
            held = column < counts[:, None]
            rows = self._own(torch.minimum(column, counts[:, None] - 1))
            self._add(train, self._images(rows, None), data.y_MN.gather(1, rows), held)
        test = self._zeros(models)
        for start in range(0, len(data.y_T), chunk):
            x = self._normal(data.x_TCHW[start : start + chunk])
            y = data.y_T[start : start + chunk].expand(models, -1)
            x = x.repeat(1, models, 1, 1).contiguous(memory_format=torch.channels_last)
            self._add(test, x, y, torch.ones_like(y, dtype=torch.bool))
        return {
            "train_loss": train[0] / counts,
            "train_error": train[1] / counts,
            "test_loss": test[0] / len(data.y_T),
            "test_error": test[1] / len(data.y_T),
        }

    def _zeros(self, models: int) -> tuple[Tensor, Tensor]:
        loss = torch.zeros(models, dtype=torch.float64, device=self._device)
        return loss, torch.zeros_like(loss)

    def _add(self, sums: tuple[Tensor, Tensor], x: Tensor, label_MB: Tensor, held_MB: Tensor) -> None:
        """Add the losses and errors of these images to (loss (M,), errors (M,))."""
        outputs_MBO = self._forward(x, training=False)
        loss = functional.cross_entropy(outputs_MBO.transpose(1, 2), label_MB, reduction="none")
        wrong = outputs_MBO.argmax(2) != label_MB
        sums[0].add_(torch.where(held_MB, loss, 0.0).sum(1, dtype=torch.float64))
        sums[1].add_((wrong & held_MB).sum(1, dtype=torch.float64))

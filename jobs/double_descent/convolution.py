"""Convolutional networks, many as one: the channels of M models side by side, one grouped convolution per layer.

The channels of a model are padded with zeros to those of the widest model of the block. A padded channel has zero
weights in and out, and zero gain and offset in its normalisation, so its value and every gradient that touches it are
exactly zero under any optimiser here: padding changes no model. Batch statistics are per channel, so a model's
normalisation does not depend on other models.

Shape suffixes: M models, B images of a batch, C channels, K padded width, O outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from jobs.double_descent.networks import TABLES, Channels, Conv, Layer, Linear, Norm, pre_act_blocks
from jobs.packed import random
from jobs.packed.optim import FlatParameters

_MOMENTUM, _EPSILON = 0.1, 1e-5
"""Of the running statistics and of the division, as in PyTorch's BatchNorm."""


L = TypeVar("L", Conv, Norm, Linear)


class Network(ABC):
    """A family of networks that differ in width alone."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        """The layers, in the order in which `forward` uses them."""

    @abstractmethod
    def forward(self, apply: Applier, x: Tensor) -> Tensor:
        """(M, B, O) outputs of images (B, M * C, H, W)."""


class Applier:
    """Applies the layers of M models one after another, in the order of the network.

    Args:
        weights: of each layer: (weight,) or (weight, bias) views with a leading M.
        running: of each Norm, the running mean and variance (M * C,), which training updates.
        training: normalise by the batch (and update `running`), or by `running`.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        weights: Sequence[tuple[Tensor, ...]],
        running: Sequence[tuple[Tensor, Tensor]],
        *,
        training: bool,
    ) -> None:
        self._layers: Iterator[tuple[Layer, tuple[Tensor, ...]]] = iter(zip(layers, weights, strict=True))
        self._running = iter(running)
        self._training = training

    def _next(self, layer_type: type[L]) -> tuple[L, tuple[Tensor, ...]]:
        layer, weights = next(self._layers)
        if not isinstance(layer, layer_type):
            raise TypeError(f"the next layer of the network is {layer}, not a {layer_type.__name__}")
        return layer, weights

    def conv(self, x: Tensor) -> Tensor:
        """The next convolution; (B, M * C, H, W) to (B, M * C', H', W')."""
        layer, (weight, *bias) = self._next(Conv)
        models = len(weight)
        flat = weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        stride = layer.stride
        if layer.kernel == (1, 1) and stride > 1:
            # Subsample first: oneDNN 3.12 writes past its buffers in the weight gradient of a strided 1 x 1
            # convolution on processors with AVX2 but without AVX-512 (torch 2.13).
            x = x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
            stride = 1
        return functional.conv2d(x, flat, bias[0].flatten() if bias else None, stride, layer.padding, groups=models)

    def norm(self, x: Tensor) -> Tensor:
        """The next batch normalisation."""
        _, (gain, offset) = self._next(Norm)
        mean, variance = next(self._running)
        gain, offset = gain.flatten(), offset.flatten()
        return functional.batch_norm(x, mean, variance, gain, offset, self._training, _MOMENTUM, _EPSILON)

    def linear(self, x: Tensor) -> Tensor:
        """The readout; (B, M * C, H, W) with H * W taps to (M, B, O)."""
        _, (weight, bias) = self._next(Linear)
        models, outputs = weight.shape[0], weight.shape[1]
        rows = x.reshape(x.shape[0], models, -1).transpose(0, 1)
        return torch.baddbmm(bias, rows, weight.reshape(models, outputs, -1).transpose(1, 2))


class ConvNet5(Network):
    """Four times convolution, normalisation, ReLU and max-pooling (by 1, 2, 2 and the rest), then a readout."""

    def forward(self, apply: Applier, x: Tensor) -> Tensor:
        for pool in (1, 2, 2, 0):
            x = apply.norm(apply.conv(x)).relu()
            if pool != 1:
                x = functional.max_pool2d(x, pool) if pool else functional.adaptive_max_pool2d(x, 1)
        return apply.linear(x)


class PreActResNet18(Network):
    """A convolution, eight blocks, the mean over positions, a readout.

    Where a block changes the number of channels or the resolution, its shortcut is a 1 x 1 convolution of the
    activated input.
    """

    def forward(self, apply: Applier, x: Tensor) -> Tensor:
        x = apply.conv(x)
        into = Channels(times=1)
        for out, stride, _ in pre_act_blocks():
            active = apply.norm(x).relu()
            shortcut = x if stride == 1 and into == out else apply.conv(active)
            x = apply.conv(apply.norm(apply.conv(active)).relu()) + shortcut
            into = out
        return apply.linear(x.mean((2, 3), keepdim=True))


class ConvNet1D(Network):
    """Three convolutions with ReLU and a readout of all positions."""

    def forward(self, apply: Applier, x: Tensor) -> Tensor:
        for _ in range(3):
            x = apply.conv(x).relu()
        return apply.linear(x)


_FORWARD: dict[str, type[Network]] = {"cnn5": ConvNet5, "preact_resnet18": PreActResNet18, "cnn_1d": ConvNet1D}


def make_network(model: str, *, inputs: int, outputs: int) -> Network:
    """The network family `model` for images of `inputs` channels and `outputs` classes."""
    return _FORWARD[model](TABLES[model](inputs, outputs))


def shapes(network: Network, width: int) -> list[tuple[int, ...]]:
    """The shapes of a model's parameters at this (padded) width, in the order of the layers."""
    result: list[tuple[int, ...]] = []
    for layer in network.layers:
        if isinstance(layer, Conv):
            result.append((layer.out.of(width), layer.into.of(width), *layer.kernel))
            result += [(layer.out.of(width),)] * layer.bias
        elif isinstance(layer, Norm):
            result += [(layer.channels.of(width),)] * 2
        else:
            result += [(layer.outputs, layer.into.of(width), layer.taps), (1, layer.outputs)]
    return result


def by_layer(network: Network, views: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The views of a `FlatParameters` of `shapes`, grouped by layer."""
    rest = iter(views)
    return [
        tuple(next(rest) for _ in range(1 if isinstance(layer, Conv) and not layer.bias else 2))
        for layer in network.layers
    ]


@torch.no_grad()
def initialise(
    network: Network, parameters: FlatParameters, widths: Sequence[int], seeds: Sequence[int], scale: Tensor
) -> None:
    """PyTorch's defaults: uniform in +-1/sqrt(fan in), times the scale of the model; gains 1, offsets 0."""
    device = parameters.flat.device
    width_M = torch.tensor(widths, device=device)

    def real(channels: Channels) -> Tensor:
        return torch.full_like(width_M, channels.fixed) if channels.fixed else width_M * channels.times

    for number, (layer, weights) in enumerate(zip(network.layers, by_layer(network, parameters.views()), strict=True)):
        if isinstance(layer, Norm):
            column = torch.arange(weights[0].shape[1], device=device)
            weights[0].copy_(column < real(layer.channels)[:, None])
            continue
        taps = layer.kernel[0] * layer.kernel[1] if isinstance(layer, Conv) else layer.taps
        in_M = real(layer.into)
        out_M = real(layer.out) if isinstance(layer, Conv) else torch.full_like(width_M, layer.outputs)
        bound_M = scale.to(device) / (in_M * taps).float().sqrt()
        for name, view in zip(("weight", "bias"), weights, strict=False):
            keys = random.stream_keys(seeds, f"init/{name}/{number}", device)
            table = view.view(len(view), *((view.shape[1], view.shape[2], -1) if name == "weight" else (-1, 1, 1)))
            o, i, t = (torch.arange(size, device=device) for size in table.shape[1:])
            # The counter is the entry's place without padding, so padding does not change the draw.
            counter = (o[:, None, None] << 28) + (i[:, None] << 8) + t
            u = random.uniform(keys, counter.unsqueeze(0))
            held = (o[:, None, None] < out_M[:, None, None, None]) & (i[:, None] < in_M[:, None, None, None])
            table.copy_(torch.where(held, (2 * u - 1) * bound_M[:, None, None, None], 0.0))


def alignment(device: torch.device | str) -> int:
    """Numbers at a multiple of which each layer's parameters begin (`FlatParameters`)."""
    return 1 if torch.device(device).type == "cpu" else 4


class Running:
    """Running means and variances of all normalisations of M models."""

    def __init__(self, network: Network, width: int, models: int, device: torch.device | str) -> None:
        sizes = [layer.channels.of(width) for layer in network.layers if isinstance(layer, Norm)]
        self._means = FlatParameters([(size,) for size in sizes], models, device, alignment(device))
        self._variances = FlatParameters.like(self._means)
        self._variances.flat.fill_(1.0)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(mean, variance) of each normalisation: views (M * C,), which training updates in place."""
        both = zip(self._means.views(), self._variances.views(), strict=True)
        return [(mean.view(-1), variance.view(-1)) for mean, variance in both]

    def named(self) -> dict[str, Tensor]:
        """(M, C) views, which training updates in place."""
        return {**self._means.named("running_mean"), **self._variances.named("running_variance")}

    def keep(self, index: Tensor) -> None:
        """Keep these models only."""
        self._means.keep(index)
        self._variances.keep(index)

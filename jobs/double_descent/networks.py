"""The convolutional networks as tables of layers, their sizes and operations. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Channels:
    """A number of channels: `fixed`, or `times` the model's width."""

    fixed: int = 0
    times: int = 0

    def of(self, width: int) -> int:
        """The number for a model of this width."""
        return self.fixed or self.times * width


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution's weights (M, out, in, height, width)."""

    into: Channels
    out: Channels
    kernel: tuple[int, int]
    at: int
    """Factor by which its output is coarser than the images, along each side."""

    def positions(self, sides: Sequence[int]) -> int:
        """Number of positions of its output, for images of this (height, width)."""
        return math.prod(-(-side // self.at) for side in sides)

    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Batch normalisation of these channels: gain and offset."""

    channels: Channels


@dataclass(frozen=True, kw_only=True)
class Linear:
    """The readout of `taps` positions of each channel, with bias."""

    into: Channels
    outputs: int
    taps: int = 1


Layer = Conv | Norm | Linear


def conv_net_5(inputs: int, outputs: int) -> tuple[Layer, ...]:
    """The 5-layer CNN of Nakkiran et al. 2019: channels k, 2k, 4k, 8k, kernels 3 x 3, each with normalisation."""
    layers: list[Layer] = []
    into = Channels(fixed=inputs)
    for times, at in ((1, 1), (2, 1), (4, 2), (8, 4)):
        out = Channels(times=times)
        layers += [Conv(into=into, out=out, kernel=(3, 3), at=at, padding=(1, 1), bias=True), Norm(channels=out)]
        into = out
    return (*layers, Linear(into=into, outputs=outputs))


def pre_act_blocks() -> Iterator[tuple[Channels, int, int]]:
    """The eight blocks of the pre-activation ResNet18: (channels, stride, coarseness as in `Conv.at`)."""
    for times, stride, at in ((1, 1, 1), (2, 2, 2), (4, 2, 4), (8, 2, 8)):
        yield Channels(times=times), stride, at
        yield Channels(times=times), 1, at


def pre_act_resnet_18(inputs: int, outputs: int) -> tuple[Layer, ...]:
    """The pre-activation ResNet18 (He et al. 2016, arXiv 1603.05027) with channels k, 2k, 4k, 8k of Nakkiran et al."""
    into = Channels(times=1)
    layers: list[Layer] = [Conv(into=Channels(fixed=inputs), out=into, kernel=(3, 3), at=1, padding=(1, 1))]
    for out, stride, at in pre_act_blocks():
        layers.append(Norm(channels=into))
        if stride != 1 or into != out:
            layers.append(Conv(into=into, out=out, kernel=(1, 1), at=at, stride=stride))
        layers += [
            Conv(into=into, out=out, kernel=(3, 3), at=at, stride=stride, padding=(1, 1)),
            Norm(channels=out),
            Conv(into=out, out=out, kernel=(3, 3), at=at, padding=(1, 1)),
        ]
        into = out
    return (*layers, Linear(into=into, outputs=outputs))


def conv_net_1d(inputs: int, outputs: int) -> tuple[Layer, ...]:
    """The CNN of the MNIST-1D notebooks (Greydanus 2020): three convolutions of k channels, a readout of 5 positions.

    Kernels 5, 3, 3, all of stride 2 and padding 1, on 40 inputs (as images of height 1).
    """
    k = Channels(times=1)
    into = Channels(fixed=inputs)
    layers: list[Layer] = []
    for size, at in ((5, 2), (3, 4), (3, 8)):
        layers.append(Conv(into=into, out=k, kernel=(1, size), at=at, stride=2, padding=(0, 1), bias=True))
        into = k
    return (*layers, Linear(into=k, outputs=outputs, taps=5))


TABLES = {"cnn5": conv_net_5, "preact_resnet18": pre_act_resnet_18, "cnn_1d": conv_net_1d}
"""Model -> function from the numbers of input channels and outputs to its layers."""


def multiply_adds(layers: tuple[Layer, ...], width: int, shape: Sequence[int]) -> int:
    """Multiply-adds of the forward pass of one image of this (height, width) through a model of this width."""
    total = 0
    for layer in layers:
        if isinstance(layer, Conv):
            taps = math.prod(layer.kernel) * layer.positions(shape)
            total += layer.out.of(width) * layer.into.of(width) * taps
        elif isinstance(layer, Linear):
            total += layer.into.of(width) * layer.outputs * layer.taps
    return total


def activations(layers: tuple[Layer, ...], width: int, shape: Sequence[int]) -> int:
    """Size of the outputs of all convolutions in the forward pass of one image."""
    return sum(layer.out.of(width) * layer.positions(shape) for layer in layers if isinstance(layer, Conv))


def parameters(layers: tuple[Layer, ...], width: int) -> int:
    """Number of trained parameters."""
    total = 0
    for layer in layers:
        if isinstance(layer, Conv):
            total += layer.out.of(width) * (layer.into.of(width) * math.prod(layer.kernel) + layer.bias)
        elif isinstance(layer, Norm):
            total += 2 * layer.channels.of(width)
        else:
            total += layer.outputs * (layer.into.of(width) * layer.taps + 1)
    return total


SIDE_BY_SIDE = 8
"""Models of one grouped convolution on a CPU, where that is faster than one model at a time."""
WIDEST_SIDE_BY_SIDE = {"cnn5": 4, "preact_resnet18": 4, "cnn_1d": 1 << 14}
"""The largest width at which it is faster."""
GPU_CHANNELS = 256
"""Channels of the first layer of one grouped convolution on a GPU."""


def models_per_block(model: str, width: int, device: str) -> int:
    """How many models train as one grouped convolution."""
    if device.startswith("cpu"):
        return SIDE_BY_SIDE if width <= WIDEST_SIDE_BY_SIDE[model] else 1
    return max(1, GPU_CHANNELS // width)

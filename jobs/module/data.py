"""What a module is trained on, and the random numbers that it may be drawn from.

Shapes: N examples, B batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jobs.packed import random

Inputs = Tensor | tuple[Tensor, ...]
"""The arguments of a module's forward pass, each with one row per example."""


class Random:
    """Counter-based random numbers: each is a function of the trial's seed, of a name and of its place in the tensor.

    They are the same on every device, in any order of the calls, and alone or in a pack. Equal names give equal
    numbers, so give each use a name of its own.
    """

    def __init__(self, key: Tensor, step: Tensor | int = 0) -> None:
        """`key`: (2,) int64, of one trial; `step`: int64, a further part of the key."""
        self._key, self._step = key, step

    @classmethod
    def of_seed(cls, seed: int) -> Random:
        """That of a trial's seed."""
        return cls(random.stream_keys([seed], "module")[0])

    def _stream(self, name: str) -> Tensor:
        """(1, 2) int64 keys of the numbers with this name."""
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        place = torch.arange(2, device=self._key.device) + int.from_bytes(digest, "little", signed=True)
        return random.bits(self._key[None], (place + self._step * 2)[None])

    def _counter(self, shape: tuple[int, ...]) -> Tensor:
        return torch.arange(math.prod(shape), device=self._key.device)[None]

    def bits(self, name: str, *shape: int) -> Tensor:
        """int64 zeros and ones, equally likely."""
        return ((random.bits(self._stream(name), self._counter(shape)) >> 32) & 1).reshape(shape)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """float32 in the open interval (0, 1)."""
        return random.uniform(self._stream(name), self._counter(shape)).reshape(shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        """float32 with mean 0 and variance 1."""
        return random.normal(self._stream(name), self._counter(shape)).reshape(shape)

    def integers(self, name: str, below: int, *shape: int) -> Tensor:
        """int64 in [0, below), below up to 2**31."""
        return random.below(self._stream(name), self._counter(shape), below).reshape(shape)

    def permutation(self, name: str, size: int) -> Tensor:
        """(size,) int64: a uniformly random order of range(size)."""
        return random.bits(self._stream(name), self._counter((size,)))[0].argsort(stable=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """The examples of one trial. Each part is (inputs, targets) or (inputs, targets, mask).

    Inputs are a tensor with one row per example, or a tuple of such tensors: the arguments of the module. Targets are
    int64 classes or float32 numbers, (N, ...). A mask, (N,) or (N, T), says what counts in the loss: 0 or 1, or any
    weight. Tensors that several trials share (the same object) are kept once.
    """

    train: tuple[Any, ...]
    test: tuple[Any, ...]
    classes: int = 0
    """Classes of the targets, for label noise; 0: one more than the largest target."""

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            part = getattr(self, name)
            if not isinstance(part, tuple) or len(part) not in (2, 3):
                raise ValueError(f"Data: {name} must be (inputs, targets) or (inputs, targets, mask)")
            sizes = {len(tensor) for tensor in tensors_of(part)}
            if len(sizes) != 1 or 0 in sizes:
                raise ValueError(f"Data: the tensors of {name} must have equally many rows, at least one; got {sizes}")


def tensors_of(part: tuple[object, ...]) -> Iterator[Tensor]:
    """The tensors of a part of the data, in order."""
    for value in part:
        if isinstance(value, tuple):
            yield from tensors_of(value)
        elif isinstance(value, Tensor):
            yield value
        else:
            raise ValueError(f"Data: must consist of tensors; got {type(value).__name__}")

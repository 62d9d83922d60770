"""Counter-based random numbers: every number is a pure function of (key, stream, counter).

A pack draws for all its models at once, and each model gets the numbers that it would get alone, on any device and in
any order. The generator mixes the counter twice with SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators"), with the two halves of the model's key. Integer arithmetic wraps modulo
2**64 on the CPU and on CUDA alike, so the integers are the same everywhere; floats derived from them are the same up to
the rounding of log and cos.

Shapes: M models, ... any counter shape.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)
_MASK64 = (1 << 64) - 1


def stream_keys(seeds: Sequence[int], stream: str, device: torch.device | str = "cpu") -> Tensor:
    """(M, 2) int64 keys of the stream called `stream` (e.g. "batch"), one row per 64-bit seed of a model."""
    texts = (f"{seed & _MASK64}/{stream}".encode() for seed in seeds)
    digests = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    return torch.from_numpy(np.frombuffer(digests, np.int64).reshape(-1, 2).copy()).to(device)


def bits(keys: Tensor, counter: Tensor) -> Tensor:
    """(M, ...) uniform 64-bit integers.

    `keys` are (M, 2). `counter` is (C,), the same for all models, or (1, ...) or (M, ...) int64.
    """
    if counter.dim() < 2:
        counter = counter.reshape(1, -1)
    shape = (len(keys),) + (1,) * (counter.dim() - 1)
    x = _mix(counter * _GAMMA + keys[:, 0].reshape(shape))
    return _mix(x.bitwise_xor_(keys[:, 1].reshape(shape)))


def _mix(x: Tensor) -> Tensor:
    x = _shift_xor(x, 30).mul_(_MIX1)
    x = _shift_xor(x, 27).mul_(_MIX2)
    return _shift_xor(x, 31)


def _shift_xor(x: Tensor, count: int) -> Tensor:
    # Shifting a signed integer copies its sign; the mask makes it a logical shift.
    return x.bitwise_xor_((x >> count).bitwise_and_((1 << (64 - count)) - 1))


def below(keys: Tensor, counter: Tensor, bound: Tensor | int) -> Tensor:
    """(M, ...) int64 in [0, bound), bound up to 2**31 (a number, or broadcastable to (M, ...)).

    Computed by multiplying and shifting 32 bits: the bias is at most bound / 2**32.
    """
    return (((bits(keys, counter) >> 32) & 0xFFFFFFFF) * bound) >> 32


def uniform(keys: Tensor, counter: Tensor) -> Tensor:
    """(M, ...) float32 in the open interval (0, 1), 23 bits each: with 24 the largest would round to 1."""
    return ((bits(keys, counter) >> 41) & 0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)


def normal(keys: Tensor, counter: Tensor) -> Tensor:
    """(M, ...) float32 standard normal numbers (Box and Muller 1958).

    They are computed in float64 and rounded, so that devices differ by at most the last bit.
    """
    x = bits(keys, counter)
    u = ((x >> 32) & 0xFFFFFFFF).to(torch.float64).add_(0.5).mul_(2.0**-32)
    v = (x & 0xFFFFFFFF).to(torch.float64).mul_(2.0 * math.pi * 2.0**-32)
    return u.log_().mul_(-2.0).sqrt_().mul_(v.cos_()).to(torch.float32)


def permutation(keys: Tensor, size: int, epoch: Tensor | int = 0) -> Tensor:
    """(M, size) a uniformly random order of range(size) for each model and epoch; `epoch` is a number or (M, 1)."""
    counter = torch.arange(size, device=keys.device) + torch.as_tensor(epoch, device=keys.device) * (1 << 32)
    return bits(keys, counter.contiguous()).argsort(dim=1, stable=True)

"""Gaussian inputs with a known teacher, drawn for each seed.

linear:  y = <x, beta> + noise, x ~ N(0, I_D), |beta| = 1 (regression).
teacher: class = argmax of a random two-layer ReLU network of the inputs (classification).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.packed import random

TEACHER_WIDTH, TEACHER_CLASSES = 32, 10


def gaussian_linear(
    seeds: Sequence[int], train: int, test: int, inputs: int, noise_std: Sequence[float], device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (S, train, D), targets (S, train) with noise, test inputs (S, test, D), noiseless targets (S, test)."""
    x, x_test = _inputs(seeds, train, test, inputs, device)
    beta = _normal(seeds, "teacher", (inputs,), device)
    beta /= beta.norm(dim=1, keepdim=True)
    noise = _normal(seeds, "target noise", (train,), device) * torch.tensor(noise_std, device=device)[:, None]
    return x, torch.einsum("snd,sd->sn", x, beta) + noise, x_test, torch.einsum("snd,sd->sn", x_test, beta)


def gaussian_teacher(
    seeds: Sequence[int], train: int, test: int, inputs: int, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (S, train, D), classes (S, train) int64, test inputs (S, test, D), classes (S, test)."""
    x, x_test = _inputs(seeds, train, test, inputs, device)
    first = _normal(seeds, "teacher/0", (inputs, TEACHER_WIDTH), device) / inputs**0.5
    second = _normal(seeds, "teacher/1", (TEACHER_WIDTH, TEACHER_CLASSES), device)

    def label(x: Tensor) -> Tensor:
        scores = torch.bmm(torch.bmm(x, first).relu_(), second)
        # Without subtracting the mean, most inputs would be of one class.
        return (scores - torch.bmm(torch.bmm(x_test, first).relu_(), second).mean(1, keepdim=True)).argmax(2)

    return x, label(x), x_test, label(x_test)


def _inputs(seeds: Sequence[int], train: int, test: int, inputs: int, device: str) -> tuple[Tensor, Tensor]:
    return _normal(seeds, "inputs", (train, inputs), device), _normal(seeds, "test inputs", (test, inputs), device)


def _normal(seeds: Sequence[int], stream: str, shape: tuple[int, ...], device: str) -> Tensor:
    keys = random.stream_keys(seeds, stream, device)
    return random.normal(keys, torch.arange(math.prod(shape), device=device)).view(len(seeds), *shape)

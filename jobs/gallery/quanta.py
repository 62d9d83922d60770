"""Many sparse parities at once, with frequencies that fall as a power law: `job: jobs.gallery.quanta:Quanta`.

Michaud, Liu, Girit, Tegmark 2023 (arXiv 2303.13506): "multitask sparse parity". Control bits say whose parity is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from jobs.job import AnyParams, ParamError, param
from jobs.module import Data, ModuleJob
from jobs.module.data import Random
from jobs.module.models import MLP
from jobs.module.params import ModuleParams


@dataclass(frozen=True, kw_only=True)
class QuantaParams(ModuleParams):
    """The tasks, and the two-layer perceptron that learns them."""

    tasks: int = param(16, low=1, high=10_000, meaning="subtasks; subtask j = 1, 2, ... has the frequency ~ j^-zipf")
    zipf: float = param(1.5, above=0, high=10, meaning="exponent of the frequencies: a + 1 of the paper")
    bits: int = param(16, low=2, high=1000, meaning="inputs that all subtasks share: random bits")
    degree: int = param(3, low=1, high=10, meaning="bits of a subtask, drawn once; its label is their parity")
    test_count: int = param(400, low=1, high=100_000, unit="examples", meaning="test examples of each subtask")
    width: int = param(128, low=1, high=100_000, unit="units", meaning="units of the hidden layer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batch_size:
            raise ParamError("batch_size", "must be at least 1: every batch is fresh", 0)
        if self.degree > self.bits:
            raise ParamError("degree", f"must be at most bits ({self.bits})", self.degree)


def frequencies(params: Any) -> Tensor:
    """(tasks,) of sum 1."""
    weight = torch.arange(1, params.tasks + 1).double() ** -params.zipf
    share: Tensor = weight / weight.sum()
    return share.float()


class Quanta(ModuleJob):
    """`test_loss` is weighted by the frequencies; `probe` has the accuracy of each subtask, `accuracy_01` and so on."""

    Params: ClassVar[type[AnyParams]] = QuantaParams

    def model(self, params: Any) -> nn.Module:
        return MLP(params.tasks + params.bits, 2, width=params.width)

    def data(self, params: Any, random: Random) -> Data:
        task = torch.arange(params.tasks).repeat_interleave(params.test_count)
        part = (*labelled(task, random, "test", params), frequencies(params)[task] * params.tasks)
        return Data(train=part, test=part, classes=2)

    def batch(self, params: Any, random: Random, step: Tensor) -> tuple[Tensor, Tensor]:
        drawn = random.uniform("task", params.batch_size)
        ends = frequencies(params).cumsum(0)[:-1].to(drawn.device)
        return labelled((drawn[:, None] > ends).sum(1), random, "batch", params)

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        inputs, target, _ = data.test
        right = (model(inputs).argmax(-1) == target).float().reshape(params.tasks, -1).mean(1)
        return {f"accuracy_{j + 1:02d}": right[j] for j in range(params.tasks)}


def subsets(params: Any, device: torch.device) -> Tensor:
    """(tasks, degree) the bits of each subtask, drawn for a number of bits; the same for all seeds."""
    random = np.random.default_rng([params.bits, params.degree])
    rows = [random.choice(params.bits, params.degree, replace=False) for _ in range(params.tasks)]
    return torch.tensor(np.array(rows), device=device)


def labelled(task_N: Tensor, random: Random, name: str, params: Any) -> tuple[Tensor, Tensor]:
    """Control bits and random bits of examples of these subtasks, and their labels."""
    bits = random.bits(name, len(task_N), params.bits)
    control = task_N[:, None] == torch.arange(params.tasks, device=bits.device)
    parity = bits.gather(1, subsets(params, bits.device)[task_N]).sum(1) % 2
    return torch.cat([control.float(), bits.float()], 1), parity

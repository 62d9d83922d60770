"""Many sparse parities at once, with frequencies that fall as a power law: `job: jobs.gallery.quanta:Quanta`.

Michaud, Liu, Girit, Tegmark 2023 (arXiv 2303.13506): "multitask sparse parity". Control bits say whose parity is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
    zipf: float = param(1.5, low=0, high=10, meaning="exponent of the frequencies: a + 1 of the paper; 0: all alike")
    bits: int = param(16, low=2, high=1000, meaning="inputs that all subtasks share: random bits")
    degree: int = param(3, low=1, high=10, meaning="bits of a subtask, whose parity is its label; no two have the same")
    test_count: int = param(400, low=1, high=100_000, unit="examples", meaning="test examples of each subtask")
    width: int = param(128, low=1, high=100_000, unit="units", meaning="units of the hidden layer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batch_size:
            raise ParamError("batch_size", "must be at least 1: every batch is fresh", 0)
        if self.tasks > (subsets := math.comb(self.bits, self.degree)):
            rule = f"must be at most {subsets}, the subsets of degree ({self.degree}) of bits ({self.bits})"
            raise ParamError("tasks", rule, self.tasks)


class Quanta(ModuleJob):
    """`test_loss` is weighted by the frequencies; `probe` has the accuracy of each subtask, `accuracy_01` and so on."""

    Params: ClassVar[type[AnyParams]] = QuantaParams

    def model(self, params: Any) -> nn.Module:
        return MLP(params.tasks + params.bits, 2, width=params.width)

    def data(self, params: Any, random: Random) -> Data:
        task = torch.arange(params.tasks).repeat_interleave(params.test_count)
        part = (*labelled(task, random, random, params), frequencies(params, task.device)[task] * params.tasks)
        return Data(train=part, test=part, classes=2)

    def batch(self, params: Any, random: Random, step: Tensor) -> tuple[Tensor, Tensor]:
        drawn = random.uniform("task", params.batch_size)
        ends = frequencies(params, drawn.device).cumsum(0)[:-1]
        trial = Random(random._key)  # the subsets are the same at every step
        return labelled((drawn[:, None] > ends).sum(1), random, trial, params)

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        inputs, target, _ = data.test
        right = (model(inputs).argmax(-1) == target).float().reshape(params.tasks, -1).mean(1)
        return {f"accuracy_{j + 1:02d}": right[j] for j in range(params.tasks)}


def frequencies(params: Any, device: torch.device) -> Tensor:
    """(tasks,) of sum 1."""
    weight = torch.arange(1, params.tasks + 1, device=device).double() ** -params.zipf
    share: Tensor = weight / weight.sum()
    return share.float()


def labelled(task_N: Tensor, random: Random, trial: Random, params: Any) -> tuple[Tensor, Tensor]:
    """Control bits and random bits of examples of these subtasks, and their labels; the subsets are the trial's."""
    bits = random.bits("bits", len(task_N), params.bits)
    subsets = torch.combinations(torch.arange(params.bits, device=bits.device), params.degree)
    subsets = subsets[trial.permutation("subsets", len(subsets))[: params.tasks]]
    control = task_N[:, None] == torch.arange(params.tasks, device=bits.device)
    parity = bits.gather(1, subsets[task_N]).sum(1) % 2
    return torch.cat([control.float(), bits.float()], 1), parity

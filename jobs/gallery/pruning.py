"""Train large, then compress: `job: jobs.gallery.pruning:TrainThenCompress`; Li et al. 2020 (arXiv 2002.11794)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jobs.data.mnist1d import CLASSES, INPUTS, mnist1d
from jobs.job import AnyParams, ParamError, param
from jobs.module import Data, ModuleJob
from jobs.module.data import Random
from jobs.module.models import MLP
from jobs.module.params import ModuleParams

FIRST, LAST, ROUNDS = 0.4, 0.8, 10
"""Shares of the steps between which weights are pruned, and in how many rounds."""


@dataclass(frozen=True, kw_only=True)
class PruningParams(ModuleParams):
    """The perceptron, and what is left of it."""

    width: int = param(100, low=1, high=10_000, unit="units", meaning="units of each of two hidden layers")
    final: int = param(0, low=0, high=10**9, meaning="parameters that are left, biases included; 0: all")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final and not self.biases < self.final <= self.count:
            rule = f"must be 0, or above {self.biases} (biases) and at most {self.count} (all parameters)"
            raise ParamError("final", rule, self.final)

    @property
    def biases(self) -> int:
        """Biases, which are not pruned."""
        return 2 * self.width + CLASSES

    @property
    def count(self) -> int:
        """All parameters."""
        return (INPUTS + self.width + CLASSES) * self.width + self.biases


class PrunedAdam(torch.optim.Adam):
    """Adam that keeps fewer and fewer of the largest weights, as Zhu and Gupta 2017 (arXiv 1710.01878) do."""

    def __init__(self, weights: list[nn.Parameter], params: Any) -> None:
        super().__init__(weights, lr=params.learning_rate)
        self._matrices = [weight for weight in weights if weight.dim() > 1]
        self._masks: list[Tensor] = []
        total, kept = params.count - params.biases, (params.final or params.count) - params.biases
        places = [k / ROUNDS for k in range(1, ROUNDS + 1)]
        self._left = {
            round(params.steps * (FIRST + (LAST - FIRST) * u)): round(kept + (total - kept) * (1 - u) ** 3)
            for u in places
            if kept < total
        }
        """After which step -> how many weights."""
        self._taken = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = super().step(closure)
        self._taken += 1
        if self._taken in self._left:
            sizes = torch.cat([weight.abs().flatten() for weight in self._matrices])
            mask = torch.zeros_like(sizes).scatter_(0, sizes.topk(self._left[self._taken]).indices, 1.0)
            parts = torch.split(mask, [weight.numel() for weight in self._matrices])
            self._masks = [part.view_as(weight) for part, weight in zip(parts, self._matrices, strict=True)]
        for mask, weight in zip(self._masks, self._matrices, strict=False):
            weight.mul_(mask)
        return loss


class TrainThenCompress(ModuleJob):
    """MNIST-1D, of which every seed draws 4,000 training and 4,000 test examples."""

    Params: ClassVar[type[AnyParams]] = PruningParams

    def model(self, params: Any) -> nn.Module:
        return MLP(INPUTS, CLASSES, width=params.width, layers=2)

    def data(self, params: Any, random: Random) -> Data:
        x, y, x_test, y_test = (torch.as_tensor(part) for part in mnist1d(4000, 12_000))
        order = random.permutation("split", 16_000)
        x, y = torch.cat([x, x_test])[order], torch.cat([y, y_test])[order]
        return Data(train=(x[:4000], y[:4000]), test=(x[4000:8000], y[4000:8000]), classes=CLASSES)

    def torch_optimiser(self, params: Any, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return PrunedAdam(weights, params)

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        """`parameters`: how many are not zero."""
        return {"parameters": torch.stack([(weight != 0).sum() for weight in weights.values()]).sum()}

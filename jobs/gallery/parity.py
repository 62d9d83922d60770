"""Sparse parity: `job: jobs.gallery.parity:SparseParity`, learned online, and `jobs.gallery.parity:FiniteParity`.

Barak et al. 2022 (arXiv 2207.08799): the label is the product of k of n random signs. Merrill et al. 2023 (arXiv
2303.11873) have the protocol for a fixed training set; it was read in their code (Tsili42/parity-nn).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from jobs.job import AnyParams, ParamError, param
from jobs.module import Data, ModuleJob
from jobs.module.data import Random
from jobs.module.models import MLP
from jobs.module.params import ModuleParams


@dataclass(frozen=True, kw_only=True)
class TaskParams(ModuleParams):
    """The task, and the two-layer perceptron that learns it."""

    bits: int = param(20, low=2, high=1000, meaning="n: inputs, random signs")
    degree: int = param(3, low=1, high=10, meaning="k: the first k inputs, whose product is the label")
    test_count: int = param(
        2000, low=1, high=1_000_000, unit="examples", meaning="test examples, and those of the training accuracy"
    )
    width: int = param(100, low=1, high=100_000, unit="units", meaning="units of the hidden layer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.degree > self.bits:
            raise ParamError("degree", f"must be at most bits ({self.bits})", self.degree)


@dataclass(frozen=True, kw_only=True)
class ParityParams(TaskParams):
    """Learned online."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batch_size:
            raise ParamError("batch_size", "must be at least 1: every batch is fresh", 0)


@dataclass(frozen=True, kw_only=True)
class FiniteParams(TaskParams):
    """Learned from a training set."""

    sample_count: int = param(1000, low=1, high=1_000_000, unit="examples", meaning="training examples")


class SparseParity(ModuleJob):
    """The parity of the first `degree` of `bits` signs; the network is symmetric, so that any k inputs are as good."""

    Params: ClassVar[type[AnyParams]] = ParityParams

    def model(self, params: Any) -> nn.Module:
        return MLP(params.bits, 2, width=params.width)

    def data(self, params: Any, random: Random) -> Data:
        train, test = (
            labelled(random.bits(part, params.test_count, params.bits), params) for part in ("train", "test")
        )
        return Data(train=train, test=test)

    def batch(self, params: Any, random: Random, step: Tensor) -> tuple[Tensor, Tensor]:
        return labelled(random.bits("batch", params.batch_size, params.bits), params)

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        """`relevant_share`: of the first layer's squared weights, those of the inputs that the label depends on."""
        squares = weights["0.weight"].square()
        return {"relevant_share": squares[:, : params.degree].sum() / squares.sum()}


class FiniteParity(SparseParity):
    """The same parity from a training set, by one output and the hinge loss."""

    Params: ClassVar[type[AnyParams]] = FiniteParams
    batch = ModuleJob.batch  # none of its own: those of the training set

    def model(self, params: Any) -> nn.Module:
        return MLP(params.bits, 1, width=params.width)

    def data(self, params: Any, random: Random) -> Data:
        train = labelled(random.bits("examples", params.sample_count, params.bits), params)
        return replace(super().data(params, random), train=train)

    def loss(self, params: Any, output: Any, target: Tensor) -> Tensor:
        margin: Tensor = (2 * target - 1) * output[..., 0]
        return (1 - margin).clamp(min=0)

    def right(self, params: Any, output: Any, target: Tensor) -> Tensor | None:
        right: Tensor = (output[..., 0] > 0) == (target == 1)
        return right


def labelled(bits: Tensor, params: Any) -> tuple[Tensor, Tensor]:
    """Signs and the parity of the first `degree` bits."""
    return 2.0 * bits - 1, bits[:, : params.degree].sum(1) % 2

"""Depth against width: `job: jobs.gallery.depth:DepthAgainstWidth`.

Telgarsky 2016 (arXiv 1602.04485): the tent map composed k times; Eldan, Shamir 2016 (arXiv 1512.03965) and Safran,
Shamir 2017 (arXiv 1610.09887): functions of the norm; Vardi, Yehudai, Shamir 2022 (arXiv 2202.03841): wide targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jobs.job import AnyParams, ParamError, param
from jobs.module import Data, ModuleJob
from jobs.module.data import Random
from jobs.module.models import MLP
from jobs.module.params import ModuleParams

CELLS = 4096
"""Points of the interval [0, 1] between which pieces are counted."""
TEACHER_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class DepthParams(ModuleParams):
    """The target, and the perceptron that learns it."""

    target: str = param(
        "ball", choices=("ball", "teacher", "tent"), meaning="the function that is learned, see `DepthAgainstWidth`"
    )
    teacher_layers: int = param(4, low=1, high=100, meaning="hidden layers of the teacher")
    folds: int = param(6, low=1, high=11, meaning="k: how often the tent map is composed")
    inputs: int = param(20, low=1, high=1000, meaning="inputs of the network; 1 for the tent map")
    parameters: int = param(4000, low=4, high=10**9, meaning="parameters at most: the width is the largest that fits")
    start: str = param(
        "random", choices=("random", "tent"), meaning="initial weights: He et al. 2015, or those of the tent map"
    )
    train_count: int = param(10_000, low=1, high=10_000_000, unit="examples", meaning="training examples")
    test_count: int = param(4000, low=1, high=10_000_000, unit="examples", meaning="test examples")
    layers: int = param(2, low=1, high=100, meaning="hidden layers of the network")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "tent" and self.inputs != 1:
            raise ParamError("inputs", "must be 1 with target: tent", self.inputs)
        needed = 2 if self.start == "tent" else 1
        if self.width < needed:
            raise ParamError("parameters", f"must suffice for a width of {needed}", self.parameters)
        if self.start == "tent" and (self.target != "tent" or self.folds != self.layers):
            raise ParamError("start", "tent needs target: tent with as many folds as layers", self.start)

    def count(self, width: int) -> int:
        """Parameters of the network with this width."""
        return (self.inputs + 1) * width + (self.layers - 1) * (width + 1) * width + width + 1

    @property
    def width(self) -> int:
        """Units of every hidden layer."""
        width = 0
        while self.count(width + 1) <= self.parameters:
            width += 1
        return width


class DepthAgainstWidth(ModuleJob):
    """A perceptron of given depth and number of parameters learns one of three targets by least squares.

    - ball: 1 if |x| < 1, otherwise -1; the direction of x is uniform, |x| uniform in [0, 2].
    - teacher: a random ReLU network of 16 units a layer without biases, of variance 1; x ~ N(0, I).
    - tent: the tent map 1 - |1 - 2 x|, composed `folds` times; x is uniform in [0, 1]. Its variance is 1 / 12.
    """

    Params: ClassVar[type[AnyParams]] = DepthParams

    def model(self, params: Any) -> nn.Module:
        network = MLP(params.inputs, 1, width=params.width, layers=params.layers)
        linear = [part for part in network if isinstance(part, nn.Linear)]
        with torch.no_grad():
            for place, layer in enumerate(linear):
                if params.start == "random":
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    continue
                for parameter in layer.parameters():
                    parameter.zero_()
                layer.weight[:2, :2] = torch.tensor([2.0, -4.0]) if place else 1.0
                if place < len(linear) - 1:
                    layer.bias[1] = -0.5
        return network

    def data(self, params: Any, random: Random) -> Data:
        n, d = params.train_count + params.test_count, params.inputs
        x = random.uniform("x", n, d) if params.target == "tent" else random.normal("x", n, d)
        y = x
        if params.target == "ball":
            norm = 2 * random.uniform("norm", n, 1)
            x, y = x * norm / x.norm(dim=1, keepdim=True), 1 - 2 * (norm >= 1).float()
        elif params.target == "tent":
            for _ in range(params.folds):
                y = 1 - (1 - 2 * y).abs()
        else:
            sizes = [d, *[TEACHER_WIDTH] * params.teacher_layers, 1]
            for place, (before, after) in enumerate(pairwise(sizes)):
                y = y.relu() if place else y
                y = y @ random.normal(f"teacher {place}", before, after) / before**0.5
            y = (y - y.mean()) / y.std()
        return Data(
            train=(x[: params.train_count], y[: params.train_count]),
            test=(x[params.train_count :], y[params.train_count :]),
        )

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        """`pieces` of a network of one input: linear pieces on [0, 1], by the units that are active in each of 4,096
        points; two kinks between neighbours count once.
        """
        if params.inputs > 1:
            return {}
        h = ((torch.arange(CELLS) + 0.5) / CELLS)[:, None]
        kinks = torch.zeros(CELLS - 1, dtype=torch.bool)
        for place in range(0, 2 * params.layers, 2):
            h = h @ weights[f"{place}.weight"].T + weights[f"{place}.bias"]
            kinks = kinks | ((h[1:] > 0) != (h[:-1] > 0)).any(1)
            h = h.relu()
        return {"pieces": 1.0 + kinks.sum()}

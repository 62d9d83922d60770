"""Whole strings and their tokens, measured alike: `job: jobs.gallery.strings:Strings`.

Schaeffer, Miranda, Koyejo 2023 (arXiv 2304.15004): a string of K tokens is right if all of them are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.grokking.digits import SOURCES, load
from jobs.job import AnyParams, ParamError, param
from jobs.module import Data, ModuleJob
from jobs.module.data import Random
from jobs.module.models import MLP
from jobs.module.params import ModuleParams

FEW = 100
"""Strings of the small test set."""


@dataclass(frozen=True, kw_only=True)
class StringParams(ModuleParams):
    """The task, and the perceptron that learns it."""

    task: str = param(
        "digits",
        choices=("digits", "addition"),
        meaning="images of digits, any `length` of which are a string; or the `length` digits of a sum of two numbers",
    )
    length: int = param(5, low=2, high=18, unit="tokens", meaning="K: tokens of a string")
    sample_count: int = param(997, low=1, high=1_000_000, unit="examples", meaning="training images, or sums")
    test_count: int = param(10_000, low=1, high=1_000_000, unit="strings", meaning="test strings of addition")
    width: int = param(128, low=1, high=100_000, unit="units", meaning="units of a hidden layer")
    layers: int = param(2, low=1, high=10, unit="layers", meaning="hidden layers")

    def __post_init__(self) -> None:
        super().__post_init__()
        most = SOURCES["digits"].train - self.length
        if self.task == "digits" and self.sample_count > most:
            raise ParamError("sample_count", f"must leave a string of test images: at most {most}", self.sample_count)


class Strings(ModuleJob):
    """Training is of tokens; `test_accuracy` is that of a token, `string_accuracy` that of a whole string."""

    Params: ClassVar[type[AnyParams]] = StringParams
    data_only: ClassVar[tuple[str, ...]] = ("sample_count",)

    def model(self, params: Any) -> nn.Module:
        if params.task == "digits":
            return MLP(SOURCES["digits"].inputs, 10, width=params.width, layers=params.layers)
        network = MLP(20 * (params.length - 1), 10 * params.length, width=params.width, layers=params.layers)
        return nn.Sequential(network, nn.Unflatten(-1, (params.length, 10)))

    def data(self, params: Any, random: Random) -> Data:
        n, length = params.sample_count, params.length
        if params.task == "digits":
            pixels, classes = map(torch.from_numpy, load("digits"))
            order = random.permutation("order", len(pixels)).to(pixels.device)
            train, test = order[:n], order[n : n + (len(pixels) - n) // length * length]
            return Data(train=(pixels[train], classes[train]), test=(pixels[test], classes[test]))
        terms = random.integers("terms", 10, params.test_count + n, 2, length - 1)  # the digit of the units first
        place = 10 ** torch.arange(length, device=terms.device)
        sums = (terms * place[:-1]).sum((1, 2))[:, None] // place % 10
        inputs, t = functional.one_hot(terms, 10).flatten(1).float(), params.test_count
        return Data(train=(inputs[t:], sums[t:]), test=(inputs[:t], sums[:t]))

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        """The share of right strings, of all and of the first 100; and what it were if positions were independent."""
        inputs, target = data.test[:2]
        right = (model(inputs).max(-1).indices == target).reshape(-1, params.length).float()
        whole = right.prod(1)
        positions = right.mean(0).prod()
        return {"string_accuracy": whole.mean(), "few_accuracy": whole[:FEW].mean(), "position_product": positions}

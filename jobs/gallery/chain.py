"""Parity by a transformer, with and without a chain of thought: `job: jobs.gallery.chain:ChainOfThought`.

Feng et al. 2023 (arXiv 2305.15408); Kim, Suzuki 2024 (arXiv 2410.08633); Pfau et al. 2024 (arXiv 2404.15758).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jobs.job import AnyParams, param
from jobs.module import Data, ModuleJob
from jobs.module.data import Random
from jobs.module.models import Transformer, greedy
from jobs.module.params import ModuleParams

EQUALS, FILLER = 2, 3
"""Tokens after those of the bits, 0 and 1."""
DECODED = 256
"""Test inputs whose steps are decoded, which takes as many forward passes as there are steps."""


@dataclass(frozen=True, kw_only=True)
class ChainParams(ModuleParams):
    """The task, what lies between question and answer, and the transformer."""

    bits: int = param(8, low=2, high=20, meaning="n: bits whose parity is the answer")
    chain: str = param(
        "steps",
        choices=("answer", "filler", "steps"),
        meaning="after the n bits and =: the answer; n - 1 filler tokens, then the answer; or the parities of the first"
        " 1, 2, ..., n bits, all of which are trained",
    )
    train_count: int = param(4096, low=1, high=1_000_000, unit="examples", meaning="inputs that are trained on")
    test_count: int = param(
        1024, low=1, high=1_000_000, unit="examples", meaning="other inputs; at most a quarter of all 2^n"
    )
    width: int = param(64, low=4, high=4096, meaning="residual width; a multiple of 4, the number of heads")
    layers: int = param(1, low=1, high=100, unit="layers", meaning="blocks of the transformer")


class ChainOfThought(ModuleJob):
    """`train_accuracy` and `test_accuracy` are those of the answer, given the true steps before it."""

    Params: ClassVar[type[AnyParams]] = ChainParams

    def model(self, params: Any) -> nn.Module:
        return Transformer(4, 2 * params.bits, outputs=2, width=params.width, layers=params.layers)

    def data(self, params: Any, random: Random) -> Data:
        n, whole = params.bits, 2**params.bits
        t = min(params.test_count, whole // 4)
        order = random.permutation("inputs", whole)[: t + params.train_count]
        tokens, targets = sequences(order[:, None] >> torch.arange(n, device=order.device) & 1, params.chain)
        return Data(train=(tokens[t:], targets[t:]), test=(tokens[:t], targets[:t]), classes=2)

    def loss(self, params: Any, output: Any, target: Tensor) -> Tensor:
        return super().loss(params, output[:, -target.shape[1] :], target)

    def right(self, params: Any, output: Any, target: Tensor) -> Tensor | None:
        right: Tensor = output[:, -1].max(-1).indices == target[:, -1]
        return right

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        """`free_accuracy`: of the answer on 256 test inputs, from the steps of the model itself, not the true ones."""
        tokens, target = (part[:DECODED] for part in data.test[:2])
        given, count = (params.bits + 1, params.bits) if params.chain == "steps" else (tokens.shape[1], 1)
        answer = greedy(model, tokens[:, :given], count)[:, -1]
        return {"free_accuracy": (answer == target[:, -1]).float().mean()}


def sequences(bits: Tensor, chain: str) -> tuple[Tensor, Tensor]:
    """Tokens (N, T) and what follows the last of them: (N, 1), the answer, or with steps (N, n)."""
    parities = bits.cumsum(1) % 2
    between = {
        "answer": parities[:, :0],
        "filler": torch.full_like(parities[:, 1:], FILLER),
        "steps": parities[:, :-1],
    }[chain]
    tokens = torch.cat([bits, torch.full_like(bits[:, :1], EQUALS), between], 1)
    return tokens, parities if chain == "steps" else parities[:, -1:]

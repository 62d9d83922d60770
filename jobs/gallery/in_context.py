"""Linear regression in context by a softmax transformer: `job: jobs.gallery.in_context:InContextRegression`.

Raventos, Paul, Chen, Ganguli 2023 (arXiv 2306.15063): y = w x + noise, w and x standard normal, one w for each context,
of the finitely many tasks that pretraining has. A token is an input and the pair before it; it predicts its y.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.job import AnyParams, param
from jobs.module import Data, ModuleJob
from jobs.module.data import Random
from jobs.module.models import TransformerBlock
from jobs.module.params import ModuleParams

NOISE, TEST = 0.25, 1000
"""Variance of the noise, and contexts that are measured."""


@dataclass(frozen=True, kw_only=True)
class ContextParams(ModuleParams):
    """The contexts, and the transformer, of four heads."""

    tasks: int = param(16, low=1, high=100_000, meaning="tasks that the contexts of pretraining share")
    inputs: int = param(4, low=1, high=1000, meaning="d: entries of x")
    context_length: int = param(8, low=2, high=1000, meaning="pairs of a context")
    width: int = param(32, low=4, high=4096, meaning="residual width; a multiple of 4")
    layers: int = param(2, low=1, high=100, unit="layers", meaning="blocks of the transformer")


class InContextRegression(ModuleJob):
    """`train_loss` and `test_loss` are of contexts of the tasks of pretraining, and of fresh tasks."""

    Params: ClassVar[type[AnyParams]] = ContextParams

    def model(self, params: Any) -> nn.Module:
        options: dict[str, Any] = {"norm": "pre", "activation": "gelu", "bias": True, "attention_bias": False}
        blocks = (TransformerBlock(params.width, 4, causal=True, **options) for _ in range(params.layers))
        first, last = nn.Linear(2 * params.inputs + 1, params.width), nn.Linear(params.width, 1)
        return nn.Sequential(first, *blocks, nn.LayerNorm(params.width), last, nn.Flatten(-2))

    def data(self, params: Any, random: Random) -> Data:
        old, fresh = (random.normal(name, n, params.inputs) for name, n in (("tasks", params.tasks), ("fresh", TEST)))
        own = old[random.integers("own", params.tasks, TEST)]
        train, test = (contexts(w, name, random, params) for name, w in (("train", own), ("test", fresh)))
        return Data(train=predicted(*train, old), test=predicted(*test, old))

    def batch(self, params: Any, random: Random, step: Tensor) -> tuple[Tensor, Tensor]:
        old = Random(random._key).normal("tasks", params.tasks, params.inputs)  # the same at every step
        tokens, y = contexts(old[random.integers("own", params.tasks, params.batch_size)], "batch", random, params)
        return tokens, y[..., None]

    def loss(self, params: Any, output: Any, target: Tensor) -> Tensor:
        squares: Tensor = (output - target[..., 0]).square()
        return squares.mean(1)

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        """Losses of the posterior mean given the tasks of pretraining, and of ridge regression."""
        parts = {"train": data.train[1], "test": data.test[1]}
        missed = {part: (y[..., 1:] - y[..., :1]).square().mean((0, 1)) for part, y in parts.items()}
        return {f"{part}_{name}": missed[part][k] for part in missed for k, name in enumerate(("posterior", "ridge"))}


def contexts(w_ND: Tensor, name: str, random: Random, params: Any) -> tuple[Tensor, Tensor]:
    """Tokens (N, T, 2 D + 1) and y (N, T) of the tasks w."""
    n, t = len(w_ND), params.context_length
    x = random.normal(f"{name} x", n, t, params.inputs)
    y = (x * w_ND[:, None]).sum(-1) + NOISE**0.5 * random.normal(f"{name} noise", n, t)
    before = functional.pad(torch.cat([x, y[..., None]], -1)[:, :-1], (0, 0, 1, 0))
    return torch.cat([x, before], -1), y


def predicted(tokens: Tensor, y: Tensor, tasks_MD: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens; and y, its posterior mean given the tasks, and ridge regression's prediction, from earlier pairs."""
    x = tokens[..., : tasks_MD.shape[1]]
    fit = (y[..., None] - x @ tasks_MD.T).square() / (-2 * NOISE)
    posterior = ((fit.cumsum(1) - fit).softmax(-1) @ tasks_MD * x).sum(-1)
    gram, moment = x[..., None] * x[..., None, :], x * y[..., None]
    ridge = gram.cumsum(1) - gram + NOISE * torch.eye(x.shape[-1], device=x.device)
    return tokens, torch.stack([y, posterior, (torch.linalg.solve(ridge, moment.cumsum(1) - moment) * x).sum(-1)], -1)

"""The protocols of grokking papers as their authors train them, in plain PyTorch, float32.

Written anew from the papers and the authors' repositories, which configs/README.md names. Nothing here is shared with
`jobs`, apart from the steps at which the accuracies are measured. Sizes are arguments; what is not an argument is the
authors' choice. The networks of several seeds are trained beside each other by `torch.func.vmap`, each with its own
data: Adam and the losses act on each of them as if it were alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional


@dataclass(frozen=True)
class Crossing:
    """First measured steps with an accuracy of at least the level (infinity: never), and the accuracies at the end."""

    train: float
    test: float
    final_train: float
    final_test: float


class Ensemble:
    """Networks of one architecture. Parameters and outputs have a leading dimension of networks."""

    def __init__(self, networks: list[nn.Module]) -> None:
        self.parameters, self._buffers = stack_module_state(networks)
        self._call = vmap(lambda p, b, x: functional_call(networks[0], (p, b), (x,)))

    def __call__(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self._call(self.parameters, self._buffers, inputs)
        return outputs

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: w.grad for name, w in self.parameters.items() if w.grad is not None}


def watch(
    advance: Callable[[], None], right: Callable[[], Tensor], split: int, at: Iterable[int], level: float
) -> list[Crossing]:
    """Train to the last of the steps `at`; a network is followed until both accuracies are at least the level.

    `right` is (networks, examples), the training examples first.
    """
    done = 0
    seen: dict[int, Crossing] = {}
    ended: set[int] = set()
    for step in at:
        while done < step:
            advance()
            done += 1
        with torch.no_grad():
            now = right().double()
        pairs = zip(now[:, :split].mean(1).tolist(), now[:, split:].mean(1).tolist(), strict=True)
        for k, (train, test) in enumerate(pairs):
            if k in ended:
                continue
            before = seen.get(k, Crossing(math.inf, math.inf, 0.0, 0.0))
            first = (min(b, step) if a >= level else b for b, a in ((before.train, train), (before.test, test)))
            seen[k] = Crossing(*first, train, test)
            if min(train, test) >= level:
                ended.add(k)
        if len(ended) == len(now):
            break
    return [seen[k] for k in sorted(seen)]


def shuffled(rows: Tensor, seeds: int) -> Tensor:
    """(seeds, N, ...) the rows in a random order for each seed."""
    return torch.stack([rows[torch.randperm(len(rows))] for _ in range(seeds)])


# Liu et al. 2022: ejmichaud/grokking-squared, phase_diagram_plot/phase_diagram-classification.ipynb


class LiuNetwork(nn.Module):
    def __init__(self, p: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.rand(p, 1) - 0.5)
        self.decoder = nn.Sequential(
            nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2 * p - 1)
        )

    def forward(self, pairs: Tensor) -> Tensor:
        return torch.softmax(self.decoder(self.embedding[pairs[:, 0]] + self.embedding[pairs[:, 1]]), 1)


def liu(seeds: int, at: Iterable[int], level: float, *, width: int, rate: float, decay: float) -> list[Crossing]:
    torch.manual_seed(0)
    p, split = 10, 45
    pairs = shuffled(torch.triu_indices(p, p).T, seeds)
    answers = pairs.sum(2)
    one_hot = functional.one_hot(answers, 2 * p - 1).float()
    networks = Ensemble([LiuNetwork(p, width) for _ in range(seeds)])
    decoders = [w for name, w in networks.parameters.items() if name != "embedding"]
    optimisers = [
        torch.optim.Adam([networks.parameters["embedding"]], lr=1e-3),
        torch.optim.AdamW(decoders, lr=rate, weight_decay=decay),
    ]

    def advance() -> None:
        for optimiser in optimisers:
            optimiser.zero_grad()
        (-networks(pairs[:, :split]).log() * one_hot[:, :split]).mean((1, 2)).sum().backward()
        for optimiser in optimisers:
            optimiser.step()

    return watch(advance, lambda: networks(pairs).argmax(2) == answers, split, at, level)


# Doshi et al. 2023: d-doshi/Grokking, Training_scripts/phase_diagrams_wd.py and utils/


class DoshiNetwork(nn.Module):
    def __init__(self, p: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * p, width, bias=False), nn.Linear(width, p, bias=False)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.25**0.5 / (2 * width) ** (1 / 3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(inputs) ** 2)
        return outputs


def doshi(
    seeds: int, at: Iterable[int], level: float, *, p: int, width: int, fraction: float, noise: float, decay: float
) -> list[Crossing]:
    """The train accuracy is that of the noisy labels."""
    torch.manual_seed(0)
    pairs = shuffled(torch.cartesian_prod(torch.arange(p), torch.arange(p)), seeds)
    inputs, labels = functional.one_hot(pairs, p).float().flatten(2), pairs.sum(2) % p
    split = int(fraction * p * p)
    wrong = int(noise * split)
    labels[:, :wrong] = torch.randint(0, p, (seeds, wrong))
    target = functional.one_hot(labels, p).float()
    networks = Ensemble([DoshiNetwork(p, width) for _ in range(seeds)])
    optimiser = torch.optim.AdamW(networks.parameters.values(), lr=1e-2, weight_decay=decay, betas=(0.9, 0.98))

    def advance() -> None:
        optimiser.zero_grad()
        (functional.mse_loss(networks(inputs[:, :split]), target[:, :split]) * seeds).backward()
        optimiser.step()

    return watch(advance, lambda: networks(inputs).argmax(2) == labels, split, at, level)


# Prieto et al. 2025: LucasPrietoAl/grokking-at-the-edge-of-numerical-stability, grokking_experiments.py, orthograd.py


class PrietoNetwork(nn.Module):
    def __init__(self, p: int, width: int) -> None:
        super().__init__()
        sizes = (2 * p, width, width, p)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = layer(torch.relu(x) if k else x)
        return x


def prieto(
    seeds: int, at: Iterable[int], level: float, *, p: int, width: int, fraction: float, loss: str, orthogonal: bool
) -> list[Crossing]:
    """With orthogonal gradients, AdamW has PyTorch's own beta2 and epsilon, as in the authors' code.

    The loss is "softmax" (computed in float32) or "stablemax" (in float64).
    """
    torch.manual_seed(0)
    pairs = shuffled(torch.cartesian_prod(torch.arange(p), torch.arange(p)), seeds)
    inputs, labels = functional.one_hot(pairs, p).float().flatten(2), pairs.sum(2) % p
    split = int(fraction * p * p)
    networks = Ensemble([PrietoNetwork(p, width) for _ in range(seeds)])
    weights = networks.parameters.values()
    if orthogonal:
        optimiser = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0)
    else:
        optimiser = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-25)

    def advance() -> None:
        optimiser.zero_grad()
        outputs = networks(inputs[:, :split])
        if loss == "stablemax":
            wide = outputs.double()
            stable = torch.where(wide < 0, 1 / (1 - wide + 1e-30), wide + 1)
            logs = (stable / stable.sum(2, keepdim=True)).log()
        else:
            logs = functional.log_softmax(outputs, 2)
        (-logs.gather(2, labels[:, :split, None])).mean((1, 2)).sum().backward()
        for name, gradient in networks.gradients().items() if orthogonal else ():
            w, g = networks.parameters[name].detach().flatten(1), gradient.flatten(1)
            across = g - ((w * g).sum(1) / (w.square().sum(1) + 1e-30))[:, None] * w
            factor = g.norm(dim=1) / (across.norm(dim=1) + 1e-30)
            gradient.copy_((across * factor[:, None]).view_as(gradient))
        optimiser.step()

    return watch(advance, lambda: networks(inputs).argmax(2) == labels, split, at, level)

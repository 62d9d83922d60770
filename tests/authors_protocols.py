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


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Sum over networks of the mean over their rows: each network gets the gradient of its own mean."""
    return functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(0, 1)) * len(outputs)


def warmed(optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Ten steps of warm-up, the first of them with a learning rate of zero (Power, Nanda and Lee et al. alike)."""
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(step / 10, 1))


class Minibatches:
    """Rows of each network's training set: all of them once an epoch; the last batch of an epoch may be smaller."""

    def __init__(self, count: int, size: int, seeds: int) -> None:
        self._count, self._size, self._seeds = count, size, seeds
        self._waiting: list[Tensor] = []

    def draw(self) -> Tensor:
        """(seeds, batch)"""
        if not self._waiting:
            self._waiting = list(shuffled(torch.arange(self._count), self._seeds).split(self._size, 1))
        return self._waiting.pop(0)


# Nanda et al. 2023: mechanistic-interpretability-grokking/progress-measures-paper, transformers.py


class NandaNetwork(nn.Module):
    def __init__(self, p: int, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads

        def drawn(*shape: int, by: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) / math.sqrt(by))

        self.embed, self.position = drawn(p + 1, d, by=d), drawn(3, d, by=d)
        self.q, self.k, self.v, self.o = (drawn(d, d, by=d) for _ in range(4))
        self.w_in, self.b_in = drawn(d, 4 * d, by=d), nn.Parameter(torch.zeros(4 * d))
        self.w_out, self.b_out = drawn(4 * d, d, by=d), nn.Parameter(torch.zeros(d))
        self.unembed = drawn(d, p + 1, by=p + 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed[tokens] + self.position
        x = x + attention(x @ self.q, x @ self.k, x @ self.v, self.heads) @ self.o
        x = x + torch.relu(x @ self.w_in + self.b_in) @ self.w_out + self.b_out
        return (x @ self.unembed)[:, -1]


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Causal, of (B, T, d)."""
    q, k, v = (z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (query, key, value))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return (scores.masked_fill(later, -math.inf).softmax(3) @ v).transpose(1, 2).flatten(2)


def nanda(
    seeds: int, at: Iterable[int], level: float, *, p: int, d: int, heads: int, fraction: float, rate: float
) -> list[Crossing]:
    torch.manual_seed(0)
    pairs = shuffled(torch.cartesian_prod(torch.arange(p), torch.arange(p)), seeds)
    tokens = torch.cat([pairs, torch.full_like(pairs[:, :, :1], p)], 2)
    labels, split = pairs.sum(2) % p, int(fraction * p * p)
    networks = Ensemble([NandaNetwork(p, d, heads) for _ in range(seeds)])
    optimiser = torch.optim.AdamW(networks.parameters.values(), lr=rate, weight_decay=1.0, betas=(0.9, 0.98))
    scheduler = warmed(optimiser)

    def advance() -> None:
        optimiser.zero_grad()
        cross_entropy(networks(tokens[:, :split]), labels[:, :split]).backward()
        optimiser.step()
        scheduler.step()

    return watch(advance, lambda: networks(tokens).argmax(2) == labels, split, at, level)


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


# Power et al. 2022: openai/grok, grok/transformer.py, grok/training.py and grok/data.py


class PowerNetwork(nn.Module):
    def __init__(self, vocabulary: int, d: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(vocabulary, d)
        i, t = torch.arange(d), torch.arange(6)[:, None]
        angle = t / 10000 ** ((i - i % 2) / d)
        self.register_buffer("waves", torch.where(i % 2 == 0, angle.sin(), angle.cos()))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(d, d, bias=False) for name in "qkvo"}
                | {"up": nn.Linear(d, 4 * d, bias=False), "down": nn.Linear(4 * d, d, bias=False)}
                | {"norm_1": nn.LayerNorm(d), "norm_2": nn.LayerNorm(d)}
            )
            for _ in range(layers)
        )
        self.out = nn.Linear(d, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.waves
        for block in self.blocks:
            x = block["norm_1"](x + block["o"](attention(*(block[name](x) for name in "qkv"), self.heads)))
            x = block["norm_2"](x + block["down"](torch.relu(block["up"](x))))
        return self.out(x)


def power(
    seeds: int,
    at: Iterable[int],
    level: float,
    *,
    p: int,
    d: int,
    heads: int,
    layers: int,
    fraction: float,
    rate: float,
    vocabulary: int,
) -> list[Crossing]:
    """x + y. The tokens are end, x, the sign, y, "=", answer, end; each is predicted from those before it."""
    torch.manual_seed(0)
    x, y = shuffled(torch.cartesian_prod(torch.arange(p), torch.arange(p)), seeds).unbind(2)
    end, equals, sign = (torch.full_like(x, token) for token in (p, p + 1, p + 2))
    text = torch.stack([end, x, sign, y, equals, (x + y) % p, end], 2)
    given, target, split = text[:, :, :-1], text[:, :, 5:], round(fraction * p * p)
    batches = Minibatches(split, min(512, math.ceil(split / 2)), seeds)
    networks = Ensemble([PowerNetwork(vocabulary, d, heads, layers) for _ in range(seeds)])
    optimiser = torch.optim.AdamW(networks.parameters.values(), lr=rate, weight_decay=1.0, betas=(0.9, 0.98))
    scheduler = warmed(optimiser)
    network = torch.arange(seeds)[:, None]

    def advance() -> None:
        rows = batches.draw()
        optimiser.zero_grad()
        outputs = networks(given[network, rows])[:, :, 4:]
        cross_entropy(outputs.flatten(1, 2), target[network, rows].flatten(1, 2)).backward()
        optimiser.step()
        scheduler.step()

    return watch(advance, lambda: (networks(given)[:, :, 4:].argmax(3) == target).all(2), split, at, level)


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


# Lee et al. 2024: ironjr/grokfast, main.py and grokfast.py


class GrokfastBlock(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = nn.MultiheadAttention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        later = torch.full((len(x), len(x)), -math.inf).triu(1)
        x = self.norm_1(x)
        x = x + self.attention(x, x, x, attn_mask=later, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class GrokfastNetwork(nn.Module):
    def __init__(self, tokens: int, d: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(tokens, d), nn.Embedding(5, d)
        self.blocks = nn.Sequential(*(GrokfastBlock(d, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) tokens; the blocks have the positions first."""
        x = self.tokens(tokens.T) + self.positions(torch.arange(tokens.shape[1]))[:, None]
        outputs: Tensor = self.head(self.norm(self.blocks(x)))[-1]
        return outputs


def grokfast(
    seeds: int,
    at: Iterable[int],
    level: float,
    *,
    p: int,
    d: int,
    heads: int,
    layers: int,
    rate: float,
    decay: float,
    strength: float,
) -> list[Crossing]:
    torch.manual_seed(0)
    x, y = shuffled(torch.cartesian_prod(torch.arange(p), torch.arange(1, p)), seeds).unbind(2)
    tokens = torch.stack([x, torch.full_like(x, p + 1), y, torch.full_like(x, p)], 2)
    labels, split = x * y % p, x.shape[1] // 2
    batches = Minibatches(split, 512, seeds)
    networks = Ensemble([GrokfastNetwork(p + 2, d, heads, layers) for _ in range(seeds)])
    optimiser = torch.optim.Adam(networks.parameters.values(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    scheduler = warmed(optimiser)
    averages: dict[str, Tensor] = {}
    network = torch.arange(seeds)[:, None]

    def advance() -> None:
        rows = batches.draw()
        optimiser.zero_grad()
        cross_entropy(networks(tokens[network, rows]), labels[network, rows]).backward()
        for name, gradient in networks.gradients().items():
            average = averages.setdefault(name, gradient.clone())
            average.mul_(0.98).add_(gradient, alpha=0.02)
            gradient.add_(average, alpha=strength)
        optimiser.step()
        scheduler.step()

    return watch(advance, lambda: networks(tokens).argmax(2) == labels, split, at, level)


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

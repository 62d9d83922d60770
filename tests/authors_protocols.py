"""The protocols of grokking papers as their authors train them, in plain PyTorch: one network at a time, float32.

Written anew from the papers and the authors' repositories, which configs/README.md names. Nothing here is shared with
`jobs`, apart from the steps at which the accuracies are measured. Sizes are arguments; what is not an argument is the
authors' choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Crossing:
    """First measured steps with an accuracy of at least the level (infinity: never), and the accuracies at the end."""

    train: float
    test: float
    final_train: float
    final_test: float


def watch(
    advance: Callable[[], None], accuracies: Callable[[], tuple[float, float]], at: Iterable[int], level: float
) -> Crossing:
    """Train to the last of the steps `at`, or until both accuracies have reached the level at one of them."""
    done, first = 0, [math.inf, math.inf]
    now = (0.0, 0.0)
    for step in at:
        while done < step:
            advance()
            done += 1
        with torch.no_grad():
            now = accuracies()
        first = [min(f, step) if a >= level else f for f, a in zip(first, now, strict=True)]
        if min(now) >= level:
            break
    return Crossing(first[0], first[1], now[0], now[1])


def warmed(optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Ten steps of warm-up, the first of them with a learning rate of zero (Power, Nanda and Lee et al. alike)."""
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(step / 10, 1))


def share(right: Tensor) -> float:
    return float(right.double().mean())


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
        q, k, v = ((x @ w).unflatten(2, (self.heads, -1)).transpose(1, 2) for w in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(2) @ self.o
        x = x + torch.relu(x @ self.w_in + self.b_in) @ self.w_out + self.b_out
        return (x @ self.unembed)[:, -1]


def nanda(
    seed: int,
    at: Iterable[int],
    *,
    p: int,
    d: int,
    heads: int,
    fraction: float,
    rate: float,
    decay: float = 1.0,
    level: float = 0.9,
) -> Crossing:
    torch.manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))[torch.randperm(p * p)]
    tokens = torch.cat([pairs, torch.full((p * p, 1), p)], 1)
    labels, split = pairs.sum(1) % p, int(fraction * p * p)
    network = NandaNetwork(p, d, heads)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    scheduler = warmed(optimiser)

    def advance() -> None:
        functional.cross_entropy(network(tokens[:split]), labels[:split]).backward()
        optimiser.step()
        scheduler.step()
        optimiser.zero_grad()

    def accuracies() -> tuple[float, float]:
        right = network(tokens).argmax(1) == labels
        return share(right[:split]), share(right[split:])

    return watch(advance, accuracies, at, level)


# Liu et al. 2022: ejmichaud/grokking-squared, phase_diagram_plot/phase_diagram-classification.ipynb


def liu(
    seed: int,
    at: Iterable[int],
    *,
    width: int,
    rate: float,
    decay: float,
    p: int = 10,
    train: int = 45,
    level: float = 0.9,
) -> Crossing:
    torch.manual_seed(seed)
    x, y = torch.triu_indices(p, p)[:, torch.randperm(p * (p + 1) // 2)]
    answers, count = x + y, 2 * p - 1
    embedding = nn.Parameter(torch.rand(p, 1) - 0.5)
    decoder = nn.Sequential(
        nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, count), nn.Softmax(1)
    )
    one_hot = functional.one_hot(answers, count).float()
    optimisers = [
        torch.optim.Adam([embedding], lr=1e-3),
        torch.optim.AdamW(decoder.parameters(), lr=rate, weight_decay=decay),
    ]

    def advance() -> None:
        for optimiser in optimisers:
            optimiser.zero_grad()
        outputs = decoder(embedding[x[:train]] + embedding[y[:train]])
        (-outputs.log() * one_hot[:train]).mean().backward()
        for optimiser in optimisers:
            optimiser.step()

    def accuracies() -> tuple[float, float]:
        right = decoder(embedding[x] + embedding[y]).argmax(1) == answers
        return share(right[:train]), share(right[train:])

    return watch(advance, accuracies, at, level)


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
            q, k, v = (block[name](x).unflatten(2, (self.heads, -1)).transpose(1, 2) for name in "qkv")
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = block["norm_1"](x + block["o"](mixed))
            x = block["norm_2"](x + block["down"](torch.relu(block["up"](x))))
        return self.out(x)


def power(
    seed: int,
    at: Iterable[int],
    *,
    p: int,
    d: int,
    heads: int,
    layers: int,
    fraction: float,
    rate: float,
    vocabulary: int,
    decay: float = 1.0,
    level: float = 0.9,
) -> Crossing:
    """x + y. The tokens are end, x, the sign, y, "=", answer, end; each is predicted from those before it."""
    torch.manual_seed(seed)
    x, y = torch.cartesian_prod(torch.arange(p), torch.arange(p))[torch.randperm(p * p)].T
    end, equals, sign = (torch.full_like(x, token) for token in (p, p + 1, p + 2))
    text = torch.stack([end, x, sign, y, equals, (x + y) % p, end], 1)
    given, target, split = text[:, :-1], text[:, 1:], round(fraction * p * p)
    batch = min(512, math.ceil(split / 2))
    network = PowerNetwork(vocabulary, d, heads, layers)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    scheduler = warmed(optimiser)
    waiting: list[Tensor] = []

    def advance() -> None:
        if not waiting:
            waiting.extend(torch.randperm(split).split(batch))
        rows = waiting.pop(0)
        optimiser.zero_grad()
        outputs = network(given[rows])[:, 4:].transpose(1, 2)
        functional.cross_entropy(outputs, target[rows, 4:]).backward()
        optimiser.step()
        scheduler.step()

    def accuracies() -> tuple[float, float]:
        right = (network(given)[:, 4:].argmax(2) == target[:, 4:]).all(1)
        return share(right[:split]), share(right[split:])

    return watch(advance, accuracies, at, level)


# Doshi et al. 2023: d-doshi/Grokking, Training_scripts/phase_diagrams_wd.py and utils/


def doshi(
    seed: int, at: Iterable[int], *, p: int, width: int, fraction: float, noise: float, decay: float, level: float = 0.9
) -> Crossing:
    """The train accuracy is that of the noisy labels."""
    torch.manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))[torch.randperm(p * p)]
    inputs, labels = functional.one_hot(pairs, p).float().flatten(1), pairs.sum(1) % p
    split = int(fraction * p * p)
    wrong = int(noise * split)
    labels[:wrong] = torch.randint(0, p, (wrong,))
    first, second = nn.Linear(2 * p, width, bias=False), nn.Linear(width, p, bias=False)
    for layer in (first, second):
        nn.init.normal_(layer.weight, std=0.25**0.5 / (2 * width) ** (1 / 3))
    weights = [first.weight, second.weight]
    optimiser = torch.optim.AdamW(weights, lr=1e-2, weight_decay=decay, betas=(0.9, 0.98))
    target = functional.one_hot(labels, p).float()

    def advance() -> None:
        optimiser.zero_grad()
        functional.mse_loss(second(first(inputs[:split]) ** 2), target[:split]).backward()
        optimiser.step()

    def accuracies() -> tuple[float, float]:
        right = second(first(inputs) ** 2).argmax(1) == labels
        return share(right[:split]), share(right[split:])

    return watch(advance, accuracies, at, level)


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
    """Sequences are the first dimension."""

    def __init__(self, tokens: int, d: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(tokens, d), nn.Embedding(5, d)
        self.blocks = nn.Sequential(*(GrokfastBlock(d, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(len(tokens)))[:, None]
        return self.head(self.norm(self.blocks(x)))[-1]


def grokfast(
    seed: int,
    at: Iterable[int],
    *,
    p: int,
    d: int,
    heads: int,
    layers: int,
    rate: float,
    decay: float,
    strength: float,
    level: float = 0.9,
) -> Crossing:
    torch.manual_seed(seed)
    x, y = torch.cartesian_prod(torch.arange(p), torch.arange(1, p))[torch.randperm(p * (p - 1))].T
    tokens = torch.stack([x, torch.full_like(x, p + 1), y, torch.full_like(x, p)])
    labels, split = x * y % p, len(x) // 2
    network = GrokfastNetwork(p + 2, d, heads, layers)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    scheduler = warmed(optimiser)
    waiting: list[Tensor] = []
    averages: list[Tensor] = []

    def advance() -> None:
        if not waiting:
            waiting.extend(torch.randperm(split).split(512))
        rows = waiting.pop(0)
        network.zero_grad()
        functional.cross_entropy(network(tokens[:, rows]), labels[rows]).backward()
        gradients = [w.grad for w in network.parameters() if w.grad is not None]
        if not averages:
            averages.extend(g.clone() for g in gradients)
        for average, gradient in zip(averages, gradients, strict=True):
            average.mul_(0.98).add_(gradient, alpha=0.02)
            gradient.add_(average, alpha=strength)
        optimiser.step()
        scheduler.step()

    def accuracies() -> tuple[float, float]:
        right = network(tokens).argmax(1) == labels
        return share(right[:split]), share(right[split:])

    return watch(advance, accuracies, at, level)


# Prieto et al. 2025: LucasPrietoAl/grokking-at-the-edge-of-numerical-stability, grokking_experiments.py, orthograd.py


def prieto(
    seed: int,
    at: Iterable[int],
    *,
    p: int,
    width: int,
    fraction: float,
    loss: str,
    orthogonal: bool,
    beta2: float = 0.99,
    level: float = 0.9,
) -> Crossing:
    """With orthogonal gradients, AdamW has PyTorch's own beta2 and epsilon, as in the authors' code.

    The loss is "softmax" (computed in float32) or "stablemax" (in float64).
    """
    torch.manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))[torch.randperm(p * p)]
    inputs, labels = functional.one_hot(pairs, p).float().flatten(1), pairs.sum(1) % p
    split = int(fraction * p * p)
    network = nn.Sequential(
        nn.Linear(2 * p, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, p, bias=False),
    )
    own = {} if orthogonal else {"betas": (0.9, beta2), "eps": 1e-25}
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.0, **own)

    def advance() -> None:
        optimiser.zero_grad()
        outputs = network(inputs[:split])
        if loss == "stablemax":
            wide = outputs.double()
            stable = torch.where(wide < 0, 1 / (1 - wide + 1e-30), wide + 1)
            logs = (stable / stable.sum(1, keepdim=True)).log()
        else:
            logs = functional.log_softmax(outputs, 1)
        (-logs.gather(1, labels[:split, None])).mean().backward()
        for w in network.parameters() if orthogonal else ():
            assert w.grad is not None
            g, flat = w.grad.flatten(), w.detach().flatten()
            across = g - (flat @ g) / (flat @ flat + 1e-30) * flat
            w.grad.copy_((across * (g.norm() / (across.norm() + 1e-30))).view_as(w))
        optimiser.step()

    def accuracies() -> tuple[float, float]:
        right = network(inputs).argmax(1) == labels
        return share(right[:split]), share(right[split:])

    return watch(advance, accuracies, at, level)

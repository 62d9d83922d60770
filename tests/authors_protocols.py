"""The protocols of grokking papers as their authors train them, in plain PyTorch, float32.

Written anew from the papers and the authors' repositories, which configs/README.md names. Nothing here is shared with
`jobs`. Sizes are arguments; what is not an argument is the authors' choice. The networks of several seeds are trained
beside each other by `torch.func.vmap`, each with its own data: Adam and the losses act on each of them as if it were
alone. A function trains `seeds` networks to the last of the steps `at`, and measures them at each of those. It draws
from torch's generator and runs on torch's default device.

Shapes in networks: B pairs, T tokens, d width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Watched:
    """(networks, measured steps) accuracy on the training and on the other pairs, and the norm of all weights."""

    train: np.ndarray
    test: np.ndarray
    norm: np.ndarray


class Ensemble:
    """Networks of one architecture. Parameters and outputs have a leading dimension of networks."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.parameters, self._buffers = stack_module_state(list(networks))
        self._call = vmap(lambda p, b, x: functional_call(networks[0], (p, b), (x,)))

    def __call__(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self._call(self.parameters, self._buffers, inputs)
        return outputs

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: w.grad for name, w in self.parameters.items() if w.grad is not None}

    def norms(self) -> Tensor:
        squares = [w.detach().double().square().flatten(1).sum(1) for w in self.parameters.values()]
        return torch.stack(squares).sum(0).sqrt()


def watch(
    networks: Ensemble, advance: Callable[[], None], right: Callable[[], Tensor], split: int, at: Sequence[int]
) -> Watched:
    """Call `advance` once a step. `right` is (networks, pairs), the training pairs first."""
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for before, step in itertools.pairwise([0, *at]):
        for _ in range(step - before):
            advance()
        with torch.no_grad():
            now = right().double()
        rows.append((now[:, :split].mean(1), now[:, split:].mean(1), networks.norms()))
    train, test, norm = (torch.stack(column, 1).cpu().numpy() for column in zip(*rows, strict=True))
    return Watched(train=train, test=test, norm=norm)


def shuffled(rows: Tensor, seeds: int) -> Tensor:
    """(seeds, N, ...) the rows in a random order for each seed."""
    return torch.stack([rows[torch.randperm(len(rows))] for _ in range(seeds)])


def table(p: int, seeds: int, *, first_y: int = 0) -> tuple[Tensor, Tensor]:
    """x and y, (seeds, N) each, of all pairs in a random order; y starts at `first_y`."""
    x, y = shuffled(torch.cartesian_prod(torch.arange(p), torch.arange(first_y, p)), seeds).unbind(2)
    return x, y


def sum_of_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """The sum over networks of each one's mean cross-entropy; (networks, ..., classes) and (networks, ...)."""
    every = functional.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="none")
    return every.view(len(outputs), -1).mean(1).sum()


def ten_step_warm_up(optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Rate 0 at the first step, a tenth more at each further one: Power, Nanda and Lee et al. alike."""
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, step / 10))


class Epochs:
    """Batches of each network's training pairs: a new order every epoch, whose last batch may be smaller."""

    def __init__(self, count: int, size: int, seeds: int) -> None:
        self._count, self._size, self._seeds = count, size, seeds
        self._rest: list[Tensor] = []

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Index of networks (seeds, 1) and of pairs (seeds, batch)."""
        if not self._rest:
            self._rest = list(shuffled(torch.arange(self._count), self._seeds).split(self._size, 1))
        return torch.arange(self._seeds)[:, None], self._rest.pop(0)


def heads_attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Causal attention; all are (B, T, d)."""
    q, k, v = (z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (query, key, value))
    past = torch.ones(q.shape[2], q.shape[2]).tril().bool()
    scores = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~past, -math.inf)
    return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)


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


def liu(seeds: int, at: Sequence[int], *, width: int, rate: float, decay: float) -> Watched:
    """x + y of the 55 unordered pairs of 0 to 9."""
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

    return watch(networks, advance, lambda: networks(pairs).argmax(2) == answers, split, at)


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


def doshi(seeds: int, at: Sequence[int], *, p: int, width: int, fraction: float, noise: float, decay: float) -> Watched:
    """The training accuracy is that of the noisy labels."""
    x, y = table(p, seeds)
    inputs, labels = functional.one_hot(torch.stack([x, y], 2), p).float().flatten(2), (x + y) % p
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

    return watch(networks, advance, lambda: networks(inputs).argmax(2) == labels, split, at)


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


def stablemax_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """As `sum_of_losses`, of StableMax computed in float64."""
    wide = outputs.double()
    stable = torch.where(wide < 0, 1 / (1 - wide + 1e-30), wide + 1)
    logs = (stable / stable.sum(2, keepdim=True)).log()
    return (-logs.gather(2, labels[:, :, None])).mean((1, 2)).sum()


def prieto(
    seeds: int, at: Sequence[int], *, p: int, width: int, fraction: float, rate: float, stablemax: bool
) -> Watched:
    """StableMax in float64; or cross-entropy in float32 with orthogonal gradients (perpGrad).

    With orthogonal gradients, AdamW has PyTorch's own beta2 and epsilon: the authors' values do not reach it.
    """
    x, y = table(p, seeds)
    inputs, labels = functional.one_hot(torch.stack([x, y], 2), p).float().flatten(2), (x + y) % p
    split = int(fraction * p * p)
    networks = Ensemble([PrietoNetwork(p, width) for _ in range(seeds)])
    epsilon = 1e-25 if stablemax else 1e-8
    optimiser = torch.optim.AdamW(
        networks.parameters.values(), lr=rate, weight_decay=0.0, betas=(0.9, 0.999), eps=epsilon
    )
    loss = stablemax_loss if stablemax else sum_of_losses

    def advance() -> None:
        optimiser.zero_grad()
        loss(networks(inputs[:, :split]), labels[:, :split]).backward()
        if not stablemax:
            for name, gradient in networks.gradients().items():
                make_orthogonal(gradient, networks.parameters[name].detach())
        optimiser.step()

    return watch(networks, advance, lambda: networks(inputs).argmax(2) == labels, split, at)


def make_orthogonal(gradient: Tensor, weight: Tensor) -> None:
    """Remove each network's component along its weight, and restore the norm."""
    w, g = weight.flatten(1), gradient.flatten(1)
    across = g - ((w * g).sum(1) / (w.square().sum(1) + 1e-30))[:, None] * w
    factor = g.norm(dim=1) / (across.norm(dim=1) + 1e-30)
    gradient.copy_((across * factor[:, None]).view_as(gradient))


# Nanda et al. 2023: mechanistic-interpretability-grokking/progress-measures-paper, transformers.py, helpers.py


def normal(*shape: int, by: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / math.sqrt(by))


class NandaNetwork(nn.Module):
    """One block without layer norm; attention has no biases, the perceptron has. p + 1 outputs."""

    def __init__(self, p: int, d: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.token, self.place = normal(p + 1, d, by=d), normal(3, d, by=d)
        self.qkv, self.mix = normal(3, d, d, by=d), normal(d, d, by=d)
        self.up, self.up_bias = normal(d, 4 * d, by=d), nn.Parameter(torch.zeros(4 * d))
        self.down, self.down_bias = normal(4 * d, d, by=d), nn.Parameter(torch.zeros(d))
        self.out = normal(d, p + 1, by=p + 1)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.token[tokens] + self.place
        stream = stream + heads_attend(*(stream @ w for w in self.qkv), self._heads) @ self.mix
        stream = stream + (stream @ self.up + self.up_bias).relu() @ self.down + self.down_bias
        return stream[:, -1] @ self.out


def nanda(
    seeds: int, at: Sequence[int], *, p: int, d: int, heads: int, fraction: float, rate: float, decay: float
) -> Watched:
    """x + y from the tokens x, y, "="."""
    x, y = table(p, seeds)
    tokens, labels, split = torch.stack([x, y, torch.full_like(x, p)], 2), (x + y) % p, int(fraction * p * p)
    networks = Ensemble([NandaNetwork(p, d, heads) for _ in range(seeds)])
    optimiser = torch.optim.AdamW(networks.parameters.values(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    scheduler = ten_step_warm_up(optimiser)

    def advance() -> None:
        sum_of_losses(networks(tokens[:, :split]), labels[:, :split]).backward()
        optimiser.step()
        scheduler.step()
        optimiser.zero_grad()

    return watch(networks, advance, lambda: networks(tokens).argmax(2) == labels, split, at)


# Lee et al. 2024 (Grokfast): ironjr/grokfast, main.py, grokfast.py


class GrokfastAttention(nn.Module):
    """`torch.nn.MultiheadAttention` with its initial weights, in operations that `vmap` knows."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.inputs = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * d, d)))
        self.input_bias = nn.Parameter(torch.zeros(3 * d))
        self.mix = nn.Linear(d, d)
        nn.init.zeros_(self.mix.bias)

    def forward(self, stream: Tensor) -> Tensor:
        parts = functional.linear(stream, self.inputs, self.input_bias).chunk(3, 2)
        mixed: Tensor = self.mix(heads_attend(*parts, self._heads))
        return mixed


class GrokfastBlock(nn.Module):
    """Layer norm before each sublayer; attention is added to its normalised input."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_perceptron = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = GrokfastAttention(d, heads)
        self.perceptron = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, stream: Tensor) -> Tensor:
        stream = self.before_attention(stream)
        stream = stream + self.attention(stream)
        return stream + self.perceptron(self.before_perceptron(stream))


class GrokfastNetwork(nn.Module):
    def __init__(self, tokens: int, d: int, heads: int, layers: int) -> None:
        super().__init__()
        # The authors' table has a fifth place, which is never read.
        self.token, self.place = nn.Embedding(tokens, d), nn.Parameter(torch.randn(4, d))
        self.decoder = nn.Sequential(*(GrokfastBlock(d, heads) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(d), nn.Linear(d, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.norm(self.decoder(self.token(tokens) + self.place)[:, -1]))
        return outputs


def grokfast(
    seeds: int,
    at: Sequence[int],
    *,
    p: int,
    d: int,
    heads: int,
    layers: int,
    batch: int,
    fraction: float,
    rate: float,
    decay: float,
    alpha: float,
    strength: float,
) -> Watched:
    """x y for 0 < y < p from the tokens "x op y ="; the authors train on half of them. The decay is an L2 term."""
    x, y = table(p, seeds, first_y=1)
    tokens = torch.stack([x, torch.full_like(x, p + 1), y, torch.full_like(x, p)], 2)
    labels, split = x * y % p, int(fraction * x.shape[1])
    batches = Epochs(split, batch, seeds)
    networks = Ensemble([GrokfastNetwork(p + 2, d, heads, layers) for _ in range(seeds)])
    optimiser = torch.optim.Adam(networks.parameters.values(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    scheduler = ten_step_warm_up(optimiser)
    averages: dict[str, Tensor] = {}

    def advance() -> None:
        rows = next(batches)
        optimiser.zero_grad()
        sum_of_losses(networks(tokens[rows]), labels[rows]).backward()
        for name, gradient in networks.gradients().items():
            averages[name] = alpha * averages.get(name, gradient.clone()) + (1 - alpha) * gradient
            gradient += strength * averages[name]
        optimiser.step()
        scheduler.step()

    return watch(networks, advance, lambda: networks(tokens).argmax(2) == labels, split, at)


# Power et al. 2022: openai/grok, grok/transformer.py, grok/training.py, grok/data.py


class PowerBlock(nn.Module):
    """Layer norm after each sublayer; no biases but the norms'."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.perceptron = nn.Sequential(nn.Linear(d, 4 * d, bias=False), nn.ReLU(), nn.Linear(4 * d, d, bias=False))
        self.after_attention, self.after_perceptron = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, stream: Tensor) -> Tensor:
        mixed = heads_attend(self.query(stream), self.key(stream), self.value(stream), self._heads)
        stream = self.after_attention(stream + self.mix(mixed))
        normed: Tensor = self.after_perceptron(stream + self.perceptron(stream))
        return normed


class PowerNetwork(nn.Module):
    def __init__(self, vocabulary: int, d: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, d)
        waves = [
            [
                math.sin(place / 10_000 ** (i / d)) if i % 2 == 0 else math.cos(place / 10_000 ** ((i - 1) / d))
                for i in range(d)
            ]
            for place in range(6)
        ]
        self.register_buffer("waves", torch.tensor(waves))
        self.decoder = nn.Sequential(*(PowerBlock(d, heads) for _ in range(layers)))
        self.out = nn.Linear(d, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, vocabulary): after each token, what the next one is."""
        outputs: Tensor = self.out(self.decoder(self.token(tokens) + self.waves))
        return outputs


def power(
    seeds: int,
    at: Sequence[int],
    *,
    p: int,
    d: int,
    heads: int,
    layers: int,
    fraction: float,
    rate: float,
    decay: float,
) -> Watched:
    """The text is "end x + y = z end"; loss and accuracy are of what follows "=".

    The tokenizer knows two special tokens, 20 operators, p numbers and 120 permutations. The authors split the pairs
    once for all seeds.
    """
    x, y = table(p, seeds)
    end, equals, plus = (torch.full_like(x, p + k) for k in range(3))
    text = torch.stack([end, x, plus, y, equals, (x + y) % p, end], 2)
    given, wanted, split = text[:, :, :-1], text[:, :, 5:], round(fraction * p * p)
    batches = Epochs(split, min(512, math.ceil(split / 2)), seeds)
    networks = Ensemble([PowerNetwork(2 + 20 + p + 120, d, heads, layers) for _ in range(seeds)])
    optimiser = torch.optim.AdamW(networks.parameters.values(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    scheduler = ten_step_warm_up(optimiser)

    def advance() -> None:
        rows = next(batches)
        optimiser.zero_grad()
        sum_of_losses(networks(given[rows])[:, :, 4:], wanted[rows]).backward()
        optimiser.step()
        scheduler.step()

    def right() -> Tensor:
        parts = [networks(given[:, part])[:, :, 4:].argmax(3) for part in torch.arange(p * p).split(1024)]
        return (torch.cat(parts, 1) == wanted).all(2)

    return watch(networks, advance, right, split, at)

"""A grokking trial in plain PyTorch: one model, one-hot or embedding inputs, every position, autograd, float64.

It starts from the weights, split, labels and batches of the packed trial and shares none of its arithmetic.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.grokking import digits
from jobs.grokking.block import ModularBlock
from jobs.grokking.job import Grokking
from jobs.grokking.modular import operation_pairs
from jobs.grokking.pack import make_block
from jobs.grokking.params import GrokkingParams
from jobs.job import Member


class PlainQuadratic(nn.Module):
    """f(a, b) = W2 (W1 [onehot a, onehot b])^2."""

    def __init__(self, layers: Sequence[Tensor], width: int, elements: int) -> None:
        super().__init__()
        u, v, w2 = layers
        self.w1 = nn.Parameter(torch.cat([u[:, :width].T, v[:, :width].T], 1))
        self.w2 = nn.Parameter(w2[:elements, :width].clone())
        self.elements = elements

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        one_hot = torch.cat([functional.one_hot(z, self.elements) for z in (x, y)], 1).double()
        return ((one_hot @ self.w1.T) ** 2) @ self.w2.T


class PlainEmbedding(nn.Module):
    """Embeddings (or one-hot vectors) of both elements, concatenated or added, through hidden layers to a readout."""

    def __init__(self, layers: Sequence[Tensor], params: GrokkingParams) -> None:
        super().__init__()
        self.params = params
        rest = list(layers)
        self.embedding = nn.Embedding.from_pretrained(rest.pop(0), freeze=False) if params.embedding else None
        first = rest.pop(0) if params.combine == "sum" else torch.cat([rest.pop(0), rest.pop(0)])
        self.network = plain_perceptron([first, *rest], params)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        vectors = [
            self.embedding(z) if self.embedding else functional.one_hot(z, self.params.elements).double()
            for z in (x, y)
        ]
        return self.network(vectors[0] + vectors[1] if self.params.combine == "sum" else torch.cat(vectors, 1))


class PlainImage(nn.Module):
    """Pixels through hidden layers to a readout."""

    def __init__(self, layers: Sequence[Tensor], params: GrokkingParams) -> None:
        super().__init__()
        self.pixels = torch.from_numpy(digits.load(params.operation, params.archive)[0]).double()
        self.network = plain_perceptron(layers, params)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(self.pixels[x])


def plain_perceptron(layers: Sequence[Tensor], params: GrokkingParams) -> nn.Sequential:
    """First layer, bias, then further layers with theirs, readout (O, W) and its bias."""
    first, bias, *rest, readout, offsets = layers
    width, outputs = params.width, params.outputs
    activation = nn.ReLU if params.activation == "relu" else nn.Tanh
    linear: list[nn.Module] = [_linear(first[:, :width], bias[0, :width])]
    for weight, offset in zip(rest[0::2], rest[1::2], strict=True):
        linear += [activation(), _linear(weight[:width, :width], offset[0, :width])]
    last = _linear(readout[:outputs, :width].T, offsets[:outputs, 0])
    network = nn.Sequential(*linear, activation(), last)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(params.biases or "bias" not in name)
    return network


class PlainTransformer(nn.Module):
    """Tokens x, y, "=": causal attention head by head at every position; the last position is read out."""

    def __init__(self, layers: Sequence[Tensor], elements: int, *, heads: int, blocks: int, norm: bool) -> None:
        super().__init__()
        tokens, positions, *rest = layers
        self.tokens = nn.Embedding.from_pretrained(tokens, freeze=False)
        self.positions = nn.Parameter(positions.clone())
        self.equals, self.heads, self.norm = elements, heads, norm
        size = 12 if norm else 8
        self.blocks = nn.ModuleList(
            nn.ParameterList(w.clone() for w in rest[k * size : (k + 1) * size]) for k in range(blocks)
        )
        self.readout = nn.Parameter(rest[-1][:elements].clone())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        tokens = torch.stack([x, y, torch.full_like(x, self.equals)], 1)
        stream = self.tokens(tokens) + self.positions
        for block in self.blocks:
            query, key, value, output, w_in, b_in, w_out, b_out, *norms = block
            stream = stream + self.attention(stream @ query, stream @ key, stream @ value) @ output
            stream = self.normal(stream, norms[:2])
            stream = stream + (torch.relu(stream @ w_in + b_in) @ w_out + b_out)
            stream = self.normal(stream, norms[2:])
        return (stream @ self.readout.T)[:, -1]

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        past = torch.ones(3, 3, dtype=torch.bool).tril()
        mixed = []
        for q, k, v in zip(*(z.chunk(self.heads, dim=2) for z in (query, key, value)), strict=True):
            score = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
            mixed.append(torch.softmax(score.masked_fill(~past, -math.inf), 2) @ v)
        return torch.cat(mixed, 2)

    def normal(self, stream: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        if not self.norm:
            return stream
        gain, offset = (z.squeeze(0) for z in parameters)
        return functional.layer_norm(stream, stream.shape[-1:], gain, offset)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.shape, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(bias)
    return layer


def plain_network(params: GrokkingParams, layers: Sequence[Tensor]) -> nn.Module:
    layers = [layer.double() for layer in layers]
    if params.model == "quadratic_mlp":
        return PlainQuadratic(layers, params.width, params.elements)
    if params.model == "embedding_mlp":
        return PlainEmbedding(layers, params)
    if params.model == "image_mlp":
        return PlainImage(layers, params)
    return PlainTransformer(layers, params.elements, heads=params.heads, blocks=params.layers, norm=params.layer_norm)


def plain_optimiser(params: GrokkingParams, network: nn.Module) -> torch.optim.Optimizer:
    common = {"lr": params.learning_rate, "weight_decay": params.weight_decay}
    if params.optimiser == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=params.momentum, **common)
    kind = torch.optim.AdamW if params.optimiser == "adamw" else torch.optim.Adam
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if isinstance(network, PlainEmbedding) and network.embedding:
        embedding = list(network.embedding.parameters())
        groups = [{"params": embedding}, {"params": list(network.network.parameters())}]
        if params.embedding_learning_rate:
            groups[0]["lr"] = params.embedding_learning_rate
        if not params.decay_embedding:
            groups[0]["weight_decay"] = 0.0
    return kind(groups, betas=(params.beta1, params.beta2), eps=params.epsilon, **common)


class PlainFilter:
    """Grokfast and perpGrad on the gradients of a network, by the papers' formulas."""

    def __init__(self, params: GrokkingParams, network: nn.Module) -> None:
        self.params, self.weights = params, list(network.parameters())
        self.averages: list[Tensor] = []

    @torch.no_grad()
    def apply(self) -> None:
        params, gradients = self.params, [w.grad for w in self.weights]
        if params.grokfast_lambda:
            alpha = params.grokfast_alpha
            before = self.averages or [g.clone() for g in gradients]
            self.averages = [alpha * a + (1 - alpha) * g for a, g in zip(before, gradients, strict=True)]
            for g, a in zip(gradients, self.averages, strict=True):
                g += params.grokfast_lambda * a
        if params.perp_grad == "layers":
            for w, g in zip(self.weights, gradients, strict=True):
                if w.square().sum() > 0:
                    g -= (w * g).sum() / (w * w).sum() * w
        elif params.perp_grad == "whole":
            w, g = (torch.cat([z.flatten() for z in column]) for column in (self.weights, gradients))
            share = (w @ g) / (w @ w)
            for weight, gradient in zip(self.weights, gradients, strict=True):
                gradient -= share * weight


def plain_loss(params: GrokkingParams, outputs: Tensor, label: Tensor) -> Tensor:
    if params.loss == "cross_entropy":
        return functional.cross_entropy(outputs, label)
    if params.loss == "stablemax":
        # Either branch is finite everywhere, as the gradient of a choice between them asks for.
        stable = torch.where(outputs >= 0, outputs + 1, 1 / (1 + outputs.abs()))
        return -(stable / stable.sum(1, keepdim=True)).gather(1, label[:, None]).log().mean()
    return (outputs - functional.one_hot(label, params.outputs)).square().sum(1).mean() / 2


def examples(params: GrokkingParams) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and the right answer of the whole table (of an image: its number, nothing, its class)."""
    if params.images:
        classes = torch.from_numpy(digits.load(params.operation, params.archive)[1])
        return torch.arange(len(classes)), torch.zeros_like(classes), classes
    x, y, result = (torch.from_numpy(column) for column in operation_pairs(params.operation, params.modulus))
    return x, y, result


def fresh_block(members: Sequence[Member[GrokkingParams]]) -> ModularBlock:
    """The block that a pack of these members starts from."""
    return make_block(members, "cpu")


def plain_curves(member: Member[GrokkingParams], steps: Sequence[int]) -> Mapping[str, np.ndarray]:
    """The trial in plain PyTorch, from the weights, labels, split and batches that the packed one starts from."""
    params, block = member.params, fresh_block([member])
    network = plain_network(params, [view[0].clone() for view in block.parameters.views()])
    optimiser, filtered = plain_optimiser(params, network), PlainFilter(params, network)
    x, y, result = examples(params)
    order, noisy = block.pairs.order_MP[0], block.pairs.labels_MP[0]
    train, test = order[: params.train_pairs], order[params.train_pairs :]
    curves: dict[str, list[float]] = {name: [] for name in Grokking.metrics}
    rates = [group["lr"] for group in optimiser.param_groups]
    for step in range(max(steps)):
        batch = train if params.batch == params.train_pairs else train[block.batches.draw(step, 1)[0, 0]]
        assert len(batch) == params.batch
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / max(1, params.warmup_steps))
        optimiser.zero_grad()
        plain_loss(params, network(x[batch], y[batch]), noisy[batch]).backward()
        filtered.apply()
        optimiser.step()
        if step + 1 not in steps:
            continue
        with torch.no_grad():
            for name, rows, label in (("train", train, noisy), ("test", test, result)):
                outputs = network(x[rows], y[rows])
                curves[f"{name}_loss"].append(plain_loss(params, outputs, label[rows]).item())
                curves[f"{name}_accuracy"].append((outputs.argmax(1) == label[rows]).double().mean().item())
            squares = sum(weight.square().sum() for weight in network.parameters())
            curves["weight_norm"].append(math.sqrt(float(squares)))
    return {name: np.array(values) for name, values in curves.items()}

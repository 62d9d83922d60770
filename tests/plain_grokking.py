"""A grokking trial in plain PyTorch: one model, one-hot or embedding inputs, every position, autograd, float64.

It starts from the weights, split, labels and batches of the packed trial and shares none of its arithmetic.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.data.modular import operation_pairs
from jobs.grokking import Grokking, GrokkingParams
from jobs.job import Member
from jobs.packed import grokking_pack
from jobs.packed.modular_block import ModularBlock


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
    """Embeddings of both elements, concatenated, through ReLU layers to a linear readout."""

    def __init__(self, layers: Sequence[Tensor], width: int, elements: int) -> None:
        super().__init__()
        embedding, for_x, for_y, bias, *rest, readout, offsets = layers
        self.embedding = nn.Embedding.from_pretrained(embedding, freeze=False)
        first = torch.cat([for_x, for_y])[:, :width]
        linear = [_linear(first, bias[0, :width])]
        for weight, offset in zip(rest[0::2], rest[1::2], strict=True):
            linear += [nn.ReLU(), _linear(weight[:width, :width], offset[0, :width])]
        last = _linear(readout[:elements, :width].T, offsets[:elements, 0])
        self.network = nn.Sequential(*linear, nn.ReLU(), last)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(torch.cat([self.embedding(x), self.embedding(y)], 1))


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
        return PlainEmbedding(layers, params.width, params.elements)
    return PlainTransformer(layers, params.elements, heads=params.heads, blocks=params.layers, norm=params.layer_norm)


def plain_optimiser(params: GrokkingParams, network: nn.Module) -> torch.optim.Optimizer:
    common = {"lr": params.learning_rate, "weight_decay": params.weight_decay}
    if params.optimiser == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=params.momentum, **common)
    kind = torch.optim.AdamW if params.optimiser == "adamw" else torch.optim.Adam
    return kind(network.parameters(), betas=(params.beta1, params.beta2), **common)


def plain_loss(params: GrokkingParams, outputs: Tensor, label: Tensor) -> Tensor:
    if params.loss == "cross_entropy":
        return functional.cross_entropy(outputs, label)
    return (outputs - functional.one_hot(label, params.elements)).square().sum(1).mean() / 2


def fresh_block(members: Sequence[Member[GrokkingParams]]) -> ModularBlock:
    """The block that a pack of these members starts from."""
    return grokking_pack._block(members, "cpu")


def plain_curves(member: Member[GrokkingParams], steps: Sequence[int]) -> Mapping[str, np.ndarray]:
    """The trial in plain PyTorch, from the weights, labels, split and batches that the packed one starts from."""
    params, block = member.params, fresh_block([member])
    network = plain_network(params, [view[0].clone() for view in block.parameters.views()])
    optimiser = plain_optimiser(params, network)
    x, y, result = (torch.from_numpy(column) for column in operation_pairs(params.operation, params.modulus))
    order, noisy = block.pairs.order_MP[0], block.pairs.labels_MP[0]
    train, test = order[: params.train_pairs], order[params.train_pairs :]
    curves: dict[str, list[float]] = {name: [] for name in Grokking.metrics}
    for step in range(max(steps)):
        batch = train if params.batch == params.train_pairs else train[block.batches.draw(step, 1)[0, 0]]
        assert len(batch) == params.batch
        for group in optimiser.param_groups:
            group["lr"] = params.learning_rate * min(1.0, (step + 1) / max(1, params.warmup_steps))
        optimiser.zero_grad()
        plain_loss(params, network(x[batch], y[batch]), noisy[batch]).backward()
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

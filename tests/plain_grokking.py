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
from jobs.grokking.initial import layout
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
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[params.activation]
    linear: list[nn.Module] = [_linear(first[:, :width], bias[0, :width])]
    for weight, offset in zip(rest[0::2], rest[1::2], strict=True):
        linear += [activation(), _linear(weight[:width, :width], offset[0, :width])]
    last = _linear(readout[:outputs, :width].T, offsets[:outputs, 0])
    network = nn.Sequential(*linear, activation(), last)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(params.biases or "bias" not in name)
    return network


class PlainTransformer(nn.Module):
    """A causal decoder at every position, attention head by head; the outputs at the positions in the loss are read.

    (B, O) outputs of the answer; for `sequence: equation` (B, O, 2), of the answer and the end.
    """

    def __init__(self, layers: Sequence[Tensor], params: GrokkingParams) -> None:
        super().__init__()
        self.params = params
        names = [layer.name for layer in layout(params, params.width)]
        trained = {name: value.clone() for name, value in zip(names, layers, strict=True)}
        trained["readout"] = trained["readout"][: params.outputs]
        for block in range(params.layers if not params.biases else 0):
            for name in ("in", "out"):
                del trained[f"{block}/{name} bias"]
        self.weights = nn.ParameterDict({name.replace(" ", "_"): nn.Parameter(w) for name, w in trained.items()})
        self.answers = torch.zeros(params.elements, params.elements, dtype=torch.int64)
        if not params.images:
            x, y, result = examples(params)
            self.answers[x, y] = result % params.elements

    def get(self, name: str) -> Tensor | float:
        """A parameter; 0 where the network has none of that name."""
        value: Tensor | float = self.weights.get(name.replace(" ", "_"), 0.0)
        return value

    def linear(self, stream: Tensor, name: str) -> Tensor:
        return stream @ self.weights[name] + self.get(f"{name} bias")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        p, params = self.params.elements, self.params
        ids = {"x": x, "y": y, "z": self.answers[x, y]}
        ids |= {name: torch.full_like(x, p + k) for k, name in enumerate(("=", "op", "end"))}
        order = {"short": "x y =", "operator": "x op y =", "equation": "end x op y = z"}[params.sequence].split()
        stream = self.weights["tokens"][torch.stack([ids[name] for name in order], 1)]
        stream = stream + (self.waves(len(order)) if params.positions == "sinusoidal" else self.weights["positions"])
        early = params.norm_order == "grokfast"
        for block in range(params.layers):
            stream = self.normal(stream, f"{block}/norm 1") if early else stream
            parts = (self.linear(stream, f"{block}/{name}") for name in ("query", "key", "value"))
            stream = stream + self.linear(self.attention(*parts), f"{block}/output")
            stream = stream if early else self.normal(stream, f"{block}/norm 1")
            inside = self.normal(stream, f"{block}/norm 2") if early else stream
            act = {"relu": functional.relu, "gelu": functional.gelu, "tanh": torch.tanh}[params.activation]
            stream = stream + self.linear(act(self.linear(inside, f"{block}/in")), f"{block}/out")
            stream = stream if early else self.normal(stream, f"{block}/norm 2")
        outputs = self.normal(stream, "norm") @ self.weights["readout"].T
        return outputs[:, -1] if params.sequence != "equation" else outputs[:, -2:].transpose(1, 2)

    def waves(self, length: int) -> Tensor:
        """(length, width) position encodings by their formula, entry by entry."""
        d = self.params.width
        rows = [
            [math.sin(t / 10000 ** (i / d)) if i % 2 == 0 else math.cos(t / 10000 ** ((i - 1) / d)) for i in range(d)]
            for t in range(length)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        past = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).tril()
        mixed = []
        for q, k, v in zip(*(z.chunk(self.params.heads, dim=2) for z in (query, key, value)), strict=True):
            score = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
            mixed.append(torch.softmax(score.masked_fill(~past, -math.inf), 2) @ v)
        return torch.cat(mixed, 2)

    def normal(self, stream: Tensor, name: str) -> Tensor:
        gain, offset = (self.get(f"{name} {part}") for part in ("gain", "offset"))
        if not isinstance(gain, Tensor) or not isinstance(offset, Tensor):
            return stream
        return functional.layer_norm(stream, stream.shape[-1:], gain[0], offset[0])


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
    return PlainTransformer(layers, params)


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
        self.params, self.weights = params, [w for w in network.parameters() if w.requires_grad]
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
        if params.perp_grad.startswith("layers"):
            for w, g in zip(self.weights, gradients, strict=True):
                norm = g.norm()
                if w.square().sum() > 0:
                    g -= (w * g).sum() / (w * w).sum() * w
                if params.perp_grad == "layers_rescaled":
                    g *= norm / (g.norm() + 1e-30)
        elif params.perp_grad == "whole":
            w, g = (torch.cat([z.flatten() for z in column]) for column in (self.weights, gradients))
            share = (w @ g) / (w @ w)
            for weight, gradient in zip(self.weights, gradients, strict=True):
                gradient -= share * weight


def plain_labels(params: GrokkingParams, outputs: Tensor, label: Tensor) -> Tensor:
    """The labels of these outputs: with the end's token, where the outputs are those of two positions."""
    return torch.stack([label, torch.full_like(label, params.elements + 2)], 1) if outputs.dim() == 3 else label


def plain_loss(params: GrokkingParams, outputs: Tensor, label: Tensor) -> Tensor:
    label = plain_labels(params, outputs, label)
    if params.loss == "cross_entropy":
        return functional.cross_entropy(outputs, label) / (params.outputs if params.class_mean else 1)
    if params.loss == "stablemax":
        # Either branch is finite everywhere, as the gradient of a choice between them asks for.
        stable = torch.where(outputs >= 0, outputs + 1, 1 / (1 + outputs.abs()))
        loss = -(stable / stable.sum(1, keepdim=True)).gather(1, label.unsqueeze(1)).log().mean()
        return loss / (params.outputs if params.class_mean else 1)
    target = functional.one_hot(label, params.outputs).to(outputs.dtype)
    if outputs.dim() == 3:
        target = target.transpose(1, 2)
    if params.class_mean:
        return functional.mse_loss(outputs, target)
    return (outputs - target).square().sum(1).mean() / 2


def plain_accuracy(params: GrokkingParams, outputs: Tensor, label: Tensor) -> float:
    right = outputs.argmax(1) == plain_labels(params, outputs, label)
    return float((right.all(1) if right.dim() == 2 else right).double().mean())


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
        batch = train
        if params.batch < params.train_pairs:
            size = params.batch
            if params.last_batch == "smaller":
                size = min(size, params.train_pairs - step % math.ceil(params.train_pairs / size) * size)
            batch = train[block.batches.draw(step, 1)[0, 0, :size]]
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            done = step + (0 if params.warmup_from_zero and params.warmup_steps else 1)
            group["lr"] = rate * min(1.0, done / max(1, params.warmup_steps))
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
                curves[f"{name}_accuracy"].append(plain_accuracy(params, outputs, label[rows]))
            squares = sum(weight.square().sum() for weight in network.parameters())
            curves["weight_norm"].append(math.sqrt(float(squares)))
    return {name: np.array(values) for name, values in curves.items()}

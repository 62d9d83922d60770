"""Builds and trains the blocks of a grokking pack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from jobs.data.labels import noisy_labels
from jobs.grokking import digits, local_complexity, progress
from jobs.grokking.autograd_block import EmbeddingMLPBlock, ImageMLPBlock, TransformerBlock
from jobs.grokking.block import ModularBlock, normal_entries
from jobs.grokking.cost import block_models, padded_outputs
from jobs.grokking.modular import operation_pairs
from jobs.grokking.optim import Changes, make
from jobs.grokking.pairs import Pairs
from jobs.grokking.params import GrokkingParams
from jobs.grokking.quadratic import QuadraticBlock
from jobs.job import Member, Report, log_spaced_steps
from jobs.packed import random
from jobs.packed.batches import Batches
from jobs.packed.cost import padded_width
from jobs.packed.loop import run_blocks
from jobs.packed.optim import FlatParameters, OptimiserSettings


def train(pack: Sequence[Member[GrokkingParams]], device: str) -> Iterator[Report]:
    """Reports of all members; see `jobs.job.Job.train`."""
    order = sorted(range(len(pack)), key=lambda i: (pack[i].params.width, pack[i].params.train_pairs))
    first = pack[0].params
    width = padded_width(max(m.params.width for m in pack))
    rows = max(m.params.batch for m in pack)
    size = block_models(first, width, rows, device)
    blocks = []
    for start in range(0, len(order), size):
        positions = order[start : start + size]
        blocks.append((_block([pack[i] for i in positions], device), positions))
    schedules = [log_spaced_steps(m.params.steps, m.params.curve_points) for m in pack]
    level = first.stop_accuracy
    stop = {"train_accuracy": level, "test_accuracy": level} if level else None
    yield from run_blocks(blocks, schedules, watch="train_loss", stop=stop)


def _block(members: Sequence[Member[GrokkingParams]], device: str) -> ModularBlock:
    params, seeds = [m.params for m in members], [m.seed for m in members]
    first = params[0]
    batches = Batches(
        seeds=seeds,
        counts=[p.train_pairs for p in params],
        batch_sizes=[p.batch for p in params],
        order="shuffled",
        device=device,
    )
    parameters = _initial(params, seeds, device)
    optimiser = make(
        OptimiserSettings(
            kind=first.optimiser,
            learning_rate=torch.tensor([p.learning_rate for p in params]),
            weight_decay=torch.tensor([p.weight_decay for p in params]),
            momentum=first.momentum,
            beta1=first.beta1,
            beta2=first.beta2,
            epsilon=first.epsilon,
        ),
        parameters,
        _changes(params),
    )
    pairs = _pairs(params, seeds, device)
    measures = partial(progress.measures, progress=first.progress, operation=first.operation)
    common = {
        "pairs": pairs,
        "batches": batches,
        "parameters": parameters,
        "optimiser": optimiser,
        "loss": first.loss,
        "warmup_steps": first.warmup_steps,
        "progress": measures if first.progress != "none" else None,
        "loss_precision": first.loss_precision,
        "around": _around(params, seeds, pairs, device),
    }
    if first.model == "quadratic_mlp":
        return QuadraticBlock(**common)  # type: ignore[arg-type]
    if first.model == "embedding_mlp":
        return EmbeddingMLPBlock(
            activation=first.activation,
            biases=first.biases,
            embedded=first.embedding > 0,
            added=first.combine == "sum",
            **common,
        )
    if first.model == "image_mlp":
        return ImageMLPBlock(activation=first.activation, biases=first.biases, **common)
    return TransformerBlock(heads=first.heads, blocks=first.layers, layer_norm=first.layer_norm, **common)


def _around(
    params: Sequence[GrokkingParams], seeds: Sequence[int], pairs: Pairs, device: str
) -> local_complexity.Neighbourhoods | None:
    first = params[0]
    if first.progress != "complexity":
        return None
    return local_complexity.draw(
        pairs,
        seeds=seeds,
        counts=[p.train_pairs for p in params],
        inputs=first.first_inputs,
        directions=first.complexity_directions,
        points=first.complexity_points,
        radii=[p.complexity_radius for p in params],
        device=device,
    )


def _changes(params: Sequence[GrokkingParams]) -> Changes:
    first = params[0]
    fast = first.grokfast_lambda > 0
    own_rate = any(p.embedding_learning_rate for p in params)
    return Changes(
        perp_grad=first.perp_grad,
        grokfast_lambda=torch.tensor([p.grokfast_lambda for p in params]) if fast else None,
        grokfast_alpha=torch.tensor([p.grokfast_alpha for p in params]) if fast else None,
        embedding_rate=torch.tensor([p.embedding_learning_rate for p in params]) if own_rate else None,
        decay_embedding=first.decay_embedding,
    )


def _pairs(params: Sequence[GrokkingParams], seeds: Sequence[int], device: str) -> Pairs:
    first = params[0]
    images, official = None, 0
    if first.images:
        pixels, classes = digits.load(first.operation, first.archive)
        images = torch.from_numpy(pixels).to(device, torch.get_default_dtype())
        result = torch.from_numpy(classes).to(device)
        x, y = torch.arange(len(result), device=device), torch.zeros_like(result)
        official = digits.SOURCES[first.operation].test
    else:
        x, y, result = (torch.from_numpy(a).to(device) for a in operation_pairs(first.operation, first.modulus))
    order = random.permutation(random.stream_keys(seeds, "split", device), len(x) - official)
    labels = noisy_labels(
        result.expand(len(params), -1),
        seeds=seeds,
        rates=[p.label_noise for p in params],
        classes=first.outputs,
        convention=first.noise_convention,
    )
    return Pairs(
        x_P=x,
        y_P=y,
        result_P=result,
        order_MP=order,
        labels_MP=labels,
        elements=first.elements,
        outputs=first.outputs,
        official=official,
        images_PD=images,
    )


def _initial(params: Sequence[GrokkingParams], seeds: Sequence[int], device: str) -> FlatParameters:
    """Initial weights: normal, standard deviation scale / sqrt(fan in), biases zero, layer-norm gains one.

    The quadratic perceptron has scale * 0.5 / (2 width)^(1/3) for all weights (Doshi et al. 2024);
    embeddings have scale / sqrt(embedding size).
    """
    first = params[0]
    layout = _layout(first, padded_width(max(p.width for p in params)))
    parameters = FlatParameters([shape for _, shape, _ in layout], len(params), device)
    scale = torch.tensor([p.init_scale for p in params], device=device)
    width = torch.tensor([p.width for p in params], device=device)
    for (name, shape, kind), view in zip(layout, parameters.views(), strict=True):
        if kind == "one":
            view.fill_(1.0)
        if kind in ("zero", "one"):
            continue
        rows, columns = (_true_size(length, axis, kind, width, first) for axis, length in enumerate(shape))
        if first.model == "quadratic_mlp":
            deviation = scale * 0.5 / (2 * width) ** (1 / 3)
        else:
            fan_in = columns if kind in ("embedding", "readout") else rows
            if kind == "one_hot" and first.combine == "concatenate":
                fan_in = 2 * fan_in
            deviation = scale / fan_in.float().sqrt()
            if layout[0][0] == name and kind == "embedding":
                deviation = deviation * torch.tensor([p.embedding_scale for p in params], device=device)
        view.copy_(normal_entries(seeds, name, (shape[0], shape[1]), (rows, columns), device))
        view.mul_(deviation[:, None, None])
    return parameters


def _true_size(length: int, axis: int, kind: str, width: Tensor, first: GrokkingParams) -> Tensor:
    """(M,) how many rows (axis 0) or columns (axis 1) of a layer are real."""
    if kind in (("both",), ("columns", "one_hot", "both", "readout"))[axis]:
        return width
    if axis == 0 and kind == "readout":
        return torch.full_like(width, first.outputs)
    return torch.full_like(width, length)


def _layout(first: GrokkingParams, width: int) -> list[tuple[str, tuple[int, int], str]]:
    """Name, padded shape and kind of each layer.

    Kind: which axes hold padded widths ("columns", "both", "none"); "one_hot" is "columns" on one-hot
    inputs, "embedding" is scaled by its columns; "readout" is (padded outputs, padded width); "zero"
    and "one" are constant. An embedding comes first.
    """
    elements = first.elements
    outputs = padded_outputs(first.outputs)
    if first.model == "quadratic_mlp":
        return [
            ("u", (elements, width), "columns"),
            ("v", (elements, width), "columns"),
            ("w2", (outputs, width), "readout"),
        ]
    if first.model == "embedding_mlp":
        size = first.embedding or elements
        kind = "columns" if first.embedding else "one_hot"
        layers = [("embedding", (elements, size), "embedding")] if first.embedding else []
        layers += [("for_x", (size, width), kind)]
        layers += [("for_y", (size, width), kind)] if first.combine == "concatenate" else []
        return [*layers, ("bias/0", (1, width), "zero"), *_further(first, outputs, width)]
    if first.model == "image_mlp":
        pixels = digits.SOURCES[first.operation].inputs
        layers = [("first", (pixels, width), "columns"), ("bias/0", (1, width), "zero")]
        return [*layers, *_further(first, outputs, width)]
    d = first.width
    layers = [("tokens", (elements + 1, d), "embedding"), ("positions", (3, d), "embedding")]
    for block in range(first.layers):
        layers += [(f"{block}/{name}", (d, d), "none") for name in ("query", "key", "value", "output")]
        layers += [
            (f"{block}/in", (d, 4 * d), "none"),
            (f"{block}/in bias", (1, 4 * d), "zero"),
            (f"{block}/out", (4 * d, d), "none"),
            (f"{block}/out bias", (1, d), "zero"),
        ]
        if first.layer_norm:
            layers += [
                (f"{block}/norm 1 gain", (1, d), "one"),
                (f"{block}/norm 1 offset", (1, d), "zero"),
                (f"{block}/norm 2 gain", (1, d), "one"),
                (f"{block}/norm 2 offset", (1, d), "zero"),
            ]
    return [*layers, ("readout", (outputs, d), "readout")]


def _further(first: GrokkingParams, outputs: int, width: int) -> list[tuple[str, tuple[int, int], str]]:
    """A perceptron's layers behind the first."""
    layers: list[tuple[str, tuple[int, int], str]] = []
    for layer in range(1, first.layers):
        layers += [(f"hidden/{layer}", (width, width), "both"), (f"bias/{layer}", (1, width), "zero")]
    return [*layers, ("readout", (outputs, width), "readout"), ("readout bias", (outputs, 1), "zero")]

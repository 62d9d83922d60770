"""Builds and trains the blocks of a grokking pack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jobs.data.labels import noisy_labels
from jobs.grokking import digits, progress
from jobs.grokking.autograd_block import EmbeddingMLPBlock, ImageMLPBlock, TransformerBlock
from jobs.grokking.block import ModularBlock
from jobs.grokking.cost import padded_outputs, step_bytes
from jobs.grokking.modular import operation_pairs
from jobs.grokking.pairs import Pairs
from jobs.grokking.params import GrokkingParams
from jobs.grokking.quadratic import QuadraticBlock
from jobs.job import Member, Report, log_spaced_steps
from jobs.packed import random
from jobs.packed.cost import models_per_block, padded_width
from jobs.packed.fields import hides_denormals
from jobs.packed.loop import neighbours, run_blocks
from jobs.packed.optim import FlatParameters

_BLOCKS: dict[str, type[ModularBlock]] = {
    "quadratic_mlp": QuadraticBlock,
    "embedding_mlp": EmbeddingMLPBlock,
    "image_mlp": ImageMLPBlock,
    "transformer": TransformerBlock,
}


def train(pack: Sequence[Member[GrokkingParams]], device: str) -> Iterator[Report]:
    """Reports of all members; see `jobs.job.Job.train`."""
    first = pack[0].params
    width = padded_width(max(m.params.width for m in pack))
    size = models_per_block(step_bytes(first, width, max(m.params.batch for m in pack)), device)
    groups = neighbours(pack, size, lambda params: (params.width, params.train_pairs))
    blocks = [(make_block([pack[i] for i in positions], device), positions) for positions in groups]
    schedules = [log_spaced_steps(m.params.steps, m.params.curve_points) for m in pack]
    level = first.stop_accuracy
    stop = {"train_accuracy": level, "test_accuracy": level} if level else None
    flush = hides_denormals(first.optimiser, first.epsilon)
    yield from run_blocks(blocks, schedules, watch="train_loss", stop=stop, flush=flush)


def make_block(members: Sequence[Member[GrokkingParams]], device: str) -> ModularBlock:
    """The members' networks before training."""
    params, seeds = [m.params for m in members], [m.seed for m in members]
    pairs, parameters = _pairs(params, seeds, device), _initial(params, seeds, device)
    return _BLOCKS[params[0].model](params, seeds, pairs, parameters, progress.measures)


def _pairs(params: Sequence[GrokkingParams], seeds: Sequence[int], device: str) -> Pairs:
    first = params[0]
    images = None
    if first.images:
        pixels, classes = digits.load(first.operation, first.archive)
        images = torch.from_numpy(pixels).to(device, torch.get_default_dtype())
        result = torch.from_numpy(classes).to(device)
        x, y = torch.arange(len(result), device=device), torch.zeros_like(result)
    else:
        x, y, result = (torch.from_numpy(a).to(device) for a in operation_pairs(first.operation, first.modulus))
    order = random.permutation(random.stream_keys(seeds, "split", device), len(x) - first.official_tests)
    clean, rates = result.expand(len(params), -1), [p.label_noise for p in params]
    return Pairs(
        x_P=x,
        y_P=y,
        result_P=result,
        order_MP=order,
        labels_MP=noisy_labels(clean, seeds, rates, first.outputs, first.noise_convention),
        elements=first.elements,
        outputs=first.outputs,
        official=first.official_tests,
        images_PD=images,
    )


def _initial(params: Sequence[GrokkingParams], seeds: Sequence[int], device: str) -> FlatParameters:
    """Initial weights: normal, standard deviation scale / sqrt(fan in), biases zero, layer-norm gains one.

    The quadratic perceptron has scale * 0.5 / (2 width)^(1/3) for all weights (Doshi et al. 2024); embeddings have
    scale / sqrt(embedding size).
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
            if kind == "one_hot":
                fan_in = first.tables * fan_in
            deviation = scale / fan_in.float().sqrt()
            if layout[0][0] == name and kind == "embedding":
                deviation = deviation * torch.tensor([p.embedding_scale for p in params], device=device)
        view.copy_(_normal(seeds, name, shape, rows, columns)).mul_(deviation[:, None, None])
    return parameters


def _normal(seeds: Sequence[int], name: str, shape: tuple[int, int], rows_M: Tensor, columns_M: Tensor) -> Tensor:
    """(M, *shape) standard normal numbers, zero beyond each model's own rows and columns.

    The counter of an entry is its row and column, so padding does not change the draw.
    """
    row, column = (torch.arange(size, device=rows_M.device) for size in shape)
    keys = random.stream_keys(seeds, f"init/{name}", rows_M.device)
    values = random.normal(keys, (row[:, None] * (1 << 24) + column).unsqueeze(0))
    real = (row[:, None] < rows_M[:, None, None]) & (column < columns_M[:, None, None])
    return torch.where(real, values, 0.0)


def _true_size(length: int, axis: int, kind: str, width: Tensor, first: GrokkingParams) -> Tensor:
    """(M,) how many rows (axis 0) or columns (axis 1) of a layer are real."""
    if kind in (("both",), ("columns", "one_hot", "both", "readout"))[axis]:
        return width
    if axis == 0 and kind == "readout":
        return torch.full_like(width, first.outputs)
    return torch.full_like(width, length)


def _layout(first: GrokkingParams, width: int) -> list[tuple[str, tuple[int, int], str]]:
    """Name, padded shape and kind of each layer.

    Kind: which axes have padded widths ("columns", "both", "none"); "one_hot" is "columns" on one-hot inputs,
    "embedding" is scaled by its columns; "readout" is (padded outputs, padded width); "zero" and "one" are constant.
    An embedding comes first.
    """
    elements, outputs = first.elements, padded_outputs(first.outputs)
    tables = [(name, (elements, width), "columns") for name in ("u", "v")]
    if first.model == "quadratic_mlp":
        return [*tables, ("w2", (outputs, width), "readout")]
    if first.model == "transformer":
        return _transformer_layout(first, outputs)
    if first.model == "image_mlp":
        layers = [("first", (first.pixels, width), "columns")]
    else:
        size, kind = (first.embedding, "columns") if first.embedding else (elements, "one_hot")
        layers = [("embedding", (elements, size), "embedding")] if first.embedding else []
        layers += [(name, (size, width), kind) for name in ("for_x", "for_y")[: first.tables]]
    layers += [("bias/0", (1, width), "zero")]
    for layer in range(1, first.layers):
        layers += [(f"hidden/{layer}", (width, width), "both"), (f"bias/{layer}", (1, width), "zero")]
    return [*layers, ("readout", (outputs, width), "readout"), ("readout bias", (outputs, 1), "zero")]


def _transformer_layout(first: GrokkingParams, outputs: int) -> list[tuple[str, tuple[int, int], str]]:
    d = first.width
    layers = [("tokens", (first.elements + 1, d), "embedding"), ("positions", (3, d), "embedding")]
    for block in range(first.layers):
        layers += [(f"{block}/{name}", (d, d), "none") for name in ("query", "key", "value", "output")]
        layers += [(f"{block}/in", (d, 4 * d), "none"), (f"{block}/in bias", (1, 4 * d), "zero")]
        layers += [(f"{block}/out", (4 * d, d), "none"), (f"{block}/out bias", (1, d), "zero")]
        for norm in (1, 2) if first.layer_norm else ():
            layers += [(f"{block}/norm {norm} gain", (1, d), "one"), (f"{block}/norm {norm} offset", (1, d), "zero")]
    return [*layers, ("readout", (outputs, d), "readout")]

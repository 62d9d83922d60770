"""Builds and trains the blocks of a grokking pack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jobs.data.labels import noisy_labels
from jobs.grokking import digits, progress
from jobs.grokking.autograd_block import EmbeddingMLPBlock, ImageMLPBlock
from jobs.grokking.block import ModularBlock
from jobs.grokking.cost import step_bytes
from jobs.grokking.initial import initial
from jobs.grokking.modular import operation_pairs
from jobs.grokking.pairs import Pairs
from jobs.grokking.params import GrokkingParams
from jobs.grokking.quadratic import QuadraticBlock
from jobs.grokking.transformer import TransformerBlock
from jobs.job import Member, Report, log_spaced_steps
from jobs.packed import random
from jobs.packed.cost import models_per_block, padded_width
from jobs.packed.fields import hides_denormals
from jobs.packed.loop import neighbours, run_blocks

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
    schedules = [log_spaced_steps(m.params.steps, m.params.curve_points, m.params.curve_until) for m in pack]
    level = first.stop_accuracy
    stop = {"train_accuracy": level, "test_accuracy": level} if level else None
    levels = {"train_accuracy": first.train_level, "test_accuracy": first.test_level}
    flush = hides_denormals(first.optimiser, first.epsilon)
    yield from run_blocks(
        blocks,
        schedules,
        watch="train_loss",
        stop=stop,
        levels={name: at for name, at in levels.items() if at},
        flush=flush,
        precision=first.matmul_precision,
        saved=[m.state for m in pack],
    )


def make_block(members: Sequence[Member[GrokkingParams]], device: str) -> ModularBlock:
    """The members' networks before training."""
    params, seeds = [m.params for m in members], [m.seed for m in members]
    pairs, parameters = _pairs(params, seeds, device), initial(params, seeds, device)
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
    return Pairs(
        x_P=x,
        y_P=y,
        result_P=result,
        order_MP=order,
        labels_MP=_labels(params, seeds, result, order),
        elements=first.elements,
        outputs=first.outputs,
        official=first.official_tests,
        images_PD=images,
    )


def _labels(params: Sequence[GrokkingParams], seeds: Sequence[int], result_P: Tensor, order_MP: Tensor) -> Tensor:
    """(M, P) training labels with noise; an exact number of them is that of the first pairs in the split's order."""
    first = params[0]
    clean, exact = result_P.expand(len(params), -1), first.noise_count == "exact"
    rates = [1.0 if exact else p.label_noise for p in params]
    noisy = noisy_labels(clean, seeds, rates, first.results, first.noise_convention)
    if not exact:
        return noisy
    replaced = torch.tensor([int(p.label_noise * p.train_pairs) for p in params], device=order_MP.device)
    hit = torch.arange(order_MP.shape[1], device=order_MP.device) < replaced[:, None]
    return torch.where(torch.zeros_like(hit).scatter_(1, order_MP, hit), noisy, clean)

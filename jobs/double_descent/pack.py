"""Builds and trains the blocks of a double-descent pack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.images import SOURCES, first_images
from jobs.data.labels import noisy_labels
from jobs.data.mnist1d import mnist1d, package_seed
from jobs.double_descent.block import MLPBlock, PackData
from jobs.double_descent.gaussian import gaussian_linear, gaussian_teacher
from jobs.double_descent.params import DoubleDescentParams
from jobs.job import Member, Report, log_spaced_steps
from jobs.packed import random
from jobs.packed.batches import subset_rows
from jobs.packed.cost import layer_sizes, models_per_block, padded_width, step_bytes
from jobs.packed.loop import neighbours, run_blocks


def train(pack: Sequence[Member[DoubleDescentParams]], device: str) -> Iterator[Report]:
    """Reports of all members; see `jobs.job.Job.train`."""
    schedules = [log_spaced_steps(m.params.horizon, m.params.curve_points, m.params.curve_until) for m in pack]
    saved = [m.state for m in pack]
    yield from run_blocks(
        blocks_of(pack, device), schedules, watch="train_loss", precision=pack[0].params.matmul_precision, saved=saved
    )


def blocks_of(pack: Sequence[Member[DoubleDescentParams]], device: str) -> list[tuple[MLPBlock, Sequence[int]]]:
    """Untrained blocks, each with the positions of its models in the pack."""
    first = pack[0].params
    width = padded_width(max(member.params.width for member in pack))
    sizes = layer_sizes(first.inputs, width, first.depth, first.outputs)
    size = models_per_block(step_bytes(sizes, first.batch, first.optimiser), device)
    groups = neighbours(pack, size, lambda params: params.width)
    blocks: list[tuple[MLPBlock, Sequence[int]]] = []
    for positions in groups:
        params, seeds = [pack[i].params for i in positions], [pack[i].seed for i in positions]
        blocks.append((MLPBlock(_data(params, seeds, device), params, seeds), positions))
    return blocks


def _data(params: Sequence[DoubleDescentParams], seeds: Sequence[int], device: str) -> PackData:
    first = params[0]
    train, test = first.pool, first.test_count
    # Equal seeds of the data (and noise) share one data set.
    keys = [(_data_seed(p, seed), p.noise_std) for seed, p in zip(seeds, params, strict=True)]
    distinct = list(dict.fromkeys(keys))
    source_of = [distinct.index(key) for key in keys]
    source = torch.tensor(source_of, device=device)
    own = [seed for seed, _ in distinct]
    if first.data == "mnist1d" or first.data in SOURCES:
        sets = [mnist1d(train, test, seed) for seed in own] if first.data == "mnist1d" else [_pixels(first)]
        x, y, x_test, y_test = (
            # Without a copy where there is one data set, which may be large.
            torch.from_numpy(arrays[0][None] if len(sets) == 1 else np.stack(arrays)).to(device)
            for arrays in zip(*sets, strict=True)
        )
    else:
        if first.data == "gaussian_linear":
            noise = [std for _, std in distinct]
            x, y, x_test, y_test = gaussian_linear(own, train, test, first.inputs, noise, device)
        else:
            x, y, x_test, y_test = gaussian_teacher(own, train, test, first.inputs, device)
    if first.pixels == "random":
        x, x_test = _reordered(x, own, "train"), _reordered(x_test, own, "test")
    labels = y[source]
    if first.data != "gaussian_linear":
        rates = [p.label_noise for p in params]
        labels = noisy_labels(labels, seeds, rates, first.outputs, first.noise_convention)
    return _subsets(
        PackData(x_SND=x, y_MN=labels, xt_STD=x_test, yt_ST=y_test, source_M=source), source_of, params, seeds
    )


def _data_seed(params: DoubleDescentParams, seed: int) -> int:
    """What the data of a trial with this seed are drawn from."""
    if params.data == "mnist1d":
        return package_seed(params.data_seed, seed)
    if params.data in SOURCES:
        return 0
    return params.data_seed if params.data_seed > 0 else seed


def _reordered(x_SND: Tensor, seeds: Sequence[int], part: str) -> Tensor:
    """The inputs of each example in an order of its own, drawn from the seed of the data."""
    keys = random.stream_keys(seeds, f"pixels/{part}", x_SND.device)
    counter = torch.arange(x_SND[0].numel(), device=x_SND.device)
    return x_SND.gather(2, random.bits(keys, counter).reshape(x_SND.shape).argsort(dim=2, stable=True))


def _pixels(
    params: DoubleDescentParams,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Images as rows of pixels from 0 to 1, and their classes: the first of the archive, training and test."""
    images = first_images(params.data, params.archive, train=params.pool, test=params.test_count)
    x, x_test = ((a.reshape(len(a), -1) / 255).astype(np.float32) for a in (images.x, images.x_test))
    return x, images.y, x_test, images.y_test


def _subsets(
    data: PackData, source_of: Sequence[int], params: Sequence[DoubleDescentParams], seeds: Sequence[int]
) -> PackData:
    """Each model's own random subset, in random order, where one uses less than the pool."""
    used = [p.used for p in params]
    order = subset_rows(seeds, used, data.x_SND.shape[1], data.y_MN.device)
    if order is None:
        return data
    order = order[:, : max(used)]
    return PackData(
        x_SND=torch.stack([data.x_SND[s][rows] for s, rows in zip(source_of, order, strict=True)]),
        y_MN=data.y_MN.gather(1, order),
        xt_STD=data.xt_STD[data.source_M],
        yt_ST=data.yt_ST[data.source_M],
        source_M=torch.arange(len(params), device=order.device),
    )

"""Builds and trains the blocks of a pack of convolutional networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from jobs.data.images import first_images
from jobs.data.labels import noisy_labels
from jobs.data.mnist1d import mnist1d, package_seed
from jobs.double_descent.image_block import ImageBlock, ImageData
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.networks import models_per_block
from jobs.job import Member, Report, log_spaced_steps
from jobs.packed.batches import subset_rows
from jobs.packed.loop import run_blocks


def train(pack: Sequence[Member[ImageParams]], device: str) -> Iterator[Report]:
    """Reports of all members; see `jobs.job.Job.train`."""
    by_data: dict[int, list[int]] = {}
    for position, member in enumerate(pack):
        by_data.setdefault(package_seed(member.params.data_seed, member.seed), []).append(position)
    blocks = []
    for data, positions in by_data.items():
        images = _images(pack[0].params, device, data)
        for group in _groups(pack, positions, device):
            blocks.append((_block([pack[i] for i in group], images), group))
    schedules = [log_spaced_steps(m.params.horizon, m.params.curve_points, m.params.curve_until) for m in pack]
    yield from run_blocks(
        blocks, schedules, watch="train_loss", precision=pack[0].params.matmul_precision, saved=[m.state for m in pack]
    )


def _groups(pack: Sequence[Member[ImageParams]], positions: Sequence[int], device: str) -> list[list[int]]:
    """The positions, in groups that train as one block."""
    groups: list[list[int]] = [[]]
    # Sorted by width: little is padded, and the last model of a block, the widest, determines how many fit.
    for position in sorted(positions, key=lambda i: pack[i].params.width):
        p = pack[position].params
        if groups[-1] and len(groups[-1]) >= models_per_block(p.model, p.width, device):
            groups.append([])
        groups[-1].append(position)
    return groups


def _images(params: ImageParams, device: str, data: int = 0) -> ImageData:
    """The images and clean labels, on the device once for all blocks on this data set (`mnist1d.package_seed`)."""
    if params.data == "mnist1d":
        x, y, x_test, y_test = (torch.from_numpy(a) for a in mnist1d(params.pool_count, params.tested, data))
        x, x_test = x[:, None, None, :], x_test[:, None, None, :]
    else:
        images = first_images(params.data, params.archive, train=params.pool_count, test=params.tested)
        x, y, x_test, y_test = (torch.tensor(a) for a in (images.x, images.y, images.x_test, images.y_test))
    return ImageData(
        x_NCHW=x.to(device),
        y_MN=y.to(device)[None],
        rows_MN=None,
        x_TCHW=x_test.to(device),
        y_T=y_test.to(device),
        mean_C=torch.tensor(params.source.mean, device=device),
        std_C=torch.tensor(params.source.std, device=device),
    )


def _block(members: Sequence[Member[ImageParams]], images: ImageData) -> ImageBlock:
    """A block on these images, with each model's labels and subset."""
    params, seeds = [member.params for member in members], [member.seed for member in members]
    clean, first = images.y_MN.expand(len(params), -1), params[0]
    labels = noisy_labels(clean, seeds, [p.label_noise for p in params], first.classes, first.noise_convention)
    rows = subset_rows(seeds, [p.used for p in params], clean.shape[1], labels.device)
    return ImageBlock(replace(images, y_MN=labels, rows_MN=rows), params, seeds)

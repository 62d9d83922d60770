"""Builds and trains the blocks of a pack of convolutional networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from jobs.data.images import SOURCES, first_images
from jobs.data.labels import noisy_labels
from jobs.data.mnist1d import mnist1d
from jobs.double_descent.convolution import make_network
from jobs.double_descent.image_block import ImageBlock, ImageData
from jobs.double_descent.networks import models_per_block
from jobs.job import Member, Report, log_spaced_steps
from jobs.packed import random
from jobs.packed.batches import Batches
from jobs.packed.loop import run_blocks
from jobs.packed.optim import OptimiserSettings

if TYPE_CHECKING:
    from jobs.double_descent.image_job import ImageParams


def train(pack: Sequence[Member[ImageParams]], device: str) -> Iterator[Report]:
    """Reports of all members; see `jobs.job.Job.train`."""
    # A model shares a block with others of its width or nearly so: padding is then small.
    order = sorted(range(len(pack)), key=lambda i: pack[i].params.width)
    images = _images(pack[0].params, device)
    blocks = []
    start = 0
    while start < len(order):
        size, end = len(order), start
        while end < len(order) and end - start < size:
            widest = pack[order[end]].params.width
            size = models_per_block(pack[0].params.model, widest, device)
            if end > start and end - start >= size:
                break
            end += 1
        positions = order[start:end]
        blocks.append((_block([pack[i] for i in positions], images, device), positions))
        start = end
    schedules = [log_spaced_steps(m.params.horizon, m.params.curve_points) for m in pack]
    yield from run_blocks(blocks, schedules, watch="train_loss")


def _images(params: ImageParams, device: str) -> ImageData:
    """The images and clean labels, on the device once for all blocks."""
    mean, std = torch.zeros(1), torch.ones(1)
    if params.data == "mnist1d":
        x, y, x_test, y_test = (torch.from_numpy(a) for a in mnist1d(params.pool_count, params.tested))
        x, x_test = x[:, None, None, :], x_test[:, None, None, :]
    else:
        found = first_images(params.data, params.archive, train=params.pool_count, test=params.tested)
        x, y, x_test, y_test = (torch.tensor(a) for a in (found.x, found.y, found.x_test, found.y_test))
        source = SOURCES[params.data]
        mean, std = torch.tensor(source.mean), torch.tensor(source.std)
    return ImageData(
        x_NCHW=x.to(device),
        y_MN=y.to(device)[None],
        rows_MN=None,
        x_TCHW=x_test.to(device),
        y_T=y_test.to(device),
        mean_C=mean.to(device),
        std_C=std.to(device),
    )


def _block(members: Sequence[Member[ImageParams]], images: ImageData, device: str) -> ImageBlock:
    params = [member.params for member in members]
    seeds = [member.seed for member in members]
    first = params[0]
    return ImageBlock(
        network=make_network(first.model, inputs=images.x_NCHW.shape[1], outputs=first.classes),
        data=_own(images, params, seeds),
        widths=[p.width for p in params],
        batches=Batches(
            seeds=seeds,
            counts=[p.used for p in params],
            batch_sizes=[p.batch for p in params],
            order="shuffled",
            device=device,
        ),
        seeds=seeds,
        init_scale=torch.tensor([p.init_scale for p in params]),
        optimiser=OptimiserSettings(
            kind=first.optimiser,
            learning_rate=torch.tensor([p.learning_rate for p in params]),
            weight_decay=torch.tensor([p.weight_decay for p in params]),
            momentum=first.momentum,
            beta1=first.beta1,
            beta2=first.beta2,
        ),
        rate_every=first.rate_every,
        augment=first.augment,
        train_evaluated=first.train_evaluated,
    )


def _own(images: ImageData, params: Sequence[ImageParams], seeds: Sequence[int]) -> ImageData:
    """The same images with each model's labels and subset."""
    pool = images.y_MN.shape[1]
    labels = noisy_labels(
        images.y_MN.expand(len(params), -1),
        seeds=seeds,
        rates=[p.label_noise for p in params],
        classes=params[0].classes,
        convention=params[0].noise_convention,
    )
    rows = None
    if any(p.used != pool for p in params):
        rows = random.permutation(random.stream_keys(seeds, "subset", labels.device), pool)
        # A model that uses the whole pool keeps the data's order, as it has alone.
        whole = torch.tensor([p.used == pool for p in params], device=labels.device)
        rows = torch.where(whole[:, None], torch.arange(pool, device=labels.device), rows)
    return ImageData(
        x_NCHW=images.x_NCHW,
        y_MN=labels,
        rows_MN=rows,
        x_TCHW=images.x_TCHW,
        y_T=images.y_T,
        mean_C=images.mean_C,
        std_C=images.std_C,
    )

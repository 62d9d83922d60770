"""Local complexity of packed ReLU perceptrons: the number of units that bend the network's map near a data point.

Around a point x in the input space of the first linear layer, the 2 Q vertices x + r q and x - r q of a cross-polytope
are sent through the network, with Q random orthonormal directions q, the same for all points and steps of a trial. A
unit is counted where it is active (pre-activation above 0) at some vertices and not at others: its hyperplane passes
between them. In the first layer that is exactly the number of hyperplanes that cut the polytope; in later layers, of
those that cut the convex hull of the vertices' images. The sum over all hidden layers, averaged over points, is the
local complexity.

Source: Humayun, Balestriero and Baraniuk 2024, "Deep networks always grok and here is why", arXiv 2402.15555.

Shapes: M models, S points, Q directions, D inputs of the first layer, W padded width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.grokking.memory import COMPLEXITY_BYTES
from jobs.grokking.pairs import Pairs
from jobs.grokking.params import GrokkingParams
from jobs.packed import random


@dataclass(frozen=True)
class Neighbourhoods:
    """Where local complexity is measured: drawn once, for each model by its own seed."""

    directions_MQD: Tensor
    """Orthonormal rows, float32 (rounded from float64)."""
    radius_M: Tensor
    rows_MS: Tensor
    """Rows of the table of examples: each model's points of the train set, then as many of the test set."""
    counted_MS: Tensor
    """False for padding: a set of fewer examples does not fill its half."""

    def keep(self, index: Tensor) -> Neighbourhoods:
        """The neighbourhoods of these models only."""
        index = index.to(self.radius_M.device)
        kept = (values[index] for values in (self.directions_MQD, self.radius_M, self.rows_MS, self.counted_MS))
        return Neighbourhoods(*kept)


def draw(pairs: Pairs, params: Sequence[GrokkingParams], seeds: Sequence[int]) -> Neighbourhoods:
    """The neighbourhoods of models with these parameters and seeds.

    The points are at most `complexity_points` of each set: of the train set and of the pairs outside it the first in
    the model's random order, of an official test set as many at random.
    """
    first, device = params[0], pairs.x_P.device
    inputs, directions, points = first.first_inputs, first.complexity_directions, first.complexity_points
    keys = random.stream_keys(seeds, "complexity/directions", device)
    entry = torch.arange(inputs, device=device)[:, None] * (1 << 24) + torch.arange(directions, device=device)
    gaussian = random.normal(keys, entry.unsqueeze(0)).double()
    # One by one: a batched factorisation may round differently from a single one.
    frames = [torch.linalg.qr(matrix).Q.T for matrix in gaussian]
    order, total = pairs.order_MP, len(pairs.x_P)
    count = torch.tensor([p.train_pairs for p in params], device=device)[:, None]
    column = torch.arange(points, device=device)
    train = order.gather(1, torch.minimum(column.expand(len(seeds), -1), count - 1))
    if pairs.official:
        held = torch.full_like(count, pairs.official)
        shuffled = random.permutation(random.stream_keys(seeds, "complexity/test", device), pairs.official)
        test = total - pairs.official + shuffled[:, column.clamp(max=pairs.official - 1)]
    else:
        held = order.shape[1] - count
        test = order.gather(1, torch.minimum(count + column, torch.full_like(count, order.shape[1] - 1)))
    frames_MQD = torch.stack(frames).to(torch.get_default_dtype())
    radius = torch.tensor([p.complexity_radius for p in params], device=device)
    counted = torch.cat([column < count, column < held], 1)
    return Neighbourhoods(frames_MQD, radius, torch.cat([train, test], 1), counted)


def measure(
    around: Neighbourhoods,
    at: Callable[[Tensor], Tensor],
    first_MDW: Tensor,
    hidden: Callable[[Tensor], Iterable[Tensor]],
) -> Mapping[str, Tensor]:
    """(M,) mean number of units that are cut, over the points of the train set and over those of the test set.

    Args:
        around: points and directions.
        at: rows of the table of examples (M, S) -> (M, S, W) pre-activations of the first layer.
        first_MDW: weights of the first layer.
        hidden: pre-activations of the first layer (M, B, W) -> those of every hidden layer, the first included.
    """
    models, width = first_MDW.shape[0], first_MDW.shape[2]
    moved_MQW = torch.bmm(around.directions_MQD * around.radius_M[:, None, None], first_MDW)
    moved_MVW = torch.cat([moved_MQW, -moved_MQW], 1)
    vertices = moved_MVW.shape[1]
    points = around.rows_MS.shape[1]
    rows = max(1, COMPLEXITY_BYTES // (4 * models * vertices * width))
    cut_MS = torch.zeros(models, points, dtype=torch.int64, device=first_MDW.device)
    for start in range(0, points, rows):
        part = slice(start, start + rows)
        corners = at(around.rows_MS[:, part])[:, :, None] + moved_MVW[:, None]
        for layer in hidden(corners.flatten(1, 2)):
            active = (layer > 0).view(models, -1, vertices, layer.shape[2])
            # A padded unit is 0 everywhere, so it is never counted.
            cut_MS[:, part] += (active.any(2) & ~active.all(2)).sum(2)
    cut, counted = cut_MS.double().chunk(2, 1), around.counted_MS.double().chunk(2, 1)
    train, test = ((c * n).sum(1) / n.sum(1) for c, n in zip(cut, counted, strict=True))
    return {"train_complexity": train, "test_complexity": test}

"""Local complexity of packed ReLU perceptrons: how many units bend the network's map close to a data point.

Around a point x in the input space of the first linear layer stand the 2 Q vertices x + r q and x - r q of a cross-
polytope, with Q random orthonormal directions q, the same for all points and steps of a trial. They go through the
network; a unit is counted where it is active (pre-activation above 0) at some of them and not at others, so that its
hyperplane passes between. A layer's units are seen where the vertices have come to: in the first layer the count is
exactly that of the hyperplanes that cut the polytope; behind it, of those that cut the hull of the vertices' images.
The sum over all hidden layers, averaged over points, is the local complexity.

Source: Humayun, Balestriero and Baraniuk 2024, "Deep networks always grok and here is why", arXiv 2402.15555.

Shapes: M models, S points, Q directions, D inputs of the first layer, W padded width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.grokking.pairs import Pairs
from jobs.packed import random

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods:
    """Where M models are looked at: drawn once, each model's own by its seed."""

    directions_MQD: Tensor
    """Orthonormal rows, float32 (rounded from float64)."""
    radius_M: Tensor
    rows_MS: Tensor
    """Rows of the table of examples: each model's points of the train set, then as many of the test set."""
    counted_MS: Tensor
    """Whether a point is one: a set of fewer examples fills its half in part."""

    def keep(self, index: Tensor) -> Neighbourhoods:
        """Those of these models only."""
        index = index.to(self.radius_M.device)
        return Neighbourhoods(
            directions_MQD=self.directions_MQD[index],
            radius_M=self.radius_M[index],
            rows_MS=self.rows_MS[index],
            counted_MS=self.counted_MS[index],
        )


def draw(
    pairs: Pairs,
    *,
    seeds: Sequence[int],
    counts: Sequence[int],
    inputs: int,
    directions: int,
    points: int,
    radii: Sequence[float],
    device: str,
) -> Neighbourhoods:
    """The neighbourhoods of models with these seeds and numbers of training examples.

    The points are at most `points` of each set: of the train set the first of its random order, of the rest the
    first (they are in random order too), or of an official test set as many at random.
    """
    keys = random.stream_keys(seeds, "complexity/directions", device)
    entry = torch.arange(inputs, device=device)[:, None] * (1 << 24) + torch.arange(directions, device=device)
    gaussian = random.normal(keys, entry.unsqueeze(0)).double()
    # One by one: a batched factorisation may round differently from that of one matrix.
    frames = [torch.linalg.qr(matrix).Q.T for matrix in gaussian]
    order, total, count = pairs.order_MP, len(pairs.x_P), torch.tensor(counts, device=device)[:, None]
    column = torch.arange(points, device=device)
    train = order.gather(1, torch.minimum(column.expand(len(seeds), -1), count - 1))
    if pairs.official:
        held = torch.full_like(count, pairs.official)
        shuffled = random.permutation(random.stream_keys(seeds, "complexity/test", device), pairs.official)
        test = total - pairs.official + shuffled[:, column.clamp(max=pairs.official - 1)]
    else:
        held = order.shape[1] - count
        test = order.gather(1, torch.minimum(count + column, torch.full_like(count, order.shape[1] - 1)))
    return Neighbourhoods(
        directions_MQD=torch.stack(frames).to(torch.get_default_dtype()),
        radius_M=torch.tensor(radii, device=device),
        rows_MS=torch.cat([train, test], 1),
        counted_MS=torch.cat([column < count, column < held], 1),
    )


def measure(
    around: Neighbourhoods,
    at: Callable[[Tensor], Tensor],
    first_MDW: Tensor,
    hidden: Callable[[Tensor], Iterable[Tensor]],
) -> Mapping[str, Tensor]:
    """(M,) mean number of units cut, over the points of the train set and over those of the test set.

    Args:
        around: points and directions.
        at: rows of the table of examples (M, S) -> (M, S, W) the first layer's pre-activations there.
        first_MDW: weights of the first layer.
        hidden: the first layer's pre-activations (M, B, W) -> those of every hidden layer, the first included.
    """
    models, width = first_MDW.shape[0], first_MDW.shape[2]
    moved_MQW = torch.bmm(around.directions_MQD * around.radius_M[:, None, None], first_MDW)
    moved_MVW = torch.cat([moved_MQW, -moved_MQW], 1)
    vertices = moved_MVW.shape[1]
    points = around.rows_MS.shape[1]
    rows = max(1, _CHUNK_BYTES // (4 * models * vertices * width))
    cut_MS = torch.zeros(models, points, dtype=torch.int64, device=first_MDW.device)
    for start in range(0, points, rows):
        part = slice(start, start + rows)
        corners = at(around.rows_MS[:, part])[:, :, None] + moved_MVW[:, None]
        for layer in hidden(corners.flatten(1, 2)):
            active = (layer > 0).view(models, -1, vertices, layer.shape[2])
            # A padded unit is 0 everywhere, and so never counted.
            cut_MS[:, part] += (active.any(2) & ~active.all(2)).sum(2)
    cut, counted = cut_MS.double().chunk(2, 1), around.counted_MS.double().chunk(2, 1)
    train, test = ((c * n).sum(1) / n.sum(1) for c, n in zip(cut, counted, strict=True))
    return {"train_complexity": train, "test_complexity": test}

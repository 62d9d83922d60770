"""Which examples each model sees at each step, drawn from the model's own key.

Shapes: M models, K steps, B the largest batch of the pack.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.packed import random

ORDERS = ("shuffled", "with_replacement", "cyclic", "whole_epochs")
"""How a batch is drawn: in a new random order every epoch (epochs follow each other without a gap, so that a batch may
contain the end of one and the start of the next); independently; in the order of the data; or as "shuffled", but with a
smaller batch at the end of an epoch that the batch size does not divide."""

_STEP = 1 << 32


def subset_rows(seeds: Sequence[int], used: Sequence[int], pool: int, device: torch.device | str) -> Tensor | None:
    """(M, pool) a random order of the pool for each model, of which it uses the first `used` rows.

    A model that uses the whole pool keeps the order of the data. None where all of them do.
    """
    if all(count == pool for count in used):
        return None
    order = random.permutation(random.stream_keys(seeds, "subset", device), pool)
    whole = torch.tensor([count == pool for count in used], device=device)
    return torch.where(whole[:, None], torch.arange(pool, device=device), order)


class Batches:
    """Draws the batches of M models with `counts` examples each."""

    def __init__(
        self,
        seeds: Sequence[int],
        counts: Sequence[int],
        batch_sizes: Sequence[int],
        order: str,
        device: torch.device | str,
    ) -> None:
        """Args:
        seeds: (M,) the models' seeds.
        counts: (M,) training examples of each model, rows 0..count-1 of its data.
        batch_sizes: (M,) examples per step; the count or more is the full batch, in the order of the data.
        order: one of `ORDERS`.
        device: where batches are drawn.

        Raises:
            ValueError: some models have full batches and others do not.
        """
        self._keys = random.stream_keys(seeds, "batch", device)
        # Known to the host too: while a pack trains, nothing is read back from the device.
        self._host_counts = np.asarray(counts, dtype=np.int64)
        self._host_sizes = np.minimum(np.asarray(batch_sizes, dtype=np.int64), self._host_counts)
        self.counts = torch.tensor(counts, device=device)
        self.sizes = torch.minimum(torch.tensor(batch_sizes, device=device), self.counts)
        self._order = order
        whole = self._host_sizes == self._host_counts
        self.full = bool(whole.all())
        if not self.full and bool(whole.any()):
            raise ValueError("full-batch and minibatch models cannot share a block")
        self._measure()

    def _measure(self) -> None:
        self.width = int(self._host_sizes.max())
        column = torch.arange(self.width, device=self.sizes.device)
        held = column < self.sizes[:, None]
        self.weights = held / self.sizes[:, None]
        """(M, B) float32 weight of each example in the mean loss: 1 / batch size, 0 for padding."""
        self.uniform_weights = bool((self._host_sizes == self.width).all())
        self._column = column

    @property
    def most(self) -> int:
        """The largest number of training examples of a model."""
        return int(self._host_counts.max())

    @property
    def fewest(self) -> int:
        """The smallest number of training examples of a model."""
        return int(self._host_counts.min())

    def keep(self, index: Tensor) -> None:
        """Keep these models only."""
        here = index.numpy()  # numpy takes a tensor with one element for a number
        self._host_counts, self._host_sizes = self._host_counts[here], self._host_sizes[here]
        index = index.to(self.sizes.device)
        self._keys, self.counts, self.sizes = self._keys[index], self.counts[index], self.sizes[index]
        self._measure()

    def draw(self, step: int, count: int) -> Tensor:
        """(K, M, B) int64 rows for `count` steps from `step`; padding consists of valid rows too."""
        models = len(self.counts)
        if self.full:
            rows = torch.minimum(self._column, self.counts[:, None] - 1)
            return rows.expand(count, models, self.width)
        steps = torch.arange(step, step + count, device=self.counts.device)
        if self._order == "with_replacement":
            counter = (steps[:, None] * _STEP + self._column).unsqueeze(0)
            rows = random.below(self._keys, counter, self.counts[:, None, None])
        elif self._order == "whole_epochs":
            epoch, place, _ = self._place(steps)
            whole = -(-self._host_counts // self._host_sizes)
            span = int(((step + count - 1) // whole - step // whole).max()) + 1
            offset = torch.minimum(place, self.counts[:, None, None] - 1)
            rows = self._shuffled(epoch.expand_as(offset), offset, span)
        else:
            column = torch.minimum(self._column, self.sizes[:, None] - 1)
            position = steps[:, None] * self.sizes[:, None, None] + column[:, None, :]
            rows = position % self.counts[:, None, None]
            if self._order == "shuffled":
                first = step * self._host_sizes // self._host_counts
                last = ((step + count) * self._host_sizes - 1) // self._host_counts
                rows = self._shuffled(position // self.counts[:, None, None], rows, int((last - first).max()) + 1)
        return rows.transpose(0, 1).contiguous()

    def step_weights(self, step: int, count: int) -> Tensor | None:
        """(K, M, B) the weights of `count` steps from `step`; None: those of every step are `weights`."""
        if self.full or self._order != "whole_epochs":
            return None
        _, _, held = self._place(torch.arange(step, step + count, device=self.counts.device))
        return (held / held.sum(2, keepdim=True)).transpose(0, 1).contiguous()

    def _place(self, steps_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Epoch (M, K, 1), place in the epoch's order (M, K, B), and whether it is in the batch (M, K, B)."""
        counts, sizes = self.counts[:, None], self.sizes[:, None]
        whole = (counts + sizes - 1) // sizes
        place = (steps_K % whole * sizes)[:, :, None] + self._column
        return (steps_K // whole)[:, :, None], place, (place < counts[:, :, None]) & (self._column < sizes[:, :, None])

    def _shuffled(self, epoch: Tensor, offset: Tensor, span: int) -> Tensor:
        """Rows of these epochs, of which a model has at most `span`."""
        first = epoch.amin(dim=(1, 2))
        size = self.most
        epochs = first[:, None, None] + torch.arange(span, device=first.device)[:, None]
        keys = random.bits(self._keys, epochs * _STEP + torch.arange(size, device=first.device))
        # Rows that a model does not have are sorted last.
        keys.masked_fill_(torch.arange(size, device=first.device) >= self.counts[:, None, None], (1 << 63) - 1)
        order = _sorted(keys).flatten(1)
        return order.gather(1, ((epoch - first[:, None, None]) * size + offset).flatten(1)).reshape(offset.shape)


def _sorted(keys: Tensor) -> Tensor:
    """The order of random 64-bit keys in the last dimension, which are all different but for padding."""
    if keys.device.type != "cpu":
        return keys.argsort(dim=-1, stable=True)
    return torch.from_numpy(keys.numpy().argsort(axis=-1))  # vectorised: five times as fast as PyTorch's

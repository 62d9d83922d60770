"""The data side of a grokking pack: pairs, splits, labels, batches and measurements.

Shape suffixes: M models, P pairs of the operation's table, B pairs of a batch, O elements (outputs).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.packed.batches import Batches
from jobs.packed.loop import Block, predicted
from jobs.packed.optim import FlatParameters, Optimiser

_CHUNK_STEPS = 32
_EVALUATION_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs of M models: the table is shared, the split and the noisy labels are each model's own."""

    x_P: Tensor
    y_P: Tensor
    result_P: Tensor
    order_MP: Tensor
    """Each model's random order of the pairs: its first `count` ones are for training."""
    labels_MP: Tensor
    """Training labels by pair, with noise."""
    elements: int

    def keep(self, index: Tensor) -> Pairs:
        """The pairs of these models only."""
        index = index.to(self.x_P.device)
        return Pairs(
            x_P=self.x_P, y_P=self.y_P, result_P=self.result_P, order_MP=self.order_MP[index],
            labels_MP=self.labels_MP[index], elements=self.elements,
        )  # fmt: skip


class ModularBlock(Block):
    """M networks of one architecture on the same operation. A subclass brings the network."""

    def __init__(
        self, *, pairs: Pairs, batches: Batches, parameters: FlatParameters, optimiser: Optimiser,
        loss: str, warmup_steps: int,
    ) -> None:  # fmt: skip
        self.pairs, self.batches = pairs, batches
        self.parameters, self.optimiser = parameters, optimiser
        self._loss = loss
        self._warmup = warmup_steps
        self._set_up()

    def _set_up(self) -> None:
        """What depends on the number of models; a subclass extends it with its buffers."""
        self._fixed: tuple[Tensor, Tensor, Tensor] | None = None
        if self.batches.full:
            self._fixed = self._pairs_of(self.batches.draw(0, 1)[0])
        count = self.batches.counts[:, None]
        rank = torch.empty_like(self.pairs.order_MP)
        ranks = torch.arange(rank.shape[1], device=rank.device).expand_as(rank)
        rank.scatter_(1, self.pairs.order_MP, ranks)
        self._trained_MP = rank < count

    def keep(self, index: Tensor) -> None:
        self.pairs = self.pairs.keep(index)
        self.batches.keep(index)
        self.parameters.keep(index)
        self.optimiser.keep(index)
        self._set_up()

    def _pairs_of(self, rows_MB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and the training label, each (M, B), of training rows."""
        pair = self.pairs.order_MP.gather(1, rows_MB)
        return self.pairs.x_P[pair], self.pairs.y_P[pair], self.pairs.labels_MP.gather(1, pair)

    def advance(self, step: int, count: int) -> None:
        while count:
            steps = min(count, _CHUNK_STEPS)
            rows = None if self._fixed else self.batches.draw(step, steps)
            for k in range(steps):
                if step + k <= self._warmup and self._warmup:
                    self.optimiser.set_rate(min(1.0, (step + k + 1) / self._warmup))
                if rows is not None:
                    self._train_step(*self._pairs_of(rows[k]))
                elif self._fixed is not None:
                    self._train_step(*self._fixed)
            step += steps
            count -= steps

    @abstractmethod
    def _train_step(self, x_MB: Tensor, y_MB: Tensor, label_MB: Tensor) -> None:
        """One optimiser step on these pairs, weighted by `batches.weights`."""

    @abstractmethod
    def outputs(self, x_MB: Tensor, y_MB: Tensor) -> Tensor:
        """(M, O, B) network outputs, without gradient."""

    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of activations that one pair of one model holds in `outputs`."""

    @torch.no_grad()
    def measure(self) -> Mapping[str, Tensor]:
        """train_* on the training labels (with noise), test_* on the other pairs, and the norm of all weights."""
        pairs = self.pairs
        models, size = pairs.order_MP.shape
        rows = max(32, min(size, _EVALUATION_BYTES // (self.row_bytes() * models)))
        sums = torch.zeros(4, models, dtype=torch.float64, device=pairs.x_P.device)
        for start in range(0, size, rows):
            part = slice(start, start + rows)
            trained = self._trained_MP[:, part]
            outputs = self.outputs(pairs.x_P[part].expand(models, -1), pairs.y_P[part].expand(models, -1))
            label = torch.where(trained, pairs.labels_MP[:, part], pairs.result_P[part])
            loss = row_loss(outputs, label, self._loss)
            right = predicted(outputs) == label
            sums[0] += torch.where(trained, loss, 0.0).sum(1, dtype=torch.float64)
            sums[1] += (right & trained).sum(1)
            sums[2] += torch.where(trained, 0.0, loss).sum(1, dtype=torch.float64)
            sums[3] += (right & ~trained).sum(1)
        counts = self.batches.counts
        return {
            "train_loss": sums[0] / counts,
            "train_accuracy": sums[1] / counts,
            "test_loss": sums[2] / (size - counts),
            "test_accuracy": sums[3] / (size - counts),
            "weight_norm": self.parameters.norm(),
        }


def row_loss(outputs_MOB: Tensor, label_MB: Tensor, loss: str) -> Tensor:
    """(M, B) loss of each row: half the squared distance to the one-hot label, or -log softmax at it."""
    if loss == "cross_entropy":
        outputs_MOB = torch.log_softmax(outputs_MOB, 1)
    at_label = outputs_MOB.gather(1, label_MB[:, None, :]).squeeze(1)
    if loss == "cross_entropy":
        return -at_label
    return (outputs_MOB.square().sum(1) - 2 * at_label + 1) / 2


def normal_entries(
    seeds: Sequence[int], name: str, shape: tuple[int, int], widths: tuple[Tensor, Tensor], device: torch.device | str
) -> Tensor:
    """(M, *shape) standard normal numbers, zero beyond each model's own (rows, columns) in `widths`.

    The counter names an entry by its row and column, so padding does not move it.
    """
    from jobs.packed import random

    rows, columns = torch.arange(shape[0], device=device), torch.arange(shape[1], device=device)
    keys = random.stream_keys(seeds, f"init/{name}", device)
    values = random.normal(keys, (rows[:, None] * (1 << 24) + columns).unsqueeze(0))
    real = (rows[:, None] < widths[0][:, None, None]) & (columns < widths[1][:, None, None])
    return torch.where(real, values, 0.0)

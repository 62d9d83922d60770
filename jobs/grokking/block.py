"""The data side of a grokking pack: examples, splits, labels, batches and measurements.

Shape suffixes: M models, P examples of the table, B examples of a batch, E examples measured, O outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from jobs.grokking.local_complexity import Neighbourhoods
from jobs.grokking.pairs import Pairs
from jobs.packed.batches import Batches
from jobs.packed.loop import Block, predicted
from jobs.packed.optim import FlatParameters, Optimiser

_CHUNK_STEPS = 32
_EVALUATION_BYTES = 1 << 22


class ModularBlock(Block):
    """M networks of one architecture on the same operation. A subclass brings the network."""

    def __init__(
        self,
        *,
        pairs: Pairs,
        batches: Batches,
        parameters: FlatParameters,
        optimiser: Optimiser,
        loss: str,
        warmup_steps: int,
        progress: Callable[[ModularBlock], Mapping[str, Tensor]] | None = None,
        loss_precision: int = 32,
        around: Neighbourhoods | None = None,
    ) -> None:
        self.pairs, self.batches = pairs, batches
        self.parameters, self.optimiser = parameters, optimiser
        self._loss = loss
        self._warmup = warmup_steps
        self._progress = progress
        self._loss_precision, self._around = loss_precision, around
        self._set_up()

    def _set_up(self) -> None:
        """What depends on the number of models; a subclass extends it with its buffers."""
        self._fixed: tuple[Tensor, Tensor, Tensor] | None = None
        if self.batches.full:
            self._fixed = self._pairs_of(self.batches.draw(0, 1)[0])
        pairs, count = self.pairs, self.batches.counts[:, None]
        models = len(pairs.order_MP)
        if pairs.official:
            # The train set of each model, then the test set; the rest of the table is not looked at.
            most = int(count.max())
            tests = torch.arange(len(pairs.x_P) - pairs.official, len(pairs.x_P), device=count.device)
            self._rows: Tensor | None = torch.cat([pairs.order_MP[:, :most], tests.expand(models, -1)], 1)
            column = torch.arange(self._rows.shape[1], device=count.device)
            self._trained, self._tested = column < count, (column >= most).expand(models, -1)
            return
        rank = torch.empty_like(pairs.order_MP)
        ranks = torch.arange(rank.shape[1], device=rank.device).expand_as(rank)
        rank.scatter_(1, pairs.order_MP, ranks)
        self._rows = None
        self._trained = rank < count
        self._tested = ~self._trained

    def keep(self, index: Tensor) -> None:
        self.pairs = self.pairs.keep(index)
        self.batches.keep(index)
        self.parameters.keep(index)
        self.optimiser.keep(index)
        self._around = self._around.keep(index) if self._around else None
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
    def forward(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        """(M, O, B) outputs of networks with these parameters, in a form that torch can derive."""

    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of activations that one pair of one model holds in `outputs`."""

    def losses(self, outputs_MOB: Tensor, label_MB: Tensor) -> Tensor:
        """(M, B) training loss of each row, in the precision that it is to have."""
        if self._loss_precision == 64:
            outputs_MOB = outputs_MOB.double()
        return row_loss(outputs_MOB, label_MB, self._loss)

    def spectrum_table(self) -> Tensor | None:
        """(M, E, D) what the network knows of each element by itself, the elements in their order; None: nothing."""
        return None

    def complexity(self, around: Neighbourhoods) -> Mapping[str, Tensor]:
        """Local complexity, where the network has ReLU units to count: see `jobs.grokking.local_complexity`."""
        raise ValueError("this network has no ReLU units that local complexity counts")

    def chunk_rows(self) -> int:
        """How many examples a model is measured on at a time."""
        models, size = self._trained.shape
        return max(32, min(size, _EVALUATION_BYTES // (self.row_bytes() * models)))

    def examples(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, y, label, whether trained on, whether tested, (M, E) each, of measured columns from `start` on."""
        pairs, models = self.pairs, len(self._trained)
        part = slice(start, stop)
        trained, tested = self._trained[:, part], self._tested[:, part]
        if self._rows is None:
            x, y, clean = (column[part].expand(models, -1) for column in (pairs.x_P, pairs.y_P, pairs.result_P))
            noisy = pairs.labels_MP[:, part]
        else:
            rows = self._rows[:, part]
            x, y, clean = pairs.x_P[rows], pairs.y_P[rows], pairs.result_P[rows]
            noisy = pairs.labels_MP.gather(1, rows)
        return x, y, torch.where(trained, noisy, clean), trained, tested

    @torch.no_grad()
    def measure(self) -> Mapping[str, Tensor]:
        """train_* on the training labels (with noise), test_* on the other pairs, and the norm of all weights."""
        models, size = self._trained.shape
        rows = self.chunk_rows()
        sums = torch.zeros(5, models, dtype=torch.float64, device=self.pairs.x_P.device)
        for start in range(0, size, rows):
            x, y, label, trained, tested = self.examples(start, start + rows)
            outputs = self.outputs(x, y)
            loss = self.losses(outputs, label)
            right = predicted(outputs) == label
            sums[0] += torch.where(trained, loss, 0.0).sum(1, dtype=torch.float64)
            sums[1] += (right & trained).sum(1)
            sums[2] += torch.where(tested, loss, 0.0).sum(1, dtype=torch.float64)
            sums[3] += (right & tested).sum(1)
            if self._progress is not None:
                margin = _margin(outputs, label)
                sums[4] += torch.where(trained, margin, 0.0).sum(1, dtype=torch.float64)
        counts, tests = self.batches.counts, self._tested.sum(1)
        measured = {
            "train_loss": sums[0] / counts,
            "train_accuracy": sums[1] / counts,
            "test_loss": sums[2] / tests,
            "test_accuracy": sums[3] / tests,
            "weight_norm": self.parameters.norm(),
        }
        if self._progress is None:
            return measured
        measured["logit_margin"] = sums[4] / counts
        measured |= self._progress(self)
        if self._around is not None:
            measured |= self.complexity(self._around)
        return measured


def _margin(outputs_MOE: Tensor, label_ME: Tensor) -> Tensor:
    """(M, E) the label's output less the largest of the others."""
    at_label = outputs_MOE.gather(1, label_ME[:, None, :])
    others = outputs_MOE.scatter(1, label_ME[:, None, :], -torch.inf).max(1).values
    return at_label.squeeze(1) - others


def look_up(table_MVD: Tensor, index_MB: Tensor) -> Tensor:
    """(M, B, D) rows of each model's own table."""
    models, tokens, width = table_MVD.shape
    offset = torch.arange(models, device=index_MB.device)[:, None] * tokens
    return table_MVD.reshape(-1, width).index_select(0, (index_MB + offset).reshape(-1)).view(models, -1, width)


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


def log_stable(outputs: Tensor) -> Tensor:
    """log s(x) elementwise; its derivative is 1 / (1 + |x|), at 0 too."""
    # Either branch is finite where it is not taken, or the gradient would be NaN.
    return torch.where(outputs >= 0, torch.log1p(outputs.clamp(min=0)), -torch.log1p((-outputs).clamp(min=0)))


def row_loss(outputs_MOB: Tensor, label_MB: Tensor, loss: str) -> Tensor:
    """(M, B) loss of each row: half the squared distance to the one-hot label, or -log of its probability.

    `loss` is "squared", "cross_entropy" (softmax) or "stablemax".
    """
    if loss == "stablemax":
        outputs_MOB = log_stable(outputs_MOB)
    if loss != "squared":
        outputs_MOB = torch.log_softmax(outputs_MOB, 1)
    at_label = outputs_MOB.gather(1, label_MB[:, None, :]).squeeze(1)
    if loss != "squared":
        return -at_label
    return (outputs_MOB.square().sum(1) - 2 * at_label + 1) / 2

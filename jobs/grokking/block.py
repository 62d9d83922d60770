"""What the networks of a grokking pack share: splits, labels, batches, losses and measurements.

Shape suffixes: M models, P examples of the table, B examples of a batch, E examples measured, O outputs.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from jobs.grokking.local_complexity import Neighbourhoods, draw
from jobs.grokking.losses import row_loss
from jobs.grokking.memory import CHUNK_STEPS, EVALUATION_BYTES
from jobs.grokking.optim import make_optimiser
from jobs.grokking.pairs import Pairs
from jobs.grokking.params import GrokkingParams
from jobs.packed.batches import Batches
from jobs.packed.capture import Step
from jobs.packed.cost import evaluation_bytes
from jobs.packed.crossings import RepeatableBlock
from jobs.packed.loop import predicted
from jobs.packed.optim import FlatParameters
from jobs.state import TrialState

_ORDERS = {"filled": "shuffled", "smaller": "whole_epochs"}


class ModularBlock(RepeatableBlock):
    """M networks of one architecture on the same task; a subclass implements the network.

    `progress` computes measures besides the margin and local complexity, where the trials ask for any.
    """

    def __init__(
        self,
        params: Sequence[GrokkingParams],
        seeds: Sequence[int],
        pairs: Pairs,
        parameters: FlatParameters,
        progress: Callable[[ModularBlock], Mapping[str, Tensor]],
    ) -> None:
        self.shared = params[0]
        """The parameters of one trial; only those that the whole pack shares are used."""
        self.pairs, self.parameters, self._progress = pairs, parameters, progress
        counts, sizes = [p.train_pairs for p in params], [p.batch for p in params]
        self.batches = Batches(seeds, counts, sizes, _ORDERS[self.shared.last_batch], pairs.x_P.device)
        self.optimiser = make_optimiser(params, parameters)
        self._around = draw(pairs, params, seeds) if self.shared.progress == "complexity" else None
        self._set_up()

    def _set_up(self) -> None:
        """Make what depends on the number of models; a subclass adds its buffers."""
        self._fixed: tuple[Tensor, Tensor, Tensor] | None = None
        if self.batches.full:
            self._fixed = self._pairs_of(self.batches.draw(0, 1)[0])
        self._step = Step(self._train_rows, self.pairs.x_P.device)
        pairs, count = self.pairs, self.batches.counts[:, None]
        models = len(pairs.order_MP)
        if pairs.official:
            # The train set of each model, then the test set; the rest of the table is not measured.
            most = self.batches.most
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

    def copy(self) -> Self:
        other = copy.copy(self)  # what is left shared is replaced by `keep`
        other.batches, other.optimiser = copy.copy(self.batches), self.optimiser.copy()
        other.parameters = other.optimiser.parameters
        return other

    def keep(self, index: Tensor) -> None:
        self.pairs = self.pairs.keep(index)
        self.batches.keep(index)
        self.parameters.keep(index)
        self.optimiser.keep(index)
        self._around = self._around.keep(index) if self._around else None
        self._set_up()

    def save(self) -> Mapping[str, Tensor]:
        return self.optimiser.save()

    def load(self, states: Sequence[TrialState]) -> None:
        self.optimiser.load(states)
        self._set_up()

    def _pairs_of(self, rows_MB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and the training label, each (M, B), of training rows."""
        pair = self.pairs.order_MP.gather(1, rows_MB)
        return self.pairs.x_P[pair], self.pairs.y_P[pair], self.pairs.labels_MP.gather(1, pair)

    def advance(self, step: int, count: int) -> None:
        warmup = self.shared.warmup_steps
        while count:
            steps = min(count, CHUNK_STEPS)
            rows = None if self._fixed else self.batches.draw(step, steps)
            weights = self.batches.step_weights(step, steps)
            for k in range(steps):
                batch = () if rows is None else (rows[k],) if weights is None else (rows[k], weights[k])
                if warmup and step + k <= warmup:
                    done = step + k + (0 if self.shared.warmup_from_zero else 1)
                    self.optimiser.set_rate(min(1.0, done / warmup))
                    self._train_rows(*batch)
                else:
                    self._step(*batch)
            step += steps
            count -= steps

    def _train_rows(self, rows_MB: Tensor | None = None, weight_MB: Tensor | None = None) -> None:
        """One step on these training rows with these weights; by default the full batch and `batches.weights`."""
        pairs = self._fixed if rows_MB is None else self._pairs_of(rows_MB)
        assert pairs is not None
        self._train_step(*pairs, self.batches.weights if weight_MB is None else weight_MB)

    @abstractmethod
    def _train_step(self, x_MB: Tensor, y_MB: Tensor, label_MB: Tensor, weight_MB: Tensor) -> None:
        """One optimiser step on these pairs, with these weights in the mean loss."""

    @abstractmethod
    def outputs(self, x_MB: Tensor, y_MB: Tensor) -> Tensor:
        """(M, O, B) network outputs, without gradient."""

    @abstractmethod
    def forward(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        """(M, O, B) outputs of networks with these parameters, differentiable by autograd."""

    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of activations that one pair of one model holds in `outputs`."""

    def losses(self, outputs_MOB: Tensor, label_MB: Tensor) -> Tensor:
        """(M, B) training loss of each row, in the precision `loss_precision`."""
        if self.shared.loss_precision == 64:
            outputs_MOB = outputs_MOB.double()
        loss = row_loss(self.shared.loss, outputs_MOB, label_MB)
        return loss * self.shared.loss_factor if self.shared.class_mean else loss

    def right(self, outputs_MOB: Tensor, label_MB: Tensor) -> Tensor:
        """(M, B) whether each row's prediction is its label."""
        return predicted(outputs_MOB) == label_MB

    def spectrum_table(self) -> Tensor | None:
        """(M, E, D) the network's first table over the elements, in their order; None: it has none."""
        return None

    def complexity(self, around: Neighbourhoods) -> Mapping[str, Tensor]:
        """Local complexity of a network with ReLU units (see `jobs.grokking.local_complexity`)."""
        raise ValueError("this network has no ReLU units for local complexity to count")

    def chunk_rows(self) -> int:
        """Number of examples of each model that are measured at a time."""
        models, size = self._trained.shape
        return max(
            32,
            min(size, evaluation_bytes(EVALUATION_BYTES, self.pairs.x_P.device.type) // (self.row_bytes() * models)),
        )

    def examples(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """x, y, label, whether trained on and whether tested, (M, E) each, of all measured examples, in chunks."""
        pairs, (models, size), rows = self.pairs, self._trained.shape, self.chunk_rows()
        for start in range(0, size, rows):
            part = slice(start, start + rows)
            trained = self._trained[:, part]
            if self._rows is None:
                x, y, clean = (column[part].expand(models, -1) for column in (pairs.x_P, pairs.y_P, pairs.result_P))
                noisy = pairs.labels_MP[:, part]
            else:
                pair = self._rows[:, part]
                x, y, clean = pairs.x_P[pair], pairs.y_P[pair], pairs.result_P[pair]
                noisy = pairs.labels_MP.gather(1, pair)
            yield x, y, torch.where(trained, noisy, clean), trained, self._tested[:, part]

    @torch.no_grad()
    def values(self, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        """`train_accuracy` and `test_accuracy`, or one of them."""
        return {name: self._accuracy(trained=name == "train_accuracy") for name in names}

    def _accuracy(self, *, trained: bool) -> Tensor:
        """(M,) the accuracy on the training pairs or on the tested ones, of which no others are computed."""
        pairs, count = self.pairs, self.batches.counts[:, None]
        models, size = pairs.order_MP.shape
        if pairs.official and not trained:
            tests = torch.arange(len(pairs.x_P) - pairs.official, len(pairs.x_P), device=count.device)
            order, wanted = tests.expand(models, -1), torch.ones_like(tests, dtype=torch.bool).expand(models, -1)
        else:
            columns = slice(0, self.batches.most) if trained else slice(self.batches.fewest, size)
            order = pairs.order_MP[:, columns]
            wanted = (torch.arange(size, device=count.device) < count)[:, columns] == trained
        right = torch.zeros(models, dtype=torch.float64, device=count.device)
        rows = self.chunk_rows()
        for start in range(0, order.shape[1], rows):
            pair = order[:, start : start + rows]
            label = pairs.labels_MP.gather(1, pair) if trained else pairs.result_P[pair]
            hit = self.right(self.outputs(pairs.x_P[pair], pairs.y_P[pair]), label)
            right += (hit & wanted[:, start : start + rows]).sum(1)
        return right / wanted.sum(1)

    @torch.no_grad()
    def measure(self) -> Mapping[str, Tensor]:
        """train_* on the (noisy) training labels, test_* on the other pairs, the norm of all weights, and progress."""
        progress = self.shared.progress != "none"
        sums = torch.zeros(5, len(self._trained), dtype=torch.float64, device=self.pairs.x_P.device)
        for x, y, label, trained, tested in self.examples():
            outputs = self.outputs(x, y)
            loss = self.losses(outputs, label)
            right = self.right(outputs, label)
            sums[0] += torch.where(trained, loss, 0.0).sum(1, dtype=torch.float64)
            sums[1] += (right & trained).sum(1)
            sums[2] += torch.where(tested, loss, 0.0).sum(1, dtype=torch.float64)
            sums[3] += (right & tested).sum(1)
            if progress:
                margin = _margin(outputs[:, :, : label.shape[1]], label)
                sums[4] += torch.where(trained, margin, 0.0).sum(1, dtype=torch.float64)
        counts, tests = self.batches.counts, self._tested.sum(1)
        measured = {
            "train_loss": sums[0] / counts,
            "train_accuracy": sums[1] / counts,
            "test_loss": sums[2] / tests,
            "test_accuracy": sums[3] / tests,
            "weight_norm": self.parameters.norm(),
        }
        if progress:
            measured |= {"logit_margin": sums[4] / counts, **self._progress(self)}
        if self._around:
            measured |= self.complexity(self._around)
        return measured


def _margin(outputs_MOE: Tensor, label_ME: Tensor) -> Tensor:
    """(M, E) the output of the label minus the largest of the others."""
    at_label = outputs_MOE.gather(1, label_ME[:, None, :])
    others = outputs_MOE.scatter(1, label_ME[:, None, :], -torch.inf).max(1).values
    return at_label.squeeze(1) - others


def look_up(table_MVD: Tensor, index_MB: Tensor) -> Tensor:
    """(M, B, D) rows of each model's own table."""
    models, tokens, width = table_MVD.shape
    offset = torch.arange(models, device=index_MB.device)[:, None] * tokens
    return table_MVD.reshape(-1, width).index_select(0, (index_MB + offset).reshape(-1)).view(models, -1, width)

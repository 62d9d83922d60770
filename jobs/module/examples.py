"""The examples of a pack's trials, those that are equal kept once.

Shapes: M models, S data sets, N examples, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jobs.data.labels import noisy_labels
from jobs.job import Member
from jobs.module.data import Data, Inputs, tensors_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """One tensor of M models: (S, N, ...) from S data sets; S is 1 where all models have the same one."""

    rows_SN: Tensor
    source_M: Tensor

    @classmethod
    def of(cls, tensors: Sequence[Tensor], device: str) -> Table:
        distinct = list({id(tensor): tensor for tensor in tensors}.values())
        place = {id(tensor): k for k, tensor in enumerate(distinct)}
        stacked = distinct[0][None] if len(distinct) == 1 else torch.stack(distinct)
        source = torch.tensor([place[id(tensor)] for tensor in tensors], device=device)
        return cls(rows_SN=stacked.to(device).contiguous(), source_M=source)

    def keep(self, index: Tensor) -> Table:
        return replace(self, source_M=self.source_M[index])

    def gather(self, rows_MB: Tensor) -> Tensor:
        """(M, B, ...) these rows of each model."""
        sets, examples = self.rows_SN.shape[:2]
        if sets > 1:
            rows_MB = rows_MB + (self.source_M * examples)[:, None]
        return (
            self.rows_SN.flatten(0, 1).index_select(0, rows_MB.flatten()).view(*rows_MB.shape, *self.rows_SN.shape[2:])
        )

    def part(self, start: int, stop: int) -> Tensor:
        """(M, B, ...) the same rows of every model."""
        rows = self.rows_SN[:, start:stop]
        return rows.expand(len(self.source_M), *rows.shape[1:]) if len(rows) == 1 else rows[self.source_M]


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The training or the test examples of M models."""

    x: tuple[Table, ...]
    y: Table
    mask: Table | None
    single: bool
    """Whether the inputs are one tensor, not a tuple."""

    @classmethod
    def of(cls, parts: Sequence[tuple[Any, ...]], device: str, labels_MN: Tensor | None = None) -> Examples:
        """Those of M models; `labels_MN`: other targets than those of the parts."""
        single = isinstance(parts[0][0], Tensor)
        inputs = [tuple(tensors_of(part[:1])) for part in parts]
        models = torch.arange(len(parts), device=device)
        return cls(
            x=tuple(Table.of(column, device) for column in zip(*inputs, strict=True)),
            y=Table.of([part[1] for part in parts], device)
            if labels_MN is None
            else Table(rows_SN=labels_MN.to(device), source_M=models),
            mask=Table.of([part[2].float() for part in parts], device) if len(parts[0]) == 3 else None,
            single=single,
        )

    def __len__(self) -> int:
        return self.y.rows_SN.shape[1]

    def keep(self, index: Tensor) -> Examples:
        """Those of these models."""
        mask = None if self.mask is None else self.mask.keep(index)
        return replace(self, x=tuple(table.keep(index) for table in self.x), y=self.y.keep(index), mask=mask)

    def gather(self, rows_MB: Tensor) -> tuple[Inputs, Tensor, Tensor | None]:
        """Inputs, targets and mask of these rows, each with a leading model dimension."""
        mask = None if self.mask is None else self.mask.gather(rows_MB)
        return self._inputs([table.gather(rows_MB) for table in self.x]), self.y.gather(rows_MB), mask

    def part(self, start: int, stop: int) -> tuple[Inputs, Tensor, Tensor | None]:
        """The same of the rows from `start` to `stop`."""
        mask = None if self.mask is None else self.mask.part(start, stop)
        return self._inputs([table.part(start, stop) for table in self.x]), self.y.part(start, stop), mask

    def _inputs(self, tensors: list[Tensor]) -> Inputs:
        return tensors[0] if self.single else tuple(tensors)


def layout(data: Data) -> tuple[object, ...]:
    """What the data of trials that train as one block have in common."""
    return tuple(
        (isinstance(part[0], Tensor), len(part), *((tensor.shape, tensor.dtype) for tensor in tensors_of(part)))
        for part in (data.train, data.test)
    )


def train_examples(data: Sequence[Data], members: Sequence[Member[Any]], device: str) -> Examples:
    """The training examples, with the label noise of each trial.

    Raises:
        ValueError: label noise is asked for where targets are not classes, one for each example.
    """
    rates = [member.params.label_noise for member in members]
    labels = None
    if any(rates):
        targets = [d.train[1] for d in data]
        if targets[0].dtype != torch.int64 or targets[0].dim() != 1:
            raise ValueError("label_noise needs int64 targets, one class for each example")
        classes = [d.classes or int(max(d.train[1].max(), d.test[1].max())) + 1 for d in data]
        seeds = [member.seed for member in members]
        convention = members[0].params.noise_convention
        labels = noisy_labels(torch.stack(targets), seeds, rates, classes, convention)
    return Examples.of([d.train for d in data], device, labels)

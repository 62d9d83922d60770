"""The training loop of a pack: blocks of models advance from one report step to the next.

A pack is cut into blocks whose working set fits a core's cache (on a GPU, one block). A model leaves its block when it
reaches its horizon or diverges, and the block is compacted.

Shapes: M live models of a block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.job import Member, P, Report
from jobs.packed.block import Block
from jobs.packed.crossings import CrossingSearch, RepeatableBlock


def set_threads(count: int) -> None:
    """Use `count` threads for the tensor operations of this process."""
    torch.set_num_threads(max(1, count))


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat numbers below 1.2e-38 as zero on the CPU, in this thread and context.

    Second moments and errors of a converged model fall below that, where operations are ten times slower. Adam's step
    does not change where epsilon hides such a moment: `jobs.packed.fields.hides_denormals`.
    """
    before = float(torch.full((1,), 1e-40) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def predicted(outputs_MOB: Tensor) -> Tensor:
    """(M, B) the class with the largest output, the first of equal ones on a CPU."""
    # As argmax(1), which is ten times slower for this shape.
    return outputs_MOB.max(1).indices


def neighbours(pack: Sequence[Member[P]], size: int, key: Callable[[P], Any]) -> list[list[int]]:
    """Positions in the pack, cut into blocks of `size`; trials with neighbouring keys share one: little is padded."""
    order = sorted(range(len(pack)), key=lambda position: key(pack[position].params))
    return [order[start : start + size] for start in range(0, len(order), size)]


def run_blocks(
    blocks: Sequence[tuple[Block, Sequence[int]]],
    schedules: Sequence[NDArray[np.int64]],
    *,
    watch: str,
    stop: Mapping[str, float] | None = None,
    levels: Mapping[str, float] | None = None,
    flush: bool = True,
) -> Iterator[Report]:
    """Train the blocks and report each model at the steps of its own schedule, and where it first reaches levels.

    Args:
        blocks: each block with the positions of its models in the pack.
        schedules: per position, the increasing steps to report at; the last is the horizon.
        watch: the metric that shows divergence: a model finishes where it is not finite.
        stop: metric -> level; a model finishes once all of these metrics are at or above their levels.
        levels: metric -> level; where a report is the first at or above it, the first such step since the report before
            is reported too, with the step before it (`jobs.packed.crossings`); for blocks that are `RepeatableBlock`.
        flush: whether numbers below 1.2e-38 count as zero on a CPU (`flushed_denormals`).
    """
    states = [_BlockState(block, np.asarray(positions), schedules, levels) for block, positions in blocks]
    flushed = flushed_denormals if flush else contextlib.nullcontext
    step = 0
    while states:
        done, step = step, min(state.next_step for state in states)
        with flushed():
            for state in states:
                state.block.advance(done, step - done)
        for state in states:
            if state.next_step == step:
                with flushed():
                    reports = list(state.reports(step, watch, stop))
                yield from reports
        states = [state for state in states if len(state.positions)]


class _BlockState:
    """A block, the pack positions of its live models, and their next report steps."""

    def __init__(
        self,
        block: Block,
        positions: NDArray[np.int64],
        schedules: Sequence[NDArray[np.int64]],
        levels: Mapping[str, float] | None,
    ) -> None:
        self.block, self.positions = block, positions
        self._schedules = schedules
        self._cursor = np.zeros(len(positions), dtype=np.int64)
        self._refresh()
        self._search: CrossingSearch | None = None
        if levels:
            self._search = CrossingSearch(levels, len(positions))
            self._remember(0, np.ones(len(positions), dtype=np.bool_))

    def _remember(self, step: int, reported: NDArray[np.bool_]) -> None:
        if self._search and len(self.positions):
            assert isinstance(self.block, RepeatableBlock)
            self._search.remember(self.block, step, reported, self._due)

    def _refresh(self) -> None:
        due = [self._schedules[p][c] for p, c in zip(self.positions, self._cursor, strict=True)]
        self._due = np.array(due, dtype=np.int64)
        self.next_step = int(self._due.min()) if len(self._due) else -1

    def reports(self, step: int, watch: str, stop: Mapping[str, float] | None) -> Iterator[Report]:
        measured = {name: value.detach().double().cpu().numpy() for name, value in self.block.measure().items()}
        due = self._due == step
        for at, models, values in self._search.rows(step, due, measured) if self._search else ():
            yield Report(step=at, members=self.positions[models], values=values, finished=self.positions[:0])
        last = np.array([len(self._schedules[p]) - 1 for p in self.positions]) == self._cursor
        done = due & (last | ~np.isfinite(measured[watch]))
        if stop:
            done |= due & np.logical_and.reduce([measured[name] >= level for name, level in stop.items()])
        yield Report(
            step=step,
            members=self.positions[due],
            values={name: value[due] for name, value in measured.items()},
            finished=self.positions[done],
        )
        self._cursor[due] += 1
        if done.any():
            live = np.flatnonzero(~done)
            self.positions, self._cursor, due = self.positions[live], self._cursor[live], due[live]
            if len(live):
                self.block.keep(torch.from_numpy(live))
                if self._search:
                    self._search.keep(live)
        self._refresh()
        self._remember(step, due)

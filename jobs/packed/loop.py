"""The training loop of a pack: blocks of models advance from one report step to the next.

A pack is cut into blocks whose working set fits a core's cache (on a GPU, one block). A model leaves its block when it
reaches its horizon or diverges, and the block is compacted.

Shapes: M live models of a block.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.job import Member, P, Report
from jobs.packed.block import Block, weakly
from jobs.packed.crossings import CrossingSearch, RepeatableBlock
from jobs.packed.host import to_host
from jobs.packed.precision import products
from jobs.packed.state import common_step, per_model
from jobs.state import StateError, TrialState

OFFER_S = 1.0
"""How often the states of a pack are offered while it trains."""
FIRST_PIECE = 64
"""Steps that are trained at once while it is not known how long they take."""


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
    precision: str = "fp32",
    saved: Sequence[TrialState | None] | None = None,
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
        precision: of matrix products and convolutions in training steps (`jobs.packed.precision`); measurements have
            that of float32.
        saved: per position, the state in which the model continues, None where it starts (`Member.state`). Then the
            training can be saved, too, if every block can: a report without measurements offers the states
            (`Report.state`) every `OFFER_S` seconds. None: the caller does not pass states on.

    Raises:
        StateError: a state does not fit its model.
    """
    step = common_step(saved or ())
    keeps = saved is not None and not levels  # a search for crossings depends on where the training ended
    states = [_BlockState(block, np.asarray(positions), schedules, levels, keeps) for block, positions in blocks]
    if step and saved is not None:
        for state in states:
            state.load([given for p in state.positions if (given := saved[p]) is not None])
    pieces = _Pieces(offers=saved is not None)
    flushed = flushed_denormals if flush else contextlib.nullcontext
    while states:
        next_step = min(state.next_step for state in states)
        while step < next_step:
            if pieces.offer() and all(state.block.save() for state in states):
                yield _offer(states, step)
            count = pieces.steps(next_step - step)
            with flushed(), products(precision):
                for state in states:
                    state.block.advance(step, count)
            step += count
        for state in states:
            if state.next_step == step:
                with flushed(), products("fp32"):
                    reports = list(state.reports(step, watch, stop))
                yield from reports
                with flushed():
                    state.leave(step)
        states = [state for state in states if len(state.positions)]


class _Pieces:
    """Divides what lies between two reports, so that states can be offered every `OFFER_S` seconds.

    A training does not depend on how it is divided. Packs that take less time are hardly divided.
    """

    def __init__(self, *, offers: bool) -> None:
        self._offers = offers
        self._offered = self._began = time.monotonic()
        self._count, self._most = 0, FIRST_PIECE

    def offer(self) -> bool:
        """Whether to offer the states now; called before each piece."""
        if not self._offers:
            return False
        now = time.monotonic()
        if self._count:
            in_time = int(OFFER_S * self._count / max(now - self._began, 1e-9))
            # One quick piece does not show yet that a long one is as quick.
            limit = 2 * self._count if self._count == self._most else self._most
            self._most = max(1, min(in_time, limit))
        if not self._count or now - self._offered < OFFER_S:
            return False
        self._offered = now
        return True

    def steps(self, left: int) -> int:
        """How many of the `left` steps to the next report to train now."""
        self._count = min(left, self._most) if self._offers else left
        self._began = time.monotonic()
        return self._count


def _offer(states: Sequence[_BlockState], step: int) -> Report:
    """A report without measurements that offers the states of all models."""
    none = np.empty(0, dtype=np.int64)

    def save() -> dict[int, TrialState]:
        return {position: state for block in states for position, state in block.save(step)}

    return Report(step=step, members=none, values={}, finished=none, state=save)


class _BlockState:
    """A block, the pack positions of its live models, and their next report steps."""

    def __init__(
        self,
        block: Block,
        positions: NDArray[np.int64],
        schedules: Sequence[NDArray[np.int64]],
        levels: Mapping[str, float] | None,
        keeps: bool,
    ) -> None:
        self.block, self.positions, self._keeps = block, positions, keeps
        self._schedules = schedules
        self._cursor = np.zeros(len(positions), dtype=np.int64)
        self._done = np.zeros(len(positions), dtype=np.bool_)
        """Those that finish with the reports of this step."""
        self._refresh()
        self._search: CrossingSearch | None = None
        if levels:
            self._search = CrossingSearch(levels, len(positions))
            self._remember(0, np.ones(len(positions), dtype=np.bool_))

    def _remember(self, step: int, reported: NDArray[np.bool_]) -> None:
        if self._search and len(self.positions):
            assert isinstance(self.block, RepeatableBlock)
            self._search.remember(self.block, step, reported, self._due)

    def save(self, step: int) -> Iterator[tuple[int, TrialState]]:
        """The positions of the live models and their states at `step`, whose reports have been made."""
        models = per_model(self.block.save(), len(self.positions))
        if self._search:
            models = [a | b for a, b in zip(models, self._search.save(step), strict=True)]
        for position, arrays in zip(self.positions.tolist(), models, strict=True):
            yield position, TrialState(step=step, arrays=arrays)

    def load(self, states: Sequence[TrialState]) -> None:
        """Continue from states of one step."""
        self.block.load(states)
        step = states[0].step
        done = [int(np.searchsorted(self._schedules[p], step, side="right")) for p in self.positions]
        if any(at >= len(self._schedules[p]) for p, at in zip(self.positions, done, strict=True)):
            raise StateError(f"it is at step {step}, where the trial ends")
        self._cursor = np.array(done, dtype=np.int64)
        self._refresh()
        if self._search:
            assert isinstance(self.block, RepeatableBlock)
            self._search.load(self.block, states)

    def _refresh(self) -> None:
        due = [self._schedules[p][c] for p, c in zip(self.positions, self._cursor, strict=True)]
        self._due = np.array(due, dtype=np.int64)
        self.next_step = int(self._due.min()) if len(self._due) else -1

    def reports(self, step: int, watch: str, stop: Mapping[str, float] | None) -> Iterator[Report]:
        measured = {name: to_host(value.double()) for name, value in self.block.measure().items()}
        due = self._due == step
        for at, models, values in self._search.rows(step, due, measured) if self._search else ():
            yield Report(step=at, members=self.positions[models], values=values, finished=self.positions[:0])
        last = np.array([len(self._schedules[p]) - 1 for p in self.positions]) == self._cursor
        done = due & (last | ~np.isfinite(measured[watch]))
        stopped = np.zeros(len(done), dtype=np.bool_)
        if stop:
            stopped = due & np.logical_and.reduce([measured[name] >= level for name, level in stop.items()])
            done |= stopped
        self._done, ended = done, due & last & np.isfinite(measured[watch]) & ~stopped
        yield Report(
            step=step,
            members=self.positions[due],
            values={name: value[due] for name, value in measured.items()},
            finished=self.positions[done],
            final=partial(weakly(self._final), step, ended) if self._keeps and ended.any() else None,
        )

    def _final(self, step: int, ended: NDArray[np.bool_]) -> dict[int, TrialState]:
        """The states of the models that end at `step`; none where the block cannot be saved."""
        if not self.block.save():
            return {}
        wanted = set(self.positions[ended].tolist())
        return {position: state for position, state in self.save(step) if position in wanted}

    def leave(self, step: int) -> None:
        """Go on after the reports of `step`, without the models that finished."""
        done, due = self._done, self._due == step
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

"""The exact step at which a metric first reaches a level.

Reports tell between which two of them a model crossed. It is then trained again from the first of the two, step by
step, until it has: batches are drawn from the model's key and the step, so this is the same training. It starts from a
copy of the block, made at each report, and holds only the models that crossed; the block itself is not touched.

A level that is reached and lost again between two reports is not noticed, here or elsewhere.

Shapes: M models of a block, L levels, m models that crossed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.packed.block import Block
from jobs.packed.host import to_host
from jobs.packed.state import per_model
from jobs.state import TrialState, fitted

Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]
Row = tuple[int, Positions, Mapping[str, NDArray[np.float64]]]
"""A step, (m,) positions in the block, and metric -> (m,) values."""
_PENDING, _AT, _BEFORE = "search.pending", "search.at", "search.before."
"""Names in a state: which levels are not reached yet, the step of the last report, and the model as it was there."""


class RepeatableBlock(Block):
    """A block that can train a part of the past again."""

    @abstractmethod
    def copy(self) -> Self:
        """An independent copy. Before it trains or measures, `keep` must be called on it."""

    @abstractmethod
    def values(self, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        """These metrics alone, as `measure` gives them."""


class CrossingSearch:
    """Finds the steps at which the models of one block first reach levels."""

    def __init__(self, levels: Mapping[str, float], models: int) -> None:
        """`levels`: metric -> the level that is crossed from below."""
        self._names = tuple(levels)
        self._level_L = np.array(list(levels.values()))
        self._pending_ML = np.ones((models, len(levels)), dtype=np.bool_)
        self._last_M = np.zeros(models, dtype=np.int64)
        self._copies: dict[int, RepeatableBlock] = {}
        """The step of a model's last report -> the block as it was then."""

    def remember(self, block: RepeatableBlock, step: int, reported_M: Flags, next_M: Positions) -> None:
        """Note that these models are reported at `step` (or start there), and next at `next_M`."""
        self._last_M[reported_M] = step
        wanted = self._pending_ML.any(1)
        if (wanted & reported_M & (next_M > step + 1)).any():
            self._copies[step] = block.copy()
        self._copies = {at: kept for at, kept in self._copies.items() if at in self._last_M[wanted]}

    def save(self, step: int) -> list[dict[str, NDArray[Any]]]:
        """What the search of each model depends on between two reports, with the block at its last one."""
        found: list[dict[str, NDArray[Any]]] = [{_PENDING: pending_L} for pending_L in self._pending_ML]
        for at, kept in self._copies.items():
            if at == step:
                continue
            arrays = per_model(kept.save(), len(found))
            for model in np.flatnonzero((self._last_M == at) & self._pending_ML.any(1)).tolist():
                found[model][_AT] = np.array(at)
                found[model] |= {_BEFORE + name: value for name, value in arrays[model].items()}
        return found

    def load(self, block: RepeatableBlock, states: Sequence[TrialState]) -> None:
        """Continue from what `save` gave; `block` has loaded the same states.

        Raises:
            StateError: a state does not fit.
        """
        step = states[0].step
        pending = [fitted(state.array(_PENDING), self._level_L.shape, _PENDING) for state in states]
        self._pending_ML = np.array(pending, dtype=np.bool_)
        self._last_M = np.array([int(state.number(_AT)) if _AT in state.arrays else step for state in states])
        self._copies = {at: block.copy() for at in np.unique(self._last_M[self._pending_ML.any(1)]).tolist()}
        for at, kept in self._copies.items():
            if at != step:
                held = self._last_M == at
                first = int(held.argmax())  # it stands for the models that are not taken from this copy
                before = [states[model if held[model] else first].under(_BEFORE) for model in range(len(states))]
                kept.load([TrialState(step=at, arrays=state.arrays) for state in before])

    def keep(self, index: Positions) -> None:
        """Keep these models only."""
        self._pending_ML, self._last_M = self._pending_ML[index], self._last_M[index]
        for kept in self._copies.values():
            kept.keep(torch.from_numpy(index))

    def rows(self, step: int, due_M: Flags, measured: Mapping[str, NDArray[np.float64]]) -> Iterator[Row]:
        """What is to be reported before the report at `step`: each crossing, and the step before it, in order.

        Args:
            step: the step that the block is at.
            due_M: the models that are reported there.
            measured: metric -> (M,) values there.
        """
        values_ML = np.stack([measured[name] for name in self._names], 1)
        crossed_ML = self._pending_ML & due_M[:, None] & (values_ML >= self._level_L)
        self._pending_ML &= ~crossed_ML
        found: dict[int, list[tuple[Positions, Mapping[str, NDArray[np.float64]]]]] = {}
        for start in np.unique(self._last_M[crossed_ML.any(1)]).tolist():
            if step - start > 1:
                models = np.flatnonzero(crossed_ML.any(1) & (self._last_M == start))
                for at, positions, values in self._repeat(start, step, models, crossed_ML[models]):
                    found.setdefault(at, []).append((positions, values))
        for at in sorted(found):
            for positions, values in found[at]:
                yield at, positions, values

    def _repeat(self, start: int, end: int, models_m: Positions, wanted_mL: Flags) -> Iterator[Row]:
        """Train these models again from `start` until each has crossed what is wanted, before `end`."""
        block = self._copies[start].copy()
        block.keep(torch.from_numpy(models_m))
        reported = np.full(len(models_m), start)
        for step in range(start + 1, end):
            before = block.copy()
            block.advance(step - 1, 1)
            looked_for = tuple(self._names[k] for k in np.flatnonzero(wanted_mL.any(0)))
            if not (wanted_mL & self._reached(block.values(looked_for))).any():
                continue
            measured = block.measure()
            crossed_mL = wanted_mL & self._reached(measured)
            now = np.flatnonzero(crossed_mL.any(1))
            fresh = now[reported[now] < step - 1]
            if len(fresh):
                before.keep(torch.from_numpy(fresh))
                yield step - 1, models_m[fresh], _numbers(before.measure())
            del before  # its memory is needed where the block is compacted
            yield step, models_m[now], {name: value[now] for name, value in _numbers(measured).items()}
            reported[now] = step
            wanted_mL = wanted_mL & ~crossed_mL
            left = np.flatnonzero(wanted_mL.any(1))
            if not len(left):
                return
            if len(left) < len(wanted_mL):
                block.keep(torch.from_numpy(left))
                models_m, wanted_mL, reported = models_m[left], wanted_mL[left], reported[left]
        late = np.flatnonzero(reported < end - 1)
        if len(late):
            yield end - 1, models_m[late], {name: value[late] for name, value in _numbers(block.measure()).items()}

    def _reached(self, values: Mapping[str, Tensor]) -> Flags:
        """(m, L) whether each level is reached; False where the metric is not among the values."""
        models = len(next(iter(values.values())))
        never = np.zeros(models, dtype=np.bool_)
        found, levels = _numbers(values), zip(self._names, self._level_L, strict=True)
        return np.stack([found[name] >= level if name in found else never for name, level in levels], 1)


def _numbers(measured: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    return {name: to_host(value.double()) for name, value in measured.items()}

"""A small job whose training can be saved: no torch, and a curve that depends on every step before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jobs.job import Cost, Curves, Job, Member, Observations, Params, Report, param
from jobs.state import StateError, TrialState

NAME = "tests.jobs_for_checkpoints:Walk"


@dataclass(frozen=True, kw_only=True)
class WalkParams(Params):
    start: float = param(0.5, meaning="where the walk starts")
    steps: int = param(40, meaning="steps", low=1)
    every: int = param(4, meaning="steps between two reports", low=1)
    wait_s: float = param(0.0, meaning="time per step", low=0)
    log: str = param("", meaning="a file that gets a line with each step that is trained")


@dataclass(frozen=True, kw_only=True)
class WalkThresholds(Params):
    level: float = param(0.5, meaning="what counts as high")


class Walk(Job[WalkParams]):
    """x -> 3.9 x (1 - x) + small terms of the seed and the step: chaotic, so that any lost step shows."""

    Params = WalkParams
    Thresholds = WalkThresholds
    metrics: ClassVar[tuple[str, ...]] = ("x", "total")
    phases: ClassVar[tuple[str, ...]] = ("high", "low")
    needs_torch = False

    def pack_key(self, params: WalkParams) -> Hashable:
        return "walk"

    def cost(self, params: WalkParams, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=0, matmul_flop=0, element_visits=0, memory_bytes=0)

    def train(self, pack: Sequence[Member[WalkParams]], *, device: str) -> Iterator[Report]:
        states = [member.state for member in pack]
        done = {0 if state is None else state.step for state in states}
        assert len(done) == 1, "trials of different steps share a pack"
        (first,) = done
        x = np.array([m.params.start if s is None else s.number("x") for m, s in zip(pack, states, strict=True)])
        total = np.array([0.0 if s is None else s.number("total") for s in states])
        if first and not np.isfinite(x).all():
            raise StateError("a walk cannot continue at a number that is not finite")
        noise = np.array([member.seed % 1000 for member in pack]) * 1e-9
        horizons = np.array([member.params.steps for member in pack])
        none = np.empty(0, dtype=np.int64)
        for step in range(first + 1, int(horizons.max()) + 1):
            live = np.flatnonzero(horizons >= step)
            time.sleep(max(pack[p].params.wait_s for p in live))
            x[live] = 3.9 * x[live] * (1 - x[live]) + noise[live] * (step % 7)
            total[live] += x[live]
            for p in live:
                if pack[p].params.log:
                    with Path(pack[p].params.log).open("a") as file:
                        file.write(f"{pack[p].params.start} {step} {os.getpid()} {time.monotonic()}\n")
            due = live[(step % np.array([pack[p].params.every for p in live]) == 0) | (horizons[live] == step)]
            ended = live[horizons[live] == step]
            if len(due):
                yield Report(step=step, members=due, values={"x": x[due], "total": total[due]}, finished=ended)
            left = [int(p) for p in live if horizons[p] > step]
            if left:
                yield Report(step=step, members=none, values={}, finished=none, state=_states(left, step, x, total))

    def observe(self, params: WalkParams, curves: Curves, thresholds: Params) -> Observations:
        return {"last": float(curves.values["x"][-1]), "rows": float(len(curves.step))}

    def phase(self, params: WalkParams, observations: Observations, thresholds: Params) -> str:
        last = observations["last"]
        assert isinstance(last, float) and isinstance(thresholds, WalkThresholds)
        return "high" if last >= thresholds.level else "low"


def _states(left: list[int], step: int, x: np.ndarray, total: np.ndarray) -> Callable[[], Mapping[int, TrialState]]:
    return lambda: {p: TrialState(step=step, arrays={"x": x[p], "total": total[p]}) for p in left}

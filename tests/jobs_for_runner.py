"""Small real jobs for the machine's tests: no torch, exact answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jobs.curves import first_at_least
from jobs.job import Cost, Curves, Job, Member, Observations, Params, Report, param

STEPS = 5


@dataclass(frozen=True, kw_only=True)
class RampParams(Params):
    slope: float = param(1.0, meaning="growth of the curve per step")
    width: int = param(4, meaning="a paddable extent", low=1)
    trouble: str = param(
        "none",
        meaning="what goes wrong",
        choices=("none", "raise", "memory", "observe", "silent", "diverge", "kill once", "kill always"),
    )
    wait_s: float = param(0.0, meaning="time per step", low=0)
    mark: str = param("", meaning="a file that remembers a kill across processes")


@dataclass(frozen=True, kw_only=True)
class RampThresholds(Params):
    level: float = param(3.0, meaning="what counts as high")


class Ramp(Job[RampParams]):
    """value(step) = slope * step, exact; every way of going wrong on request."""

    Params = RampParams
    Thresholds = RampThresholds
    metrics: ClassVar[tuple[str, ...]] = ("value", "half")
    phases: ClassVar[tuple[str, ...]] = ("high", "low", "diverged")
    needs_torch = False

    def report_steps(self, params: RampParams) -> int:
        return STEPS

    def pack_key(self, params: RampParams) -> Hashable:
        return "ramp"

    def cost(self, params: RampParams, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=0, matmul_flop=0, element_visits=0, memory_bytes=0)

    def train(self, pack: Sequence[Member[RampParams]], *, device: str) -> Iterator[Report]:
        live = np.arange(len(pack))
        slopes = np.array([member.params.slope for member in pack])
        silent = np.array([member.params.trouble == "silent" for member in pack])
        for step in range(1, STEPS + 1):
            time.sleep(max((member.params.wait_s for member in pack), default=0.0))
            if step == 3:
                for member in pack:
                    _go_wrong(member.params)
            value = slopes[live] * step
            broken = np.array([pack[i].params.trouble == "diverge" and step == 2 for i in live])
            value[broken] = np.nan
            done = broken | ((step == STEPS) & ~silent[live])
            yield Report(step=step, members=live, values={"value": value, "half": value / 2}, finished=live[done])
            live = live[~broken]

    def observe(self, params: RampParams, curves: Curves, thresholds: Params) -> Observations:
        if params.trouble == "observe":
            raise ValueError("cannot be observed")
        assert isinstance(thresholds, RampThresholds)
        return {
            "last": float(curves.values["value"][-1]),
            "high_at": first_at_least(curves.step, curves.values["value"], thresholds.level),
        }

    def phase(self, params: RampParams, observations: Observations, thresholds: Params) -> str:
        last = observations["last"]
        assert isinstance(last, float)
        assert isinstance(thresholds, RampThresholds)
        return "diverged" if np.isnan(last) else "high" if last >= thresholds.level else "low"


def _go_wrong(params: RampParams) -> None:
    if params.trouble == "raise":
        raise ValueError("this setting is impossible")
    if params.trouble == "memory":
        raise MemoryError("no room")
    if params.trouble == "kill always" or (params.trouble == "kill once" and not Path(params.mark).exists()):
        if params.mark:
            Path(params.mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)


class CostlyRamp(Ramp):
    """The same, with a paddable width and a stated cost."""

    def extent(self, params: RampParams) -> tuple[int, ...]:
        return (params.width,)

    def cost(self, params: RampParams, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(
            launches=2_000.0,
            matmul_flop=models * extent[0] ** 2 * 1e5,
            element_visits=models * extent[0] * 1e5,
            memory_bytes=models * extent[0] * 1e6,
        )


class SplitRamp(CostlyRamp):
    """The same, where trials whose slopes differ in sign cannot share tensors."""

    def pack_key(self, params: RampParams) -> Hashable:
        return params.slope > 0


FLOODS = 40


class Flood(Ramp):
    """It reports 1,000 metrics at once, FLOODS times without a pause, and writes into `mark` how often it has."""

    metrics: ClassVar[tuple[str, ...]] = ("value", *(f"m{k}" for k in range(999)))

    def train(self, pack: Sequence[Member[RampParams]], *, device: str) -> Iterator[Report]:
        members = np.arange(len(pack))
        for step in range(1, FLOODS + 1):
            values = {name: np.full(len(pack), float(step)) for name in self.metrics}
            Path(pack[0].params.mark).write_text(str(step))
            yield Report(step=step, members=members, values=values, finished=members[: len(pack) * (step == FLOODS)])


def plain(params: dict, seed: int, device: str, report) -> None:  # type: ignore[no-untyped-def, type-arg]
    """A user's own function: it knows nothing of packs."""
    for step in range(1, 4):
        report(step, value=params["slope"] * step)


def wordless(params: dict, seed: int, device: str, report) -> None:  # type: ignore[no-untyped-def, type-arg]
    """A function whose author forgot to report."""

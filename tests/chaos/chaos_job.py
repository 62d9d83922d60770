"""Jobs for the sweeps: curves that are known in closed form, trained in seconds that cost no processor time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jobs.job import Cost, Curves, Job, Member, Observations, Params, Report, param

NODE = Path(__file__).parent / "node"
"""A bad node sees empty folders here."""
sys.path.append(str(NODE / "library"))
from chaos_library import SCALE  # type: ignore[import-not-found]  # noqa: E402

TABLE = NODE / "data" / "table.txt"
METRICS = ("loss", "level")


def measured(x: float, seed: int, step: int, offset: float = 0.25) -> dict[str, float]:
    """The metrics of a trial at a step."""
    noise = ((seed * 2654435761 + step * 40503) % 1_000_003) / 1_000_003
    return {"loss": SCALE * math.exp(-x * step) + noise / 100, "level": offset + step * x + noise}


def rest(pause_s: float, hurry: str) -> None:
    """Sleep, unless the file `hurry` exists: once all faults are injected, the sweep may end."""
    end = time.monotonic() + pause_s
    while time.monotonic() < end and not (hurry and Path(hurry).exists()):
        time.sleep(min(0.1, pause_s))


@dataclass(frozen=True, kw_only=True)
class PulseParams(Params):
    """One trial."""

    x: float = param(0.1, low=0, high=10, meaning="decay of the loss")
    group: int = param(0, low=0, high=1000, meaning="trials of a group share a pack")
    steps: int = param(10, low=1, high=1000, meaning="steps, each of them reported")
    pause_s: float = param(0.0, low=0, high=10, unit="s", meaning="sleep before each step")
    hurry: str = param("", meaning="a file; where it exists, nothing sleeps")


@dataclass(frozen=True, kw_only=True)
class PulseThresholds(Params):
    """When a trial is low."""

    low: float = param(0.5, meaning="final loss below which a trial is low")


class Pulse(Job[PulseParams]):
    """A packed job with declared metrics and report steps."""

    Params: ClassVar[type[Params]] = PulseParams
    Thresholds: ClassVar[type[Params]] = PulseThresholds
    metrics: ClassVar[tuple[str, ...]] = METRICS
    phases: ClassVar[tuple[str, ...]] = ("low", "high")
    needs_torch: ClassVar[bool] = False

    def report_steps(self, params: PulseParams) -> int:
        return params.steps

    def pack_key(self, params: PulseParams) -> Hashable:
        return params.group

    def cost(self, params: PulseParams, *, extent: tuple[int, ...], models: int) -> Cost:
        seconds = params.pause_s * params.steps
        none = {"launches": 0.0, "matmul_flop": 0.0, "element_visits": 0.0}
        return Cost(**none, memory_bytes=1e6, seconds=seconds, steps=params.steps, reports=params.steps)

    def train(self, pack: Sequence[Member[PulseParams]], *, device: str) -> Iterator[Report]:
        offset = float(TABLE.read_text())
        every, none = np.arange(len(pack)), np.arange(0)
        last = pack[0].params.steps
        for step in range(1, last + 1):
            rest(pack[0].params.pause_s, pack[0].params.hurry)
            rows = [measured(member.params.x, member.seed, step, offset) for member in pack]
            values = {name: np.array([row[name] for row in rows]) for name in METRICS}
            yield Report(step=step, members=every, values=values, finished=every if step == last else none)

    def observe(self, params: PulseParams, curves: Curves, thresholds: Any) -> Observations:
        return {"final_loss": float(curves.values["loss"][-1]), "mean_level": float(curves.values["level"].mean())}

    def phase(self, params: PulseParams, observations: Observations, thresholds: Any) -> str:
        loss = observations["final_loss"]
        return "low" if isinstance(loss, float) and loss < thresholds.low else "high"


def train(params: Mapping[str, Any], seed: int, device: str, report: Callable[..., None]) -> None:
    """A plain function with the same curves."""
    offset = float(TABLE.read_text())
    for step in range(1, int(params["steps"]) + 1):
        rest(float(params["pause_s"]) / 4, str(params["hurry"]))
        report(step, **measured(params["x"], seed, step, offset))

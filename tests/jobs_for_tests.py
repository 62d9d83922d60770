"""Small real jobs for tests: they train in microseconds, with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jobs.curves import first_where
from jobs.job import Cost, Curves, Job, Member, Observations, ParamError, Params, Report, log_spaced_steps, param


@dataclass(frozen=True, kw_only=True)
class DescentParams(Params):
    """Gradient descent with momentum on a quadratic, from a random start."""

    dimension: int = param(4, low=1, high=100, unit="numbers", meaning="size of the vector")
    heads: int = param(1, low=1, high=100, meaning="must divide dimension")
    learning_rate: float = param(0.1, above=0, high=10, unit="1/step", meaning="step size")
    weight_decay: float = param(0.0, low=0, high=100, meaning="pull towards zero")
    nesterov: bool = param(False, meaning="look ahead")
    model: str = param("plain", choices=("plain", "heavy", "transformer"), meaning="kind of descent")
    label: str = param("", meaning="any text; changes nothing")
    steps: int = param(20, low=1, high=10_000, unit="steps", meaning="steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension % self.heads:
            raise ParamError("heads", f"must divide dimension ({self.dimension})", self.heads)


@dataclass(frozen=True, kw_only=True)
class DescentThresholds(Params):
    """When a descent counts as arrived."""

    arrived_loss: float = param(0.1, above=0, meaning="loss at which it has arrived")
    far_loss: float = param(1.0, above=0, meaning="loss above which it is far away")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.far_loss < self.arrived_loss:
            raise ParamError("far_loss", f"must be at least arrived_loss ({self.arrived_loss:g})", self.far_loss)


class Descent(Job[DescentParams]):
    """A packed job: all members descend as the rows of one array."""

    Params: ClassVar[type[Params]] = DescentParams
    Thresholds: ClassVar[type[Params]] = DescentThresholds
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    phases: ClassVar[tuple[str, ...]] = ("arrived", "near", "far")

    def pack_key(self, params: DescentParams) -> Hashable:
        return params.steps

    def extent(self, params: DescentParams) -> tuple[int, ...]:
        return (params.dimension,)

    def cost(self, params: DescentParams, *, extent: tuple[int, ...], models: int) -> Cost:
        visits = 4.0 * params.steps * models * extent[0]
        return Cost(launches=4.0 * params.steps, matmul_flop=0, element_visits=visits, memory_bytes=16 * visits)

    def train(self, pack: Sequence[Member[DescentParams]], *, device: str) -> Iterator[Report]:
        width = max(member.params.dimension for member in pack)
        w = np.zeros((len(pack), width))
        for row, member in enumerate(pack):
            n = member.params.dimension
            w[row, :n] = np.random.default_rng(member.seed).standard_normal(n)
        rate = np.array([[member.params.learning_rate] for member in pack])
        decay = np.array([[member.params.weight_decay] for member in pack])
        steps = pack[0].params.steps
        every, none = np.arange(len(pack)), np.arange(0)
        measured = set(log_spaced_steps(steps, 10).tolist())
        for step in range(1, steps + 1):
            w -= rate * (w + decay * w)
            if step in measured:
                loss = {"loss": 0.5 * (w**2).sum(axis=1)}
                yield Report(step=step, members=every, values=loss, finished=every if step == steps else none)

    def observe(self, params: DescentParams, curves: Curves, thresholds: Any) -> Observations:
        loss = curves.values["loss"]
        arrived = first_where(curves.step, loss <= thresholds.arrived_loss)
        return {"arrival_step": arrived, "final_loss": float(loss[-1])}

    def phase(self, params: DescentParams, observations: Observations, thresholds: Any) -> str:
        loss = observations["final_loss"]
        assert isinstance(loss, float)
        return "arrived" if loss <= thresholds.arrived_loss else "far" if loss > thresholds.far_loss else "near"


@dataclass(frozen=True, kw_only=True)
class RequiringParams(Params):
    size: int = param(low=1, high=9, meaning="has no default")


class Requiring(Descent):
    """Has a parameter without a default."""

    Params: ClassVar[type[Params]] = RequiringParams


@dataclass(frozen=True, kw_only=True)
class CrashingParams(Params):
    size: int = param(1, low=0, high=9, meaning="divided by")

    def __post_init__(self) -> None:
        super().__post_init__()
        1 / self.size


class Crashing(Descent):
    """Its parameters' own check raises something that is no ParamError."""

    Params: ClassVar[type[Params]] = CrashingParams


def train(params: dict[str, Any], seed: int, device: str, report: Callable[..., None]) -> dict[str, float]:
    """A plain function that knows nothing of packs."""
    rng = np.random.default_rng(seed)
    value = float(rng.standard_normal())
    for step in range(1, int(params.get("steps", 3)) + 1):
        value *= 1 - float(params.get("rate", 0.1))
        report(step, value=value)
    return {"final": value}

"""A job whose curves are a formula, and rows of trials built by hand, for the tests of the phase diagram."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from jobs.job import Censored, Cost, Curves, Job, Member, Observations, Params, Report, Scalar, param
from orchestrator.axes import Axis, Scale
from orchestrator.records import Recorded, Status
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial


@dataclass(frozen=True, kw_only=True)
class MeltParams(Params):
    heat: float = param(1.0, meaning="how hot", unit="K", low=0)
    width: int = param(10, meaning="how wide", unit="units", low=1)
    load: float = param(0.5, meaning="how loaded", low=0)
    kind: str = param("iron", meaning="what of", choices=("iron", "tin", "lead"))
    stirred: bool = param(False, meaning="whether stirred")
    speed: float = param(0.1, meaning="how fast it is stirred", unit="1/s", low=0)


@dataclass(frozen=True, kw_only=True)
class MeltThresholds(Params):
    level: float = param(0.9, meaning="from where it counts as melted")


class Melt(Job[MeltParams]):
    Params: ClassVar[type[Params]] = MeltParams
    Thresholds: ClassVar[type[Params]] = MeltThresholds
    metrics: ClassVar[tuple[str, ...]] = ("melted",)
    phases: ClassVar[tuple[str, ...]] = ("solid", "liquid", "gas")
    headline: ClassVar[tuple[str, ...]] = ("melting_step", "final_error")

    def pack_key(self, params: MeltParams) -> Hashable:
        return params.kind

    def cost(self, params: MeltParams, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=1, matmul_flop=models, element_visits=models, memory_bytes=8 * models)

    def train(self, pack: Sequence[Member[MeltParams]], *, device: str) -> Iterator[Report]:
        everyone = np.arange(len(pack))
        melted = np.array([member.params.heat * member.params.load for member in pack])
        yield Report(step=1, members=everyone, values={"melted": melted}, finished=everyone)

    def observe(self, params: MeltParams, curves: Curves, thresholds: Params) -> Observations:
        melted = float(curves.values["melted"][-1])
        return {"melting_step": 1 / melted if melted > 1 else Censored(1.0), "final_error": melted}

    def phase(self, params: MeltParams, observations: Observations, thresholds: Params) -> str:
        return "solid" if isinstance(observations["melting_step"], Censored) else "liquid"

    def summarise(self, trials: Sequence[tuple[MeltParams, Observations]], thresholds: Params) -> dict[str, float]:
        widths = [p.width for p, seen in trials if not isinstance(seen["melting_step"], Censored)]
        return {"melting_width": float(min(widths)), "odd": float("nan")} if widths else {}


class MeltWithoutSummary(Melt):
    def summarise(self, trials: Sequence[tuple[MeltParams, Observations]], thresholds: Params) -> dict[str, float]:
        raise ZeroDivisionError("nothing melted")


def axis(
    name: str, *values: Scalar, scale: Scale = "values", when: Mapping[str, Any] | None = None, group: int | None = None
) -> Axis:
    return Axis(name=name, values=values, scale=scale, when=when or {}, group=group)


@dataclass(frozen=True, kw_only=True)
class GivenSweep:
    """A sweep as the phase diagram sees it."""

    axes: tuple[Axis, ...]
    name: str = "melting"
    job: Job[Any] = field(default_factory=Melt)

    def job_object(self) -> Job[Any]:
        return self.job

    def thresholds(self) -> Params:
        return MeltThresholds()


def trial(replicate: int = 0, **settings: Scalar) -> Trial:
    return Trial(job="melt", job_version=1, params=MeltParams(**settings), replicate=replicate)  # type: ignore[arg-type]


def row(
    of: Trial, phase: str | None = "solid", status: Status = Status.FINISHED, /, **observations: float | Censored
) -> TrialRow:
    recorded = Recorded(status=status, phase=phase, observations=observations, thresholds="t", through_step=-1)
    return TrialRow(
        trial_id=of.id, run_id=f"run-{of.id[:6]}", params=of.settings(), replicate=of.replicate, recorded=recorded
    )


def by_id(*rows: TrialRow) -> dict[str, TrialRow]:
    return {r.trial_id: r for r in rows}


def product(axes: Sequence[Axis], replicates: int = 1) -> list[Trial]:
    names = [axis.name for axis in axes]
    return [
        trial(replicate, **dict(zip(names, values, strict=True)))
        for values in itertools.product(*(axis.values for axis in axes))
        for replicate in range(replicates)
    ]

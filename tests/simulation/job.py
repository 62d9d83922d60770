"""The job of simulated schedules: exact curves that name the training they come from, and every kind of bad trial."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jobs.job import Cost, Curves, Job, Member, Observations, Params, Report, param
from jobs.state import TrialState

NAME = "tests.simulation.job:Drill"
HEALTHY = "none"
TROUBLES = ("raise", "observe", "memory", "surrogate", "step", "hang", "crash")
"""What is wrong with a bad trial. Hangs and crashes are the simulated worker's part: `train` goes on."""
TROUBLE_AT = 2
"""The step at which a bad trial goes wrong."""


@dataclass(frozen=True, kw_only=True)
class DrillParams(Params):
    number: int = param(0, meaning="tells trials apart", low=0)
    steps: int = param(4, meaning="length of the curve", low=1)
    trouble: str = param(HEALTHY, meaning="what goes wrong", choices=(HEALTHY, *TROUBLES))


@dataclass(frozen=True, kw_only=True)
class DrillThresholds(Params):
    level: float = param(3.0, meaning="what counts as high")


class Drill(Job[DrillParams]):
    """value(step) = number + step; `training` is another number in each training."""

    Params = DrillParams
    Thresholds = DrillThresholds
    metrics: ClassVar[tuple[str, ...]] = ("value", "training")
    phases: ClassVar[tuple[str, ...]] = ("high", "low")
    needs_torch = False
    trainings: ClassVar[itertools.count[int]] = itertools.count(1)
    """Numbers of the trainings of this process; a simulation starts it again."""
    room: ClassVar[int] = 1_000_000
    """Models that fit into the memory of a worker."""
    save_s: ClassVar[float] = 0.0
    """How long it takes to take the states of a pack."""
    spent_s: ClassVar[float] = 0.0
    """Seconds that this has taken so far."""
    defect: ClassVar[tuple[type[Exception], tuple[object, ...]] | None] = None
    """What is wrong with the worker that trains now: the exception, raised at once, and its arguments."""

    def schedule(self, params: DrillParams) -> NDArray[np.int64]:
        return np.arange(1, params.steps + 1)

    def pack_key(self, params: DrillParams) -> Hashable:
        return "drill"

    def cost(self, params: DrillParams, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=20_000.0, matmul_flop=0, element_visits=models * 3e7, memory_bytes=models)

    def train(self, pack: Sequence[Member[DrillParams]], *, device: str) -> Iterator[Report]:
        if self.defect is not None:
            exception, arguments = self.defect
            raise exception(*arguments)
        states = [member.state for member in pack]
        (done,) = {0 if state is None else state.step for state in states}
        training = np.full(len(pack), float(next(self.trainings)))
        if done:  # the curve goes on, and is still that of the training in which it began
            training = np.array([-1.0 if state is None else state.number("training") for state in states])
        numbers = np.array([member.params.number for member in pack])
        horizons = np.array([member.params.steps for member in pack])
        troubles = {member.params.trouble for member in pack}
        for step in range(done + 1, int(horizons.max()) + 1):
            if step == TROUBLE_AT:
                if len(pack) > self.room:
                    raise MemoryError(f"no room for {len(pack)} models")
                _go_wrong(troubles)
            live = np.flatnonzero(horizons >= step)
            at = 2**63 - 2 if step == TROUBLE_AT and "step" in troubles else step
            values = {"value": numbers[live] + float(step), "training": training[live]}
            left = live[horizons[live] > step].tolist()
            yield Report(
                step=at,
                members=live,
                values=values,
                finished=live[horizons[live] == step],
                state=partial(self._states, left, step, training),
            )

    def _states(self, left: list[int], step: int, training: NDArray[np.float64]) -> dict[int, TrialState]:
        type(self).spent_s += self.save_s
        return {p: TrialState(step=step, arrays={"training": training[p]}) for p in left}

    def observe(self, params: DrillParams, curves: Curves, thresholds: Params) -> Observations:
        if params.trouble == "observe":
            raise ValueError("cannot be observed")
        last = curves.values["value"][-1]
        return {"last": float(last), "trained_by": float(curves.values["training"][-1])}

    def phase(self, params: DrillParams, observations: Observations, thresholds: Params) -> str:
        last = observations["last"]
        assert isinstance(last, float)
        assert isinstance(thresholds, DrillThresholds)
        return "high" if last >= thresholds.level else "low"


def _go_wrong(troubles: set[str]) -> None:
    if "raise" in troubles:
        raise ValueError("this setting is impossible")
    if "memory" in troubles:
        raise MemoryError("no room for this model")
    if "surrogate" in troubles:
        raise FileNotFoundError("no such file: 'caf\udce9.npy'")

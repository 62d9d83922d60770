"""The simulated cluster: packs take virtual time, the driver's own work takes real time, and no trial is lost."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.dispatch.base import PackEnded, PackProgress, PackTask
from orchestrator.records import CurveRows, Status, TrialResult
from tests.simulation.dispatcher import SimulatedDispatcher, VirtualClock


class Stepping:
    """A real clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def task(number: int) -> PackTask:
    return PackTask(
        pack_id=f"pack {number}",
        job="any",
        trial_ids=(f"trial {number}",),
        params=({},),
        seeds=(number,),
        thresholds={},
    )


def results(task: PackTask) -> PackProgress:
    rows = CurveRows(
        trial_ids=task.trial_ids,
        metrics=("loss",),
        trial=np.zeros(1, np.int32),
        step=np.ones(1, np.int64),
        values=np.ones((1, 1)),
    )
    end = TrialResult(trial_id=task.trial_ids[0], status=Status.FINISHED, phase="done")
    return PackProgress(pack_id=task.pack_id, rows=rows, results=(end,))


def ended(pool: SimulatedDispatcher, packs: int) -> list[str]:
    names: list[str] = []
    for _ in range(100):
        if len(names) >= packs:
            break
        names += [event.pack_id for event in pool.poll(1000.0) if isinstance(event, PackEnded)]
    return names


@pytest.mark.parametrize(("workers", "virtual_s"), [(1, 60.0), (2, 30.0), (3, 20.0), (6, 10.0), (100, 10.0)])
def test_six_equal_packs_take_the_time_of_their_rounds(workers: int, virtual_s: float) -> None:
    clock = VirtualClock(real=Stepping())
    pool = SimulatedDispatcher(workers=workers, seconds=lambda task: 10.0, results=results, clock=clock)
    pool.submit([task(n) for n in range(6)])
    assert sorted(ended(pool, 6)) == [f"pack {n}" for n in range(6)]
    assert clock() == pytest.approx(virtual_s)
    assert pool.busy_s == pytest.approx(60.0)


def test_the_drivers_work_counts_and_the_workers_report_does_not() -> None:
    real = Stepping()

    def slow_results(task: PackTask) -> PackProgress:
        real.now += 5.0
        return results(task)

    clock = VirtualClock(real=real)
    pool = SimulatedDispatcher(workers=1, seconds=lambda task: 10.0, results=slow_results, clock=clock)
    pool.submit([task(0)])
    real.now += 3.0  # the driver computes while the worker trains
    assert ended(pool, 1) == ["pack 0"]
    assert clock() == pytest.approx(10.0)
    assert clock.worked_s == pytest.approx(3.0)


def test_a_busy_driver_keeps_a_worker_waiting_only_when_nothing_is_queued() -> None:
    real = Stepping()
    clock = VirtualClock(real=real)
    pool = SimulatedDispatcher(workers=1, seconds=lambda task: 10.0, results=results, clock=clock)
    pool.submit([task(0), task(1)])
    real.now += 25.0  # longer than both packs
    assert ended(pool, 2) == ["pack 0", "pack 1"]
    assert clock() == pytest.approx(25.0)


def test_without_packs_time_passes_without_events() -> None:
    clock = VirtualClock(real=Stepping())
    pool = SimulatedDispatcher(workers=4, seconds=lambda task: 1.0, results=results, clock=clock)
    assert pool.poll(2.0) == []
    assert clock() == pytest.approx(2.0)
    pool.submit([task(0)])
    pool.close()
    pool.close()
    assert pool.poll(2.0) == []

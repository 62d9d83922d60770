"""Sweeps under seeded faults of nodes, workers, record and driver, on a virtual clock: what must hold, always holds."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.simulation.driver import run_schedule
from tests.simulation.job import HEALTHY
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.preemption import preempted
from tests.simulation.schedule import Fault, Schedule, schedule_of
from tests.simulation.search import shrunk

CALM = Schedule(
    seed=1, trials=(HEALTHY,) * 12, nodes=(2, 1), step_s=1.0, pack_models=1, room=1, timeout_s=90.0, faults=()
)
FOR_EVER = 1e6

ONCE_BROKEN = {
    "a retry waits for a node on which no worker can start": replace(
        CALM,
        trials=(*CALM.trials, "observe"),
        faults=(Fault(kind="workers die at start", at_s=0.0, lasts_s=FOR_EVER, node=1),),
    ),
    "the only sound node is away for a while": replace(
        CALM,
        step_s=3.0,
        faults=(
            Fault(kind="workers die at start", at_s=0.0, lasts_s=FOR_EVER, node=1),
            Fault(kind="node killed", at_s=40.0, lasts_s=85.0, node=0),
        ),
    ),
    "a frozen worker's trial is healthy": replace(CALM, faults=(Fault(kind="worker frozen", at_s=5.0),)),
    "a bad machine comes back under another id": replace(
        CALM,
        seed=447377043,
        trials=(HEALTHY,) * 6,
        nodes=(1, 2),
        step_s=3.0,
        timeout_s=None,
        faults=(
            Fault(kind="node lacks a module", at_s=0.0, lasts_s=60.0, node=1),
            Fault(kind="node preempted", at_s=22.97, lasts_s=23.73, node=1),
        ),
    ),
    "a trial that raised on a bad node loses its worker elsewhere": replace(
        CALM,
        seed=3306588852,
        trials=(HEALTHY,) * 14 + ("crash",) + (HEALTHY,) * 12,
        nodes=(3, 1),
        pack_models=4,
        room=4,
        faults=(
            Fault(kind="node's disk full", at_s=0.0, lasts_s=60.0, node=1),
            Fault(kind="node joins late", at_s=0.0, lasts_s=19.05, node=1),
        ),
    ),
    "a bad node finishes a trial that began before it was bad": replace(
        CALM,
        seed=3344650478,
        trials=(HEALTHY,) * 3 + ("raise",) + (HEALTHY,) * 2 + ("step",) + (HEALTHY,) * 2,
        nodes=(1, 1, 3),
        step_s=3.0,
        pack_models=4,
        room=4,
        timeout_s=None,
        faults=(
            Fault(kind="node joins late", at_s=0.0, lasts_s=95.49041292119007, node=1),
            Fault(kind="worker killed for memory", at_s=12.212073054431889, node=5),
            Fault(kind="node's disk full", at_s=13.510794253725445, lasts_s=60.0, node=2),
        ),
    ),
    "the answer to the transaction that takes the lease is lost": replace(
        CALM, faults=(Fault(kind="answer lost", at_s=0.0),)
    ),
}
"""Schedules that broke an invariant before what they show was mended."""


@pytest.mark.parametrize("schedule", ONCE_BROKEN.values(), ids=ONCE_BROKEN.keys())
def test_what_was_once_broken_holds(schedule: Schedule) -> None:
    assert run_schedule(schedule).violations == []


@given(st.integers(0, 2**32))
@settings(max_examples=25, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
def test_no_schedule_of_faults_breaks_an_invariant(seed: int) -> None:  # `make simulate` runs thousands
    assert run_schedule(schedule_of(Random(seed))).violations == []


@pytest.mark.parametrize("seed", [1, 4])
def test_long_packs_on_nodes_that_do_not_live_long_end(seed: int) -> None:
    """Two hours on nodes that live ten minutes; `python -m tests.simulation --preempted 20` says how it is in general.

    The time is virtual: it depends on the schedule alone.
    """
    found = preempted(hours=2.0, life_s=600.0, save_s=2.0, seed=seed)
    assert found.outcome.violations == [] and found.outcome.exits == [0]
    assert found.losses > 30 and found.checkpoints > 100
    assert 0.0 < found.overhead < 0.15


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_defect_that_is_put_back_is_found(mutation: Mutation) -> None:
    schedule = schedule_of(Random(mutation.found_by))
    with mutation.put_back():
        assert run_schedule(schedule).violations != []
    assert run_schedule(schedule).violations == []


@pytest.mark.parametrize("seed", range(3))
def test_a_schedule_replays_from_its_seed(seed: int) -> None:
    schedule = schedule_of(Random(seed))
    assert schedule == schedule_of(Random(seed))
    assert run_schedule(schedule) == run_schedule(schedule)


def test_a_broken_schedule_is_reduced_to_what_breaks_it() -> None:
    fault = Fault(kind="node killed", at_s=1.0)
    large = replace(CALM, trials=(HEALTHY, "crash", *CALM.trials), faults=(Fault(kind="write lost", at_s=2.0), fault))

    def fails(candidate: Schedule) -> bool:
        return fault in candidate.faults and "crash" in candidate.trials

    small = shrunk(large, fails)
    assert (small.faults, small.trials) == ((fault,), ("crash",))

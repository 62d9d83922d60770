"""Workers of which some are slower than others: when the last pack ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.catalogue import load_job
from orchestrator.dispatch import placement
from orchestrator.dispatch.health import DEVICE_ERRORS_BEFORE_EXCLUSION
from orchestrator.dispatch.pace import MOST_PACKS, schedule
from orchestrator.plan.calibration import Calibration
from orchestrator.plan.planner import Planner
from tests.runner_kit import COSTLY, ramp
from tests.scripted_engine import Bench, scripted_task

SLOW = 4.0
GOAL = 1.1


def optimum_s(packs: Sequence[float], paces: Sequence[float]) -> float:
    """The least time in which these workers can run indivisible packs: all assignments are tried."""
    ends = {tuple(0.0 for _ in paces)}
    for pack in packs:
        ends = {
            tuple(end + pack * pace if w == worker else end for w, end in enumerate(each))
            for each in ends
            for worker, pace in enumerate(paces)
        }
    return min(max(each) for each in ends)


def makespan_s(packs: Sequence[float], paces: Sequence[float]) -> float:
    """When the last pack ends in a pool that has learnt how fast its workers are; each is on a node of its own."""
    bench = Bench(**{f"node{w}": 1 for w in range(len(paces))})
    bench.ready()
    pace = {worker: paces[int(node.removeprefix("node"))] for worker, node in bench.engine.where.items()}
    bench.submit(*(scripted_task(f"learn{w}", expected_s=1.0) for w in range(len(paces))))
    ends: dict[str, float] = {}
    lengths = {f"learn{w}": 1.0 for w in range(len(paces))}

    def run() -> None:
        """Until no pack is left."""
        while any(bench.engine.packs.values()):
            for worker, held in bench.engine.packs.items():
                if held and held[0] not in ends:
                    ends[held[0]] = bench.engine.now + lengths[held[0]] * pace[worker]
            pack = min((held[0] for held in bench.engine.packs.values() if held), key=lambda name: ends[name])
            bench.engine.now = ends[pack]
            bench.engine.end(pack, train_s=lengths[pack] * pace[bench.engine.holder(pack)])
            bench.poll()

    run()
    began = bench.engine.now
    lengths |= {f"pack{k}": seconds for k, seconds in enumerate(packs)}
    tasks = [scripted_task(f"pack{k}", expected_s=seconds) for k, seconds in enumerate(packs)]
    bench.submit(*sorted(tasks, key=lambda task: -task.expected_s))
    run()
    assert len(ends) == len(lengths), "every pack has run once"
    return bench.engine.now - began


@settings(max_examples=60)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=9), st.integers(2, 3))
@example([10] * 8, 3)
@example([30, 30, 20, 20, 20], 2)
def test_a_worker_that_is_four_times_slower_does_not_make_the_end_wait(packs: list[int], fast: int) -> None:
    paces = [1.0] * fast + [SLOW]
    assert makespan_s(packs, paces) <= GOAL * optimum_s(packs, paces) + 1e-6


@given(st.lists(st.integers(2, 40), min_size=3 * MOST_PACKS, max_size=100))
@settings(max_examples=20)
def test_of_many_packs_the_last_ones_are_planned(packs: list[int]) -> None:
    """No schedule ends before the time that divisible packs would take, or before the longest pack."""
    paces = [1.0, 1.0, 1.0, SLOW]
    least = max(sum(packs) / sum(1 / pace for pace in paces), max(packs))
    assert makespan_s(packs, paces) <= GOAL * least


@pytest.mark.parametrize("count", [40, 400])
def test_packs_of_the_planner_end_in_time_on_uneven_workers(count: int) -> None:
    job = load_job(COSTLY)
    planner = Planner(job_name=COSTLY, job=job, calibration=Calibration(), memory_budget_bytes=1e9)
    packs = planner.plan([ramp(COSTLY, replicate) for replicate in range(count)], workers=4)
    seconds = [pack.seconds for pack in packs]
    scale = 100 / sum(seconds)
    seconds = [each * scale for each in seconds]
    paces = [1.0, 1.0, 1.0, SLOW]
    best = optimum_s(seconds, paces) if len(seconds) <= 9 else max(sum(seconds) / 3.25, max(seconds))
    assert makespan_s(seconds, paces) <= GOAL * best


def test_an_even_pool_hands_packs_out_as_they_come() -> None:
    assert makespan_s([5, 4, 3, 3, 3], [1.0, 1.0]) == 10.0


@given(
    st.lists(st.floats(0.01, 100), max_size=MOST_PACKS + 5),
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 10)), min_size=1, max_size=5),
)
def test_every_pack_has_a_worker(packs: list[float], workers: list[tuple[float, float]]) -> None:
    free, paces = zip(*workers, strict=True)
    chosen = schedule(packs, free, paces)
    assert len(chosen) == len(packs) and set(chosen) <= set(range(len(workers)))


def test_a_worker_that_is_late_keeps_no_pack_from_the_others() -> None:
    bench = Bench(a=1, b=1)
    bench.ready()
    slow = next(worker for worker, node in bench.engine.where.items() if node == "a")
    bench.submit(scripted_task("learn1", expected_s=1.0), scripted_task("learn2", expected_s=1.0))
    for pack in ("learn1", "learn2"):
        bench.engine.end(pack, train_s=SLOW if bench.engine.holder(pack) == slow else 1.0)
    bench.poll()
    bench.submit(scripted_task("long", expected_s=10.0), scripted_task("next", expected_s=9.0))
    fast = bench.engine.holder("long")
    assert fast != slow and bench.engine.packs[slow] == [], "it would end at 36 s, and the other one at 19 s"
    bench.poll(30.0)
    assert bench.engine.packs == {fast: ["long"], slow: ["next"]}, "the other one hangs"


def test_a_worker_that_gets_no_packs_is_not_planned_for() -> None:
    """It stays on a broken GPU so that no other worker gets that one."""
    bench = Bench(a=2, b=1)
    for worker in list(bench.engine.where):
        bench.engine.ready(worker, gpu=str(worker))
    bench.poll()
    for attempt in range(DEVICE_ERRORS_BEFORE_EXCLUSION):
        broken = 1 if attempt == 0 else max(bench.engine.where)
        names = [f"{attempt} {worker}" for worker in bench.engine.where]
        bench.submit(*names)
        for name in names:
            bench.engine.end(name, "CUDA error" if bench.engine.holder(name) == broken else None)
        bench.poll()
        bench.engine.ready(max(bench.engine.where), gpu="1")
        bench.poll()
    bench.engine.die(next(worker for worker, node in bench.engine.where.items() if node == "a"))
    bench.poll(10.0)
    bench.engine.ready(max(bench.engine.where), gpu="0")
    bench.poll()
    learnt = [scripted_task(f"learn{k}", expected_s=1.0) for k in range(2)]
    bench.submit(*learnt)
    for task in learnt:
        on = bench.engine.where[bench.engine.holder(task.pack_id)]
        bench.engine.end(task.pack_id, train_s=SLOW if on == "b" else 1.0)
    bench.poll()
    bench.submit(scripted_task("last", expected_s=10.0))
    assert bench.engine.holder("last") == max(bench.engine.where)


def test_one_plan_serves_all_workers_that_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a plan grows with packs times workers: one for each worker would keep the driver from its record."""
    bench = Bench(**{f"node{w}": 1 for w in range(8)})
    bench.ready()
    bench.submit(*(scripted_task(f"learn{w}", expected_s=1.0) for w in range(8)))
    for w in range(8):
        bench.engine.end(f"learn{w}", train_s=SLOW if bench.engine.holder(f"learn{w}") == 1 else 1.0)
    bench.poll()
    plans: list[int] = []

    def counted(packs: Sequence[float], free_s: Sequence[float], paces: Sequence[float]) -> list[int]:
        plans.append(len(packs))
        return schedule(packs, free_s, paces)

    monkeypatch.setattr(placement, "schedule", counted)
    bench.submit(*(scripted_task(f"pack{k}", expected_s=5.0) for k in range(40)))
    assert plans == [40] and sum(map(bool, bench.engine.packs.values())) == 8

"""The simulated engine, like a real one: workers start where they are told, train in order, die with their node."""

from __future__ import annotations

from random import Random

import pytest

from orchestrator.dispatch.base import Cause, PackEnded, PackProgress, PackTask
from orchestrator.dispatch.engine import EngineEvent, PackNews, WorkerDied, WorkerReady
from tests.simulation.dispatcher import VirtualClock
from tests.simulation.engine import Death, Forever, SimulatedEngine, SimulatedWorker, Training


def task(pack_id: str) -> PackTask:
    return PackTask(pack_id=pack_id, job="any", trial_ids=(pack_id,), params=({},), seeds=(0,), thresholds={})


def train(task: PackTask, worker: SimulatedWorker) -> Training:
    if task.pack_id == "hangs":
        yield 0.0, Forever.HANGS
    yield 10.0, PackEnded(pack_id=task.pack_id, train_s=10.0)


@pytest.fixture
def engine() -> SimulatedEngine:
    clock = VirtualClock(real=lambda: 0.0)
    return SimulatedEngine({"a": 1, "b": 2}, train=train, clock=clock, random=Random(0))


def after(engine: SimulatedEngine, seconds: float) -> list[EngineEvent]:
    """Everything that happens within this time."""
    end, found = engine.clock() + seconds, []
    while engine.clock() < end:
        found += engine.wait(end - engine.clock())
    return found


def started(engine: SimulatedEngine, worker: int, node: str) -> None:
    engine.start_worker(worker, node)
    assert after(engine, 3.0) == [WorkerReady(worker=worker)]


def test_packs_of_a_worker_run_one_after_another(engine: SimulatedEngine) -> None:
    started(engine, 1, "a/1")
    engine.start_pack(1, task("p"))
    engine.start_pack(1, task("q"))
    first = after(engine, 10.5)
    assert [event.event.pack_id for event in first if isinstance(event, PackNews)] == ["p"]
    second = after(engine, 10.5)
    assert [event.event.pack_id for event in second if isinstance(event, PackNews)] == ["q"]


def test_a_withdrawn_pack_does_not_run(engine: SimulatedEngine) -> None:
    started(engine, 1, "a/1")
    for pack in ("p", "q"):
        engine.start_pack(1, task(pack))
    engine.withdraw(1, "q")
    assert len(after(engine, 60.0)) == 1


def test_a_worker_waits_for_a_free_slot(engine: SimulatedEngine) -> None:
    started(engine, 1, "a/1")
    engine.start_worker(2, "a/1")
    assert after(engine, 30.0) == []
    assert engine.nodes()["a/1"].free == 0
    engine.kill_worker(1)
    assert after(engine, 3.0) == [WorkerReady(worker=2)]


def test_a_node_dies_with_its_workers_and_comes_back_empty_under_another_id(engine: SimulatedEngine) -> None:
    started(engine, 1, "b/1")
    engine.start_pack(1, task("hangs"))
    engine.lose_node("b", error="gone", noticed_after_s=5.0, back_after_s=20.0)
    assert engine.nodes().keys() == {"a/1", "b/1"}  # not noticed yet
    assert after(engine, 6.0) == [WorkerDied(worker=1, cause=Cause.NODE_LOST, error="gone")]
    assert engine.nodes().keys() == {"a/1"}
    after(engine, 15.0)
    assert engine.nodes().keys() == {"a/1", "b/2"}
    engine.start_worker(2, "b/1")
    (died,) = after(engine, 1.0)
    assert isinstance(died, WorkerDied)


def test_news_of_a_node_that_is_cut_off_comes_late_and_in_order(engine: SimulatedEngine) -> None:
    started(engine, 1, "a/1")
    engine.start_pack(1, task("p"))
    engine.start_pack(1, task("q"))
    engine.cut_off("a", 25.0)
    assert after(engine, 24.0) == []
    late = after(engine, 2.0)
    assert [event.event.pack_id for event in late if isinstance(event, PackNews)] == ["p", "q"]


@pytest.mark.parametrize("seed", range(20))
def test_news_of_a_node_that_was_cut_off_is_not_overtaken(seed: int) -> None:
    random = Random(seed)

    def counting(task: PackTask, worker: SimulatedWorker) -> Training:
        for number in range(200):
            yield random.uniform(0.0, 0.3), PackProgress(pack_id=str(number), rows=None, results=())
        yield 0.0, PackEnded(pack_id="end", train_s=1.0)

    clock = VirtualClock(real=lambda: 0.0)
    engine = SimulatedEngine({"a": 1}, train=counting, clock=clock, random=random)
    started(engine, 1, "a/1")
    engine.start_pack(1, task("p"))
    engine.cut_off("a", random.uniform(10.0, 25.0))
    seen = [event.event.pack_id for event in after(engine, 60.0) if isinstance(event, PackNews)]
    assert seen == [*map(str, range(200)), "end"]


def test_a_driver_hears_nothing_of_the_workers_of_an_earlier_one_whose_node_was_cut_off(
    engine: SimulatedEngine,
) -> None:
    started(engine, 1, "a/1")
    engine.cut_off("a", 20.0)
    engine.kill_process(engine.workers[1], Death(cause=Cause.WORKER_LOST, error="killed"), noticed_after_s=1.0)
    assert after(engine, 5.0) == []
    engine.close()
    engine.start_worker(1, "a/1")
    assert after(engine, 60.0) == [WorkerReady(worker=1)]


def test_nothing_is_heard_of_a_killed_worker(engine: SimulatedEngine) -> None:
    started(engine, 1, "a/1")
    engine.start_pack(1, task("p"))
    engine.kill_worker(1)
    assert after(engine, 60.0) == []

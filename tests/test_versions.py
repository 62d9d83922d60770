"""A node with another version of the job gets no trials; if no node has the driver's, the run ends as a mistake."""

from collections.abc import Mapping
from random import Random

import pytest

from orchestrator.dispatch.base import Cause, Event, PackEnded, PackFailed, PackTask
from orchestrator.dispatch.pool import PooledDispatcher
from orchestrator.dispatch.source import Source
from orchestrator.errors import UserError
from tests.simulation.dispatcher import VirtualClock
from tests.simulation.engine import Death, SimulatedEngine, SimulatedWorker, Training


def version(digest: str) -> Source:
    return Source(release="0.1.0", digest=digest, files={"mine.py": digest, "jobs/job.py": "0"})


OURS, THEIRS = version("aaaa"), version("bbbb")


class Cluster:
    """Nodes, each with the source of the job that its workers load when they start; None for no job at all."""

    def __init__(self, sources: Mapping[str, Source | None], *, room: int = 2, grows: bool = True) -> None:
        self.sources = dict(sources)
        self.clock = VirtualClock()
        self.loaded: dict[SimulatedWorker, Source | None] = {}
        self.trained: list[tuple[str, str]] = []
        self.said: list[str] = []
        nodes = dict.fromkeys(sources, room)
        self.engine = SimulatedEngine(nodes, train=self._train, clock=self.clock, random=Random(0))
        self.pool = PooledDispatcher(self.engine, workers=None, grows=grows, source=OURS, clock=self.clock)

    def _train(self, task: PackTask, worker: SimulatedWorker) -> Training:
        own = self.loaded.setdefault(worker, self.sources[worker.node.name])
        if own is None or own.text != task.source:
            error = "Traceback ...\nModuleNotFoundError: No module named 'mine'" if own is None else "another version"
            yield 0.1, PackFailed(pack_id=task.pack_id, cause=Cause.OTHER_SOURCE, error=error, source=own)
            return
        if task.job == "dies" and (worker.node.name, task.pack_id) not in self.trained:
            self.trained.append((worker.node.name, task.pack_id))
            yield 0.1, Death(cause=Cause.WORKER_LOST, error="killed")
        self.trained.append((worker.node.name, task.pack_id))
        yield 1.0, PackEnded(pack_id=task.pack_id, train_s=1.0)

    def run(self, count: int, *, job: str = "job", besides: str = "") -> list[Event]:
        """Submit packs, perhaps one of another job before them, and return their events."""
        jobs = [*([besides] if besides else []), *[job] * count]
        tasks = [
            PackTask(pack_id=f"{name}{k}", job=name, trial_ids=(f"{k}",), params=({},), seeds=(k,), thresholds={})
            for k, name in enumerate(jobs)
        ]
        self.pool.submit(tasks)
        events: list[Event] = []
        while len(events) < len(tasks):
            events += self.pool.poll(1.0)
            self.said += self.pool.notices()
            assert self.clock() < 10_000, "no end"
        return events


def test_its_packs_run_on_the_other_nodes_and_it_is_named_once() -> None:
    cluster = Cluster({"good": OURS, "odd": THEIRS})
    events = cluster.run(20)
    assert {type(event) for event in events} == {PackEnded}
    assert {node for node, _ in cluster.trained} == {"good"}
    assert len(cluster.trained) == 20, "each pack once"
    (said,) = cluster.said
    assert "odd gets no trials" in said
    assert "mine.py aaaa here, bbbb there" in said
    assert "next: give all nodes and the driver the same one" in said


def test_a_node_without_the_job_is_treated_alike() -> None:
    cluster = Cluster({"good": OURS, "empty": None})
    cluster.run(20)
    assert {node for node, _ in cluster.trained} == {"good"}
    assert "ModuleNotFoundError: No module named 'mine'" in cluster.said[0]


def test_where_no_node_has_it_the_run_ends_as_a_mistake_that_says_what_to_do() -> None:
    cluster = Cluster({"one": THEIRS, "two": None})
    with pytest.raises(UserError) as told:
        cluster.run(4)
    text = told.value.text
    assert "node one: mine.py aaaa here, bbbb there" in text
    assert "node two: ModuleNotFoundError" in text
    assert "--working-dir" in text
    assert cluster.trained == []


def test_a_node_that_joins_with_the_drivers_version_saves_the_run() -> None:
    cluster = Cluster({"odd": THEIRS, "late": OURS})
    cluster.engine.hide("late")
    cluster.engine.later(0.0, lambda: cluster.engine.join("late"))
    cluster.run(4)
    assert {node for node, _ in cluster.trained} == {"late"}


def test_a_job_that_is_edited_while_the_sweep_runs_is_trained_by_the_workers_that_loaded_it() -> None:
    cluster = Cluster({"here": OURS}, grows=False)
    cluster.run(4)
    cluster.sources["here"] = THEIRS
    cluster.run(8, job="more", besides="dies")
    assert cluster.said == [
        "a worker on here is replaced: its process has died",
        "the job was edited while the sweep runs (mine.py): no new worker starts, running ones go on",
    ]
    assert len([pack for _, pack in cluster.trained if pack.startswith("more")]) == 8


def test_once_no_worker_with_the_earlier_version_is_left_the_run_ends() -> None:
    cluster = Cluster({"here": OURS}, room=1, grows=False)
    cluster.run(2)
    cluster.sources["here"] = THEIRS
    cluster.run(1, job="dies")
    with pytest.raises(UserError, match=r"edited while the sweep ran, and no worker .* is left: mine\.py") as told:
        cluster.run(1, job="more")
    assert "run the same command again" in told.value.text

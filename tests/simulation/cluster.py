"""The cluster of a schedule: what its workers do with packs, and its faults at their times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from orchestrator.dispatch.base import Cause, PackProgress, PackTask
from orchestrator.dispatch.worker import execute
from tests.simulation.dispatcher import VirtualClock
from tests.simulation.engine import Death, Forever, SimulatedEngine, SimulatedWorker, Training
from tests.simulation.job import TROUBLE_AT, Drill
from tests.simulation.schedule import (
    FOLLOWED,
    LATE,
    NODE_DEFECTS,
    NODE_LOSSES,
    PREEMPTIONS,
    SAVED,
    STILLBORN,
    WORKER_FAULTS,
    Fault,
    Schedule,
)

KILLS_PER_TRIAL = 2
"""The infrastructure kills the worker of a trial at most so often: a third time is the trial's own fault."""

FOLLOWED_FOR_S = 300.0
PREEMPTED = "The actor died because its node has died. The node was preempted."
DEFECTS: dict[str, tuple[type[Exception], tuple[object, ...]]] = {
    "node lacks a module": (ModuleNotFoundError, ("No module named 'rare'",)),
    "node's disk full": (OSError, (28, "No space left on device")),
    "worker's GPU poisoned": (RuntimeError, ("CUDA error: device-side assert triggered",)),
}
"""What a worker with a defect raises."""


def node_name(number: int) -> str:
    return f"node-{number}"


class ScheduledEngine(SimulatedEngine):
    """A simulated engine on which the faults of a schedule happen.

    Args:
        schedule: of the faults.
        clock: of the simulation.
        met: called with the kind of a fault that had an effect.
    """

    def __init__(self, schedule: Schedule, *, clock: VirtualClock, met: Callable[[str], None]) -> None:
        nodes = {node_name(number): slots for number, slots in enumerate(schedule.nodes)}
        random = Random(schedule.seed)
        super().__init__(nodes, train=self._training, clock=clock, random=random)
        self._chance, self._schedule, self._met = random, schedule, met
        self._harmed: dict[str, Counter[str]] = {kind: Counter() for kind in WORKER_FAULTS}
        self._poisoned: set[SimulatedWorker] = set()
        for fault in schedule.faults:
            self._arm(fault)

    def is_hopeless(self) -> bool:
        """Whether the cluster consists of nodes on which no worker starts: it looks like a user's mistake."""
        bad = {node_name(fault.node) for fault in self._schedule.faults if fault.kind == STILLBORN}
        return all(node.name in bad for node in self.machines.values() if node.listed)

    def _arm(self, fault: Fault) -> None:
        if fault.kind == LATE:
            self._met(fault.kind)
            self.hide(node_name(fault.node))
            self.later(fault.lasts_s, lambda: self.join(node_name(fault.node)))
        elif fault.kind in NODE_LOSSES:
            self.later(fault.at_s, lambda: self._lose(fault))
        elif fault.kind == FOLLOWED:
            self.later(fault.at_s, lambda: self._follow(fault, PREEMPTIONS))
        elif fault.kind == STILLBORN:
            node = self.machines[node_name(fault.node)]
            self.later(fault.at_s, lambda: setattr(node, "stillborn", True))
            self.later(fault.at_s + fault.lasts_s, lambda: setattr(node, "stillborn", False))
        elif fault.kind in WORKER_FAULTS:
            self.later(fault.at_s, lambda: self._harm(fault))

    def _lose(self, fault: Fault) -> None:
        name = node_name(fault.node)
        if not self.machines[name].alive:
            return
        self._met(fault.kind)
        if fault.kind == "node cut off":
            self.cut_off(name, fault.lasts_s)
            return
        killed = fault.kind == "node killed"
        self.lose_node(
            name,
            noticed_after_s=self._chance.uniform(0.1, 12.0) if killed else 0.5,
            error="The actor died because its node has died." if killed else PREEMPTED,
            back_after_s=fault.lasts_s if fault.lasts_s < 1e5 else None,
        )

    def _follow(self, fault: Fault, times: int) -> None:
        """Preempt the node on which a trial runs, as often as this; wait for the trial for a while."""
        running = (w for w in self.busy if any(params["number"] == fault.node for params in w.packs[0].params))
        worker = next(running, None)
        if worker is not None:
            self._met(fault.kind)
            back_s = fault.lasts_s
            self.lose_node(worker.node.name, noticed_after_s=0.5, error=PREEMPTED, back_after_s=back_s)
            times -= 1
        if times and self.clock() < fault.at_s + FOLLOWED_FOR_S:
            self.later(0.5, lambda: self._follow(fault, times))

    def _harm(self, fault: Fault) -> None:
        """Let a busy worker suffer, unless the policy would be right to blame one of its trials."""
        limit = KILLS_PER_TRIAL if fault.kind == "worker killed" else 1
        harmed = self._harmed[fault.kind]
        victims = [w for w in self.busy if all(harmed[trial] < limit for trial in w.packs[0].trial_ids)]
        if not victims:
            return
        worker = victims[fault.node % len(victims)]
        self._met(fault.kind)
        harmed.update(worker.packs[0].trial_ids)
        if fault.kind == "worker frozen":
            self.freeze(worker)
        elif fault.kind == "worker's GPU poisoned":
            self._poisoned.add(worker)
        else:
            memory = fault.kind == "worker killed for memory"
            death = Death(
                cause=Cause.OUT_OF_MEMORY if memory else Cause.WORKER_LOST,
                error="Task was killed due to the node running low on memory." if memory else "The worker died.",
            )
            self.kill_process(worker, death, noticed_after_s=self._chance.uniform(0.0, 1.0))

    def _started(self, worker: SimulatedWorker) -> None:
        if worker.node.alive and worker.node.stillborn and not worker.dead:
            self._met(STILLBORN)
        super()._started(worker)

    def _training(self, task: PackTask, worker: SimulatedWorker) -> Training:
        """A pack on a worker: the real worker code, or what a defect makes of it."""
        defect = self._defect(worker)
        if defect is not None:
            self._met(defect)
        troubles = {str(params["trouble"]) for params in task.params}
        run = execute(
            task,
            device="cpu",
            flush_s=0.0,
            clock=lambda: self.clock() + Drill.spent_s,
            asked=lambda: self.asked.get(worker.number),
        )
        troubled = False
        while True:
            # Each part at its time: a worker that has died writes no checkpoint.
            Drill.room, Drill.defect = self._schedule.room, DEFECTS[defect] if defect else None
            Drill.save_s, Drill.spent_s = self._schedule.save_s, 0.0
            event = next(run, None)
            Drill.defect, Drill.spent_s = None, 0.0
            if event is None:
                return
            rows = event.rows if isinstance(event, PackProgress) else None
            if isinstance(event, PackProgress) and event.saved is not None:
                self._met(SAVED)
                yield self._schedule.save_s, event
                continue
            seconds = self._schedule.step_s * self._chance.uniform(0.7, 1.3)
            if not troubled and rows is not None and rows.step.max() >= TROUBLE_AT and defect is None:
                troubled = True
                if "hang" in troubles:
                    yield 0.0, Forever.HANGS
                if "crash" in troubles:
                    yield seconds, Death(cause=Cause.WORKER_LOST, error="The worker died: exit code -11 (SIGSEGV).")
            yield seconds if isinstance(event, PackProgress) else 0.05, event

    def _defect(self, worker: SimulatedWorker) -> str | None:
        """Why this worker fails its packs now: the kind of fault."""
        now = self.clock()
        for fault in self._schedule.faults:
            here = worker.node.name == node_name(fault.node)
            if fault.kind in NODE_DEFECTS and here and fault.at_s <= now < fault.at_s + fault.lasts_s:
                return fault.kind
        return "worker's GPU poisoned" if worker in self._poisoned else None

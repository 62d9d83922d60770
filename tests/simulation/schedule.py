"""Fault schedules: what is run, on which cluster, and what goes wrong when. A schedule follows from its seed.

The draw keeps the promise that a healthy trial can finish: node 0 is sound and always comes back, at most one other
node is bad in a way that fails packs, and the record is never away for longer than the driver waits, except in a
schedule that says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tests.simulation.job import HEALTHY, TROUBLES

TIMEOUT_S = 90.0
"""`resources.trial_timeout` of schedules in which something hangs."""

NODE_LOSSES = ("node killed", "node preempted", "node cut off")
NODE_DEFECTS = ("node lacks a module", "node's disk full")
"""A bad node that fails packs: the next ones succeed on another node."""
STILLBORN = "workers die at start"
WORKER_FAULTS = ("worker killed", "worker frozen", "worker killed for memory", "worker's GPU poisoned")
RECORD_FAULTS = ("record away", "record locked", "record's disk full", "write lost", "answer lost")
DRIVER_FAULTS = ("driver killed", "driver stopped")
LATE = "node joins late"
FOLLOWED = "trial preempted"
"""The node on which one trial runs is preempted, and again when the trial runs again, `PREEMPTIONS` times in all."""
PREEMPTIONS = 4
SAVED = "checkpoint written"
"""No fault: what makes a later one cost less."""
KINDS = (*NODE_LOSSES, FOLLOWED, *NODE_DEFECTS, STILLBORN, *WORKER_FAULTS, *RECORD_FAULTS, *DRIVER_FAULTS, LATE)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong with the infrastructure."""

    kind: str
    at_s: float
    lasts_s: float = 0.0
    """How long it lasts; 0 for what happens at one moment."""
    node: int = 0
    """The node that is meant; for the fault of a worker, the rank of its victim among the workers that are busy; for
    `FOLLOWED`, the number of the trial."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One sweep with everything that happens to it."""

    seed: int
    """Of durations and placement."""
    trials: tuple[str, ...]
    """What is wrong with each trial; `HEALTHY` for most."""
    nodes: tuple[int, ...]
    """Workers that fit on each node."""
    step_s: float
    """About how long a step of a pack takes."""
    pack_models: int
    """Trials in a pack at most, as the planner believes."""
    room: int
    """Trials of a pack that fit into the memory of a worker."""
    timeout_s: float | None
    saves_every_s: float | None = None
    """The interval between two checkpoints of a pack, 0 for the one that is chosen; None: no pack is saved."""
    save_s: float = 0.0
    """How long a checkpoint takes."""
    steps: int = 0
    """Steps of every trial; 0: a few, not the same in all."""
    faults: tuple[Fault, ...] = field(default=())

    @property
    def kinds(self) -> list[str]:
        """Every fault and every bad trial by its kind."""
        return [fault.kind for fault in self.faults] + [f"trial: {trial}" for trial in self.trials if trial != HEALTHY]


def schedule_of(random: Random) -> Schedule:
    """Draw a schedule."""
    nodes = tuple(random.randint(1, 3) for _ in range(random.randint(1, 4)))
    step_s = random.choice((0.3, 1.0, 3.0))
    trials = [HEALTHY] * random.randint(6, 20)
    for _ in range(random.choice((0, 0, 1, 2, 3))):
        trials[random.randrange(len(trials))] = random.choice(TROUBLES)
    pack_models = random.choice((1, 2, 4, 8))
    # About as long as the sweep takes undisturbed, so that faults meet running packs.
    horizon_s = 3.0 + step_s * 4.5 * (1 + len(trials) / pack_models / sum(nodes))
    faults: list[Fault] = []
    if len(nodes) > 1 and random.random() < 0.4:
        faults.append(_bad_node(random, len(nodes), horizon_s))
    sound = not any(fault.kind in NODE_DEFECTS for fault in faults)
    for _ in range(random.choice((0, 1, 1, 2, 3, 5))):
        faults.append(_fault(random, len(nodes), horizon_s, sound=sound))
    if sound and random.random() < 0.1:
        at_s, number = random.uniform(0.0, horizon_s), random.randrange(len(trials))
        faults.append(Fault(kind=FOLLOWED, at_s=at_s, lasts_s=random.uniform(2.0, 30.0), node=number))
    faults += [
        Fault(kind=LATE, at_s=0.0, lasts_s=random.uniform(1.0, 150.0), node=node)
        for node in range(len(nodes))
        if random.random() < 0.15 and (node or sound)
    ]
    hangs = "hang" in trials or any(fault.kind == "worker frozen" for fault in faults)
    return Schedule(
        seed=random.randint(0, 2**32 - 1),
        trials=tuple(trials),
        nodes=nodes,
        step_s=step_s,
        pack_models=pack_models,
        room=random.choice((pack_models, pack_models, max(1, pack_models // 2))),
        timeout_s=TIMEOUT_S if hangs or random.random() < 0.2 else None,
        # Drawn last, so that earlier seeds keep everything else.
        saves_every_s=random.choice((None, 0.1, 3.0)),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
    )


def _bad_node(random: Random, nodes: int, horizon_s: float) -> Fault:
    """A node, not the first, that is bad from some time on."""
    kind = random.choice((*NODE_DEFECTS, STILLBORN))
    at_s = random.choice((0.0, random.uniform(0.0, horizon_s)))
    return Fault(kind=kind, at_s=at_s, lasts_s=random.choice((60.0, 1e6)), node=random.randint(1, nodes - 1))


def _fault(random: Random, nodes: int, horizon_s: float, *, sound: bool) -> Fault:
    """Any other fault. Where another node fails packs, node 0 stays, and no worker fails a trial too (`sound`)."""
    at_s = random.uniform(0.0, 1.2 * horizon_s)
    kind = random.choice((*NODE_LOSSES, *WORKER_FAULTS, *RECORD_FAULTS, *DRIVER_FAULTS))
    if kind in NODE_LOSSES and (sound or nodes > 1):
        node = random.randint(0 if sound else 1, nodes - 1)
        # Node 0 always comes back.
        lasts_s = random.uniform(2.0, 120.0) if node == 0 or random.random() < 0.7 else 1e6
        return Fault(kind=kind, at_s=at_s, lasts_s=lasts_s, node=node)
    if kind in WORKER_FAULTS and (sound or kind not in ("worker frozen", "worker's GPU poisoned")):
        return Fault(kind=kind, at_s=at_s, node=random.randint(0, 7))
    if kind in RECORD_FAULTS:
        lasts_s = 0.0 if kind.endswith("lost") else random.choice((2.0, 40.0, 300.0, 300.0, 900.0))
        return Fault(kind=kind, at_s=at_s, lasts_s=lasts_s)
    return Fault(kind=random.choice(DRIVER_FAULTS), at_s=at_s)

"""How many workers the nodes of a cluster hold, counted node by node: a worker runs on one node.

Workers of three CPUs on three 4-CPU nodes are three, although twelve CPUs divided by three are four. A fraction of a
GPU is taken from one device: 0.4 of a GPU fits four times on a node with two GPUs, although 2 / 0.4 = 5. A node without
the accelerator type or the custom resources that a worker needs holds none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import UserError
from orchestrator.host import usable_cpus, usable_memory_bytes, visible_gpus

UNITS = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths."""
WORKER_BYTES = 250e6
"""Resident memory of a warm worker with torch and Ray, without its data and its pack (measured: 170 to 260 MB)."""
LOCAL_BYTES = 800e6
"""Memory of the driver and of a local Ray: the processes, and the object store."""
OWN_NAMES = ("CPU", "GPU", "memory", "object_store_memory")
"""Names of resources that are no custom ones."""
ACCELERATOR = "accelerator_type:"
"""A node with accelerators of a type has 1 of the resource of this name and the type."""
OF_ACCELERATOR = 0.001
"""What Ray takes of that resource for an actor that asks for the type."""
DEVICES = frozenset({"neuron_cores", "TPU", "NPU", "HPU", "RBLN", "FURIOSA", "TTNPU", "MBLT"})
"""Custom resources of which Ray takes a fraction from one device, as of a GPU."""
WHOLE_DEVICES = DEVICES - {"TPU", "NPU"}
"""Those of which an actor cannot ask for a fraction."""
TPUS = (1, 2, 4, 8)
"""The numbers of TPU chips that an actor can ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What one machine offers."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: float = math.inf
    """For workers; infinite where it is unknown."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Ray's custom resources, and the type of its accelerators (`ACCELERATOR`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one worker takes."""

    cpus: float = 1.0
    gpus: float = 0.0
    """A fraction of one device, or a whole number of devices."""
    memory_bytes: float = 0.0
    accelerator_type: str = ""
    """As Ray calls it; empty for any."""
    custom: Mapping[str, float] = field(default_factory=dict)
    """Ray's custom resources."""

    @property
    def resources(self) -> dict[str, float]:
        """What a node must have beyond CPUs, GPUs and memory, as Ray names it."""
        types = {ACCELERATOR + self.accelerator_type: OF_ACCELERATOR} if self.accelerator_type else {}
        return {**types, **self.custom}

    @property
    def bundle(self) -> dict[str, float]:
        """What an autoscaler is asked for.

        Memory is named where it is more than a worker itself takes: node types of an autoscaler's configuration often
        state none, and then none of them would do.
        """
        memory_bytes = int(self.memory_bytes) if self.memory_bytes > WORKER_BYTES else 0
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": memory_bytes, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def text(self) -> str:
        """In words: `2 CPUs, 1 GPU and 4 GB of memory`."""
        counts = (("CPU", self.cpus), ("GPU", self.gpus))
        parts = [f"{count:g} {name}{'' if count == 1 else 's'}" for name, count in counts if count]
        parts += [f"{self.memory_bytes / 1e9:.3g} GB of memory"] if self.memory_bytes else []
        parts += [f"accelerator type {self.accelerator_type}"] if self.accelerator_type else []
        parts += [f"{amount:g} of the resource {name}" for name, amount in self.custom.items()]
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The pool of workers that some nodes hold."""

    workers: int
    """0 if none fits."""
    device: str
    """ "cpu" or "cuda"."""
    need: Need
    memory_bytes: float
    """The smallest share of a node's memory that a worker has; infinite where it is unknown."""
    lacking: str = ""
    """What no node has, see the function `lacking`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The pool of workers that a sweep asks for (`resources` in its file)."""

    workers: int | None = None
    """None for as many as there is room for."""
    device: str = "auto"
    """ "auto", "cpu" or "cuda"."""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    """None for a whole one where the device is a GPU."""
    pack_bytes: float = 0.0
    """Memory that the pack of a worker may take; 0 if it is not stated."""
    max_share: float = 1.0
    """The share of the nodes' room that may be used."""
    accelerator_type: str = ""
    """That the node of a worker must have, as Ray calls it; empty for any."""
    custom: Mapping[str, float] = field(default_factory=dict)
    """Ray's custom resources that a worker takes."""

    def need(self, device: str) -> Need:
        """What one worker takes on a device."""
        gpus = (1.0 if self.gpus_per_worker is None else self.gpus_per_worker) if device == "cuda" else 0.0
        pack_bytes = 0.0 if device == "cuda" else self.pack_bytes  # on a GPU, the pack is in the GPU's memory
        return Need(
            cpus=self.cpus_per_worker,
            gpus=gpus,
            memory_bytes=WORKER_BYTES + pack_bytes,
            accelerator_type=self.accelerator_type,
            custom=self.custom,
        )

    def shape(self, nodes: Iterable[Node]) -> Shape:
        """The pool that these nodes hold, at most as large as asked for."""
        nodes = list(nodes)
        device = self.device
        if device == "auto":
            suitable = [node for node in nodes if not lacking([node], self.need("cpu"))]
            has_gpu = any(node.gpus >= 1 for node in suitable)
            device = "cuda" if has_gpu or (self.accelerator_type and not suitable) else "cpu"
        need = self.need(device)
        shares = [node.memory_bytes / count for node in nodes if (count := fits(node, need))]
        room = share_of(capacity(nodes, need), self.max_share)
        return Shape(
            workers=room if self.workers is None else min(room, self.workers),
            device=device,
            need=need,
            memory_bytes=min(shares, default=math.inf),
            lacking=lacking(nodes, need),
        )

    def local_node(self) -> Node:
        """This machine. It has CPUs and memory for as many workers as were asked for explicitly: the user decides."""
        each = self.need("cpu")
        asked = self.workers or 0
        return Node(
            cpus=max(usable_cpus(), math.ceil(asked * each.cpus)),
            gpus=visible_gpus(),
            memory_bytes=max(usable_memory_bytes() - LOCAL_BYTES, max(asked, 1) * each.memory_bytes),
            resources=_accelerators_here() if self.accelerator_type and visible_gpus() else {},
        )

    def no_room(self, shape: Shape) -> UserError:
        """The error of a pool for which the nodes have no room."""
        if shape.lacking:
            return UserError(
                f"{shape.lacking}; a worker needs {shape.need.text}",
                place="resources",
                value=", ".join(shape.need.resources),
                next_step=(
                    "correct or remove resources.accelerator_type or resources.custom, or run on a cluster that has it "
                    "(RAY_ADDRESS)"
                ),
            )
        return UserError(
            f"no worker fits on any node: one needs {shape.need.text}",
            place="resources",
            value=self.device,
            next_step=(
                "lower resources.cpus_per_worker"
                + (" or resources.gpus_per_worker, or set resources.device to cpu" if shape.need.gpus else "")
                + (" or resources.memory_gb" if self.pack_bytes else "")
            ),
        )


def fits(node: Node, need: Need) -> int:
    """How many workers one node holds."""
    rooms = [_times(node.cpus, need.cpus)]
    if need.gpus > 0:
        rooms.append(_times_on_devices(node.gpus, need.gpus))
    if need.memory_bytes > 0 and math.isfinite(node.memory_bytes):
        rooms.append(int(node.memory_bytes // need.memory_bytes))
    rooms += [_times_of(node, name, amount) for name, amount in need.resources.items()]
    return max(0, min(rooms))


def capacity(nodes: Iterable[Node], need: Need) -> int:
    """How many workers all nodes hold."""
    return sum(fits(node, need) for node in nodes)


def share_of(room: int, max_share: float) -> int:
    """The workers that may run where there is room for so many; at least one."""
    return min(room, max(1, math.floor(room * max_share + 1e-9)))


def lacking(nodes: Iterable[Node], need: Need) -> str:
    """The resources that a worker needs and none of these nodes has, with what they have; empty if there is none."""
    nodes = list(nodes)
    return "; ".join(
        _lack(nodes, name, amount)
        for name, amount in need.resources.items()
        if nodes and not any(_times_of(node, name, amount) for node in nodes)
    )


def _lack(nodes: Sequence[Node], name: str, amount: float) -> str:
    names = {name for node in nodes for name in node.resources}
    types = {name.removeprefix(ACCELERATOR) for name in names if name.startswith(ACCELERATOR)}
    if name.startswith(ACCELERATOR):
        what, there = f"accelerator type {name.removeprefix(ACCELERATOR)}", types
    elif most := max(node.resources.get(name, 0.0) for node in nodes):
        return f"no node has {amount:g} of the resource {name}; the most is {most:g}"
    else:
        what, there = f"the resource {name}", {name for name in names if not name.startswith((ACCELERATOR, "node:"))}
    return f"no node has {what}; nodes have: {', '.join(sorted(there)) or 'none'}"


def _accelerators_here() -> dict[str, float]:
    """The type of this machine's GPUs, as a Ray that is started here finds it; empty if this version does not say."""
    try:
        from ray._private.accelerators import get_accelerator_manager_for_resource
    except ImportError:
        return {}
    manager = get_accelerator_manager_for_resource("GPU")
    found = None if manager is None else manager.get_current_node_accelerator_type()
    return {ACCELERATOR + found: 1.0} if found else {}


def _times_of(node: Node, name: str, amount: float) -> int:
    there = node.resources.get(name, 0.0)
    return _times_on_devices(there, amount) if name in DEVICES else _times(there, amount)


def _times_on_devices(there: float, each: float) -> int:
    return int(there) // math.ceil(each) if each > 1 else int(there) * _times(1.0, each)


def _times(there: float, each: float) -> int:
    return round(there * UNITS) // max(1, round(each * UNITS))

"""How many workers the nodes of a cluster hold, counted node by node: a worker runs on one node.

Workers of three CPUs on three 4-CPU nodes are three, although twelve CPUs divided by three are four. A fraction of a
GPU is taken from one device: 0.4 of a GPU fits four times on a node with two GPUs, although 2 / 0.4 = 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.host import usable_cpus, usable_memory_bytes, visible_gpus

UNITS = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths."""
WORKER_BYTES = 250e6
"""Resident memory of a warm worker with torch and Ray, without its data and its pack (measured: 170 to 260 MB)."""
LOCAL_BYTES = 800e6
"""Memory of the driver and of a local Ray: the processes, and the object store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What one machine offers."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: float = math.inf
    """For workers; infinite where it is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one worker takes."""

    cpus: float = 1.0
    gpus: float = 0.0
    """A fraction of one device, or a whole number of devices."""
    memory_bytes: float = 0.0

    @property
    def bundle(self) -> dict[str, float]:
        """What an autoscaler is asked for.

        Memory is named where it is more than a worker itself takes: node types of an autoscaler's configuration often
        state none, and then none of them would do.
        """
        memory_bytes = int(self.memory_bytes) if self.memory_bytes > WORKER_BYTES else 0
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": memory_bytes}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def text(self) -> str:
        """In words: `2 CPUs, 1 GPU and 4 GB of memory`."""
        counts = (("CPU", self.cpus), ("GPU", self.gpus))
        parts = [f"{count:g} {name}{'' if count == 1 else 's'}" for name, count in counts if count]
        parts += [f"{self.memory_bytes / 1e9:.3g} GB of memory"] if self.memory_bytes else []
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

    def need(self, device: str) -> Need:
        """What one worker takes on a device."""
        gpus = (1.0 if self.gpus_per_worker is None else self.gpus_per_worker) if device == "cuda" else 0.0
        pack_bytes = 0.0 if device == "cuda" else self.pack_bytes  # on a GPU, the pack is in the GPU's memory
        return Need(cpus=self.cpus_per_worker, gpus=gpus, memory_bytes=WORKER_BYTES + pack_bytes)

    def shape(self, nodes: Iterable[Node]) -> Shape:
        """The pool that these nodes hold, at most as large as asked for."""
        nodes = list(nodes)
        device = self.device
        if device == "auto":
            device = "cuda" if any(node.gpus >= 1 for node in nodes) else "cpu"
        need = self.need(device)
        shares = [node.memory_bytes / count for node in nodes if (count := fits(node, need))]
        room = capacity(nodes, need)
        return Shape(
            workers=room if self.workers is None else min(room, self.workers),
            device=device,
            need=need,
            memory_bytes=min(shares, default=math.inf),
        )

    def local_node(self) -> Node:
        """This machine. It has CPUs and memory for as many workers as were asked for explicitly: the user decides."""
        each = self.need("cpu")
        asked = self.workers or 0
        return Node(
            cpus=max(usable_cpus(), math.ceil(asked * each.cpus)),
            gpus=visible_gpus(),
            memory_bytes=max(usable_memory_bytes() - LOCAL_BYTES, max(asked, 1) * each.memory_bytes),
        )

    def no_room(self, shape: Shape) -> UserError:
        """The error of a pool for which the nodes have no room."""
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
    if need.gpus > 1:
        rooms.append(int(node.gpus) // math.ceil(need.gpus))
    elif need.gpus > 0:
        rooms.append(int(node.gpus) * _times(1.0, need.gpus))
    if need.memory_bytes > 0 and math.isfinite(node.memory_bytes):
        rooms.append(int(node.memory_bytes // need.memory_bytes))
    return max(0, min(rooms))


def capacity(nodes: Iterable[Node], need: Need) -> int:
    """How many workers all nodes hold."""
    return sum(fits(node, need) for node in nodes)


def _times(there: float, each: float) -> int:
    return round(there * UNITS) // max(1, round(each * UNITS))

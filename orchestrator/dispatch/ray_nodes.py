"""The living nodes of the connected Ray, and what each offers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.dispatch.capacity import OWN_NAMES, Node


@dataclass(frozen=True, kw_only=True, slots=True)
class AliveNode:
    """A node that is alive."""

    name: str
    """As it is shown to the user."""
    total: Node
    available: Node | None
    """What is not in use; None if this version of Ray does not say."""


def alive_nodes() -> dict[str, AliveNode]:
    """The nodes that are alive, by id."""
    import ray

    available = _available()
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = names_of(alive)
    return {
        node["NodeID"]: AliveNode(
            name=names[node["NodeID"]],
            total=_offer(node["Resources"], node["Resources"].get("memory", math.inf)),
            available=None if available is None else _free(node, available.get(node["NodeID"], {})),
        )
        for node in alive
    }


def draining_nodes() -> frozenset[str]:
    """The nodes that are being drained, by id; none where this version of Ray does not say."""
    from ray._private.state import state

    drained = getattr(state, "get_draining_nodes", None)
    return frozenset(drained()) if drained is not None else frozenset()


def names_of(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Node id -> the name of its host, with its address where hosts share a name."""
    addresses: defaultdict[str, set[str]] = defaultdict(set)
    for node in nodes:
        addresses[node.get("NodeManagerHostname") or ""].add(node["NodeManagerAddress"])
    names = {}
    for node in nodes:
        host, address = node.get("NodeManagerHostname"), node["NodeManagerAddress"]
        names[node["NodeID"]] = address if not host else f"{host} ({address})" if len(addresses[host]) > 1 else host
    return names


def _offer(resources: Mapping[str, float], memory_bytes: float) -> Node:
    return Node(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory_bytes=memory_bytes,
        resources={name: amount for name, amount in resources.items() if name not in OWN_NAMES},
    )


def _free(node: Mapping[str, Any], available: Mapping[str, float]) -> Node:
    """What is not in use; Ray leaves out what is used up."""
    return _offer(available, available.get("memory", 0.0) if "memory" in node["Resources"] else math.inf)


def _available() -> Mapping[str, Mapping[str, float]] | None:
    """What is not in use on each node; None if this version of Ray does not say."""
    try:
        from ray._private.state import available_resources_per_node
    except ImportError:
        return None
    return dict(available_resources_per_node())

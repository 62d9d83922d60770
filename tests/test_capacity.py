"""Workers are counted node by node; a fraction of a GPU is taken from one device."""

import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.dispatch.capacity import WORKER_BYTES, Need, Node, Request, capacity, fits
from orchestrator.dispatch.ray_nodes import names_of

GB = 1e9


@pytest.mark.parametrize(
    ("nodes", "need", "workers"),
    [
        ([Node(cpus=4)] * 3, Need(cpus=3), 3),
        ([Node(cpus=4, gpus=2)], Need(cpus=0.1, gpus=0.4), 4),
        ([Node(cpus=4, gpus=8)], Need(cpus=1, gpus=1), 4),
        ([Node(cpus=64, gpus=1)] * 8, Need(cpus=1, gpus=0.15), 48),
        ([Node(cpus=64, gpus=3)] * 2, Need(cpus=1, gpus=2), 2),
        ([Node(cpus=8, memory_bytes=10 * GB), Node(cpus=8)], Need(cpus=1, memory_bytes=4 * GB), 2 + 8),
        ([Node(cpus=1)], Need(cpus=0.1), 10),
        ([Node(cpus=3)], Need(cpus=0.3), 10),
        ([Node(cpus=0.5)], Need(cpus=1), 0),
        ([Node(cpus=8)], Need(cpus=1, gpus=0.5), 0),
        ([], Need(), 0),
    ],
)
def test_the_capacity_of_a_cluster(nodes: list[Node], need: Need, workers: int) -> None:
    assert capacity(nodes, need) == workers


def placed(node: Node, need: Need) -> int:
    """The most workers of one node, by trying every device for every worker."""

    @cache
    def most(cpus: int, devices: tuple[int, ...], memory: int) -> int:
        if cpus < round(10 * need.cpus) or memory < need.memory_bytes:
            return 0
        left = (cpus - round(10 * need.cpus), memory - int(need.memory_bytes))
        tenths = round(10 * need.gpus)
        if tenths == 0:
            return 1 + most(left[0], devices, left[1])
        choices = []
        if tenths <= 10:
            for k, free in enumerate(devices):
                if free >= tenths:
                    choices.append(tuple(sorted((*devices[:k], free - tenths, *devices[k + 1 :]))))
        elif sum(free == 10 for free in devices) >= tenths // 10:
            used = 0
            rest = []
            for free in devices:
                if free == 10 and used < tenths // 10:
                    used += 1
                    rest.append(0)
                else:
                    rest.append(free)
            choices.append(tuple(sorted(rest)))
        return max((1 + most(left[0], rest, left[1]) for rest in set(choices)), default=0)

    return most(round(10 * node.cpus), (10,) * int(node.gpus), int(node.memory_bytes))


NODES = st.builds(
    Node,
    cpus=st.integers(0, 16).map(lambda tenths: tenths / 2),
    gpus=st.integers(0, 3),
    memory_bytes=st.integers(0, 40),
)
NEEDS = st.builds(
    Need,
    cpus=st.integers(5, 40).map(lambda tenths: tenths / 10),
    gpus=st.one_of(st.just(0.0), st.integers(2, 10).map(lambda tenths: tenths / 10), st.sampled_from([2.0, 3.0])),
    memory_bytes=st.integers(0, 20),
)


@settings(max_examples=200, deadline=None)
@given(nodes=st.lists(NODES, max_size=4), need=NEEDS)
def test_the_capacity_is_what_trying_every_placement_finds(nodes: list[Node], need: Need) -> None:
    assert capacity(nodes, need) == sum(placed(node, need) for node in nodes)


@given(nodes=st.lists(NODES, max_size=4), need=NEEDS, more=NODES)
def test_another_node_never_takes_room_away(nodes: list[Node], need: Need, more: Node) -> None:
    assert capacity([*nodes, more], need) == capacity(nodes, need) + fits(more, need)


def test_a_request_counts_whole_gpus_where_there_are_any() -> None:
    shape = Request().shape([Node(cpus=2), Node(cpus=8, gpus=2)])
    assert (shape.device, shape.workers, shape.need.gpus) == ("cuda", 2, 1.0)


def test_a_request_for_the_cpu_leaves_gpus_alone() -> None:
    shape = Request(device="cpu", gpus_per_worker=1.0).shape([Node(cpus=2), Node(cpus=8, gpus=2)])
    assert (shape.device, shape.workers, shape.need.gpus) == ("cpu", 10, 0.0)


def test_the_memory_of_packs_bounds_the_workers_of_a_node() -> None:
    node = Node(cpus=64, memory_bytes=8 * (4 * GB + WORKER_BYTES))
    shape = Request(pack_bytes=4 * GB).shape([node])
    assert shape.workers == 8
    assert shape.memory_bytes == pytest.approx(4 * GB + WORKER_BYTES)


def test_a_number_of_workers_is_the_most() -> None:
    nodes = [Node(cpus=4), Node(cpus=4)]
    assert Request(workers=3).shape(nodes).workers == 3
    assert Request(workers=30).shape(nodes).workers == 8


def test_this_machine_has_room_for_as_many_workers_as_are_asked_for() -> None:
    asked = Request(workers=100, device="cpu", cpus_per_worker=1.5, pack_bytes=10 * GB)
    assert asked.shape([asked.local_node()]).workers == 100


def test_no_node_at_all_is_room_for_no_worker_and_says_what_one_needs() -> None:
    asked = Request(device="cuda", cpus_per_worker=4, gpus_per_worker=0.5)
    shape = asked.shape([])
    assert (shape.workers, shape.memory_bytes) == (0, math.inf)
    text = asked.no_room(shape).text
    assert "4 CPUs, 0.5 GPUs and 0.25 GB of memory" in text
    assert "set resources.device to cpu" in text


def test_hosts_that_share_a_name_are_shown_with_their_addresses() -> None:
    hosts = {"1": ("vm", "10.0.0.1"), "2": ("vm", "10.0.0.2"), "3": ("big", "10.0.0.3"), "4": (None, "10.0.0.4")}
    nodes = [{"NodeID": n, "NodeManagerHostname": h, "NodeManagerAddress": a} for n, (h, a) in hosts.items()]
    assert names_of(nodes) == {"1": "vm (10.0.0.1)", "2": "vm (10.0.0.2)", "3": "big", "4": "10.0.0.4"}


def test_an_autoscaler_is_asked_for_memory_only_where_a_sweep_names_it() -> None:
    assert Request(cpus_per_worker=2).need("cpu").bundle == {"CPU": 2}
    assert Request(pack_bytes=4 * GB).need("cpu").bundle == {"CPU": 1, "memory": 4 * GB + WORKER_BYTES}
    assert Request().need("cuda").bundle == {"CPU": 1, "GPU": 1}

"""Workers are counted node by node; a fraction of a GPU is taken from one device."""

import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.dispatch.capacity import WORKER_BYTES, Need, Node, Request, capacity, fits, lacking
from orchestrator.dispatch.ray_nodes import names_of

GB = 1e9
L4, T4 = {"accelerator_type:L4": 1.0}, {"accelerator_type:T4": 1.0}


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
        ([Node(cpus=4, resources=L4), Node(cpus=4, resources=T4), Node(cpus=4)], Need(accelerator_type="L4"), 4),
        ([Node(cpus=4, resources=L4 | {"licence": 2}), Node(cpus=4, resources=L4)], Need(custom={"licence": 1}), 2),
        (
            [Node(cpus=4, resources=L4), Node(cpus=4, resources={"licence": 2})],
            Need(accelerator_type="L4", custom={"licence": 1}),
            0,
        ),
        ([Node(cpus=9, resources={"licence": 1})] * 2, Need(custom={"licence": 0.3}), 6),
        ([Node(cpus=9, resources={"licence": 3})] * 2, Need(custom={"licence": 2}), 2),
        ([Node(cpus=9, resources={"TPU": 2})], Need(custom={"TPU": 0.4}), 4),
    ],
)
def test_the_capacity_of_a_cluster(nodes: list[Node], need: Need, workers: int) -> None:
    assert capacity(nodes, need) == workers


def taken(devices: tuple[int, ...], tenths: int) -> set[tuple[int, ...]]:
    """What can be left of devices, in tenths, after a worker has taken a fraction of one or several whole ones."""
    if tenths == 0:
        return {devices}
    if tenths <= 10:
        choices = [(k, free) for k, free in enumerate(devices) if free >= tenths]
        return {tuple(sorted((*devices[:k], free - tenths, *devices[k + 1 :]))) for k, free in choices}
    whole = [k for k, free in enumerate(devices) if free == 10][: tenths // 10]
    if len(whole) < tenths // 10:
        return set()
    return {tuple(sorted(0 if k in whole else free for k, free in enumerate(devices)))}


def placed(node: Node, need: Need) -> int:
    """The most workers of one node, by trying every device for every worker."""
    cpus, gpus = round(10 * need.cpus), round(10 * need.gpus)
    tpus, licences = (round(10 * need.custom.get(name, 0.0)) for name in ("TPU", "licence"))
    if need.accelerator_type and f"accelerator_type:{need.accelerator_type}" not in node.resources:
        return 0

    @cache
    def most(
        cpus_left: int, gpus_left: tuple[int, ...], tpus_left: tuple[int, ...], licences_left: int, memory: int
    ) -> int:
        if cpus_left < cpus or licences_left < licences or memory < need.memory_bytes:
            return 0
        rest = cpus_left - cpus, licences_left - licences, memory - int(need.memory_bytes)
        return max(
            (
                1 + most(rest[0], some_gpus, some_tpus, *rest[1:])
                for some_gpus in taken(gpus_left, gpus)
                for some_tpus in taken(tpus_left, tpus)
            ),
            default=0,
        )

    of_node = node.resources
    return most(
        round(10 * node.cpus),
        (10,) * int(node.gpus),
        (10,) * int(of_node.get("TPU", 0)),
        round(10 * of_node.get("licence", 0)),
        int(node.memory_bytes),
    )


FRACTIONS = st.one_of(st.integers(2, 10).map(lambda tenths: tenths / 10), st.sampled_from([2.0, 3.0]))
TYPES = ("L4", "T4")
NODES = st.builds(
    Node,
    cpus=st.integers(0, 16).map(lambda tenths: tenths / 2),
    gpus=st.integers(0, 3),
    memory_bytes=st.integers(0, 40),
    resources=st.builds(
        lambda kind, custom: {f"accelerator_type:{kind}": 1.0, **custom} if kind else custom,
        st.sampled_from(["", *TYPES]),
        st.fixed_dictionaries(
            {}, optional={"TPU": st.integers(1, 3).map(float), "licence": st.integers(1, 30).map(lambda n: n / 10)}
        ),
    ),
)
NEEDS = st.builds(
    Need,
    cpus=st.integers(5, 40).map(lambda tenths: tenths / 10),
    gpus=st.one_of(st.just(0.0), FRACTIONS),
    memory_bytes=st.integers(0, 20),
    accelerator_type=st.sampled_from(["", *TYPES]),
    custom=st.one_of(
        st.just({}),
        st.fixed_dictionaries({}, optional={"TPU": FRACTIONS, "licence": st.integers(1, 20).map(lambda n: n / 10)}),
    ),
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


def test_nodes_without_what_is_asked_for_do_not_count_and_decide_no_device() -> None:
    nodes = [
        Node(cpus=8, gpus=8, resources=T4),
        Node(cpus=4, gpus=2, resources=L4),
        Node(cpus=4, resources={"disk": 3}),
    ]
    of_type = Request(accelerator_type="L4").shape(nodes)
    assert (of_type.device, of_type.workers, of_type.lacking) == ("cuda", 2, "")
    of_name = Request(custom={"disk": 1}).shape(nodes)
    assert (of_name.device, of_name.workers, of_name.lacking) == ("cpu", 3, "")


def test_an_accelerator_that_no_node_has_yet_is_a_gpu() -> None:
    """With an autoscaler there may be no node at first."""
    for nodes in ([], [Node(cpus=4, resources=T4)], [Node(cpus=0, resources={"node:10.0.0.1": 1.0})]):
        assert Request(accelerator_type="L4").shape(nodes).device == "cuda"
    assert Request(accelerator_type="L4", device="cpu").shape([]).device == "cpu"


def test_what_no_node_has_is_named_with_what_they_have() -> None:
    nodes = [
        Node(cpus=4, resources=T4 | {"node:10.0.0.1": 1.0}),
        Node(cpus=4, resources={"accelerator_type:A100": 1.0}),
    ]
    assert lacking(nodes, Need(accelerator_type="L4")) == "no node has accelerator type L4; nodes have: A100, T4"
    assert lacking(nodes, Need(custom={"licence": 1})) == "no node has the resource licence; nodes have: none"
    nodes.append(Node(cpus=4, resources={"licence": 2, "disk": 1}))
    assert lacking(nodes, Need(custom={"licence": 3})) == "no node has 3 of the resource licence; the most is 2"
    assert lacking(nodes, Need(custom={"scratch": 1})) == "no node has the resource scratch; nodes have: disk, licence"
    assert lacking(nodes, Need(accelerator_type="T4", custom={"licence": 2})) == "", "but no node has both"
    assert lacking([], Need(accelerator_type="L4")) == ""


def test_a_machine_without_the_accelerator_has_room_for_no_worker() -> None:
    asked = Request(workers=2, device="cpu", accelerator_type="L4", custom={"licence": 2})
    shape = asked.shape([asked.local_node()])
    assert shape.workers == 0
    text = asked.no_room(shape).text
    assert "no node has accelerator type L4; nodes have: " in text
    assert "no node has the resource licence; nodes have: none" in text
    assert "1 CPU, 0.25 GB of memory, accelerator type L4 and 2 of the resource licence" in text
    assert "RAY_ADDRESS" in text


def test_hosts_that_share_a_name_are_shown_with_their_addresses() -> None:
    hosts = {"1": ("vm", "10.0.0.1"), "2": ("vm", "10.0.0.2"), "3": ("big", "10.0.0.3"), "4": (None, "10.0.0.4")}
    nodes = [{"NodeID": n, "NodeManagerHostname": h, "NodeManagerAddress": a} for n, (h, a) in hosts.items()]
    assert names_of(nodes) == {"1": "vm (10.0.0.1)", "2": "vm (10.0.0.2)", "3": "big", "4": "10.0.0.4"}


def test_an_autoscaler_is_asked_for_memory_only_where_a_sweep_names_it() -> None:
    assert Request(cpus_per_worker=2).need("cpu").bundle == {"CPU": 2}
    assert Request(pack_bytes=4 * GB).need("cpu").bundle == {"CPU": 1, "memory": 4 * GB + WORKER_BYTES}
    assert Request().need("cuda").bundle == {"CPU": 1, "GPU": 1}


def test_an_autoscaler_is_asked_for_accelerators_and_custom_resources() -> None:
    asked = Request(accelerator_type="L4", custom={"licence": 2})
    assert asked.need("cuda").bundle == {"CPU": 1, "GPU": 1, "accelerator_type:L4": 0.001, "licence": 2}

"""What several drivers ask the autoscaler of one cluster for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray
from driving import environment, wait_for
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._private.state import jobs
from ray.autoscaler import sdk
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get, internal_kv_get_gcs_client

from orchestrator.dispatch.capacity import Node
from orchestrator.dispatch.ray_connection import connect, disconnect
from orchestrator.dispatch.ray_requests import ask

pytestmark = pytest.mark.slow

DRIVER = """
import sys, time, ray
from orchestrator.dispatch.ray_requests import ask
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
ask([{"CPU": 7.0}, {"CPU": 7.0}])
print("asked", flush=True)
time.sleep(600)
"""

LATER = DRIVER.replace("ask([", "print('connected', flush=True); input(); ask([", 1)

NEXT = """
import sys, ray
from orchestrator.dispatch.ray_cluster import RayCluster
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
cluster = RayCluster(owned=True, say=print)
cluster.call(lambda: None)
cluster.close()
"""


@pytest.fixture
def address() -> Iterator[str]:
    connect(Node(cpus=1, memory_bytes=2e9))
    yield ray.get_runtime_context().gcs_address
    disconnect()


def asked_for() -> list[float]:
    """The CPUs of each bundle that Ray's autoscaler is asked for."""
    if is_autoscaler_v2():
        constraints = get_cluster_resource_state(internal_kv_get_gcs_client()).cluster_resource_constraints
        requests = [request for constraint in constraints for request in constraint.resource_requests]
        return [one.request.resources_bundle["CPU"] for one in requests for _ in range(one.count)]
    return [bundle["CPU"] for bundle in json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]")]


def test_a_request_is_withdrawn_by_its_driver_or_by_the_next_one_and_by_no_other(address: str) -> None:
    command = [sys.executable, "-c", DRIVER, address]
    with subprocess.Popen(
        command, env=environment({"RAY_AUTH_MODE": "token"}), stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "asked\n"
            assert asked_for() == [7.0, 7.0]
            ask([{"CPU": 3.0}])
            assert sorted(asked_for()) == [3.0, 7.0, 7.0], "two sweeps share the cluster"
            ask([])
            assert asked_for() == [7.0, 7.0], "that of a sweep that runs stays"
        finally:
            other.kill()
    wait_for("Ray notices the death", lambda: sum(not job["IsDead"] for job in jobs()) == 1)
    assert asked_for() == [7.0, 7.0], "Ray itself keeps it"
    subprocess.run([sys.executable, "-c", NEXT, address], env=environment({"RAY_AUTH_MODE": "token"}), check=True)
    assert asked_for() == []


def test_of_drivers_that_ask_at_the_same_time_none_is_left_out(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one asks when this one has summed up the requests, and has not told Ray yet."""
    command = [sys.executable, "-c", LATER, address]
    with subprocess.Popen(
        command, env=environment({"RAY_AUTH_MODE": "token"}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        lines, tell = (other.stdin, other.stdout), sdk.request_resources
        told: list[int] = []

        def late(*, bundles: list[dict[str, float]]) -> None:
            if not told:
                print(file=lines[0], flush=True)
                assert lines[1].readline() == "asked\n"
            told.append(len(bundles))
            tell(bundles=bundles)

        try:
            assert other.stdout.readline() == "connected\n"
            monkeypatch.setattr(sdk, "request_resources", late)
            ask([{"CPU": 3.0}])
            assert sorted(asked_for()) == [3.0, 7.0, 7.0]
            assert told == [1, 3], "it has asked again"
        finally:
            other.kill()

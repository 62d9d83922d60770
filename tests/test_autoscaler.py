"""A sweep on a cluster that Ray's autoscaler makes: from no node to three, and back to none.

The nodes are those of Ray's fake multi-node provider: real nodes of Ray, as processes of this machine.
`ray.cluster_utils.AutoscalingCluster` is not used: its `start` ends every Ray of the machine, and Ray's wheel lacks a
file that it reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.driving import MARK, driver, environment, marked, record, trials, wait_for
from tests.servers import free_port
from tests.test_e2e_infrastructure import write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MOST_NODES = 3
UNUSED = {
    "auth": {},
    "docker": {},
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
}
"""What the autoscaler wants to be there."""


class Autoscaled:
    """A head without CPUs, whose autoscaler adds nodes with one CPU, and nodes that have a licence too."""

    def __init__(self, folder: Path, mark: str, started: list[subprocess.Popen[bytes]]) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.log = folder / "head.log"
        types = {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {
                "resources": {"CPU": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST_NODES,
            },
            "licensed": {
                "resources": {"CPU": 1, "licence": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 1,
            },
        }
        provider = {
            "type": "fake_multinode",
            "gcs_address": self.address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # they share one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        config = folder / "autoscaler.json"
        config.write_text(
            json.dumps(
                {
                    "cluster_name": "fake",
                    "provider": provider,
                    "max_workers": MOST_NODES,
                    "available_node_types": types,
                    "head_node_type": "ray.head.default",
                    "upscaling_speed": 1.0,
                    "idle_timeout_minutes": 0.1,
                    **UNUSED,
                }
            )
        )
        ray = Path(sys.executable).with_name("ray")
        options = (
            f"--head --block --num-cpus=0 --port={port} --node-ip-address=127.0.0.1 --temp-dir={folder}/ray "
            "--include-dashboard=false --object-store-memory=80000000 --min-worker-port=0 --max-worker-port=0"
        )
        environ = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            MARK: mark,
        }
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [ray, "start", *options.split(), f"--autoscaling-config={config}"],
                env=environment(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(self.popen)
        wait_for("the head", self._answers)
        self._state = GlobalState()
        self._state._initialize_global_state(
            GcsClientOptions.create(self.address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
        )

    def _answers(self) -> bool:
        assert self.popen.poll() is None, self.log.read_text()
        host, _, port = self.address.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return "Ray runtime started" in self.log.read_text()
        return False

    def nodes(self) -> int:
        """The nodes that are alive, without the head."""
        return sum(node["Alive"] for node in self._state.node_table()) - 1

    def licensed(self) -> int:
        """The nodes that are alive and have a licence."""
        return sum(node["Alive"] and "licence" in node["Resources"] for node in self._state.node_table())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Autoscaled]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder, mark = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp")), uuid.uuid4().hex
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield Autoscaled(folder, mark, started)
    finally:
        while left := marked(mark):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for popen in started:
                popen.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_a_cluster_grows_for_a_sweep_shrinks_as_it_ends_and_is_empty_afterwards(
    cluster: Autoscaled, tmp_path: Path
) -> None:
    """Without a word from the user."""
    gate = tmp_path / "open"
    body = (
        "report(1, loss=1.0)\ntime.sleep(2)\n"
        f"while params['n'] == 0 and not Path({str(gate)!r}).exists():\n    time.sleep(0.1)\n"
        "report(2, loss=1.0)"
    )
    write_sweep(tmp_path, body, count=9, resources="{}")
    assert cluster.nodes() == 0
    environ = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=environ) as running:
        wait_for("three nodes", lambda: cluster.nodes() == MOST_NODES, running)
        wait_for("one node, for the trial that is left", lambda: cluster.nodes() == 1, running)
        assert running.popen.poll() is None
        gate.touch()
        text = running.finish()
    assert running.popen.returncode == 0, text
    assert [trial.status for trial in trials(record(tmp_path / "mlflow.db"))] == ["FINISHED"] * 9
    wait_for("no node", lambda: cluster.nodes() == 0)
    assert "was lost" not in text, "a node that leaves is no loss"


def test_nodes_with_a_custom_resource_are_asked_for_by_it(cluster: Autoscaled, tmp_path: Path) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "open"
    body = (
        f"Path({str(begun)!r}).touch()\nreport(1, loss=1.0)\n"
        f"while not Path({str(gate)!r}).exists():\n    time.sleep(0.1)\nreport(2, loss=1.0)"
    )
    write_sweep(tmp_path, body, count=3, resources="{device: cpu, custom: {licence: 1}}")
    environ = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=environ) as running:
        wait_for("a trial", begun.exists, running)
        assert (cluster.nodes(), cluster.licensed()) == (1, 1)
        gate.touch()
        text = running.finish()
    assert running.popen.returncode == 0, text
    assert [trial.status for trial in trials(record(tmp_path / "mlflow.db"))] == ["FINISHED"] * 3

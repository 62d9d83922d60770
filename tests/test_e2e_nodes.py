"""Clusters of several nodes on this machine: bad nodes, nodes that die, and clusters that have no room yet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.saving import ASK_AFTER_S
from tests.driving import driver, environment, record, rows_recorded, run, trials, wait_for
from tests.killing import environ as killing_environ
from tests.killing import log_lines, sweep_file, wrong
from tests.test_e2e_infrastructure import write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Nodes:
    """A head without CPUs, and nodes that tests add and remove."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **self._small})
        self._added: list[Any] = []
        self.environ = {"RAY_ADDRESS": self._cluster.address, "RAY_AUTH_MODE": "disabled"}

    _small = {"object_store_memory": 80_000_000, "include_dashboard": False}  # noqa: RUF012

    def add(self, cpus: int = 2, resources: dict[str, float] | None = None, **environ: str) -> Any:
        """A node with these custom resources, whose workers have these environment variables."""
        node = self._cluster.add_node(
            num_cpus=cpus,
            resources=resources or {},
            memory=2_000_000_000,
            object_store_memory=80_000_000,
            env_vars=environ,
            wait=True,
        )
        self._added.append(node)
        return node

    def drain(self, node: Any, *, deadline_s: int) -> None:
        """Announce that it will be taken away, as an autoscaler does of a preempted machine."""
        command = f"drain-node --address={self._cluster.address} --node-id={node.node_id} --reason-message=preempted "
        command += f"--reason=DRAIN_NODE_REASON_PREEMPTION --deadline-remaining-seconds={deadline_s}"
        ray = str(Path(sys.executable).with_name("ray"))
        environ = environment({"RAY_AUTH_MODE": "disabled"})
        subprocess.run([ray, *command.split()], env=environ, check=True, capture_output=True, timeout=120)

    def kill(self, node: Any) -> None:
        self._added.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_raylet_of_head(self) -> None:
        """That of the drivers on this machine; the head's other processes go on."""
        self._cluster.head_node.kill_raylet()

    def kill_head(self) -> None:
        """The process that every call about nodes, actors and new tasks goes to."""
        self._cluster.head_node.kill_gcs_server()

    def clear(self) -> None:
        for node in list(self._added):
            self.kill(node)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Nodes()
        yield cluster
        cluster.close()


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    """The head alone; the nodes of a test end with it."""
    yield cluster
    cluster.clear()


def statuses(folder: Path) -> Counter[str]:
    """How many trials ended in which way, counting the last run of each."""
    last = {
        trial.tags.get("phasefront.trial", trial.name): trial.status for trial in trials(record(folder / "mlflow.db"))
    }
    return Counter(last.values())


def test_bad_nodes_cost_no_healthy_trial(nodes: Nodes, tmp_path: Path) -> None:
    """A node without the data, on which every trial raises, and one without the package, on which workers die."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "sitecustomize.py").write_text("import sys\nsys.modules['orchestrator'] = None\n")
    body = "if 'BAD' in os.environ:\n    open('/no/such/data')\ntime.sleep(0.3)\nreport(1, loss=1.0)"
    write_sweep(tmp_path, body, count=30, resources="{}")
    nodes.add(1)
    nodes.add(1, BAD="1")
    nodes.add(2, PYTHONPATH=str(tmp_path / "bad"))
    code, text = run("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=nodes.environ)
    assert code == 0, text
    assert statuses(tmp_path) == {"FINISHED": 30}
    assert "is excluded for 30 minutes: trials that failed there succeed on other nodes" in text


@pytest.mark.long
def test_a_node_with_another_version_of_phasefront_gets_no_trials(nodes: Nodes, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    for package in ("orchestrator", "jobs"):
        shutil.copytree(root / package, tmp_path / "other" / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "other" / "jobs" / "ridge" / "job.py").open("a") as file:
        file.write("\n# another version\n")
    # Long enough that the other node's worker, whichever starts first, is ready before all is trained.
    (tmp_path / "sweep.yaml").write_text(
        "name: versions\njob: ridge\naxes: {sample_count: [10, 20, 40, 80]}\nreplicates: 3\n"
        "fixed: {solver: gradient_descent, steps: 200000}\ntracking: {uri: 'sqlite:///mlflow.db'}\n"
    )
    nodes.add(1, PYTHONPATH=str(tmp_path / "other"))
    nodes.add(1)
    code, text = run("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=nodes.environ)
    assert code == 0, text
    assert statuses(tmp_path) == {"FINISHED": 12}
    assert "gets no trials: its version of the job is not the driver's (jobs/ridge/job.py " in text
    nodes.clear()
    nodes.add(1, PYTHONPATH=str(tmp_path / "other"))
    code, text = run("run", "sweep.yaml", "--no-map", "--set", "replicates=4", cwd=tmp_path, environ=nodes.environ)
    assert code == 2, text
    assert "jobs/ridge/job.py" in text and "give all nodes and the driver the same one" in text


@pytest.mark.long
def test_only_nodes_with_the_accelerator_and_the_custom_resource_get_workers(nodes: Nodes, tmp_path: Path) -> None:
    """Accelerators that Ray is told of: there need not be one for the arithmetic."""
    folder = tmp_path / "where"
    folder.mkdir()
    body = (
        f"if 'NAME' in os.environ:\n    (Path({str(folder)!r}) / f\"{{os.environ['NAME']}} {{os.getpid()}}\").touch()\n"
        "time.sleep(0.3)\nreport(1, loss=1.0)"
    )
    asked = "{device: cpu, accelerator_type: L4, custom: {licence: 1}}"
    write_sweep(tmp_path, body, count=12, resources=asked)
    l4, t4 = "accelerator_type:L4", "accelerator_type:T4"
    nodes.add(2, NAME="plain")
    nodes.add(2, {t4: 1, "licence": 2}, NAME="other accelerator")
    code, text = run("plan", "sweep.yaml", cwd=tmp_path, environ=nodes.environ)
    assert code == 0, text
    assert "waiting   no node has accelerator type L4; nodes have: T4; the run waits until a node has it" in text
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=nodes.environ) as running:
        reason = (
            "waiting for the cluster to grow: no node has accelerator type L4; nodes have: T4; a worker needs 1 CPU"
        )
        wait_for("the reason", lambda: reason in running.text(), running)
        nodes.add(2, {l4: 1}, NAME="no licence")
        nodes.add(3, {l4: 1, "licence": 2}, NAME="right")
        text = running.finish()
        assert running.popen.returncode == 0, text
    assert statuses(tmp_path) == {"FINISHED": 12}
    where = [path.name.rpartition(" ")[0] for path in folder.iterdir()]
    assert set(where) == {"right"}
    assert len(where) <= 2, "a worker for each licence"


@pytest.mark.long
def test_a_cluster_without_a_node_is_waited_for_and_a_trial_that_loses_its_node_is_run_again(
    nodes: Nodes, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    body = f"report(1, loss=1.0)\nreport(2, loss=1.0)\nwhile not Path({str(go)!r}).exists():\n    time.sleep(0.1)"
    write_sweep(tmp_path, body, count=1, resources="{}")
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=nodes.environ) as running:
        wait_for("the reason", lambda: "waiting for the cluster to grow" in running.text(), running)
        node = nodes.add(1)
        wait_for("rows", lambda: rows_recorded(tmp_path / "mlflow.db") > 0, running)
        nodes.kill(node)
        wait_for("the loss", lambda: "was lost; its trials are run again" in running.text(), running)
        nodes.add(1)
        go.touch()
        text = running.finish()
        assert running.popen.returncode == 0, text
    assert "no node has room for a worker, which needs 1 CPU" in text
    assert statuses(tmp_path) == {"FINISHED": 1}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_node_that_is_drained_saves_its_pack_which_goes_on_elsewhere(nodes: Nodes, tmp_path: Path) -> None:
    """Only the notice makes a checkpoint: the interval is longer than the run."""
    file, kept = sweep_file(tmp_path, steps=800, wait_s=0.05, interval_s=1e6), tmp_path / "kept"
    file.write_text(file.read_text().replace("resources: {", f"resources: {{checkpoints: {kept}, "))
    there = {name: nodes.add(1, NAME=name) for name in ("leaves", "stays")}

    def lines_of(name: str) -> list[tuple[str, int, int, float]]:
        return [line for line in log_lines(tmp_path) if where(line[2]) == name]

    known: dict[int, str] = {}

    def where(pid: int) -> str:
        if pid not in known:
            known[pid] = next(
                part.partition(b"=")[2].decode()
                for part in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if part.startswith(b"NAME=")
            )
        return known[pid]

    environ = {**nodes.environ, **killing_environ()}
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=environ) as running:
        wait_for("both nodes", lambda: all(map(lines_of, there)), running)
        began = lines_of("leaves")[0][3]
        wait_for("a while", lambda: lines_of("leaves")[-1][3] - began > ASK_AFTER_S + 2.0, running)
        assert not list(kept.rglob("*.safetensors"))
        nodes.drain(there["leaves"], deadline_s=300)
        wait_for("the checkpoint", lambda: bool(list(kept.rglob("*.safetensors"))), running)
        saved = len(lines_of("leaves"))
        wait_for("more steps", lambda: len(lines_of("leaves")) > saved + 10, running)
        ran = {line[0] for line in lines_of("leaves")}
        nodes.kill(there["leaves"])
        before = len(log_lines(tmp_path))
        text = running.finish()
        assert running.popen.returncode == 0, text
    assert {line[0] for line in lines_of("leaves")} == ran, "nothing new begins there"
    again = [line for line in log_lines(tmp_path)[before:] if line[0] in ran and where(line[2]) == "stays"]
    assert {line[0] for line in again} == ran, text
    assert min(line[1] for line in again) > 1, "it goes on from the checkpoint"
    assert wrong(tmp_path) == []
    assert not list(kept.rglob("*.safetensors"))


def test_a_driver_whose_own_node_dies_ends_resumably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last, with a cluster of its own, which notices within seconds."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    write_sweep(tmp_path, "report(1, loss=1.0)\ntime.sleep(0.5)\nreport(2, loss=1.0)", count=400, resources="{}")
    cluster = Nodes()
    try:
        cluster.add(1)
        with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=cluster.environ) as running:
            wait_for("rows", lambda: rows_recorded(tmp_path / "mlflow.db") > 4, running)
            cluster.kill_raylet_of_head()
            text = running.finish()
    finally:
        cluster.close()
    assert running.popen.returncode == 75, text
    assert "the Ray node of this driver has died" in text
    assert "run the same command again" in text
    assert "Traceback" not in text
    assert "(raylet)" not in text, "Ray prints nothing itself"
    assert "RUNNING" not in statuses(tmp_path)


@pytest.mark.long
def test_a_head_that_dies_just_after_a_worker_ends_the_run_resumably(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead worker's output is read, and it is replaced, through the head.

    Ray ends a process that has waited for a head for a minute (here for ten seconds, if it were left to Ray), also one
    that waits for its record meanwhile.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    body = f"Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
    body += "report(1, loss=1.0)\ntime.sleep(0.5)\nreport(2, loss=1.0)"
    write_sweep(tmp_path, body, count=400, resources="{}")
    cluster = Nodes()
    try:
        cluster.add(1)
        environ = {**cluster.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
        with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ=environ) as running:
            wait_for("rows", lambda: rows_recorded(tmp_path / "mlflow.db") > 4, running)
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            time.sleep(1)  # the head tells the driver, which then waits whether the node is dead too
            cluster.kill_head()
            text = running.finish()
    finally:
        cluster.close()
    assert running.popen.returncode == 75, text
    assert "the Ray cluster has not answered for 1" in text and "waiting for 30 s at most" in text
    assert "run the same command again" in text
    assert "Traceback" not in text
    assert "RUNNING" not in statuses(tmp_path)

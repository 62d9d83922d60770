"""A Ray cluster of hosts with addresses of their own: a head, on which the driver runs, and nodes that come and go."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from driving import MARK, environment, marked

from tests.chaos.host import HERE, Network, command_of, end_marked, run, wait_for

RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6379
START_S = 90.0
NODES = ("n1", "n2")
CPUS = 2
SETTINGS = {
    # A node counts as dead after about five seconds of silence, instead of half a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def job_environment() -> dict[str, str]:
    """What a process needs to import this project and the job."""
    root = HERE.parent.parent
    return environment({**SETTINGS, "PYTHONPATH": os.pathsep.join(map(str, (HERE, root))), "OMP_NUM_THREADS": "1"})


class Cluster:
    """The cluster; its processes carry marks, by which they are found and ended."""

    def __init__(self, network: Network) -> None:
        self.network = network
        # A socket's path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="pfr-", dir="/tmp"))
        self._marks: dict[str, str] = {}
        self.network.add("head")
        for node in (*NODES, "late"):
            self.network.add(node)

    @property
    def address(self) -> str:
        return f"{self.network.address('head')}:{PORT}"

    def start(self) -> None:
        """Start the head and its nodes."""
        options = ["--head", f"--port={PORT}", "--include-dashboard=false", "--num-cpus=1", f"--temp-dir={self.folder}"]
        self._start("head", options)
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str, *, hidden: Path | None = None, cpus: int = CPUS) -> None:
        """Start a node; where `hidden` is a folder, this node sees it empty."""
        self._start(node, [f"--address={self.address}", f"--num-cpus={cpus}"], hidden)

    def _start(self, host: str, options: list[str], hidden: Path | None = None) -> None:
        self.kill(host)
        mark = self._marks[host] = uuid.uuid4().hex
        where = f"--node-ip-address={self.network.address(host)}"
        command = [RAY, "start", where, "--object-store-memory=80000000", "--disable-usage-stats", *options]
        if hidden is not None:  # a mount of this node alone: `ip netns exec` gives it a mount namespace
            command = ["sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh", *command]
        done = subprocess.run(
            [*self.network.inside(host), *command],
            env={**job_environment(), MARK: mark},
            capture_output=True,
            text=True,
            timeout=START_S,
            cwd="/",
        )
        if done.returncode:
            raise RuntimeError(f"ray start on {host}: {done.stdout}{done.stderr}")

    def processes(self, host: str, *, named: str = "") -> list[int]:
        """The processes of a host whose command has this text."""
        mark = self._marks.get(host)
        return [pid for pid in marked(mark) if named in command_of(pid)] if mark else []

    def workers(self, *hosts: str) -> list[int]:
        """The processes of actors."""
        return [
            pid
            for host in hosts or tuple(self._marks)
            for pid in self.processes(host, named="ray::")
            if not re.match(r"ray::(IDLE|DashboardAgent|RuntimeEnvAgent)", command_of(pid))
        ]

    def host_of(self, pid: int) -> str:
        """The host of a process, and whether its raylet lives."""
        for host, mark in self._marks.items():
            if pid in marked(mark):
                return host if self.alive(host) else f"{host}, whose raylet is dead"
        return "no host"

    def raylet(self, host: str) -> list[int]:
        return [pid for pid in self.processes(host, named="/raylet/raylet") if "gcs_server" not in command_of(pid)]

    def gcs(self) -> list[int]:
        return self.processes("head", named="gcs_server")

    def alive(self, host: str) -> bool:
        return bool(self.raylet(host))

    def kill(self, host: str) -> None:
        """End every process of a host at once, as if its power failed."""
        if host in self._marks:
            end_marked(self._marks.pop(host))

    def restart(self) -> None:
        """A new cluster at the same address."""
        for host in list(self._marks):
            self.kill(host)
        for session in self.folder.glob("session_*"):
            with contextlib.suppress(OSError):
                session.unlink() if session.is_symlink() else None
        self.start()

    def settle(self) -> None:
        """Bring every node back that is gone, and remove those that joined late."""
        self.kill("late")
        if not self.gcs() or not self.alive("head"):
            self.restart()
            return
        for node in NODES:
            if not self.alive(node):
                self.start_node(node)

    def logs_with(self, text: str) -> list[Path]:
        """Files of Ray's sessions that have this text."""
        found = run("grep", "-rlaF", "--", text, self.folder, check=False)
        return [Path(line) for line in found.splitlines()]

    def left_workers(self, timeout_s: float) -> list[int]:
        """Actors that still live after this time."""
        wait_for(lambda: not self.workers(), timeout_s, every_s=0.5)
        return self.workers()

    def close(self) -> None:
        for host in list(self._marks):
            self.kill(host)
        shutil.rmtree(self.folder, ignore_errors=True)


def stopped(pids: list[int], seconds: float) -> int:
    """Stop processes for a while; how many there were."""
    count = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            count += 1
    time.sleep(seconds)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return count

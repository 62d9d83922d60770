"""What a trial starts ends with its worker's process."""

import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from orchestrator.dispatch import reaper
from tests.driving import environment, wait_for

LEAVES = """\
import os, signal, subprocess, sys, time
from orchestrator.dispatch.reaper import guard_children
guard_children()
left = [subprocess.Popen(["sleep", "3600"]).pid]
left.append(int(subprocess.check_output("setsid sleep 3600 > /dev/null & echo $!", shell=True)))
left.append(os.fork())
if not left[-1]:
    time.sleep(3600)
print(*left, flush=True)
sys.stdin.read()
{end}
"""


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(0)"])
def test_children_end_with_the_process_that_started_them(end: str) -> None:
    command = [sys.executable, "-c", LEAVES.format(end=end)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdin is not None
        left = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(left) == 3
        assert all(map(lives, left))
        worker.stdin.close()
        worker.wait()
    wait_for("the end of what it left", lambda: not any(map(lives, left)))


@pytest.mark.parametrize("end", [b"", reaper.CLEAN])
def test_agents_whose_title_overwrites_their_mark_end_with_the_driver(end: bytes) -> None:
    """They are known by their ids; a later process of the same id, which has another start time, is left alone."""
    with subprocess.Popen(["sleep", "3600"]) as agent, subprocess.Popen(["sleep", "3600"]) as other:
        started = dict(reaper.children(os.getpid()))
        line = reaper.named([(agent.pid, started[agent.pid]), (other.pid, started[other.pid] - 1)])
        command = [sys.executable, "-I", reaper.__file__, uuid.uuid4().hex, "0"]
        try:
            subprocess.run(command, input=line + end, check=True, timeout=60)
            assert not lives(agent.pid)
            assert lives(other.pid)
        finally:
            agent.kill()
            other.kill()


@pytest.mark.slow
def test_the_agents_of_a_local_ray_are_known_when_it_has_started() -> None:
    code = """\
import sys, subprocess
from orchestrator.dispatch import ray_connection
from orchestrator.dispatch.reaper import named
sent = []
ray_connection.reaper.named = lambda known: sent.extend(known) or named(known)
ray_connection.connect()
titles = [open(f"/proc/{pid}/cmdline").read() for pid, _ in sent]
ray_connection.disconnect()
print(titles)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert "DashboardAgent" in done.stdout, done.stdout
    assert "RuntimeEnvAgent" in done.stdout, done.stdout

"""What a trial starts ends with its worker's process."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.driving import wait_for

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

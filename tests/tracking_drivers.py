"""A second driver: a process that opens a sweep and locks its experiment until it ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tracking_contract import SWEEP

from orchestrator.errors import UserError
from orchestrator.tracking.base import Tracker

HERE = Path(__file__).parent
PATIENCE_S = 60.0
HOLDS = """
import sys
sys.path[:0] = [sys.argv[3], sys.argv[4]]
from tracking_contract import SWEEP, trial
from orchestrator.tracking.factory import open_tracker
tracker = open_tracker(sys.argv[1], experiment=sys.argv[2])
tracker.open_sweep(SWEEP)
tracker.begin([trial()])
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_driver(uri: str, experiment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has begun `trial()` of SWEEP and waits; it is killed at the end."""
    command = [sys.executable, "-c", HOLDS, uri, experiment, str(HERE), str(HERE.parent)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            assert process.stdout.readline() == b"open\n"
            yield process
        finally:
            process.kill()
            process.wait()


def open_when_free(tracker: Tracker) -> str:
    """Open SWEEP as soon as its experiment is unlocked; a server may need a moment to notice that a client died."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return tracker.open_sweep(SWEEP)
        except UserError as error:
            if "another phasefront run" not in error.text or time.monotonic() > end:
                raise
        time.sleep(0.05)

"""Plain functions for tests of the rehearsal."""

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any


def sleepy(params: dict[str, Any], seed: int, device: str, report: Callable[..., None]) -> None:
    """Waits without computing."""
    time.sleep(params["seconds"])
    report(1, value=1.0)


def exits(params: dict[str, Any], seed: int, device: str, report: Callable[..., None]) -> None:
    """Ends its process immediately."""
    os._exit(3)


def leaves(params: dict[str, Any], seed: int, device: str, report: Callable[..., None]) -> None:
    """Leaves a process behind that holds its output open, as long as a file exists."""
    subprocess.Popen(["sh", "-c", f"while [ -e {params['flag']} ]; do sleep 0.1; done"])
    report(1, value=1.0)

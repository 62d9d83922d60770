"""Plain functions that are timed before a plan."""

import os
import time
from collections.abc import Callable
from typing import Any


def sleepy(params: dict[str, Any], seed: int, device: str, report: Callable[..., None]) -> None:
    """Waits, and computes nothing."""
    time.sleep(params["seconds"])
    report(1, value=1.0)


def exits(params: dict[str, Any], seed: int, device: str, report: Callable[..., None]) -> None:
    """Ends its process at once."""
    os._exit(3)

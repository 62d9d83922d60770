"""The smallest possible trials, to measure the orchestrator's own cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def train(params: Mapping[str, float], seed: int, device: str, report: Callable[..., None]) -> None:
    """Five rows of one metric."""
    for step in (1, 2, 4, 8, 16):
        report(step, loss=params["x"] / step)


def curve(params: Mapping[str, float], seed: int, device: str, report: Callable[..., None]) -> None:
    """`rows` rows of two metrics."""
    for step in range(1, int(params["rows"]) + 1):
        report(step, loss=params["x"] / step, accuracy=1 - params["x"] / step)

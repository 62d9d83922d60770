"""How torch computes in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def set_threads(count: int) -> None:
    """Use `count` threads for tensor operations of this process."""
    torch.set_num_threads(max(1, count))


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat numbers below 1.2e-38 as zero on the CPU, as every training of a pack does.

    Second moments and errors of a model that has converged fall below that, and operations on such
    numbers are ten times slower. The setting is the thread's, and is put back at the end.
    """
    before = float(torch.full((1,), 1e-40) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)

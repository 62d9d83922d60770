"""How torch computes in this process."""

from __future__ import annotations

import torch


def set_threads(count: int) -> None:
    """Use `count` threads for tensor operations of this process."""
    torch.set_num_threads(max(1, count))


def flush_denormals() -> None:
    """Treat numbers below 1.2e-38 as zero on the CPU, as every training of a pack does.

    Second moments and errors of a model that has converged fall below that, and operations on such
    numbers are ten times slower. The setting is the thread's; torch leaves it alone.
    """
    torch.set_flush_denormal(True)

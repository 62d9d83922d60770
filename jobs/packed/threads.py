"""How many threads torch uses in this process."""

from __future__ import annotations

import torch


def set_threads(count: int) -> None:
    """Use `count` threads for tensor operations of this process."""
    torch.set_num_threads(max(1, count))

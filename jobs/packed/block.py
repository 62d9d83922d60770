"""What the training loop of a pack trains: models with a leading model dimension.

Shapes: M live models of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor


class Block(ABC):
    """Models that train together: every parameter, batch and optimiser state has a leading model dimension."""

    @abstractmethod
    def advance(self, step: int, count: int) -> None:
        """Train every model for `count` steps; `step` is the number of optimiser steps done so far."""

    @abstractmethod
    def measure(self) -> Mapping[str, Tensor]:
        """metric -> (M,) values."""

    @abstractmethod
    def keep(self, index: Tensor) -> None:
        """Keep these models only, in this order; (m,) int64 positions in the block."""

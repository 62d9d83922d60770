"""What the training loop of a pack trains: models with a leading model dimension.

Shapes: M live models of a block.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from jobs.state import TrialState

R = TypeVar("R")


def weakly(method: Callable[..., R]) -> Callable[..., R]:
    """A method that its own object may hold.

    A reference back to a block would keep its tensors until Python's garbage collector runs.
    """
    of_object = weakref.WeakMethod(method)

    def call(*arguments: object) -> R:
        bound = of_object()
        assert bound is not None, "the object of this method is gone"
        return bound(*arguments)

    return call


class Block(ABC):
    """Models that train together: every parameter, batch and optimiser state has a leading model dimension."""

    @abstractmethod
    def advance(self, step: int, count: int) -> None:
        """Train every model for `count` steps; `step` is the number of optimiser steps done so far.

        It reads nothing back from the device (`jobs.packed.host`) and copies nothing to it: both wait for the device.
        """

    @abstractmethod
    def measure(self) -> Mapping[str, Tensor]:
        """metric -> (M,) values."""

    @abstractmethod
    def keep(self, index: Tensor) -> None:
        """Keep these models only, in this order; (m,) int64 positions in the block, on the host."""

    def save(self) -> Mapping[str, Tensor]:
        """What training has changed and the step does not determine: name -> (M, ...) tensors.

        The ends of their axes may be zero padding. Empty, the default: the block cannot be saved. A block whose whole
        state is an optimiser with its parameters returns `Optimiser.save()`.
        """
        return {}

    def load(self, states: Sequence[TrialState]) -> None:
        """Continue M models from what `save` gave, perhaps with other padding; all have done the same steps.

        Raises:
            StateError: a state does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__}.save gives a state that load does not read")

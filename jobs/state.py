"""The state of a trial in the middle of its training: everything that is needed to continue it elsewhere.

Random numbers are counter-based, so parameters, optimiser state and the step are enough: a continued trial draws the
batches and the noise that it would have drawn. A state belongs to one trial and not to its pack. Any other pack, on any
device, can continue it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class StateError(ValueError):
    """A state cannot be continued: it is incomplete, or belongs to another setting. The trial can start again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialState:
    """One trial between two of its steps."""

    step: int
    """Optimiser steps done. What was due by its schedule up to this step has been reported."""
    arrays: Arrays = field(default_factory=dict)
    """name -> values of this trial alone, without a model dimension."""
    through: int | None = None
    """The last step whose measurements it includes; later ones are reported again. None: all that were reported."""

    def array(self, name: str) -> NDArray[Any]:
        """The array of this name.

        Raises:
            StateError: there is none.
        """
        if name not in self.arrays:
            raise StateError(f"it has no array {name!r}")
        return self.arrays[name]

    def number(self, name: str) -> float:
        """The number of this name.

        Raises:
            StateError: there is none.
        """
        value = self.array(name)
        if value.size != 1:
            raise StateError(f"its array {name!r} must be one number; its shape is {value.shape}")
        return float(value.reshape(-1)[0])

    def under(self, prefix: str) -> TrialState:
        """The arrays whose names begin with `prefix`, without it."""
        held = {name[len(prefix) :]: value for name, value in self.arrays.items() if name.startswith(prefix)}
        return TrialState(step=self.step, arrays=held)


def fitted(saved: NDArray[Any], shape: tuple[int, ...], name: str, *, zero_padded: bool = True) -> NDArray[Any]:
    """An array with another zero padding at the ends of its axes.

    Raises:
        StateError: it does not fit: what would be cut off is not zero (where `zero_padded`), or the number of axes
            differs.
    """
    if saved.shape == shape:
        return saved
    if saved.ndim != len(shape):
        raise StateError(f"its array {name!r} has the shape {saved.shape}, and {shape} is needed")
    common = tuple(slice(min(have, want)) for have, want in zip(saved.shape, shape, strict=True))
    if zero_padded and np.count_nonzero(saved) != np.count_nonzero(saved[common]):
        raise StateError(f"its array {name!r} of shape {saved.shape} does not fit into {shape}")
    padded = np.zeros(shape, dtype=saved.dtype)
    padded[common] = saved[common]
    return padded

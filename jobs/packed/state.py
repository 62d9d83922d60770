"""The states of a block's models, as arrays without a model dimension, and back into tensors.

Shapes: M models of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.packed.host import to_host
from jobs.state import StateError, TrialState, fitted


def per_model(tensors: Mapping[str, Tensor], models: int) -> list[dict[str, NDArray[Any]]]:
    """The arrays of each model, from tensors (M, ...); on a CPU they share memory with the tensors."""
    arrays = {name: to_host(tensor) for name, tensor in tensors.items()}
    return [{name: array[model] for name, array in arrays.items()} for model in range(models)]


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], states: Sequence[TrialState], *, zero_padded: bool = True) -> None:
    """Write the states of M models into tensors (M, ...), with the padding that these have.

    Padding that is cut off must be zero, unless `zero_padded` is False.

    Raises:
        StateError: a state lacks an array, or one of another shape is there.
    """
    for name, tensor in tensors.items():
        for model, state in enumerate(states):
            saved = fitted(state.array(name), tuple(tensor.shape[1:]), name, zero_padded=zero_padded)
            tensor[model] = torch.from_numpy(np.array(saved)).to(tensor)


def common(states: Sequence[TrialState], name: str) -> float:
    """A number that all models of a block share.

    Raises:
        StateError: they do not.
    """
    numbers = {state.number(name) for state in states}
    if len(numbers) != 1:
        raise StateError(f"the number {name!r} differs among trials of one block: {sorted(numbers)}")
    return numbers.pop()


def common_step(states: Sequence[TrialState | None]) -> int:
    """The step at which all trials of a pack continue; 0 where they start.

    Raises:
        StateError: they continue at different steps.
    """
    steps = {0 if state is None else state.step for state in states}
    if len(steps) > 1:
        raise StateError(f"the trials of one pack continue at different steps: {sorted(steps)}")
    return steps.pop() if steps else 0

"""What the host reads from the device."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor


def to_host(values: Tensor) -> NDArray[Any]:
    """The values on the host; on a CPU they share memory with the tensor.

    On a GPU this waits for everything that was launched before. So it is the only read of a pack, at report steps and
    where states are saved: never in `Block.advance`, which `make gpu-dry` checks.
    """
    array: NDArray[Any] = values.detach().cpu().numpy()
    return array

"""Perceptrons of two hidden layers, each trained for many steps by one program of one kernel on a GPU.

The kernel is `jobs.double_descent.kernel`. It is used only where `ENABLED`, on CUDA, where Triton is installed and for
the shapes that `eligible` allows; a captured step (`jobs.packed.capture`) trains everything else.

Shape suffixes: M models, K steps, B batch, N examples, S data sets, D inputs, H padded width, O outputs.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jobs.packed.optim import Adam, Optimiser

ENABLED = False
"""Whether the kernel is used at all; a benchmark compares both."""
WIDEST = 64
"""The largest padded width, and the most inputs, that stay on the chip."""
_OUTPUTS = 16
_LEAST = 16
"""The smallest inner dimension of a matrix product in Triton."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the kernel is compiled for a shape."""

    tile: int
    """Examples at once, a power of two."""
    warps: int
    """Warps of 32 threads per model."""
    resident: bool = True
    """Whether parameters and state stay in registers; otherwise they are in the GPU's cache."""
    precision: str = "ieee"
    """Of matrix products: "ieee" is float32; "tf32x3" is float32 but for some bits, on tensor cores."""


def launch_for(width: int, *, adam: bool) -> Launch:
    """The fastest way that was found for this padded width."""
    return Launch(tile=16, warps=1 if width <= 16 else 4 if width <= 32 else 8, resident=width <= 16 and not adam)


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def kernel() -> Any:
    """The kernel's module, which needs Triton."""
    from jobs.double_descent import kernel

    return kernel


def eligible(weights: list[Tensor]) -> bool:
    """Whether the kernel trains networks with these layers: two hidden ones, and small enough."""
    if len(weights) != 3:
        return False
    inputs, width, outputs = weights[0].shape[1], weights[0].shape[2], weights[2].shape[1]
    return max(inputs, width) <= WIDEST and outputs <= _OUTPUTS


def used_for(weights: list[Tensor]) -> bool:
    """Whether a block with these layers is trained by the kernel."""
    return ENABLED and weights[0].device.type == "cuda" and eligible(weights) and available()


class Trainer:
    """Trains the M models of a block with one launch per call; changes their parameters and optimiser in place."""

    def __init__(
        self,
        weights: list[Tensor],
        optimiser: Optimiser,
        x_SND: Tensor,
        y_MN: Tensor,
        source_M: Tensor,
        *,
        loss: str,
        launch: Launch | None = None,
    ) -> None:
        """Args:
        weights: the layers' matrices (M, D, H), (M, H, H) and (M, O, H), for which `eligible` holds; their memory is
            that of the optimiser's parameters.
        optimiser: of these parameters.
        x_SND: inputs of S data sets.
        y_MN: targets of each model, int64 classes or floats.
        source_M: the data set of each model.
        loss: "cross_entropy", or a squared one, whose factor is in the scales.
        launch: how to compile the kernel; by default `launch_for` the shape.
        """
        self._optimiser = optimiser
        self._x_SND, self._y_MN, self._source_M = x_SND.contiguous(), y_MN.contiguous(), source_M
        inputs, width = weights[0].shape[1:]
        outputs = weights[2].shape[1]
        adam = isinstance(optimiser, Adam)
        launch = launch or launch_for(width, adam=adam)
        # 40 inputs are multiplied as 32 and 8, of which the padding is smaller than that of 64.
        whole = max(_LEAST, 1 << (inputs.bit_length() - 1))
        self._constants: dict[str, Any] = {
            "D": inputs,
            "H": width,
            "O": outputs,
            "D_PAD": whole,
            "D_REST": _padded(inputs - whole) if inputs > whole else 0,
            "H_PAD": _padded(width),
            "O_PAD": _padded(outputs),
            "TILE": launch.tile,
            "CROSS_ENTROPY": loss == "cross_entropy",
            "REGRESSION": y_MN.dtype != torch.int64,
            "ADAM": adam,
            "DECOUPLED": optimiser.settings.kind == "adamw",
            "RESIDENT": launch.resident,
            "PRECISION": launch.precision,
            "num_warps": launch.warps,
            "num_stages": 1,
        }

    def train(self, rows_KMB: Tensor, scales_KM1B: Tensor) -> None:
        """Train K steps.

        Args:
            rows_KMB: the examples of each step, int64; the last dimension is contiguous.
            scales_KM1B: factor of each example's loss gradient; a broadcast view will do.
        """
        steps, models, batch = rows_KMB.shape
        scales = scales_KM1B.expand(steps, models, 1, batch)
        update = self._optimiser.skip(steps)
        kernel().train[(models,)](
            self._optimiser.parameters.flat,
            update.first,
            update.second,
            self._x_SND,
            self._y_MN,
            self._source_M,
            rows_KMB,
            scales,
            update.rate_M,
            update.decay_M,
            update.corrections_K2,
            models,
            steps,
            batch,
            self._x_SND.shape[1],
            self._y_MN.shape[1],
            rows_KMB.stride(0),
            rows_KMB.stride(1),
            scales.stride(0),
            scales.stride(1),
            scales.stride(3),
            update.keep,
            update.second_keep,
            update.second_new,
            **self._constants,
        )


def _padded(size: int) -> int:
    """The next power of two that a matrix product may have."""
    return max(_LEAST, 1 << (size - 1).bit_length())

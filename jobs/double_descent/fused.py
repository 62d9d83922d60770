"""Perceptrons of two hidden layers, each trained for many steps by one program of one kernel on a GPU.

The kernel is `jobs.double_descent.kernel`. It is used on CUDA where `used_for` allows it; a captured step
(`jobs.packed.capture`) trains everything else.

Shape suffixes: M models, K steps, B batch, N examples, S data sets, D inputs, H padded width, O outputs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.packed.optim import Adam, Optimiser

ENABLED = True
"""Whether the kernel is used at all; a benchmark compares both."""
ONLY_MEASURED = True
"""Whether it is used only as `measured` allows; tests and benchmarks use it for everything `eligible`."""
WIDEST = 64
"""The largest padded width, and the most inputs, that stay on the chip."""
FEW = 264
"""Up to so many models, each has more warps: two models on each of the 132 multiprocessors of an H100 or H200, which
are resident at once with four warps of 255 registers a thread."""
_OUTPUTS = 16
_LEAST = 16
"""The smallest inner dimension of a matrix product in Triton."""
_CAPABILITY = (9, 0)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the kernel is compiled for a shape."""

    tile: int
    """Examples at once, a power of two."""
    warps: int
    """Warps of 32 threads per model."""
    resident: bool = False
    """Whether parameters and state stay in registers; otherwise they are in the GPU's cache."""
    precision: str = "ieee"
    """Of matrix products: "ieee" is float32; "tf32x3" is float32 but for some bits, on tensor cores."""


def launch_for(width: int, *, models: int, adam: bool) -> Launch:
    """The fastest way to train this padded width, of those that gave the steps of an eager pack on a GPU.

    SGD: 20 ways were timed with 1,000 and with 100 models on one H200 (inputs 40, batch 100, n = 1 run), and all of
    them had the eager parameters to 1e-7 after 64 steps; between 100 and 1,000 models nothing was timed. Adam: of the
    ways that were checked with it (float32 products only), the fastest for SGD.
    """
    if adam:
        return Launch(tile=16, warps=1 if width <= 16 else 4 if width <= 32 else 8)
    few = models <= FEW
    if width <= 16:
        return Launch(tile=32 if few else 16, warps=2 if few else 1, precision="tf32x3")
    return Launch(tile=16, warps=8 if width > 32 else 4 if few else 2, precision="tf32x3")


def measured(*, inputs: int, width: int, models: int, batch: int, adam: bool) -> bool:
    """Whether the kernel was found to be faster than a captured step for such a pack of this padded width.

    One H200, 40 inputs, batch 100; padded widths 8, 16, 32 and 64; 100, 1,000 and (SGD) 10,000 models. Inputs to 48
    and batches to 128 need the same blocks. Widths of 40 to 56 would be padded to 64, and a captured step may be faster
    there.

    Adam is left out. Up to width 32 the float32 kernels give the eager steps of AdamW, but their speed with it was not
    measured. At 64, parameters and state of AdamW were 1e-3 to 2e-3 off the eager ones after 60 steps, relative. The
    cause appears to be rounding: in both cases that deviated, step 6 has an example whose input to a hidden unit is
    -2.4e-9 in float64, less than the rounding of float32. The unit is on or off for it, and Adam makes steps of the
    size of the learning rate from any gradient. In the first case, the eager float32 pack on a CPU deviates from
    float64 by 9.7e-4 too, and the kernel (interpreted) by 9.5e-7.
    """
    return inputs <= 48 and batch <= 128 and models >= 100 and not adam and (width <= 32 or width == WIDEST)


@cache
def available() -> bool:
    """Whether Triton is installed, and the C compiler and Python's headers with which it makes its launchers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return importlib.util.find_spec("triton") is not None and bool(compiler) and headers.is_file()


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


def used_for(weights: list[Tensor], optimiser: Optimiser, batch: int) -> bool:
    """Whether a block with these layers is trained by the kernel."""
    device = weights[0].device
    if not (ENABLED and device.type == "cuda" and eligible(weights) and available()):
        return False
    models, inputs, width = weights[0].shape
    adam = isinstance(optimiser, Adam)
    return not ONLY_MEASURED or (
        torch.cuda.get_device_capability(device) == _CAPABILITY
        and measured(inputs=inputs, width=width, models=models, batch=batch, adam=adam)
    )


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
        models, inputs, width = weights[0].shape
        outputs = weights[2].shape[1]
        adam = isinstance(optimiser, Adam)
        launch = launch or launch_for(width, models=models, adam=adam)
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

        Raises:
            RuntimeError: the kernel cannot be compiled or launched on this machine.
        """
        steps, models, batch = rows_KMB.shape
        scales = scales_KM1B.expand(steps, models, 1, batch)
        update = self._optimiser.skip(steps)
        try:
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
        except Exception as error:  # of Triton, the C compiler or the driver: all need the same next step
            raise RuntimeError(
                "the Triton kernel for small perceptrons does not run on this machine: "
                f"{type(error).__name__}: {error}. Next: repair Triton (its version, the C compiler, the driver), or "
                "uninstall it (pip uninstall triton): packs are then trained by captured steps"
            ) from error


def _padded(size: int) -> int:
    """The next power of two that a matrix product may have."""
    return max(_LEAST, 1 << (size - 1).bit_length())

"""The peak memory of packs, counted from the tensors that are alive at one time. No torch here.

Each count follows the code whose tensors it counts; `tests/test_memory.py` compares them with what trainings hold.
Beyond the memory that a block holds all the time, there are three phases: it is set up, it trains, it is measured.

Symbols: M models, B batch, K steps that are drawn at once, N training examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMAL_BYTES = 32.0
"""Of one number while `random.normal` draws it."""
UNIFORM_BYTES = 16.0
"""Of one number while `random.uniform` or `random.below` draws it."""
PERMUTED_BYTES = 24.0
"""Of one entry while `random.permutation` orders it."""


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """Bytes of one block."""

    held: float
    """From its set-up to its end."""
    setup: float
    """The most at one time while it is set up, what it holds by then included."""
    work: float
    """The most beyond `held` in a training step or a measurement."""


def pack_bytes(models: int, per_block: int, block_bytes: Callable[[int], BlockBytes]) -> float:
    """Peak bytes of a pack whose blocks are set up one after another, and then train in turns.

    Args:
        models: of the pack.
        per_block: models of a full block.
        block_bytes: models of a block -> its bytes.
    """
    whole, rest = divmod(models, per_block)
    full = block_bytes(per_block if whole else rest)
    if not whole:
        return max(full.setup, full.held + full.work)
    held, peak = whole * full.held, (whole - 1) * full.held + full.setup
    if rest:
        last = block_bytes(rest)
        held, peak = held + last.held, max(peak, held + last.setup)
    return max(peak, held + full.work)


def rounded_bytes(precision: str, device: str, *products: tuple[float, float]) -> float:
    """Peak bytes of the operands of one product that are rounded before it; see `jobs.packed.precision`.

    Args:
        precision: fp32, tf32 or bf16.
        device: a GPU rounds to TF32 within the product.
        products: numbers of the first and of the second operand, which is rounded last, of each product.
    """
    if precision == "fp32" or (precision == "tf32" and device.startswith("cuda")):
        return 0.0
    # While it is rounded, an operand is there twice more to TF32 (it is made contiguous), one and a half times to bf16.
    each = {"tf32": 8.0, "bf16": 6.0}[precision]
    return max(max(each * first, 4.0 * first + each * second) for first, second in products)


def longest_gap(schedule: NDArray[np.int64]) -> int:
    """The largest number of steps between two reports."""
    return int(np.diff(schedule, prepend=0).max())


def drawn_bytes(
    models: int, *, steps: int, horizon: int, batch: int, used: int, order: str, weights: bool = False
) -> tuple[float, float]:
    """(peak bytes while the batches of `steps` steps are drawn, bytes of the rows); see `jobs.packed.batches`.

    `weights`: whether each step has its own (`Batches.step_weights`).
    """
    rows = float(models) * steps * batch
    if batch >= used:
        return 8.0 * models * batch, 8.0 * models * batch
    if order == "cyclic":
        return 24.0 * rows, 8.0 * rows
    if order == "with_replacement":
        return UNIFORM_BYTES * rows, 8.0 * rows
    if order == "whole_epochs":
        epoch = -(-used // batch)
        span = min((steps + epoch - 2) // epoch + 1, -(-horizon // epoch))
    else:
        # The first row of a chunk is at a multiple of the greatest common divisor in its epoch.
        span = (used - math.gcd(batch, used) + steps * batch - 1) // used + 1
        span = min(span, (horizon * batch - 1) // used + 1)
    keys = float(models) * span * used
    drawn = 24.0 * rows + max(24.0 * keys, 16.0 * keys + 16.0 * rows)
    return max(drawn, 26.0 * rows) if weights else drawn, (12.0 if weights else 8.0) * rows

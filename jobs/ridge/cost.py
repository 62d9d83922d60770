"""What a pack of linear models costs, counted from the operations of `jobs.ridge.block`. No torch here."""

from __future__ import annotations

import math

from jobs.job import Cost
from jobs.packed.cost import CACHE_BYTES
from jobs.ridge.params import RidgeParams

GPU_BLOCK_BYTES = 4 << 30
"""Size of the problems of one block on a GPU."""


def problem_bytes(examples: int, features: int, *, dense: bool, wide: bool) -> int:
    """Bytes of one problem that a step of gradient descent touches.

    dense: the features have a matrix of second moments; wide: more features than examples.
    """
    return 8 * ((examples * features if wide else features * features) + dense * features * features + 8 * features)


def pack_cost(params: RidgeParams, *, extent: tuple[int, ...], models: int, reports: int, memory_bytes: float) -> Cost:
    """The cost of `models` linear models padded to `extent` = (examples, features), each on data of its own."""
    n, p = extent
    dense = params.design in ("relu", "fourier")
    wide = params.fitted > params.sample_count
    few, many = min(n, p), max(n, p)
    # Singular value decomposition with both bases (Golub and Van Loan, table 8.6.1).
    solve = 6.0 * many * few**2 + 20.0 * few**3
    moments = 2.0 * p * p * (params.inputs + few) if dense else 0.0
    measure = 4.0 * n * p + (2.0 * p * p if dense else 0.0)
    flop = 2.0 * n * p * (params.inputs if dense else 1) + solve + moments + reports * measure
    elements = 30.0 * n * params.drawn + 8.0 * n * p + (20.0 * p * p if dense else 0.0) + reports * 12.0 * (n + p)
    launches = gpu_launches = 150.0 * math.ceil(models / 16)
    if params.iterative:
        tracked = bool(params.train_level or params.test_level)
        flop += 2.0 * params.steps * ((2 * n * p if wide else p * p) + (p * p if tracked and dense else 0))
        # One model's product with a vector is bound by reading the matrix, not by arithmetic.
        elements += params.steps * ((n * p if wide else p * p) + (8 + 6 * tracked) * p)
        size = problem_bytes(n, p, dense=dense, wide=wide)
        blocks, gpu_blocks = (math.ceil(models / max(1, room // size)) for room in (CACHE_BYTES, GPU_BLOCK_BYTES))
        of_block = 150.0 + params.steps * (6 + 12 * tracked) + reports * 60
        launches, gpu_launches = blocks * of_block, gpu_blocks * of_block
    return Cost(
        launches=launches,
        gpu_launches=gpu_launches,
        matmul_flop=models * flop,
        element_visits=models * elements,
        memory_bytes=memory_bytes,
        steps=params.steps if params.iterative else 0,
        reports=reports,
        at_most=params.iterative and params.stop_at_levels,
    )

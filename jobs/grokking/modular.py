"""Binary operations on a finite set, as tables.

The operations of Power et al. 2022 (appendix A.1.1), modulo p on 0..p-1, or on the 120 permutations of S5:

| name | result |
|---|---|
| add, subtract, multiply | x + y, x - y, x y |
| multiply_nonzero | x y for y > 0 (Lee et al. 2024) |
| divide | the z with y z = x, for the y that have an inverse |
| divide_or_subtract | x / y where y is odd (and has an inverse), x - y where y is even |
| squares | x^2 + y^2 |
| polynomial, polynomial_x | x^2 + x y + y^2, x^2 + x y + y^2 + x |
| cube, cube_y | x^3 + x y, x^3 + x y^2 + y |
| s5, s5_conjugate, s5_xyx | x y, x y x^-1, x y x |

and `sum` of Liu et al. 2022: x + y, not modular (2 p - 1 results), on the unordered pairs x <= y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from jobs.grokking import permutations
from jobs.grokking.permutations import S5_SIZE, Integers

_TOTAL: Mapping[str, Callable[[Integers, Integers], Integers]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "squares": lambda x, y: x * x + y * y,
    "polynomial": lambda x, y: x * x + x * y + y * y,
    "polynomial_x": lambda x, y: x * x + x * y + y * y + x,
    "cube": lambda x, y: x**3 + x * y,
    "cube_y": lambda x, y: x**3 + x * y * y + y,
}
"""Operations modulo p that are defined on every pair, before the modulus is taken."""
OPERATIONS = (*_TOTAL, "divide", "divide_or_subtract", *permutations.TABLES, "sum", "multiply_nonzero")


def set_size(operation: str, modulus: int) -> int:
    """Number of elements that the operation works on."""
    return S5_SIZE if operation in permutations.TABLES else modulus


def result_count(operation: str, modulus: int) -> int:
    """Number of possible results."""
    return 2 * modulus - 1 if operation == "sum" else set_size(operation, modulus)


@lru_cache(maxsize=32)
def operation_pairs(operation: str, modulus: int) -> tuple[Integers, Integers, Integers]:
    """x, y and the result for every pair on which the operation is defined; three (P,) arrays.

    Raises:
        ValueError: no such operation.
    """
    size = set_size(operation, modulus)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
    if operation in permutations.TABLES:
        return x, y, permutations.TABLES[operation]()[x, y]
    if operation == "sum":
        x, y = x[x <= y], y[x <= y]
        return x, y, x + y
    if operation == "multiply_nonzero":
        x, y = x[y > 0], y[y > 0]
        return x, y, x * y % modulus
    if operation in ("divide", "divide_or_subtract"):
        inverse = _inverses(modulus)
        subtracted = (y % 2 == 0) & (operation == "divide_or_subtract")
        kept = subtracted | (inverse[y] >= 0)
        x, y, subtracted = x[kept], y[kept], subtracted[kept]
        return x, y, np.where(subtracted, x - y, x * inverse[y]) % modulus
    if operation not in _TOTAL:
        raise ValueError(f"no operation {operation!r}; valid: {', '.join(OPERATIONS)}")
    return x, y, _TOTAL[operation](x, y) % modulus


def _inverses(modulus: int) -> Integers:
    """(p,) the inverse of each y modulo p; -1 where there is none."""
    return np.array([pow(n, -1, modulus) if math.gcd(n, modulus) == 1 else -1 for n in range(modulus)], dtype=np.int64)


def pair_count(operation: str, modulus: int) -> int:
    """Number of pairs on which the operation is defined."""
    if operation == "sum":
        return modulus * (modulus + 1) // 2
    if operation == "multiply_nonzero":
        return modulus * (modulus - 1)
    if operation in ("divide", "divide_or_subtract"):
        even = operation == "divide_or_subtract"
        return modulus * sum((even and n % 2 == 0) or math.gcd(n, modulus) == 1 for n in range(modulus))
    return set_size(operation, modulus) ** 2

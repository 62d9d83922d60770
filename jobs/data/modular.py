"""Binary operations on a finite set, as tables; their pairs; the split of the pairs.

Modular operations on 0..p-1; `divide` is z with y * z = x (mod p), for the y that have an inverse;
`polynomial` is x^2 + x y + y^2 (Power et al. 2022); `s5` composes permutations of five things.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
OPERATIONS = ("add", "subtract", "multiply", "divide", "polynomial", "s5")
S5_SIZE = 120


def set_size(operation: str, modulus: int) -> int:
    """How many elements the operation works on."""
    return S5_SIZE if operation == "s5" else modulus


@lru_cache(maxsize=32)
def operation_pairs(operation: str, modulus: int) -> tuple[Integers, Integers, Integers]:
    """x, y and the result for every pair on which the operation is defined; three (P,) arrays.

    Raises:
        ValueError: no such operation.
    """
    size = set_size(operation, modulus)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
    if operation == "s5":
        return x, y, _compose_s5()[x, y]
    if operation == "divide":
        invertible = [n for n in range(modulus) if math.gcd(n, modulus) == 1]
        inverse = np.zeros(modulus, dtype=np.int64)
        inverse[invertible] = [pow(n, -1, modulus) for n in invertible]
        kept = np.isin(y, invertible)
        x, y = x[kept], y[kept]
        return x, y, x * inverse[y] % modulus
    results = {
        "add": x + y,
        "subtract": x - y,
        "multiply": x * y,
        "polynomial": x * x + x * y + y * y,
    }
    if operation not in results:
        raise ValueError(f"no operation {operation!r}; there are: {', '.join(OPERATIONS)}")
    return x, y, results[operation] % modulus


def pair_count(operation: str, modulus: int) -> int:
    """How many pairs the operation is defined on."""
    if operation == "divide":
        return modulus * sum(math.gcd(n, modulus) == 1 for n in range(modulus))
    return set_size(operation, modulus) ** 2


def train_count(operation: str, modulus: int, data_fraction: float) -> int:
    """Training pairs: the fraction rounded, at least 1, and at least one pair left to test."""
    pairs = pair_count(operation, modulus)
    return min(max(1, round(data_fraction * pairs)), pairs - 1)


def _compose_s5() -> Integers:
    """(120, 120) table: the permutation x after y, both in lexicographic order."""
    permutations = np.array(list(itertools.permutations(range(5))), dtype=np.int64)
    composed = permutations[:, permutations]
    powers = 5 ** np.arange(5)
    place = np.zeros(5**5, dtype=np.int64)
    place[permutations @ powers] = np.arange(S5_SIZE)
    table: Integers = place[composed @ powers]
    return table

"""The symmetric group S5: its operations as tables (Power et al. 2022, appendix A.1.1).

The 120 permutations are numbered in lexicographic order of (s(0), ..., s(4)); 0 is the identity. The
product x y applies y first: (x y)(k) = x(y(k)).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
S5_SIZE = 120


@lru_cache(maxsize=1)
def product() -> Integers:
    """(120, 120) table of x y."""
    permutations = np.array(list(itertools.permutations(range(5))), dtype=np.int64)
    composed = permutations[:, permutations]
    powers = 5 ** np.arange(5)
    place = np.zeros(5**5, dtype=np.int64)
    place[permutations @ powers] = np.arange(S5_SIZE)
    table: Integers = place[composed @ powers]
    return table


def inverse() -> Integers:
    """(120,) the inverse of each permutation."""
    table: Integers = (product() == 0).argmax(1)
    return table


def conjugate() -> Integers:
    """(120, 120) table of x y x^-1."""
    table: Integers = product()[product(), inverse()[:, None]]
    return table


def sandwich() -> Integers:
    """(120, 120) table of x y x."""
    table: Integers = product()[product(), np.arange(S5_SIZE)[:, None]]
    return table


TABLES: Mapping[str, Callable[[], Integers]] = {"s5": product, "s5_conjugate": conjugate, "s5_xyx": sandwich}
"""Operation -> the function that makes its table."""

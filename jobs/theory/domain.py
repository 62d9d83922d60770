"""Domains of validity of the closed forms."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class DomainError(ValueError):
    """A formula was evaluated outside its domain of validity; the message has the symbol, the rule and the value."""

    def __init__(self, symbol: str, rule: str, value: object) -> None:
        self.symbol, self.rule, self.value = symbol, rule, value
        super().__init__(f"{symbol}: {rule}; got {value!r}")


def at_least(symbol: str, value: ArrayLike, low: float) -> Floats:
    """The value as float64.

    Raises:
        DomainError: a number is not finite, or below `low`.
    """
    array = np.asarray(value, dtype=np.float64)
    if not (np.isfinite(array) & (array >= low)).all():
        raise DomainError(symbol, f"must be a finite number >= {low:g}", value)
    return array


def above(symbol: str, value: ArrayLike, low: float) -> Floats:
    """The value as float64.

    Raises:
        DomainError: a number is not finite, or not above `low`.
    """
    array = np.asarray(value, dtype=np.float64)
    if not (np.isfinite(array) & (array > low)).all():
        raise DomainError(symbol, f"must be a finite number > {low:g}", value)
    return array

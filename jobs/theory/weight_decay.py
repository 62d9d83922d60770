"""Omnigrok's law: generalisation happens when weight decay has reduced the weights to their critical norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from jobs.theory.domain import DomainError, Floats, above


def generalisation_time(
    start_norm: ArrayLike, critical_norm: ArrayLike, *, weight_decay: ArrayLike, learning_rate: ArrayLike = 1.0
) -> Floats:
    """Steps until |w| has fallen from w0 to wc: ln(w0 / wc) / (lr wd), 0 where it starts at or below wc.

    Source: Liu, Michaud, Tegmark 2022, "Omnigrok" (arXiv 2210.01117), section 2, grokking dynamics.
    Domain: decoupled weight decay (AdamW) or an L2 term with vanishing gradient of the loss (the model has fitted its
    data), lr wd << 1, w0 > wc; observed proportional to 1/wd there from 0.03 to 1 (figure 2c).

    Args:
        start_norm: w0 > 0, the norm once the data are fitted.
        critical_norm: wc > 0, the norm at which test loss falls.
        weight_decay: wd > 0.
        learning_rate: lr > 0; with 1 the answer is in units of lr * steps.

    Raises:
        DomainError: an argument is outside its range.
    """
    ratio = above("start_norm", start_norm, 0) / above("critical_norm", critical_norm, 0)
    rate = above("weight_decay", weight_decay, 0) * above("learning_rate", learning_rate, 0)
    return np.asarray(np.maximum(np.log(ratio), 0.0) / rate, dtype=np.float64)


def decay_exponent(weight_decay: ArrayLike, steps: ArrayLike) -> tuple[float, float]:
    """The slope of ln(steps) against ln(weight_decay) by least squares, and its standard error; the law predicts -1.

    Raises:
        DomainError: fewer than three points, equal weight decays, or a value that is not positive.
    """
    x, y = np.log(above("weight_decay", weight_decay, 0)), np.log(above("steps", steps, 0))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3 or np.ptp(x) == 0:
        raise DomainError("weight_decay", "must be three or more, not all equal, as many as steps", weight_decay)
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))

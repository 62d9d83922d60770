"""Losses of a grokking pack, row by row.

StableMax (Prieto et al. 2025, "Grokking at the edge of numerical stability", arXiv 2501.04697) puts
s(x) = x + 1 for x >= 0 and 1 / (1 - x) for x < 0 in the place of exp(x). Its logarithm is
sign(x) log(1 + |x|), so that it is cross-entropy on outputs that have gone through that function.

Shapes: M models, O outputs, B rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_stable(outputs: Tensor) -> Tensor:
    """log s(x) elementwise; its derivative is 1 / (1 + |x|), at 0 too."""
    # Either branch is finite where it is not taken, or the gradient would be NaN.
    return torch.where(outputs >= 0, torch.log1p(outputs.clamp(min=0)), -torch.log1p((-outputs).clamp(min=0)))


def row_loss(outputs_MOB: Tensor, label_MB: Tensor, loss: str) -> Tensor:
    """(M, B) loss of each row: half the squared distance to the one-hot label, or -log of its probability.

    `loss` is "squared", "cross_entropy" (softmax) or "stablemax".
    """
    if loss == "stablemax":
        outputs_MOB = log_stable(outputs_MOB)
    if loss != "squared":
        outputs_MOB = torch.log_softmax(outputs_MOB, 1)
    at_label = outputs_MOB.gather(1, label_MB[:, None, :]).squeeze(1)
    if loss != "squared":
        return -at_label
    return (outputs_MOB.square().sum(1) - 2 * at_label + 1) / 2

"""The losses of the grokking job and their gradients with respect to the outputs.

To add a loss: name it in the choices of `loss` in `params.py`, and write its value and its gradient here. The models
that use autograd need the value alone; the quadratic perceptron, whose backward pass is written out, the gradient too.

Softmax is taken over the last dimension, as in PyTorch's cross-entropy: there the exponentials are added in several
partial sums. Over another dimension they are added one after the other, so that in float32 the small ones beside a 1
are lost: at a loss of 1e-6 of 114 classes a third of it is missing, and at 3e-7 loss and gradient are 0.

Shape suffixes: M models, O outputs, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_stable(outputs: Tensor) -> Tensor:
    """log s(x) of StableMax, elementwise: sign(x) log(1 + |x|); its derivative is 1 / (1 + |x|), at 0 too.

    s(x) = x + 1 for x >= 0 and 1 / (1 - x) for x < 0 replaces exp(x) in the softmax (Prieto et al. 2025, "Grokking at
    the edge of numerical stability", arXiv 2501.04697).
    """
    # Each branch must be finite everywhere: otherwise the gradient of torch.where would be NaN.
    return torch.where(outputs >= 0, torch.log1p(outputs.clamp(min=0)), -torch.log1p((-outputs).clamp(min=0)))


def row_loss(loss: str, outputs_MOB: Tensor, label_MB: Tensor) -> Tensor:
    """(M, B) loss of each row: half the squared distance to the one-hot label, or -log of the label's probability.

    Raises:
        ValueError: `loss` is not known.
    """
    match loss:
        case "squared":
            at = label_MB[:, None, :]
            return (outputs_MOB.square().sum(1) - 2 * outputs_MOB.gather(1, at).squeeze(1) + 1) / 2
        case "cross_entropy":
            scores = outputs_MOB
        case "stablemax":
            scores = log_stable(outputs_MOB)
        case _:
            raise ValueError(f"unknown loss {loss!r}")
    return -torch.log_softmax(scores.transpose(1, 2), 2).gather(2, label_MB[:, :, None]).squeeze(2)


def replace_by_gradient(loss: str, outputs_MOB: Tensor, label_MB: Tensor, minus_one_M1B: Tensor) -> None:
    """Replace the outputs by the gradient of `row_loss` with respect to them.

    Args:
        loss: as in `row_loss`.
        outputs_MOB: changed in place; without padding.
        label_MB: the right answers.
        minus_one_M1B: -1 everywhere, in the outputs' precision.

    Raises:
        ValueError: `loss` is not known.
    """
    slope = None
    match loss:
        case "squared":
            pass
        case "cross_entropy":
            outputs_MOB.copy_(_softmax(outputs_MOB))
        case "stablemax":
            slope = 1 / (1 + outputs_MOB.abs())
            outputs_MOB.copy_(_softmax(log_stable(outputs_MOB)))
        case _:
            raise ValueError(f"unknown loss {loss!r}")
    outputs_MOB.scatter_add_(1, label_MB[:, None, :], minus_one_M1B)
    if slope is not None:
        outputs_MOB *= slope


def _softmax(scores_MOB: Tensor) -> Tensor:
    """(M, O, B) over the outputs."""
    return torch.softmax(scores_MOB.transpose(1, 2), 2).transpose(1, 2)

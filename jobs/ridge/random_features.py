"""Random features of Gaussian inputs, with their exact moments: the population risk needs no test set.

x ~ N(0, I_D). relu: phi = sqrt(2) max(w x, 0), w ~ N(0, I / D). fourier: phi = sqrt(2) cos(w x + b),
w ~ N(0, s^2 I / D), b uniform. Both have second moment about 1. Sources: Rahimi and Recht 2007 (Fourier features);
Cho and Saul 2009, "Kernel methods for deep learning" (the arc-cosine kernel, which is the ReLU's second moment).

Shapes: S data sets, N examples, D inputs, P features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relu_features(x_SND: Tensor, w_SPD: Tensor) -> Tensor:
    """(S, N, P)"""
    return torch.bmm(x_SND, w_SPD.transpose(1, 2)).relu_().mul_(math.sqrt(2.0))


def relu_moments(w_SPD: Tensor, beta_SD: Tensor) -> tuple[Tensor, Tensor]:
    """(S, P, P) E[phi phi'] and (S, P) E[phi (x beta)].

    E[phi_i phi_j] = |w_i| |w_j| (sin a + (pi - a) cos a) / pi, a the angle between them; E[phi x] = w / sqrt(2).
    """
    norm = w_SPD.norm(dim=2)
    unit = w_SPD / norm[:, :, None]
    cosine = torch.bmm(unit, unit.transpose(1, 2)).clamp_(-1.0, 1.0)
    cosine.diagonal(dim1=1, dim2=2).fill_(1.0)
    angle = cosine.acos()
    kernel = (angle.sin() + (math.pi - angle) * cosine) / math.pi
    second = norm[:, :, None] * norm[:, None, :] * kernel
    return second, torch.einsum("spd,sd->sp", w_SPD, beta_SD) / math.sqrt(2.0)


def fourier_features(x_SND: Tensor, w_SPD: Tensor, b_SP: Tensor) -> Tensor:
    """(S, N, P)"""
    return (torch.bmm(x_SND, w_SPD.transpose(1, 2)) + b_SP[:, None, :]).cos_().mul_(math.sqrt(2.0))


def fourier_moments(w_SPD: Tensor, b_SP: Tensor, beta_SD: Tensor) -> tuple[Tensor, Tensor]:
    """(S, P, P) E[phi phi'] and (S, P) E[phi (x beta)].

    E[phi_i phi_j] = cos(b_i + b_j) exp(-|w_i + w_j|^2 / 2) + cos(b_i - b_j) exp(-|w_i - w_j|^2 / 2);
    E[phi x] = -sqrt(2) sin(b) w exp(-|w|^2 / 2).
    """
    inner = torch.bmm(w_SPD, w_SPD.transpose(1, 2))
    square = inner.diagonal(dim1=1, dim2=2)
    both = square[:, :, None] + square[:, None, :]
    plus = (b_SP[:, :, None] + b_SP[:, None, :]).cos() * (-(both + 2 * inner) / 2).exp()
    minus = (b_SP[:, :, None] - b_SP[:, None, :]).cos() * (-(both - 2 * inner) / 2).exp()
    along = torch.einsum("spd,sd->sp", w_SPD, beta_SD)
    return plus + minus, -math.sqrt(2.0) * b_SP.sin() * (-square / 2).exp() * along

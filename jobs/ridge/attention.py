"""One layer of linear attention on linear regression in context, which is linear in p = D (D + 1) features.

A context has l examples z_j ~ N(0, I_D) with y_j = w z_j + noise, and a query z_0. Its features are the products of z_0
with mean(y_j z_j) and mean(y_j^2) / sqrt(D), and its target is y_0. Source: Lu, Letey, Zavatone-Veth, Maiti, Pehlevan
2024 (arXiv 2405.11751), equation of H_Z; there the inputs have variance 1 / D and |w|^2 = D.

Shapes: S data sets, N contexts, L = l + 1 examples, the query first, D inputs, P features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_features(z_SNLD: Tensor, y_SNL: Tensor) -> Tensor:
    """(S, N, P)"""
    examples = z_SNLD.shape[2] - 1
    moment = torch.einsum("snl,snld->snd", y_SNL[:, :, 1:], z_SNLD[:, :, 1:]) / examples
    square = y_SNL[:, :, 1:].square().mean(2, keepdim=True) / math.sqrt(z_SNLD.shape[3])
    return torch.einsum("snd,sne->snde", z_SNLD[:, :, 0], torch.cat([moment, square], 2)).flatten(2)


def attention_moments(inputs: int, examples: int, signal: float, noise: float) -> tuple[Tensor, Tensor, float]:
    """(P,) E phi^2 and (P,) the best coefficients on fresh tasks, uniform on |w|^2 = signal; and the risk of those.

    With v = signal + noise: E mean(y z)_d^2 = signal (1 + 1 / l) / D + v / l, E mean(y^2)^2 = v^2 (1 + 2 / l), and all
    other second moments are 0, because w and -w, and z_0 and -z_0, are as likely. E[phi y_0] is signal / D where both
    places of the product are equal.
    """
    power = signal + noise
    own = signal * (1 + 1 / examples) / inputs + power / examples
    moment, best = torch.full((inputs, inputs + 1), own).double(), torch.zeros(inputs, inputs + 1).double()
    moment[:, -1] = power**2 * (1 + 2 / examples) / inputs
    best.fill_diagonal_(signal / inputs / own)
    return moment.flatten(), best.flatten(), signal - signal**2 / (inputs * own)

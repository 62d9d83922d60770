"""Linear regression problems of one shape, drawn from the trials' seeds, with their population risk.

Every random number is drawn by its place (row, column), so that a problem with more examples or more inputs starts with
the same numbers as one with fewer.

Shapes: S data sets, N examples, D inputs, P features, K models on one data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from jobs.job import as_dict
from jobs.packed import random
from jobs.ridge.attention import attention_features, attention_moments
from jobs.ridge.params import RidgeParams
from jobs.ridge.random_features import fourier_features, fourier_moments, relu_features, relu_moments

_ROW = 1 << 24
_TRAINING = {
    "features",
    "solver",
    "weight_decay",
    "learning_rate",
    "init_scale",
    "steps",
    "curve_points",
    "curve_until",
    "train_level",
    "test_level",
    "stop_at_levels",
}
"""Parameters that do not change the data; of `features`, only the number that is fitted does."""


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Base of dataclasses whose fields are tensors, or such dataclasses, with one common first dimension."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.map(change) if isinstance(v, Tensors) else change(v) for k, v in values.items()})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The parts one after another, each tensor padded with zeros to the largest shape."""
        values: dict[str, Any] = {}
        for f in fields(cls):
            column = [getattr(part, f.name) for part in parts]
            values[f.name] = column[0].join(column) if isinstance(column[0], Tensors) else _joined(column)
        return cls(**values)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    out = tensors[0].new_zeros(sum(map(len, tensors)), *shape)
    start = 0
    for tensor in tensors:
        end = start + len(tensor)
        out[(slice(start, end), *map(slice, tensor.shape[1:]))] = tensor
        start = end
    return out


@dataclass(frozen=True, kw_only=True)
class Population(Tensors):
    """The exact excess risk of a linear model, E (phi theta - x beta)^2."""

    moment: Tensor
    """(S, P) variances of independent features, or (S, P, P) second moments E[phi phi']."""
    target_SP: Tensor
    """The true coefficients of independent features; otherwise E[phi (x beta)]."""
    rest_S: Tensor
    """Risk of the true coefficients (what the features leave out); otherwise E (x beta)^2."""

    def excess_risk(self, theta_SPK: Tensor) -> Tensor:
        """(S, K)"""
        if self.moment.dim() == 2:
            miss = theta_SPK - self.target_SP[:, :, None]
            return torch.einsum("spk,sp->sk", miss.square_(), self.moment) + self.rest_S[:, None]
        linear = torch.einsum("spk,sp->sk", theta_SPK, self.target_SP)
        square = (theta_SPK * torch.bmm(self.moment, theta_SPK)).sum(1)
        # A difference of nearly equal numbers may be rounded to below zero.
        return (self.rest_S[:, None] - 2 * linear + square).clamp_(min=0.0)

    def along(self, v_SPR: Tensor) -> Tensor:
        """(S, R) E (phi v)^2 of each direction."""
        if self.moment.dim() == 2:
            return torch.einsum("spr,sp->sr", v_SPR.square(), self.moment)
        return (v_SPR * torch.bmm(self.moment, v_SPR)).sum(1)

    def zero_risk(self) -> Tensor:
        """(S,) excess risk of the zero model."""
        if self.moment.dim() == 2:
            return (self.moment * self.target_SP.square()).sum(1) + self.rest_S
        return self.rest_S


@dataclass(frozen=True, kw_only=True)
class Problems(Tensors):
    """S regression problems of one shape."""

    x_SNP: Tensor
    y_SN: Tensor
    noise_variance_S: Tensor
    population: Population
    start_SP: Tensor
    """A uniformly random direction of norm 1, of the initial coefficients."""
    u_SNR: Tensor
    """Left singular vectors of x."""
    singular_SR: Tensor
    v_SPR: Tensor
    """Right singular vectors of x."""


def data_key(params: RidgeParams, seed: int) -> tuple[object, ...]:
    """Trials with equal keys have the same problem."""
    return seed, params.fitted, *(value for name, value in as_dict(params).items() if name not in _TRAINING)


def make_problems(params: Sequence[RidgeParams], seeds: Sequence[int], device: str) -> Problems:
    """The problems of trials with the same design, examples, inputs, features, context length and tasks."""
    first = params[0]
    noise_S = torch.tensor([p.noise_variance for p in params], dtype=torch.float64, device=device)
    problem = _contexts if first.design == "linear_attention" else _regression
    phi, y_SN, population = problem(params, seeds, noise_S, device)
    u, singular, vh = torch.linalg.svd(phi, full_matrices=False)
    problems = Problems(
        x_SNP=phi,
        y_SN=y_SN,
        noise_variance_S=noise_S,
        population=population,
        start_SP=_scaled(_normal(seeds, "start", first.fitted, 1, device)[:, :, 0], [1.0] * len(params)),
        u_SNR=u,
        singular_SR=singular,
        v_SPR=vh.transpose(1, 2),
    )
    dtype = torch.float64 if first.precision == "float64" else torch.float32
    return problems.map(lambda tensor: tensor.to(dtype))


def _regression(
    params: Sequence[RidgeParams], seeds: Sequence[int], noise_S: Tensor, device: str
) -> tuple[Tensor, Tensor, Population]:
    """(S, N, P) features and (S, N) targets of linear regression, and what the features are worth."""
    first = params[0]
    n, inputs, fitted = first.sample_count, first.inputs, first.fitted
    variance_SD, beta_SD = _spectrum(params, device), _teachers(params, seeds, device)
    z_SND = _normal(seeds, "inputs", n, inputs, device)
    if first.design == "orthogonal":
        z_SND = torch.linalg.qr(z_SND).Q * math.sqrt(n)
    x_SND = z_SND.mul_(variance_SD.sqrt()[:, None, :])
    if first.design in ("gaussian", "orthogonal"):
        phi = x_SND[:, :, :fitted].contiguous()
        rest = (variance_SD * beta_SD.square())[:, fitted:].sum(1)
        population = Population(moment=variance_SD[:, :fitted], target_SP=beta_SD[:, :fitted], rest_S=rest)
    else:
        phi, population = _random_features(first.design, params, seeds, x_SND, beta_SD, device)
    if first.teacher == "row_space":
        v = torch.linalg.svd(phi, full_matrices=False).Vh.transpose(1, 2)
        projected = torch.einsum("spr,sr->sp", v, torch.einsum("spr,sp->sr", v, beta_SD))
        beta_SD = _scaled(projected, [p.signal for p in params])
        population = replace(population, target_SP=beta_SD)
    noise_SN = _normal(seeds, "target noise", n, 1, device)[:, :, 0] * noise_S.sqrt()[:, None]
    return phi, torch.einsum("snd,sd->sn", x_SND, beta_SD) + noise_SN, population


def _contexts(
    params: Sequence[RidgeParams], seeds: Sequence[int], noise_S: Tensor, device: str
) -> tuple[Tensor, Tensor, Population]:
    """The same of linear attention: the query is the first example of a context."""
    first, signal = params[0], [p.signal for p in params]
    n, inputs, length = first.sample_count, first.inputs, first.context_length + 1
    z_SNLD = _normal(seeds, "inputs", n, first.drawn, device).reshape(-1, n, length, inputs)
    w_SKD = torch.nn.functional.normalize(_normal(seeds, "teacher", first.tasks or n, inputs, device), dim=2)
    if first.tasks:
        keys = random.stream_keys(seeds, "tasks", device)
        which_SN = random.below(keys, torch.arange(n, device=device), first.tasks)
        w_SKD = w_SKD.gather(1, which_SN[:, :, None].expand(-1, -1, inputs))
    w_SND = w_SKD * torch.tensor(signal, dtype=torch.float64, device=device).sqrt()[:, None, None]
    noise_SNL = _normal(seeds, "target noise", n, length, device) * noise_S.sqrt()[:, None, None]
    y_SNL = torch.einsum("snld,snd->snl", z_SNLD, w_SND) + noise_SNL
    moments = [attention_moments(inputs, first.context_length, p.signal, p.noise_variance) for p in params]
    moment, best, rest = zip(*moments, strict=True)
    population = Population(
        moment=torch.stack(moment).to(device),
        target_SP=torch.stack(best).to(device),
        rest_S=torch.tensor(rest, dtype=torch.float64, device=device),
    )
    return attention_features(z_SNLD, y_SNL), y_SNL[:, :, 0], population


def _random_features(
    design: str, params: Sequence[RidgeParams], seeds: Sequence[int], x_SND: Tensor, beta_SD: Tensor, device: str
) -> tuple[Tensor, Population]:
    inputs, fitted = params[0].inputs, params[0].fitted
    w_SPD = _normal(seeds, "random features", fitted, inputs, device) / math.sqrt(inputs)
    if design == "relu":
        phi = relu_features(x_SND, w_SPD)
        second, cross = relu_moments(w_SPD, beta_SD)
    else:
        scale = torch.tensor([p.frequency_scale for p in params], dtype=torch.float64, device=device)
        w_SPD = w_SPD * scale[:, None, None]
        keys = random.stream_keys(seeds, "random phases", device)
        b_SP = random.uniform(keys, torch.arange(fitted, device=device)).double() * (2 * math.pi)
        phi = fourier_features(x_SND, w_SPD, b_SP)
        second, cross = fourier_moments(w_SPD, b_SP, beta_SD)
    return phi, Population(moment=second, target_SP=cross, rest_S=beta_SD.square().sum(1))


def _spectrum(params: Sequence[RidgeParams], device: str) -> Tensor:
    """(S, D) variances of the inputs."""
    inputs = params[0].inputs
    place = torch.arange(1, inputs + 1, dtype=torch.float64, device=device)
    rows = []
    for p in params:
        row = place ** -(p.covariance_exponent if p.covariance == "power_law" else 0.0)
        if p.covariance == "two_scale":
            row[inputs - p.small_features :] = p.small_scale**2
        rows.append(row)
    return torch.stack(rows)


def _teachers(params: Sequence[RidgeParams], seeds: Sequence[int], device: str) -> Tensor:
    """(S, D) true coefficients; for teacher "row_space" they are not projected yet."""
    inputs = params[0].inputs
    place = torch.arange(1, inputs + 1, dtype=torch.float64, device=device)
    raw = _normal(seeds, "teacher", inputs, 1, device)[:, :, 0]
    for row, p in zip(raw, params, strict=True):
        if p.teacher in ("equal", "power_law"):
            row.copy_(place ** -(p.teacher_exponent / 2 if p.teacher == "power_law" else 0.0))
    small_S = torch.tensor([p.small_features for p in params], device=device)
    small = place > (inputs - small_S)[:, None]
    main = _scaled(torch.where(small, 0.0, raw), [p.signal for p in params])
    return main + _scaled(torch.where(small, raw, 0.0), [p.small_signal for p in params])


def _scaled(rows: Tensor, squares: Sequence[float]) -> Tensor:
    """The rows scaled to these squared norms; a row of zeros stays."""
    norm = rows.norm(dim=1).clamp_min_(1e-300)
    scale: Tensor = (torch.tensor(squares, dtype=rows.dtype, device=rows.device).sqrt() / norm)[:, None]
    return rows * scale


def _normal(seeds: Sequence[int], stream: str, rows: int, columns: int, device: str) -> Tensor:
    """(S, rows, columns) float64 standard normal numbers (of float32 precision), each drawn by its place."""
    keys = random.stream_keys(seeds, stream, device)
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return random.normal(keys, (row[:, None] * _ROW + column).unsqueeze(0)).double()

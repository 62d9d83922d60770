"""Gradient descent on ridge regression: models on the same data are columns of one matrix.

Smaller problems are padded with rows and columns of zeros. A padded coefficient has a zero start and a zero gradient,
so it stays zero: padding changes no model.

Shape suffixes: S data sets, N examples, P features, K models on one data set, M models of the block, R min(N, P).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.packed.block import Block
from jobs.packed.host import to_host
from jobs.packed.state import fill
from jobs.ridge.designs import Population, Tensors
from jobs.state import TrialState

_CHECK_STEPS = 64
"""Steps between two checks of whether a crossing is still to be found, on a CPU; on a GPU, which a check would have to
wait for, it is checked at reports."""


@dataclass(frozen=True, kw_only=True)
class PaddedProblems(Tensors):
    """S problems of any sizes in common tensors. Inputs and targets are divided by sqrt(examples)."""

    x_SNP: Tensor
    y_SN: Tensor
    noise_variance_S: Tensor
    population: Population
    start_SP: Tensor
    eigenvalues_SR: Tensor
    """Of x'x (with the division, the sample covariance); zero where padded."""
    spread_SR: Tensor
    """E (phi v)^2 of each eigenvector v."""


@dataclass(frozen=True, kw_only=True)
class RidgeHyperparameters(Tensors):
    """What differs between models on the same data; each (M,), float64."""

    learning_rate: Tensor
    weight_decay: Tensor
    init_scale: Tensor
    train_level: Tensor
    test_level: Tensor


def effective_parameters(
    problems: PaddedProblems, source_M: Tensor, weight_decay_M: Tensor, kept_MR: Tensor | float
) -> Tensor:
    """(M,) n E|s(x)|^2 of the smoother y_hat(x) = s(x)'y, see `jobs.theory.minimum_norm`.

    `kept_MR` is the remaining factor of each mode's initial error, (1 - eta (l + lam))^k; 0 for the solution itself.
    """
    eigen = problems.eigenvalues_SR[source_M]
    rate = eigen + weight_decay_M[:, None]
    # A mode's weight on the targets, times sqrt(n): sqrt(l) / (l + lam), and 0 where there is no mode.
    weight = torch.where(eigen > 0, eigen.sqrt() / rate, 0.0) * (1.0 - kept_MR)
    return (weight.square() * problems.spread_SR[source_M]).sum(1)


class RidgeBlock(Block):
    """M models, each on one of S data sets, trained by full-batch gradient descent from their starts."""

    def __init__(
        self,
        problems: PaddedProblems,
        source_M: Sequence[int],
        hyper: RidgeHyperparameters,
        *,
        wide: bool,
        tracked: bool,
    ) -> None:
        """Args:
        problems: the data sets.
        source_M: the data set of each model.
        hyper: the hyperparameters of each model.
        wide: multiply by x and x' (cheaper with fewer examples than features) and not by x'x.
        tracked: record the first steps at which the levels are reached.
        """
        self._wide, self._tracked = wide, tracked
        self._step = 0
        self._problems, self._hyper = problems, hyper
        self._on_cpu = problems.x_SNP.device.type == "cpu"
        self._looking = tracked
        self._place(source_M)
        self._theta_SPK = problems.start_SP[:, :, None] * self._lay(hyper.init_scale)[:, None, :]
        self._crossed = [torch.full_like(self._lay(hyper.init_scale).double(), torch.nan) for _ in range(2)]

    def _place(self, source_M: Sequence[int]) -> None:
        """Set the data set of each model, its column among those of the data set, and what a step needs."""
        problems = self._problems
        counts: dict[int, int] = {}
        columns = []
        for s in source_M:
            columns.append(counts.get(s, 0))
            counts[s] = columns[-1] + 1
        self._host_source_M = np.asarray(source_M)
        self._source_M, self._column_M = (torch.tensor(m, device=problems.x_SNP.device) for m in (source_M, columns))
        self._width = max(counts.values())
        x, y = problems.x_SNP, problems.y_SN
        self._rate_S1K = self._lay(self._hyper.learning_rate)[:, None, :]
        self._shrink_S1K = 1.0 - self._rate_S1K * self._lay(self._hyper.weight_decay)[:, None, :]
        self._power_S1 = y.square().sum(1, keepdim=True)
        self._zero_risk_S1 = problems.population.zero_risk()[:, None]
        self._levels = [self._lay(self._hyper.train_level), self._lay(self._hyper.test_level)]
        if not self._wide:
            self._gram_SPP = torch.bmm(x.transpose(1, 2), x)
            self._moment_SP1 = torch.bmm(x.transpose(1, 2), y[:, :, None])

    def _lay(self, values_M: Tensor) -> Tensor:
        """(S, K) the values of the models at their places; 0 where there is no model."""
        x = self._problems.x_SNP
        laid = torch.zeros(len(x), self._width, dtype=x.dtype, device=x.device)
        laid[self._source_M, self._column_M] = values_M.to(laid)
        return laid

    def _of_models(self, values_SK: Tensor) -> Tensor:
        return values_SK[self._source_M, self._column_M]

    def keep(self, index: Tensor) -> None:
        kept_sets, source_M = np.unique(self._host_source_M[index.numpy()], return_inverse=True)
        index = index.to(self._source_M.device)
        theta_MP = self._theta_SPK.transpose(1, 2)[self._source_M, self._column_M][index]
        crossed = [self._of_models(c)[index] for c in self._crossed]
        self._hyper = self._hyper.map(lambda values: values[index])
        if len(kept_sets) < len(self._problems.x_SNP):
            sets = torch.from_numpy(kept_sets).to(index.device)
            self._problems = self._problems.map(lambda values: values[sets])
        self._place(source_M.tolist())
        shape = (len(kept_sets), self._width, theta_MP.shape[1])
        laid = torch.zeros(shape, dtype=theta_MP.dtype, device=theta_MP.device)
        laid[self._source_M, self._column_M] = theta_MP
        self._theta_SPK = laid.transpose(1, 2).contiguous()
        for which, values_M in enumerate(crossed):
            laid_SK = torch.full((len(kept_sets), self._width), torch.nan, dtype=torch.float64, device=theta_MP.device)
            laid_SK[self._source_M, self._column_M] = values_M
            self._crossed[which] = laid_SK

    def save(self) -> Mapping[str, Tensor]:
        saved = {"coefficients": self._theta_SPK.transpose(1, 2)[self._source_M, self._column_M]}
        if self._tracked:
            saved["crossed"] = torch.stack([self._of_models(crossed) for crossed in self._crossed], 1)
        return saved

    def load(self, states: Sequence[TrialState]) -> None:
        saved = self.save()  # copies of the values before
        fill(saved, states)
        self._theta_SPK.transpose(1, 2)[self._source_M, self._column_M] = saved["coefficients"]
        for which, crossed in enumerate(self._crossed if self._tracked else ()):
            crossed[self._source_M, self._column_M] = saved["crossed"][:, which]
        self._step, self._looking = states[0].step, self._tracked

    @torch.no_grad()
    def advance(self, step: int, count: int) -> None:
        theta, x, y_SN1 = self._theta_SPK, self._problems.x_SNP, self._problems.y_SN[:, :, None]
        x_t = x.transpose(1, 2)
        for k in range(step, step + count):
            if self._tracked and self._on_cpu and (k - step) % _CHECK_STEPS == 0:
                self._looking = self._uncrossed()
            if self._wide:
                residual = torch.baddbmm(y_SN1, x, theta, beta=-1.0)
                if self._looking:
                    self._note(k, residual.square().sum(1))
                gradient = torch.bmm(x_t, residual)
            else:
                gradient = torch.baddbmm(self._moment_SP1, self._gram_SPP, theta, beta=-1.0)
                if self._looking:
                    self._note(k, ((gradient - self._moment_SP1) * theta).sum(1) + self._power_S1)
            theta.mul_(self._shrink_S1K).sub_(gradient.mul_(self._rate_S1K))
        self._step = step + count

    def _uncrossed(self) -> bool:
        pending = [
            (self._of_models(crossed.isnan()) & (self._of_models(level) > 0)).any()
            for crossed, level in zip(self._crossed, self._levels, strict=True)
        ]
        return bool(to_host(pending[0] | pending[1]))

    def _note(self, step: int, train_loss_SK: Tensor) -> None:
        """Record the step where it is the first at which a level is reached."""
        excess = self._problems.population.excess_risk(self._theta_SPK)
        relative = (train_loss_SK / self._power_S1, excess / self._zero_risk_S1)
        for crossed, value, level in zip(self._crossed, relative, self._levels, strict=True):
            # A level of 0 means none, and is not reached even by a loss of exactly zero.
            crossed[(value <= level) & (level > 0) & crossed.isnan()] = float(step)

    @torch.no_grad()
    def measure(self) -> Mapping[str, Tensor]:
        """The job's metrics; losses are mean squared errors, `test_loss` the exact one on fresh noisy examples."""
        problems, theta = self._problems, self._theta_SPK
        residual = torch.baddbmm(problems.y_SN[:, :, None], problems.x_SNP, theta, beta=-1.0)
        train_SK = residual.square().sum(1)
        if self._tracked:
            self._note(self._step, train_SK)
            self._looking = self._on_cpu or self._uncrossed()
        excess_SK = problems.population.excess_risk(theta)
        hyper = self._hyper
        eigen = problems.eigenvalues_SR[self._source_M].double()
        rate = hyper.learning_rate.to(eigen)[:, None] * (eigen + hyper.weight_decay.to(eigen)[:, None])
        kept = ((1.0 - rate) ** self._step).to(theta.dtype)
        return {
            "train_loss": self._of_models(train_SK),
            "test_loss": self._of_models(excess_SK + problems.noise_variance_S[:, None]),
            "excess_risk": self._of_models(excess_SK),
            "relative_train_loss": self._of_models(train_SK / self._power_S1),
            "weight_norm": self._of_models(theta.norm(dim=1)),
            "effective_parameters": effective_parameters(problems, self._source_M, hyper.weight_decay.to(theta), kept),
            "train_level_step": self._of_models(self._crossed[0]),
            "test_level_step": self._of_models(self._crossed[1]),
        }

"""Solves or trains the models of a ridge pack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from jobs.job import Member, Report, log_spaced_steps
from jobs.packed.cost import CACHE_BYTES
from jobs.packed.host import to_host
from jobs.packed.loop import run_blocks
from jobs.ridge.block import PaddedProblems, RidgeBlock, RidgeHyperparameters, effective_parameters
from jobs.ridge.cost import GPU_BLOCK_BYTES, problem_bytes
from jobs.ridge.designs import Problems, data_key, make_problems
from jobs.ridge.memory import drawn_at_once
from jobs.ridge.params import RidgeParams

Groups = list[list[int]]
"""Positions of the trials on each data set."""


def train(pack: Sequence[Member[RidgeParams]], device: str) -> Iterator[Report]:
    """Reports of all members; see `jobs.job.Job.train`."""
    by_data: dict[tuple[object, ...], list[int]] = {}
    for position, member in enumerate(pack):
        by_data.setdefault(data_key(member.params, member.seed), []).append(position)
    groups, first = list(by_data.values()), pack[0].params
    if not first.iterative:
        yield from _solve_all(pack, groups, device)
        return
    schedules = [log_spaced_steps(m.params.horizon, m.params.curve_points, m.params.curve_until) for m in pack]
    stop = {"train_level_step": 0.0, "test_level_step": 0.0} if first.stop_at_levels else None
    blocks = [_block(pack, part, device) for part in _blocks(pack, groups, device)]
    yield from run_blocks(blocks, schedules, watch="train_loss", stop=stop, saved=[m.state for m in pack])


def _solve_all(pack: Sequence[Member[RidgeParams]], groups: Groups, device: str) -> Iterator[Report]:
    """The solutions themselves, one report for all that are decomposed at once."""
    for problems, part in _drawn(pack, groups, device):
        positions = list(chain.from_iterable(part))
        source = torch.tensor([s for s, group in enumerate(part) for _ in group], device=device)
        values = _solve(problems, source, [pack[position].params.weight_decay for position in positions])
        at = np.asarray(positions, dtype=np.int64)
        measured = {name: to_host(value.double()) for name, value in values.items()}
        yield Report(step=1, members=at, values=measured, finished=at)


def _solve(problems: Problems, source_M: Tensor, weight_decay: Sequence[float]) -> Mapping[str, Tensor]:
    """The job's metrics of the ridge solutions, or of the minimum-norm ones where there is no weight decay."""
    padded = _padded([problems])
    x, y = problems.x_SNP, problems.y_SN
    decay_M = torch.tensor(weight_decay, dtype=x.dtype, device=x.device)
    eigen_MR = padded.eigenvalues_SR[source_M]
    root = math.sqrt(x.shape[1])
    # theta = V diag(s / (s^2 + n lam)) U'y; a mode that exists by rounding alone is left out.
    gain_MR = torch.where(eigen_MR > 0, problems.singular_SR[source_M] / root / (eigen_MR + decay_M[:, None]), 0.0)
    along_SR = torch.einsum("snr,sn->sr", problems.u_SNR, y) / root
    theta_MP = torch.bmm(problems.v_SPR[source_M], (gain_MR * along_SR[source_M])[:, :, None])[:, :, 0]
    residual = torch.bmm(x[source_M], theta_MP[:, :, None])[:, :, 0] - y[source_M]
    train_M = residual.square().mean(1)
    population = problems.population.map(lambda values: values[source_M])
    excess_M = population.excess_risk(theta_MP[:, :, None])[:, 0]
    never = torch.full_like(train_M, torch.nan)
    return {
        "train_loss": train_M,
        "test_loss": excess_M + problems.noise_variance_S[source_M],
        "excess_risk": excess_M,
        "relative_train_loss": train_M / y.square().mean(1)[source_M],
        "weight_norm": theta_MP.norm(dim=1),
        "effective_parameters": effective_parameters(padded, source_M, decay_M, 0.0),
        "train_level_step": never,
        "test_level_step": never,
    }


def _drawn(pack: Sequence[Member[RidgeParams]], groups: Groups, device: str) -> Iterator[tuple[Problems, Groups]]:
    """The problems of one shape after another, each with the groups that it belongs to."""
    shapes: dict[tuple[object, ...], Groups] = {}
    for group in groups:
        p = pack[group[0]].params
        shape = (p.sample_count, p.inputs, p.fitted, p.teacher == "row_space", p.context_length, p.tasks)
        shapes.setdefault(shape, []).append(group)
    for same in shapes.values():
        p = pack[same[0][0]].params
        size = drawn_at_once(p, p.sample_count, p.fitted)
        for start in range(0, len(same), size):
            part = same[start : start + size]
            members = [pack[group[0]] for group in part]
            yield make_problems([m.params for m in members], [m.seed for m in members], device), part


def _blocks(pack: Sequence[Member[RidgeParams]], groups: Groups, device: str) -> Iterator[Groups]:
    """Groups that train together, of similar sizes: as many as fit a core's cache."""

    def order(group: list[int]) -> tuple[int, int, int, int]:
        p = pack[group[0]].params
        return len(group), p.fitted, p.sample_count, p.inputs

    room = CACHE_BYTES if device.startswith("cpu") else GPU_BLOCK_BYTES
    block: Groups = []
    used = 0
    for group in sorted(groups, key=order):
        p = pack[group[0]].params
        dense, wide = p.design in ("relu", "fourier"), p.fitted > p.sample_count
        size = problem_bytes(p.sample_count, p.fitted, dense=dense, wide=wide) + 8 * p.fitted * len(group)
        if block and used + size > room:
            yield block
            block, used = [], 0
        block.append(group)
        used += size
    yield block


def _block(pack: Sequence[Member[RidgeParams]], groups: Groups, device: str) -> tuple[RidgeBlock, list[int]]:
    """The block of these groups, and the positions of its models in the pack."""
    drawn = list(_drawn(pack, groups, device))
    ordered = [group for _, part in drawn for group in part]
    positions = list(chain.from_iterable(ordered))
    params = [pack[position].params for position in positions]
    source = [s for s, group in enumerate(ordered) for _ in group]
    values = {
        f.name: torch.tensor([getattr(p, f.name) for p in params], dtype=torch.float64, device=device)
        for f in fields(RidgeHyperparameters)
    }
    wide, tracked = params[0].fitted > params[0].sample_count, any(p.train_level or p.test_level for p in params)
    problems = _padded([problems for problems, _ in drawn])
    return RidgeBlock(problems, source, RidgeHyperparameters(**values), wide=wide, tracked=tracked), positions


def _padded(parts: Sequence[Problems]) -> PaddedProblems:
    """The problems in common tensors, in the order given."""
    padded = []
    for part in parts:
        n, p = part.x_SNP.shape[1:]
        root, singular = math.sqrt(n), part.singular_SR
        cut = torch.finfo(singular.dtype).eps * max(n, p) * singular[:, :1]
        padded.append(
            PaddedProblems(
                x_SNP=part.x_SNP / root,
                y_SN=part.y_SN / root,
                noise_variance_S=part.noise_variance_S,
                population=part.population,
                start_SP=part.start_SP,
                eigenvalues_SR=torch.where(singular > cut, (singular / root).square(), 0.0),
                spread_SR=part.population.along(part.v_SPR),
            )
        )
    return PaddedProblems.join(padded)

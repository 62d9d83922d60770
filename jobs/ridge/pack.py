"""Solves or trains the models of a ridge pack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.job import Member, Report, log_spaced_steps
from jobs.packed.cost import CACHE_BYTES
from jobs.packed.loop import run_blocks
from jobs.ridge.block import PaddedProblems, RidgeBlock, Settings, effective_parameters
from jobs.ridge.cost import problem_bytes
from jobs.ridge.designs import Population, Problems, data_key, make_problems
from jobs.ridge.params import RidgeParams

_DRAWN_BYTES = 64 << 20
"""Inputs that are drawn and decomposed at once."""
_GPU_BYTES = 4 << 30
"""Problems of one block on a GPU."""

Groups = list[tuple[tuple[object, ...], list[int]]]


def train(pack: Sequence[Member[RidgeParams]], device: str) -> Iterator[Report]:
    """Reports of all members; see `jobs.job.Job.train`."""
    sets: dict[tuple[object, ...], list[int]] = {}
    for position, member in enumerate(pack):
        sets.setdefault(data_key(member.params, member.seed), []).append(position)
    first = pack[0].params
    if not first.iterative:
        yield from _solve_all(pack, sets, device)
        return
    schedules = [log_spaced_steps(m.params.horizon, m.params.curve_points) for m in pack]
    stop = {"train_level_step": 0.0, "test_level_step": 0.0} if first.stop_at_levels else None
    blocks = []
    for groups in _blocks(pack, sets, device):
        positions = [position for _, members in groups for position in members]
        blocks.append((_block(pack, groups, device), positions))
    yield from run_blocks(blocks, schedules, watch="train_loss", stop=stop)


def _solve_all(
    pack: Sequence[Member[RidgeParams]], sets: Mapping[tuple[object, ...], list[int]], device: str
) -> Iterator[Report]:
    """The solutions themselves, one report for as many as are decomposed at once."""
    for problems, groups in _drawn(pack, list(sets.items()), device):
        positions = [position for _, members in groups for position in members]
        source = torch.tensor([s for s, (_, members) in enumerate(groups) for _ in members], device=device)
        values = _solve(problems, source, [pack[position].params.weight_decay for position in positions])
        at = np.asarray(positions, dtype=np.int64)
        measured = {name: value.double().cpu().numpy() for name, value in values.items()}
        yield Report(step=1, members=at, values=measured, finished=at)


def _solve(problems: Problems, source_M: Tensor, weight_decay: Sequence[float]) -> Mapping[str, Tensor]:
    """The job's metrics of the ridge solutions, or of the minimum-norm ones where there is no weight decay."""
    padded = _padded([problems])
    x, y = problems.x_SNP, problems.y_SN
    decay_M = torch.tensor(weight_decay, dtype=x.dtype, device=x.device)
    eigen_MR = padded.eigenvalues_SR[source_M]
    root = math.sqrt(x.shape[1])
    # theta = V diag(s / (s^2 + n lam)) U'y; a mode that rounding made out of nothing is left out.
    gain_MR = torch.where(eigen_MR > 0, problems.singular_SR[source_M] / root / (eigen_MR + decay_M[:, None]), 0.0)
    along_SR = torch.einsum("snr,sn->sr", problems.u_SNR, y) / root
    theta_MP = torch.bmm(problems.v_SPR[source_M], (gain_MR * along_SR[source_M])[:, :, None])[:, :, 0]
    residual = torch.bmm(x[source_M], theta_MP[:, :, None])[:, :, 0] - y[source_M]
    train_M = residual.square().mean(1)
    population = padded.population
    each = Population(
        moment=population.moment[source_M], target_SP=population.target_SP[source_M], rest_S=population.rest_S[source_M]
    )
    excess_M = each.excess_risk(theta_MP[:, :, None])[:, 0]
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
    """The problems of one shape after another, with the groups (key, positions) that they belong to."""
    shapes: dict[tuple[object, ...], Groups] = {}
    for key, members in groups:
        p = pack[members[0]].params
        shapes.setdefault((p.sample_count, p.inputs, p.fitted, p.teacher == "row_space"), []).append((key, members))
    for same in shapes.values():
        p = pack[same[0][1][0]].params
        dense = p.design in ("relu", "fourier")
        each = 8 * (p.sample_count * (p.inputs + 2 * p.fitted) + dense * p.fitted * (p.inputs + 3 * p.fitted))
        size = max(1, _DRAWN_BYTES // each)
        for start in range(0, len(same), size):
            part = same[start : start + size]
            ones = [pack[positions[0]] for _, positions in part]
            yield make_problems([one.params for one in ones], [one.seed for one in ones], device), part


def _blocks(
    pack: Sequence[Member[RidgeParams]], sets: Mapping[tuple[object, ...], list[int]], device: str
) -> Iterator[Groups]:
    """Data sets that train together: as many as a core's cache holds, neighbours in size and in models."""

    def order(group: tuple[tuple[object, ...], list[int]]) -> tuple[int, int, int, int]:
        p = pack[group[1][0]].params
        return len(group[1]), p.fitted, p.sample_count, p.inputs

    room = CACHE_BYTES if device.startswith("cpu") else _GPU_BYTES
    taken: Groups = []
    used = 0
    for key, members in sorted(sets.items(), key=order):
        p = pack[members[0]].params
        dense, wide = p.design in ("relu", "fourier"), p.fitted > p.sample_count
        bytes_ = problem_bytes(p.sample_count, p.fitted, dense=dense, wide=wide) + 8 * p.fitted * len(members)
        if taken and used + bytes_ > room:
            yield taken
            taken, used = [], 0
        taken.append((key, members))
        used += bytes_
    yield taken


def _block(pack: Sequence[Member[RidgeParams]], groups: Groups, device: str) -> RidgeBlock:
    """The block of these groups; its models are the groups' members, in order."""
    parts: list[Problems] = []
    rank: dict[tuple[object, ...], int] = {}
    for problems, part in _drawn(pack, groups, device):
        for key, _ in part:
            rank[key] = len(rank)
        parts.append(problems)
    params = [pack[position].params for _, members in groups for position in members]

    def of(name: str) -> Tensor:
        return torch.tensor([getattr(p, name) for p in params], dtype=torch.float64, device=device)

    first = params[0]
    return RidgeBlock(
        _padded(parts),
        [rank[key] for key, members in groups for _ in members],
        Settings(
            learning_rate=of("learning_rate"),
            weight_decay=of("weight_decay"),
            init_scale=of("init_scale"),
            train_level=of("train_level"),
            test_level=of("test_level"),
        ),
        wide=first.fitted > first.sample_count,
        tracked=any(p.train_level or p.test_level for p in params),
    )


def _padded(parts: Sequence[Problems]) -> PaddedProblems:
    """The problems in common tensors, in the order given."""
    examples, features = (max(part.x_SNP.shape[axis] for part in parts) for axis in (1, 2))
    rank = max(part.singular_SR.shape[1] for part in parts)
    columns: dict[str, list[Tensor]] = {}

    def add(name: str, tensor: Tensor, *shape: int) -> None:
        out = torch.zeros(len(tensor), *shape, dtype=tensor.dtype, device=tensor.device)
        out[(slice(None), *(slice(0, length) for length in tensor.shape[1:]))] = tensor
        columns.setdefault(name, []).append(out)

    for part in parts:
        n, p = part.x_SNP.shape[1:]
        root = math.sqrt(n)
        add("x", part.x_SNP / root, examples, features)
        add("y", part.y_SN / root, examples)
        add("examples", torch.full_like(part.noise_variance_S, n))
        add("noise", part.noise_variance_S)
        dense = part.population.moment.dim() == 3
        add("moment", part.population.moment, *((features, features) if dense else (features,)))
        add("target", part.population.target_SP, features)
        add("rest", part.population.rest_S)
        add("start", part.start_SP, features)
        singular = part.singular_SR
        cut = torch.finfo(singular.dtype).eps * max(n, p) * singular[:, :1]
        add("eigenvalues", torch.where(singular > cut, (singular / root).square(), 0.0), rank)
        add("spread", part.population.along(part.v_SPR), rank)
    joined = {name: torch.cat(tensors) for name, tensors in columns.items()}
    return PaddedProblems(
        x_SNP=joined["x"],
        y_SN=joined["y"],
        examples_S=joined["examples"],
        noise_variance_S=joined["noise"],
        population=Population(moment=joined["moment"], target_SP=joined["target"], rest_S=joined["rest"]),
        start_SP=joined["start"],
        eigenvalues_SR=joined["eigenvalues"],
        spread_SR=joined["spread"],
    )

"""Builds and trains the blocks of a pack: stacked models, or one model at a time where that is faster or necessary.

How many models are stacked is measured: the fastest of one at a time, as many as memory is well used by, and a quarter
of them, timed for the first pack of its kind in this process. All of them compute the same curves.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.job import Member, Report, log_spaced_steps
from jobs.module.base import ModuleScience
from jobs.module.block import ModuleBlock, SingleBlock, StackedBlock
from jobs.module.cost import models_stacked, profile_of
from jobs.module.data import Data, Random
from jobs.module.examples import layout
from jobs.module.fit import check_fit
from jobs.module.graph import Graphs
from jobs.module.network import Network
from jobs.module.operations import without_fallback
from jobs.module.shared import ParamsDiffer, kind_of, shared_values
from jobs.packed.loop import run_blocks
from jobs.packed.precision import products

_TIMED_STEPS = 32
"""Of all models that are timed together; at least 2 and at most 8 of each."""
_SHORT_STEPS = 100
"""A pack of fewer steps is not timed."""
_MEASURED_SHARE = 0.002
"""Measurements a step from which on they are timed too: one can take as long as ten or twenty steps."""
_RECORDED_FROM_S = 10.0
"""A group whose training takes less is not recorded: a recording takes a second or two."""
GAIN = 0.97
"""Models are stacked if a step of one of them takes less than this share of its step alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A member of a pack with its network and data."""

    position: int
    member: Member[Any]
    network: Network
    data: Data


def train(job: ModuleScience, pack: Sequence[Member[Any]], device: str) -> Iterator[Report]:
    """Reports of all members; see `jobs.job.Job.train`.

    Where a method of the job reads a parameter in which stacked trials differ, for the first time, all start again with
    such trials apart; what has been reported is not reported again.
    """
    newest, done = -1, np.full(len(pack), -1, dtype=np.int64)
    while True:
        try:
            for report in _reports(job, pack, device):
                if len(report.members):
                    new = report.members[done[report.members] < report.step]
                    if not len(new):
                        continue
                    done[new] = report.step
                    kept = np.isin(report.members, new)
                    ended = report.finished[np.isin(report.finished, new)]
                    values = {name: value[kept] for name, value in report.values.items()}
                    report = replace(report, members=new, values=values, finished=ended)
                    done[ended] = np.iinfo(np.int64).max
                elif report.step < newest:
                    continue
                newest = max(newest, report.step)
                yield report
            return
        except ParamsDiffer:
            continue


def _reports(job: ModuleScience, pack: Sequence[Member[Any]], device: str) -> Iterator[Report]:
    first = pack[0].params
    blocks: list[tuple[ModuleBlock, Sequence[int]]] = []
    for group in groups_of(job, [trial_of(job, k, member) for k, member in enumerate(pack)]):
        way = _way(job, group, device)
        blocks += [(_block(job, part, device, way), [t.position for t in part]) for part in _parts(group, way.size)]
    schedules = [log_spaced_steps(m.params.steps, m.params.curve_points) for m in pack]
    level = first.stop_accuracy
    stop = {"train_accuracy": level, "test_accuracy": level} if level else None
    yield from run_blocks(
        blocks,
        schedules,
        watch="train_loss",
        stop=stop,
        precision=first.matmul_precision,
        saved=[m.state for m in pack],
    )


def trial_of(job: ModuleScience, position: int, member: Member[Any]) -> Trial:
    """A member with its network and data.

    Raises:
        TypeError: the job returns no module, or no data.
        ValueError: the outputs do not fit the targets.
    """
    data = job.data(member.params, Random.of_seed(member.seed))
    if not isinstance(data, Data):
        raise TypeError(f"{type(job).__name__}.data must return Data(train=..., test=...); got {type(data).__name__}")
    check_fit(job, member, data)
    return Trial(position=position, member=member, network=Network.of(job, member), data=data)


def groups_of(job: ModuleScience, trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials whose networks have one structure, whose data have one layout, and that share what the job reads."""
    if len(trials) > 1:
        why_alone(job, trials[0].member.params)  # shows what the job reads
    groups: list[list[Trial]] = []
    for trial in trials:
        shared = shared_values(job, trial.member.params)
        for group in groups:
            first = group[0]
            if shared != shared_values(job, first.member.params):
                continue
            if layout(first.data) == layout(trial.data) and not first.network.difference(trial.network):
                group.append(trial)
                break
        else:
            groups.append([trial])
    return groups


def _parts(group: Sequence[Trial], size: int) -> list[Sequence[Trial]]:
    """The group in parts of about equal size, at most `size`; trials that end together are neighbours."""
    ordered = sorted(group, key=lambda trial: trial.member.params.steps)
    count = -(-len(ordered) // size)
    return [ordered[k * len(ordered) // count : (k + 1) * len(ordered) // count] for k in range(count)]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the models of one kind of pack are trained."""

    size: int
    """How many are stacked; 1: one at a time."""
    recorded: bool = False
    """Whether stacked ones are replayed from a recording."""
    graphs: Graphs = field(default_factory=dict, compare=False, repr=False)
    """The recordings of these networks."""


def _block(job: ModuleScience, trials: Sequence[Trial], device: str, way: Way) -> ModuleBlock:
    params = trials[0].member.params
    row_bytes = profile_of(job, params).row_bytes
    of = job, [t.member for t in trials], [t.network for t in trials], [t.data for t in trials], device, row_bytes
    if len(trials) > 1:
        return StackedBlock(*of, graphs=way.graphs if way.recorded else None)
    block = SingleBlock(*of)
    block.seeds_generator = bool(why_alone(job, params))
    return block


_CHOSEN: dict[tuple[Any, ...], tuple[Way, Network]] = {}
"""Kind of pack -> how it was found to train fastest in this process, and one of its networks."""


def _way(job: ModuleScience, group: Sequence[Trial], device: str) -> Way:
    """How a group of trials is trained."""
    params = group[0].member.params
    if len(group) == 1 or why_alone(job, params):
        return Way(size=1)
    kind = (*kind_of(job, params), shared_values(job, params), device)
    if kind not in _CHOSEN:
        if params.steps < _SHORT_STEPS:
            return Way(size=min(len(group), models_stacked(job, params, device)))
        with products(params.matmul_precision):
            _CHOSEN[kind] = fastest(job, group, device)[0], group[0].network
    way, network = _CHOSEN[kind]
    return way if not network.difference(group[0].network) else replace(way, graphs={})


def fastest(job: ModuleScience, group: Sequence[Trial], device: str) -> tuple[Way, dict[Way, float]]:
    """The way in which a step is shortest for each model, and the seconds of the ways that were timed.

    Those of one at a time are multiplied by `GAIN`.
    """
    alone = Way(size=1)
    times = {alone: _step_s(job, group[:1], device, alone) * GAIN}
    if why_alone(job, group[0].member.params):
        return alone, times
    most = min(len(group), models_stacked(job, group[0].member.params, device))
    sizes = {most, max(2, most // 4)} - {1}
    for size in sizes:
        times[Way(size=size)] = _step_s(job, group[:size], device, Way(size=size))
    best = min(times, key=lambda way: times[way])
    steps = sum(trial.member.params.steps for trial in group)
    if times[best] * steps > _RECORDED_FROM_S:
        for size in sizes:
            way = Way(size=size, recorded=True)
            times[way] = _step_s(job, group[: way.size], device, way)
        best = min(times, key=lambda way: times[way])
    return best, times


def _step_s(job: ModuleScience, trials: Sequence[Trial], device: str, way: Way) -> float:
    """Seconds of one step of one model in a block of these trials, which are not changed, with its share of the
    measurements where that matters."""
    block = _block(job, [replace(t, network=Network.of(job, t.member)) for t in trials], device, way)
    count = min(8, max(2, _TIMED_STEPS // len(trials)))
    steps = block.steps(0, 2 + 3 * count)

    def train() -> None:
        for _ in range(count):
            next(steps)

    def measure() -> None:
        for value in block.measure().values():
            value.tolist()

    for _ in range(2):  # batches are drawn, operations recorded
        next(steps)
    of_one = _best_s(train, device, 3) / count
    params = trials[0].member.params
    share = len(log_spaced_steps(params.steps, params.curve_points)) / params.steps
    if share >= _MEASURED_SHARE:
        measure()
        of_one += _best_s(measure, device, 2) * share
    return of_one / len(trials)


def _best_s(run: Callable[[], None], device: str, times: int) -> float:
    """The shortest time of a function."""
    # On a CPU a worker trains in one thread; its own time leaves out waiting for a core.
    cuda = torch.device(device).type == "cuda"
    clock = time.perf_counter if cuda or torch.get_num_threads() > 1 else time.thread_time
    best = float("inf")
    for _ in range(times):
        began = clock()
        run()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, clock() - began)
    return best


_ALONE: dict[tuple[Any, ...], str] = {}
"""Kind of pack -> why its models train one at a time."""


def why_alone(job: ModuleScience, params: Any) -> str:
    """Why models like this one cannot be stacked, with the place in the user's code; "" where they can."""
    kind = kind_of(job, params)
    if kind not in _ALONE:
        _ALONE[kind] = _why_alone(job, params)
    return _ALONE[kind]


def _why_alone(job: ModuleScience, params: Any) -> str:
    shorter = replace(params, batch_size=min(params.batch_size or 8, 8))
    trials = [trial_of(job, k, Member(params=shorter, seed=k + 1)) for k in range(2)]
    if difference := trials[0].network.difference(trials[1].network):
        return f"the modules of two trials differ in {difference}"
    if layout(trials[0].data) != layout(trials[1].data):
        return "the data of two trials have different shapes"
    if job.defines("torch_optimiser"):
        return "it has an optimiser of PyTorch"
    try:
        row_bytes = profile_of(job, params).row_bytes
        with without_fallback():
            stacked = _last_measured(job, trials, StackedBlock, row_bytes)
    except Exception as error:  # whatever vmap or the user's code raises under it
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sentence, place = lines[0].partition(". ")[0], _place(error)
        return f"{place}: {sentence}" if place else sentence
    # Not the first: stacked models have its attributes, and a wrong rule for vmap may be right for it.
    alone = _last_measured(job, [trial_of(job, 0, trials[-1].member)], SingleBlock, row_bytes)
    same = all(torch.isclose(alone[name], stacked[name], rtol=1e-2, atol=1e-2, equal_nan=True) for name in alone)
    return "" if same else "it computes something else when it is stacked; does it assign to a buffer in `forward`?"


def _last_measured(
    job: ModuleScience, trials: Sequence[Trial], kind: type[ModuleBlock], row_bytes: float
) -> dict[str, Tensor]:
    """The losses of the last trial after two steps."""
    networks, data = [t.network for t in trials], [t.data for t in trials]
    block = kind(job, [t.member for t in trials], networks, data, "cpu", row_bytes)
    block.advance(0, 1)
    before = _plain_attributes(networks[0].module)
    block.advance(1, 1)
    after = _plain_attributes(networks[0].module)
    if changed := [name for name, value in after.items() if before.get(name) != value]:
        raise RuntimeError(f"`forward` changes the attribute '{changed[0]}' at every step, which a recording repeats")
    return {name: value[-1].double() for name, value in block.measure().items() if name.endswith("loss")}


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Numbers and texts that a module and its parts hold, by name."""
    return {
        f"{place}.{name}".lstrip("."): value
        for place, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | str)
    }


def _place(error: BaseException) -> str:
    """`file:line` of the last line of the user's code in a traceback."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""

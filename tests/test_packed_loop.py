"""The training loop of a pack's blocks: when models are measured, which ones leave, and how the rest are tracked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jobs.job import Report, log_spaced_steps
from jobs.packed.block import Block
from jobs.packed.loop import run_blocks

NEVER = 10**9


class Counting(Block):
    """Models that count their own steps: `done` is 1 a step, `name` never changes, `loss` turns bad at a step."""

    def __init__(self, names: Sequence[int], bad_from: Sequence[int], bad: float = math.nan) -> None:
        self.names = torch.tensor(names)
        self.done = torch.zeros(len(names), dtype=torch.int64)
        self.bad_from = torch.tensor(bad_from)
        self.bad = bad
        self.clock = 0
        self.model_steps = 0

    def advance(self, step: int, count: int) -> None:
        assert step == self.clock, "a block must be told the step it is at"
        assert count > 0, "an advance by nothing costs as much as a step"
        self.clock += count
        self.done += count
        self.model_steps += count * len(self.names)

    def measure(self) -> Mapping[str, Tensor]:
        loss = torch.where(self.done >= self.bad_from, self.bad, 1.0 / (1 + self.done))
        return {"name": self.names.float(), "done": self.done.float(), "loss": loss}

    def keep(self, index: Tensor) -> None:
        assert index.dtype == torch.int64
        assert len(index), "a block without models is dropped, not kept"
        self.names, self.done, self.bad_from = self.names[index], self.done[index], self.bad_from[index]


@dataclass
class Seen:
    """What was reported, by position in the pack."""

    steps: dict[int, list[int]]
    values: dict[int, list[dict[str, float]]]
    finished: dict[int, int]


def watched(reports: Sequence[Report], count: int) -> Seen:
    seen = Seen({p: [] for p in range(count)}, {p: [] for p in range(count)}, {})
    last = 0
    for report in reports:
        assert report.step >= last, "reports must come in the order of their steps"
        last = report.step
        assert len(report.members)
        for k, position in enumerate(report.members.tolist()):
            assert position not in seen.finished, f"{position} was measured after it had finished"
            seen.steps[position].append(report.step)
            seen.values[position].append({name: float(value[k]) for name, value in report.values.items()})
        for position in report.finished.tolist():
            assert position not in seen.finished, f"{position} finished twice"
            assert position in report.members.tolist(), "what finishes was measured"
            seen.finished[position] = report.step
        assert not report.failed
    return seen


@dataclass
class Pack:
    schedules: list[np.ndarray]
    bad_from: list[int]
    blocks: list[list[int]]
    """Positions of each block's models, in the block's own order."""

    def run(self, bad: float = math.nan, stop: Mapping[str, float] | None = None) -> tuple[Seen, list[Counting]]:
        made = [Counting(positions, [self.bad_from[p] for p in positions], bad) for positions in self.blocks]
        pairs = list(zip(made, self.blocks, strict=True))
        reports = list(run_blocks(pairs, self.schedules, watch="loss", stop=stop))
        return watched(reports, len(self.schedules)), made


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    """Up to ten models with schedules and fates of their own, dealt into blocks in any order."""
    count = draw(st.integers(1, 10))
    steps = st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True)
    schedules = [np.array(sorted(draw(steps)), dtype=np.int64) for _ in range(count)]
    bad_from = [draw(st.sampled_from((NEVER, NEVER, 1, 7, 25))) for _ in range(count)]
    order = draw(st.permutations(range(count)))
    size = draw(st.integers(1, count))
    return Pack(schedules, bad_from, [list(order[start : start + size]) for start in range(0, count, size)])


def due(pack: Pack, position: int) -> list[int]:
    """The steps at which a model must be measured: its schedule, up to the first report at which it is bad."""
    schedule = pack.schedules[position].tolist()
    bad = [step for step in schedule if step >= pack.bad_from[position]]
    return [step for step in schedule if not bad or step <= bad[0]]


@given(pack=packs(), bad=st.sampled_from((math.nan, math.inf, -math.inf)))
def test_every_model_is_measured_at_its_own_steps_and_finishes_once(pack: Pack, bad: float) -> None:
    """Whatever its neighbours' horizons are; one that diverges leaves with the report that shows it."""
    seen, _ = pack.run(bad)
    for position in range(len(pack.schedules)):
        steps = due(pack, position)
        assert seen.steps[position] == steps
        assert seen.finished[position] == steps[-1]
    assert sorted(seen.finished) == list(range(len(pack.schedules)))


@given(pack=packs())
def test_a_model_keeps_its_name_and_its_progress_when_others_leave(pack: Pack) -> None:
    seen, _ = pack.run()
    for position, rows in seen.values.items():
        assert [row["name"] for row in rows] == [position] * len(rows)
        assert [row["done"] for row in rows] == seen.steps[position]


@given(pack=packs())
def test_a_model_that_has_finished_is_not_trained_further(pack: Pack) -> None:
    """The block trains each model up to its last report and no step more."""
    _, blocks = pack.run()
    for block, positions in zip(blocks, pack.blocks, strict=True):
        assert block.model_steps == sum(due(pack, position)[-1] for position in positions)


@given(pack=packs(), level=st.integers(1, 40))
def test_a_model_stops_at_the_first_report_that_meets_the_criterion(pack: Pack, level: int) -> None:
    seen, _ = pack.run(stop={"done": level, "name": 1})
    for position in range(len(pack.schedules)):
        steps = due(pack, position)
        met = [step for step in steps if step >= level] if position >= 1 else []
        assert seen.finished[position] == (met[0] if met else steps[-1])
        assert seen.steps[position] == [step for step in steps if step <= seen.finished[position]]


def test_the_criterion_needs_all_its_levels() -> None:
    """At or above counts; a metric that is not a number never does."""
    pack = Pack([np.arange(1, 6)] * 3, [NEVER] * 3, [[0, 1, 2]])
    seen, _ = pack.run(stop={"done": 3.0, "name": 1.0})
    assert seen.finished == {0: 5, 1: 3, 2: 3}
    seen, _ = pack.run(stop={"done": 1.0, "name": 1.0, "loss": 2.0})
    assert seen.finished == {0: 5, 1: 5, 2: 5}


def test_only_the_watched_metric_tells_divergence() -> None:
    class NotWatched(Counting):
        def measure(self) -> Mapping[str, Tensor]:
            return {**super().measure(), "other": torch.full((len(self.names),), math.nan)}

    block = NotWatched([0], [NEVER])
    seen = watched(list(run_blocks([(block, [0])], [np.array([1, 2, 3])], watch="loss")), 1)
    assert seen.finished == {0: 3}
    assert [math.isnan(row["other"]) for row in seen.values[0]] == [True] * 3


def test_reports_are_made_during_training() -> None:
    """The loop holds no finished curve back: it trains no further than what it has reported."""
    block = Counting([0, 1], [NEVER, NEVER])
    reports = run_blocks([(block, [0, 1])], [np.array([2, 50]), np.array([50])], watch="loss")
    assert block.clock == 0
    first = next(reports)
    assert (first.step, first.members.tolist(), block.clock) == (2, [0], 2)
    second = next(reports)
    assert (second.step, second.members.tolist(), block.clock) == (50, [0, 1], 50)
    with pytest.raises(StopIteration):
        next(reports)


def test_a_pack_without_blocks_reports_nothing() -> None:
    assert list(run_blocks([], [], watch="loss")) == []


@given(horizon=st.integers(1, 10**8), points=st.integers(2, 320))
def test_log_spaced_steps_start_at_one_and_end_at_the_horizon(horizon: int, points: int) -> None:
    steps = log_spaced_steps(horizon, points)
    assert steps[0] == 1
    assert steps[-1] == horizon
    assert (np.diff(steps) > 0).all()
    assert len(steps) <= points

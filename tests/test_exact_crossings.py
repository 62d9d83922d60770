"""Steps at which a level is first reached, found exactly between two reports."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import course_of
from torch import Tensor

from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams, GrokkingThresholds
from jobs.job import AFTER, Censored, Curves, Member, identity
from jobs.packed.crossings import RepeatableBlock
from jobs.packed.loop import run_blocks
from orchestrator.analysis.survival import median_time
from orchestrator.phases.table import collect
from orchestrator.records import Recorded, Status
from orchestrator.reduce import reduce_curves
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

JOB = Grokking()


# The loop, with models whose values are given


class Scripted(RepeatableBlock):
    """Models that have trained for a number of steps, with given values of two metrics at each."""

    def __init__(self, values_MTK: Tensor) -> None:
        self.values_MTK = values_MTK
        self.done = torch.zeros(len(values_MTK), dtype=torch.int64)
        self.kept = True
        self.trained = [0]
        """Steps times models, of this block and of its copies."""

    def advance(self, step: int, count: int) -> None:
        assert self.kept and bool((self.done == step).all()) and count > 0
        self.done += count
        self.trained[0] += count * len(self.done)

    def measure(self) -> Mapping[str, Tensor]:
        return self.values(("fit", "pass", "loss", "step"))

    def values(self, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        assert self.kept and names
        here = self.values_MTK[torch.arange(len(self.done)), self.done]
        known = {"fit": here[:, 0], "pass": here[:, 1], "loss": here[:, 0], "step": self.done.double()}
        return {name: known[name] for name in names}

    def keep(self, index: Tensor) -> None:
        assert len(index)
        self.values_MTK, self.done, self.kept = self.values_MTK[index], self.done[index], True

    def copy(self) -> Self:
        other = type(self)(self.values_MTK)
        other.done, other.kept, other.trained = self.done.clone(), False, self.trained
        return other


@dataclass
class Case:
    values_MTK: np.ndarray
    schedules: list[np.ndarray]
    blocks: list[list[int]]
    levels: dict[str, float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count, horizon = draw(st.integers(1, 6)), 30
    numbers = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(numbers).integers(0, 12, size=(count, horizon + 1, 2)) / 10.0
    values[np.random.default_rng(numbers + 1).random(values.shape) < draw(st.sampled_from((0.0, 0.1)))] = math.nan
    steps = st.lists(st.integers(1, horizon), min_size=1, max_size=6, unique=True)
    schedules = [np.array(sorted(draw(steps)), dtype=np.int64) for _ in range(count)]
    order, size = draw(st.permutations(range(count))), draw(st.integers(1, count))
    levels = draw(st.sampled_from(({"fit": 0.9}, {"pass": 1.0}, {"fit": 0.8, "pass": 1.1}, {"fit": 1.2, "pass": 0.0})))
    return Case(values, schedules, [list(order[at : at + size]) for at in range(0, count, size)], levels)


def run(case: Case, **options: Any) -> tuple[dict[int, dict[int, dict[str, float]]], int]:
    """Position -> step -> metric -> value, and how many steps models were trained."""
    blocks = [(Scripted(torch.from_numpy(case.values_MTK[part])), part) for part in case.blocks]
    rows: dict[int, dict[int, dict[str, float]]] = {position: {} for position in range(len(case.schedules))}
    finished: set[int] = set()
    for report in run_blocks(blocks, case.schedules, watch="loss", **options):
        for k, position in enumerate(report.members.tolist()):
            assert position not in finished
            assert report.step > max(rows[position], default=0), "the steps of a member increase"
            rows[position][report.step] = {name: float(value[k]) for name, value in report.values.items()}
        finished |= set(report.finished.tolist())
    assert finished == set(rows)
    return rows, sum(block.trained[0] for block, _ in blocks)


def crossing_of(case: Case, position: int, metric: str, reports: Sequence[int]) -> tuple[int, int, int] | None:
    """The report before, the first step at or above the level since then, and the report that shows it."""
    column = 0 if metric == "fit" else 1
    values, before = case.values_MTK[position, :, column], 0
    for report in reports:
        if values[report] >= case.levels[metric]:
            since = np.arange(before + 1, report + 1)
            return before, int(since[values[since] >= case.levels[metric]][0]), report
        before = report
    return None


@given(case=cases(), stop=st.sampled_from((None, {"fit": 1.0, "pass": 0.9})))
def test_a_crossing_between_two_reports_is_reported_with_the_step_before_it(
    case: Case, stop: Mapping[str, float] | None
) -> None:
    """And nothing else is: the scheduled reports, and where trials end, are as without levels."""
    plain, least = run(case, stop=stop)
    exact, trained = run(case, stop=stop, levels=case.levels)
    again = 0
    for position, rows in plain.items():
        extra: set[int] = set()
        ends = []
        for metric in case.levels:
            found = crossing_of(case, position, metric, list(rows))
            if found is not None:
                before, step, _ = found
                extra |= {step, step - 1} - {before, 0}
                ends.append(found)
        assert set(exact[position]) == set(rows) | extra
        for step, values in exact[position].items():
            here = case.values_MTK[position, step]
            np.testing.assert_equal([values[n] for n in ("fit", "pass", "step")], [here[0], here[1], step])
        again += sum(max(min(e[1], e[2] - 1) - e[0] for e in ends if e[2] == at) for at in {e[2] for e in ends})
    assert trained - least == again, "a model is trained again up to its last crossing, and no further"


# The grokking job


def member(seed: int = 1, **values: Any) -> Member[GrokkingParams]:
    return Member(params=GrokkingParams(**values), seed=seed)


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


ADAM = ({}, {"grokfast_lambda": 2.0}, {"perp_grad": "layers"}, {"embedding_learning_rate": 0.003})


@st.composite
def trials(draw: st.DrawFn) -> list[Member[GrokkingParams]]:
    """A pack of one to three trials that reach low levels within some dozens of steps."""
    optimiser = draw(st.sampled_from(("adamw", "adam", "sgd")))
    shared: dict[str, Any] = {
        "model": draw(st.sampled_from(("quadratic_mlp", "embedding_mlp", "transformer"))),
        "modulus": draw(st.integers(5, 7)),
        "width": 16,
        "embedding": 8,
        "optimiser": optimiser,
        "momentum": 0.9 if optimiser == "sgd" else 0.0,
        "loss": draw(st.sampled_from(("squared", "cross_entropy"))),
        "warmup_steps": draw(st.sampled_from((0, 5, 20))),
        "batch_size": draw(st.sampled_from((0, 3))),
        "stop_accuracy": draw(st.sampled_from((0.0, 0.4))),
        "train_level": draw(st.sampled_from((0.0, 0.3, 0.6))),
        "test_level": draw(st.sampled_from((0.1, 0.3))),
        **(draw(st.sampled_from(ADAM)) if optimiser != "sgd" else {}),
    }
    rate = 0.05 if optimiser == "sgd" else 0.01
    return [
        member(
            draw(st.integers(0, 2**64 - 1)),
            **shared,
            data_fraction=draw(st.floats(0.3, 0.8)),
            learning_rate=rate * draw(st.floats(0.3, 1.0)),
            weight_decay=draw(st.sampled_from((0.0, 1.0))),
            steps=draw(st.integers(1, 40)),
            curve_points=draw(st.integers(2, 6)),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]


def every_step(trial: Member[GrokkingParams]) -> Curves:
    """The curve of a trial alone that is reported at every step, to its horizon."""
    params = replace(trial.params, curve_points=320, train_level=0.0, test_level=0.0, stop_accuracy=0.0)
    curve = course_of(JOB, [replace(trial, params=params)]).curves[0]
    assert curve.step.tolist() == list(range(1, params.steps + 1))
    return curve


@pytest.mark.usefixtures("double_precision")
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(pack=trials())
def test_an_exact_crossing_is_that_of_a_curve_with_every_step(pack: list[Member[GrokkingParams]]) -> None:
    """The first at or above the level since the report before, and all metrics there are those of the same training.

    A level that is reached and lost between two reports is seen only where the other level's crossing is reported.
    """
    curves = course_of(JOB, pack).curves
    for position, trial in enumerate(pack):
        params, curve, dense = trial.params, curves[position], every_step(trial)
        for name, values in curve.values.items():
            np.testing.assert_allclose(values, dense.values[name][curve.step - 1], rtol=1e-7, atol=1e-10)
        reports = [0, *(step for step in JOB.schedule(params).tolist() if step <= curve.step[-1])]
        extra = set(curve.step.tolist()) - set(reports)
        _, seen = reduce_curves(JOB, params, curve, thresholds_of(params))
        for event, metric, level in (
            ("memorisation_step", "train_accuracy", params.train_level),
            ("generalisation_step", "test_accuracy", params.test_level),
        ):
            above = np.array([False, *(dense.values[metric] >= level)])
            found = next(((a, b) for a, b in pairwise(reports) if above[b]), None)
            if not level:
                continue
            first = found[0] + 1 + int(np.argmax(above[found[0] + 1 :])) if found else params.steps + 1
            if glimpsed := sorted(step for step in extra if step < first and above[step]):
                before = max(step for step in (0, *curve.step.tolist()) if step < glimpsed[0])
                assert seen[event] == glimpsed[0] and seen[event + AFTER] == before
            elif found:
                assert seen[event] == first
                assert seen.get(event + AFTER, first - 1) == first - 1
            else:
                assert seen[event] == Censored(float(curve.step[-1]))


def test_a_level_that_another_one_s_crossing_shows_is_known_by_the_reports_around_it() -> None:
    """The training accuracy crosses at 14, which is reported with 13; there the test accuracy is above its level."""
    params = GrokkingParams(**GROKS, train_level=0.9, test_level=0.5)
    curve = Curves(
        step=np.array([1, 10, 13, 14, 20]),
        values={name: np.full(5, 0.1) for name in ("train_loss", "test_loss", "weight_norm")}
        | {"train_accuracy": np.array([0, 0, 0, 1.0, 1]), "test_accuracy": np.array([0, 0, 0.6, 0.2, 0.2])},
    )
    _, seen = reduce_curves(JOB, params, curve, thresholds_of(params))
    assert (seen["memorisation_step"], seen["memorisation_step" + AFTER]) == (14, 13)
    assert (seen["generalisation_step"], seen["generalisation_step" + AFTER]) == (13, 10)


def thresholds_of(params: GrokkingParams) -> GrokkingThresholds:
    return GrokkingThresholds(memorised_accuracy=params.train_level or 0.9, generalised_accuracy=params.test_level)


GROKS = {"modulus": 11, "width": 48, "data_fraction": 0.7, "weight_decay": 3.0, "steps": 250, "curve_points": 17}


def test_statistics_get_exact_steps() -> None:
    """With levels the median is known to the step, without them by reports; other ids tell the trials apart."""
    medians, ids = [], []
    for levels in ({}, {"train_level": 0.9, "test_level": 0.9}):
        params = GrokkingParams(**GROKS, **levels)
        settings_of = [Trial(job="grokking", params=params, replicate=k, base_seed=0, job_version=1) for k in range(3)]
        course = course_of(JOB, [Member(params=params, seed=trial.seed) for trial in settings_of])
        rows = {}
        for position, trial in enumerate(settings_of):
            phase, seen = reduce_curves(JOB, params, course.curves[position], GrokkingThresholds())
            assert seen["memorisation_step"] < seen["generalisation_step"]
            recorded = Recorded(status=Status.FINISHED, phase=phase, observations=seen, thresholds="", through_step=-1)
            rows[trial.id] = TrialRow(
                trial_id=trial.id, run_id=trial.id, params={}, replicate=trial.replicate, recorded=recorded
            )
        table = collect(settings_of, rows, JOB)
        above, to = table.bounds("generalisation_step")
        assert (to - above == 1).all() == bool(levels)
        medians.append(median_time(above, to))
        ids.append([trial.id for trial in settings_of])
    wide, exact = medians
    assert wide.above <= exact.above < exact.to <= wide.to
    assert exact.to - exact.above == 1 < wide.to - wide.above
    assert not set(ids[0]) & set(ids[1])


def test_a_trial_without_levels_keeps_its_identity() -> None:
    assert not {"train_level", "test_level"} & set(identity(GrokkingParams()))
    assert JOB.pack_key(GrokkingParams()) != JOB.pack_key(GrokkingParams(test_level=0.9))


def test_progress_measures_are_reported_at_a_crossing_too() -> None:
    params = GrokkingParams(**GROKS, progress="fourier", test_level=0.9)
    curve = course_of(JOB, [Member(params=params, seed=5)]).curves[0]
    extra = np.setdiff1d(curve.step, JOB.schedule(params))
    assert len(extra) in (1, 2)
    assert len(curve.step) <= JOB.report_steps(params)
    for values in curve.values.values():
        assert np.isfinite(values).all()

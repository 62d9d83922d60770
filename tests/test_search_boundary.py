"""The boundary search: which trials it asks for, what it stores, and how it resumes."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from jobs_for_tests import Descent
from optuna.trial import TrialState
from samplers_contract import SamplerContract
from searching import AXES, GRID, JOB, LABELS, boundary, disc, failed, finished, trial_of

from jobs.job import Censored, Cost
from orchestrator.axes import Axis
from orchestrator.errors import UserError
from orchestrator.records import TrialResult
from orchestrator.search.base import Sampler
from orchestrator.search.boundary import BoundarySampler
from orchestrator.search.study import TRIAL_ID
from orchestrator.target import LevelTarget
from orchestrator.trial import Trial

INTEGER = (Axis(name="dimension", scale="integer", values=(1, 40), between=True), AXES[0])
CONDITIONAL = (
    *AXES,
    Axis(name="model", scale="values", values=("plain", "heavy")),
    Axis(name="dimension", scale="integer", values=(1, 9), between=True, when={"model": ("heavy",)}),
)


class TestOverContinuousAxes(SamplerContract):
    def sampler(self) -> Sampler:
        return boundary()

    def result(self, trial: Trial) -> TrialResult:
        return disc(trial)


class TestOverTheGridsPoints(SamplerContract):
    def sampler(self) -> Sampler:
        return boundary(GRID, replicates=2, budget=1000)

    def result(self, trial: Trial) -> TrialResult:
        return disc(trial)

    def test_it_ends_when_every_trial_of_the_grid_is_tried(self) -> None:
        sampler = self.sampler()
        asked = self.drive(sampler, 7)
        assert sampler.expected_trials == 6 * 5 * 2
        assert len(asked) == 6 * 5 * 2
        assert set(Counter(trial.replicate for trial in asked).values()) == {30}


class TestWithWholeNumbers(SamplerContract):
    def sampler(self) -> Sampler:
        return boundary(INTEGER)

    def test_every_setting_is_a_whole_number_and_in_range(self) -> None:
        sizes = [trial.settings()["dimension"] for trial in self.drive(self.sampler(), 5)]
        assert all(isinstance(size, int) and 1 <= size <= 40 for size in sizes)


class TestWithConditionalAxes(SamplerContract):
    def sampler(self) -> Sampler:
        return boundary(CONDITIONAL)

    def test_every_slice_is_searched(self) -> None:
        models = Counter(trial.settings()["model"] for trial in self.drive(self.sampler(), 5))
        assert min(models["plain"], models["heavy"]) >= 8


class TestWithOneClassOnly(SamplerContract):
    def sampler(self) -> Sampler:
        return boundary()


def drive(sampler: BoundarySampler, *, most: int = 10_000, tell: Any = disc, at_once: int = 1000) -> list[Trial]:
    asked: list[Trial] = []
    while not sampler.exhausted and len(asked) < most:
        batch = sampler.ask(min(at_once, most - len(asked)))
        asked += batch
        for trial in batch:
            sampler.tell(tell(trial))
    return asked


def test_no_more_than_a_batch_is_pending_after_the_start() -> None:
    sampler = boundary(budget=60, start=16, batch=8)
    first = sampler.ask(1000)
    assert len(first) == 16
    assert sampler.ask(1000) == []
    for trial in first[:9]:
        sampler.tell(disc(trial))
    assert sampler.ask(1000) == []  # a single one would be a poor batch
    sampler.tell(disc(first[9]))
    assert len(sampler.ask(1000)) == 2


def test_a_search_ends_by_its_uncertain_area() -> None:
    sampler = boundary(budget=400, uncertain_area=0.7)
    asked = drive(sampler)
    assert sampler.exhausted
    assert 16 <= len(asked) < 400
    assert sampler.proposer.uncertain_area() <= 0.7


@pytest.mark.parametrize("broken_off", [5, 16, 27, 40])
def test_an_interrupted_search_resumes_without_repeating_trials(broken_off: int, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    whole = [trial.id for trial in drive(boundary(budget=40))]
    first = boundary(storage=storage, budget=40)
    told: set[str] = set()
    asked: list[Trial] = []
    while len(told) < broken_off:  # then killed, with the rest of its batch unfinished
        for trial in first.ask(1000):
            asked.append(trial)
            if len(told) < broken_off:
                first.tell(disc(trial))
                told.add(trial.id)
    again = boundary(storage=storage, budget=40)
    known = again.ask(1000)
    assert [trial.id for trial in known] == [trial.id for trial in asked]
    for trial in known:
        again.tell(disc(trial))
    later = drive(again)
    assert [trial.id for trial in (*known, *later)] == whole
    rows = optuna.load_study(storage=storage, study_name="study").trials
    assert Counter(row.state for row in rows) == {TrialState.COMPLETE: 40}
    assert len({row.user_attrs[TRIAL_ID] for row in rows}) == 40
    assert all(row.user_attrs["phase"] in LABELS for row in rows)


def test_a_larger_budget_continues_a_finished_search() -> None:
    storage = optuna.storages.InMemoryStorage()
    first = drive(boundary(storage=storage, budget=30, start=15))
    more = drive(boundary(storage=storage, budget=40, start=15))
    assert [trial.id for trial in more[:30]] == [trial.id for trial in first]
    assert len({trial.id for trial in more}) == 40


def test_trials_of_the_record_are_asked_first_and_belong_to_the_search() -> None:
    first = drive(boundary(budget=30))
    lost = boundary(budget=40, remembered=first)
    asked = drive(lost)
    assert [trial.id for trial in asked[:30]] == [trial.id for trial in first]
    assert len({trial.id for trial in asked}) == len(asked) == 40


def test_recorded_trials_of_a_conditional_axis_are_known_again() -> None:
    first = drive(boundary(CONDITIONAL, budget=30))
    asked = drive(boundary(CONDITIONAL, budget=32, remembered=first))
    assert {trial.id for trial in first} < {trial.id for trial in asked}
    assert len(asked) == 32


def fails_on_the_right(trial: Trial) -> TrialResult:
    right = float(trial.settings()["learning_rate"]) > 0.1
    return failed(trial) if right else disc(trial)


def test_a_failed_trial_is_failed_in_the_study_and_counts_as_tried() -> None:
    storage = optuna.storages.InMemoryStorage()
    sampler = boundary(storage=storage)
    asked = drive(sampler, tell=fails_on_the_right)
    rows = optuna.load_study(storage=storage, study_name="study").trials
    failed = {row.user_attrs[TRIAL_ID] for row in rows if row.state == TrialState.FAIL}
    assert failed == {trial.id for trial in asked if float(trial.settings()["learning_rate"]) > 0.1}
    assert failed and len(asked) == 40


def test_failed_trials_are_retried_by_the_next_run() -> None:
    storage = optuna.storages.InMemoryStorage()
    first = drive(boundary(storage=storage), tell=fails_on_the_right)
    again = drive(boundary(storage=storage))
    assert [trial.id for trial in again] == [trial.id for trial in first]
    rows = optuna.load_study(storage=storage, study_name="study").trials
    complete = [row.user_attrs[TRIAL_ID] for row in rows if row.state == TrialState.COMPLETE]
    assert sorted(complete) == sorted(trial.id for trial in first)


def test_failed_trials_do_not_bias_the_map() -> None:
    heard = boundary(budget=40)
    drive(heard, tell=fails_on_the_right)
    evidence = heard.proposer._boxes[0].evidence()
    assert (evidence.x[:, 0] <= 0.5).all()


def test_a_diverged_trial_is_a_label() -> None:
    sampler = boundary()
    drive(sampler, tell=lambda trial: finished(trial, "far"))
    (surface,) = sampler.proposer.surfaces()
    assert surface is not None
    assert surface.label(np.array([[0.5, 0.5]])).tolist() == [LABELS.index("far")]  # type: ignore[attr-defined]


def test_replicates_are_spread_evenly_over_new_settings() -> None:
    asked = drive(boundary(budget=60, replicates=3))
    counts = Counter(trial.replicate for trial in asked)
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_settings_that_the_job_refuses_are_never_asked() -> None:
    def choosy(setting: Any, replicate: int) -> Trial | None:
        return None if float(setting["weight_decay"]) > 1 else trial_of(setting, replicate)

    asked = drive(boundary(trial_of=choosy))
    assert len(asked) == 40
    assert all(float(trial.settings()["weight_decay"]) <= 1 for trial in asked)


def test_a_metric_that_no_trial_has_is_a_users_mistake() -> None:
    sampler = boundary(target=LevelTarget(metric="dept", level=0.0))
    with pytest.raises(UserError, match="no observation 'dept'") as caught:
        sampler.tell(disc(sampler.ask(1)[0]))
    assert "depth" in caught.value.text


def test_a_trial_of_an_earlier_version_without_the_metric_has_no_value() -> None:
    """The job observes it: the file has been checked."""
    storage = optuna.storages.InMemoryStorage()
    sampler = boundary(storage=storage, target=LevelTarget(metric="m", level=1.0), metric_known=True)
    old, new = sampler.ask(2)
    sampler.tell(finished(old, "near", depth=0.5))
    sampler.tell(finished(new, "near", m=2.0))
    rows = optuna.load_study(storage=storage, study_name="study").trials[:2]
    assert [row.user_attrs["phase"] for row in rows] == ["no value", "at or above"]


def test_a_level_search_receives_sides_and_censored_bounds() -> None:
    storage = optuna.storages.InMemoryStorage()
    sampler = boundary(storage=storage, target=LevelTarget(metric="m", level=1.0))
    observed = [0.5, 2.0, Censored(3.0), Censored(0.1), float("nan")]
    for value, trial in zip(observed, sampler.ask(5), strict=True):
        sampler.tell(finished(trial, "near", m=value))
    rows = optuna.load_study(storage=storage, study_name="study").trials[:5]
    assert [row.user_attrs.get("phase") for row in rows] == ["below", "at or above", "at or above", None, "no value"]
    assert [row.user_attrs.get("censored", False) for row in rows] == [False, False, True, True, False]
    assert [row.user_attrs["value"] for row in rows] == [0.5, 2.0, 3.0, 0.1, None]


@pytest.mark.slow
def test_the_size_of_a_batch_changes_the_map_only_within_its_band() -> None:
    from orchestrator.surface.phase import PhaseSurrogate

    lattice = np.stack(np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60)), axis=-1).reshape(-1, 2)
    labels, bands = [], []
    for batch in (8, 32):
        sampler = boundary(budget=160, start=48, batch=batch, surrogate=PhaseSurrogate(classes=3))
        drive(sampler)
        (surface,) = sampler.proposer.surfaces()
        labels.append(surface.label(lattice))  # type: ignore[union-attr]
        bands.append(surface.in_band(lattice))  # type: ignore[union-attr]
    truth = np.where(np.hypot(*(lattice - 0.5).T) < 0.3, 1, 0)
    sure = ~(bands[0] | bands[1])
    assert sure.mean() > 0.9
    assert (labels[0] != labels[1])[sure].mean() < 0.002
    assert max(float((label != truth).mean()) for label in labels) < 0.02


@pytest.mark.slow
def test_trials_told_late_and_in_any_order_give_the_same_map_within_its_band() -> None:
    from orchestrator.surface.phase import PhaseSurrogate

    lattice = np.stack(np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60)), axis=-1).reshape(-1, 2)
    labels, bands = [], []
    for shuffle in (1, 2):
        order, waiting = random.Random(shuffle), []
        sampler = boundary(budget=160, start=48, batch=16, surrogate=PhaseSurrogate(classes=3))
        while not sampler.exhausted or waiting:
            waiting += sampler.ask(1000)
            order.shuffle(waiting)
            for _ in range(min(len(waiting), 5)):
                sampler.tell(disc(waiting.pop()))
        (surface,) = sampler.proposer.surfaces()
        labels.append(surface.label(lattice))  # type: ignore[union-attr]
        bands.append(surface.in_band(lattice))  # type: ignore[union-attr]
    sure = ~(bands[0] | bands[1])
    assert (labels[0] != labels[1])[sure].mean() < 0.002


def test_the_study_tells_how_the_uncertain_area_fell() -> None:
    from orchestrator.search.study import history_of

    storage = optuna.storages.InMemoryStorage()
    drive(boundary(storage=storage, budget=80))
    history = history_of(optuna.load_study(storage=storage, study_name="study").trials)
    told = [count for count, _ in history]
    assert told == sorted(set(told)) and told[0] == 16 and len(told) > 4
    assert history[-1][1] < history[0][1]


class Slow(Descent):
    """Trials of seconds, hardly cheaper in a pack."""

    def cost(self, params: Any, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=1000.0, matmul_flop=models * 1e12, element_visits=0, memory_bytes=1e6)


def test_workers_are_kept_busy_while_a_search_learns() -> None:
    from orchestrator.dispatch.base import PackProgress, PackTask
    from orchestrator.plan.calibration import Calibration
    from orchestrator.plan.planner import Planner
    from orchestrator.progress import Silent
    from orchestrator.records import Status, TrialResult
    from orchestrator.runner import Runner
    from orchestrator.tracking.base import SweepRecord
    from orchestrator.tracking.memory import MemoryTracker
    from tests.simulation.dispatcher import SimulatedDispatcher, VirtualClock

    clock = VirtualClock(real=lambda: 0.0)  # the driver's own time is another matter

    def ended(task: PackTask) -> PackProgress:
        results = tuple(
            TrialResult(trial_id=trial_id, status=Status.FINISHED, phase=LABELS[params["weight_decay"] > 1])
            for trial_id, params in zip(task.trial_ids, task.params, strict=True)
        )
        return PackProgress(pack_id=task.pack_id, rows=None, results=results)

    pool = SimulatedDispatcher(
        workers=4,
        seconds=lambda task: 5.0 * len(task.params) + int(task.trial_ids[0], 16) % 5,
        results=ended,
        clock=clock,
    )
    tracker = MemoryTracker()
    tracker.open_sweep(SweepRecord(sweep_id="s", name="s", job="j", resolved_yaml="", thresholds=""))
    job = Slow()
    sampler = boundary(budget=200, start=32, batch=32, workers=4)
    summary = Runner(
        job_name=JOB,
        planner=Planner(job_name=JOB, job=job, calibration=Calibration(), memory_budget_bytes=1e9),
        sampler=sampler,
        tracker=tracker,
        pool=lambda: pool,
        progress=Silent(),
        thresholds=job.Thresholds(),
        fingerprint="",
        clock=clock,
    ).run()
    assert summary.done == 200
    assert sampler.exhausted
    assert pool.busy_s / (4 * clock()) > 0.8

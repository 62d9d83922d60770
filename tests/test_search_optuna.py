"""The sampler alone in Optuna: `study.optimize`, `ask` and `tell`, threads and shared storages."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from searching import NearestSurrogate

from orchestrator.search.optuna_sampler import PhaseBoundarySampler

SPACE = {"decay": FloatDistribution(0.01, 10, log=True), "width": IntDistribution(4, 64)}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler(space: dict[str, BaseDistribution] | None = None, **options: Any) -> PhaseBoundarySampler:
    return PhaseBoundarySampler(NearestSurrogate(), space or SPACE, **{"seed": 0, "start": 16, "batch": 8, **options})


def objective(trial: optuna.Trial) -> float:
    decay = trial.suggest_float("decay", 0.01, 10, log=True)
    width = trial.suggest_int("width", 4, 64)
    trial.set_user_attr("phase", "groks" if decay * width > 20 else "memorises")
    return 0.0


def settings(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [tuple(sorted(trial.params.items())) for trial in study.get_trials(deepcopy=False)]


def test_optimize_asks_settings_of_the_space_and_none_twice() -> None:
    study = optuna.create_study(sampler=sampler())
    study.optimize(objective, n_trials=60)
    assert len(set(settings(study))) == 60
    assert all(4 <= trial.params["width"] <= 64 and 0.01 <= trial.params["decay"] <= 10 for trial in study.trials)
    mine = study.sampler
    assert isinstance(mine, PhaseBoundarySampler)
    assert set(mine.labels) == {"groks", "memorises"}
    (surface,) = mine.surfaces(study)
    assert surface is not None
    assert 0 < mine.uncertain_area(study) < 1


def test_threads_share_a_sampler() -> None:
    study = optuna.create_study(sampler=sampler())
    study.optimize(objective, n_trials=60, n_jobs=4)
    assert Counter(trial.state for trial in study.trials) == {TrialState.COMPLETE: 60}
    assert len(set(settings(study))) == 60


def test_many_trials_may_be_asked_before_the_first_result() -> None:
    study = optuna.create_study(sampler=sampler())
    trials = [study.ask(SPACE) for _ in range(40)]
    assert len(set(settings(study))) == 40
    for trial in reversed(trials):
        trial.set_user_attr("phase", "groks")
        study.tell(trial, 0.0)
    assert len(set(settings(study))) == 40


def test_the_same_seed_asks_the_same() -> None:
    studies = [optuna.create_study(sampler=sampler()) for _ in range(2)]
    for study in studies:
        study.optimize(objective, n_trials=40)
    assert settings(studies[0]) == settings(studies[1])
    other = optuna.create_study(sampler=sampler(seed=1))
    other.optimize(objective, n_trials=40)
    assert settings(other) != settings(studies[0])


def test_a_resumed_study_repeats_nothing(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    optuna.create_study(storage=storage, study_name="s", sampler=sampler()).optimize(objective, n_trials=20)
    again = optuna.load_study(storage=storage, study_name="s", sampler=sampler())
    again.optimize(objective, n_trials=20)
    assert len(set(settings(again))) == 40


def test_two_that_share_a_storage_avoid_each_others_trials(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    first = optuna.create_study(storage=storage, study_name="s", sampler=sampler(seed=0))
    second = optuna.load_study(storage=storage, study_name="s", sampler=sampler(seed=0))
    for _ in range(15):
        for study in (first, second):
            trial = study.ask()
            objective(trial)
            study.tell(trial, 0.0)
    assert len(set(settings(first))) == 30


def test_failed_trials_are_not_asked_again_and_say_nothing() -> None:
    mine = sampler()
    study = optuna.create_study(sampler=mine)

    def breaks(trial: optuna.Trial) -> float:
        objective(trial)
        if trial.number % 2:
            raise ValueError("broke")
        return 0.0

    study.optimize(breaks, n_trials=40, catch=ValueError)
    mine.surfaces(study)
    assert mine.proposer.told == 20
    assert len(set(settings(study))) == 40


def test_the_value_of_the_objective_is_the_metric_where_there_is_no_label() -> None:
    mine = sampler()
    study = optuna.create_study(sampler=mine)
    for value, attributes in ((2.5, {}), (0.0, {"value": 7.0, "censored": True}), (0.0, {"value": None})):
        trial = study.ask(SPACE)
        for name, attribute in attributes.items():
            trial.set_user_attr(name, attribute)
        study.tell(trial, value)
    mine.follow(study)
    evidence = mine.proposer._boxes[0].evidence()
    assert evidence.label.tolist() == [-1, -1, -1]
    assert np.array_equal(evidence.value, [2.5, 7.0, np.nan], equal_nan=True)
    assert evidence.censored.tolist() == [False, True, False]


def test_categorical_choices_are_slices() -> None:
    mine = sampler({**SPACE, "operation": CategoricalDistribution(["add", "divide"])})
    study = optuna.create_study(sampler=mine)

    def two(trial: optuna.Trial) -> float:
        operation = trial.suggest_categorical("operation", ["add", "divide"])
        objective(trial)
        if operation == "add":
            trial.set_user_attr("phase", "groks")
        return 0.0

    study.optimize(two, n_trials=40)
    assert len(mine.surfaces(study)) == 2
    assert min(Counter(trial.params["operation"] for trial in study.trials).values()) >= 8


def test_enqueued_trials_and_parameters_outside_the_space_are_allowed() -> None:
    mine = sampler()
    study = optuna.create_study(sampler=mine)
    study.enqueue_trial({"decay": 1.0, "width": 32})

    def more(trial: optuna.Trial) -> float:
        trial.suggest_categorical("colour", ["red", "blue"])
        return objective(trial)

    study.optimize(more, n_trials=20)
    assert study.trials[0].params["width"] == 32
    mine.follow(study)
    assert mine.proposer.told == 20


def test_steps_are_kept() -> None:
    space = {"a": FloatDistribution(0, 1, step=0.25), "b": IntDistribution(2, 10, step=4)}
    study = optuna.create_study(sampler=sampler(space))
    for _ in range(15):
        trial = study.ask(space)
        trial.set_user_attr("phase", "x")
        study.tell(trial, 0.0)
    assert len(set(settings(study))) == 15
    assert {trial.params["b"] for trial in study.trials} == {2, 6, 10}


def test_one_label_too_many_is_said() -> None:
    study = optuna.create_study(sampler=sampler(labels=["one"]))
    for label in ("one", "two"):
        trial = study.ask(SPACE)
        trial.set_user_attr("phase", label)
        study.tell(trial, 0.0)
    with pytest.raises(ValueError, match="the label 'two' is one more than the 1 classes"):
        study.ask(SPACE)


@pytest.mark.parametrize(
    "space",
    [
        {"a": CategoricalDistribution([1, 2])},
        {name: FloatDistribution(0, 1) for name in "abcde"},
    ],
)
def test_a_space_without_a_between_is_refused(space: dict[str, BaseDistribution]) -> None:
    with pytest.raises(ValueError, match="1 to 4 numeric parameters"):
        sampler(space)


def test_an_ask_reads_the_storage_a_bounded_number_of_times(tmp_path: Path) -> None:
    import sqlalchemy

    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/optuna.db")
    study = optuna.create_study(storage=storage, sampler=sampler(batch=64))
    statements = 0
    lock = threading.Lock()

    def count(*_: Any) -> None:
        nonlocal statements
        with lock:
            statements += 1

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", count)
    costs = []
    for _ in range(48):
        before = statements
        trial = study.ask(SPACE)
        costs.append(statements - before)
        trial.set_user_attr("phase", "x")
        study.tell(trial, 0.0)
    assert max(costs[24:]) <= max(costs[2:8]) + 1

"""A plain function as a job: it does not deal with packs, and its errors do not stop other trials."""

import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from jobs.declared import open_params
from jobs.function import QUEUE_ROWS, FunctionJob, running_stack
from jobs.job import Curves, Member, Params, param, params_from
from orchestrator.dispatch.base import PackEnded, PackProgress, PackTask
from orchestrator.dispatch.worker import execute
from orchestrator.records import Status, TrialResult
from tests.packing import assert_packed_is_solo, course_of, curves_of


def noisy_decay(params, seed, device, report):  # type: ignore[no-untyped-def]
    """A user's function, without a single annotation."""
    rng = np.random.default_rng(seed)
    for step in range(1, params["steps"] + 1):
        report(step, loss=math.exp(-params["rate"] * step) + 0.1 * rng.random(), kept=params["rate"])
    return {"accuracy": 1 - params["rate"]}


@dataclass(frozen=True, kw_only=True)
class DecayParams(Params):
    """A user's own parameters."""

    rate: float = param(0.1, above=0, high=2, meaning="decay")
    steps: int = param(5, low=1, high=1000, meaning="steps")


def declared(params: DecayParams, seed: int, device: str, report: Callable[..., None]) -> None:
    for step in range(params.steps):
        report(step, loss=params.rate / (1 + step))


def moody(params, seed, device, report):  # type: ignore[no-untyped-def]
    report(1, loss=1.0)
    if params.get("bad"):
        raise ArithmeticError(f"this setting is bad: {params['bad']}")
    report(2, loss=0.5)


def member(seed: int = 1, **values: Any) -> Member[Any]:
    return Member(params=open_params(values), seed=seed)


def only(function: Callable[..., Any], **values: Any) -> Curves:
    """The curves of one trial that must not fail."""
    course = course_of(FunctionJob(function), [member(**values)])
    assert course.failed == {}
    return course.curves[0]


def error_of(function: Callable[..., Any], **values: Any) -> str:
    """The text a trial fails with."""
    return course_of(FunctionJob(function), [member(**values)]).failed[0]


# The trial.


def test_a_packed_trial_is_the_trial() -> None:
    pack = [member(seed=k % 3, rate=0.1 * (k + 1), steps=1 + 3 * k) for k in range(7)]
    course = assert_packed_is_solo(FunctionJob(noisy_decay), pack, rtol=0, atol=0)
    assert course.finished == list(range(7))
    assert course.curves[2].step.tolist() == list(range(1, 8))


def test_reports_arrive_as_they_were_made() -> None:
    curves = only(noisy_decay, rate=0.5, steps=4)
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(curves.values["loss"], [math.exp(-0.5 * s) + 0.1 * rng.random() for s in range(1, 5)])
    assert curves.values["kept"].tolist() == [0.5] * 4


def test_returned_values_are_recorded_with_the_last_report() -> None:
    curves = only(noisy_decay, rate=0.25, steps=3)
    assert curves.step.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(curves.values["accuracy"], [math.nan, math.nan, 0.75])
    assert curves.present is not None
    assert curves.present["accuracy"].tolist() == [False, False, True]


def test_a_function_may_only_return() -> None:
    curves = only(lambda params, seed, device, report: {"score": params["x"] ** 2}, x=3)
    assert curves.step.tolist() == [0]
    assert curves.values["score"].tolist() == [9.0]


def test_a_returned_value_replaces_the_last_report_of_its_name() -> None:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        report(1, loss=2.0)
        report(2, loss=1.0)
        return {"loss": 0.5}

    assert only(train).values["loss"].tolist() == [2.0, 0.5]


def test_a_function_without_reports_still_finishes() -> None:
    course = course_of(FunctionJob(lambda params, seed, device, report: None), [member(), member()])
    assert course.finished == [0, 1]
    assert course.failed == {}


def test_metrics_may_differ_from_report_to_report_and_from_trial_to_trial() -> None:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        for step in range(1, 11):
            if params["every"] and step % params["every"] == 0:
                report(step, loss=float(step), test=10.0 * step)
            else:
                report(step, loss=float(step))

    found = curves_of(FunctionJob(train), [member(every=4), member(every=0)])
    assert found[0].step.tolist() == found[1].step.tolist() == list(range(1, 11))
    assert set(found[1].values) == {"loss"}
    finals = FunctionJob(train).observe(member().params, found[0], FunctionJob.Thresholds())
    assert finals == {"final_loss": 10.0, "final_test": 80.0}


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        weights = torch.ones(3, requires_grad=True)
        report(np.int64(1), a=np.float32(0.5), b=torch.tensor(2), c=True, d=weights.sum(), e=np.array([4.0]))
        report(torch.tensor(2), a=math.nan, b=-math.inf)

    curves = only(train)
    assert [float(curves.values[name][0]) for name in "abcde"] == [0.5, 2.0, 1.0, 3.0, 4.0]
    assert math.isnan(curves.values["a"][1])
    assert curves.values["b"][1] == -math.inf


def test_seed_and_device_are_handed_on() -> None:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        report(0, seed=seed % 1000, on_cpu=device == "cpu")

    curves = curves_of(FunctionJob(train), [member(seed=(1 << 64) - 1)])[0]
    assert curves.values["seed"][0] == ((1 << 64) - 1) % 1000
    assert curves.values["on_cpu"][0] == 1.0


# Errors.


def test_a_trial_that_raises_is_reported_and_the_others_continue() -> None:
    course = course_of(FunctionJob(moody), [member(bad=0), member(bad=7), member(bad=0)])
    assert course.finished == [0, 1, 2]
    assert list(course.failed) == [1]
    assert course.curves[1].step.tolist() == [1], "what it reported before is kept"
    assert course.curves[0].step.tolist() == course.curves[2].step.tolist() == [1, 2]


def test_a_traceback_shows_the_users_frames_only() -> None:
    text = error_of(moody, bad=7)
    assert text.startswith("Traceback (most recent call last):")
    assert text.rstrip().endswith("ArithmeticError: this setting is bad: 7")
    assert "test_function_job.py" in text
    assert "in moody" in text
    assert "jobs/function" not in text
    assert "threading.py" not in text


def test_a_chain_of_errors_is_reported_completely() -> None:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        try:
            report(1, loss="low")
        except ValueError as error:
            raise RuntimeError("no loss") from error

    text = error_of(train)
    assert "'low'" in text
    assert "RuntimeError: no loss" in text
    assert "jobs/function" not in text


@pytest.mark.parametrize("leave", [SystemExit(2), KeyboardInterrupt(), GeneratorExit()])
def test_any_exception_of_a_function_fails_its_trial_only(leave: BaseException) -> None:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        if params["leave"]:
            raise leave
        report(1, x=1.0)

    course = course_of(FunctionJob(train), [member(leave=True), member(leave=False)])
    assert list(course.failed) == [0]
    assert course.curves[1].values["x"].tolist() == [1.0]


def test_a_thread_that_a_function_leaves_behind_reports_nothing_more() -> None:
    go_on, errors = threading.Event(), []

    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        report(1, loss=1.0)

        def later() -> None:
            go_on.wait()
            try:
                report(2, loss=9.0)
            except ValueError as error:
                errors.append(str(error))

        thread = threading.Thread(target=later)
        if params["leaves"]:
            thread.start()
        else:  # the next trial of the pack
            go_on.set()
            while not errors:
                time.sleep(0.001)

    course = course_of(FunctionJob(train), [member(leaves=True), member(leaves=False)])
    assert course.failed == {}
    assert course.curves[0].values["loss"].tolist() == [1.0]
    assert re.search(r"test_function_job\.py:\d+: report: the trial has ended", errors[0])


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


def reporting(*reports: tuple[Any, dict[str, Any]]) -> Callable[..., None]:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        for step, metrics in reports:
            report(step, **metrics)

    return train


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (reporting((1, {"loss": "low"})), ["'loss'", "one number", "'low'", "str"]),
        (reporting((1, {"loss": None})), ["'loss'", "one number", "None"]),
        (reporting((1, {"loss": torch.ones(2)})), ["'loss'", "one number"]),
        (reporting((1, {"loss": 1j})), ["'loss'", "one number"]),
        (reporting((1, {"loss": 10**400})), ["'loss'", "one number"]),
        (reporting((1, {"loss": 1.0}), (1, {"loss": 1.0})), ["step must increase", "got 1 after 1"]),
        (reporting((5, {"loss": 1.0}), (4, {"loss": 1.0})), ["step must increase", "got 4 after 5"]),
        (reporting((-1, {"loss": 1.0})), ["at least 0", "got -1"]),
        (reporting((1.5, {"loss": 1.0})), ["whole number", "1.5"]),
        (reporting((True, {"loss": 1.0})), ["whole number", "True"]),
        (reporting(("3", {"loss": 1.0})), ["whole number", "'3'"]),
        (reporting((math.nan, {"loss": 1.0})), ["whole number", "nan"]),
        (reporting((2**63 - 1, {"loss": 1.0})), ["step must be at most 2**62", str(2**63 - 1)]),
        (reporting((10**5000, {"loss": 1.0})), ["step must be at most 2**62", "int"]),
        (reporting((1, {"loss": [10**5000]})), ["'loss'", "one number", "list"]),
        (reporting((1, {"loss": ["x"] * 10**6})), ["'loss'", "one number", "..."]),
        (reporting((1, {"loss": Unprintable()})), ["'loss'", "one number", "Unprintable"]),
        (reporting((1, {})), ["at least one metric"]),
        (reporting((1, {"a,b": 1.0})), ["name", "'a,b'"]),
        (lambda params, seed, device, report: 0.5, ["dict", "0.5"]),
        (lambda params, seed, device, report: {"a": "b"}, ["return", "'a'", "one number"]),
    ],
)
def test_a_report_that_breaks_a_rule_fails_its_trial_with_place_and_rule(
    function: Callable[..., Any], words: list[str]
) -> None:
    last = error_of(function).rstrip().splitlines()[-1]
    assert re.search(r"ReportError: .*test_function_job\.py:\d+: ", last)
    assert len(last) < 1000
    for word in words:
        assert word in last


# The thread.


def test_reports_stream_while_the_function_runs() -> None:
    go = threading.Event()

    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        report(1, x=1.0)
        report(2, x=2.0)
        assert go.wait(60), "the first report must arrive before the function ends"
        report(3, x=3.0)

    reports = FunctionJob(train).train([member()], device="cpu")
    assert next(reports).step == 1
    go.set()
    assert [report.step for report in reports] == [2, 3, 3], "the rest, and that it finished"


def test_a_function_waits_for_a_slow_reader() -> None:
    """Memory does not grow with the length of the curves."""
    made = [0]

    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        for step in range(20 * QUEUE_ROWS):
            report(step, x=0.0)
            made[0] += 1

    reports = FunctionJob(train).train([member()], device="cpu")
    next(reports)
    quiet, before = 0, -1
    while quiet < 5:  # until it makes no more
        time.sleep(0.02)
        now = made[0]
        quiet, before = (quiet + 1, now) if now == before else (0, now)
    assert before <= 3 * QUEUE_ROWS
    assert sum(len(report.members) for report in reports) == 20 * QUEUE_ROWS - 1


EARLIER: set[threading.Thread] = set()
"""Threads of earlier tests, some of which hang on purpose."""


@pytest.fixture(autouse=True)
def _earlier_threads() -> None:
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def function_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "phasefront function" and t not in EARLIER]


def wait_until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_a_training_that_takes_a_while_names_the_member_that_runs() -> None:
    go = threading.Event()

    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        assert params["quick"] or go.wait(60)

    reports = FunctionJob(train).train([member(quick=True), member(quick=False)], device="cpu")
    pulse = next(report for report in reports if report.running is not None)
    assert pulse.running == 1
    assert len(pulse.members) == len(pulse.finished) == 0
    stack = running_stack()
    assert 'test_function_job.py", line' in stack
    assert "go.wait(60)" in stack
    assert "jobs/function" not in stack
    go.set()
    assert [list(report.finished) for report in reports if len(report.finished)] == [[1]]


def test_closing_early_ends_the_function_at_its_next_report() -> None:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        for step in itertools.count():
            try:
                report(step, x=1.0)
            except Exception:
                continue  # a function that shrugs errors off ends all the same

    reports: Any = FunctionJob(train).train([member(), member()], device="cpu")
    next(reports)
    assert len(function_threads()) == 1
    reports.close()
    assert wait_until(lambda: not function_threads())


def test_a_pack_that_ended_leaves_no_thread() -> None:
    curves_of(FunctionJob(noisy_decay), [member(rate=0.5, steps=3)])
    assert wait_until(lambda: not function_threads())


def test_many_short_trials_share_reports() -> None:
    """One report has one step of several members: thousands of trials are not tens of thousands of reports."""
    course = course_of(FunctionJob(noisy_decay), [member(seed=k, rate=0.1, steps=10) for k in range(300)])
    assert course.reports <= 300
    assert all(len(curve.step) == 10 for curve in course.curves.values())


# Observations and phases.


def seen(values: dict[str, list[float]], present: dict[str, list[bool]] | None = None) -> dict[str, Any]:
    count = len(next(iter(values.values())))
    curves = Curves(
        step=np.arange(count),
        values={name: np.array(column) for name, column in values.items()},
        present=None if present is None else {name: np.array(column) for name, column in present.items()},
    )
    return dict(FunctionJob(noisy_decay).observe(open_params({}), curves, FunctionJob.Thresholds()))


def phase(observations: dict[str, Any], **limits: Any) -> str:
    job = FunctionJob(noisy_decay)
    label = job.phase(open_params({}), observations, params_from(job.Thresholds, limits))
    assert label in job.phases
    return label


def test_a_final_value_is_the_last_that_was_reported() -> None:
    mask = {"loss": [True, True, True], "test": [True, False, False]}
    found = seen({"loss": [3.0, 2.0, 1.0], "test": [0.5, math.nan, math.nan]}, mask)
    assert found == {"final_loss": 1.0, "final_test": 0.5}


def test_a_measured_nan_is_a_final_value() -> None:
    mask = {"loss": [True, True, True], "test": [True, False, False]}
    found = seen({"loss": [3.0, 2.0, math.nan], "test": [0.5, math.nan, math.nan]}, mask)
    assert math.isnan(found["final_loss"])
    assert found["final_test"] == 0.5
    found = seen({"loss": [3.0, 2.0], "test": [0.5, math.nan]})
    assert math.isnan(found["final_test"]), "without a mask every metric was reported at every step"


def test_without_a_metric_a_trial_is_finished_or_diverged() -> None:
    assert phase({"final_a": 1.0, "final_b": -2.0}) == "finished"
    assert phase({}) == "finished"
    assert phase({"final_a": 1.0, "final_b": math.inf}) == "diverged"


def test_a_watched_metric_gives_the_phase() -> None:
    finals = {"final_a": 1.0, "final_b": math.nan}
    assert phase(finals, metric="a", level=1.0) == "at or above"
    assert phase(finals, metric="a", level=1.1) == "below"
    assert phase(finals, metric="b") == "diverged"
    assert phase(finals, metric="c") == "not reported"


# As the worker runs it.


def run(function: str, params: list[dict[str, Any]], **thresholds: Any) -> tuple[list[PackProgress], list[TrialResult]]:
    task = PackTask(
        pack_id="p",
        job=f"{__name__}:{function}",
        trial_ids=tuple(f"{k:032x}" for k in range(len(params))),
        params=tuple(params),
        seeds=tuple(range(len(params))),
        thresholds=thresholds,
    )
    events = list(execute(task, device="cpu"))
    assert isinstance(events[-1], PackEnded)
    progress = [event for event in events if isinstance(event, PackProgress)]
    return progress, [result for part in progress for result in part.results]


def rows_of(progress: list[PackProgress]) -> Iterator[tuple[str, int, str, float]]:
    for part in progress:
        rows = part.rows
        if rows is None:
            continue
        for r, (trial, step) in enumerate(zip(rows.trial.tolist(), rows.step.tolist(), strict=True)):
            for k, name in enumerate(rows.metrics):
                if rows.present is None or rows.present[r, k]:
                    yield rows.trial_ids[trial], step, name, float(rows.values[r, k])


def test_a_worker_records_each_report_once() -> None:
    params = [{"rate": 0.1 * (k + 1), "steps": k + 1} for k in range(4)]
    progress, results = run("noisy_decay", params, metric="accuracy", level=0.75)
    rows = list(rows_of(progress))
    assert len({row[:3] for row in rows}) == len(rows) == sum(2 * (k + 1) + 1 for k in range(4))
    assert [result.status for result in results] == [Status.FINISHED] * 4
    assert [result.phase for result in results] == ["at or above", "at or above", "below", "below"]
    assert results[3].observations["final_accuracy"] == pytest.approx(0.6)


def test_a_worker_reports_a_trial_that_raises_and_finishes_the_rest() -> None:
    progress, results = run("moody", [{"bad": 0}, {"bad": 3}, {"bad": 0}])
    ended = {int(result.trial_id, 16): result for result in results}
    assert [ended[k].status for k in range(3)] == [Status.FINISHED, Status.FAILED, Status.FINISHED]
    assert "this setting is bad: 3" in (ended[1].error or "")
    assert sum(row[0] == f"{1:032x}" for row in rows_of(progress)) == 1


def test_a_worker_gives_declared_parameters_back_to_the_function() -> None:
    _, results = run("declared", [{"rate": 0.5, "steps": 2}, {"rate": 2.0, "steps": 1}])
    assert [result.observations["final_loss"] for result in results] == [0.25, 2.0]

"""Steps between two reports are intervals: in observations, in the table, in pictures and in statistics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.catalogue import load_job
from jobs.job import AFTER, BY, Censored, Curves, Job, Observations, Params, bounded, log_spaced_steps, report_before
from jobs.ridge.params import RidgeParams
from orchestrator.analysis.survival import median_time
from orchestrator.phases.diagram import phase_diagram
from orchestrator.phases.draw.html_traces import hover_texts
from orchestrator.phases.table import TrialTable, collect, read_table, write_table
from orchestrator.records import Recorded, Status
from orchestrator.reduce import reduce_curves
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

HORIZON = 3000
SETTINGS: dict[str, dict[str, Any]] = {
    "grokking": {"steps": HORIZON, "curve_points": 40},
    "double_descent": {"steps": HORIZON, "curve_points": 40, "width": 8},
    "ridge": {"solver": "gradient_descent", "steps": HORIZON, "curve_points": 40, "features": 4},
}


def job_and_params(name: str) -> tuple[Job[Any], Params]:
    job = load_job(name)
    return job, job.params_for(SETTINGS[name])


def curves_of(job: Job[Any], params: Params, memorised: float, generalised: float) -> Curves:
    """Reports of a trial that fits its training set from one true step on, and its test set from another on."""
    step = job.schedule(params)
    assert step is not None
    fits, passes = (np.where(step >= at, 1.0, 0.0) for at in (memorised, generalised))
    values = dict.fromkeys(job.metrics_of(params), np.full(len(step), 0.2)) | {
        "train_accuracy": fits,
        "test_accuracy": passes,
        "train_error": 1 - fits,
        "relative_train_loss": 1 - fits,
        "train_level_step": np.where(step >= memorised, memorised, np.nan),
        "test_level_step": np.where(step >= generalised, generalised, np.nan),
    }
    return Curves(step=step, values={name: values[name] for name in job.metrics_of(params)})


def without_bounds(observations: Observations) -> dict[str, float | Censored]:
    """As an earlier version recorded them."""
    return {name: value for name, value in observations.items() if not bounded(name, observations)}


def interval(observations: Observations, name: str) -> tuple[float, float]:
    after, by = observations[name + AFTER], observations.get(name + BY, observations[name])
    assert isinstance(after, float) and isinstance(by, float)
    return after, by


EVENTS = {
    "grokking": {"memorisation_step": "memorised", "generalisation_step": "generalised", "generalisation_gap": "gap"},
    "double_descent": {"interpolation_step": "memorised"},
    "ridge": {
        "interpolation_step": "memorised",
        "train_level_step": "memorised",
        "test_level_step": "generalised",
        "level_gap": "gap",
    },
}


@pytest.mark.parametrize("name", SETTINGS)
@given(memorised=st.integers(1, 1000), generalised=st.integers(1, HORIZON))
def test_the_true_step_is_within_the_bounds(name: str, memorised: int, generalised: int) -> None:
    """The value alone is the report at which it was found: the right end of the interval."""
    job, params = job_and_params(name)
    curves = curves_of(job, params, memorised, generalised)
    _, observations = reduce_curves(job, params, curves, job.Thresholds())
    true = {"memorised": memorised, "generalised": generalised, "gap": generalised - memorised}
    for event, what in EVENTS[name].items():
        if isinstance(found := observations[event], Censored):
            assert event + AFTER not in observations
            continue
        after, by = interval(observations, event)
        assert after < true[what] <= by and after <= found <= by
        if what in ("memorised", "generalised") and event in job.crossings:
            assert after in (0, *curves.step) and by == found and not np.any((curves.step > after) & (curves.step < by))
        if event in ("train_level_step", "test_level_step"):
            assert by - after == 1


@pytest.mark.parametrize("name", SETTINGS)
@given(memorised=st.integers(1, 1000), generalised=st.integers(1, 2 * HORIZON))
def test_an_earlier_record_is_completed_by_the_schedule(name: str, memorised: int, generalised: int) -> None:
    job, params = job_and_params(name)
    _, now = reduce_curves(job, params, curves_of(job, params, memorised, generalised), job.Thresholds())
    assert job.completed(params, without_bounds(now)) == now
    assert job.completed(params, now) is now


def test_a_curve_of_one_report_has_no_bounds() -> None:
    job, params = load_job("ridge"), RidgeParams(features=4)
    values = {name: np.array([np.nan if name.endswith("_step") else 0.0]) for name in job.metrics}
    _, observations = reduce_curves(job, params, Curves(step=np.array([1]), values=values), job.Thresholds())
    assert without_bounds(observations) == observations
    assert job.completed(params, observations) is observations


def test_a_job_without_a_schedule_is_left_alone() -> None:
    class Unknown(type(load_job("grokking"))):  # type: ignore[misc]
        def schedule(self, params: Any) -> None:
            return None

    seen = {"memorisation_step": 5.0, "generalisation_step": 80.0}
    assert Unknown().completed(job_and_params("grokking")[1], seen) is seen


@given(st.lists(st.integers(1, 500), min_size=1, unique=True).map(sorted), st.integers(0, 501))
def test_the_report_before_a_step(reports: list[int], step: int) -> None:
    steps = np.array(reports)
    assert report_before(steps, step) == max((s for s in reports if s < step), default=0)


def grokked(steps: list[float | None], *, earlier: bool = False) -> TrialTable:
    """Trials of one setting, of which each generalises at its true step, or never."""
    job, params = job_and_params("grokking")
    trials = [Trial(job="grokking", params=params, replicate=k, base_seed=0, job_version=1) for k in range(len(steps))]
    rows = {}
    for trial, true in zip(trials, steps, strict=True):
        phase, seen = reduce_curves(job, params, curves_of(job, params, 3, true or 10 * HORIZON), job.Thresholds())
        recorded = Recorded(
            status=Status.FINISHED,
            phase=phase,
            observations=without_bounds(seen) if earlier else seen,
            thresholds="",
            through_step=-1,
        )
        rows[trial.id] = TrialRow(
            trial_id=trial.id, run_id=f"run-{trial.replicate}", params={}, replicate=trial.replicate, recorded=recorded
        )
    return collect(trials, rows, job)


TRUE = [700.0, 1234.0, 1235.0, None]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_table_gives_statistics_the_intervals(earlier: bool, tmp_path: Path) -> None:
    table = grokked(TRUE, earlier=earlier)
    write_table(table, tmp_path / "t.parquet")
    for read in (table, read_table(tmp_path / "t.parquet")):
        above, to = read.bounds("generalisation_step")
        for low, high, true in zip(above, to, TRUE, strict=True):
            assert (low, high) == (HORIZON, np.inf) if true is None else low < true <= high < np.inf
        assert read.bounds_from_schedule.tolist() == [earlier] * 4
        exact, same = read.bounds("final_test_accuracy")
        assert (exact == same).all()
        assert read.observations_of(0) == table.observations_of(0)
    median = median_time(*table.bounds("generalisation_step"))
    assert median.above < 1234 <= median.to and median.not_reached == 1


def test_pictures_show_the_interval_of_the_median(tmp_path: Path) -> None:
    table = grokked(TRUE[:3])
    diagram = phase_diagram("d", (), load_job("grokking").phases, table, {})
    values = diagram.observations["generalisation_step"]
    assert values.above[0] < 1234 <= values.to[0] == values.median[0]
    assert not any(bounded(name, diagram.observations) for name in diagram.observations)
    steps = [0, *log_spaced_steps(HORIZON, 40).tolist()]
    found = int(values.median[0])
    low = f"{steps[steps.index(found) - 1]}"
    assert (
        f"generalisation step: median {found}, in ({low}, {found}]"
        in hover_texts(diagram, table, list(diagram.observations))[0]
    )


def test_an_even_number_of_replicates_has_the_mean_of_both_middle_intervals() -> None:
    table = grokked([700.0, 1234.0])
    values = phase_diagram("d", (), (), table, {}).observations["generalisation_step"]
    above, to = table.bounds("generalisation_step")
    assert (values.above[0], values.to[0]) == (above.mean(), to.mean())

"""What `analysis:` names: from a record to tables with intervals, files, and numbers of the parent run."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.job import Curves, Member, Scalar
from orchestrator.analyses.base import Analysis
from orchestrator.analyses.complexity import ComplexityAnalysis, ThresholdAnalysis
from orchestrator.analyses.peak import PeakAnalysis
from orchestrator.analyses.source import Source
from orchestrator.analysis.estimate import Estimate
from orchestrator.axes import Axis
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.records import Status
from orchestrator.sweep.sweep import Sweep
from tests.analyses_kit import STEPS, axis, row, source, trial
from tests.packing import curves_of
from tests.servers import empty_sqlite, mlflow_server


def along_width(errors: dict[int, float], *, spread: float, replicates: int = 8, **params: Scalar) -> list[Any]:
    random = np.random.default_rng(0)
    made = []
    for replicate in range(replicates):
        for width, error in errors.items():
            one = trial(replicate, width=width, **params)
            made.append((one, row(one, final_test_error=error + spread * random.standard_normal())))
    return made


PEAKED = {2: 0.5, 8: 0.46, 16: 0.48, 32: 0.53, 64: 0.6, 128: 0.5, 300: 0.45}
WIDTHS = axis("width", *PEAKED)


def peak_along_width() -> PeakAnalysis:
    return PeakAnalysis(kind="peak", of="final_test_error", along="width")


def test_a_peak_along_an_axis_has_place_height_and_minima_with_intervals() -> None:
    result = peak_along_width().compute(source(along_width(PEAKED, spread=0.01), WIDTHS))
    (found,) = result.rows
    assert (found["peak"], found["replicates"], found["left_out"]) == ("yes", 8, 0)
    place, height, first = found["place"], found["height"], found["first_minimum"]
    assert isinstance(place, Estimate) and isinstance(height, Estimate) and isinstance(first, Estimate)
    assert (place.value, place.low, place.high) == (64, 32, 128)
    assert height.value == pytest.approx(0.6, abs=0.01) and first.value == pytest.approx(0.46, abs=0.01)
    assert height.low < height.value < height.high
    assert result.metrics()["analysis/peak_final_test_error_width/place"] == 64
    assert result.figure is not None
    assert [panel.title for panel in result.figure.panels] == ["peak at 64 [32, 128] (p < 0.005, n = 8)"]


def test_noise_above_the_former_fixed_prominence_is_no_peak() -> None:
    """Medians of these values have a maximum of more than 0.01, which was reported as `test_error_peak_width`."""
    falling = {width: 0.5 - 0.005 * k for k, width in enumerate(PEAKED)}
    rows = along_width(falling, spread=0.03, replicates=3)
    values = {w: [r.recorded.observations["final_test_error"] for t, r in rows if t.params.width == w] for w in PEAKED}
    medians = [np.median(values[width]) for width in PEAKED]
    inside = [medians[k] - max(min(medians[:k]), min(medians[k + 1 :])) for k in range(1, len(medians) - 1)]
    assert max(inside) > 0.01
    result = peak_along_width().compute(source(rows, WIDTHS))
    assert result.rows[0]["peak"] == "none" and result.rows[0]["place"] is None
    assert {"ratio", "threshold"} <= set(result.main)
    (rule,) = (note for note in result.notes if "98% quantile" in note)
    assert "ratio exceeds the threshold" in rule and "at least 3" in rule
    assert not any("place" in name for name in result.metrics())


def test_each_setting_of_the_other_axes_is_tested_on_its_own() -> None:
    falling = {width: 0.5 - 0.02 * k for k, width in enumerate(PEAKED)}
    rows = along_width(falling, spread=0.01, label_noise=0.0) + along_width(PEAKED, spread=0.01, label_noise=0.15)
    result = peak_along_width().compute(source(rows, WIDTHS, axis("label_noise", 0.0, 0.15)))
    assert result.setting == ("label_noise",)
    assert {found["label_noise"]: found["peak"] for found in result.rows} == {0.0: "none", 0.15: "yes"}
    assert "2 settings were tested" in " ".join(result.notes)
    assert result.figure is not None
    first, second = (panel.title.splitlines() for panel in result.figure.panels)
    assert "label noise" in first[0] and re.fullmatch(r"no peak found \(p = 0\.\d+, n = 8\)", first[1])
    assert second[1].startswith("peak at 64 [32, 128] (p < 0.005")


def test_axes_that_are_zipped_to_it_do_not_divide_a_curve() -> None:
    rows = []
    for replicate in range(4):
        for width, error in PEAKED.items():
            one = trial(replicate, width=width, steps=100 * width)
            rows.append((one, row(one, final_test_error=error + 0.001 * replicate)))
    zipped = [
        Axis(name=n, values=v, scale="values", group=0)
        for n, v in (("width", tuple(PEAKED)), ("steps", tuple(100 * w for w in PEAKED)))
    ]
    (found,) = peak_along_width().compute(source(rows, *zipped)).rows
    assert found["peak"] == "yes"


def test_a_replicate_that_failed_or_diverged_somewhere_is_left_out_and_counted() -> None:
    rows = along_width(PEAKED, spread=0.005, replicates=6)
    rows[0] = (rows[0][0], row(rows[0][0], Status.FAILED))
    rows[10] = (rows[10][0], row(rows[10][0], final_test_error=np.nan))
    (found,) = peak_along_width().compute(source(rows, WIDTHS)).rows
    assert (found["replicates"], found["left_out"]) == (4, 2)


@pytest.mark.parametrize(("replicates", "widths"), [(1, 7), (3, 2)])
def test_what_cannot_be_tested_is_said_to_be_untested(replicates: int, widths: int) -> None:
    errors = dict(list(PEAKED.items())[:widths])
    result = peak_along_width().compute(source(along_width(errors, spread=0.01, replicates=replicates), WIDTHS))
    assert str(result.rows[0]["peak"]).startswith("not tested: fewer than")


@pytest.mark.parametrize(("scale", "value", "reason"), [("linear", np.nan, "finite"), ("log", -1.0, "positive")])
def test_replicates_without_any_value_are_left_out(scale: Any, value: float, reason: str) -> None:
    rows = [(one, row(one, final_test_error=value)) for one, _ in along_width(PEAKED, spread=0.01, replicates=5)]
    analysis = PeakAnalysis(kind="peak", of="final_test_error", along="width", scale=scale)
    result = analysis.compute(source(rows, WIDTHS))
    (found,) = result.rows
    assert (found["replicates"], found["left_out"], found["peak"]) == (0, 5, f"not tested: no {reason} value")
    assert any("5 replicates were left out" in note for note in result.notes)


def curves(values: np.ndarray, steps: np.ndarray = STEPS) -> Curves:
    return Curves(step=steps, values={"test_error": values})


def along_steps(mean: np.ndarray, *, spread: float, replicates: int = 8) -> Source:
    random = np.random.default_rng(1)
    trials = [trial(r, width=w) for w in (12, 60) for r in range(replicates)]
    rows = [(one, row(one, final_test_error=0.4)) for one in trials]
    read = {one.id: curves(mean + spread * random.standard_normal(len(STEPS))) for one in trials}
    return source(rows, axis("width", 12, 60), curves=read)


def test_a_peak_along_the_steps_is_that_of_the_mean_curve() -> None:
    u = np.log(STEPS)
    mean = 0.3 + 0.5 * np.exp(-u / 2) + 0.15 * np.exp(-((u - np.log(2000)) ** 2) / 0.5)
    analysis = PeakAnalysis(kind="peak", of="test_error", along="step")
    result = analysis.compute(along_steps(mean, spread=0.01))
    assert [found["width"] for found in result.rows] == [12, 60]
    for found in result.rows:
        place = found["place"]
        assert found["peak"] == "yes" and isinstance(place, Estimate) and place.low < 2000 < place.high


def test_bumps_of_single_curves_are_no_peak_of_their_mean() -> None:
    """Clean curves with bumps of several points: `test_error_peak` was reached in every one of these trials."""
    clean = along_steps(0.35 + 0.5 / (1 + (STEPS / 100) ** 1.2), spread=0.015)
    result = PeakAnalysis(kind="peak", of="test_error", along="step").compute(clean)
    assert [found["peak"] for found in result.rows] == ["none", "none"]


def test_curves_of_different_lengths_are_compared_where_all_of_them_are() -> None:
    trials = [trial(r) for r in range(3)]
    read = {
        one.id: curves(0.5 - 0.001 * np.arange(len(STEPS[: 80 - 10 * k])), STEPS[: 80 - 10 * k])
        for k, one in enumerate(trials)
    }
    read[trials[0].id] = curves(np.append(np.zeros(len(STEPS) - 1), np.nan))
    given = source([(one, row(one)) for one in trials], axis("width", 12), curves=read)
    ((group, sample),) = given.curves(given.groups("step"), "test_error")
    assert len(group.rows) == 3 and len(sample.x) == len(STEPS[:60])
    assert np.isnan(sample.values).all(1).tolist() == [True, False, False]
    assert len(sample.complete().replicates) == 2


def complexity(errors: dict[int, tuple[float, ...]], **options: Any) -> Any:
    rows = []
    for n, replicates in errors.items():
        for r, error in enumerate(replicates):
            one = trial(r, sample_count=n)
            rows.append((one, row(one, final_train_error=error)))
    analysis = ComplexityAnalysis(kind="complexity", **options)
    return analysis.compute(source(rows, axis("sample_count", *errors)))


def test_the_complexity_is_that_of_the_mean_error() -> None:
    """The median of the third size is 0.05, which was taken as fitted: `effective_model_complexity` was 4,000."""
    result = complexity({500: (0, 0, 0), 1000: (0.02, 0.05, 0.05), 2000: (0.05, 0.05, 0.9), 0: (0.3, 0.4, 0.5)})
    (found,) = result.rows
    value = found["complexity"]
    assert found["largest_fitted"] == 1000 and found["censored"] == ""
    assert 1000 < value.value < 2000, "between the fitted and the next size, where 0 stands for the pool of 4,000"
    assert value.low <= value.value <= value.high


@pytest.mark.parametrize(("error", "sign", "bounds"), [(0.01, ">=", (1000, np.inf)), (0.6, "<", (0, 500))])
def test_the_complexity_is_censored_at_the_edges_of_the_grid(
    error: float, sign: str, bounds: tuple[float, float]
) -> None:
    """Formerly the edge as an exact number, or nothing at all."""
    result = complexity({500: (error,) * 3, 1000: (error,) * 3})
    (found,) = result.rows
    assert found["censored"] == sign and (found["complexity"].low, found["complexity"].high) == bounds
    assert any(f"censored {sign}" in note for note in result.notes)


def test_sizes_below_the_complexity_that_are_not_fitted_are_named() -> None:
    (found,) = complexity({500: (0.3, 0.3), 1000: (0.0, 0.0), 2000: (0.5, 0.5)}).rows
    assert (found["largest_fitted"], found["monotone"], found["not_fitted_below"]) == (1000, False, "500")


def threshold(errors: dict[int, tuple[float, ...]], **options: Any) -> Any:
    rows = []
    for width, replicates in errors.items():
        for r, error in enumerate(replicates):
            one = trial(r, width=width)
            rows.append((one, row(one, final_train_error=error)))
    return ThresholdAnalysis(kind="threshold", **options).compute(source(rows, axis("width", *errors)))


def test_the_interpolation_threshold_is_that_of_the_mean_error() -> None:
    """By hand: in log width the mean error falls from 0.1 at 8 to 0.02 at 32, and is 0.06 at 16.

    The interval ends at the thresholds of the two replicates: a quarter of the resamples has one of them alone.
    """
    errors = {2: (0.2, 0.4), 8: (0.05, 0.15), 32: (0.0, 0.04), 128: (0.0, 0.0)}
    result = threshold(errors, error=0.06)
    (found,) = result.rows
    place = found["threshold"]
    expected = (16, 2 * 4 ** (14 / 15), 8 * 4 ** (9 / 11))
    assert (place.value, place.low, place.high) == pytest.approx(expected)
    assert (found["largest_not_fitted"], found["monotone"], found["censored"]) == (8, True, "")
    assert result.metrics()["analysis/threshold_final_train_error_width/threshold"] == pytest.approx(16)
    assert result.lines()[0].startswith("interpolation threshold: width from which on the mean final_train_error")


@pytest.mark.parametrize(("error", "sign", "bounds"), [(0.3, ">=", (8, np.inf)), (0.0, "<", (0, 2))])
def test_the_threshold_is_censored_at_the_edges_of_the_grid(
    error: float, sign: str, bounds: tuple[float, float]
) -> None:
    result = threshold({2: (error,) * 3, 8: (error,) * 3})
    (found,) = result.rows
    assert found["censored"] == sign and (found["threshold"].low, found["threshold"].high) == bounds
    assert any(f"censored {sign}" in note for note in result.notes)


def test_widths_below_the_threshold_that_interpolate_are_named() -> None:
    (found,) = threshold({2: (0.0, 0.0), 4: (0.5, 0.5), 8: (0.0, 0.0)}).rows
    assert (found["monotone"], found["fitted_below"]) == (False, "2") and found["largest_not_fitted"] == 4


SWEEP = """\
name: linear
job: ridge
axes:
  features: [5, 10, 16, 20, 24, 40, 60]
fixed: {inputs: 60, sample_count: 20, noise_variance: 0.5}
replicates: 6
"""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_and_analyse_write_the_same_files_from_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("linear.yaml").write_text(SWEEP)
    out = Path("phasefront-out/linear")
    assert main(["run", "linear.yaml", "--inline", "--quiet"]) == 0
    assert "peak of the geometric mean final_test_loss along features" in capsys.readouterr().out
    first = {path.name: path.read_bytes() for path in out.glob("analysis*")}
    names = ("final_test_loss_features", "test_loss_step")
    tables = {f"analysis_peak_{name}.{ending}" for name in names for ending in ("csv", "png")}
    assert set(first) == {"analysis.json", "analysis.txt"} | tables
    (found,) = rows_of(out / "analysis_peak_final_test_loss_features.csv")
    assert float(found["place_low"]) <= float(found["place"]) <= float(found["place_high"])
    for path in out.glob("analysis*"):
        path.unlink()
    assert main(["analyse", "linear.yaml"]) == 0
    assert {path.name: path.read_bytes() for path in out.glob("analysis*")} == first

    # Another analysis in the file is computed by the next run, which trains nothing; files of the earlier are removed.
    mine = "analysis:\n  - {kind: peak, of: final_test_loss, along: features, name: mine}\n"
    Path("linear.yaml").write_text(SWEEP + mine)
    assert main(["run", "linear.yaml", "--inline", "--quiet"]) == 0
    assert "mine" in capsys.readouterr().out
    assert {path.name for path in out.glob("analysis_*")} == {"analysis_mine.csv", "analysis_mine.png"}
    (artifacts,) = Path("mlruns").rglob("analysis.json")
    assert {path.name for path in artifacts.parent.glob("analysis_*")} == {"analysis_mine.csv", "analysis_mine.png"}
    assert [one["name"] for one in json.loads(artifacts.read_text())["analyses"]] == ["mine"]
    assert main(["run", "linear.yaml", "--inline", "--quiet"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_heavy_tails_hide_a_peak_of_the_mean_and_not_of_the_geometric_mean() -> None:
    random = np.random.default_rng(3)
    rows = []
    for r in range(8):
        for width, error in PEAKED.items():
            one = trial(r, width=width)
            tail = 1 / random.uniform() if width == 64 else 1 + 0.1 * random.uniform()
            rows.append((one, row(one, final_test_error=error * tail)))
    options = {"kind": "peak", "of": "final_test_error", "along": "width"}
    linear = PeakAnalysis(**options).compute(source(rows, WIDTHS)).rows[0]  # type: ignore[arg-type]
    log = PeakAnalysis(**options, scale="log").compute(source(rows, WIDTHS)).rows[0]  # type: ignore[arg-type]
    assert (linear["peak"], log["peak"]) == ("none", "yes")
    height = log["height"]
    assert isinstance(height, Estimate) and height.value > 0.6, "in the unit of the error, not of its logarithm"


def test_the_peak_of_least_squares_is_at_the_threshold(tmp_path: Path) -> None:
    """The default of a ridge sweep, on trials as the job trains them: p = n = 20, and p = n = 40."""
    text = SWEEP.replace("[5, 10, 16, 20, 24, 40, 60]", "[5, 10, 20, 40, 60, 80]").replace("inputs: 60", "inputs: 80")
    text = text.replace("sample_count: 20, ", "").replace("fixed", "  sample_count: [20, 40]\nfixed")
    sweep = load(tmp_path, text)
    job, trials = sweep.job_object(), sweep.trials()
    measured = curves_of(job, [Member(params=one.params, seed=one.seed) for one in trials])
    observed = [job.observe(one.params, measured[k], sweep.thresholds()) for k, one in enumerate(trials)]
    rows = [(one, row(one, **seen)) for one, seen in zip(trials, observed, strict=True)]
    analysis = next(one for one in sweep.analyses if one.label == "peak_final_test_loss_features")
    result = analysis.compute(source(rows, *sweep.axes, job=job))
    places = {found["sample_count"]: found["place"] for found in result.rows}
    assert {n: place.value for n, place in places.items() if isinstance(place, Estimate)} == {20: 20, 40: 40}


def load(folder: Path, text: str) -> Sweep:
    (folder / "s.yaml").write_text(text)
    return Sweep.load(folder / "s.yaml")


def test_the_analysis_is_no_part_of_a_trials_id_nor_of_the_sweeps(tmp_path: Path) -> None:
    plain = load(tmp_path, SWEEP)
    named = load(tmp_path, SWEEP + "analysis: [{kind: peak, of: test_loss, along: step, window: 2}]\n")
    assert (plain.id, [t.id for t in plain.trials()]) == (named.id, [t.id for t in named.trials()])
    again = load(tmp_path, named.resolved_yaml())
    assert again.analyses == named.analyses and again.id == named.id
    assert plain.resolved_yaml() == load(tmp_path, SWEEP + "analysis:\n").resolved_yaml()


def test_defaults_apply_where_axes_and_replicates_suffice(tmp_path: Path) -> None:
    def names(text: str) -> list[str]:
        return [analysis.label for analysis in load(tmp_path, text).analyses]

    assert names(SWEEP) == ["peak_final_test_loss_features", "peak_test_loss_step"]
    assert names(SWEEP.replace("replicates: 6", "replicates: 1")) == []
    assert names(SWEEP + "analysis: []\n") == []
    few = SWEEP.replace("[5, 10, 16, 20, 24, 40, 60]", "[5, 10]")
    assert names(few) == ["peak_test_loss_step"]
    crossed = SWEEP.replace("[5, 10, 16, 20, 24, 40, 60]", "{scale: linear, from: 1, to: 40, points: 40}")
    crossed = crossed.replace(", noise_variance: 0.5", "").replace("fixed", "  noise_variance: [0, 0.5]\nfixed")
    assert names(crossed) == ["peak_final_test_loss_features"], "80 settings: not all curves are read by default"


MISTAKES = {
    "[{kind: peek, of: a, along: b}]": ("8:19", "unknown kind of analysis", "did you mean 'peak'?"),
    "[{of: a, along: b}]": ("8:12", "'kind' is missing", "add for example 'kind: peak'"),
    "[peak]": ("8:12", "an analysis is a mapping with a kind", "value: 'peak'"),
    "peak": ("8:11", "'analysis' must be a list of analyses", "write for example"),
    "[{kind: peak, along: features}]": ("8:12", "'of' is missing", "add 'of: ...'"),
    "[{kind: peak, of: final_test_los, along: features}]": (
        "8:29",
        "'final_test_los' is no observation of job 'ridge'",
        "did you mean 'final_test_loss'?",
    ),
    "[{kind: peak, of: final_test_loss, along: feature}]": (
        "8:53",
        "'feature' is no axis with numbers in this sweep",
        "did you mean 'features'?",
    ),
    "[{kind: peak, of: final_test_loss, along: step}]": (
        "8:29",
        "'final_test_loss' is no metric of job 'ridge'",
        "did you mean",
    ),
    "[{kind: peak, of: test_loss, along: step, windw: 2}]": ("8:53", "unknown key 'windw'", "did you mean 'window'?"),
    "[{kind: peak, of: test_loss, along: step, window: 0.5}]": ("8:61", "'window' must be a number >= 1", "value: 0.5"),
    "[{kind: times, of: final_test_loss, tune: [features]}]": (
        "8:53",
        "'tune' needs 'between'",
        "add 'between: AXIS'",
    ),
    "[{kind: times, of: final_test_loss, between: features, tune: [features]}]": (
        "8:72",
        "'features' is compared, and cannot be tuned",
        "leave it out",
    ),
    "[{kind: law, of: final_test_loss, along: features, form: [power, brokn]}]": (
        "8:76",
        "'form.1' must be one of power, floor, critical, broken",
        "",
    ),
    "[{kind: critical, of: final_test_loss, along: features, moves: true}]": (
        "8:74",
        "'moves' needs 'size'",
        "add 'size: AXIS'",
    ),
    "[{kind: law, of: final_test_loss, along: features, form: []}]": ("8:68", "'form' must be one of power", ""),
    "[{kind: step_map, of: final_test_loss, along: features}]": (
        "8:33",
        "'final_test_loss' is no metric of job 'ridge'",
        "did you mean",
    ),
    "[{kind: peak, of: test_loss, along: step, level: 1}]": (
        "8:60",
        "'level' must be a number > 0 and < 1",
        "value: 1",
    ),
    "[{kind: peak, of: test_loss, along: step}, {kind: peak, of: test_loss, along: step}]": (
        "8:54",
        "two analyses are named 'peak_test_loss_step'; the first is entry 1",
        "another 'name:'",
    ),
}


@pytest.mark.parametrize("written", MISTAKES)
def test_a_mistake_is_named_at_its_place(tmp_path: Path, written: str) -> None:
    place, rule, step = MISTAKES[written]
    with pytest.raises(UserError) as caught:
        load(tmp_path, SWEEP + f"seed: 0\nanalysis: {written}\n")
    (text,) = [mistake.text for mistake in caught.value.mistakes]
    assert text.startswith(f"{tmp_path / 's.yaml'}:{place}: {rule}") and step in text


def test_every_default_of_a_job_is_a_valid_analysis() -> None:
    from jobs.catalogue import BUILT_IN, load_job
    from orchestrator.analyses.kinds import _ONE

    for name in BUILT_IN:
        for entry in load_job(name).analyses(load_job(name).Thresholds()):
            assert isinstance(_ONE.validate_python(dict(entry)), Analysis)


@pytest.mark.slow
def test_analyse_works_over_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("linear.yaml").write_text(SWEEP)
    database = empty_sqlite(tmp_path / "mlflow.db")
    with mlflow_server(f"sqlite:///{database}", tmp_path / "artifacts") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert main(["run", "linear.yaml", "--inline", "--quiet", "--no-map"]) == 0
        assert not list(Path("phasefront-out").rglob("analysis*"))
        assert main(["analyse", "linear.yaml"]) == 0
    assert "peak of the geometric mean test_loss along step" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "artifacts").rglob("analysis*")} == {
        path.name for path in Path("phasefront-out/linear").glob("analysis*")
    }

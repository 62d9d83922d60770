"""The step as an axis of the map: means and peaks from stored curves, in bounded memory, by the command line."""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from jobs_for_phases import Melt, MeltParams, axis, by_id, product, row
from matplotlib.image import imread
from recorded_sweeps import recorded_folder

from jobs.job import Curves, specs
from orchestrator.axes import Axis
from orchestrator.cli import main
from orchestrator.phases import steps as module
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.publish_steps import publish_steps, step_axis_of
from orchestrator.phases.step_text import outcome
from orchestrator.phases.steps import NoSuchMetric, StepMap, read_step_map
from orchestrator.phases.table import TrialTable, collect
from orchestrator.trial import Trial

WIDTHS = axis("width", 4, 8, 16, 32, 64, 128, scale="integer")
HEATS = axis("heat", 0.0, 1.0, scale="linear")
STEPS = np.unique(np.geomspace(1, 10_000, 30).round().astype(np.int64))


class Record:
    """Curves by trial, read one at a time; counts what is asked for."""

    def __init__(self, curves: Mapping[str, Curves]) -> None:
        self.curves, self.read = curves, 0

    def __call__(self, trial_ids: Sequence[str]) -> Iterator[tuple[str, Curves]]:
        for trial_id in trial_ids:
            self.read += 1
            if trial_id in self.curves:
                yield trial_id, self.curves[trial_id]


def of(step: Any, **values: Any) -> Curves:
    return Curves(step=np.asarray(step, dtype=np.int64), values={k: np.asarray(v, float) for k, v in values.items()})


def drawn(axes: Sequence[Axis], trials: Sequence[Trial], **more: Any) -> tuple[PhaseDiagram, TrialTable]:
    table = collect(trials, by_id(*(row(trial) for trial in trials)))
    return phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams), **more), table


def read(axes: Sequence[Axis], trials: Sequence[Trial], record: Record, *metrics: str, **more: Any) -> StepMap:
    diagram, table = drawn(axes, trials, **more)
    x = step_axis_of(diagram)
    assert x is not None
    return read_step_map(diagram, table, metrics or ("error",), record, x=x)


def descending(trials: Sequence[Trial], *, along_width: bool, along_steps: bool, noise: float = 0.01) -> Record:
    """Errors that fall with the width and the step, with a peak of 0.2 at width 32 or step 300 if asked for."""
    random = np.random.default_rng(5)
    curves = {}
    for trial in trials:
        width = np.log(trial.params.width)  # type: ignore[attr-defined]
        error = 0.9 - 0.03 * np.log(STEPS) - 0.04 * width
        error += along_width * 0.2 * np.exp(-((width - np.log(32)) ** 2))
        error += along_steps * 0.2 * np.exp(-((np.log(STEPS / 300)) ** 2))
        curves[trial.id] = of(STEPS, error=error + noise * random.normal(size=len(STEPS)))
    return Record(curves)


def test_a_cell_is_the_mean_over_replicates_with_its_interval_at_every_step() -> None:
    trials = product((WIDTHS,), replicates=5)
    record = descending(trials, along_width=False, along_steps=False)
    step_map = read((WIDTHS,), trials, record)
    (found,) = step_map.maps
    np.testing.assert_array_equal(step_map.steps, STEPS)
    for cell, width in enumerate(WIDTHS.values):
        own = np.array([record.curves[t.id].values["error"] for t in trials if t.params.width == width])  # type: ignore[attr-defined]
        np.testing.assert_allclose(found.mean[cell], own.mean(axis=0))
        half = 2.131846786 * own.std(axis=0, ddof=1) / 5**0.5  # Student's t, 4 degrees of freedom, 95%
        np.testing.assert_allclose(found.high[cell] - found.mean[cell], half, rtol=1e-6)
        np.testing.assert_allclose(found.mean[cell] - found.low[cell], half, rtol=1e-6)
    assert (found.count == 5).all() and step_map.trials == 30 and not found.partial


@pytest.mark.parametrize("along_width", [False, True])
@pytest.mark.parametrize("along_steps", [False, True])
def test_peaks_are_found_where_they_are_and_nowhere_else(along_width: bool, along_steps: bool) -> None:
    trials = product((WIDTHS,), replicates=8)
    step_map = read((WIDTHS,), trials, descending(trials, along_width=along_width, along_steps=along_steps))
    (one,) = step_map.maps[0].slices
    last = one.along_axis[len(STEPS) - 1]
    assert (last.peak is not None) == along_width
    if last.peak is not None:
        assert last.peak.x.value == 32 and last.replicates == 8
    else:
        assert re.match(r"none, as falls of \S+ standard errors do not exceed \S+ \(p = ", outcome(last, "width"))
    assert set(one.along_steps) == set(range(6))
    found = [search for search in one.along_steps.values() if search.peak is not None]
    assert len(found) >= 5 if along_steps else len(found) <= 1, "of six curves without a peak, 2% each"
    for search in found if along_steps else ():
        assert search.peak is not None and 150 < search.peak.x.value < 600


def test_a_trial_that_diverges_is_left_out_from_then_on_and_the_number_of_replicates_says_so() -> None:
    trials = product((WIDTHS,), replicates=3)
    record = descending(trials, along_width=False, along_steps=False)
    gone = record.curves[trials[0].id].values["error"]
    gone[20:] = np.nan
    (found,) = read((WIDTHS,), trials, record).maps
    cell = WIDTHS.values.index(trials[0].params.width)  # type: ignore[attr-defined]
    assert found.count[cell].tolist() == [3] * 20 + [2] * (len(STEPS) - 20)
    assert np.isfinite(found.mean).all() and found.partial == len(STEPS) - 20
    assert found.slices[0].along_steps[cell].replicates == 2, "a replicate that ended is no curve to average"


def test_trials_with_other_steps_are_read_at_the_steps_of_the_grid() -> None:
    """Half of the trials report at other steps of the same line in log-step, and one ends early."""
    trials = product((WIDTHS,), replicates=2)
    curves = {}
    for k, trial in enumerate(trials):
        step = STEPS if k % 2 else np.arange(0, 10_001, 500)
        step = step[: len(step) // 2] if k == 1 else step
        curves[trial.id] = of(step, error=1 - 0.05 * np.log1p(step))
    step_map = read((WIDTHS,), trials, Record(curves))
    (found,) = step_map.maps
    known = np.isfinite(found.mean)
    line = np.broadcast_to(1 - 0.05 * np.log1p(step_map.steps), found.mean.shape)
    np.testing.assert_allclose(found.mean[known], line[known])
    assert known.all(axis=0).sum() == len(step_map.steps)


def test_what_is_kept_grows_with_the_figure_and_not_with_the_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STEPS", 16)
    monkeypatch.setattr(module, "MOST_CELLS", 4)
    monkeypatch.setattr(module, "MOST_KEPT", 200)
    trials = product((WIDTHS, HEATS), replicates=4)
    long = np.arange(1, 20_001)
    record = Record({trial.id: of(long, error=1 / long) for trial in trials})
    diagram, table = drawn((WIDTHS, HEATS), trials)
    step_map = read_step_map(diagram, table, ["error"], record, x=0)
    (found,) = step_map.maps
    assert found.mean.shape == (12, 16) and step_map.steps[[0, -1]].tolist() == [1, 20_000]
    assert all(len(one.along_axis) == 200 // len(trials) for one in found.slices), "4 numbers for each of 48 trials"
    assert all(max(one.along_axis) == 15 for one in found.slices), "the last step is one of them"
    assert record.read <= len(trials) + 40, "each curve once, and a few to know the steps"
    joined = read((WIDTHS, HEATS), trials, record, most_cells=6)
    assert joined.diagram.joined > 1
    assert not any(one.along_axis or one.along_steps for one in joined.maps[0].slices), "joined settings: no replicates"


def test_a_third_axis_cuts_the_map_into_slices_of_the_axis_that_is_asked_for() -> None:
    trials = product((WIDTHS, HEATS))
    record = Record({t.id: of([1, 2, 3], error=[0, 0, 10 * t.params.width + t.params.heat]) for t in trials})  # type: ignore[attr-defined]
    diagram, table = drawn((WIDTHS, HEATS), trials)
    for x, (across, other) in enumerate(((WIDTHS, HEATS), (HEATS, WIDTHS))):
        (found,) = read_step_map(diagram, table, ["error"], record, x=x).maps
        assert [one.panel.fixed[other.name] for one in found.slices] == list(other.values)
        for one in found.slices:
            setting = one.panel.fixed[other.name]
            pairs = [(v, setting) if across is WIDTHS else (setting, v) for v in across.values]
            assert found.mean[one.cell, 2].tolist() == [10 * w + h for w, h in pairs]  # type: ignore[operator]
        assert not found.slices[0].along_steps, "one replicate has no standard error"


def test_a_metric_that_no_curve_has_is_refused_with_those_that_there_are() -> None:
    trials = product((WIDTHS,))
    with pytest.raises(NoSuchMetric) as caught:
        read((WIDTHS,), trials, Record({t.id: of([1, 2], loss=[1, 2], error=[1, 2]) for t in trials}), "losses")
    assert (caught.value.metric, caught.value.choices) == ("losses", ("error", "loss"))


def test_the_files_hold_what_was_read(tmp_path: Path) -> None:
    trials = product((WIDTHS, HEATS), replicates=3)
    step_map = read((WIDTHS, HEATS), trials, descending(trials, along_width=True, along_steps=False))
    figures = publish_steps(step_map, tmp_path)
    assert set(figures.files) == {"step_map_error.png", "step_map.html", "step_map.parquet", "step_map_peaks.json"}
    rows = pq.read_table(figures.files["step_map.parquet"]).to_pylist()
    assert len(rows) == 12 * len(STEPS) and set(rows[0]) >= {"metric", "width", "heat", "step", "replicates"}
    (found,) = step_map.maps
    cells = {(WIDTHS.values[w], HEATS.values[h]): c for c, (w, h) in enumerate(step_map.diagram.codes.tolist())}
    for one in rows[:: len(STEPS) // 3]:
        at = cells[one["width"], one["heat"]], STEPS.tolist().index(one["step"])
        assert (one["mean"], one["low"], one["high"]) == (found.mean[at], found.low[at], found.high[at])
        assert one["replicates"] == 3
    peaks = json.loads(figures.files["step_map_peaks.json"].read_text())
    assert len(peaks) == 2 * (6 + len(STEPS))
    (last,) = [p for p in peaks if p["where"] == {"heat": 0.0, "step": 10_000}]
    assert last["kind"] == "along_axis" and last["replicates"] == 3 and (last["peak"] or {"x": 0})["x"]
    picture = imread(figures.files["step_map_error.png"])
    assert min(picture.shape[:2]) > 500 and len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 100


# By the command line, with a record of an earlier version.


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_folder(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a record, in which the command runs."""
    monkeypatch.chdir(folder)
    return folder


def test_map_draws_the_step_as_an_axis_from_the_record_alone(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["map", "grid.yaml", "--step", "test_accuracy", "--step", "weight_norm"]) == 0
    said = capsys.readouterr().out
    assert "test_accuracy: mean over 2 replicates  ·  25 settings × 12 steps" in said
    assert re.search(r"peak of 1 - test_accuracy along the steps: none in all slices", said)
    out = recorded / "grid"
    for name in ("step_map_test_accuracy.png", "step_map_weight_norm.png", "step_map.html", "step_map.parquet"):
        assert (out / name).stat().st_size > 3000, name
        assert f"{out.name}/{name}" in said
    rows = pq.read_table(out / "step_map.parquet").to_pylist()
    assert len(rows) == 2 * 25 * 12
    # The same numbers by MLflow's tables.
    with sqlite3.connect("record.db") as connection:
        query = """SELECT m.value FROM metrics m JOIN params f ON f.run_uuid = m.run_uuid AND f.key = 'data_fraction'
            JOIN params w ON w.run_uuid = m.run_uuid AND w.key = 'weight_decay' JOIN runs r ON r.run_uuid = m.run_uuid
            WHERE m.key = 'test_accuracy' AND m.step = 600 AND m.timestamp >= r.start_time
            AND abs(f.value - 0.8) < 1e-9 AND abs(w.value - 0.1) < 1e-9"""
        own = [value for (value,) in connection.execute(query)]
    connection.close()
    (one,) = [
        r
        for r in rows
        if (r["metric"], r["step"]) == ("test_accuracy", 600)
        and abs(r["data_fraction"] - 0.8) < 1e-9
        and abs(r["weight_decay"] - 0.1) < 1e-9
    ]
    assert one["mean"] == pytest.approx(np.mean(own)) and one["replicates"] == len(own) == 2
    stored = [path.name for path in recorded.rglob("step_map.parquet")]
    assert len(stored) == 2, "beside the map, and with the parent run"

    # A map without the option leaves them, and says that they are old once the record has changed.
    for again in ([], ["--step", "test_accuracy"], []):
        assert "show the record as an earlier `map` found it" not in said
        assert main(["map", "grid.yaml", *again]) == 0
        said = capsys.readouterr().out
    assert "show the record as an earlier `map` found it" not in said
    assert main(["map", "grid.yaml", "--set", "phases.grokking_gap=150"]) == 0
    said = capsys.readouterr().out
    assert main(["map", "grid.yaml"]) == 0  # the labels as they were
    assert "warning: step_map.html and 4 more show the record as an earlier `map` found it" in said
    assert (out / "step_map_test_accuracy.png").is_file()


def test_the_legend_of_peaks_calls_the_axis_as_the_style_does(recorded: Path) -> None:
    style = "figure: {labels: {weight_decay: 'decay $\\lambda$'}}\n"
    Path("called.yaml").write_text(Path("grid.yaml").read_text() + style)
    for suffix, entry in (("svg", "λ"), ("html", r"peak along decay \u03bb: 2 of 60 tested")):
        assert main(["map", "called.yaml", "--step", "test_accuracy", "-o", f"called.{suffix}"]) == 0
        drawn = Path(f"called.{suffix}").read_text()
        assert entry in drawn and "weight decay: 2 of 60 tested" not in drawn


def test_the_file_that_is_named_has_the_figure_that_is_asked_for(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = ["--step", "test_accuracy"]
    assert main(["map", "grid.yaml", *step, "-o", "fig/one.svg", "--width", "single"]) == 0
    assert re.search(r"^figure +fig/one.svg$", capsys.readouterr().out, re.M)
    picture = Path("fig/one.svg").read_text()
    assert ">test accuracy (mean)</text>" in picture and ">step</text>" in picture and "memori" not in picture
    assert main(["map", "grid.yaml", *step, "-o", "fig/one.html"]) == 0
    assert "12 steps" in Path("fig/one.html").read_text()
    more = ["--step", "weight_norm", "--against", "x=weight_decay", "y=final_test_accuracy"]
    capsys.readouterr()
    assert main(["map", "grid.yaml", *step, *more, "-o", "fig/all.svg"]) == 0
    made = {path.name for path in Path("fig").glob("all*")}
    of = ("step_map_test_accuracy", "step_map_weight_norm", "final_test_accuracy_against_weight_decay")
    assert made == {f"all_{name}.svg" for name in of}
    assert all(f"fig/{name}" in capsys.readouterr().out for name in list(made)[:1])
    assert main(["map", "grid.yaml", "-o", "fig/map.svg"]) == 0
    assert "memori" in Path("fig/map.svg").read_text(), "the phase diagram, where nothing else is asked for"


@pytest.mark.parametrize(
    ("file", "options", "said"),
    [
        ("grid.yaml", ["--step", "test_acuracy"], "did you mean 'test_accuracy'"),
        ("grid.yaml", ["--step", "test_accuracy", "--along", "weight"], "valid: weight_decay, data_fraction"),
        ("phase_search.yaml", ["--step", "test_accuracy"], "needs a grid"),
    ],
)
def test_what_cannot_be_drawn_is_a_mistake_with_a_way_out(
    file: str, options: list[str], said: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["map", file, *options]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error

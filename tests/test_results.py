"""`import phasefront`: tables of trials and curves, counted against SQL on a real record of an earlier version."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from recorded_sweeps import recorded_folder
from results_kit import EXPECTED, environment, points_of, runs_of, sql
from servers import mlflow_server

import phasefront
from orchestrator.cli import main
from orchestrator.errors import UserError

METRICS = ["train_accuracy", "test_accuracy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_folder(tmp_path_factory.mktemp("results"))


@pytest.fixture(autouse=True)
def _beside_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_there_is_a_row_for_every_recorded_trial(name: str) -> None:
    trials = phasefront.load(f"{name}.yaml").trials()
    assert dict(zip(trials.trial_id, trials.run_id, strict=True)) == runs_of(name)
    found = {row.trial_id: [row.run_id, row.phase, row.status] for row in trials.itertuples()}
    assert found == EXPECTED[name]["trials"]
    tags = dict(sql("SELECT run_uuid, value FROM tags WHERE key = 'phasefront.observations'"))
    for row in trials.to_dict("records"):
        for observation, value in json.loads(tags[row["run_id"]]).items():
            censored = value["censored"] if isinstance(value, dict) else None
            assert np.isnan(row[observation]) if censored is not None else row[observation] == float(value)
            bound = row[f"{observation}_censored_at"]
            assert np.isnan(bound) if censored is None else bound == censored


def test_the_table_has_the_documented_types() -> None:
    trials = phasefront.load("grid.yaml").trials()
    assert {
        name: str(trials.dtypes[name]) for name in ("replicate", "weight_decay", "width", "final_test_accuracy")
    } == {
        "replicate": "int64",
        "weight_decay": "float64",
        "width": "int64",
        "final_test_accuracy": "float64",
    }
    assert list(trials.status.cat.categories) == ["RUNNING", "FINISHED", "FAILED", "KILLED", "MISSING"]
    assert list(trials.phase.cat.categories)[:2] == ["comprehension", "grokking"]
    assert trials.trial_id.dtype == pd.Series(["text"]).dtype


def test_summaries_of_a_metric_are_those_of_its_curve() -> None:
    """The last and the extreme values have columns of different names, with the step of each."""
    sweep = phasefront.load("grid.yaml")
    names = [f"test_loss_{summary}{step}" for summary in ("last", "min", "max") for step in ("", "_step")]
    trials = sweep.trials(summaries=["test_loss"])
    assert list(trials.columns) == [*sweep.trials().columns, *names]
    points = points_of(runs_of("grid"), "test_loss")
    for row in trials.to_dict("records"):
        curve = {step: value for (trial_id, step), value in points.items() if trial_id == row["trial_id"]}
        last = max(curve)
        assert (row["test_loss_last_step"], row["test_loss_last"]) == (last, curve[last])
        for name, of in (("min", min), ("max", max)):
            assert row[f"test_loss_{name}"] == of(curve.values())
            assert curve[int(row[f"test_loss_{name}_step"])] == row[f"test_loss_{name}"]
    both = sweep.trials(summaries=["test_loss", "train_loss"], format="arrow")
    assert str(both.schema.field("train_loss_max_step").type) == "int64" and both.num_columns == len(trials.columns) + 6
    missing = phasefront.load("grid.yaml", overrides={"replicates": 3}).trials(summaries=["test_loss"])
    assert missing[missing.status == "MISSING"][names].isna().all().all()
    with pytest.raises(UserError, match="is no metric of this sweep"):
        sweep.trials(summaries=["final_test_loss"])


def test_a_summary_is_of_the_finite_values_and_of_the_steps_that_have_one() -> None:
    from jobs.job import Curves
    from orchestrator.results.curves import summaries

    class Record:
        def curves(self, trial_ids: list[str], metrics: list[str]) -> Any:
            step, nan = np.array([1, 2, 3, 4]), np.nan
            present = {"loss": np.array([True, True, True, False])}
            yield "b", Curves(step=step, values={"loss": np.array([3.0, 2.0, nan, nan])}, present=present)

    found = {name: column.to_pylist() for name, column in summaries(Record(), ["a", "b"], ["loss"]).items()}  # type: ignore[arg-type]
    assert [found[f"loss_{name}_step"] for name in ("last", "min", "max")] == [[None, 3], [None, 2], [None, 1]]
    assert found["loss_min"] == [None, 2] and found["loss_max"] == [None, 3]
    assert found["loss_last"][0] is None and np.isnan(found["loss_last"][1]), "the last value is as it was measured"


def test_the_table_is_that_of_map() -> None:
    sweep = phasefront.load("grid.yaml")
    assert main(["map", "grid.yaml"]) == 0
    written = pa.parquet.read_table(sweep.sweep.output / "trials.parquet")
    given = sweep.trials(format="arrow")
    assert given.equals(written)
    assert _stated(given) == _stated(written)


def _stated(table: pa.Table) -> dict[bytes, Any]:
    """The metadata, but for when the sweep's run was created, which only `map` asks the record for."""
    notes = {key: json.loads(value) for key, value in table.schema.metadata.items()}
    return {key: {name: note[name] for name in note if name != "sweep_start_ms"} for key, note in notes.items()}


def test_a_trial_that_is_not_recorded_is_missing() -> None:
    trials = phasefront.load("grid.yaml", overrides={"replicates": 3}).trials()
    recorded = trials[trials.replicate < 2]
    assert set(recorded.status) == {"FINISHED"}
    missing = trials[trials.replicate == 2]
    assert len(missing) == len(recorded) / 2 == 25
    assert set(missing.status) == {"MISSING"}
    assert missing.run_id.isna().all() and missing.phase.isna().all() and missing.final_test_accuracy.isna().all()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_curves_have_every_recorded_point_once(name: str) -> None:
    sweep = phasefront.load(f"{name}.yaml")
    metrics = METRICS if "test_accuracy" in sweep.metrics else ["train_loss", "test_loss"]
    curves = sweep.curves(metrics)
    assert list(curves.columns) == ["trial_id", "step", *metrics]
    assert [str(kind) for kind in curves.dtypes] == ["category", "int64", "float64", "float64"]
    assert not curves.duplicated(["trial_id", "step"]).any()
    for metric in metrics:
        points = {(t, s): v for t, s, v in zip(curves.trial_id, curves.step, curves[metric], strict=True)}
        assert points == points_of(runs_of(name), metric)


def test_all_metrics_are_read_by_default_and_axes_are_joined_on_request() -> None:
    sweep = phasefront.load("grid.yaml")
    curves = sweep.curves(axes=True)
    assert list(curves.columns[:5]) == ["trial_id", "step", "weight_decay", "data_fraction", "replicate"]
    assert tuple(curves.columns[5:]) == sweep.metrics
    (rows,) = sql(
        "SELECT COUNT(*) FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
        "WHERE m.timestamp >= r.start_time AND r.run_uuid IN (SELECT value FROM json_each(?))",
        json.dumps(list(runs_of("grid").values())),
    )
    assert int(curves[list(sweep.metrics)].notna().sum().sum()) == rows[0]
    trials = sweep.trials().set_index("trial_id")
    for axis in ("weight_decay", "data_fraction", "replicate"):
        assert (curves[axis].to_numpy() == trials.loc[curves.trial_id.astype(str), axis].to_numpy()).all()


def test_chunks_make_up_the_whole_table() -> None:
    sweep = phasefront.load("level_search.yaml")
    chunks = list(sweep.curve_chunks(METRICS, axes=True, trials_a_chunk=7, format="arrow"))
    assert len(chunks) == -(-len(EXPECTED["level_search"]["trials"]) // 7)
    assert all(chunk.schema.equals(chunks[0].schema) for chunk in chunks)
    whole = pa.concat_tables(chunks).unify_dictionaries().to_pandas()
    pd.testing.assert_frame_equal(whole, sweep.curves(METRICS, axes=True))


def test_curves_of_some_trials() -> None:
    sweep = phasefront.load("grid.yaml")
    trials = sweep.trials()
    wanted = trials.trial_id[trials.phase == "grokking"].tolist()
    assert 0 < len(wanted) < len(trials)
    curves = sweep.curves(["test_accuracy"], trials=wanted)
    assert list(dict.fromkeys(curves.trial_id)) == wanted
    assert sweep.curves(["test_accuracy"], trials=[]).empty


def test_other_formats_hold_the_same_numbers() -> None:
    sweep = phasefront.load("grid.yaml")
    arrow, polars = sweep.trials(format="arrow"), sweep.trials(format="polars")
    assert polars.to_arrow().num_rows == arrow.num_rows == len(sweep.trials())
    never = arrow["generalisation_step"].null_count
    assert never == sweep.trials().generalisation_step.isna().sum() == polars["generalisation_step"].null_count() > 0
    assert sweep.curves(METRICS, format="polars").shape == sweep.curves(METRICS).shape


def test_the_dictionary_has_every_column_once() -> None:
    sweep = phasefront.load("grid.yaml")
    dictionary = sweep.dictionary()
    of_trials = dictionary[dictionary.table == "trials"]
    arrow = sweep.trials(format="arrow")
    assert list(of_trials.column) == arrow.column_names
    assert list(of_trials.type) == [str(field.type) for field in arrow.schema]
    curves = sweep.curves(axes=True, format="arrow")
    of_curves = dictionary[dictionary.table == "curves"]
    assert list(of_curves.column) == curves.column_names
    assert list(of_curves.type)[1:] == [str(field.type) for field in curves.schema][1:]
    meaning = of_trials.set_index("column").meaning
    assert "last step" in meaning["final_test_accuracy"]
    assert (dictionary.meaning != "").all()


@pytest.mark.parametrize(
    ("call", "texts"),
    [
        (
            lambda: phasefront.load("grid.yaml").curves(["test_acuracy"]),
            ["test_acuracy", "did you mean 'test_accuracy'?"],
        ),
        (lambda: phasefront.load("grid.yaml").curves("test_accuracy"), ["metrics=['test_accuracy']"]),
        (lambda: phasefront.load("grid.yaml").curves(trials=["x"]), ["is no trial of this sweep"]),
        (lambda: phasefront.load("grid.yaml").trials(format="panda"), ["did you mean 'pandas'?"]),
        (lambda: phasefront.load("grd.yaml"), ["there is no such file", "did you mean 'grid.yaml'?"]),
        (lambda: phasefront.load("grid.yaml", overrides="seed=1"), ["overrides=['seed=1']"]),
        (lambda: phasefront.load("grid.yaml", tracking="sqlite:///record.db"), ["a sweep file names its own"]),
        (lambda: phasefront.load({"job": "groking", "axes": {"width": [1]}}), ["the sweep: ", "grokking"]),
        (lambda: phasefront.load("0" * 32, tracking="sqlite:///record.db"), ["0" * 32, "record.db"]),
        (lambda: phasefront.load("0" * 32, tracking="sqlite:///nothing.db"), ["there must be a record to read"]),
        (lambda: phasefront.load("http://host:5000/#/experiments/1/runs?x=1"), ["copy its address"]),
    ],
)
def test_a_mistake_says_what_to_do(call: Any, texts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert all(text in error.value.text for text in texts), error.value.text


def test_a_library_that_is_not_installed_is_named() -> None:
    code = (
        "import sys; sys.modules['polars'] = None\n"
        "import phasefront\n"
        "try: phasefront.load('grid.yaml').trials(format='polars')\n"
        "except phasefront.UserError as error: print(error.text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert "pip install polars" in done.stdout, done.stderr


def test_a_mapping_is_the_file_with_its_content() -> None:
    import yaml

    content = yaml.safe_load(Path("grid.yaml").read_text())
    content["axes"]["weight_decay"]["points"] = np.int64(4)
    loaded = phasefront.load(content)
    assert loaded.sweep.id == phasefront.load("grid.yaml").sweep.id
    assert len(loaded.trials()) == 50


def test_a_sweep_is_loaded_by_the_run_of_its_parent_or_of_a_trial() -> None:
    (parent,) = sql("SELECT run_uuid FROM runs WHERE name = 'earlier-grid'")[0]
    trial = next(iter(runs_of("grid").values()))
    expected = phasefront.load("grid.yaml")
    for run in (parent, trial):
        loaded = phasefront.load(run, tracking="sqlite:///record.db")
        assert loaded.sweep.id == expected.sweep.id
        pd.testing.assert_frame_equal(loaded.trials(), expected.trials())


@pytest.mark.slow
def test_a_sweep_is_loaded_by_the_address_of_its_run_on_a_server(folder: Path, tmp_path: Path) -> None:
    expected = phasefront.load("grid.yaml")
    parent, experiment = sql("SELECT run_uuid, experiment_id FROM runs WHERE name = 'earlier-grid'")[0]
    with mlflow_server(f"phasefront-sqlite:///{folder}/record.db", tmp_path / "artifacts") as uri:
        loaded = phasefront.load(f"{uri}/#/experiments/{experiment}/runs/{parent}")
        assert loaded.sweep.tracking.uri == uri
        pd.testing.assert_frame_equal(loaded.trials(), expected.trials())
        pd.testing.assert_frame_equal(loaded.curves(METRICS, axes=True), expected.curves(METRICS, axes=True))


def test_reading_writes_nothing() -> None:
    before = sql("SELECT COUNT(*), MAX(start_time), MAX(end_time) FROM runs"), sql("SELECT COUNT(*) FROM tags")
    content = Path("record.db").read_bytes()
    sweep = phasefront.load("grid.yaml")
    sweep.trials(), sweep.curves()
    assert (
        sql("SELECT COUNT(*), MAX(start_time), MAX(end_time) FROM runs"),
        sql("SELECT COUNT(*) FROM tags"),
    ) == before
    assert Path("record.db").read_bytes() == content


def test_phases_under_other_thresholds_are_warned_of() -> None:
    sweep = phasefront.load("grid.yaml", overrides=["phases.grokking_gap=50"])
    with pytest.warns(
        UserWarning, match=r"50 trials of earlier-grid are labelled under other thresholds \(`phases:`\)"
    ):
        sweep.trials()


def test_the_import_is_light() -> None:
    code = (
        "import phasefront, sys; print([m for m in ('torch', 'ray', 'mlflow', 'pandas', 'xarray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout.strip() == "[]", done.stderr

"""Results as xarray datasets and as exported files, compared with the tables and counted against SQL."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from recorded_sweeps import recorded_folder
from results_kit import EXPECTED, environment, points_of, runs_of

import phasefront
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.results.grid import dimensions

METRICS = ["train_accuracy", "test_accuracy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_folder(tmp_path_factory.mktemp("arrays"))


@pytest.fixture(autouse=True)
def _beside_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def at(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("weight_decay", "data_fraction", "replicate")}


def test_a_grid_has_its_axes_replicates_and_steps_as_dimensions() -> None:
    sweep = phasefront.load("grid.yaml")
    dataset = sweep.to_xarray(METRICS)
    assert dict(dataset.sizes) == {"weight_decay": 5, "data_fraction": 5, "replicate": 2, "step": dataset.step.size}
    for row in sweep.trials().itertuples():
        cell = dataset.sel(at(row))
        assert [str(cell[name].item()) for name in ("trial_id", "run_id", "phase", "status")] == [
            row.trial_id,
            row.run_id,
            row.phase,
            row.status,
        ]
        for name in ("generalisation_step", "generalisation_step_censored_at", "final_test_accuracy"):
            assert np.array_equal(cell[name].item(), getattr(row, name), equal_nan=True)
    points = points_of(runs_of("grid"), "test_accuracy")
    assert int(dataset.test_accuracy.notnull().sum()) == len(points)
    curves = sweep.curves(["test_accuracy"], axes=True)
    for row in curves.sample(40, random_state=0).itertuples():
        assert dataset.test_accuracy.sel({**at(row), "step": row.step}).item() == points[row.trial_id, row.step]


def test_a_trial_that_is_not_recorded_is_missing_in_the_array() -> None:
    dataset = phasefront.load("grid.yaml", overrides={"replicates": 3}).to_xarray()
    counts = pd.Series(dataset.status.values.ravel()).value_counts().to_dict()
    assert counts == {"FINISHED": 50, "MISSING": 25}
    assert (dataset.status.sel(replicate=2) == "MISSING").all()
    assert dataset.final_test_accuracy.sel(replicate=2).isnull().all()


@pytest.mark.parametrize("name", ["phase_search", "level_search"])
def test_a_search_has_a_dimension_of_trials(name: str) -> None:
    sweep = phasefront.load(f"{name}.yaml")
    dataset, trials = sweep.to_xarray(), sweep.trials()
    assert dict(dataset.sizes) == {"trial": len(EXPECTED[name]["trials"])}
    assert dataset.trial.values.tolist() == trials.trial_id.tolist()
    for axis in (*sweep.axes, "replicate"):
        assert dataset[axis].dims == ("trial",) and dataset[axis].values.tolist() == trials[axis].tolist()
    assert dataset.phase.values.tolist() == trials.phase.tolist()


def test_a_conditional_axis_is_refused_with_the_reason() -> None:
    axes = {
        "weight_decay": [0.0, 1.0],
        "data_fraction": {"values": [0.5, 0.8], "when": {"weight_decay": 1.0}},
    }
    fixed = {"model": "quadratic_mlp", "modulus": 11, "width": 40, "steps": 600}
    sweep = phasefront.load({"name": "conditional", "job": "grokking", "axes": axes, "fixed": fixed})
    with pytest.raises(UserError, match="data_fraction exists only where weight_decay"):
        sweep.to_xarray()
    assert len(sweep.trials()) == 3
    curves = sweep.curves(axes=True, format="arrow")
    assert curves.num_rows == 0 and "data_fraction" in curves.column_names


def test_axes_that_advance_together_share_a_dimension() -> None:
    fixed = {"model": "quadratic_mlp", "modulus": 11, "width": 40}
    content = {"name": "zipped", "job": "grokking", "fixed": fixed, "zip": [["weight_decay", "steps"]]}
    content["axes"] = {"weight_decay": [0.5, 0.5, 1.0], "steps": [100, 200, 300], "data_fraction": [0.4, 0.6]}
    sweep = phasefront.load(content, overrides={"tracking.uri": "sqlite:///record.db"})
    assert [dimension.name for dimension in dimensions(sweep.sweep.axes)] == ["steps", "data_fraction"]
    dataset = sweep.to_xarray()
    assert dict(dataset.sizes) == {"steps": 3, "data_fraction": 2, "replicate": 1}
    assert dataset.weight_decay.dims == ("steps",) and dataset.weight_decay.values.tolist() == [0.5, 0.5, 1.0]
    assert (dataset.status == "MISSING").all()


def exported(folder: Path, given: str, *more: str, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    assert main(["export", "grid.yaml", "--format", given, "-o", str(folder), *more]) == 0
    files = [Path(line.split(maxsplit=1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert sorted(files) == sorted(folder.iterdir())
    return files


def dictionary_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "data_dictionary.csv").open() as file:
        return {(row["table"], row["column"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("given", ["parquet", "csv"])
def test_exported_tables_are_the_tables(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, given, capsys=capsys)
    read = pd.read_parquet if given == "parquet" else pd.read_csv
    sweep = phasefront.load("grid.yaml")
    trials, curves = read(tmp_path / f"trials.{given}"), read(tmp_path / f"curves.{given}")
    expected = sweep.curves(axes=True)
    assert list(trials.columns) == list(sweep.trials().columns) and len(trials) == 50
    assert list(curves.columns) == list(expected.columns) and len(curves) == len(expected)
    np.testing.assert_array_equal(curves.test_accuracy, expected.test_accuracy)
    np.testing.assert_array_equal(trials.generalisation_step, sweep.trials().generalisation_step)
    assert curves.trial_id.tolist() == expected.trial_id.tolist()
    columns = [*(("trials", name) for name in trials.columns), *(("curves", name) for name in curves.columns)]
    assert list(dictionary_of(tmp_path)) == columns


def test_an_exported_dataset_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, "netcdf", "--metrics", "test_accuracy", capsys=capsys)
    expected = phasefront.load("grid.yaml").to_xarray(["test_accuracy"])
    with xr.open_dataset(tmp_path / "sweep.nc") as dataset:
        for name in ("weight_decay", "step", "test_accuracy", "generalisation_step", "generalisation_step_censored_at"):
            np.testing.assert_array_equal(dataset[name], expected[name])
        assert dataset.status.astype(str).values.tolist() == expected.status.values.tolist()
        assert "last step" in dataset.final_test_accuracy.attrs["long_name"]
        assert dataset.generalisation_step.attrs["units"] == "steps"
    assert ("curves", "test_accuracy") in dictionary_of(tmp_path)


def test_nothing_recorded_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "grid.yaml", "--set", "tracking.experiment=another"]) == 2
    assert "nothing is recorded of this sweep yet" in capsys.readouterr().err
    assert not Path("grid/export").exists()


def test_a_record_beside_the_sweep_file_is_named_from_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folder / "grid.yaml")]) == 2
    said = capsys.readouterr().err
    assert (
        f"{folder}, beside the sweep file, has a record" in said
        and f"cd {folder}, and the same command there for grid.yaml" in said
    )
    with pytest.warns(UserWarning, match="beside the sweep file"):
        trials = phasefront.load(folder / "grid.yaml").trials()
    assert set(trials.status) == {"MISSING"} and not list(tmp_path.iterdir())
    shutil.copy(folder / "record.db", "record.db")  # a record of its own, of other sweeps
    assert main(["export", str(folder / "grid.yaml"), "--set", "tracking.experiment=another"]) == 2
    assert f"{folder}, beside the sweep file, has a record" in capsys.readouterr().err


def test_without_xarray_the_message_names_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['xarray'] = None\n"
        "from orchestrator.cli import main\n"
        f"sys.exit(main(['export', 'grid.yaml', '--format', 'netcdf', '-o', {json.dumps(str(tmp_path))}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 2 and "pip install xarray" in done.stderr, done.stderr

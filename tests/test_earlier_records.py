"""A record and a study written by commit 00a9e8d: the present code resumes them, draws the same maps, replays a run.

`records/` holds the SQLite files (compressed, with `{folder}` for the folder that MLflow keeps artifacts in), the sweep
files, and in `expected.json` what that commit's `map --classifier` said of them.
"""

import json
import sqlite3
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from recorded_sweeps import RECORDS, recorded_folder
from scipy.spatial import cKDTree

from jobs.grokking.params import GrokkingParams
from jobs.job import bounded, log_spaced_steps
from jobs.ridge.params import RidgeParams
from orchestrator.cli import main
from orchestrator.phases import publish_map
from orchestrator.phases.map.classify import classify
from orchestrator.sweep.sweep import Sweep

EXPECTED: dict[str, Any] = json.loads((RECORDS / "expected.json").read_text())
SWEEPS = sorted(EXPECTED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the earlier version ran the three sweeps in."""
    return recorded_folder(tmp_path_factory.mktemp("earlier"))


@pytest.fixture(autouse=True)
def _beside_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def state_of_the_record(folder: Path) -> list[tuple[Any, ...]]:
    """Every run that is a trial's, and how many metric rows of curves and observations it has."""
    query = """SELECT r.run_uuid, r.status, r.start_time, r.end_time, count(m.step)
        FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'phasefront.trial_id'
        LEFT JOIN metrics m ON m.run_uuid = r.run_uuid AND m.key NOT LIKE 'axis/%'
        GROUP BY r.run_uuid ORDER BY r.run_uuid"""
    connection = sqlite3.connect(folder / "record.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("name", SWEEPS)
def test_a_finished_sweep_has_nothing_left_to_do(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of_the_record(folder)
    assert main(["run", f"{name}.yaml", "--inline", "--quiet", "--no-map"]) == 0
    assert state_of_the_record(folder) == before
    assert f"{len(EXPECTED[name]['trials'])}" in capsys.readouterr().out


@pytest.mark.parametrize("name", SWEEPS)
def test_its_trials_are_found_by_their_values_on_the_axes(name: str, folder: Path) -> None:
    assert main(["run", f"{name}.yaml", "--inline", "--quiet", "--no-map"]) == 0
    axes = EXPECTED[name]["axes"]
    query = """SELECT count(*) FROM latest_metrics l JOIN tags t ON t.run_uuid = l.run_uuid
        JOIN params p ON p.run_uuid = l.run_uuid AND p.key = ?
        WHERE t.key = 'phasefront.trial_id' AND l.key = ? AND abs(l.value - cast(p.value AS REAL)) < 1e-12"""
    with sqlite3.connect(folder / "record.db") as connection:
        counts = [connection.execute(query, (axis, f"axis/{axis}")).fetchone()[0] for axis in axes]
    connection.close()
    assert all(count >= len(EXPECTED[name]["trials"]) for count in counts), counts
    assert main(["audit", f"{name}.yaml"]) == 0


def test_studies_are_continued_under_their_names(folder: Path) -> None:
    def studies() -> set[tuple[str, int]]:
        query = (
            "SELECT s.study_name, COUNT(*) FROM studies s JOIN trials t ON t.study_id = s.study_id GROUP BY s.study_id"
        )
        with sqlite3.connect(folder / "optuna.db") as connection:
            found = set(connection.execute(query))
        connection.close()
        return found

    before = studies()
    for name in SWEEPS:
        assert main(["run", f"{name}.yaml", "--inline", "--quiet", "--no-map"]) == 0
    assert studies() == before


@pytest.mark.parametrize("name", SWEEPS)
def test_the_map_is_the_same(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = EXPECTED[name]
    output = Sweep.load(folder / f"{name}.yaml").output
    drawn = []

    def classify_and_keep(target, diagram, *rest, **options):
        drawn.append((diagram, classify(target, diagram, *rest, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(publish_map, "classify", classify_and_keep)
    assert main(["map", f"{name}.yaml", "--classifier"]) == 0

    diagram, fitted_map = drawn[0]
    assert [diagram.labels[k] for k in diagram.majority] == expected["majority"]
    assert list(fitted_map.labels) == expected["labels"]
    cells = (np.arange(33) + 0.5) / 33
    lattice = np.array([(x, y) for x in cells for y in cells])
    before = np.array([[int(label) for label in row] for row in expected["lattice"]])
    after = fitted_map.slices[0].surface.label(lattice).reshape(33, 33)
    assert (before != after).mean() < 0.002  # a tie may be resolved by rounding

    table = pd.read_parquet(output / "trials.parquet")
    further = [name for name in table.columns if name not in expected["columns"]]
    assert [name for name in table.columns if name not in further] == expected["columns"]
    further_params = (*fields(GrokkingParams), *fields(RidgeParams))
    added = [field.name for field in further_params if field.metadata["param"]["added"]]
    known = ["bounds_from_schedule", *added]
    assert [name for name in further if not (name in known or bounded_by(name, expected["columns"]))] == []
    assert {row.trial_id: [row.run_id, row.phase, row.status] for row in table.itertuples()} == expected["trials"]

    metrics = json.loads((output / "sweep_metrics.json").read_text())
    assert metrics == pytest.approx(expected["metrics"], rel=1e-6)

    boundary = pd.read_parquet(output / "boundary.parquet")
    assert [name for name in boundary.columns if "over_seeds" not in name] == expected["boundary_columns"]
    assert {tuple(pair) for pair in expected["pairs"]} == {(row.label_a, row.label_b) for row in boundary.itertuples()}
    axes = expected["axes"]
    old, new = (
        _in_the_box(np.asarray(points), expected["boundary"]) for points in (expected["boundary"], boundary[axes])
    )
    assert cKDTree(new).query(old)[0].max() < 0.01
    assert cKDTree(old).query(new)[0].max() < 0.1  # every sixth vertex was kept


def bounded_by(column: str, columns: list[str]) -> bool:
    """Whether a column is a bound of a step among `columns`."""
    return bool(bounded(column.removesuffix("_censored_at"), columns))


def test_steps_of_an_earlier_version_lie_between_two_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "grid.yaml"]) == 0
    line = "trials of an earlier version are known by their reports alone, as (report before, step]"
    assert line in capsys.readouterr().out
    assert main(["status", "grid.yaml"]) == 0
    assert line in capsys.readouterr().out
    table = pd.read_parquet(Sweep.load(folder / "grid.yaml").output / "trials.parquet")
    assert table.bounds_from_schedule.all()
    reports = [0, *log_spaced_steps(600, 12).tolist()]
    for name in ("memorisation_step", "generalisation_step"):
        reached = table[table[name].notna()]
        assert len(reached) >= 5
        assert [reports[reports.index(step) - 1] for step in reached[name]] == reached[f"{name}_after"].tolist()
        assert table[table[name].isna()][f"{name}_after"].isna().all()


def _in_the_box(points: np.ndarray, reference: list[list[float]]) -> np.ndarray:
    """Positions on logarithmic axes, in widths of what the reference spans."""
    logs = np.log(np.asarray(reference))
    return (np.log(points) - logs.min(axis=0)) / np.ptp(logs, axis=0)


def test_a_run_can_be_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    run_id = next(iter(EXPECTED["grid"]["trials"].values()))[0]
    assert main(["replay", run_id, "--tracking", "sqlite:///record.db"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", SWEEPS)
def test_the_record_is_consistent(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It has observations that the job makes no more (`Job.retired`), such as a peak of a single trial's curve."""
    assert main(["audit", f"{name}.yaml"]) == 0, capsys.readouterr().out

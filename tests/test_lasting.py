"""The files of a submitted job outlive the copy of the folder in which it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.commands.wiring import lasting
from orchestrator.sweep.sweep import Sweep

COPY = Path("/somewhere/runtime_resources/working_dir_files/_ray_pkg_0123")
SWEEP = "job: grokking\naxes: {weight_decay: [0, 1]}\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHASEFRONT_HOME", str(tmp_path / "kept"))
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_in_rays_copy_a_relative_record_and_the_output_go_where_they_last(file: Path, tmp_path: Path) -> None:
    sweep = lasting(Sweep.load(file, environ={}), COPY)
    assert sweep.tracking.uri == f"sqlite:///{tmp_path}/kept/mlflow.db"
    assert sweep.output == tmp_path / "kept" / "phasefront-out" / "sweep"
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize("uri", ["sqlite:////srv/mlflow.db", "http://mlflow:5000", "postgresql://user@host/db"])
def test_a_record_that_lasts_is_left_alone(uri: str, file: Path) -> None:
    assert lasting(Sweep.load(file, [f"tracking.uri={uri}"], environ={}), COPY).tracking.uri == uri


def test_outside_a_submitted_job_nothing_changes(file: Path, tmp_path: Path) -> None:
    sweep = Sweep.load(file, environ={})
    assert lasting(sweep, tmp_path) is sweep


def test_without_an_address_mlflows_own_variable_is_taken(file: Path) -> None:
    assert Sweep.load(file, environ={"MLFLOW_TRACKING_URI": "http://lab:5000"}).tracking.uri == "http://lab:5000"
    assert Sweep.load(file, environ={}).tracking.uri == "sqlite:///mlflow.db"
    named = ["tracking.uri=sqlite:///mine.db"]
    assert (
        Sweep.load(file, named, environ={"MLFLOW_TRACKING_URI": "http://lab:5000"}).tracking.uri == "sqlite:///mine.db"
    )

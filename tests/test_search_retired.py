"""A search of an earlier version for an observation that its job has retired: still valid, and computed as before."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from orchestrator.cli import main

AXES = """\
job: ridge
axes:
  learning_rate: {scale: log, from: 0.02, to: 0.2, points: 3}
  noise_variance: {scale: linear, from: 1, to: 50, points: 3}
fixed: {inputs: 44, features: 44, sample_count: 100, solver: gradient_descent, steps: 200, curve_points: 30}
replicates: 1
"""
TARGET = "test_loss_peak_step"
SEARCH = f"search: {{kind: boundary, budget: 9, start: 9, target: {{metric: {TARGET}, level: 20}}}}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("search.yaml").write_text(AXES + SEARCH)
    Path("grid.yaml").write_text(AXES)


def recorded_losses() -> int:
    with sqlite3.connect("mlflow.db") as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM metrics WHERE key = 'test_loss'")
    connection.close()
    return int(count)


def observed() -> list[dict[str, object]]:
    query = "SELECT value FROM tags WHERE key = 'phasefront.observations'"
    with sqlite3.connect("mlflow.db") as connection:
        found = [json.loads(value) for (value,) in connection.execute(query)]
    connection.close()
    return found


def test_the_file_is_valid_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """It was refused: "has no observation"."""
    assert main(["check", "search.yaml"]) == 0
    shown = capsys.readouterr()
    assert (
        "valid" in shown.out
        and f"warning: search.yaml:7:64: '{TARGET}' is read off a single trial's curve" in shown.err
    )
    assert main(["check", "grid.yaml"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_trials_of_the_search_have_the_observation_and_others_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "grid.yaml", "--inline", "--quiet", "--no-map"]) == 0
    assert len(observed()) == 9 and not any(TARGET in one for one in observed())
    before = recorded_losses()

    # The search reads the same trials: nothing is trained again, their recorded curves are reduced once more.
    assert main(["run", "search.yaml", "--inline", "--quiet"]) == 0
    assert "warning" in capsys.readouterr().err
    assert len(observed()) == 9 and all(TARGET in one for one in observed())
    assert recorded_losses() == before
    assert main(["run", "search.yaml", "--inline", "--quiet"]) == 0
    assert "nothing to do" in capsys.readouterr().out

    # And new trials have it from the beginning; `map` and `audit` take both.
    assert (
        main(["run", "search.yaml", "--inline", "--quiet", "--set", "replicates=2", "--set", "search.budget=12"]) == 0
    )
    assert len(observed()) > 9 and all(TARGET in one for one in observed())
    assert main(["map", "search.yaml"]) == 0
    assert main(["audit", "search.yaml"]) == 0

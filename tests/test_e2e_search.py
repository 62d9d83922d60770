"""`search: boundary` as a user runs it: complete, killed in the middle, compared with a grid, without its study."""

import contextlib
import json
import sqlite3
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest
from driving import driver, parents, record, rows_recorded, run, trials, wait_for

SCIENCE = '''
import math
import random
import time


def train(params, seed, device, report):
    """Positive inside a disc in (log weight_decay, fraction)."""
    x = (math.log10(params["weight_decay"]) + 2) / 3
    y = (params["fraction"] - 0.2) / 0.7
    for step in (1, 2):
        time.sleep(params["wait"])
        report(step, value=0.35 - math.hypot(x - 0.5, y - 0.5) + 0.02 * random.Random(seed).gauss(0, 1))
    if x > 0.9 and y > 0.9:
        raise ValueError("this corner fails")
'''
SWEEP = """\
name: disc
job: science:train
axes:
  weight_decay: {scale: log, from: 0.01, to: 10}
  fraction: {scale: linear, from: 0.2, to: 0.9}
fixed: {wait: 0.03}
replicates: 2
search: {kind: boundary, budget: 90, start: 24, batch: 16}
phases: {metric: value, level: 0.0}
resources: {workers: 2}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "science.py").write_text(textwrap.dedent(SCIENCE))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def study(folder: Path) -> dict[str, str]:
    """Trial id -> how its last trial of the study stands; every asked setting is there once, but for failures."""
    with contextlib.closing(sqlite3.connect(folder / "optuna.db")) as connection:
        rows = connection.execute(
            "SELECT a.value_json, t.state FROM trials t JOIN trial_user_attributes a "
            "ON a.trial_id = t.trial_id AND a.key = 'trial_id' ORDER BY t.number"
        ).fetchall()
    ids = Counter(json.loads(text) for text, state in rows if state != "FAIL")
    assert max(ids.values()) == 1, "a suggestion was repeated"
    return {json.loads(text): state for text, state in rows}


def assert_consistent(folder: Path, count: int) -> None:
    """The study and MLflow hold the same trials, and they ended alike."""
    asked = study(folder)
    runs = record(folder / "mlflow.db")
    recorded = {run.tags["phasefront.trial_id"]: run.status for run in trials(runs)}
    assert len(trials(runs)) == len(recorded) == len(asked) == count
    assert {trial: {"FINISHED": "COMPLETE", "FAILED": "FAIL"}[state] for trial, state in recorded.items()} == asked
    assert len(parents(runs)) == 1


def area_curve(folder: Path) -> list[tuple[int, float]]:
    """Every row of the parent run's `uncertain_area`."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return connection.execute(
            "SELECT m.step, m.value FROM metrics m JOIN tags t ON t.run_uuid = m.run_uuid "
            "AND t.key = 'phasefront.sweep_id' WHERE m.key = 'uncertain_area' ORDER BY m.step"
        ).fetchall()


@pytest.mark.long
@pytest.mark.parametrize("kills", [2])
def test_a_killed_search_resumes_and_study_and_record_agree(kills: int, folder: Path) -> None:
    landed = 0
    for turn in range(kills):
        before = rows_recorded(folder / "mlflow.db")
        with driver("run", "sweep.yaml", cwd=folder) as running:
            wait_for("more rows", lambda before=before: rows_recorded(folder / "mlflow.db") > before, running)
            time.sleep(0.15 * turn)
            landed += running.kill()
            wait_for("the end of what a killed driver left", lambda running=running: running.left_behind() == [])
    assert landed == kills, "the search is too short to be killed so often"
    before_last, curve_before = set(study(folder)), area_curve(folder)
    code, text = run("run", "sweep.yaml", cwd=folder)
    assert code in (0, 1), text
    assert "Traceback" not in text
    assert before_last <= set(study(folder))
    assert_consistent(folder, 90)
    curve = area_curve(folder)
    steps = [step for step, _ in curve]
    finished = sum(run.status == "FINISHED" for run in trials(record(folder / "mlflow.db")))
    assert steps == sorted(set(steps)) and len(steps) >= 4 and steps[-1] == finished
    assert curve[: len(curve_before)] == curve_before


def test_a_search_from_check_to_map(folder: Path) -> None:
    code, text = run("check", "sweep.yaml", cwd=folder)
    assert code == 0 and "at most 90 trials" in text, text
    code, text = run("plan", "sweep.yaml", "--inline", cwd=folder)
    assert code == 0 and "90 to run" in text, text
    assert not (folder / "optuna.db").exists()
    code, text = run("run", "sweep.yaml", "--inline", "--set", "fixed.wait=0.0", cwd=folder)
    assert code in (0, 1), text
    assert_consistent(folder, 90)
    code, text = run("status", "sweep.yaml", "--set", "fixed.wait=0.0", cwd=folder)
    assert code == 0 and "90 trials asked for" in text and "0 missing" in text, text
    # A larger budget goes on with the same search.
    code, text = run(
        "run", "sweep.yaml", "--inline", "--set", "fixed.wait=0.0", "--set", "search.budget=100", cwd=folder
    )
    assert code in (0, 1), text
    assert_consistent(folder, 100)
    # The study is lost: what MLflow holds of the search is found, and nothing is trained again.
    (folder / "optuna.db").unlink()
    code, text = run(
        "run", "sweep.yaml", "--inline", "--set", "fixed.wait=0.0", "--set", "search.budget=100", cwd=folder
    )
    assert code in (0, 1), text
    finished = sum(run.status == "FINISHED" for run in trials(record(folder / "mlflow.db")))
    assert f"{finished} were finished before" in text or "nothing to do" in text, text
    code, text = run("map", "sweep.yaml", "--set", "fixed.wait=0.0", "--set", "phases.level=0.05", cwd=folder)
    assert code == 0 and f"{finished} of" in text and "relabelled" in text, text


def test_a_search_reuses_trials_of_a_grid(folder: Path) -> None:
    grid = SWEEP.replace("10}", "10, points: 8}").replace("0.9}", "0.9, points: 8}").replace("wait: 0.03", "wait: 0.0")
    (folder / "grid.yaml").write_text(
        "\n".join(line for line in grid.splitlines() if not line.startswith("search")).replace("disc", "grid")
    )
    (folder / "search.yaml").write_text(grid)
    code, text = run("run", "grid.yaml", "--inline", "--no-map", cwd=folder)
    assert code in (0, 1), text
    begun = len(trials(record(folder / "mlflow.db")))
    code, text = run("run", "search.yaml", "--inline", cwd=folder)
    assert code in (0, 1), text
    assert len(trials(record(folder / "mlflow.db"))) == begun == 8 * 8 * 2
    assert "were finished before" in text


@pytest.mark.long
def test_two_records_of_one_search_file_may_be_written_at_the_same_time(folder: Path) -> None:
    """The advice of a refused second driver: another experiment. Each search has a study of its own."""
    smaller = ("search.budget=30", "search.start=8", "search.batch=8", "fixed.wait=0.3")
    command = ("run", "sweep.yaml", "--inline", "--no-map", *(word for value in smaller for word in ("--set", value)))
    with driver(*command, cwd=folder) as first:
        wait_for("rows", lambda: rows_recorded(folder / "mlflow.db") > 0, first)
        code, text = run(*command, "--set", "tracking.experiment=other", cwd=folder)
        assert code in (0, 1) and "Traceback" not in text, text
        text = first.finish()
        assert first.popen.returncode in (0, 1) and "Traceback" not in text, text
    runs = trials(record(folder / "mlflow.db"))
    assert sorted(Counter(run.experiment_id for run in runs).values()) == [30, 30]
    with contextlib.closing(sqlite3.connect(folder / "optuna.db")) as connection:
        counts = connection.execute("SELECT COUNT(*) FROM trials GROUP BY study_id").fetchall()
    assert counts == [(30,), (30,)]

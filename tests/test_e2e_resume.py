"""After the driver is killed at any moment, the same command converges to the record of an undisturbed run."""

import contextlib
import math
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from driving import PATIENCE_S, Run, driver, parents, record, rows_recorded, trials, wait_for

SWEEP = """\
name: resumed
job: grokking
axes:
  weight_decay: {scale: linear, from: 0.0, to: 2.0, points: 4}
  data_fraction: {scale: linear, from: 0.4, to: 0.8, points: 4}
replicates: 6
fixed: {modulus: 13, steps: 3000, width: 64}
resources: {workers: 2}
"""
COMMAND = ("run", "sweep.yaml")
RAY_WAITS_S = 3.0
"""Between SIGTERM and SIGKILL, when a job is stopped."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def folder_with_sweep(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "sweep.yaml").write_text(SWEEP)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Run], float]:
    """The record of a run that nobody disturbed, and the seconds from its first row to its end."""
    folder = folder_with_sweep(tmp_path_factory.mktemp("undisturbed"), "sweep")
    with driver(*COMMAND, cwd=folder) as running:
        wait_for("the first rows", lambda: rows_recorded(folder / "mlflow.db") > 0, running)
        started = time.monotonic()
        text = running.finish()
        took_s = time.monotonic() - started
        assert running.popen.returncode == 0, text
        wait_for("the end of all that it started", lambda: running.left_behind() == [])
    return converged(folder), took_s


def converged(folder: Path) -> dict[str, Run]:
    """Trial id -> its one run, of a finished sweep."""
    runs = record(folder / "mlflow.db")
    assert [run.status for run in parents(runs)] == ["FINISHED"]
    by_id = {run.tags["phasefront.trial_id"]: run for run in trials(runs)}
    assert len(by_id) == len(trials(runs)), "a trial has two runs"
    assert Counter(run.status for run in by_id.values()) == {"FINISHED": 4 * 4 * 6}
    for run in by_id.values():
        repeated = [row for row, times in Counter(row[:2] for row in run.rows).items() if times > 1]
        assert repeated == [], f"rows written twice in {run.run_id}"
    return by_id


def assert_same_record(found: dict[str, Run], expected: dict[str, Run]) -> None:
    assert found.keys() == expected.keys()
    for trial_id, run in found.items():
        other = expected[trial_id]
        assert run.params == other.params
        assert [row[:2] for row in run.rows] == [row[:2] for row in other.rows]
        assert [row[0] for row in run.observed] == [row[0] for row in other.observed]
        for (metric, step, value, nan), (_, _, wanted, wanted_nan) in zip(run.rows, other.rows, strict=True):
            assert nan == wanted_nan
            assert math.isclose(value, wanted, rel_tol=2e-2, abs_tol=2e-2), (trial_id, metric, step)


@pytest.mark.parametrize("seed", [1])
def test_three_kills_leave_the_record_of_an_undisturbed_run(
    seed: int, undisturbed: tuple[dict[str, Run], float], tmp_path: Path
) -> None:
    expected, took_s = undisturbed
    folder = folder_with_sweep(tmp_path, "sweep")
    moments = random.Random(seed)
    landed = 0
    for _ in range(3):
        before = rows_recorded(folder / "mlflow.db")
        with driver(*COMMAND, cwd=folder) as running:
            wait_for("more rows", lambda before=before: rows_recorded(folder / "mlflow.db") > before, running)
            time.sleep(moments.uniform(0, took_s / 6))
            landed += running.kill()
            wait_for("the end of what a killed driver left", lambda running=running: running.left_behind() == [])
    assert landed == 3, "the sweep is too short to be killed three times"
    with driver(*COMMAND, cwd=folder) as running:
        text = running.finish()
        assert running.popen.returncode == 0, text
    assert_same_record(converged(folder), expected)


@pytest.mark.long
def test_a_stop_is_clean_and_the_same_command_resumes(
    undisturbed: tuple[dict[str, Run], float], tmp_path: Path
) -> None:
    expected, _ = undisturbed
    folder = folder_with_sweep(tmp_path, "sweep")
    for number in (signal.SIGTERM, signal.SIGINT):
        before = rows_recorded(folder / "mlflow.db")
        with driver(*COMMAND, cwd=folder) as running:
            wait_for("more rows", lambda before=before: rows_recorded(folder / "mlflow.db") > before, running)
            os.kill(running.popen.pid, number)
            if number == signal.SIGTERM:  # as Ray stops a job: what is not done when its patience ends is not done
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.popen.wait(timeout=RAY_WAITS_S)
                running.kill()
            else:
                running.popen.wait(timeout=PATIENCE_S)
                assert running.popen.returncode == 128 + number, running.text()
            assert "Traceback" not in running.text()
            wait_for("the end of what a stopped driver left", lambda running=running: running.left_behind() == [])
        stopped = record(folder / "mlflow.db")
        assert "RUNNING" not in {run.status for run in stopped}
        assert [run.status for run in parents(stopped)] == ["KILLED"]
    with driver(*COMMAND, cwd=folder) as running:
        text = running.finish()
        assert running.popen.returncode == 0, text
    assert_same_record(converged(folder), expected)

"""The command line: output and exit code of each command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.driving import driver, environment, parents, record, run, trials, wait_for

JOB = """\
def train(params, seed, device, report):
    for step in range(1, 4):
        report(step, loss=params["lr"] / step)
    if params["lr"] > params["limit"]:
        raise ValueError("lr is too large")
"""
SWEEP = """\
name: small
job: mine:train
axes:
  lr: {values: [1.0, 2.0, 3.0]}
fixed: {limit: 2.5}
replicates: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def phasefront(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The command with its two streams apart; its cache is in the test's folder."""
    command = [sys.executable, "-m", "orchestrator", *arguments]
    environ = environment({"XDG_CACHE_HOME": str(cwd / "cache")})
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "absent.yaml"),
        ("check", "sweep.yaml", "--set", "axes.lr.points=oops"),
        ("check", "sweep.yaml", "--set", "replicats=2"),
        ("plan", "sweep.yaml", "--set", "job=mine:absent"),
        ("map", "sweep.yaml"),
        ("run", "sweep.yaml", "--workers", "0"),
        ("run",),
        ("fly", "sweep.yaml"),
        (),
    ],
    ids=" ".join,
)
def test_a_mistake_is_explained_without_a_traceback(arguments: tuple[str, ...], folder: Path) -> None:
    done = phasefront(*arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert not (folder / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("chekc", "sweep.yaml"), "did you mean 'check'?"),
        (("map", "sweep.yaml", "--set", "name=never"), "next:  phasefront run sweep.yaml --set name=never\n"),
        (("map", "sweep.yaml", "--set", "axes.lr=[1, 2]"), "phasefront run sweep.yaml --set 'axes.lr=[1, 2]'\n"),
    ],
    ids=str,
)
def test_the_next_step_can_be_typed(arguments: tuple[str, ...], said: str, folder: Path) -> None:
    done = phasefront(*arguments, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_library_that_is_not_installed_is_named(folder: Path) -> None:
    hidden = "import sys; sys.modules['numpy'] = None; from orchestrator.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", hidden, "check", "sweep.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "phasefront check: numpy is not installed: install phasefront with its libraries (make install)\n"
    )


def test_a_misspelt_metric_of_the_users_own_job_is_named_at_its_place(folder: Path) -> None:
    (folder / "sweep.yaml").write_text(
        "job: mine:train\naxes: {lr: {scale: log, from: 0.1, to: 2}}\nfixed: {limit: 2.5}\n"
        "search: {kind: boundary, budget: 8, start: 4, target: {metric: final_los, level: 0.2}}\n"
    )
    assert phasefront("check", "sweep.yaml", cwd=folder).returncode == 0
    done = phasefront("run", "sweep.yaml", "--inline", "--quiet", "--no-map", cwd=folder)
    assert done.returncode == 2
    assert "sweep.yaml:4:64: no observation 'final_los'" in done.stderr
    assert "did you mean 'final_loss'?" in done.stderr


def test_check_counts_the_trials_and_creates_nothing(folder: Path) -> None:
    done = phasefront("check", "sweep.yaml", "--set", "replicates=5", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "15 trials" in done.stdout
    assert not (folder / "mlflow.db").exists()


def test_the_schema_is_json_that_describes_the_keys(folder: Path) -> None:
    done = phasefront("schema", cwd=folder)
    assert done.returncode == 0
    assert {"job", "axes", "replicates"} <= set(json.loads(done.stdout)["properties"])


def test_the_version_is_said(folder: Path) -> None:
    assert phasefront("--version", cwd=folder).stdout.startswith("phasefront ")


@pytest.mark.slow
def test_a_sweep_from_plan_to_map(folder: Path) -> None:
    plan = phasefront("plan", "sweep.yaml", cwd=folder)
    assert plan.returncode == 0, plan.stderr
    assert "6: 0 finished, 6 to run" in plan.stdout
    assert not (folder / "mlflow.db").exists()

    first = phasefront("run", "sweep.yaml", "--inline", cwd=folder)
    assert first.returncode == 1, first.stderr
    assert "Traceback" not in first.stderr
    assert "lr=3.0, replicate=0: ValueError: lr is too large" in first.stderr
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in first.stdout or "mlflow.db" in first.stdout
    runs = record(folder / "mlflow.db")
    assert sorted(run_.status for run_ in trials(runs)) == ["FAILED"] * 2 + ["FINISHED"] * 4
    assert [run_.status for run_ in parents(runs)] == ["FAILED"]
    for name in ("phase_diagram.png", "phase_diagram.html", "trials.parquet"):
        assert (folder / "phasefront-out" / "small" / name).stat().st_size > 0

    status = phasefront("status", "sweep.yaml", cwd=folder)
    assert status.returncode == 0, status.stderr
    assert "6: 4 finished, 0 handed out, 2 failed, 0 stopped, 0 missing" in status.stdout
    assert "lr=3.0, replicate=1" in status.stdout
    (parent,) = parents(runs)
    assert f"parent    {parent.run_id}" in status.stdout
    assert "lr=3.0, replicate=0: ValueError: lr is too large" in status.stdout

    assert "4 finished, 2 to run" in phasefront("plan", "sweep.yaml", cwd=folder).stdout

    again = phasefront("run", "sweep.yaml", "--inline", "--no-map", "--quiet", cwd=folder)
    assert again.returncode == 1
    assert "4 were finished before" in again.stdout
    assert "/6 done" not in again.stdout

    (folder / "phasefront-out" / "small" / "phase_diagram.png").unlink()
    mapped = phasefront("map", "sweep.yaml", cwd=folder)
    assert mapped.returncode == 0, mapped.stderr
    assert "4 of 6 trials are finished" in mapped.stdout
    assert (folder / "phasefront-out" / "small" / "phase_diagram.png").exists()
    assert len(trials(record(folder / "mlflow.db"))) == 6
    assert [run_.status for run_ in parents(record(folder / "mlflow.db"))] == ["FAILED"]


MENDED = """\
def train(params, seed, device, report):
    for step in range(2, 9, 2):
        report(step, loss=10 * params["lr"] / step)
"""


@pytest.mark.slow
def test_the_curve_of_a_corrected_function_comes_from_one_training(folder: Path) -> None:
    assert phasefront("run", "sweep.yaml", "--inline", "--no-map", "--quiet", cwd=folder).returncode == 1
    (folder / "mine.py").write_text(MENDED)
    done = phasefront("run", "sweep.yaml", "--inline", "--no-map", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    runs = trials(record(folder / "mlflow.db"))
    assert len(runs) == 6
    curves = {(t.params["lr"], tuple(row[1:3] for row in t.rows if row[0] == "loss")) for t in runs}
    assert curves == {
        ("1.0", ((1, 1.0), (2, 0.5), (3, 1 / 3))),
        ("2.0", ((1, 2.0), (2, 1.0), (3, 2 / 3))),
        ("3.0", ((2, 15.0), (4, 7.5), (6, 5.0), (8, 3.75))),
    }
    plan = phasefront("plan", "sweep.yaml", cwd=folder)
    assert plan.returncode == 0, plan.stderr
    lines = plan.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("trials    6: 6 finished, 0 to run", "nothing to run")


STUCK = """\
import pathlib, time
def train(params, seed, device, report):
    pathlib.Path("stuck").touch()
    time.sleep(600)
"""


@pytest.mark.slow
def test_map_and_status_work_beside_a_run_and_leave_it_running_and_a_second_run_is_refused(folder: Path) -> None:
    assert phasefront("run", "sweep.yaml", "--inline", "--no-map", "--quiet", cwd=folder).returncode == 1
    (folder / "mine.py").write_text(STUCK)
    with driver("run", "sweep.yaml", "--inline", "--no-map", cwd=folder) as running:
        wait_for("a trial that trains", lambda: (folder / "stuck").exists(), running)
        (before,) = parents(record(folder / "mlflow.db"))
        assert before.status == "RUNNING"
        second = phasefront("run", "sweep.yaml", "--inline", cwd=folder)
        assert second.returncode == 2
        assert "another phasefront run is writing to this experiment" in second.stderr
        assert "Traceback" not in second.stderr
        mapped = phasefront("map", "sweep.yaml", cwd=folder)
        assert mapped.returncode == 0, mapped.stderr
        assert "4 of 6 trials are finished" in mapped.stdout
        assert "4 finished, 2 handed out" in phasefront("status", "sweep.yaml", cwd=folder).stdout
        (after,) = parents(record(folder / "mlflow.db"))
        assert (after.run_id, after.status) == (before.run_id, "RUNNING")
        assert running.popen.poll() is None


@pytest.mark.slow
def test_new_thresholds_label_anew_without_training(folder: Path) -> None:
    plain = phasefront("run", "sweep.yaml", "--inline", "--no-map", "--set", "fixed.limit=9", cwd=folder)
    assert plain.returncode == 0, plain.stderr
    thresholds = ("--set", "fixed.limit=9", "--set", "phases={metric: loss, level: 0.5}")
    mapped = phasefront("map", "sweep.yaml", *thresholds, cwd=folder)
    assert mapped.returncode == 0, mapped.stderr
    assert "6 were relabelled" in mapped.stdout
    labels = {(t.params["lr"], t.tags["phasefront.phase"]) for t in trials(record(folder / "mlflow.db"))}
    assert labels == {("1.0", "below"), ("2.0", "at or above"), ("3.0", "at or above")}


@pytest.mark.slow
def test_the_default_is_a_local_ray_and_lines_in_a_log(folder: Path) -> None:
    code, text = run("run", "sweep.yaml", "--set", "fixed.limit=9", "--no-map", cwd=folder)
    assert code == 0, text
    assert "0/6 done" in text
    assert "6/6 done, 0 running, 0 failed" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_the_summary_of_an_inline_run_is_correct_and_printed_once(folder: Path) -> None:
    done = phasefront("run", "sweep.yaml", "--inline", "--no-map", "--set", "fixed.limit=9", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "starting workers" not in done.stdout
    assert "0 running, 0 failed, trials run in this process" in done.stdout
    assert done.stdout.count("6/6 done") == 1
    assert re.search(r"^6 trials finished in [\d. min]+s \(.* of it training and recording\)$", done.stdout, re.M)
    assert "no metric was reported" not in done.stdout


RETURNS = """\
def train(params, seed, device, report):
    return {"accuracy": 0.5}
train.version = 2
"""


@pytest.mark.slow
def test_a_function_without_reports_gives_a_warning(folder: Path) -> None:
    (folder / "mine.py").write_text("def train(params, seed, device, report):\n    pass\n")
    done = phasefront("run", "sweep.yaml", "--inline", "--no-map", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "warning: no metric was reported by the trials of mine:train" in done.stdout
    assert "report(step, loss=...)" in done.stdout
    (folder / "mine.py").write_text(RETURNS)  # the next step that it names
    again = phasefront("run", "sweep.yaml", "--inline", "--no-map", cwd=folder)
    assert again.stdout.count("6 trials finished") == 1
    assert "no metric was reported" not in again.stdout

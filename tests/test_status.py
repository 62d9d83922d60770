"""Counts of `status`: trials by state, and phases under the sweep's own thresholds."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.job import Censored
from orchestrator.cli import main
from orchestrator.commands import status
from orchestrator.commands.wiring import open_tracker, sweep_record
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.sweep.sweep import Sweep
from tests.servers import empty_sqlite

ROOT = Path(__file__).resolve().parents[1]
SWEEP = """\
name: descents
job: jobs_for_tests:Descent
axes:
  learning_rate: [0.1, 0.2, 0.3, 0.4]
tracking: {uri: "sqlite:///RECORD"}
"""


SEARCH = "{scale: log, from: 0.1, to: 1.0}"


def test_phases_are_counted_under_the_sweeps_own_thresholds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.replace("RECORD", str(tmp_path / "record.db")))
    others = Sweep.load(file, ["phases.far_loss=5.0"])
    tracker = open_tracker(others)
    tracker.open_sweep(sweep_record(others))
    trials = others.trials()
    tracker.begin(trials)
    loss = [0.05, 0.5, 2.0, 3.0]
    tracker.record(
        CurveRows(
            trial_ids=tuple(t.id for t in trials),
            metrics=("loss",),
            trial=np.arange(4, dtype=np.int32),
            step=np.full(4, 20),
            values=np.array(loss)[:, None],
        )
    )
    tracker.end(
        [
            TrialResult(trial_id=t.id, status=Status.FINISHED, phase=phase, observations={"final_loss": value})
            for t, value, phase in zip(trials, loss, ("arrived", "near", "near", "near"), strict=True)
        ]
    )
    tracker.close()

    def said(*options: str) -> str:
        assert main(["status", str(file), *options]) == 0
        return capsys.readouterr().out

    own = said("--set", "phases.far_loss=5.0")
    assert "phases    near 3, arrived 1" in own and "other thresholds" not in own
    anew = said()
    assert "phases    far 2, arrived 1, near 1" in anew
    assert "4 of them relabelled here only" in anew and "phasefront map" in anew
    assert "phases    near 3, arrived 1" in said("--set", "phases.far_loss=5.0")  # the record is as it was
    monkeypatch.setattr(status, "LABELLED_ANEW", 3)
    many = said()
    assert "phases  " not in many
    assert "others    near 3, arrived 1: the labels of 4 trials under other thresholds" in many


def test_curves_that_an_earlier_version_may_have_got_wrong_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adam with an epsilon below 1e-11: the trial without the observations of this version, and no other."""
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"job: grokking\naxes: {{epsilon: [1.0e-25, 1.0e-20, 1.0e-8]}}\noutput: {tmp_path / 'map'}\n"
        f'tracking: {{uri: "sqlite:///{tmp_path / "record.db"}"}}\n'
    )
    sweep = Sweep.load(file)
    tracker = open_tracker(sweep)
    tracker.open_sweep(sweep_record(sweep))
    trials = sweep.trials()
    tracker.begin(trials)
    seen = {1e-25: {}, 1e-20: {"blow_up_step": Censored(10.0)}, 1e-8: {}}
    tracker.end(
        [
            TrialResult(
                t.id,
                Status.FINISHED,
                "grokking",
                {"final_test_accuracy": 1.0, **seen[t.settings()["epsilon"]]},  # type: ignore[index]
            )
            for t in trials
        ]
    )
    tracker.close()
    assert main(["status", str(file)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("doubtful")]
    assert "1 finished: an earlier version trained them with an epsilon below 1e-11" in line
    assert main(["map", str(file)]) == 0
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("doubtful curves: 1 finished") == 1


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n\ndef train(*, x: int, seed, report):\n    time.sleep(0.4)\n    report(1, loss=x)\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        "name: slow\njob: slow:train\naxes: {x: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}\ntracking: {uri: 'sqlite:///record.db'}\n"
        "phases: {metric: loss, level: 5}\n"
    )
    empty_sqlite(tmp_path / "record.db")
    command = [sys.executable, "-m", "orchestrator"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": tmp_path, "env": env, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "run", "sweep.yaml", "--inline", "--no-map"], **options) as run:
        assert run.stdout is not None
        begun = any("sweep slow" in line for line in run.stdout)
        watched = subprocess.run(
            [*command, "status", "sweep.yaml", "--watch", "0.2"], timeout=120, check=True, **options
        )
        run.communicate(timeout=120)
    assert begun
    shown = watched.stdout.split("sweep     slow")[1:]
    assert len(shown) >= 2
    assert "writes to this experiment" in shown[0] and "10 finished" not in shown[0]
    assert "writes to this experiment" not in shown[-1] and "10 finished" in shown[-1]


def test_an_interval_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["status", "sweep.yaml", "--watch", "0"])
    assert stop.value.code == 2
    assert "must be a number of seconds > 0; got '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("search", "begins"), [("", "to run    4: phasefront run"), (SEARCH, "to run    phasefront run")]
)
def test_what_has_not_begun_is_told_how_to_begin(
    search: str, begins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = SWEEP.replace("RECORD", str(tmp_path / "record.db"))
    (tmp_path / "sweep.yaml").write_text(text.replace("[0.1, 0.2, 0.3, 0.4]", search) if search else text)
    if search:
        (tmp_path / "sweep.yaml").write_text(
            (tmp_path / "sweep.yaml").read_text() + "search: {kind: boundary, budget: 20}\n"
        )
    assert main(["status", "sweep.yaml"]) == 0
    assert begins in capsys.readouterr().out


def test_of_a_long_error_the_beginning_and_the_end_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It begins with what it is, and ends with the cause."""
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.replace("RECORD", str(tmp_path / "record.db")))
    sweep = Sweep.load(file)
    output = "\n".join(f"epoch {n}" for n in range(100))
    error = f"Last output of the worker:\n{output}\n\nValueError: the cause"
    with contextlib.closing(open_tracker(sweep)) as tracker:
        tracker.open_sweep(sweep_record(sweep))
        tracker.begin(sweep.trials()[:1])
        tracker.end([TrialResult(trial_id=sweep.trials()[0].id, status=Status.FAILED, error=error)])
    assert main(["status", str(file)]) == 0
    said = capsys.readouterr().out
    first = "          Last output of the worker:\n          epoch 0\n"
    assert first in said and said.endswith("epoch 99\n\n          ValueError: the cause\n")
    assert "learning_rate=0.1, replicate=0: ValueError: the cause\n" in said
    assert "lines ...]" in said and "epoch 50\n" not in said


def test_why_there_is_no_run_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record, another program's database, a record of other sweeps, and a record beside the sweep file."""
    monkeypatch.chdir(tmp_path)
    file = Path("sweep.yaml")
    file.write_text(SWEEP.replace("RECORD", "record.db"))

    def said(*options: str, of: str = str(file)) -> str:
        assert main(["status", of, *options]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("parent")]
        return line.removeprefix("parent    no run yet: ")

    assert said() == f"the file {tmp_path}/record.db does not exist"
    assert not Path("record.db").exists()
    with contextlib.closing(sqlite3.connect("record.db")) as connection, connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    assert said() == "the database is not MLflow's: its tables are customers"
    Path("record.db").write_bytes(b"")
    assert said() == "the database is empty"
    Path("record.db").unlink()
    empty_sqlite(tmp_path / "record.db")
    assert said() == "the record has no experiment 'phasefront'"
    with contextlib.closing(open_tracker(Sweep.load(file))) as tracker:
        tracker.open_sweep(sweep_record(Sweep.load(file)), running=False)
    other = said("--set", "replicates=2")
    assert other == "experiment 'phasefront' of this record has no run of this sweep, as its file is now"
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    beside = said(of="../sweep.yaml")
    assert (
        beside == f"the file {tmp_path}/elsewhere/record.db does not exist; {tmp_path}, the folder of the sweep "
        "file, has one"
    )
    shutil.copy("../record.db", "record.db")
    beside = said("--set", "replicates=2", of="../sweep.yaml")
    assert beside == f"{other}; {tmp_path}, the folder of the sweep file, has another record"

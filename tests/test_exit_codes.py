"""Exit codes tell the truth, and neither a closed terminal nor a closed pipe leaves a record half written."""

import contextlib
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.driving import driver, environment, parents, record, run, trials, wait_for

JOB = """\
import pathlib, time
def train(params, seed, device, report):
    for step in range(1, 4):
        report(step, loss=params["lr"] / step)
    if params["lr"] > 2.5:
        raise ValueError("lr is too large")
    if params["wait"]:
        pathlib.Path("began").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.05)
"""
SWEEP = "name: small\njob: mine:train\naxes: {lr: [1.0, 2.0]}\nfixed: {wait: false}\n"
RUN = ("run", "sweep.yaml", "--inline", "--no-map")
WAITS = ("--set", "fixed.wait=true")
FAILS = ("--set", "axes.lr=[2.0, 3.0]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def start(*arguments: str, cwd: Path, **options) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "orchestrator", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=cwd, env=environment(), text=True, **streams)


def finish(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    with start(*arguments, cwd=cwd) as process:
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err


def statuses(folder: Path) -> list[str]:
    return sorted(run.status for run in trials(record(folder / "mlflow.db")))


def counts(folder: Path) -> dict[str, float]:
    """The counts of the sweep's parent run."""
    select = (
        "SELECT l.key, l.value FROM latest_metrics l JOIN tags t USING (run_uuid) "
        "WHERE t.key = 'phasefront.sweep_id' AND l.key IN ('trials', 'failed', 'missing') AND run_uuid NOT IN "
        "(SELECT run_uuid FROM tags WHERE key = 'phasefront.trial_id')"
    )
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return dict(connection.execute(select).fetchall())


def test_failed_trials_are_exit_code_1_unless_they_are_allowed(folder: Path) -> None:
    code, out, err = finish(*RUN, *FAILS, cwd=folder)
    assert (code, statuses(folder)) == (1, ["FAILED", "FINISHED"]), out + err
    code, out, err = finish(*RUN, *FAILS, "--allow-failures", cwd=folder)
    assert (code, statuses(folder)) == (0, ["FAILED", "FINISHED"]), out + err
    assert "1 failed" in out


@pytest.mark.parametrize(
    ("metadata", "again"),
    [
        (
            {"job_submission_id": "phasefront-small-1", "phasefront_again": "phasefront submit sweep.yaml"},
            "to retry: phasefront submit sweep.yaml\n",
        ),
        (
            {"job_submission_id": "raysubmit_1"},
            "to retry: submit the same job again, as with ray job submit ... -- phasefront run sweep.yaml",
        ),
    ],
)
def test_the_log_of_a_job_names_the_way_that_its_user_came(folder: Path, metadata: dict[str, str], again: str) -> None:
    environ = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {}, "metadata": metadata})}
    code, said = run(*RUN, *FAILS, cwd=folder, environ=environ)
    assert (code, again in said) == (1, True), said
    assert "1 trial failed; tracebacks: phasefront status sweep.yaml" in said
    again = again.replace("to retry", "To resume").rstrip()
    assert f"to run    1: 1 failed. {again}" in finish("status", "sweep.yaml", *FAILS, cwd=folder)[1]
    finish(*RUN, *FAILS, cwd=folder)  # the user has come another way since
    assert "1 failed. To resume: phasefront run sweep.yaml" in finish("status", "sweep.yaml", *FAILS, cwd=folder)[1]


def test_the_log_of_a_slurm_job_names_sbatch(folder: Path) -> None:
    code, said = run(*RUN, *FAILS, cwd=folder, environ={"PHASEFRONT_SBATCH": "sbatch ... cluster/slurm/sweep.sbatch"})
    again = "to retry: submit the same job again, as with sbatch ... cluster/slurm/sweep.sbatch sweep.yaml --set"
    assert (code, again in said) == (1, True), said
    assert again.replace("to retry", "To resume") in finish("status", "sweep.yaml", *FAILS, cwd=folder)[1]


def test_the_next_command_has_the_options_of_this_one_and_the_parent_s_counts_follow(folder: Path) -> None:
    options = ("--workers", "1", "--allow-failures")
    code, out, err = finish(*RUN, *FAILS, *options, cwd=folder)
    assert (code, counts(folder)) == (0, {"trials": 2.0, "failed": 1.0, "missing": 0.0}), out + err
    again = "phasefront run sweep.yaml --set 'axes.lr=[2.0, 3.0]' --inline --workers 1 --allow-failures --no-map"
    assert again in err
    (folder / "mine.py").write_text(JOB.replace("> 2.5", "> 9.0"))
    code, out, err = finish(*RUN, *FAILS, cwd=folder)
    assert (code, counts(folder)) == (0, {"trials": 2.0, "failed": 0.0, "missing": 0.0}), out + err


def test_failures_are_not_allowed_where_the_run_gave_up(folder: Path) -> None:
    code, out, err = finish(*RUN, "--set", "axes.lr=[3, 4, 5, 6, 7, 8, 9, 10]", "--allow-failures", cwd=folder)
    assert code == 1, out + err
    assert "stopped early" in err


def test_a_full_disk_is_the_machines_fault(folder: Path) -> None:
    results = folder / "phasefront-out" / "small"
    results.mkdir(parents=True)
    (results / "run.tmp").symlink_to("/dev/full")
    code, out, err = finish("run", "sweep.yaml", "--inline", cwd=folder)
    assert code == 75, out + err
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert "run the same command again" in err


def test_a_results_folder_that_cannot_be_made_is_a_mistake_and_the_record_is_kept(folder: Path) -> None:
    code, out, err = finish("run", "sweep.yaml", "--inline", "--set", "output=mine.py/out", cwd=folder)
    assert (code, statuses(folder)) == (2, ["FINISHED", "FINISHED"]), out + err
    assert "Traceback" not in err
    assert re.search(r"phasefront run: Not a directory: .*mine\.py/out\n  next:  give this user the right", err)


def test_a_current_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = 'cd "$1"; rmdir "$1"; exec "$2" -m orchestrator check sweep.yaml'
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        ["sh", "-c", command, "sh", str(gone), sys.executable],
        env=environment({"PYTHONPATH": root}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "phasefront check: the current folder is gone: [Errno 2] No such file or directory\n"
        "  next:  change to a folder that exists\n",
    )


def test_no_gpu_for_a_worker_is_refused(folder: Path) -> None:
    code, _, err = finish("check", "sweep.yaml", "--set", "resources.gpus_per_worker=0", cwd=folder)
    assert code == 2
    assert "'gpus_per_worker' must be a whole number >= 1, a number > 0 and < 1, or auto" in err
    assert "device: cpu" in err


def test_a_run_outlives_the_reader_of_its_output_and_other_commands_do_not(folder: Path) -> None:
    with start(*RUN, cwd=folder, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=240) == 0
    assert statuses(folder) == ["FINISHED", "FINISHED"]
    with start("schema", cwd=folder) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=240) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
def test_a_closed_terminal_stops_a_run_cleanly(folder: Path) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # its controlling terminal

    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with start(*RUN, *WAITS, cwd=folder, **streams, preexec_fn=take_terminal) as process:
        os.close(theirs)
        wait_for("a trial that trains", lambda: (folder / "began").exists())
        os.close(ours)
        (folder / "go").touch()
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    runs = record(folder / "mlflow.db")
    assert "RUNNING" not in {run.status for run in runs}
    assert [run.status for run in parents(runs)] == ["KILLED"]


LONG = """\
import pathlib, time
import numpy as np
from jobs.function import FunctionJob
from jobs.job import Report
def function(params, seed, device, report): ...
class Long(FunctionJob):
    def __init__(self):
        super().__init__(function)
    def train(self, pack, *, device):
        ones, none = np.ones(len(pack)), np.empty(0, dtype=np.int64)
        yield Report(step=1, members=np.arange(len(pack)), values={"loss": ones}, finished=none)
        pathlib.Path("began").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.05)
        yield Report(step=2, members=np.arange(len(pack)), values={"loss": ones}, finished=np.arange(len(pack)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_breaks_off_a_training_in_this_process_that_reports_nothing_for_long(
    folder: Path, number: signal.Signals
) -> None:
    (folder / "mine.py").write_text(LONG)
    job = ("--set", "job=mine:Long")
    with start(*RUN, *job, cwd=folder) as process:
        wait_for("a trial that trains", lambda: (folder / "began").exists())
        process.send_signal(number)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number, out + err
    assert "To resume: phasefront run sweep.yaml" in out
    runs = record(folder / "mlflow.db")
    assert {run.status for run in trials(runs)} == {"KILLED"}
    assert [run.status for run in parents(runs)] == ["KILLED"]
    (folder / "go").touch()
    code, out, err = finish(*RUN, *job, cwd=folder)
    assert (code, statuses(folder)) == (0, ["FINISHED", "FINISHED"]), out + err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
def test_a_run_under_nohup_goes_on(folder: Path) -> None:
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with start(*RUN, *WAITS, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **ignore) as process:
        wait_for("a trial that trains", lambda: (folder / "began").exists())
        process.send_signal(signal.SIGHUP)
        (folder / "go").touch()
        assert process.wait(timeout=240) == 0
    assert statuses(folder) == ["FINISHED", "FINISHED"]


def test_a_user_without_a_home_can_run_a_sweep(folder: Path) -> None:
    """As in a container that runs under a number which its passwd does not have, and without HOME."""
    (folder / "sitecustomize.py").write_text("import pwd\ndef none(uid): raise KeyError\npwd.getpwuid = none\n")
    environ = environment({"PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))})
    for name in ("HOME", "XDG_CACHE_HOME"):
        environ.pop(name, None)
    command = [sys.executable, "-m", "orchestrator", *RUN]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_terminal_or_locale_without_unicode_ends_no_command(folder: Path) -> None:
    """The name and the error are printed with escapes, and the recorded sweep file is UTF-8 all the same."""
    (folder / "sweep.yaml").write_text(SWEEP.replace("small", "größe"), encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "orchestrator", *RUN]
    done = subprocess.run(command, cwd=folder, env=environment(ascii_only), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sweep gr\\xf6\\xdfe: 2 trials" in done.stdout
    (recorded,) = folder.glob("mlruns/*/*/artifacts/sweep.yaml")
    assert "größe" in recorded.read_text(encoding="utf-8")


SLOW_TO_IMPORT = """\
import pathlib, sys, time
if "ray" in sys.modules:  # in a worker: the driver loads the job before Ray
    pathlib.Path({folder!r}, "importing").touch()
    time.sleep(20)
def train(params, seed, device, report):
    report(1, loss=params["lr"])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signal_while_workers_start_stops_the_run(folder: Path) -> None:
    (folder / "mine.py").write_text(SLOW_TO_IMPORT.format(folder=str(folder)))
    with driver("run", "sweep.yaml", "--workers", "1", "--no-map", cwd=folder) as running:
        wait_for("a worker that starts", (folder / "importing").exists, running)
        os.kill(running.popen.pid, signal.SIGTERM)
        text = running.finish()
    assert running.popen.returncode == 128 + signal.SIGTERM, text
    assert "received at time" not in text, "Ray's own handler, with a stack trace"
    assert "Traceback" not in text
    assert {run.status for run in parents(record(folder / "mlflow.db"))} == {"KILLED"}


def shell(command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The command with the shell's redirections; `phasefront` stands for this checkout's."""
    root = str(Path(__file__).parents[1])
    command = command.replace("phasefront", f'"{sys.executable}" -m orchestrator')
    return subprocess.run(
        ["sh", "-c", command],
        cwd=cwd,
        env=environment({"PYTHONPATH": root}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.mark.parametrize("where", [">&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_run_without_output_ends_with_its_true_code(where: str, folder: Path) -> None:
    done = shell(f"phasefront run sweep.yaml --inline --no-map {where}", folder)
    assert (done.returncode, statuses(folder)) == (0, ["FINISHED", "FINISHED"]), done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    failing = shell(f"phasefront run sweep.yaml --inline --no-map --set 'axes.lr=[2.0, 3.0]' {where}", folder)
    assert failing.returncode == 1


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_check_whose_messages_go_nowhere_has_its_true_code(where: str, folder: Path) -> None:
    assert shell(f"phasefront check sweep.yaml {where}", folder).returncode == 0
    assert shell(f"phasefront check nosuch.yaml {where}", folder).returncode == 2


def test_a_result_that_a_full_disk_does_not_take_is_the_machines_fault(folder: Path) -> None:
    done = shell("phasefront check sweep.yaml >/dev/full", folder)
    assert done.returncode == 75
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("deed", ["sys.stdout.close(); sys.stderr.close()", "sys.stdout = None; sys.stderr = None"])
def test_a_job_that_breaks_the_streams_on_import_does_not_silence_check(deed: str, folder: Path) -> None:
    (folder / "mine.py").write_text(f"import sys\n{deed}\n{JOB}")
    done = shell("phasefront check sweep.yaml", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid. 2 trials of mine:train" in done.stdout
    done = shell("phasefront check sweep.yaml --set job=mine:other", folder)
    assert done.returncode == 2
    assert "did you mean" in done.stderr or "mine:train" in done.stderr


def test_what_is_no_regular_file_or_too_large_is_refused_and_a_pipe_of_the_shell_is_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")
    with (folder / "large.yaml").open("wb") as file:
        file.truncate(10_000_001)
    for name, rule in (
        ("pipe.yaml", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("large.yaml", "is larger than 10 MB"),
    ):
        done = shell(f"phasefront check {name}", folder)
        assert done.returncode == 2
        assert f"{name}: {rule}" in done.stderr
    assert shell("cat sweep.yaml | phasefront check /dev/stdin", folder).returncode == 0


def test_the_next_step_names_the_users_module_or_value(folder: Path) -> None:
    (folder / "mine.py").write_text(f"import sys\nsys.modules[__name__] = None\n{JOB}")
    done = shell("phasefront check sweep.yaml", folder)
    assert done.returncode == 2
    assert "module 'mine' has no job 'train'" in done.stderr
    (folder / "mine.py").write_text(JOB)
    done = shell(f"phasefront check sweep.yaml --set 'fixed.wait=1{'0' * 400}'", folder)
    assert done.returncode == 2
    assert "a number must be below 1.8e308\n  value: '1000" in done.stderr
    for text in (done.stdout, done.stderr):
        assert str(Path(__file__).parents[1]) not in text

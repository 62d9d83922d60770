"""What a user sees when machines, Ray or a trial let a run down: each by the command line, on real processes."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.driving import Driver, driver, record, rows_recorded, run, trials, wait_for

pytestmark = pytest.mark.slow


def write_sweep(folder: Path, body: str, *, count: int, resources: str) -> None:
    """A sweep of `count` trials of a function `train`, whose body is given."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    (folder / "mine.py").write_text(
        f"import os, time\nfrom pathlib import Path\n\ndef train(params, seed, device, report):\n{lines}\n"
    )
    (folder / "sweep.yaml").write_text(
        f"name: infra\njob: mine:train\nresources: {resources}\naxes:\n  n: {{values: {list(range(count))}}}\n"
    )


def process(running: Driver, name: str) -> int:
    """The process of a driver's Ray whose program has this name."""
    (pid,) = [
        pid
        for pid in running.left_behind()
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].rpartition(b"/")[2] == name.encode()
    ]
    return pid


def statuses(folder: Path) -> Counter[str]:
    return Counter(trial.status for trial in trials(record(folder / "mlflow.db")))


@pytest.mark.long
@pytest.mark.parametrize(
    ("victim", "number"),
    [("raylet", signal.SIGKILL), ("raylet", signal.SIGTERM), ("gcs_server", signal.SIGKILL)],
)
def test_a_local_ray_that_dies_ends_the_run_resumably(tmp_path: Path, victim: str, number: int) -> None:
    """A raylet that is asked to end tells the cluster first, so that the node is gone before the process."""
    write_sweep(
        tmp_path,
        "for step in range(1, 5):\n    time.sleep(0.5)\n    report(step, loss=1.0)",
        count=12,
        resources="{workers: 2}",
    )
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path) as running:
        wait_for("rows", lambda: rows_recorded(tmp_path / "mlflow.db") > 4, running)
        os.kill(process(running, victim), number)
        text = running.finish()
        assert running.popen.returncode == 75, text
        wait_for("the end of all that it started", lambda: not running.left_behind())
    assert f"the local Ray has died: its process {victim} ended" in text
    assert "run the same command again" in text
    assert "Traceback" not in text
    assert "(raylet)" not in text, "Ray prints nothing itself"
    assert "RUNNING" not in statuses(tmp_path)
    code, text = run("run", "sweep.yaml", "--no-map", cwd=tmp_path)
    assert code == 0, text
    assert Counter(t.status for t in trials(record(tmp_path / "mlflow.db")) if t.status == "FINISHED") == {
        "FINISHED": 12
    }


def test_a_worker_that_cannot_start_without_the_folder_of_ray_ends_the_run_resumably(tmp_path: Path) -> None:
    """As when a service clears the temporary folder: Ray itself waits for ever."""
    write_sweep(
        tmp_path,
        "while not Path('removed').exists():\n    time.sleep(0.05)\n"
        "if not Path('died').exists():\n    Path('died').touch()\n    os._exit(1)\n"
        "report(1, loss=1.0)",
        count=2,
        resources="{workers: 1}",
    )
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path) as running:
        wait_for("a trial", lambda: statuses(tmp_path)["RUNNING"] > 0, running)
        words = Path(f"/proc/{process(running, 'raylet')}/cmdline").read_bytes().decode().split("\0")
        (session,) = [Path(word.partition("=")[2]) for word in words if word.startswith("--session_dir=")]
        shutil.rmtree(session)
        (tmp_path / "removed").touch()
        text = running.finish()
        assert running.popen.returncode == 75, text
    assert f"its folder {session} has been removed" in text
    assert "Traceback" not in text
    code, text = run("run", "sweep.yaml", "--no-map", cwd=tmp_path)
    assert code == 0, text

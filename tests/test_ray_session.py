"""Session folders of Ray: ours are removed, nobody else's."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from orchestrator.dispatch import reaper
from orchestrator.dispatch.session import MARKER, Session, remove_left
from tests.driving import driver, environment, rows_recorded, run, wait_for

HOLD = """\
import sys, time
from pathlib import Path
from orchestrator.dispatch.session import Session
session = Session(Path(sys.argv[1]), "mark")
print("ready", flush=True)
time.sleep(600)
"""


def session_in(parent: Path, name: str) -> Path:
    folder = parent / f"session_{name}"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "worker.out").write_text("noise")
    return folder


def gone(mark: str) -> list[int]:
    return []


def test_a_session_is_removed_at_its_end_with_the_link_to_it(tmp_path: Path) -> None:
    own, other = session_in(tmp_path, "own"), session_in(tmp_path, "other")
    (tmp_path / "session_latest").symlink_to(own)
    Session(own, "mark").remove()
    assert sorted(tmp_path.iterdir()) == [other]


def test_a_link_to_anothers_session_stays(tmp_path: Path) -> None:
    own, other = session_in(tmp_path, "own"), session_in(tmp_path, "other")
    (tmp_path / "session_latest").symlink_to(other)
    Session(own, "mark").remove()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "session_latest", other]


def test_only_sessions_of_killed_drivers_of_ours_are_removed_later(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD]
    folders = [session_in(tmp_path, name) for name in ("killed", "alive")]
    holders = [subprocess.Popen([*command, folder], stdout=subprocess.PIPE, text=True) for folder in folders]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
        session_in(tmp_path, "anothers")
        own = session_in(tmp_path, "own")
        mine = Session(own, "mine")
        assert remove_left(tmp_path, gone) == []
        holders[0].kill()
        holders[0].wait()
        assert remove_left(tmp_path, lambda mark: mark == "mark") == [], "a process of that Ray still lives"
        assert remove_left(tmp_path, gone) == [folders[0]]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["session_alive", "session_anothers", "session_own"]
        mine.remove()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_a_link_that_looks_like_a_session_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / MARKER).write_text("mark")
    temporary = tmp_path / "ray"
    temporary.mkdir()
    (temporary / "session_x").symlink_to(elsewhere)
    assert remove_left(temporary, gone) == []
    assert (elsewhere / MARKER).exists()


@pytest.mark.parametrize(("end", "stays"), [(None, False), (reaper.CLEAN, True)])
def test_the_session_of_a_driver_that_was_killed_while_ray_started_is_removed(
    tmp_path: Path, end: bytes | None, stays: bool
) -> None:
    """It has no marker yet, so that no later run would remove it; one with a marker is left to that."""
    new, known, other = (session_in(tmp_path, name) for name in ("2026-11-27_1", "2026-11-27_2", "2026-11-27_3"))
    (known / MARKER).write_text("mark")
    (tmp_path / "session_latest").symlink_to(new)
    mark = uuid.uuid4().hex
    named = [
        f"--raylet_socket_name={new}/sockets/raylet",
        f"--log_dir={known}/logs",
        str(other / "logs" / "worker.out"),
    ]
    sleep = ["-c", "import time; time.sleep(600)"]
    gcs, worker = ["gcs_server", *sleep, *named[:2]], ["python", *sleep, named[2]]
    environ = {**os.environ, reaper.MARK: mark}
    ray = [subprocess.Popen(command, executable=sys.executable, env=environ) for command in (gcs, worker)]
    watch = subprocess.Popen([sys.executable, "-I", reaper.__file__, mark], stdin=subprocess.PIPE)
    try:
        watch.communicate(end, timeout=60)
    finally:
        for process in ray:
            process.kill()
            process.wait()
    assert new.exists() == stays
    assert known.exists() and other.exists()
    assert (tmp_path / "session_latest").is_symlink() == stays


@pytest.mark.slow
def test_a_run_leaves_no_session_and_removes_that_of_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\n\ndef train(params, seed, device, report):\n"
        "    for step in range(params['steps']):\n        report(step, loss=1.0)\n        time.sleep(0.01)\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        "name: mine\njob: mine:train\naxes:\n  steps: {values: [5, 2000]}\nresources: {workers: 1}\n"
    )
    temporary = Path("/tmp") / f"pf-{os.getpid()}"  # sockets below it: the path must be short
    environ = environment({"RAY_TMPDIR": str(temporary)})
    temporary.mkdir()
    try:
        with driver("run", "sweep.yaml", cwd=tmp_path, environ=environ) as running:
            wait_for("a row", lambda: rows_recorded(tmp_path / "mlflow.db") > 0, running)
            (left,) = temporary.glob("ray/session_2*")
            os.kill(running.popen.pid, signal.SIGKILL)
            running.popen.wait()
            wait_for("the end of its Ray", lambda: not running.left_behind())
        assert left.is_dir()
        code, text = run("run", "sweep.yaml", "--set", "axes.steps=[5, 10]", cwd=tmp_path, environ=environ)
        assert code == 0, text
        assert not list(temporary.glob("ray/session_*"))
    finally:
        subprocess.run(["rm", "-rf", str(temporary)], check=True)

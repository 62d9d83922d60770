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


@pytest.mark.parametrize(("end", "stays"), [(b"", False), (reaper.CLEAN, True)])
def test_the_session_of_a_driver_that_was_killed_while_ray_started_is_removed(
    tmp_path: Path, end: bytes, stays: bool
) -> None:
    """It has no marker yet, so that no later run would remove it; one with a marker is left to that."""
    temporary = tmp_path / "ray"
    temporary.mkdir()
    earlier, new, known, other = (session_in(temporary, name) for name in ("1_77", "2_77", "3_77", "2_78"))
    (known / MARKER).write_text("mark")
    (temporary / "session_latest").symlink_to(new)
    for folder in (new, known, other):
        os.utime(folder, (4e9, 4e9))  # made after the start of the process that watches
    command = [sys.executable, "-I", reaper.__file__, uuid.uuid4().hex, "77"]
    subprocess.run(command, input=end, env={**os.environ, "RAY_TMPDIR": str(tmp_path)}, check=True, timeout=60)
    assert new.exists() == stays
    assert (temporary / "session_latest").is_symlink() == stays
    assert all(folder.exists() for folder in (earlier, known, other))


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

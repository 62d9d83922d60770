"""A Ray of this machine that does not start."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray
from driving import environment, run

from orchestrator.dispatch.base import Cause
from orchestrator.dispatch.ray_connection import connect
from orchestrator.dispatch.ray_engine import explain
from orchestrator.errors import Outage, UserError
from orchestrator.printable import last_line


def test_a_folder_that_ray_cannot_use_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def train(params, seed, device, report):\n    report(1, loss=1.0)\n")
    (tmp_path / "sweep.yaml").write_text("name: mine\njob: mine:train\naxes: {lr: [1.0]}\n")
    code, text = run("run", "sweep.yaml", cwd=tmp_path, environ=environment({"RAY_TMPDIR": "/dev/null/x"}))
    assert code == 2, text
    assert "Ray did not start on this machine: [Errno 20] Not a directory: '/dev/null/x'" in text
    assert "set RAY_TMPDIR" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("home", [{}, {"HOME": "/proc/none"}], ids=["home", "no home"])
def test_a_ray_that_was_imported_before_is_started_with_a_token(tmp_path: Path, home: dict[str, str]) -> None:
    """Ray reads the mode of authentication when it is imported, a notebook's first cell for example.

    Where it cannot keep the token in the home folder, as in many containers, the token is in the environment.
    """
    code = (
        "import ray\n"
        "from orchestrator.dispatch.ray_connection import connect, disconnect\n"
        "from orchestrator.dispatch.capacity import Node\n"
        "connect(Node(cpus=1, memory_bytes=2e9))\n"
        "print(ray.cluster_resources()['CPU'])\n"
        "disconnect()\n"
    )
    environ = {**environment(), **home}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.splitlines() == ["1.0"], done.stderr


def test_a_ray_that_does_not_start_in_time_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:  # Ray raises this after 30 s on a machine that is busy
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(Outage, match="Ray did not start on this machine: The current node timed out") as raised:
        connect()
    assert "run the same command again" in raised.value.next_step


def test_a_cluster_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.10.1\n")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="another version of Ray or Python") as raised:
        connect()
    assert "Ray: 2.40.0 Python: 3.10.1" in raised.value.text


def test_the_last_line_of_a_death_for_memory_has_the_numbers_of_the_node() -> None:
    """In the words of several versions of Ray, and without them."""
    for said, shown in (
        (
            "Memory on the node (IP: 10.0.0.1) was 30.04GB used / 31.00GB limit (0.969)\nTop users: ...",
            "30.04 GB of the",
        ),
        ("Memory on the node (IP: 10.0.0.1) where it ran was 30.04GB / 31.00GB (0.969), which", "30.04 GB of the"),
        ("Task was killed due to the node running low on memory.", "the node ran out of memory when Ray"),
    ):
        cause, text = explain(ray.exceptions.OutOfMemoryError(said))
        assert cause is Cause.OUT_OF_MEMORY
        assert last_line(text).startswith(shown) and said in text

"""Long packs on a real Ray: workers and the driver are killed, and the sweep is the undisturbed one."""

import re
import signal
from pathlib import Path

import pytest

from tests import driving
from tests.killing import environ, killed_run, log_lines, lost, sweep_file, wrong

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_sweep_whose_workers_and_driver_are_killed_is_the_sweep(tmp_path: Path) -> None:
    """Two workers and the driver; each loss costs at most an interval, rows are recorded once, no file is left."""
    found = killed_run(tmp_path, kills=3, steps=400, wait_s=0.02, interval_s=1.0, seed=1, of_driver=3)
    assert found.wrong == []
    assert found.kills == {"worker": 2, "driver": 1}
    assert found.files == [] and not list(tmp_path.glob("phasefront-out/long/checkpoints*"))
    assert re.search(r"\d trials continue from checkpoints", found.text)
    assert found.lost_s
    code, text = driving.run("audit", "sweep.yaml", cwd=tmp_path, environ=environ())
    assert code == 0, text


@pytest.mark.parametrize(
    ("number", "more"),
    [
        pytest.param(signal.SIGUSR1, [], marks=pytest.mark.long),
        (signal.SIGTERM, ["--inline"]),
        pytest.param(signal.SIGINT, ["--inline"], marks=pytest.mark.long),
    ],
)
def test_a_run_that_is_told_to_end_saves_first(tmp_path: Path, number: signal.Signals, more: list[str]) -> None:
    """SIGUSR1, by which Slurm announces the end of a job's time; in one process, any signal that stops the run."""
    sweep_file(tmp_path, steps=2600, wait_s=0.01, interval_s=1e6)
    with driving.driver("run", "sweep.yaml", "--no-map", *more, cwd=tmp_path, environ=environ()) as run:
        driving.wait_for("a step", lambda: bool(log_lines(tmp_path)), run)
        began = log_lines(tmp_path)[0][3]
        driving.wait_for("a while", lambda: log_lines(tmp_path)[-1][3] - began > 25.0, run)
        run.popen.send_signal(number)
        assert "stopped" in run.finish() and run.popen.returncode == 128 + number
    assert list(tmp_path.rglob("*.safetensors"))
    before = len(log_lines(tmp_path))
    code, text = driving.run("run", "sweep.yaml", "--no-map", *more, cwd=tmp_path, environ=environ())
    assert code == 0 and re.search(r"\d trials continue from checkpoints", text), text
    lines = log_lines(tmp_path)
    begun = {line[0] for line in lines[:before]}
    assert min(line[1] for line in lines[before:] if line[0] in begun) > 1, "none of them starts again"
    assert max(lost(lines), default=0.0) < 15.0
    assert wrong(tmp_path) == []

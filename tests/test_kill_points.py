"""A sample of the points at which a driver may end; `make kill-points` tries all, and every kind of record."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = 8


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_driver_that_ends_at_any_statement_is_finished_by_the_same_command() -> None:
    command = [sys.executable, "-m", "tests.kill_points", "--record=sqlite", f"--sample={SAMPLE}"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(rf"sqlite +\d+ points, {SAMPLE} tried, {SAMPLE} reached, 0 failed, \d+ s\n", done.stdout)

"""A short soak, and that its checks find what is wrong: see `tests/chaos`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_sweep_survives_a_handful_of_faults(tmp_path: Path) -> None:
    table = tmp_path / "results.md"
    command = [sys.executable, "-m", "tests.chaos", "--faults", "6", "--seed", "1", "--where", "inline"]
    done = subprocess.run(
        [*command, "--only", "7", "--results", str(table)], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "driver" in table.read_text()

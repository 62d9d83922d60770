"""`plan` and `run` agree on the number of workers, and both keep to what the process may use."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.driving import environment

pytestmark = pytest.mark.slow

JOB = """
import os, time
from pathlib import Path
def train(params, seed, device, report):
    Path(f"pid-{os.getpid()}").touch()
    time.sleep(0.3)
    report(1, loss=params["lr"])
"""
SWEEP = "name: bound\njob: mine:train\naxes:\n  lr: {values: [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}\n"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or not shutil.which("taskset"), reason="needs taskset")
def test_a_run_bound_to_one_core_has_one_worker_as_planned(tmp_path: Path) -> None:
    """As in a Slurm job with `--cpus-per-task=1` on a larger node."""
    (tmp_path / "mine.py").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    core = str(min(os.sched_getaffinity(0)))
    texts = {}
    for command in ("plan", "run"):
        for pid in tmp_path.glob("pid-*"):  # `plan` times a trial
            pid.unlink()
        done = subprocess.run(
            ["taskset", "-c", core, sys.executable, "-m", "orchestrator", command, "sweep.yaml"],
            cwd=tmp_path,
            env=environment({"XDG_CACHE_HOME": str(tmp_path / "cache")}),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        texts[command] = done.stdout
    planned = re.search(r"workers +(\d+) on cpu", texts["plan"])
    assert planned is not None and int(planned[1]) == 1
    assert "6 trials finished" in texts["run"]
    assert len(list(tmp_path.glob("pid-*"))) == 1

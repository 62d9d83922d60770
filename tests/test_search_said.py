"""What the commands say of a search: what a run will reuse, what the first trials show, what was found at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from driving import environment

JOB = """\
def train(params, seed, device, report):
    report(1, accuracy=(params["a"] + params["b"] + params["c"]) / 3)
"""
AXES = "axes:\n" + "".join(f"  {name}: {{scale: linear, from: 0, to: 1}}\n" for name in "abc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(JOB)
    return tmp_path


def sweep(folder: Path, name: str, *, budget: int, level: float) -> str:
    target = f"target: {{metric: accuracy, level: {level}}}"
    search = f"search: {{kind: boundary, budget: {budget}, {target}}}\n"
    (folder / f"{name}.yaml").write_text(f"job: mine:train\n{AXES}{search}")
    return f"{name}.yaml"


def said(folder: Path, *arguments: str) -> str:
    environ = environment({"XDG_CACHE_HOME": str(folder / "cache")})
    command = [sys.executable, "-m", "orchestrator", *arguments]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_small_search_claims_no_number_and_its_trials_are_counted_by_the_next_plan(folder: Path) -> None:
    small = sweep(folder, "small", budget=6, level=0.5)
    assert "replicates" not in said(folder, "check", small)
    assert "6: 0 finished, 6 to run" in said(folder, "plan", small)
    ended = said(folder, "run", small, "--inline")
    assert "6 trials; a grid of 27 trials or fewer is as good (estimate)\n" in ended
    saved = json.loads((folder / "phasefront-out/small/search_savings.json").read_text())
    assert saved["grid"] is None and saved["text"].endswith("a grid of 27 trials or fewer is as good (estimate)")
    ((points, error),) = saved["simulated"]
    assert points == 27 and error <= saved["expected_error"]
    assert "grid_of_same" not in (folder / "phasefront-out/small/sweep_metrics.json").read_text()
    assert "a grid of 27 trials or fewer is as good" in (folder / "phasefront-out/small/phase_diagram.html").read_text()
    smaller = said(folder, "status", small, "--set", "search.budget=4")
    assert "stops after 4 trials; it has 6 already, from a run with a larger budget\n" in smaller
    assert "stops after 6 trials\n" in said(folder, "status", small)
    other = sweep(folder, "other", budget=8, level=0.6)
    assert "8: 6 finished, 2 to run" in said(folder, "plan", other)
    ended = said(folder, "run", other, "--inline")
    assert "2 trials finished" in ended and "6 were finished before" in ended


def test_a_level_that_no_trial_reaches_is_warned_of_and_the_end_has_a_next_step(folder: Path) -> None:
    ended = said(folder, "run", sweep(folder, "far", budget=12, level=90), "--inline")
    assert "warning: all are below the level of the search: final_accuracy is 0." in ended
    assert (
        ", and the level is 90\n  next:  nothing, if other settings reach the other side; else correct 'level'" in ended
    )
    assert "no boundary was found: only 'final accuracy below 90' in 12 trials\n  next:  final_accuracy is 0." in ended
    assert "choose a level in between, or widen the axes" in ended
    assert "uncertain area" not in ended
    for page in ("phase_diagram.html", "sweep_metrics.json"):
        assert "uncertain area 0%" not in (folder / "phasefront-out/far" / page).read_text()

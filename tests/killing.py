"""Long packs whose workers, and whose driver, are killed: what is lost, and what is recorded in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jobs.catalogue import load_job
from jobs.job import Curves, Member
from orchestrator.checkpoints.known import Checkpoints
from orchestrator.dispatch.base import PackProgress
from orchestrator.dispatch.worker import execute
from orchestrator.records import Status
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.factory import open_tracker
from tests import driving
from tests.jobs_for_checkpoints import NAME
from tests.packing import curves_of
from tests.runner_kit import task

ROOT = Path(__file__).resolve().parents[1]


@dataclass(kw_only=True)
class Losses:
    """What a run with kills was like."""

    interval_s: float
    lost_s: list[float] = field(default_factory=list)
    """Seconds of training that were done again, for each time that a pack lost its worker."""
    kills: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    text: str = ""
    files: list[str] = field(default_factory=list)
    """Checkpoints that are left at the end."""
    wrong: list[str] = field(default_factory=list)
    """What is not as in the undisturbed sweep."""


def sweep_file(folder: Path, *, steps: int, wait_s: float, interval_s: float, workers: int = 2) -> Path:
    """A sweep of four walks that train together or in two packs, in an empty folder."""
    (folder / "sweep.yaml").write_text(
        f"name: long\njob: {NAME}\naxes:\n  start: [0.1, 0.2, 0.3, 0.4]\n"
        f"fixed: {{steps: {steps}, wait_s: {wait_s}, every: 7, log: {folder / 'log'}}}\n"
        f"resources: {{workers: {workers}, device: cpu, checkpoint_interval: {interval_s}}}\n"
    )
    return folder / "sweep.yaml"


def environ() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def log_lines(folder: Path) -> list[tuple[str, int, int, float]]:
    """(trial, step, process, time) of every step that was trained."""
    with contextlib.suppress(FileNotFoundError):
        lines = [line.split() for line in (folder / "log").read_text().splitlines()]
        return [(line[0], int(line[1]), int(line[2]), float(line[3])) for line in lines if len(line) == 4]
    return []


def killed_run(
    folder: Path, *, kills: int, steps: int, wait_s: float, interval_s: float, seed: int, of_driver: int = 5
) -> Losses:
    """Run the sweep to its end, with so many kills at random times; each `of_driver`-th is that of the driver."""
    chance, found = random.Random(seed), Losses(interval_s=interval_s)
    sweep_file(folder, steps=steps, wait_s=wait_s, interval_s=interval_s)
    began, done = time.monotonic(), 0
    while True:
        with driving.driver("run", "sweep.yaml", "--no-map", cwd=folder, environ=environ()) as run:
            count = len(log_lines(folder))
            driving.wait_for(
                "a step",
                lambda count=count: len(log_lines(folder)) > count or run.popen.poll() is not None,  # type: ignore[misc]
            )
            while done < kills and run.popen.poll() is None:
                time.sleep(chance.uniform(0.5, 3.0) * interval_s)
                process = log_lines(folder)[-1][2]
                if run.popen.poll() is not None:
                    break
                done += 1
                kind = "driver" if done % of_driver == 0 else "worker"
                found.kills[kind] = found.kills.get(kind, 0) + 1
                if kind == "driver":
                    run.kill()
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                driving.wait_for(
                    "another worker",
                    lambda process=process: (
                        log_lines(folder)[-1][2] != process  # type: ignore[misc]
                        or run.popen.poll() is not None
                    ),
                )
            found.text += run.finish()
            if run.popen.returncode == 0:
                break
            if run.popen.returncode not in (75, -signal.SIGKILL):  # 75: Ray did not start on a busy machine
                raise AssertionError(f"exit {run.popen.returncode}: {run.text()}")
    found.seconds = time.monotonic() - began
    found.lost_s = lost(log_lines(folder))
    found.files = [path.name for path in folder.rglob("*.safetensors")]
    found.wrong = wrong(folder)
    return found


def lost(lines: list[tuple[str, int, int, float]]) -> list[float]:
    """Seconds from the first step that is trained again to the last one before its process ended."""
    last: dict[str, int] = {}
    at: dict[tuple[str, int], float] = {}
    repeated: dict[int, float] = {}
    for trial, step, process, when in lines:
        if step <= last.get(trial, 0) and (trial, step) in at:
            seconds = at[trial, last[trial]] - at[trial, step]
            repeated[process] = max(repeated.get(process, 0.0), seconds)
        last[trial] = step
        at[trial, step] = when
    return list(repeated.values())


def expected(sweep: Sweep) -> Mapping[str, Curves]:
    """The curves of the undisturbed trials, trained here at once."""
    trials = sweep.trials()
    members = [Member(params=replace(t.params, wait_s=0.0, log=""), seed=t.seed) for t in trials]  # type: ignore[call-arg]
    curves = curves_of(load_job(sweep.job), members)
    return {trial.id: curves[position] for position, trial in enumerate(trials)}


def wrong(folder: Path) -> list[str]:
    """Every difference of the record from the undisturbed sweep."""
    sweep = Sweep.load(folder / "sweep.yaml", environ={})
    wanted = expected(sweep)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with contextlib.closing(open_tracker(uri, experiment=sweep.tracking.experiment)) as tracker:
        index, recorded = tracker.index(wanted), dict(tracker.curves(wanted))
    found = [f"{t} is {index[t].status}" for t in wanted if t not in index or index[t].status is not Status.FINISHED]
    for trial, curves in wanted.items():
        if trial not in recorded or not np.array_equal(recorded[trial].step, curves.step):
            found.append(f"{trial}: other steps")
        elif any(not np.array_equal(recorded[trial].values[name], curves.values[name]) for name in curves.values):
            found.append(f"{trial}: other values")
    return found


# The same without Ray: a worker that is a plain process. It starts within a second, so that many kills take no time.


def worker(folder: Path, interval_s: float) -> None:
    """Train what is left of the sweep as one pack, as a worker does; keep the curves of what ended."""
    sweep = Sweep.load(folder / "sweep.yaml", environ={})
    left = [t for t in sweep.trials() if not (folder / f"{t.id}.npz").exists()]
    known = Checkpoints(str(folder / "kept"), interval_s=interval_s)
    known.find([t.id for t in left])
    pack = replace(task(left), saving=known.saving([t.id for t in left]))
    rows: dict[str, list[tuple[int, float, float]]] = {}
    for event in execute(pack, device="cpu", flush_s=0.2):
        if isinstance(event, PackProgress):
            if event.rows is not None:
                for k, step, (x, total) in zip(event.rows.trial, event.rows.step, event.rows.values, strict=True):
                    rows.setdefault(event.rows.trial_ids[k], []).append((int(step), float(x), float(total)))
            for result in event.results:
                with (folder / "part").open("wb") as file:
                    np.savez(file, rows=np.array(rows[result.trial_id]))
                (folder / "part").rename(folder / f"{result.trial_id}.npz")


def killed_processes(folder: Path, *, kills: int, steps: int, wait_s: float, interval_s: float, seed: int) -> Losses:
    """As `killed_run`, with processes as workers."""
    chance, found = random.Random(seed), Losses(interval_s=interval_s)
    sweep_file(folder, steps=steps, wait_s=wait_s, interval_s=interval_s)
    began, done = time.monotonic(), 0
    while True:
        count = len(log_lines(folder))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing", str(folder), str(interval_s)],
            cwd=ROOT,
            env={**os.environ, **environ()},
        )
        driving.wait_for(
            "a step",
            lambda process=process, count=count: len(log_lines(folder)) > count or process.poll() is not None,  # type: ignore[misc]
        )
        if done < kills:
            time.sleep(chance.uniform(0.5, 3.0) * interval_s)
            done += process.poll() is None
            process.kill()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
    found.kills, found.seconds = {"process": done}, time.monotonic() - began
    found.lost_s = lost(log_lines(folder))
    for trial, curves in expected(Sweep.load(folder / "sweep.yaml", environ={})).items():
        rows = np.load(folder / f"{trial}.npz")["rows"]
        wanted = np.column_stack([curves.step, curves.values["x"], curves.values["total"]])
        if not np.array_equal(rows, wanted):
            found.wrong.append(f"{trial}: other rows")
    return found


if __name__ == "__main__":
    worker(Path(sys.argv[1]), float(sys.argv[2]))

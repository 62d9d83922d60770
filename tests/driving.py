"""Runs `phasefront` as a user does, in a separate process, and reads the results from MLflow's database."""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "PHASEFRONT_TEST_MARK"
"""In the environment of a driver, and so of everything that it starts: the way to find what it left behind."""
PATIENCE_S = 240.0
"""Longer than anything waited for takes on a busy machine; a wait that reaches it has failed."""


def wait_for(what: str, ready: Callable[[], bool], process: "Driver | None" = None) -> None:
    """Wait until `ready`; fails where that does not come, or where the process that it depends on has ended."""
    end = time.monotonic() + PATIENCE_S
    while not ready():
        if process is not None and process.popen.poll() is not None and not ready():
            raise AssertionError(f"{what}: the command ended first (exit {process.popen.returncode})\n{process.text()}")
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {PATIENCE_S:g} s" + (f"\n{process.text()}" if process else ""))
        time.sleep(0.1)


def marked(mark: str) -> list[int]:
    """Processes that run with this mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append(int(folder.name))
    return found


@dataclass(kw_only=True)
class Driver:
    """A command that runs, in a session of its own."""

    popen: "subprocess.Popen[bytes]"
    mark: str
    log: Path

    def text(self) -> str:
        """What it has printed so far, both streams."""
        return self.log.read_text(errors="replace")

    def finish(self) -> str:
        """Wait for its end; what it printed."""
        self.popen.wait(timeout=PATIENCE_S * 2)
        return self.text()

    def kill(self) -> bool:
        """SIGKILL to the driver alone; whether it still ran."""
        alive = self.popen.poll() is None
        self.popen.kill()
        self.popen.wait()
        return alive

    def left_behind(self) -> list[int]:
        """What it started and what still runs."""
        return marked(self.mark)


@functools.cache
def cache_folder() -> str:
    """Where drivers keep what they measure of this machine: not with the user's own measurements."""
    folder = tempfile.mkdtemp(prefix="pf-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of a user who has set nothing for Ray or MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return {**kept, "PYTHONWARNINGS": "ignore", "XDG_CACHE_HOME": cache_folder(), **(extra or {})}


@contextlib.contextmanager
def driver(*arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> Iterator[Driver]:
    """`phasefront ARGUMENTS` in the background, from `cwd`; at the end nothing of it runs any more."""
    mark = uuid.uuid4().hex
    log = cwd / f"driver-{mark[:8]}.log"
    with log.open("wb") as sink:
        popen = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=cwd,
            env={**environment(environ), MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Driver(popen=popen, mark=mark, log=log)
    try:
        yield running
    finally:
        for pid in {*running.left_behind(), *([popen.pid] if popen.poll() is None else [])}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        popen.wait()


def run(*arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """`phasefront ARGUMENTS` to its end: exit code and output."""
    with driver(*arguments, cwd=cwd, environ=environ) as running:
        text = running.finish()
        return running.popen.returncode, text


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as MLflow's tables hold it."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    rows: tuple[tuple[str, int, float, int], ...]
    """The curves: (metric, step, value, is_nan), sorted, as often as they are there."""
    observed: tuple[tuple[str, float, int], ...]
    """(observation, value, is_nan): metrics from before the run's start, and so no part of a curve; no axes."""

    @property
    def parent(self) -> str | None:
        return self.tags.get("mlflow.parentRunId")


def rows_recorded(database: Path) -> int:
    """How many rows of curves and observations an MLflow database holds; 0 where there is no database yet."""
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'metrics'").fetchone():
            return 0
        (count,) = connection.execute("SELECT count(*) FROM metrics WHERE key NOT LIKE 'axis/%'").fetchone()
        return int(count)


def record(database: Path) -> list[Run]:
    """Every run of an MLflow database, read from its tables; none where there is no database yet."""
    if not database.exists():
        return []
    runs = []
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"runs", "tags", "params", "metrics"} <= tables:
            return []
        connection.execute("BEGIN")
        columns = "run_uuid, experiment_id, name, status, start_time"
        for run_id, experiment_id, name, status, start in connection.execute(
            f"SELECT {columns} FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time, run_uuid"
        ).fetchall():
            pairs = {
                table: dict(connection.execute(f"SELECT key, value FROM {table} WHERE run_uuid = ?", (run_id,)))
                for table in ("tags", "params")
            }
            metrics = connection.execute(
                "SELECT key, step, value, is_nan, timestamp FROM metrics WHERE run_uuid = ? ORDER BY key, step, value",
                (run_id,),
            ).fetchall()
            runs.append(
                Run(
                    run_id=run_id,
                    experiment_id=str(experiment_id),
                    name=name,
                    status=status,
                    rows=tuple((key, step, value, int(nan)) for key, step, value, nan, at in metrics if at >= start),
                    observed=tuple(
                        (key, value, int(nan))
                        for key, _, value, nan, at in metrics
                        if at < start and not key.startswith("axis/")
                    ),
                    **pairs,
                )
            )
    return runs


def parents(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.parent is None]


def trials(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.parent is not None]

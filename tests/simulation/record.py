"""A real SQLite record in which transactions fail on schedule, and what is true of it at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator import process, runner, secrets
from orchestrator.dispatch import worker
from orchestrator.tracking import connection, file_system, lease_table
from orchestrator.tracking.base import SweepRecord, Tracker
from orchestrator.tracking.bulk_sql import WAIT_S
from orchestrator.tracking.database import DatabaseTracker
from tests.simulation.dispatcher import VirtualClock
from tests.simulation.schedule import RECORD_FAULTS, Fault

SWEEP_ID = "5" * 32
EXPERIMENT = "schedules"
SHM = Path("/dev/shm")

_MESSAGES = {
    "record away": "disk I/O error",
    "record locked": "database is locked",
    "record's disk full": "database or disk is full",
    "write lost": "disk I/O error",
    "answer lost": "disk I/O error",
}


class DriverKilled(BaseException):
    """The driver's process has ended here: nothing of it runs any more."""


class Weather:
    """Decides what the record answers at a virtual time.

    Args:
        clock: of the simulation.
        faults: of all kinds; those of the record are used.
        met: called with the kind of a fault that had an effect.
    """

    def __init__(self, clock: VirtualClock, faults: Sequence[Fault], met: Callable[[str], None]) -> None:
        self._clock, self._met = clock, met
        self._away = [fault for fault in faults if fault.kind in RECORD_FAULTS and fault.lasts_s]
        self._once = [fault for fault in faults if fault.kind in RECORD_FAULTS and not fault.lasts_s]
        self._left: int | None = None
        self._calm = False

    @contextlib.contextmanager
    def calm(self) -> Iterator[None]:
        """Nothing fails inside: the simulation itself looks at the record."""
        before, self._calm = (self._left, self._calm), True
        self._left = None
        try:
            yield
        finally:
            self._left, self._calm = before

    def dies_in(self, statements: int | None) -> None:
        """The driver is killed at its statement after this many; None: a driver lives (again).

        Raises:
            DriverKilled: now, for 0.
        """
        self._left = statements
        if statements == 0:
            raise DriverKilled

    def statement(self, sql: str) -> None:
        """Raise what a statement meets."""
        if self._left is not None:
            if self._left == 0:
                raise DriverKilled
            self._left -= 1
        if self._calm:
            return
        now = self._clock()
        for fault in self._away:
            if fault.at_s <= now < fault.at_s + fault.lasts_s and _meets(fault.kind, sql):
                self._met(fault.kind)
                if fault.kind == "record locked":  # SQLite waits for the lock
                    self._clock.wait(min(WAIT_S, fault.at_s + fault.lasts_s - now))
                    if self._clock() >= fault.at_s + fault.lasts_s:
                        continue
                raise sqlite3.OperationalError(_MESSAGES[fault.kind])

    def commit(self, commit: Callable[[], None], rollback: Callable[[], None]) -> None:
        """Commit, unless that or its answer is lost."""
        self.statement("COMMIT")
        now = self._clock()
        if not self._calm and self._once and self._once[0].at_s <= now:
            fault = self._once.pop(0)
            self._met(fault.kind)
            (commit if fault.kind == "answer lost" else rollback)()
            raise sqlite3.OperationalError(_MESSAGES[fault.kind])
        commit()


def _meets(kind: str, sql: str) -> bool:
    verb = sql.lstrip().partition(" ")[0].upper()
    if kind == "record away":
        return True
    if kind == "record locked":
        return verb in ("BEGIN", "INSERT", "UPDATE", "DELETE")
    return verb in ("INSERT", "COMMIT")


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.connection.weather.statement(sql)  # type: ignore[attr-defined]
        return super().execute(sql, *values)


def connecting(weather: Weather) -> Callable[..., sqlite3.Connection]:
    """A `sqlite3.connect` whose connections meet the weather."""

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = _Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            weather.statement(sql)
            return super().execute(sql, *values)

        def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
            weather.statement(sql)
            return super().executemany(sql, *values)

        def commit(self) -> None:
            weather.commit(super().commit, super().rollback)

    Connection.weather = weather  # type: ignore[attr-defined]

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        weather.statement("SELECT")
        return sqlite3.connect(*arguments, factory=Connection, **options)

    return connect


class _Module:
    """A module with some names replaced."""

    def __init__(self, module: ModuleType, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


EPOCH_S = 1_800_000_000.0


def _virtual(clock: VirtualClock) -> Any:
    return _Module(
        time,
        monotonic=clock,
        perf_counter=clock,
        time=lambda: EPOCH_S + clock(),
        time_ns=lambda: int((EPOCH_S + clock()) * 1e9),
        sleep=clock.wait,
    )


@cache
def _modules(count: int) -> tuple[tuple[ModuleType, str, ModuleType], ...]:
    """The modules of this package that import `time` or `sqlite3`; `count` renews the list as modules are loaded."""
    return tuple(
        (module, name, real)
        for path, module in list(sys.modules.items())
        for name, real in (("time", time), ("sqlite3", sqlite3))
        if path.startswith("orchestrator.") and getattr(module, name, None) is real
    )


class _Store:
    """Stands for MLflow's own store, which takes longer to open than a schedule to run and is not needed here."""

    class engine:  # noqa: N801
        @staticmethod
        def dispose() -> None:
            return


class _NoAlarm:
    """Stands for the alarm of a hanging trial: simulated ones hang in virtual time."""

    @staticmethod
    def dump_traceback_later(timeout: float, **options: object) -> None:
        return

    @staticmethod
    def cancel_dump_traceback_later() -> None:
        return


class _Heartbeat:
    """Stands for the thread that renews the lease in real time."""

    def __init__(self, *arguments: object) -> None:
        return

    def close(self) -> None:
        return


def process_ends(tracker: Tracker) -> None:
    """What the system does with the files of a process that was killed."""
    assert isinstance(tracker, DatabaseTracker)
    database = tracker._database
    if database._table is not None:
        database._table.bulk.connection.close()
    if database._earlier_lock >= 0:
        os.close(database._earlier_lock)


def _processes(driver: Callable[[], int]) -> Any:
    """An `os` whose only process is the driver that runs now; each has another number."""

    def kill(pid: int, signal: int) -> None:
        if pid != driver():
            raise ProcessLookupError

    return _Module(os, getpid=driver, kill=kill)


@contextlib.contextmanager
def simulated_world(clock: VirtualClock, weather: Weather, driver: Callable[[], int]) -> Iterator[None]:
    """Inside, `time`, `sqlite3` and processes are simulated for the orchestrator; `driver` is the process that runs."""
    found = _modules(len(sys.modules))
    replaced = {"time": _virtual(clock), "sqlite3": _Module(sqlite3, connect=connecting(weather))}
    for module, name, _ in found:
        setattr(module, name, replaced[name])
    others: list[tuple[Any, str, Any]] = [
        (connection.Database, "check_tables", lambda database: None),
        (connection, "mlflow_store", lambda address, place: _Store()),
        (lease_table, "Heartbeat", _Heartbeat),
        (process, "os", _processes(driver)),
        (runner, "POLL_S", 1.0),  # fewer turns in which nothing happens
        # What costs much and is always the same here: the mounts, and the secrets in the environment.
        (file_system, "mount_of", lambda path, mountinfo: file_system.Mount(Path("/"), "tmpfs")),
        (file_system, "MOUNTINFO", Path(os.devnull)),
        (secrets, "secrets_of", lambda environ: {}),
        (worker, "faulthandler", _NoAlarm),
    ]
    real_others = [(module, name, getattr(module, name)) for module, name, _ in others]
    for module, name, value in others:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in real_others:
            setattr(module, name, value)
        for module, name, real in found:
            setattr(module, name, real)


SWEEP = SweepRecord(sweep_id=SWEEP_ID, name="schedule", job="drill", resolved_yaml="", thresholds="{'level': 3.0}")

_WATCHED = """
CREATE TABLE regressions (run_uuid TEXT, status TEXT);
CREATE TRIGGER finished_stays AFTER UPDATE OF status ON runs
WHEN OLD.status = 'FINISHED' AND NEW.status <> 'FINISHED' AND OLD.name <> 'schedule'
BEGIN INSERT INTO regressions VALUES (OLD.run_uuid, NEW.status); END;
"""


@cache
def _template() -> bytes:
    """An MLflow database with the experiment and the sweep, which notes every finished run that is opened again."""
    from orchestrator.tracking.factory import open_tracker

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mlflow.db")
        tracker = open_tracker(f"sqlite:///{file}", experiment=EXPERIMENT, artifacts=str(Path(folder, "artifacts")))
        tracker.open_sweep(SWEEP)
        tracker.end_sweep("FINISHED", {})
        tracker.close()
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.executescript(_WATCHED)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return file.read_bytes()


@contextlib.contextmanager
def new_record() -> Iterator[Path]:
    """A new record in memory, where the system has such a file system."""
    content = _template()
    folder = Path(tempfile.mkdtemp(prefix="phasefront-schedule-", dir=SHM if SHM.is_dir() else None))
    try:
        file = folder / "mlflow.db"
        file.write_bytes(content)
        yield file
    finally:
        shutil.rmtree(folder, ignore_errors=True)

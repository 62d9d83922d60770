"""The driver ends before and after every SQL statement and HTTP request of a small sweep; the same command finishes it.

    python -m tests.kill_points [--record sqlite|search|postgres|http] [--sample N] [--seed N]

Each case is two forks of a process that has imported everything: the first runs the command and ends at its point with
`os._exit`, the second runs the same command to its end. The record must then be that of an undisturbed run: every row
once, every trial FINISHED, and `phasefront audit` satisfied.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JOB = """\
def train(params, seed, device, report):
    for step in (1, 2, 4, 8):
        report(step, loss=params["lr"] * seed / step, steepness=params["lr"])
"""
GRID = """\
name: small
job: mine:train
axes: {lr: [0.5, 1.0, 2.0]}
replicates: 2
"""
SEARCH = """\
name: small
job: mine:train
axes: {lr: {scale: log, from: 0.25, to: 4}, momentum: {scale: linear, from: 0, to: 1}}
search: {kind: boundary, target: {metric: final_steepness, level: 1.0}, budget: 8, start: 4, batch: 2}
"""
COMMAND = ("run", "sweep.yaml", "--inline", "--no-map", "--quiet")
KILLED = 77
"""Exit code of a driver that ended at its point."""


class Points:
    """Counts statements and requests; at one of them the process ends."""

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at, self._lock = kill_at, threading.Lock()

    def passed(self) -> None:
        with self._lock:
            self.count += 1
            if self.count == self._kill_at:
                os._exit(KILLED)

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method with a point before and one after it."""

        def counted(*given: Any, **named: Any) -> Any:
            self.passed()
            result = method(*given, **named)
            self.passed()
            return result

        return counted

    def watch(self) -> None:
        """From now on every statement of SQLite and PostgreSQL, and every HTTP request, has its points."""
        self._watch_sqlite()
        self._watch_postgres()
        self._watch_http()

    def _watch_sqlite(self) -> None:
        counted = type("Cursor", (sqlite3.Cursor,), self._methods(sqlite3.Cursor, "execute", "executemany"))

        class Connection(sqlite3.Connection):
            def cursor(self, factory: type[sqlite3.Cursor] = counted) -> sqlite3.Cursor:
                return super().cursor(factory)

        # `Connection.execute` calls `cursor` and `Cursor.execute`.
        for name, method in self._methods(sqlite3.Connection, "commit", "rollback").items():
            setattr(Connection, name, method)
        connect = sqlite3.connect

        def connected(*given: Any, **named: Any) -> sqlite3.Connection:
            made: sqlite3.Connection = connect(*given, **{"factory": Connection, **named})
            return made

        sqlite3.connect = connected
        sys.modules["sqlite3.dbapi2"].connect = connected  # what SQLAlchemy calls

    def _watch_postgres(self) -> None:
        import psycopg2
        import psycopg2.extensions as extensions

        cursor = type(
            "Cursor", (extensions.cursor,), self._methods(extensions.cursor, "execute", "executemany", "copy_expert")
        )
        methods = self._methods(extensions.connection, "commit", "rollback")
        connection = type("Connection", (extensions.connection,), methods)
        connect = psycopg2.connect

        def connected(*given: Any, **named: Any) -> Any:
            made = connect(*given, **{**named, "connection_factory": connection})
            made.cursor_factory = cursor
            return made

        psycopg2.connect = connected

    def _watch_http(self) -> None:
        import requests

        requests.Session.send = self.around(requests.Session.send)

    def _methods(self, owner: type, *names: str) -> dict[str, Callable[..., Any]]:
        return {name: self.around(getattr(owner, name)) for name in names}


def command(folder: Path, *arguments: str) -> int:
    """`phasefront` in this process, with its output in a file."""
    from orchestrator.cli import main

    os.chdir(folder)
    with (folder / "output.txt").open("a") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        print("$", *arguments, flush=True)
        try:
            return main(arguments)
        except SystemExit as ended:
            return int(ended.code or 0)


def forked(do: Callable[[], int]) -> int:
    """The exit code of a child of this process that calls `do`."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = do()
        except BaseException:  # it must not go on as the parent does
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where the cases of one kind of record run."""

    home: Path
    sweep: str
    uri: str = ""
    """The address of a server; empty for a SQLite file in the folder of each case."""
    template: Path | None = None
    """A database with MLflow's schema, copied for each case; without it the schema is made in each case."""

    def folder(self, name: str) -> Path:
        folder = self.home / name
        folder.mkdir()
        (folder / "mine.py").write_text(JOB)
        uri = self.uri or f"sqlite:///{folder}/mlflow.db"
        (folder / "sweep.yaml").write_text(f"{self.sweep}tracking: {{uri: '{uri}', experiment: {name}}}\n")
        if self.template is not None:
            shutil.copyfile(self.template, folder / "mlflow.db")
        return folder

    def undisturbed(self) -> tuple[int, str]:
        """Run the sweep once in a child, and import here what it has imported: the number of points, and the record."""
        folder = self.folder("undisturbed")

        def run() -> int:
            points = Points(None)
            points.watch()
            code = command(folder, *COMMAND)
            (folder / "modules.txt").write_text("\n".join([str(points.count), *sys.modules]))
            return code

        code = forked(run)
        if code != 0 or forked(lambda: self._check(folder)) != 0:
            raise RuntimeError(f"the undisturbed run ended with {code}:\n{(folder / 'output.txt').read_text()}")
        count, *modules = (folder / "modules.txt").read_text().splitlines()
        for name in modules:
            if name not in ("__main__", "mine"):
                with contextlib.suppress(Exception):  # not every name in sys.modules can be imported by itself
                    importlib.import_module(name)
        return int(count), (folder / "record.txt").read_text()

    def case(self, point: int, expected: str) -> Case:
        """Kill the driver at a point, then run the same command again."""
        folder = self.folder(f"point-{point}")

        def run() -> int:
            Points(point).watch()
            return command(folder, *COMMAND)

        first = forked(run)
        if first not in (0, KILLED):
            return Case(point=point, reached=False, wrong=f"the first run ended with {first}", folder=folder)
        second = forked(lambda: command(folder, *COMMAND) or self._check(folder))
        wrong = "" if second == 0 else f"the second run ended with {second}"
        if not wrong and (folder / "record.txt").read_text() != expected:
            wrong = "the record differs from that of an undisturbed run"
        if not wrong:
            shutil.rmtree(folder)
        return Case(point=point, reached=first == KILLED, wrong=wrong, folder=folder)

    def _check(self, folder: Path) -> int:
        """The exit code of `audit`; writes down what is recorded."""
        code = command(folder, "audit", "sweep.yaml")
        (folder / "record.txt").write_text(recorded(folder))
        return code


@dataclass(frozen=True, kw_only=True)
class Case:
    """What came of one point."""

    point: int
    reached: bool
    wrong: str
    folder: Path

    @property
    def text(self) -> str:
        """The point, what is wrong, and what the commands printed."""
        output = self.folder / "output.txt"
        return f"point {self.point}: {self.wrong}\n{output.read_text() if output.exists() else ''}"


def recorded(folder: Path) -> str:
    """The trials with status, phase, observations and curves. Of a search, whose trials may differ, their number."""
    from orchestrator.commands.searching import known_trials
    from orchestrator.commands.wiring import open_tracker
    from orchestrator.sweep.sweep import Sweep

    os.chdir(folder)
    sweep = Sweep.load(folder / "sweep.yaml")
    with contextlib.closing(open_tracker(sweep)) as tracker:
        trials = {trial.id: trial for trial in known_trials(sweep, tracker)}
        rows = {row.trial_id: row.recorded for row in tracker.rows(trials)}
        if sweep.is_search:
            return f"{len(rows)} {sorted(recorded.status for recorded in rows.values())}"
        lines = []
        for trial_id, curves in tracker.curves(trials):
            recorded = rows[trial_id]
            values = {name: column.tolist() for name, column in sorted(curves.values.items())}
            lines.append(f"{trial_id} {recorded.status} {recorded.phase} {curves.step.tolist()} {values}")
        return "\n".join([str(len(rows)), *sorted(lines)])


def make_schema(uri: str) -> int:
    """Create MLflow's tables."""
    from orchestrator.tracking.address import database_address
    from orchestrator.tracking.connection import mlflow_store

    mlflow_store(database_address(uri), "tests").engine.dispose()
    return 0


def import_first() -> None:
    """Import the large libraries here, so that no child does."""
    from orchestrator.tracking.address import quiet_mlflow

    quiet_mlflow("mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking")
    for name in ("orchestrator.tracking.store", "orchestrator.commands.run", "orchestrator.commands.audit", "optuna"):
        importlib.import_module(name)


@contextlib.contextmanager
def bench(kind: str) -> Iterator[Bench]:
    """The place for the cases of a kind of record; its folder is left where a case failed."""
    sys.path.insert(0, str(Path(__file__).parent))  # as pytest does: `servers` imports its neighbours by name
    from servers import empty_sqlite, mlflow_server, postgres_server

    home = Path(tempfile.mkdtemp(prefix="pf-kill-"))
    os.environ |= {"XDG_CACHE_HOME": str(home / "cache"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    sys.path.insert(0, "")
    import_first()
    with contextlib.ExitStack() as stack:
        if kind in ("sqlite", "search"):
            empty = home / "empty.db"
            forked(lambda: int(not empty_sqlite(empty).exists()))
            yield Bench(home=home, sweep=SEARCH if kind == "search" else GRID, template=empty)
        elif kind == "new":
            yield Bench(home=home, sweep=GRID)
        elif kind == "postgres":
            uri = stack.enter_context(postgres_server())
            forked(lambda: make_schema(uri))
            yield Bench(home=home, sweep=GRID, uri=uri)
        else:
            empty = home / "server" / "mlflow.db"
            forked(lambda: int(not empty_sqlite(empty).exists()))
            address = stack.enter_context(mlflow_server(f"sqlite:///{empty}", home / "server"))
            yield Bench(home=home, sweep=GRID, uri=address)


KINDS = ("sqlite", "search", "new", "postgres", "http")


def main() -> int:
    """Run the cases, print what failed and a line for each kind of record; 1 where a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill_points", description=__doc__.split("\n")[0])
    parser.add_argument("--record", choices=KINDS, action="append", help="the kinds of record; by default all")
    parser.add_argument("--sample", type=int, metavar="N", help="points of each kind, instead of all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    given = parser.parse_args()
    failed = 0
    for kind in given.record or KINDS:
        began = time.monotonic()
        with bench(kind) as place:
            count, expected = place.undisturbed()
            points = range(1, count + 1)
            chosen = sorted(random.Random(given.seed).sample(points, min(given.sample or count, count)))
            cases = []
            for point in chosen:
                cases.append(place.case(point, expected))
                if cases[-1].wrong:
                    print(cases[-1].text, flush=True)
        wrong = [case for case in cases if case.wrong]
        reached = sum(case.reached for case in cases)
        print(
            f"{kind:<9} {count} points, {len(cases)} tried, {reached} reached, {len(wrong)} failed, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        failed += len(wrong)
        if not wrong:
            shutil.rmtree(place.home)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Where the sweeps are recorded: real SQLite files, a PostgreSQL server and an MLflow server, and their faults.

Servers live as long as the soak; each sweep has an experiment, or a file, of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.proxy import Proxy
from needs import postgresql
from servers import MLFLOW_SERVER, _unprivileged, empty_sqlite, free_port

from tests.chaos.host import run, send, small_disk, wait_for

CANARY = "canary-5f0e2c-password"
"""The password of every address; it must appear nowhere."""
COUNT = (
    "SELECT COUNT(*) FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
    "JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'phasefront.trial_id' "
    "JOIN experiments e ON e.experiment_id = r.experiment_id "
    "WHERE r.lifecycle_stage = 'active' AND m.timestamp >= r.start_time AND e.name = "
)
"""Curve rows of an experiment."""
DISK_MB = 24


class Record(ABC):
    """The record of one sweep."""

    kind: str
    experiment: str
    artifacts: Path

    @property
    @abstractmethod
    def uri(self) -> str:
        """The address in the sweep file."""

    @property
    def read_uri(self) -> str:
        """The address by which the harness reads it."""
        return self.uri

    @abstractmethod
    def count_rows(self) -> int:
        """Curve rows, by SQL."""

    def calm(self) -> None:
        """End every fault of a server, if there is one."""
        return


def _count_sqlite(file: Path, experiment: str) -> int:
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection:
        return int(connection.execute(f"{COUNT}?", (experiment,)).fetchone()[0])


class SqliteRecord(Record):
    """A file of its own."""

    kind = "sqlite"

    def __init__(self, folder: Path, experiment: str) -> None:
        self.file = empty_sqlite(folder / "record.db")
        self.experiment, self.artifacts = experiment, folder / "artifacts"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.file}"

    def count_rows(self) -> int:
        return _count_sqlite(self.file, self.experiment)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, another process writes for a long time."""
        holder = subprocess.Popen(["python3", "-c", _HOLDS, str(self.file)], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        try:
            holder.stdout.readline()
            yield
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close()


_HOLDS = """
import sqlite3, sys, time
c = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
c.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(600)
"""


class DiskRecord(SqliteRecord):
    """A file on a small file system, which can be filled."""

    kind = "disk"

    def __init__(self, folder: Path, experiment: str) -> None:
        self._mounted = small_disk(folder / "disk", DISK_MB)
        self.folder = self._mounted.__enter__()
        super().__init__(self.folder, experiment)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Inside, no byte is free."""
        filler = self.folder / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb") as file:
                for size in (1 << 20, 1 << 12):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
                            file.flush()
            yield
        finally:
            filler.unlink(missing_ok=True)

    def close(self) -> None:
        self._mounted.__exit__(None, None, None)


class Postgres:
    """A PostgreSQL server that can be restarted, behind a proxy that can lose answers."""

    def __init__(self, host: str) -> None:
        self._programs, self._user = postgresql(), _unprivileged() if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="pf-chaos-pg-", dir="/tmp"))
        self._host, self._port = host, free_port()
        if self._user:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        data = self._folder / "data"
        self._do("initdb", "-D", data, "-U", "tester", "-A", "trust", "-N", "-E", "UTF8")
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"port = {self._port}\nlisten_addresses = '127.0.0.1'\nfsync = off\nmax_connections = 60\n"
                f"unix_socket_directories = '{self._folder}'\n"
            )
        self._control("start")
        self.direct = f"postgresql://tester:{CANARY}@127.0.0.1:{self._port}/postgres"
        self.proxy = Proxy.to(self.direct, host=host)

    def _do(self, program: str, *arguments: object) -> None:
        as_user = ["runuser", "-u", self._user.pw_name, "--"] if self._user else []
        command = [*as_user, str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", env={**os.environ, "LC_ALL": "C"}, timeout=90
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}{done.stdout}")

    def _control(self, action: str, *options: str) -> None:
        # Its own log file: a pipe would be held by the server that stays.
        log = self._folder / "log"
        self._do("pg_ctl", "-D", self._folder / "data", "-w", "-l", log, *options, action)

    def restart(self, mode: str, away_s: float) -> None:
        self._control("stop", "-m", mode)
        time.sleep(away_s)
        self._control("start")

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        import psycopg2

        with contextlib.closing(psycopg2.connect(self.direct)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(sql, values)
            return cursor.fetchall()

    def terminate_backends(self) -> int:
        others = "pid <> pg_backend_pid() AND usename IS NOT NULL"
        return len(self.query(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))

    def close(self) -> None:
        self.proxy.close()
        with contextlib.suppress(RuntimeError):
            self._control("stop", "-m", "immediate")
        shutil.rmtree(self._folder, ignore_errors=True)


class PostgresRecord(Record):
    """An experiment in PostgreSQL, reached through the proxy."""

    kind = "postgres"

    def __init__(self, folder: Path, experiment: str, server: Postgres) -> None:
        self.server, self.experiment, self.artifacts = server, experiment, folder / "artifacts"

    @property
    def uri(self) -> str:
        return self.server.proxy.uri

    @property
    def read_uri(self) -> str:
        return self.server.direct

    def count_rows(self) -> int:
        return int(self.server.query(f"{COUNT}%s", self.experiment)[0][0])

    def calm(self) -> None:
        self.server.proxy.calm()


class MlflowServer:
    """A real MLflow server over a SQLite file, behind a proxy that answers with errors."""

    def __init__(self, folder: Path, host: str) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self.file, self._port = empty_sqlite(folder / "record.db"), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._start()
        self.direct = f"http://127.0.0.1:{self._port}"
        self.proxy = Proxy.to(self.direct, host=host)

    def _start(self) -> None:
        where = ["--backend-store-uri", f"sqlite:///{self.file}", "--artifacts-destination", self._folder / "artifacts"]
        options = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1", "--allowed-hosts", "*"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*MLFLOW_SERVER, *map(str, where), *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._folder,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        if not wait_for(self._answers, 120):
            raise RuntimeError((self._folder / "server.log").read_text()[-2000:])

    def _answers(self) -> bool:
        import urllib.request

        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def processes(self) -> list[int]:
        assert self._process is not None
        found = run("ps", "-o", "pid=", "-s", self._process.pid, check=False)
        return [int(pid) for pid in re.findall(r"\d+", found)]

    def restart(self, away_s: float) -> None:
        self._end()
        time.sleep(away_s)
        self._start()

    def _end(self) -> None:
        if self._process is not None:
            send(self.processes(), signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.proxy.close()
        self._end()


class ServerRecord(Record):
    """An experiment behind the MLflow server, reached through the proxy."""

    kind = "http"

    def __init__(self, folder: Path, experiment: str, server: MlflowServer) -> None:
        self.server, self.experiment, self.artifacts = server, experiment, folder / "artifacts"

    @property
    def uri(self) -> str:
        return self.server.proxy.uri

    @property
    def read_uri(self) -> str:
        return self.server.direct

    def count_rows(self) -> int:
        return _count_sqlite(self.server.file, self.experiment)

    def calm(self) -> None:
        self.server.proxy.calm()


class Servers:
    """The servers, started when they are first needed."""

    def __init__(self, folder: Path, host: str) -> None:
        self._folder, self._host = folder, host
        self._postgres: Postgres | None = None
        self._mlflow: MlflowServer | None = None
        self._lock = threading.Lock()

    @property
    def postgres(self) -> Postgres:
        self._postgres = self._postgres or Postgres(self._host)
        return self._postgres

    @property
    def mlflow(self) -> MlflowServer:
        self._mlflow = self._mlflow or MlflowServer(self._folder / "mlflow", self._host)
        return self._mlflow

    def record(self, kind: str, folder: Path, experiment: str) -> Record:
        """A record of a kind: sqlite, disk, postgres or http."""
        if kind == "postgres":
            return PostgresRecord(folder, experiment, self.postgres)
        if kind == "http":
            return ServerRecord(folder, experiment, self.mlflow)
        return (DiskRecord if kind == "disk" else SqliteRecord)(folder, experiment)

    def close(self) -> None:
        for server in (self._postgres, self._mlflow):
            if server is not None:
                server.close()

"""Real PostgreSQL and MLflow servers for tests, started on free ports and stopped at the end of the test."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from needs import postgresql

START_S = 90
MLFLOW_SERVER = (sys.executable, "-m", "mlflow", "server")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that are not in use now.

    They are above those of Ray's workers, and below those that Linux gives to whoever asks for any port: another
    program could get one of these before the server that is to listen there has started.
    """
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.SystemRandom().sample(range(20_000, 32_768), 1_000):
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("", port)))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError("no free port")


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]


class PostgresServer:
    """A temporary PostgreSQL cluster that can be stopped and started again on its port.

    PostgreSQL refuses to run as root; if we are root, it runs as another user of the system.
    """

    def __init__(self, folder: Path) -> None:
        self._programs, self._folder, self._port = postgresql(), folder, free_port()
        user = _unprivileged() if os.getuid() == 0 else None
        self._as_user = ["runuser", "-u", user.pw_name, "--"] if user else []
        self._environment = {**os.environ, "LC_ALL": "C"}
        self._server: subprocess.Popen[bytes] | None = None
        self.uri = f"postgresql://tester@127.0.0.1:{self._port}/postgres"
        """The address of the database `postgres`, without a password."""
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        subprocess.run(
            [*self._command("initdb"), "-U", "tester", "-A", "trust", "-N", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd="/",
            env=self._environment,
        )

    def _command(self, program: str) -> list[str]:
        return [*self._as_user, str(self._programs / program), "-D", str(self._folder / "data")]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = self._folder / "log"
        with log.open("ab") as output:
            settings = ("listen_addresses=127.0.0.1", f"unix_socket_directories={self._folder}", "fsync=off")
            options = [option for setting in settings for option in ("-c", setting)]
            self._server = subprocess.Popen(
                [*self._command("postgres"), "-p", str(self._port), *options],
                stdout=subprocess.DEVNULL,
                stderr=output,
                cwd="/",
                env=self._environment,
                start_new_session=True,
            )
        _wait(self._server, self.answers, log)

    def crash(self) -> None:
        """Stop at once, without a checkpoint; the next start recovers from the log."""
        subprocess.run([*self._command("pg_ctl"), "stop", "-m", "immediate"], check=True, capture_output=True, cwd="/")
        assert self._server is not None
        self._server.wait(timeout=30)

    def answers(self) -> bool:
        """Whether it accepts connections now."""
        return _answers_postgres(self._programs, self._port)

    def close(self) -> None:
        """Stop the server."""
        if self._server is not None:
            _end(self._server, signal.SIGINT)


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A running temporary PostgreSQL cluster."""
    folder = Path(tempfile.mkdtemp(prefix="pf-pg-", dir="/tmp"))
    try:
        server = PostgresServer(folder)
        try:
            server.start()
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """The address of a running temporary PostgreSQL cluster."""
    with postgres() as server:
        yield server.uri


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("root needs a user called postgres or nobody to run PostgreSQL as")


def _answers_postgres(programs: Path, port: int) -> bool:
    return (
        subprocess.run(
            [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)], capture_output=True, check=False
        ).returncode
        == 0
    )


@contextlib.contextmanager
def mlflow_server(backend_uri: str, artifacts: Path) -> Iterator[str]:
    """`mlflow server` on this backend, serving artifacts from a folder; its http address."""
    port = free_port()
    where = ["--backend-store-uri", backend_uri, "--artifacts-destination", str(artifacts)]
    options = ["--host", "127.0.0.1", "--port", str(port)]
    with running_mlflow([*MLFLOW_SERVER, *where, *options], port=port, folder=artifacts, environ=os.environ):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def running_mlflow(command: Sequence[str], *, port: int, folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """The command of an MLflow server with one worker, started in a folder, until it answers at the port."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--workers", "1"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
            env={**environ, **quiet},
        )
    try:
        _wait(server, lambda: _answers_http(f"http://127.0.0.1:{port}/health"), log)
        yield
    finally:
        _end(server, signal.SIGTERM)


def _answers_http(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait(server: subprocess.Popen[bytes], ready, log: Path) -> None:
    until = time.monotonic() + START_S
    while not ready():
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.1)


def _end(server: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Stop the process group of the server; kill it if it does not stop by itself."""
    for sign in (how, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            continue
        break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


@functools.cache
def _empty_template() -> Path:
    """An empty database with MLflow's schema, created once by MLflow's own code (some seconds)."""
    from orchestrator.tracking.address import database_address
    from orchestrator.tracking.connection import mlflow_store

    folder = Path(tempfile.mkdtemp(prefix="pf-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = mlflow_store(database_address(f"sqlite:///{folder}/mlflow.db"), "tests")
    store.engine.dispose()
    return folder / "mlflow.db"


def empty_sqlite(path: Path) -> Path:
    """Put an empty MLflow database there, so that a test need not run the migrations."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_empty_template(), path)
    return path

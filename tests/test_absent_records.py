"""A record that is away when a command starts is waited for; an address that is plainly wrong is a mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from faults.proxy import Proxy
from servers import PostgresServer, empty_sqlite, mlflow_server, postgres

from tests.driving import environment

JOB = """\
def train(params, seed, device, report):
    for step in range(1, 4):
        report(step, loss=1 / step)
"""
SWEEP = "name: small\njob: mine:train\naxes: {n: [1, 2]}\n"
RUN = ("run", "sweep.yaml", "--inline", "--no-map")
SHORT = ("--set", "tracking.patience=4s")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    backend = f"phasefront-sqlite:///{empty_sqlite(folder / 'mlflow.db')}"
    with mlflow_server(backend, folder / "artifacts") as uri:
        yield uri


def start(*arguments: str, uri: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator", *arguments, "--set", f"tracking.uri={uri}"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=cwd, env=environment(), text=True, **streams)


def finish(*arguments: str, uri: str, cwd: Path) -> tuple[int, str]:
    with start(*arguments, uri=uri, cwd=cwd) as process:
        out, _ = process.communicate(timeout=240)
        return process.returncode, out


def until(text: str, process: subprocess.Popen[str]) -> list[str]:
    """Read lines up to one with this text."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(lines)


@pytest.mark.slow
def test_a_run_waits_for_a_database_that_is_not_started_yet(database: PostgresServer, folder: Path) -> None:
    database.crash()
    try:
        code, out = finish(*RUN, *SHORT, uri=database.uri, cwd=folder)
        assert code == 75, out
        assert "has not answered for" in out
        assert "Connection refused" in out
        assert "run the same command again" in out
        with start(*RUN, uri=database.uri, cwd=folder) as process:
            said = until("has not answered for", process)
            database.start()
            out = "".join(said) + process.communicate(timeout=240)[0]
            assert process.returncode == 0, out
            assert "is back after" in out
            assert "2 trials finished" in out
    finally:
        if not database.answers():
            database.start()


@pytest.mark.slow
def test_a_run_waits_for_a_server_that_is_not_started_yet(mlflow: str, folder: Path) -> None:
    with Proxy.to(mlflow) as proxy:
        with proxy.down():
            for command in ("status", "audit", "map"):
                code, out = finish(command, "sweep.yaml", *SHORT, uri=proxy.uri, cwd=folder)
                assert code == 75, out
                assert "has not answered for" in out
            process = start(*RUN, uri=proxy.uri, cwd=folder)
            said = until("has not answered for", process)
        with process:
            out = "".join(said) + process.communicate(timeout=240)[0]
        assert process.returncode == 0, out
        assert "2 trials finished" in out


@pytest.mark.slow
def test_readers_outlive_a_connection_that_is_reset(mlflow: str, folder: Path) -> None:
    with Proxy.to(mlflow) as proxy:
        code, out = finish(*RUN, uri=proxy.uri, cwd=folder)
        assert code == 0, out
        for pattern in (b"experiments/get-by-name", b"runs/search", b"get-history-bulk"):
            before = proxy.fired
            proxy.lose(pattern, times=2)
            code, out = finish("audit", "sweep.yaml", uri=proxy.uri, cwd=folder)
            assert code == 0, out
            assert "consistent" in out
            assert proxy.fired == before + 2
        proxy.lose(b"runs/search")
        code, out = finish("status", "sweep.yaml", uri=proxy.uri, cwd=folder)
        assert (code, "2 finished" in out) == (0, True), out


@pytest.mark.slow
def test_an_address_that_is_plainly_wrong_is_a_mistake(database: PostgresServer, mlflow: str, folder: Path) -> None:
    with psycopg2.connect(database.uri) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE ROLE visitor NOLOGIN")
    wrong = {
        database.uri.replace("127.0.0.1", "nosuch.invalid"): "Name or service not known",
        database.uri.replace("/postgres", "/nosuch"): 'database "nosuch" does not exist',
        database.uri.replace("tester@", "visitor@"): "not permitted to log in",
        mlflow.replace("127.0.0.1", "nosuch.invalid"): "Name or service not known",
        f"{mlflow}/nosuch": "not an MLflow server",
        "sqlite:////proc/nosuch/mlflow.db": "mlflow.db",
    }
    for uri, why in wrong.items():
        command = RUN if uri.startswith("sqlite") else ("status", "sweep.yaml")  # which creates no file
        code, out = finish(*command, uri=uri, cwd=folder)
        assert (code, why in out) == (2, True), out
        assert "Traceback" not in out


@pytest.mark.slow
def test_access_that_is_denied_in_the_middle_of_a_run_is_an_outage(mlflow: str, folder: Path) -> None:
    with Proxy.to(mlflow) as proxy:
        proxy.answer(401, times=1000)
        code, out = finish("status", "sweep.yaml", uri=proxy.uri, cwd=folder)
        assert (code, "set MLFLOW_TRACKING_USERNAME" in out) == (2, True), out
        proxy.calm()
        proxy.answer(403, pattern=b'"params": [{', times=1000)
        code, out = finish(*RUN, "--set", "replicates=2", *SHORT, uri=proxy.uri, cwd=folder)
        assert code == 75, out
        assert "denied access (403)" in out
        assert "ask for a permission" in out
        assert "run the same command again" in out
        proxy.calm()
        code, out = finish(*RUN, "--set", "replicates=2", uri=proxy.uri, cwd=folder)
        assert (code, "4/4 done" in out) == (0, True), out  # some may have been recorded before


@pytest.mark.slow
def test_a_driver_whose_claim_of_the_lease_lost_its_answer_does_not_lock_itself_out(mlflow: str, folder: Path) -> None:
    with Proxy.to(mlflow) as proxy:
        proxy.lose(b"set-experiment-tag")
        code, out = finish(*RUN, "--set", "tracking.experiment=lost", uri=proxy.uri, cwd=folder)
        assert code == 0, out
        assert proxy.fired == 1
        assert "2 trials finished" in out

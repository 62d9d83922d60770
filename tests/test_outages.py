"""Outages of real databases and servers: nothing is lost or doubled, and the reason is stated."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg2
import pytest
from faults.proxy import Proxy
from optuna.distributions import FloatDistribution
from servers import empty_sqlite, mlflow_server, postgres
from tracking_contract import SWEEP, content, finished, rows, trial

from orchestrator.errors import Outage, UserError
from orchestrator.outages import Patience
from orchestrator.search import study
from orchestrator.search.study import SweepStudy
from orchestrator.tracking import connection
from orchestrator.tracking import resilient as resilient_tracker
from orchestrator.tracking.factory import open_tracker
from orchestrator.tracking.memory import MemoryTracker
from orchestrator.tracking.resilient import ResilientTracker
from tests.driving import driver, run, wait_for

HERE = Path(__file__).parent
TRIALS = 6


@pytest.fixture(scope="module")
def server():
    with postgres() as server:
        yield server


def resilient(uri, folder, said, *, experiment="tests", patience_s=120.0):
    inner = open_tracker(uri, experiment=experiment, artifacts=str(folder / "artifacts"))
    tracker = ResilientTracker(inner, what="the record", folder=folder, patience_s=patience_s)
    tracker.say = said.append
    tracker.open_sweep(SWEEP)
    return tracker


def train(tracker, trials, *, fault=lambda n: None):
    """Train trials one after the other; `fault(n)` is called before each write."""
    steps = iter(range(1000))

    def write(do, *given):
        fault(next(steps))
        do(*given)
        tracker.flush() if tracker._spool is None else tracker.settle()

    for one in trials:
        write(tracker.begin, [one])
        write(tracker.record, rows([one], range(0, 150)))
        write(tracker.record, rows([one], range(150, 160)))
        write(tracker.end, [finished(one, a=1.0)])


def undisturbed(trials):
    tracker = MemoryTracker()
    tracker.open_sweep(SWEEP)
    train_plainly(tracker, trials)
    return content(tracker, trials)


def train_plainly(tracker, trials):
    for one in trials:
        tracker.begin([one])
        tracker.record(rows([one], range(0, 160)))
        tracker.end([finished(one, a=1.0)])


def some_trials():
    return [trial(n) for n in range(TRIALS)]


# --- PostgreSQL ---


@pytest.mark.slow
def test_terminated_connections_of_postgresql_are_made_anew(server, tmp_path):
    said, trials = [], some_trials()
    tracker = resilient(server.uri, tmp_path, said, experiment="terminated")
    other = psycopg2.connect(server.uri)
    other.autocommit = True

    def terminate(n):
        if n % 3 == 1:
            with other.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )

    train(tracker, trials, fault=terminate)
    assert content(tracker, trials) == undisturbed(trials)
    tracker.close()
    other.close()


@pytest.mark.slow
def test_a_user_of_postgresql_without_rights_is_told_so(server, tmp_path):
    (tmp_path / "job.py").write_text("def train(*, x=1.0, seed, report):\n    report(1, loss=x)\n")
    (tmp_path / "s.yaml").write_text("name: s\njob: job:train\naxes: {x: [1, 2, 3]}\n")
    with contextlib.closing(psycopg2.connect(server.uri)) as connection:
        connection.autocommit = True
        sql = connection.cursor()
        sql.execute("CREATE ROLE poor LOGIN")
        sql.execute("CREATE DATABASE rights")
    uri = server.uri.replace("/postgres", "/rights")
    resilient(uri, tmp_path, []).close()
    environ = {"MLFLOW_TRACKING_URI": uri.replace("tester@", "poor@")}
    code, text = run("status", "s.yaml", cwd=tmp_path, environ=environ)
    assert code == 2, text
    assert "denies this user what the command needs: permission denied for table experiments" in text
    assert "next:  let its owner grant the rights" in text
    code, text = run("run", "s.yaml", "--inline", "--no-map", cwd=tmp_path, environ=environ)
    assert code == 2, text
    assert "permission denied for table alembic_version" in text


GATED = """\
import pathlib, time
def train(*, x=1.0, seed, report):
    for step in range(1, 4):
        report(step, loss=x * step)
        while step == 1 and not pathlib.Path("open").exists():
            time.sleep(0.05)
"""


@pytest.mark.slow
def test_a_right_that_is_revoked_during_a_run_is_an_outage_until_it_is_granted_again(server, tmp_path):
    (tmp_path / "job.py").write_text(GATED)
    (tmp_path / "s.yaml").write_text("name: s\njob: job:train\naxes: {x: [1, 2, 3]}\n")
    uri = server.uri.replace("/postgres", "/revocable")
    with contextlib.closing(psycopg2.connect(server.uri)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE ROLE dependent LOGIN")
        connection.cursor().execute("CREATE DATABASE revocable OWNER dependent")
    environ = {"MLFLOW_TRACKING_URI": uri.replace("tester@", "dependent@")}
    resilient(environ["MLFLOW_TRACKING_URI"], tmp_path, []).close()
    with (
        contextlib.closing(psycopg2.connect(uri)) as connection,
        driver("run", "s.yaml", "--inline", "--no-map", cwd=tmp_path, environ=environ) as running,
    ):
        connection.autocommit = True
        sql = connection.cursor()

        def recorded() -> int:
            sql.execute("SELECT count(*) FROM metrics WHERE key = 'loss'")
            return int(sql.fetchone()[0])

        wait_for("the first trial", lambda: "1 running" in running.text(), running)
        sql.execute("REVOKE INSERT ON metrics FROM dependent")
        (tmp_path / "open").touch()
        wait_for("the outage", lambda: "permission denied for table metrics" in running.text(), running)
        sql.execute("GRANT INSERT ON metrics TO dependent")
        text = running.finish()
        assert running.popen.returncode == 0, text
        assert recorded() == 9
        assert "is back after" in text and "Traceback" not in text


@pytest.mark.slow
def test_a_postgresql_that_crashes_and_comes_back_loses_nothing(server, tmp_path):
    said, trials, back = [], some_trials(), []
    tracker = resilient(server.uri, tmp_path, said, experiment="crash")

    def crash(n):
        if n == 9:
            server.crash()
            restart = threading.Timer(5.0, server.start)
            restart.start()
            back.append(restart)

    train(tracker, trials, fault=crash)
    assert content(tracker, trials) == undisturbed(trials)
    assert back
    back[0].join()
    assert "has not answered for" in said[0]
    assert "is back after" in said[-1]
    tracker.close()


@pytest.mark.slow
def test_a_commit_whose_answer_is_lost_took_effect_once(server, tmp_path):
    said, trials = [], some_trials()
    with Proxy.to(server.uri) as proxy:
        tracker = resilient(proxy.uri, tmp_path, said, experiment="commit")
        train(tracker, trials, fault=lambda n: proxy.lose(b"COMMIT") if n % 2 else None)
        assert content(tracker, trials) == undisturbed(trials)
        assert proxy.fired >= 2 * TRIALS
        tracker.close()


@pytest.mark.slow
def test_a_database_that_lost_what_it_had_confirmed_ends_the_run(server, tmp_path):
    tracker = resilient(server.uri, tmp_path, [], experiment="restored")
    train(tracker, some_trials()[:1])
    tracker._inner._database.lease.confirmed += 5
    tracker._inner._database.create().bulk.connection.close()
    tracker.begin([trial(5)])
    with pytest.raises(Outage, match="came back without the newest results"):
        tracker.flush()


@pytest.mark.slow
def test_a_request_that_hangs_is_mentioned_and_becomes_an_outage(server, tmp_path, monkeypatch):
    monkeypatch.setattr(resilient_tracker, "WATCH_S", 0.1)
    monkeypatch.setattr(resilient_tracker, "SAY_EVERY_S", 1.0)
    monkeypatch.setitem(connection.POSTGRES_OPTIONS, "connect_timeout", 2)
    said = []
    with Proxy.to(server.uri) as proxy:
        tracker = resilient(proxy.uri, tmp_path, said, experiment="hang")
        with proxy.hanging():
            asking = threading.Thread(target=tracker.index, args=([trial().id],))
            asking.start()
            wait_for("the hung connection to be cut", lambda: any("timeout expired" in line for line in said))
        asking.join()
        assert "the record has not answered a request for" in said[0]
        assert "is back after" in said[-1]
        tracker.close()


@pytest.mark.slow
def test_a_backend_of_postgresql_that_hangs_alone_becomes_an_outage(server, tmp_path, monkeypatch):
    """The server answers new connections: the statement might merely take long, so there is a limit."""
    monkeypatch.setattr(resilient_tracker, "WATCH_S", 0.1)
    monkeypatch.setattr(resilient_tracker, "SAY_EVERY_S", 1.0)
    said = []
    tracker = resilient(server.uri, tmp_path, said, experiment="backend")
    bulk = tracker._inner._database.create().bulk
    monkeypatch.setattr(connection, "STATEMENT_S", 3.0)
    backend = bulk.connection.info.backend_pid
    os.kill(backend, signal.SIGSTOP)
    try:
        asking = threading.Thread(target=tracker.index, args=([trial().id],))
        asking.start()
        time.sleep(2.0)
        assert asking.is_alive()
        assert tracker._inner._database.create().bulk.connection is bulk.connection
        wait_for("the hung connection to be cut", lambda: any("has not ended yet" in line for line in said))
    finally:
        os.kill(backend, signal.SIGCONT)
    asking.join()
    assert "is back after" in said[-1]
    tracker.close()


# --- SQLite ---


def test_a_damaged_file_is_a_mistake_that_names_it_and_is_left_as_it_is(tmp_path):
    file = empty_sqlite(tmp_path / "mlflow.db")
    (tmp_path / "mine.py").write_text("def train(params, seed, device, report):\n    report(1, loss=1.0)\n")
    (tmp_path / "sweep.yaml").write_text("name: small\njob: mine:train\naxes: {n: [1, 2]}\n")
    with contextlib.closing(sqlite3.connect(file)) as database:
        ((page,),) = database.execute("PRAGMA page_size").fetchall()
        roots = database.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name = 'experiments'").fetchall()
    content = bytearray(file.read_bytes())
    for (root,) in roots:
        content[(root - 1) * page : (root - 1) * page + 100] = b"\xaa" * 100
    file.write_bytes(content)
    for command in (("status",), ("audit",), ("map",), ("run", "--inline", "--no-map")):
        code, text = run(command[0], "sweep.yaml", *command[1:], cwd=tmp_path)
        assert code == 2, text
        assert "the record (sqlite:///mlflow.db, experiment phasefront) is a damaged SQLite file, or none" in text
        assert "malformed" in text
        assert ".recover" in text
        assert "Traceback" not in text
    assert file.read_bytes() == content
    os.truncate(file, len(content) // 2)
    code, text = run("status", "sweep.yaml", cwd=tmp_path)
    assert (code, ".recover" in text) == (2, True), text
    assert file.read_bytes() == content[: len(content) // 2]


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(file):
    """Inside, another process has locked the database."""
    command = [sys.executable, "-c", LOCK, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process.pid
        process.stdin.close()


@pytest.fixture
def quick(monkeypatch):
    from orchestrator.tracking import bulk_sql

    monkeypatch.setattr(bulk_sql, "WAIT_S", 0.05)


def test_a_record_without_its_tables_is_a_mistake_that_names_them(tmp_path):
    file = empty_sqlite(tmp_path / "r.db")
    tracker = resilient(f"sqlite:///{file}", tmp_path, [])
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE metrics")
    with pytest.raises(UserError, match="the record lacks a table or a column: no such table: metrics"):
        tracker.begin(some_trials())


def test_a_sqlite_file_that_another_process_has_locked_is_waited_for(tmp_path, quick):
    said, trials = [], some_trials()
    file = empty_sqlite(tmp_path / "mlflow.db")
    tracker = resilient(f"sqlite:///{file}", tmp_path, said)
    train_plainly(tracker, trials[:2])
    tracker.flush()
    with locked(file) as holder:
        train_plainly(tracker, trials[2:])
        end = time.monotonic() + 60.0
        while not said:
            assert time.monotonic() < end
            time.sleep(0.1)
            tracker.settle()
        assert said[0].startswith("the record has been locked by another process for ")
        assert f": database is locked by process {holder} (python" in said[0]
    assert content(tracker, trials) == undisturbed(trials)
    assert "is back after" in said[-1]
    tracker.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")
def test_a_full_disk_is_waited_for(tmp_path, quick):
    said, trials, disk = [], some_trials(), tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount a file system")
    try:
        tracker = resilient(f"sqlite:///{empty_sqlite(disk / 'mlflow.db')}", disk, said)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
        full = rows(trials[:1], range(20_000))
        tracker.begin(trials[:1])
        for _ in range(2):
            tracker.record(full)
            tracker.settle()
        while not said:
            time.sleep(0.1)
            tracker.settle()
        assert "full" in said[0]
        filler.unlink()
        tracker.end([finished(trials[0])])
        tracker.flush()
        assert [len(curves.step) for _, curves in tracker.curves([trials[0].id])] == [20_000]
        tracker.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- the study of a search ---

SPACE = {"x": FloatDistribution(0.0, 1.0)}


def patient(said, sleep=time.sleep):
    return Patience("the study", limit_s=120.0, say=said.append, sleep=sleep)


def test_a_study_that_another_process_has_locked_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SQLITE_WAIT_S", 0.05)
    said, file = [], tmp_path / "optuna.db"
    with contextlib.ExitStack() as lock:

        def sleep(seconds):
            time.sleep(seconds)
            if said:
                lock.close()

        storage = SweepStudy(f"sqlite:///{file}", "s", patience=patient(said, sleep))
        lock.enter_context(locked(file))
        storage.create("t", {"x": 0.5}, SPACE, 0)
        assert "database is locked" in said[0]
        said.clear()
        lock.enter_context(locked(file))
        storage.finish("t", {"phase": "low"}, 1.0)
        assert "the study is back after" in said[-1]
    (trial,) = storage.trials()
    assert (trial.user_attrs["trial_id"], trial.user_attrs["phase"], trial.state.name) == ("t", "low", "COMPLETE")
    storage.close()


@pytest.mark.slow
def test_a_study_in_postgresql_outlives_lost_answers(server):
    said, other = [], psycopg2.connect(server.uri)
    other.autocommit = True
    with other.cursor() as cursor:
        cursor.execute("CREATE DATABASE optuna")
    other.close()
    with Proxy.to(server.uri.replace("/postgres", "/optuna")) as proxy:
        storage = SweepStudy(proxy.uri.replace("://", "+psycopg2://", 1), "lost", patience=patient(said))
        for n in range(4):
            proxy.lose(b"COMMIT")
            storage.create(f"t{n}", {"x": n / 4}, SPACE, 0)
            proxy.lose(b"COMMIT")
            storage.finish(f"t{n}", {"phase": "low"}, 1.0)
        proxy.calm()
        # Optuna itself repeats an insertion, and then leaves a RUNNING row behind.
        done = [t.user_attrs["trial_id"] for t in storage.trials() if t.state.name == "COMPLETE"]
        assert sorted(done) == [f"t{n}" for n in range(4)]
        assert proxy.fired >= 4
        storage.close()


# --- the command line ---

JOB = """
import pathlib, time
def train(params, seed, device, report):
    for step in range(1, 4):
        report(step, loss=1 / step)
    pathlib.Path("trained").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
"""
FILE = """
job: waiting_job:train
axes: {n: [1, 2, 3, 4]}
phases: {metric: loss, level: 0.5}
tracking: {uri: sqlite:///mlflow.db, patience: 8s}
"""


@pytest.mark.slow
def test_a_run_whose_record_stays_away_ends_resumably_and_resumes(tmp_path):
    (tmp_path / "waiting_job.py").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(FILE)
    file = empty_sqlite(tmp_path / "mlflow.db")
    command = [sys.executable, "-m", "orchestrator", "run", "sweep.yaml", "--inline", "--no-map"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as run:
        while not (tmp_path / "trained").exists():
            assert run.poll() is None
            time.sleep(0.1)
        with locked(file):
            (tmp_path / "go").touch()
            out, err = run.communicate(timeout=200)
    assert run.returncode == 75, err
    assert "has been locked by another process for" in out
    assert "the record (sqlite:///mlflow.db, experiment phasefront) has been locked by another process for" in err
    assert "database is locked" in err
    assert "run the same command again when it is free" in err
    assert "trials that ended meanwhile train again" in err
    assert "Traceback" not in err
    again = subprocess.run(command, **options, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    connection = sqlite3.connect(file)
    runs = "SELECT status, COUNT(*) FROM runs WHERE name <> 'sweep' GROUP BY status"
    assert connection.execute(runs).fetchall() == [("FINISHED", 4)]
    assert connection.execute("SELECT COUNT(*) FROM metrics WHERE key = 'loss'").fetchone() == (12,)
    connection.close()


# --- an MLflow server ---


@pytest.mark.long
@pytest.mark.slow
def test_an_mlflow_server_that_fails_is_slow_or_loses_answers_records_everything_once(tmp_path):
    said, trials = [], some_trials()
    database = empty_sqlite(tmp_path / "mlflow.db")
    faults = {
        1: lambda: proxy.answer(500, pattern=b"/mlflow/", times=2),
        3: lambda: proxy.lose(b"runs/create"),
        5: lambda: proxy.answer(429, pattern=b"/mlflow/", times=3),
        8: lambda: proxy.lose(b"runs/create"),
        9: lambda: proxy.lose(b"log-batch"),
        11: lambda: proxy.lose(b"runs/update"),
    }

    def fault(n):
        if n in faults:
            faults[n]()

    with (
        mlflow_server(f"phasefront-sqlite:///{database}", tmp_path / "artifacts") as uri,
        Proxy.to(uri) as proxy,
    ):
        faults[13] = proxy.cut
        tracker = resilient(proxy.uri, tmp_path, said)
        train(tracker, trials, fault=fault)
        assert content(tracker, trials) == undisturbed(trials)
        tracker.close()
        connection = sqlite3.connect(database)
        live = "SELECT COUNT(*) FROM runs WHERE lifecycle_stage = 'active'"
        assert connection.execute(live).fetchone() == (1 + TRIALS,)
        connection.close()

"""One driver of an experiment at a time: the lease in the record, and its fencing number."""

import contextlib
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from driving import driver, record, rows_recorded, run, trials, wait_for
from servers import empty_sqlite
from tracking_contract import SWEEP, finished, rows, trial

from orchestrator.errors import UserError
from orchestrator.records import Status
from orchestrator.tracking import layout, lease
from orchestrator.tracking.factory import open_tracker
from orchestrator.tracking.lease import Answer, Lease, LeaseLost, Process, judge
from orchestrator.tracking.lease_table import TABLE

SLOW = """\
import time
def train(params, seed, device, report):
    for step in range(1, 600):
        report(step, loss=params["lr"] / step)
        time.sleep(0.1)
"""
QUICK = """\
def train(params, seed, device, report):
    for step in range(1, 4):
        report(step, loss=params["lr"] / step)
"""
SWEEP_FILE = """\
name: leased
job: mine:train
axes:
  lr: {values: [1.0, 2.0]}
tracking: {uri: "sqlite:///mlflow.db"}
"""
RUN = ("run", "sweep.yaml", "--inline", "--no-map", "--quiet")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return empty_sqlite(tmp_path / "mlflow.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SLOW)
    (tmp_path / "sweep.yaml").write_text(SWEEP_FILE)
    empty_sqlite(tmp_path / "mlflow.db")
    return tmp_path


@contextlib.contextmanager
def database(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
        yield connection


def content(file: Path) -> list[list[str]]:
    """Every row of MLflow's tables that a driver writes, and of the lease but for its renewals."""
    tables = ("runs", "params", "tags", "metrics", "latest_metrics")
    with database(file) as connection:
        found = [sorted(map(repr, connection.execute(f"SELECT * FROM {table}"))) for table in tables]
        return [*found, sorted(map(repr, connection.execute(f"SELECT fence, owner, sequence FROM {TABLE}")))]


def opened(file: Path):
    tracker = open_tracker(f"sqlite:///{file}", experiment="tests")
    tracker.said = []
    tracker.say = tracker.said.append
    return tracker


def once_free(tracker) -> None:
    """Close a tracker whose lease another has taken."""
    with contextlib.suppress(LeaseLost):
        tracker.close()


# --- two real drivers ---


@pytest.mark.slow
def test_a_second_driver_by_a_link_is_refused_until_the_first_is_killed(folder: Path) -> None:
    (folder / "link.db").symlink_to(folder / "mlflow.db")
    by_link = (*RUN, "--set", "tracking.uri=sqlite:///link.db")
    with driver(*RUN, cwd=folder) as first:
        wait_for("rows", lambda: rows_recorded(folder / "mlflow.db") > 0, first)
        code, text = run(*by_link, cwd=folder)
        assert code == 2, text
        assert "another phasefront run is writing to this experiment" in text
        assert f"process {first.popen.pid}" in text and os.uname().nodename[:100] in text
        assert [t.status for t in trials(record(folder / "mlflow.db"))] == ["RUNNING"] * 2
        (folder / "mine.py").write_text(QUICK)
        first.kill()
        code, text = run(*by_link, cwd=folder)
    assert code == 0, text
    assert "Waiting" not in text
    runs = trials(record(folder / "mlflow.db"))
    assert [t.status for t in runs] == ["FINISHED"] * 2
    assert [[row[1] for row in t.rows] for t in runs] == [[1, 2, 3]] * 2


@pytest.mark.slow
def test_a_driver_that_was_stopped_while_another_took_over_writes_nothing_when_it_continues(folder: Path) -> None:
    file, environ = folder / "mlflow.db", {lease.VARIABLE: "2"}

    def stopped_between_transactions() -> bool:
        os.kill(first.popen.pid, signal.SIGSTOP)
        try:
            with database(file) as connection:
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("BEGIN IMMEDIATE")
            return True
        except sqlite3.OperationalError:  # it holds the database's lock
            os.kill(first.popen.pid, signal.SIGCONT)
            return False

    with driver(*RUN, cwd=folder, environ=environ) as first:
        wait_for("rows", lambda: rows_recorded(file) > 0, first)
        wait_for("a moment between transactions", stopped_between_transactions, first)
        (folder / "mine.py").write_text(QUICK)
        time.sleep(3)  # a driver that was heard of within the lease is not taken over
        code, text = run(*(word for word in RUN if word != "--quiet"), cwd=folder, environ=environ)
        assert code == 0, text
        assert "Waiting up to 2 s" in text
        before = content(file)
        os.kill(first.popen.pid, signal.SIGCONT)
        text = first.finish()
    assert first.popen.returncode == 75, text
    assert "was taken over by another phasefront run, which has ended since" in text
    assert "Traceback" not in text
    assert content(file) == before
    assert [[row[1] for row in t.rows] for t in trials(record(file))] == [[1, 2, 3]] * 2


# --- who may take it ---

HERE = Process(host="here", machine="boot pid:[1]", pid=os.getpid(), started=1)
THERE = Process(host="there", machine="other pid:[1]", pid=1, started=1)


def leased(holder: Process | None, silent_ms: int = 0) -> Lease:
    return Lease(fence=3, sequence=7, beat=0, holder=holder, taken_ms=0, silent_ms=silent_ms, lasts_ms=60_000)


def test_a_lease_that_nobody_holds_is_free() -> None:
    for clock in (True, False):
        assert judge(None, HERE, shared_clock=clock) is Answer.TAKE
        assert judge(leased(None), HERE, shared_clock=clock) is Answer.TAKE


def test_a_driver_elsewhere_is_watched_and_a_server_s_clock_tells_when_its_lease_has_expired() -> None:
    assert judge(leased(THERE), HERE, shared_clock=True) is Answer.WATCH
    assert judge(leased(THERE), HERE, shared_clock=False) is Answer.WATCH
    assert judge(leased(THERE, 60_001), HERE, shared_clock=True) is Answer.TAKE
    assert judge(leased(THERE, 60_001), HERE, shared_clock=False) is Answer.WATCH


@pytest.mark.parametrize("silent_ms", [60_001, -5])
def test_a_clock_that_jumped_takes_no_lease_from_a_driver_on_this_machine(silent_ms: int) -> None:
    me = Process.this()
    assert judge(leased(me), me, shared_clock=False) is Answer.REFUSED
    assert judge(leased(me, silent_ms), me, shared_clock=False) is Answer.WATCH


def test_a_process_is_dead_if_its_number_is_free_or_used_by_a_later_process_of_this_machine() -> None:
    me = Process.this()
    assert me.machine and me.started and not me.is_dead(me)
    assert replace(me, started=me.started - 1).is_dead(me)
    assert not replace(me, started=me.started - 1, machine="another").is_dead(me)
    assert not replace(me, started=me.started - 1, machine="").is_dead(replace(me, machine=""))
    child = subprocess.Popen([sys.executable, "-c", "pass"], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert replace(me, pid=child.pid, started=me.started).is_dead(me), "a zombie has ended"
    child.wait()
    assert replace(me, pid=child.pid).is_dead(me)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_the_setting_of_the_tests_must_be_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(lease.VARIABLE, text)
    with pytest.raises(UserError, match="positive number of seconds"):
        lease.lease_s()


# --- the row ---


def forge(file: Path, **columns: object) -> None:
    with database(file) as connection:
        setting = ", ".join(f"{name} = ?" for name in columns)
        assert connection.execute(f"UPDATE {TABLE} SET {setting}", tuple(columns.values())).rowcount == 1


@pytest.fixture
def left(file: Path) -> Path:
    """A record whose last driver ran on another host and released nothing; its lease lasts a second."""
    tracker = opened(file)
    tracker.open_sweep(SWEEP)
    tracker.begin([trial()])
    tracker.close()
    with database(file) as connection:
        ((now,),) = connection.execute(f"SELECT renewed_ms FROM {TABLE}").fetchall()
    forge(file, owner="x", host="elsewhere", machine="another", pid=4711, renewed_ms=now, expires_ms=now + 1000)
    return file


@pytest.mark.parametrize("jump_s", [0, 10**8, -(10**8)])
def test_a_lease_from_another_host_that_nobody_renews_is_taken_whatever_the_clocks_say(left: Path, jump_s: int) -> None:
    with database(left) as connection:
        connection.execute(f"UPDATE {TABLE} SET renewed_ms = renewed_ms + ?, expires_ms = expires_ms + ?", [jump_s] * 2)
    tracker = opened(left)
    began = time.monotonic()
    tracker.open_sweep(SWEEP)
    assert time.monotonic() - began >= 1.0
    assert len(tracker.said) == 1 and "elsewhere" in tracker.said[0] and "Waiting up to 1 s" in tracker.said[0]
    assert tracker.reconcile() == 1
    tracker.close()


def test_a_lease_from_another_host_that_is_renewed_is_not_taken(left: Path) -> None:
    done = threading.Event()

    def renew() -> None:
        while not done.wait(0.05):
            with database(left) as connection:
                connection.execute(f"UPDATE {TABLE} SET beat = beat + 1")

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        tracker = opened(left)
        with pytest.raises(UserError, match=r"process 4711 on elsewhere"):
            tracker.open_sweep(SWEEP)
        tracker.close()
    finally:
        done.set()
        renewing.join()


def test_an_idle_driver_renews_its_lease(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lease.VARIABLE, "0.5")
    tracker = opened(file)
    tracker.open_sweep(SWEEP)
    forge(file, machine="another", host="elsewhere")  # so that the second driver has to watch
    second = opened(file)
    with pytest.raises(UserError, match="another phasefront run"):
        second.open_sweep(SWEEP)
    second.close()
    tracker.begin([trial()])
    tracker.close()


def test_every_way_of_writing_is_fenced(file: Path, tmp_path: Path) -> None:
    """Each method alone, after the lease was taken over."""
    one, two = trial(0), trial(1)
    note = tmp_path / "note.txt"
    note.write_text("x")
    writes = {
        "begin": lambda tracker: (tracker.begin([two]), tracker.index([])),
        "begin again": lambda tracker: tracker.begin([one]),
        "record": lambda tracker: (tracker.record(rows([one], [5])), tracker.index([])),
        "end": lambda tracker: (tracker.end([finished(one)]), tracker.index([])),
        "relabel": lambda tracker: tracker.relabel([finished(one)]),
        "reconcile": lambda tracker: tracker.reconcile(),
        "annotate": lambda tracker: tracker.annotate({"x": 1.0}),
        "trace": lambda tracker: tracker.trace("x", [(1, 1.0)]),
        "end_sweep": lambda tracker: tracker.end_sweep("FINISHED", {}),
        "attach": lambda tracker: tracker.attach({"note.txt": note}),
        "detach": lambda tracker: tracker.detach(["sweep.yaml"]),
        "open_sweep": lambda tracker: tracker.open_sweep(SWEEP),
        "settle": lambda tracker: (
            wait_for("the thread's next beat", lambda: tracker._database.lease.lost) or tracker.settle()
        ),
    }
    for name, write in writes.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(lease.VARIABLE, "0.6")
            tracker = opened(file)
            tracker.open_sweep(SWEEP)
        tracker.begin([one])
        tracker.record(rows([one], [0]))
        assert tracker.index([one.id])[one.id].status is Status.RUNNING
        with database(file) as connection:
            connection.execute(f"UPDATE {TABLE} SET fence = fence + 1, host = 'thief', owner = 'thief'")
        before = content(file)
        with pytest.raises(LeaseLost, match="taken over by the phasefront run on thief"):
            write(tracker)
        once_free(tracker)
        assert content(file) == before, name
        forge(file, owner="")


def test_the_number_of_the_last_committed_transaction_tells_whether_a_commit_took_effect(file: Path) -> None:
    tracker = opened(file)
    tracker.open_sweep(SWEEP)
    bulk, held = tracker._database.create().bulk, tracker._database.lease
    for _ in range(2):
        with bulk.transaction():
            pass
        assert held.last_committed(bulk) == held.sequence
    with pytest.raises(ZeroDivisionError), bulk.transaction():
        raise ZeroDivisionError
    assert held.last_committed(bulk) == held.sequence - 1
    with bulk.transaction():
        pass
    assert held.last_committed(bulk) == held.sequence
    with database(file) as connection:
        connection.execute(f"DELETE FROM {TABLE}")
    with pytest.raises(LeaseLost, match="taken over by another"):
        held.last_committed(bulk)
    once_free(tracker)


def test_two_of_many_drivers_at_once_never_hold_the_lease_together(file: Path) -> None:
    held, refused, lock = [], [], threading.Lock()
    start = threading.Barrier(4)

    def drive() -> None:
        tracker = opened(file)
        start.wait()
        try:
            tracker.open_sweep(SWEEP)
            with lock:
                held.append(tracker)
        except UserError as error:
            with lock:
                refused.append(error.text)
            tracker.close()

    opened(file).open_sweep(SWEEP, running=False)
    drivers = [threading.Thread(target=drive) for _ in range(4)]
    for thread in drivers:
        thread.start()
    for thread in drivers:
        thread.join()
    assert len(held) == 1 and len(refused) == 3
    held[0].close()


# --- beside MLflow and earlier versions ---


def test_mlflow_s_own_store_and_upgrade_work_on_a_record_with_a_lease(file: Path) -> None:
    from mlflow.store.db.utils import _all_tables_exist, _upgrade_db, _verify_schema
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    tracker = opened(file)
    tracker.open_sweep(SWEEP)
    tracker.begin([trial()])
    tracker.index([])
    store = SqlAlchemyStore(f"sqlite:///{file}", str(file.parent))
    assert _all_tables_exist(store.engine)
    _upgrade_db(store.engine)
    _verify_schema(store.engine)
    run_id = next(row.run_id for row in tracker.rows([trial().id]))
    assert store.get_run(run_id).info.status == "RUNNING"
    store.engine.dispose()
    tracker.end([finished(trial())])
    tracker.close()


EARLIER = (
    "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(); sys.stdin.read()"
)
"""What versions before the lease do while they run."""


def test_a_driver_of_a_version_before_the_lease_is_respected(file: Path) -> None:
    tracker = opened(file)
    experiment = tracker.open_sweep(SWEEP, running=False) and tracker.experiment_id
    lock = file.with_name(f"{file.name}.{experiment}.phasefront.lock")
    with subprocess.Popen(
        [sys.executable, "-c", EARLIER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as earlier:
        earlier.stdout.readline()
        with pytest.raises(UserError, match="another phasefront run is writing"):
            tracker.open_sweep(SWEEP)
        earlier.kill()
    tracker.open_sweep(SWEEP)
    with lock.open() as again, pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    tracker.close()


def test_opening_a_record_writes_through_no_link_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions opened a lock file of a predictable name there, and emptied what a link pointed to."""
    import hashlib
    import tempfile

    shared, precious = tmp_path / "shared", tmp_path / "precious.txt"
    shared.mkdir()
    precious.write_text("precious")
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    file = empty_sqlite(tmp_path / "mlflow.db")
    name = hashlib.blake2b(str(file).encode(), digest_size=8).hexdigest()
    (shared / f"phasefront-{os.getuid()}-{name}.lock").symlink_to(precious)
    tracker = opened(file)
    tracker.open_sweep(SWEEP)
    tracker.close()
    assert precious.read_text() == "precious"
    assert not [path for path in file.parent.iterdir() if path.suffix == ".lock"]


def test_a_refused_experiment_leaves_no_connection_open(file: Path) -> None:
    descriptors = Path("/proc/self/fd")

    def open_files() -> int:
        return sum(str(file) in str(fd.readlink()) for fd in descriptors.iterdir() if fd.exists())

    tracker = open_tracker(f"sqlite:///{file}", experiment="")
    for _ in range(3):
        with pytest.raises(UserError, match="refused to create the experiment"):
            tracker.open_sweep(SWEEP)
        assert open_files() == 0
    tracker.close()


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
def test_a_clock_that_is_set_while_a_driver_runs_breaks_neither_lease_nor_curves(
    file: Path, monkeypatch: pytest.MonkeyPatch, jump_ms: int
) -> None:
    one, two = trial(0), trial(1)
    tracker = opened(file)
    tracker.open_sweep(SWEEP)
    tracker.begin([one])
    tracker.record(rows([one], [0, 1]))
    tracker.index([])
    real = layout.now_ms
    monkeypatch.setattr(layout, "now_ms", lambda: real() + jump_ms)
    tracker.record(rows([one], [1, 2, 3]))
    tracker.begin([two])
    tracker.record(rows([two], [0]))
    tracker.end([finished(one, a=1.0)])
    tracker.annotate({"area": 2.0})
    tracker.annotate({"area": 1.0})
    tracker.close()
    tracker = opened(file)
    tracker.open_sweep(SWEEP)
    assert tracker.reconcile() == 1
    tracker.begin([two])
    tracker.record(rows([two], [0, 1]))
    tracker.end([finished(two)])
    curves = dict(tracker.curves([one.id, two.id]))
    assert [curves[t.id].step.tolist() for t in (one, two)] == [[0, 1, 2, 3], [0, 1]]
    assert {row.recorded.status for row in tracker.rows([one.id, two.id])} == {Status.FINISHED}
    with database(file) as connection:
        assert connection.execute("SELECT value FROM latest_metrics WHERE key = 'area'").fetchall() == [(1.0,)]
    tracker.close()

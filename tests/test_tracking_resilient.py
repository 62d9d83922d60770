"""A tracker that outlives outages keeps the rules of every tracker; its spool, its patience, what it refuses."""

from __future__ import annotations

import errno
import itertools
import re
import sqlite3

import numpy as np
import pytest
from servers import empty_sqlite
from test_tracking_memory import TestMemory as MemoryContract
from tracking_contract import SWEEP, content, finished, rows, trial
from tracking_parent import MlflowContract

from jobs.job import LARGEST_STEP
from orchestrator.errors import Outage, UserError
from orchestrator.outages import Kind, Unreachable, WrongAddress, kind_of
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.tracking.factory import open_tracker
from orchestrator.tracking.http_api import ServerError
from orchestrator.tracking.memory import MemoryTracker
from orchestrator.tracking.resilient import ResilientTracker
from orchestrator.tracking.spool import Spool, Write

LOCKED = sqlite3.OperationalError("database is locked")


class TestResilientMemory(MemoryContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.spool = tmp_path

    def open(self):
        return ResilientTracker(super().open(), what="the record", folder=self.spool)


class TestResilientSqlite(MlflowContract):
    experiment = "tests"

    @pytest.fixture(autouse=True)
    def _record(self, tmp_path):
        self.spool = tmp_path
        self.uri = f"sqlite:///{empty_sqlite(tmp_path / 'kept' / 'mlflow.db')}"

    def open(self):
        inner = open_tracker(self.uri, experiment="tests")
        return ResilientTracker(inner, what="the record", folder=self.spool)


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Fragile(MemoryTracker):
    """The record in memory; every call fails while `error` is set, and before or after it has taken effect."""

    def __init__(self):
        super().__init__()
        self.error = None
        self.lost_answers = 0
        self.reconnected = 0

    def _fails(self):
        if self.error is not None:
            raise self.error

    def _may_lose_the_answer(self):
        if self.lost_answers:
            self.lost_answers -= 1
            raise ConnectionResetError(errno.ECONNRESET, "connection reset by peer")

    def begin(self, trials):
        self._fails()
        super().begin(trials)
        self._may_lose_the_answer()

    def record(self, rows):
        self._fails()
        super().record(rows)
        self._may_lose_the_answer()

    def end(self, results):
        self._fails()
        super().end(results)
        self._may_lose_the_answer()

    def index(self, trial_ids):
        self._fails()
        return super().index(trial_ids)

    def reconnect(self):
        self._fails()
        self.reconnected += 1


@pytest.fixture
def fragile():
    return Fragile()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said():
    return []


@pytest.fixture
def tracker(fragile, clock, said, tmp_path):
    tracker = ResilientTracker(
        fragile, what="the record", folder=tmp_path, patience_s=100.0, clock=clock, sleep=clock.sleep
    )
    tracker.say = said.append
    tracker.open_sweep(SWEEP)
    return tracker


def plain(trials):
    """The record as it would be without any outage."""
    tracker = MemoryTracker()
    tracker.open_sweep(SWEEP)
    train(tracker, trials)
    return content(tracker, trials)


def train(tracker, trials, between=lambda: None):
    for one in trials:
        tracker.begin([one])
        for steps in ([0, 1], [2, 3]):
            between()
            tracker.record(rows([one], steps))
        tracker.end([finished(one, a=1.0)])
        tracker.settle()


def test_what_happens_during_an_outage_is_recorded_in_order_after_it(tracker, fragile, clock, said):
    trials = [trial(n) for n in range(5)]
    train(tracker, trials[:1])
    fragile.error = LOCKED
    train(tracker, trials[1:3], between=lambda: clock.sleep(10.0))
    fragile.error = None
    train(tracker, trials[3:])
    clock.sleep(60.0)
    tracker.settle()
    assert content(tracker, trials) == plain(trials)
    assert "the record has been locked by another process for 10 s: database is locked; training goes on" in said[0]
    assert said[-1].startswith("the record is back after")


def test_a_reason_is_said_within_thirty_seconds_and_again_every_thirty(tracker, fragile, clock, said):
    fragile.error = LOCKED
    tracker.begin([trial()])
    lines = []
    for _ in range(900):
        clock.sleep(0.1)
        tracker.settle()
        lines += [(clock.now, line) for line in said[len(lines) :]]
    times = [0.0, *(at for at, _ in lines), clock.now]
    assert all(later - earlier < 31.0 for earlier, later in itertools.pairwise(times))
    assert len(lines) <= 4


def test_that_spooled_rows_are_being_written_is_said_every_thirty_seconds(tracker, fragile, clock, monkeypatch):
    lines = []
    tracker.say = lambda line: lines.append((clock.now, line))
    fragile.error = LOCKED
    train(tracker, [trial(n) for n in range(5)])
    clock.sleep(10.0)
    tracker.settle()
    fragile.error, record = None, fragile.record

    def slowly(rows):
        clock.sleep(10.0)
        record(rows)

    monkeypatch.setattr(fragile, "record", slowly)
    tracker.flush()
    times = [0.0, *(at for at, _ in lines), clock.now]
    assert clock.now > 100.0
    assert all(later - earlier < 41.0 for earlier, later in itertools.pairwise(times))
    assert any(re.search(r"the record answers again; \d+ rows wait on disk", line) for _, line in lines)
    assert not any("training goes on" in line for _, line in lines[1:]), "the run waits for the record"


def test_a_lost_answer_doubles_and_loses_nothing(tracker, fragile, clock):
    trials, times = [trial(n) for n in range(6)], itertools.cycle([1, 0, 0, 2, 0])

    def lose():
        fragile.lost_answers = next(times)
        clock.sleep(20.0)

    train(tracker, trials, between=lose)
    clock.sleep(60.0)
    tracker.settle()
    assert content(tracker, trials) == plain(trials)


def test_a_read_waits_for_the_record_and_for_what_was_spooled(tracker, fragile, clock, said):
    one = trial()
    fragile.error = LOCKED
    tracker.begin([one])
    real = clock.sleep

    def sleep(seconds):
        real(seconds)
        if clock.now > 40.0:
            fragile.error = None

    tracker._patience._sleep = sleep
    assert tracker.index([one.id])[one.id].status is Status.RUNNING
    assert said[-1].startswith("the record is back after 4")


def test_after_all_patience_the_run_ends_resumably_and_says_what_is_dropped(tracker, fragile, clock):
    one = trial()
    tracker.begin([one])
    fragile.error = LOCKED
    tracker.record(rows([one], [0]))
    tracker.end([finished(one)])
    with pytest.raises(Outage) as caught:
        tracker.index([one.id])
    assert clock.now == pytest.approx(100.0)
    assert "the record has been locked by another process for 1 min 40 s: database is locked" in caught.value.text
    assert "trials that ended meanwhile train again" in caught.value.text
    assert "run the same command again" in caught.value.text
    with pytest.raises(Outage):
        tracker.end_sweep("FAILED", {})
    tracker.close()


def test_a_record_that_can_be_reached_but_refuses_a_read_is_away(tracker, fragile, clock, said):
    fragile.error, fragile.reconnect = LOCKED, lambda: None
    with pytest.raises(Outage, match="the record has been locked by another process for 1 min 40 s"):
        tracker.index([trial().id])
    assert "the record has been locked by another process for" in said[0]
    assert clock.now == pytest.approx(100.0)


def test_a_run_that_is_stopped_does_not_wait(fragile, clock, tmp_path):
    stopping = []
    tracker = ResilientTracker(
        fragile,
        what="the record",
        folder=tmp_path,
        clock=clock,
        sleep=clock.sleep,
        stopping=lambda: bool(stopping),
    )
    tracker.open_sweep(SWEEP)
    fragile.error = LOCKED
    tracker.begin([trial()])
    stopping.append(True)
    with pytest.raises(Outage, match="when the run was stopped"):
        tracker.end_sweep("KILLED", {})
    assert clock.now < 1.0


def test_a_full_spool_makes_the_runner_wait(fragile, clock, said, tmp_path):
    tracker = ResilientTracker(
        fragile, what="the record", folder=tmp_path, spool_bytes=10_000, clock=clock, sleep=clock.sleep
    )
    tracker.say = said.append
    tracker.open_sweep(SWEEP)
    one = trial()
    tracker.begin([one])
    fragile.error = LOCKED
    step = itertools.count()
    while tracker.ready(0.2):
        tracker.record(rows([one], [next(step)]))
    assert 10_000 <= tracker._spool.size < 12_000
    for _ in range(200):
        assert not tracker.ready(0.2)
    assert any("training waits until they are written" in line for line in said)
    fragile.error = None
    while not tracker.ready(0.2):
        pass
    assert dict(tracker.curves([one.id]))[one.id].step.tolist() == list(range(next(step)))


def test_other_errors_are_passed_on(tracker, fragile):
    for error in (KeyError("a bug"), UserError("a mistake"), sqlite3.OperationalError('near "SELEC": syntax error')):
        fragile.error = error
        with pytest.raises(type(error)):
            tracker.index([])


def test_a_wrong_address_is_a_mistake_at_once_unless_it_has_answered_before(fragile, clock, tmp_path):
    tracker = ResilientTracker(fragile, what="the record", folder=tmp_path, clock=clock, sleep=clock.sleep)
    fragile.error = WrongAddress("no such host")
    with pytest.raises(UserError, match="no such host"):
        tracker.index([])
    assert clock.now == 0.0
    fragile.error = None
    tracker.index([])
    fragile.error = WrongAddress("no such host")
    with pytest.raises(Outage, match="no such host"):
        tracker.index([])


def test_a_record_that_never_answered_is_waited_for_without_a_spool_file(fragile, clock, tmp_path):
    folder = tmp_path / "output"
    tracker = ResilientTracker(fragile, what="the record", folder=folder, clock=clock, sleep=clock.sleep)
    fragile.error = Unreachable("connection refused", next_step="check that it runs")
    with pytest.raises(Outage, match="refused") as caught:
        tracker.index([])
    assert "check that it runs; run the same command again" in caught.value.text
    assert clock.now == pytest.approx(600.0)
    assert not folder.exists()


def test_the_spool_keeps_the_order_and_returns_what_it_was_given(tmp_path):
    spool, one = Spool(tmp_path), trial()
    writes = [Write(begun=(one,)), Write(rows=rows([one], [0, 1])), Write(results=(finished(one, a=1.0),))]
    for write in writes:
        spool.append(write)
    assert list(tmp_path.iterdir()) == []
    begun = spool.first()
    spool.drop_first()
    measured = spool.first()
    spool.drop_first()
    ended = spool.first()
    assert begun.begun == (one,)
    assert measured.rows.step.tolist() == [0, 1]
    assert ended.results == (finished(one, a=1.0),)
    spool.close()


def test_errors_of_the_infrastructure_are_told_from_data_and_bugs():
    away = [
        LOCKED,
        sqlite3.OperationalError("database or disk is full"),
        OSError(errno.ENOSPC, "no space"),
        ConnectionResetError(errno.ECONNRESET, "x"),
        TimeoutError("x"),
        Unreachable("x"),
        ServerError("/api", 503, "INTERNAL_ERROR", "x"),
        ServerError("/api", 404, "", "default backend"),
        ServerError("/api", 413, "", "<html>too large</html>"),
    ]
    data = [sqlite3.IntegrityError("x"), OverflowError("x"), _unicode_error()]
    other = [sqlite3.OperationalError("no such column: x"), ValueError("x"), PermissionError(errno.EACCES, "x")]
    other += [ServerError("/api", 404, "RESOURCE_DOES_NOT_EXIST", "x")]
    assert {kind_of(error) for error in away} == {Kind.AWAY}
    assert {kind_of(error) for error in data} == {Kind.DATA}
    assert {kind_of(error) for error in other} == {Kind.OTHER}


def _unicode_error():
    with pytest.raises(UnicodeEncodeError) as caught:
        "\udce9".encode()
    return caught.value


# --- values that the record cannot hold ---


@pytest.fixture
def real(tmp_path):
    inner = open_tracker(f"sqlite:///{empty_sqlite(tmp_path / 'mlflow.db')}", experiment="tests")
    tracker = ResilientTracker(inner, what="the record", folder=tmp_path)
    tracker.open_sweep(SWEEP)
    yield tracker
    tracker.close()


def test_a_value_that_the_database_refuses_fails_its_trial_and_no_other(real):
    trials = [trial(n) for n in range(7)]
    real.begin(trials)
    real.record(rows(trials, [0, 1]))
    real.end([finished(one, phase="caf\udce9" if n == 3 else "low", a=1.0) for n, one in enumerate(trials)])
    real.flush()
    (refusal,) = real.refused()
    assert (refusal.trial_id, refusal.ended_as, refusal.phase) == (trials[3].id, Status.FINISHED, "caf\udce9")
    status = {n: real.index([one.id])[one.id].status for n, one in enumerate(trials)}
    assert status == {n: Status.FAILED if n == 3 else Status.FINISHED for n in range(7)}
    assert [len(curves.step) for _, curves in real.curves([one.id for one in trials if one is not trials[3]])] == [
        2
    ] * 6
    (row,) = real.rows([trials[3].id])
    assert "the record cannot hold a value of this trial" in row.error
    assert "surrogates not allowed" in row.error


def test_a_step_that_no_database_can_hold_fails_its_trial_while_it_runs(real):
    good, bad = trial(0), trial(1)
    real.begin([good, bad])
    both = rows([good, bad], [1, 2])
    step = np.where((both.trial == 1) & (both.step == 2), LARGEST_STEP + 1, both.step)
    real.record(
        CurveRows(trial_ids=both.trial_ids, metrics=both.metrics, trial=both.trial, step=step, values=both.values)
    )
    real.record(rows([good, bad], [3]))
    real.end([finished(good), finished(bad)])
    real.flush()
    (refusal,) = real.refused()
    assert (refusal.trial_id, refusal.ended_as) == (bad.id, None)
    found = real.index([good.id, bad.id])
    assert (found[good.id].status, found[bad.id].status) == (Status.FINISHED, Status.FAILED)
    assert dict(real.curves([good.id]))[good.id].step.tolist() == [1, 2, 3]


def test_a_refused_trial_can_be_trained_again(real):
    one = trial()
    real.begin([one])
    real.end([TrialResult(one.id, Status.FINISHED, phase="\udce9")])
    real.flush()
    assert [refusal.trial_id for refusal in real.refused()] == [one.id]
    real.begin([one])
    real.record(rows([one], [0, 1]))
    real.end([finished(one)])
    real.flush()
    assert real.refused() == []
    assert real.index([one.id])[one.id].status is Status.FINISHED

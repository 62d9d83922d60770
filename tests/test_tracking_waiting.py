"""The write buffer of a database tracker: no row is lost, and no step is written partially."""

from __future__ import annotations

import math
import sqlite3

import pytest
from servers import empty_sqlite
from tracking_contract import SWEEP, content, finished, rows, trial

from orchestrator.errors import UserError
from orchestrator.records import Status, TrialResult
from orchestrator.tracking import database
from orchestrator.tracking.factory import open_tracker


@pytest.fixture
def file(tmp_path):
    return empty_sqlite(tmp_path / "mlflow.db")


@pytest.fixture
def tracker(file):
    tracker = open_tracker(f"sqlite:///{file}", experiment="tests")
    tracker.open_sweep(SWEEP)
    yield tracker
    tracker.close()


def dump(file):
    connection = sqlite3.connect(file)
    tables = ("runs", "params", "tags", "metrics", "latest_metrics")
    found = {table: sorted(map(repr, connection.execute(f"SELECT * FROM {table}"))) for table in tables}
    connection.close()
    return found


def test_rows_that_could_not_be_written_are_written_with_the_next(tracker, monkeypatch):
    one = trial()
    tracker.begin([one])
    bulk, broken = tracker._database.create().bulk, [True]
    real = type(bulk).metric_block

    def fails_once(block, **how):
        real(bulk, block, **how)
        if broken:
            broken.clear()
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(bulk, "metric_block", fails_once)
    monkeypatch.setattr(database, "WRITE_EVERY_S", 0.0)
    with pytest.raises(sqlite3.OperationalError):
        tracker.record(rows([one], [0, 1]))
    tracker.record(rows([one], [2]))
    assert dict(tracker.curves([one.id]))[one.id].step.tolist() == [0, 1, 2]


def test_trials_that_begin_and_end_within_a_short_time_are_one_transaction(tracker, file, monkeypatch):
    monkeypatch.setattr(database, "WRITE_EVERY_S", math.inf)
    trials = [trial(n) for n in range(4)]
    before = dump(file)
    for pack in (trials[:2], trials[2:]):
        tracker.begin(pack)
        tracker.record(rows(pack, [0, 1]))
        tracker.end([finished(one, a=1.0) for one in pack])
        tracker.settle()
    assert dump(file) == before
    began = []
    tracker._database.create().bulk.connection.set_trace_callback(began.append)
    monkeypatch.setattr(database, "WRITE_EVERY_S", -1.0)
    tracker.settle()
    tracker.settle()
    assert [text for text in began if text.startswith(("BEGIN", "COMMIT"))] == ["BEGIN IMMEDIATE", "COMMIT"]
    other = open_tracker(f"sqlite:///{file}", experiment="tests")
    assert content(other, trials) == content(tracker, trials)
    assert {row.recorded.status for row in other.rows([one.id for one in trials])} == {Status.FINISHED}
    assert [len(curves.step) for _, curves in other.curves([one.id for one in trials])] == [2] * 4
    other.close()


def test_trials_that_could_not_be_written_are_written_with_the_next(tracker, monkeypatch):
    one, two, broken = trial(0), trial(1), [True]
    bulk = tracker._database.create().bulk
    real = type(bulk).latest

    def fails_once(latest):
        real(bulk, latest)
        if latest and broken:
            broken.clear()
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(bulk, "latest", fails_once)
    monkeypatch.setattr(database, "WRITE_EVERY_S", math.inf)
    tracker.begin([one])
    tracker.record(rows([one], [0, 1]))
    tracker.end([finished(one, a=1.0)])
    with pytest.raises(sqlite3.OperationalError):
        tracker.index([one.id])
    tracker.begin([two])
    assert tracker.index([one.id])[one.id].status is Status.FINISHED
    assert dict(tracker.curves([one.id]))[one.id].step.tolist() == [0, 1]
    assert tracker.index([two.id])[two.id].status is Status.RUNNING


def test_a_buffered_trial_can_begin_and_end_again(tracker, monkeypatch):
    monkeypatch.setattr(database, "WRITE_EVERY_S", math.inf)
    one = trial()
    failed = TrialResult(trial_id=one.id, status=Status.FAILED, error="x", observations={"gone": 1.0})
    for result, steps in ((failed, [0, 9]), (finished(one, b=2.0), [1, 4])):
        tracker.begin([one])
        tracker.record(rows([one], steps))
        tracker.end([result])
    tracker.end([finished(one, c=3.0)])
    found = tracker.index([one.id])[one.id]
    assert (found.status, found.observations) == (Status.FINISHED, {"c": 3.0})
    assert dict(tracker.curves([one.id]))[one.id].step.tolist() == [1, 4]


def test_trials_with_invalid_names_leave_nothing_in_the_buffer(tracker, monkeypatch):
    monkeypatch.setattr(database, "WRITE_EVERY_S", math.inf)
    good, bad = trial(0), trial(1)
    tracker.begin([good, bad])
    with pytest.raises(UserError, match="metric"):
        tracker.end([finished(good), finished(bad, **{"100% wrong": 1.0})])
    found = tracker.index([good.id, bad.id])
    assert {recorded.status for recorded in found.values()} == {Status.RUNNING}

"""The canary finds an MLflow whose tables are not those that the bulk writer knows, before anything is recorded."""

from __future__ import annotations

import sqlite3

import pytest
from servers import empty_sqlite
from tracking_contract import SWEEP

from orchestrator.errors import UserError
from orchestrator.tracking.factory import open_tracker


@pytest.fixture
def file(tmp_path):
    return empty_sqlite(tmp_path / "mlflow.db")


def counts(file):
    connection = sqlite3.connect(file)
    tables = ("runs", "params", "tags", "metrics", "latest_metrics")
    found = [connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables]
    connection.close()
    return found


def open_sweep(file):
    tracker = open_tracker(f"sqlite:///{file}", experiment="tests")
    try:
        tracker.open_sweep(SWEEP)
    finally:
        tracker.close()


def test_the_canary_leaves_nothing(file):
    open_sweep(file)
    assert counts(file)[:2] == [1, 0]
    assert counts(file)[3:] == [0, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "DROP TABLE params; CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT, more TEXT NOT NULL, "
            "PRIMARY KEY (key, run_uuid))",
            "params.more",
        ),
        ("ALTER TABLE latest_metrics RENAME COLUMN is_nan TO not_a_number", "is_nan"),
        (
            "CREATE TRIGGER other AFTER INSERT ON latest_metrics BEGIN UPDATE latest_metrics SET is_nan = 0; END",
            "the last value of a metric is read differently",
        ),
    ],
)
def test_other_tables_are_refused_with_what_to_do(file, change, says):
    connection = sqlite3.connect(file)
    connection.executescript(change)
    connection.close()
    with pytest.raises(UserError, match="has other tables than this version of phasefront writes") as caught:
        open_sweep(file)
    assert says in caught.value.text
    assert "an MLflow version that phasefront supports" in caught.value.text
    assert counts(file) == [0, 0, 0, 0, 0]

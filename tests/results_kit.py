"""A folder with a recorded grid and two recorded searches, and SQL on their record."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from recorded_sweeps import RECORDS

EXPECTED: dict[str, Any] = json.loads((RECORDS / "expected.json").read_text())
ROOT = Path(__file__).resolve().parent.parent


def sql(query: str, *values: object) -> list[tuple[Any, ...]]:
    """The rows of a query on the record in the current folder."""
    connection = sqlite3.connect("record.db")
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def runs_of(name: str) -> dict[str, str]:
    """Trial id -> run id of a sweep, by MLflow's tables alone."""
    query = """SELECT t.value, t.run_uuid FROM tags t JOIN tags p ON p.run_uuid = t.run_uuid
        JOIN runs parent ON parent.run_uuid = p.value
        WHERE t.key = 'phasefront.trial_id' AND p.key = 'mlflow.parentRunId' AND parent.name = ?"""
    return dict(sql(query, f"earlier-{name.replace('_', '-')}"))


def points_of(runs: dict[str, str], metric: str) -> dict[tuple[str, int], float]:
    """(trial id, step) -> value of every point of the curves of a metric."""
    rows = sql(
        "SELECT m.run_uuid, m.step, m.value FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
        "WHERE m.key = ? AND m.timestamp >= r.start_time",
        metric,
    )
    trial = {run: trial for trial, run in runs.items()}
    return {(trial[run], step): value for run, step, value in rows if run in trial}


def environment() -> dict[str, str]:
    """For a process that imports phasefront from this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}

"""A canary: a run that is written by bulk statements, read by MLflow's own classes, and rolled back.

The bulk writer knows MLflow's tables as they are in the versions that it was tested with. A version with further
columns or other meanings is found when a sweep is opened, before anything is recorded.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import mlflow
from mlflow.store.tracking.dbmodels.models import SqlMetric, SqlRun
from sqlalchemy.orm import Session

from orchestrator.errors import UserError
from orchestrator.outages import Kind, kind_of, reason
from orchestrator.tracking import layout
from orchestrator.tracking.bulk_sql import FEW, Bulk, PostgresBulk, SqliteBulk, run_row
from orchestrator.tracking.metric_block import MetricRow
from orchestrator.tracking.store import BulkSqlAlchemyStore

START_MS = 1_000_000


class _Undo(Exception):
    """Ends the canary's transaction, which is rolled back."""


def check_tables(store: BulkSqlAlchemyStore, experiment_id: int, *, place: str) -> None:
    """Check that MLflow reads what the bulk writer writes; nothing stays in the database.

    Raises:
        UserError: It does not.
    """
    with store.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        bulk: Bulk = SqliteBulk(driver) if store.db_type == "sqlite" else PostgresBulk(driver)
        try:
            with bulk.transaction():
                wrong = _difference(bulk, Session(bind=connection), experiment_id)
                raise _Undo
        except _Undo:
            pass
        except Exception as error:  # of either driver, of SQLAlchemy or MLflow
            if kind_of(error) is Kind.AWAY:
                raise
            wrong = reason(error)
    if wrong:
        raise UserError(
            f"MLflow {mlflow.__version__} has other tables than this version of phasefront writes: {wrong}",
            place=place,
            next_step="install an MLflow version that phasefront supports (pip install --upgrade phasefront), or "
            "record through an mlflow server: tracking.uri: http://host:5000",
        )


def _difference(bulk: Bulk, session: Session, experiment_id: int) -> str:
    """Write a run with everything a trial has, and read it; what differs, or ""."""
    run_id = uuid.uuid4().hex
    values = [float(step) for step in range(FEW)] + [math.nan, math.inf]
    rows: list[MetricRow] = []
    for step, value in enumerate(values):
        number, is_nan = layout.as_stored(value)
        rows.append(("canary", number, START_MS + step, step, is_nan, run_id))
    bulk.new_runs([run_row(run_id, "canary", layout.user(), START_MS, "canary", experiment_id)])
    bulk.new_params([("canary", "a parameter", run_id)])
    bulk.tags([("canary", "a tag", run_id)])
    bulk.metrics(rows)
    bulk.latest(rows[-2:-1])
    bulk.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid $in", "FINISHED", START_MS + 1, [run_id])
    try:
        stored = session.get(SqlRun, run_id)
        if stored is None:
            return "a new run is not found"
        run = stored.to_mlflow_entity()
        history = session.query(SqlMetric).filter(SqlMetric.run_uuid == run_id).order_by(SqlMetric.step)
        read = [metric.to_mlflow_entity() for metric in history]
        expected = [(repr(value), START_MS + step, step) for step, value in enumerate(values[:-1])]
        checks = {
            "the status of a run": (run.info.status, run.info.start_time, run.info.end_time, run.info.lifecycle_stage)
            == ("FINISHED", START_MS, START_MS + 1, "active"),
            "the experiment of a run": run.info.experiment_id == str(experiment_id),
            "a parameter": run.data.params == {"canary": "a parameter"},
            "a tag": run.data.tags.get("canary") == "a tag",
            "the points of a metric": [(repr(m.value), m.timestamp, m.step) for m in read[:-1]] == expected,
            "the last value of a metric": repr(run.data.metrics.get("canary")) == "nan",
        }
        return ", ".join(f"{what} is read differently" for what, same in checks.items() if not same)
    finally:
        session.close()

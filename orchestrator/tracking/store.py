"""An MLflow tracking store that writes runs and metrics by bulk statements.

Use it by its URI schemes, from MLflow's own client or server, with nothing else of this project:

    mlflow server --backend-store-uri phasefront-sqlite:////data/mlflow.db
    MlflowClient(tracking_uri="phasefront-postgresql://user:password@host/database")

The database is an ordinary MLflow database: the same schema, made and migrated by MLflow's own code,
readable and writable under its plain `sqlite:` or `postgresql:` address at the same time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

import numpy as np
import sqlalchemy
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunStatus, RunTag
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.uri import append_to_uri_path
from mlflow.utils.validation import (
    _parse_experiment_id,
    _validate_batch_log_data,
    _validate_batch_log_limits,
    _validate_param_keys_unique,
    _validate_run_id,
)

from orchestrator.tracking.address import DatabaseAddress, database_address
from orchestrator.tracking.bulk_sql import Bulk, PostgresBulk, SqliteBulk, keep_log, run_row, use_log
from orchestrator.tracking.layout import as_stored
from orchestrator.tracking.metric_block import MetricBlock, MetricRow, block_of, numbered
from orchestrator.tracking.rows import stored

_ARTIFACT_ROOT_VARIABLE = "_MLFLOW_SERVER_ARTIFACT_ROOT"


class BulkSqlAlchemyStore(SqlAlchemyStore):
    """MLflow's database store with bulk writes; everything else is MLflow's own.

    Args:
        store_uri: `phasefront-sqlite:///file.db` or `phasefront-postgresql://...`, or without the prefix.
        artifact_uri: Where artifacts of new experiments go. By default what a server around this store
            says, else MLflow's own default folder, `mlruns`: beside the database file, or, for
            PostgreSQL, in the current folder.
    """

    def __init__(self, store_uri: str, artifact_uri: str | None = None) -> None:
        address = database_address(store_uri)
        beside = str(address.file.parent / "mlruns") if address.file else "./mlruns"
        root = artifact_uri or os.environ.get(_ARTIFACT_ROOT_VARIABLE) or beside
        engine = self._get_or_create_engine(address.uri)
        with _one_at_a_time(address, engine):
            self._has_log = address.file is not None and keep_log(address.file)
            super().__init__(address.uri, root)

    @contextmanager
    def bulk(self) -> Iterator[Bulk]:
        """Bulk statements over a connection of this store's pool.

        SQLite checks no foreign keys meanwhile: every method has looked up the run, or the
        experiment, in the transaction that it writes in.
        """
        connection = self.engine.raw_connection()
        try:
            if self.db_type == "sqlite":
                connection.execute("PRAGMA busy_timeout = 20000")
                if self._has_log:
                    use_log(connection.driver_connection)
                connection.execute("PRAGMA foreign_keys = OFF")
                try:
                    yield SqliteBulk(connection)
                finally:
                    connection.execute("PRAGMA foreign_keys = ON")
            else:
                yield PostgresBulk(connection.driver_connection)
        finally:
            connection.close()

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: list[RunTag] | None, run_name: str | None
    ) -> Run:
        """Create a run with its tags in one transaction (as `SqlAlchemyStore.create_run`)."""
        given = {tag.key: tag.value for tag in tags or ()}
        named = given.get(MLFLOW_RUN_NAME)
        if run_name and named and run_name != named:
            raise MlflowException(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with "
                f"different values (run_name='{run_name}', mlflow.runName='{named}').",
                INVALID_PARAMETER_VALUE,
            )
        given[MLFLOW_RUN_NAME] = name = run_name or named or _generate_random_name()
        run_id = uuid.uuid4().hex
        running = RunStatus.to_string(RunStatus.RUNNING)
        with self.bulk() as bulk, bulk.transaction():
            artifacts = append_to_uri_path(
                self._active_experiment(bulk, experiment_id), run_id, self.ARTIFACTS_FOLDER_NAME
            )
            bulk.new_runs(
                [
                    run_row(
                        run_id,
                        name=name,
                        user=user_id,
                        start_time=start_time,
                        artifacts=artifacts,
                        experiment_id=int(experiment_id),
                        status=running,
                    )
                ]
            )
            bulk.tags([(key, value, run_id) for key, value in given.items()])
        return Run(
            RunInfo(
                run_id=run_id,
                run_name=name,
                experiment_id=str(experiment_id),
                user_id=user_id,
                status=running,
                start_time=start_time,
                end_time=None,
                lifecycle_stage=LifecycleStage.ACTIVE,
                artifact_uri=artifacts,
            ),
            RunData(tags=[RunTag(key, value) for key, value in given.items()]),
        )

    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        """Set a run's status, end and name (as `SqlAlchemyStore.update_run_info`)."""
        given = {"status": run_status and RunStatus.to_string(run_status), "end_time": end_time, "name": run_name}
        changed = {column: value for column, value in given.items() if value or (column == "end_time" and value == 0)}
        with self.bulk() as bulk, bulk.transaction():
            self._check_active(bulk, run_id)
            if changed:
                setting = ", ".join(f"{column} = ?" for column in changed)
                bulk.execute(f"UPDATE runs SET {setting} WHERE run_uuid = ?", *changed.values(), run_id)
            if run_name:
                bulk.tags([(MLFLOW_RUN_NAME, run_name, run_id)])
            ((name, number, user, status, start, end, stage, artifacts),) = bulk.query(
                "SELECT name, experiment_id, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri "
                "FROM runs WHERE run_uuid = ?",
                run_id,
            )
        return RunInfo(
            run_id=run_id,
            run_name=name,
            experiment_id=str(number),
            user_id=user,
            status=status,
            start_time=start,
            end_time=end,
            lifecycle_stage=stage,
            artifact_uri=artifacts,
        )

    def log_metric(self, run_id: str, metric: Metric) -> None:
        """Append one row to a metric (as `SqlAlchemyStore.log_metric`)."""
        if metric.model_id is not None:
            super().log_metric(run_id, metric)
        else:
            self.log_batch(run_id, [metric], [], [])

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> None:
        """Write metrics, params and tags of a run in one transaction (as `SqlAlchemyStore.log_batch`)."""
        if any(metric.model_id is not None for metric in metrics) or any(tag.key == MLFLOW_RUN_NAME for tag in tags):
            super().log_batch(run_id, metrics, params, tags)
            return
        _validate_run_id(run_id)
        block, in_doubt = _block(run_id, metrics)
        _, params, tags = _validate_batch_log_data(in_doubt, params, tags)
        _validate_batch_log_limits(metrics, params, tags)
        _validate_param_keys_unique(params)
        with self.bulk() as bulk, bulk.transaction():
            self._check_active(bulk, run_id)
            if params:
                self._check_params(bulk, run_id, params)
                bulk.new_params([(param.key, param.value, run_id) for param in params])
            if metrics:
                block = block or block_of([_row(run_id, metric) for metric in metrics])
                bulk.metric_block(block.ordered())
                bulk.latest(block.latest())
            bulk.tags([(key, value, run_id) for key, value in {tag.key: tag.value for tag in tags}.items()])

    def _active_experiment(self, bulk: Bulk, experiment_id: str) -> str:
        """The artifact location of an experiment; MLflow's own code reports one that is not there or deleted."""
        number = _parse_experiment_id(experiment_id)
        found = bulk.query(
            "SELECT artifact_location FROM experiments WHERE experiment_id = ? AND lifecycle_stage = 'active'", number
        )
        if found:
            return str(found[0][0])
        experiment = self.get_experiment(experiment_id)
        self._check_experiment_is_active(experiment)
        return str(experiment.artifact_location)

    def _check_active(self, bulk: Bulk, run_id: str) -> None:
        found = bulk.query("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", run_id)
        if not found:
            raise MlflowException(f"Run with id={run_id} not found", RESOURCE_DOES_NOT_EXIST)
        if found[0][0] != LifecycleStage.ACTIVE:
            raise MlflowException(
                f"The run {run_id} must be in the 'active' state. Current state is {found[0][0]}.",
                INVALID_PARAMETER_VALUE,
            )

    def _check_params(self, bulk: Bulk, run_id: str, params: Sequence[Param]) -> None:
        """MLflow's rule: a param never changes."""
        kept: dict[str, str] = dict(bulk.query("SELECT key, value FROM params WHERE run_uuid = ?", run_id))
        changed = [
            {"key": param.key, "old_value": kept[param.key], "new_value": param.value}
            for param in params
            if kept.get(param.key, param.value) != param.value
        ]
        if changed:
            raise MlflowException(
                f"Changing param values is not allowed. Params were already logged='{changed}' for run ID='{run_id}'.",
                INVALID_PARAMETER_VALUE,
            )


_fields = attrgetter("key", "value", "timestamp", "step")


def _block(run_id: str, metrics: Sequence[Metric]) -> tuple[MetricBlock | None, Sequence[Metric]]:
    """Metrics as rows, and those that MLflow's own validation must see: one of each name.

    Where any is of an unusual type or time there is no block, and it must see all of them.
    """
    if not metrics:
        return None, ()
    keys, values, timestamps, steps = zip(*map(_fields, metrics), strict=True)
    if set(map(type, values)) != {float} or {*map(type, timestamps), *map(type, steps)} != {int} or min(timestamps) < 0:
        return None, metrics
    try:
        names, number = numbered(keys)
        value, is_nan = stored(np.array(values, dtype=np.float64))
        timestamp, step = np.array(timestamps, dtype=np.int64), np.array(steps, dtype=np.int64)
    except (TypeError, OverflowError):  # a key that cannot be hashed, a number that no database holds
        return None, metrics
    block = MetricBlock(
        metrics=names,
        runs=(run_id,),
        metric=number,
        run=np.zeros(len(keys), dtype=np.int64),
        timestamp=timestamp,
        step=step,
        value=value,
        is_nan=is_nan,
    )
    return block, list(dict(zip(keys, metrics, strict=True)).values())


def _row(run_id: str, metric: Metric) -> MetricRow:
    value, is_nan = as_stored(float(metric.value))
    return (metric.key, value, int(metric.timestamp), int(metric.step), is_nan, run_id)


@contextmanager
def _one_at_a_time(address: DatabaseAddress, engine: sqlalchemy.engine.Engine) -> Iterator[None]:
    """Two processes that start on an empty database must not both run MLflow's migrations.

    SQLite: a lock file in the system's folder for temporary files (both processes are on one
    machine). PostgreSQL: an advisory lock of the database itself.
    """
    number = int.from_bytes(hashlib.blake2b(b"phasefront migrations", digest_size=4).digest(), "big")
    if address.file is None:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": number})
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:number)"), {"number": number})
                connection.commit()
        return
    import fcntl

    name = hashlib.blake2b(str(address.file).encode(), digest_size=8).hexdigest()
    with Path(tempfile.gettempdir(), f"phasefront-{os.getuid()}-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

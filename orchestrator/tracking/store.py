"""An MLflow tracking store that writes runs and metrics by bulk statements.

Use it by its URI schemes, from MLflow's own client or server, with nothing else of this project:

    mlflow server --backend-store-uri phasefront-sqlite:////data/mlflow.db
    MlflowClient(tracking_uri="phasefront-postgresql://user:password@host/database")

The database is an ordinary MLflow database: the same schema, created and migrated by MLflow's own code, readable and
writable under its plain `sqlite:` or `postgresql:` address at the same time.

A write that MLflow would refuse, or that has an unusual form, is passed to MLflow's own method: its rules and error
messages are not repeated here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from operator import attrgetter
from pathlib import Path

import numpy as np
import sqlalchemy
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunStatus, RunTag
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.uri import append_to_uri_path
from mlflow.utils.validation import (
    MAX_ENTITIES_PER_BATCH,
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
    path_not_unique,
    validate_param_and_metric_name,
)

from orchestrator.tracking.address import DatabaseAddress, database_address
from orchestrator.tracking.bulk_sql import Bulk, PostgresBulk, Row, SqliteBulk, keep_log, run_row, use_log
from orchestrator.tracking.metric_block import MetricBlock, numbered
from orchestrator.tracking.rows import stored

_ARTIFACT_ROOT_VARIABLE = "_MLFLOW_SERVER_ARTIFACT_ROOT"
"""`mlflow.server.ARTIFACT_ROOT_ENV_VAR`, which costs an import of Flask."""


class BulkSqlAlchemyStore(SqlAlchemyStore):
    """MLflow's database store with bulk writes; everything else is MLflow's own.

    Args:
        store_uri: `phasefront-sqlite:///file.db` or `phasefront-postgresql://...`, or without the prefix.
        artifact_uri: Artifact root of new experiments. The default is that of the server around this store, else
            MLflow's own default folder `mlruns`, beside the database file or, for PostgreSQL, in the current folder.
    """

    def __init__(self, store_uri: str, artifact_uri: str | None = None) -> None:
        address = database_address(store_uri)
        beside = str(address.file.parent / "mlruns") if address.file else "./mlruns"
        artifacts = artifact_uri or os.environ.get(_ARTIFACT_ROOT_VARIABLE) or beside
        with _migration_lock(address):
            if address.file is not None:
                _create_whole(address.file.resolve(), artifacts)
            self._has_log = address.file is not None and keep_log(address.file)
            super().__init__(address.uri, artifacts)

    @contextmanager
    def bulk(self) -> Iterator[Bulk]:
        """Bulk statements over a connection of this store's pool.

        SQLite does not check foreign keys meanwhile: every method has looked up the run, or the experiment, in the
        transaction that it writes in.
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
        if str(experiment_id).isdecimal() and (not named or run_name in (None, "", named)):
            given[MLFLOW_RUN_NAME] = name = run_name or named or _generate_random_name()
            number, run_id = int(experiment_id), uuid.uuid4().hex
            active = "SELECT artifact_location FROM experiments WHERE experiment_id = ? AND lifecycle_stage = 'active'"
            with self.bulk() as bulk, bulk.transaction():
                for (location,) in bulk.query(active, number):
                    artifacts = append_to_uri_path(str(location), run_id, self.ARTIFACTS_FOLDER_NAME)
                    bulk.new_runs([run_row(run_id, name, user_id, start_time, artifacts, number)])
                    bulk.tags([(key, value, run_id) for key, value in given.items()])
                    row = (name, number, user_id, "RUNNING", start_time, None, "active", artifacts)
                    return Run(_info(run_id, row), RunData(tags=[RunTag(key, value) for key, value in given.items()]))
        return super().create_run(experiment_id, user_id, start_time, tags, run_name)

    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        """Set a run's status, end and name (as `SqlAlchemyStore.update_run_info`)."""
        given = {"status": run_status and RunStatus.to_string(run_status), "end_time": end_time, "name": run_name}
        changed = {column: value for column, value in given.items() if value or (column == "end_time" and value == 0)}
        columns = "name, experiment_id, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri"
        with self.bulk() as bulk, bulk.transaction():
            if _is_active(bulk, run_id):
                if changed:
                    setting = ", ".join(f"{column} = ?" for column in changed)
                    bulk.execute(f"UPDATE runs SET {setting} WHERE run_uuid = ?", *changed.values(), run_id)
                if run_name:
                    bulk.tags([(MLFLOW_RUN_NAME, run_name, run_id)])
                (row,) = bulk.query(f"SELECT {columns} FROM runs WHERE run_uuid = ?", run_id)
                return _info(run_id, row)
        return super().update_run_info(run_id, run_status, end_time, run_name)

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
        block = _block(run_id, metrics) if metrics else None
        if (block is not None or not metrics) and _are_plain(metrics, params, tags):
            with self.bulk() as bulk, bulk.transaction():
                if _is_active(bulk, run_id) and not (params and _change_params(bulk, run_id, params)):
                    bulk.new_params([(param.key, param.value, run_id) for param in params])
                    if block is not None:
                        bulk.metric_block(block.ordered())
                        bulk.latest(block.latest())
                    bulk.tags([(key, value, run_id) for key, value in {tag.key: tag.value for tag in tags}.items()])
                    return
        super().log_batch(run_id, metrics, params, tags)


def _info(run_id: str, row: Row) -> RunInfo:
    name, experiment_id, user, status, start, end, stage, artifacts = row
    return RunInfo(run_id, str(experiment_id), user, status, start, end, stage, artifacts, name)


def _is_active(bulk: Bulk, run_id: str) -> bool:
    return bulk.query("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", run_id) == [("active",)]


def _change_params(bulk: Bulk, run_id: str, params: Sequence[Param]) -> bool:
    """Whether params would get other values than they have, which MLflow does not allow."""
    kept: dict[str, str] = dict(bulk.query("SELECT key, value FROM params WHERE run_uuid = ?", run_id))
    return any(kept.get(param.key, param.value) != param.value for param in params)


def _are_plain(metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]) -> bool:
    """Whether a batch needs no more than rows in tables, and MLflow accepts its names, lengths and numbers."""
    names = {metric.key for metric in metrics}
    return (
        all(metric.model_id is None for metric in metrics)
        and all(tag.key != MLFLOW_RUN_NAME for tag in tags)
        and all(map(_is_name, [*names, *(entry.key for entry in (*params, *tags))]))
        and all(isinstance(param.value, str) and len(param.value) <= MAX_PARAM_VAL_LENGTH for param in params)
        and all(isinstance(tag.value, str) and len(tag.value) <= MAX_TAG_VAL_LENGTH for tag in tags)
        and len({param.key for param in params}) == len(params) <= MAX_PARAMS_TAGS_PER_BATCH
        and len(tags) <= MAX_PARAMS_TAGS_PER_BATCH
        and len(metrics) <= MAX_METRICS_PER_BATCH
        and len(metrics) + len(params) + len(tags) <= MAX_ENTITIES_PER_BATCH
    )


def _is_name(key: object) -> bool:
    if not isinstance(key, str) or len(key) > MAX_ENTITY_KEY_LENGTH:
        return False
    return bool(validate_param_and_metric_name(key)) and not path_not_unique(key)


_fields = attrgetter("key", "value", "timestamp", "step")


def _block(run_id: str, metrics: Sequence[Metric]) -> MetricBlock | None:
    """Metrics as rows; None if a value or time is of an unusual type, or out of range."""
    keys, values, timestamps, steps = zip(*map(_fields, metrics), strict=True)
    if not (_are(Real, values) and _are(Integral, timestamps) and _are(Integral, steps)) or min(timestamps) < 0:
        return None
    try:
        names, metric = numbered(keys)
        timestamp, step = np.array(timestamps, dtype=np.int64), np.array(steps, dtype=np.int64)
        value, is_nan = stored(np.array(values, dtype=np.float64))
    except (TypeError, OverflowError):  # a key that cannot be hashed, a number that no database can hold
        return None
    return MetricBlock(names, (run_id,), metric, np.zeros(len(keys), dtype=np.int64), timestamp, step, value, is_nan)


def _are(number: type, values: Sequence[object]) -> bool:
    return all(issubclass(kind, number) and kind is not bool for kind in set(map(type, values)))


def _create_whole(file: Path, artifacts: str) -> None:
    """Create a SQLite database that is missing, under another name until MLflow's schema is complete.

    MLflow's migrations are no transaction in SQLite: a process that is killed among them would leave a file that MLflow
    cannot open any more. The caller holds the lock of migrations.
    """
    if file.exists():
        return
    new = file.with_name(f".{file.name}.new")
    files = [new.with_name(new.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    for left in files:
        left.unlink(missing_ok=True)
    try:
        keep_log(new)
        SqlAlchemyStore(f"sqlite:///{new.as_posix()}", artifacts).engine.dispose()
        new.replace(file)
    finally:
        for left in files:
            left.unlink(missing_ok=True)


@contextmanager
def _migration_lock(address: DatabaseAddress) -> Iterator[None]:
    """Keep two processes that start on an empty database from running MLflow's migrations at the same time.

    PostgreSQL: an advisory lock of the database itself. SQLite: the folder of the database is locked, so that no file
    is created or opened by a name that others can predict; nothing is locked where there is no such lock (Windows, some
    network file systems).
    """
    if address.file is None:
        number = int.from_bytes(hashlib.blake2b(b"phasefront migrations", digest_size=4).digest(), "big")
        engine = create_sqlalchemy_engine_with_retry(address.uri)
        try:
            with engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": number})
                yield
        finally:
            engine.dispose()  # closes the connection, which releases the lock
        return
    descriptor = -1
    try:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):
                folder = address.file.resolve().parent
                folder.mkdir(parents=True, exist_ok=True)  # as MLflow does
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)

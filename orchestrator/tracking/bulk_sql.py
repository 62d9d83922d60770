"""Bulk statements on MLflow's tables: the same rows as MLflow's ORM writes, without its unit of work.

The statements follow MLflow's schema (runs, tags, params, metrics, latest_metrics) and its uniqueness rules. SQL is
written once, with `?` for a value and `$in` for "is in this list"; each dialect renders both in its own way, a list
always as a single bound value.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.tracking.file_system import journal_mode
from orchestrator.tracking.metric_block import (
    BINARY_METRICS,
    Columns,
    MetricBlock,
    MetricRow,
    binary_metrics,
    block_of,
    copy_text,
)

RUNS = (
    "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, "
    "deleted_time, source_version, lifecycle_stage, artifact_uri, experiment_id"
)
TAGS = PARAMS = "key, value, run_uuid"
METRICS = "key, value, timestamp, step, is_nan, run_uuid"
"""Columns of `metrics` and of `latest_metrics`."""

PAGE_BYTES = 16_384
"""Page size of new SQLite databases: inserting many rows costs an eighth less than with SQLite's default of 4,096."""
LOG_BYTES = 64 << 20
"""Size of SQLite's log at which it is copied to the database: a page changed by many transactions is copied once."""
WRITER_CACHE_BYTES, READER_CACHE_BYTES = 256 << 20, 64 << 20
"""Page cache of a SQLite connection; large for a writer, because writes to three indexes are scattered."""
WAIT_S = 5.0
"""How long a statement waits for another process's lock of a SQLite file; `orchestrator.outages` tries again."""
LOCK_TIMEOUT = "10s"
"""The same for PostgreSQL."""
IDLE_S = 60
"""How long PostgreSQL lets a transaction wait for its next statement, before it ends the connection."""
COPY_BYTES = 1 << 20
"""Size of the parts that COPY sends."""
FEW = 100
"""Up to this many rows are inserted by one statement with all values; for more, COPY is faster."""

_ACTIVE = 1
"""libpq's PQTRANS_ACTIVE: a statement was sent, and its answer has not come."""

Row = tuple[Any, ...]

_LATEST = (
    "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value, timestamp = excluded.timestamp, "
    "step = excluded.step, is_nan = excluded.is_nan "
    "WHERE (excluded.step, excluded.timestamp, excluded.value) "
    "> (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)"
)
_TAG = "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value"


def run_row(run_id: str, name: str, user: str, start_time: int, artifacts: str, experiment_id: int) -> Row:
    """A row of `runs` (columns RUNS) as MLflow's own store writes it for a new run."""
    source = "UNKNOWN", "", ""
    return run_id, name, *source, user, "RUNNING", start_time, None, None, "", "active", artifacts, experiment_id


class Bulk(ABC):
    """Bulk reads and writes over one DBAPI connection. One thread at a time."""

    ROWS_A_WRITE = 100_000
    """Metric rows in a transaction at which the cost for each row is lowest."""

    _count_runs = "SELECT COUNT(*) FROM runs WHERE run_uuid $in"

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._rendered: dict[str, str] = {}
        self._inside = False
        """A transaction of ours is open."""
        self._sent_at = 0.0
        """When the newest statement was sent (most of them)."""
        self.at_begin: Callable[[Bulk], None] | None = None
        """Called first in each transaction; raises if nothing may be written (see `HeldLease`)."""
        self.at_commit: Callable[[], None] | None = None
        """Called after each transaction that the database has confirmed."""

    @abstractmethod
    def _render(self, sql: str) -> str:
        """The dialect's own form of `?` and `$in`."""

    @abstractmethod
    def _bind(self, value: Any) -> Any:
        """A bound value; a list is one value."""

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def insert(self, table: str, names: str, columns: Columns, conflict: str) -> None:
        """Insert rows, given as columns of these names; `conflict` is the statement's ON CONFLICT clause."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything that is written inside is committed, or nothing if an exception is raised."""
        self._begin()
        self._inside = True
        try:
            if self.at_begin is not None:
                self.at_begin(self)
            yield
            self.connection.commit()
        except BaseException:
            with contextlib.suppress(Exception):  # of any driver: the connection is lost, which the first error says
                self.connection.rollback()
            raise
        else:
            if self.at_commit is not None:
                self.at_commit()
        finally:
            self._inside = False

    def query(self, sql: str, *values: Any) -> list[Row]:
        """All rows of a select."""
        with contextlib.closing(self._execute(sql, values)) as cursor:
            rows: list[Row] = cursor.fetchall()
            return rows

    def execute(self, sql: str, *values: Any) -> int:
        """Run a statement; return the number of affected rows."""
        with contextlib.closing(self._execute(sql, values)) as cursor:
            return int(cursor.rowcount)

    def _execute(self, sql: str, values: Iterable[Any]) -> Any:
        rendered = self._rendered.get(sql)
        if rendered is None:
            rendered = self._rendered[sql] = self._render(sql)
        cursor = self.connection.cursor()
        self._sent_at = time.monotonic()
        try:
            cursor.execute(rendered, tuple(self._bind(value) for value in values))
        except BaseException:
            cursor.close()
            raise
        return cursor

    def tags(self, rows: Sequence[Row]) -> None:
        """Set tags: (key, value, run id)."""
        self._insert_rows("tags", TAGS, rows, _TAG)

    def new_runs(self, rows: Sequence[Row]) -> None:
        """Create runs, each a row of RUNS; existing runs do not change."""
        self._insert_rows("runs", RUNS, rows, "ON CONFLICT DO NOTHING")

    def new_params(self, rows: Sequence[Row]) -> None:
        """Write params: (key, value, run id); existing params do not change."""
        self._insert_rows("params", PARAMS, rows, "ON CONFLICT DO NOTHING")

    def metrics(self, rows: Sequence[MetricRow]) -> None:
        """Append metric rows; exact duplicates are dropped."""
        if rows:
            self.metric_block(block_of(rows))

    def metric_block(self, block: MetricBlock, *, runs_checked: bool = False) -> None:
        """Append at least one metric row; exact duplicates are dropped.

        `runs_checked`: this transaction has called `missing_runs`, so the foreign keys need no check.
        """
        self.insert("metrics", METRICS, block.columns(), "ON CONFLICT DO NOTHING")

    def _insert_rows(self, table: str, names: str, rows: Sequence[Row], conflict: str) -> None:
        if rows:
            self.insert(table, names, tuple(zip(*rows, strict=True)), conflict)

    def missing_runs(self, run_ids: Sequence[str]) -> int:
        """The number of these runs that are not in the database: a check of the foreign key in one statement.

        Runs that exist cannot be deleted by others until the transaction ends.
        """
        wanted = set(run_ids)
        ((there,),) = self.query(self._count_runs, list(wanted))
        return len(wanted) - int(there)

    def latest(self, rows: Sequence[MetricRow]) -> None:
        """Update latest metrics, at most one row for each run and key; the highest (step, timestamp, value) is kept.

        This is MLflow's own rule.
        """
        self._insert_rows("latest_metrics", METRICS, rows, _LATEST)

    def once(self, rows: Sequence[MetricRow]) -> None:
        """Write metrics of a single value, at most one row for each run and key."""
        self.metrics(rows)
        self.latest(rows)

    def rebuild_latest(self, run_ids: Sequence[str]) -> None:
        """Compute the latest metrics of these runs from their metric rows."""
        self.execute(
            f"INSERT INTO latest_metrics ({METRICS}) SELECT {METRICS} FROM (SELECT {METRICS}, ROW_NUMBER() OVER ("
            "PARTITION BY run_uuid, key ORDER BY step DESC, timestamp DESC, value DESC) AS place "
            f"FROM metrics WHERE run_uuid $in) ranked WHERE place = 1 {_LATEST}",
            list(run_ids),
        )

    def waits_s(self) -> float:
        """Seconds for which a statement has been waiting for the server, 0 if none is; on another thread."""
        return 0.0

    def cut(self) -> None:
        """Let a statement that waits for the server fail; on another thread."""
        return

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class SqliteBulk(Bulk):
    """SQLite: one prepared statement for many rows. The connection is in autocommit mode (`isolation_level=None`)."""

    ROWS_A_WRITE = 250_000

    @classmethod
    def connect(cls, path: str, *, write: bool, wait_s: float | None = None) -> SqliteBulk:
        """Open the database file, for reading as it is, or with settings for a single bulk writer."""
        wait_s = WAIT_S if wait_s is None else wait_s
        connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
        try:
            if write and _log_kept(connection, Path(path)):
                use_log(connection)
            # `missing_runs` checks foreign keys once for all rows: a tenth of the cost of SQLite's check of each row.
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(f"PRAGMA cache_size = -{(WRITER_CACHE_BYTES if write else READER_CACHE_BYTES) >> 10}")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # fails if the file is not a database
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    def _render(self, sql: str) -> str:
        return sql.replace("$in", "IN (SELECT value FROM json_each(?))")

    def _bind(self, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, list) else value

    def _begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def insert(self, table: str, names: str, columns: Columns, conflict: str) -> None:
        """See `Bulk.insert`."""
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {table} ({names}) VALUES ({marks}) {conflict}"
        # Binding a bool takes the driver five times as long as binding the int that is stored for it.
        bound = (map(int, column) if type(column[0]) is bool else column for column in columns)
        self.connection.executemany(statement, zip(*bound, strict=True))


def keep_log(file: Path) -> bool:
    """Switch a SQLite database, which may not exist yet, to a write-ahead log; return whether that worked.

    With the log, `mlflow ui` can read while we write, and `synchronous=NORMAL` is safe against a crash of the process
    and consistent after a crash of the machine, without a flush to disk for each transaction. The mode is stored in the
    file, and MLflow supports it. On a network file system, where the log is not safe, the database is switched to a
    rollback journal instead. Nothing changes if the file is not a SQLite database.

    A new database gets pages of PAGE_BYTES.

    Raises:
        UserError: The database has a log on a network file system, and another process uses it.
    """
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=WAIT_S, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # no effect on an existing database
            return _log_kept(connection, file)
    except sqlite3.Error:
        return False


def use_log(connection: sqlite3.Connection) -> None:
    """Set up a connection for writing to a database with a write-ahead log."""
    ((page,),) = connection.execute("PRAGMA page_size").fetchall()
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // page}")


def _log_kept(connection: sqlite3.Connection, file: Path) -> bool:
    mode = journal_mode(file)
    if mode == "WAL":
        return bool(connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",))
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        except sqlite3.OperationalError as error:
            raise log_on_network(file, str(error)) from None
    return False


def log_on_network(file: Path, why: str) -> UserError:
    """A SQLite database keeps its write-ahead log on a network file system."""
    return UserError(
        "the SQLite file is on a network file system and has a write-ahead log, which can corrupt it there; it cannot "
        f"be switched to a rollback journal now: {why}",
        place="tracking.uri",
        value=str(file),
        next_step="end the other processes that use it (phasefront, mlflow ui) and try again; or use a file on a local "
        "disk, postgresql://..., or the http:// address of an mlflow server",
    )


class PostgresBulk(Bulk):
    """PostgreSQL, by psycopg2 or psycopg 3: COPY, into a temporary table first where rows may exist already.

    Args:
        connection: Of either driver.
        write: The connection belongs to a bulk writer. The server confirms a transaction once it is on its disk:
            otherwise a server that crashes would forget transactions of a driver that lives on.
    """

    _count_runs = "SELECT COUNT(*) FROM (SELECT 1 FROM runs WHERE run_uuid $in FOR KEY SHARE) held"

    def __init__(self, connection: Any, *, write: bool = False) -> None:
        super().__init__(connection)
        self._unchecked: bool | None = None
        """Whether rows may be written without a check of foreign keys; None until it was tried."""
        if write:
            # A stopped or unreachable driver must not keep its locks, such as that of its lease, for hours.
            settings = {
                "synchronous_commit": "on",
                "lock_timeout": LOCK_TIMEOUT,
                "idle_in_transaction_session_timeout": f"{IDLE_S}s",
                "tcp_keepalives_idle": "30",
                "tcp_keepalives_interval": "10",
                "tcp_keepalives_count": "3",
            }
            calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
            super().query(f"SELECT {calls}")
            connection.commit()

    def waits_s(self) -> float:
        active = int(self.connection.info.transaction_status) == _ACTIVE
        return time.monotonic() - self._sent_at if active else 0.0

    def cut(self) -> None:
        with socket.socket(fileno=os.dup(self.connection.fileno())) as connection:
            connection.shutdown(socket.SHUT_RDWR)

    def _render(self, sql: str) -> str:
        return sql.replace("%", "%%").replace("$in", "= ANY(?)").replace("?", "%s")

    def _bind(self, value: Any) -> Any:
        return value

    def _begin(self) -> None:
        """Both drivers begin a transaction at the first statement."""

    def query(self, sql: str, *values: Any) -> list[Row]:
        """All rows of a select; outside `transaction` no transaction stays open."""
        rows = super().query(sql, *values)
        if not self._inside:
            self.connection.rollback()
        return rows

    def metric_block(self, block: MetricBlock, *, runs_checked: bool = False) -> None:
        """Append metric rows by COPY into the table or, if one of them exists already, by a temporary table.

        Half of the cost is the foreign key's trigger for each row. It is disabled for rows whose runs this transaction
        has found and locked, if the user has the right to set `session_replication_role` (a superuser's right that can
        be granted).
        """
        if len(block) <= FEW:
            self.insert("metrics", METRICS, block.columns(), "ON CONFLICT DO NOTHING")
            return
        unchecked = runs_checked and self._may_skip_checks()
        if unchecked:
            self.execute("SET LOCAL session_replication_role = replica")
        copy = f"COPY metrics ({', '.join(BINARY_METRICS)}) FROM STDIN WITH (FORMAT binary, ENCODING 'UTF8')"
        with contextlib.closing(self.connection.cursor()) as cursor:
            cursor.execute("SAVEPOINT phasefront")
            try:
                self._copy(cursor, copy, binary_metrics(block))
            except Exception as error:  # of either driver: they share no base class
                if _sqlstate(error) != "23505":  # unique_violation
                    raise
                cursor.execute("ROLLBACK TO SAVEPOINT phasefront")
                self.insert("metrics", METRICS, block.columns(), "ON CONFLICT DO NOTHING")
            cursor.execute("RELEASE SAVEPOINT phasefront")
        if unchecked:
            self.execute("SET LOCAL session_replication_role = origin")

    def _may_skip_checks(self) -> bool:
        if self._unchecked is None:
            ((triggers,),) = self.query(
                "SELECT COUNT(*) FROM pg_trigger WHERE tgrelid = to_regclass('metrics') AND NOT tgisinternal"
            )
            self.execute("SAVEPOINT phasefront")
            try:
                self.execute("SET LOCAL session_replication_role = replica")
            except Exception as error:  # of either driver: they share no base class
                if _sqlstate(error) != "42501":  # insufficient_privilege
                    raise
                self._unchecked = False
            else:
                self._unchecked = triggers == 0
            self.execute("ROLLBACK TO SAVEPOINT phasefront")
        return self._unchecked

    def insert(self, table: str, names: str, columns: Columns, conflict: str) -> None:
        """See `Bulk.insert`."""
        if len(columns[0]) <= FEW:
            marks = ", ".join(["(" + ", ".join("?" * len(columns)) + ")"] * len(columns[0]))
            values = itertools.chain.from_iterable(zip(*columns, strict=True))
            self.execute(f"INSERT INTO {table} ({names}) VALUES {marks} {conflict}", *map(_without_nul, values))
            return
        staging = f"phasefront_{table}"
        with contextlib.closing(self.connection.cursor()) as cursor:
            # The temporary table outlives the transaction, its rows do not.
            cursor.execute(
                f"CREATE TEMPORARY TABLE IF NOT EXISTS {staging} ON COMMIT DELETE ROWS AS "
                f"SELECT {names} FROM {table} WITH NO DATA"
            )
            cursor.execute(f"DELETE FROM {staging}")
            self._copy(cursor, f"COPY {staging} ({names}) FROM STDIN", copy_text(columns))
            cursor.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM {staging} {conflict}")

    @staticmethod
    def _copy(cursor: Any, statement: str, content: str | bytes) -> None:
        if hasattr(cursor, "copy_expert"):
            file = io.StringIO(content) if isinstance(content, str) else io.BytesIO(content)
            cursor.copy_expert(statement, file, COPY_BYTES)
        else:
            with cursor.copy(statement) as copy:
                copy.write(content)


def _without_nul(value: Any) -> Any:
    """PostgreSQL's text type cannot hold NUL characters."""
    return value.replace("\0", "") if isinstance(value, str) and "\0" in value else value


def _sqlstate(error: Exception) -> str | None:
    """PostgreSQL's error code: `pgcode` in psycopg2, `sqlstate` in psycopg 3."""
    return getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)

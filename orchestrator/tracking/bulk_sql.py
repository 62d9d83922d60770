"""Bulk statements on MLflow's tables: the same rows as MLflow's ORM writes, without its unit of work.

The statements keep to MLflow's schema (runs, tags, params, metrics, latest_metrics) and to its
uniqueness. SQL is written once, with `?` for a value and `$in` for "is one of this list"; each
dialect renders both its own way, a list always as a single bound value.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.tracking.copy_format import BINARY_METRICS, binary_metrics, copy_text
from orchestrator.tracking.metric_block import Columns, MetricBlock, MetricRow, block_of

RUNS = (
    "run_uuid",
    "name",
    "source_type",
    "source_name",
    "entry_point_name",
    "user_id",
    "status",
    "start_time",
    "end_time",
    "deleted_time",
    "source_version",
    "lifecycle_stage",
    "artifact_uri",
    "experiment_id",
)
TAGS = ("key", "value", "run_uuid")
PARAMS = ("key", "value", "run_uuid")
METRICS = ("key", "value", "timestamp", "step", "is_nan", "run_uuid")
"""Columns of `metrics` and of `latest_metrics`."""

PAGE_BYTES = 16_384
"""Of a SQLite database that we make: many rows cost an eighth less than with SQLite's own 4,096."""
LOG_BYTES = 64 << 20
"""A page that several transactions change is copied to the database once for so much of SQLite's log."""
WRITER_CACHE_BYTES, READER_CACHE_BYTES = 256 << 20, 64 << 20
"""At most so much memory for a SQLite database's pages: three indexes are written all over."""
COPY_BYTES = 1 << 20
"""COPY sends so much at once."""
FEW = 100
"""So many rows go in one statement with their values; COPY pays for more."""

Row = tuple[Any, ...]

_LATEST = (
    "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value, timestamp = excluded.timestamp, "
    "step = excluded.step, is_nan = excluded.is_nan "
    "WHERE (excluded.step, excluded.timestamp, excluded.value) "
    "> (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)"
)
_TAG = "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value"


def run_row(
    run_id: str, *, name: str, user: str, start_time: int, artifacts: str, experiment_id: int, status: str
) -> Row:
    """A row of `runs` (columns RUNS) as MLflow's own store writes it."""
    return (
        run_id,
        name,
        "UNKNOWN",
        "",
        "",
        user,
        status,
        start_time,
        None,
        None,
        "",
        "active",
        artifacts,
        experiment_id,
    )


class Bulk(ABC):
    """Bulk reads and writes over one DBAPI connection. One thread at a time."""

    ROWS_A_WRITE = 100_000
    """So many metric rows make a transaction that costs the least a row."""

    _count_runs = "SELECT COUNT(*) FROM runs WHERE run_uuid $in"

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._rendered: dict[str, str] = {}
        self._inside = False
        """A transaction of ours is under way."""

    @abstractmethod
    def _render(self, sql: str) -> str:
        """The dialect's own form of `?` and `$in`."""

    @abstractmethod
    def _bind(self, value: Any) -> Any:
        """A bound value; a list is one value."""

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def insert(self, table: str, names: Sequence[str], columns: Columns, conflict: str) -> None:
        """Insert rows, given column by column; `conflict` is the statement's ON CONFLICT clause."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written inside."""
        self._begin()
        self._inside = True
        try:
            yield
        except BaseException:
            self.connection.rollback()
            raise
        else:
            self.connection.commit()
        finally:
            self._inside = False

    def query(self, sql: str, *values: Any) -> list[Row]:
        """All rows of a select."""
        cursor = self._execute(sql, values)
        try:
            rows: list[Row] = cursor.fetchall()
            return rows
        finally:
            cursor.close()

    def execute(self, sql: str, *values: Any) -> int:
        """Run a statement; the number of rows it touched."""
        cursor = self._execute(sql, values)
        try:
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def _execute(self, sql: str, values: Iterable[Any]) -> Any:
        rendered = self._rendered.get(sql)
        if rendered is None:
            rendered = self._rendered[sql] = self._render(sql)
        cursor = self.connection.cursor()
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
        """Create runs, each a row of RUNS; a run that exists stays as it is."""
        self._insert_rows("runs", RUNS, rows, "ON CONFLICT DO NOTHING")

    def new_params(self, rows: Sequence[Row]) -> None:
        """Write params: (key, value, run id); one that exists stays as it is."""
        self._insert_rows("params", PARAMS, rows, "ON CONFLICT DO NOTHING")

    def metrics(self, rows: Sequence[MetricRow]) -> None:
        """Append metric rows; exact repeats are dropped."""
        if rows:
            self.metric_block(block_of(rows))

    def metric_block(self, block: MetricBlock, *, runs_checked: bool = False) -> None:
        """Append metric rows, at least one; exact repeats are dropped.

        `runs_checked`: this transaction has asked `missing_runs`, so that no row needs a check of its own.
        """
        del runs_checked
        self.insert("metrics", METRICS, block.columns(), "ON CONFLICT DO NOTHING")

    def _insert_rows(self, table: str, names: Sequence[str], rows: Sequence[Row], conflict: str) -> None:
        if rows:
            self.insert(table, names, tuple(zip(*rows, strict=True)), conflict)

    def missing_runs(self, run_ids: Sequence[str]) -> int:
        """How many of these runs are not in the database: what a foreign key would find, in one statement.

        Those that are there stay there until the transaction ends.
        """
        wanted = set(run_ids)
        ((there,),) = self.query(self._count_runs, list(wanted))
        return len(wanted) - int(there)

    def latest(self, rows: Sequence[MetricRow]) -> None:
        """Offer rows as latest metrics: the highest (step, timestamp, value) wins, as MLflow has it.

        At most one row for each run and key.
        """
        self._insert_rows("latest_metrics", METRICS, rows, _LATEST)

    def rebuild_latest(self, run_ids: Sequence[str]) -> None:
        """Make the latest metrics of these runs agree with their metric rows."""
        columns = ", ".join(METRICS)
        self.execute(
            f"INSERT INTO latest_metrics ({columns}) SELECT {columns} FROM (SELECT {columns}, ROW_NUMBER() OVER ("
            "PARTITION BY run_uuid, key ORDER BY step DESC, timestamp DESC, value DESC) AS place "
            f"FROM metrics WHERE run_uuid $in) ranked WHERE place = 1 {_LATEST}",
            list(run_ids),
        )

    def close(self) -> None:
        """Let go of the connection."""
        self.connection.close()


class SqliteBulk(Bulk):
    """SQLite: one prepared statement, many rows. The connection is in autocommit (`isolation_level=None`)."""

    ROWS_A_WRITE = 250_000

    @classmethod
    def connect(cls, path: str, *, write: bool, wait_s: float = 60.0) -> SqliteBulk:
        """Open the database file, for reading as it is, or with the settings that a single bulk writer wants."""
        connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
        try:
            if write and _log_kept(connection):
                use_log(connection)
            # Foreign keys are checked set by set (`missing_runs`), which costs a tenth of SQLite's check of each row.
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(f"PRAGMA cache_size = -{(WRITER_CACHE_BYTES if write else READER_CACHE_BYTES) >> 10}")
            connection.execute("PRAGMA temp_store = MEMORY")
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

    def insert(self, table: str, names: Sequence[str], columns: Columns, conflict: str) -> None:
        """See `Bulk.insert`."""
        marks = ", ".join("?" * len(names))
        statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}) {conflict}"
        # The driver takes five times as long to bind a truth value as it takes for the number that is stored.
        bound = (map(int, column) if type(column[0]) is bool else column for column in columns)
        self.connection.executemany(statement, zip(*bound, strict=True))


def keep_log(file: Path) -> bool:
    """Let a SQLite database, which may not be there yet, keep a write-ahead log; whether it does.

    The log lets `mlflow ui` read while we write, and with it `synchronous=NORMAL` is safe against a
    crash of the process and consistent after a crash of the machine, without a flush to disk per
    transaction. MLflow works with it as it is: the log's mode is kept in the file. Where a file
    system cannot have it (some network mounts), or the file is none of SQLite's, all stays as it is.

    A new database gets pages of PAGE_BYTES.
    """
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=60.0, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of no effect where there are pages already
            return _log_kept(connection)
    except sqlite3.Error:
        return False


def use_log(connection: sqlite3.Connection) -> None:
    """Write by the log that the database keeps: a connection's own settings."""
    ((page,),) = connection.execute("PRAGMA page_size").fetchall()
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // page}")


def _log_kept(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",))


class PostgresBulk(Bulk):
    """PostgreSQL, by psycopg2 or psycopg 3: COPY, into a temporary table first where rows may be there already.

    Args:
        connection: Of either driver.
        write: It is a bulk writer's own. Its transactions do not wait for the server's disk: should
            that machine crash, the last half second of them is lost, whole transactions only, and
            the sweep's next start makes them good.
    """

    _count_runs = "SELECT COUNT(*) FROM (SELECT 1 FROM runs WHERE run_uuid $in FOR KEY SHARE) held"

    def __init__(self, connection: Any, *, write: bool = False) -> None:
        super().__init__(connection)
        self._unchecked: bool | None = None
        """Whether rows may be written without the foreign key's check; None until it was tried."""
        if write:
            self.execute("SET synchronous_commit = off")
            connection.commit()

    def _render(self, sql: str) -> str:
        return sql.replace("%", "%%").replace("$in", "= ANY(?)").replace("?", "%s")

    def _bind(self, value: Any) -> Any:
        return value

    def _begin(self) -> None:
        """Both drivers begin a transaction with the first statement."""

    def query(self, sql: str, *values: Any) -> list[Row]:
        """All rows of a select; outside of `transaction` it leaves no transaction open."""
        rows = super().query(sql, *values)
        if not self._inside:
            self.connection.rollback()
        return rows

    def metric_block(self, block: MetricBlock, *, runs_checked: bool = False) -> None:
        """Append metric rows: straight into the table, or, where one is there already, by a temporary table.

        Half of the cost is the foreign key's trigger for each row. Where the user may (PostgreSQL's
        `session_replication_role`, a superuser's right that can be granted) it is left out, for rows
        whose runs this transaction has found and locked.
        """
        if len(block) <= FEW:
            self.insert("metrics", METRICS, block.columns(), "ON CONFLICT DO NOTHING")
            return
        unchecked = runs_checked and self._may_skip_checks()
        if unchecked:
            self.execute("SET LOCAL session_replication_role = replica")
        columns = ", ".join(BINARY_METRICS)
        cursor = self.connection.cursor()
        try:
            cursor.execute("SAVEPOINT phasefront")
            try:
                self._copy(
                    cursor,
                    f"COPY metrics ({columns}) FROM STDIN WITH (FORMAT binary, ENCODING 'UTF8')",
                    binary_metrics(block),
                )
            except Exception as error:
                if _sqlstate(error) != "23505":  # unique_violation
                    raise
                cursor.execute("ROLLBACK TO SAVEPOINT phasefront")
                self.insert("metrics", METRICS, block.columns(), "ON CONFLICT DO NOTHING")
            cursor.execute("RELEASE SAVEPOINT phasefront")
        finally:
            cursor.close()
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
            except Exception as error:
                if _sqlstate(error) != "42501":  # insufficient_privilege
                    raise
                self._unchecked = False
            else:
                self._unchecked = triggers == 0
            self.execute("ROLLBACK TO SAVEPOINT phasefront")
        return self._unchecked

    def insert(self, table: str, names: Sequence[str], columns: Columns, conflict: str) -> None:
        """See `Bulk.insert`."""
        named, staging = ", ".join(names), f"phasefront_{table}"
        if len(columns[0]) <= FEW:
            marks = ", ".join(["(" + ", ".join("?" * len(names)) + ")"] * len(columns[0]))
            values = itertools.chain.from_iterable(zip(*columns, strict=True))
            self.execute(f"INSERT INTO {table} ({named}) VALUES {marks} {conflict}", *map(_without_nul, values))
            return
        cursor = self.connection.cursor()
        try:
            # The temporary table outlives the transaction, its rows do not.
            cursor.execute(
                f"CREATE TEMPORARY TABLE IF NOT EXISTS {staging} ON COMMIT DELETE ROWS AS "
                f"SELECT {named} FROM {table} WITH NO DATA"
            )
            cursor.execute(f"DELETE FROM {staging}")
            self._copy(cursor, f"COPY {staging} ({named}) FROM STDIN", copy_text(columns))
            cursor.execute(f"INSERT INTO {table} ({named}) SELECT {named} FROM {staging} {conflict}")
        finally:
            cursor.close()

    @staticmethod
    def _copy(cursor: Any, statement: str, content: str | bytes) -> None:
        if hasattr(cursor, "copy_expert"):
            file = io.StringIO(content) if isinstance(content, str) else io.BytesIO(content)
            cursor.copy_expert(statement, file, COPY_BYTES)
        else:
            with cursor.copy(statement) as copy:
                copy.write(content)


def _without_nul(value: Any) -> Any:
    """PostgreSQL's text holds no NUL character."""
    return value.replace("\0", "") if isinstance(value, str) and "\0" in value else value


def _sqlstate(error: Exception) -> str | None:
    """PostgreSQL's code of an error: `pgcode` to psycopg2, `sqlstate` to psycopg 3."""
    return getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)

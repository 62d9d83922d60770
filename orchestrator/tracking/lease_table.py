"""The lease of an experiment as a row of the record's database, checked and renewed by every transaction of its driver.

The table is beside MLflow's own tables and belongs to no MLflow schema: MLflow's migrations and checks do not look at
it. It is created when a driver first takes a lease.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace

from orchestrator.errors import UserError
from orchestrator.tracking.bulk_sql import Bulk, PostgresBulk, SqliteBulk
from orchestrator.tracking.heartbeat import Heartbeat
from orchestrator.tracking.lease import RENEWALS, Lease, LeaseLost, LeaseStore, Process, elapsed_s
from orchestrator.tracking.lease_tag import SqlTag

TABLE = "phasefront_leases"
CREATE = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (experiment_id BIGINT NOT NULL PRIMARY KEY, fence BIGINT NOT NULL, "
    "sequence BIGINT NOT NULL, beat BIGINT NOT NULL, owner VARCHAR(32) NOT NULL, host VARCHAR(100) NOT NULL, "
    "machine VARCHAR(100) NOT NULL, pid BIGINT NOT NULL, started BIGINT NOT NULL, taken_ms BIGINT NOT NULL, "
    "renewed_ms BIGINT NOT NULL, expires_ms BIGINT NOT NULL)"
)
"""`owner` is empty if the lease was released. Times are ms since the epoch, by the database's clock."""

_COLUMNS = "fence, sequence, beat, owner, host, machine, pid, started, taken_ms, renewed_ms, expires_ms"
_SQLITE_NOW = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
_POSTGRES_NOW = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


def _now(bulk: Bulk) -> str:
    return _POSTGRES_NOW if isinstance(bulk, PostgresBulk) else _SQLITE_NOW


class LeaseTable(LeaseStore):
    """The lease of one experiment in a database; the connection belongs to its caller.

    Args:
        bulk: The connection.
        experiment_id: The experiment.
        place: Address of the database without its password, for messages.
        owner: Who takes the lease, the same in each attempt; a new one if empty.
    """

    def __init__(self, bulk: Bulk, experiment_id: int, place: str, *, owner: str = "") -> None:
        self._bulk, self._experiment_id = bulk, experiment_id
        self.owner = owner or uuid.uuid4().hex
        self.SHARED_CLOCK = isinstance(bulk, PostgresBulk)
        _create(bulk, place)

    def read(self) -> Lease | None:
        """A lease that an earlier attempt has claimed, whose answer was lost, counts as released."""
        lease = read(self._bulk, self._experiment_id)
        mine = f"SELECT 1 FROM {TABLE} WHERE experiment_id = ? AND owner = ?"
        if lease is not None and self._bulk.query(mine, self._experiment_id, self.owner):
            return replace(lease, holder=None)
        return lease

    def claim(self, before: Lease | None, me: Process, lasts_s: float) -> int | None:
        now = _now(self._bulk)
        columns = (self.owner, me.host, me.machine, me.pid, me.started)
        lasts_ms = max(1, round(lasts_s * 1000))
        with self._bulk.transaction():
            if before is None:
                changed = self._bulk.execute(
                    f"INSERT INTO {TABLE} (experiment_id, {_COLUMNS}) "
                    f"VALUES (?, 1, 0, 0, ?, ?, ?, ?, ?, {now}, {now}, {now} + ?) ON CONFLICT DO NOTHING",
                    *(self._experiment_id, *columns, lasts_ms),
                )
            else:
                changed = self._bulk.execute(
                    f"UPDATE {TABLE} SET fence = fence + 1, sequence = 0, beat = 0, owner = ?, host = ?, machine = ?, "
                    f"pid = ?, started = ?, taken_ms = {now}, renewed_ms = {now}, expires_ms = {now} + ? "
                    "WHERE experiment_id = ? AND fence = ? AND sequence = ? AND beat = ?",
                    *(*columns, lasts_ms, self._experiment_id, *before.state),
                )
        return (before.fence if before else 0) + 1 if changed == 1 else None


def read(bulk: Bulk, experiment_id: int) -> Lease | None:
    """The lease of an experiment; its table exists."""
    select = f"SELECT {_COLUMNS}, {_now(bulk)} FROM {TABLE} WHERE experiment_id = ?"
    for fence, sequence, beat, owner, host, machine, pid, started, taken, renewed, expires, now in bulk.query(
        select, experiment_id
    ):
        return Lease(
            fence=int(fence),
            sequence=int(sequence),
            beat=int(beat),
            holder=Process(host=host, machine=machine, pid=int(pid), started=int(started)) if owner else None,
            taken_ms=int(taken),
            silent_ms=int(now) - int(renewed),
            lasts_ms=int(expires) - int(renewed),
        )
    return None


def find(bulk: Bulk, experiment_id: int) -> Lease | None:
    """The lease of an experiment, in a record that may be of an earlier version."""
    return read(bulk, experiment_id) if _is_there(bulk) else None


def _is_there(bulk: Bulk) -> bool:
    in_sqlite, in_postgres = "SELECT 1 FROM sqlite_master WHERE name = ?", "SELECT 1 WHERE to_regclass(?) IS NOT NULL"
    return bool(bulk.query(in_sqlite if isinstance(bulk, SqliteBulk) else in_postgres, TABLE))


def _create(bulk: Bulk, place: str) -> None:
    if _is_there(bulk):
        return
    try:
        with bulk.transaction():
            bulk.execute(CREATE)
    except Exception as error:  # of sqlite3 or either PostgreSQL driver: they share no base class
        if _is_there(bulk):
            return  # another driver has created it at the same time
        raise UserError(
            f"the table {TABLE} cannot be created: {str(error).strip().splitlines()[0]}",
            place=place,
            next_step=f"let the owner of the database create it: {CREATE}",
        ) from error


class HeldLease:
    """The lease that this process holds. Every transaction of `bind`'s connection checks, renews and numbers it.

    Args:
        experiment_id: The experiment.
        experiment: Its name, for messages.
        fence: The fencing number of `LeaseTable.claim`.
        owner: The owner of `LeaseTable`.
        lasts_s: How long the lease lasts without renewal.
        tag: The tag that drivers over HTTP read; once it is claimed, it is renewed together with the row.
        connect: Opens a connection for the thread that renews the lease while there is no transaction.
    """

    def __init__(
        self,
        *,
        experiment_id: int,
        experiment: str,
        fence: int,
        owner: str,
        lasts_s: float,
        tag: SqlTag,
        connect: Callable[[], Bulk | None],
    ) -> None:
        self._key = (experiment_id, fence, owner)
        self._experiment, self._tag, self._connect = experiment, tag, connect
        self._lasts_s, self._lasts_ms = lasts_s, max(1, round(lasts_s * 1000))
        self.sequence = 0
        """Number of the newest transaction that was begun."""
        self.confirmed = 0
        """Number of the newest transaction whose commit the database has confirmed."""
        self.lost = False
        """Whether the thread has found that another driver has taken the lease; the next transaction raises."""
        self._renewed_at = elapsed_s()
        """By a transaction or the thread."""
        self._bulk: Bulk | None = None
        """The thread's connection."""
        self._closing = threading.Lock()
        self._heartbeat = Heartbeat(self._beat, lasts_s / RENEWALS)

    def bind(self, bulk: Bulk) -> None:
        """From now on, transactions of this connection write only while the lease is held."""
        bulk.at_begin, bulk.at_commit = self.check, self._confirm

    def _confirm(self) -> None:
        self.confirmed = self.sequence

    def check(self, bulk: Bulk) -> None:
        """The first statement of a transaction: renew the lease, and give the transaction the next number.

        Raises:
            LeaseLost: Another driver has taken the lease.
        """
        self.sequence += 1
        if not self._renew(bulk, "sequence = ?", self.sequence):
            raise LeaseLost(self._experiment, read(bulk, self._key[0]))
        if self.lost or (elapsed_s() - self._renewed_at > self._lasts_s / 2 and not self._tag.holds(bulk)):
            raise LeaseLost(self._experiment, self._tag.read())
        self._renewed_at = elapsed_s()

    def last_committed(self, bulk: Bulk) -> int:
        """The number of the last transaction that was committed.

        After a connection was lost at COMMIT: if it equals `sequence`, the transaction was committed.

        Raises:
            LeaseLost: Another driver has taken the lease.
        """
        select = f"SELECT sequence FROM {TABLE} WHERE experiment_id = ? AND fence = ? AND owner = ?"
        for (sequence,) in bulk.query(select, *self._key):
            return int(sequence)
        raise LeaseLost(self._experiment, read(bulk, self._key[0]))

    def _renew(self, bulk: Bulk, change: str, *values: int) -> bool:
        now = _now(bulk)
        return (
            bulk.execute(
                f"UPDATE {TABLE} SET {change}, renewed_ms = {now}, expires_ms = {now} + ? "
                "WHERE experiment_id = ? AND fence = ? AND owner = ?",
                *(*values, self._lasts_ms, *self._key),
            )
            == 1
        )

    def _beat(self) -> None:
        """Renew the lease and the tag; on the thread."""
        with self._closing:
            try:
                self._bulk = self._bulk or self._connect()
                if self._bulk is not None:
                    with self._bulk.transaction():
                        self.lost = not (self._renew(self._bulk, "beat = beat + 1") and self._tag.renew(self._bulk))
                    self._renewed_at = elapsed_s()
            except BaseException:
                self._hang_up()
                raise

    def _hang_up(self) -> None:
        bulk, self._bulk = self._bulk, None
        if bulk is not None:
            with contextlib.suppress(Exception):  # a lost connection, of any driver
                bulk.close()

    def release(self, bulk: Bulk) -> None:
        """Let the next driver take the lease at once. Where the database does not answer, the lease expires."""
        self._heartbeat.close()
        bulk.at_begin = bulk.at_commit = None
        with contextlib.suppress(Exception), bulk.transaction():  # a lost connection, of any driver
            self._tag.release(bulk)
            bulk.execute(
                f"UPDATE {TABLE} SET owner = '' WHERE experiment_id = ? AND fence = ? AND owner = ?", *self._key
            )
        if self._closing.acquire(timeout=1.0):
            self._hang_up()
            self._closing.release()

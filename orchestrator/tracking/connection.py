"""Opening an MLflow database: as it is for reading; for writing, schema and experiment are created if missing.

Raw connections and plain SQL; mlflow is imported only where something has to be created.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import Outage, UserError
from orchestrator.outages import SALVAGE, Kind, Unreachable, WrongAddress, is_damaged, is_wrong_address, kind_of
from orchestrator.tracking.address import CHOICES, DatabaseAddress, quiet_mlflow, shown
from orchestrator.tracking.bulk_sql import Bulk, PostgresBulk, SqliteBulk
from orchestrator.tracking.earlier_lock import take_file_lock, take_session_lock
from orchestrator.tracking.file_system import network_file_system, other_names
from orchestrator.tracking.lease import LeaseStore, Process, lease_s, take, taken
from orchestrator.tracking.lease_table import HeldLease, LeaseTable
from orchestrator.tracking.lease_tag import SqlTag
from orchestrator.tracking.run_table import RunTable

if TYPE_CHECKING:
    from orchestrator.tracking.store import BulkSqlAlchemyStore


POSTGRES_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""A server that was cut off is noticed within half a minute; the address may say otherwise. See also `cut_if_hung`."""
STATEMENT_S = 300.0
"""How long a statement of a run may take."""
_NAME_A_FILE = "name a SQLite file of MLflow's, or a new file in a folder that you may write to"


class Experiment(NamedTuple):
    """An MLflow experiment, from its table."""

    id: int
    artifact_location: str
    deleted: bool


class Database:
    """One experiment in one database; it connects when it is first needed.

    Args:
        address: The database.
        experiment: Name of the experiment.
        artifacts: Its artifact location, if it has to be created.
        place: Where the user wrote the address, for messages.
    """

    def __init__(self, address: DatabaseAddress, *, experiment: str, artifacts: str | None, place: str) -> None:
        self.experiment, self.place = experiment, place
        self._address, self._artifacts = address, artifacts
        self._table: RunTable | None = None
        self._store: BulkSqlAlchemyStore | None = None
        self._artifact_template = ""
        self.lease: HeldLease | None = None
        """Of the driver; None while only reading, or writing without running trials."""
        self._earlier_lock = -1
        """Descriptor of `take_file_lock`."""
        self._owner = uuid.uuid4().hex
        """Of the lease, the same in each attempt to take it."""

    def existing(self) -> RunTable | None:
        """The experiment's runs, for reading; None if there is no database or experiment yet."""
        if self._table is None:
            bulk = connect(self._address, write=False, place=self.place)
            if bulk is None:
                return None
            found = find_experiment(bulk, self.experiment)
            if found is None or found.deleted:
                bulk.close()
                return None
            self._table = RunTable(bulk, found.id)
        return self._table

    def create(self) -> RunTable:
        """The experiment's runs, for writing; database, schema and experiment are created if missing."""
        if self._store is not None and self._table is not None:
            return self._table
        self.close()
        if self._address.file is not None:
            _check_file(self._address.file, self.place)
        if self._address.file is not None and (why := other_names(self._address.file)):
            raise UserError(
                f"the SQLite file cannot be written safely: {why}, and SQLite keeps its newest transactions in a file "
                "beside the name that it was opened by",
                place=self.place,
                value=str(self._address.file),
                next_step="copy the file and name the copy; in a container, mount the folder instead of the file",
            )
        self._store = mlflow_store(self._address, self.place)
        bulk = connect(self._address, write=True, place=self.place)
        if bulk is None:
            raise RuntimeError(f"MLflow created no database at {self._address.file}")
        try:
            found = find_experiment(bulk, self.experiment)
            if found is None:
                create_experiment(self._store, self.experiment, self._artifacts)
                found = find_experiment(bulk, self.experiment)
            if found is None:
                raise RuntimeError(f"MLflow created no experiment {self.experiment!r}")
            if found.deleted:
                raise deleted_experiment(self.experiment, found.id)
            self._table = RunTable(bulk, found.id)
        except BaseException:
            bulk.close()
            self.close()
            raise
        from mlflow.utils.uri import append_to_uri_path

        self._artifact_template = append_to_uri_path(found.artifact_location, "{run}", "artifacts")
        return self._table

    def take(self, say: Callable[[str], None]) -> None:
        """Take the lease of the experiment until `close`; the experiment is created if missing.

        From then on, every transaction of `create().bulk` checks the lease, and raises `LeaseLost` if it is lost.

        Args:
            say: Called with a line to show before a wait.

        Raises:
            UserError: Another driver holds it.
        """
        table = self.create()
        if self.lease is not None:
            return
        if self._address.file is not None and (kind := network_file_system(self._address.file)):
            say(
                f"the record is on a network file system ({kind}): SQLite is slower there, and not safe if the file "
                "system's locks are not; a file on a local disk, PostgreSQL or an mlflow server is better"
            )
        place, lasts_s = shown(self._address.uri), lease_s()
        leases = LeaseTable(table.bulk, table.experiment_id, place, owner=self._owner)
        tag = SqlTag(lambda: table.bulk, table.experiment_id)
        before, me = leases.read(), Process.this()

        def take_from(store: LeaseStore) -> int:
            return take(store, me, experiment=self.experiment, place=place, lasts_s=lasts_s, say=say)

        self.lease = HeldLease(
            experiment_id=table.experiment_id,
            experiment=self.experiment,
            fence=take_from(leases),
            owner=leases.owner,
            lasts_s=lasts_s,
            tag=tag,
            connect=lambda: connect(self._address, write=True, place=self.place),
        )
        try:
            take_from(tag)
            # A driver that did not release its lease may still hold the lock of earlier versions, if it was stopped.
            if not self._lock_as_before(table) and (before is None or before.holder is None):
                raise taken(place, self.experiment)
        except BaseException:
            self.close()
            raise
        self.lease.bind(table.bulk)

    def check_tables(self) -> None:
        """Check that MLflow reads what this writes; call `create` before.

        Raises:
            UserError: It does not: MLflow's version has other tables.
        """
        from orchestrator.tracking.canary import check_tables

        if self._store is not None and self._table is not None:
            check_tables(self._store, self._table.experiment_id, place=self.place)

    def _lock_as_before(self, table: RunTable) -> bool:
        if self._address.file is None:
            return take_session_lock(table.bulk, table.experiment_id)
        descriptor = take_file_lock(self._address.file, table.experiment_id)
        self._earlier_lock = -1 if descriptor is None else descriptor
        return descriptor is not None

    def check_lease(self) -> None:
        """Check in a transaction of its own that the lease is still held, if it was taken.

        Raises:
            LeaseLost: Another driver has taken it.
        """
        if self.lease is not None:
            with self.create().bulk.transaction():
                pass

    def reconnect(self) -> None:
        """Replace the connection for writing, which may be broken. The lease stays, and is checked.

        Raises:
            Unreachable: The database does not answer.
            Outage: Another driver has taken the lease, or the database has lost what it had confirmed.
        """
        table = self._table
        if table is None:
            return
        with contextlib.suppress(Exception):  # a lost connection, of any driver
            table.bulk.close()
        bulk = connect(self._address, write=self._store is not None, place=self.place)
        if bulk is None:
            raise unreachable(self._address, FileNotFoundError("the file does not exist"), self.place)
        table.bulk = bulk
        if self.lease is None:
            return
        if self.lease.last_committed(bulk) < self.lease.confirmed:
            raise Outage(
                f"the database {shown(self._address.uri)} came back without the newest results, which it had confirmed",
                next_step="what it has is consistent: run the same command again, and these trials train again",
            )
        if self._address.file is None and not take_session_lock(bulk, table.experiment_id):
            raise Unreachable("the lost connection to the database has not ended yet")
        self.lease.bind(bulk)

    def cut_if_hung(self) -> None:
        """Cut the connection to a PostgreSQL server that does not answer a new one either; on another thread.

        A server that is stopped, or a proxy that swallows what it gets, leaves a connection open, and no time limit of
        TCP or of the server ends a request. Where a new connection is answered, the statement may merely take long:
        then it is cut after `STATEMENT_S`, because the server's process for this connection may hang alone.
        """
        table = self._table
        if table is None or self._address.file is not None:
            return
        try:
            probe = connect(self._address, write=False, place=self.place)
        except Unreachable:
            table.bulk.cut()
        else:
            if probe is not None:
                probe.close()
            if table.bulk.waits_s() >= STATEMENT_S:
                table.bulk.cut()

    def artifacts_of(self, run_id: str) -> str:
        """The artifact location of a run, as MLflow sets it; call `create` before."""
        return self._artifact_template.replace("{run}", run_id)

    def close(self) -> None:
        """Release the lease and close the connections."""
        if self.lease is not None and self._table is not None:
            self.lease.release(self._table.bulk)
        self.lease = None
        if self._table is not None:
            self._table.bulk.close()
            self._table = None
        if self._store is not None:
            self._store.engine.dispose()
            self._store = None
        if self._earlier_lock >= 0:
            os.close(self._earlier_lock)
        self._earlier_lock = -1


def _check_file(file: Path, place: str) -> None:
    """A pipe or a device would make SQLite wait, or fail as a disk that is away."""
    try:
        mode = file.stat().st_mode
    except OSError:  # it does not exist, or SQLite says why it cannot be opened
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        rule = f"the tracking database must be a file; this is {kind}"
        raise WrongAddress(rule, place=place, value=str(file), choices=CHOICES, next_step=_NAME_A_FILE)


def connect(address: DatabaseAddress, *, write: bool, place: str) -> Bulk | None:
    """A connection to the database, or None if its file does not exist.

    Raises:
        Unreachable: The database does not answer.
        WrongAddress: The address is wrong, or the file is not a database.
    """
    if address.file is not None:
        _check_file(address.file, place)
        if not address.file.exists():
            return None
        try:
            return SqliteBulk.connect(str(address.file), write=write)
        except sqlite3.Error as error:
            raise unreachable(address, error, place) from None
    from sqlalchemy import create_engine

    engine = create_engine(address.uri)
    arguments, options = engine.dialect.create_connect_args(engine.url)
    options = {**POSTGRES_OPTIONS, **options}
    errors: Any = engine.dialect.loaded_dbapi.Error
    try:
        return PostgresBulk(engine.dialect.connect(*arguments, **options), write=write)
    except errors as error:
        raise unreachable(address, error, place) from None


def find_experiment(bulk: Bulk, name: str) -> Experiment | None:
    """The experiment of this name; None if it or MLflow's schema does not exist."""
    in_sqlite = "SELECT 1 FROM sqlite_master WHERE name = 'experiments'"
    in_postgres = "SELECT 1 WHERE to_regclass('experiments') IS NOT NULL"
    if not bulk.query(in_sqlite if isinstance(bulk, SqliteBulk) else in_postgres):
        return None
    select = "SELECT experiment_id, artifact_location, lifecycle_stage FROM experiments WHERE name = ?"
    for number, location, stage in bulk.query(select, name):
        return Experiment(int(number), location or "", stage != "active")
    return None


_TABLES_SHOWN = 3
"""Tables of a database that is not MLflow's that a message names."""


def absence(address: DatabaseAddress, place: str) -> str:
    """Why a database is no record: it does not exist, is empty or is another program's; "" where it is MLflow's.

    Raises:
        Unreachable: The database does not answer.
        WrongAddress: The address is wrong, or the file is not a database.
    """
    bulk = connect(address, write=False, place=place)
    if bulk is None:
        return f"the file {address.file} does not exist"
    in_sqlite = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
    in_postgres = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() ORDER BY 1"
    try:
        tables = [str(name) for (name,) in bulk.query(in_sqlite if isinstance(bulk, SqliteBulk) else in_postgres)]
    finally:
        bulk.close()
    if "experiments" in tables:
        return ""
    if not tables:
        return "the database is empty"
    more = f" and {len(tables) - _TABLES_SHOWN} more" if len(tables) > _TABLES_SHOWN else ""
    return f"the database is not MLflow's: its tables are {', '.join(tables[:_TABLES_SHOWN])}{more}"


def mlflow_store(address: DatabaseAddress, place: str) -> BulkSqlAlchemyStore:
    """MLflow's own store over this database; its constructor creates the schema if it is missing.

    Raises:
        Unreachable: The database does not answer.
        UserError: The address is wrong, or the schema is of another version.
    """
    quiet_mlflow("mlflow.store.tracking.sqlalchemy_store")
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from orchestrator.tracking.store import BulkSqlAlchemyStore

    if address.file is None:
        # MLflow retries an unreachable database for minutes: connect once before.
        bulk = connect(address, write=True, place=place)
        if bulk is not None:
            bulk.close()
    try:
        return BulkSqlAlchemyStore(address.uri)
    except (SQLAlchemyError, OSError) as error:
        raise unreachable(address, error, place) from error
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise
        raise UserError(
            "the tracking database has the schema of another MLflow version than the one installed",
            place=place,
            value=shown(address.uri),
            next_step=f"back it up, then: mlflow db upgrade {shown(address.uri)}",
        ) from error


def create_experiment(store: BulkSqlAlchemyStore, name: str, artifacts: str | None) -> None:
    """Create the experiment unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        store.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            return
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise refused_experiment(error.message) from error
        raise


def refused_experiment(why: str) -> UserError:
    """MLflow does not accept the experiment's name or artifact location."""
    return UserError(f"MLflow refused to create the experiment: {why}", place="tracking")


def deleted_experiment(name: str, number: int) -> UserError:
    """The experiment was deleted in MLflow, which does not free its name."""
    return UserError(
        f"the experiment {name!r} is deleted in MLflow",
        place="tracking.experiment",
        value=name,
        next_step=f"restore it (mlflow experiments restore --experiment-id {number}), or choose another name",
    )


def unreachable(address: DatabaseAddress, error: Exception, place: str) -> Unreachable | WrongAddress:
    """The database does not answer, or the file is not a database."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    why = lines[0] if lines else type(error).__name__
    away = kind_of(error) is Kind.AWAY and not is_wrong_address(error)
    if address.file is not None:
        rule = f"the tracking database cannot be opened: {why}"
        if away and "unable to open" not in why:
            return Unreachable(rule, next_step="end the process that uses it, or free its disk")
        step = SALVAGE if is_damaged(error) and "not a database" not in why else _NAME_A_FILE
        return WrongAddress(rule, place=place, value=str(address.file), choices=CHOICES, next_step=step)
    rule = f"the tracking database cannot be reached: {why}"
    if away:
        return Unreachable(rule, next_step="check that its server runs, and its host and port")
    step = "check host, port, user, password and database name"
    return WrongAddress(rule, place=place, value=shown(address.uri), next_step=step)

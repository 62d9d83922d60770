"""Tracking addresses: which database or server, with which driver; how they are printed; a quiet import of MLflow."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import UserError, did_you_mean
from orchestrator.secrets import shown as shown

PREFIX = "phasefront-"
"""Before `sqlite:` or `postgresql:` it makes MLflow's own client and server use the bulk store."""

MEMORY = "memory:"
CHOICES = (
    "sqlite:///mlflow.db",
    "postgresql://user:password@host/database",
    "http://host:5000 (an MLflow server)",
    "phasefront-sqlite:///... and phasefront-postgresql://... (the same databases)",
    "memory: (nothing is kept when the process ends)",
)


@dataclass(frozen=True, kw_only=True)
class DatabaseAddress:
    """A database with MLflow's tables; it may not exist yet."""

    uri: str
    """For SQLAlchemy, with the installed driver and an absolute path."""
    file: Path | None
    """The database file; None for PostgreSQL."""


def database_address(uri: str, *, place: str = "tracking.uri") -> DatabaseAddress:
    """Read a `sqlite:` or `postgresql:` address, with or without the `phasefront-` prefix.

    A relative SQLite path is relative to the current folder. A `postgresql:` address without a driver gets the
    installed one, because SQLAlchemy 2.1 changed its default from psycopg2 to psycopg 3.

    Raises:
        UserError: The address is of another form, or no driver is installed.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    plain = uri.removeprefix(PREFIX)
    try:
        url = make_url(plain)
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError):
        raise unknown_address(uri, place) from None
    except ValueError:
        raise _unreadable(uri, place) from None
    if any(character in str(url.host or "") for character in "@[") or "\0" in f"{url.password}":
        raise _unreadable(uri, place)
    backend, _, driver = url.drivername.partition("+")
    if backend == "sqlite" and driver in ("", "pysqlite"):
        if not url.database or url.database == ":memory:":
            raise UserError(
                "a SQLite tracking address must name a file: a database in memory is lost when the run ends",
                place=place,
                value=shown(uri),
                choices=CHOICES,
                next_step="write sqlite:///mlflow.db, or sqlite:////data/mlflow.db for the file /data/mlflow.db",
            )
        file = Path(url.database).expanduser().absolute()
        if "?" in plain or "?" in file.as_posix() or url.database.startswith("file:"):
            raise UserError(
                "a SQLite tracking address is a path alone: without options and file:, and without ? in any folder",
                place=place,
                value=shown(uri),
                choices=CHOICES,
                next_step="write sqlite:///mlflow.db or sqlite:////data/mlflow.db, in a folder without ? in its name",
            )
        return DatabaseAddress(uri=f"sqlite:///{file.as_posix()}", file=file)
    if backend == "postgresql":
        url = url.set(drivername=f"postgresql+{driver or _postgres_driver(uri, place)}")
        return DatabaseAddress(uri=url.render_as_string(hide_password=False), file=None)
    raise unknown_address(uri, place)


def check_address(uri: str, *, place: str = "tracking.uri") -> None:
    """Check the form of an address; nothing is opened.

    Raises:
        UserError: It is none of `CHOICES`, or cannot be read.
    """
    if uri == MEMORY:
        return
    if uri.startswith(("http://", "https://")):
        try:
            parts = urlsplit(uri)
            readable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            readable = False
        if not readable:
            raise _unreadable(uri, place)
        return
    database_address(uri, place=place)


def _unreadable(uri: str, place: str) -> UserError:
    return UserError(
        "this address cannot be read",
        place=place,
        value=shown(uri),
        choices=CHOICES,
        next_step="write @ as %40, : as %3A, / as %2F and % as %25 in a user's name or a password; a port is a number",
    )


def _postgres_driver(uri: str, place: str) -> str:
    for driver in ("psycopg2", "psycopg"):
        if importlib.util.find_spec(driver) is not None:
            return driver
    raise UserError(
        "a PostgreSQL tracking address needs a driver, and neither psycopg2 nor psycopg is installed",
        place=place,
        value=shown(uri),
        next_step="pip install 'phasefront[postgres]'",
    )


def record_digest(uri: str, experiment: str) -> str:
    """Eight hexadecimal digits that stand for a record: its address, without user, password and driver, and experiment.

    Links to a SQLite file are followed.
    """
    plain = uri.removeprefix(PREFIX)
    scheme = plain.partition(":")[0].partition("+")[0]
    if scheme == "sqlite":
        file = database_address(uri).file
        where = f"sqlite:{file.resolve() if file else plain}"
    elif scheme == "postgresql":
        from sqlalchemy.engine import make_url

        url = make_url(plain)
        where = f"postgresql:{url.host}:{url.port or 5432}/{url.database}?{url.query.get('options', '')}"
    else:
        parts = urlsplit(plain)
        where = f"{parts.scheme}:{parts.hostname}:{parts.port}{parts.path.rstrip('/')}"
    return hashlib.blake2b(f"{where}\n{experiment}".encode(), digest_size=4).hexdigest()


def unknown_address(uri: str, place: str) -> UserError:
    """No tracker supports the address."""
    step = "MLflow's file store (a folder) is not supported: use sqlite:///mlflow.db"
    scheme, separator, _ = uri.partition("://")
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        step = f"did you mean http://{uri}?"
    elif separator and scheme != "file":
        step = did_you_mean(scheme, ("http", "https", "sqlite", "postgresql"), "name one of these")
    return UserError(
        "is not the address of a tracking database or an MLflow server",
        place=place,
        value=shown(uri),
        choices=CHOICES,
        next_step=step,
    )


def quiet_mlflow(*modules: str) -> None:
    """Import mlflow (3 s) and these modules of it without warnings, telemetry and log lines of schema migrations.

    Call it before any other import of mlflow: MLflow and SQLAlchemy 2.1 emit deprecation warnings at import that users
    cannot fix. A telemetry setting in the user's environment takes precedence.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("mlflow", *modules):
            importlib.import_module(module)
    for name in ("alembic", "mlflow.store.db.utils"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))

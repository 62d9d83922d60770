"""What a tracking address says: which database or server, with which driver."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError

PREFIX = "phasefront-"
"""In front of `sqlite:` or `postgresql:`, so that MLflow's own client and server use the bulk store."""

CHOICES = (
    "sqlite:///mlflow.db",
    "postgresql://user:password@host/database",
    "http://host:5000 (an MLflow server)",
    "phasefront-sqlite:///... and phasefront-postgresql://... (the same databases)",
    "memory: (kept nowhere)",
)


@dataclass(frozen=True, kw_only=True)
class DatabaseAddress:
    """A database that holds, or is to hold, MLflow's tables."""

    uri: str
    """For SQLAlchemy: with the driver that is installed, and an absolute path."""
    file: Path | None
    """The database file, of SQLite."""


def database_address(uri: str, *, place: str = "tracking.uri") -> DatabaseAddress:
    """Read a `sqlite:` or `postgresql:` address, with or without the `phasefront-` prefix.

    A relative SQLite path is relative to the current folder. SQLAlchemy 2.1 takes `postgresql:` for
    psycopg 3 and earlier ones for psycopg2: whichever is installed is named, unless the address names one.

    Raises:
        UserError: not such an address, or no driver is installed.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    plain = uri.removeprefix(PREFIX)
    try:
        url = make_url(plain)
    except ArgumentError:
        raise unknown_address(uri, place) from None
    backend, _, driver = url.drivername.partition("+")
    if backend == "sqlite" and driver in ("", "pysqlite"):
        if not url.database or url.database == ":memory:":
            raise UserError(
                "a SQLite tracking address must name a file: a database in memory is gone when the run ends",
                place=place,
                value=uri,
                choices=CHOICES,
                next_step="write sqlite:///mlflow.db, or sqlite:////data/mlflow.db for the file /data/mlflow.db",
            )
        file = Path(url.database).expanduser().absolute()
        return DatabaseAddress(uri=f"sqlite:///{file.as_posix()}", file=file)
    if backend == "postgresql":
        url = url.set(drivername=f"postgresql+{driver or _postgres_driver(uri, place)}")
        return DatabaseAddress(uri=url.render_as_string(hide_password=False), file=None)
    raise unknown_address(uri, place)


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


def unknown_address(uri: str, place: str) -> UserError:
    """The address is none that a tracker knows."""
    return UserError(
        "is no address of a tracking database or an MLflow server",
        place=place,
        value=shown(uri),
        choices=CHOICES,
        next_step="a folder (MLflow's old file store) holds no sweep: use sqlite:///mlflow.db",
    )


def shown(uri: str) -> str:
    """An address as messages, files and the record may show it: without its password."""
    return re.sub(r"([?&]password=)[^&]*", r"\1***", re.sub(r"(://[^/@:]*):.*@", r"\1:***@", uri))

"""From a tracking address to a tracker."""

from __future__ import annotations

from orchestrator.outages import Patience
from orchestrator.tracking.address import MEMORY as MEMORY
from orchestrator.tracking.address import PREFIX, database_address, unknown_address
from orchestrator.tracking.base import Tracker
from orchestrator.tracking.facts import RecordReader


def open_tracker(uri: str, *, experiment: str, artifacts: str | None = None, place: str = "tracking.uri") -> Tracker:
    """The tracker for an address. It connects on first use; reading never creates anything.

    Args:
        uri: `sqlite:///file` or `postgresql://...`, with or without the prefix `phasefront-`; the `http://` or `https://`
            address of an MLflow server; or `memory:`.
        experiment: Name of the MLflow experiment.
        artifacts: Artifact location of the experiment, if it has to be created; MLflow's default if None.
        place: Where the user wrote the address, for messages.

    Raises:
        UserError: The address is none of these. Later, from any method of the tracker: it is wrong.
        Unreachable: From any method of the tracker.
    """
    scheme = uri.partition(":")[0].removeprefix(PREFIX)
    if uri == MEMORY:
        from orchestrator.tracking.memory import MemoryTracker

        return MemoryTracker()
    if scheme in ("http", "https") and not uri.startswith(PREFIX):
        from orchestrator.tracking.http import HttpTracker

        return HttpTracker(uri, experiment=experiment, artifacts=artifacts, place=place)
    if _is_database(uri):
        from orchestrator.tracking.database import DatabaseTracker

        return DatabaseTracker(uri, experiment=experiment, artifacts=artifacts, place=place)
    raise unknown_address(uri, place)


def absence(uri: str, *, place: str = "tracking.uri") -> str:
    """Why there is no record at an address that answers; "" where there is one, and of a server."""
    if not _is_database(uri):
        return ""
    from orchestrator.tracking.connection import absence as of_database

    return of_database(database_address(uri, place=place), place)


def _is_database(uri: str) -> bool:
    return uri.partition(":")[0].removeprefix(PREFIX).partition("+")[0] in ("sqlite", "postgresql")


def open_reader(uri: str, *, experiment: str, patience: Patience, place: str = "tracking.uri") -> RecordReader:
    """The reader of all runs at an address, see `open_tracker`; there is none for `memory:`.

    Args:
        uri: The address.
        experiment: Name of the experiment.
        patience: With a record that does not answer.
        place: Where the user wrote the address, for messages.

    Raises:
        UserError: The address is of no database or server.
    """
    scheme = uri.partition(":")[0].removeprefix(PREFIX)
    if scheme in ("http", "https") and not uri.startswith(PREFIX):
        from orchestrator.tracking.facts_http import HttpReader

        return HttpReader(uri, experiment=experiment, place=place, patience=patience)
    if _is_database(uri):
        from orchestrator.tracking.facts_sql import DatabaseReader

        return DatabaseReader(uri, experiment=experiment, place=place, patience=patience)
    raise unknown_address(uri, place)

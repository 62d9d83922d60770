"""Summaries of runs from MLflow's tables: six statements for a page of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from orchestrator.outages import Patience
from orchestrator.tracking import layout, lease_table
from orchestrator.tracking.address import database_address
from orchestrator.tracking.bulk_sql import Row
from orchestrator.tracking.connection import Database
from orchestrator.tracking.facts import RUNS_A_PAGE, CurveFacts, Opened, RecordReader, RunFacts
from orchestrator.tracking.lease import Lease
from orchestrator.tracking.lease_tag import SqlTag
from orchestrator.tracking.run_table import RunTable

T = TypeVar("T")

_RUNS = (
    "SELECT run_uuid, name, status, start_time, end_time, artifact_uri FROM runs WHERE experiment_id = ? "
    "AND lifecycle_stage = 'active' AND run_uuid > ? ORDER BY run_uuid LIMIT ?"
)
_EARLY, _ON_AXIS = 1, 2
"""Rows of observations, and those of values on the axes; 0 for points of a curve."""
_METRICS = (
    f"SELECT m.run_uuid, m.key, CASE WHEN m.timestamp = r.start_time - {layout.AXIS_BEFORE_MS} THEN {_ON_AXIS} "
    f"WHEN m.timestamp < r.start_time THEN {_EARLY} ELSE 0 END AS early, COUNT(*), "
    "COUNT(DISTINCT m.step), MIN(m.step), MAX(m.step), "
    "SUM(CASE WHEN m.timestamp <> r.start_time + m.step THEN 1 ELSE 0 END), MAX(m.value), "
    "MAX(CASE WHEN m.is_nan THEN 1 ELSE 0 END) "
    "FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid WHERE m.run_uuid $in GROUP BY 1, 2, 3"
)
_STEPS = (
    "SELECT m.run_uuid, COUNT(DISTINCT m.step) FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
    "WHERE m.run_uuid $in AND m.timestamp >= r.start_time GROUP BY 1"
)
_LATEST = "SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE run_uuid $in"
_BEHIND = (
    "SELECT DISTINCT m.run_uuid, m.key FROM metrics m "
    "LEFT JOIN latest_metrics l ON l.run_uuid = m.run_uuid AND l.key = m.key "
    "WHERE m.run_uuid $in AND (l.key IS NULL OR (m.step, m.timestamp, m.value) > (l.step, l.timestamp, l.value))"
)
_INVENTED = (
    "SELECT l.run_uuid, l.key FROM latest_metrics l WHERE l.run_uuid $in AND NOT EXISTS (SELECT 1 FROM metrics m "
    "WHERE m.run_uuid = l.run_uuid AND m.key = l.key AND m.step = l.step AND m.timestamp = l.timestamp "
    "AND m.value = l.value AND m.is_nan = l.is_nan)"
)


class DatabaseReader(RecordReader):
    """The runs of an experiment in a SQLite or PostgreSQL database; arguments as for `open_reader`."""

    def __init__(self, uri: str, *, experiment: str, place: str, patience: Patience) -> None:
        super().__init__(patience)
        address = database_address(uri, place=place)
        self._database = Database(address, experiment=experiment, artifacts=None, place=place)

    def runs(self) -> Iterator[RunFacts]:
        last = ""
        while page := self._ask(partial(_page, after=last)):
            yield from page
            last = page[-1].run_id

    def _ask(self, read: Callable[[RunTable], T]) -> T | None:
        """What `read` returns; None if there is no record yet."""

        def asked() -> T | None:
            table = self._database.existing()
            return None if table is None else read(table)

        return self._patience.call(asked, mend=self._database.reconnect)

    def lease(self) -> Lease | None:
        """That of a driver over HTTP, where such a one was the last to take it."""

        def read(table: RunTable) -> Lease | None:
            over_http = SqlTag(lambda: table.bulk, table.experiment_id).read()
            return over_http or lease_table.find(table.bulk, table.experiment_id)

        return self._ask(read)

    def opened(self, run_id: str) -> Opened:
        return Opened.of(self._ask(lambda table: table.tags([run_id], [layout.DRIVER, layout.AGAIN])[run_id]) or {})

    def close(self) -> None:
        self._database.close()


def _page(table: RunTable, *, after: str) -> list[RunFacts]:
    """The next runs, in the order of their ids."""
    page = table.bulk.query(_RUNS, table.experiment_id, after, RUNS_A_PAGE)
    ids = [row[0] for row in page]

    def grouped(sql: str) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {run: [] for run in ids}
        for row in table.bulk.query(sql, ids):
            rows[row[0]].append(row)
        return rows

    tags = grouped("SELECT run_uuid, key, value FROM tags WHERE run_uuid $in")
    params = grouped("SELECT run_uuid, key, value FROM params WHERE run_uuid $in")
    metrics, latest = grouped(_METRICS), grouped(_LATEST)
    behind, invented = grouped(_BEHIND), grouped(_INVENTED)
    steps: dict[str, int] = dict(table.bulk.query(_STEPS, ids))
    return [
        RunFacts(
            run_id=run,
            name=name or "",
            status=status,
            start_time=int(start or 0),
            end_time=end,
            artifacts=artifacts or "",
            tags={key: value or "" for _, key, value in tags[run]},
            params={key: value for _, key, value in params[run]},
            curves={row[1]: _curve(row) for row in metrics[run] if not row[2]},
            steps=steps.get(run, 0),
            observed={row[1]: (row[3], _value(row[8], row[9])) for row in metrics[run] if row[2] == _EARLY},
            axes={row[1]: _value(row[8], row[9]) for row in metrics[run] if row[2] == _ON_AXIS},
            latest={key: _value(value, is_nan) for _, key, value, is_nan in latest[run]},
            outdated=tuple(sorted({row[1] for row in (*behind[run], *invented[run])})),
        )
        for run, name, status, start, end, artifacts in page
    ]


def _curve(row: Row) -> CurveFacts:
    return CurveFacts(rows=row[3], steps=row[4], first=row[5], last=row[6], misplaced=int(row[7]))


def _value(value: Any, is_nan: Any) -> float:
    return math.nan if is_nan else float(value)

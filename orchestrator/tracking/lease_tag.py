"""The lease of an experiment as an MLflow tag of the experiment, for drivers that reach the record over HTTP.

MLflow's API cannot change a tag only if it is still as it was read, and a write cannot depend on a tag. So two limits
remain, which the row in the database (`lease_table.py`) does not have:

- Two drivers that start within PAUSE_S of each other may both take the lease; the one whose tag was overwritten stops
  when it next renews it.
- A driver checks its lease before it writes only if it has not renewed it for half of the time that it lasts. A request
  that is under way while another driver takes over is not stopped.

A driver that reaches the database itself writes the tag too and respects that of a driver over HTTP, so that the two
refuse each other.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from orchestrator.tracking import layout
from orchestrator.tracking.bulk_sql import Bulk
from orchestrator.tracking.heartbeat import Heartbeat
from orchestrator.tracking.http_api import MlflowApi
from orchestrator.tracking.lease import RENEWALS, Lease, LeaseLost, LeaseStore, Process, elapsed_s

KEY = "phasefront.lease"
PAUSE_S = 0.3
"""Between writing the tag and reading it again, to see which of two drivers at once has written last."""
HTTP, SQL = "http", "sql"


@dataclass(frozen=True, kw_only=True)
class Tag:
    """The tag's content, stored as JSON."""

    by: str
    """HTTP or SQL: how its driver reaches the record."""
    owner: str
    """Chosen at each takeover; empty if the lease was released."""
    fence: int
    beat: int
    host: str
    machine: str
    pid: int
    started: int
    taken_ms: int
    renewed_ms: int
    lasts_ms: int

    @classmethod
    def new(cls, me: Process, *, by: str, fence: int, owner: str, lasts_s: float) -> Tag:
        """Of a driver that takes the lease now."""
        now, lasts_ms = layout.now_ms(), max(1, round(lasts_s * 1000))
        return cls(
            by=by, owner=owner, fence=fence, beat=0, taken_ms=now, renewed_ms=now, lasts_ms=lasts_ms, **asdict(me)
        )

    @classmethod
    def parse(cls, text: str | None) -> Tag | None:
        """From JSON; None if there is no tag, or it is not ours."""
        try:
            return cls(**json.loads(text or "null"))
        except (TypeError, ValueError):
            return None

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def renewed(self) -> Tag:
        """The tag after one more renewal."""
        return replace(self, beat=self.beat + 1, renewed_ms=layout.now_ms())

    def lease(self) -> Lease:
        """The lease that it stands for."""
        holder = Process(host=self.host, machine=self.machine, pid=self.pid, started=self.started)
        return Lease(
            fence=self.fence,
            sequence=0,
            beat=self.beat,
            holder=holder if self.owner else None,
            taken_ms=self.taken_ms,
            silent_ms=layout.now_ms() - self.renewed_ms,
            lasts_ms=self.lasts_ms,
        )


class HttpTag(LeaseStore):
    """The lease of one experiment, over HTTP."""

    SHARED_CLOCK = False

    def __init__(self, api: MlflowApi, experiment_id: str) -> None:
        self._api, self._experiment_id = api, experiment_id
        self._owner = uuid.uuid4().hex

    def _tag(self) -> Tag | None:
        return Tag.parse(self._api.experiment_tags(self._experiment_id).get(KEY))

    def _set(self, tag: Tag) -> None:
        self._api.tag_experiment(self._experiment_id, KEY, tag.text)

    def read(self) -> Lease | None:
        """A lease that an earlier attempt has claimed, whose answer was lost, counts as released."""
        tag = self._tag()
        if tag is not None and tag.owner == self._owner:
            tag = replace(tag, owner="")
        return tag.lease() if tag else None

    def claim(self, before: Lease | None, me: Process, lasts_s: float) -> int | None:
        fence = before.fence + 1 if before else 1
        self._set(Tag.new(me, by=HTTP, fence=fence, owner=self._owner, lasts_s=lasts_s))
        time.sleep(PAUSE_S)
        return fence if self.holds() else None

    def holds(self) -> bool:
        """Whether the lease is ours."""
        tag = self._tag()
        return tag is not None and tag.owner == self._owner

    def renew(self) -> bool:
        """Renew the lease if it is ours, and return whether it is."""
        tag = self._tag()
        if tag is None or tag.owner != self._owner:
            return False
        self._set(tag.renewed())
        return True

    def release(self) -> None:
        """Let the next driver take the lease at once."""
        tag = self._tag()
        if tag is not None and tag.owner == self._owner:
            self._set(replace(tag, owner=""))


class HeldTag:
    """The lease that this process holds over HTTP, renewed by a thread."""

    def __init__(self, tag: HttpTag, *, experiment: str, lasts_s: float) -> None:
        self._tag, self._experiment, self._lasts_s = tag, experiment, lasts_s
        self._lost = False
        self._known_at = elapsed_s()
        self._lock = threading.Lock()
        self._heartbeat = Heartbeat(self._beat, lasts_s / RENEWALS)

    def _beat(self) -> None:
        with self._lock:
            self._note(self._tag.renew())

    def _note(self, is_ours: bool) -> None:
        self._lost = self._lost or not is_ours
        self._known_at = elapsed_s()

    def check(self) -> None:
        """Called before each write: one request if the thread could not renew the lease lately, otherwise none.

        Raises:
            LeaseLost: Another driver has taken the lease.
        """
        if not self._lost and elapsed_s() - self._known_at > self._lasts_s / 2:
            with self._lock:
                self._note(self._tag.holds())
        if self._lost:
            raise LeaseLost(self._experiment, self._tag.read())

    def close(self) -> None:
        """Release the lease. Where the server does not answer, it expires."""
        self._heartbeat.close()
        with contextlib.suppress(Exception):  # an outage, as the API has it
            self._tag.release()


class SqlTag(LeaseStore):
    """The tag, as a driver writes and reads it that reaches the database itself; only drivers over HTTP read its own.

    Args:
        connection: Returns the connection to use.
        experiment_id: The experiment.
    """

    SHARED_CLOCK = False

    def __init__(self, connection: Callable[[], Bulk], experiment_id: int) -> None:
        self._connection, self._experiment_id = connection, experiment_id
        self._mine: Tag | None = None

    def _tag(self, bulk: Bulk) -> Tag | None:
        select = "SELECT value FROM experiment_tags WHERE experiment_id = ? AND key = ?"
        for (text,) in bulk.query(select, self._experiment_id, KEY):
            return Tag.parse(text)
        return None

    def _set(self, bulk: Bulk, tag: Tag) -> None:
        bulk.execute(
            "INSERT INTO experiment_tags (experiment_id, key, value) VALUES (?, ?, ?) "
            "ON CONFLICT (key, experiment_id) DO UPDATE SET value = excluded.value",
            *(self._experiment_id, KEY, tag.text),
        )
        self._mine = tag

    def read(self) -> Lease | None:
        tag = self._tag(self._connection())
        return tag.lease() if tag and tag.by == HTTP else None

    def claim(self, before: Lease | None, me: Process, lasts_s: float) -> int | None:
        bulk = self._connection()
        with bulk.transaction():
            tag = self._tag(bulk)
            if tag is not None and tag.by == HTTP and (before is None or tag.lease().state != before.state):
                return None
            fence = tag.fence + 1 if tag else 1
            self._set(bulk, Tag.new(me, by=SQL, fence=fence, owner=uuid.uuid4().hex, lasts_s=lasts_s))
        return fence

    def holds(self, bulk: Bulk) -> bool:
        """Whether the tag is still ours."""
        tag = self._tag(bulk)
        return tag is not None and self._mine is not None and tag.owner == self._mine.owner

    def renew(self, bulk: Bulk) -> bool:
        """Renew the tag in the current transaction if it was claimed, and return whether it is still ours."""
        if self._mine is None:
            return True
        if not self.holds(bulk):
            return False
        self._set(bulk, self._mine.renewed())
        return True

    def release(self, bulk: Bulk) -> None:
        """Release the tag in the current transaction if it is ours."""
        if self._mine is not None and self.holds(bulk):
            self._set(bulk, replace(self._mine, owner=""))

"""One driver of an experiment at a time: who holds its lease, and when another driver may take it over.

A lease is a row of the record itself (`lease_table.py`; a tag over HTTP), so it does not depend on the path or the
address by which a driver reaches the record. Its holder renews it. Each takeover raises its fencing number, and every
transaction of a driver checks that number, so a driver that was stopped for long and wakes up writes nothing.

A lease is taken over at once if its holder has released it, or has died on this machine. Otherwise it must expire. A
database server's clock tells when. Without such a clock (a SQLite file, the HTTP API), the times in the record come
from clocks that may differ or jump, so they are not trusted: a driver that wants the lease watches it for as long as it
lasts, by its own monotonic clock, and takes it if it was not renewed (as the leader election of Kubernetes does).
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from orchestrator.errors import Outage, UserError
from orchestrator.process import Process as Process

LEASE_S = 60.0
"""How long a lease lasts that is not renewed."""
RENEWALS = 6
"""How often a lease is renewed in that time."""
VARIABLE = "PHASEFRONT_LEASE_S"
"""Environment variable that replaces LEASE_S; tests use it."""


def lease_s() -> float:
    """How long a lease of this process lasts without renewal, in seconds.

    Raises:
        UserError: The environment variable is not a positive number.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else LEASE_S
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e6:
        step = f"unset it: a lease lasts {LEASE_S:g} s then"
        raise UserError("must be a positive number of seconds", place=VARIABLE, value=text, next_step=step)
    return seconds


def elapsed_s() -> float:
    """Seconds by a clock that neither jumps nor stands still while the machine is suspended, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The lease of an experiment, as it is in the record."""

    fence: int
    """Raised at each takeover."""
    sequence: int
    """Number of the last transaction that its holder committed."""
    beat: int
    """How often its holder has renewed it without a transaction."""
    holder: Process | None
    """None if it was released."""
    taken_ms: int
    """When it was taken, ms since the epoch."""
    silent_ms: int
    """Time since its last renewal, by the record's clock."""
    lasts_ms: int
    """How long it lasts without renewal."""

    @property
    def state(self) -> tuple[int, int, int]:
        """Changes when the lease is renewed or taken."""
        return self.fence, self.sequence, self.beat

    @property
    def is_fresh(self) -> bool:
        """Whether the record's clock says that it was renewed lately."""
        return 0 <= self.silent_ms <= self.lasts_ms


def is_held(lease: Lease, me: Process) -> bool | None:
    """Whether a driver holds it now; None if it has given no sign of life lately and may be on another machine."""
    if lease.holder is None or lease.holder.is_dead(me):
        return False
    return True if lease.is_fresh else None


class LeaseStore(ABC):
    """Where the lease of one experiment is kept."""

    SHARED_CLOCK: bool
    """Whether times in the record are by one clock, that of a server."""

    @abstractmethod
    def read(self) -> Lease | None:
        """The lease; None if nobody has taken it yet."""

    @abstractmethod
    def claim(self, before: Lease | None, me: Process, lasts_s: float) -> int | None:
        """Take the lease if it is still as `before`; its fencing number, or None if it has changed."""


class Answer(Enum):
    """What a driver does that wants a lease."""

    TAKE = "take"
    REFUSED = "refused"
    WATCH = "watch"


def judge(lease: Lease | None, me: Process, *, shared_clock: bool) -> Answer:
    """Whether the lease may be taken now."""
    if lease is None or lease.holder is None or lease.holder.is_dead(me):
        return Answer.TAKE
    if shared_clock and not lease.is_fresh:
        return Answer.TAKE
    here = bool(me.machine) and lease.holder.machine == me.machine
    return Answer.REFUSED if here and lease.is_fresh else Answer.WATCH


def take(
    store: LeaseStore,
    me: Process,
    *,
    experiment: str,
    place: str,
    lasts_s: float,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = elapsed_s,
) -> int:
    """Take the lease, and wait for it to expire if its holder may have died on another machine; its fencing number.

    Args:
        store: Where it is kept.
        me: The process that will hold it.
        experiment: Name of the experiment, for messages.
        place: Address of the record without its password, for messages.
        lasts_s: How long it shall last without renewal.
        say: Called with a line to show before a wait.
        sleep: Waits for a number of seconds.
        clock: Seconds by a monotonic clock.

    Raises:
        UserError: Another driver holds it.
    """
    watched: Lease | None = None
    since = 0.0
    while True:
        lease = store.read()
        answer = judge(lease, me, shared_clock=store.SHARED_CLOCK)
        if answer is Answer.WATCH and lease is not None:
            if watched is None:
                watched, since = lease, clock()
                say(
                    f"{described(lease)} has not closed the record. Waiting up to {lease.lasts_ms / 1000:.0f} s to see "
                    "whether it is still running"
                )
            elif lease.state != watched.state:
                answer = Answer.REFUSED
            elif clock() - since > lease.lasts_ms / 1000:
                answer = Answer.TAKE
        if answer is Answer.REFUSED:
            raise taken(place, experiment, lease)
        if answer is Answer.TAKE:
            fence = store.claim(lease, me, lasts_s)
            if fence is not None:
                return fence
        else:
            sleep(min(1.0, lasts_s / RENEWALS))


def described(lease: Lease) -> str:
    """The driver that holds a lease, as the subject of a sentence."""
    if lease.holder is None:
        return "a phasefront run"
    since = datetime.fromtimestamp(lease.taken_ms / 1000, UTC)
    return (
        f"the phasefront run on {lease.holder.host} (process {lease.holder.pid}, since {since:%Y-%m-%d %H:%M:%S} UTC)"
    )


def taken(place: str, experiment: str, lease: Lease | None = None) -> UserError:
    """Another driver holds the lease of the experiment."""
    holder = lease.holder if lease else None
    stop = f", or end it (process {holder.pid} on {holder.host})" if holder else ""
    return UserError(
        f"another phasefront run is writing to this experiment ({experiment!r})"
        + (f": {described(lease)}" if lease and holder else ""),
        place=place,
        next_step=f"wait until it has ended{stop}; or choose another experiment: --set tracking.experiment=NAME",
    )


class LeaseLost(Outage):
    """Another driver has taken over the experiment: this one must not write any more."""

    def __init__(self, experiment: str, lease: Lease | None) -> None:
        if lease and lease.holder:
            by, then = f"was taken over by {described(lease)}", "let the other run finish, or end it and run this again"
        else:
            by, then = "was taken over by another phasefront run, which has ended since", "run the same command again"
        super().__init__(
            f"the experiment {experiment!r} {by}, because this run gave no sign of life for too long (it was stopped, "
            "or could not reach the record); it writes nothing more",
            next_step=f"recorded results are safe: {then}",
        )

"""The kinds of faults. Each is injected into a running sweep and is over, healed or left to the driver, on return."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Protocol

from tests.chaos.cluster import NODES, Cluster, stopped
from tests.chaos.driver import Driver
from tests.chaos.host import HERE, send
from tests.chaos.records import DiskRecord, PostgresRecord, Record, ServerRecord, SqliteRecord

CLUSTER = ("cluster",)
ANYWHERE = ("cluster", "inline")


class Scene(Protocol):
    """What a fault can act on."""

    driver: Driver
    record: Record
    cluster: Cluster | None
    long: bool

    def clock(self, offset_s: int) -> None:
        """Set the driver's clock off by some seconds."""

    def second_driver(self, how: str) -> str:
        """Start another driver on the same record by another way, and wait for its end; what is wrong, or ""."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault."""

    kind: str
    inject: Callable[[Scene, random.Random], str]
    """Returns what is wrong already, or ""."""
    where: Collection[str] = ANYWHERE
    """How the trials run: on the cluster, or in the driver's own process."""
    records: Collection[str] = ("sqlite", "disk", "postgres", "http")
    ends: int | None = None
    """The exit code that the fault gives the driver; None: the driver goes on."""
    outage: bool = False
    """Whether the driver may end with 75."""
    clock: bool = False
    """Whether the driver must have a clock that can be set."""
    costly: bool = False
    """Whether it takes the harness more than about ten seconds."""


KINDS: dict[str, Fault] = {}


def fault(kind: str, **options: object) -> Callable[[Callable[[Scene, random.Random], str | None]], None]:
    """Register a kind."""

    def register(inject: Callable[[Scene, random.Random], str | None]) -> None:
        KINDS[kind] = replace(
            Fault(kind=kind, inject=lambda scene, rng: inject(scene, rng) or ""),
            **options,  # type: ignore[arg-type]
        )

    return register


def cluster_of(scene: Scene) -> Cluster:
    assert scene.cluster is not None
    return scene.cluster


def pause(scene: Scene, rng: random.Random, low: float, high: float, *, longest: float = 0.0) -> float:
    """Seconds: mostly short; in a long soak now and then up to `longest`."""
    if scene.long and longest and rng.random() < 0.1:
        return rng.uniform(high, longest)
    return low + (high - low) * rng.random() ** 2


# --- the driver ---


def _signalled(number: signal.Signals, kind: str) -> None:
    @fault(kind, ends=128 + number)
    def inject(scene: Scene, rng: random.Random) -> str | None:
        scene.driver.signal(number)
        if not scene.driver.wait(30):
            return f"the driver still runs 30 s after {number.name}"
        return None


for _number, _kind in (
    (signal.SIGKILL, "driver killed"),
    (signal.SIGTERM, "driver SIGTERM"),
    (signal.SIGHUP, "driver SIGHUP"),
    (signal.SIGINT, "driver SIGINT"),
):
    _signalled(_number, _kind)


@fault("driver stopped")
def _(scene: Scene, rng: random.Random) -> None:
    scene.driver.stopped(pause(scene, rng, 1, 8, longest=90))


@fault("driver's clock back", clock=True, records=("sqlite", "postgres", "http"))
def _(scene: Scene, rng: random.Random) -> None:
    scene.clock(-rng.choice((30, 3600, 86400)))
    time.sleep(2)
    scene.clock(0)


# --- workers and nodes ---


@fault("worker killed", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    workers = sorted(cluster_of(scene).workers())
    send(rng.sample(workers, min(len(workers), rng.choice((1, 1, 2)))), signal.SIGKILL)


@fault("worker stopped", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    workers = sorted(cluster_of(scene).workers())
    stopped(rng.sample(workers, min(len(workers), 1)), pause(scene, rng, 1, 5, longest=40))


@fault("raylet killed", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    node = rng.choice(NODES)
    send(cluster_of(scene).raylet(node), signal.SIGKILL)
    time.sleep(1)
    cluster_of(scene).start_node(node)


@fault("raylet stopped", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    stopped(cluster_of(scene).raylet(rng.choice(NODES)), pause(scene, rng, 1, 4, longest=12))


@fault("node killed", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    node = rng.choice(NODES)
    cluster_of(scene).kill(node)
    time.sleep(1)
    cluster_of(scene).start_node(node)


@fault("node cut off", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    with cluster_of(scene).network.cut_off(rng.choice(NODES)):
        time.sleep(pause(scene, rng, 1, 4, longest=30))


@fault("node cut off until it counts as dead", where=CLUSTER, costly=True)
def _(scene: Scene, rng: random.Random) -> None:
    node = rng.choice(NODES)
    with cluster_of(scene).network.cut_off(node):
        time.sleep(rng.uniform(9, 12))


@fault("driver's host cut off", where=CLUSTER, records=("postgres", "http"), outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    with cluster_of(scene).network.cut_off("head"):
        time.sleep(pause(scene, rng, 1, 4))


@fault("node joins late", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    cluster_of(scene).start_node("late")


@fault("bad node joins: the job cannot be imported", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    cluster_of(scene).start_node("late", hidden=HERE / "node" / "library", cpus=1)


@fault("bad node joins: a data file is missing", where=CLUSTER)
def _(scene: Scene, rng: random.Random) -> None:
    cluster_of(scene).start_node("late", hidden=HERE / "node" / "data", cpus=1)


@fault("GCS killed, cluster started again", where=CLUSTER, outage=True, costly=True)
def _(scene: Scene, rng: random.Random) -> str | None:
    send(cluster_of(scene).gcs(), signal.SIGKILL)
    if not scene.driver.wait(120):
        return "the driver still runs 120 s after the death of the cluster's head"
    cluster_of(scene).restart()
    return None


# --- PostgreSQL ---

POSTGRES = ("postgres",)


def postgres_of(scene: Scene) -> PostgresRecord:
    assert isinstance(scene.record, PostgresRecord)
    return scene.record


@fault("PostgreSQL restarted, fast", records=POSTGRES, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    postgres_of(scene).server.restart("fast", pause(scene, rng, 0, 3, longest=60))


@fault("PostgreSQL restarted, immediate", records=POSTGRES, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    postgres_of(scene).server.restart("immediate", pause(scene, rng, 0, 3, longest=60))


@fault("PostgreSQL backends terminated", records=POSTGRES, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    postgres_of(scene).server.terminate_backends()


@fault("connection to PostgreSQL cut", records=POSTGRES, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    postgres_of(scene).server.proxy.cut()


@fault("answer to a COMMIT lost", records=POSTGRES, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    proxy = postgres_of(scene).server.proxy
    before = proxy.fired
    proxy.lose(b"COMMIT")
    _until(lambda: proxy.fired > before, 4)
    proxy.calm()


@fault("PostgreSQL unreachable", records=POSTGRES, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    with postgres_of(scene).server.proxy.down():
        time.sleep(pause(scene, rng, 1, 5, longest=60))


@fault("PostgreSQL hangs", records=POSTGRES, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    with postgres_of(scene).server.proxy.hanging():
        time.sleep(pause(scene, rng, 1, 5, longest=30))


def _until(ready: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not ready() and time.monotonic() < end:
        time.sleep(0.05)


# --- MLflow server ---

HTTP = ("http",)


def server_of(scene: Scene) -> ServerRecord:
    assert isinstance(scene.record, ServerRecord)
    return scene.record


def _answers(status: int) -> None:
    @fault(f"MLflow server answers {status}", records=HTTP, outage=True)
    def inject(scene: Scene, rng: random.Random) -> None:
        proxy = server_of(scene).server.proxy
        proxy.answer(status, times=rng.choice((1, 3, 10)))
        time.sleep(2)
        proxy.calm()


for _status in (500, 503, 429):
    _answers(_status)


@fault("MLflow server slow", records=HTTP, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    proxy = server_of(scene).server.proxy
    proxy.delay_s = rng.uniform(0.2, 1.0)
    time.sleep(3)
    proxy.calm()


@fault("MLflow server's answer lost", records=HTTP, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    proxy = server_of(scene).server.proxy
    pattern = rng.choice((b"runs/create", b"log-batch", b"runs/update", b"POST "))
    proxy.lose(pattern, times=rng.choice((1, 2)))
    time.sleep(2)
    proxy.calm()


@fault("MLflow server unreachable", records=HTTP, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    with server_of(scene).server.proxy.down():
        time.sleep(pause(scene, rng, 1, 5, longest=60))


@fault("MLflow server stopped", records=HTTP, outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    stopped(server_of(scene).server.processes(), pause(scene, rng, 1, 5))


@fault("MLflow server killed and started again", records=HTTP, outage=True, costly=True)
def _(scene: Scene, rng: random.Random) -> None:
    server_of(scene).server.restart(0)


# --- SQLite and its disk ---


@fault("SQLite locked by another process", records=("sqlite", "disk"), outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    assert isinstance(scene.record, SqliteRecord)
    with scene.record.locked():
        time.sleep(pause(scene, rng, 1, 6, longest=90))


@fault("disk full, then freed", records=("disk",), outage=True)
def _(scene: Scene, rng: random.Random) -> None:
    assert isinstance(scene.record, DiskRecord)
    with scene.record.full():
        time.sleep(pause(scene, rng, 1, 5, longest=60))


# --- second drivers ---


def _second(kind: str, how: str, records: Collection[str]) -> None:
    @fault(kind, records=records)
    def inject(scene: Scene, rng: random.Random) -> str:
        return scene.second_driver(how)


_second("second driver, same command", "same", ("sqlite", "postgres", "http"))
_second("second driver by a symbolic link", "symlink", ("sqlite",))
_second("second driver by another experiment", "experiment", ("sqlite", "postgres"))
_second("second driver past the MLflow server", "direct", ("http",))


def applicable(where: str, record: str, *, clock: bool) -> list[str]:
    """The kinds that a sweep can meet."""
    return [
        kind for kind, one in KINDS.items() if where in one.where and record in one.records and (clock or not one.clock)
    ]

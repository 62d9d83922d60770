"""What is known of the connected Ray: its nodes, whether it still answers, and requests to its autoscaler.

Calls to Ray's head (GCS) hang where it is dead. They are therefore made by a thread of their own; the driver's thread
reads what that thread has learnt, and waits for it no longer than the head is known to live.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar

from orchestrator.dispatch.capacity import Need, fits, lacking
from orchestrator.dispatch.engine import NodeRoom
from orchestrator.dispatch.ray_connection import disconnect
from orchestrator.dispatch.ray_nodes import AliveNode, alive_nodes, draining_nodes
from orchestrator.dispatch.ray_requests import ask, withdraw_left
from orchestrator.errors import Outage

T = TypeVar("T")

LOOK_S = 5.0
"""How often the nodes are asked for."""
NO_ANSWER_S = 30.0
"""The head counts as dead after this long without an answer. Ray itself would end this process, see `HEAD_AWAY`."""
SAY_S = 10.0
"""Without an answer for this long, the driver says that it waits for the head."""
CHECK_S = 0.5
"""How often a thread that waits for the head sees whether it is dead."""
DISCONNECT_S = 10.0
"""The longest wait for a dead Ray to disconnect."""


class RayCluster:
    """The Ray that this process is connected to.

    Args:
        owned: whether this process made the connection and closes it.
        say: called with a line to show, on the driver's thread.
    """

    def __init__(self, *, owned: bool, say: Callable[[str], None]) -> None:
        self.local = _started_here()
        """Whether that Ray is a child of this process, and consists of this machine alone."""
        self._owned, self._say = owned, say
        self._said_of = -1.0
        """The last answer whose age was mentioned."""
        self._prefix = f"phasefront/{uuid.uuid4().hex}/"
        self._own = _own_node()
        self._folder = _session_folder() if self.local else None
        self._nodes: Mapping[str, AliveNode] = alive_nodes()
        self.draining: frozenset[str] = frozenset()
        """The nodes that are going away, such as preempted ones, while they still live."""
        self._answered_at = time.monotonic()
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        if not self.local:
            self._calls.put(withdraw_left)
        self._kept: set[str] = set()
        self._dead = ""
        self._thread = threading.Thread(target=self._serve, name="phasefront ray", daemon=True)
        self._thread.start()

    # --- the thread that calls the head ---

    def _serve(self) -> None:
        while True:
            call: Callable[[], object] | None = self._look
            with contextlib.suppress(queue.Empty):
                call = self._calls.get(timeout=LOOK_S)
            if call is None:
                return
            with contextlib.suppress(Exception):  # an answer that stays away is noticed by its age
                call()
            if time.monotonic() - self._answered_at > 2 * LOOK_S:  # other calls must not keep it from looking
                with contextlib.suppress(Exception):
                    self._look()

    def _look(self) -> None:
        self._nodes = alive_nodes()
        self._answered_at = time.monotonic()
        if not self.local:
            self.draining = draining_nodes()

    # --- what the driver's thread asks ---

    @property
    def answers(self) -> bool:
        """Whether nothing is known to be wrong."""
        return not self._dead

    def check(self, *, starting: bool = False) -> None:
        """See whether Ray is still there; cheap.

        Args:
            starting: whether a worker is awaited. A local Ray cannot start one without its folder.

        Raises:
            Outage: a process of the local Ray has ended or its folder is gone, this machine's part of the cluster is
                dead, or the head does not answer.
        """
        if not self._dead:
            self._dead = self._what_is_dead()
        if not self._dead and starting and self._folder is not None and not self._folder.is_dir():
            self._dead = f"the local Ray cannot start a worker: its folder {self._folder} has been removed"
        if self._dead:
            raise Outage(self._dead, next_step="run the same command again: it resumes where this run stopped")

    def _what_is_dead(self) -> str:
        if self.local:
            gone = _dead_processes()
            if not gone and self._own not in self._nodes:
                gone = ["raylet"]  # it said so before it ended
            return f"the local Ray has died: its process {' and '.join(gone)} ended" if gone else ""
        if self._own and self._own not in self._nodes:
            return "the Ray node of this driver has died: the cluster goes on, but this run cannot reach it"
        answered_at = self._answered_at
        silent_s = time.monotonic() - answered_at
        if silent_s > SAY_S and self._said_of != answered_at:
            self._said_of = answered_at
            self._say(f"the Ray cluster has not answered for {silent_s:.0f} s; waiting for {NO_ANSWER_S:.0f} s at most")
        return f"the Ray cluster has not answered for {silent_s:.0f} s" if silent_s > NO_ANSWER_S else ""

    def call(self, work: Callable[[], T]) -> T:
        """The result of work that talks to the head, such as starting an actor or a task.

        Raises:
            Outage: as `check`, while the work waits for the head.
            Exception: that of `work`.
        """
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:  # it belongs to the caller
                done.set_exception(error)

        self._calls.put(run)
        while not done.done():
            self.check()
            wait([done], timeout=CHECK_S)
        return done.result()

    def look_now(self) -> None:
        """Ask for the nodes at once, in the background."""
        self._calls.put(self._look)

    def is_alive(self, node: str) -> bool:
        """Whether the node was alive when the cluster last answered."""
        return node in self._nodes

    def rooms(self, need: Need) -> dict[str, NodeRoom]:
        """The nodes that are alive."""
        self.check()
        return {
            node: NodeRoom(
                name=known.name,
                room=fits(known.total, need),
                free=None if known.available is None else fits(known.available, need),
            )
            for node, known in self._nodes.items()
        }

    def lacking(self, need: Need) -> str:
        """What a worker needs and no node has."""
        return lacking([known.total for known in self._nodes.values()], need)

    def withdrawn_key(self, worker: int) -> str:
        """Prefix of the keys that withdraw packs of a worker."""
        return f"{self._prefix}{worker}/"

    def keep_key(self, key: str, value: float = 1.0) -> None:
        """Set a key in Ray's internal store, in the background; removed by `close`."""
        from ray.experimental.internal_kv import _internal_kv_put

        self._kept.add(key)
        self._calls.put(lambda: _internal_kv_put(key.encode(), str(value).encode(), overwrite=True))

    def request(self, workers: int, need: Need) -> None:
        """Tell the autoscaler, in the background, that the cluster should have room for so many workers."""
        self._calls.put(lambda: ask([need.bundle] * workers))

    def close(self) -> None:
        """Disconnect, if this process made the connection. Idempotent."""
        from ray.experimental.internal_kv import _internal_kv_del

        if not self._dead:
            for key in self._kept:
                self._calls.put(lambda key=key: _internal_kv_del(key.encode()))  # type: ignore[misc]
        self._kept.clear()
        self._calls.put(None)
        if not self._dead:
            self._thread.join(DISCONNECT_S)
        if not self._owned:
            return
        if not self._dead:
            disconnect()
            return
        end = threading.Thread(target=disconnect, daemon=True)  # it may hang
        end.start()
        end.join(DISCONNECT_S)


def _started_here() -> bool:
    from ray._private import worker

    node = worker._global_node
    return node is not None and bool(node.all_processes)


def _own_node() -> str:
    """The id of the node that this driver is attached to; empty for a Ray client, which has none."""
    import ray
    from ray._private import worker

    return "" if worker._global_node is None else str(ray.get_runtime_context().get_node_id())


def _session_folder() -> Path:
    """Where a Ray that was started here keeps its sockets and logs."""
    from ray._private import worker

    return Path(worker._global_node.get_session_dir_path())


def _dead_processes() -> list[str]:
    """The processes of a Ray that was started here which have ended."""
    from ray._private import worker

    node = worker._global_node
    needed = ("raylet", "gcs_server")
    return [] if node is None else [name for name, _ in node.dead_processes() if name in needed]

"""Connecting to Ray: to a cluster, or to a local Ray that is started here and ends with this process."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.dispatch import reaper
from orchestrator.dispatch.capacity import Node, Request
from orchestrator.dispatch.session import Session, remove_left
from orchestrator.errors import Outage, UserError
from orchestrator.host import usable_memory_bytes
from orchestrator.outages import Kind, kind_of

OBJECT_STORE_BYTES = (80e6, 300e6)
"""Least and most shared memory of a local Ray. Only rows of curves pass through it, a few chunks at a time."""
LARGEST_EVENT_BYTES = 10_000_000
"""Results of calls up to this size do not pass through shared memory, on a local Ray."""

HEAD_AWAY = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}
"""How long Ray lets this process live without an answer of the head; its own limit, after which it ends the process
with exit code 1, is 60 s. `RayCluster` notices earlier, but the driver may be waiting for its record then. Ray reads it
when it connects, so that the processes of a Ray that is started here inherit it; the reaper ends them."""

ANSWER_S = 5.0
"""How long a cluster may take to accept a connection. Ray itself retries silently for minutes."""


def expect_answer(address: str, *, timeout_s: float = ANSWER_S) -> None:
    """Check that something listens at `host:port` or `ray://host:port`; Ray handles any other address.

    Raises:
        UserError: no TCP connection opens.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {host}:{port} ({error.strerror or error})",
            place="RAY_ADDRESS",
            value=address,
            next_step="start one with cluster/local/head.sh, or unset RAY_ADDRESS to run on this machine",
        ) from error


def use_token_authentication(*, local: bool) -> None:
    """Turn on Ray's token authentication unless `RAY_AUTH_MODE` is set.

    A Ray started by this program then serves this user only. For a cluster it is turned on only if there is a token,
    because a cluster may do without authentication. Where Ray could not keep a new token in the home folder, as in a
    container of a user without one, the token is in the environment of this process.

    Args:
        local: whether a Ray is started by this process.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    has_token = "RAY_AUTH_TOKEN" in os.environ or token_file.is_file()
    if local and not has_token and not _is_writable(token_file.parent):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if has_token or local:
        os.environ["RAY_AUTH_MODE"] = "token"


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextlib.contextmanager
def _reaped() -> Iterator[str]:
    """Processes started inside end with this process, even if it is killed (see `reaper`); the mark that they carry."""
    mark = uuid.uuid4().hex
    if not Path("/proc/self/environ").exists():  # not Linux: Ray cleans up by itself
        yield mark
        return
    command = [sys.executable, "-I", reaper.__file__, mark, str(os.getpid())]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    _reapers.append(watch)
    os.environ[reaper.MARK] = mark
    try:
        yield mark
    finally:
        del os.environ[reaper.MARK]


def _name_agents() -> None:
    """Tell the reaper of the children of the raylet that has just started: its agents among them."""
    from ray._private import worker

    node = worker._global_node
    for watch in _reapers:
        if node is not None and watch.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # somebody has ended the reaper
                for raylet in node.all_processes["raylet"]:
                    watch.stdin.write(reaper.named(reaper.children(raylet.process.pid)))
                watch.stdin.flush()


_reapers: list[subprocess.Popen[bytes]] = []
_sessions: list[Session] = []


def disconnect() -> None:
    """Shut down the Ray that `connect` started, or disconnect from the cluster."""
    import ray

    ray.shutdown()
    for watch in _reapers:
        watch.communicate(reaper.CLEAN)
    _reapers.clear()
    for session in _sessions:
        session.remove()
    _sessions.clear()


def connect(local: Node | None = None) -> bool:
    """Connect to Ray: to `RAY_ADDRESS` (set in a submitted job too), or to one started here.

    Args:
        local: what a Ray that is started here offers; None for all that this process may use. Ray's own detection
            ignores the affinity of this process and the limits of nested control groups.

    Returns:
        Whether this process owns the connection and must close it.

    Raises:
        UserError: there is no cluster at the address, or it refuses this user; a local Ray has no folder to use.
        Outage: a local Ray did not start.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        expect_answer(address)
    use_token_authentication(local="RAY_ADDRESS" not in os.environ)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.update(HEAD_AWAY)
    import ray

    if ray.is_initialized():
        return False
    # Ray reads these variables when it is imported, which a notebook may have done before.
    ray._raylet.Config.initialize("")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "phasefront"}
    _print_nothing()
    if not address or address == "local":
        local = local or Request().local_node()
        least, most = OBJECT_STORE_BYTES
        with _reaped() as mark:
            try:
                context = ray.init(
                    address="local",
                    num_cpus=int(local.cpus),
                    num_gpus=int(local.gpus),
                    include_dashboard=False,
                    object_store_memory=int(min(most, max(least, usable_memory_bytes() / 10))),
                    _memory=int(local.memory_bytes),
                    # Ray ends this process at once if it reads shared memory after the raylet has died.
                    _system_config={"max_direct_call_object_size": LARGEST_EVENT_BYTES},
                    **quiet,
                )
            except Exception as error:  # Ray raises many types here
                disconnect()  # ends what has started already
                raise _not_started(error) from error
        _name_agents()
        session = Session(Path(context.address_info["session_dir"]), mark)
        _sessions.append(session)
        remove_left(session.folder.parent, lives=reaper.marked)
        return True
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises many types here; all mean that there is no connection
        text = str(error)
        if "auth" in text.lower() or "token" in text.lower():
            raise UserError(
                "the Ray cluster refuses this user",
                place="RAY_ADDRESS",
                value=address,
                next_step=(
                    "use the cluster's token: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN=... or the file "
                    f"~/.ray/auth_token, on the head, the workers and here. Ray said: {_first_line(text)}"
                ),
            ) from error
        if "version mismatch" in text.lower():
            raise UserError(
                "the Ray cluster runs another version of Ray or Python than this process",
                place="RAY_ADDRESS",
                value=address,
                next_step=f"install its versions here, or run in its image. Ray said: {' '.join(text.split())}",
            ) from error
        raise UserError(
            "no Ray cluster answers",
            place="RAY_ADDRESS",
            value=address,
            next_step=f"start one (see cluster/), or unset RAY_ADDRESS for a local Ray. Ray said: {_first_line(text)}",
        ) from error
    return True


def _not_started(error: Exception) -> UserError | Outage:
    """What to tell about a local Ray that did not start."""
    what = f"Ray did not start on this machine: {_first_line(str(error))}"
    if isinstance(error, OSError) and kind_of(error) is not Kind.AWAY:
        return UserError(what, next_step="set RAY_TMPDIR to a folder on a local disk with a short path, such as /tmp")
    step = "make sure that it has free memory, disk space and processor time, then run the same command again"
    return Outage(what, next_step=step)


def _print_nothing() -> None:
    """Keep messages of Ray's daemons, whole logs among them, off the terminal: `log_to_driver` is for workers only.

    What matters of them is stated by the pool and by `RayCluster`.
    """
    from ray._private import worker

    worker._worker_logs_enabled = False


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connect to the cluster for the duration of the block."""
    owned = connect()
    try:
        yield
    finally:
        if owned:
            disconnect()


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "nothing")

"""Serves the live page on a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from orchestrator.errors import UserError

PORT = 8642
END_S = 3.0


def listen(host: str, port: int | None) -> socket.socket:
    """A socket at this port; without one, at PORT, or at a free port where another program listens there.

    Raises:
        UserError: Nothing can listen at the port that was asked for.
    """
    for number in (PORT, 0) if port is None else (port,):
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, number))
            made.listen()  # a browser that is quicker than the server waits
        except OSError as error:
            made.close()
            failed = error
            continue
        return made
    raise UserError(
        f"the page cannot listen there: {failed.strerror or failed}",
        place="--port" if port is not None else "--host",
        value=f"{host}:{port or PORT}",
        next_step="leave the option out: a free port of this machine is chosen then",
    )


@contextmanager
def served(app: Starlette, at: socket.socket) -> Iterator[None]:
    """Serve the application while the block runs."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, name="page", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(END_S)

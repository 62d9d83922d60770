"""MLflow's own pages of a record: those of a server that runs already, or of one that is started here."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import quote

ANSWER_S = 2.0
"""How long a server may take to answer."""
END_S = 5.0
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine itself: a proxy of the environment is for other machines."""


def serves(server: str, run_id: str) -> bool:
    """Whether an MLflow server answers at this address and has this run."""
    address = f"{server}/api/2.0/mlflow/runs/get?run_id={quote(run_id)}"
    try:
        with _LOCAL.open(address, timeout=ANSWER_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):  # nobody listens, another program does, or it has another record
        return False


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """`mlflow server` on a database, at a free port of this machine, until `close`.

    Args:
        uri: The database. It is passed in the environment, as it may have a password.
    """

    def __init__(self, uri: str) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._ready = False
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self._process = subprocess.Popen(
            [*command, "--workers", "1"],
            env={**os.environ, "MLFLOW_BACKEND_STORE_URI": uri},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def note(self) -> str:
        """What is to be said of it; "" once it answers."""
        if self._process.poll() is not None:
            return "MLflow's server has ended: start it by the command below"
        if not self._ready:
            try:
                with _LOCAL.open(f"{self.address}/health", timeout=ANSWER_S) as answer:
                    self._ready = answer.status == 200
            except (OSError, ValueError):
                self._ready = False
        return "" if self._ready else "MLflow's server is starting"

    def close(self) -> None:
        """End it, with its workers."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
                return

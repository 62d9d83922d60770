"""A TCP proxy that loses answers, refuses connections and answers HTTP requests with an error.

It stands between a driver and a real PostgreSQL or MLflow server:

    with Proxy.to("postgresql://tester@127.0.0.1:5432/postgres") as proxy:
        proxy.lose(b"COMMIT")  # the next COMMIT takes effect, but its answer never arrives
        open_tracker(proxy.uri, experiment="tests")
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK = 1 << 16
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(kw_only=True)
class _Rule:
    """What happens to the next client messages that contain `pattern`."""

    pattern: bytes
    times: int
    status: int | None
    """HTTP status of the proxy's own answer; None: the server gets the message, and its answer is lost."""


class Proxy:
    """Forwards connections on a free port of `host` to a server; every method may be called at any time.

    Args:
        server: Host and port of the server.
        host: The address at which the proxy listens.
    """

    def __init__(self, server: tuple[str, int], *, host: str = "127.0.0.1") -> None:
        self._server, self._host, self.uri = server, host, ""
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.fired = 0
        """Messages to which a rule was applied."""
        self.delay_s = 0.0
        """Seconds that each message of a client waits before it is forwarded."""
        self._released = threading.Event()
        self._released.set()
        self.port = self._listen(0)

    @classmethod
    def to(cls, uri: str, *, host: str = "127.0.0.1") -> Self:
        """A proxy for the server of an address; its own `uri` is the same address with the proxy's port."""
        parts = urlsplit(uri)
        assert parts.hostname is not None
        assert parts.port is not None
        proxy = cls((parts.hostname, parts.port), host=host)
        at = parts.netloc.rpartition("@")
        proxy.uri = urlunsplit(parts._replace(netloc=f"{at[0]}{at[1]}{host}:{proxy.port}"))
        return proxy

    def lose(self, pattern: bytes, *, times: int = 1) -> None:
        """The server gets the next message that contains the pattern; its answer is lost and the connection cut."""
        self._add(_Rule(pattern=pattern, times=times, status=None))

    def answer(self, status: int, *, pattern: bytes = b"", times: int = 1) -> None:
        """The proxy itself answers the next HTTP requests that contain the pattern; the server does not get them."""
        self._add(_Rule(pattern=pattern, times=times, status=status))

    def _add(self, rule: _Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def calm(self) -> None:
        """Forget all rules and the delay."""
        with self._lock:
            self._rules.clear()
        self.delay_s = 0.0

    @contextmanager
    def down(self) -> Iterator[None]:
        """Inside, all connections are cut and new ones are refused."""
        self._stop_listening()
        self.cut()
        try:
            yield
        finally:
            self._listen(self.port)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Inside, connections are accepted and stay open, but nothing is forwarded."""
        self._released.clear()
        try:
            yield
        finally:
            self._released.set()

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop; all connections are cut."""
        self._stop_listening()
        self._released.set()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _listen(self, port: int) -> int:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, port))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # ends `accept` in the other thread
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._server, timeout=10)
            except OSError:
                return
            server.settimeout(None)
            with server, self._kept(client), self._kept(server):
                lost = threading.Event()
                back = threading.Thread(target=self._backward, args=(server, client, lost), daemon=True)
                back.start()
                with contextlib.suppress(OSError):
                    self._forward(client, server, lost)
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                back.join()

    @contextmanager
    def _kept(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

    def _forward(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        while data := client.recv(CHUNK):
            if self.delay_s:
                threading.Event().wait(self.delay_s)
            self._released.wait()
            rule = self._applies(data)
            if rule is not None and rule.status is not None:
                _finish_request(client, data)
                client.sendall(_error(rule.status))
                return
            if rule is not None:
                lost.set()
            server.sendall(data)

    def _backward(self, server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK):
                self._released.wait()
                if lost.is_set():
                    break
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _applies(self, data: bytes) -> _Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.pattern in data:
                    rule.times -= 1
                    self.fired += 1
                    if rule.times <= 0:
                        self._rules.remove(rule)
                    return rule
        return None


def _finish_request(client: socket.socket, data: bytes) -> None:
    """Read the rest of an HTTP request, so that the answer is not lost to a connection reset."""
    head, _, body = data.partition(b"\r\n\r\n")
    found = _LENGTH.search(head)
    missing = (int(found[1]) if found else 0) - len(body)
    while missing > 0 and (more := client.recv(CHUNK)):
        missing -= len(more)


def _error(status: int) -> bytes:
    body = b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "injected"}'
    head = f"HTTP/1.1 {status} Injected\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

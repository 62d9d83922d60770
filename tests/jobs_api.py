"""A jobs API of Ray that answers as it is told: the requests are those of Ray's own client."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ray

USUAL: Mapping[str, tuple[int, object]] = {
    "GET /api/version": (200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"}),
    "GET /api/jobs/": (200, []),
    "GET /api/packages": (404, "not found"),
    "PUT /api/packages": (200, {}),
    "POST /api/jobs/": (200, {"job_id": "1", "submission_id": "1"}),
}
"""The beginning of a request -> status and body of the answer."""


@contextlib.contextmanager
def jobs_api(answers: Mapping[str, tuple[int, object]]) -> Iterator[str]:
    """`HOST:PORT` of a head that gives these answers in place of the usual ones."""
    known = {**USUAL, **answers}

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            request = f"{self.command} {self.path}"
            status, body = next(
                (known[k] for k in sorted(known, key=len, reverse=True) if request.startswith(k)), (404, "")
            )
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = _answer

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

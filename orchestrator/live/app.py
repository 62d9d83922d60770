"""The web application of the live page: it serves what it is given, under an address with a secret, and only to GET."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_HEADERS = {
    # The page needs no network: whatever a user's text may contain, the browser loads nothing from elsewhere.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",  # the address has the secret
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, kw_only=True)
class Document:
    """JSON that changes: a version, by which a browser that has it is told so, and its text."""

    version: str
    body: bytes

    @classmethod
    def of(cls, version: str, content: Mapping[str, Any]) -> Document:
        """From plain data."""
        return cls(version=version, body=json.dumps(content, separators=(",", ":"), allow_nan=False).encode())


def application(
    token: str, *, state: Callable[[], Document], map_: Callable[[], Document], curves: Callable[[int, str], Document]
) -> Starlette:
    """The application.

    Args:
        token: The secret in its addresses.
        state: What the page shows as text: see `live.content.state_of`.
        map_: The views of the map.
        curves: (cell, version of the map) -> the curves of its trials. It may read the record.

    Raises:
        LookupError: By `curves`: the map has changed, or has no such cell.
    """

    def guarded(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def handle(request: Request) -> Response:
            if not secrets.compare_digest(request.path_params["token"].encode(), token.encode()):
                return Response("not found", status_code=404, media_type="text/plain")
            response = answer(request)
            response.headers.update(_HEADERS)
            return response

        return handle

    def document(get: Callable[[], Document]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            current = get()
            headers = {"ETag": f'"{current.version}"', "Cache-Control": "no-cache"}
            if request.headers.get("if-none-match") == headers["ETag"]:
                return Response(status_code=304, headers=headers)
            return Response(current.body, media_type="application/json", headers=headers)

        return answer

    def static(get: Callable[[], bytes], kind: str) -> Callable[[Request], Response]:
        return lambda _: Response(get(), media_type=kind, headers={"Cache-Control": "max-age=3600"})

    def of_cell(request: Request) -> Response:
        try:
            cell, version = int(request.query_params["cell"]), request.query_params["map"]
            return Response(curves(cell, version).body, media_type="application/json")
        except (LookupError, ValueError):
            return Response("{}", status_code=409, media_type="application/json")

    routes = {
        "": static(lambda: _file("page.html"), "text/html"),
        "plotly.js": static(_plotly, "text/javascript"),
        "viewer.js": static(_viewer, "text/javascript"),
        "state": document(state),
        "map": document(map_),
        "curves": of_cell,
    }
    return Starlette(routes=[Route(f"/{{token}}/{path}", guarded(answer)) for path, answer in routes.items()])


def _file(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


@cache
def _plotly() -> bytes:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).encode()


def _viewer() -> bytes:
    from orchestrator.phases.draw.html import viewer_script

    return viewer_script().encode()

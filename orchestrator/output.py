"""The streams of the command line: secrets are hidden, and a run outlives its terminal or pipe."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from orchestrator.secrets import Hider

_GONE = (errno.EPIPE, errno.EIO)
"""The reader of a pipe has ended; the terminal was closed."""


class GuardedStream:
    """A text stream around another one.

    Args:
        stream: where the text goes.
        hide: takes the secrets out of a text.
        outlive: whether to drop what is written once nobody can read it, instead of raising.
    """

    def __init__(self, stream: IO[str], *, hide: Callable[[str], str], outlive: bool) -> None:
        self._stream, self._hide, self._outlive, self._gone = stream, hide, outlive, False

    def write(self, text: str) -> int:
        """Write the text."""
        self._do(lambda: self._stream.write(self._hide(text)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered."""
        self._do(self._stream.flush)

    def _do(self, action: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            action()
        except OSError as error:
            if not self._outlive or error.errno not in _GONE:
                raise
            self._gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def guarded_output(*, outlive: bool) -> Iterator[None]:
    """`sys.stdout` and `sys.stderr` are guarded, see `GuardedStream`; at the end they are as before.

    A stream whose reader has gone is replaced by the null device, so that the interpreter's last flush is quiet.
    """
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr: no character of a name or an error ends a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    hide = Hider(os.environ)
    guarded: Any = [GuardedStream(stream, hide=hide, outlive=outlive) for stream in before]
    sys.stdout, sys.stderr = guarded
    try:
        yield
    finally:
        sys.stdout, sys.stderr = (_usable(stream) for stream in before)


def _usable(stream: Any) -> Any:
    try:
        stream.flush()
    except OSError:
        return open(os.devnull, "w")  # noqa: PTH123 - it stays open until the process ends
    return stream

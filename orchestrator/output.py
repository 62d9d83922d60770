"""The streams of the command line: secrets are hidden, and a run outlives its terminal or pipe."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NoReturn

from orchestrator.secrets import Hider


class GuardedStream:
    """A text stream around another one.

    Args:
        stream: where the text goes.
        hide: takes the secrets out of a text.
        outlive: whether to drop what is written once the stream takes no more, instead of raising: the reader of a pipe
            has ended, the terminal was closed, the disk is full.
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

    def close(self) -> None:
        """Write what is buffered; the stream stays open, whatever a job's module does on import."""
        self.flush()

    def _do(self, action: Callable[[], object]) -> None:
        if self._gone or getattr(self._stream, "closed", False):
            return
        try:
            action()
        except OSError:
            if not self._outlive:
                raise
            self._gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_missing_streams() -> None:
    """Open the null device for each standard stream that was closed when the process started.

    Its number would otherwise be that of the next file opened, which would then get what the process prints.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            stream = open(number, mode, closefd=False, errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, stream)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around the import of a job's module, whatever that does: the command goes on.

    `sys.stdout` and `sys.stderr` are at the end what they were before. `os._exit`, which would end the command in
    silence, raises in this thread; not in a process that the module forks.
    """
    before, end, me = (sys.stdout, sys.stderr), os._exit, (os.getpid(), threading.get_ident())
    imports = True

    def refuse(status: int) -> NoReturn:
        if imports and (os.getpid(), threading.get_ident()) == me:
            raise RuntimeError(f"the module ends the process when it is imported, by os._exit({status})")
        end(status)

    os._exit = refuse
    try:
        yield
    finally:
        imports, os._exit = False, end
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def guarded_output(*, outlive: bool) -> Iterator[None]:
    """`sys.stdout` and `sys.stderr` are guarded, see `GuardedStream`; at the end they are as before.

    Errors of `sys.stderr` are always outlived: the exit code says what happened. A stream that takes no more is
    replaced by the null device, so that the interpreter's last flush is quiet.
    """
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr: no character of a name or an error ends a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    hide = Hider(os.environ)
    out: Any = GuardedStream(before[0], hide=hide, outlive=outlive)
    err: Any = GuardedStream(before[1], hide=hide, outlive=True)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = (_usable(stream) for stream in before)


def _usable(stream: Any) -> Any:
    try:
        stream.flush()
    except (OSError, ValueError):  # the stream takes no more, or is closed
        return open(os.devnull, "w")  # noqa: PTH123 - it stays open until the process ends
    return stream

"""Errors of databases, servers and disks: which of them pass, and how long and how often an operation is tried again.

The record and the study of a search share these rules. Nothing here imports a driver: errors are told apart by SQLite's
error codes, PostgreSQL's SQLSTATE, HTTP status, `errno` and the names of their classes.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from orchestrator.errors import Outage, UserError
from orchestrator.printable import printable
from orchestrator.process import lock_holders
from orchestrator.progress import duration

PATIENCE_S = 600.0
"""How long a run waits for a record that does not answer, unless the sweep says otherwise."""
READING_PATIENCE_S = 15.0
"""The same for commands that a user waits for, such as `status`."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""Between two attempts; each pause is twice as long as the one before."""
SILENT_S = 3.0
"""Outages up to this long are not mentioned."""
SAY_EVERY_S = 30.0
HOLDERS_SHOWN = 2
"""Processes that are named where they have locked the file."""

T = TypeVar("T")

_SQLITE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_SQLITE_TEXTS = ("is locked", "disk I/O error", "disk is full", "unable to open")
"""Of errors without a code."""
_SQLSTATES = ("08", "53", "57", "58", "40", "55P03", "25006")
"""PostgreSQL: connection, resources (a full disk), operator intervention (a restart), system, serialisation, a lock
that was not available, and a server that is only a standby for now."""
_DATA_STATES = ("22", "23")
_DENIED_STATE = "42501"
_DENIED_SQLITE = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})
_NO_TABLE_STATES = ("42P01", "42703")
_NO_TABLE_TEXTS = ("no such table", "no such column", "has no column")
"""Of SQLite, which has no code for them."""
_ERRNO = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EBUSY,
        errno.EAGAIN,
        errno.ESTALE,
        errno.EPIPE,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EMFILE,
        errno.ENFILE,
    }
)
_HTTP = frozenset({408, 425, 429})
_AWAY_NAMES = frozenset({"ConnectionError", "Timeout", "TimeoutError", "ChunkedEncodingError", "ProtocolError"})
_MLFLOW_CODES = frozenset({"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"})


_WRONG = (
    "Name or service not known",
    "nodename nor servname",
    "No address associated",
    "label too long",
    "label empty",
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "permission denied",
    "readonly database",
    "does not exist",
    "does not support SSL",
    "invalid port",
    "invalid integer",
    "Invalid URL",
    "Failed to parse",
    "CERTIFICATE_VERIFY_FAILED",
    "certificate verify failed",
    "WRONG_VERSION_NUMBER",
)
"""In the message of a database driver or an HTTP library where the address, the user or the password is wrong."""


class Unreachable(Outage):
    """A database or server does not answer."""


class WrongAddress(UserError):
    """An address, user, password or permission is wrong. Of an address that has answered before, it is an outage."""


def is_wrong_address(error: BaseException) -> bool:
    """Whether an error of a connection that was never made says that trying again is of no use.

    What it does not recognise, such as a message in another language, counts as an outage: then it is said, and tried
    again.
    """
    text = str(_telling(error))
    return any(wrong in text for wrong in _WRONG)


class Kind(Enum):
    """What an error means for the operation that raised it."""

    AWAY = "away"
    """The infrastructure's: the same operation may work later."""
    DATA = "data"
    """The database refuses a value."""
    OTHER = "other"
    """A user's mistake, an outage that is over patience, or a bug."""


def kind_of(error: BaseException) -> Kind:
    """What the error means, by itself or by what it was raised from."""
    return _kind(_telling(error))


def is_denied(error: BaseException) -> bool:
    """Whether a database that answers refuses this user a table or a statement, or its file is read-only."""
    error = _telling(error)
    return _state(error) == _DENIED_STATE or _sqlite_code(error) in _DENIED_SQLITE


def lacks_tables(error: BaseException) -> bool:
    """Whether a database lacks a table or a column."""
    error = _telling(error)
    if isinstance(error, sqlite3.OperationalError):
        return any(text in str(error) for text in _NO_TABLE_TEXTS)
    return _state(error) in _NO_TABLE_STATES


def _state(error: BaseException) -> str | None:
    """PostgreSQL's SQLSTATE of an error of a driver."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state if isinstance(state, str) else None


def _sqlite_code(error: BaseException) -> int | None:
    """SQLite's error code, without what extends it."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _telling(error: BaseException) -> BaseException:
    """The error itself, or the one that it was raised from if only that tells what it means."""
    inner = getattr(error, "orig", None) or error.__cause__
    if inner is None and type(error).__name__ == "MlflowException":
        inner = error.__context__
    if _kind(error) is not Kind.OTHER or not isinstance(inner, BaseException) or isinstance(error, Outage):
        return error
    return _telling(inner)


def _kind(error: BaseException) -> Kind:
    if isinstance(error, Unreachable | WrongAddress):
        return Kind.AWAY
    if isinstance(error, (UserError, Outage)):
        return Kind.OTHER
    if isinstance(error, UnicodeError | OverflowError):
        return Kind.DATA
    if isinstance(error, sqlite3.Error):
        return _kind_of_sqlite(error)
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
    if isinstance(status, int):
        # Without MLflow's error code, it is not MLflow that answers, but a proxy whose server may come back.
        if status in _HTTP or status >= 500 or (status > 400 and getattr(error, "code", None) == ""):
            return Kind.AWAY
        return Kind.DATA if status == 400 else Kind.OTHER
    names = {cls.__name__ for cls in type(error).__mro__}
    state = _state(error)
    if state is not None:
        if state.startswith(_SQLSTATES) or state == _DENIED_STATE:
            return Kind.AWAY
        return Kind.DATA if state.startswith(_DATA_STATES) else Kind.OTHER
    if type(error).__module__.partition(".")[0] in ("psycopg", "psycopg2"):
        # Without a code: the driver's own, of a connection that broke or of a value that it cannot send.
        away = names & {"OperationalError", "InterfaceError"}
        return Kind.AWAY if away else Kind.DATA if names & {"DataError", "IntegrityError"} else Kind.OTHER
    if isinstance(error, OSError) and (error.errno in _ERRNO or isinstance(error, ConnectionError | TimeoutError)):
        return Kind.AWAY
    if names & _AWAY_NAMES or getattr(error, "error_code", None) in _MLFLOW_CODES:
        return Kind.AWAY
    return Kind.OTHER


def _kind_of_sqlite(error: sqlite3.Error) -> Kind:
    code = _sqlite_code(error)
    if isinstance(error, sqlite3.OperationalError):
        passes = any(text in str(error) for text in _SQLITE_TEXTS) if code is None else code in _SQLITE | _DENIED_SQLITE
        return Kind.AWAY if passes else Kind.OTHER
    is_value = isinstance(error, sqlite3.IntegrityError | sqlite3.DataError) or "binding parameter" in str(error)
    return Kind.DATA if is_value else Kind.OTHER


SALVAGE = (
    "the file was left as it is: restore a copy of it; or save what can be read, with "
    "`sqlite3 FILE .recover | sqlite3 NEW_FILE`, and name the new file; or name a file that does not exist"
)
"""What to do about a damaged SQLite file."""


def is_damaged(error: BaseException) -> bool:
    """Whether a SQLite file is no database, or not a whole one."""
    return _sqlite_code(_telling(error)) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_locked(error: BaseException) -> bool:
    """Whether another process has locked a SQLite file."""
    error = _telling(error)
    return isinstance(error, sqlite3.Error) and (
        _sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or "is locked" in str(error)
    )


def reason(error: BaseException) -> str:
    """One line of text about an error."""
    text = error.mistakes[0].rule if isinstance(error, UserError) else str(_telling(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__, longest=300)


RESUMES = (
    "recorded results are safe, trials that ended meanwhile train again; tracking.patience sets how long a run waits"
)
"""What is true of a `run` that has given up."""


class Patience:
    """Counts the time for which something is away, says so, and gives up in the end.

    Args:
        what: what is away, as the subject of a sentence, without a password.
        limit_s: gives up after this time.
        resumes: what is true when the same command is run again, for the message at the end.
        say: called with a line to show.
        stopping: whether the run is being stopped; then there is no second attempt.
        clock: seconds by a monotonic clock.
        sleep: waits for a number of seconds.
        meanwhile: what happens meanwhile, for the line that is shown.
    """

    def __init__(
        self,
        what: str,
        *,
        limit_s: float = PATIENCE_S,
        resumes: str = "",
        say: Callable[[str], None],
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        meanwhile: Callable[[], str] = lambda: "",
    ) -> None:
        self.what, self._limit_s, self._say, self._stopping = what, limit_s, say, stopping
        self._resumes = resumes
        self._clock, self._sleep = clock, sleep
        self._began: float | None = None
        """When it first did not answer; None if it answers."""
        self._since = 0.0
        """The same, or when it last did something in between."""
        self._pause_s = FIRST_PAUSE_S
        self._next = 0.0
        self._said_at: float | None = None
        self._why, self._meanwhile, self._locked = "", meanwhile, False
        self.answered = False
        """Whether it has ever answered: an address that never did may be wrong."""

    @property
    def away_s(self) -> float:
        """Seconds since the first error; 0 if it answers."""
        return 0.0 if self._began is None else self._clock() - self._began

    @property
    def due(self) -> bool:
        """Whether it is time for the next attempt; a run that is stopped makes its last one at once."""
        return self._clock() >= self._next or self._stopping()

    def is_away(self, error: BaseException) -> bool:
        """Whether an error is that of an outage, for which it is worth to wait.

        Raises:
            UserError: it is that of a damaged file, of a database that lacks a table, or of one that has never answered
                and denies this user what the command needs.
        """
        if is_damaged(error):
            raise UserError(
                f"{self.what} is a damaged SQLite file, or none: {reason(error)}",
                next_step=SALVAGE,
            ) from error
        if is_denied(error) and not self.answered:
            raise UserError(
                f"{self.what} denies this user what the command needs: {reason(error)}",
                next_step="let its owner grant the rights (`run` creates a table), or choose another user or record",
            ) from error
        if lacks_tables(error):
            raise UserError(
                f"{self.what} lacks a table or a column: {reason(error)}",
                next_step="restore the database from a copy, or name another one",
            ) from error
        return kind_of(error) is Kind.AWAY and (self.answered or not isinstance(error, WrongAddress))

    def failed(self, error: BaseException) -> None:
        """Note that an attempt has failed.

        Raises:
            Outage: it has been away for too long, or the run is being stopped.
        """
        now = self._clock()
        self._why, self._locked = reason(error), is_locked(error)
        if self._locked and (holders := lock_holders()):
            self._why += f" by {' and '.join(holders[:HOLDERS_SHOWN])}"
        if self._began is None:
            self._began, self._since, self._pause_s, self._said_at = now, now, FIRST_PAUSE_S, None
        if now - self._since >= self._limit_s or self._stopping():
            raise self._outage(error) from error
        self._next = min(now + self._pause_s, self._since + self._limit_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self.report()

    def report(self) -> None:
        """Say what is away, for how long and why, unless it was said lately."""
        now, away_s = self._clock(), self.away_s
        if away_s > SILENT_S and (self._said_at is None or now - self._said_at >= SAY_EVERY_S):
            left = f"giving up in {duration(max(0.0, self._limit_s - (now - self._since)))}"
            self._say("; ".join(filter(None, (f"{self._state()}: {self._why}", self._meanwhile(), left))))
            self._said_at = now

    def _state(self) -> str:
        state = "has been locked by another process" if self._locked else "has not answered"
        return f"{self.what} {state} for {duration(self.away_s)}"

    def _outage(self, error: BaseException) -> Outage:
        stopped = " when the run was stopped" if self._stopping() else ""
        step = f"run the same command again when it is {'free' if self._locked else 'back'}" + (
            f": {self._resumes}" if self._resumes else ""
        )
        own = error.next_step if isinstance(error, Unreachable) else ""
        own = error.mistakes[0].next_step if isinstance(error, WrongAddress) else own
        step = f"{own}; {step}" if own else step
        return Outage(f"{self._state()}{stopped}: {self._why}", next_step=step)

    def progressed(self) -> None:
        """Note that something has worked: the limit counts from now on. Say so, unless something was said lately."""
        now = self._since = self._clock()
        if self._said_at is not None and now - self._said_at >= SAY_EVERY_S:
            self._say("; ".join(filter(None, (f"{self.what} answers again", self._meanwhile()))))
            self._said_at = now

    def succeeded(self) -> None:
        """Note that an attempt has worked."""
        self.answered = True
        if self._began is not None and self._said_at is not None:
            self._say(f"{self.what} is back after {duration(self.away_s)}")
        self._began, self._said_at, self._next = None, None, 0.0

    def wait(self, at_most_s: float = LONGEST_PAUSE_S) -> None:
        """Sleep until the next attempt is due, for at most this long; a run that is stopped waits no longer."""
        end = min(self._next, self._clock() + at_most_s)
        while (left_s := end - self._clock()) > 0 and not self._stopping():
            self._sleep(min(left_s, 0.5))
        self.report()

    def call(self, do: Callable[[], T], *, mend: Callable[[], object] = lambda: None) -> T:
        """Call `do` until it does not fail because something is away; before each further attempt call `mend`.

        Raises:
            Outage: it has been away for too long, or the run is being stopped.
            Exception: any other error of `do` or `mend`.
        """
        again = False
        while True:
            try:
                if again:
                    mend()
                result = do()
            except Exception as error:  # of any database driver or server
                if not self.is_away(error):
                    raise
                self.failed(error)
                again = True
                while not self.due:
                    self.wait()
            else:
                self.succeeded()
                return result

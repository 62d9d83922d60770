"""Text of unknown origin (a traceback, a worker's output) in a form that every terminal, file and database can hold."""

from __future__ import annotations

import re

from orchestrator.secrets import hide

LONGEST_TEXT = 16_000
"""Characters of an error that are kept."""
LONGEST_LINE = 500
_LONG_LINE = re.compile(rf"[^\n]{{{LONGEST_LINE + 1},}}")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (a terminal would obey them), further line ends, characters that
reverse the direction of what follows, and surrogates, which UTF-8 cannot hold."""
_TRACEBACK = re.compile(r"^(  \+ Exception Group )?Traceback \(most recent call last\):\n", re.MULTILINE)


def printable(text: str, *, longest: int = LONGEST_TEXT) -> str:
    """The text with each unsafe character written as its escape (`\\x00`, `\\udcff`), at most `longest` characters.

    Secrets are hidden (see `orchestrator.secrets`).

    The middle of a long line and of a long text is left out: a traceback begins with the place and ends with the error.
    Carriage returns count as line ends.
    """
    text = hide(text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _shortened(_LONG_LINE.sub(_short_line, text), longest)
    if _UNSAFE.search(text):  # an escape has more characters
        text = _LONG_LINE.sub(_short_line, _UNSAFE.sub(_escape, text))
    return _shortened(text, longest)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _short_line(match: re.Match[str]) -> str:
    return _shortened(match[0], LONGEST_LINE)


def _shortened(text: str, longest: int) -> str:
    """The first quarter and the end, with a mark between them."""
    if len(text) <= longest:
        return text
    mark = f" [... {len(text) - longest} characters ...] "
    head = longest // 4
    return text[:head] + mark + text[len(text) - (longest - head - len(mark)) :]


def last_line(error: str) -> str:
    """The line of a traceback that names the exception, with the first line of its message.

    Of another text, the last line; of a group of exceptions too, because `described` ends with its name.
    """
    tracebacks = [*_TRACEBACK.finditer(error)]
    if tracebacks and not tracebacks[-1][1]:
        after = error[tracebacks[-1].end() :].splitlines()
        named = next((line for line in after if line.strip() and not line[0].isspace()), "")
        if named:
            return named.strip()
    lines = [line for line in error.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "unknown error"

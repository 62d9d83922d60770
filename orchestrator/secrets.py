"""Which variables and addresses hold secrets, and texts without them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"

_SHORTEST = 6
"""Characters below which a value is not looked for in other texts: it would be found in ordinary ones."""
_LONG = 12
"""Characters from which it is looked for inside words too."""
_SHORTEST_LINE = 8
"""Characters below which a line of a secret, such as a private key, is not looked for by itself."""
_ORDINARY = frozenset(("mlflow", "optuna", "password", "phasefront", "postgres", "postgresql", "secret", "sqlite"))
"""Passwords of test systems which are also words that this program prints."""

_NAME = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|(API|ACCESS|ACCOUNT|STORAGE|PRIVATE|AUTH|ENCRYPTION|SIGNING)_?KEY"
    r"|(^|_)(TOKEN|PASS)$|_PWD$|AUTH_?TOKEN|CONNECTION_STRING"
)
_IN_A_FILE = re.compile(r"_(FILE|PATH|DIR)$")
_USER_INFO = re.compile(r"(://[^/?#@:\s'\"]*):(?P<secret>.*)@", re.DOTALL)
_USER_INFO_OF_A_SERVER = re.compile(r"(https?://[^/?#@:\s'\"]*):(?P<secret>(?!\d+[/?#\s])[^/?#]*)@")
_MISTYPED = re.compile(
    r"\A((?:(?:phasefront-)?(?:postgres\w*|https?)(?:\+\w+)?:?/*)?[^/?#@:\s]*):(?P<secret>.*)@", re.DOTALL
)
"""An address whose beginning is wrong, as in `postgresql:/user:password@host` or `user:password@host`."""
_USER_INFO_IN_TEXT = re.compile(r"(://[^/?#@:\s'\"]*):(?P<secret>(?!\d+[/?#])[^\s'\"]{1,500})@")
"""A port and a path may precede an `@` too: `http://host:5000/a@b`."""
_TOKEN_AS_USER = re.compile(r"(https?://)(?P<secret>[^/?#@:\s'\"]{1,500})@")
_PARAMETER = re.compile(
    r"([?&;]"
    r"(?:[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|credential|signature|api_?key|access_?key)"
    r"|pass|sig|auth|key)=)(?P<secret>\$\{[^{}\s]*\}|(?!\*\*\*)[^&#\s]+)",
    re.IGNORECASE,
)
"""What follows a value that is masked already is text."""
_HEADER = re.compile(r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic)\s+)(?P<secret>[^\s'\"]+)", re.I)
_REFERENCE = re.compile(r"\$\{(\w+)(:-[^{}]*)?\}")
"""As in a sweep file: `${NAME}`, `${NAME:-default}`."""

_learnt: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret, rather than the name of a file that does."""
    return _NAME.search(name.upper()) is not None and _IN_A_FILE.search(name.upper()) is None


def shown(uri: str) -> str:
    """The address without its secrets, for messages and files; references to the environment (`${NAME}`) remain."""
    for pattern in _patterns(uri):
        uri = pattern.sub(_mask, uri)
    return uri if "://" in uri else _MISTYPED.sub(_mask, uri)


def _patterns(uri: str) -> tuple[re.Pattern[str], ...]:
    """A database's address may hold any character in its password, as SQLAlchemy reads it; that of a server not."""
    return (_USER_INFO_OF_A_SERVER if "http" in uri[:5] else _USER_INFO, _TOKEN_AS_USER, _PARAMETER)


def _mask(match: re.Match[str]) -> str:
    reference = _REFERENCE.fullmatch(match["secret"])
    start, end = (position - match.start() for position in match.span("secret"))
    return match[0][:start] + (f"${{{reference[1]}}}" if reference else HIDDEN) + match[0][end:]


def secrets_in(uri: str) -> set[str]:
    """The secrets that an address holds, as they are written there; empty for an address that may be shown."""
    found = (match["secret"] for pattern in _patterns(uri) for match in pattern.finditer(uri))
    return {secret for secret in found if secret != HIDDEN and not _REFERENCE.fullmatch(secret)}


def learn(*addresses: str) -> None:
    """From now on `hide` hides the secrets of these addresses wherever they stand."""
    for address in addresses:
        for secret in secrets_in(address):
            # An address with `@` or `/` in its password is read in different ways, and an error may name a part.
            _learnt.update(re.split(r"[@/:?#]", secret), (secret, unquote(secret)))


def secrets_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Secret -> the variable that holds it: those with the name of a secret, and addresses with a password."""
    found: dict[str, str] = {}
    for name, value in environ.items():
        inside = secrets_in(value)
        if inside:
            found |= dict.fromkeys((*inside, *map(unquote, inside)), name)
        elif is_secret_name(name) and not (value.startswith("/") and Path(value).exists()):
            lines = (line.strip() for line in value.splitlines())
            found |= {line: name for line in lines if len(line) >= _SHORTEST_LINE and "-----" not in line}
            found[value.strip()] = name
    return {secret: name for secret, name in found.items() if _is_distinct(secret)}


def _is_distinct(secret: str) -> bool:
    return len(secret) >= _SHORTEST and secret.lower() not in _ORDINARY


def finder(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """Finds any of the secrets, as they are and as Python, JSON and addresses write them; None where there are none."""
    patterns = [_pattern(secret) for secret in sorted(secrets, key=len, reverse=True)]
    return re.compile("|".join(patterns)) if patterns else None


def _pattern(secret: str) -> str:
    """It, or an escaped form; where it is short, as a word of its own."""
    forms = _escaped(secret)
    forms.update(*map(_escaped, forms))  # such as JSON in the `repr` of an error's argument
    text = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    return f"(?:{text})" if len(secret) >= _LONG else rf"(?<!\w)(?:{text})(?!\w)"


def _escaped(text: str) -> set[str]:
    """The text, and as Python, JSON and addresses write it."""
    addresses = (quote(text, safe="", errors="surrogateescape"), quote_plus(text, errors="surrogateescape"))
    literals = (repr(text), ascii(text), json.dumps(text), json.dumps(text, ensure_ascii=False))
    quoted = (repr(text + "'\"")[1:-4], ascii(text + "'\"")[1:-4])  # as within a text that has both quotation marks
    return {text, *addresses, *(literal[1:-1] for literal in literals), *quoted}


def holder(value: str, environ: Mapping[str, str]) -> str | None:
    """The variable whose secret stands in the value; None where none does."""
    found = secrets_of(environ).items()
    return next((name for secret, name in found if re.search(_pattern(secret), value)), None)


def hide_addresses(text: str) -> str:
    """The text without the secrets of the addresses that stand in it."""
    if "://" in text or "=" in text:
        for pattern in (_USER_INFO_IN_TEXT, _TOKEN_AS_USER, _PARAMETER):
            text = pattern.sub(_mask, text)
    return text


class Hider:
    """Hides the secrets in texts: those of addresses, those of the environment, and those that were learnt."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._of_environ = set(secrets_of(environ))
        self._learnt = -1
        self._known: re.Pattern[str] | None = None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if len(_learnt) != self._learnt:
            self._learnt = len(_learnt)
            self._known = finder(self._of_environ | set(filter(_is_distinct, _learnt)))
        text = hide_addresses(text)
        if "uthorization" in text or "UTHORIZATION" in text:
            text = _HEADER.sub(_mask, text)
        return self._known.sub(HIDDEN, text) if self._known else text


def hide(text: str) -> str:
    """The text without the secrets that this process knows."""
    return Hider(os.environ)(text)

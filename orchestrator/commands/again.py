"""The command that goes on with a sweep, as it can be typed, without the secrets of the one that was given."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping

from orchestrator.secrets import secrets_in, secrets_of

_STANDS_FOR = "PASSWORD"
_OPTIONS = {
    "run": ("inline", "workers", "quiet", "allow_failures", "no_map", "figures"),
    "submit": ("workers", "allow_failures", "address"),
    "logs": ("address",),
    "stop": ("address",),
    "map": ("classifier", "figures"),
}
"""Command -> its options beside `--set`."""


def command_line(arguments: argparse.Namespace, command: str) -> str:
    """The shell command for the same sweep, with the options that were given and that the command has.

    A secret in an option is replaced by a reference to the variable that holds it or, where none does, to `PASSWORD`,
    for which the line has a place to fill in.
    """
    missing: dict[str, str] = {}
    options = [_referring(override, os.environ, missing) for override in arguments.overrides]
    given = [f"{name}=..." for name in missing.values()]
    words = ["phasefront", command, str(arguments.file), *(word for option in options for word in ("--set", option))]
    for name in _OPTIONS.get(command, ()):
        value = getattr(arguments, name, None)
        if value:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    return " ".join([*given, shlex.join(words)])


def _referring(override: str, environ: Mapping[str, str], missing: dict[str, str]) -> str:
    """The option with references in place of secrets; the names of variables that do not exist are added to `missing`.

    Args:
        override: `path=value`.
        environ: of this process.
        missing: secret -> the name that stands for it.
    """
    path, equals, value = override.partition("=")
    for secret in secrets_in(value):
        whole = next((name for name, held in environ.items() if held == value), None)
        if whole is not None:
            return f"{path}{equals}${{{whole}}}"
        name = secrets_of(environ).get(secret)
        if name is None:
            number = len(missing) + 1
            name = missing.setdefault(secret, _STANDS_FOR if number == 1 else f"{_STANDS_FOR}_{number}")
        value = value.replace(secret, f"${{{name}}}")
    return f"{path}{equals}{value}"

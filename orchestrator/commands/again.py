"""The command that goes on with a sweep, as it can be typed, without the secrets of the one that was given."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping

from orchestrator.secrets import secrets_in, secrets_of

SUBMITTED_BY = "phasefront_again"
"""In the metadata of a job of Ray: the command by which it was submitted."""
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In the environment of a job of Ray: its metadata, as JSON. The name is Ray's."""
SBATCH = "PHASEFRONT_SBATCH"
"""In the environment of a driver that cluster/slurm/sweep.sbatch has started: the beginning of what its user typed."""
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


def to_resume(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> str:
    """How to go on with a run, by the way that the user came: its command or, of a job, how it was submitted."""
    return as_job(arguments, environ) or command_line(arguments, "run")


def as_job(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> str:
    """How a run was submitted, where it is a job of Ray or of Slurm; empty where it is none."""
    command = command_line(arguments, "run")
    if SBATCH in environ:
        command = command.replace("phasefront run", environ[SBATCH], 1)
        return f"submit the same job again, as with {command}"
    if _JOB not in environ:
        return ""
    metadata = json.loads(environ[_JOB]).get("metadata") or {}
    return metadata.get(SUBMITTED_BY) or f"submit the same job again, as with ray job submit ... -- {command}"


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

"""submit, stop and logs: a sweep as a job of a Ray cluster, through Ray's jobs API."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

from orchestrator.commands.again import SUBMITTED_BY, command_line
from orchestrator.commands.wiring import load_sweep, say
from orchestrator.dispatch.job_server import Attempt, JobServer
from orchestrator.errors import Outage, UserError
from orchestrator.secrets import secrets_in, shown
from orchestrator.sweep.sweep import Sweep
from orchestrator.trial import digest

_LEFT_OUT = ("/mlflow.db", "/mlflow.db-*", "/mlruns/", "/mlartifacts/", "/phasefront-out/")
"""Records and results at their default places: they grow, and the job does not read them."""
_ADDRESS = "MLFLOW_TRACKING_URI"
_STOPPED = 143
"""The exit code of a command that SIGTERM ended."""


def submit(arguments: argparse.Namespace) -> int:
    """Submit the sweep, or follow the attempt that runs already, until it ends; its exit code."""
    folder = Path.cwd()
    file = _inside(arguments.file, folder)
    _refuse_secrets(arguments.overrides)
    sweep = load_sweep(arguments)
    if sweep.extends is not None:
        _inside(str(sweep.extends), folder)
    variables = _variables(sweep)
    command = f"python -m orchestrator run {shlex.quote(file)}" + "".join(
        f" {shlex.quote(word)}" for word in _options(arguments)
    )
    server = _server(arguments)
    prefix = _prefix(sweep)
    attempts = server.attempts(prefix)
    content = digest(sweep.id, sweep.resolved_yaml(), command).hex()[:16]
    attempt = attempts[-1] if attempts else None
    if attempt is not None and not attempt.is_over:
        if attempt.metadata.get("phasefront_content") != content:
            raise UserError(
                "this sweep runs already, from another version of the file or with other options",
                place=str(arguments.file),
                value=attempt.id,
                next_step=f"follow it ({command_line(arguments, 'logs')} --follow), or stop it first "
                f"({command_line(arguments, 'stop')})",
            )
        number = attempt.number
        say(f"{attempt.id} runs already on {server.address}: following it")
    else:
        number = attempt.number + 1 if attempt is not None else 1
        job = server.submit(
            command,
            prefix=prefix,
            number=number,
            folder=folder,
            excludes=(*_LEFT_OUT, *_files_of(sweep, folder)),
            variables=variables,
            metadata={
                "phasefront_sweep": sweep.name,
                "phasefront_content": content,
                SUBMITTED_BY: shown(_submit_again(arguments)),
            },
        )
        say(f"submitted {job} to {server.address}: {command}")
        if server.ray_here != server.ray_there:
            say(f"note: Ray is {server.ray_here} here and {server.ray_there} on the cluster, which the sweep uses")
    if arguments.no_wait:
        say(f"follow it with: {command_line(arguments, 'logs')} --follow")
        return 0
    say(f"Ctrl-C ends this output only; the job goes on until: {command_line(arguments, 'stop')}")
    return _followed(server, prefix, number, arguments)


def stop(arguments: argparse.Namespace) -> int:
    """Stop the attempt that runs, and wait for its end."""
    server, prefix, attempt = _latest(arguments)
    if attempt.is_over:
        say(f"{attempt.id} is not running: {_state(attempt)}")
        if others := [
            job for job in server.running(f"phasefront-{_name(load_sweep(arguments))}-") if job != attempt.id
        ]:
            say(
                f"of this name run {', '.join(others)}: of another record. The same --set options belong to the command"
            )
        return 0
    server.stop(attempt.id)
    say(f"asked {attempt.id} to stop")
    ended = server.follow(prefix, attempt.number, lambda _: None, say)
    say(f"{ended.id}: {_state(ended)}. Recorded trials are kept; `{_submit_again(arguments)}` resumes")
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Print the log of the latest attempt, and with `--follow` go on until it ends; then its exit code."""
    server, prefix, attempt = _latest(arguments)
    if arguments.follow and not attempt.is_over:
        return _followed(server, prefix, attempt.number, arguments)
    _write(server.log(attempt.id))
    say(f"{attempt.id}: {_state(attempt)}")
    return _exit_code(attempt) if arguments.follow else 0


def _followed(server: JobServer, prefix: str, number: int, arguments: argparse.Namespace) -> int:
    try:
        attempt = server.follow(prefix, number, _write, say)
    except KeyboardInterrupt:
        say(f"\nno longer followed; the job goes on. Stop it with: {command_line(arguments, 'stop')}")
        raise
    say(f"{attempt.id}: {_state(attempt)}")
    if attempt.exit_code == 1 and "No module named orchestrator" in server.log(attempt.id)[-2000:]:
        raise UserError(
            "phasefront is not installed on the head of this cluster",
            place=server.address,
            next_step="install the same version on every node (see docs/cluster.md), or submit from a folder "
            "that holds the packages orchestrator and jobs",
        )
    if attempt.state == "STOPPED":
        say(f"`{_submit_again(arguments)}` resumes the sweep")
    elif attempt.state == "FAILED" and attempt.exit_code is None:
        raise Outage(
            f"{attempt.id} did not run to its end: {attempt.message.strip().splitlines()[0][:300]}"
            if attempt.message.strip()
            else f"{attempt.id} did not run to its end",
            next_step="run the same command again: a new attempt resumes the sweep",
        )
    return _exit_code(attempt)


def _exit_code(attempt: Attempt) -> int:
    if attempt.state == "SUCCEEDED":
        return 0
    return _STOPPED if attempt.exit_code is None else attempt.exit_code % 256


def _state(attempt: Attempt) -> str:
    words = {"SUCCEEDED": "finished", "FAILED": "failed", "STOPPED": "stopped", "PENDING": "not started yet"}
    text = words.get(attempt.state, "running")
    return f"{text} (exit code {attempt.exit_code})" if attempt.exit_code else text


def _latest(arguments: argparse.Namespace) -> tuple[JobServer, str, Attempt]:
    sweep = load_sweep(arguments)
    server, prefix = _server(arguments), _prefix(sweep)
    attempts = server.attempts(prefix)
    if not attempts:
        raise UserError(
            f"this sweep was not submitted to {server.address} with `phasefront submit` since that head was started",
            place=str(arguments.file),
            next_step="`ray job list` shows all jobs of the cluster. The same --set options belong to the command. "
            "What `phasefront run` or Slurm drives is no such job: it prints, and is stopped, where it was started",
        )
    return server, prefix, attempts[-1]


def _server(arguments: argparse.Namespace) -> JobServer:
    """The jobs API that the user names, unless the address is that of another port of Ray, for which Ray waits long."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    address = arguments.address or next(filter(None, map(os.environ.get, names)), "")
    scheme, _, place = address.rpartition("://")
    if scheme == "ray" or (not scheme and place.endswith(":8265")):
        raise UserError(
            "is not an address of Ray's jobs API, which begins with http://",
            place="--address",
            value=address,
            next_step="name that of the head's dashboard: "
            f"--address http://{place.rpartition(':')[0] or place}:8265 (or RAY_API_SERVER_ADDRESS)",
        )
    return JobServer(arguments.address)


def _prefix(sweep: Sweep) -> str:
    """Of the ids of a sweep's jobs: the same for the same name and record."""
    return f"phasefront-{_name(sweep)}-{digest(shown(sweep.tracking.uri), sweep.tracking.experiment).hex()[:8]}"


def _name(sweep: Sweep) -> str:
    """As it stands in the ids of its jobs."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", sweep.name)[:60]


def _inside(file: str, folder: Path) -> str:
    """The file's path relative to the folder that is uploaded."""
    path = Path(os.path.normpath(folder / file))  # `..` is removed, and links are kept
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        raise UserError(
            "is not in this folder, which is what the job gets a copy of",
            place=file,
            value=str(folder),
            next_step=f"cd {path.parent}, and submit it from there",
        ) from None


def _refuse_secrets(overrides: list[str]) -> None:
    for override in overrides:
        if secrets_in(override.partition("=")[2]):
            raise UserError(
                "holds a password, and Ray shows the command of a job to everybody on the cluster",
                place=f"--set {override.partition('=')[0]}",
                next_step="keep it on the head: in its environment, with ${NAME} in the sweep file, or in ~/.pgpass",
            )


def _variables(sweep: Sweep) -> dict[str, str]:
    """The record that this shell names, for the job; not a password, which Ray would show."""
    address = os.environ.get(_ADDRESS)
    if not address or sweep.tracking.uri != address:
        return {}
    if secrets_in(address):
        raise UserError(
            "holds a password, and Ray shows the environment of a job",
            place=_ADDRESS,
            next_step=f"set {_ADDRESS} in the environment of the head, and unset it here",
        )
    return {_ADDRESS: address}


def _options(arguments: argparse.Namespace) -> list[str]:
    words = [word for override in arguments.overrides for word in ("--set", override)]
    if arguments.workers is not None:
        words += ["--workers", str(arguments.workers)]
    return [*words, "--allow-failures"] if arguments.allow_failures else words


def _files_of(sweep: Sweep, folder: Path) -> list[str]:
    """The record and the results of the sweep, where they are in the folder; as lines of a `.gitignore`."""
    patterns = []
    for uri in (sweep.tracking.uri, sweep.search.storage):
        scheme, separator, path = uri.partition(":///")
        if separator and scheme.endswith("sqlite") and path and (folder / path).is_relative_to(folder):
            name = (folder / path).relative_to(folder).as_posix()
            patterns += [f"/{name}", f"/{name}-*"]
    output = (folder / sweep.output).absolute()
    if output != folder and output.is_relative_to(folder):
        patterns.append(f"/{output.relative_to(folder).as_posix()}/")
    return patterns


def _submit_again(arguments: argparse.Namespace) -> str:
    return command_line(arguments, "submit")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

"""What each command does. Modules are imported when their command is run, so that none pays for another."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping


def _check(arguments: argparse.Namespace) -> int:
    from orchestrator.commands.inspect import check

    return check(arguments)


def _plan(arguments: argparse.Namespace) -> int:
    from orchestrator.commands.inspect import plan

    return plan(arguments)


def _status(arguments: argparse.Namespace) -> int:
    from orchestrator.commands.inspect import status

    return status(arguments)


def _schema(arguments: argparse.Namespace) -> int:
    del arguments
    from orchestrator.sweep.schema import main_text

    print(main_text(), end="")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from orchestrator.commands.run import run

    return run(arguments)


def _map(arguments: argparse.Namespace) -> int:
    from orchestrator.commands.publishing import map_

    return map_(arguments)


def _replay(arguments: argparse.Namespace) -> int:
    from orchestrator.commands.replay import replay

    return replay(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from orchestrator.commands.compare import compare

    return compare(arguments)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "check": _check,
    "plan": _plan,
    "run": _run,
    "status": _status,
    "map": _map,
    "compare": _compare,
    "replay": _replay,
    "schema": _schema,
}
"""Name -> command; each gives the exit code."""

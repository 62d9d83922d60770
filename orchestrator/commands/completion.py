"""completion: a script by which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from orchestrator.commands.starting import published
from orchestrator.errors import UserError


def completion(arguments: argparse.Namespace) -> int:
    """Print the script for bash, zsh or fish."""
    import shtab

    completed: dict[tuple[str, str], Any] = {
        ("export", "output"): shtab.DIRECTORY,
        ("", "output"): shtab.FILE,
        ("", "file"): shtab.glob("*.yaml", "*.yml"),
        ("", "first"): shtab.FILE,
        ("", "second"): shtab.FILE,
        ("", "further"): shtab.FILE,
    }
    choices: dict[tuple[str, str], tuple[str, ...]] = {
        ("examples", "name"): _examples(),
        ("", "width"): ("single", "double"),
        ("", "figures"): ("svg", "pdf", "svg,pdf"),
    }
    main: argparse.ArgumentParser = arguments.parser
    (subparsers,) = (action for action in main._actions if isinstance(action, argparse._SubParsersAction))
    for command, sub in subparsers.choices.items():
        for action in sub._actions:
            for key in (("", action.dest), (command, action.dest)):
                action.choices = choices.get(key, action.choices)
                if key in completed:
                    action.complete = completed[key]
    sys.stdout.write(shtab.complete(main, arguments.shell))
    return 0


def _examples() -> tuple[str, ...]:
    try:
        return tuple(published())
    except UserError:  # an installation without examples
        return ()

"""read: where the boundaries cross a line through the map, per seed and over seeds."""

from __future__ import annotations

import argparse

from jobs.job import Scalar
from orchestrator.commands.again import command_line
from orchestrator.commands.notebook import results_of
from orchestrator.commands.wiring import load_sweep
from orchestrator.errors import UserError
from orchestrator.results.reading import lines_of


def read(arguments: argparse.Namespace) -> int:
    """Print the crossings; nothing is written."""
    at: dict[str, Scalar] = {}
    for text in arguments.at:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError("must be NAME=VALUE", place="--at", value=text, next_step="--at data_fraction=0.5")
        at[name] = _scalar(value)
    sweep = load_sweep(arguments)
    results = results_of(sweep)
    if not results.is_recorded:
        raise sweep.nothing_recorded(command_line(arguments, "run"))
    lines = lines_of(results.readings(at, arguments.along))
    where = f" at {', '.join(arguments.at)}" if arguments.at else ""
    print(f"{sweep.name}{where}")
    print("\n".join(lines or ["no boundary: one phase along the whole line"]))
    return 0


def _scalar(text: str) -> Scalar:
    """A value as YAML has it."""
    import yaml

    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value if isinstance(value, bool | int | float) else text

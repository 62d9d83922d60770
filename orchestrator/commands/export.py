"""export: write the results of a sweep as files, with a data dictionary."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.commands.again import command_line
from orchestrator.commands.notebook import results_of
from orchestrator.commands.wiring import load_sweep
from orchestrator.errors import UserError

_FILES = (".csv", ".parquet", ".nc", ".xlsx", ".json", ".zip")


def export(arguments: argparse.Namespace) -> int:
    """Write tables (Parquet, CSV) or arrays (NetCDF), and print the files."""
    sweep = load_sweep(arguments)
    results = results_of(sweep)
    if not results.is_recorded:
        raise sweep.nothing_recorded(command_line(arguments, "run"))
    if arguments.output and Path(arguments.output).suffix.lower() in _FILES:
        raise UserError(
            "-o is a folder, in which several files are written",
            place="-o",
            value=arguments.output,
            next_step=f"-o {Path(arguments.output).stem}; --format sets what kind of files",
        )
    folder = Path(arguments.output) if arguments.output else sweep.output / "export"
    metrics = None if arguments.metrics is None else [name.strip() for name in arguments.metrics.split(",")]
    for path in results.export(folder, format=arguments.format, metrics=metrics):
        print(f"{path.name:<25} {path}")
    return 0

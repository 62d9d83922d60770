"""The picture that `-o` names: its format, and where it cannot be written."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.errors import UserError


def output_of(arguments: argparse.Namespace, formats: Sequence[str]) -> Path | None:
    """The file that `-o` names; None where it is not given.

    Raises:
        UserError: its suffix is none of these formats.
    """
    if arguments.output is None:
        return None
    path = Path(arguments.output)
    suffix = path.suffix.removeprefix(".")
    if suffix not in formats:
        step = f"-o {path.with_suffix('.pdf')}"
        raise UserError(
            "the suffix is the format of the figure",
            place="-o",
            value=str(path),
            choices=tuple(f".{each}" for each in formats),
            next_step=step,
        )
    return path


@contextlib.contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """While the figure is written.

    Raises:
        UserError: it cannot be.
    """
    try:
        yield
    except OSError as error:
        if path is None or error.filename is None or Path(str(error.filename)).parent != path.parent:
            raise
        raise UserError(f"cannot be written: {error.strerror}", place=str(path), next_step="give another -o") from error

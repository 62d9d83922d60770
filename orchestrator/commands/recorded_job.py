"""The job that a record names: its code is imported only from places that the user, not the record, has chosen."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sysconfig
from pathlib import Path
from typing import Any

from jobs.catalogue import BUILT_IN, load_job
from jobs.function import described
from jobs.job import Job, JobNotFound
from orchestrator.errors import UserError
from orchestrator.output import importing
from orchestrator.printable import last_line

FOLDER = "run the command in the folder of the job's module, with the code that trained the trial"
_PROJECT = "phasefront"


def recorded_job(spec: str, *, place: str) -> tuple[Job[Any], str]:
    """The job with the name that a record has, and where its code is.

    Args:
        spec: The name.
        place: The run that has it, for messages.

    Raises:
        UserError: There is no such job, its code is neither built in, nor in the current folder, nor in an installed
            package that requires phasefront, or it cannot be loaded.
    """
    where = _checked(spec, place)
    try:
        with importing():
            return load_job(spec), where
    except JobNotFound as error:
        raise UserError(str(error), place=place, value=spec, next_step=FOLDER) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the module raises at import, SystemExit included
        rule = f"the job's code cannot be loaded: {last_line(described(error))}"
        raise UserError(rule, place=place, value=spec, next_step=FOLDER) from error


def _checked(spec: str, place: str) -> str:
    if spec in BUILT_IN or spec in BUILT_IN.values():
        return "built in"
    package = spec.partition(":")[0].partition(".")[0]
    # The specification of a package is read without importing it.
    try:
        found = importlib.util.find_spec(package) if package.isidentifier() else None
        if found is None:
            return ""  # `load_job` says so
        places = [
            *(found.submodule_search_locations or ()),
            *([found.origin] if found.has_location and found.origin else ()),
        ]
    except ValueError:  # a module that comes from no file, such as `__main__`
        places = []
    paths = [Path(path).resolve() for path in places]
    if paths and (all(map(_is_here, paths)) or _requires_phasefront(package)):
        return str(paths[-1])
    raise UserError(
        "the record names code that is no job of this folder or of this installation, so it is not imported",
        place=place,
        value=f"{spec}, in {paths[0] if paths else 'Python itself'}",
        choices=("built-in jobs", "modules of the current folder", f"installed packages that require {_PROJECT}"),
        next_step=f"if you trust the record, {FOLDER}",
    )


def _is_here(path: Path) -> bool:
    """Whether it is below the current folder, and not in an installation that is below it too, such as `.venv`."""
    installed = {Path(folder).resolve() for name, folder in sysconfig.get_paths().items() if "lib" in name}
    return path.is_relative_to(Path.cwd().resolve()) and not any(path.is_relative_to(folder) for folder in installed)


def _requires_phasefront(package: str) -> bool:
    for name in set(importlib.metadata.packages_distributions().get(package, ())) - {_PROJECT}:
        for requirement in importlib.metadata.requires(name) or ():
            required = re.match(r"[\w.-]+", requirement)
            if required and required[0].lower() == _PROJECT:
                return True
    return False

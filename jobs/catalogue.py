"""From the name of a job in a sweep file to the job itself."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from jobs.function import FunctionJob
from jobs.job import Job, JobNotFound

BUILT_IN = {
    "double_descent": "jobs.double_descent.job:DoubleDescent",
    "grokking": "jobs.grokking.job:Grokking",
    "ridge": "jobs.ridge.job:Ridge",
    "image_double_descent": "jobs.double_descent.image_job:ImageDoubleDescent",
}
"""Names of built-in jobs in a sweep file; any other job is `package.module:Name`."""


def is_built_in(spec: str) -> bool:
    """Whether this is a built-in job, by its name or by its class."""
    return spec in BUILT_IN or spec in BUILT_IN.values()


@cache
def load_job(spec: str) -> Job[Any]:
    """The job with a built-in name, or that of `module:Class` or `module:function`.

    A class is instantiated; a plain function `train(params, seed, device, report)` is wrapped (see `jobs.function`).

    Raises:
        JobNotFound: there is no such name, module or attribute, or it is neither a job nor a function.
    """
    target = BUILT_IN.get(spec, spec)
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise JobNotFound(
            f"no job is called {spec!r}; built in: {', '.join(BUILT_IN)}; your own: 'my_package.my_module:MyJob'",
            choices=tuple(BUILT_IN),
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = module_name == error.name or module_name.startswith(f"{error.name}.")
        raise JobNotFound(
            f"job {spec!r}: module {error.name!r} cannot be imported; it must be installed, "
            "or be in the folder where the command is started",
            choices=[f"{file.stem}:{attribute}" for file in sorted(Path.cwd().glob("*.py"))] if own else (),
            next_step="" if own else f"install {error.name}, or correct the import in {module_name}",
        ) from error
    job = getattr(module, attribute, None)
    if inspect.isclass(job) and issubclass(job, Job):
        return job()
    if inspect.isfunction(job):
        return FunctionJob(job)
    names = sorted(
        name
        for name, value in getattr(module, "__dict__", {}).items()  # a module may have put anything in its place
        if (inspect.isclass(value) and issubclass(value, Job) and not inspect.isabstract(value))
        or (inspect.isfunction(value) and value.__module__ == module.__name__)
    )
    raise JobNotFound(
        f"job {spec!r}: module {module_name!r} has no job {attribute!r}; it has: {', '.join(names) or 'none'}",
        choices=[f"{module_name}:{name}" for name in names],
    )

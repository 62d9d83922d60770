"""From the name of a job in a sweep file to the job itself."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any

from jobs.job import Job, JobNotFound

BUILT_IN = {
    "double_descent": "jobs.double_descent.job:DoubleDescent",
    "grokking": "jobs.grokking.job:Grokking",
    "ridge": "jobs.ridge.job:Ridge",
    "image_double_descent": "jobs.double_descent.image_job:ImageDoubleDescent",
}
"""Names that a sweep file may use as they are; any other job is `package.module:Name`."""


@cache
def load_job(spec: str) -> Job[Any]:
    """The job that `spec` names: a built-in name, or `module:Class`, or `module:function`.

    A class is instantiated; a plain function `train(params, seed, device, report)` is wrapped
    (see `jobs.function`).

    Raises:
        JobNotFound: no such name, module or attribute, or it is neither of the two.
    """
    target = BUILT_IN.get(spec, spec)
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise JobNotFound(
            f"no job is called {spec!r}; built in: {', '.join(BUILT_IN)}; your own: 'my_package.my_module:MyJob'"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise JobNotFound(
            f"job {spec!r}: module {error.name!r} cannot be imported; it must be installed, "
            "or lie in the folder the command is started from"
        ) from error
    found = getattr(module, attribute, None)
    if inspect.isclass(found) and issubclass(found, Job):
        return found()
    if inspect.isfunction(found):
        from jobs.function import FunctionJob

        return FunctionJob(found)
    names = sorted(
        name
        for name, value in vars(module).items()
        if (inspect.isclass(value) and issubclass(value, Job) and not inspect.isabstract(value))
        or (inspect.isfunction(value) and value.__module__ == module.__name__)
    )
    raise JobNotFound(f"job {spec!r}: module {module_name!r} has no job {attribute!r}; it has: {', '.join(names)}")

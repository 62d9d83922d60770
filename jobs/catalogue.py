"""From the name of a job in a sweep file to the job itself."""

from __future__ import annotations

import importlib
import inspect
import re
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
            next_step=_with_colon(spec),
        )
    if re.search(r"[/\\]|^\.", module_name):
        dotted = re.sub(r"[/\\]", ".", re.sub(r"^[./\\]+|\.py$", "", module_name))
        raise JobNotFound(
            f"job {spec!r}: a module is named as in an import, with dots between folders and without .py",
            next_step=f"did you mean '{dotted}:{attribute}'?",
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
        if inspect.isgeneratorfunction(job) or inspect.iscoroutinefunction(job) or inspect.isasyncgenfunction(job):
            raise JobNotFound(
                f"job {spec!r}: {attribute!r} is async, or a generator (it has a yield), and would never train",
                next_step="make it a plain function, which calls report(step, loss=...)",
            )
        try:
            return FunctionJob(job)
        except JobNotFound as error:
            place = f"{job.__code__.co_filename}:{job.__code__.co_firstlineno}"
            error.next_step = error.next_step or f"correct {place}"
            raise
    file = getattr(module, "__file__", None)  # a module may have put anything in its place
    if job is not None:
        raise JobNotFound(
            f"job {spec!r}: {attribute!r} in {file or module_name} is neither a function nor a subclass of "
            "jobs.job.Job, but " + ("another class" if inspect.isclass(job) else f"of type {type(job).__name__}"),
            next_step=_WRITE,
        )
    names = sorted(
        name
        for name, value in getattr(module, "__dict__", {}).items()
        if (inspect.isclass(value) and issubclass(value, Job) and not inspect.isabstract(value))
        or (inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"))
    )
    where, has = f" ({file})" if file else "", ", ".join(names) or "none"
    raise JobNotFound(
        f"job {spec!r}: module {module_name!r}{where} has no job {attribute!r}; it has: {has}",
        choices=[f"{module_name}:{name}" for name in names],
        next_step="" if names else _WRITE,
    )


_WRITE = "write `def train(params, seed, device, report): ...`, which may call it, and name that"


def _with_colon(spec: str) -> str:
    """What to write for a module, or a function in it, that is named without a colon; empty if there is none."""
    for module, attribute in ((spec, "train"), spec.rpartition(".")[::2]):
        if module and Path(f"{module.replace('.', '/')}.py").is_file():
            return f"a function is named after a colon: did you mean '{module}:{attribute}'?"
    return ""

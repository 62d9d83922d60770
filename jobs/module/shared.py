"""The parameters that the methods of a job see while several models are stacked.

The loss of stacked models is computed by one call, with one set of parameters. A value that the models do not share
must not be read there: it would be that of the first model. Reads are remembered, and trials are stacked only with
trials that have the same values of what is read.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Hashable, Sequence
from typing import Any, cast

from jobs.job import as_dict
from jobs.module.base import ModuleScience

_READ: dict[Hashable, set[str]] = {}
"""Kind of pack -> the parameters that its job reads while models are stacked."""


class ParamsDiffer(Exception):
    """A parameter was read whose value the stacked models do not share."""


def kind_of(job: ModuleScience, params: Any) -> tuple[Hashable, ...]:
    """The kind of pack that a trial belongs to."""
    return (type(job), job.pack_key(params))


def shared_values(job: ModuleScience, params: Any) -> tuple[Any, ...]:
    """The values that trials must share to be stacked: of the parameters that have been read so far."""
    return tuple(getattr(params, name) for name in sorted(_READ.get(kind_of(job, params), ())))


def read_apart(job: ModuleScience, params: Sequence[Any]) -> list[str]:
    """The parameters that are read and in which these trials of one kind differ."""
    names = sorted(_READ.get(kind_of(job, params[0]), ()))
    return [name for name in names if len({getattr(each, name) for each in params}) > 1]


def shared_params(job: ModuleScience, params: Sequence[Any]) -> Any:
    """The parameters of all these models: a copy of the first's.

    It remembers which fields are read. A field in which the models differ raises `ParamsDiffer`.
    """
    first, *others = (as_dict(each) for each in params)
    differ = frozenset(name for name, value in first.items() if any(other[name] != value for other in others))
    view, base = copy.copy(params[0]), cast(Any, type(params[0]))
    object.__setattr__(view, "__class__", _view(base, frozenset(first), differ, kind_of(job, params[0])))
    return view


@functools.lru_cache(maxsize=256)
def _view(base: Any, names: frozenset[str], differ: frozenset[str], kind: Hashable) -> type:
    read = _READ.setdefault(kind, set())

    def get(self: Any, name: str) -> Any:
        if name in names:
            read.add(name)
            if name in differ:
                raise ParamsDiffer(f"{name} is read, in which the trials of this pack differ")
        return base.__getattribute__(self, name)

    return type(base.__name__, (base,), {"__slots__": (), "__module__": base.__module__, "__getattribute__": get})

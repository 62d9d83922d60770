"""What `plan` and `check --rehearse` say about the modules of a sweep."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jobs.job import Member, as_dict
from jobs.module.base import ModuleScience
from jobs.module.cost import profile_of
from jobs.module.data import Random, tensors_of
from jobs.module.network import Network, OneNetwork
from jobs.module.pack import fastest, groups_of, trial_of, why_alone
from jobs.module.shared import read_apart

_MOST_KINDS = 6
"""Kinds of packs that are looked at, spread evenly over all."""
_MOST_STACKED = 64


def remarks(job: ModuleScience, params: Sequence[Any], *, measure: bool) -> Iterator[str]:
    """Lines about trials with these parameters; see `jobs.job.Job.remarks`."""
    kinds: dict[Hashable, list[Any]] = {}
    for each in params:
        kinds.setdefault(job.pack_key(each), []).append(each)
    every = max(1, len(kinds) // _MOST_KINDS)
    shown = list(kinds.values())[::every]
    reasons: dict[str, list[str]] = {}
    apart: dict[str, None] = {}
    for trials in shown:
        if reason := why_alone(job, trials[0]):
            reasons.setdefault(reason, []).append(_named(trials, params))
        elif names := read_apart(job, trials):
            apart.update(dict.fromkeys(names))
    for reason, names in reasons.items():
        which = "all trials" if len(names) == len(shown) else "; ".join(names)
        yield f"alone     {which} train one at a time: {reason}"
    if apart:
        yield f"apart     trials that differ in {', '.join(apart)} train apart: a method of the job reads it"
    if measure:
        ordered = sorted(shown, key=lambda trials: profile_of(job, trials[0]).parameters)
        for word, trials in {"cheapest": ordered[0], "dearest": ordered[-1]}.items():
            yield f"{word:<9} {_measured(job, trials, params)}"
            if len(ordered) == 1:
                break


def _named(trials: Sequence[Any], params: Sequence[Any]) -> str:
    """The parameters that these trials have in common, and others not."""

    def values(name: str, of: Sequence[Any]) -> set[Any]:
        return {getattr(each, name) for each in of}

    names = [name for name in as_dict(trials[0]) if len(values(name, trials)) == 1 < len(values(name, params))]
    return ", ".join(f"{name}={getattr(trials[0], name)}" for name in names) or "every trial"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measured(job: ModuleScience, trials: Sequence[Any], params: Sequence[Any]) -> str:
    members = [Member(params=p, seed=k + 1) for k, p in enumerate(trials[:_MOST_STACKED])]
    group = groups_of(job, [trial_of(job, k, member) for k, member in enumerate(members)])[0]
    profile = profile_of(job, trials[0])
    with _one_thread():
        way, times = fastest(job, group, "cpu")
    stacked = "one at a time" if way.size == 1 else f"{way.size} stacked" + ", recorded" * way.recorded
    network, data = Network.of(job, members[0]), job.data(trials[0], Random.of_seed(1))
    inputs = tuple(tensor[:2] for tensor in tensors_of(data.train[:1]))
    one = OneNetwork(job=job, params=trials[0], module=network.module.eval(), trained=(), fixed=())
    with torch.no_grad():
        output = one.output((), (), inputs[0] if len(inputs) == 1 else inputs)
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    return (
        f"{_named(trials, params)}: {', '.join(str(tuple(x.shape[1:])) for x in inputs)} -> {shape}, "
        f"{profile.parameters:,} parameters, {profile.model_bytes / 1e6:.1f} MB a model and "
        f"{profile.data_bytes / 1e6:.1f} MB of data; {stacked}, {1e3 * times[way]:.3f} ms a step of one model "
        f"({1e3 * times[type(way)(size=1)]:.3f} ms alone)"
    )

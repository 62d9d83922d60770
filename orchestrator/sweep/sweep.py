"""A sweep: a frozen object made from a YAML file after everything in it has been checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jobs.catalogue import load_job
from jobs.job import Job, ParamError, Params, Scalar, as_dict
from orchestrator.axes import Axis, AxisWritten
from orchestrator.errors import UserError
from orchestrator.search.space import Slice
from orchestrator.sweep.check import check_thresholds, check_values, combinations, find_job, replicated
from orchestrator.sweep.check_search import check_metric, check_search, interior, metric_keys, spread
from orchestrator.sweep.file import ResourcesKeys, SearchKeys, SweepFile, Tracking, check_form
from orchestrator.sweep.yaml import dump, read
from orchestrator.tracking.address import shown
from orchestrator.trial import Trial

__all__ = ["Axis", "Resources", "Sweep", "Tracking", "UserError"]

FORMAT = 1
"""Part of a sweep's identity: raise it when the same file no longer means the same trials."""
OPEN_REPLICATES = 64
"""Replicate numbers, and so seeds, that the trials of a search between points take turns with where none are given.

A map of one seed is a map of that seed's noise, and looks surer than it is."""
MOST_WITHOUT_BUDGET = 10_000
"""Trials of a search that ends by what is known alone."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a sweep may use; None leaves the choice to the machine."""

    workers: int | None = None
    """Worker processes; None for one per core, or per GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    memory_gb: float | None = None
    """Memory that one worker's pack may take."""


def _none_if_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _replicates(written: SweepFile, *, is_open: bool) -> int:
    """As written. A search between points never comes to a setting twice: unless said, its trials share few seeds."""
    if is_open and "replicates" not in written.model_fields_set:
        return OPEN_REPLICATES
    return written.replicates


def _resources(keys: ResourcesKeys) -> Resources:
    return Resources(
        workers=_none_if_auto(keys.workers),
        device=keys.device,
        cpus_per_worker=keys.cpus_per_worker,
        gpus_per_worker=_none_if_auto(keys.gpus_per_worker),
        memory_gb=_none_if_auto(keys.memory_gb),
    )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep file with its overrides, checked. Two sweeps with the same `id` run the same trials."""

    name: str
    source: Path
    job: str
    """The job as the file names it."""
    axes: tuple[Axis, ...]
    fixed: Mapping[str, Scalar]
    replicates: int
    seed: int
    """Base of every random number."""
    phases: Mapping[str, Scalar]
    """The thresholds that the file sets; `thresholds` has all of them."""
    resources: Resources
    tracking: Tracking
    output: Path
    """Folder of the files that a run makes."""
    written: SweepFile = field(repr=False)
    """The file's own keys, overrides and environment applied."""
    first: tuple[Trial, ...] = field(repr=False, compare=False)
    """Replicate 0 of every distinct setting, in order; of a sample of them, where an axis has no points."""
    search: SearchKeys = field(default_factory=SearchKeys)
    slices: tuple[Slice, ...] = field(default=(), repr=False, compare=False)
    """Where a boundary search looks; none for a grid."""
    metric_place: str = field(default="", repr=False, compare=False)
    """Where the file names the metric that a search looks for."""

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Sweep:
        """Read and check a sweep file, with `a.b=value` overrides laid over it.

        Args:
            path: The file.
            overrides: As given to `--set`, in order; a later one wins.
            environ: For `${NAME}`; the process's own environment by default.

        Raises:
            UserError: all the mistakes that could be found, with their places.
        """
        path = Path(path)
        document = read(path, overrides, os.environ if environ is None else environ)
        written = check_form(document)
        known = find_job(document)
        if known is None:
            document.stop_if_wrong()
            raise UserError("names no job", place=str(path))
        axes, fixed, phases = check_values(document, known)
        thresholds = None if document.wrong_under(("phases",)) else check_thresholds(document, known, phases)
        document.stop_if_wrong()
        if written is None:
            raise UserError("is no sweep file", place=str(path))
        slices = check_search(document, written.search, axes, fixed, known)
        is_open = any(axis.between for axis in axes)
        first = combinations(
            document,
            known,
            axes,
            fixed,
            replicates=1 if slices else written.replicates,
            seed=written.seed,
            also=interior(slices) if is_open and not document.wrong_under(("search",)) else (),
        )
        if written.search.kind == "boundary" and thresholds is not None:
            check_metric(document, written.search, known, first, thresholds)
        document.stop_if_wrong()
        name = written.name or path.stem
        metric = metric_keys(written.search)
        return cls(
            name=name,
            source=path,
            job=known.spec,
            axes=tuple(axes),
            fixed=fixed,
            replicates=_replicates(written, is_open=is_open),
            seed=written.seed,
            phases=phases,
            resources=_resources(written.resources),
            tracking=_tracking(written.tracking, os.environ if environ is None else environ),
            output=Path(written.output or f"phasefront-out/{name}"),
            written=written,
            first=tuple(first),
            search=written.search,
            slices=slices,
            metric_place=document.place(metric).text if metric else "",
        )

    @property
    def id(self) -> str:
        """32 hexadecimal digits: the hash of name, job, axes, fixed, replicates and seed.

        Of a search, what it looks for, its start and its seed belong to it; its budget does not: with a larger one the
        same search goes on.
        """
        axes = [[axis.name, axis.values, dict(axis.when), axis.group] for axis in self.axes]
        content = [
            "sweep",
            FORMAT,
            self.name,
            self.job,
            self.job_object().version,
            axes,
            dict(self.fixed),
            self.replicates,
            self.seed,
        ]
        if self.is_search:
            keys = self.search.model_dump(include={"kind", "target", "start"})
            content.append([keys, self.search_seed, [axis.between for axis in self.axes]])
        text = json.dumps(content, separators=(",", ":"), sort_keys=True, allow_nan=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def is_search(self) -> bool:
        """Whether a search decides which trials are run, rather than the grid of the axes."""
        return self.search.kind == "boundary"

    @property
    def is_open(self) -> bool:
        """Whether some axis has no points, so that nobody can list the trials."""
        return any(axis.between for axis in self.axes)

    @property
    def most_trials(self) -> int:
        """How many trials there are, or how many a search may ask for."""
        if not self.is_search:
            return len(self.first) * self.replicates
        most = MOST_WITHOUT_BUDGET if self.search.budget is None else self.search.budget
        return most if self.is_open else min(most, len(self.first) * self.replicates)

    @property
    def search_seed(self) -> int:
        """Base of the search's own random numbers."""
        return self.seed if self.search.seed is None else self.search.seed

    def job_object(self) -> Job[Any]:
        """The job itself."""
        return load_job(self.job)

    def thresholds(self) -> Params:
        """All of the job's thresholds, the file's own among them."""
        return self.job_object().Thresholds(**self.phases)

    def thresholds_fingerprint(self) -> str:
        """32 hexadecimal digits: the hash of the thresholds and of the job that reduces with them."""
        content = [self.job, self.job_object().version, as_dict(self.thresholds())]
        text = json.dumps(content, separators=(",", ":"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def trials(self) -> list[Trial]:
        """Every trial once, in an order that depends on the file alone; replicates of a setting are neighbours.

        Those that a search may choose from; none where an axis has no points.
        """
        return list(self._trials)

    @cached_property
    def _trials(self) -> tuple[Trial, ...]:
        return () if self.is_open else tuple(replicated(list(self.first), self.replicates))

    def trial(self, setting: Mapping[str, Scalar], replicate: int) -> Trial | None:
        """The trial of a setting; None where the job refuses these values together."""
        job = self.job_object()
        try:
            params = job.params_for(setting)
        except ParamError:
            return None
        return Trial(job=self.job, job_version=job.version, params=params, replicate=replicate, base_seed=self.seed)

    def sample(self, count: int) -> list[Trial]:
        """At most `count` trials like those that a search will ask for, to estimate by."""
        found = (self.trial(setting, 0) for setting in spread(self.slices, count))
        return [trial for trial in found if trial is not None]

    def resolved_yaml(self) -> str:
        """The sweep as YAML with every key said, for the record: it loads as a sweep with the same `id`.

        Passwords in the tracking address are left out.
        """
        file = self.written
        tracking = self.tracking.model_dump()
        tracking["uri"] = shown(tracking["uri"])
        return dump(
            {
                "name": self.name,
                "job": self.job,
                "axes": {name: _plain(axis) for name, axis in file.axes.items()},
                "zip": file.zip,
                "fixed": dict(self.fixed),
                "replicates": self.replicates,
                "seed": self.seed,
                **({"search": self._plain_search()} if self.is_search else {}),
                "phases": as_dict(self.thresholds()),
                "resources": file.resources.model_dump(),
                "tracking": tracking,
                "output": str(self.output),
            }
        )

    def _plain_search(self) -> dict[str, Any]:
        keys = self.search.model_dump(exclude_none=True)
        return {**keys, "storage": self.storage_shown}

    @property
    def storage_shown(self) -> str:
        """Where the study is, without a password."""
        return shown(self.search.storage)


def _tracking(written: Tracking, environ: Mapping[str, str]) -> Tracking:
    """As written; an address that is not is MLflow's own `$MLFLOW_TRACKING_URI`, where that is set."""
    address = environ.get("MLFLOW_TRACKING_URI")
    if "uri" in written.model_fields_set or not address:
        return written
    return written.model_copy(update={"uri": address})


def _plain(axis: AxisWritten) -> Any:
    if isinstance(axis, list):
        return axis
    return {"scale": axis.scale, **axis.model_dump(by_alias=True, exclude_defaults=True)}

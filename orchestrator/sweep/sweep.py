"""A sweep: an immutable object made from a YAML file once everything in it has been checked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.catalogue import load_job
from jobs.job import Job, ParamError, Params, Scalar, as_dict
from orchestrator.analyses.base import Analysis
from orchestrator.analyses.kinds import defaults
from orchestrator.axes import Axis, AxisWritten
from orchestrator.errors import Mistake, UserError
from orchestrator.phases.style import FigureStyle
from orchestrator.search.space import Slice, setting_of
from orchestrator.secrets import learn, secrets_in, shown
from orchestrator.sweep.check import (
    check_checkpoints,
    check_custom,
    check_thresholds,
    check_values,
    combinations,
    find_job,
    likely,
)
from orchestrator.sweep.check_analysis import check_analyses
from orchestrator.sweep.check_figure import check_figure
from orchestrator.sweep.check_search import (
    check_labels,
    check_level,
    check_rules,
    check_search,
    interior,
    metric_keys,
    named_metric,
    spread,
)
from orchestrator.sweep.check_secrets import check_secrets
from orchestrator.sweep.document import Keys
from orchestrator.sweep.extends import read
from orchestrator.sweep.file import Resources, SearchKeys, SweepFile, Tracking, check_form
from orchestrator.sweep.yaml import Reference, dump, without_defaults
from orchestrator.target import MetricTarget
from orchestrator.trial import Trial, digest

SETTINGS = ("job", "axes", "zip", "fixed")
"""The sections on which the settings of its trials depend."""
FORMAT = 1
"""Part of a sweep's id: raise it when the same file no longer means the same trials."""
OPEN_REPLICATES = 64
"""Replicate numbers, and so seeds, among a search's trials where the file gives none and an axis has no points.

A search rarely visits a setting twice. With one seed, the map would show the noise of that seed and look more certain
than it is."""
MOST_WITHOUT_BUDGET = 10_000
"""Most trials of a search without a budget."""


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
    """The file's own keys, with overrides and environment."""
    first: tuple[Trial, ...] = field(repr=False, compare=False)
    """Replicate 0 of every distinct setting of the grid, in order; axes without points stand for their two ends."""
    grid: tuple[Trial, ...] = field(default=(), repr=False, compare=False)
    """All trials of a grid in order, replicates together; of a search, which asks for some of them, `first` alone."""
    search: SearchKeys = field(default_factory=SearchKeys)
    slices: tuple[Slice, ...] = field(default=(), repr=False, compare=False)
    """Where a boundary search looks; empty for a grid."""
    secret_texts: Mapping[Keys, str] = field(default_factory=dict, repr=False, compare=False)
    """The addresses that refer to a secret of the environment, as written."""
    metric_place: str = field(default="", repr=False, compare=False)
    """Where the file names the metric of the search target."""
    label_place: str = field(default="", repr=False, compare=False)
    """Where the file names the metric by which trials are labelled, or would name it."""
    address_place: str = field(default="tracking.uri", repr=False, compare=False)
    """Where the tracking address is written."""
    extends: Path | None = field(default=None, repr=False, compare=False)
    """The sweep file that it extends; `resolved_yaml` does not name it."""
    refusals: tuple[Mistake, ...] = field(default=(), repr=False, compare=False)
    """Why no trials of it may be run; recorded ones can be looked at."""

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Sweep:
        """Read and check a sweep file with overrides `a.b=value`.

        Args:
            path: The file.
            overrides: As given to `--set`, in order; a later one wins.
            environ: For `${NAME}`; the environment of the process by default.

        Raises:
            UserError: all mistakes, with their places. Those that forbid new trials only are kept as `refusals`.
        """
        path, environ = Path(path), os.environ if environ is None else environ
        document, base = read(path, overrides, environ)
        check_secrets(document, environ)
        written = check_form(document)
        check_checkpoints(document)
        check_custom(document)
        if written is not None and not document.wrong_under(("search",)):
            check_rules(document, written.search)
        known = find_job(document)
        if known is None:
            document.stop_if_wrong()
            raise UserError("names no job", place=str(path))
        axes, fixed, phases = check_values(document, known)
        thresholds = None if document.wrong_under(("phases",)) else check_thresholds(document, known, phases)
        if written is None:
            document.stop_if_wrong()
            raise UserError("is no sweep file", place=str(path))
        # What depends on a part with mistakes is not checked; all else is, so that all is told at once.
        sound = not any(document.wrong_under((section,)) for section in SETTINGS)
        slices = check_search(document, written.search, axes, fixed, known) if sound else ()
        is_open = any(axis.between for axis in axes)
        also = interior(slices) if is_open and not document.wrong_under(("search",)) else ()
        replicates = 1 if slices else written.replicates
        if sound:
            grid = combinations(document, known, axes, fixed, replicates=replicates, seed=written.seed, also=also)
            first = grid[::replicates]
        else:
            grid, first = [], likely(document, known, axes, fixed)
        search = written.search
        if thresholds is not None:
            check_labels(document, search, known, first, thresholds)
            if search.kind == "boundary":
                search = named_metric(document, search, known, first, thresholds)
            check_level(document, search, known, thresholds)
        if thresholds is not None and first:
            sure = axes if sound and not document.wrong_under(("axes",)) else None
            check_analyses(document, written.analysis or (), sure, known, first, thresholds)
        check_figure(document, written.figure, known, first, thresholds)
        if written.output and Path(written.output).is_file():
            rule = "'output' must be a folder; this is a file"
            document.add(("output",), rule, value=written.output, next_step="name another one, or remove the file")
        document.stop_if_wrong()
        name = written.name or path.stem
        metric = metric_keys(written.search)
        tracking, address = written.tracking, environ.get("MLFLOW_TRACKING_URI")
        address_place = document.place(("tracking", "uri")).text
        secret_texts = dict(document.secret)
        if address and "uri" not in tracking.model_fields_set:
            tracking, address_place = tracking.model_copy(update={"uri": address}), "MLFLOW_TRACKING_URI"
            if secrets_in(address):
                secret_texts["tracking", "uri"] = "${MLFLOW_TRACKING_URI}"
        learn(tracking.uri, written.search.storage, written.resources.checkpoints or "")
        return cls(
            name=name,
            source=path,
            job=known.spec,
            axes=tuple(axes),
            fixed=fixed,
            replicates=written.replicates
            if not is_open or "replicates" in written.model_fields_set
            else OPEN_REPLICATES,
            seed=written.seed,
            phases=phases,
            resources=written.resources,
            tracking=tracking,
            output=Path(written.output or f"phasefront-out/{name}"),
            written=written,
            first=tuple(first),
            grid=tuple(grid),
            search=search,
            slices=slices,
            secret_texts=secret_texts,
            metric_place=document.place(metric).text if metric else "",
            label_place=document.place(("phases", "metric")).text,
            address_place=address_place,
            extends=base,
            refusals=document.of_new_trials(),
        )

    def stop_if_refused(self) -> None:
        """To be called before trials are run.

        Raises:
            UserError: `refusals`.
        """
        if self.refusals:
            raise UserError.of(self.refusals)

    @property
    def id(self) -> str:
        """32 hexadecimal digits: the hash of name, job, axes, fixed, replicates and seed.

        For a search also of its target, start and seed, but not of its budget: a larger budget continues the search.
        """
        axes = [[axis.name, axis.values, dict(axis.when), axis.group] for axis in self.axes]
        content: list[object] = ["sweep", FORMAT, self.name, self.job, self.job_object().version, axes]
        content += [dict(self.fixed), self.replicates, self.seed]
        if self.is_search:
            keys = self.search.model_dump(include={"kind", "target", "start"})
            content.append([keys, self.search_seed, [axis.between for axis in self.axes]])
        return digest(*content).hex()

    @property
    def is_search(self) -> bool:
        """Whether a search decides which trials are run, rather than the grid of the axes."""
        return self.search.kind == "boundary"

    @property
    def is_open(self) -> bool:
        """Whether an axis has no points, so that there is no grid."""
        return any(axis.between for axis in self.axes)

    @property
    def grid_size(self) -> int | None:
        """Trials of the grid, replicates counted; None where there is no grid."""
        return None if self.is_open else len(self.first) * self.replicates

    @property
    def most_trials(self) -> int:
        """Trials of a grid, or the most that a search may ask for."""
        limits = [] if self.grid_size is None else [self.grid_size]
        if self.is_search:
            limits.append(MOST_WITHOUT_BUDGET if self.search.budget is None else self.search.budget)
        return min(limits)

    @property
    def uncertain_area(self) -> float | None:
        """The share of uncertain area at which a search ends; None where the file gives none."""
        return self.search.until.uncertain_area if self.search.until else None

    @property
    def search_seed(self) -> int:
        """Base of the search's own random numbers."""
        return self.seed if self.search.seed is None else self.search.seed

    @property
    def retired(self) -> tuple[str, ...]:
        """The observation that its search looks for, if the job has retired it."""
        target = self.search.target
        if not (self.is_search and isinstance(target, MetricTarget)):
            return ()
        return tuple(name for name in self.job_object().retired if name == target.observation)

    @property
    def analyses(self) -> tuple[Analysis, ...]:
        """What is computed of its trials: as the file names it, else what the job proposes for a grid."""
        if self.written.analysis is not None:
            return tuple(self.written.analysis)
        if self.is_search:
            return ()
        written = self.job_object().analyses(self.thresholds())
        return defaults(written, self.axes, settings=len(self.first), replicates=self.replicates)

    @property
    def figure(self) -> FigureStyle:
        """How its figures look, with names for labels that do not say what they are."""
        written, names = self.written.figure, self.job_object().label_names(self.thresholds())
        return written.model_copy(update={"labels": {**names, **written.labels}}) if names else written

    def job_object(self) -> Job[Any]:
        """The job itself."""
        return load_job(self.job)

    def thresholds(self) -> Params:
        """All of the job's thresholds, with the values that the file sets."""
        return self.job_object().Thresholds(**self.phases)

    def thresholds_fingerprint(self) -> str:
        """32 hexadecimal digits: the hash of the thresholds and of the job that reduces with them."""
        return digest(self.job, self.job_object().version, as_dict(self.thresholds()), allow_nan=True).hex()

    def trials(self) -> list[Trial]:
        """Every trial of the grid once, in an order that depends on the file alone; replicates are neighbours.

        A search chooses among them. Empty where an axis has no points.
        """
        return list(self._trials)

    @cached_property
    def _trials(self) -> tuple[Trial, ...]:
        if self.is_open:
            return ()
        if not self.is_search:
            return self.grid
        numbers = range(self.replicates)
        return tuple(trial.with_replicate(n) if n else trial for trial in self.first for n in numbers)

    def trial(self, setting: Mapping[str, Scalar], replicate: int) -> Trial | None:
        """The trial of a setting; None where the job refuses this combination of values."""
        job = self.job_object()
        try:
            params = job.params_for(setting)
        except ParamError:
            return None
        return Trial(job=self.job, job_version=job.version, params=params, replicate=replicate, base_seed=self.seed)

    def holds(self, trial: Trial) -> bool:
        """Whether a trial lies in the space of the search."""

        def is_same(setting: Mapping[str, Scalar]) -> bool:
            same = self.trial(setting, trial.replicate)
            return same is not None and same.id == trial.id

        return trial.replicate < self.replicates and setting_of(self.slices, trial.settings(), is_same) is not None

    def sample(self, count: int) -> list[Trial]:
        """At most `count` trials spread evenly over the slices: estimates for a search are made from them."""
        trials = (self.trial(setting, 0) for setting in spread(self.slices, count))
        return [trial for trial in trials if trial is not None]

    def resolved_yaml(self) -> str:
        """The sweep as YAML, for the record, without keys that are not set: it loads as a sweep with the same `id`.

        Passwords are left out; a reference to the environment that stands for one is kept.
        """
        file = self.written
        storage = self._address(("search", "storage"), self.search.storage)
        search = {**self.search.model_dump(exclude_none=True), "storage": storage}
        axes = {name: _plain(axis) for name, axis in file.axes.items()}
        return dump(
            {
                "name": self.name,
                "job": self.job,
                "axes": axes,
                "zip": file.zip,
                "fixed": dict(self.fixed),
                "replicates": self.replicates,
                "seed": self.seed,
                **({"search": search} if self.is_search else {}),
                "phases": as_dict(self.thresholds()),
                **({"analysis": _written(file.analysis)} if file.analysis is not None else {}),
                **({"figure": file.figure.model_dump(exclude_defaults=True)} if file.figure != FigureStyle() else {}),
                "resources": self._resources(),
                "tracking": {
                    **self.tracking.model_dump(),
                    "uri": self._address(("tracking", "uri"), self.tracking.uri),
                },
                "output": str(self.output),
            }
        )

    def _resources(self) -> dict[str, Any]:
        written = self.written.resources
        plain = {k: "auto" if v is None else v for k, v in written.model_dump().items()}
        plain["trial_timeout"] = written.trial_timeout
        for name in ("checkpoint_interval", "keep", "max_share", "accelerator_type", "custom"):
            if getattr(written, name) == type(written).model_fields[name].default:
                del plain[name]
        if written.checkpoints == "auto":
            del plain["checkpoints"]
        else:
            address = written.checkpoints
            plain["checkpoints"] = address and self._address(("resources", "checkpoints"), address)
        return plain

    def _address(self, keys: Keys, uri: str) -> str:
        """An address as the record has it."""
        text = self.secret_texts.get(keys)
        return shown(uri) if text is None else Reference(shown(without_defaults(text)))

    @property
    def record_shown(self) -> str:
        """Where the sweep is recorded, without a password."""
        return f"{shown(self.tracking.uri)}, experiment {self.tracking.experiment}"

    def nothing_recorded(self, run: str) -> UserError:
        """The error where nothing is recorded of the sweep; `run` is the command that records it.

        A relative SQLite path is of the current folder: a record beside the sweep file is named, as it may be meant.
        """
        rule, step, there = "nothing is recorded of this sweep yet", run, self.record_beside
        if there is not None:
            rule += f" in the current folder; {there}, beside the sweep file, has a record"
            step = f"cd {shlex.quote(str(there))}, and the same command there for {shlex.quote(self.source.name)}"
        return UserError(rule, place=str(self.source), value=self.record_shown, next_step=step)

    @property
    def record_beside(self) -> Path | None:
        """The folder of the sweep file, if another SQLite file of that name is there than in the current folder."""
        path, folder = self._sqlite_path, self.source.parent.resolve()
        if not path or Path(path).is_absolute() or folder == Path.cwd():
            return None
        return folder if (folder / path).is_file() else None

    @property
    def _sqlite_path(self) -> str:
        return self.tracking.uri.removeprefix("phasefront-").partition("sqlite:///")[2].partition("?")[0]

    @property
    def storage_shown(self) -> str:
        """The address of the study, without a password."""
        return shown(self.search.storage)


def _written(analyses: Sequence[Analysis]) -> list[Any]:
    return [analysis.model_dump(exclude_defaults=True) for analysis in analyses]


def _plain(axis: AxisWritten) -> Any:
    if isinstance(axis, list):
        return axis
    return {"scale": axis.scale, **axis.model_dump(by_alias=True, exclude_defaults=True)}

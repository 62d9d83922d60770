"""The `search:` section of a sweep file against its axes and its job: what is searched, where, and when it stops."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from jobs.catalogue import is_built_in
from jobs.function import FunctionJob
from jobs.job import BEST, FINAL, Curves, Params, Scalar, bounded
from orchestrator.axes import Axis, Cycle, TooManyTrials
from orchestrator.errors import Mistake, did_you_mean, nearest
from orchestrator.search.space import MOST_COORDINATES, Slice, SpaceError, slices_of
from orchestrator.surface.base import lattice
from orchestrator.sweep.check import Vocabulary
from orchestrator.sweep.document import Document, Keys
from orchestrator.sweep.file import SearchKeys
from orchestrator.target import LevelTarget, MetricTarget, PhaseTarget
from orchestrator.trial import Trial

INTERIOR = 64
"""Settings inside every slice that the job checks before anything runs."""


def check_rules(document: Document, search: SearchKeys) -> None:
    """Note what is wrong in the section whatever the job and the axes are."""
    if search.kind != "boundary":
        _check_unused(document)
        return
    if search.budget is None and search.until is None:
        document.add(
            ("search",),
            "a boundary search needs a stopping rule: 'budget' or 'until' is missing",
            key=True,
            next_step="add 'budget: 400', or 'until: {uncertain_area: 0.01}'",
        )
    _check_storage(document)


def check_search(
    document: Document, search: SearchKeys, axes: Sequence[Axis], fixed: Mapping[str, Scalar], known: Vocabulary
) -> tuple[Slice, ...]:
    """The slices of a boundary search; none for a grid, or for axes that cannot be searched. Mistakes are noted."""
    if search.kind != "boundary":
        return ()
    try:
        slices = slices_of(axes, fixed, known.defaults)
    except SpaceError as error:
        document.add(("axes", error.axis), error.rule, key=True, next_step=error.next_step)
        return ()
    except (Cycle, TooManyTrials):
        return ()  # `combinations` reports it
    _check_slices(document, search, slices, axes)
    return slices


def _check_unused(document: Document) -> None:
    """Keys of a boundary search that are written for a grid."""
    written = [name for name in document.data.get("search") or () if name != "kind"]
    if written:
        document.add(
            ("search", written[0]),
            f"'{written[0]}' is for a boundary search, and this is a grid",
            key=True,
            choices=tuple(SearchKeys.model_fields),
            next_step="add 'kind: boundary' under 'search:'",
        )


def _check_storage(document: Document) -> None:
    storage = document.get(("search", "storage"))
    uri = document.get(("tracking", "uri"))
    if isinstance(storage, str) and isinstance(uri, str) and _without_driver(storage) == _without_driver(uri):
        document.add(
            ("search", "storage"),
            "the study needs its own database: MLflow and Optuna use the same table names",
            value=storage,
            next_step="name another file or database",
        )


def _without_driver(uri: str) -> str:
    scheme, _, rest = uri.removeprefix("phasefront-").partition("://")
    return f"{scheme.partition('+')[0].replace('postgresql', 'postgres')}://{rest}"


def _check_slices(document: Document, search: SearchKeys, slices: Sequence[Slice], axes: Sequence[Axis]) -> None:
    target, along = search.target, search.target.axis
    fewest = 1 if along is None else 2
    for slice_ in slices:
        count = len(slice_.coordinates)
        if fewest <= count <= MOST_COORDINATES:
            continue
        varied = {axis.name for axis in axes} & slice_.fixed.keys()
        where = "".join(f" where {name} is {value}" for name, value in slice_.fixed.items() if name in varied)
        rule = f"a boundary search has {fewest} to {MOST_COORDINATES} axes with a scale; it has {count}{where}"
        next_step = "give an axis a scale: each value of a list is searched as a slice of its own"
        if count > MOST_COORDINATES:
            next_step = "zip axes (zip:), or list a few values of one"
        document.add(("axes",) if "axes" in document.data else ("search",), rule, key=True, next_step=next_step)
        break
    if along is not None and any(slice_.axis_index(along) is None for slice_ in slices):
        ranges = tuple(axis.name for axis in axes if axis.scale != "values")
        document.add(
            ("search", "target", str(target.axis_key)),
            f"'{along}' is no axis with a scale everywhere in this sweep",
            value=along,
            choices=ranges,
            next_step=did_you_mean(along, ranges, "name one of the axes"),
        )
    if search.budget is not None and search.budget < len(slices):
        document.add(
            ("search", "budget"),
            f"there are {len(slices)} slices to search, more than the budget has trials",
            value=search.budget,
            next_step="raise the budget, or list fewer values",
        )


def metric_keys(search: SearchKeys) -> Keys | None:
    """Where the file names the metric of its search; None for a target without one."""
    target = search.target
    return ("search", "target", target.metric_key) if isinstance(target, MetricTarget) else None


def named_metric(
    document: Document, search: SearchKeys, known: Vocabulary, first: Iterable[Trial], thresholds: Params
) -> SearchKeys:
    """The search with the observation that its target means: the name of a metric stands for its last value.

    A metric that no trial of a built-in job or of a module observes, or that a function does not name, is noted. What
    another class of a user's observes is not known before the search runs.
    """
    keys = metric_keys(search)
    if keys is None:
        return search
    name = str(document.get(keys))
    full = f"{FINAL}{name}"
    if isinstance(known.job, FunctionJob):
        valid = tuple(f"{FINAL}{metric}" for metric in known.job.named_metrics)
        meant = name if name.startswith(FINAL) else full
        rule = f"function {known.spec!r} names no metric '{name.removeprefix(FINAL)}'"
    elif is_built_in(known.spec):
        valid = observations(known, first, thresholds)
        meant = full if name not in valid and full in valid else name
        rule = f"job {known.spec!r} has no observation '{name}'"
    else:
        check_observed(document, keys, (name,), known, observations(known, first, thresholds))
        return search
    if valid and meant not in (*valid, *known.job.retired):
        document.add(keys, rule, value=name, choices=valid, next_step=_meant(name, valid))
    if meant == name:
        return search
    return search.model_copy(update={"target": search.target.model_copy(update={str(keys[-1]): meant})})


def check_level(document: Document, search: SearchKeys, known: Vocabulary, thresholds: Params) -> None:
    """Note a level, of a search or of `phases`, that no trial passes: of a metric that the job has from 0 to 1."""
    target, level = search.target, getattr(thresholds, "level", None)
    if search.kind == "boundary" and isinstance(target, LevelTarget):
        _check_share(document, ("search", "target", "level"), target.metric, target.level, known)
    if isinstance(level, float) and (names := known.job.labelled_by(thresholds)):
        _check_share(document, ("phases", "level"), names[0], level, known)


def _check_share(document: Document, keys: Keys, observation: str, level: float, known: Vocabulary) -> None:
    metric = observation.removeprefix(FINAL).removeprefix(BEST)
    if metric not in known.job.shares or 0 <= level <= 1:
        return
    step = "write a level between 0 and 1"
    if 1 < level <= 100:
        step = f"if it is a percentage, write 'level: {level / 100:g}'"
    rule = f"'{metric}' is from 0 to 1 in every trial, and the level is outside"
    document.add(keys, rule, value=level, next_step=step, new_trials=True)


def check_observed(
    document: Document, keys: Keys, names: Sequence[str], known: Vocabulary, valid: Sequence[str]
) -> None:
    """Note an observation of a user's job, under all its names, that is none of the valid ones, if these are known."""
    if mistake := unobserved(names, known.spec, valid):
        step = mistake.next_step
        document.add(keys, mistake.rule, value=names[-1], choices=valid, next_step=step, new_trials=True)


def unobserved(names: Sequence[str], job: str, valid: Sequence[str]) -> Mistake | None:
    """The mistake of an observation, under all its names, that is none of the valid ones; None if none are known."""
    name = names[-1]
    if not valid or {*names} & {*valid} or bounded(name, valid):
        return None
    rule = f"job {job!r} has no observation '{name}'"
    return Mistake(rule=rule, value=name, choices=valid, next_step=_meant(name, valid))


def _meant(name: str, valid: Sequence[str]) -> str:
    """The next step for a name of a metric or an observation: first the last value of the nearest metric."""
    stems = [full.removeprefix(FINAL) for full in valid if full.startswith(FINAL)]
    if (near := nearest(name.removeprefix(FINAL), stems)) and not name.startswith(BEST):
        return f"did you mean '{FINAL}{near}'?"
    return did_you_mean(name, valid, "name one of these")


def check_labels(
    document: Document, search: SearchKeys, known: Vocabulary, first: Iterable[Trial], thresholds: Params
) -> None:
    """Note a metric of `phases` that trials do not report, and a search in which all trials have one label.

    A function without `phases` has finished or diverged trials only. Whoever looks for where it diverges writes
    `target: phase`.
    """
    job = known.job
    if isinstance(job, FunctionJob) and (names := job.labelled_by(thresholds)):
        valid = job.named_metrics
        if valid and not {name.removeprefix(FINAL) for name in names} & {*valid}:
            written = names[0].removeprefix(FINAL)
            document.add(
                ("phases", "metric"),
                f"function {known.spec!r} names no metric '{written}'",
                value=written,
                choices=valid,
                next_step=did_you_mean(written, valid, "name one of these"),
                new_trials=True,
            )
    elif not is_built_in(known.spec) and (names := job.labelled_by(thresholds)):
        check_observed(document, ("phases", "metric"), names, known, observations(known, first, thresholds))
    if search.kind != "boundary" or not isinstance(search.target, PhaseTarget):
        return
    labels = job.labels(thresholds)
    is_default = "target" not in search.model_fields_set
    if len(labels) > 1 and not (is_default and set(labels) == {"finished", "diverged"}):
        return
    rule = f"the search looks for where the phase changes, and every trial has the label '{labels[0]}'"
    step = "search for a level of an observation: 'target: {metric: NAME, level: NUMBER}'"
    if isinstance(job, FunctionJob):
        rule += ", unless it diverges"
        step = (
            "add 'phases: {metric: NAME, level: NUMBER}', or 'target: {metric: NAME, level: NUMBER}' under 'search:'; "
            "to search for where it diverges, write 'target: phase'"
        )
    document.add(("search",), rule, key=True, next_step=step, new_trials=True)


def observations(
    known: Vocabulary, first: Iterable[Trial], thresholds: Params, *, measure: bool = False
) -> tuple[str, ...]:
    """Names of the observations that a job makes of any of these trials, from curves of one row, in order.

    Empty where they are not known before trials run, as of a user's job that is no module. `measure`: see
    `Job.possible_metrics`.
    """
    job, is_own = known.job, not is_built_in(known.spec)
    names: dict[str, None] = {}
    seen: set[tuple[str, ...]] = set()
    for trial in first:
        possible = job.possible_metrics(trial.params, measure=measure) if is_own else [job.metrics_of(trial.params)]
        if not possible:
            return ()
        for metrics in possible:
            if metrics not in seen:
                seen.add(metrics)
                row = Curves(step=np.ones(1, dtype=np.int64), values={metric: np.zeros(1) for metric in metrics})
                try:
                    names.update(dict.fromkeys(job.observe(trial.params, row, thresholds)))
                except Exception:
                    if is_own:  # the user's own `observe`, of a curve that is none
                        return ()
                    raise
    return tuple(names)


def interior(slices: Sequence[Slice], count: int = INTERIOR) -> Iterator[dict[str, Scalar]]:
    """Settings spread evenly over every slice; the grid of the axes' ends has the corners."""
    for slice_ in slices:
        yield from map(slice_.setting, slice_.snap(lattice(count, len(slice_.coordinates))))


def spread(slices: Sequence[Slice], count: int) -> Iterator[dict[str, Scalar]]:
    """`count` settings like those of a search, the slices in turn."""
    each = -(-count // max(1, len(slices)))
    turns = zip(*(interior([slice_], each) for slice_ in slices), strict=True)
    yield from itertools.islice(itertools.chain.from_iterable(turns), count)

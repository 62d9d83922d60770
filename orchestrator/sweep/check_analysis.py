"""The `analysis:` section of a sweep file against its axes and its job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs.catalogue import is_built_in
from jobs.job import Params
from orchestrator.analyses.base import STEP, Analysis
from orchestrator.analyses.peak import PeakAnalysis
from orchestrator.axes import Axis
from orchestrator.errors import did_you_mean
from orchestrator.sweep.check import Vocabulary
from orchestrator.sweep.check_search import observations
from orchestrator.sweep.document import Document, Keys
from orchestrator.trial import Trial


def check_analyses(
    document: Document,
    analyses: Sequence[Analysis],
    axes: Sequence[Axis],
    known: Vocabulary,
    first: Sequence[Trial],
    thresholds: Params,
) -> None:
    """Note names that the sweep does not have. What a user's own job observes is not known before it runs."""
    if not analyses:
        return
    numeric = tuple(axis.name for axis in axes if all(_is_number(value) for value in axis.values))
    metrics = tuple(dict.fromkeys(name for trial in first for name in known.job.metrics_of(trial.params)))
    observed = observations(known, first, thresholds) if is_built_in(known.spec) else ()
    labels: dict[str, int] = {}
    for position, analysis in enumerate(analyses):
        at, needs = ("analysis", position), analysis.needs
        takes_step = isinstance(analysis, PeakAnalysis)
        _named(
            document,
            at,
            needs.axes,
            (*numeric, STEP) if takes_step else numeric,
            "is no axis with numbers in this sweep",
        )
        _named(document, at, needs.settings, tuple(axis.name for axis in axes), "is not an axis of this sweep")
        if is_built_in(known.spec):
            _named(document, at, needs.observations, observed, f"is no observation of job {known.spec!r}")
        if metrics:
            _named(document, at, needs.metrics, metrics, f"is no metric of job {known.spec!r}")
        for key, rule, next_step in analysis.contradictions():
            document.add((*at, key), rule, value=document.get((*at, key)), next_step=next_step)
        if analysis.label in labels:
            rule = f"two analyses are named '{analysis.label}'; the first is entry {labels[analysis.label] + 1}"
            document.add(at, rule, key=True, next_step="give one of them another 'name:'")
        labels.setdefault(analysis.label, position)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(document: Document, at: Keys, named: Iterable[tuple[str, str]], valid: tuple[str, ...], rule: str) -> None:
    for key, name in named:
        if name not in valid:
            next_step = did_you_mean(name, valid, "name one of these" if valid else "")
            document.add((*at, key), f"'{name}' {rule}", value=name, choices=valid, next_step=next_step)

"""The `analysis:` section of a sweep file against its axes and its job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs.catalogue import is_built_in
from jobs.job import Params, bounded
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
    axes: Sequence[Axis] | None,
    known: Vocabulary,
    first: Sequence[Trial],
    thresholds: Params,
) -> None:
    """Note names that the sweep does not have. What a user's own job observes is not known before it runs.

    Where there are mistakes in the settings, `axes` is None, and names of axes are not checked.
    """
    if not analyses:
        return
    numeric = tuple(axis.name for axis in axes or () if all(_is_number(value) for value in axis.values))
    metrics = tuple(dict.fromkeys(name for trial in first for name in known.job.metrics_of(trial.params)))
    if unnamed := not metrics:  # a job that names no metrics, and may know them all the same
        some = (names for trial in first for names in known.job.possible_metrics(trial.params))
        metrics = tuple(dict.fromkeys(name for names in some for name in names))
    is_own = not is_built_in(known.spec)
    observed = observations(known, first, thresholds)
    labels: dict[str, int] = {}
    for position, analysis in enumerate(analyses):
        at, needs = ("analysis", position), analysis.needs
        takes_step = isinstance(analysis, PeakAnalysis)
        if axes is not None:
            numbers = (*numeric, STEP) if takes_step else numeric
            _named(document, at, needs.axes, numbers, "is no axis with numbers in this sweep")
            _named(document, at, needs.settings, tuple(axis.name for axis in axes), "is not an axis of this sweep")
        if observed or not is_own:
            rule = f"is no observation of job {known.spec!r}"
            named = [(key, name) for key, name in needs.observations if not (is_own and bounded(name, observed))]
            _named(document, at, named, observed, rule, new_trials=is_own)
        if metrics:
            _named(document, at, needs.metrics, metrics, f"is no metric of job {known.spec!r}", new_trials=unnamed)
        if isinstance(analysis, PeakAnalysis) and (analysis.window or 1) > 1:
            _not_negative(document, (*at, "window"), analysis.along, axes or ())
        for key, rule, next_step in analysis.contradictions():
            document.add((*at, key), rule, value=document.get((*at, key)), next_step=next_step)
        if analysis.label in labels:
            rule = f"two analyses are named '{analysis.label}'; the first is entry {labels[analysis.label] + 1}"
            document.add(at, rule, key=True, next_step="give one of them another 'name:'")
        labels.setdefault(analysis.label, position)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _not_negative(document: Document, at: Keys, along: str, axes: Sequence[Axis]) -> None:
    """A window is a factor of x, and smooths in log(1 + x)."""
    for axis in axes:
        least = min((v for v in axis.values if isinstance(v, int | float)), default=0)
        if axis.name == along and least < 0:
            rule = f"a window smooths in the logarithm, and axis '{along}' has negative values, from {least:g} on"
            next_step = "write 'window: 1', which does not smooth"
            document.add(at, rule, value=document.get(at), next_step=next_step, new_trials=True)


def _named(
    document: Document,
    at: Keys,
    named: Iterable[tuple[str, str]],
    valid: tuple[str, ...],
    rule: str,
    *,
    new_trials: bool = False,
) -> None:
    for key, name in named:
        if name not in valid:
            next_step = did_you_mean(name, valid, "name one of these" if valid else "")
            document.add(
                (*at, key),
                f"'{name}' {rule}",
                value=name,
                choices=valid,
                next_step=next_step,
                new_trials=new_trials,
            )

"""The `figure:` section of a sweep file against its axes and its job."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.catalogue import is_built_in
from jobs.function import FunctionJob
from jobs.job import FINAL, Params
from orchestrator.errors import did_you_mean
from orchestrator.phases.style import PHASE, FigureStyle, formula_error
from orchestrator.sweep.check import Vocabulary
from orchestrator.sweep.check_search import check_observed, observations
from orchestrator.sweep.document import Document, Keys
from orchestrator.trial import Trial


def check_figure(
    document: Document,
    style: FigureStyle,
    known: Vocabulary,
    first: Sequence[Trial],
    thresholds: Params | None,
) -> None:
    """Note names that the sweep does not have, and formulas that cannot be drawn.

    Of a user's own job, phases are checked, and panels where it is known what it observes before it runs.
    """
    phases = known.job.phases
    for name in style.colours:
        _named(document, ("figure", "colours", name), name, phases, "is no phase of this job")
    for name, text in style.labels.items():
        error = formula_error(text)
        if error is not None:
            step = r"write formulas between dollar signs, for example '$\lambda$' or '$\alpha_{c}$'"
            document.add(("figure", "labels", name), f"cannot be drawn: {error}", value=text, next_step=step)
    if thresholds is None or not first:
        return
    observed = observations(known, first, thresholds) if style.panels or style.labels else ()
    if not is_built_in(known.spec):
        if isinstance(known.job, FunctionJob):
            observed = tuple(f"{FINAL}{metric}" for metric in known.job.named_metrics)
        valid = (PHASE, *observed) if observed else ()
        for position, name in enumerate(style.panels):
            check_observed(document, ("figure", "panels", position), (name,), known, valid)
        return
    written = document.data.get("axes")
    varying = tuple(written) if isinstance(written, dict) else ()
    metrics = tuple(dict.fromkeys(name for trial in first[:1] for name in known.job.metrics_of(trial.params)))
    for position, name in enumerate(style.panels):
        _named(
            document, ("figure", "panels", position), name, (PHASE, *observed), "is neither 'phase' nor an observation"
        )
    choices = tuple(dict.fromkeys((*varying, PHASE, "step", *phases, *observed, *metrics, *known.params)))
    for name in style.labels:
        _named(document, ("figure", "labels", name), name, choices, "is no axis, observation or phase", key=True)


def _named(
    document: Document, at: Keys, name: str, choices: Sequence[str], rule: str, *, key: bool | None = None
) -> None:
    if name not in choices:
        on_key = at[1] == "colours" if key is None else key
        step = did_you_mean(name, choices, "take one of the valid names")
        document.add(at, f"'{name}' {rule}", key=on_key, choices=choices, next_step=step)

"""What `plan` and `check --rehearse` find out of a module before it trains: whether it reports what the file names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.catalogue import is_built_in
from orchestrator.errors import Mistake, UserError
from orchestrator.phases.style import PHASE
from orchestrator.sweep.check import Vocabulary
from orchestrator.sweep.check_search import observations, unobserved
from orchestrator.target import MetricTarget

if TYPE_CHECKING:
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.trial import Trial

KINDS = 3
"""Kinds of packs that are looked at, spread over all: options may add metrics."""


def check_reported(sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Check the metrics of `phases`, search, analyses and panels, where a few examples tell what is reported.

    The sweep file alone does not: a module's `probe` may report anything.

    Raises:
        UserError: a trial reports none of that name.
    """
    job, thresholds, target = sweep.job_object(), sweep.thresholds(), sweep.search.target
    sought: list[tuple[str, str, tuple[str, ...]]] = []
    if names := job.labelled_by(thresholds):
        sought.append((sweep.label_place, "", names))
    if sweep.is_search and isinstance(target, MetricTarget):
        sought.append((sweep.metric_place, "", (target.observation,)))
    for each in sweep.written.analysis or ():
        needed = (name for _, name in each.needs.observations)
        sought += [(str(sweep.source), f"analysis {each.label!r}: ", (name,)) for name in needed]
    sought += [(str(sweep.source), "figure.panels: ", (name,)) for name in sweep.figure.panels if name != PHASE]
    if not sought or is_built_in(sweep.job):
        return
    kinds = {job.pack_key(trial.params): trial for trial in trials}
    some = [*kinds.values()][:: max(1, len(kinds) // KINDS)][:KINDS]
    known = Vocabulary(job=job, spec=sweep.job, params={}, thresholds={})
    valid = observations(known, some, thresholds, measure=True)
    mistakes: list[Mistake] = []
    for place, where, names in sought:
        if mistake := unobserved(names, sweep.job, valid):
            step = f"{mistake.next_step} {job.reporting_advice.format(metric=names[-1])}".strip()
            mistakes.append(replace(mistake, place=place, rule=where + mistake.rule, next_step=step))
    if mistakes:
        raise UserError.of(mistakes)

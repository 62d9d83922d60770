"""The metric that a search looks for against the observations that its job makes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jobs.catalogue import BUILT_IN
from jobs.job import Curves, Params
from orchestrator.errors import nearest
from orchestrator.sweep.check import Vocabulary
from orchestrator.sweep.document import Document, Keys
from orchestrator.sweep.file import target_kind
from orchestrator.trial import Trial


def metric_keys(document: Document) -> Keys | None:
    """Where the file names the metric of its search; None where the phases are looked for."""
    name = {"level": "metric", "ridge": "ridge"}.get(target_kind(document.get(("search", "target"))) or "")
    return ("search", "target", name) if name else None


def check_target(document: Document, known: Vocabulary, first: Iterable[Trial], thresholds: Params) -> None:
    """Note a metric that no trial of a built-in job has.

    A job of the user's own may make an observation of some trials alone, so that nobody knows them all before.
    """
    keys = metric_keys(document)
    if keys is None or known.spec not in {*BUILT_IN, *BUILT_IN.values()}:
        return
    name, valid = document.get(keys), observations(known, first, thresholds)
    if not isinstance(name, str) or not valid or name in valid:
        return
    near = nearest(name, valid)
    document.add(
        keys,
        f"job {known.spec!r} has no observation '{name}'",
        value=name,
        choices=valid,
        next_step=f"did you mean '{near}'?" if near else "name one of these",
    )


def observations(known: Vocabulary, first: Iterable[Trial], thresholds: Params) -> tuple[str, ...]:
    """Names of what a built-in job observes of any of these trials: those of a curve with one row, in order."""
    names: dict[str, None] = {}
    seen: set[tuple[str, ...]] = set()
    for trial in first:
        metrics = known.job.metrics_of(trial.params)
        if metrics not in seen:
            seen.add(metrics)
            row = Curves(step=np.ones(1, dtype=np.int64), values={metric: np.zeros(1) for metric in metrics})
            names.update(dict.fromkeys(known.job.observe(trial.params, row, thresholds)))
    return tuple(names)

"""audit: check that a recorded sweep is consistent."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.audit import Expected, Invariant, Report, audit
from orchestrator.commands.searching import known_trials
from orchestrator.commands.wiring import load_sweep, nothing_recorded, open_tracker, reading_patience
from orchestrator.secrets import secrets_of

if TYPE_CHECKING:
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.trial import Trial


def audit_(arguments: argparse.Namespace) -> int:
    """Exit code 0 if every invariant holds, 1 otherwise. Nothing is written."""
    from orchestrator.tracking.factory import open_reader

    sweep = load_sweep(arguments)
    place = str(arguments.file)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        parent = tracker.find_sweep(sweep.id)
        if parent is None:
            raise nothing_recorded(sweep, place, f"phasefront run {place}")
        trials = {trial.id: trial for trial in known_trials(sweep, tracker)}
        patience = reading_patience(f"the record ({sweep.record_shown})")
        reader = open_reader(sweep.tracking.uri, experiment=sweep.tracking.experiment, patience=patience)
        with contextlib.closing(reader):
            secrets = {f"${name}": value for value, name in secrets_of(os.environ).items()}
            driver = reader.has_driver()
            report = audit(expected(sweep, trials), reader.runs(), tracker.curves, secrets, has_driver=driver)
    print("\n".join([f"sweep     {sweep.name} ({sweep.id})", f"record    {sweep.record_shown}", *lines(report)]))
    return 1 if report.violations else 0


def expected(sweep: Sweep, trials: Mapping[str, Trial]) -> Expected:
    """The sweep as the audit compares the record with it; `trials`, by id, are those known of it."""
    return Expected(
        sweep_id=sweep.id,
        job=sweep.job_object(),
        trials=trials,
        is_grid=not sweep.is_search,
        thresholds=sweep.thresholds(),
        fingerprint=sweep.thresholds_fingerprint(),
    )


def lines(report: Report) -> list[str]:
    """The report in words: one line for each invariant, with what breaks it below."""
    states = ", ".join(f"{count} {status.lower()}" for status, count in sorted(report.statuses.items()))
    said = [f"read      {report.runs} runs of trials ({states or 'none'}), {report.rows:,} curve rows"]
    for invariant in Invariant:
        wrong = [violation for violation in report.violations if violation.invariant is invariant]
        if wrong:
            said.append(f"VIOLATED  {invariant.value}: {len(wrong)} of {report.checked[invariant]:,} checked")
            said += [f"          {violation.text}" for violation in wrong]
        elif report.checked[invariant]:
            said.append(f"ok        {invariant.value}: {report.checked[invariant]:,} checked")
    if report.skipped:
        labels = f"{report.skipped} trials are labelled under other thresholds (`phases:`)"
        said.append(f"note      {labels}; `phasefront map` relabels")
    wrong_count = len(report.violations)
    return [*said, f"result    {wrong_count} violations" if wrong_count else "result    consistent"]

"""audit: check that a recorded sweep is consistent."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.audit import Expected, Invariant, Report, Violation, audit
from orchestrator.commands.again import command_line
from orchestrator.commands.searching import known_trials
from orchestrator.commands.status import Driver
from orchestrator.commands.wiring import load_sweep, open_tracker, reading_patience
from orchestrator.secrets import secrets_of

if TYPE_CHECKING:
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.trial import Trial


RUNS_SHOWN = 3
"""Runs that are named of violations of the same kind."""
_NUMBER = re.compile(r"\b[0-9a-f]{32}\b|\d+(\.\d+)?(e[-+]?\d+)?")


def audit_(arguments: argparse.Namespace) -> int:
    """Exit code 0 if every invariant holds, but for what the next run mends; 1 otherwise. Nothing is written."""
    from orchestrator.tracking.factory import open_reader

    sweep = load_sweep(arguments)
    place = str(arguments.file)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        parent = tracker.find_sweep(sweep.id)
        if parent is None:
            raise sweep.nothing_recorded(f"phasefront run {place}")
        trials = {trial.id: trial for trial in known_trials(sweep, tracker)}
        patience = reading_patience(f"the record ({sweep.record_shown})")
        reader = open_reader(sweep.tracking.uri, experiment=sweep.tracking.experiment, patience=patience)
        with contextlib.closing(reader):
            secrets = {value: f"${name}" for value, name in secrets_of(os.environ).items()}
            driver = Driver.of(reader, parent)
            report = audit(expected(sweep, trials), reader.runs(), tracker.curves, secrets, has_driver=driver.runs)
    said = lines(report, every=arguments.all, run=driver.again or command_line(arguments, "run"))
    print("\n".join([f"sweep     {sweep.name} ({sweep.id})", f"record    {sweep.record_shown}", *said]))
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


def lines(report: Report, *, every: bool = False, run: str = "phasefront run") -> list[str]:
    """The report in words: one line for each invariant, with what breaks it below.

    Violations that are alike but for their numbers share a line, unless `every` one is asked for. `run` is the command
    that resumes the sweep.
    """
    states = ", ".join(f"{count} {status.lower()}" for status, count in sorted(report.statuses.items()))
    said = [f"read      {report.runs} runs of trials ({states or 'none'}), {report.rows:,} curve rows"]
    for invariant in Invariant:
        wrong = [violation for violation in report.violations if violation.invariant is invariant]
        left = [violation for violation in report.resumable if violation.invariant is invariant]
        for word, some in (("VIOLATED", wrong), ("resumable", left)):
            if not some:
                continue
            said.append(f"{word:9} {invariant.value}: {len(some)} of {report.checked[invariant]:,} checked")
            kinds: dict[object, list[Violation]] = {}
            for k, violation in enumerate(some):
                kinds.setdefault(k if every else _NUMBER.sub("#", violation.what), []).append(violation)
            said += [f"          {_said(alike)}" for alike in kinds.values()]
        if report.checked[invariant] and not wrong and not left:
            said.append(f"ok        {invariant.value}: {report.checked[invariant]:,} checked")
    if report.skipped:
        labels = f"{report.skipped} trials are labelled under other thresholds (`phases:`)"
        said.append(f"note      {labels}; `phasefront map` relabels")
    wrong_count = len(report.violations)
    if not every and any("more like it" in line for line in said):
        said.append("note      those of the same kind share a line; `--all` lists each of them")
    result = f"{wrong_count} violations" if wrong_count else "consistent"
    if report.resumable:
        trials = len({violation.trial_id for violation in report.resumable})
        result += f", unfinished: {trials} handed out when their driver ended. To resume: {run}"
    return [*said, f"result    {result}"]


def _said(alike: list[Violation]) -> str:
    """Violations of the same kind in one line: the first of them, how many more, and some of their runs."""
    first, *more = alike
    if not more:
        return first.text
    runs = list(dict.fromkeys(violation.run_id for violation in more if violation.run_id))
    named = ", ".join(runs[: RUNS_SHOWN - 1]) + (", ..." if len(runs) >= RUNS_SHOWN else "")
    return f"{first.text}; and {len(more):,} more like it" + (f", in runs {named}" if runs else "")

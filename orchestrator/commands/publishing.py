"""map, and the end of run: from the record to the phase diagram and its files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.commands.wiring import load_sweep, open_tracker, sweep_record
from orchestrator.records import Status
from orchestrator.relabel import relabel_stale
from orchestrator.tracking.base import Tracker
from orchestrator.trial import Trial

if TYPE_CHECKING:
    from orchestrator.phases.publish import Published
    from orchestrator.runner import Summary
    from orchestrator.sweep import Sweep


def publish_record(sweep: Sweep, trials: Sequence[Trial], tracker: Tracker) -> Published:
    """Draw what is recorded of these trials, and keep the files with the parent run."""
    from orchestrator.phases.publish import publish

    rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials])}
    published = publish(sweep, trials, rows, sweep.output)
    tracker.attach(published.files)
    return published


SUMMARY = "run.json"
"""What the last run that did something did and took, beside the diagram and with the parent run."""


def keep_summary(sweep: Sweep, summary: Summary, tracker: Tracker, parent: str) -> None:
    """Write `run.json`."""
    names = ("done", "failed", "skipped", "workers", "seconds", "startup_s", "train_s", "record_s", "estimated_s")
    content = {name: getattr(summary, name) for name in names}
    content |= {"parent": parent, "thresholds": sweep.thresholds_fingerprint()}
    path = sweep.output / SUMMARY
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    scratch.replace(path)
    tracker.attach({path.name: path})


def is_published(sweep: Sweep, summary: Summary, parent: str) -> bool:
    """Whether this run changed nothing, and an earlier one has drawn the whole sweep as it is recorded."""
    if summary.done or summary.failed or summary.relabelled:
        return False
    try:
        last = json.loads((sweep.output / SUMMARY).read_text())
        drawn = all((sweep.output / name).exists() for name in ("phase_diagram.png", "trials.parquet"))
        whole = last["done"] + last["skipped"] == summary.skipped and not last["failed"]
        same = last["parent"] == parent and last["thresholds"] == sweep.thresholds_fingerprint()
        return bool(drawn and whole and same)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def print_files(published: Published) -> None:
    """Where the files are."""
    for name, path in sorted(published.files.items()):
        print(f"{name:<25} {path}")
    for warning in published.warnings:
        print(f"warning: {warning}")


def map_(arguments: argparse.Namespace) -> int:
    """Rebuild the diagram from the record alone; phases under other thresholds are reduced anew."""
    sweep = load_sweep(arguments)
    trials = sweep.trials()
    tracker = open_tracker(sweep)
    try:
        recorded = tracker.index([trial.id for trial in trials])
        if not recorded:
            from orchestrator.errors import UserError

            raise UserError(
                "nothing is recorded of this sweep yet",
                place=str(arguments.file),
                value=f"{sweep.tracking.uri}, experiment {sweep.tracking.experiment}",
                next_step=f"phasefront run {arguments.file}",
            )
        # A run may be under way, and what its status says is its own.
        tracker.open_sweep(sweep_record(sweep), running=False)
        fingerprint = sweep.thresholds_fingerprint()
        finished = [t for t in trials if t.id in recorded and recorded[t.id].status is Status.FINISHED]
        stale = [trial for trial in finished if recorded[trial.id].thresholds != fingerprint]
        relabelled = sum(
            result.status is Status.FINISHED
            for result in relabel_stale(tracker, sweep.job_object(), stale, sweep.thresholds())
        )
        published = publish_record(sweep, trials, tracker)
        tracker.annotate(published.metrics)
    finally:
        tracker.close()
    print(f"{len(finished)} of {len(trials)} trials are finished")
    if relabelled:
        print(f"{relabelled} were labelled anew under the thresholds of {arguments.file}")
    print_files(published)
    return 0

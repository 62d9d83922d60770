"""map, and the end of run: from the record to the phase diagram and its files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.commands.inspect import command_line
from orchestrator.commands.searching import history, trials_at_hand
from orchestrator.commands.wiring import load_sweep, open_tracker, sweep_record
from orchestrator.records import Status
from orchestrator.relabel import relabel_stale
from orchestrator.sweep.file import MOST_BUDGET
from orchestrator.tracking.address import shown
from orchestrator.tracking.base import Tracker
from orchestrator.trial import Trial

if TYPE_CHECKING:
    from orchestrator.phases.publish import Published
    from orchestrator.phases.publish_map import Drawing
    from orchestrator.phases.table import TableNote
    from orchestrator.runner import Summary
    from orchestrator.sweep.sweep import Sweep


def publish_record(
    sweep: Sweep,
    trials: Sequence[Trial],
    tracker: Tracker,
    *,
    classifier: bool = False,
    history: Sequence[tuple[int, float]] = (),
) -> Published:
    """Draw what is recorded of these trials, and keep the files and the search's curve with the parent run.

    The metrics are those to annotate: the last value of a curve is `map/<name>` there.

    Args:
        sweep: what was asked.
        trials: all its trials so far, in the order in which they were asked.
        tracker: the record.
        classifier: whether the classifier draws a grid's map; a search's it always does.
        history: (trials, uncertain area) as a search went, where that is known.
    """
    from orchestrator.phases.publish import publish

    rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials])}
    drawing = drawing_of(sweep, history) if classifier or sweep.is_search else None
    replaced = _of_another(sweep)
    published = publish(sweep, trials, rows, sweep.output, drawing=drawing, curves=tracker.curves, sweep_id=sweep.id)
    tracker.attach(published.files)
    left = tracker.detach(published.gone)
    for name, points in published.curves.items():
        tracker.trace(name, points)
    # A curve's last point is that of the search; this map may be drawn under other thresholds.
    metrics = {f"map/{name}" if name in published.curves else name: v for name, v in published.metrics.items()}
    warnings = published.warnings
    if replaced:
        warnings += (replaced,)
    if left:
        names = ", ".join(left)
        warnings += (f"the artifacts {names} are of an earlier map, and cannot be deleted where they are kept",)
    notes = (*published.notes, *_end_of_search(sweep, len(trials), published.metrics.get("uncertain_area")))
    return replace(published, metrics=metrics, warnings=warnings, notes=notes)


def _drawn_sweep(sweep: Sweep) -> TableNote | None:
    """What the table in the output folder says of the sweep whose map lies there; None where there is none."""
    from orchestrator.phases.table import read_note

    try:
        return read_note(sweep.output / "trials.parquet")
    except (OSError, ValueError, KeyError, TypeError):  # no table of ours: what pyarrow raises is a ValueError
        return None


def _of_another(sweep: Sweep) -> str | None:
    """That the map in the output folder is of another sweep, in words, where it is."""
    there = _drawn_sweep(sweep)
    if there is None or there.sweep_id in ("", sweep.id):
        return None
    return (
        f"{sweep.output} held the map of another sweep, {there.name} ({there.sweep_id[:12]}), which this one has "
        "replaced. To keep both, give one of them another `name:`, or a folder of its own: --set output=FOLDER"
    )


def _end_of_search(sweep: Sweep, asked: int, area: float | None) -> list[str]:
    """Whether a search has reached the aim that its `until` sets, in words; nothing where it sets none."""
    until = sweep.search.until
    if not sweep.is_search or until is None or area is None:
        return []
    from orchestrator.phases.text import percent, plural

    aim = f"the aim of {percent(until.uncertain_area)}"
    if area <= until.uncertain_area:
        return [f"{aim} was reached after {plural(asked, 'trial')}: `until` ends the search"]
    if asked < sweep.most_trials:
        return [f"{aim} is not reached yet: {asked:,} of at most {plural(sweep.most_trials, 'trial')} were asked"]
    grid = sweep.grid_size
    if grid is not None and asked >= grid:
        return [f"{aim} was not reached: all {plural(grid, 'trial')} of its grid were asked; give the axes more points"]
    more = min(2 * sweep.most_trials, MOST_BUDGET, *([] if grid is None else [grid]))
    return [f"{aim} was not reached: the budget is spent; go on with `--set search.budget={more}`"]


def drawing_of(sweep: Sweep, history: Sequence[tuple[int, float]] = ()) -> Drawing:
    """How the classifier draws a sweep: what its search looks for, or the phases of a grid."""
    from orchestrator.phases.publish_map import Drawing

    return Drawing(target=sweep.search.target, search=True, history=history) if sweep.is_search else Drawing()


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
        drawn = drawn and _of_another(sweep) is None
        whole = last["done"] + last["skipped"] == summary.skipped and not last["failed"]
        same = last["parent"] == parent and last["thresholds"] == sweep.thresholds_fingerprint()
        return bool(drawn and whole and same)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def print_files(published: Published) -> None:
    """What the map says, and where the files are."""
    for note in published.notes:
        print(note)
    for name, path in sorted(published.files.items()):
        print(f"{name:<25} {path}")
    for warning in published.warnings:
        print(f"warning: {warning}")


def map_(arguments: argparse.Namespace) -> int:
    """Rebuild the diagram from the record alone; phases under other thresholds are reduced anew."""
    sweep = load_sweep(arguments)
    tracker = open_tracker(sweep)
    try:
        trials = trials_at_hand(sweep, tracker)
        recorded = tracker.index([trial.id for trial in trials])
        if not recorded:
            from orchestrator.errors import UserError

            raise UserError(
                "nothing is recorded of this sweep yet",
                place=str(arguments.file),
                value=f"{shown(sweep.tracking.uri)}, experiment {sweep.tracking.experiment}",
                next_step=command_line(arguments, "run"),
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
        published = publish_record(sweep, trials, tracker, classifier=arguments.classifier, history=history(sweep))
        tracker.annotate(published.metrics)
    finally:
        tracker.close()
    print(f"{len(finished)} of {len(trials)} trials are finished")
    if relabelled:
        print(f"{relabelled} were labelled anew under the thresholds of {arguments.file}")
    print_files(published)
    return 0

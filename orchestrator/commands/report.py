"""report, and the end of run and map: one page about a sweep."""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.job import as_dict
from orchestrator.analyses.publish import TABLES
from orchestrator.commands.again import command_line
from orchestrator.commands.browse import browse_lines
from orchestrator.commands.inspect import search_lines
from orchestrator.commands.publishing import SUMMARY, publish_record
from orchestrator.commands.searching import history, known_trials
from orchestrator.commands.wiring import load_sweep, open_tracker, relabelled, sweep_record
from orchestrator.failures import signature
from orchestrator.phases.text import label_colour, plain, words
from orchestrator.records import Status
from orchestrator.report.content import (
    Failure,
    Pair,
    Picture,
    Report,
    Table,
    axis_text,
    cost_of,
    scalar,
    shortened,
    tables_of,
)

if TYPE_CHECKING:
    from orchestrator.phases.publish import Published
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import Tracker
    from orchestrator.trial import Trial

REPORT = "report.html"
MOST_FAILURES = 10
"""Different errors that are shown with a traceback."""
_CAPTIONS = {
    "phase_diagram": "Phases over the axes",
    "phase_diagram_lines": "Observations along an axis, with the phases below",
    "search_progress": "Uncertain area over the trials of the search",
    "theory_curves": "Curves beside those that theory predicts",
}
_FILES = {
    "phase_diagram.html": "the phase diagram, interactive",
    "trials.parquet": "all trials: parameters, phase, observations",
    "boundary.parquet": "points of the boundary with its band",
    "analysis.json": "all results of the analyses",
    "sweep_metrics.json": "numbers about the whole sweep",
}


def report(arguments: argparse.Namespace) -> int:
    """Draw the map and compute the analyses from the record alone, and write the report about them."""
    sweep = load_sweep(arguments)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        trials = known_trials(sweep, tracker)
        if not tracker.index([trial.id for trial in trials]):
            raise sweep.nothing_recorded(command_line(arguments, "run"))
        parent = tracker.open_sweep(sweep_record(sweep), running=False)  # beside a run, which keeps its status
        tracker.complete(trials)
        relabelled(sweep, trials, tracker)
        published = publish_record(sweep, trials, tracker, history=history(sweep, tracker), analyses=True)
        tracker.annotate(published.metrics)
        path = keep_report(arguments, sweep, trials, tracker, published, parent)
    print(path)
    return 0


def keep_report(
    arguments: argparse.Namespace,
    sweep: Sweep,
    trials: Sequence[Trial],
    tracker: Tracker,
    published: Published,
    parent: str,
) -> Path:
    """Write the report beside the map, and keep it with the parent run.

    Args:
        arguments: of the command; they say how to repeat it.
        sweep: The sweep.
        trials: All its trials so far.
        tracker: Its record.
        published: The map, with the analyses if they were computed.
        parent: The run id of its parent run.
    """
    from orchestrator.report.page import write_report

    table = published.table
    failed = [trial for trial, status in zip(table.trial_id, table.status, strict=True) if status == Status.FAILED]
    errors = {row.trial_id: row.error or "" for row in tracker.rows(failed, settings=False)}
    labels = Counter(phase for phase in table.phase if phase is not None)
    pages = {line[:10].strip(): line[10:] for line in browse_lines(sweep.tracking.uri, tracker.experiment_id, parent)}
    tables = tables_of(sweep.output / TABLES) if TABLES in published.files else ()
    commands = {"run what is missing": "run", "write this report anew": "report"}
    content = Report(
        name=sweep.name,
        state=tuple((status.lower(), f"{count:,}") for status, count in Counter(table.status).items()),
        asked=_asked(sweep),
        phases=tuple(
            (
                plain(sweep.figure.labels.get(label, label)),
                labels[label],
                sweep.figure.colours.get(label, label_colour(k)),
            )
            for k, label in enumerate(sweep.job_object().phases)
            if labels[label]
        ),
        found=published.notes,
        warnings=published.warnings,
        tables=tables,
        pictures=_pictures(published.files, tables),
        failures=failures_of(sweep, [trial for trial in trials if trial.id in errors], errors),
        cost=cost_of(sweep.output / SUMMARY),
        commands=(
            *((what, command_line(arguments, command)) for what, command in commands.items()),
            *(("serve the curves", command) for name, command in pages.items() if name == "browse"),
        ),
        links=tuple((f"{name} in MLflow", address) for name, address in pages.items() if address.startswith("http")),
        files=tuple((name, what) for name, what in _FILES.items() if name in published.files),
        sweep_file=sweep.resolved_yaml(),
    )
    path = write_report(content, sweep.output / REPORT)
    tracker.attach({REPORT: path})
    return path


def _asked(sweep: Sweep) -> tuple[Pair, ...]:
    pairs = [("job", sweep.job), *((words(axis.name), axis_text(axis)) for axis in sweep.axes)]
    fixed = ", ".join(f"{words(name)} {scalar(value)}" for name, value in sweep.fixed.items())
    pairs += [("fixed", fixed)] if fixed else []
    pairs.append(("replicates", f"{sweep.replicates}, base seed {sweep.seed}"))
    pairs += [(line[:10].strip(), line[10:]) for line in search_lines(sweep)]
    thresholds = ", ".join(f"{words(name)} {scalar(value)}" for name, value in as_dict(sweep.thresholds()).items())
    return (*pairs, *((("thresholds of the phases", thresholds),) if thresholds else ()))


def _pictures(files: Mapping[str, Path], tables: Sequence[Table]) -> tuple[Picture, ...]:
    """The PNG figures: those of the map, those of the analyses in their order, then all others."""
    captions = _CAPTIONS | {f"analysis_{table.name}": table.title for table in tables}
    stems = [Path(name).stem for name in sorted(files) if name.endswith(".png")]
    ordered = [*(stem for stem in captions if stem in stems), *(stem for stem in stems if stem not in captions)]
    return tuple(Picture(file=files[f"{stem}.png"], caption=captions.get(stem) or words(stem)) for stem in ordered)


def failures_of(sweep: Sweep, failed: Sequence[Trial], errors: Mapping[str, str]) -> tuple[Failure, ...]:
    """Failed trials by their error, the most frequent first."""
    kinds: dict[tuple[str, str], list[Trial]] = {}
    for trial in failed:
        kinds.setdefault(signature(errors[trial.id]), []).append(trial)
    groups = sorted(kinds.values(), key=len, reverse=True)[:MOST_FAILURES]
    return tuple(
        Failure(
            count=len(group),
            first=group[0].text(axis.name for axis in sweep.axes),
            text=shortened(errors[group[0].id]) or "no error is recorded",
        )
        for group in groups
    )

"""map, and the end of run: draw the phase diagram from the record, and keep its files."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.again import command_line
from orchestrator.commands.analysing import analysed
from orchestrator.commands.earlier import ON_REQUEST, held_by_another, keep_earlier
from orchestrator.commands.figures import check_figures, draw_figures, is_further
from orchestrator.commands.picture import output_of, writing
from orchestrator.commands.searching import history, known_trials
from orchestrator.commands.wiring import load_sweep, open_tracker, relabelled, sweep_record
from orchestrator.phases.style import FORMATS, PHASE, drawn_as
from orchestrator.records import Status, Summary, phase_metric
from orchestrator.sanity import MARK_STEP, marked, unreported
from orchestrator.sweep.check_search import unobserved
from orchestrator.sweep.file import MOST_BUDGET
from orchestrator.tracking.base import Tracker
from orchestrator.trial import Trial, digest

if TYPE_CHECKING:
    from jobs.job import Observations, Params
    from orchestrator.phases.publish import Published
    from orchestrator.phases.publish_map import Drawing
    from orchestrator.sweep.sweep import Sweep


def publish_record(
    sweep: Sweep,
    trials: Sequence[Trial],
    tracker: Tracker,
    *,
    classifier: bool = False,
    history: Sequence[tuple[int, float]] = (),
    analyses: bool = False,
    figures: Sequence[str] = (),
    also: Path | None = None,
    width: str | float | None = None,
) -> Published:
    """Draw what is recorded of these trials, and keep the files and the search's curve with the parent run.

    Args:
        sweep: The sweep.
        trials: All its trials so far, in the order in which they were asked for.
        tracker: Its record.
        classifier: Whether the classifier draws the map of a grid; that of a search it always draws.
        history: (trials, uncertain area) in the course of a search, where it is known.
        analyses: Whether what the sweep file names under `analysis:` is computed too.
        figures: formats of the figures beside PNG, see `publish`.
        also: where the phase diagram is written too, for a page.
        width: that of `also`, instead of the style's.

    Returns:
        The files, notes and metrics; the last value of a curve is the metric `map/<name>`.
    """
    from orchestrator.phases.publish import publish
    from orchestrator.reduce import doubt_lines, doubts
    from orchestrator.results.columns import write_columns

    rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials], settings=False)}
    drawing = drawing_of(sweep, history) if classifier or sweep.is_search else None
    moved = keep_earlier(sweep, {row.run_id for row in rows.values()}, tracker.sweep_start_ms)
    published = publish(
        sweep,
        trials,
        rows,
        sweep.output,
        drawing=drawing,
        curves=tracker.curves,
        sweep_id=sweep.id,
        sweep_start_ms=tracker.sweep_start_ms,
        figures=figures,
        style=sweep.figure,
        also=also,
        width=width,
    )
    done = analysed(sweep, trials, published.table, tracker, figures) if analyses else None
    if done is not None:
        published = replace(
            published,
            files=published.files | done.files,
            gone=published.gone + done.gone,
            metrics=published.metrics | done.metrics,
            analysis=tuple(done.lines),
        )
    explained = write_columns(sweep.output, sweep.axes, trials)
    published = replace(published, files={**published.files, explained.name: explained})
    tracker.attach(published.files)
    left = tracker.detach(published.gone)
    _describe(sweep, tracker, [note for note in published.notes if not note.startswith("  next:")])
    for name, points in published.curves.items():
        tracker.trace(name, points)
    # The last point of a curve is the search's own; this map may be drawn under other thresholds.
    metrics = {f"map/{name}" if name in published.curves else name: v for name, v in published.metrics.items()}
    warnings = published.warnings
    finished = [
        (trial.params, row.recorded.observations)
        for trial in trials
        if (row := rows.get(trial.id)) and row.recorded.status is Status.FINISHED
    ]
    warnings += tuple(f"doubtful curves: {line}" for line in doubt_lines(doubts(sweep.job_object(), finished)))
    warnings += warnings_of(sweep, finished)
    warnings += _left_out(sweep, dict.fromkeys(name for _, observations in finished for name in observations))
    if moved:
        warnings += (moved,)
    if left:
        warnings += (f"artifacts of an earlier map that the artifact store cannot delete: {', '.join(left)}",)
    notes = (*published.notes, *_end_of_search(sweep, len(trials), published.metrics.get("uncertain_area")))
    return replace(published, metrics=metrics, warnings=warnings, notes=notes)


def _describe(sweep: Sweep, tracker: Tracker, notes: Sequence[str]) -> None:
    """Show the map in the description of the parent run."""
    from orchestrator.tracking.layout import description

    parent, experiment = tracker.find_sweep(sweep.id), tracker.experiment_id
    if parent is not None and experiment is not None:
        tracker.describe(description(sweep_record(sweep), experiment, parent, notes or ("no boundary is known",)))


def warnings_of(sweep: Sweep, finished: Sequence[tuple[Params, Observations]]) -> tuple[str, ...]:
    """Warnings about the labels of finished trials: marks of the job, and a metric that no trial reports."""
    job, thresholds = sweep.job_object(), sweep.thresholds()
    warnings = [f"{line}\n  next:  {MARK_STEP}" for line in marked(job, thresholds, finished)]
    names = job.labelled_by(thresholds)
    observed = dict.fromkeys(name for _, observations in finished for name in observations)
    if names and observed and not any(name in observed for name in names):
        warnings.append(unreported(names, observed, job=job, place=sweep.label_place, trials=len(finished)).text)
    return tuple(warnings)


def _left_out(sweep: Sweep, observed: Collection[str]) -> tuple[str, ...]:
    """Warnings about panels that no finished trial has, but for those that the sweep file was refused for."""
    warnings = []
    for name in sweep.figure.panels:
        mistake = unobserved((name,), sweep.job, (PHASE, *observed)) if observed else None
        if mistake is not None and all(name != refusal.value for refusal in sweep.refusals):
            rule = f"figure.panels: no finished trial has the observation '{name}', and it is left out"
            warnings.append(replace(mistake, place=str(sweep.source), rule=rule).text)
    return tuple(warnings)


def _end_of_search(sweep: Sweep, asked: int, area: float | None) -> list[str]:
    """A note on whether a search has reached the uncertain area of its `until`; none without one."""
    goal, grid = sweep.uncertain_area, sweep.grid_size
    if not sweep.is_search or goal is None or area is None:
        return []
    from orchestrator.phases.text import percent, plural

    share = f"the uncertain area of {percent(goal)}"
    if area <= goal:
        return [f"{share} was reached after {plural(asked, 'trial')}: `until` ends the search"]
    if asked < sweep.most_trials:
        return [f"{share} is not reached yet: {asked:,} of at most {plural(sweep.most_trials, 'trial')} have run"]
    if grid is not None and asked >= grid:
        return [f"{share} was not reached with all {plural(grid, 'trial')} of the grid; give the axes more points"]
    more = min(2 * sweep.most_trials, MOST_BUDGET, MOST_BUDGET if grid is None else grid)
    return [f"{share} was not reached within the budget; continue with `--set search.budget={more}`"]


def drawing_of(sweep: Sweep, history: Sequence[tuple[int, float]] = ()) -> Drawing:
    """How the classifier draws a sweep: the target of its search, or the phases of a grid."""
    from orchestrator.phases.publish_map import Drawing

    return Drawing(target=sweep.search.target, search=True, history=history) if sweep.is_search else Drawing()


SUMMARY = "run.json"
"""What the last run that changed something did, and its times: beside the diagram and with the parent run."""


def keep_summary(sweep: Sweep, summary: Summary, tracker: Tracker, parent: str) -> None:
    """Write `run.json`."""
    names = ("done", "failed", "skipped", "workers", "seconds", "startup_s", "train_s", "record_s", "estimated_s")
    content = {name: getattr(summary, name) for name in names}
    content |= {"parent": parent, "thresholds": sweep.thresholds_fingerprint(), "analyses": _named_analyses(sweep)}
    content |= {"figure": _style(sweep)}
    path = sweep.output / SUMMARY
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    scratch.replace(path)
    tracker.attach({path.name: path})


def is_published(sweep: Sweep, summary: Summary, tracker: Tracker, parent: str, figures: Sequence[str] = ()) -> bool:
    """Whether this run changed nothing, and an earlier run has drawn the sweep as it is recorded, in these formats."""
    if summary.done or summary.failed or summary.relabelled:
        return False
    try:
        last = json.loads((sweep.output / SUMMARY).read_text())
        drawn = all((sweep.output / name).exists() for name in ("phase_diagram.png", "trials.parquet"))
        drawn = drawn and all((sweep.output / f"phase_diagram.{kind}").exists() for kind in figures)
        drawn = drawn and held_by_another(sweep, (), tracker.sweep_start_ms) is None
        whole = last["done"] + last["skipped"] == summary.skipped and not last["failed"]
        same = last["parent"] == parent and last["thresholds"] == sweep.thresholds_fingerprint()
        same = same and last.get("analyses", "") == _named_analyses(sweep) and last.get("figure", "") == _style(sweep)
        return bool(drawn and whole and same)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _named_analyses(sweep: Sweep) -> str:
    """A digest of the file's `analysis:`; "" where it has none, as for a run of an earlier version."""
    return "" if sweep.written.analysis is None else digest("analyses", [a.model_dump() for a in sweep.analyses]).hex()


def _style(sweep: Sweep) -> str:
    """How its figures look, as text; "" where the file does not say, as for a run of an earlier version."""
    written = sweep.written.figure.model_dump(exclude_defaults=True)
    return json.dumps(written, sort_keys=True) if written else ""


def counts_of(sweep: Sweep, summary: Summary) -> dict[str, float]:
    """The parent run's counts after a run that has not stopped, for a run that draws no map."""
    ended = summary.done + summary.skipped + summary.failed
    trials = ended if sweep.is_search else sweep.most_trials
    counts = {"trials": trials, "failed": summary.failed, "missing": trials - ended}
    counts |= {phase_metric(label): summary.phases[label] for label in sweep.job_object().phases}
    return {name: float(count) for name, count in counts.items()}


def print_files(published: Published) -> None:
    """Print the notes, files and warnings of a map, and which figures on request are older than the record's table."""
    for note in (*published.notes, *published.analysis):
        print(note)
    for name, path in sorted(published.files.items()):
        print(f"{name:<25} {path}")
    folders = {path.parent for path in published.files.values()}
    made = published.files["trials.parquet"].stat().st_mtime_ns  # kept while the table stays the same
    old = (p for folder in folders for pattern in ON_REQUEST for p in folder.glob(pattern))
    found = {path.name for path in old if path.stat().st_mtime_ns < made}
    earlier = sorted(name for name in found - published.files.keys() if not name.startswith("analysis_"))
    warnings = [*published.warnings]
    if earlier:
        more = f" and {len(earlier) - 1} more" if len(earlier) > 1 else ""
        warnings.append(
            f"{earlier[0]}{more} show the record as an earlier `map` found it: give the option again to draw anew, or "
            "name them under `analysis:`"
        )
    for warning in warnings:
        print(f"warning: {warning}")


def map_(arguments: argparse.Namespace) -> int:
    """Rebuild the diagram from the record alone; trials labelled under other thresholds are relabelled."""
    also = output_of(arguments, (*FORMATS, "html"))
    from orchestrator.results.columns import write_columns

    sweep = load_sweep(arguments)
    check_figures(sweep, arguments)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        trials = known_trials(sweep, tracker)
        recorded = tracker.index([trial.id for trial in trials])
        if not recorded:
            raise sweep.nothing_recorded(command_line(arguments, "run"))
        tracker.open_sweep(sweep_record(sweep), running=False)  # beside a run, which keeps its status
        finished = sum(state.status is Status.FINISHED for state in recorded.values())
        tracker.complete(trials)
        count = relabelled(sweep, trials, tracker)
        with writing(also):
            published = publish_record(
                sweep,
                trials,
                tracker,
                classifier=arguments.classifier,
                history=history(sweep, tracker),
                figures=arguments.figures,
                also=None if is_further(arguments) else also,
                width=arguments.width,
            )
        tracker.annotate(published.metrics)
        phases = sweep.job_object().phases
        with drawn_as(sweep.figure, phases):
            further = draw_figures(sweep, trials, tracker, arguments)
        pages = [] if also is None or further else [also]
        if also is not None and further:
            with writing(also), drawn_as(sweep.figure.for_page(arguments.width), phases):
                pages = [p for figures in further for p in figures.write_page(also, alone=len(further) == 1)]
        for figures in further:
            published = published.beside(figures.files, figures.notes, figures.warnings)
        if further:
            explained = write_columns(sweep.output, sweep.axes, trials)
            tracker.attach({explained.name: explained})
    print(f"{finished} of {len(trials)} trials are finished")
    if count:
        print(f"{count} were relabelled under the thresholds (`phases:`) of {arguments.file}")
    print_files(published)
    for page in pages:
        print(f"{'figure':<25} {page}")
    return 0

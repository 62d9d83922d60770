"""analyse, and the end of run: compute what the sweep file names, from the record, and keep its files."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.again import command_line
from orchestrator.commands.earlier import keep_earlier
from orchestrator.commands.picture import output_of, writing
from orchestrator.commands.searching import known_trials
from orchestrator.commands.wiring import load_sweep, open_tracker, relabelled, sweep_record
from orchestrator.phases.style import FORMATS

if TYPE_CHECKING:
    from orchestrator.analyses.publish import Analysed
    from orchestrator.phases.table import TrialTable
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import Tracker
    from orchestrator.trial import Trial


def analysed(
    sweep: Sweep,
    trials: Sequence[Trial],
    table: TrialTable,
    tracker: Tracker,
    figures: Sequence[str] = (),
    also: Path | None = None,
    width: str | float | None = None,
) -> Analysed:
    """Compute the sweep's analyses from what is recorded, and write their files into its output folder.

    Args:
        sweep: The sweep.
        trials: All its trials so far.
        table: What is recorded of them.
        tracker: Its record, to read curves.
        figures: Formats of the figures beside PNG.
        also: Where the figures are written too, for a page.
        width: That of `also`, instead of the file's.
    """
    from orchestrator.analyses.publish import analyse
    from orchestrator.analyses.source import Source

    params = {trial.id: trial.params for trial in trials}
    source = Source(
        job=sweep.job_object(),
        axes=sweep.axes,
        table=table,
        params=[params[trial_id] for trial_id in table.trial_id],
        read=tracker.curves,
    )
    return analyse(
        sweep.name,
        sweep.analyses,
        source,
        sweep.output,
        sweep_id=sweep.id,
        thresholds=sweep.thresholds_fingerprint(),
        figures=figures,
        style=sweep.figure,
        also=also,
        width=width,
    )


def analyse(arguments: argparse.Namespace) -> int:
    """Compute the analyses from the record alone; trials labelled under other thresholds are relabelled."""
    from orchestrator.phases.table import collect

    also = output_of(arguments, FORMATS)
    sweep = load_sweep(arguments)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        trials = known_trials(sweep, tracker)
        if not tracker.index([trial.id for trial in trials]):
            raise sweep.nothing_recorded(command_line(arguments, "run"))
        tracker.open_sweep(sweep_record(sweep), running=False)  # beside a run, which keeps its status
        tracker.complete(trials)
        count = relabelled(sweep, trials, tracker)
        rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials], settings=False)}
        moved = keep_earlier(sweep, {row.run_id for row in rows.values()}, tracker.sweep_start_ms)
        table = collect(trials, rows, sweep.job_object())
        with writing(also):
            done = analysed(sweep, trials, table, tracker, arguments.figures, also, arguments.width)
        tracker.attach(done.files)
        left = tracker.detach(done.gone)
        tracker.annotate(done.metrics)
    if moved:
        print(f"warning: {moved}")
    if count:
        print(f"{count} trials were relabelled under the thresholds (`phases:`) of {arguments.file}")
    if not done.results:
        print(
            "nothing to compute: the file has no `analysis:`, and the job proposes none for these axes and replicates"
        )
    for line in done.lines:
        print(line)
    for name, path in sorted(done.files.items()):
        print(f"{name:<25} {path}")
    for path in done.beside:
        print(f"{'figure':<25} {path}")
    if also is not None and not done.beside:
        print(f"warning: nothing to draw, so {also} was not written")
    if left:
        print(f"warning: artifacts of an earlier analysis that the artifact store cannot delete: {', '.join(left)}")
    return 0

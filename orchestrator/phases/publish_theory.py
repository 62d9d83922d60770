"""The files that compare a theory with the measurements: the table of deviations, and the curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.publish_map import Write
from orchestrator.phases.table import SweepView, TrialTable
from orchestrator.phases.text import percent, plural
from orchestrator.phases.theory.ask import ask, has_theory, predicted_phases
from orchestrator.phases.theory.curves import ReadCurves, read_beside
from orchestrator.phases.theory.deviation import deviations, write_deviations, write_text
from orchestrator.phases.theory.overlay import Overlay, overlay
from orchestrator.trial import Trial


@dataclass(frozen=True, kw_only=True)
class TheoryFiles:
    """What theory adds to a sweep's pictures and numbers, besides the files."""

    overlay: Overlay | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Lines for people."""
    warnings: tuple[str, ...] = ()


def publish_theory(
    sweep: SweepView,
    trials: Sequence[Trial],
    diagram: PhaseDiagram,
    table: TrialTable,
    write: Write,
    curves: ReadCurves | None = None,
) -> TheoryFiles:
    """Compare the measurements with the job's theory, if it has one, and write by how much they deviate.

    Args:
        sweep: its name, axes and job.
        trials: all its trials.
        diagram: of the table, nothing joined.
        table: all trials.
        write: writes a file.
        curves: reads recorded curves; None draws none.
    """
    job = sweep.job_object()
    if not has_theory(job) or not len(table):
        return TheoryFiles()
    varying = {axis.name for axis in diagram.axes} | {p for ps in diagram.partners.values() for p in ps}
    answers = ask(job, trials, table, diagram, [axis.name for axis in sweep.axes if axis.name in varying])
    if not any(answers.predictions):
        return TheoryFiles(warnings=answers.warnings())
    deviation_table = deviations(answers, table)
    over = overlay(answers, predicted_phases(answers, job, sweep.thresholds()), diagram, deviation_table)
    notes, metrics, more = [], {}, []
    compared, differ = over.agreement(diagram)
    if compared:
        metrics["theory_phases_that_differ"] = differ / compared
        more.append(f"theory: phase of {plural(compared, 'cell')}; {percent(differ / compared)} differ")
    shown = read_beside(answers, table, curves) if curves is not None and answers.curves() else []
    if shown:
        from orchestrator.phases.draw.png_theory import draw_theory_curves

        write("theory_curves.png", lambda path: draw_theory_curves(sweep.name, shown, path))
        metrics_shown = plural(len({curve.metric for curve in shown}), "metric")
        settings = plural(len({curve.place for curve in shown}), "setting")
        compared_curves = [curve for curve in shown if curve.worst() is not None]
        line = f"theory: curves of {metrics_shown} at {settings}"
        if compared_curves:
            worst = max(compared_curves, key=lambda curve: abs(curve.deviation[curve.worst() or 0]))
            line += f"; {worst.metric} {worst.text()}" + (f" at {worst.place}" if worst.place else "")
        more.append(line)
    if deviation_table is not None:
        notes.append(deviation_table.summary())
        metrics["theory_predictions"] = float(len(deviation_table))
        row = deviation_table.worst()
        if row is not None and math.isfinite(deviation_table.deviation[row]):
            metrics["theory_worst_deviation"] = abs(float(deviation_table.deviation[row]))
        write("theory_deviation.parquet", lambda path: write_deviations(deviation_table, path))
        write("theory_deviation.txt", lambda path: write_text(deviation_table, path, more=more))
    holes = [f"theory: {text}"] if (text := answers.holes()) else []
    return TheoryFiles(
        overlay=over if over.lines or (over.phase >= 0).any() else None,
        metrics=metrics,
        notes=(*notes, *more, *holes),
        warnings=answers.warnings(),
    )

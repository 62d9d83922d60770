"""From a sweep and what is recorded of it to the files and numbers that are kept with it."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.job import specs
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.layout import headline, lay_out
from orchestrator.phases.publish_map import SAVINGS, Drawing, draw
from orchestrator.phases.publish_theory import set_beside
from orchestrator.phases.table import SweepView, TrialTable, collect, note_of, write_table
from orchestrator.phases.theory.curves import ReadCurves
from orchestrator.records import Status
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

MOST_INTERACTIVE_CELLS = 20_000
"""Above this many, the interactive picture joins neighbouring settings into one cell."""


MAP_FILES = frozenset(
    {
        "phase_diagram.png",
        "phase_diagram_lines.png",
        "phase_diagram.html",
        "trials.parquet",
        "sweep_metrics.json",
        "boundary.parquet",
        "boundary.geojson",
        "search_progress.csv",
        "search_progress.png",
        SAVINGS,
        "theory_curves.png",
        "theory_deviation.parquet",
        "theory_deviation.txt",
    }
)
"""The names of all files that a map may have: each is written anew with the map, or is of an earlier one."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` made."""

    files: dict[str, Path]
    """Artifact path -> local file."""
    gone: tuple[str, ...] = ()
    """Artifact paths of MAP_FILES that this map does not have: those of an earlier one say nothing of it."""
    metrics: dict[str, float]
    """Numbers of the whole sweep, all finite."""
    warnings: tuple[str, ...] = ()
    """What went wrong without stopping it, for people to read."""
    notes: tuple[str, ...] = ()
    """What the map says in a line, for people to read."""
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Numbers of the whole sweep that changed as it went: (trials spent, value)."""


def publish(
    sweep: SweepView,
    trials: Sequence[Trial],
    rows: Mapping[str, TrialRow],
    folder: Path,
    *,
    drawing: Drawing | None = None,
    curves: ReadCurves | None = None,
    sweep_id: str = "",
) -> Published:
    """Write the phase diagram (PNG, HTML), the table of trials and the sweep's metrics into `folder`.

    With a `drawing` the classifier draws the map, and the boundary is written as data (see `publish_surface`).

    Each file is written aside and then put in its place, so that a reader sees the old or the new one, never half of
    one. What an earlier map has left under a name of MAP_FILES and this one has not is deleted; other files of the
    folder are left alone.

    Args:
        sweep: what was asked.
        trials: all its trials so far; one without a row is missing.
        rows: trial id -> what is recorded.
        folder: made where it is not there.
        drawing: how the classifier draws it; None: the settings are drawn as they are.
        curves: reads recorded curves, for those that the job's theory predicts; None: they are not drawn.
        sweep_id: of the sweep, for the table to remember whose map lies in the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    from orchestrator.phases.draw.html import write_html
    from orchestrator.phases.draw.png import draw_curves, draw_map

    job = sweep.job_object()
    table = collect(trials, rows)
    kinds: list[Any] = list(dict.fromkeys(type(trial.params) for trial in trials))
    params = {name: spec for kind in kinds for name, spec in specs(kind).items()}
    diagram = phase_diagram(sweep.name, sweep.axes, job.phases, table, params)
    metrics, warnings = sweep_metrics(sweep, trials, table, diagram)
    layout = lay_out(diagram)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}

    def write(name: str, make: Callable[[Path], None]) -> None:
        files[name] = _write_whole(folder / name, make)

    drawn = None
    if drawing is not None:
        drawn = draw(drawing, sweep, diagram, table, trials, folder, write)
        metrics |= drawn.metrics
        warnings += drawn.warnings
    told = set_beside(sweep, trials, diagram, table, write, curves)
    metrics |= told.metrics
    warnings += told.warnings
    over = {} if told.overlay is None else {"theory": told.overlay}
    remembered = note_of(
        sweep, search=drawing is not None and drawing.search, job=trials[0].job if trials else "", sweep_id=sweep_id
    )
    write("trials.parquet", lambda path: write_table(table, path, remembered))
    text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write("sweep_metrics.json", lambda path: _write_text(path, text))
    lines = bool(layout.lines and headline(job.headline, diagram.observations))
    if drawn is not None and drawn.pictured:
        pass  # the classifier's picture is the diagram
    elif lines and layout.y is None:
        write("phase_diagram.png", lambda path: draw_curves(diagram, layout, job.headline, metrics, path, **over))
    else:
        write("phase_diagram.png", lambda path: draw_map(diagram, layout, job.headline, path, **over))
        if lines:
            write(
                "phase_diagram_lines.png",
                lambda path: draw_curves(diagram, layout, job.headline, metrics, path, **over),
            )
    coarse = diagram
    if len(diagram.codes) > MOST_INTERACTIVE_CELLS:
        coarse = phase_diagram(sweep.name, sweep.axes, job.phases, table, params, most_cells=MOST_INTERACTIVE_CELLS)
    views = drawn.views(coarse) if drawn is not None else ()
    note = f"  ·  {drawn.note}" if drawn is not None and drawn.note else ""
    shown = over if coarse.joined == 1 else {}
    write(
        "phase_diagram.html",
        lambda path: write_html(coarse, table, job.headline, metrics, params, path, before=views, note=note, **shown),
    )
    gone = tuple(sorted(MAP_FILES - files.keys()))
    for name in gone:
        if (folder / name).is_file():
            (folder / name).unlink(missing_ok=True)
    return Published(
        files=files,
        gone=gone,
        metrics=metrics,
        warnings=tuple(warnings),
        notes=(*(drawn.notes if drawn is not None else ()), *told.notes),
        curves=drawn.curves if drawn is not None else {},
    )


def sweep_metrics(
    sweep: SweepView, trials: Sequence[Trial], table: TrialTable, diagram: PhaseDiagram
) -> tuple[dict[str, float], list[str]]:
    """Counts per phase, of failed and of missing trials, and what the job says of the whole sweep.

    A number that is not finite is left out: MLflow could not hold it as what it is.
    """
    total = diagram.counts.sum(axis=0)
    metrics = {f"phase/{label}": float(total[i]) for i, label in enumerate(diagram.labels)}
    metrics["trials"] = float(len(table))
    metrics["failed"] = float(diagram.failed.sum())
    metrics["missing"] = float(diagram.missing.sum())
    by_id = {trial.id: trial for trial in trials}
    finished = [
        (by_id[trial_id].params, table.observations_of(row))
        for row, (trial_id, status) in enumerate(zip(table.trial_id, table.status, strict=True))
        if status == Status.FINISHED.value
    ]
    warnings: list[str] = []
    try:
        found = sweep.job_object().summarise(finished, sweep.thresholds()) if finished else {}
    except Exception as error:  # A user's own code: the diagram is worth having without it.
        warnings.append(f"the job's summarise raised {type(error).__name__}: {error}; its quantities are left out")
        found = {}
    metrics.update({name: float(value) for name, value in found.items() if math.isfinite(value)})
    # MLflow refuses a whole batch for one name with any other character.
    return {re.sub(r"[^\w/.: -]", "_", name): value for name, value in metrics.items()}, warnings


def _write_whole(path: Path, make: Callable[[Path], None]) -> Path:
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        make(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

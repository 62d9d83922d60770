"""From a sweep and its record to the files and numbers that are kept with it."""

from __future__ import annotations

import filecmp
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.job import specs
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.layout import headline, lay_out
from orchestrator.phases.publish_map import SAVINGS, Drawing, MapFiles, publish_map
from orchestrator.phases.publish_theory import publish_theory
from orchestrator.phases.style import FigureStyle, drawn_as
from orchestrator.phases.table import SweepView, TrialTable, collect, note_of, write_table
from orchestrator.phases.theory.curves import ReadCurves
from orchestrator.records import Status
from orchestrator.reduce import without_bounds_lines
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

MOST_INTERACTIVE_CELLS = 20_000
"""Above this many, the interactive picture joins neighbouring settings into one cell."""


_PICTURES = ("phase_diagram.png", "phase_diagram_lines.png", "phase_diagram.html", "search_progress.png")
_DATA = ("trials.parquet", "sweep_metrics.json", "boundary.parquet", "boundary.geojson", "search_progress.csv", SAVINGS)
_THEORY = ("theory_curves.png", "theory_deviation.parquet", "theory_deviation.txt")
_VECTOR = tuple(
    str(Path(name).with_suffix(suffix))
    for name in (*_PICTURES, *_THEORY)
    if name.endswith(".png")
    for suffix in (".svg", ".pdf")
)
MAP_FILES = frozenset((*_PICTURES, *_DATA, *_THEORY, *_VECTOR))
"""The names of all files that a map may have; one that is not rewritten belongs to an earlier map."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` made."""

    files: dict[str, Path]
    """Artifact path -> local file."""
    table: TrialTable
    """The trials that it shows."""
    gone: tuple[str, ...] = ()
    """Artifact paths of MAP_FILES that this map does not have."""
    metrics: dict[str, float]
    """Numbers about the whole sweep, all finite."""
    warnings: tuple[str, ...] = ()
    """Problems that did not stop it, as text."""
    notes: tuple[str, ...] = ()
    """What the map shows, as lines of text."""
    analysis: tuple[str, ...] = ()
    """The tables of the analyses, as lines of text."""
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Numbers about the whole sweep over its course: (trials spent, value)."""

    def beside(self, files: Mapping[str, Path], notes: Sequence[str], warnings: Sequence[str]) -> Published:
        """With further files and lines."""
        notes, warnings = (*self.notes, *notes), (*self.warnings, *warnings)
        return replace(self, files={**self.files, **files}, notes=notes, warnings=warnings)


def publish(
    sweep: SweepView,
    trials: Sequence[Trial],
    rows: Mapping[str, TrialRow],
    folder: Path,
    *,
    drawing: Drawing | None = None,
    curves: ReadCurves | None = None,
    sweep_id: str = "",
    sweep_start_ms: int = 0,
    figures: Sequence[str] = (),
    style: FigureStyle | None = None,
    also: Path | None = None,
    width: str | float | None = None,
) -> Published:
    """Write the phase diagram (PNG, HTML), the table of trials and the sweep's metrics into `folder`.

    With a `drawing`, a fitted map is drawn and the boundary is written as data (see `publish_map`).

    Each file is replaced atomically. Files of MAP_FILES that an earlier map has left and this one does not have are
    deleted; other files in the folder are left alone.

    Args:
        sweep: its name, axes and job.
        trials: all its trials so far; one without a row is missing.
        rows: trial id -> what is recorded.
        folder: created if missing.
        drawing: how the map is fitted; None draws the settings as they are.
        curves: reads recorded curves, to compare with those that the job's theory predicts; None leaves them out.
        sweep_id: recorded in the table, to tell whose map the folder holds.
        sweep_start_ms: recorded there too, to tell in which record the sweep is.
        figures: formats in which every PNG is written too: "svg", "pdf"; those that are there are drawn again anyway.
        style: how the figures look.
        also: where the phase diagram is written too, for a page; the suffix is its format: png, svg, pdf or html.
        width: that of `also`, instead of the style's.

    Raises:
        OSError: a file cannot be written.
    """
    from orchestrator.phases.draw.html import write_html
    from orchestrator.phases.draw.png_lines import draw_curves
    from orchestrator.phases.draw.png_map import draw_map

    job = sweep.job_object()
    table = collect(trials, rows, job)
    kinds: list[Any] = list(dict.fromkeys(type(trial.params) for trial in trials))
    params = {name: spec for kind in kinds for name, spec in specs(kind).items()}
    diagram = phase_diagram(sweep.name, sweep.axes, job.phases, table, params)
    metrics, warnings = sweep_metrics(sweep, trials, table, diagram)
    layout = lay_out(diagram)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}

    def write(name: str, make: Callable[[Path], None]) -> None:
        style_ = style or FigureStyle()
        with drawn_as(style_, diagram.labels):
            files.update(write_files(folder, name, make, figures))
        if also is not None and name == f"phase_diagram{'.html' if also.suffix == '.html' else '.png'}":
            with drawn_as(style_.for_page(width), diagram.labels):
                also.parent.mkdir(parents=True, exist_ok=True)
                replaced(also, make)

    fitted = MapFiles()
    if drawing is not None:
        fitted = publish_map(drawing, sweep, diagram, table, trials, folder, write)
    theory = publish_theory(sweep, trials, diagram, table, write, curves)
    metrics |= fitted.metrics | theory.metrics
    without_bounds = [f"steps: {line}" for line in without_bounds_lines(int(table.bounds_from_schedule.sum()))]
    search, name = drawing is not None and drawing.search, trials[0].job if trials else ""
    note = note_of(sweep, search=search, job=name, sweep_id=sweep_id, sweep_start_ms=sweep_start_ms)
    # Its time tells which figures on request are of an earlier state of the record.
    trials_file = folder / "trials.parquet"
    files[trials_file.name] = replaced(trials_file, lambda path: write_table(table, path, note), keep_equal=True)
    text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write("sweep_metrics.json", lambda path: _write_text(path, text))
    over = theory.overlay
    pictures: dict[str, Callable[[Path], None]] = {}
    if fitted.views is None:
        pictures["phase_diagram.png"] = lambda path: draw_map(diagram, layout, job.headline, path, theory=over)
        if layout.lines and headline(job.headline, diagram.observations):
            file = "phase_diagram.png" if layout.y is None else "phase_diagram_lines.png"
            pictures[file] = lambda path: draw_curves(diagram, layout, job.headline, metrics, path, theory=over)
    for file, draw in pictures.items():
        write(file, draw)
    shown = diagram
    if len(diagram.codes) > MOST_INTERACTIVE_CELLS:
        shown = phase_diagram(sweep.name, sweep.axes, job.phases, table, params, most_cells=MOST_INTERACTIVE_CELLS)
    page: dict[str, Any] = {
        "before": fitted.views(shown) if fitted.views is not None else (),
        "note": f"  ·  {fitted.note}" if fitted.note else "",
        "theory": over if shown.joined == 1 else None,
    }
    write("phase_diagram.html", lambda path: write_html(shown, table, job.headline, metrics, params, path, **page))
    gone = tuple(sorted(MAP_FILES - files.keys()))
    for name in gone:
        if (folder / name).is_file():
            (folder / name).unlink(missing_ok=True)
    return Published(
        files=files,
        table=table,
        gone=gone,
        metrics=metrics,
        warnings=(*warnings, *fitted.warnings, *theory.warnings),
        notes=(*fitted.notes, *theory.notes, *without_bounds),
        curves=fitted.curves,
    )


def sweep_metrics(
    sweep: SweepView, trials: Sequence[Trial], table: TrialTable, diagram: PhaseDiagram
) -> tuple[dict[str, float], list[str]]:
    """Counts per phase, of failed and of missing trials, and the job's summary of the whole sweep; and warnings.

    Numbers that are not finite are left out: MLflow cannot store them.
    """
    total = diagram.counts.sum(axis=0)
    metrics = {f"phase/{label}": float(total[i]) for i, label in enumerate(diagram.labels)}
    failed, missing = float(diagram.failed.sum()), float(diagram.missing.sum())
    metrics |= {"trials": float(len(table)), "failed": failed, "missing": missing}
    by_id = {trial.id: trial for trial in trials}
    finished = [
        (by_id[trial_id].params, table.observations_of(row))
        for row, (trial_id, status) in enumerate(zip(table.trial_id, table.status, strict=True))
        if status == Status.FINISHED.value
    ]
    warnings: list[str] = []
    try:
        quantities = sweep.job_object().summarise(finished, sweep.thresholds()) if finished else {}
    except Exception as error:  # the job's own code may raise anything; the diagram is useful without it
        warnings.append(f"the job's summarise raised {type(error).__name__}: {error}; its quantities are left out")
        quantities = {}
    metrics.update({name: float(value) for name, value in quantities.items() if math.isfinite(value)})
    # MLflow rejects a whole batch if one name has any other character.
    return {re.sub(r"[^\w/.: -]", "_", name): value for name, value in metrics.items()}, warnings


def write_files(folder: Path, name: str, make: Callable[[Path], None], figures: Sequence[str] = ()) -> dict[str, Path]:
    """Write a file and, if it is a PNG, the same figure in further formats (see `formats`): name -> path."""
    stem, kinds = Path(name).stem, formats(folder, name, figures) if name.endswith(".png") else ()
    names = [name, *(f"{stem}.{kind}" for kind in kinds if kind != "png")]
    return {each: replaced(folder / each, make) for each in names}


def formats(folder: Path, name: str, figures: Sequence[str]) -> tuple[str, ...]:
    """The formats `figures` ("svg", "pdf"), and those in which the folder already has the figure `name`."""
    there = (kind for kind in ("svg", "pdf") if (folder / name).with_suffix(f".{kind}").is_file())
    return tuple(dict.fromkeys((*figures, *there)))


def replaced(path: Path, make: Callable[[Path], None], *, keep_equal: bool = False) -> Path:
    """Let `make` write a file, which replaces that at `path` at once; `keep_equal`: an equal one keeps its time."""
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        make(aside)
        if not (keep_equal and path.is_file() and filecmp.cmp(aside, path, shallow=False)):
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

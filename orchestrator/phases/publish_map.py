"""The files of a fitted map: the picture, the boundary as data, the progress of the search, and what it saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.map.boundary_data import boundary_lines, write_geojson, write_parquet
from orchestrator.phases.map.classify import classify
from orchestrator.phases.map.progress_curve import ProgressCurve, refitted, write_csv
from orchestrator.phases.map.savings import MAP, read_savings, savings, write_savings
from orchestrator.phases.map.surface_map import FittedMap
from orchestrator.phases.style import with_labels
from orchestrator.phases.table import SweepView, TrialTable
from orchestrator.phases.text import percent, plural
from orchestrator.phases.theory.ask import has_theory
from orchestrator.phases.theory.plane import MOST_SECONDS, SliceParams, asker, theory_plane
from orchestrator.records import Status
from orchestrator.sanity import extent
from orchestrator.surface.base import Surrogate
from orchestrator.target import LevelTarget, MetricTarget, PhaseTarget, Target
from orchestrator.trial import Trial

if TYPE_CHECKING:
    from orchestrator.phases.draw.panels import MapPanel

SAVINGS = "search_savings.json"

Write = Callable[[str, Callable[[Path], None]], None]
"""Writes a file of this name by a function that is given a path."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the classifier draws a sweep's map."""

    target: Target = field(default_factory=PhaseTarget)
    """What the map shows."""
    search: bool = False
    """Whether a search chose the trials: then its progress and savings are drawn, and listed values are slices."""
    history: Sequence[tuple[int, float]] = ()
    """(trials spent, uncertain area) as the search progressed; if empty, the trials are fitted again."""
    surrogate: Surrogate[Any] | None = None
    """Fitted in place of the target's own."""


@dataclass(frozen=True, kw_only=True)
class MapFiles:
    """What was made besides the files."""

    metrics: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    note: str = ""
    """Shown below the title of the page."""
    notes: tuple[str, ...] = ()
    """Lines for people."""
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """See `Published.curves`."""
    views: Callable[[PhaseDiagram], Sequence[dict[str, Any]]] | None = None
    """The page's views, for the diagram whose cells it has; None if `phase_diagram.png` is not written."""


def publish_map(
    drawing: Drawing,
    sweep: SweepView,
    diagram: PhaseDiagram,
    table: TrialTable,
    trials: Sequence[Trial],
    folder: Path,
    write: Write,
) -> MapFiles:
    """Fit the map; write the picture, the boundary as data and, for a search, its progress and savings.

    Args:
        drawing: how.
        sweep: its name and axes.
        diagram: of the table, nothing joined.
        table: all trials.
        trials: at least those of the table, in the order in which they were proposed.
        folder: where an earlier estimate of the savings may be.
        write: writes a file into it.
    """
    from orchestrator.phases.draw.html_surface import map_view, progress_view, ridge_view
    from orchestrator.phases.draw.panels import panels_of, ridge_panels
    from orchestrator.phases.draw.png_surface import draw_progress, draw_ridges, draw_surface

    target, order = drawing.target, [trial.id for trial in trials]
    metric = target.observation if isinstance(target, MetricTarget) else ""
    fitted = classify(target, diagram, table, sweep.axes, order, drawing.surrogate, listed=drawing.search)
    if not fitted.fitted:
        return MapFiles(warnings=("no map can be fitted: it needs two numeric axes and a finished trial",))
    warnings = []
    left_out = [each.slice.title for each in fitted.slices if each.surface is None]
    if left_out:
        warnings.append("no map is fitted where fewer than two numeric axes vary: " + "; ".join(left_out))
    area = fitted.uncertain_area()
    only = _only_label(fitted)
    # A surface that has seen one label is sure of it everywhere: its area says nothing of a boundary.
    metrics = {"uncertain_area": area} if only is None else {}
    notes = [f"uncertain area {percent(area)}"] if only is None else [only, f"  next:  {_other_label(target, fitted)}"]
    summary = [_summary(target, fitted, area if only is None else None), *filter(None, [only])]
    curve: ProgressCurve | None = None
    if drawing.search:
        spent = sum(len(each.evidence) for each in fitted.fitted)
        curve = ProgressCurve.of(drawing.history).through(spent, area) if drawing.history else refitted(fitted)
        write("search_progress.csv", partial(write_csv, curve))
        write("search_progress.png", partial(draw_progress, sweep.name, curve))
        if only is None:  # without a known boundary, any grid is as good
            saved = savings(fitted, read_savings(folder / SAVINGS), valued=bool(metric))
            write(SAVINGS, partial(write_savings, saved))
            summary.append(saved.beside())
            notes.insert(0, saved.text())
            error = "map_error" if saved.what == MAP else "peak_error"
            metrics[f"expected_{error}"] = saved.expected_error
            if saved.grid is not None:
                metrics[f"grid_of_same_{error}"] = saved.grid
    heading = "\n".join(summary)
    failed = [row for row, status in enumerate(table.status) if status == Status.FAILED.value]
    panels: list[MapPanel] = []
    ridges = ridge_panels(fitted)
    if ridges:
        write("phase_diagram.png", lambda path: draw_ridges(sweep.name, heading, metric, ridges, curve, path))
    else:
        panels = _with_theory(panels_of(fitted, failed), target, fitted.labels, sweep, diagram, table, trials)
        draw = partial(with_labels(fitted.labels, draw_surface), sweep.name, heading, fitted, panels, curve)
        write("phase_diagram.png", draw)
    ready = {s: [p.plane for p in panels if p.of is each] for s, each in enumerate(fitted.fitted)}
    lines = boundary_lines(fitted, ready)
    write("boundary.parquet", partial(write_parquet, lines))
    write("boundary.geojson", partial(write_geojson, lines))

    def views(shown: PhaseDiagram) -> Sequence[dict[str, Any]]:
        view = ridge_view(ridges, metric) if ridges else with_labels(fitted.labels, map_view)(fitted, panels, shown)
        return [view] if curve is None else [view, progress_view(curve)]

    return MapFiles(
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        warnings=tuple(warnings),
        note=heading.replace("\n", "  ·  "),
        notes=tuple(notes),
        curves={} if curve is None else {"uncertain_area": curve.pairs()},
        views=views,
    )


def _only_label(fitted: FittedMap) -> str | None:
    """That no boundary was found, if all trials of a map of classes have the same label."""
    labels = np.concatenate([each.evidence.label for each in fitted.fitted])
    if len(distinct := np.unique(labels)) != 1 or distinct[0] < 0:
        return None
    return f"no boundary was found: only {fitted.labels[int(distinct[0])]!r} in {plural(len(labels), 'trial')}"


def _other_label(target: Target, fitted: FittedMap) -> str:
    """What may show another label than the only one."""
    if not isinstance(target, LevelTarget):
        return "widen the axes, or change the thresholds under 'phases:'"
    values = np.concatenate([each.evidence.value for each in fitted.fitted])
    values = values[np.isfinite(values)]
    if not len(values):
        return f"no trial has a finite value of {target.metric}: name another metric, or other settings"
    span = extent(values.tolist())
    if " " not in span:
        return f"{target.metric} is {span} in all trials: widen the axes, or name another metric"
    return f"{target.metric} is {span}: choose a level in between, or widen the axes"


def _with_theory(
    panels: Sequence[MapPanel],
    target: Target,
    labels: Sequence[str],
    sweep: SweepView,
    diagram: PhaseDiagram,
    table: TrialTable,
    trials: Sequence[Trial],
) -> list[MapPanel]:
    """The panels with what the job's theory predicts of their planes; unchanged for a job without theory."""
    job = sweep.job_object()
    if not has_theory(job):
        return list(panels)
    params = {trial.id: trial.params for trial in trials}
    ask = asker(job, sweep.thresholds(), target, labels)
    made = []
    for panel in panels:
        own = [params[table.trial_id[row]] for row in panel.of.slice.rows]
        slice_params = SliceParams(slice=panel.of.slice, params=own, partners=diagram.partners)
        theory = theory_plane(panel.plane, slice_params, ask, seconds=MOST_SECONDS / len(panels))
        made.append(replace(panel, theory=theory))
    return made


def _summary(target: Target, fitted: FittedMap, uncertain_area: float | None) -> str:
    counted = plural(sum(len(each.evidence) for each in fitted.fitted), "trial") + " with a result"
    by = "drawn by the classifier" if fitted.labels else "expected by the surface fitted to them"
    area = [] if uncertain_area is None else [f"uncertain area {percent(uncertain_area)}"]
    return "  ·  ".join([counted, f"{target.title}, {by}", *area])

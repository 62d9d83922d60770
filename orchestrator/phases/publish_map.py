"""The files of a map that a classifier draws: the picture, the boundary as data, how the search went, what it saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.map.boundary_data import boundary_lines, write_geojson, write_parquet
from orchestrator.phases.map.classify import classify
from orchestrator.phases.map.progress_curve import ProgressCurve, refitted, write_csv
from orchestrator.phases.map.savings import MAP, Savings, read_savings, savings, write_savings
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice, ridge_of
from orchestrator.phases.table import SweepView, TrialTable
from orchestrator.phases.text import percent, plural, words
from orchestrator.phases.theory.ask import has_theory
from orchestrator.phases.theory.plane import MOST_SECONDS, SliceParams, asker, theory_plane
from orchestrator.records import Status
from orchestrator.surface.base import RidgeSurface, Surrogate
from orchestrator.target import MetricTarget, PhaseTarget, Target
from orchestrator.trial import Trial

if TYPE_CHECKING:
    from orchestrator.phases.draw.png_surface import MapPanel

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
    """(trials spent, uncertain area) as the search went; where it is empty, the trials are fitted anew."""
    surrogate: Surrogate[Any] | None = None
    """Fitted in place of the target's own."""


def _no_views(diagram: PhaseDiagram) -> Sequence[dict[str, Any]]:
    del diagram
    return ()


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was made besides the files."""

    metrics: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    note: str = ""
    """What the page says below its title."""
    pictured: bool = False
    """Whether `phase_diagram.png` is written."""
    views: Callable[[PhaseDiagram], Sequence[dict[str, Any]]] = _no_views
    """The page's views, for the diagram whose cells it has."""
    notes: tuple[str, ...] = ()
    """Lines for people."""
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """See `Published.curves`."""


def draw(
    drawing: Drawing,
    sweep: SweepView,
    diagram: PhaseDiagram,
    table: TrialTable,
    trials: Sequence[Trial],
    folder: Path,
    write: Write,
) -> Drawn:
    """Fit, and write the picture, the boundary as data and, of a search, how it went and what it saved.

    Args:
        drawing: how.
        sweep: its name and axes.
        diagram: of the table, nothing joined.
        table: all trials.
        trials: those of the table at least, in the order in which they were asked.
        folder: where an earlier estimate of the savings may lie.
        write: writes a file into it.
    """
    from orchestrator.phases.draw.html_surface import map_view, progress_view, ridge_view
    from orchestrator.phases.draw.png_ridge import draw_ridges
    from orchestrator.phases.draw.png_surface import draw_surface, panels_of

    target, order = drawing.target, [trial.id for trial in trials]
    metric = target.observation if isinstance(target, MetricTarget) else ""
    found = classify(target, diagram, table, sweep.axes, order, drawing.surrogate, listed=drawing.search)
    if not found.fitted:
        return Drawn(warnings=("the classifier has nothing to draw: it needs two numeric axes and a finished trial",))
    warnings = []
    left_out = [one.slice.title for one in found.slices if one.surface is None]
    if left_out:
        warnings.append("no map by the classifier where fewer than two numeric axes vary: " + "; ".join(left_out))
    curve = None
    saved: Savings | None = None
    alone = _only_label(found) if drawing.search else None
    if drawing.search:
        now = (sum(len(one.evidence) for one in found.fitted), found.uncertain_area())
        curve = ProgressCurve.of(drawing.history).through(*now) if drawing.history else refitted(found)
        if alone is None:  # where no boundary is known, any grid is as good
            estimate = saved = savings(found, read_savings(folder / SAVINGS), valued=bool(metric))
            write(SAVINGS, lambda path: write_savings(estimate, path))
        made = curve
        write("search_progress.csv", lambda path: write_csv(made, path))
        write("search_progress.png", lambda path: _picture(sweep.name, made, path))
    summary = "\n".join([_summary(target, found, saved), *([alone] if alone is not None else [])])
    failed = [row for row, status in enumerate(table.status) if status == Status.FAILED.value]
    ridges: list[tuple[FittedSlice, RidgeSurface]] = [
        (one, ridge) for one in found.fitted if (ridge := ridge_of(one)) is not None
    ]
    if ridges:
        write("phase_diagram.png", lambda path: draw_ridges(sweep.name, summary, metric, ridges, curve, path))
        panels = []
    else:
        panels = _with_theory(panels_of(found, failed), target, found.labels, sweep, diagram, table, trials)
        write("phase_diagram.png", lambda path: draw_surface(sweep.name, summary, found, panels, curve, path))
    ready = {s: [p.plane for p in panels if p.of is one] for s, one in enumerate(found.fitted)}
    lines = boundary_lines(found, ready)
    write("boundary.parquet", lambda path: write_parquet(lines, path))
    write("boundary.geojson", lambda path: write_geojson(lines, path))

    def views(shown: PhaseDiagram) -> Sequence[dict[str, Any]]:
        maps = [ridge_view(ridges, metric) if ridges else map_view(found, panels, shown)]
        return [*maps, *([progress_view(curve)] if curve is not None else [])]

    metrics = {"uncertain_area": found.uncertain_area()}
    if saved is not None:
        error = "map_error" if saved.what == MAP else "peak_error"
        metrics[f"expected_{error}"] = saved.expected_error
        if saved.grid is not None:
            metrics[f"grid_of_same_{error}"] = saved.grid
    return Drawn(
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        warnings=tuple(warnings),
        note=summary.replace("\n", "  ·  "),
        pictured=True,
        views=views,
        notes=(
            *([alone] if alone is not None else []),
            *([saved.text()] if saved is not None else []),
            f"uncertain area {percent(found.uncertain_area())}",
        ),
        curves={} if curve is None else {"uncertain_area": curve.pairs()},
    )


def _only_label(found: FittedMap) -> str | None:
    """That no boundary was found, in words, where all trials of a map of classes show the same one."""
    seen = [one.evidence.label for one in found.fitted]
    shown = {int(label) for labels in seen for label in set(labels.tolist())}
    if len(shown) != 1 or min(shown) < 0:
        return None
    trials = plural(sum(len(labels) for labels in seen), "trial")
    return f"no boundary was found: only {found.labels[shown.pop()]!r} in {trials}"


def _with_theory(
    panels: Sequence[MapPanel],
    target: Target,
    labels: Sequence[str],
    sweep: SweepView,
    diagram: PhaseDiagram,
    table: TrialTable,
    trials: Sequence[Trial],
) -> list[MapPanel]:
    """The panels with what the job's theory predicts of their planes; as they are for a job without one."""
    job = sweep.job_object()
    if not has_theory(job):
        return list(panels)
    params = {trial.id: trial.params for trial in trials}
    ask = asker(job, sweep.thresholds(), target, labels)
    made = []
    for panel in panels:
        of = panel.of.slice
        rows = [params[table.trial_id[row]] for row in of.rows]
        slice_params = SliceParams(slice=of, params=rows, partners=diagram.partners)
        told = theory_plane(panel.plane, slice_params, ask, seconds=MOST_SECONDS / len(panels))
        made.append(replace(panel, theory=told))
    return made


def _summary(target: Target, found: FittedMap, saved: Savings | None) -> str:
    counted = plural(sum(len(one.evidence) for one in found.fitted), "trial") + " with a result"
    by = "drawn by the classifier" if found.labels else "expected by the surface fitted to them"
    lines = "  ·  ".join(
        [counted, f"{words(target.description)}, {by}", f"uncertain area {percent(found.uncertain_area())}"]
    )
    return lines if saved is None else f"{lines}\n{saved.beside()}"


def _picture(name: str, curve: ProgressCurve, path: Path) -> None:
    from orchestrator.phases.draw.png import DPI, figure
    from orchestrator.phases.draw.png_surface import draw_progress

    last = f"{percent(float(curve.uncertain_area[-1]))} after {plural(int(curve.trials[-1]), 'trial')}"
    with figure(name, last, (6.4, 4.6)) as fig:
        draw_progress(fig.add_subplot(), curve)
        fig.savefig(path, format="png", dpi=DPI)

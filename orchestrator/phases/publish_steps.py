"""The files of the figures that `map` draws on request: step maps, and one quantity against another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.points import PointFigure, write_points
from orchestrator.phases.publish import replaced, write_files
from orchestrator.phases.step_text import heading, peak_lines, write_peaks, write_table
from orchestrator.phases.steps import StepMap
from orchestrator.phases.text import plural


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Files that were made from the record, and what they show."""

    files: dict[str, Path]
    """Artifact path -> local file."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def step_axis_of(diagram: PhaseDiagram) -> int | None:
    """The axis beside the step, where none is named: the one with the most values, numbers before text."""
    axes = diagram.axes
    return max(range(len(axes)), key=lambda a: (axes[a].numeric, len(axes[a].values), -a), default=None)


def publish_steps(step_map: StepMap, folder: Path, figures: Sequence[str] = ()) -> Figures:
    """Write the pictures (one per metric, as PNG and `figures`; one page), the table and the peaks into `folder`."""
    from orchestrator.phases.draw.html_steps import write_step_page
    from orchestrator.phases.draw.png_steps import draw_step_map

    folder.mkdir(parents=True, exist_ok=True)
    files, notes = dict[str, Path](), list[str]()
    for of in step_map.maps:
        name = f"step_map_{re.sub(r'[^A-Za-z0-9_.-]', '_', of.metric)}.png"
        files |= write_files(folder, name, partial(draw_step_map, step_map, of), figures)
        notes += [f"{of.metric}: {heading(step_map, of)}", *(f"  {line}" for line in peak_lines(step_map, of))]
    writers = {"step_map.html": write_step_page, "step_map.parquet": write_table, "step_map_peaks.json": write_peaks}
    for name, write in writers.items():
        files[name] = replaced(folder / name, partial(write, step_map))
    return Figures(files=files, notes=tuple(notes), warnings=tuple(_warnings(step_map)))


def publish_points(figure: PointFigure, folder: Path, figures: Sequence[str] = ()) -> Figures:
    """Write the picture (as PNG and `figures`), the page and the table of points into `folder`."""
    from orchestrator.phases.draw.html_points import write_points_page
    from orchestrator.phases.draw.png_points import draw_points

    folder.mkdir(parents=True, exist_ok=True)
    files = write_files(folder, f"{figure.file}.png", partial(draw_points, figure), figures)
    writers = {"html": write_points_page, "parquet": write_points}
    files |= {
        (name := f"{figure.file}.{ending}"): replaced(folder / name, partial(write, figure))
        for ending, write in writers.items()
    }
    return Figures(files=files, notes=(figure.title, *(f"  {line}" for line in figure.lines)))


def _warnings(step_map: StepMap) -> Sequence[str]:
    if not step_map.beyond:
        return []
    last = f"{int(step_map.steps[-1]):,}"
    return [f"the curves of {plural(step_map.beyond, 'trial')} go on after step {last}, where the step map ends"]

"""The files of the figures that `map` draws on request: step maps, and one quantity against another."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    draw: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """Name of a picture (PNG) or page (HTML) -> what writes it."""

    def write_page(self, also: Path, *, alone: bool) -> list[Path]:
        """Write its pictures, or its page, for a page of a paper; the suffix of `also` is the format.

        Where it is not `alone`, or has several pictures, each file has the name of the figure added.
        """
        suffix = ".html" if also.suffix == ".html" else ".png"
        made = {Path(name).stem: draw for name, draw in self.draw.items() if name.endswith(suffix)}
        named = len(made) > 1 or not alone
        paths = [also.with_stem(f"{also.stem}_{stem}") if named else also for stem in made]
        also.parent.mkdir(parents=True, exist_ok=True)
        return [replaced(path, draw) for path, draw in zip(paths, made.values(), strict=True)]


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
    page = "step_map.html"
    draw: dict[str, Callable[[Path], None]] = {page: partial(write_step_page, step_map)}
    for of in step_map.maps:
        name = f"step_map_{re.sub(r'[^A-Za-z0-9_.-]', '_', of.metric)}.png"
        draw[name] = partial(draw_step_map, step_map, of)
        files |= write_files(folder, name, draw[name], figures)
        notes += [f"{of.metric}: {heading(step_map, of)}", *(f"  {line}" for line in peak_lines(step_map, of))]
    files[page] = replaced(folder / page, draw[page])
    writers = {"step_map.parquet": write_table, "step_map_peaks.json": write_peaks}
    for name, write in writers.items():
        files[name] = replaced(folder / name, partial(write, step_map))
    return Figures(files=files, notes=tuple(notes), warnings=tuple(_warnings(step_map)), draw=draw)


def publish_points(figure: PointFigure, folder: Path, figures: Sequence[str] = ()) -> Figures:
    """Write the picture (as PNG and `figures`), the page and the table of points into `folder`."""
    from orchestrator.phases.draw.html_points import write_points_page
    from orchestrator.phases.draw.png_points import draw_points

    folder.mkdir(parents=True, exist_ok=True)
    picture, page, table = (f"{figure.file}.{ending}" for ending in ("png", "html", "parquet"))
    draw = {picture: partial(draw_points, figure), page: partial(write_points_page, figure)}
    files = write_files(folder, picture, draw[picture], figures)
    files[page] = replaced(folder / page, draw[page])
    files[table] = replaced(folder / table, partial(write_points, figure))
    return Figures(files=files, notes=(figure.title, *(f"  {line}" for line in figure.lines)), draw=draw)


def _warnings(step_map: StepMap) -> Sequence[str]:
    if not step_map.beyond:
        return []
    last = f"{int(step_map.steps[-1]):,}"
    return [f"the curves of {plural(step_map.beyond, 'trial')} go on after step {last}, where the step map ends"]

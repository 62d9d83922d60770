"""From analyses and the record to files and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.analyses.base import Analysis
from orchestrator.analyses.result import Result, write_json
from orchestrator.analyses.source import Source
from orchestrator.phases.publish import formats, replaced
from orchestrator.phases.style import FigureStyle, drawn_as, look

TABLES = "analysis.json"
"""All results of a sweep, in one file; also the list of what an earlier analysis has left."""
TEXT = "analysis.txt"


@dataclass(frozen=True, kw_only=True)
class Analysed:
    """What was computed."""

    results: tuple[Result, ...] = ()
    files: dict[str, Path]
    """Artifact path -> local file."""
    gone: tuple[str, ...] = ()
    """Files of an earlier analysis that this one does not have; they are deleted."""
    beside: tuple[Path, ...] = ()
    """Figures that were written elsewhere too."""

    @property
    def lines(self) -> list[str]:
        """The tables as text."""
        return [line for result in self.results for line in result.lines()]

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers for the parent run."""
        return {name: value for result in self.results for name, value in result.metrics().items()}


def analyse(
    sweep: str,
    analyses: Sequence[Analysis],
    source: Source,
    folder: Path,
    *,
    sweep_id: str,
    thresholds: str,
    figures: Sequence[str] = (),
    style: FigureStyle | None = None,
    also: Path | None = None,
    width: str | float | None = None,
) -> Analysed:
    """Compute the analyses one after another, and write their tables and figures into a folder.

    Each file is replaced atomically. Without an analysis nothing is written, and files of an earlier one are deleted.

    Args:
        sweep: its name.
        analyses: with distinct labels.
        source: its trials.
        folder: created if missing.
        sweep_id: kept in the file of results.
        thresholds: their fingerprint, kept there too.
        figures: formats in which the figures are written beside PNG: "svg", "pdf".
        style: how the figures look.
        also: where the figure is written too, for a page; of several, each with its name added.
        width: that of `also`, instead of the style's.

    Raises:
        OSError: a file cannot be written.
    """
    with drawn_as(style or FigureStyle()):
        return _analyse(sweep, analyses, source, folder, sweep_id, thresholds, figures, also, width)


def _analyse(
    sweep: str,
    analyses: Sequence[Analysis],
    source: Source,
    folder: Path,
    sweep_id: str,
    thresholds: str,
    figures: Sequence[str],
    also: Path | None,
    width: str | float | None,
) -> Analysed:
    results = tuple(analysis.compute(source) for analysis in analyses)
    files: dict[str, Path] = {}
    before = _left_in(folder)
    beside: list[Path] = []

    def write(name: str, make: Callable[[Path], None]) -> None:
        files[name] = replaced(folder / name, make)

    if results:
        folder.mkdir(parents=True, exist_ok=True)
    pictures = {result.name: _picture(sweep, result) for result in results}
    pages = [name for name, picture in pictures.items() if picture is not None]
    for result in results:
        if result.rows:
            write(f"analysis_{result.name}.csv", result.write_csv)
        picture = pictures[result.name]
        if picture is not None and also is not None:
            page = also if len(pages) == 1 else also.with_stem(f"{also.stem}_{result.name}")
            with drawn_as(look().style.for_page(width)):
                page.parent.mkdir(parents=True, exist_ok=True)
                beside.append(replaced(page, picture))
        if picture is not None:
            for kind in formats(folder, f"analysis_{result.name}.png", ("png", *figures)):
                write(f"analysis_{result.name}.{kind}", picture)
    done = Analysed(results=results, files=files)
    if results:
        text = "\n".join(done.lines) + "\n"
        write(TEXT, lambda path: _write_text(path, text))
        about = {"sweep": sweep, "sweep_id": sweep_id, "thresholds": thresholds, "files": " ".join(sorted(files))}
        write(TABLES, lambda path: write_json(results, path, **about))
    gone = tuple(name for name in before if name not in files)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return Analysed(results=results, files=files, gone=gone, beside=tuple(beside))


def _picture(sweep: str, result: Result) -> Callable[[Path], None] | None:
    """What draws the picture of a result; None if it has none."""
    if result.picture is not None:
        return partial(result.picture, sweep)
    if result.figure is None or not result.figure.panels:
        return None
    from orchestrator.analyses.view import draw

    return partial(draw, sweep, result)


def _left_in(folder: Path) -> list[str]:
    """The files of an earlier analysis."""
    try:
        names = str(json.loads((folder / TABLES).read_text(encoding="utf-8"))["files"]).split()
    except (OSError, ValueError, KeyError, TypeError):
        return []
    # Only names that `analyse` gives, whatever the file says.
    return [TABLES, *(name for name in names if name.startswith("analysis") and "/" not in name)]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

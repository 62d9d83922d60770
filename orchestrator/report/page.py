"""A report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
from pathlib import Path

from orchestrator.phases.publish import replaced
from orchestrator.report.content import Picture, Report

EMBEDDED_BYTES = 4_000_000
"""Size of the figures, encoded, up to which they are part of the page; further ones are links to their files."""
_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def write_report(report: Report, path: Path) -> Path:
    """Write the page; an earlier one is replaced at once.

    Raises:
        OSError: it cannot be written, or a figure cannot be read.
    """
    text = page(report)
    return replaced(path, lambda aside: _write(aside, text))


def page(report: Report) -> str:
    """The page as text. Everything that a user has written is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("orchestrator.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(report=report, pictures=_sources(report.pictures))


def _sources(pictures: tuple[Picture, ...]) -> list[tuple[Picture, str, float | None]]:
    """Each figure with the address of its image, "" where it is not embedded, and its width in inches if it has one."""
    left, found = EMBEDDED_BYTES, []
    for picture in pictures:
        encoded = base64.b64encode(picture.file.read_bytes()).decode()
        fits = len(encoded) <= left
        left -= len(encoded) if fits else 0
        found.append(
            (picture, f"data:{_TYPES[picture.file.suffix]};base64,{encoded}" if fits else "", _inches(picture.file))
        )
    return found


def _inches(file: Path) -> float | None:
    """The width of an image on paper; None where its file does not say, as of an SVG, which browsers know."""
    from PIL import Image

    if file.suffix != ".png":
        return None
    with Image.open(file) as image:
        dpi = image.info.get("dpi")
        return image.width / dpi[0] if dpi else None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

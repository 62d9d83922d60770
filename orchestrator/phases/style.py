"""How a sweep's figures look: their width on a page, what their axes are called, the colours of the phases.

The style is that of the figure being drawn (`drawn_as`), so that every drawing function follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Literal, ParamSpec, TypeVar

from pydantic import Field

from orchestrator.axes import FileModel, key

COLUMNS_MM = {"single": 89.0, "double": 183.0}
"""Widths of one and two columns of a journal's page."""
NARROWEST_MM, WIDEST_MM = 30, 500
FORMATS = ("png", "svg", "pdf")
PHASE = "phase"
"""The panel of the labels."""

P = ParamSpec("P")
R = TypeVar("R")


class FigureStyle(FileModel):
    """The `figure:` section of a sweep file. It is no part of a trial's id, nor of the sweep's."""

    width: (
        Literal["single", "double"]
        | Annotated[int, Field(ge=NARROWEST_MM, le=WIDEST_MM)]
        | Annotated[float, Field(ge=NARROWEST_MM, le=WIDEST_MM)]
        | None
    ) = key(
        None,
        "Width on a page: text has 8 points, and there is no heading. Without it, figures are made for a screen.",
        "single (89 mm), double (183 mm), or a number of millimetres from 30 to 500",
    )
    labels: dict[str, str] = key(
        {},
        "What axes, observations and phases are called in figures; formulas as in LaTeX between dollar signs.",
        "a mapping of name to text",
    )
    colours: dict[str, Annotated[str, Field(pattern="^#[0-9A-Fa-f]{6}$")]] = key(
        {}, "The colour of a phase; by default colours that colour-blind readers can tell apart.", "'#RRGGBB'"
    )
    panels: list[str] = key(
        [],
        "What is drawn, side by side: phase, and the names of observations. By default the phase and, where nothing "
        "else varies, up to two observations.",
        "a list such as [phase, generalisation_step]",
    )
    decimal: Literal["point", "comma"] = key("point", "The decimal separator of ticks.", "one of point, comma")

    @property
    def width_inches(self) -> float | None:
        """None where figures are made for a screen."""
        mm = COLUMNS_MM[self.width] if isinstance(self.width, str) else self.width
        return None if mm is None else mm / 25.4

    def for_page(self, width: str | float | None = None) -> FigureStyle:
        """The same on a page: of this width, else of its own, else over two columns."""
        return self.model_copy(update={"width": width or self.width or "double"})


@dataclass(frozen=True, kw_only=True)
class Look:
    """The style of the figure being drawn, with the colours by index of the label."""

    style: FigureStyle = field(default_factory=FigureStyle)
    palette: Mapping[int, str] = field(default_factory=dict)


_LOOK: ContextVar[Look | None] = ContextVar("look", default=None)


def look() -> Look:
    """That of the figure being drawn."""
    return _LOOK.get() or Look()


@contextmanager
def drawn_as(style: FigureStyle, labels: Sequence[str] = ()) -> Iterator[None]:
    """Draw in this style; `labels` are those of the map, by index."""
    palette = {index: style.colours[label] for index, label in enumerate(labels) if label in style.colours}
    token = _LOOK.set(Look(style=style, palette=palette))
    try:
        yield
    finally:
        _LOOK.reset(token)


def with_labels(labels: Sequence[str], draw: Callable[P, R]) -> Callable[P, R]:
    """A drawing function that draws a map of these labels, in the style of its caller."""

    @wraps(draw)
    def drawn(*args: P.args, **more: P.kwargs) -> R:
        with drawn_as(look().style, labels):
            return draw(*args, **more)

    return drawn


def formula_error(text: str) -> str | None:
    """What is wrong with the formulas in a label; None where matplotlib can draw them."""
    if "$" not in text:
        return None
    from matplotlib.mathtext import MathTextParser

    try:
        MathTextParser("path").parse(text)
    except ValueError as error:
        said = str(error).strip().splitlines()
        return said[-1].removeprefix("ParseFatalException: ") if said else "not a formula"
    return None

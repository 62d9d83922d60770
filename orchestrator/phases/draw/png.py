"""What all still pictures share: figure and panels, axes and ticks, lines and legends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.scale import AxisScale, round_values
from orchestrator.phases.style import FORMATS, look
from orchestrator.phases.text import INK, SOFT, label_colour, localised, named, number
from orchestrator.phases.theory.overlay import COLOURS, DASH

Output = Path | Callable[[Any], None]
"""Where a figure goes: a file, whose suffix is its format (PNG if it is none of FORMATS), or a function."""
DPI = 160
_SUMMARY = 10.5
"""Points of the lines below a figure's name."""
_SHORTEST = 45.0
"""Points that a line of a title or label may have beside the smallest panel."""
PAGE_DPI = 300
PAGE_SCALE = 8 / 11
"""Size of text on a page, of that on a screen."""
NARROWEST_PANEL = 1.6
"""In inches, on a page."""
MOST_PANELS = 12
"""Small multiples in one still picture; the interactive one shows all."""
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11.5,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "phasefront",
    "legend.frameon": False,
    "axes.titlepad": 8,
}


@contextmanager
def figure(path: Output, name: str, summary: str, size: tuple[float, float]) -> Iterator[Any]:
    """A figure of this size in inches, with a name and lines of summary as its heading, which goes to `path`.

    On a page it has the width of the style in the same proportions, smaller text, and no heading.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context():
        # The user's own matplotlibrc must not change what the picture means.
        matplotlib.rcdefaults()
        width = look().style.width_inches
        sizes = {name: points(value) for name, value in _STYLE.items() if name.endswith("size")}
        matplotlib.rcParams.update(_STYLE | sizes | ({"axes.titlepad": 4} if width else {}))
        if width is not None:
            size = width, width * size[1] / size[0]
        fig = Figure(figsize=size, facecolor="white")
        FigureCanvasAgg(fig)
        if width is not None:
            fig.set_layout_engine(ConstrainedLayoutEngine(rect=(0.004, 0.004, 0.992, 0.992), w_pad=0.04, h_pad=0.03))
        else:
            _head(fig, name, summary, size)
        yield fig
        if width is not None:
            _break_texts(fig)
        if isinstance(path, Path):
            # Without dates, so that equal figures are equal files.
            undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
            suffix = path.suffix.removeprefix(".").lower()
            kind = suffix if suffix in FORMATS else "png"
            fig.savefig(path, format=kind, dpi=PAGE_DPI if width else DPI, metadata=undated.get(kind))
        else:
            path(fig)


def _head(fig: Any, name: str, summary: str, size: tuple[float, float]) -> None:
    """Put the heading at the top, and leave the rest to the panels."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    top = 1 - (0.75 + 0.19 * summary.count("\n")) / size[1]
    fig.set_layout_engine(ConstrainedLayoutEngine(rect=(0.004, 0.004, 0.992, top - 0.004), w_pad=0.09, h_pad=0.06))
    fig.text(0.012, 1 - 0.14 / size[1], name, fontsize=15, fontweight="bold", va="top")
    fig.text(0.012, 1 - 0.46 / size[1], summary, fontsize=_SUMMARY, color=SOFT, va="top")


def _lines(line: str, most: float, size: float = _SUMMARY) -> list[str]:
    """A line of text as lines of at most so many points, where words allow it; formulas are not broken."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties("DejaVu Sans")  # matplotlib's own

    def fits(text: str) -> bool:
        return not text.strip() or bool(TextPath((0, 0), text, size=size, prop=font).get_extents().width <= most)

    if fits(line):
        return [line]
    parts: list[str] = []
    for word in re.sub(r"\$[^$]+\$", lambda formula: formula[0].replace(" ", "\0"), line).split(" "):
        word = word.replace("\0", " ")
        longer = f"{parts[-1]} {word}" if parts else word
        if parts and fits(longer):
            parts[-1] = longer
        else:
            parts.append(word)
    return parts


def _break_texts(fig: Any) -> None:
    """Break titles and labels that are longer than their side of a panel; the figure gets taller by their lines."""
    from matplotlib.text import Text

    whole: dict[Any, str] = {}
    for times in (1.15, 0.95, 0.95):  # at first there is no layout, and breaking changes it
        added: dict[tuple[int, bool], float] = {}  # points, by row of panels and by place: above or below it
        for ax in [panel for outer in fig.axes for panel in (outer, *outer.child_axes)]:
            box, spec = ax.get_window_extent(), ax.get_subplotspec()
            row = 0 if spec is None else spec.get_topmost_subplotspec().rowspan.start
            title = ax.get_title("left")
            titles = [one for one in ax.get_children() if isinstance(one, Text) and one.get_text() == title]
            for text in (*titles, ax.xaxis.label, ax.yaxis.label):
                upright = text is ax.yaxis.label
                most = max((box.height if upright else box.width) * times * 72 / fig.dpi, _SHORTEST)
                before, size = text.get_text().count("\n"), text.get_fontsize()
                lines = whole.setdefault(text, text.get_text()).split("\n")
                text.set_text("\n".join(part for line in lines for part in _lines(line, most, size)))
                if not upright:
                    place, more = (row, text is ax.xaxis.label), 1.2 * size * (text.get_text().count("\n") - before)
                    added[place] = max(added.get(place, more), more)
        width, height = fig.get_size_inches()
        fig.set_size_inches(width, height + sum(added.values()) / 72)
        fig.draw_without_rendering()


def points(size: Any) -> Any:
    """A size of text in points: as given on a screen, smaller on a page."""
    return size if look().style.width is None else size * PAGE_SCALE


def on_page() -> bool:
    """Whether the figure is made for a page, not for a screen."""
    return look().style.width is not None


@contextmanager
def sheet(
    path: Output,
    name: str,
    summary: str,
    widths: Sequence[float],
    heights: Sequence[float],
    *,
    least_width: float = 0.0,
    below: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """A figure and its grid of panels: columns and rows have these sizes in inches; the last row is for the legend.

    `below`: the last row holds colour bars too. On a page, the legend has its own place (see `draw_legend`).
    """
    if on_page():
        text = PAGE_SCALE * (sum(widths) + 0.2) / (look().style.width_inches or 1)
        heights = [*heights[:-1], heights[-1] * text if below else 0.01]
        with figure(path, name, summary, (sum(widths) + 0.2, sum(heights) + 0.2)) as fig:
            yield fig, fig.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)
        return
    width = max(sum(widths) + 0.4, least_width)
    summary = "\n".join(part for line in summary.split("\n") for part in _lines(line, 0.95 * width * 72))
    size = width, sum(heights) + 0.85 + 0.19 * summary.count("\n")
    with figure(path, name, summary, size) as fig:
        yield fig, fig.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)


def columns_for(panels: int) -> int:
    """How many panels a row holds, with few places left empty."""
    across = max(1, panels) if panels <= 3 else 2 if panels == 4 else 3 if panels in (5, 6, 9) else 4
    return min(across, most_across())


def most_across() -> int:
    """The most panels side by side: any on a screen, on a page as many as are wide enough to be read."""
    width = look().style.width_inches
    return 100 if width is None else max(1, int(width / NARROWEST_PANEL))


def titles_across(titles: Sequence[str]) -> int:
    """The most of these titles that fit side by side: any on a screen."""
    width = look().style.width_inches
    longest = 0.6 * points(12) / 72 * max(map(len, titles), default=0)
    return 100 if width is None else max(1, int(width / (longest + 0.3)))


def shared_labels(axes: Sequence[Any], across: int) -> None:
    """Drop the axis labels that repeat those of the panel to the left or below."""
    for k, ax in reversed(list(enumerate(axes))):
        if k % across and ax.get_ylabel() == axes[k - 1].get_ylabel():
            ax.set_ylabel("")
    for ax, below in zip(axes, axes[across:], strict=False):
        if ax.get_xlabel() == below.get_xlabel():
            ax.set_xlabel("")


_NARROW = 3.0
"""Inches; panels of sheets are wider, those that a user makes may be narrower."""


def set_axis(ax: Any, which: str, axis: AxisScale, most: int) -> None:
    """Put an axis's span, ticks and label on one side of a panel."""
    from matplotlib.ticker import FixedLocator

    if which == "x" and (on_page() or _room(ax, "x") < _NARROW):
        at, texts = _fitting(ax, axis, most)
    else:
        at, texts = axis.ticks(_one_above_another(ax, most))
    side = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}lim")(*axis.span)
    side.set_ticks(at, labels=[localised(text) for text in texts])
    if which == "x" and (len(texts) + 1) * max(map(len, texts), default=0) > 42:
        side.set_tick_params(rotation=30)
        for text in side.get_ticklabels():
            text.set(horizontalalignment="right", rotation_mode="anchor")
    side.set_minor_locator(FixedLocator(axis.minor_ticks()))
    getattr(ax, f"set_{which}label")(named(axis.name, axis.label))


def _room(ax: Any, which: str) -> float:
    """Inches along a side of a panel on a page, about, without labels."""
    spec, (width, height) = ax.get_subplotspec(), ax.figure.get_size_inches()
    grid = None if spec is None else spec.get_topmost_subplotspec().get_gridspec()
    parts = 1 if grid is None else grid.ncols if which == "x" else sum(r > 0.1 for r in grid.get_height_ratios() or [1])
    return float(max((width if which == "x" else height) / parts - 0.5, 0.3))


def _fitting(ax: Any, axis: AxisScale, most: int) -> tuple[list[float], list[str]]:
    """As many ticks as have room side by side on a page."""
    for count in range(most, 1, -1):
        at, texts = axis.ticks(count)
        if _fit(ax, texts):
            break
    return at, texts


def _fit(ax: Any, texts: Sequence[str]) -> bool:
    """Whether ticks with these texts have room side by side on a page."""
    room = _room(ax, "x") * 72 / (0.62 * points(11))  # in characters
    return bool(len(texts) * (max(map(len, texts), default=0) + 1.2) <= room)


def _one_above_another(ax: Any, most: int) -> int:
    """As many ticks as have room one above another on a page."""
    return max(2, min(most, int(_room(ax, "y") * 72 / (2.2 * points(11))))) if on_page() else most


def set_round_ticks(
    side: Any, most: int, text: Callable[[float], str] = number, *, inset_in: Any | None = None
) -> None:
    """Put at most about `most` round numbers on a side of a panel (a matplotlib axis), within its limits.

    A colour bar is `inset_in` a panel, which says how much room there is.
    """
    from matplotlib.ticker import NullLocator

    low, high = side.get_view_interval()
    panel = side.axes if inset_in is None else inset_in
    if side.axis_name == "y":
        most = _one_above_another(side.axes, most)
    elif on_page():
        most = max(2, min(most, int(_room(panel, "x") * 72 / (4 * points(11)))))
    for count in range(most, 1, -1):
        at = round_values(float(low), float(high), count, log=side.get_scale() == "log")
        texts = [localised(text(v)) for v in at]
        if side.axis_name == "y" or not on_page() or _fit(panel, texts):
            break
    else:
        at, texts = [at[0], at[-1]][: len(at)], [texts[0], texts[-1]][: len(texts)]
    side.set_ticks(at, labels=texts)
    side.set_minor_locator(NullLocator())


def draw_edged(ax: Any, lines: Sequence[NDArray[np.float64]], width: float, edge: float) -> None:
    """Draw lines of a width in points, with a white edge where `edge` is positive."""
    from matplotlib.collections import LineCollection

    for colour, drawn in (("white", width + edge), (INK, width)) if edge else ((INK, width),):
        ax.add_collection(LineCollection(list(lines), colors=colour, linewidths=drawn, capstyle="round"))


def draw_predicted(ax: Any, lines: Sequence[NDArray[np.float64]], width: float) -> None:
    """Draw the boundary that theory predicts.

    Dashes with a white edge are visible on any phase, and the measured boundary shows between them.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    dashes = LineCollection(list(lines), colors=COLOURS[0], linewidths=width, linestyles=[DASH])
    dashes.set(path_effects=[withStroke(linewidth=width + 1.5, foreground="white")], zorder=2.5)
    ax.add_collection(dashes)


def swatch(label: str, colour: str, **style: Any) -> Any:
    """A legend entry: a filled rectangle."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label, **style)


def stroke(label: str, colour: str, **style: Any) -> Any:
    """A legend entry: a line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **style)


def symbol(label: str, marker: Any, face: str, edge: str, size: float = 6, **style: Any) -> Any:
    """A legend entry: a marker."""
    style |= {"markerfacecolor": face, "markeredgecolor": edge, "markersize": size}
    return stroke(label, "none", linestyle="none", marker=marker, **style)


def phase_swatches(diagram: PhaseDiagram) -> list[Any]:
    """Legend entries of the labels that occur."""
    return [swatch(named(diagram.labels[i], diagram.labels[i]), label_colour(i)) for i in diagram.used]


def class_swatches(labels: Sequence[str], shown: NDArray[np.int64]) -> list[Any]:
    """Legend entries of the classes that a raster shows."""
    return [swatch(named(labels[k], labels[k]), label_colour(k)) for k in np.unique(shown).tolist()]


def shared_legend(axes: Sequence[Any]) -> list[Any]:
    """Legend entries of what is drawn in these panels, each label once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    for label, handle in found.items():
        handle.set_label(label)
    return list(found.values())


def legend_rows(labels: Sequence[str], width: float) -> tuple[int, float]:
    """How many entries a row of this width in inches holds, and the height of all rows."""
    across = max(1, int(width / (0.085 * max(map(len, labels), default=0) + 0.6)))
    return across, 0.24 * -(-len(labels) // across) + 0.2


def legend_columns(labels: Sequence[str], width: float, most: int) -> int:
    """In how many columns, at most `most`, these entries fit into a width in inches; columns are filled one by one."""
    for columns in range(min(most, len(labels)), 1, -1):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[k : k + rows])) for k in range(0, len(labels), rows)]
        if sum(0.065 * length + 0.5 for length in longest) <= width:
            return columns
    return 1


def draw_legend(ax: Any, handles: Sequence[Any], columns: int, **style: Any) -> None:
    """Put a legend into an otherwise empty `ax`; on a page below all panels, in as many columns as fit."""
    if on_page():
        fig = ax.figure
        ax.remove()  # an empty row that is this low would collapse
        if handles:
            _legend_below(fig, handles, columns, style)
        return
    ax.set_axis_off()
    if handles:
        style = {"borderaxespad": 0.2, "fontsize": 10.5, "handlelength": 1.3, "columnspacing": 1.4} | style
        legend = ax.legend(handles=handles, loc="upper left", ncols=columns, labelspacing=0.35, **style)
        legend.set_in_layout(False)  # A long label must not push the panels apart.


def _legend_below(fig: Any, handles: Sequence[Any], columns: int, style: dict[str, Any]) -> None:
    """Put a legend below all panels, and make the figure taller by it."""
    size = points(style.get("fontsize", 10.5))
    style = {"handlelength": 1.3, "columnspacing": 1.0} | style | {"fontsize": size}
    renderer = fig.canvas.get_renderer()
    for across in range(min(columns, len(handles)), 0, -1):
        legend = fig.legend(handles=handles, loc="outside lower left", ncols=across, labelspacing=0.3, **style)
        box = legend.get_window_extent(renderer)
        if box.width <= fig.bbox.width or across == 1:
            break
        legend.remove()
    width, height = fig.get_size_inches()
    fig.set_size_inches(width, height + box.height / fig.dpi)

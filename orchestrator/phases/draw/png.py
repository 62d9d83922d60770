"""The still picture of a phase diagram, for a page or a paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.draw.png_lines import draw_lines, line_legend
from orchestrator.phases.draw.png_map import draw_bars, draw_labels, draw_legend, draw_values, legend_marks
from orchestrator.phases.layout import Layout, Panel, alike, headline
from orchestrator.phases.text import INK, SOFT, plural
from orchestrator.phases.theory.overlay import Overlay

DPI = 160
MOST_PANELS = 12
"""Small multiples in one still picture; the interactive one shows all."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11.5,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "axes.titlepad": 8,
}


def draw_map(
    diagram: PhaseDiagram, layout: Layout, wanted: Sequence[str], path: Path, *, theory: Overlay | None = None
) -> None:
    """Write a PNG of the label map, with up to two heat maps of observations beside it.

    Args:
        diagram: what to draw.
        layout: its panels; with several, the observations are left to the interactive picture.
        wanted: the job's headline observations.
        path: where to write.
        theory: whose predicted phases are drawn over the measured ones.
    """
    panels = layout.panels[:MOST_PANELS]
    beside = headline(wanted, diagram.observations)[:2] if len(panels) == 1 and layout.x is not None else ()
    across = columns_for(len(panels))
    columns, rows = across + len(beside), -(-len(panels) // across)
    marks = legend_marks(diagram, panels, layout, theory)
    per_row = 2 if beside else max(2, int(columns * 4.4 / 2.3))
    below = max(0.8 if beside else 0.3, 0.24 * -(-len(marks) // per_row) + 0.1)
    width, height = max(4.4 * columns + 0.4, 8.0), (3.3 if rows > 1 else 3.8) * rows + 0.85 + below
    left_out = len(layout.panels) - len(panels)
    note = f"  ·  {plural(left_out, 'more slice')} in the HTML" if left_out else ""
    with figure(diagram.name, summary(diagram) + note, (width, height)) as fig:
        grid = fig.add_gridspec(rows + 1, columns, height_ratios=[(height - 0.85 - below) / rows] * rows + [below])
        for k, panel in enumerate(panels):
            ax = fig.add_subplot(grid[k // across, k % across])
            if layout.x is None:
                draw_bars(ax, diagram)
                continue
            draw_labels(ax, diagram, panel, layout.x, layout.y, panel.title or ("phase" if beside else ""), theory)
            if k % across:
                ax.set_ylabel("")
            if k + across < len(panels):
                ax.set_xlabel("")
        for k, name in enumerate(beside):
            ax, under = fig.add_subplot(grid[0, 1 + k]), fig.add_subplot(grid[1, 1 + k])
            draw_values(fig, ax, under, diagram, panels[0], layout.x or 0, layout.y, name)
            ax.set_ylabel("")
        draw_legend(fig.add_subplot(grid[rows, : 1 if beside else columns]), marks, per_row)
        fig.savefig(path, format="png", dpi=DPI)


def columns_for(panels: int) -> int:
    """How many panels a row holds, few places left empty."""
    return panels if panels <= 3 else 2 if panels == 4 else 3 if panels in (5, 6, 9) else 4


def draw_curves(
    diagram: PhaseDiagram,
    layout: Layout,
    wanted: Sequence[str],
    metrics: Mapping[str, float],
    path: Path,
    *,
    theory: Overlay | None = None,
) -> None:
    """Write a PNG of observations along x, a panel per value of y, with the phase as a strip below each.

    There must be something to draw: `layout.lines`, and an observation in `headline`. What `theory` predicts of it is
    drawn beside.
    """
    groups = alike(headline(wanted, diagram.observations)[:4])
    panels: list[tuple[Panel, tuple[str, ...]]]
    if len(layout.lines) == 1:
        panels = [(layout.lines[0], group) for group in groups[:3]]
    else:
        panels = [(panel, groups[0]) for panel in layout.lines]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width, height = max(5.6 * columns + 0.4, 9.0), 4.1 * rows + 1.3
    with figure(diagram.name, summary(diagram), (width, height)) as fig:
        outer = fig.add_gridspec(rows + 1, columns, height_ratios=[4.1] * rows + [0.42])
        shared: Any = None
        for k, (panel, names) in enumerate(panels):
            inner = outer[k // columns, k % columns].subgridspec(2, 1, height_ratios=[12, 1], hspace=0.02)
            ax = fig.add_subplot(inner[0], sharey=shared)
            if len(layout.lines) > 1:
                shared = shared or ax
            strip = fig.add_subplot(inner[1])
            draw_lines(ax, strip, diagram, panel, layout, names, metrics, theory)
        line_legend(fig.add_subplot(outer[rows, :]), diagram, theory)
        fig.savefig(path, format="png", dpi=DPI)


@contextmanager
def figure(name: str, summary: str, size: tuple[float, float]) -> Iterator[Any]:
    """A figure of this size in inches with its heading: a name, and below it lines of summary."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context():
        # The user's own matplotlibrc must not change what the picture means.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        fig = Figure(figsize=size, facecolor="white")
        FigureCanvasAgg(fig)
        top = 1 - (0.75 + 0.19 * summary.count("\n")) / size[1]
        fig.set_layout_engine(ConstrainedLayoutEngine(rect=(0.004, 0.004, 0.992, top - 0.004), w_pad=0.09, h_pad=0.06))
        fig.text(0.012, 1 - 0.14 / size[1], name, fontsize=15, fontweight="bold", va="top")
        fig.text(0.012, 1 - 0.46 / size[1], summary, fontsize=10.5, color=SOFT, va="top")
        yield fig


def summary(diagram: PhaseDiagram) -> str:
    """Trials, settings, replicates, failures and what is missing, in one line."""
    replicates = diagram.replicates
    parts = [plural(len(diagram.cell), "trial")]
    if diagram.joined > 1:
        parts.append(f"{plural(len(diagram.codes), 'cell')}, each joining up to {diagram.joined} values of an axis")
    else:
        parts.append(f"{plural(len(diagram.codes), 'setting')} × {plural(replicates, 'replicate')}")
    failed, missing = int(diagram.failed.sum()), int(diagram.missing.sum())
    parts += [f"{failed:,} failed"] * (failed > 0) + [f"{missing:,} missing"] * (missing > 0)
    return "  ·  ".join(parts)

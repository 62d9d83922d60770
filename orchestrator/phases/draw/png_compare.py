"""The picture of two maps and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.compare import Comparison, Pair, findings
from orchestrator.phases.draw.png import DPI, figure
from orchestrator.phases.draw.png_map import draw_legend
from orchestrator.phases.draw.png_surface import MapPanel, draw_fields, draw_trials, frame
from orchestrator.phases.map.contour import Crossing, crossings
from orchestrator.phases.map.raster import Belief, rasterise
from orchestrator.phases.map.surface_map import Plane, held_positions
from orchestrator.phases.text import INK, SOFT, label_colour, number, words
from orchestrator.surface.base import ClassSurface, Points

MOST_ROWS = 4
MOST_ALSO = 150
"""Characters of the line that names what else differs."""
DIFFERENCE = "#D1495B"
"""Where the maps differ."""
_SECOND = "#2A6F97"


def draw_comparison(found: Comparison, path: Path) -> None:
    """Write the PNG: A, B and their difference side by side; a row for every common slice, up to four."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap

    rows = found.pairs[:MOST_ROWS]
    each, below = 3.9, 0.55
    summary = "\n".join([*findings(found)[:3], *_also(found.differences)])
    size = (15.2, each * len(rows) + 0.85 + below + 0.19 * summary.count("\n"))
    title = f"{found.first.name}  and  {found.second.name}"
    shown: set[int] = set()
    with figure(title, summary, size) as fig:
        grid = fig.add_gridspec(len(rows) + 1, 3, height_ratios=[each] * len(rows) + [below])
        for r, pair in enumerate(rows):
            planes = [_plane(found, pair, which) for which in (0, 1)]
            for which, (panel, one) in enumerate(zip(planes, (found.first, found.second), strict=True)):
                ax = fig.add_subplot(grid[r, which])
                draw_fields(ax, panel.plane)
                draw_trials(ax, panel)
                ax.set_title(f"{'AB'[which]}  {one.name}: {len(panel.labels):,} trials")
                if which:
                    ax.set_ylabel("")
                shown |= set(np.unique(panel.plane.raster.label).tolist())
            ax = fig.add_subplot(grid[r, 2])
            x, y = pair.axes[:2]
            frame(ax, x, y)
            apart = planes[0].plane.raster.label != planes[1].plane.raster.label
            sure = apart & ~planes[0].plane.raster.in_band & ~planes[1].plane.raster.in_band
            ax.imshow(
                (apart.astype(int) + sure).T,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                vmin=0,
                vmax=2,
                extent=(*x.span, *y.span),
                cmap=ListedColormap(["white", _tinted(DIFFERENCE, 0.5), DIFFERENCE]),
            )
            frame(ax, x, y)
            for panel, colour, style in ((planes[0], INK, "-"), (planes[1], _SECOND, (0, (3, 1.5)))):
                drawn = [np.column_stack([x.drawn(c.points[:, 0]), y.drawn(c.points[:, 1])]) for c in panel.plane.lines]
                ax.add_collection(LineCollection(drawn, colors=colour, linewidths=1.2, linestyles=[style]))
            ax.set_ylabel("")
            ax.set_title("difference" + (f", {pair.title}" if pair.title else ""))
        draw_legend(fig.add_subplot(grid[len(rows), :]), _marks(found, shown), 6)
        fig.savefig(path, format="png", dpi=DPI)


def _also(differences: Sequence[str]) -> list[str]:
    """What else differs, in as many of the differences as a line holds."""
    shown: list[str] = []
    for text in differences:
        if shown and len("  ·  ".join([*shown, text])) > MOST_ALSO:
            break
        shown.append(text if len(text) <= MOST_ALSO else text[: MOST_ALSO - 1] + "…")
    more = len(differences) - len(shown)
    line = "  ·  ".join([*shown, *([f"and {more} more"] if more else [])])
    return [f"also different: {line}"] if shown else []


def _marks(found: Comparison, shown: set[int]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        *(Patch(facecolor=label_colour(k), label=found.labels[k]) for k in sorted(shown)),
        Patch(facecolor="#E9E9E9", edgecolor=INK, linestyle=(0, (3, 2)), linewidth=0.7, label="90% band (paler)"),
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markerfacecolor=SOFT,
            markeredgecolor="white",
            markersize=6,
            label="trials, coloured by their own label",
        ),
        Patch(facecolor=DIFFERENCE, label="differ, both sure"),
        Patch(facecolor=_tinted(DIFFERENCE, 0.5), label="differ within a band"),
        Line2D([], [], color=INK, linewidth=1.2, label="boundary of A"),
        Line2D([], [], color=_SECOND, linewidth=1.2, linestyle=(0, (3, 1.5)), label="boundary of B"),
    ]


def _plane(found: Comparison, pair: Pair, which: int) -> MapPanel:
    """One side in the common box, its further axes held in their middle."""
    mine = (pair.first, pair.second)[which]
    held: dict[int, float] = {}
    if len(pair.axes) > 2:
        held = held_positions(np.zeros((0, len(pair.axes))), len(pair.axes), 1)[0][0]
    belief = _belief(found, pair, which, held)
    x, y = pair.axes[:2]
    at = _in_common(pair, which)
    inside = ((at >= -1e-9) & (at <= 1 + 1e-9)).all(axis=1)
    for axis in held:
        inside &= np.abs(at[:, axis] - 0.5) <= 1 / 6
    near = np.flatnonzero(inside)
    labels = np.where(mine.evidence.label[near] >= 0, pair.codes[which][mine.evidence.label[near]], -1)
    raster = rasterise(belief, at[near][:, :2] if not held else np.zeros((0, 2)), labels)
    lines: tuple[Crossing, ...] = tuple(crossings(belief, raster))
    title = ", ".join(
        f"{words(pair.axes[a].name)} {number(float(pair.axes[a].value(np.array(v))))}" for a, v in held.items()
    )
    plane = Plane(
        title=title, fixed={}, x=x, y=y, raster=raster, lines=lines, belief=belief, near=near, at=at[near][:, :2]
    )
    return MapPanel(of=mine, plane=plane, labels=labels, rows=mine.rows[near], failed=np.zeros((0, 2)))


def _in_common(pair: Pair, which: int) -> Points:
    """(n, d) the trials of a side in the common box."""
    mine = (pair.first, pair.second)[which]
    names = [axis.name for axis in mine.slice.axes]
    x = mine.evidence.x
    return np.column_stack(
        [axis.unit(mine.slice.axes[k].value(x[:, k])) for axis in pair.axes for k in [names.index(axis.name)]]
    )


def _belief(found: Comparison, pair: Pair, which: int, held: dict[int, float]) -> Belief:
    """The belief of a side over the common labels, on the plane of the first two axes."""
    surface = (pair.first, pair.second)[which].surface
    if not isinstance(surface, ClassSurface):
        raise TypeError("only beliefs in classes are compared")

    def belief(at: Points) -> NDArray[np.float64]:
        full = np.empty((len(at), len(pair.axes)))
        full[:, :2] = at
        for axis, value in held.items():
            full[:, axis] = value
        out = np.zeros((len(at), len(found.labels)))
        out[:, pair.codes[which]] = surface.belief(pair.own(which, full))
        return out

    return belief


def _tinted(colour: str, strength: float) -> str:
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * strength):02X}" for part in parts)

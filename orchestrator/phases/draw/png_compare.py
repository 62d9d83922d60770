"""The picture of two maps and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.compare import Comparison, Pair, findings
from orchestrator.phases.draw import png
from orchestrator.phases.draw.panels import MapPanel
from orchestrator.phases.draw.png_surface import band_swatch, draw_fields, draw_trials, frame
from orchestrator.phases.map.contour import crossings
from orchestrator.phases.map.raster import Belief, rasterise
from orchestrator.phases.map.surface_map import Plane, held_positions, held_values
from orchestrator.phases.style import with_labels
from orchestrator.phases.text import INK, SOFT, label_colour, named, tinted
from orchestrator.surface.base import ClassSurface, Points

MOST_ROWS = 4
MOST_ALSO = 150
"""Characters of the line that lists the other differences."""
DIFFERENCE = "#D1495B"
"""Where the maps differ."""
_PALE = tinted(DIFFERENCE, 0.5)
_SECOND = "#2A6F97"
_DASH = (0, (3, 1.5))


def draw_comparison(comparison: Comparison, path: png.Output) -> None:
    """Draw A, B and their difference side by side; a row for every common slice, up to four."""
    with_labels(comparison.labels, _draw)(comparison, path)


def _draw(comparison: Comparison, path: png.Output) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap

    rows = comparison.pairs[:MOST_ROWS]
    summary = "\n".join([*findings(comparison)[:3], *_also(comparison.differences)])
    title = f"{comparison.first.name}  and  {comparison.second.name}"
    colours = ListedColormap(["white", _PALE, DIFFERENCE])
    image = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "vmin": 0, "vmax": 2, "cmap": colours}
    shown: set[int] = set()
    beside = png.most_across() >= 3
    widths = [14.8 / 3] * (3 if beside else 1)
    heights = [3.9] * (len(rows) * (1 if beside else 3)) + [0.55]
    with png.sheet(path, title, summary, widths, heights) as (fig, grid):
        for r, pair in enumerate(rows):
            panels = [_panel(comparison, pair, which) for which in (0, 1)]
            for which, (panel, side) in enumerate(zip(panels, (comparison.first, comparison.second), strict=True)):
                ax = fig.add_subplot(grid[r, which] if beside else grid[3 * r + which, 0])
                draw_fields(ax, panel)
                draw_trials(ax, panel)
                ax.set_title(f"{'AB'[which]}  {side.name}: {len(panel.labels):,} trials")
                if which and beside:
                    ax.set_ylabel("")
                shown |= set(np.unique(panel.plane.raster.label).tolist())
            ax = fig.add_subplot(grid[r, 2] if beside else grid[3 * r + 2, 0])
            first, second = (panel.plane.raster for panel in panels)
            apart = first.label != second.label
            sure = apart & ~first.in_band & ~second.in_band
            x, y = pair.axes[:2]
            ax.imshow((apart.astype(int) + sure).T, extent=(*x.span, *y.span), **image)
            frame(ax, x, y)
            for panel, colour, style in ((panels[0], INK, "-"), (panels[1], _SECOND, _DASH)):
                ax.add_collection(LineCollection(panel.lines, colors=colour, linewidths=1.2, linestyles=[style]))
            ax.set_ylabel("" if beside else ax.get_ylabel())
            ax.set_title(", ".join(filter(None, ("difference", panels[0].plane.called))))
        png.draw_legend(fig.add_subplot(grid[len(heights) - 1, :]), _handles(comparison, shown), 6)


def _also(differences: Sequence[str]) -> list[str]:
    """What else differs, with as many of the differences as fit on a line."""
    shown: list[str] = []
    for text in differences:
        if shown and len("  ·  ".join([*shown, text])) > MOST_ALSO:
            break
        shown.append(text if len(text) <= MOST_ALSO else text[: MOST_ALSO - 1] + "…")
    more = len(differences) - len(shown)
    line = "  ·  ".join([*shown, *([f"and {more} more"] if more else [])])
    return [f"also different: {line}"] if shown else []


def _handles(comparison: Comparison, shown: set[int]) -> list[Any]:
    return [
        *(png.swatch(named(comparison.labels[k], comparison.labels[k]), label_colour(k)) for k in sorted(shown)),
        band_swatch("90% band, trials as independent (paler)"),
        png.symbol("trials, coloured by their own label", "o", SOFT, "white"),
        png.swatch("differ, outside both bands", DIFFERENCE),
        png.swatch("differ within a band", _PALE),
        png.stroke("boundary of A", INK, linewidth=1.2),
        png.stroke("boundary of B", _SECOND, linewidth=1.2, linestyle=_DASH),
    ]


def _panel(comparison: Comparison, pair: Pair, which: int) -> MapPanel:
    """One side in the common box, with its further axes held near their middle."""
    mine = (pair.first, pair.second)[which]
    held = held_positions(np.zeros((0, len(pair.axes))), pair.axes, 1)[0][0]
    belief = _belief(comparison, pair, which, held)
    x, y = pair.axes[:2]
    at = _in_common(pair, which)
    inside = ((at >= -1e-9) & (at <= 1 + 1e-9)).all(axis=1)
    for axis in held:
        inside &= np.abs(at[:, axis] - held[axis]) <= 1 / 6
    near = np.flatnonzero(inside)
    labels = np.where(mine.evidence.label[near] >= 0, pair.codes[which][mine.evidence.label[near]], -1)
    raster = rasterise(belief, at[near][:, :2] if not held else np.zeros((0, 2)), labels)
    lines, at = tuple(crossings(belief, raster)), at[near][:, :2]
    fixed = {**mine.slice.fixed, **held_values(pair.axes, held)}
    plane = Plane(fixed=fixed, spread={}, x=x, y=y, raster=raster, lines=lines, belief=belief, near=near, at=at)
    return MapPanel(of=mine, plane=plane, labels=labels, rows=mine.rows[near], failed=np.zeros((0, 2)))


def _in_common(pair: Pair, which: int) -> Points:
    """(n, d) the trials of a side in the common box."""
    mine = (pair.first, pair.second)[which]
    own = {axis.name: axis.value(mine.evidence.x[:, k]) for k, axis in enumerate(mine.slice.axes)}
    return np.column_stack([axis.unit(own[axis.name]) for axis in pair.axes])


def _belief(comparison: Comparison, pair: Pair, which: int, held: dict[int, float]) -> Belief:
    """The belief of a side over the common labels, on the plane of the first two axes."""
    surface = (pair.first, pair.second)[which].surface
    if not isinstance(surface, ClassSurface):
        raise TypeError("only beliefs in classes are compared")

    def belief(at: Points) -> NDArray[np.float64]:
        full = np.empty((len(at), len(pair.axes)))
        full[:, :2] = at
        for axis, value in held.items():
            full[:, axis] = value
        out = np.zeros((len(at), len(comparison.labels)))
        out[:, pair.codes[which]] = surface.belief(pair.own(which, full))
        return out

    return belief

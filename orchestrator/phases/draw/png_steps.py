"""The still picture of a metric over an axis and the step."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.phases.draw import png
from orchestrator.phases.layout import value_range
from orchestrator.phases.step_text import heading, peak_lines
from orchestrator.phases.steps import MetricMap, StepMap, StepSlice
from orchestrator.phases.text import NOT_REACHED, named, plural, rgb, words

ALONG_AXIS, ALONG_STEPS = "#FFFFFF", "#EE6677"
"""Colours of the peaks along the axis and along the steps."""


def draw_step_map(step_map: StepMap, of: MetricMap, path: png.Output) -> None:
    """Draw the mean as colour, a panel for each slice, with the peaks along the axis and along the steps."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    slices = of.slices[: png.MOST_PANELS]
    across = png.columns_for(len(slices))
    rows = -(-len(slices) // across)
    low, high, log = value_range(of.metric, of.mean)
    norm = (LogNorm if log else Normalize)(low, high)
    left_out = len(of.slices) - len(slices)
    lines = [heading(step_map, of) + (f"  ·  {plural(left_out, 'more slice')} in the HTML" if left_out else "")]
    if len(slices) == 1:
        lines += peak_lines(step_map, of)
    name = f"{step_map.diagram.name}: {words(of.metric)}"
    several = len(slices) > 1
    widths, heights = [*[4.4 if several else 7.2] * across, 0.95], [3.5 if several else 4.4] * rows + [0.35]
    with png.sheet(path, name, "\n".join(lines), widths, heights, least_width=9.0) as (fig, grid):
        axes = [fig.add_subplot(grid[k // across, k % across]) for k in range(len(slices))]
        for ax, one in zip(axes, slices, strict=True):
            _draw_slice(ax, step_map, of, one, norm, colormaps["viridis"])
        png.shared_labels(axes, across)
        side = fig.add_subplot(grid[:rows, across])
        side.set_axis_off()
        place = side.inset_axes((0.0, 0.02, 0.2, 0.96))
        bar = fig.colorbar(ScalarMappable(norm=norm, cmap=colormaps["viridis"]), cax=place)
        bar.outline.set_visible(False)
        bar.set_label(f"{named(of.metric)} (mean)")
        png.set_round_ticks(bar.ax.yaxis, 7)
        png.draw_legend(fig.add_subplot(grid[rows, :]), _handles(step_map, of), 3)


def _draw_slice(ax: Any, step_map: StepMap, of: MetricMap, one: StepSlice, norm: Any, colormap: Any) -> None:
    across, up = step_map.axis, step_map.step_axis
    png.set_axis(ax, "x", across, 7)
    png.set_axis(ax, "y", up, 8)
    ax.set_title(one.panel.called)
    edges_x, index_x = across.edges()
    edges_y, index_y = up.edges()
    # The last row and column, of index -1, are the gaps beside separate values.
    colours = np.zeros((len(of.mean) + 1, len(step_map.steps) + 1, 4))
    finite = np.isfinite(of.mean)
    colours[:-1, :-1] = (*rgb(NOT_REACHED), 1)
    colours[:-1, :-1][finite] = colormap(norm(of.mean[finite]))
    colours = colours[np.ix_(np.append(one.cell, -1)[index_x], index_y)].transpose(1, 0, 2)
    ax.pcolormesh(edges_x, edges_y, colours, shading="flat", antialiased=False, linewidth=0)
    for points, style in zip(peak_places(step_map, one), (_STYLE_AXIS, _STYLE_STEPS), strict=True):
        if len(points):
            ax.plot(points[:, 0], points[:, 1], linestyle="none", markeredgecolor="black", clip_on=False, **style)


_STYLE_AXIS = {"marker": "o", "markerfacecolor": ALONG_AXIS, "markersize": 4.5, "markeredgewidth": 0.7}
_STYLE_STEPS = {"marker": "^", "markerfacecolor": ALONG_STEPS, "markersize": 6.5, "markeredgewidth": 0.7}


def peak_places(step_map: StepMap, one: StepSlice) -> tuple[Any, Any]:
    """Drawing positions (P, 2) of the peaks along the axis and of those along the steps."""
    across, up = step_map.axis, step_map.step_axis
    along_axis = [
        (across.to_position(search.peak.x.value), up.position[k])
        for k, search in one.along_axis.items()
        if search.peak is not None
    ]
    along_steps = [
        (across.position[x], up.to_position(search.peak.x.value))
        for x, search in one.along_steps.items()
        if search.peak is not None
    ]
    return np.array(along_axis, dtype=np.float64).reshape(-1, 2), np.array(along_steps, dtype=np.float64).reshape(-1, 2)


def legend_texts(step_map: StepMap, of: MetricMap) -> tuple[str, str]:
    """What the two kinds of mark are, and how many of the tests found a peak."""
    axis = named(step_map.axis.name)
    texts = []
    for name, searches in (
        (f"peak along {axis}", [s for one in of.slices for s in one.along_axis.values()]),
        ("peak along the steps", [s for one in of.slices for s in one.along_steps.values()]),
    ):
        found = sum(search.peak is not None for search in searches)
        count = f"{found} of {len(searches)} tested" if found else f"none of {len(searches)} tested"
        texts.append(f"{name}: {count}" if searches else f"{name}: not tested")
    return texts[0], texts[1]


def _handles(step_map: StepMap, of: MetricMap) -> list[Any]:
    first, second = legend_texts(step_map, of)
    handles = [png.symbol(first, "o", ALONG_AXIS, "black"), png.symbol(second, "^", ALONG_STEPS, "black", 7)]
    if (of.count == 0).any():
        handles.append(png.swatch("no finite value", NOT_REACHED))
    return handles

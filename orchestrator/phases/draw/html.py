"""The interactive picture of a phase diagram: one HTML file that works without a network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.job import ParamSpec
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.draw.html_traces import axis_layout, hover_texts, label_traces, line_traces, value_traces
from orchestrator.phases.draw.page import PAGE
from orchestrator.phases.draw.png import summary
from orchestrator.phases.layout import Layout, alike, headline, lay_out, shared_words, wants_log
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import INK, label_colour, number, words
from orchestrator.phases.theory.overlay import Overlay


def write_html(
    diagram: PhaseDiagram,
    table: TrialTable,
    wanted: Sequence[str],
    metrics: Mapping[str, float],
    params: Mapping[str, ParamSpec],
    path: Path,
    *,
    before: Sequence[dict[str, Any]] = (),
    note: str = "",
    theory: Overlay | None = None,
) -> None:
    """Write the page: a choice of view (phase, each observation, lines) and of slice, and what hovering tells.

    Args:
        diagram: what to draw.
        table: its trials, for run ids.
        wanted: the job's headline observations: they come first, the others after.
        metrics: the sweep's numbers, listed below the plot.
        params: for the units of the parameters that do not vary.
        path: where to write.
        before: views that come before these, made as they are.
        note: follows the summary.
        theory: what it predicts is drawn beside; None also where the diagram joins values.
    """
    from plotly.offline import get_plotlyjs

    layout = lay_out(diagram)
    ever = [name for name, cells in diagram.observations.items() if cells.reached.any() or cells.censored.any()]
    first = headline(wanted, diagram.observations)
    names = [*first, *(name for name in ever if name not in first)]
    views = [*before, *_views(diagram, layout, names, first, metrics, theory)]
    page = {
        "views": views,
        "texts": {"cells": hover_texts(diagram, table, names)},
    }
    varying = {axis.name for axis in diagram.axes} | {p for ps in diagram.partners.values() for p in ps}
    fixed = [
        (words(name), _value(column[0]) + (f" {params[name].unit}" if name in params and params[name].unit else ""))
        for name, column in table.params.items()
        if name not in varying and column and len(set(column)) == 1
    ]
    text = PAGE.substitute(
        title=html.escape(diagram.name),
        summary=html.escape(summary(diagram) + note),
        plotly=get_plotlyjs(),
        data=json.dumps(page, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
        fixed=_rows(fixed),
        metrics=_rows([(name, number(value)) for name, value in metrics.items()]),
    )
    path.write_text(text, encoding="utf-8")


def _views(
    diagram: PhaseDiagram,
    layout: Layout,
    names: Sequence[str],
    first: Sequence[str],
    metrics: Mapping[str, float],
    theory: Overlay | None,
) -> list[dict[str, Any]]:
    """The views in the order of the menu: name and slices; a slice: title, traces and plotly layout."""
    x, y = layout.x, layout.y
    if x is None:
        return [{"name": "phase", "slices": [{"title": "", "traces": _bars(diagram), "layout": base_layout()}]}]
    maps: list[dict[str, Any]] = [
        {
            "name": "phase",
            "slices": [
                {
                    "title": p.title,
                    "traces": label_traces(diagram, p, x, y, "cells", theory),
                    "layout": _map_layout(diagram, x, y),
                }
                for p in layout.panels
            ],
        }
    ]
    maps += [
        {
            "name": words(name),
            "slices": [
                {
                    "title": p.title,
                    "traces": value_traces(diagram, p, x, y, name, "cells"),
                    "layout": _map_layout(diagram, x, y),
                }
                for p in layout.panels
            ],
        }
        for name in names
    ]
    if not layout.lines:
        return maps
    lines = [
        {
            "name": "lines: " + ", ".join(map(words, group)),
            "slices": [
                {
                    "title": p.title,
                    "traces": line_traces(diagram, p, x, group, metrics, "cells", theory),
                    "layout": _line_layout(diagram, x, group),
                }
                for p in layout.lines
            ],
        }
        for group in [*alike(first), *alike([n for n in names if n not in first])]
    ]
    return [*lines, maps[0]] if y is None else [*maps, *lines]


def base_layout() -> dict[str, Any]:
    """What all plots share."""
    return {
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 80, "r": 20, "t": 34, "b": 60},
        "autosize": True,
        "legend": {"x": 1.02, "y": 1, "xanchor": "left", "itemclick": False, "itemdoubleclick": False},
        "hoverlabel": {"bgcolor": "white", "bordercolor": "#999", "align": "left", "font": {"color": INK}},
        "hovermode": "closest",
        "showlegend": True,
    }


def _map_layout(diagram: PhaseDiagram, x: int, y: int | None) -> dict[str, Any]:
    upright = {"visible": False, "range": [0, 1]} if y is None else axis_layout(diagram.axes[y])
    # The colour bar stands at the right edge of the plot; the legend goes below it all.
    legend = {"orientation": "h", "x": 0, "y": -0.16, "xanchor": "left", "yanchor": "top"}
    base = base_layout()
    return base | {"xaxis": axis_layout(diagram.axes[x]), "yaxis": upright, "legend": base["legend"] | legend}


def _line_layout(diagram: PhaseDiagram, x: int, names: Sequence[str]) -> dict[str, Any]:
    import numpy as np

    across = axis_layout(diagram.axes[x]) | {"anchor": "y2"}
    values = np.concatenate([diagram.observations[name].median for name in names])
    up: dict[str, Any] = {
        "domain": [0.1, 1],
        "zeroline": False,
        "gridcolor": "#E6E6E6",
        "type": "log" if wants_log(names[0], values) else "linear",
        "title": {"text": shared_words(names)},
    }
    return base_layout() | {
        "xaxis": across,
        "yaxis": up,
        "yaxis2": {"domain": [0, 0.06], "visible": False, "range": [0, 1]},
        "yaxis3": {"overlaying": "y", "visible": False, "range": [0, 1], "fixedrange": True},
        "bargap": 0,
    }


def _bars(diagram: PhaseDiagram) -> list[dict[str, Any]]:
    total = diagram.counts.sum(axis=0)
    used = [i for i in range(len(total)) if total[i]]
    return [
        {
            "type": "bar",
            "x": [diagram.labels[i] for i in used],
            "y": [int(total[i]) for i in used],
            "name": "trials",
            "marker": {"color": [label_colour(i) for i in used]},
            "showlegend": False,
        }
    ]


def _value(value: object) -> str:
    return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _rows(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in pairs)

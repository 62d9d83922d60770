"""The interactive picture of a phase diagram: one HTML file that works without a network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from jobs.job import ParamSpec
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.draw.html_traces import (
    axis_layout,
    base_layout,
    hover_texts,
    label_traces,
    line_traces,
    map_layout,
    slices_view,
    value_traces,
)
from orchestrator.phases.layout import Layout, alike, headline, lay_out, shared_words, summary, wants_log
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import label_colour, named, number, on_page, plain, words
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
    """Write the page: a choice of view (phase, each observation, lines) and of slice, with texts on hovering.

    Args:
        diagram: what to draw.
        table: its trials, for run ids.
        wanted: the job's headline observations, which come first.
        metrics: the sweep's numbers, listed below the plot.
        params: for the units of the parameters that do not vary.
        path: where to write.
        before: views that come before these.
        note: follows the summary.
        theory: its predictions are drawn beside the measurements; None if the diagram joins values.
    """
    page = page_of(diagram, table, wanted, metrics, before=before, theory=theory)
    varying = {axis.name for axis in diagram.axes} | {p for ps in diagram.partners.values() for p in ps}
    units = {name: f" {spec.unit}" for name, spec in params.items() if spec.unit}
    fixed = [
        (words(name), _value(column[0]) + units.get(name, ""))
        for name, column in table.params.items()
        if name not in varying and column and len(set(column)) == 1
    ]
    write_page(
        path,
        diagram.name,
        summary(diagram) + note,
        page["views"],
        texts=page["texts"],
        numbers=[(name, number(value)) for name, value in metrics.items()],
        fixed=fixed,
    )


def write_page(
    path: Path,
    title: str,
    text: str,
    views: Sequence[dict[str, Any]],
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    numbers: Sequence[tuple[str, str]] = (),
    fixed: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a page with these views, which needs no network.

    Args:
        path: where to write.
        title: its heading.
        text: a line below it.
        views: see `slices_view`.
        texts: the lists of texts that the `meta` of traces name.
        numbers: of the whole sweep, listed below the plot.
        fixed: parameters that do not vary, listed too.
    """
    from plotly.offline import get_plotlyjs

    page = {"views": views, "texts": texts or {}}
    path.write_text(
        PAGE.substitute(
            title=html.escape(title),
            summary=html.escape(text),
            plotly=get_plotlyjs(),
            viewer=viewer_script(),
            data=json.dumps(page, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
            fixed=_rows(fixed),
            metrics=_rows(numbers),
        ),
        encoding="utf-8",
    )


def page_of(
    diagram: PhaseDiagram,
    table: TrialTable,
    wanted: Sequence[str],
    metrics: Mapping[str, float],
    *,
    before: Sequence[dict[str, Any]] = (),
    theory: Overlay | None = None,
) -> dict[str, Any]:
    """The data of the page: `views`, each a name and slices of traces and layout, and `texts` for hovering.

    Arguments are those of `write_html`.
    """
    layout = lay_out(diagram)
    ever = [name for name, cells in diagram.observations.items() if cells.reached.any() or cells.censored.any()]
    first = headline(wanted, diagram.observations)
    names = [*first, *(name for name in ever if name not in first)]
    views = [*before, *_views(diagram, layout, names, first, metrics, theory)]
    return {"views": views, "texts": {"cells": hover_texts(diagram, table, names)}}


def _views(
    diagram: PhaseDiagram,
    layout: Layout,
    names: Sequence[str],
    first: Sequence[str],
    metrics: Mapping[str, float],
    theory: Overlay | None,
) -> list[dict[str, Any]]:
    """The views in the order of the menu."""
    x, y = layout.x, layout.y
    if x is None:
        return [slices_view("phase", [("", _bars(diagram), base_layout())])]
    shape = map_layout(diagram.axes[x], None if y is None else diagram.axes[y])
    panels = layout.panels
    where = [panel.called_where for panel in panels]
    maps = [
        slices_view("phase", [(plain(p.called), label_traces(diagram, p, x, y, theory), shape) for p in panels], where)
    ]
    for name in names:
        of_name = [(plain(p.called), value_traces(diagram, p, x, y, name), shape) for p in panels]
        maps.append(slices_view(plain(named(name)), of_name, where))
    lines = []
    for group in [*alike(first), *alike([n for n in names if n not in first])] if layout.lines else ():
        top = _top(diagram, group, theory)
        shape = _line_layout(diagram, x, group, top)
        slices = [
            (plain(p.called), line_traces(diagram, p, group, x, metrics, theory, top), shape) for p in layout.lines
        ]
        lines.append(
            slices_view(
                f"lines: {', '.join(plain(named(name)) for name in group)}",
                slices,
                [p.called_where for p in layout.lines],
            )
        )
    return [*lines, maps[0]] if lines and y is None else [*maps, *lines]


def _is_log(diagram: PhaseDiagram, names: Sequence[str]) -> bool:
    return wants_log(names[0], np.concatenate([diagram.observations[name].median for name in names]))


def _top(diagram: PhaseDiagram, names: Sequence[str], theory: Overlay | None) -> float:
    """The upper end of line plots, to which a range without an end is drawn: a little above all that they show."""
    shown = [np.zeros(0)]
    for name in names:
        of = diagram.observations[name]
        shown += [of.least, of.high, of.bound, of.to]
        if theory is not None and (line := theory.lines.get(name)) is not None:
            shown += [line.value, line.mean + np.nan_to_num(line.mean_error)]
    values, log = np.concatenate(shown), _is_log(diagram, names)
    values = values[np.isfinite(values) & (values > (0 if log else -np.inf))]
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if low >= high:
        return high + 0.5 if len(values) else 1.0
    return high * (high / low) ** 0.05 if log else high + 0.05 * (high - low)


def _line_layout(diagram: PhaseDiagram, x: int, names: Sequence[str], top: float) -> dict[str, Any]:
    up = {"domain": [0.1, 1], "zeroline": False, "gridcolor": "#E6E6E6"}
    up |= {"type": "log" if _is_log(diagram, names) else "linear", "autorangeoptions": {"clipmax": top}}
    return base_layout() | {
        "xaxis": axis_layout(diagram.axes[x]) | {"anchor": "y2"},
        "yaxis": up | {"title": {"text": on_page(shared_words(names))}},
        "yaxis2": {"domain": [0, 0.06], "visible": False, "range": [0, 1]},
        "yaxis3": {"overlaying": "y", "visible": False, "range": [0, 1], "fixedrange": True},
        "bargap": 0,
    }


def _bars(diagram: PhaseDiagram) -> list[dict[str, Any]]:
    used, total = diagram.used, diagram.counts.sum(axis=0)
    bars = {"x": [diagram.labels[i] for i in used], "y": [int(total[i]) for i in used]}
    colours = {"color": [label_colour(i) for i in used]}
    return [{"type": "bar", "name": "trials", "marker": colours, "showlegend": False} | bars]


def _value(value: object) -> str:
    return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _rows(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in pairs)


def viewer_script() -> str:
    """The script that draws `page_of` with plotly, in this page and in the live one."""
    return Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 1.4rem 1.8rem; }
  h1 { font-size: 1.5rem; margin: 0; }
  p.summary { color: #777; margin: .2rem 0 1rem; }
  .controls { display: flex; flex-wrap: wrap; gap: 1.2rem; margin-bottom: .4rem; }
  .controls label { color: #777; }
  #sliders { display: contents; }
  #sliders input { width: 11rem; margin: 0 .5rem; vertical-align: middle; accent-color: #555; }
  #sliders output { color: #222; font-variant-numeric: tabular-nums; }
  select { font: inherit; color: #222; padding: .2rem .4rem; margin-left: .4rem; background: white;
    border: 1px solid #bbb; border-radius: 4px; }
  #plot { width: 100%; height: 72vh; min-height: 430px; }
  details { margin-top: .8rem; }
  summary { cursor: pointer; color: #555; }
  [hidden] { display: none !important; }
  td { padding: .1rem 1.2rem .1rem 0; vertical-align: top; }
  td + td { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="summary">$summary</p>
<div class="controls">
  <label>show<select id="view"></select></label>
  <label id="slice-label">where<select id="slice"></select></label>
  <span id="sliders"></span>
</div>
<div id="plot"></div>
<details><summary>Numbers of the whole sweep</summary><table>$metrics</table></details>
<details><summary>Parameters that do not vary</summary><table>$fixed</table></details>
<script>$plotly</script>
<script id="data" type="application/json">$data</script>
<script>
$viewer
phaseViewer(JSON.parse(document.getElementById("data").textContent));
</script>
</body>
</html>
""")
"""Loads nothing from elsewhere."""

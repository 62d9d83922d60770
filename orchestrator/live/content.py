"""What the live page shows, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.job import Curves
from orchestrator.phases.draw.html_traces import as_list
from orchestrator.phases.interactive import Interactive
from orchestrator.phases.layout import alike
from orchestrator.phases.text import named, plain
from orchestrator.records import Status
from orchestrator.report.content import Failure

MOST_POINTS = 400
"""Points of a curve that are sent."""
MOST_CURVES = 8
"""Trials of a cell whose curves are shown."""


def state_of(
    *,
    name: str,
    counts: Mapping[Status, int],
    most: int,
    known: int,
    phases: Counter[str],
    colours: Mapping[str, str],
    called: Mapping[str, str],
    lines: Sequence[tuple[str, str]],
    failures: Iterable[Failure],
    failed: int,
    driven: bool,
    map_version: str,
    mlflow: Mapping[str, Any],
    trouble: str = "",
) -> dict[str, Any]:
    """The state of the sweep.

    Args:
        name: Of the sweep.
        counts: Recorded trials by status.
        most: The trials that the sweep will have, or the most that its search may have.
        known: Those that it has so far.
        phases: Finished trials by phase.
        colours: Label -> its colour.
        called: Label -> what it is called, where that is something else.
        lines: What is said below the counts: (heading, text).
        failures: Kinds of errors.
        failed: Failed trials.
        driven: Whether a driver may be writing.
        map_version: Of the map that can be had now; "" before there is one.
        mlflow: `runs`, the address before a run id, `sweep`, that of the sweep's run, and `note`.
        trouble: Why the record could not be read; "" if it could.
    """
    labels = [label for label in colours if phases[label]] + [label for label in phases if label not in colours]
    return {
        "name": name,
        "total": most,
        "counts": {
            **{status.value.lower(): counts.get(status, 0) for status in Status},
            "missing": max(known - sum(counts.values()), 0),
        },
        "phases": [
            {"label": called.get(label, label), "count": phases[label], "colour": colours.get(label, "#999999")}
            for label in labels
        ],
        "lines": [{"name": heading, "text": text} for heading, text in lines],
        "failures": [{"count": one.count, "first": one.first, "text": one.text} for one in failures],
        "failed": failed,
        "driven": driven,
        "map": map_version,
        "mlflow": dict(mlflow),
        "trouble": trouble,
    }


def map_of(picture: Interactive) -> dict[str, Any]:
    """The views of the map."""
    return {**picture.page, "summary": picture.summary}


def curves_of(picture: Interactive, cell: int, curves: Mapping[str, Curves]) -> dict[str, Any]:
    """The curves of the trials of a cell, by groups of metrics that are drawn together.

    Args:
        picture: The map that has the cell.
        cell: Its number.
        curves: Trial id -> its curves, where there are any.
    """
    table, rows = picture.table, picture.rows_of(cell)
    trials = [
        {
            "name": f"replicate {int(table.replicate[row])}",
            "phase": table.status[row].lower() if not (label := table.phase[row]) else plain(named(label, label)),
            "run": table.run_id[row],
            "curves": _lines(curves[table.trial_id[row]]) if table.trial_id[row] in curves else {},
        }
        for row in rows[:MOST_CURVES]
    ]
    names = list(dict.fromkeys(name for of in curves.values() for name in of.values))
    groups = [
        {"title": ", ".join(plain(named(name)) for name in group), "metrics": list(group)}
        for group in alike(sorted(names))
    ]
    return {"trials": trials, "more": max(len(rows) - MOST_CURVES, 0), "groups": groups}


def _lines(curves: Curves) -> dict[str, dict[str, list[float | None]]]:
    lines = {}
    for name, values in curves.values.items():
        there = np.ones(len(values), dtype=np.bool_) if curves.present is None else curves.present[name]
        step, value = curves.step[there], values[there]
        if len(step) > MOST_POINTS:
            kept = np.unique(np.linspace(0, len(step) - 1, MOST_POINTS).round().astype(np.int64))
            step, value = step[kept], value[kept]
        lines[name] = {"x": as_list(step.astype(np.float64)), "y": as_list(value)}
    return lines

"""What a report says about a sweep, apart from its form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.job import Scalar
from orchestrator.axes import Axis
from orchestrator.phases.text import number, plural, words

MOST_VALUES = 12
"""Values of an axis that are listed one by one."""
MOST_ROWS = 60
"""Rows of a table of results; its CSV file has all."""
LONGEST_TRACEBACK = 40
"""Lines of a traceback that are shown, the last ones."""

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The result of one analysis."""

    name: str
    title: str
    level: float
    """Of its intervals."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    more: str = ""
    """Where the other rows are."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure."""

    file: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failed trials with the same error."""

    count: int
    first: str
    """The settings of one of them."""
    text: str
    """Its traceback."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One sweep: what was asked, what was found, and how to repeat it."""

    name: str
    state: tuple[Pair, ...]
    """Trials by status."""
    asked: tuple[Pair, ...]
    """Job, axes, parameters, replicates, search."""
    phases: tuple[tuple[str, int, str], ...] = ()
    """Label, finished trials with it, and its colour."""
    found: tuple[str, ...] = ()
    """Statements about the map and its boundary."""
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    failures: tuple[Failure, ...] = ()
    cost: tuple[Pair, ...] = ()
    commands: tuple[Pair, ...] = ()
    """What a command does, and the command."""
    links: tuple[Pair, ...] = ()
    """What a page shows, and its address."""
    files: tuple[Pair, ...] = ()
    """File beside the report, and what it holds."""
    sweep_file: str = ""
    """The whole file, with all defaults."""


def axis_text(axis: Axis) -> str:
    """The values of an axis in one line."""
    values = [scalar(value) for value in axis.values]
    few = len(values) <= MOST_VALUES
    text = ", ".join(values) if few else f"{values[0]} to {values[-1]}, {len(values)} values"
    return text if axis.scale == "values" else f"{text} ({axis.scale})"


def scalar(value: Scalar) -> str:
    """A parameter's value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number(value)


def tables_of(file: Path) -> tuple[Table, ...]:
    """The results of the analyses in `analysis.json`; none where there is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["analyses"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(map(_table, found))


def _table(result: Mapping[str, Any]) -> Table:
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    columns = result.get("columns") or list(rows[0] if rows else ())
    left = len(rows) - MOST_ROWS
    return Table(
        name=result["name"],
        title=result["title"],
        level=result["level"],
        columns=tuple(map(words, columns)),
        rows=tuple(tuple(_cell(row.get(name)) for name in columns) for row in rows[:MOST_ROWS]),
        notes=tuple(result["notes"]),
        more=f"{plural(left, 'more row')} in analysis_{result['name']}.csv" if left > 0 else "",
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        low, high = (_cell(value[end]) for end in ("low", "high"))
        return _cell(value["value"]) + ("" if "–" in (low, high) else f" [{low}, {high}]")
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "−∞"}.get(value, value)
    return scalar(value)


def cost_of(file: Path) -> tuple[Pair, ...]:
    """What the last run that trained anything took, from `run.json`; nothing where there is no such file."""
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        done, workers = int(run["done"]) + int(run["failed"]), int(run["workers"])
        seconds, training, record = (float(run[name]) for name in ("seconds", "train_s", "record_s"))
        estimated = float(run["estimated_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    if not done or not workers or not all(map(math.isfinite, (seconds, training, record))):
        return ()
    share = training / (workers * seconds) if seconds else 0.0
    pairs = [
        ("last run", f"{plural(done, 'trial')} on {plural(workers, 'worker')}"),
        ("time", f"{number(round(seconds, 1))} s from the first pack to the last record"),
        ("training", f"{number(round(training, 1))} s, {100 * share:.0f}% of the workers' time"),
        ("record", f"{number(round(record, 1))} s of the driver's time"),
    ]
    if estimated:
        pairs.append(("estimate", f"{number(round(estimated, 1))} s of training"))
    return tuple(pairs)


def shortened(traceback: str) -> str:
    """The last lines of a traceback."""
    lines = traceback.rstrip().splitlines()
    cut = len(lines) - LONGEST_TRACEBACK
    return "\n".join([f"[... {cut} lines ...]", *lines[cut:]] if cut > 0 else lines)

"""The result of an analysis: a table with an interval beside each number, and a figure."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.analysis.estimate import Estimate
from orchestrator.phases.text import number, plural

Cell = Estimate | float | int | str | bool | None
"""None: there is no such value."""
MOST_PRINTED = 16
"""Rows of a table that are printed."""
MOST_METRICS = 200
"""Numbers of one analysis that the parent run gets as metrics."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One curve of a figure, (N,) points."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    label: str
    low: NDArray[np.float64] | None = None
    """Lower end of a band; `high` the upper one."""
    high: NDArray[np.float64] | None = None
    steps: bool = False
    """Whether y is constant from each x to the next."""
    points: bool = False
    """Whether points are drawn without a line."""
    colour: int | None = None
    """Its place in the palette; None: that in the panel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One part of a figure."""

    title: str
    lines: tuple[Line, ...]
    marks: tuple[tuple[Estimate, str], ...] = ()
    """Places on the x axis, with what they are."""
    level: float | None = None
    """A value of y that is marked by a line."""
    level_label: str = ""
    """What it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """What is drawn."""

    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False
    band: str = ""
    """What the bands of the lines are."""
    panels: tuple[Panel, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What one analysis found."""

    name: str
    kind: str
    title: str
    """What was computed, in one line."""
    rows: tuple[Mapping[str, Cell], ...]
    """A mapping of column to value for each setting; all with the same columns, those of the setting first."""
    setting: tuple[str, ...]
    """The columns that make up the setting."""
    main: tuple[str, ...]
    """The columns that are printed after the setting, and whose numbers become metrics."""
    estimates: tuple[str, ...]
    """The columns that have intervals."""
    level: float
    parts: tuple[str, ...] = ()
    """The columns that tell the rows of one setting apart, if it has several."""
    notes: tuple[str, ...] = ()
    """What a reader must know about these numbers."""
    figure: Figure | None = None
    picture: Callable[[str, Path], None] | None = None
    """Draws a picture of another form than `figure`, given the sweep's name and a file."""

    def lines(self) -> list[str]:
        """The table as text, with its title and notes."""
        heading = f"{self.title} ({100 * self.level:g}% intervals)"
        columns = [*self.setting, *self.main]
        texts = [[name.replace("_", " ") for name in columns]]
        texts += [[text_of(row.get(name)) for name in columns] for row in self.rows[:MOST_PRINTED]]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = [heading]
        lines += ["  " + "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in texts]
        if len(self.rows) > MOST_PRINTED:
            lines.append(f"  and {plural(len(self.rows) - MOST_PRINTED, 'row')} more in analysis_{self.name}.csv")
        return lines + [f"  note: {note}" for note in self.notes]

    def metrics(self) -> dict[str, float]:
        """Finite numbers as metrics of the parent run: `analysis/<name>/<column>`, and what tells a row from others."""
        found: dict[str, float] = {}
        for row in self.rows:
            place = "".join(f"/{name} {row[name]}" for name in (*self.setting, *self.parts) if row[name] is not None)
            for column in (name for name in self.main if name not in self.parts):
                cell = row.get(column)
                if isinstance(cell, Estimate):
                    parts = {"": cell.value, "_low": cell.low, "_high": cell.high}
                else:
                    parts = {"": cell} if isinstance(cell, float | int) and not isinstance(cell, bool) else {}
                for end, value in parts.items():
                    if math.isfinite(value) and len(found) < MOST_METRICS:
                        found[re.sub(r"[^\w/.: -]", "_", f"analysis/{self.name}/{column}{end}{place}")] = float(value)
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain data; an infinite number is the text "inf" or "-inf", and a number that does not exist is null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "level": self.level,
            "notes": list(self.notes),
            "columns": [*self.setting, *self.main],
            "rows": [{name: _plain(cell) for name, cell in row.items()} for row in self.rows],
        }

    def write_csv(self, path: Path) -> None:
        """One row per setting; an estimate has three columns, `<name>`, `<name>_low` and `<name>_high`."""
        names = {name: name in self.estimates for name in self.rows[0]}
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow([n for name, wide in names.items() for n in _columns(name, wide)])
            for row in self.rows:
                out.writerow([part for name, wide in names.items() for part in _parts(row[name], wide)])


def write_json(results: Sequence[Result], path: Path, **about: Scalar) -> None:
    """All results in one file, with what else is known about them."""
    content = about | {"analyses": [result.as_json() for result in results]}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(cell: Cell) -> Any:
    if isinstance(cell, Estimate):
        return {name: _plain(value) for name, value in (("value", cell.value), ("low", cell.low), ("high", cell.high))}
    if isinstance(cell, float) and not math.isfinite(cell):
        return None if math.isnan(cell) else str(cell)
    return cell


def _columns(name: str, wide: bool) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"] if wide else [name]


def _parts(cell: Cell, wide: bool) -> list[Any]:
    if isinstance(cell, Estimate):
        return ["" if math.isnan(v) else repr(float(v)) for v in (cell.value, cell.low, cell.high)]
    text = "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell
    return [text, "", ""] if wide else [text]


def text_of(cell: Cell) -> str:
    """A value as a table shows it: `47 [40, 61]` with its interval, `-` where there is none."""
    if cell is None:
        return "-"
    if isinstance(cell, Estimate):
        if math.isnan(cell.value):
            return "-"
        bounds = f"[{_short(cell.low)}, {_short(cell.high)}]"
        return f"{_short(cell.value)} {'no interval' if math.isnan(cell.low) or math.isnan(cell.high) else bounds}"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return cell if isinstance(cell, str) else _short(cell)


def _short(value: float) -> str:
    return "-" if math.isnan(value) else number(float(value))

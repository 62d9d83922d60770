"""What the columns of the files in an output folder mean: `columns.txt`, beside them."""

from __future__ import annotations

import csv
import re
import textwrap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from orchestrator.axes import Axis
from orchestrator.results.dictionary import param_meaning, trial_entries
from orchestrator.trial import Trial

NAME = "columns.txt"

ABOUT: Mapping[str, str] = {
    "trials.parquet": "A row per trial, missing ones included.",
    "boundary.parquet": "A row per vertex of a line between two phases, or along a ridge. The band is given as points "
    "on the normal of the line, not as values at the same place along an axis; for those, see `phasefront read`. Near "
    "a third phase the band of two phases is wider than the line suggests.",
    "search_progress.csv": "A row per refit of a search.",
    "theory_deviation.parquet": "A row per setting and observation that theory predicts.",
    "step_map*.parquet": "A row per metric, setting and step: means over replicates.",
    "*_against_*.parquet": "A row per point of the figure: means over replicates.",
    "more_data*.parquet": "A row per comparison of n with 2n.",
    "analysis_*.csv": "A row per setting of one analysis.",
}
"""Pattern of a file's name -> what a row of it is."""
MEANINGS: Mapping[str, Mapping[str, str]] = {
    "boundary.parquet": {
        "line": "number of the line",
        "vertex": "number along the line",
        "label_a": "phase on one side; empty for a ridge",
        "label_b": "phase on the other side",
        r"(.+)_over_seeds_at_(5|95)": "where, on the normal, label_a has {1}% of the belief of another seed, along {0}",
        r"(.+)_at_(5|95)": "where, on the normal, label_a has {1}% of the belief given these seeds, along {0}",
        r"over_seeds_offset_(5|95)": "signed distance of that point from the vertex, in widths of the box",
        r"offset_(5|95)": "signed distance of that point from the vertex, in widths of the box",
    },
    "search_progress.csv": {
        "trials": "trials spent",
        "uncertain_area": "share of the map in the 90% band",
        "refitted": "whether the trials were fitted again afterwards",
    },
    "theory_deviation.parquet": {
        "observation": "name of the observation",
        "deviation": "measured minus predicted, in standard errors",
    },
}
"""File -> pattern of a column's name -> its meaning, with the groups of the pattern."""
ANYWHERE: Mapping[str, str] = {
    "metric": "name of the metric",
    "step": "optimiser steps",
    "mean": "mean over replicates",
    "low": "lower end of the 90% interval of the mean",
    "high": "upper end of the 90% interval of the mean",
    "replicates": "replicates that it is computed of",
    "x": "abscissa of the figure",
    "y": "ordinate of the figure",
    r"(.+)_low": "lower end of the interval of {0}",
    r"(.+)_high": "upper end of the interval of {0}",
    r"p|p_value|(.+)_p": "p-value",
    "trials|n": "how many trials it is computed of",
}
"""The same for the columns of any file but `trials.parquet`."""


def write_columns(folder: Path, axes: Sequence[Axis], trials: Sequence[Trial]) -> Path:
    """Write `columns.txt` about the tables of a folder."""
    parts = [
        "\n".join([path.name, *_wrapped(about, 2), *_lines(path, path.name, axes, trials)])
        for path in sorted(folder.iterdir())
        if (about := _about(path.name))
    ]
    heading = "What the columns of the tables in this folder mean. `phasefront export` writes curves too."
    path = folder / NAME
    scratch = path.with_suffix(".tmp")
    scratch.write_text("\n\n".join([heading, *parts]) + "\n", encoding="utf-8")
    return scratch.replace(path)


def _about(name: str) -> str:
    return next((about for pattern, about in ABOUT.items() if fnmatch(name, pattern)), "")


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _lines(path: Path, name: str, axes: Sequence[Axis], trials: Sequence[Trial]) -> list[str]:
    entries = [(column, meaning(name, column, axes, trials)) for column in _columns(path)]
    if name == "trials.parquet":
        import pyarrow.parquet as pq

        table: Any = pq.read_schema(path).empty_table()
        unit = {e.column: f" ({e.unit})" if e.unit else "" for e in trial_entries(table, trials)}
        entries = [(e.column, e.meaning.rstrip(".") + unit[e.column]) for e in trial_entries(table, trials)]
    width = min(max((len(column) for column, _ in entries), default=0), 40)
    return [f"  {column.ljust(width)}  {text}".rstrip() for column, text in entries]


def _columns(path: Path) -> list[str]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def meaning(file: str, column: str, axes: Sequence[Axis], trials: Sequence[Trial]) -> str:
    """What a column means, in a few words."""
    name = column.removeprefix("axis.").removeprefix("param.")
    if any(axis.name == name for axis in axes):
        return f"axis: {param_meaning(name, trials)}"
    own = MEANINGS.get(file, {})
    for pattern, text in (*own.items(), *ANYWHERE.items()):
        found = re.fullmatch(pattern, column)
        if found:
            return text.format(*(group or "" for group in found.groups()))
    return column.replace("_", " ")

"""A sweep as an `xarray.Dataset`: axes x replicate x step for a grid, one dimension `trial` for a search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.job import Curves, Scalar
from orchestrator.axes import Axis
from orchestrator.errors import UserError
from orchestrator.phases.table import TrialTable, arrow_table, names_of
from orchestrator.results.curves import axis_column, metric_column
from orchestrator.results.dictionary import Entry
from orchestrator.results.frames import library

MOST_NUMBERS = 500_000_000
"""The most numbers of one metric over axes, replicates and steps."""
ABSENT = "ABSENT"
"""Status of a combination of values that is no trial of the sweep."""

Curve = tuple[str, Curves]


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One dimension of the grid: an axis, or axes that advance together."""

    name: str
    axes: tuple[Axis, ...]

    @property
    def places(self) -> tuple[tuple[Scalar, ...], ...]:
        """The values of the axes at each position."""
        return tuple(zip(*(axis.values for axis in self.axes), strict=True))


def dimensions(axes: Sequence[Axis]) -> list[Dimension]:
    """The dimensions of a grid; axes that advance together share one, named by the first with distinct values.

    Raises:
        UserError: an axis exists under a condition only, so that the settings are no product of axes.
    """
    for axis in axes:
        if axis.when:
            raise UserError(
                f"the axis {axis.name} exists only where {' and '.join(axis.when)} has certain values (`when`), so the "
                "settings are not a product of axes and make no array",
                place="to_xarray()",
                next_step="use trials() and curves(axes=True), or a sweep file without `when`",
            )
    groups: dict[object, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(axis.name if axis.group is None else axis.group, []).append(axis)
    made = []
    for group in groups.values():
        distinct = [axis.name for axis in group if len(set(axis.values)) == len(axis.values)]
        made.append(Dimension(name=distinct[0] if distinct else "+".join(a.name for a in group), axes=tuple(group)))
    return made


def to_dataset(
    axes: Sequence[Axis],
    table: TrialTable,
    entries: Sequence[Entry],
    *,
    search: bool,
    metrics: Sequence[str] = (),
    curves: Iterator[Curve] | None = None,
    title: str = "",
) -> Any:
    """The dataset, see `SweepResults.to_xarray`.

    Args:
        axes: of the sweep.
        table: its trials.
        entries: the data dictionary.
        search: whether a search chose the trials.
        metrics: whose curves are variables.
        curves: (trial id, curves) of the trials; None for none.
        title: of the dataset.
    """
    xarray = library("xarray", what="to_xarray()")
    frame = arrow_table(table)
    params, observations = names_of(frame)
    taken = [metric_column(name) for name in metrics]
    coords: dict[str, Any] = {}
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    at: tuple[Any, ...]
    if search:
        dims, shape, at = ("trial",), (len(table),), (np.arange(len(table)),)
        coords["trial"] = list(table.trial_id)
        for axis in axes:
            coords[axis_column(axis.name, taken)] = ("trial", _column(frame, params[axis.name]))
        coords["replicate"] = ("trial", table.replicate)
    else:
        grid = dimensions(axes)
        replicates = np.unique(table.replicate)
        dims = (*(axis_column(d.name, taken) for d in grid), "replicate")
        shape = (*(len(d.places) for d in grid), len(replicates))
        at = (*(_positions(d, table) for d in grid), np.searchsorted(replicates, table.replicate))
        for name, dimension in zip(dims, grid, strict=False):
            for axis in dimension.axes:
                coords[axis_column(axis.name, taken)] = (name, np.array(axis.values))
        coords["replicate"] = replicates
    variables: dict[str, Any] = {}
    for name in ("status", "phase", "run_id", *(["trial_id"] if not search else [])):
        filled = np.full(shape, ABSENT if name == "status" else "", dtype=object)
        filled[at] = ["" if text is None else text for text in frame[name].to_pylist()]
        variables[name] = (dims, filled.astype(str))
    for column in observations.values():
        for name in (column, f"{column}_censored_at"):
            variables[name] = (dims, _placed(shape, at, _column(frame, name)))
    if curves is not None:
        steps, arrays = _curves(table, metrics, curves, shape, at)
        coords["step"] = steps
        variables |= {metric_column(name): ((*dims, "step"), values) for name, values in arrays.items()}
    dataset = xarray.Dataset(variables, coords, {"title": title})
    about: Mapping[str, Entry] = {entry.column: entry for entry in reversed(entries)}
    for name in dataset.variables:
        entry = about.get("trial_id" if name == "trial" else name)
        if entry is not None:
            dataset[name].attrs |= {"long_name": entry.meaning} | ({"units": entry.unit} if entry.unit else {})
    return dataset


def _column(frame: Any, name: str) -> Any:
    return frame[name].to_pandas().to_numpy()


def _placed(shape: tuple[int, ...], at: tuple[Any, ...], values: Any) -> Any:
    filled = np.full(shape, np.nan)
    filled[at] = values
    return filled


def _positions(dimension: Dimension, table: TrialTable) -> Any:
    """(N,) the position of each trial along the dimension."""
    index: dict[tuple[Scalar | None, ...], int] = {}
    for position, place in enumerate(dimension.places):
        index.setdefault(place, position)
    columns = [table.params[axis.name] for axis in dimension.axes]
    return np.array([index[place] for place in zip(*columns, strict=True)], dtype=np.int64)


def _curves(
    table: TrialTable, metrics: Sequence[str], curves: Iterator[Curve], shape: tuple[int, ...], at: tuple[Any, ...]
) -> tuple[Any, dict[str, Any]]:
    """The union of all steps, and each metric over the dimensions and the steps; NaN where it was not reported."""
    row = {trial: position for position, trial in enumerate(table.trial_id)}
    steps = np.zeros(0, dtype=np.int64)
    read: list[tuple[int, Curves]] = []
    for trial, curve in curves:
        steps = np.union1d(steps, curve.step)
        read.append((row[trial], curve))
        numbers = math.prod(shape) * len(steps)
        if numbers > MOST_NUMBERS:
            raise UserError(
                f"the array of one metric would have more than {MOST_NUMBERS:,} numbers, as trials report at different "
                "steps",
                place="to_xarray()",
                value=f"{math.prod(shape):,} combinations x {len(steps):,} steps",
                next_step="use curve_chunks(), which has only what was reported",
            )
    arrays = {name: np.full((*shape, len(steps)), np.nan) for name in metrics}
    for position, curve in read:
        place: Any = (*(int(index[position]) for index in at), np.searchsorted(steps, curve.step))
        for name, values in curve.values.items():
            arrays[name][place] = values
    return steps, arrays

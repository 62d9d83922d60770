"""One quantity of the trials against another: error against parameters per label, weight norm at the crossing.

Shapes: N trials, C cells (settings).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.emc import EPSILON, Edge, effective_complexity
from orchestrator.analysis.estimate import LEVEL, tails
from orchestrator.analysis.means import at_steps
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.points import PointFigure, PointGroup, grouping_axis
from orchestrator.phases.step_text import outcome
from orchestrator.phases.steps import ReadCurves, error_of, search_rows
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import plural, words
from orchestrator.records import Status

Floats = NDArray[np.float64]

EMC_PER_SAMPLE = "emc_per_sample"
"""Effective model complexity divided by the number of samples (Nakkiran et al. 2019); for sweeps over SAMPLES."""
SAMPLES = "sample_count"
TRAIN_ERROR = "final_train_error"


class NoSuchQuantity(LookupError):
    """There is no quantity of this name; `choices` are those that there are, `rule` says why."""

    def __init__(self, name: str, choices: Sequence[str], rule: str) -> None:
        super().__init__(name)
        self.name, self.choices, self.rule = name, tuple(choices), rule


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantity:
    """One number of each trial."""

    name: str
    value: Floats
    """(N,) NaN where a trial has none."""
    censored: NDArray[np.bool_]
    """(N,) whether it was not reached."""


def quantity_of(name: str, diagram: PhaseDiagram, table: TrialTable, read: ReadCurves) -> Quantity:
    """An observation, a numeric parameter, `METRIC@OBSERVATION` or `emc_per_sample` of every trial.

    `METRIC@OBSERVATION` is a recorded metric at the step that an observation gives, linear in log(1 + step) between the
    recorded steps; it is censored where the step was not reached.

    Raises:
        NoSuchQuantity: the name is none of these.
    """
    metric, at, observation = name.partition("@")
    if name in table.observations:
        column = table.observations[name]
        return Quantity(name=name, value=np.where(column.reached, column.value, np.nan), censored=column.censored)
    nothing = np.zeros(len(table), dtype=np.bool_)
    if name in table.params and all(isinstance(v, int | float | None) for v in table.params[name]):
        value = np.array([np.nan if v is None else float(v) for v in table.params[name]], dtype=np.float64)
        return Quantity(name=name, value=value, censored=nothing)
    if name == EMC_PER_SAMPLE:
        return _emc_per_sample(diagram, table)
    if at and observation in table.observations:
        return _metric_at(name, metric, observation, table, read)
    numeric = [p for p, values in table.params.items() if values and isinstance(values[0], int | float)]
    if at:
        rule = "must name an observation after the @, at whose step the metric is read"
        raise NoSuchQuantity(observation, tuple(table.observations), rule)
    choices = (*table.observations, *(axis.name for axis in diagram.axes if axis.name in numeric))
    raise NoSuchQuantity(name, choices, "must be an observation, a number among the parameters or METRIC@OBSERVATION")


def _metric_at(name: str, metric: str, observation: str, table: TrialTable, read: ReadCurves) -> Quantity:
    column = table.observations[observation]
    wanted = {table.trial_id[row]: row for row in np.flatnonzero(column.reached & np.isfinite(column.value)).tolist()}
    value, known = np.full(len(table), np.nan), set[str]()
    for trial_id, curves in read(list(wanted)):
        known |= curves.values.keys()
        if metric in curves.values:
            row = wanted[trial_id]
            step = np.array([round(column.value[row])], dtype=np.int64)
            curve = np.asarray(curves.values[metric], dtype=np.float64)
            there = np.ones(len(curve), dtype=np.bool_) if curves.present is None else curves.present[metric]
            value[row] = at_steps(curves.step[there], curve[there], step)[0]
    if known and metric not in known:
        raise NoSuchQuantity(metric, sorted(known), "must be a metric that the trials have recorded")
    return Quantity(name=name, value=value, censored=column.censored)


def _emc_per_sample(diagram: PhaseDiagram, table: TrialTable) -> Quantity:
    """EMC of the settings that differ in the number of samples alone, over that number; censored off the grid."""
    names = [axis.name for axis in diagram.axes]
    if SAMPLES not in names or TRAIN_ERROR not in table.observations:
        rule = f"needs an axis {SAMPLES} with several values, and the observation {TRAIN_ERROR}"
        raise NoSuchQuantity(EMC_PER_SAMPLE, names, rule)
    a = names.index(SAMPLES)
    error = table.observations[TRAIN_ERROR]
    finished = error.reached & np.isfinite(error.value)
    value, censored = np.full(len(table), np.nan), np.zeros(len(table), dtype=np.bool_)
    others = np.delete(diagram.codes, a, axis=1)[diagram.cell]
    _, group = np.unique(others, axis=0, return_inverse=True)
    samples = np.array(table.params[SAMPLES], dtype=np.float64)
    for g in range(int(group.max(initial=-1)) + 1):
        rows = np.flatnonzero((group == g) & finished)
        sizes, place = np.unique(samples[rows], return_inverse=True)
        numbers, replicate = np.unique(table.replicate[rows], return_inverse=True)
        if len(sizes) < 2 or sizes[0] <= 0:
            continue
        errors = np.full((len(numbers), len(sizes)), np.nan)
        errors[replicate, place] = error.value[rows]
        complexity = effective_complexity(sizes, errors, epsilon=EPSILON)
        value[rows] = complexity.samples.value / samples[rows] if complexity.edge is Edge.INSIDE else np.nan
        censored[rows] = complexity.edge is not Edge.INSIDE
    return Quantity(name=EMC_PER_SAMPLE, value=value, censored=censored)


def against(diagram: PhaseDiagram, table: TrialTable, x: Quantity, y: Quantity) -> PointFigure:
    """A point per setting: the mean over replicates of y at that of x, with t intervals, and a test for a peak.

    A setting in which a replicate has not reached x or y has no mean; it is left out and counted. Settings that differ
    in the axis with the fewest values are groups. Where x is the same for all replicates of a setting, a peak of y
    along x is looked for in each group.
    """
    cells = len(diagram.codes)
    finished = np.array([status == Status.FINISHED.value for status in table.status], dtype=np.bool_)
    usable = finished & np.isfinite(x.value) & np.isfinite(y.value) & ~x.censored & ~y.censored
    open_cells = np.bincount(diagram.cell[finished & (x.censored | y.censored)], minlength=cells) > 0
    lacking = finished & ~usable & ~x.censored & ~y.censored
    usable &= ~open_cells[diagram.cell]
    count = np.bincount(diagram.cell[usable], minlength=cells)
    mean_x, half_x = _means(x.value, usable, diagram, count)
    mean_y, half_y = _means(y.value, usable, diagram, count)
    # A quantity of the setting itself, such as its number of parameters, has no error.
    spread = np.zeros(cells)
    np.maximum.at(spread, diagram.cell[usable], np.abs(x.value - mean_x[diagram.cell])[usable])
    same = spread <= 1e-9 * np.abs(np.nan_to_num(mean_x))
    half_x = np.where(same, 0.0, half_x)
    exact = np.full(cells, np.nan)
    exact[diagram.cell[usable]] = x.value[usable]
    mean_x = np.where(same, exact, mean_x)
    by = grouping_axis(diagram)
    groups, lines = [], []
    for g, title in enumerate(_titles(diagram, by)):
        own = np.flatnonzero((count > 0) & (True if by is None else diagram.codes[:, by] == g))
        own = own[np.argsort(mean_x[own], kind="stable")]
        if not len(own):
            continue
        marked = np.zeros(len(own), dtype=np.bool_)
        if same[own].all() and (np.diff(mean_x[own]) > 0).all():
            rows = np.flatnonzero(usable & np.isin(diagram.cell, own))
            numbers, replicate = np.unique(table.replicate[rows], return_inverse=True)
            place = np.full(cells, -1, dtype=np.int64)
            place[own] = np.arange(len(own))
            values = np.full((len(numbers), len(own)), np.nan)
            values[replicate, place[diagram.cell[rows]]] = y.value[rows]
            search = search_rows(mean_x[own], error_of(y.name, values), window=1.0)
            if search is not None:
                head = f"{title}: " if title else ""
                lines.append(f"{head}peak of {y.name} along {x.name}: {outcome(search, words(x.name))}")
                marked = mean_x[own] == search.peak.x.value if search.peak is not None else marked
        groups.append(
            PointGroup(
                title=title,
                cells=own,
                x=mean_x[own],
                x_low=(mean_x - half_x)[own],
                x_high=(mean_x + half_x)[own],
                y=mean_y[own],
                low=(mean_y - half_y)[own],
                high=(mean_y + half_y)[own],
                count=count[own],
                marked=marked,
            )
        )
    total = plural(int((count > 0).sum()), "setting")
    replicates = count[count > 0]
    summary = (
        f"{total}, mean over {_range(replicates)} replicates with 90% intervals" if len(replicates) else "no setting"
    )
    if open_cells.any():
        summary += f"; {plural(int(open_cells.sum()), 'setting')} left out, where a replicate has not reached it"
    if lacking.any():
        summary += f"; {plural(int(lacking.sum()), 'trial')} without a finite value of both"
    return PointFigure(
        file=re.sub(r"[^A-Za-z0-9_.-]", "_", f"{y.name}_against_{x.name}"),
        title=f"{diagram.name}: {words(y.name)} against {words(x.name)}",
        x_name=x.name,
        y_name=y.name,
        diagram=diagram,
        groups=tuple(groups),
        lines=(summary, *lines),
        mark="peak" if any(group.marked.any() for group in groups) else "",
    )


def _range(count: NDArray[np.int64]) -> str:
    low, high = int(count.min()), int(count.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _titles(diagram: PhaseDiagram, by: int | None) -> list[str]:
    if by is None:
        return [""]
    axis = diagram.axes[by]
    return [f"{words(axis.name)} {axis.text(v)}" for v in range(len(axis.values))]


def _means(
    value: Floats, usable: NDArray[np.bool_], diagram: PhaseDiagram, count: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """(C,) mean of the usable trials of each cell, and half the width of its t interval."""
    from scipy.special import stdtrit

    cell, cells = diagram.cell[usable], len(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(cell, weights=value[usable], minlength=cells) / count
        squares = np.bincount(cell, weights=(value[usable] - mean[cell]) ** 2, minlength=cells)
    free = np.maximum(count - 1, 1)
    half = stdtrit(free, tails(LEVEL)[1]) * np.sqrt(squares / free / np.maximum(count, 1))
    return mean, np.where(count > 1, half, np.inf)

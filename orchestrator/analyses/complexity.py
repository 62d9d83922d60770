"""Effective model complexity: the largest number of samples that a training procedure still fits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from orchestrator.analyses.base import Analysis, Needs
from orchestrator.axes import key

if TYPE_CHECKING:
    from orchestrator.analyses.result import Cell, Panel, Result
    from orchestrator.analyses.source import Floats, Group, Sample, Source

DIVERGED_ERROR = 1.0
"""The training error of a trial that has diverged: it fits nothing."""


class ComplexityAnalysis(Analysis):
    """EMC of Nakkiran et al. 2019; see `orchestrator.analysis.emc`."""

    kind_name: ClassVar[str] = "complexity"

    kind: Literal["complexity"] = key(
        ..., "Effective model complexity: the largest n whose mean training error is at most `error`.", "complexity"
    )
    of: str = key("final_train_error", "The training error.", "an observation", min_length=1)
    along: str = key(
        "sample_count", "The number of training samples.", "the name of an axis with numbers", min_length=1
    )
    error: float = key(0.1, "The training error up to which samples are fitted.", "a number >= 0 and < 1", ge=0, lt=1)

    @property
    def default_name(self) -> str:
        """The kind, the error that is used, and the axis."""
        return f"complexity_{self.of}_{self.along}"

    @property
    def needs(self) -> Needs:
        """An observation along an axis."""
        return Needs(axes=(("along", self.along),), observations=(("of", self.of),))

    def compute(self, source: Source) -> Result:
        """A row for each setting of the other axes."""
        from orchestrator.analyses.result import Figure, Result
        from orchestrator.analyses.view import MOST_PANELS, axis_label, spread, wants_log

        rows: list[dict[str, Cell]] = []
        panels: list[Panel] = []
        groups = source.groups(self.along)
        drawn = spread(len(groups), MOST_PANELS)
        for g, group in enumerate(groups):
            sample = source.along(group, self.along, self._errors(source, group))
            row, panel = self._row(group, sample)
            rows.append(row)
            if g in drawn:
                panels.append(panel)
        censored = [str(row["censored"]) for row in rows]
        notes = [
            text
            for word, text in (
                (">=", "censored >=: every size is fitted, so that the value is at least the largest size trained"),
                ("<", "censored <: no size is fitted, so that the value is below the smallest size trained"),
            )
            if word in censored
        ]
        if any(row["replicates"] == 1 for row in rows):
            notes.append("with one replicate there is no interval: its bounds are 0 and inf")
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=f"effective model complexity: largest {self.along} whose mean {self.of} is at most {self.error:g}",
            rows=tuple(rows),
            setting=tuple(groups[0].setting) if groups else (),
            main=("replicates", "censored", "complexity", "largest_fitted", "not_fitted_below"),
            estimates=("complexity",),
            level=self.level,
            notes=tuple(notes),
            figure=Figure(
                x_label=axis_label(source, self.along),
                y_label=f"mean {self.of.replace('_', ' ')}",
                x_log=wants_log(source, self.along),
                band="standard error of the mean",
                panels=tuple(panels),
            ),
        )

    def _errors(self, source: Source, group: Group) -> Floats:
        """Training errors; that of a diverged trial is 1, and NaN that of one without the observation."""
        column = source.table.observations.get(self.of)
        if column is None:
            return np.full(len(group.rows), np.nan)
        value, reached = column.value[group.rows], column.reached[group.rows]
        return np.where(reached, np.where(np.isfinite(value), value, DIVERGED_ERROR), np.nan)

    def _row(self, group: Group, sample: Sample) -> tuple[dict[str, Cell], Panel]:
        from orchestrator.analyses.result import Line, Panel
        from orchestrator.analysis.emc import Edge, effective_complexity

        row: dict[str, Cell] = dict(group.setting)
        measured = (~np.isnan(sample.values)).any(0) & (sample.x > 0)
        x, values = sample.x[measured], sample.values[:, measured]
        if not len(x):
            row |= {"replicates": 0, "censored": "no trial", "complexity": None}
            row |= {"largest_fitted": math.nan, "monotone": None, "not_fitted_below": ""}
            return row, Panel(title=group.title, lines=())
        found = effective_complexity(x, values, epsilon=self.error, level=self.level)
        edge = {Edge.INSIDE: "", Edge.ABOVE: ">=", Edge.BELOW: "<"}[found.edge]
        samples = found.samples
        if found.replicates > 1:  # a censored value is anywhere beyond the edge
            low = samples.low if found.edge is not Edge.ABOVE else min(samples.low, samples.value)
            high = samples.high if found.edge is not Edge.BELOW else max(samples.high, samples.value)
            samples = replace(samples, low=low, high=high)
        row |= {"replicates": found.replicates, "censored": edge, "complexity": samples}
        row |= {"largest_fitted": found.largest_fitted, "monotone": found.monotone}
        row["not_fitted_below"] = " ".join(f"{size:g}" for size in found.not_fitted_below)
        count = (~np.isnan(values)).sum(0)
        mean = np.nanmean(values, axis=0)
        squares = np.nansum((values - mean) ** 2, axis=0)
        error = np.sqrt(squares / np.maximum(count - 1, 1) / count)
        line = Line(x=x, y=mean, label=f"mean of {found.replicates}", low=mean - error, high=mean + error)
        mark = (samples, f"EMC {edge}".strip())
        return row, Panel(title=group.title, lines=(line,), marks=(mark,), level=self.error)

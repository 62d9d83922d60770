"""What a training procedure still fits: the most samples of a network, and the smallest network of the samples."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from orchestrator.analyses.base import Analysis, Needs
from orchestrator.axes import key

if TYPE_CHECKING:
    from orchestrator.analyses.result import Cell, Panel, Result
    from orchestrator.analyses.source import Floats, Group, Sample, Source
    from orchestrator.analysis.emc import Complexity

DIVERGED_ERROR = 1.0
"""The training error of a trial that has diverged: it fits nothing."""


class FittingAnalysis(Analysis):
    """Where the mean training error along an axis crosses a level."""

    column: ClassVar[str]
    """Of the place, in the table."""
    edge_columns: ClassVar[tuple[str, str]]
    """Of the last size before the place, and of the smaller ones that are on the wrong side of the level."""
    beyond: ClassVar[Mapping[str, str]]
    """Sign of a censored place -> why it is censored."""
    mark: ClassVar[str]
    """What the place is, in a figure."""

    of: str = key("final_train_error", "The training error.", "an observation", min_length=1)
    along: str
    error: float

    @property
    def default_name(self) -> str:
        """The kind, the error that is used, and the axis."""
        return f"{self.kind_name}_{self.of}_{self.along}"

    @property
    def needs(self) -> Needs:
        """An observation along an axis."""
        return Needs(axes=(("along", self.along),), observations=(("of", self.of),))

    @property
    @abstractmethod
    def title(self) -> str:
        """What is computed, in one line."""

    @abstractmethod
    def place(self, x: Floats, errors: Floats) -> Complexity:
        """Where the mean over replicates of these errors, (R, N), crosses the level."""

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
        notes = [f"censored {sign}: {why}" for sign, why in self.beyond.items() if sign in censored]
        if any(row["replicates"] == 1 for row in rows):
            notes.append("with one replicate there is no interval: its bounds are 0 and inf")
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=self.title,
            rows=tuple(rows),
            setting=tuple(groups[0].setting) if groups else (),
            main=("replicates", "censored", self.column, *self.edge_columns),
            estimates=(self.column,),
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
        from orchestrator.analysis.emc import Edge

        row: dict[str, Cell] = dict(group.setting)
        last, other = self.edge_columns
        measured = (~np.isnan(sample.values)).any(0) & (sample.x > 0)
        x, values = sample.x[measured], sample.values[:, measured]
        if not len(x):
            row |= {"replicates": 0, "censored": "no trial", self.column: None}
            row |= {last: math.nan, "monotone": None, other: ""}
            return row, Panel(title=group.called, lines=())
        found = self.place(x, values)
        edge = {Edge.INSIDE: "", Edge.ABOVE: ">=", Edge.BELOW: "<"}[found.edge]
        samples = found.samples
        if found.replicates > 1:  # a censored value is anywhere beyond the edge
            low = samples.low if found.edge is not Edge.ABOVE else min(samples.low, samples.value)
            high = samples.high if found.edge is not Edge.BELOW else max(samples.high, samples.value)
            samples = replace(samples, low=low, high=high)
        row |= {"replicates": found.replicates, "censored": edge, self.column: samples}
        row |= {last: found.largest_fitted, "monotone": found.monotone}
        row[other] = " ".join(f"{size:g}" for size in found.not_fitted_below)
        count = (~np.isnan(values)).sum(0)
        mean = np.nanmean(values, axis=0)
        squares = np.nansum((values - mean) ** 2, axis=0)
        error = np.sqrt(squares / np.maximum(count - 1, 1) / count)
        line = Line(x=x, y=mean, label=f"mean of {found.replicates}", low=mean - error, high=mean + error)
        mark = (samples, f"{self.mark} {edge}".strip())
        return row, Panel(title=group.called, lines=(line,), marks=(mark,), level=self.error)


class ComplexityAnalysis(FittingAnalysis):
    """EMC of Nakkiran et al. 2019; see `orchestrator.analysis.emc`."""

    kind_name: ClassVar[str] = "complexity"
    column: ClassVar[str] = "complexity"
    edge_columns: ClassVar[tuple[str, str]] = ("largest_fitted", "not_fitted_below")
    beyond: ClassVar[Mapping[str, str]] = {
        ">=": "every size is fitted, so that the value is at least the largest size trained",
        "<": "no size is fitted, so that the value is below the smallest size trained",
    }
    mark: ClassVar[str] = "EMC"

    kind: Literal["complexity"] = key(
        ..., "Effective model complexity: the largest n whose mean training error is at most `error`.", "complexity"
    )
    along: str = key(
        "sample_count", "The number of training samples.", "the name of an axis with numbers", min_length=1
    )
    error: float = key(0.1, "The training error up to which samples are fitted.", "a number >= 0 and < 1", ge=0, lt=1)

    @property
    def title(self) -> str:
        """What is computed, in one line."""
        return f"effective model complexity: largest {self.along} whose mean {self.of} is at most {self.error:g}"

    def place(self, x: Floats, errors: Floats) -> Complexity:
        """The effective model complexity."""
        from orchestrator.analysis.emc import effective_complexity

        return effective_complexity(x, errors, epsilon=self.error, level=self.level)


class ThresholdAnalysis(FittingAnalysis):
    """The interpolation threshold; see `orchestrator.analysis.more_data`."""

    kind_name: ClassVar[str] = "threshold"
    fewest_replicates: ClassVar[int] = 2
    column: ClassVar[str] = "threshold"
    edge_columns: ClassVar[tuple[str, str]] = ("largest_not_fitted", "fitted_below")
    beyond: ClassVar[Mapping[str, str]] = {
        ">=": "the largest size does not interpolate, so that the threshold is at least that size",
        "<": "every size interpolates, so that the threshold is below the smallest size trained",
    }
    mark: ClassVar[str] = "threshold"

    kind: Literal["threshold"] = key(
        ..., "Interpolation threshold: the size from which on the mean training error is at most `error`.", "threshold"
    )
    along: str = key(
        "width", "The size of the network, such as its width.", "the name of an axis with numbers", min_length=1
    )
    error: float = key(
        0.01, "The training error up to which a network interpolates.", "a number >= 0 and < 1", ge=0, lt=1
    )

    @property
    def title(self) -> str:
        """What is computed, in one line."""
        return f"interpolation threshold: {self.along} from which on the mean {self.of} is at most {self.error:g}"

    def place(self, x: Floats, errors: Floats) -> Complexity:
        """The interpolation threshold."""
        from orchestrator.analysis.more_data import interpolation_threshold

        return interpolation_threshold(x, errors, epsilon=self.error, level=self.level)

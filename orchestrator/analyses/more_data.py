"""Where more data hurts: the change of a test error when the number of samples doubles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from orchestrator.analyses.base import Analysis, Needs
from orchestrator.axes import key

if TYPE_CHECKING:
    from orchestrator.analyses.result import Cell, Panel, Result
    from orchestrator.analyses.source import Floats, Group, Source
    from orchestrator.analysis.more_data import Doubling


class MoreDataAnalysis(Analysis):
    """E[error(2n) - error(n)] > 0, for all n and settings as one family; see `orchestrator.analysis.more_data`."""

    kind_name: ClassVar[str] = "more_data"
    fewest_replicates: ClassVar[int] = 2

    kind: Literal["more_data"] = key(..., "Where twice as much data makes the error larger.", "more_data")
    of: str = key(
        "final_test_error",
        "The error; of an accuracy, 1 minus it.",
        "an observation such as final_test_error",
        min_length=1,
    )
    along: str = key(
        "sample_count",
        "The number of training samples, or what is proportional to it.",
        "the name of an axis with numbers",
        min_length=1,
    )
    family_wise_error: float = key(
        0.05, "Probability of at least one false claim in the table.", "a number > 0 and < 1", gt=0, lt=1
    )

    @property
    def default_name(self) -> str:
        """The kind, the error, and the axis."""
        return f"more_data_{self.of}_{self.along}"

    @property
    def needs(self) -> Needs:
        """An observation along an axis."""
        return Needs(axes=(("along", self.along),), observations=(("of", self.of),))

    def compute(self, source: Source) -> Result:
        """A row for each setting of the other axes and each n."""
        from orchestrator.analyses.result import Figure, Result
        from orchestrator.analyses.view import MOST_PANELS, axis_label, spread, wants_log
        from orchestrator.analysis.more_data import more_data_hurts

        groups = source.groups(self.along)
        samples = [self._sample(source, group) for group in groups]
        tested = [k for k, (sizes, _) in enumerate(samples) if len(sizes)]
        found = dict(zip(tested, more_data_hurts([samples[k] for k in tested], level=self.level), strict=True))
        compared = [found.get(k, ()) for k in range(len(groups))]
        rows = [self._row(group, each) for group, own in zip(groups, compared, strict=True) for each in own]
        drawn = spread(len(groups), MOST_PANELS)
        panels = [
            self._panel(group, own) for g, (group, own) in enumerate(zip(groups, compared, strict=True)) if g in drawn
        ]
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=f"change of {self._error} when {self.along} doubles",
            rows=tuple(rows),
            setting=tuple(groups[0].setting) if groups else (),
            parts=(self.along,),
            main=(self.along, "replicates", "change", "adjusted", "hurts"),
            estimates=("change",),
            level=self.level,
            notes=self._notes(groups, compared),
            figure=Figure(
                x_label=axis_label(source, self.along),
                y_label=f"change of {self._error.replace('_', ' ')}",
                x_log=wants_log(source, self.along),
                band=f"{self.level:.0%} interval of each",
                panels=tuple(panels),
            ),
        )

    @property
    def _error(self) -> str:
        return f"1 - {self.of}" if self._is_accuracy else self.of

    @property
    def _is_accuracy(self) -> bool:
        return "accuracy" in self.of.split("_")

    def _sample(self, source: Source, group: Group) -> tuple[Floats, Floats]:
        """(N,) sizes and (R, N) errors."""
        error = source.observed(group, self.of)
        sample = source.along(group, self.along, 1 - error if self._is_accuracy else error)
        there = np.isfinite(sample.values).any(0) & (sample.x > 0)
        return sample.x[there], sample.values[:, there]

    def _row(self, group: Group, found: Doubling) -> dict[str, Cell]:
        return {
            **group.setting,
            self.along: _whole(found.samples),
            "doubled": _whole(found.doubled),
            "interpolated": found.interpolated,
            "replicates": found.replicates,
            "change": found.difference,
            "p_value": found.p_value,
            "adjusted": found.adjusted,
            "hurts": None if math.isnan(found.adjusted) else found.hurts(self.family_wise_error),
        }

    def _panel(self, group: Group, compared: Sequence[Doubling]) -> Panel:
        from orchestrator.analyses.result import Line, Panel

        def line(chosen: Sequence[Doubling], label: str) -> Line:
            return Line(
                x=np.array([d.samples for d in chosen]),
                y=np.array([d.difference.value for d in chosen]),
                low=np.array([d.difference.low for d in chosen]),
                high=np.array([d.difference.high for d in chosen]),
                label=label,
                points=True,
            )

        hurts = [d for d in compared if d.hurts(self.family_wise_error)]
        others = [d for d in compared if not d.hurts(self.family_wise_error)]
        lines = [line(others, "not shown to hurt")] if others else []
        lines += [line(hurts, f"more data hurts ({self.family_wise_error:.0%} family-wise)")] if hurts else []
        return Panel(title=group.called, lines=tuple(lines), level=0.0)

    def _notes(self, groups: Sequence[Group], compared: Sequence[Sequence[Doubling]]) -> tuple[str, ...]:
        """The regions where more data hurts: neighbouring sizes together."""
        tests = sum(not math.isnan(d.p_value) for own in compared for d in own)
        if not tests:
            return (f"not tested: it takes two replicates, and {self.along} up to twice the smallest",)
        regions = [
            (f"{group.title}: " if group.title else "") + f"more data hurts from {self.along} {first:g} to {last:g}"
            for group, own in zip(groups, compared, strict=True)
            for first, last in _regions(own, self.family_wise_error)
        ]
        what = f"{tests} one-sided t tests within replicates, adjusted together by Holm's method"
        return (*(regions or ["more data is not shown to hurt anywhere"]), what)


def _whole(size: float) -> float | int:
    return int(size) if size.is_integer() else size


def _regions(compared: Sequence[Doubling], family_wise_error: float) -> list[tuple[float, float]]:
    """(n, 2n) of the first and the last of neighbouring sizes at which more data hurts."""
    regions: list[tuple[float, float]] = []
    before = False
    for each in compared:
        hurts = each.hurts(family_wise_error)
        if hurts:
            regions.append((regions.pop()[0] if before else each.samples, each.doubled))
        before = hurts
    return regions

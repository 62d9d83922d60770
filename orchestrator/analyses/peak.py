"""Double descent: the peak of a mean curve along an axis or along the steps, with intervals, or none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from orchestrator.analyses.base import STEP, Analysis, Needs
from orchestrator.axes import key

if TYPE_CHECKING:
    from orchestrator.analyses.result import Cell, Line, Panel, Result
    from orchestrator.analyses.source import Floats, Group, Sample, Source
    from orchestrator.analysis.peaks import Peak

_ESTIMATES = ("place", "height", "first_minimum", "first_minimum_at", "second_minimum", "second_minimum_at")


class PeakAnalysis(Analysis):
    """Where the mean over replicates peaks; see `orchestrator.analysis.peaks`."""

    kind_name: ClassVar[str] = "peak"
    fewest: ClassVar[int] = 3
    fewest_replicates: ClassVar[int] = 2

    kind: Literal["peak"] = key(..., "The peak of a mean curve over replicates, or none.", "peak")
    of: str = key(
        ...,
        "What peaks: an observation along an axis, or a metric (a curve) along the steps.",
        "an observation such as final_test_error, or with 'along: step' a metric such as test_error",
        min_length=1,
    )
    along: str = key(..., "Along what it peaks.", "the name of an axis with numbers, or step", min_length=1)
    scale: Literal["linear", "log"] = key(
        "linear",
        "log: of the logarithm, whose mean is a geometric mean; for a loss whose values have heavy tails.",
        "one of linear, log",
    )
    window: float | None = key(
        None,
        "Half-width of the smoothing window as a factor of x; 1 does not smooth. By default 1.5 along the steps, and 1 "
        "along an axis.",
        "a number >= 1",
        ge=1,
    )

    @property
    def default_name(self) -> str:
        """The kind, what peaks, and the axis."""
        return f"peak_{self.of}_{self.along}"

    @property
    def needs(self) -> Needs:
        """An observation and an axis, or a metric."""
        if self.along == STEP:
            return Needs(metrics=(("of", self.of),))
        return Needs(axes=(("along", self.along),), observations=(("of", self.of),))

    def compute(self, source: Source) -> Result:
        """A row for each setting of the other axes."""
        from orchestrator.analyses.result import Figure, Result
        from orchestrator.analyses.view import MOST_PANELS, axis_label, spread, wants_log

        rows: list[dict[str, Cell]] = []
        panels: list[Panel] = []
        groups = source.groups(self.along)
        drawn = spread(len(groups), MOST_PANELS)
        mean = "geometric mean" if self.scale == "log" else "mean"
        for g, (group, sample) in enumerate(self._samples(source, groups)):
            row, panel = self._row(group, sample)
            rows.append(row)
            if g in drawn:
                panels.append(panel)
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=f"peak of the {mean} {self.of} along {self.along}",
            rows=tuple(rows),
            setting=tuple(groups[0].setting) if groups else (),
            main=(
                "replicates",
                "peak",
                "place",
                "height",
                "prominence",
                "standard_error",
                "ratio",
                "threshold",
                "p_value",
            ),
            estimates=_ESTIMATES,
            level=self.level,
            notes=self._notes(rows),
            figure=Figure(
                x_label=axis_label(source, self.along),
                y_label=f"{mean} {self.of.replace('_', ' ')}",
                y_log=self.scale == "log",
                x_log=wants_log(source, self.along),
                band="standard error of the mean",
                panels=tuple(panels),
            ),
        )

    def _samples(self, source: Source, groups: list[Group]) -> Iterator[tuple[Group, Sample]]:
        if self.along == STEP:
            yield from source.curves(groups, self.of)
            return
        for group in groups:
            yield group, source.along(group, self.along, source.observed(group, self.of))

    def _row(self, group: Group, sample: Sample) -> tuple[dict[str, Cell], Panel]:
        from orchestrator.analyses.result import Panel
        from orchestrator.analysis.peaks import find_peak
        from orchestrator.analysis.smoothing import WINDOW
        from orchestrator.phases.step_text import evidence, interval_text

        if self.scale == "log":
            positive = sample.values > 0
            values = np.log(np.where(positive, sample.values, 1.0))
            sample = replace(sample, values=np.where(positive, values, np.nan))
        whole = sample.complete()
        log = self.scale == "log"
        count, left_out = len(whole.replicates), len(sample.replicates) - len(whole.replicates)
        row: dict[str, Cell] = {**group.setting, "replicates": count, "left_out": left_out}
        window = self.window or (WINDOW if self.along == STEP else 1.0)
        reason = "fewer than two replicates" if count < 2 else "fewer than three values" if len(whole.x) < 3 else ""
        if not len(whole.x):
            reason = f"no {'positive' if log else 'finite'} value"
        if window > 1 and (whole.x < 0).any():
            reason = f"a window of {window:g} smooths in the logarithm, and {self.along} has negative values"
            window = 1.0
        marks, found = [], "not tested"
        if reason:
            row |= {"peak": f"not tested: {reason}", **dict.fromkeys(_ESTIMATES)}
            row |= dict.fromkeys(("prominence", "standard_error", "ratio", "threshold", "p_value"), math.nan)
        else:
            search = find_peak(whole.x, whole.values, window=window, level=self.level)
            peak = search.peak
            row["peak"] = "none" if peak is None else "yes"
            row |= dict.fromkeys(_ESTIMATES) if peak is None else _estimates(peak, log=log)
            row |= {name: getattr(search, name) for name in ("prominence", "standard_error", "ratio", "threshold")}
            row["p_value"] = search.p_value
            found = "no peak found" if peak is None else f"peak at {interval_text(peak.x)}"
            found += f" {evidence(search)}"
            if peak is not None:
                marks.append((peak.x, f"peak, {self.level:.0%} interval"))
        title = "\n".join(line for line in (group.called, found) if line)
        return row, Panel(title=title, lines=_lines(whole, window, log=log), marks=tuple(marks))

    def _notes(self, rows: list[dict[str, Cell]]) -> tuple[str, ...]:
        from orchestrator.analysis.peaks import RULE

        notes = []
        if self.scale == "log":
            notes.append("prominence and standard error are of the natural logarithm")
        tested = sum(not str(row["peak"]).startswith("not tested") for row in rows)
        if tested:
            notes.append(RULE)
        if tested > 1:
            notes.append(f"{tested} settings were tested, each with a share of false peaks of about 2% to 5%")
        left_out = sum(int(str(row["left_out"])) for row in rows)
        if left_out:
            notes.append(f"{left_out} replicates were left out: diverged, failed or not measured at every value")
        return tuple(notes)


def _estimates(peak: Peak, *, log: bool) -> dict[str, Cell]:
    height, first, second = (
        replace(e, value=math.exp(e.value), low=math.exp(e.low), high=math.exp(e.high)) if log else e
        for e in (peak.height, peak.first_minimum, peak.second_minimum)
    )
    return {
        "place": peak.x,
        "height": height,
        "first_minimum": first,
        "first_minimum_at": peak.first_minimum_x,
        "second_minimum": second,
        "second_minimum_at": peak.second_minimum_x,
    }


def _lines(sample: Sample, window: float, *, log: bool) -> tuple[Line, ...]:
    """The mean with its standard error, and the smoothed mean in which the peak is looked for."""
    from orchestrator.analyses.result import Line
    from orchestrator.analysis.smoothing import smooth

    count = len(sample.replicates)
    if not count or not len(sample.x):
        return ()
    mean = sample.values.mean(0)
    error: Floats = sample.values.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.zeros_like(mean)
    shown = np.exp if log else np.asarray
    low, high = shown(mean - error), shown(mean + error)
    lines = [Line(x=sample.x, y=shown(mean), label=f"mean of {count}", low=low, high=high)]
    if window > 1:
        lines.append(Line(x=sample.x, y=shown(smooth(sample.x, mean, window=window)), label="smoothed"))
    return tuple(lines)

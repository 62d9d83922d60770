"""Time to an event: medians of censored steps by setting, and log-rank tests between the values of an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from orchestrator.analyses.base import Analysis, Needs
from orchestrator.axes import key

if TYPE_CHECKING:
    from jobs.job import Scalar
    from orchestrator.analyses.result import Cell, Line, Panel, Result
    from orchestrator.analyses.source import Floats, Group, Source

ALL = "all"
"""The row of a comparison of all values at once."""


class TimesAnalysis(Analysis):
    """Medians, and comparisons; see `orchestrator.analysis.survival` and `logrank`."""

    kind_name: ClassVar[str] = "times"
    fewest_replicates: ClassVar[int] = 5
    """With fewer the interval of a median has an infinite end."""

    kind: Literal["times"] = key(..., "The time to an event, where it may not be reached.", "times")
    of: str = key(..., "The step of the event.", "an observation such as generalisation_step", min_length=1)
    between: str | None = key(
        None, "Compare the values of this axis by the log-rank test.", "the name of an axis, or null", min_length=1
    )

    @property
    def default_name(self) -> str:
        """The kind, the event, and what is compared."""
        return f"times_{self.of}" + (f"_{self.between}" if self.between else "")

    @property
    def needs(self) -> Needs:
        """An observation, and an axis of any values."""
        settings = (("between", self.between),) if self.between else ()
        return Needs(settings=settings, observations=(("of", self.of),))

    def compute(self, source: Source) -> Result:
        """A row for each setting; with `between` also one for each pair of its values, and for all of them."""
        from orchestrator.analyses.result import Figure, Result
        from orchestrator.analyses.view import MOST_PANELS, spread

        used = (self.between,) if self.between else ()
        groups = source.groups(*used)
        drawn = spread(len(groups), MOST_PANELS)
        rows: list[dict[str, Cell]] = []
        panels: list[Panel] = []
        for g, group in enumerate(groups):
            parts = self._parts(source, group)
            rows += [self._median_row(group, value, bounds) for value, bounds in parts.items()]
            rows += self._compared(group, source, parts)
            if g in drawn:
                panels.append(_panel(group, self.between, parts))
        between = ("of", "against") if self.between else ()
        tests = ("ratio", "p_value") if self.between else ()
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=f"time to {self.of}" + (f", compared between the values of {self.between}" if self.between else ""),
            rows=tuple(rows),
            setting=tuple(groups[0].setting) if groups else (),
            main=(*between, "trials", "not_reached", "median", *tests),
            estimates=("median", "ratio"),
            level=self.level,
            notes=self._notes(),
            figure=Figure(x_label="step", y_label="share that has not reached it", x_log=True, panels=tuple(panels)),
        )

    def _notes(self) -> tuple[str, ...]:
        notes = ["a median of inf was not reached by half of the trials; a step lies between two reports"]
        if self.between:
            notes.append("ratio: median over common replicates of the time of `of` / that of `against`")
            notes.append("p values are two-sided permutation tests, and not corrected for the number of comparisons")
        return tuple(notes)

    def _parts(self, source: Source, group: Group) -> dict[Scalar | None, _Times]:
        """Bounds (above, to] of the trials by value of the axis that is compared; one part without one."""
        above, to = source.bounds(group, self.of)
        known = ~np.isnan(above)
        column = source.table.params[self.between] if self.between else (None,) * len(source.table)
        values = [column[row] for row in group.rows]
        parts: dict[Scalar | None, _Times] = {}
        for value in dict.fromkeys(values):
            mine = known & np.array([v == value for v in values], dtype=np.bool_)
            if mine.any():
                replicate = source.table.replicate[group.rows[mine]].tolist()
                parts[value] = _Times(above[mine], to[mine], replicate)
        return parts

    def _median_row(self, group: Group, value: Scalar | None, times: _Times) -> dict[str, Cell]:
        from orchestrator.analysis.estimate import Estimate
        from orchestrator.analysis.survival import median_time

        median = median_time(times.above, times.to, level=self.level)
        estimate = Estimate(value=median.to, low=median.low, high=median.high, level=self.level)
        return {
            **group.setting,
            "of": value,
            "against": None,
            "trials": median.count,
            "not_reached": median.not_reached,
            "median": estimate,
            "median_after": median.above,
            "ratio": None,
            "excess": math.nan,
            "p_value": math.nan,
            "test": "",
        }

    def _compared(self, group: Group, source: Source, parts: Mapping[Scalar | None, _Times]) -> list[dict[str, Cell]]:
        from orchestrator.analysis.estimate import Estimate
        from orchestrator.analysis.logrank import logrank, paired

        if len(parts) < 2:
            return []
        rows: list[dict[str, Cell]] = []
        empty: dict[str, Cell] = {**group.setting, "median": None, "median_after": math.nan, "ratio": None}
        if len(parts) > 2:
            above, to = (np.concatenate([getattr(p, end) for p in parts.values()]) for end in ("above", "to"))
            labels = np.concatenate([np.full(len(p.above), k) for k, p in enumerate(parts.values())])
            overall = logrank(above, to, labels)
            censored = int(np.isinf(to).sum())
            rows.append(
                empty
                | {"of": ALL, "against": ALL, "trials": len(above), "not_reached": censored, "excess": math.nan}
                | {"p_value": overall.p_value, "test": "log-rank"}
            )
        for (a, of), (b, against) in combinations(parts.items(), 2):
            common = sorted(set(of.replicates) & set(against.replicates))
            row: dict[str, Cell] = empty | {"of": a, "against": b}
            if len(common) >= 2:
                first, second = of.only(common), against.only(common)
                pair = paired(first.above, first.to, second.above, second.to, level=self.level)
                ratio = Estimate(value=pair.ratio.to, low=pair.ratio.low, high=pair.ratio.high, level=self.level)
                row |= {"ratio": ratio, "excess": pair.excess, "p_value": pair.p_value, "test": "paired log-rank"}
                both = np.concatenate([first.to, second.to])
            else:
                both = np.concatenate([of.to, against.to])
                labels = np.repeat([0, 1], [len(of.to), len(against.to)])
                test = logrank(np.concatenate([of.above, against.above]), both, labels)
                row |= {"excess": test.excess[0], "p_value": test.p_value, "test": "log-rank"}
            row |= {"trials": len(both), "not_reached": int(np.isinf(both).sum())}
            rows.append(row)
        return rows


class _Times:
    """Bounds of the times of some trials, and their replicates."""

    def __init__(self, above: Floats, to: Floats, replicates: Sequence[int]) -> None:
        self.above, self.to, self.replicates = above, to, list(replicates)

    def only(self, replicates: Sequence[int]) -> _Times:
        """The first trial of each of these replicates, in this order."""
        at = [self.replicates.index(replicate) for replicate in replicates]
        return _Times(self.above[at], self.to[at], replicates)


def _panel(group: Group, between: str | None, parts: Mapping[Scalar | None, _Times]) -> Panel:
    from orchestrator.analyses.result import Line, Panel
    from orchestrator.analyses.source import title_of
    from orchestrator.analysis.survival import turnbull

    lines: list[Line] = []
    for value, times in parts.items():
        curve = turnbull(times.above, times.to)
        finite = np.isfinite(curve.to)
        x, y = curve.to[finite], curve.survival[finite]
        ends = times.above[np.isinf(times.to)]
        if not len(x) and not len(ends):
            continue
        start = max(1.0, float(times.above[times.above > 0].min(initial=np.inf))) if (times.above > 0).any() else 1.0
        start = min(start, float(x[0]) if len(x) else start)
        last = max([*x[-1:], *ends, start])
        x, y = np.array([start, *x, last]), np.array([1.0, *y, y[-1] if len(y) else 1.0])
        label = f"{len(times.above)} trials" if between is None else f"{title_of({between: value})}, {len(times.above)}"
        lines.append(Line(x=x, y=y, label=label, steps=True))
    return Panel(title=group.title, lines=tuple(lines))

"""Time to an event: medians of censored steps by setting, and log-rank tests between the values of an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from orchestrator.analyses.base import Analysis, Contradiction, Needs
from orchestrator.analyses.event_times import Times, Tuning, tune
from orchestrator.axes import key

if TYPE_CHECKING:
    from jobs.job import Scalar
    from orchestrator.analyses.result import Cell, Line, Panel, Result
    from orchestrator.analyses.source import Group, Source

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
    tune: list[str] = key(
        [],
        "Axes whose values are chosen for each value of `between` on half of the replicates; the others are compared.",
        "a list of axes, where 'between' is given",
    )

    @property
    def default_name(self) -> str:
        """The kind, the event, what is compared, and whether it is tuned."""
        return f"times_{self.of}" + (f"_{self.between}" if self.between else "") + ("_tuned" if self.tune else "")

    def contradictions(self) -> list[Contradiction]:
        """Tuning is for a comparison of values that are not tuned."""
        if self.tune and self.between is None:
            return [("tune", "'tune' needs 'between', whose values are compared", "add 'between: AXIS'")]
        if self.between in self.tune:
            return [("tune", f"'{self.between}' is compared, and cannot be tuned", "leave it out")]
        return []

    @property
    def needs(self) -> Needs:
        """An observation, and an axis of any values."""
        settings = (("between", self.between),) if self.between else ()
        tuned = tuple(("tune", name) for name in self.tune)
        return Needs(settings=(*settings, *tuned), observations=(("of", self.of),))

    def compute(self, source: Source) -> Result:
        """A row for each setting; with `between` also one for each pair of its values, and for all of them."""
        from orchestrator.analyses.result import Figure, Result
        from orchestrator.analyses.source import title_of
        from orchestrator.analyses.view import MOST_PANELS, spread

        used = (self.between, *self.tune) if self.between else ()
        groups = source.groups(*used)
        drawn = spread(len(groups), MOST_PANELS)
        negative = False
        rows: list[dict[str, Cell]] = []
        panels: list[Panel] = []
        tunings: list[tuple[Group, Tuning]] = []
        for g, group in enumerate(groups):
            parts: Mapping[Scalar | None, Times] = self._parts(source, group)
            negative = negative or any((times.above < 0).any() for times in parts.values())
            texts: dict[Scalar | None, str] = {}
            if self.tune:
                tunings.append((group, tuning := tune(parts)))
                parts = tuning.parts
                texts = {of: title_of(dict(zip(self.tune, tuning.chosen[of], strict=True))) for of in parts}
            rows += [self._median_row(group, value, times, texts.get(value)) for value, times in parts.items()]
            rows += self._compared(group, parts)
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
            parts=between,
            main=(*between, *(("tuned",) if self.tune else ()), "trials", "not_reached", "median", *tests),
            estimates=("median", "ratio"),
            level=self.level,
            notes=(*self._notes(negative=negative), *self._notes_of_tuning(tunings)),
            figure=Figure(
                x_label="step", y_label="share that has not reached it", x_log=not negative, panels=tuple(panels)
            ),
        )

    def _notes(self, *, negative: bool) -> tuple[str, ...]:
        notes = [
            "inf: too few trials have reached it to limit the median on that side; a step lies between two reports"
        ]
        if self.between:
            notes.append("ratio: median over common replicates of the time of `of` / that of `against`")
            if negative:
                notes.append("a pair in which a value is negative has no ratio")
            notes.append("p values are two-sided permutation tests, and not corrected for the number of comparisons")
        return tuple(notes)

    def _notes_of_tuning(self, tunings: Sequence[tuple[Group, Tuning]]) -> list[str]:
        """On which replicates the settings were chosen, and which of them are at the end of an axis."""
        if not tunings:
            return []
        tuned_on = sorted({number for _, tuning in tunings for number in tuning.tuned_on})
        if not tuned_on:
            return ["nothing is compared: half of the replicates choose a setting, and there is only one replicate"]
        names = ", ".join(self.tune)
        notes = [
            f"tuned: the {names} with the shortest median over replicates {numbers_text(tuned_on)}, "
            "which are not among the trials of the table"
        ]
        for group, tuning in tunings:
            for of, chosen in tuning.chosen.items():
                for k, name in enumerate(self.tune):
                    end = _end_of(chosen[k], [setting[k] for setting in tuning.tried[of]])
                    if end:
                        where = ", ".join(part for part in (group.title, f"{self.between} {of}") if part)
                        notes.append(
                            f"{where}: the tuned {name} is the {end} that was tried; a better one may lie beyond"
                        )
        return notes

    def _parts(self, source: Source, group: Group) -> dict[Scalar | None, Times]:
        """Bounds (above, to] of the trials by value of the axis that is compared; one part without one."""
        above, to = source.bounds(group, self.of)
        known = ~np.isnan(above)
        params = source.table.params
        column = params[self.between] if self.between else (None,) * len(source.table)
        values = [column[row] for row in group.rows]
        times = Times(
            above=above,
            to=to,
            replicates=tuple(source.table.replicate[group.rows].tolist()),
            tuned=tuple(tuple(params[name][row] for name in self.tune) for row in group.rows) if self.tune else (),
        )
        parts: dict[Scalar | None, Times] = {}
        for value in dict.fromkeys(values):
            mine = known & np.array([v == value for v in values], dtype=np.bool_)
            if mine.any():
                parts[value] = times.where(mine)
        return parts

    def _median_row(
        self, group: Group, value: Scalar | None, times: Times, tuned: str | None = None
    ) -> dict[str, Cell]:
        from orchestrator.analysis.estimate import Estimate
        from orchestrator.analysis.survival import median_time

        median = median_time(times.above, times.to, level=self.level)
        estimate = Estimate(value=median.to, low=median.low, high=median.high, level=self.level)
        return {
            **group.setting,
            "of": value,
            "against": None,
            **({"tuned": tuned} if self.tune else {}),
            "trials": median.count,
            "not_reached": median.not_reached,
            "median": estimate,
            "median_after": median.above,
            "ratio": None,
            "excess": math.nan,
            "p_value": math.nan,
            "test": "",
        }

    def _compared(self, group: Group, parts: Mapping[Scalar | None, Times]) -> list[dict[str, Cell]]:
        from orchestrator.analysis.estimate import Estimate
        from orchestrator.analysis.logrank import logrank, paired

        if len(parts) < 2:
            return []
        rows: list[dict[str, Cell]] = []
        empty: dict[str, Cell] = {**group.setting, "median": None, "median_after": math.nan, "ratio": None}
        empty |= {"tuned": None} if self.tune else {}
        if len(parts) > 2:
            above, to = (np.concatenate([getattr(p, end) for p in parts.values()]) for end in ("above", "to"))
            labels = np.concatenate([np.full(len(p), k) for k, p in enumerate(parts.values())])
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
                first, second = of.of(common), against.of(common)
                pair = paired(first.above, first.to, second.above, second.to, level=self.level)
                if (found := pair.ratio) is not None:
                    row["ratio"] = Estimate(value=found.to, low=found.low, high=found.high, level=self.level)
                row |= {"excess": pair.excess, "p_value": pair.p_value, "test": "paired log-rank"}
                both = np.concatenate([first.to, second.to])
            else:
                both = np.concatenate([of.to, against.to])
                labels = np.repeat([0, 1], [len(of), len(against)])
                test = logrank(np.concatenate([of.above, against.above]), both, labels)
                row |= {"excess": test.excess[0], "p_value": test.p_value, "test": "log-rank"}
            row |= {"trials": len(both), "not_reached": int(np.isinf(both).sum())}
            rows.append(row)
        return rows


def numbers_text(numbers: Sequence[int]) -> str:
    """Increasing numbers, as `0 to 9` where they have no gap."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _end_of(value: Scalar | None, tried: Sequence[Scalar | None]) -> str:
    """Whether a number is the smallest or the largest that was tried; "" if it is neither, or no number."""
    numbers = [v for v in tried if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(set(numbers)) < 2 or value not in numbers:
        return ""
    return "smallest" if value == min(numbers) else "largest" if value == max(numbers) else ""


def _panel(group: Group, between: str | None, parts: Mapping[Scalar | None, Times]) -> Panel:
    from orchestrator.analyses.result import Line, Panel
    from orchestrator.analysis.survival import turnbull
    from orchestrator.phases.text import place_text

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
        label = f"{len(times)} trials" if between is None else f"{place_text({between: value})}, {len(times)} trials"
        lines.append(Line(x=x, y=y, label=label, steps=True))
    return Panel(title=group.called, lines=tuple(lines))

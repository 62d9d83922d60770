"""The critical point of an axis: where half of the trials reach an event, and how it depends on a size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from orchestrator.analyses.base import Analysis, Contradiction, Needs
from orchestrator.analysis.estimate import Estimate
from orchestrator.axes import key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.analyses.result import Cell, Line, Panel, Result
    from orchestrator.analyses.source import Floats, Group, Source
    from orchestrator.analysis.critical import ScaledThreshold, Threshold

_HALF = "half of the trials"


class CriticalAnalysis(Analysis):
    """A critical point with its interval; see `orchestrator.analysis.critical`."""

    kind_name: ClassVar[str] = "critical"

    kind: Literal["critical"] = key(..., "Where half of the trials reach an event.", "critical")
    of: str = key(
        ...,
        "The event: a trial that reaches this observation.",
        "an observation such as generalisation_step",
        min_length=1,
    )
    along: str = key(..., "The axis of the critical point.", "the name of an axis with numbers", min_length=1)
    size: str | None = key(
        None,
        "An axis of sizes, such as a modulus: one critical point and the exponent of the width for all sizes.",
        "the name of an axis with numbers, or null",
        min_length=1,
    )
    moves: bool = key(
        False,
        "Whether the critical point is a power of the size, as size^-shift, instead of one for all sizes; needs size.",
        "true or false",
    )

    @property
    def default_name(self) -> str:
        """The kind, the event, and the axes."""
        return f"critical_{self.of}_{self.along}" + (f"_{self.size}" if self.size else "") + "_moves" * self.moves

    def contradictions(self) -> list[Contradiction]:
        """A critical point moves with a size."""
        if self.moves and self.size is None:
            return [("moves", "'moves' needs 'size', which the critical point depends on", "add 'size: AXIS'")]
        return []

    @property
    def needs(self) -> Needs:
        """An observation along one or two axes."""
        axes = (("along", self.along), *([("size", self.size)] if self.size else []))
        return Needs(axes=axes, observations=(("of", self.of),))

    def compute(self, source: Source) -> Result:
        """A row for each setting of the other axes."""
        from orchestrator.analyses.result import Figure, Result
        from orchestrator.analyses.view import MOST_PANELS, axis_label, spread, wants_log
        from orchestrator.phases.text import plural

        used = (self.along, *([self.size] if self.size else []))
        groups = source.groups(*used)
        drawn = spread(len(groups), MOST_PANELS)
        log = self.moves or wants_log(source, self.along)
        rows: list[dict[str, Cell]] = []
        panels: list[Panel] = []
        for g, group in enumerate(groups):
            row, panel = self._row(source, group, log=log)
            rows.append(row)
            if g in drawn:
                panels.append(panel)
        estimates = ("critical", "width", *(("inverse_nu",) if self.size else ()), *(("shift",) if self.moves else ()))
        notes = ["trials are taken as independent; replicates that share seeds along the axis are fewer than they seem"]
        if log:
            notes.append("fitted in the logarithm of the axis: width is the factor from the share 1/4 to 3/4")
        steps = sum(_is_step(row, 1 if log else 0) for row in rows)
        if steps:
            notes.append(
                f"width {1 if log else 0} in {plural(steps, 'row')}: a step fits as well as any curve, because at most "
                f"one value of {self.along} has both outcomes. The axis is too coarse for the width, of which only the "
                f"upper end of the interval is known: add values of {self.along} near the critical point"
            )
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=f"{self.along} at which half of the trials reach {self.of}",
            rows=tuple(rows),
            setting=tuple(groups[0].setting) if groups else (),
            main=("trials", "share", *estimates, *(("quality",) if self.size else ())),
            estimates=estimates,
            level=self.level,
            notes=tuple(notes),
            figure=Figure(
                x_label=axis_label(source, self.along),
                y_label=f"share that reaches {self.of.replace('_', ' ')}",
                x_log=log,
                band=f"{self.level:.0%} interval of each share",
                panels=tuple(panels),
            ),
        )

    def _row(self, source: Source, group: Group, *, log: bool) -> tuple[dict[str, Cell], Panel]:
        from orchestrator.analyses.result import Line, Panel
        from orchestrator.analysis.critical import scaled_threshold, share_interval, threshold
        from orchestrator.phases.text import named

        above, to = source.bounds(group, self.of)
        x = source.amounts(group, self.along)
        size = source.amounts(group, self.size) if self.size else np.zeros(len(x))
        known = ~np.isnan(above) & ((x > 0) | (not log))
        x, size, reached = x[known], size[known], np.isfinite(to[known])
        row: dict[str, Cell] = {**group.setting, "trials": len(x), "critical": None, "width": None}
        row |= {"inverse_nu": None, "quality": math.nan} if self.size else {}
        row |= {"shift": None} if self.moves else {}
        if not len(x):
            return row | {"share": "no trial"}, Panel(title=group.called, lines=())
        settings, place = np.unique(np.stack([size, x], 1), axis=0, return_inverse=True)
        place = place.reshape(-1)
        count = np.bincount(place)
        yes = np.bincount(place, weights=reached)
        sizes, at = settings[:, 0], settings[:, 1]
        rising = _rising(at, yes / count)
        row["share"] = "rises" if rising else "falls"
        low, high = share_interval(yes, count, level=self.level)
        lines = [
            Line(
                x=at[own],
                y=(yes / count)[own],
                low=low[own],
                high=high[own],
                label=_number_of(count[own], f"{named(self.size)} {s:g}, " if self.size else ""),
                points=True,
                colour=k,
            )
            for k, s in enumerate(np.unique(sizes))
            for own in [sizes == s]
        ]
        position = np.log(at) if log else at
        marks: tuple[tuple[Estimate, str], ...] = ()
        obstacle = self._obstacle(sizes, at, yes, count)
        if obstacle:
            row["share"] = f"not fitted: {obstacle}"
            return row, Panel(title=group.called, lines=tuple(lines), level=0.5, level_label=_HALF)
        try:
            if self.size:
                scaled = scaled_threshold(
                    sizes, position, yes, count, rising=rising, moves=self.moves, level=self.level
                )
                row |= {"inverse_nu": scaled.inverse_nu, "quality": scaled.quality}
                row |= {"shift": scaled.shift} if self.moves else {}
                found: Threshold | ScaledThreshold = scaled
            else:
                found = threshold(position, yes, count, rising=rising, level=self.level)
        except ValueError as error:
            row["share"] = f"not fitted: {error}"
        else:
            critical, width = (found.critical, found.width)
            if log:
                critical, width = _exponential(critical), _exponential(width)
            row |= {"critical": critical, "width": width}
            if math.isfinite(critical.value) and not at.min() <= critical.value <= at.max():
                row["share"] = f"{row['share']}; one half is beyond the settings, an extrapolation"
            where = f" at {named(self.size)} {scaled.size:.3g}" if self.size and self.moves else ""
            marks = ((critical, f"critical point{where}, {self.level:.0%} interval"),)
            lines += _curves(found, np.unique(sizes), at, log=log)
        return row, Panel(title=group.called, lines=tuple(lines), marks=marks, level=0.5, level_label=_HALF)

    def _obstacle(self, sizes: Floats, x: Floats, reached: NDArray[Any], trials: NDArray[Any]) -> str:
        """Why no curve can be fitted to the shares of these settings; "" if one can."""
        if len(np.unique(x)) < 2:
            return f"fewer than two values of {self.along}"
        if self.size and len(np.unique(sizes)) < 2:
            return f"fewer than two values of {self.size}"
        if self.size and (sizes <= 0).any():
            return f"a {self.size} that is not positive"
        if self.size and not 0 < reached.sum() < trials.sum():
            return f"{'all' if reached.any() else 'none'} of the trials reach it"
        return ""


def _number_of(trials: NDArray[Any], what: str) -> str:
    """How many trials each point is of."""
    few, most = int(trials.min()), int(trials.max())
    return f"{what}share of {few}" + (f" to {most}" if few < most else "") + " trials"


def _curves(found: Threshold | ScaledThreshold, sizes: Floats, x: Floats, *, log: bool) -> list[Line]:
    """The fitted share along the axis, for each size."""
    from orchestrator.analyses.result import Line
    from orchestrator.analysis.critical import ScaledThreshold

    at = (np.geomspace if log else np.linspace)(x.min(), x.max(), 201)
    position = np.log(at) if log else at
    lines = []
    for k, size in enumerate(sizes.tolist()):
        share = found.share(position, size) if isinstance(found, ScaledThreshold) else found.share(position)
        if np.isfinite(share).all():
            lines.append(Line(x=at, y=share, label="" if k else "fitted logistic curve", colour=k))
    return lines


def _is_step(row: dict[str, Cell], width: float) -> bool:
    """Whether the width is that of a step between settings, `width`."""
    of, at = row["width"], row["critical"]
    return isinstance(of, Estimate) and isinstance(at, Estimate) and of.value == width and math.isfinite(at.value)


def _rising(x: Floats, share: Floats) -> bool:
    """Whether the share rises with x, on the whole."""
    return bool(((x - x.mean()) * (share - share.mean())).sum() >= 0)


def _exponential(of: Estimate) -> Estimate:
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(v)) for v in (of.value, of.low, of.high))
    return replace(of, value=value, low=low, high=high)

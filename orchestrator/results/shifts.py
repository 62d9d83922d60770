"""How far a boundary has moved between two sweeps: along an axis, on lines that both have, with an interval.

On grids, each seed is read by itself, as by `reading`. Where both sweeps have a seed, its two crossings are compared
with each other (common random numbers); otherwise the seeds of both are resampled apart. So they are where both sweeps
have the same runs, as one that refines the other: in pairs, these would differ by nothing. A crossing lies anywhere
between its two settings: each resample takes one random share of every distance for each sweep, so that the interval is
not narrower than the two grids. On a logarithmic axis the shift is a ratio, else a difference.

If one of them is a search, whose settings are scattered, the fitted boundaries of both are compared, and their bands
are added.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.analyses.result import Cell, Figure, Panel, Result
from orchestrator.analyses.result import Line as Curve
from orchestrator.analysis.estimate import RESAMPLES, SEED, Estimate, percentile_interval
from orchestrator.analysis.fits import expanded_level
from orchestrator.errors import UserError
from orchestrator.phases.compare import Side
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.text import is_number, named, number, plural
from orchestrator.results.reading import GIVEN_BAND, LEVEL, Bracket, GridLines, line_at, read

Floats = NDArray[np.float64]
BAND_LEVEL = 0.9
LINES = 9
"""Lines on which fitted boundaries are compared, along each other axis."""
MEAN = "mean over lines"
MOST_NAMED = 8
ROUNDING = 1e-12
"""A shift of less than this share of the places that it is the difference of is 0."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line through both grids, and where the seeds of each cross a boundary there."""

    at: Mapping[str, Scalar]
    ends: tuple[Mapping[int, Bracket], Mapping[int, Bracket]]

    def crosses(self, which: int, seeds: Sequence[int]) -> bool:
        """Whether these seeds of one of the sweeps cross within the axis."""
        of_seed = self.ends[which]
        return all(seed in of_seed and all(map(math.isfinite, of_seed[seed])) for seed in seeds)


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """A boundary on one line, in both sweeps; positions are logarithms where `Shift.is_ratio`."""

    at: Mapping[str, Scalar]
    """The line: a value of every other axis."""
    first: Estimate
    second: Estimate
    shift: Estimate
    seeds: int
    """0 of fitted boundaries."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How far one boundary has moved."""

    boundary: str
    """The phases below and above it."""
    along: str
    is_ratio: bool
    lines: tuple[Crossed, ...]
    mean: Estimate
    """Over the lines."""
    slices: tuple[tuple[str, Estimate], ...] = ()
    """Where there are several other axes: the values of all but the first numeric one, and the mean over the lines that
    have them."""
    how: str
    """How the intervals were made."""
    level: float
    left_out: tuple[str, ...] = ()
    """What is left out, and why."""
    others: tuple[tuple[str, bool], ...] = field(default=())
    """The other axes, and whether they are logarithmic."""


def shifts(first: Side, second: Side, along: str | None = None) -> list[Shift]:
    """The boundaries that both sweeps have, along the axis on which they have most lines in common.

    Args:
        first: A sweep.
        second: The sweep that is compared with it.
        along: The axis, in place of the one that is chosen.

    Returns:
        None where they have no boundary in common.
    """
    names = {axis.name for axis in first.diagram.axes if axis.numeric}
    common = [axis.name for axis in second.diagram.axes if axis.numeric and axis.name in names]
    scattered = not (_is_gridded(first) and _is_gridded(second))
    found = [
        _fitted(first, second, name) if scattered else _on_grids(first, second, name)
        for name in common
        if along in (None, name)
    ]
    most = max(found, key=lambda made: sum(len(shift.lines) for shift in made), default=[])
    return [_without_rounding(shift) for shift in most]


def _without_rounding(shift: Shift) -> Shift:
    """With 0 in place of what is smaller than the rounding of the places."""
    places = [abs(place.value) for line in shift.lines for place in (line.first, line.second)]
    least = ROUNDING * (1.0 if shift.is_ratio else max(places))

    def settled(of: Estimate) -> Estimate:
        value, low, high = (0.0 if abs(end) <= least else end for end in (of.value, of.low, of.high))
        return replace(of, value=value, low=low, high=high)

    return replace(
        shift,
        lines=tuple(replace(line, shift=settled(line.shift)) for line in shift.lines),
        mean=settled(shift.mean),
        slices=tuple((where, settled(mean)) for where, mean in shift.slices),
    )


def shifts_from(
    first: Side, others: Sequence[tuple[str, Side]], along: str | None = None
) -> list[tuple[str, Sequence[Shift]]]:
    """The shifts of several sweeps from the first one, all along one axis: that of the first pair that has any.

    Args:
        first: A sweep.
        others: (name, sweep) of those that are compared with it.
        along: The axis, in place of the one that is chosen.
    """
    compared: list[tuple[str, Sequence[Shift]]] = []
    for name, other in others:
        found = shifts(first, other, along)
        along = found[0].along if found else along
        compared.append((name, found))
    return compared


def _is_gridded(side: Side) -> bool:
    return not side.note.search


def _places(first: PhaseDiagram, second: PhaseDiagram, along: str, most: int | None) -> list[dict[str, Scalar]]:
    """Values of all axes but one that may be a line of both; none where an axis varies in one of them only."""
    theirs = {axis.name: axis for axis in second.axes if axis.name != along}
    own = [axis for axis in first.axes if axis.name != along]
    if {axis.name for axis in own} != theirs.keys():
        return []
    values: list[list[Scalar]] = []
    for axis in own:
        listed = [value for value in axis.values if value is not None]
        if most is not None and axis.numeric:
            spans = [(each.position[each.special], each.position[-1]) for each in (axis, theirs[axis.name])]
            low, high = max(span[0] for span in spans), min(span[1] for span in spans)
            inside = np.linspace(low, high, most + 2)[1:-1] if low < high else np.array([])
            listed = [float(value) for value in axis.to_value(inside)]
        values.append(listed)
    names = [axis.name for axis in own]
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*values)]


def _on_grids(first: Side, second: Side, along: str) -> list[Shift]:
    axes = [next(axis for axis in side.diagram.axes if axis.name == along) for side in (first, second)]
    is_ratio = all(axis.kind == "log" for axis in axes)
    unit = [axis.kind == "log" and not is_ratio for axis in axes]
    lines_of = [GridLines(side.diagram, side.table, side.diagram.axis_index(along)) for side in (first, second)]
    known: dict[str, list[_Line]] = {}
    for at in _places(first.diagram, second.diagram, along, None):
        crossed: list[dict[str, dict[int, Bracket]]] = []
        for side, lines, in_values in zip((first, second), lines_of, unit, strict=True):
            try:
                own = lines.brackets(line_at(side.diagram, at, along))
            except UserError:  # the line is outside of its grid
                own = []
            once = {name: of_seed for name, of_seed in own if [n for n, _ in own].count(name) == 1}
            crossed.append({n: {s: _valued(b) if in_values else b for s, b in of.items()} for n, of in once.items()})
        for name in dict.fromkeys((*crossed[0], *crossed[1])):
            line = _Line(at=at, ends=(crossed[0].get(name, {}), crossed[1].get(name, {})))
            known.setdefault(name, []).append(line)
    if not known:
        return []
    others = _others(first, along)
    same = first.note.job == second.note.job and first.note.seed is not None and first.note.seed == second.note.seed
    runs = _same_runs(first, second)
    only = _only_in_second(first, second, along)
    made = [
        _shift(name, along, own, is_ratio=is_ratio, same_seeds=same, same_runs=runs, only=only, others=others)
        for name, own in known.items()
    ]
    return [shift for shift in made if shift is not None]


def _same_runs(first: Side, second: Side) -> int:
    """How many runs with a phase are in both sweeps; 0 where labels differ, as by other thresholds."""
    phases = [dict(zip(side.table.trial_id, side.table.phase, strict=True)) for side in (first, second)]
    both = [trial for trial in phases[0].keys() & phases[1].keys() if phases[0][trial] is not None]
    return len(both) if all(phases[0][trial] == phases[1][trial] for trial in both) else 0


def _only_in_second(first: Side, second: Side, along: str) -> tuple[str, ...]:
    """The values of the other axes at which the second sweep has lines and the first one has not."""
    said = []
    for axis in second.diagram.axes:
        if axis.name != along:
            own = {
                _text(value)
                for value in first.diagram.axes[first.diagram.axis_index(axis.name)].values
                if value is not None
            }
            further = [_text(value) for value in axis.values if value is not None and _text(value) not in own]
            if further:
                said.append(f"its lines at {axis.name} {_listed(further)}, which the first sweep does not have")
    return tuple(said)


def _listed(texts: Sequence[str]) -> str:
    """At most so many that they can be read."""
    more = len(texts) - MOST_NAMED
    return ", ".join(texts[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _valued(bracket: Bracket) -> Bracket:
    low, high = (10.0**end if math.isfinite(end) else end for end in bracket)
    return low, high


def _shift(
    name: str,
    along: str,
    lines: Sequence[_Line],
    *,
    is_ratio: bool,
    same_seeds: bool,
    same_runs: int,
    only: tuple[str, ...],
    others: tuple[tuple[str, bool], ...],
) -> Shift | None:
    """One boundary over all lines on which all seeds cross it."""
    seeds = [{seed for line in lines for seed in line.ends[which]} for which in (0, 1)]
    both = sorted(seeds[0] & seeds[1]) if same_seeds and not same_runs else []
    wanted = (both, both) if both else (sorted(seeds[0]), sorted(seeds[1]))
    complete = [line for line in lines if all(line.crosses(w, wanted[w]) for w in (0, 1))]
    if not complete or not all(wanted):
        return None
    ends = [np.array([[line.ends[w][s] for line in complete] for s in wanted[w]], dtype=np.float64) for w in (0, 1)]
    sizes = [len(each) for each in ends]
    random = np.random.default_rng(SEED)
    drawn: list[Floats] = []
    counts: NDArray[np.int64] | None = None
    for which in (0, 1):
        if counts is None or not both:
            n = sizes[which]
            counts = random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        low, high = (np.einsum("rs,sl->rl", counts / sizes[which], ends[which][..., end]) for end in (0, 1))
        share = random.random((RESAMPLES, 1))
        drawn.append((1 - share) * low + share * high)
    middles = [each.mean(axis=2).mean(axis=0) for each in ends]
    fewest = min(sizes)
    level = min(expanded_level(LEVEL, fewest, fewest, 1), 1 - 1e-9)

    def estimate(value: float, resampled: Floats) -> Estimate:
        low, high = percentile_interval(resampled, level) if fewest > 1 else (math.nan, math.nan)
        return Estimate(value=float(value), low=low, high=high, level=LEVEL)

    moved, drawn_moved = middles[1] - middles[0], drawn[1] - drawn[0]
    crossed = tuple(
        Crossed(
            at=line.at,
            first=estimate(middles[0][k], drawn[0][:, k]),
            second=estimate(middles[1][k], drawn[1][:, k]),
            shift=estimate(moved[k], drawn_moved[:, k]),
            seeds=fewest,
        )
        for k, line in enumerate(complete)
    )
    what = f"{fewest} common seeds, paired" if both else f"{sizes[0]} and {sizes[1]} seeds, not paired"
    if same_runs:
        what += (
            f", because {plural(same_runs, 'trial')} of both are the same runs: the shift is that of the further seeds"
            " and settings, and the interval takes the sweeps as independent, so that it is too wide"
        )
    apart = sorted(seeds[0] ^ seeds[1]) if both else []
    uncrossed = [_where(line.at) or "the line" for line in lines if line not in complete]
    left_out = [*only]
    if apart:
        left_out.append(f"{plural(len(apart), 'seed')} of one of them only ({_listed([str(seed) for seed in apart])})")
    if uncrossed:
        left_out.append(
            f"{plural(len(uncrossed), 'line')} on which a seed of one of them does not cross ({_listed(uncrossed)})"
        )
    return Shift(
        boundary=name,
        along=along,
        is_ratio=is_ratio,
        lines=crossed,
        mean=estimate(moved.mean(), drawn_moved.mean(axis=1)),
        slices=tuple(
            (where, estimate(moved[own].mean(), drawn_moved[:, own].mean(axis=1)))
            for where, own in _slices([line.at for line in complete], others)
        ),
        how=f"bootstrap over {what}" if fewest > 1 else f"{what}: one seed has no interval",
        level=LEVEL,
        left_out=tuple(left_out),
        others=others,
    )


def _fitted(first: Side, second: Side, along: str) -> list[Shift]:
    """The fitted boundaries of both, on evenly spaced lines."""
    axes = [next(axis for axis in side.diagram.axes if axis.name == along) for side in (first, second)]
    is_ratio = all(axis.kind == "log" for axis in axes)
    lines: dict[str, list[Crossed]] = {}
    for at in _places(first.diagram, second.diagram, along, LINES):
        rows = []
        for side in (first, second):
            try:
                own = read(side.diagram, side.table, side.map, at, along, scattered=True)
            except UserError:  # no map is fitted there
                own = []
            given = [row for row in own if row.interval == GIVEN_BAND]
            rows.append({row.boundary: row for row in given if [r.boundary for r in given].count(row.boundary) == 1})
        for name in rows[0]:
            if name in rows[1]:
                a, b = (
                    Estimate(
                        value=_at(row.value, is_ratio),
                        low=_at(row.low, is_ratio),
                        high=_at(row.high, is_ratio),
                        level=0.9,
                    )
                    for row in (rows[0][name], rows[1][name])
                )
                moved = Estimate(value=b.value - a.value, low=b.low - a.high, high=b.high - a.low, level=BAND_LEVEL)
                lines.setdefault(name, []).append(Crossed(at=at, first=a, second=b, shift=moved, seeds=0))
    others = _others(first, along)
    return [
        Shift(
            boundary=name,
            along=along,
            is_ratio=is_ratio,
            lines=tuple(own),
            mean=_mean_band(own),
            slices=tuple(
                (where, _mean_band([own[k] for k in lines_of]))
                for where, lines_of in _slices([each.at for each in own], others)
            ),
            how="fitted boundaries, their bands given these seeds added",
            level=BAND_LEVEL,
            others=others,
        )
        for name, own in lines.items()
    ]


def _mean_band(lines: Sequence[Crossed]) -> Estimate:
    value, low, high = (
        float(np.mean([getattr(line.shift, end) for line in lines])) for end in ("value", "low", "high")
    )
    return Estimate(value=value, low=low, high=high, level=BAND_LEVEL)


def _others(first: Side, along: str) -> tuple[tuple[str, bool], ...]:
    """The other axes, those of numbers first, and whether they are logarithmic."""
    own = [axis for axis in first.diagram.axes if axis.name != along]
    return tuple((axis.name, axis.kind == "log") for axis in sorted(own, key=lambda axis: not axis.numeric))


def _slices(lines: Sequence[Mapping[str, Scalar]], others: Sequence[tuple[str, bool]]) -> list[tuple[str, list[int]]]:
    """The slices of these lines (see `Shift.slices`), and the lines of each by index; none where one axis is left."""
    held, slices = [name for name, _ in others[1:]], dict[str, list[int]]()
    for k, at in enumerate(lines if held else ()):
        slices.setdefault(_where({name: at[name] for name in held}), []).append(k)
    return list(slices.items())


def _where(at: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in at.items())


def _at(value: float, is_ratio: bool) -> float:
    """A value as a position; a band that has no end stays so."""
    if not is_ratio or not math.isfinite(value):
        return value
    return math.log10(value)


def shift_table(compared: Sequence[tuple[str, Sequence[Shift]]], first: str) -> Result | None:
    """All shifts as one table with a figure; sweeps whose shifts are not of the kind of the first ones get a note.

    Args:
        compared: (name of a sweep, its boundaries against the first one), all along one axis.
        first: name of the sweep that they are compared with.
    """
    every = [(name, shift) for name, found in compared for shift in found]
    if not every:
        return None
    shift = every[0][1]
    made = [(name, each) for name, each in every if each.is_ratio == shift.is_ratio]
    rows: list[dict[str, Cell]] = []
    for name, shift in made:
        made_of: list[tuple[str, Crossed | None, Estimate]] = [(MEAN, None, shift.mean)]
        made_of += [(f"{MEAN} at {where}", None, mean) for where, mean in shift.slices]
        made_of += [(_where(line.at) or "the line", line, line.shift) for line in shift.lines]
        for where, line, moved in made_of:
            rows.append(
                {
                    "sweep": name,
                    "boundary": shift.boundary,
                    "at": where,
                    "along": shift.along,
                    "first": None if line is None else _in_units(line.first, shift),
                    "second": None if line is None else _in_units(line.second, shift),
                    "shift": _in_units(moved, shift),
                    "seeds": (line or shift.lines[0]).seeds,
                }
            )
        if len(shift.lines) == 1 and not shift.others:
            del rows[-2]  # the mean over one line
    notes = list(
        dict.fromkeys(
            f"{each.boundary}: {each.how}" + (f" ({100 * each.level:g}%)" if each.level != shift.level else "")
            for _, each in made
        )
    )
    notes += [f"{name}, {each.boundary}: left out: {what}" for name, each in made for what in each.left_out]
    what, other = ("ratio", "difference") if shift.is_ratio else ("difference", "ratio")
    shown, found_in = {name for name, _ in made}, {name for name, _ in every}
    notes += [
        f"{name} is left out: its shift along {shift.along} is a {other}, not a {what}; compare it by itself"
        if name in found_in
        else f"{name} is left out: no boundary along {shift.along} is in both sweeps"
        for name, _ in compared
        if name not in shown
    ]
    return Result(
        name="shift",
        kind="shift",
        title=f"shift of the boundary along {shift.along}, {what} to {first}",
        rows=tuple(rows),
        setting=("sweep", "boundary"),
        main=("at", "first", "second", "shift"),
        parts=("at",),
        estimates=("first", "second", "shift"),
        level=shift.level,
        notes=tuple(notes),
        figure=_figure(made, first),
    )


def _figure(made: Sequence[tuple[str, Shift]], first: str) -> Figure | None:
    """The shift along the other axis, a panel for each boundary; none unless there is one other axis of numbers."""
    shift = made[0][1]
    if len(shift.others) != 1 or not all(is_number(value) for line in shift.lines for value in line.at.values()):
        return None
    ((other, log),) = shift.others
    panels = []
    for boundary in dict.fromkeys(each.boundary for _, each in made):
        curves = []
        for name, each in made:
            if each.boundary == boundary:
                x = np.array([float(line.at[other]) for line in each.lines])
                own = [_in_units(line.shift, each) for line in each.lines]
                order = np.argsort(x)
                columns = [np.array([getattr(e, end) for e in own])[order] for end in ("value", "low", "high")]
                # A line through one point is not seen.
                low, high = columns[1:]
                curves.append(Curve(x=x[order], y=columns[0], label=name, low=low, high=high, points=len(x) == 1))
        panels.append(Panel(title=_called(boundary), lines=tuple(curves), level=1.0 if shift.is_ratio else 0.0))
    what = "ratio" if shift.is_ratio else "difference"
    return Figure(
        x_label=named(other),
        y_label=f"{named(shift.along)}, {what} to {first}",
        x_log=log,
        y_log=shift.is_ratio,
        band=f"{100 * shift.level:g}% interval",
        panels=tuple(panels),
    )


def _called(boundary: str) -> str:
    """A boundary between phases as the style calls them."""
    return " | ".join(named(part, part) for part in boundary.split(" | "))


def _in_units(of: Estimate, shift: Shift) -> Estimate:
    """In units of the axis, or as a ratio."""
    if not shift.is_ratio:
        return of
    value, low, high = (10.0**u if not math.isinf(u) else (0.0 if u < 0 else u) for u in (of.value, of.low, of.high))
    return Estimate(value=value, low=low, high=high, level=of.level)


def _text(value: Scalar) -> str:
    return number(float(f"{value:.4g}")) if isinstance(value, float) else str(value)

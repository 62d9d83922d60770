"""compare: draw maps and their difference, and measure how far the boundary moved."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.picture import output_of, writing
from orchestrator.errors import UserError, did_you_mean
from orchestrator.phases.style import FORMATS, FigureStyle, drawn_as

if TYPE_CHECKING:
    from orchestrator.analyses.result import Result
    from orchestrator.axes import Axis
    from orchestrator.phases.compare import Side
    from orchestrator.phases.table import TrialTable

TABLE = "trials.parquet"
_VALID = ("a sweep file (.yaml)", f"a folder with {TABLE}", "a table of trials (.parquet)")


def compare(arguments: argparse.Namespace) -> int:
    """Compare maps with the first one: pictures, the area in which they differ, and how far the boundary moved."""
    output = output_of(arguments, FORMATS)
    assert output is not None
    given = [arguments.first, arguments.second, *arguments.further]
    styled = _styled_by(given, arguments.overrides)
    read = [_read(Path(each), arguments.overrides if each == styled else ()) for each in given]
    sides = [side for side, _ in read]
    style = next((style for _, style in read if style is not None), FigureStyle())
    if arguments.width is not None:
        style = style.model_copy(update={"width": arguments.width})
    with drawn_as(style):
        moved = _shifts(sides, arguments.along)
    files = []
    with writing(output), drawn_as(style):
        for k, other in enumerate(sides[1:], start=1):
            path = output if k == 1 else output.with_stem(f"{output.stem}_{k}")
            if _compared(sides[0], other, (given[0], given[k]), path, arguments.figures, needed=moved is None):
                files.append(path)
        if moved is not None:
            files += _write_shift(moved, sides[0].name, output, arguments.figures)
    for path in files:
        print(f"{'table' if path.suffix == '.csv' else 'picture'}: {path}")
    return 0


def _is_sweep(given: str) -> bool:
    return Path(given).suffix in (".yaml", ".yml")


def _styled_by(given: Sequence[str], overrides: Sequence[str]) -> str | None:
    """The sweep file whose `figure:` the figures follow; None without one.

    Raises:
        UserError: overrides have none to change, or change something else.
    """
    for override in overrides:
        if not override.startswith("figure."):
            rule, step = "only `figure:` can be changed here", "change the sweep file, run it, then compare"
            raise UserError(rule, place="--set", value=override, choices=("figure.KEY=VALUE",), next_step=step)
    styled = next(filter(_is_sweep, given), None)
    if overrides and styled is None:
        rule = "changes the `figure:` of a sweep file, and none is compared"
        raise UserError(rule, place="--set", value=overrides[0], next_step="name a sweep file, or use --width")
    return styled


def _compared(
    first: Side, second: Side, given: tuple[str, str], path: Path, figures: Sequence[str], *, needed: bool
) -> bool:
    """Print and draw the difference of two maps; whether there is one. `needed`: else it is a mistake."""
    from orchestrator.phases.compare import NotComparable, report
    from orchestrator.phases.compare import compare as compare_maps
    from orchestrator.phases.draw.png_compare import draw_comparison

    for name, side in zip(given, (first, second), strict=True):
        if not side.map.fitted:
            if needed:
                raise _without_map(name, side)
            return False
    try:
        comparison = compare_maps(first, second)
    except NotComparable as error:
        rule, place = f"these two cannot be compared: {error}", ", ".join(given)
        next_step = "compare sweeps over the same axes, with ranges that overlap"
        raise UserError(rule, place=place, next_step=next_step) from error
    print("\n".join(report(comparison)))
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in dict.fromkeys((path.suffix.removeprefix("."), *figures)):
        draw_comparison(comparison, path.with_suffix(f".{kind}"))
    return True


def _shifts(sides: Sequence[Side], along: str | None) -> Result | None:
    """How far the boundaries have moved from the first side to each other one."""
    from orchestrator.results.shifts import shift_table, shifts_from

    axes = [axis.name for axis in sides[0].diagram.axes if axis.numeric]
    if along is not None and along not in axes:
        step = did_you_mean(along, axes, "name one of these")
        rule = "is no axis of numbers that varies"
        raise UserError(rule, place="--along", value=along, choices=axes, next_step=step)
    names = [side.name for side in sides[1:]]
    called = [name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names, start=2)]
    return shift_table(shifts_from(sides[0], list(zip(called, sides[1:], strict=True)), along), sides[0].name)


def _write_shift(moved: Result, first: str, output: Path, figures: Sequence[str]) -> list[Path]:
    """Print the table of shifts, and write it and its figure; the files."""
    from orchestrator.analyses.result import MOST_PRINTED
    from orchestrator.analyses.view import draw

    table = output.with_name(f"{output.stem}_shift.csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    more = len(moved.rows) - MOST_PRINTED
    print("\n".join(replace(moved, rows=moved.rows[:MOST_PRINTED]).lines()))
    if more > 0:
        print(f"  and {more} more rows in {table}")
    moved.write_csv(table)
    if moved.figure is None:
        return [table]
    picture = output.with_stem(f"{output.stem}_shift")
    for kind in dict.fromkeys((output.suffix.removeprefix("."), *figures)):
        draw(first, moved, picture.with_suffix(f".{kind}"))
    return [picture, table]


def _without_map(given: str, side: Side) -> UserError:
    """Why there is nothing to compare, and what can be done about it."""
    if any(len(part.slice.axes) >= 2 for part in side.map.slices):
        rule = "has no map: no trial has finished where two numeric axes vary"
        return UserError(rule, place=given, next_step="phasefront run, then compare")
    numeric = ", ".join(sorted({axis.name for part in side.map.slices for axis in part.slice.axes}))
    listed = ", not listed as `values`" if side.note.search else " and three or more values each"
    return UserError(
        "has no map: two numeric axes must vary together, and running it again would not change that",
        place=given,
        value=numeric or "no numeric axis varies",
        next_step=f"compare sweeps with two numeric axes{listed}; `phasefront map` draws a sweep with fewer",
    )


def _read(path: Path, overrides: Sequence[str]) -> tuple[Side, FigureStyle | None]:
    """A side, and how its sweep file says that figures look."""
    if _is_sweep(str(path)):
        return _of_sweep(path, overrides)
    file = path / TABLE if path.is_dir() else path
    if not file.exists():
        raise UserError("is not there", place=str(file), choices=_VALID, next_step="name a sweep that was run")
    return _of_table(file), None


def _of_sweep(path: Path, overrides: Sequence[str]) -> tuple[Side, FigureStyle]:
    """From the record alone, as `map` draws it."""
    from orchestrator.commands.searching import known_trials
    from orchestrator.commands.wiring import open_tracker
    from orchestrator.phases.compare import side
    from orchestrator.phases.table import collect, note_of
    from orchestrator.records import Status
    from orchestrator.sweep.sweep import Sweep

    sweep = Sweep.load(path, overrides)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        trials = known_trials(sweep, tracker)
        rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials], settings=False)}
    if not rows:
        raise sweep.nothing_recorded(f"phasefront run {path}")
    table, fingerprint = collect(trials, rows, sweep.job_object()), sweep.thresholds_fingerprint()
    finished = [row.recorded for row in rows.values() if row.recorded.status is Status.FINISHED]
    stale = sum(recorded.thresholds != fingerprint for recorded in finished)
    return side(note_of(sweep, search=sweep.is_search, job=sweep.job), table, stale=stale), sweep.written.figure


def _of_table(file: Path) -> Side:
    """From the table that `map` and `run` write."""
    import pyarrow as pa

    from orchestrator.phases.compare import side
    from orchestrator.phases.table import TableNote, read_note, read_table

    try:
        table, note = read_table(file), read_note(file)
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        rule, next_step = f"is not a table of trials: {error}", "give a sweep file, or the folder of its map"
        raise UserError(rule, place=str(file), choices=_VALID, next_step=next_step) from error
    if note is None:
        phases = sorted({phase for phase in table.phase if phase is not None})
        name = file.stem if file.name != TABLE else file.resolve().parent.name
        note = TableNote(name=name, phases=tuple(phases), axes=_guessed(table), search=False)
    return side(note, table)


def _guessed(table: TrialTable) -> tuple[Axis, ...]:
    """The axes of a table that remembers none: every parameter that varies."""
    from orchestrator.axes import Axis

    axes = []
    for name, column in table.params.items():
        values = tuple(dict.fromkeys(v for v in column if v is not None))
        if len(set(column)) > 1:
            axes.append(Axis(name=name, scale="values", values=values))
    return tuple(axes)

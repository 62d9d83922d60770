"""compare: draw two phase maps and their difference."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.picture import output_of, writing
from orchestrator.errors import UserError
from orchestrator.phases.style import FORMATS, FigureStyle, drawn_as

if TYPE_CHECKING:
    from orchestrator.axes import Axis
    from orchestrator.phases.compare import Side
    from orchestrator.phases.table import TrialTable

TABLE = "trials.parquet"
_VALID = ("a sweep file (.yaml)", f"a folder with {TABLE}", "a table of trials (.parquet)")


def compare(arguments: argparse.Namespace) -> int:
    """Draw two maps by the same classifier, and print the share of the area in which they differ."""
    from orchestrator.phases.compare import NotComparable, report
    from orchestrator.phases.compare import compare as compare_maps
    from orchestrator.phases.draw.png_compare import draw_comparison

    output = output_of(arguments, FORMATS)
    assert output is not None
    read = [_read(Path(given)) for given in (arguments.first, arguments.second)]
    sides = [side for side, _ in read]
    for given, side in zip((arguments.first, arguments.second), sides, strict=True):
        if not side.map.fitted:
            raise _without_map(str(given), side)
    try:
        comparison = compare_maps(*sides)
    except NotComparable as error:
        rule, place = f"these two cannot be compared: {error}", f"{arguments.first}, {arguments.second}"
        next_step = "compare sweeps over the same axes, with ranges that overlap"
        raise UserError(rule, place=place, next_step=next_step) from error
    print("\n".join(report(comparison)))
    style = next((style for _, style in read if style is not None), FigureStyle())
    if arguments.width is not None:
        style = style.model_copy(update={"width": arguments.width})
    with writing(output), drawn_as(style):
        output.parent.mkdir(parents=True, exist_ok=True)
        for kind in dict.fromkeys((output.suffix.removeprefix("."), *arguments.figures)):
            draw_comparison(comparison, output.with_suffix(f".{kind}"))
    print(f"picture: {output}")
    return 0


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


def _read(path: Path) -> tuple[Side, FigureStyle | None]:
    """A side, and how its sweep file says that figures look."""
    if path.suffix in (".yaml", ".yml"):
        return _of_sweep(path)
    file = path / TABLE if path.is_dir() else path
    if not file.exists():
        raise UserError("is not there", place=str(file), choices=_VALID, next_step="name a sweep that was run")
    return _of_table(file), None


def _of_sweep(path: Path) -> tuple[Side, FigureStyle]:
    """From the record alone, as `map` draws it."""
    from orchestrator.commands.searching import known_trials
    from orchestrator.commands.wiring import nothing_recorded, open_tracker
    from orchestrator.phases.compare import side
    from orchestrator.phases.table import collect, note_of
    from orchestrator.records import Status
    from orchestrator.sweep.sweep import Sweep

    sweep = Sweep.load(path)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        trials = known_trials(sweep, tracker)
        rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials], settings=False)}
    if not rows:
        raise nothing_recorded(sweep, str(path), f"phasefront run {path}")
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

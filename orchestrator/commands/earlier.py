"""Results of another sweep of the same name, or of another record: they are kept when the folder is written again."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.sweep.sweep import Sweep

ON_REQUEST = ("step_map*", "*_against_*", "more_data_*")
"""Files of `map --step`, `--against` and `--more-data`: only these options write or replace them."""
_FURTHER = ("analysis.json", "analysis.txt", "analysis_*", "run.json", "columns.txt", "report.html", "export")
"""What else phasefront writes into an output folder."""


def keep_earlier(sweep: Sweep, runs: Collection[str], start_ms: int) -> str | None:
    """Move results of another sweep, or of another record, out of the output folder; a warning.

    Another record is one without `runs`, or one in which the run of the sweep was not created at `start_ms`.
    Only files that phasefront writes are moved, into a folder beside it that is named after their date.
    """
    from orchestrator.phases.publish import MAP_FILES

    what = held_by_another(sweep, runs, start_ms)
    if what is None:
        return None
    made = datetime.fromtimestamp((sweep.output / "trials.parquet").stat().st_mtime)
    wanted = sweep.output.with_name(f"{sweep.output.name}-{made:%Y-%m-%d-%H%M%S}")
    folder, k = wanted, 2
    while folder.exists():
        folder, k = wanted.with_name(f"{wanted.name}-{k}"), k + 1
    folder.mkdir(parents=True)
    for path in sorted(sweep.output.iterdir()):
        if path.name in MAP_FILES or any(path.match(pattern) for pattern in (*ON_REQUEST, *_FURTHER)):
            path.rename(folder / path.name)
    return f"{sweep.output} held the results of {what}; they were moved to {folder}"


def held_by_another(sweep: Sweep, runs: Collection[str], start_ms: int) -> str | None:
    """Whose map the output folder holds: another sweep's, or another record's (see `keep_earlier`); None: its own."""
    from orchestrator.phases.table import read_note, read_table

    file = sweep.output / "trials.parquet"
    try:
        note = read_note(file)
        drawn = set(read_table(file).run_id) - {None} if runs else set()
    except (OSError, ValueError, KeyError, TypeError):  # not a table that `map` wrote: pyarrow raises a ValueError
        return None
    if note is None or not note.sweep_id:
        return None
    if note.sweep_id != sweep.id:
        return f"another sweep, {note.name} ({note.sweep_id[:12]})"
    if drawn and drawn.isdisjoint(runs):
        return "this sweep from another record (its trials are other runs)"
    if 0 not in (note.sweep_start_ms, start_ms) and note.sweep_start_ms != start_ms:
        return "this sweep from another record (its run was created there at another time)"
    return None

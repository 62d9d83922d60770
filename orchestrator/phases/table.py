"""The table of trials: one row per trial, columnar, and its Parquet file.

Columns of the file: `trial_id`, `run_id` (null if never recorded), `replicate`, every parameter, `phase` (null if
none), `status`, `bounds_from_schedule`, and two per observation: `<name>` (null if not reached) and
`<name>_censored_at` (the bound up to which it was not reached; null if it was). A NaN in `<name>` is a measured NaN.

A step that lies between two reports has its bounds as further observations: it is in (`<name>_after`, `<name>_by`], or
in (`<name>_after`, `<name>`] without a `<name>_by` (`jobs.job.AFTER`). Where `bounds_from_schedule` is true, an earlier
version recorded the step without bounds, and they follow from the trial's schedule of reports.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.job import AFTER, BY, Censored, Job, Observations, Params, Scalar, as_dict
from orchestrator.axes import Axis
from orchestrator.records import Status, TrialResult
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

MISSING = "MISSING"
"""Status of a trial that is not recorded."""

_COMPLETED = "bounds_from_schedule"
_META = b"phasefront"
_ABOUT = b"phasefront.sweep"


class SweepView(Protocol):
    """What the map of a sweep needs to know about it; `Sweep` implements it."""

    @property
    def name(self) -> str: ...

    @property
    def axes(self) -> Sequence[Axis]: ...

    def job_object(self) -> Job[Any]: ...

    def thresholds(self) -> Params: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObservationColumn:
    """One observation of N trials. A trial that is neither `reached` nor `censored` does not have it."""

    value: NDArray[np.float64]
    """(N,) NaN where not reached; a NaN or an infinity where `reached` was measured."""
    reached: NDArray[np.bool_]
    """(N,)"""
    censored_at: NDArray[np.float64]
    """(N,) the bound up to which it was not reached; NaN if not censored."""
    censored: NDArray[np.bool_]
    """(N,)"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialTable:
    """N trials as columns, in an order that depends on their content alone."""

    trial_id: tuple[str, ...]
    run_id: tuple[str | None, ...]
    replicate: NDArray[np.int64]
    params: Mapping[str, tuple[Scalar | None, ...]]
    """None: the trial has no such parameter (only if a job's parameters are open)."""
    phase: tuple[str | None, ...]
    status: tuple[str, ...]
    """A `Status`, or MISSING."""
    observations: Mapping[str, ObservationColumn]
    bounds_from_schedule: NDArray[np.bool_]
    """(N,) whether bounds of its steps are not recorded, and follow from its schedule of reports."""

    def __len__(self) -> int:
        return len(self.trial_id)

    def result(self, row: int) -> TrialResult | None:
        """How a trial ended; None if it is not recorded."""
        if self.status[row] == MISSING:
            return None
        return TrialResult(
            trial_id=self.trial_id[row],
            status=Status(self.status[row]),
            phase=self.phase[row],
            observations=self.observations_of(row),
        )

    def bounds(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N,) above and (N,) to: the value of an observation is in (above, to], as `orchestrator.analysis` takes it.

        An exact value has above = to, one that was not reached to = inf; NaN where a trial does not have it.
        """
        column, none = self.observations[name], np.full(len(self), np.nan)

        def companion(suffix: str) -> NDArray[np.float64]:
            bound = self.observations.get(name + suffix)
            return none if bound is None else bound.value

        by, after = companion(BY), companion(AFTER)
        to = np.where(column.censored, np.inf, np.where(np.isfinite(by), by, column.value))
        above = np.where(np.isfinite(after), after, column.value)
        return np.where(column.censored, column.censored_at, above), to

    def observations_of(self, row: int) -> Observations:
        """A trial's observations, as its job gave them."""
        return {
            name: float(column.value[row]) if column.reached[row] else Censored(float(column.censored_at[row]))
            for name, column in self.observations.items()
            if column.reached[row] or column.censored[row]
        }


def collect(trials: Sequence[Trial], rows: Mapping[str, TrialRow], job: Job[Any] | None = None) -> TrialTable:
    """Join the trials of a sweep with their records (`rows`, by trial id).

    A trial without a row is MISSING. Rows of other trials are ignored; a trial named twice counts once. The `job` adds
    what records of earlier versions lack (`Job.completed`).
    """
    by_id = {trial.id: trial for trial in trials}
    unique = list(by_id.values())
    kinds = dict.fromkeys(type(t.params) for t in unique)
    names = list(dict.fromkeys(f.name for kind in kinds for f in dataclasses.fields(kind)))
    unsorted = {name: _values(unique, name, everywhere=len(kinds) == 1) for name in names}
    order = _order(unique, unsorted)
    ordered = [unique[k] for k in order]
    joined = [rows.get(trial.id) for trial in ordered]
    finished = [row.recorded if row and row.recorded.status is Status.FINISHED else None for row in joined]
    observed: list[Observations] = [recorded.observations if recorded else {} for recorded in finished]
    completed = np.zeros(len(ordered), dtype=np.bool_)
    for row, own in enumerate(observed if job else ()):
        if job and own:
            observed[row] = job.completed(ordered[row].params, own)
            completed[row] = observed[row] is not own
    observations = dict.fromkeys(name for own in observed for name in own)
    return TrialTable(
        trial_id=tuple(trial.id for trial in ordered),
        run_id=tuple(row.run_id if row else None for row in joined),
        replicate=np.array([trial.replicate for trial in ordered], dtype=np.int64),
        params={
            name: tuple(column if _is_constant(column) else [column[k] for k in order])
            for name, column in unsorted.items()
        },
        phase=tuple(recorded.phase if recorded else None for recorded in finished),
        status=tuple(row.recorded.status.value if row else MISSING for row in joined),
        observations={name: _column([own.get(name) for own in observed]) for name in observations},
        bounds_from_schedule=completed,
    )


def _values(trials: Sequence[Trial], name: str, *, everywhere: bool) -> list[Scalar | None]:
    """A parameter of each trial; `everywhere`: all of them have it."""
    if everywhere:
        value = attrgetter(name)
        return [value(trial.params) for trial in trials]
    return [getattr(trial.params, name, None) for trial in trials]


def _is_constant(column: Sequence[Scalar | None]) -> bool:
    """Whether all trials have the same value, in the same type, as most parameters of a sweep do."""
    return column.count(column[0]) == len(column) and len(set(map(type, column))) == 1


def _order(trials: Sequence[Trial], params: Mapping[str, Sequence[Scalar | None]]) -> list[int]:
    """The trials by their parameters, name by name, then by replicate, seed and id."""
    keys: list[Sequence[Any]] = []
    for column in params.values():
        if _is_constant(column):
            continue
        kinds = set(map(type, column))
        plain = kinds == {str} or kinds <= {bool, int, float}
        # Open parameters may be absent in some trials, or text in some and numbers in others.
        keys.append(column if plain else [(v is not None, isinstance(v, str), v) for v in column])
    rows = list(zip(*keys, ((t.replicate, t.base_seed, t.id) for t in trials), strict=True))
    return sorted(range(len(trials)), key=rows.__getitem__)


def _column(values: Sequence[float | Censored | None]) -> ObservationColumn:
    kinds = list(map(type, values))
    censored = np.array([kind is Censored for kind in kinds], dtype=np.bool_)
    absent = np.array([kind is type(None) for kind in kinds], dtype=np.bool_)
    bounds = np.full(len(values), np.nan)
    bounds[censored] = [v.at for v in values if isinstance(v, Censored)]
    numbers = np.full(len(values), np.nan)
    reached = ~(censored | absent)
    numbers[reached] = [v for v, known in zip(values, reached.tolist(), strict=True) if known]
    return ObservationColumn(value=numbers, reached=reached, censored_at=bounds, censored=censored)


@dataclass(frozen=True, kw_only=True)
class TableNote:
    """What a table records about its sweep, so that a map can be drawn from the table alone."""

    name: str
    phases: tuple[str, ...]
    axes: tuple[Axis, ...]
    """`values`: all of them where the sweep file lists them, else the two ends. `between` is not recorded."""
    search: bool
    job: str = ""
    """As in the sweep file; "" if unknown."""
    thresholds: Mapping[str, Scalar] | None = None
    """All of them; None if unknown."""
    sweep_id: str = ""
    """"" if unknown."""
    seed: int | None = None
    """The sweep's `seed`: with it, equal replicates are equal seeds. None if unknown."""
    sweep_start_ms: int = 0
    """When the sweep's run was created in the record: another in another record. 0 if unknown."""


_AXIS_KEYS = ("name", "scale", "values", "when", "group")


def note_of(sweep: SweepView, *, search: bool, job: str = "", sweep_id: str = "", sweep_start_ms: int = 0) -> TableNote:
    """What a table records about a sweep."""
    axes = (
        axis if axis.scale == "values" else replace(axis, values=(min(axis.values), max(axis.values)))
        for axis in sweep.axes
    )
    return TableNote(
        name=sweep.name,
        phases=tuple(sweep.job_object().phases),
        axes=tuple(axes),
        search=search,
        job=job,
        thresholds=as_dict(sweep.thresholds()),
        sweep_id=sweep_id,
        seed=getattr(sweep, "seed", None),
        sweep_start_ms=sweep_start_ms,
    )


def _as_json(note: TableNote) -> dict[str, Any]:
    axes = [{key: getattr(axis, key) for key in _AXIS_KEYS} for axis in note.axes]
    return dataclasses.asdict(replace(note, axes=())) | {"axes": axes}


def write_table(table: TrialTable, path: Path, note: TableNote | None = None) -> None:
    """Write `arrow_table` as Parquet."""
    import pyarrow.parquet as pq

    pq.write_table(arrow_table(table, note), path, compression="zstd")


def names_of(table: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The columns of an `arrow_table`: parameter -> column, and observation -> column."""
    names = json.loads(table.schema.metadata[_META])
    return names["params"], names["observations"]


def arrow_table(table: TrialTable, note: TableNote | None = None) -> Any:
    """The table as a `pyarrow.Table` (see the module for its columns), with a note about its sweep.

    A parameter or observation whose name is taken by another column is the column `param.<name>` or
    `observation.<name>`.
    """
    import pyarrow as pa

    arrays: dict[str, Any] = {
        "trial_id": pa.array(table.trial_id, pa.string()),
        "run_id": pa.array(table.run_id, pa.string()),
        "replicate": pa.array(table.replicate, pa.int64()),
    }
    reserved = {*arrays, "phase", "status", _COMPLETED}
    params: dict[str, str] = {}
    for name, values in table.params.items():
        params[name] = f"param.{name}" if name in reserved else name
        kinds_of = set(map(type, values))
        mixed = str in kinds_of and not kinds_of <= {str, type(None)}
        arrays[params[name]] = pa.array([None if v is None else str(v) for v in values] if mixed else values)
    arrays["phase"] = pa.array(table.phase, pa.string())
    arrays["status"] = pa.array(table.status, pa.string())
    arrays[_COMPLETED] = pa.array(table.bounds_from_schedule, pa.bool_())
    observations: dict[str, str] = {}
    for name, column in table.observations.items():
        taken = name in arrays or f"{name}_censored_at" in arrays
        key = observations[name] = f"observation.{name}" if taken else name
        arrays[key] = pa.array(column.value, pa.float64(), mask=~column.reached)
        arrays[f"{key}_censored_at"] = pa.array(column.censored_at, pa.float64(), mask=~column.censored)
    meta = {_META: json.dumps({"params": params, "observations": observations}).encode()}
    if note is not None:
        meta[_ABOUT] = json.dumps(_as_json(note)).encode()
    return pa.table(arrays).replace_schema_metadata(meta)


def read_table(path: Path) -> TrialTable:
    """Read what `write_table` wrote.

    Raises:
        ValueError: the file is Parquet, but not a table of trials.
    """
    import pyarrow.parquet as pq

    read = pq.read_table(path)
    meta = (read.schema.metadata or {}).get(_META)
    if meta is None:
        raise ValueError(f"{path} is not a table of trials: it lacks the metadata {_META.decode()!r}")
    names = json.loads(meta)
    none = [False] * len(read)
    return TrialTable(
        trial_id=tuple(read["trial_id"].to_pylist()),
        run_id=tuple(read["run_id"].to_pylist()),
        replicate=np.array(read["replicate"].to_pylist(), dtype=np.int64),
        params={name: tuple(read[key].to_pylist()) for name, key in names["params"].items()},
        phase=tuple(read["phase"].to_pylist()),
        status=tuple(read["status"].to_pylist()),
        observations={name: _read_column(read, key) for name, key in names["observations"].items()},
        bounds_from_schedule=np.array(
            read[_COMPLETED].to_pylist() if _COMPLETED in read.column_names else none, dtype=np.bool_
        ),
    )


def read_note(path: Path) -> TableNote | None:
    """What a table records about its sweep; None if it records nothing."""
    import pyarrow.parquet as pq

    meta = (pq.read_schema(path).metadata or {}).get(_ABOUT)
    if meta is None:
        return None
    note = json.loads(meta)
    axes = tuple(
        Axis(**axis | {"values": tuple(axis["values"]), "when": {k: tuple(v) for k, v in axis["when"].items()}})
        for axis in note["axes"]
    )
    return TableNote(**note | {"phases": tuple(note["phases"]), "axes": axes})


def _read_column(read: Any, key: str) -> ObservationColumn:
    value, bound = read[key].combine_chunks(), read[f"{key}_censored_at"].combine_chunks()
    return ObservationColumn(
        value=np.array(value.fill_null(np.nan), dtype=np.float64),
        reached=np.array(value.is_valid(), dtype=np.bool_),
        censored_at=np.array(bound.fill_null(np.nan), dtype=np.float64),
        censored=np.array(bound.is_valid(), dtype=np.bool_),
    )

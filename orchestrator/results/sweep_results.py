"""The results of one sweep: what `phasefront.load` and `phasefront.run` return."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.function import FunctionJob
from jobs.job import FINAL, Scalar
from orchestrator.errors import UserError
from orchestrator.phases.table import MISSING, TrialTable, arrow_table, collect, note_of
from orchestrator.records import Status
from orchestrator.results import curves as curve_tables
from orchestrator.results.dictionary import Entry, curve_entries, trial_entries
from orchestrator.results.export import (
    DICTIONARY,
    FileFormat,
    check_file_format,
    write_dictionary,
    write_netcdf,
    write_tables,
)
from orchestrator.results.frames import Format, check_format, in_format, library
from orchestrator.results.grid import dimensions, to_dataset
from orchestrator.results.maps import PhaseMap
from orchestrator.results.reading import COLUMNS, Row, read
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.base import Tracker
from orchestrator.trial import Trial

STATUSES = (*(status.value for status in Status), MISSING)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles: it would walk hundreds of thousands of rows again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the record of a sweep is read."""

    open: Callable[[], Tracker]
    """A tracker at the sweep's address; the caller closes it."""
    trials: Callable[[Tracker], list[Trial]]
    """All trials of the sweep; of a search those that it has asked for so far, in that order."""


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """Reads the results of a sweep. Each call reads the record as it is now; nothing is written to it.

    Tables are pandas data frames, or with `format="arrow"` a `pyarrow.Table`, with `format="polars"` a polars one.
    """

    sweep: Sweep
    """The sweep file, checked."""
    access: Access = field(repr=False)

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.sweep.name

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes, in the order of the sweep file."""
        return tuple(axis.name for axis in self.sweep.axes)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the job declares; empty where any may be reported (a plain function)."""
        trials = self.sweep.trials() or self.sweep.sample(64)
        return curve_tables.declared_metrics(trials, self.sweep.job_object())

    @contextlib.contextmanager
    def reading(self) -> Iterator[Tracker]:
        """The record, open for the duration of the block."""
        with contextlib.closing(self.access.open()) as tracker:
            yield tracker

    def table(self, tracker: Tracker | None = None) -> TrialTable:
        """All trials as columns, as the commands use them; warns of phases labelled under other thresholds."""
        if tracker is None:
            with self.reading() as opened:
                return self.table(opened)
        with _uncollected():
            trials = self.access.trials(tracker)
            rows = {row.trial_id: row for row in tracker.rows([trial.id for trial in trials], settings=False)}
            table = collect(trials, rows, self.sweep.job_object())
        if not rows and (there := self.sweep.record_beside) is not None:
            text = f"nothing is recorded of {self.name} in the current folder; {there} has a record"
            warnings.warn(f"{text}, beside the sweep file", stacklevel=3)
        own = self.sweep.thresholds_fingerprint()
        recorded = [row.recorded for row in rows.values() if row.recorded.status is Status.FINISHED]
        stale = sum(each.thresholds != own for each in recorded)
        if stale:
            where = "are labelled under other thresholds (`phases:`)"
            text = f"{stale} trials of {self.name} {where}: run `phasefront map` first"
            warnings.warn(text, stacklevel=3)
        return table

    def trials(self, *, summaries: Sequence[str] = (), format: Format = "pandas") -> Any:
        """One row per trial, in an order that depends on the trials' content alone: the table of `trials.parquet`.

        Columns: `trial_id` and `run_id` (text; no run id if never recorded), `replicate` (int64), every parameter,
        axes among them, `phase` (categorical; none unless finished), `status` (categorical: RUNNING, FINISHED, FAILED,
        KILLED, or MISSING), and two per observation (float64): `<name>`, NaN where it was not reached, and
        `<name>_censored_at`, the bound up to which it was not reached, NaN if it was. A step that lies between two
        reports is in (`<name>_after`, `<name>`], or in (`<name>_after`, `<name>_by`]; `bounds_from_schedule` (bool) is
        true where these bounds are not recorded, but follow from the schedule of reports.

        Args:
            summaries: metrics whose curves are read and summarised in further columns: `<metric>_last`, the last value;
                `<metric>_min` and `<metric>_max`, the smallest and largest finite value; and the step of each, such as
                `<metric>_min_step`. A column whose name is taken is `summary.<name>`.
            format: pandas, arrow or polars.

        Raises:
            UserError: there is no such format, or its library is not installed; or no such metric.
            Outage: the record stayed away.
        """
        check_format(format)
        phases = tuple(self.sweep.job_object().phases)
        return in_format(self._summarised(summaries), format, {"phase": phases, "status": STATUSES})

    def _summarised(self, metrics: Sequence[str]) -> Any:
        """The table of trials with summaries of these metrics."""
        with self.reading() as tracker:
            table = self.table(tracker)
            arrow = self._arrow(table)
            if not metrics:
                return arrow
            self._check_metrics(metrics, tracker, "summaries")
            columns = curve_tables.summaries(tracker, table.trial_id, tuple(dict.fromkeys(metrics)))
        for name, column in columns.items():
            arrow = arrow.append_column(f"summary.{name}" if name in arrow.column_names else name, column)
        return arrow

    def _arrow(self, table: TrialTable) -> Any:
        sweep = self.sweep
        return arrow_table(table, note_of(sweep, search=sweep.is_search, job=sweep.job, sweep_id=sweep.id))

    def curves(
        self,
        metrics: Sequence[str] | None = None,
        *,
        axes: bool = False,
        trials: Sequence[str] | None = None,
        format: Format = "pandas",
    ) -> Any:
        """All curves as one long table, not sampled: a row per trial and recorded step, in the order of the trials.

        Columns: `trial_id` (categorical), `step` (int64), with `axes` each axis and `replicate`, and each metric
        (float64). A metric that was not reported at a step is NaN in pandas and null in Arrow and polars; a measured
        NaN is NaN in all of them. Trials without a curve have no rows.

        Args:
            metrics: which metrics; all if None.
            axes: whether to add the axes and the replicate of each trial.
            trials: ids of trials, such as a column of `trials()`; all if None.
            format: pandas, arrow or polars.

        Raises:
            UserError: a metric or a trial is none of the sweep.
            Outage: the record stayed away.
        """
        check_format(format)
        with self.reading() as tracker:
            tables = self._curve_tables(tracker, metrics, axes=axes, trials=trials)
            return in_format(curve_tables.joined(tables), format)

    def curve_chunks(
        self,
        metrics: Sequence[str] | None = None,
        *,
        axes: bool = False,
        trials: Sequence[str] | None = None,
        trials_a_chunk: int = curve_tables.TRIALS_A_CHUNK,
        format: Format = "pandas",
    ) -> Iterator[Any]:
        """The table of `curves` in parts of at most `trials_a_chunk` trials, for curves that do not fit in memory."""
        check_format(format)
        with self.reading() as tracker:
            for table in self._curve_tables(tracker, metrics, axes=axes, trials=trials, at_once=trials_a_chunk):
                yield in_format(table, format)

    def _curve_tables(
        self,
        tracker: Tracker,
        metrics: Sequence[str] | None,
        *,
        axes: bool,
        trials: Sequence[str] | None,
        at_once: int = curve_tables.TRIALS_A_CHUNK,
    ) -> Iterator[Any]:
        wanted = self._chosen(tracker, trials)
        known = curve_tables.declared_metrics(wanted, self.sweep.job_object())
        if metrics is not None:
            curve_tables.check_metrics(metrics, known or self._observed_metrics(tracker, wanted))
        names = known if metrics is None else tuple(metrics)
        if metrics is None and not known:
            names = curve_tables.recorded_metrics(tracker, wanted)
        shown = self.sweep.axes if axes else None
        return curve_tables.curve_tables(tracker, wanted, names, axes=shown, trials_a_table=at_once)

    def _check_metrics(self, given: Sequence[str], tracker: Tracker, place: str = "metrics") -> None:
        """Refuse a name that is none of the declared, else observed, else recorded metrics; any if nothing is known."""
        trials = self.access.trials(tracker)
        known = curve_tables.declared_metrics(trials, self.sweep.job_object())
        known = known or self._observed_metrics(tracker, trials) or curve_tables.recorded_metrics(tracker, trials)
        curve_tables.check_metrics(given, known, place=place)

    def _observed_metrics(self, tracker: Tracker, trials: Sequence[Trial]) -> tuple[str, ...]:
        """The metrics of a function's finished trials: it observes the last value of each. Empty for other jobs."""
        if not isinstance(self.sweep.job_object(), FunctionJob):
            return ()
        observed = (row.recorded.observations for row in tracker.rows([trial.id for trial in trials], settings=False))
        return tuple(dict.fromkeys(name.removeprefix(FINAL) for observations in observed for name in observations))

    def _chosen(self, tracker: Tracker, trials: Sequence[str] | None) -> list[Trial]:
        known = self.access.trials(tracker)
        if trials is None:
            return known
        by_id = {trial.id: trial for trial in known}
        wanted = list(dict.fromkeys(trials))
        for trial in wanted:
            if trial not in by_id:
                step = "take them from the column trial_id of trials()"
                raise UserError("is no trial of this sweep", place="trials", value=trial, next_step=step)
        return [by_id[trial] for trial in wanted]

    def map(self, *, classifier: bool = False) -> PhaseMap:
        """The phase map: phases over the settings, with tables and figures.

        Args:
            classifier: whether a classifier fits the map of a grid between its settings, as it does for a search.

        Raises:
            UserError: nothing is recorded of the sweep.
            Outage: the record stayed away.
        """
        with self.reading() as tracker:
            trials, table = self.access.trials(tracker), self.table(tracker)
        if set(table.status) <= {MISSING}:
            raise self.sweep.nothing_recorded(f"phasefront run {self.sweep.source}")
        return PhaseMap.of(self.sweep, trials, table, classifier=classifier)

    def read(
        self, at: Mapping[str, Scalar] | None = None, *, along: str | None = None, format: Format = "pandas"
    ) -> Any:
        """Where the boundaries between phases cross a line through the map, in units of the axis along it.

        Columns: `boundary` (the phases below and above), `along` (the axis), `seed` (the replicate; null for all
        together), `value`, `low` and `high` (float64; infinite where there is no crossing or no end on that side), and
        `interval` (what low and high are: the two settings between which a seed changes; the 95% bootstrap interval of
        the mean over seeds; for a search, the 90% bands of the fitted boundary).

        Args:
            at: axis -> value, for every axis but one; between two values of a grid, crossings are interpolated.
            along: the axis that is left; needed only where several are.
            format: pandas, arrow or polars.

        Raises:
            UserError: nothing is recorded, or there is no such line.
            Outage: the record stayed away.
        """
        check_format(format)
        pa = library("pyarrow", what="read()")
        try:
            rows = self.readings(at or {}, along)
        except UserError as error:
            raise _without_options(error) from None
        kinds = {"seed": pa.int64(), "value": pa.float64(), "low": pa.float64(), "high": pa.float64()}
        columns = {
            name: pa.array([getattr(row, name) for row in rows], kinds.get(name, pa.string())) for name in COLUMNS
        }
        return in_format(pa.table(columns), format)

    def readings(self, at: Mapping[str, Scalar], along: str | None = None) -> list[Row]:
        """The rows of `read`."""
        made = self.map()
        return read(made.diagram, made.table, made.fitted, at, along, scattered=self.sweep.is_search)

    def plot(self, ax: Any, **options: Any) -> Any:
        """Draw the phase map into a matplotlib `Axes`, see `PhaseMap.plot`."""
        return self.map().plot(ax, **options)

    def boundary(self, *, format: Format = "pandas") -> Any:
        """The boundary between the phases with its band, see `PhaseMap.boundary`; of a grid, that of the classifier."""
        return self.map(classifier=True).boundary(format=format)

    def to_xarray(self, metrics: Sequence[str] = ()) -> Any:
        """The sweep as an `xarray.Dataset`.

        A grid has a dimension per axis (axes that advance together share one), `replicate` and, with metrics, `step`,
        the union of all steps. A search has one dimension `trial` in place of axes and replicate, which are
        coordinates. Variables: `status` (also ABSENT, for a combination that is no trial), `phase`, `run_id`, two per
        observation, as in `trials()`, and each metric, NaN where it was not reported.

        Args:
            metrics: the metrics whose curves are read; none by default.

        Raises:
            UserError: xarray is not installed; an axis is conditional (`when`); a metric is none of the sweep's; the
                array would be too large.
            Outage: the record stayed away.
        """
        sweep = self.sweep
        if not sweep.is_search:
            dimensions(sweep.axes)  # refused before the record is read
        with self.reading() as tracker:
            table = self.table(tracker)
            names = list(metrics)
            if names:
                self._check_metrics(metrics, tracker)
            return to_dataset(
                sweep.axes,
                table,
                self.entries(self._arrow(table), names),
                search=sweep.is_search,
                metrics=names,
                curves=tracker.curves(table.trial_id, names) if names else None,
                title=self.name,
            )

    @property
    def is_recorded(self) -> bool:
        """Whether anything of the sweep is recorded."""
        with self.reading() as tracker:
            return any(True for _ in tracker.rows([trial.id for trial in self.access.trials(tracker)], settings=False))

    def export(
        self, folder: str | Path, *, format: FileFormat = "parquet", metrics: Sequence[str] | None = None
    ) -> list[Path]:
        """Write the results as files, with the data dictionary; the files.

        Args:
            folder: where; created if it does not exist.
            format: "parquet" and "csv" write `trials` and `curves`, "netcdf" the dataset of `to_xarray` as `sweep.nc`.
            metrics: whose curves are written; all if None.

        Raises:
            UserError: as `curves` and `to_xarray`.
            OSError: the folder cannot be written.
        """
        check_file_format(format)
        if format == "netcdf":
            names = list(metrics if metrics is not None else self._all_metrics())
            files = [write_netcdf(Path(folder, "sweep.nc"), self.to_xarray(names))]
            return [*files, write_dictionary(Path(folder, DICTIONARY), self._entries(names))]
        names = list(metrics if metrics is not None else self._all_metrics())
        chunks = self.curve_chunks(names, axes=True, format="arrow")
        return write_tables(Path(folder), format, self.trials(format="arrow"), chunks, self._entries(names))

    def _all_metrics(self) -> tuple[str, ...]:
        if self.metrics:
            return self.metrics
        with self.reading() as tracker:
            return curve_tables.recorded_metrics(tracker, self.access.trials(tracker))

    def dictionary(self) -> Any:
        """What each column means, a row per column: `table`, `column`, `type`, `unit`, `meaning` (a pandas frame)."""
        import pandas

        return pandas.DataFrame([asdict(entry) for entry in self._entries(self._all_metrics())])

    def _entries(self, metrics: Sequence[str]) -> list[Entry]:
        return self.entries(self._arrow(self.table()), metrics)

    def entries(self, table: Any, metrics: Sequence[str]) -> list[Entry]:
        """What each column means, for an Arrow table of the trials, and curves with these metrics."""
        trials = self.sweep.trials() or self.sweep.sample(64)
        return [*trial_entries(table, trials), *curve_entries(metrics, self.sweep.axes, trials)]


def _without_options(error: UserError) -> UserError:
    """The mistake of a command's option as that of an argument: `at` for `--at`."""
    return UserError.of(
        [
            replace(each, place=each.place.removeprefix("--"), next_step=each.next_step.replace("--", ""))
            for each in error.mistakes
        ]
    )

"""A tracker that writes over an MLflow server, where its database cannot be reached.

MLflow's REST API cannot create several runs at once: a run costs a few requests, and several are sent at a time. Rows
are sent in batches up to MLflow's limits, whole steps in one request, so that a killed process never leaves half a
step. The status of a run is set last, so that a FINISHED run is complete.

The REST API lacks three operations that SQL has:

- A metric cannot be deleted. An observation that no longer holds is overlaid by a newer row (NaN if it became
  censored). An unfinished trial with rows that begins again gets another run, and the old one moves to MLflow's trash.
- A run cannot be created under a given id. A creation that the network repeats leaves a second, empty run.
- A write cannot depend on a lease. What is checked instead, and its limits: `lease_tag.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jobs.job import Curves
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.tracking import layout
from orchestrator.tracking.address import shown
from orchestrator.tracking.artifacts import delete_from, upload, writing
from orchestrator.tracking.base import RecordTracker, SweepRecord, TrialRow, begun, check_metric_names
from orchestrator.tracking.connection import deleted_experiment, refused_experiment
from orchestrator.tracking.http_api import HISTORY_RUNS, RUNS_BY_ID, MlflowApi, ServerError, ServerRun
from orchestrator.tracking.known_runs import KnownRun, KnownRuns
from orchestrator.tracking.lease import Process, lease_s, take
from orchestrator.tracking.lease_tag import HeldTag, HttpTag
from orchestrator.tracking.metric_block import MetricRow
from orchestrator.tracking.rows import RowBuffer, later, new_rows, note
from orchestrator.tracking.run_table import OpenRun, align, chunked, series_of
from orchestrator.trial import Trial

REVISION = "phasefront.revision"
"""How often the observations of a run have been written: each time with a newer timestamp, so MLflow shows the last."""


class HttpTracker(RecordTracker):
    """The record behind an MLflow server; arguments as for `DatabaseTracker`."""

    def __init__(self, uri: str, *, experiment: str, artifacts: str | None = None, place: str = "tracking.uri") -> None:
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._api = MlflowApi(uri, place=place)
        self._experiment_id: str | None = None
        self._known: KnownRuns | None = None
        """Of every trial of the experiment, once they have been read."""
        self._parent = OpenRun(run_id="", status="", start_time=0)
        self._open: dict[str, OpenRun] = {}
        self._tag: HttpTag | None = None
        """The same in each attempt to take the lease."""
        self._lease: HeldTag | None = None

    @property
    def experiment_id(self) -> str | None:
        """At most one request."""
        return self._find_experiment()

    @property
    def sweep_start_ms(self) -> int:
        return self._parent.start_time

    def _open_parent(self, sweep: SweepRecord, running: bool) -> str:
        """The experiment is created if it does not exist."""
        experiment = self._find_experiment() or self._create_experiment()
        if running:
            self._take(experiment)
        tags = layout.sweep_tags(sweep, running=running)
        existing = next(self._api.search(experiment, _is_sweep(sweep.sweep_id)), None)
        if existing is not None:
            self._parent = existing.opened()
            self._api.log(self._parent.run_id, tags=tags)
            if running:
                self._api.update(self._parent.run_id, Status.RUNNING)
        else:
            self._parent = self._create_run(experiment, sweep.name, tags)
            self._describe(layout.description(sweep, experiment, self._parent.run_id))
            if not running:
                self._api.update(self._parent.run_id, Status.FINISHED, self._parent.start_time)
        return self._parent.run_id

    def _take(self, experiment: str) -> None:
        if self._lease is not None:
            return
        self._tag = tag = self._tag or HttpTag(self._api, experiment)
        lasts_s, place = lease_s(), shown(self._uri)
        take(tag, Process.this(), experiment=self._experiment, place=place, lasts_s=lasts_s, say=self.say)
        self._lease = HeldTag(tag, experiment=self._experiment, lasts_s=lasts_s)
        self._api.before_write = self._lease.check

    def find_sweep(self, sweep_id: str) -> str | None:
        """One search."""
        experiment = self._find_experiment()
        runs = self._api.search(experiment, _is_sweep(sweep_id)) if experiment else iter(())
        return next((run.run_id for run in runs), None)

    def trials_of(self, sweep_id: str) -> list[str]:
        """One search, and what has changed."""
        parent = self.find_sweep(sweep_id)
        return [trial for trial, run in self._changed().items() if run.parent == parent]

    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        """Pages of 5,000 runs for many trials, otherwise 500 a request."""
        wanted = list(dict.fromkeys(trial_ids))
        if self._known is None or len(wanted) > 4 * RUNS_BY_ID:
            runs = self._scan()
            return {trial: _recorded(runs[trial]) for trial in wanted if trial in runs}
        return {trial: _recorded(run) for trial, run in self._runs(wanted).items()}

    def statuses(self, trial_ids: Iterable[str]) -> dict[str, Status]:
        """What has changed, however many trials are asked for."""
        known = self._changed()
        return {trial: layout.status_of(known[trial].status) for trial in trial_ids if trial in known}

    def rows(self, trial_ids: Iterable[str], *, settings: bool = True) -> Iterator[TrialRow]:
        left_out = () if settings else layout.SETTING_TAGS
        for chunk in chunked(trial_ids, 4 * RUNS_BY_ID):
            for trial, run in self._runs(chunk).items():
                tags = {key: value for key, value in run.tags.items() if key not in left_out}
                yield layout.trial_row(trial, run.run_id, tags, _recorded(run))

    def curves(self, trial_ids: Iterable[str], metrics: Sequence[str] | None = None) -> Iterator[tuple[str, Curves]]:
        """One request for a metric of 100 runs."""
        for chunk in chunked(trial_ids, HISTORY_RUNS):
            runs = self._runs(chunk)
            recorded = {name for run in runs.values() for name in run.curves}
            names = sorted(recorded if metrics is None else recorded.intersection(metrics))
            start = {run.run_id: run.start_time for run in runs.values()}
            points: dict[str, dict[str, list[tuple[int, float]]]] = {run: {} for run in start}
            histories = self._api.each(partial(self._api.histories, list(start)), names)
            for metric, history in zip(names, histories, strict=True):
                for row in history:
                    if int(row["timestamp"]) >= start[row["run_id"]]:
                        point = (int(row.get("step", 0)), float(row["value"]))
                        points[row["run_id"]].setdefault(metric, []).append(point)
            for trial, run in runs.items():
                if points[run.run_id]:
                    yield trial, align({name: series_of(of) for name, of in points[run.run_id].items()})

    def begin(self, trials: Sequence[Trial]) -> None:
        """Two requests for a new trial, several trials at a time."""
        sweep = self._driven()
        done = {trial for trial, run in self._open.items() if run.status == "FINISHED"}
        wanted = {trial.id: trial for trial in trials if trial.id not in done}
        existing = self._runs(list(wanted))

        def begin_one(trial: Trial) -> tuple[str, OpenRun]:
            run = existing.get(trial.id)
            if run is not None and run.status == "FINISHED":
                return trial.id, run.opened()
            if run is not None and run.through_step < 0:
                return trial.id, self._begin_again(run, trial)
            if run is not None:
                self._api.post("runs/delete", {"run_id": run.run_id})
            tags = layout.trial_tags(trial, sweep, self._parent.run_id)
            new = self._create_run(str(self._experiment_id), tags[0][1], tags)
            axes = new.axis_rows(layout.axis_metrics(trial, sweep.axes))
            self._api.log(new.run_id, metrics=axes, params=layout.params(trial))
            return trial.id, new

        for trial, run in self._api.each(begin_one, wanted.values()):
            self._open[trial] = run
            if self._known is not None:
                self._known.of_trial[trial] = KnownRun(run.run_id, run.status, self._parent.run_id)

    def _begin_again(self, run: ServerRun, trial: Trial) -> OpenRun:
        """Reopen a run without rows."""
        self._delete_tags(run, set(layout.RESULT_TAGS) - {layout.OBSERVATIONS})
        # Params and axes again: the first attempt may have ended between its two requests.
        axes = run.opened().axis_rows(layout.axis_metrics(trial, self._driven().axes))
        parent = [(layout.PARENT, self._parent.run_id)]
        self._api.log(run.run_id, metrics=axes, params=layout.params(trial), tags=parent)
        if layout.OBSERVATIONS in run.tags:
            self._retract(run, keep=())
            self._delete_tags(run, {layout.OBSERVATIONS})
        self._api.update(run.run_id, Status.RUNNING)
        opened = run.opened()
        opened.status = "RUNNING"
        return opened

    def _delete_tags(self, run: ServerRun, keys: Iterable[str]) -> None:
        for key in run.tags.keys() & set(keys):
            self._api.post("runs/delete-tag", {"run_id": run.run_id, "key": key})

    def record(self, rows: CurveRows) -> None:
        """Whole steps of one trial in one request, up to MLflow's limits."""
        self._driven()
        new = new_rows(rows, self._open)
        if new is None:
            return
        rows, runs = new
        buffer = RowBuffer()
        buffer.add(rows, runs)
        of_run: dict[str, list[MetricRow]] = {}
        for row in zip(*buffer.block().columns(), strict=True):
            of_run.setdefault(row[5], []).append(row)
        self._api.each(lambda item: self._api.log_rows(*item), of_run.items())
        note(rows, runs)

    def end(self, results: Sequence[TrialResult]) -> None:
        """Observations and phase in one request, then the status in another."""
        self._write_results(results, self._driven().thresholds, ended=True)
        for result in results:
            self._open.pop(result.trial_id, None)

    def complete(self, trials: Sequence[Trial]) -> int:
        """One request for a trial that lacks them, several at a time."""
        axes, completed = self._opened().axes, 0
        for chunk in chunked(trials, 4 * RUNS_BY_ID) if axes else ():
            runs, missing = self._runs([trial.id for trial in chunk]), []
            for trial in chunk:
                if (run := runs.get(trial.id)) is not None:
                    rows = run.opened().axis_rows(layout.axis_metrics(trial, axes))
                    rows = [row for row in rows if row[0] not in run.newest]
                    missing += [(run.run_id, rows)] if rows else []
            self._api.each(lambda item: self._api.log_rows(*item), missing)
            completed += len(missing)
        return completed

    def relabel(self, results: Sequence[TrialResult]) -> None:
        """Status and error stay."""
        self._write_results(results, self._opened().thresholds, ended=False)

    def _write_results(self, results: Sequence[TrialResult], thresholds: str, *, ended: bool) -> None:
        last = {result.trial_id: result for result in results}
        existing = self._runs([trial for trial in last if trial not in self._open or not self._open[trial].fresh])

        def write(result: TrialResult) -> None:
            known = existing.get(result.trial_id)
            run = begun(self._open, result.trial_id) if known is None else known.opened()
            revision = 0
            tags = dict(layout.result_tags(result, thresholds))
            observed = layout.observed_metrics(result.observations)
            if known is not None:
                revision = _next_revision(known)
                self._retract(known, keep=[name for name, _ in observed])
                keep = () if ended else layout.KEPT_TAGS
                self._delete_tags(known, set(layout.RESULT_TAGS) - tags.keys() - set(keep))
            if not ended:
                tags = {key: text for key, text in tags.items() if key not in layout.KEPT_TAGS}
            metrics = _revised(run.observed_rows(observed), revision)
            self._api.log(run.run_id, metrics=metrics, tags=[*tags.items(), (REVISION, str(revision))])
            if ended:
                self._api.update(run.run_id, Status(result.status), layout.now_ms())

        self._api.each(write, last.values())

    def _retract(self, run: ServerRun, *, keep: Sequence[str]) -> None:
        """Overlay the observations that are not in `keep` by NaN."""
        revision = _next_revision(run)
        observed = layout.observed_metrics(layout.decode_observations(run.tags.get(layout.OBSERVATIONS)) or {})
        gone = [(name, float("nan")) for name, _ in observed if name not in keep]
        if gone:
            rows = _revised(run.opened().observed_rows(gone), revision)
            self._api.log(run.run_id, metrics=rows, tags=[(REVISION, str(revision))])

    def reconcile(self) -> int:
        """One search, then one request for each orphan."""
        self._driven()
        of_sweep = f"tags.`{layout.PARENT}` = '{self._parent.run_id}'"
        running = self._api.search(str(self._experiment_id), f"{of_sweep} AND attributes.status = 'RUNNING'")
        orphans = [run for run in running if layout.TRIAL_ID in run.tags]
        now = layout.now_ms()
        self._api.each(lambda run: self._api.update(run.run_id, Status.KILLED, now), orphans)
        for run in orphans:
            self._open.pop(run.tags[layout.TRIAL_ID], None)
        return len(orphans)

    def attach(self, files: Mapping[str, Path]) -> None:
        """By MLflow's own client: through the server, or straight to the store that it names."""
        self._opened()
        self._check_lease()
        from mlflow import MlflowClient

        log_artifact = partial(MlflowClient(tracking_uri=self._uri).log_artifact, self._parent.run_id)
        where = f"where the server keeps those of experiment {self._experiment!r}"
        with writing(where, mend="start the server with --artifacts-destination"):
            upload(files, log_artifact)

    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        """By MLflow's artifact repository for the run: through the server, or straight to the store that it names."""
        self._opened()
        self._check_lease()
        info = self._api.get("runs/get", run_id=self._parent.run_id)["run"]["info"]
        return delete_from(info["artifact_uri"], paths, tracking_uri=self._uri)

    def describe(self, text: str) -> None:
        self._opened()
        self._describe(text)

    def _describe(self, text: str) -> None:
        self._api.log(self._parent.run_id, tags=[(layout.DESCRIPTION, text[: layout.LONGEST_TAG])])

    def _annotate(self, metrics: Mapping[str, float], status: Status | None) -> None:
        """Earlier values are overlaid: by rows with a later time, even if the clock was set back."""
        newest = self._newest()
        curves = self._curves(newest)
        now = max([layout.now_ms(), *(timestamp + 1 for name, (timestamp, _) in newest.items() if name not in curves)])
        given = {name: float(value) for name, value in metrics.items() if name not in curves}
        rows = [self._parent.row(name, value, now, 0) for name, value in given.items()]
        self._api.log_rows(self._parent.run_id, rows)
        if status is not None:
            self._api.update(self._parent.run_id, status, layout.now_ms())

    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        """One request reads, and one writes up to 1,000 points; a value that `annotate` wrote is overlaid."""
        self._opened()
        check_metric_names([name])
        new = later(points, self._curves(self._newest()).get(name, -1))
        self._api.log_rows(self._parent.run_id, self._parent.curve_rows(name, new))

    def _newest(self) -> dict[str, tuple[int, int]]:
        """Metric of the parent run -> (timestamp, step) of its latest row."""
        return ServerRun.parse(self._api.get("runs/get", run_id=self._parent.run_id)["run"]).newest

    def _curves(self, newest: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """The last step of each metric of the parent run that is a curve, which its timestamp shows."""
        start = self._parent.start_time
        return {name: step for name, (timestamp, step) in newest.items() if timestamp == start + step}

    def reconnect(self) -> None:
        """Runs are looked up again: one may have been created although the answer was lost."""
        self._check_open()
        self._known = None
        self._api.experiment(self._experiment)

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def settle(self) -> None:
        if not self._closed:
            self._check_lease()

    def close(self) -> None:
        self._closed = True
        if self._lease is not None:
            self._lease.close()
            self._lease = None
        self._api.close()

    def _runs(self, trials: Sequence[str]) -> dict[str, ServerRun]:
        """The runs of these trials, in their order; a reader looks for those that a driver has begun since."""
        if not trials or self._find_experiment() is None:
            return {}
        up_to_date = self._known is None or self._running
        if self._known is None:
            self._scan()
        runs = self._known_runs(trials)
        missing = [trial for trial in trials if trial not in runs]
        if missing and not up_to_date:
            self._changed()
            runs |= self._known_runs(missing)
        return {trial: runs[trial] for trial in dict.fromkeys(trials) if trial in runs}

    def _known_runs(self, trials: Sequence[str]) -> dict[str, ServerRun]:
        known = self._known.of_trial if self._known is not None else {}
        of_trial = {trial: known[trial].run_id for trial in dict.fromkeys(trials) if trial in known}
        runs = self._api.runs(str(self._experiment_id), list(of_trial.values()))
        return {trial: runs[run] for trial, run in of_trial.items() if run in runs}

    def _changed(self) -> Mapping[str, KnownRun]:
        """Trial id -> its run, after reading what has changed."""
        if self._known is None:
            self._scan()
        else:
            self._known.refresh()
        return self._known.of_trial if self._known is not None else {}

    def _scan(self) -> dict[str, ServerRun]:
        """The runs of all trials in the experiment."""
        experiment = self._find_experiment()
        if experiment is None:
            return {}
        known = KnownRuns(self._api, experiment)
        runs = known.scan()
        self._known = known  # only now: the scan may have failed half-way
        return runs

    def _create_run(self, experiment: str, name: str, tags: Sequence[tuple[str, str]]) -> OpenRun:
        now = layout.now_ms()
        body: dict[str, Any] = {"experiment_id": experiment, "start_time": now, "run_name": name}
        body |= {"user_id": layout.user(), "tags": [{"key": key, "value": value} for key, value in tags]}
        run_id = self._api.post("runs/create", body)["run"]["info"]["run_id"]
        return OpenRun(run_id=run_id, status="RUNNING", start_time=now, fresh=True)

    def _find_experiment(self) -> str | None:
        self._check_open()
        if self._experiment_id is None:
            experiment = self._api.experiment(self._experiment)
            if experiment is None:
                return None
            if experiment["lifecycle_stage"] != "active":
                raise deleted_experiment(self._experiment, int(experiment["experiment_id"]))
            self._experiment_id = experiment["experiment_id"]
        return self._experiment_id

    def _create_experiment(self) -> str:
        body = {"name": self._experiment} | ({"artifact_location": self._artifacts} if self._artifacts else {})
        try:
            self._experiment_id = self._api.post("experiments/create", body)["experiment_id"]
        except ServerError as error:
            if error.code == "RESOURCE_ALREADY_EXISTS":
                return str(self._find_experiment())
            if error.code == "INVALID_PARAMETER_VALUE":
                raise refused_experiment(str(error)) from error
            raise
        return str(self._experiment_id)


def _is_sweep(sweep_id: str) -> str:
    return f"tags.`{layout.SWEEP_ID}` = '{sweep_id}'"


def _recorded(run: ServerRun) -> Recorded:
    observations = layout.decode_observations(run.tags.get(layout.OBSERVATIONS))
    return layout.recorded(run.status, run.tags, run.through_step, observations)


def _next_revision(run: ServerRun) -> int:
    return int(run.tags.get(REVISION, "0")) + 1


def _revised(rows: Iterable[MetricRow], revision: int) -> list[MetricRow]:
    """Rows of observations, newer than those of the revision before."""
    later_ms = min(revision, layout.OBSERVED_BEFORE_MS - 1)
    return [
        (name, value, timestamp + later_ms, step, is_nan, run) for name, value, timestamp, step, is_nan, run in rows
    ]

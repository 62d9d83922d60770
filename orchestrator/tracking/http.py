"""A tracker over an MLflow server's address, for where its database cannot be reached.

MLflow's REST interface knows no bulk creation of runs: one run costs a few requests, several of them
are under way at a time. Rows go in batches up to MLflow's limits, whole steps in one request, so that
a kill never tears a step; a run's status is set last, so that a FINISHED run has everything.

Three things that SQL can do have no request. A metric cannot be deleted: an observation that no longer
holds gets a newer row (NaN where it became censored), and an unfinished trial with rows that is begun
again gets another run, the old one being deleted as MLflow does it (it is kept in the trash). A created
run has the server's id, so a creation that the network repeats leaves a second, empty run. And nothing
can be locked: that two drivers do not run into the same experiment is the user's business.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jobs.job import Curves
from orchestrator.errors import UserError
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.tracking import layout
from orchestrator.tracking.artifacts import delete_from, upload
from orchestrator.tracking.base import SweepRecord, Tracker, TrialRow
from orchestrator.tracking.connection import deleted_experiment
from orchestrator.tracking.http_api import (
    BYTES_A_REQUEST,
    HISTORY_RUNS,
    METRICS_A_REQUEST,
    RUNS_BY_ID,
    MlflowApi,
    ServerError,
    ServerRun,
)
from orchestrator.tracking.http_rows import json_length, revised, whole_steps
from orchestrator.tracking.metric_block import MetricRow
from orchestrator.tracking.rows import RowBuffer, new_rows, observed_rows
from orchestrator.tracking.run_table import OpenRun, align, chunked, curve_series
from orchestrator.tracking.traces import later, traced_rows
from orchestrator.trial import Trial

REVISION = "phasefront.revision"
"""How often a run's observations have been written: each time with a newer timestamp, so that MLflow shows the last."""

_ROW_BYTES = 120
"""Of a metric in a request, its name apart."""


class HttpTracker(Tracker):
    """The record behind an MLflow server; arguments as `DatabaseTracker`'s."""

    def __init__(self, uri: str, *, experiment: str, artifacts: str | None = None, place: str = "tracking.uri") -> None:
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._api = MlflowApi(uri, place=place)
        self._experiment_id: str | None = None
        self._known: dict[str, str] | None = None
        """trial id -> run id of every trial of the experiment."""
        self._sweep: SweepRecord | None = None
        self._running = False
        self._parent = ""
        self._parent_start = 0
        self._open: dict[str, OpenRun] = {}
        self._closed = False

    @property
    def experiment_id(self) -> str | None:
        """At most one request."""
        return self._find_experiment()

    def open_sweep(self, sweep: SweepRecord, *, running: bool = True) -> str:
        """Make the experiment where there is none, and the parent run; its run id. Nothing is locked."""
        experiment = self._find_experiment() or self._create_experiment()
        tags = layout.sweep_tags(sweep)
        found = list(self._api.search(experiment, _is_sweep(sweep.sweep_id)))
        if found:
            self._parent, self._parent_start = found[0].run_id, found[0].start_time
            self._api.log(self._parent, tags=tags)
            if running:
                self._api.post("runs/update", {"run_id": self._parent, "status": "RUNNING"})
        else:
            self._parent, self._parent_start = self._create_run(experiment, sweep.name, tags)
            if not running:
                ended = {"run_id": self._parent, "status": "FINISHED", "end_time": self._parent_start}
                self._api.post("runs/update", ended)
        self._running = running
        self._sweep = sweep
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "sweep.yaml")
            file.write_text(sweep.resolved_yaml)
            self.attach({"sweep.yaml": file})
        return self._parent

    def find_sweep(self, sweep_id: str) -> str | None:
        """One search."""
        experiment = self._find_experiment()
        found = self._api.search(experiment, _is_sweep(sweep_id)) if experiment else iter(())
        return next((run.run_id for run in found), None)

    def trials_of(self, sweep_id: str) -> list[str]:
        """One search."""
        parent, experiment = self.find_sweep(sweep_id), self._find_experiment()
        if parent is None or experiment is None:
            return []
        found = self._api.search(experiment, f"tags.`{layout.PARENT}` = '{parent}'")
        return list(dict.fromkeys(run.tags[layout.TRIAL_ID] for run in found if layout.TRIAL_ID in run.tags))

    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        """Pages of 5,000 runs where many are asked for, else 500 a request."""
        wanted = list(dict.fromkeys(trial_ids))
        if self._known is None or len(wanted) > 4 * RUNS_BY_ID:
            runs = self._scan()
            return {trial: _recorded(runs[trial]) for trial in wanted if trial in runs}
        return {trial: _recorded(run) for trial, run in self._runs(wanted).items()}

    def rows(self, trial_ids: Iterable[str]) -> Iterator[TrialRow]:
        """In the order of `trial_ids`."""
        for chunk in chunked(trial_ids, 4 * RUNS_BY_ID):
            for trial, run in self._runs(chunk).items():
                yield TrialRow(
                    trial_id=trial,
                    run_id=run.run_id,
                    params=layout.decode_params(run.tags[layout.PARAMS]),
                    replicate=int(run.tags[layout.REPLICATE]),
                    recorded=_recorded(run),
                    error=run.tags.get(layout.ERROR),
                )

    def curves(self, trial_ids: Iterable[str]) -> Iterator[tuple[str, Curves]]:
        """In the order of `trial_ids`; one request for a metric of 100 runs."""
        for chunk in chunked(trial_ids, HISTORY_RUNS):
            runs = self._runs(chunk)
            metrics = sorted({name for run in runs.values() for name in run.newest})
            ids = [run.run_id for run in runs.values()]
            rows: dict[str, dict[str, list[tuple[int, float]]]] = {run: {} for run in ids}
            start = {run.run_id: run.start_time for run in runs.values()}
            histories = self._api.each(partial(self._api.histories, ids), metrics)
            for metric, found in zip(metrics, histories, strict=True):
                for row in found:
                    if int(row["timestamp"]) >= start[row["run_id"]]:
                        point = (int(row.get("step", 0)), float(row["value"]))
                        rows[row["run_id"]].setdefault(metric, []).append(point)
            for trial, run in runs.items():
                if rows[run.run_id]:
                    series = {}
                    for metric, points in rows[run.run_id].items():
                        steps, values = zip(*sorted(points), strict=True)
                        series[metric] = curve_series(steps, values, [False] * len(values))
                    yield trial, align(series)

    def begin(self, trials: Sequence[Trial]) -> None:
        """Two requests for a new trial, side by side with other trials'."""
        sweep = self._driven()
        done = {trial for trial, run in self._open.items() if run.status == "FINISHED"}
        wanted = {trial.id: trial for trial in trials if trial.id not in done}
        found = self._runs(list(wanted))

        def begin_one(trial: Trial) -> tuple[str, OpenRun]:
            run = found.get(trial.id)
            if run is not None and run.status != "FINISHED" and run.through_step >= 0:
                self._api.post("runs/delete", {"run_id": run.run_id})
                run = None
            if run is None:
                tags = layout.trial_tags(trial, sweep, self._parent)
                made, start = self._create_run(str(self._experiment_id), tags[0][1], tags)
                self._api.log(made, params=layout.params(trial))
                return trial.id, OpenRun(run_id=made, status="RUNNING", start_time=start, fresh=True)
            opened = run.opened()
            if run.status != "FINISHED":
                for key in layout.RESULT_TAGS:
                    if key in run.tags and key != layout.OBSERVATIONS:
                        self._api.post("runs/delete-tag", {"run_id": run.run_id, "key": key})
                # Params again: the first attempt may have ended between its two requests.
                self._api.log(run.run_id, params=layout.params(trial), tags=[(layout.PARENT, self._parent)])
                if layout.OBSERVATIONS in run.tags:
                    self._retract(run, keep=())
                    self._api.post("runs/delete-tag", {"run_id": run.run_id, "key": layout.OBSERVATIONS})
                self._api.post("runs/update", {"run_id": run.run_id, "status": "RUNNING"})
                opened.status = "RUNNING"
            return trial.id, opened

        for trial, run in self._api.each(begin_one, wanted.values()):
            self._open[trial] = run
            self._known_runs()[trial] = run.run_id

    def record(self, rows: CurveRows) -> None:
        """Whole steps of one trial in one request, up to MLflow's limits."""
        self._driven()
        layout.check_metric_names(rows.metrics)
        runs = [self._begun(trial) for trial in rows.trial_ids]
        new = new_rows(rows, runs)
        if new is None:
            return
        buffer = RowBuffer()
        buffer.add(new, runs)
        of_run: dict[str, list[MetricRow]] = {}
        for row in zip(*buffer.block().columns(), strict=True):
            of_run.setdefault(row[5], []).append(row)
        at_most = min(METRICS_A_REQUEST, BYTES_A_REQUEST // (_ROW_BYTES + max(map(json_length, rows.metrics))))

        def log_run(item: tuple[str, list[MetricRow]]) -> None:
            for batch in whole_steps(item[1], at_most):
                self._api.log(item[0], metrics=batch)

        self._api.each(log_run, of_run.items())
        for position, step in zip(new.trial.tolist(), new.step.tolist(), strict=True):
            runs[position].through_step = max(runs[position].through_step, step)

    def end(self, results: Sequence[TrialResult]) -> None:
        """Observations and phase in one request, then the status in another."""
        self._driven()
        self._conclude(results, ended=True)
        for result in results:
            self._open.pop(result.trial_id, None)

    def relabel(self, results: Sequence[TrialResult]) -> None:
        """Status and error stay."""
        self._conclude(results, ended=False)

    def _conclude(self, results: Sequence[TrialResult], *, ended: bool) -> None:
        sweep = self._opened()
        last = {result.trial_id: result for result in results}
        found = self._runs([trial for trial in last if trial not in self._open or not self._open[trial].fresh])

        def conclude(result: TrialResult) -> None:
            run, known = self._open.get(result.trial_id), found.get(result.trial_id)
            if known is not None:
                run = known.opened()
            if run is None:
                raise LookupError(f"trial {result.trial_id} was never begun")
            revision = 0
            tags = dict(layout.result_tags(result, sweep.thresholds))
            observed = layout.observed_metrics(result.observations)
            if known is not None:
                revision = int(known.tags.get(REVISION, "0")) + 1
                self._retract(known, keep=[name for name, _ in observed], revision=revision)
                keep = () if ended else layout.KEPT_TAGS
                for key in set(layout.RESULT_TAGS) & known.tags.keys() - tags.keys() - set(keep):
                    self._api.post("runs/delete-tag", {"run_id": run.run_id, "key": key})
            if not ended:
                tags = {key: text for key, text in tags.items() if key not in layout.KEPT_TAGS}
            metrics = [revised(row, revision) for row in observed_rows(run, observed)]
            self._api.log(run.run_id, metrics=metrics, tags=[*tags.items(), (REVISION, str(revision))])
            if ended:
                status = Status(result.status).value
                self._api.post("runs/update", {"run_id": run.run_id, "status": status, "end_time": _now_ms()})

        self._api.each(conclude, last.values())

    def _retract(self, run: ServerRun, *, keep: Sequence[str], revision: int | None = None) -> None:
        """Overlay the observations that no longer hold by NaN."""
        if revision is None:
            revision = int(run.tags.get(REVISION, "0")) + 1
        observed = layout.observed_metrics(layout.decode_observations(run.tags.get(layout.OBSERVATIONS)))
        gone = [(name, float("nan")) for name, _ in observed if name not in keep]
        if gone:
            rows = [revised(row, revision) for row in observed_rows(run.opened(), gone)]
            self._api.log(run.run_id, metrics=rows, tags=[(REVISION, str(revision))])

    def reconcile(self) -> int:
        """One search, then one request for each orphan."""
        self._driven()
        condition = f"tags.`{layout.PARENT}` = '{self._parent}' AND attributes.status = 'RUNNING'"
        orphans = {
            run.tags[layout.TRIAL_ID]: run.run_id
            for run in self._api.search(str(self._experiment_id), condition)
            if layout.TRIAL_ID in run.tags
        }
        now = _now_ms()
        self._api.each(
            lambda run: self._api.post("runs/update", {"run_id": run, "status": "KILLED", "end_time": now}),
            orphans.values(),
        )
        for trial in orphans:
            self._open.pop(trial, None)
        return len(orphans)

    def attach(self, files: Mapping[str, Path]) -> None:
        """By MLflow's own client: through the server, or straight to the store that it names."""
        self._opened()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=self._uri)
        try:
            upload(files, lambda file, folder: client.log_artifact(self._parent, file, folder))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"artifacts cannot be written where the server keeps those of experiment {self._experiment!r}: {error}",
                place="tracking.artifacts",
                next_step="start the server with --artifacts-destination, or take another tracking.experiment "
                "with tracking.artifacts set to a place that can be written from here",
            ) from error

    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        """By MLflow's artifact repository for the run: through the server, or straight to the store that it names."""
        self._opened()
        info = self._api.get("runs/get", run_id=self._parent)["run"]["info"]
        return delete_from(info["artifact_uri"], paths, tracking_uri=self._uri)

    def annotate(self, metrics: Mapping[str, float]) -> None:
        """Earlier metrics of these names are overlaid."""
        self._opened()
        layout.check_metric_names(metrics)
        now, curves = _now_ms(), self._traced()
        rows = []
        for name, value in metrics.items():
            if name in curves:
                continue
            number, is_nan = layout.as_stored(float(value))
            rows.append((name, number, now, 0, is_nan, self._parent))
        for batch in chunked(rows, METRICS_A_REQUEST):
            self._api.log(self._parent, metrics=batch)

    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        """One request for what is there, and one for up to 1,000 points; what `annotate` wrote is overlaid."""
        self._opened()
        layout.check_metric_names([name])
        parent = OpenRun(run_id=self._parent, status="", start_time=self._parent_start)
        new = later(points, self._traced().get(name, -1))
        for batch in chunked(traced_rows(parent, name, new), METRICS_A_REQUEST):
            self._api.log(self._parent, metrics=batch)

    def _traced(self) -> dict[str, int]:
        """The last step of each metric of the parent run that is a curve: by the timestamps that `trace` gives."""
        newest = ServerRun.parse(self._api.get("runs/get", run_id=self._parent)["run"]).newest
        return {name: step for name, (timestamp, step) in newest.items() if timestamp == self._parent_start + step}

    def end_sweep(self, status: str, metrics: Mapping[str, float]) -> None:
        """The metrics, then the status."""
        self._driven()
        self.annotate(metrics)
        ended = {"run_id": self._parent, "status": Status(status).value, "end_time": _now_ms()}
        self._api.post("runs/update", ended)

    def close(self) -> None:
        """End the connections."""
        self._closed = True
        self._api.close()

    def _runs(self, trials: Sequence[str]) -> dict[str, ServerRun]:
        """The runs of these trials, in their order."""
        if not trials or self._find_experiment() is None:
            return {}
        known = self._known_runs()
        of_trial = {trial: known[trial] for trial in dict.fromkeys(trials) if trial in known}
        found = self._api.runs(str(self._experiment_id), list(of_trial.values()))
        return {trial: found[run] for trial, run in of_trial.items() if run in found}

    def _known_runs(self) -> dict[str, str]:
        if self._known is None:
            self._scan()
        return self._known if self._known is not None else {}

    def _scan(self) -> dict[str, ServerRun]:
        """All runs of trials in the experiment; where a trial has several, a finished one."""
        experiment = self._find_experiment()
        runs: dict[str, ServerRun] = {}
        for run in self._api.search(experiment, f"tags.`{layout.TRIAL_ID}` LIKE '%'") if experiment else ():
            trial = run.tags[layout.TRIAL_ID]
            if trial not in runs or run.status == "FINISHED":
                runs[trial] = run
        if experiment:
            self._known = {trial: run.run_id for trial, run in runs.items()}
        return runs

    def _create_run(self, experiment: str, name: str, tags: Sequence[tuple[str, str]]) -> tuple[str, int]:
        now = _now_ms()
        body: dict[str, Any] = {
            "experiment_id": experiment,
            "start_time": now,
            "run_name": name,
            "user_id": layout.user(),
            "tags": [{"key": key, "value": value} for key, value in tags],
        }
        return self._api.post("runs/create", body)["run"]["info"]["run_id"], now

    def _find_experiment(self) -> str | None:
        if self._closed:
            raise RuntimeError("the tracker is closed")
        if self._experiment_id is None:
            found = self._api.experiment(self._experiment)
            if found is None:
                return None
            if found["lifecycle_stage"] != "active":
                raise deleted_experiment(self._experiment, int(found["experiment_id"]))
            self._experiment_id = found["experiment_id"]
        return self._experiment_id

    def _create_experiment(self) -> str:
        body = {"name": self._experiment}
        if self._artifacts:
            body["artifact_location"] = self._artifacts
        try:
            self._experiment_id = self._api.post("experiments/create", body)["experiment_id"]
        except ServerError as error:
            if error.code == "RESOURCE_ALREADY_EXISTS":
                return str(self._find_experiment())
            if error.code == "INVALID_PARAMETER_VALUE":
                raise UserError(f"MLflow takes no experiment like this: {error}", place="tracking") from error
            raise
        return str(self._experiment_id)

    def _opened(self) -> SweepRecord:
        if self._closed:
            raise RuntimeError("the tracker is closed")
        if self._sweep is None:
            raise RuntimeError("open_sweep comes before anything is written")
        return self._sweep

    def _driven(self) -> SweepRecord:
        sweep = self._opened()
        if not self._running:
            raise RuntimeError("open_sweep(..., running=True) comes before trials are run")
        return sweep

    def _begun(self, trial: str) -> OpenRun:
        try:
            return self._open[trial]
        except KeyError:
            raise LookupError(f"trial {trial} was never begun") from None


def _is_sweep(sweep_id: str) -> str:
    return f"tags.`{layout.SWEEP_ID}` = '{sweep_id}'"


def _recorded(run: ServerRun) -> Recorded:
    return layout.recorded(run.status, run.tags, run.through_step)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

"""Summaries of runs over MLflow's REST API: pages of runs, and one request for a metric of 100 runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from orchestrator.outages import Patience
from orchestrator.tracking import layout
from orchestrator.tracking.facts import CurveFacts, Opened, RecordReader, RunFacts
from orchestrator.tracking.http_api import HISTORY_RUNS, MlflowApi, ServerRun
from orchestrator.tracking.lease import Lease
from orchestrator.tracking.lease_tag import KEY, Tag
from orchestrator.tracking.run_table import chunked


class HttpReader(RecordReader):
    """The runs of an experiment behind an MLflow server; arguments as for `open_reader`."""

    def __init__(self, uri: str, *, experiment: str, place: str, patience: Patience) -> None:
        super().__init__(patience)
        self._api, self._experiment = MlflowApi(uri, place=place), experiment

    def _experiment_id(self) -> str | None:
        experiment = self._patience.call(lambda: self._api.experiment(self._experiment))
        is_active = experiment is not None and experiment["lifecycle_stage"] == "active"
        return str(experiment["experiment_id"]) if experiment is not None and is_active else None

    def lease(self) -> Lease | None:
        experiment_id = self._experiment_id()
        if experiment_id is None:
            return None
        tag = Tag.parse(self._patience.call(lambda: self._api.experiment_tags(experiment_id)).get(KEY))
        return None if tag is None else tag.lease()

    def opened(self, run_id: str) -> Opened:
        experiment_id = self._experiment_id()
        if experiment_id is None:
            return Opened()
        runs = self._patience.call(lambda: self._api.runs(experiment_id, [run_id]))
        return Opened.of(runs[run_id].tags) if run_id in runs else Opened()

    def runs(self) -> Iterator[RunFacts]:
        experiment_id = self._experiment_id()
        token: str | None = "" if experiment_id is not None else None
        while experiment_id is not None and token is not None:
            page, token = self._patience.call(partial(self._api.page, experiment_id, "", token))
            for some in chunked(page, HISTORY_RUNS):
                yield from self._patience.call(partial(self._facts, some))

    def _facts(self, page: Sequence[ServerRun]) -> list[RunFacts]:
        metrics = sorted({name for run in page for name in run.newest})
        histories = self._api.each(partial(self._api.histories, [run.run_id for run in page]), metrics)
        rows: dict[str, dict[str, list[tuple[int, int, float]]]] = {run.run_id: {} for run in page}
        for metric, history in zip(metrics, histories, strict=True):
            for row in history:
                point = (int(row.get("step", 0)), int(row["timestamp"]), float(row["value"]))
                rows[row["run_id"]].setdefault(metric, []).append(point)
        return [_summary(run, rows[run.run_id]) for run in page]

    def close(self) -> None:
        self._api.close()


def _summary(run: ServerRun, rows: dict[str, list[tuple[int, int, float]]]) -> RunFacts:
    start = run.start_time
    curves, observed, axes = {}, {}, {}
    latest = {metric: max(points, key=lambda point: point[:2]) for metric, points in rows.items()}
    for metric, points in rows.items():
        steps = [step for step, timestamp, _ in points if timestamp >= start]
        on_axis = [value for _, timestamp, value in points if timestamp == start - layout.AXIS_BEFORE_MS]
        early = [point for point in points if point[1] < start and point[1] != start - layout.AXIS_BEFORE_MS]
        if steps:
            curves[metric] = CurveFacts(
                rows=len(steps),
                steps=len(set(steps)),
                first=min(steps),
                last=max(steps),
                misplaced=sum(start <= timestamp != start + step for step, timestamp, _ in points),
            )
        if on_axis:
            axes[metric] = on_axis[0]
        if early:
            observed[metric] = (len(early), max(early, key=lambda point: point[1])[2])
    every = {step for points in rows.values() for step, timestamp, _ in points if timestamp >= start}
    newest: dict[str, Any] = {metric: (point[1], point[0]) for metric, point in latest.items()}
    return RunFacts(
        run_id=run.run_id,
        name=run.tags.get("mlflow.runName", ""),
        status=run.status,
        start_time=start,
        end_time=None,
        artifacts="",
        tags=run.tags,
        params=None,
        curves=curves,
        steps=len(every),
        observed=observed,
        axes=axes,
        latest={metric: point[2] for metric, point in latest.items()},
        outdated=tuple(sorted(name for name in {*run.newest, *newest} if run.newest.get(name) != newest.get(name))),
    )

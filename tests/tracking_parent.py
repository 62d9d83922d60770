"""The rules of a sweep's parent run, its own curves and files, which every tracker follows besides those of trials.

A new tracker needs a module in `orchestrator/tracking/`, a branch in `factory.open_tracker`, and a test module with a
subclass of `ParentContract` that says how to open it and how to read a parent run back. If MLflow's own client can read
the record, the subclass is one of `MlflowContract`, and needs only `open` and an address.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tracking_contract import OTHER, SWEEP, TrackerContract, content, finished, rows, trial

from jobs.job import Censored
from orchestrator.errors import UserError
from orchestrator.records import Status, TrialResult
from orchestrator.tracking.address import quiet_mlflow
from orchestrator.tracking.base import SweepRecord

AREA = "uncertain_area"
History = list[tuple[int, float]]


class ParentContract(TrackerContract):
    """All rules: inherit as `class TestX(ParentContract)`."""

    DELETES = True
    """Rows can be deleted."""

    @abstractmethod
    def history(self, sweep: SweepRecord, name: str) -> History:
        """All rows of a sweep's own metric, in the order of their steps; all must have the timestamps of a curve."""

    @abstractmethod
    def artifacts(self, sweep: SweepRecord) -> set[str]:
        """The paths of the parent run's artifacts."""

    def shown(self, sweep: SweepRecord = SWEEP) -> dict[str, float]:
        metrics = self.parent(sweep)[2]
        assert isinstance(metrics, dict)
        return metrics

    def test_a_traced_curve_grows_point_by_point_and_shows_its_last(self, tracker):
        for step, value in ((64, 0.5), (96, 0.25), (130, 0.3)):
            tracker.trace(AREA, [(step, value)])
            assert self.shown() == {AREA: value}
        tracker.trace("other", [(1, 7.0), (100_000, -1e300)])
        assert self.history(SWEEP, AREA) == [(64, 0.5), (96, 0.25), (130, 0.3)]
        assert self.history(SWEEP, "other") == [(1, 7.0), (100_000, -1e300)]

    def test_a_point_is_traced_once_across_kills(self, tracker):
        whole = [(step, 1.0 / step) for step in range(5, 400, 7)]
        for known in (1, 20, 20, 33, len(whole)):
            tracker.trace(AREA, whole[:known])
            tracker.trace(AREA, [(step, value + 1) for step, value in whole[:known]])
            tracker = self.reopened(tracker)
        assert self.history(SWEEP, AREA) == whole
        assert self.shown() == {AREA: whole[-1][1]}
        tracker.close()

    def test_points_may_come_in_any_order_and_earlier_steps_are_dropped(self, tracker):
        tracker.trace(AREA, [(96, 0.2), (64, 0.5), (96, 0.9)])
        tracker.trace(AREA, [(80, 0.4), (96, 0.1)])
        tracker.trace(AREA, [])
        tracker.trace(AREA, iter([(97, 0.15)]))
        assert self.history(SWEEP, AREA) == [(64, 0.5), (96, 0.2), (97, 0.15)]

    def test_more_points_than_one_request_takes_are_traced(self, tracker):
        whole = [(step, step / 3) for step in range(1, 2_501)]
        tracker.trace(AREA, whole)
        tracker.trace(AREA, whole)
        assert self.history(SWEEP, AREA) == whole

    def test_a_traced_name_is_not_annotated_and_others_are(self, tracker):
        tracker.trace(AREA, [(64, 0.5), (96, 0.25)])
        tracker.annotate({AREA: 9.0, "boundary": 1.5})
        tracker.annotate({AREA: 8.0})
        tracker = self.reopened(tracker)
        tracker.end_sweep("FINISHED", {AREA: 7.0, "boundary": 2.5})
        assert self.shown() == {AREA: 0.25, "boundary": 2.5}
        assert self.history(SWEEP, AREA) == [(64, 0.5), (96, 0.25)]
        tracker.trace(AREA, [(128, 0.125)])
        assert self.shown() == {AREA: 0.125, "boundary": 2.5}
        tracker.close()

    def test_a_curve_replaces_an_annotation_of_its_name(self, tracker):
        tracker.annotate({AREA: 9.0, "boundary": 1.5})
        tracker.trace(AREA, [(64, 0.5)])
        assert self.shown() == {AREA: 0.5, "boundary": 1.5}
        if self.DELETES:
            assert self.history(SWEEP, AREA) == [(64, 0.5)]

    def test_a_reader_traces_beside_the_driver_and_no_step_is_there_twice(self, tracker):
        tracker.trace(AREA, [(64, 0.5)])
        reader = self.open()
        reader.open_sweep(SWEEP, running=False)
        reader.trace(AREA, [(64, 0.4), (90, 0.3)])
        tracker.trace(AREA, [(80, 0.35), (90, 0.29)])
        reader.close()
        tracker.trace(AREA, [(96, 0.2)])
        assert self.history(SWEEP, AREA) == [(64, 0.5), (90, 0.3), (96, 0.2)]

    def test_a_sweep_s_curve_belongs_to_no_other_sweep_or_trial(self, tracker):
        one = trial()
        tracker.begin([one])
        tracker.record(rows([one], [1, 2], metrics=(AREA,)))
        tracker.trace(AREA, [(64, 0.5)])
        tracker.end([finished(one)])
        tracker = self.reopened(tracker, sweep=OTHER)
        tracker.trace(AREA, [(10, 0.75)])
        assert self.history(SWEEP, AREA) == [(64, 0.5)]
        assert self.history(OTHER, AREA) == [(10, 0.75)]
        assert dict(tracker.curves([one.id]))[one.id].step.tolist() == [1, 2]
        tracker.close()

    def test_a_traced_nan_is_a_nan(self, tracker):
        tracker.trace(AREA, [(1, math.nan), (2, 0.0)])
        (first, value), second = self.history(SWEEP, AREA)
        assert first == 1 and math.isnan(value) and second == (2, 0.0)

    def test_tracing_is_refused_as_annotating_is(self, tracker):
        with pytest.raises(UserError, match="metric"):
            tracker.trace("100% wrong", [(1, 1.0)])
        tracker.close()
        with pytest.raises(RuntimeError, match="closed"):
            tracker.trace(AREA, [(1, 1.0)])
        again = self.open()
        with pytest.raises(RuntimeError, match="open_sweep"):
            again.trace(AREA, [(1, 1.0)])
        again.close()

    def test_a_detached_file_is_gone_and_every_other_one_stays(self, tracker, tmp_path: Path):
        file = tmp_path / "map.png"
        file.write_text("map")
        tracker.attach({"map.png": file, "lines.png": file, "user/lines.png": file, "lines.png.txt": file})
        assert tracker.detach(["lines.png", "never there.png", "user", "nowhere/x.png"]) == ()
        kept = {"sweep.yaml", "map.png", "user/lines.png", "lines.png.txt"}
        assert self.artifacts(SWEEP) == kept
        tracker = self.reopened(tracker, sweep=None)
        tracker.open_sweep(SWEEP, running=False)
        assert tracker.detach(["lines.png", "user/lines.png"]) == ()
        assert self.artifacts(SWEEP) == kept - {"user/lines.png"}
        tracker.attach({"lines.png": file})
        assert "lines.png" in self.artifacts(SWEEP)
        tracker.close()


class MlflowContract(ParentContract):
    """All rules, for a tracker whose record MLflow's own client reads at `uri`, in `experiment`."""

    uri: str
    experiment: str

    def _client_and_run(self, sweep: SweepRecord) -> tuple[Any, Any]:
        """MLflow's client, and the sweep's one parent run."""
        quiet_mlflow("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri.removeprefix("phasefront-"))
        experiment = client.get_experiment_by_name(self.experiment)
        condition = f"tags.`phasefront.sweep_id` = '{sweep.sweep_id}'"
        (run,) = client.search_runs([experiment.experiment_id], condition)
        return client, run

    def parent(self, sweep: SweepRecord) -> tuple[object, ...]:
        _, run = self._client_and_run(sweep)
        return run.info.status, run.info.end_time, dict(run.data.metrics)

    def history(self, sweep: SweepRecord, name: str) -> History:
        client, run = self._client_and_run(sweep)
        points = client.get_metric_history(run.info.run_id, name)
        assert all(point.timestamp == run.info.start_time + point.step for point in points)
        return sorted((point.step, point.value) for point in points)

    def filtered(self, condition: str) -> dict[str, dict[str, float]]:
        """Trial id -> the metrics that MLflow shows, of the active runs that meet a condition."""
        client, parent = self._client_and_run(SWEEP)
        runs = client.search_runs([parent.info.experiment_id], condition)
        assert len({run.data.tags["phasefront.trial_id"] for run in runs}) == len(runs)
        return {run.data.tags["phasefront.trial_id"]: dict(run.data.metrics) for run in runs}

    def test_trials_are_found_by_their_values_on_the_axes(self, tracker):
        low, high = trial(0, rate=0.5), trial(1, rate=2.0)
        tracker.begin([low, high])
        tracker.record(rows([low, high], [0, 5]))
        tracker.end([finished(low, step=1.0)])
        tracker = self.reopened(tracker)
        assert set(self.filtered('metrics."axis/rate" > 1')) == {high.id}, "of a trial that has not ended"
        assert tracker.reconcile() == 1
        tracker.begin([high])
        tracker.record(rows([high], [0, 1]))
        tracker.end([finished(high, step=0.0)])
        tracker.relabel([finished(low, step=3.0), finished(high, gap=Censored(9.0))])
        before = content(tracker, [low, high])
        assert tracker.complete([low, high, trial(2)]) == 0
        assert content(tracker, [low, high]) == before
        assert [set(curves.values) for _, curves in tracker.curves([low.id, high.id])] == [
            {"loss", "test/accuracy"}
        ] * 2
        tracker.close()
        assert set(self.filtered('metrics."axis/rate" > 1')) == {high.id}
        (shown,) = self.filtered('metrics."axis/width" = 1').values()
        curves = {"loss": 5 / 7, "test/accuracy": 1 + 5 / 7}
        assert shown == pytest.approx({**curves, "step": 3.0, "axis/rate": 0.5, "axis/width": 1.0})

    def test_a_record_without_values_on_the_axes_is_completed_once(self, tracker):
        trials = [trial(number, rate=float(number)) for number in range(4)]
        plain = replace(SWEEP, axes=())
        tracker = self.reopened(tracker, sweep=plain)
        tracker.begin(trials)
        tracker.record(rows(trials, [0, 5]))
        tracker.end([finished(one, step=1.0) for one in trials[:2]])
        failed = [TrialResult(one.id, Status.FAILED, error="no") for one in trials[2:]]
        tracker.end(failed)
        before = content(tracker, trials)
        assert self.filtered('metrics."axis/rate" >= 0') == {}
        tracker.close()
        tracker = self.open()
        tracker.open_sweep(replace(SWEEP, axes=("rate", "bias", "optimiser", "unknown")), running=False)
        assert tracker.complete([*trials, trial(7)]) == 4
        assert tracker.complete([*trials, trial(7)]) == 0
        assert content(tracker, trials) == before
        tracker.close()
        assert set(self.filtered('metrics."axis/rate" > 1.5')) == {one.id for one in trials[2:]}
        assert {name for of in self.filtered('metrics."axis/rate" >= 0').values() for name in of} == {
            *("loss", "test/accuracy", "step", "axis/rate")
        }

    def test_a_job_s_own_metric_of_that_name_stays_the_job_s(self, tracker):
        one = trial(0, rate=0.5)
        tracker.begin([one])
        tracker.record(rows([one], [0, 7], metrics=("axis/rate",)))
        tracker.end([finished(one)])
        tracker = self.reopened(tracker)
        assert tracker.complete([one]) == 0
        ((_, curves),) = tracker.curves([one.id])
        assert curves.step.tolist() == [0, 7] and curves.values["axis/rate"].tolist() == [0.0, 1.0]
        tracker.close()

    def test_a_description_is_replaced_and_outlives_the_next_run(self, tracker):
        tracker.describe("**what was found**")
        tracker = self.reopened(tracker)
        tracker.close()
        _, run = self._client_and_run(SWEEP)
        assert run.data.tags["mlflow.note.content"] == "**what was found**"

    def artifacts(self, sweep: SweepRecord) -> set[str]:
        client, run = self._client_and_run(sweep)
        listed = client.list_artifacts(run.info.run_id)
        folders = [client.list_artifacts(run.info.run_id, entry.path) for entry in listed if entry.is_dir]
        return {entry.path for entries in (listed, *folders) for entry in entries if not entry.is_dir}

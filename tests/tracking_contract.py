"""The rules that every tracker follows; `tracking_parent.ParentContract` adds those of a sweep's parent run."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jobs.job import Censored, Curves, Params, param
from orchestrator.errors import UserError
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.tracking.base import SweepRecord, Tracker, TrialRow
from orchestrator.trial import Trial


@dataclass(frozen=True, kw_only=True)
class SomeParams(Params):
    rate: float = param(0.1, meaning="a number that must read back exactly")
    width: int = param(4, meaning="a whole number")
    bias: bool = param(True, meaning="a truth value")
    optimiser: str = param("adamw", meaning="a text")


SWEEP = SweepRecord(
    sweep_id="5" * 32,
    name="a sweep",
    job="tests:Some",
    resolved_yaml="job: tests:Some\n",
    thresholds="t1",
    axes=("rate", "width"),
)
OTHER = SweepRecord(
    sweep_id="6" * 32, name="another", job="tests:Some", resolved_yaml="job: tests:Some\n", thresholds="t2"
)


def trial(number: int = 0, **settings: object) -> Trial:
    params = SomeParams(**{"rate": 0.1 / 3, "width": number + 1, **settings})  # type: ignore[arg-type]
    return Trial(job="tests:Some", job_version=1, params=params, replicate=number % 2)


def rows(
    trials: Sequence[Trial],
    steps: Sequence[int],
    *,
    metrics: tuple[str, ...] = ("loss", "test/accuracy"),
    shift: float = 0.0,
) -> CurveRows:
    """Every trial at every step, with values that differ by trial, step and metric."""
    position = np.tile(np.arange(len(trials), dtype=np.int32), len(steps))
    step = np.repeat(np.array(steps, dtype=np.int64), len(trials))
    values = np.stack([position * 1000.0 + step / 7 + k + shift for k in range(len(metrics))], axis=1)
    return CurveRows(trial_ids=tuple(t.id for t in trials), metrics=metrics, trial=position, step=step, values=values)


def finished(one: Trial, *, phase: str = "grokking", **observations: float | Censored) -> TrialResult:
    return TrialResult(trial_id=one.id, status=Status.FINISHED, phase=phase, observations=observations)


def content(tracker: Tracker, trials: Sequence[Trial]) -> tuple[object, ...]:
    """All that can be read about trials, without run ids and times, so that it can be compared."""
    ids = [t.id for t in trials]
    return (
        {key: plain_recorded(value) for key, value in tracker.index(ids).items()},
        [plain_row(row) for row in tracker.rows(ids)],
        [(key, plain_curves(value)) for key, value in tracker.curves(ids)],
    )


def plain_recorded(recorded: Recorded) -> tuple[object, ...]:
    observations = {name: repr(value) for name, value in recorded.observations.items()}
    return (recorded.status.value, recorded.phase, observations, recorded.thresholds, recorded.through_step)


def plain_row(row: TrialRow) -> tuple[object, ...]:
    return (row.trial_id, [(k, repr(v)) for k, v in row.params.items()], row.replicate, plain_recorded(row.recorded))


def plain_curves(curves: Curves) -> tuple[object, ...]:
    return (curves.step.tolist(), {name: list(map(repr, value.tolist())) for name, value in curves.values.items()})


class TrackerContract(ABC):
    """The rules of trials and their curves."""

    KEEPS_RUN = True
    """An unfinished trial with rows begins again in the same run."""

    @abstractmethod
    def open(self) -> Tracker:
        """A new tracker on the record of this test, which earlier trackers of the same test have written."""

    @pytest.fixture
    def tracker(self):
        tracker = self.open()
        tracker.open_sweep(SWEEP)
        yield tracker
        tracker.close()

    def reopened(self, tracker: Tracker, sweep: SweepRecord | None = SWEEP) -> Tracker:
        tracker.close()
        again = self.open()
        if sweep is not None:
            again.open_sweep(sweep)
        return again

    def test_nothing_is_recorded_before_anything_is_written(self):
        tracker = self.open()
        one = trial()
        assert content(tracker, [one]) == ({}, [], [])
        tracker.close()

    def test_a_trial_reads_back_as_it_was_written(self, tracker):
        one, two = trial(0, rate=0.1 + 0.2, optimiser="1", bias=False), trial(1, optimiser="a\tb\\n\n'é")
        tracker.begin([one, two])
        tracker.record(rows([one, two], [0, 1, 5]))
        tracker.end([finished(one, step=5.0, gap=Censored(1e5)), finished(two, phase="confusion")])
        tracker = self.reopened(tracker, sweep=None)
        first, second = tracker.rows([one.id, two.id])
        assert [dict(first.params), dict(second.params)] == [dict(one.settings()), dict(two.settings())]
        assert [type(value) for value in first.params.values()] == [float, int, bool, str]
        assert (first.replicate, second.replicate) == (0, 1)
        assert first.recorded == Recorded(
            status=Status.FINISHED,
            phase="grokking",
            observations={"step": 5.0, "gap": Censored(1e5)},
            thresholds="t1",
            through_step=-1,
        )
        curves = dict(tracker.curves([two.id, one.id]))
        assert list(curves) == [two.id, one.id]
        assert curves[two.id].step.tolist() == [0, 1, 5]
        assert curves[two.id].values["test/accuracy"].tolist() == [1001.0, 1001.0 + 1 / 7, 1001.0 + 5 / 7]
        tracker.close()

    def test_rows_without_settings_are_the_rows_otherwise(self, tracker):
        trials = [trial(number) for number in range(4)]
        tracker.begin(trials[:3])
        failed = TrialResult(trial_id=trials[1].id, status=Status.FAILED, error="ValueError: too wide")
        tracker.end([finished(trials[0], step=5.0), failed])
        ids = [one.id for one in reversed(trials)]
        whole, without = list(tracker.rows(ids)), list(tracker.rows(ids, settings=False))
        assert [(row.trial_id, row.error) for row in without] == [
            (trials[2].id, None),
            (trials[1].id, "ValueError: too wide"),
            (trials[0].id, None),
        ]
        assert all(row.params == {} and row.replicate == 0 for row in without)
        assert [(row.run_id, row.error, row.recorded) for row in whole] == [
            (row.run_id, row.error, row.recorded) for row in without
        ]
        tracker.close()

    def test_a_begun_trial_is_running_and_knows_its_last_step(self, tracker):
        one, two = trial(0), trial(1)
        tracker.begin([one, two])
        tracker.record(rows([one], [1, 3]))
        index = tracker.index([one.id, two.id, trial(2).id])
        assert {key: (value.status, value.through_step) for key, value in index.items()} == {
            one.id: (Status.RUNNING, 3),
            two.id: (Status.RUNNING, -1),
        }

    def test_writing_everything_twice_changes_nothing(self, tracker):
        trials = [trial(n) for n in range(5)]

        def write(tracker: Tracker) -> None:
            tracker.begin(trials)
            tracker.begin(trials)
            for steps in ([0, 1, 2], [1, 2, 4], [8]):
                tracker.record(rows(trials, steps))
                tracker.record(rows(trials, steps))
            tracker.end([finished(t, final=0.5, late=Censored(8)) for t in trials])

        write(tracker)
        once = content(tracker, trials)
        write(tracker)
        assert content(tracker, trials) == once
        tracker = self.reopened(tracker)
        write(tracker)
        assert content(tracker, trials) == once
        tracker.close()

    def test_a_step_of_one_training_is_written_once_even_with_other_values(self, tracker):
        one = trial()
        tracker.begin([one])
        tracker.record(rows([one], [0, 1, 2]))
        before = dict(tracker.curves([one.id]))[one.id]
        tracker.record(rows([one], [0, 1, 2, 3], shift=0.25))
        after = dict(tracker.curves([one.id]))[one.id]
        assert after.step.tolist() == [0, 1, 2, 3]
        assert after.values["loss"][:3].tolist() == before.values["loss"].tolist()

    def test_some_metrics_are_read_at_the_steps_at_which_they_were_reported(self, tracker):
        one, two, three = trial(0), trial(1), trial(2)
        tracker.begin([one, two, three])
        tracker.record(rows([one, two], [0, 1], metrics=("loss", "accuracy")))
        tracker.record(rows([one], [4], metrics=("loss",)))
        tracker.record(rows([three], [3], metrics=("accuracy",)))
        tracker.end([finished(each, accuracy=1.0) for each in (one, two, three)])
        ids = [one.id, two.id, three.id]
        every = {name: plain_curves(curves)[1] for name, curves in tracker.curves(ids)}
        some = {name: plain_curves(curves) for name, curves in tracker.curves(ids, ["accuracy"])}
        assert some == {
            one.id: ([0, 1], {"accuracy": every[one.id]["accuracy"][:2]}),
            two.id: ([0, 1], {"accuracy": every[two.id]["accuracy"]}),
            three.id: ([3], {"accuracy": every[three.id]["accuracy"]}),
        }
        assert [name for name, _ in tracker.curves(ids, ["loss", "absent"])] == [one.id, two.id]
        assert list(tracker.curves(ids, ["absent"])) == list(tracker.curves(ids, [])) == []

    @pytest.mark.parametrize("status", [Status.FAILED, Status.KILLED, Status.RUNNING])
    def test_a_trial_that_is_trained_again_has_only_its_new_curve(self, tracker, status):
        mended, other = trial(0), trial(1)
        tracker.begin([mended, other])
        tracker.record(rows([mended, other], [0, 1, 2, 5], metrics=("loss", "gone")))
        tracker.end([finished(other)])
        untouched = content(tracker, [other])
        if status is not Status.RUNNING:
            tracker.end([TrialResult(trial_id=mended.id, status=status, error="x", observations={"loss": 1.0})])
        tracker = self.reopened(tracker)
        tracker.begin([mended, other])
        assert list(tracker.curves([mended.id])) == []
        tracker.record(rows([mended], [1, 3], metrics=("loss",), shift=0.5))
        tracker.end([finished(mended)])
        curves = dict(tracker.curves([mended.id]))[mended.id]
        assert plain_curves(curves) == ([1, 3], {"loss": [repr(0.5 + 1 / 7), repr(0.5 + 3 / 7)]})
        assert content(tracker, [other]) == untouched
        tracker.close()

    def test_a_trial_that_is_begun_again_by_the_same_driver_has_only_the_second_curve(self, tracker):
        again, other = trial(0), trial(1)
        tracker.begin([again, other])
        tracker.record(rows([again, other], [0, 1, 2, 5], metrics=("loss", "gone")))
        tracker.begin([again])
        assert tracker.index([again.id])[again.id].through_step == -1
        tracker.record(rows([again], [1, 3], metrics=("loss",), shift=0.5))
        tracker.end([finished(again), finished(other)])
        curves = dict(tracker.curves([again.id, other.id]))
        assert plain_curves(curves[again.id]) == ([1, 3], {"loss": [repr(0.5 + 1 / 7), repr(0.5 + 3 / 7)]})
        assert curves[other.id].step.tolist() == [0, 1, 2, 5]

    def test_an_interrupted_trial_is_one_run_that_begins_again(self, tracker):
        one = trial()
        tracker.begin([one])
        (before,) = tracker.rows([one.id])
        for status in (Status.KILLED, Status.FAILED):
            tracker.record(rows([one], [0, 1]))
            tracker.end([TrialResult(trial_id=one.id, status=status, error="Traceback: x", observations={"a": 1.0})])
            assert tracker.index([one.id])[one.id].status is status
            assert tracker.index([one.id])[one.id].through_step == 1
            tracker = self.reopened(tracker)
            tracker.begin([one])
            assert plain_recorded(tracker.index([one.id])[one.id]) == ("RUNNING", None, {}, "", -1)
        tracker.record(rows([one], [0, 1, 2]))
        tracker.end([finished(one)])
        (after,) = tracker.rows([one.id])
        assert after.run_id == before.run_id or not self.KEEPS_RUN
        assert after.error is None
        assert dict(tracker.curves([one.id]))[one.id].step.tolist() == [0, 1, 2]
        tracker.close()

    def test_an_interrupted_trial_without_rows_continues_in_its_run(self, tracker):
        one = trial()
        tracker.begin([one])
        (before,) = tracker.rows([one.id])
        tracker = self.reopened(tracker)
        tracker.begin([one])
        (after,) = tracker.rows([one.id])
        assert after.run_id == before.run_id
        tracker.close()

    def test_the_row_of_a_failed_trial_has_its_error(self, tracker):
        failed, well = trial(0), trial(1)
        tracker.begin([failed, well])
        tracker.end([TrialResult(trial_id=failed.id, status=Status.FAILED, error="Traceback\nValueError: why")])
        tracker.end([finished(well)])
        tracker = self.reopened(tracker, sweep=None)
        rows = tracker.rows(tracker.trials_of(SWEEP.sweep_id))
        assert {row.trial_id: row.error for row in rows} == {failed.id: "Traceback\nValueError: why", well.id: None}
        tracker.close()

    def test_the_parent_of_a_sweep_is_found_without_opening_it(self):
        tracker = self.open()
        assert tracker.find_sweep(SWEEP.sweep_id) is None
        address, tracker = tracker.open_sweep(SWEEP), self.reopened(tracker, sweep=None)
        assert tracker.find_sweep(SWEEP.sweep_id) == address
        assert tracker.find_sweep(OTHER.sweep_id) is None and tracker.trials_of(OTHER.sweep_id) == []
        tracker.close()

    def test_a_sweep_that_is_opened_again_began_when_it_was_first_opened(self):
        tracker = self.open()
        tracker.open_sweep(SWEEP)
        start = tracker.sweep_start_ms
        tracker = self.reopened(tracker, sweep=SWEEP)
        assert tracker.sweep_start_ms == start
        tracker.close()

    def test_a_second_driver_of_an_experiment_is_refused_and_readers_are_not(self, tracker):
        one = trial()
        tracker.begin([one])
        for sweep in (SWEEP, OTHER):
            second = self.open()
            with pytest.raises(UserError, match="another phasefront run") as caught:
                second.open_sweep(sweep)
            assert "tracking.experiment" in caught.value.text
            second.close()
        reader = self.open()
        assert reader.find_sweep(SWEEP.sweep_id) is not None
        assert reader.index([one.id])[one.id].status is Status.RUNNING
        reader.open_sweep(SWEEP, running=False)
        reader.close()
        tracker.open_sweep(SWEEP)
        tracker.end([finished(one)])
        tracker = self.reopened(tracker)
        assert tracker.index([one.id])[one.id].status is Status.FINISHED
        tracker.close()

    @abstractmethod
    def parent(self, sweep: SweepRecord) -> tuple[object, ...]:
        """Status and end time of a sweep's parent run, as the record has it, and its metrics as a dict."""

    def test_a_reader_beside_the_driver_sees_what_is_written_after_its_first_reading(self, tracker):
        first, second, third = trial(0), trial(1), trial(2)
        tracker.begin([first])
        reader, curves = self.open(), self.open()
        wanted = [first.id, second.id, third.id]
        assert reader.statuses(wanted) == {first.id: Status.RUNNING}
        assert dict(curves.curves(wanted)) == {}
        tracker.begin([second, third])
        tracker.record(rows([second], [0, 1]))
        tracker.end([finished(second), TrialResult(first.id, Status.FAILED, error="ValueError: no")])
        tracker.flush()
        assert [row.trial_id for row in reader.rows([second.id])] == [second.id]
        assert reader.statuses(wanted) == {
            first.id: Status.FAILED,
            second.id: Status.FINISHED,
            third.id: Status.RUNNING,
        }
        assert sorted(reader.trials_of(SWEEP.sweep_id)) == sorted(wanted)
        assert list(dict(curves.curves(wanted))) == [second.id]
        tracker.begin([first])
        tracker.record(rows([first], [0]))
        tracker.begin([first])  # over HTTP in another run
        tracker.end([finished(third)])
        tracker.flush()
        assert reader.statuses(wanted) == {
            first.id: Status.RUNNING,
            second.id: Status.FINISHED,
            third.id: Status.FINISHED,
        }
        assert [row.trial_id for row in reader.rows(wanted)] == wanted
        reader.close()
        curves.close()

    def test_a_sweep_opened_without_running_it_keeps_its_status_and_end(self, tracker, tmp_path: Path):
        one = trial()
        tracker.begin([one])
        tracker.record(rows([one], [0, 1]))
        tracker.end([finished(one)])
        file = tmp_path / "map.txt"
        file.write_text("map")

        def map_it(level: float) -> None:
            reader = self.open()
            reader.open_sweep(SWEEP, running=False)
            reader.relabel([finished(one, phase="memorization")])
            reader.attach({"map.txt": file})
            reader.annotate({"boundary": level})
            reader.close()

        running = self.parent(SWEEP)
        map_it(1.5)
        assert self.parent(SWEEP) == (*running[:2], {"boundary": 1.5})
        assert running[0] == "RUNNING"
        tracker.end_sweep("FAILED", {"boundary": 2.5})
        ended = self.parent(SWEEP)
        assert (ended[0], ended[2]) == ("FAILED", {"boundary": 2.5})
        tracker.close()
        map_it(3.5)
        assert self.parent(SWEEP) == (*ended[:2], {"boundary": 3.5})

    def test_a_sweep_opened_without_running_it_is_not_running_and_runs_no_trials(self):
        tracker = self.open()
        address = tracker.open_sweep(SWEEP, running=False)
        assert tracker.find_sweep(SWEEP.sweep_id) == address
        assert self.parent(SWEEP)[0] == "FINISHED"
        for call in (
            lambda: tracker.begin([trial()]),
            lambda: tracker.record(rows([trial()], [0])),
            lambda: tracker.end([finished(trial())]),
            lambda: tracker.reconcile(),
            lambda: tracker.end_sweep("FINISHED", {}),
        ):
            with pytest.raises(RuntimeError, match="running=True"):
                call()
        tracker.close()

    def test_non_finite_values_read_back_as_they_were(self, tracker):
        one = trial()
        given = [math.nan, math.inf, -math.inf, 1e-300, -0.5]
        tracker.begin([one])
        tracker.record(
            CurveRows(
                trial_ids=(one.id,),
                metrics=("loss",),
                trial=np.zeros(5, dtype=np.int32),
                step=np.arange(5),
                values=np.array(given)[:, None],
            )
        )
        tracker.end([finished(one, worst=math.inf, lost=math.nan, never=Censored(math.inf))])
        tracker = self.reopened(tracker, sweep=None)
        values = dict(tracker.curves([one.id]))[one.id].values["loss"]
        assert list(map(repr, values.tolist())) == list(map(repr, given))
        observed = tracker.index([one.id])[one.id].observations
        assert [repr(observed[name]) for name in ("worst", "lost")] == ["inf", "nan"]
        assert observed["never"] == Censored(math.inf)
        tracker.close()

    def test_a_metric_that_was_not_reported_is_absent(self, tracker):
        one = trial()
        tracker.begin([one])
        tracker.record(
            CurveRows(
                trial_ids=(one.id,),
                metrics=("a", "b"),
                trial=np.zeros(3, dtype=np.int32),
                step=np.array([0, 1, 2]),
                values=np.arange(6.0).reshape(3, 2),
                present=np.array([[True, False], [True, True], [False, True]]),
            )
        )
        curves = dict(tracker.curves([one.id]))[one.id]
        assert curves.step.tolist() == [0, 1, 2]
        assert list(map(repr, curves.values["a"].tolist())) == ["0.0", "2.0", "nan"]
        assert list(map(repr, curves.values["b"].tolist())) == ["nan", "3.0", "5.0"]

    def test_an_observation_with_the_name_of_a_curve_is_not_a_point_of_the_curve(self, tracker):
        one = trial()
        tracker.begin([one])
        tracker.record(rows([one], [0, 4], metrics=("loss",)))
        tracker.end([finished(one, loss=123.0)])
        assert dict(tracker.curves([one.id]))[one.id].values["loss"].tolist() == [0.0, 4 / 7]
        assert tracker.index([one.id])[one.id].observations == {"loss": 123.0}

    def test_a_trial_of_another_sweep_counts_as_recorded(self, tracker):
        shared = trial()
        tracker.begin([shared])
        tracker.record(rows([shared], [0, 1]))
        tracker.end([finished(shared)])
        once = content(tracker, [shared])
        tracker = self.reopened(tracker, sweep=OTHER)
        assert content(tracker, [shared]) == once
        assert tracker.reconcile() == 0
        tracker.close()

    def test_orphans_of_this_sweep_are_killed_and_no_other_trials(self, tracker):
        mine, another, done = trial(0), trial(1), trial(2)
        tracker.begin([mine, another, done])
        tracker.end([finished(done)])
        foreign = trial(3)
        tracker = self.reopened(tracker, sweep=OTHER)
        tracker.begin([foreign])
        tracker = self.reopened(tracker)
        assert tracker.reconcile() == 2
        assert {n: tracker.index([t.id])[t.id].status.value for n, t in enumerate((mine, another, done, foreign))} == {
            0: "KILLED",
            1: "KILLED",
            2: "FINISHED",
            3: "RUNNING",
        }
        assert tracker.reconcile() == 0
        tracker.close()

    def test_an_unfinished_trial_moves_to_the_sweep_that_continues_it(self, tracker):
        one = trial()
        tracker.begin([one])
        tracker = self.reopened(tracker, sweep=OTHER)
        tracker.begin([one])
        tracker = self.reopened(tracker)
        assert tracker.reconcile() == 0
        tracker = self.reopened(tracker, sweep=OTHER)
        assert tracker.reconcile() == 1
        tracker.close()

    def test_relabelling_replaces_phase_and_observations_and_keeps_the_rest(self, tracker):
        one = trial()
        tracker.begin([one])
        tracker.record(rows([one], [0, 1]))
        tracker.end([finished(one, old=1.0, both=2.0)])
        curves = content(tracker, [one])[2]
        tracker = self.reopened(tracker, sweep=OTHER)
        for _ in range(2):
            tracker.relabel([finished(one, phase="memorization", both=1.0, new=Censored(1.0))])
        assert tracker.index([one.id])[one.id] == Recorded(
            status=Status.FINISHED,
            phase="memorization",
            observations={"both": 1.0, "new": Censored(1.0)},
            thresholds="t2",
            through_step=-1,
        )
        assert content(tracker, [one])[2] == curves
        tracker.close()

    def test_interleaved_packs_converge_to_the_same_record(self, tracker):
        trials = [trial(n) for n in range(6)]
        chance = random.Random(3)
        tracker.begin(trials[:3])
        tracker.begin(trials[3:])
        for steps in ([0], [1, 2], [3, 5, 9]):
            order = chance.sample(trials, len(trials))
            for pack in (order[:2], order[2:5], order[5:]):
                tracker.record(rows(pack, steps))
        curves = dict(tracker.curves([t.id for t in trials]))
        assert {key: value.step.tolist() for key, value in curves.items()} == {t.id: [0, 1, 2, 3, 5, 9] for t in trials}

    def test_writing_before_the_sweep_is_open_is_refused(self):
        tracker = self.open()
        with pytest.raises(RuntimeError, match="open_sweep"):
            tracker.begin([trial()])
        tracker.close()

    def test_rows_of_a_trial_never_begun_are_refused(self, tracker):
        with pytest.raises(LookupError, match="never begun"):
            tracker.record(rows([trial()], [0]))
        with pytest.raises(LookupError, match="never begun"):
            tracker.end([finished(trial())])

    def test_a_metric_name_that_mlflow_cannot_hold_is_a_user_s_error(self, tracker):
        one = trial()
        tracker.begin([one])
        with pytest.raises(UserError, match="metric"):
            tracker.record(rows([one], [0], metrics=("100% wrong",)))
        with pytest.raises(UserError, match="metric"):
            tracker.end([finished(one, **{"100% wrong": 1.0})])
        assert list(tracker.curves([one.id])) == []
        assert tracker.index([one.id])[one.id].status is Status.RUNNING

    def test_calls_after_close_are_errors_and_close_is_not(self, tracker):
        tracker.close()
        tracker.close()
        with pytest.raises(RuntimeError, match="closed"):
            tracker.begin([trial()])
        with pytest.raises(RuntimeError, match="closed"):
            tracker.index([trial().id])

    def test_a_sweep_can_be_opened_and_ended_again_and_keeps_its_files(self, tracker, tmp_path: Path):
        file = tmp_path / "local.txt"
        file.write_text("hello")
        tracker.attach({"table.txt": file, "maps/local.txt": file})
        tracker.end_sweep("FINISHED", {"boundary": 1.5})
        address = tracker.open_sweep(SWEEP)
        tracker.attach({"table.txt": file})
        tracker.end_sweep("KILLED", {"boundary": 2.5})
        tracker = self.reopened(tracker, sweep=None)
        assert tracker.open_sweep(SWEEP) == address
        tracker.close()

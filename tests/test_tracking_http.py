"""The tracker over a real `mlflow server`."""

import contextlib
import itertools
import json
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from servers import empty_sqlite, free_port, mlflow_server
from tracking_contract import OTHER, SWEEP, finished, rows, trial
from tracking_drivers import another_driver
from tracking_parent import MlflowContract

from orchestrator.commands.status import Driver
from orchestrator.errors import UserError
from orchestrator.outages import Patience, Unreachable
from orchestrator.records import Status, TrialResult
from orchestrator.tracking import layout, lease
from orchestrator.tracking.factory import open_reader, open_tracker
from orchestrator.tracking.http_api import MlflowApi, whole_steps
from orchestrator.tracking.lease import LeaseLost
from orchestrator.tracking.lease_tag import KEY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    database = empty_sqlite(folder / "mlflow.db")
    with mlflow_server(f"phasefront-sqlite:///{database}", folder / "artifacts") as uri:
        DATABASES[uri] = database
        yield uri


DATABASES: dict[str, Path] = {}
"""Address of a server -> its database."""


class TestLease:
    """One driver at a time over HTTP, and beside a driver that reaches the server's database."""

    _numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _experiment(self, server):
        self.experiment = f"leased {next(self._numbers)}"
        self.http, self.sql = server, f"sqlite:///{DATABASES[server]}"
        tracker = open_tracker(self.sql, experiment=self.experiment)  # so that both can write its artifacts
        tracker.open_sweep(SWEEP, running=False)
        tracker.close()

    def opened(self, uri):
        tracker = open_tracker(uri, experiment=self.experiment)
        tracker.open_sweep(SWEEP)
        return tracker

    def refused(self, uri):
        tracker = open_tracker(uri, experiment=self.experiment)
        with pytest.raises(UserError, match="another phasefront run"):
            tracker.open_sweep(SWEEP)
        tracker.close()

    def test_drivers_over_http_and_sql_refuse_each_other(self):
        first = self.opened(self.http)
        self.refused(self.sql)
        first.begin([trial()])
        first.close()
        first = self.opened(self.sql)
        self.refused(self.http)
        first.begin([trial()])
        first.close()
        self.opened(self.http).close()

    def test_a_driver_that_was_killed_is_followed_at_once(self):
        for uri, after in ((self.http, self.sql), (self.http, self.http), (self.sql, self.http)):
            with another_driver(uri, self.experiment) as process:
                self.refused(after)
                process.kill()
                process.wait()
            tracker = self.opened(after)
            assert tracker.reconcile() == 1
            tracker.close()

    @pytest.mark.parametrize("writer", ["http", "sql"])
    @pytest.mark.parametrize("read", ["http", "sql"])
    def test_a_reader_knows_whether_a_driver_runs_the_sweep(self, writer, read):
        def runs(parent):
            reader = open_reader(getattr(self, read), experiment=self.experiment, patience=Patience("", say=print))
            with contextlib.closing(reader):
                return Driver.of(reader, parent).runs

        tracker = self.opened(getattr(self, writer))
        parent = tracker.find_sweep(SWEEP.sweep_id)
        assert runs(parent) is True
        MlflowClient(self.http).set_tag(parent, layout.DRIVER, "elsewhere 1 2")  # and this process has opened another
        assert runs(parent) is False
        MlflowClient(self.http).delete_tag(parent, layout.DRIVER)  # as in a record of an earlier version
        assert runs(parent) is True
        tracker.close()
        assert runs(parent) is False

    @pytest.mark.parametrize("writer", ["http", "sql"])
    @pytest.mark.parametrize("read", ["http", "sql"])
    def test_a_reader_knows_how_the_sweep_was_submitted(self, writer, read):
        def again():
            reader = open_reader(getattr(self, read), experiment=self.experiment, patience=Patience("", say=print))
            with contextlib.closing(reader):
                return Driver.of(reader, parent).again

        tracker = self.opened(getattr(self, writer))
        parent = tracker.find_sweep(SWEEP.sweep_id)
        assert again() == ""
        tracker.open_sweep(replace(SWEEP, again="phasefront submit x.yaml"))
        assert again() == "phasefront submit x.yaml"
        tracker.open_sweep(replace(SWEEP, again="phasefront map x.yaml"), running=False)
        assert again() == "phasefront submit x.yaml"
        tracker.open_sweep(SWEEP)
        assert again() == ""
        tracker.close()

    @pytest.mark.parametrize("first", ["http", "sql"])
    def test_a_driver_whose_lease_was_taken_over_http_writes_nothing(self, first, monkeypatch):
        monkeypatch.setenv(lease.VARIABLE, "1.2")
        tracker = self.opened(getattr(self, first))
        tracker.begin([trial(0)])
        tracker.record(rows([trial(0)], [0]))
        assert tracker.index([trial(0).id])
        client = MlflowClient(self.http)
        number = client.get_experiment_by_name(self.experiment).experiment_id
        tag = json.loads(client.get_experiment(number).tags[KEY])
        for _ in range(5):  # a renewal that is under way may write over the thief's tag
            client.set_experiment_tag(number, KEY, json.dumps({**tag, "owner": "thief", "host": "thief", "by": "http"}))
            time.sleep(0.8)
            if json.loads(client.get_experiment(number).tags[KEY])["owner"] == "thief":
                break
        with pytest.raises(LeaseLost, match="the phasefront run on thief"):
            tracker.annotate({"x": 1.0})
        with pytest.raises(LeaseLost):
            tracker.settle()
        with contextlib.suppress(LeaseLost):
            tracker.close()
        reader = open_tracker(self.sql, experiment=self.experiment)
        assert set(reader.index([trial(0).id, trial(1).id])) == {trial(0).id}
        reader.close()
        # The thief renews nothing: after its time it is followed.
        said = []
        tracker = open_tracker(self.http, experiment=self.experiment)
        tracker.say = said.append
        client.set_experiment_tag(number, KEY, json.dumps({**tag, "owner": "thief", "host": "thief", "machine": "x"}))
        tracker.open_sweep(SWEEP)
        assert "the phasefront run on thief" in said[0]
        tracker.close()

    def test_a_driver_that_waits_for_the_lease_of_one_over_http_knows_its_last_trials(self, monkeypatch):
        """Otherwise they would be begun again, in a second run."""
        monkeypatch.setenv(lease.VARIABLE, "1.2")
        self.opened(self.http).close()
        client = MlflowClient(self.http)
        number = client.get_experiment_by_name(self.experiment).experiment_id
        tag = json.loads(client.get_experiment(number).tags[KEY])
        client.set_experiment_tag(number, KEY, json.dumps({**tag, "owner": "other", "host": "other", "machine": "x"}))
        waiting, begun = open_tracker(self.sql, experiment=self.experiment), []
        waiting.say = lambda _: begun.append(client.create_run(number, tags={layout.TRIAL_ID: trial().id}))
        waiting.open_sweep(SWEEP)
        (known,) = waiting.rows([trial().id], settings=False)
        assert [known.run_id] == [run.info.run_id for run in begun]
        waiting.close()

    def test_a_value_of_the_sweep_is_replaced_although_the_clock_was_set_back(self, monkeypatch):
        tracker = self.opened(self.http)
        tracker.annotate({"area": 2.0})
        now = layout.now_ms()
        monkeypatch.setattr(layout, "now_ms", lambda: now - 3_600_000)
        tracker.annotate({"area": 1.0})
        run = tracker.find_sweep(SWEEP.sweep_id)
        assert MlflowClient(self.http).get_run(run).data.metrics["area"] == 1.0
        tracker.close()


class TestHttp(MlflowContract):
    DELETES = False
    KEEPS_RUN = False
    _numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _record(self, server):
        self.uri, self.experiment = server, f"tests {next(self._numbers)}"

    def open(self):
        return open_tracker(self.uri, experiment=self.experiment)

    def test_a_long_curve_goes_in_batches_and_comes_back_whole(self, tracker):
        one, two = trial(0), trial(1)
        tracker.begin([one, two])
        steps = list(range(0, 40_000, 3))
        tracker.record(rows([one, two], steps, metrics=("a", "b")))
        curves = dict(tracker.curves([one.id, two.id]))
        assert curves[two.id].step.tolist() == steps
        assert curves[two.id].values["b"][-1] == 1000.0 + steps[-1] / 7 + 1

    def test_the_run_of_an_interrupted_attempt_moves_to_the_trash(self, tracker):
        one = trial()
        tracker.begin([one])
        tracker.record(rows([one], [0, 1]))
        (before,) = tracker.rows([one.id])
        tracker.begin([one])
        (after,) = tracker.rows([one.id])
        client = MlflowClient(self.uri)
        assert client.get_run(before.run_id).info.lifecycle_stage == "deleted"
        assert client.get_run(after.run_id).info.lifecycle_stage == "active"
        tracker.begin([one])
        assert next(tracker.rows([one.id])).run_id == after.run_id

    def test_a_refresh_of_a_reader_does_not_read_the_trials_that_have_not_changed(self, tracker, monkeypatch):
        came, requests, now = [], [], layout.now_ms()
        page = MlflowApi.page

        def counted(self, *given):
            answer = page(self, *given)
            came.extend(answer[0])
            requests.append(given)
            return answer

        def read():
            came.clear()
            requests.clear()
            found = Counter(reader.statuses([one.id for one in trials]).values())
            return found, len(came), len(requests)

        def end(minute, some):
            monkeypatch.setattr(layout, "now_ms", lambda: now + 60_000 * minute)
            tracker.end([finished(one) for one in some])

        monkeypatch.setattr(MlflowApi, "page", counted)
        trials = [trial(number) for number in range(60)]
        tracker.begin(trials[:50])
        end(0, trials[:49])
        end(10, trials[49:50])
        reader = self.open()
        assert read() == ({Status.FINISHED: 50}, 50, 1)
        tracker.begin(trials[50:55])
        assert read() == ({Status.FINISHED: 50, Status.RUNNING: 5}, 5 + 1, 2)
        end(20, trials[50:53])
        assert read() == ({Status.FINISHED: 53, Status.RUNNING: 2}, 2 + 4, 2)
        assert read() == ({Status.FINISHED: 53, Status.RUNNING: 2}, 2 + 3, 2)
        reader.close()

    def test_a_reader_sees_that_a_trial_whose_finished_run_was_deleted_is_trained_again(self, tracker):
        trials = [trial(number) for number in range(20)]
        tracker.begin(trials)
        tracker.end([finished(one) for one in trials])
        reader, one = self.open(), trials[3]
        assert set(reader.statuses([one.id for one in trials]).values()) == {Status.FINISHED}
        (row,) = tracker.rows([one.id])
        MlflowClient(self.uri).delete_run(row.run_id)
        tracker.begin([one])
        assert reader.statuses([one.id]) == {one.id: Status.RUNNING}
        tracker.end([TrialResult(one.id, Status.FAILED, error="x")])
        assert reader.statuses([one.id]) == {one.id: Status.FAILED}
        (again,) = reader.rows([one.id])
        assert again.run_id != row.run_id
        reader.close()

    def test_a_reader_of_the_database_sees_what_a_driver_over_http_begins_later(self, tracker):
        """Trials, a run in place of one that was deleted, and another sweep."""
        first, second = trial(0), trial(1)
        tracker.begin([first])
        reader = open_tracker(f"sqlite:///{DATABASES[self.uri]}", experiment=self.experiment)
        wanted = [first.id, second.id]
        assert reader.statuses(wanted) == {first.id: Status.RUNNING}
        tracker.begin([second])
        tracker.end([finished(first)])
        assert reader.statuses(wanted) == {first.id: Status.FINISHED, second.id: Status.RUNNING}
        (row,) = tracker.rows([first.id])
        MlflowClient(self.uri).delete_run(row.run_id)
        assert reader.statuses(wanted) == {second.id: Status.RUNNING}
        tracker.begin([first])
        assert reader.statuses(wanted) == {first.id: Status.RUNNING, second.id: Status.RUNNING}
        tracker.end([finished(first), finished(second)])
        MlflowClient(self.uri).create_run(str(tracker.experiment_id), tags={layout.TRIAL_ID: second.id})
        assert reader.statuses(wanted) == {first.id: Status.FINISHED, second.id: Status.FINISHED}
        assert reader.find_sweep(OTHER.sweep_id) is None
        other = self.open()
        parent = other.open_sweep(OTHER, running=False)
        other.close()
        assert reader.find_sweep(OTHER.sweep_id) == parent
        reader.close()

    def test_a_second_run_of_a_trial_does_not_hide_its_finished_one(self, tracker):
        """A creation that the network repeats leaves such a run."""
        trials = [trial(number) for number in range(20)]
        tracker.begin(trials)
        tracker.end([finished(one) for one in trials])
        reader = self.open()
        assert set(reader.statuses([one.id for one in trials]).values()) == {Status.FINISHED}
        client = MlflowClient(self.uri)
        client.create_run(str(tracker.experiment_id), tags={layout.TRIAL_ID: trials[3].id})
        assert reader.statuses([trials[3].id]) == {trials[3].id: Status.FINISHED}
        reader.close()

    def test_a_reader_finds_what_a_driver_with_a_clock_that_was_set_back_has_written(self, tracker, monkeypatch):
        trials = [trial(number) for number in range(4)]
        tracker.begin(trials[:2])
        tracker.end([finished(trials[0])])
        reader = self.open()
        wanted = [one.id for one in trials]
        assert reader.statuses(wanted) == {trials[0].id: Status.FINISHED, trials[1].id: Status.RUNNING}
        now = layout.now_ms()
        monkeypatch.setattr(layout, "now_ms", lambda: now - 3_600_000)
        tracker.begin(trials[2:])
        tracker.end([finished(one) for one in trials[1:3]])
        assert reader.statuses(wanted)[trials[1].id] is Status.FINISHED
        for _ in range(4):  # the changes do not tell of the trial that began and ended in between
            found = reader.statuses(wanted)
        assert Counter(found.values()) == {Status.FINISHED: 3, Status.RUNNING: 1}
        reader.close()

    def test_an_observation_that_no_longer_holds_is_shown_as_nan(self, tracker):
        one = trial()
        tracker.begin([one])
        tracker.end([finished(one, a=1.0, b=5.0)])
        tracker.relabel([finished(one, a=0.5)])
        (row,) = tracker.rows([one.id])
        metrics = MlflowClient(self.uri).get_run(row.run_id).data.metrics
        assert metrics["a"] == 0.5
        assert math.isnan(metrics["b"])


def test_a_batch_never_splits_a_step():
    run = [(key, 0.0, 0, step, False, "r") for step in range(7) for key in "abc"]
    batches = list(whole_steps(run, 8))
    assert [row for batch in batches for row in batch] == run
    assert [sorted({row[3] for row in batch}) for batch in batches] == [[0, 1], [2, 3], [4, 5], [6]]
    assert [len(batch) for batch in whole_steps(run, 2)] == [2, 1] * 7


def test_a_server_that_does_not_answer_is_an_outage():
    tracker = open_tracker(f"http://127.0.0.1:{free_port()}", experiment="x")
    with pytest.raises(Unreachable, match="cannot be reached"):
        tracker.index(["1" * 32])
    tracker.close()

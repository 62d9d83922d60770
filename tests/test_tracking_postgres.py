"""The tracker over a real PostgreSQL, with both drivers."""

import contextlib
import itertools
import math
import threading
import time

import numpy as np
import psycopg2
import pytest
from servers import postgres_server
from tracking_contract import SWEEP, finished, rows, trial
from tracking_drivers import another_driver, open_when_free
from tracking_parent import MlflowContract

from orchestrator.errors import UserError
from orchestrator.outages import Unreachable
from orchestrator.records import CurveRows
from orchestrator.tracking.factory import open_tracker
from orchestrator.tracking.heartbeat import Heartbeat
from orchestrator.tracking.lease import LeaseLost
from orchestrator.tracking.lease_table import TABLE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with postgres_server() as uri:
        yield uri


class PostgresContract(MlflowContract):
    scheme: str
    _numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _record(self, server, tmp_path):
        self.folder = tmp_path / "artifacts"
        self.uri = server.replace("postgresql", self.scheme)
        self.experiment = f"tests {next(self._numbers)}"

    def open(self):
        return open_tracker(self.uri, experiment=self.experiment, artifacts=str(self.folder))

    def test_many_rows_of_names_of_all_lengths_read_back_exactly(self, tracker):
        one, names = trial(), ("k", "größe/µ", "a" * 250)
        values = np.array([[math.nan, math.inf, -math.inf], [1e-310, 1.7e308, 0.1]] * 50)
        tracker.begin([one])
        tracker.record(
            CurveRows(
                trial_ids=(one.id,),
                metrics=names,
                trial=np.zeros(100, dtype=np.int32),
                step=np.arange(100) * 10**12,
                values=values,
            )
        )
        tracker.end([finished(one)])
        curves = dict(tracker.curves([one.id]))[one.id]
        assert curves.step.tolist() == [step * 10**12 for step in range(100)]
        assert {name: repr(curves.values[name].tolist()) for name in names} == {
            name: repr(values[:, k].tolist()) for k, name in enumerate(names)
        }


class TestPsycopg2(PostgresContract):
    scheme = "postgresql+psycopg2"

    def test_rows_that_are_in_the_table_already_are_left_once(self, tracker):
        """After a connection is lost just when the server has committed, the buffered rows are written again."""
        one = trial()
        tracker.begin([one])
        tracker.record(rows([one], range(200)))
        tracker.index([])
        tracker._open[one.id].through_step = -1
        tracker.record(rows([one], range(210)))
        tracker.end([finished(one)])
        assert dict(tracker.curves([one.id]))[one.id].step.tolist() == list(range(210))

    def test_the_experiment_is_free_when_the_driver_has_died(self):
        with another_driver(self.uri, self.experiment) as process:
            tracker = self.open()
            with pytest.raises(UserError, match="another phasefront run"):
                tracker.open_sweep(SWEEP)
            tracker.close()
            process.kill()
            process.wait()
        tracker = self.open()
        open_when_free(tracker)
        tracker.close()

    def forge(self, **columns):
        """Set columns of the experiment's lease, as SQL expressions."""
        connection = psycopg2.connect(self.uri.replace("postgresql+psycopg2", "postgresql"))
        with connection, connection.cursor() as cursor:
            setting = ", ".join(f"{name} = {value}" for name, value in columns.items())
            where = "experiment_id = (SELECT experiment_id FROM experiments WHERE name = %s)"
            cursor.execute(f"UPDATE {TABLE} SET {setting} WHERE {where}", (self.experiment,))
            assert cursor.rowcount == 1
        connection.close()

    def test_the_server_s_clock_tells_when_the_lease_of_another_host_has_expired(self, tracker, monkeypatch):
        tracker.begin([trial()])
        tracker.index([])
        monkeypatch.setattr(Heartbeat, "_run", lambda self: None)
        self.forge(machine="'another'", host="'elsewhere'", expires_ms="renewed_ms + 1500")
        second, said = self.open(), []
        second.say = said.append
        second.open_sweep(SWEEP)
        assert "elsewhere" in said[0]
        with pytest.raises(LeaseLost, match="was taken over by the phasefront run on"):
            tracker.annotate({"x": 1.0})
        assert second.reconcile() == 1
        self.forge(machine="'another'", renewed_ms="renewed_ms - 60001", expires_ms="expires_ms - 60001")
        third, said = self.open(), []
        third.say = said.append
        third.open_sweep(SWEEP)
        assert said == []
        for each in (tracker, second, third):
            with contextlib.suppress(LeaseLost):
                each.close()

    def test_a_takeover_waits_for_the_transaction_that_the_holder_is_in(self, tracker):
        """The holder's row lock: nothing of a fenced driver is committed after the takeover."""
        bulk = tracker._database.create().bulk
        done = []

        def take_over():
            self.forge(fence="fence + 1", owner="'thief'", host="'thief'")
            done.append(time.monotonic())

        thief = threading.Thread(target=take_over)
        with bulk.transaction():
            thief.start()
            time.sleep(0.3)
            assert not done
        thief.join()
        with pytest.raises(LeaseLost, match="thief"), bulk.transaction():
            pass
        self.forge(owner="''")


class TestWithoutSpecialRights(PostgresContract):
    """A role that only owns its database: foreign keys are checked row by row."""

    scheme = "postgresql+psycopg2"

    @pytest.fixture(autouse=True)
    def _role(self, server, _record):
        connection = psycopg2.connect(server)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'plain'")
            if cursor.fetchone() is None:
                cursor.execute("CREATE ROLE plain LOGIN")
                cursor.execute("CREATE DATABASE plain OWNER plain")
        connection.close()
        self.uri = self.uri.replace("tester@", "plain@").replace("/postgres", "/plain")

    def test_many_rows_at_once_are_recorded_once(self, tracker):
        trials = [trial(n) for n in range(20)]
        tracker.begin(trials)
        for _ in range(2):
            tracker.record(rows(trials, range(30)))
        tracker.index([])
        assert tracker._database.create().bulk._unchecked is False
        assert [len(curves.step) for _, curves in tracker.curves([t.id for t in trials])] == [30] * 20


class TestPsycopg3(PostgresContract):
    scheme = "phasefront-postgresql+psycopg"

    @pytest.fixture(autouse=True)
    def _driver(self):
        pytest.importorskip("psycopg")


def test_a_wrong_password_or_database_is_a_user_s_error_without_the_password(server):
    for wrong in (server.replace("/postgres", "/nowhere"), server.replace("tester@", "nobody:secret@")):
        tracker = open_tracker(wrong, experiment="x")
        with pytest.raises(UserError, match="cannot be reached") as caught:
            tracker.index(["1" * 32])
        assert "secret" not in caught.value.text
        tracker.close()


def test_a_server_that_does_not_answer_is_an_outage():
    tracker = open_tracker("postgresql://nobody@127.0.0.1:1/x", experiment="x")
    with pytest.raises(Unreachable, match="cannot be reached"):
        tracker.open_sweep(None)
    tracker.close()

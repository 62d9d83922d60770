"""The tracker over a real PostgreSQL, with both drivers."""

import itertools

import psycopg2
import pytest
from servers import postgres_server
from tracking_contract import TrackerContract, content, finished, rows, trial

from orchestrator.errors import UserError
from orchestrator.tracking.factory import open_tracker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with postgres_server() as uri:
        yield uri


class PostgresContract(TrackerContract):
    scheme: str
    _numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _record(self, server):
        self.uri = server.replace("postgresql", self.scheme)
        self.experiment = f"tests {next(self._numbers)}"

    def open(self):
        return open_tracker(self.uri, experiment=self.experiment)


class TestPsycopg2(PostgresContract):
    scheme = "postgresql+psycopg2"

    def test_two_writers_of_one_trial_leave_each_row_once(self, tracker):
        one = trial()
        tracker.begin([one])
        other = self.open()
        other.open_sweep(tracker._sweep)
        other.begin([one])
        tracker.record(rows([one], [0, 1]))
        tracker.index([])
        other.record(rows([one], range(200)))
        other.index([])
        tracker.record(rows([one], range(2, 210)))
        tracker.end([finished(one)])
        assert dict(tracker.curves([one.id]))[one.id].step.tolist() == list(range(210))
        assert content(tracker, [one]) == content(other, [one])
        other.close()


class TestWithoutSpecialRights(PostgresContract):
    """A role that owns its database and may do nothing else: foreign keys are checked row by row."""

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


def test_a_server_that_does_not_answer_is_a_user_s_error():
    tracker = open_tracker("postgresql://nobody@127.0.0.1:1/x", experiment="x")
    with pytest.raises(UserError, match="cannot be reached"):
        tracker.open_sweep(None)
    tracker.close()

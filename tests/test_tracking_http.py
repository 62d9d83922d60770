"""The tracker over a real `mlflow server`."""

import itertools
import math

import pytest
from servers import empty_sqlite, free_port, mlflow_server
from tracking_contract import finished, rows, trial
from tracking_parent import MlflowContract

from orchestrator.errors import UserError
from orchestrator.tracking.factory import open_tracker
from orchestrator.tracking.http_api import whole_steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    database = empty_sqlite(folder / "mlflow.db")
    with mlflow_server(f"phasefront-sqlite:///{database}", folder / "artifacts") as uri:
        yield uri


class TestHttp(MlflowContract):
    LOCKS = False
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
        from mlflow import MlflowClient

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

    def test_an_observation_that_no_longer_holds_is_shown_as_nan(self, tracker):
        from mlflow import MlflowClient

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


def test_a_server_that_does_not_answer_is_a_user_s_error():
    tracker = open_tracker(f"http://127.0.0.1:{free_port()}", experiment="x")
    with pytest.raises(UserError, match="cannot be reached"):
        tracker.index(["1" * 32])
    tracker.close()

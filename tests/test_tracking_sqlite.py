"""The tracker over a SQLite file."""

import pytest
from servers import empty_sqlite
from tracking_parent import MlflowContract

from orchestrator.tracking.factory import open_tracker


class TestSqlite(MlflowContract):
    experiment = "tests"

    @pytest.fixture(autouse=True)
    def _record(self, tmp_path):
        self.uri = f"sqlite:///{empty_sqlite(tmp_path / 'kept' / 'mlflow.db')}"

    def open(self):
        return open_tracker(self.uri, experiment="tests")

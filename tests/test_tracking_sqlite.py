"""The tracker over a SQLite file."""

import pytest
from servers import empty_sqlite
from tracking_contract import TrackerContract, parent_by_mlflow

from orchestrator.tracking.factory import open_tracker


class TestSqlite(TrackerContract):
    @pytest.fixture(autouse=True)
    def _record(self, tmp_path):
        self.experiment = "tests"
        self.file = empty_sqlite(tmp_path / "kept" / "mlflow.db")

    def open(self):
        return open_tracker(f"sqlite:///{self.file}", experiment="tests")

    def parent(self, sweep):
        return parent_by_mlflow(f"sqlite:///{self.file}", self.experiment, sweep)

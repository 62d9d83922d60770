"""The tracker over a SQLite file."""

import pytest
from servers import empty_sqlite
from tracking_contract import TrackerContract

from orchestrator.tracking.factory import open_tracker


class TestSqlite(TrackerContract):
    @pytest.fixture(autouse=True)
    def _record(self, tmp_path):
        self.file = empty_sqlite(tmp_path / "kept" / "mlflow.db")

    def open(self):
        return open_tracker(f"sqlite:///{self.file}", experiment="tests")

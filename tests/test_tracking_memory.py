"""The tracker in memory."""

import pytest
from tracking_contract import SWEEP
from tracking_parent import ParentContract

from orchestrator.tracking.memory import MemoryRecord, MemoryTracker


class TestMemory(ParentContract):
    @pytest.fixture(autouse=True)
    def _record(self):
        self.kept = MemoryRecord()

    def open(self):
        return MemoryTracker(self.kept)

    def parent(self, sweep):
        metrics = {name: value for (of, name), value in self.kept.metrics.items() if of == sweep.sweep_id}
        return self.kept.sweeps[sweep.sweep_id], None, metrics

    def history(self, sweep, name):
        return sorted(self.kept.traces[sweep.sweep_id, name].items())

    def artifacts(self, sweep):
        return {path for of, path in self.kept.artifacts if of == sweep.sweep_id}

    def test_the_parent_holds_sweep_file_status_and_metrics(self, tracker):
        tracker.end_sweep("FAILED", {"boundary": 1.5})
        assert self.kept.sweeps == {SWEEP.sweep_id: "FAILED"}
        assert self.kept.metrics == {(SWEEP.sweep_id, "boundary"): 1.5}
        assert self.kept.artifacts == {(SWEEP.sweep_id, "sweep.yaml"): SWEEP.resolved_yaml.encode()}

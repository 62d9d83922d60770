"""Counts of `status`: trials by state, and phases under the sweep's own thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli import main
from orchestrator.commands import inspect
from orchestrator.commands.wiring import open_tracker, sweep_record
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.sweep.sweep import Sweep

SWEEP = """\
name: descents
job: jobs_for_tests:Descent
axes:
  learning_rate: [0.1, 0.2, 0.3, 0.4]
tracking: {uri: "sqlite:///RECORD"}
"""


def test_phases_are_counted_under_the_sweeps_own_thresholds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.replace("RECORD", str(tmp_path / "record.db")))
    others = Sweep.load(file, ["phases.far_loss=5.0"])
    tracker = open_tracker(others)
    tracker.open_sweep(sweep_record(others))
    trials = others.trials()
    tracker.begin(trials)
    loss = [0.05, 0.5, 2.0, 3.0]
    tracker.record(
        CurveRows(
            trial_ids=tuple(t.id for t in trials),
            metrics=("loss",),
            trial=np.arange(4, dtype=np.int32),
            step=np.full(4, 20),
            values=np.array(loss)[:, None],
        )
    )
    tracker.end(
        [
            TrialResult(trial_id=t.id, status=Status.FINISHED, phase=phase, observations={"final_loss": value})
            for t, value, phase in zip(trials, loss, ("arrived", "near", "near", "near"), strict=True)
        ]
    )
    tracker.close()

    def said(*options: str) -> str:
        assert main(["status", str(file), *options]) == 0
        return capsys.readouterr().out

    own = said("--set", "phases.far_loss=5.0")
    assert "phases    near 3, arrived 1" in own and "other thresholds" not in own
    anew = said()
    assert "phases    far 2, arrived 1, near 1" in anew
    assert "4 of them relabelled here only" in anew and "phasefront map" in anew
    assert "phases    near 3, arrived 1" in said("--set", "phases.far_loss=5.0")  # the record is as it was
    monkeypatch.setattr(inspect, "LABELLED_ANEW", 3)
    many = said()
    assert "phases  " not in many
    assert "others    near 3, arrived 1: the labels of 4 trials under other thresholds" in many

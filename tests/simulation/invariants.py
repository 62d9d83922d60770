"""What must be true of the record after a schedule, whatever happened: the audit, and what only a simulation knows."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.audit import Expected, Invariant, audit
from orchestrator.outages import Patience
from orchestrator.tracking.factory import open_reader, open_tracker
from orchestrator.trial import Trial
from tests.simulation.job import HEALTHY, Drill, DrillThresholds
from tests.simulation.record import EXPERIMENT, SWEEP

CLEAR_TEXT = {
    "raise": r"this setting is impossible",
    "observe": r"cannot be observed",
    "memory": r"memory",
    "surrogate": r"no such file: 'caf.*\.npy'",
    "step": r"step",
    "hang": r"(?i)timed out|trial_timeout",
    "crash": r"lost \d+ workers",
}
"""What the error of a bad trial says."""


def violations(file: Path, trials: Mapping[str, Trial], *, ended: bool) -> list[str]:
    """The broken invariants, each in one line.

    Args:
        file: the record.
        trials: all of the sweep, by id.
        ended: the last driver has ended by itself, so every trial has its final status.
    """
    uri = f"sqlite:///{file}"
    expected = Expected(
        sweep_id=SWEEP.sweep_id,
        job=Drill(),
        trials=trials,
        is_grid=True,
        thresholds=DrillThresholds(),
        fingerprint=SWEEP.thresholds,
    )
    with (
        contextlib.closing(open_tracker(uri, experiment=EXPERIMENT)) as tracker,
        contextlib.closing(
            open_reader(uri, experiment=EXPERIMENT, patience=Patience("the record", say=print))
        ) as reader,
    ):
        report = audit(expected, reader.runs(), tracker.curves, {})
    found = [
        f"{wrong.invariant.value}: {wrong.text}"
        for wrong in report.violations
        if ended or wrong.invariant is not Invariant.NONE_RUNNING
    ]
    with contextlib.closing(sqlite3.connect(file)) as connection:
        found += _of_any_record(connection, trials)
        if ended:
            found += _of_an_ended_sweep(connection, trials)
    return found


_OF_TRIALS = "JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'phasefront.trial_id' "


def _of_any_record(connection: sqlite3.Connection, trials: Mapping[str, Trial]) -> Iterator[str]:
    """What holds at any time, also after a driver was killed."""
    for run, status in connection.execute("SELECT run_uuid, status FROM regressions"):
        yield f"a finished trial never regresses: run {run} became {status}"
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for trial, key, step, value in connection.execute(
        f"SELECT t.value, m.key, m.step, m.value FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid {_OF_TRIALS}"
        "WHERE m.timestamp >= r.start_time"
    ):
        curves.setdefault(trial, {}).setdefault(key, {})[step] = value
    for trial, curve in curves.items():
        trainings = sorted(set(curve.get("training", {}).values()))
        if len(trainings) > 1:
            yield f"a curve is of one training: trial {trial} has rows of trainings {trainings}"
        number = int(trials[trial].settings()["number"])
        values = curve.get("value", {})
        if any(value != number + step for step, value in values.items()):
            yield f"a curve is that of its trial: {trial} has {values}"
        if sorted(values) != list(range(1, len(values) + 1)):
            yield f"a curve has no gap: trial {trial} has steps {sorted(values)}"


def _of_an_ended_sweep(connection: sqlite3.Connection, trials: Mapping[str, Trial]) -> Iterator[str]:
    """Healthy trials are FINISHED, and bad ones FAILED with a clear text."""
    runs = {
        trial: (status, error)
        for trial, status, error in connection.execute(
            f"SELECT t.value, r.status, COALESCE(e.value, '') FROM runs r {_OF_TRIALS}"
            "LEFT JOIN tags e ON e.run_uuid = r.run_uuid AND e.key = 'phasefront.error'"
        )
    }
    for trial in trials.values():
        trouble = str(trial.settings()["trouble"])
        status, error = runs.get(trial.id, ("not recorded", ""))
        wanted = "FINISHED" if trouble == HEALTHY else "FAILED"
        name = f"trial {trial.settings()['number']} ({trouble})"
        if status != wanted:
            yield f"{name} is {status}, not {wanted}: {error.strip()}"
        elif wanted == "FAILED" and not re.search(CLEAR_TEXT[trouble], error):
            yield f"{name} failed without a clear text: {error.strip()}"

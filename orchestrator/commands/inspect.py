"""check, plan and status: they read and tell, and run nothing."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from orchestrator.commands.wiring import (
    calibration_for,
    load_sweep,
    memory_budget,
    open_tracker,
    resources_at_hand,
    states_cost,
)
from orchestrator.failures import last_line
from orchestrator.plan import Planner, PlanSummary, summarise
from orchestrator.progress import amount_of_bytes, duration, phase_counts
from orchestrator.records import Status
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

FAILURES_SHOWN = 10
"""Failed trials that are listed one by one."""


def check(arguments: argparse.Namespace) -> int:
    """Validate the file, down to every trial's parameters."""
    sweep = load_sweep(arguments)
    trials = sweep.trials()
    axes = " x ".join(f"{axis.name} {len(axis.values)}" for axis in sweep.axes) or "no axes"
    print(f"{arguments.file}: valid. {len(trials)} trials of {sweep.job} ({axes}; replicates {sweep.replicates})")
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """What a run would do, and take."""
    sweep = load_sweep(arguments)
    trials = sweep.trials()
    tracker = open_tracker(sweep)
    try:
        recorded = tracker.index([trial.id for trial in trials])
    finally:
        tracker.close()
    todo = [t for t in trials if t.id not in recorded or recorded[t.id].status is not Status.FINISHED]
    workers, device = resources_at_hand(sweep, inline=arguments.inline)
    calibration = calibration_for(device, needed=states_cost(sweep, todo))
    planner = Planner(
        job_name=sweep.job,
        job=sweep.job_object(),
        calibration=calibration,
        memory_budget_bytes=memory_budget(sweep, calibration.machine, workers=workers),
    )
    packs = planner.plan(todo, workers=workers)
    found = summarise(planner, todo, packs, finished=len(trials) - len(todo), workers=workers)
    print("\n".join(plan_lines(found, sizes=[len(pack.trials) for pack in packs], inline=arguments.inline)))
    return 0


def plan_lines(found: PlanSummary, *, sizes: Sequence[int], inline: bool = False) -> list[str]:
    """A plan in words."""
    left = found.trials - found.finished
    lines = [f"trials    {found.trials}: {found.finished} finished, {left} to run"]
    if not left:
        return [*lines, "nothing to run"]
    size = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    lines.append(f"packs     {found.packs}, of {size} trials")
    lines.append(f"workers   {found.workers} on {found.device}")
    if found.estimate_s is None:
        lines.append("time      unknown: the job states no cost and has not run here yet")
    else:
        origin = "" if found.measured else ", from stated defaults: this machine was not measured"
        lines.append(f"time      about {duration(found.estimate_s)}{origin}")
        if not inline:
            lines.append(f"start-up  about {duration(found.startup_s)} before that")
    if found.memory_bytes:
        memory = amount_of_bytes(found.memory_bytes)
        lines.append(f"memory    about {memory} for all workers, beyond data and libraries")
    unknown = "unknown: the job does not say how often it reports"
    lines.append(f"rows      {unknown if found.record_rows is None else format(found.record_rows, ',')}, for MLflow")
    return lines


def status(arguments: argparse.Namespace) -> int:
    """How the sweep stands in the record."""
    sweep = load_sweep(arguments)
    trials = sweep.trials()
    by_id = {trial.id: trial for trial in trials}
    counts: Counter[Status] = Counter()
    phases: Counter[str] = Counter()
    stale = 0
    failed: list[tuple[Trial, TrialRow]] = []
    fingerprint = sweep.thresholds_fingerprint()
    tracker = open_tracker(sweep)
    try:
        parent = tracker.find_sweep(sweep.id)
        for row in tracker.rows(by_id):
            counts[row.recorded.status] += 1
            if row.recorded.status is Status.FINISHED:
                phases[row.recorded.phase or "no phase"] += 1
                stale += row.recorded.thresholds != fingerprint
            elif row.recorded.status is Status.FAILED and len(failed) < FAILURES_SHOWN:
                failed.append((by_id[row.trial_id], row))
    finally:
        tracker.close()
    missing = len(trials) - counts.total()
    print(f"sweep     {sweep.name} ({sweep.id})")
    print(f"record    {sweep.tracking.uri}, experiment {sweep.tracking.experiment}")
    print(f"parent    {parent if parent else 'no run yet'}")
    print(
        f"trials    {len(trials)}: {counts[Status.FINISHED]} finished, {counts[Status.RUNNING]} running, "
        f"{counts[Status.FAILED]} failed, {counts[Status.KILLED]} killed, {missing} missing"
    )
    if phases:
        print(f"phases    {phase_counts(phases)}")
    if stale:
        print(f"          {stale} under other thresholds: `phasefront map` or `run` labels them anew, without training")
    for trial, row in failed:
        print(failure_line(trial, row.error, varied=[axis.name for axis in sweep.axes]))
        print(f"          run {row.run_id}")
    if counts[Status.FAILED] > FAILURES_SHOWN:
        print(f"          and {counts[Status.FAILED] - FAILURES_SHOWN} more failed trials")
    return 0


def failure_line(trial: Trial, error: str | None, *, varied: Sequence[str]) -> str:
    """A failed trial in one line: where it lies in the sweep, and what it died of."""
    settings = trial.settings()
    shown = [f"{name}={settings[name]}" for name in varied if name in settings]
    place = ", ".join([*shown, f"replicate={trial.replicate}"])
    return f"failed    {place}: {last_line(error) if error else 'see its run'}"

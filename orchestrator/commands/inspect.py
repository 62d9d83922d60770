"""check, plan and status: they read and tell, and run nothing."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from orchestrator.axes import Axis
from orchestrator.commands.browse import browse_lines
from orchestrator.commands.searching import study_name, trials_at_hand, trials_to_come
from orchestrator.commands.wiring import (
    calibration_for,
    load_now,
    load_sweep,
    make_planner,
    open_tracker,
    rehearsed,
    resources_at_hand,
    states_cost,
)
from orchestrator.failures import last_line
from orchestrator.plan.planner import PlanSummary, summarise
from orchestrator.progress import amount_of_bytes, duration, phase_counts
from orchestrator.records import Status
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.address import shown
from orchestrator.tracking.base import Tracker, TrialRow
from orchestrator.trial import Trial

FAILURES_SHOWN = 10
"""Failed trials that are listed one by one."""


LABELLED_ANEW = 500
"""The most trials whose curves `status` reads, to label them under the sweep's own thresholds."""
BUSY = 1.2
"""A machine that is slowed by more is said to be in use by others."""


def check(arguments: argparse.Namespace) -> int:
    """Validate the file, down to every trial's parameters."""
    sweep = load_sweep(arguments)
    axes = " x ".join(f"{axis.name} {_extent(axis)}" for axis in sweep.axes) or "no axes"
    most = "at most " if sweep.is_search else ""
    print(
        f"{arguments.file}: valid. {most}{sweep.most_trials} trials of {sweep.job} "
        f"({axes}; replicates {sweep.replicates})"
    )
    if sweep.is_search:
        print("\n".join(search_lines(sweep)))
    return 0


def _extent(axis: Axis) -> str:
    return f"{axis.values[0]:g} to {axis.values[-1]:g}" if axis.between else str(len(axis.values))


def search_lines(sweep: Sweep) -> list[str]:
    """What a search looks for, in words."""
    search = sweep.search
    until = [] if search.until is None else [f"until the uncertain area is {search.until.uncertain_area:g} of the map"]
    ends = ", or ".join([*until, f"after {sweep.most_trials} trials"])
    slices = f", in {len(sweep.slices)} slices" if len(sweep.slices) > 1 else ""
    return [f"search    {search.target.description}{slices}; {ends}"]


def plan(arguments: argparse.Namespace) -> int:
    """What a run would do, and take."""
    sweep = load_sweep(arguments)
    tracker = open_tracker(sweep)
    try:
        trials = trials_at_hand(sweep, tracker)
        recorded = tracker.index([trial.id for trial in trials])
    finally:
        tracker.close()
    todo = [t for t in trials if t.id not in recorded or recorded[t.id].status is not Status.FINISHED]
    if sweep.is_search:
        to_come = trials_to_come(sweep, len(trials))
        trials, todo = [*trials, *to_come], [*todo, *to_come]
        print("\n".join(search_lines(sweep)))
    workers, device = resources_at_hand(sweep, inline=arguments.inline)
    calibration = calibration_for(device, needed=states_cost(sweep, todo))
    planner = make_planner(sweep, calibration, workers=workers)
    planner = rehearsed(planner, sweep, todo, workers=workers)
    packs = planner.plan(todo, workers=workers)
    slowdown = load_now(planner)
    found = summarise(planner, todo, packs, finished=len(trials) - len(todo), workers=workers, slowdown=slowdown)
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
    lines.append(f"time      {time_words(found)}")
    if not inline and found.estimate_s is not None:
        seen = found.startup_s
        lines.append(f"start-up  {'not seen here yet' if seen is None else 'about ' + duration(seen)}, before that")
    if found.memory_bytes:
        memory = amount_of_bytes(found.memory_bytes)
        lines.append(f"memory    about {memory} for all workers, beyond data and libraries")
    unknown = "unknown: the job does not say how often it reports"
    lines.append(f"rows      {unknown if found.record_rows is None else format(found.record_rows, ',')}, for MLflow")
    return lines


def time_words(found: PlanSummary) -> str:
    """The estimate in words: a bound where trials may end early, and what came of it before."""
    if found.estimate_s is None:
        return "unknown: the job states no cost, has not run here yet, and no trial ended within seconds"
    origin = "" if found.measured else ", from stated defaults: this machine was not measured"
    if found.slowdown >= BUSY:
        origin += f" (others use this machine now: {found.slowdown:.1f} times what it takes alone)"
    if not found.at_most:
        return f"about {duration(found.estimate_s)}{origin}"
    most = f"at most {duration(found.estimate_s)}{origin}: trials may end early"
    if found.early_s is None:
        return most
    whose = "trials of this sweep" if found.early_seen else "trials of this job"
    return f"{most}; about {duration(found.early_s)} if as early as the last {whose}"


def status(arguments: argparse.Namespace) -> int:
    """How the sweep stands in the record."""
    sweep = load_sweep(arguments)
    counts: Counter[Status] = Counter()
    phases: Counter[str] = Counter()
    stale: dict[str, str] = {}
    """Trial id -> label under other thresholds than this sweep's."""
    failed: list[tuple[Trial, TrialRow]] = []
    fingerprint = sweep.thresholds_fingerprint()
    tracker = open_tracker(sweep)
    try:
        trials = trials_at_hand(sweep, tracker)
        by_id = {trial.id: trial for trial in trials}
        parent = tracker.find_sweep(sweep.id)
        pages = browse_lines(sweep.tracking.uri, tracker.experiment_id, parent)
        for row in tracker.rows(by_id):
            counts[row.recorded.status] += 1
            if row.recorded.status is Status.FINISHED:
                label = row.recorded.phase or "no phase"
                if row.recorded.thresholds != fingerprint:
                    stale[row.trial_id] = label
                else:
                    phases[label] += 1
            elif row.recorded.status is Status.FAILED and len(failed) < FAILURES_SHOWN:
                failed.append((by_id[row.trial_id], row))
        anew = _labelled_anew(sweep, tracker, {trial_id: by_id[trial_id] for trial_id in stale})
    finally:
        tracker.close()
    missing = len(trials) - counts.total()
    phases.update(anew.values())
    print(f"sweep     {sweep.name} ({sweep.id})")
    print(f"record    {shown(sweep.tracking.uri)}, experiment {sweep.tracking.experiment}")
    print("\n".join([f"parent    {parent if parent else 'no run yet'}", *pages]))
    if sweep.is_search:
        print("\n".join(search_lines(sweep)))
        print(f"study     {study_name(sweep)!r} in {sweep.storage_shown}: {len(trials)} of its trials are asked")
    print(
        f"trials    {len(trials)}: {counts[Status.FINISHED]} finished, {counts[Status.RUNNING]} running, "
        f"{counts[Status.FAILED]} failed, {counts[Status.KILLED]} killed, {missing} missing"
    )
    if phases:
        print(f"phases    {phase_counts(phases)}")
    others = Counter(label for trial_id, label in stale.items() if trial_id not in anew)
    if anew:
        print(f"          {len(anew)} of them labelled for this count alone: the record has other thresholds' labels")
    if others:
        print(f"others    {phase_counts(others)}: the labels of {others.total()} trials under other thresholds")
    if stale:
        print(f"          labelled anew in the record, without training, by: {command_line(arguments, 'map')}")
    for trial, row in failed:
        print(failure_line(trial, row.error, varied=[axis.name for axis in sweep.axes]))
        print(f"          run {row.run_id}")
    if counts[Status.FAILED] > FAILURES_SHOWN:
        print(f"          and {counts[Status.FAILED] - FAILURES_SHOWN} more failed trials")
    return 0


def command_line(arguments: argparse.Namespace, command: str) -> str:
    """A command on the same sweep, to be typed: its file and its `--set` options."""
    options = (word for override in arguments.overrides for word in ("--set", override))
    return shlex.join(["phasefront", command, str(arguments.file), *options])


def _labelled_anew(sweep: Sweep, tracker: Tracker, stale: Mapping[str, Trial]) -> dict[str, str]:
    """The labels of these trials under the sweep's own thresholds, by trial id; the record keeps what it has.

    None where there are more than `LABELLED_ANEW`, and none of a trial whose curve the job cannot reduce.
    """
    from orchestrator.reduce import reduce_curves

    if not 0 < len(stale) <= LABELLED_ANEW:
        return {}
    job, thresholds = sweep.job_object(), sweep.thresholds()
    found: dict[str, str] = {}
    for trial_id, curves in tracker.curves(list(stale)):
        with contextlib.suppress(Exception):  # the job's own code; `map` says what it raises
            found[trial_id] = reduce_curves(job, stale[trial_id].params, curves, thresholds)[0]
    return found


def failure_line(trial: Trial, error: str | None, *, varied: Sequence[str]) -> str:
    """A failed trial in one line: where it lies in the sweep, and what it died of."""
    settings = trial.settings()
    values = [f"{name}={settings[name]}" for name in varied if name in settings]
    place = ", ".join([*values, f"replicate={trial.replicate}"])
    return f"failed    {place}: {last_line(error) if error else 'see its run'}"

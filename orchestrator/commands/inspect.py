"""check, plan, status and schema: the commands that only read."""

from __future__ import annotations

import argparse
import contextlib
import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from orchestrator.axes import Axis
from orchestrator.commands.again import command_line
from orchestrator.commands.browse import browse_lines
from orchestrator.commands.searching import known_trials, used_study
from orchestrator.commands.wiring import (
    load_now,
    load_sweep,
    make_planner,
    measured,
    open_tracker,
    rehearsed,
    resources_at_hand,
)
from orchestrator.plan.pack import Pack
from orchestrator.plan.planner import Planner
from orchestrator.printable import last_line
from orchestrator.progress import amount_of_bytes, duration, phase_counts
from orchestrator.records import Status
from orchestrator.reduce import doubt_lines, doubts, without_bounds_lines
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.base import Tracker, TrialRow
from orchestrator.trial import Trial

FAILURES_SHOWN = 10
"""Failed trials that are listed one by one."""
LABELLED_ANEW = 500
"""The most trials whose curves `status` reads, to label them under the sweep's own thresholds."""
BUSY = 1.2
"""Slowdown above which the machine is reported as in use by others."""


def check(arguments: argparse.Namespace) -> int:
    """Validate the file, including the parameters of every trial."""
    sweep = load_sweep(arguments)
    axes = " x ".join(f"{axis.name} {_extent(axis)}" for axis in sweep.axes) or "no axes"
    most = "at most " if sweep.is_search else ""
    trials = f"{most}{sweep.most_trials} trials of {sweep.job} ({axes}; replicates {sweep.replicates})"
    print("\n".join([f"{arguments.file}: valid. {trials}", *search_lines(sweep)]))
    return 0


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of sweep files."""
    del arguments
    from orchestrator.sweep.schema import main_text

    print(main_text(), end="")
    return 0


def _extent(axis: Axis) -> str:
    return f"{axis.values[0]:g} to {axis.values[-1]:g}" if axis.between else str(len(axis.values))


def search_lines(sweep: Sweep) -> list[str]:
    """A line that says what a search looks for and when it ends; none for a grid."""
    if not sweep.is_search:
        return []
    area = sweep.uncertain_area
    until = "stops " if area is None else f"stops when the uncertain area is {area:g} of the map, or "
    slices = f", in {len(sweep.slices)} slices" if len(sweep.slices) > 1 else ""
    return [f"search    {sweep.search.target.description}{slices}; {until}after {sweep.most_trials} trials"]


def plan(arguments: argparse.Namespace) -> int:
    """Show what a run would do, and estimate its time and memory."""
    sweep = load_sweep(arguments)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        trials = known_trials(sweep, tracker)
        recorded = tracker.index([trial.id for trial in trials])
    todo = [t for t in trials if t.id not in recorded or recorded[t.id].status is not Status.FINISHED]
    finished = len(trials) - len(todo)
    if sweep.is_search:
        todo += sweep.sample(max(0, sweep.most_trials - len(trials)))
        print("\n".join(search_lines(sweep)))
    print(f"trials    {len(todo) + finished}: {finished} finished, {len(todo)} to run")
    if not todo:
        print("nothing to run")
        return 0
    shape = resources_at_hand(sweep, inline=arguments.inline)
    planner = make_planner(sweep, measured(sweep, todo, shape.device), shape=shape)
    planner = rehearsed(planner, sweep, todo, shape=shape)
    packs = planner.plan(todo, workers=shape.workers)
    print("\n".join(plan_lines(planner, packs, workers=shape.workers, inline=arguments.inline)))
    return 0


def plan_lines(planner: Planner, packs: Sequence[Pack], *, workers: int, inline: bool) -> list[str]:
    """A plan in words."""
    estimate = time_estimate(planner, packs, workers=workers, slowdown=load_now(planner))
    sizes = [len(pack.trials) for pack in packs]
    size = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    lines = [
        f"packs     {len(packs)}, of {size} trials",
        f"workers   {workers} on {planner.calibration.machine.device}",
        f"time      {estimate}",
    ]
    if not inline and not estimate.startswith("unknown"):
        startup_s = planner.calibration.startup_s
        startup = (
            "not measured on this machine yet" if startup_s is None else f"about {duration(startup_s)} in addition"
        )
        lines.append(f"start-up  {startup}")
    memory_bytes = math.fsum(heapq.nlargest(workers, (pack.memory_bytes for pack in packs)))
    if memory_bytes:
        lines.append(f"memory    about {amount_of_bytes(memory_bytes)} for all workers, beyond data and libraries")
    rows = planner.record_rows([trial for pack in packs for trial in pack.trials])
    unknown = "unknown: the job does not state how often it reports"
    return [*lines, f"rows      {unknown if rows is None else f'{rows:,} in MLflow'}"]


def time_estimate(planner: Planner, packs: Sequence[Pack], *, workers: int, slowdown: float) -> str:
    """The estimate in words: an upper bound if trials may end early, and the time if they end as early as before."""
    estimate_s = planner.estimate_s(packs, workers=workers, slowdown=slowdown)
    if estimate_s is None:
        return "unknown: the job states no cost, has not run here yet, and no trial ended within seconds"
    origin = "" if planner.measured else ", from default speeds: this machine was not measured"
    if slowdown >= BUSY:
        origin += f" (other processes slow this machine now, by a factor of {slowdown:.1f})"
    if not any(pack.at_most for pack in packs):
        return f"about {duration(estimate_s)}{origin}"
    most = f"at most {duration(estimate_s)}{origin}: trials may end early"
    early_s, of_sweep = planner.early_s(packs, workers=workers, slowdown=slowdown)
    if early_s is None:
        return most
    whose = "trials of this sweep" if of_sweep else "trials of this job"
    return f"{most}; about {duration(early_s)} if as early as the last {whose}"


def status(arguments: argparse.Namespace) -> int:
    """Show how many of the sweep's trials are recorded, and in which status and phase."""
    sweep = load_sweep(arguments)
    job = sweep.job_object()
    counts: Counter[Status] = Counter()
    phases: Counter[str] = Counter()
    stale: dict[str, str] = {}
    """Trial id -> its label under thresholds that are not this sweep's."""
    failed: list[tuple[Trial, TrialRow]] = []
    doubted: Counter[str] = Counter()
    without_bounds = 0
    fingerprint = sweep.thresholds_fingerprint()
    with contextlib.closing(open_tracker(sweep)) as tracker:
        by_id = {trial.id: trial for trial in known_trials(sweep, tracker)}
        study = used_study(sweep, tracker)
        parent = tracker.find_sweep(sweep.id)
        pages = browse_lines(sweep.tracking.uri, tracker.experiment_id, parent)
        for row in tracker.rows(by_id):
            counts[row.recorded.status] += 1
            if row.recorded.status is Status.FINISHED:
                params, observations = by_id[row.trial_id].params, row.recorded.observations
                doubted.update(doubts(job, [(params, observations)]))
                without_bounds += job.completed(params, observations) is not observations
                label = row.recorded.phase or "no phase"
                if row.recorded.thresholds != fingerprint:
                    stale[row.trial_id] = label
                else:
                    phases[label] += 1
            elif row.recorded.status is Status.FAILED and len(failed) < FAILURES_SHOWN:
                failed.append((by_id[row.trial_id], row))
        relabelled = _relabelled(sweep, tracker, {trial_id: by_id[trial_id] for trial_id in stale})
    phases.update(relabelled.values())
    lines = [f"sweep     {sweep.name} ({sweep.id})", f"record    {sweep.record_shown}"]
    lines += [f"parent    {parent or 'no run yet'}", *pages, *search_lines(sweep)]
    if study:
        lines.append(f"study     {study!r} in {sweep.storage_shown}: {len(by_id)} trials asked for")
    numbers = [
        f"{counts[s]} {s.value.lower()}" for s in (Status.FINISHED, Status.RUNNING, Status.FAILED, Status.KILLED)
    ]
    lines.append(f"trials    {len(by_id)}: {', '.join(numbers)}, {len(by_id) - counts.total()} missing")
    if phases:
        lines.append(f"phases    {phase_counts(phases)}")
    others = Counter(label for trial_id, label in stale.items() if trial_id not in relabelled)
    if relabelled:
        lines.append(
            f"          {len(relabelled)} of them relabelled here only: the record has labels under other thresholds"
        )
    if others:
        lines.append(f"others    {phase_counts(others)}: the labels of {others.total()} trials under other thresholds")
    if stale:
        lines.append(f"          to relabel them in the record, without training: {command_line(arguments, 'map')}")
    lines += [f"doubtful  {line}" for line in doubt_lines(doubted)]
    lines += [f"steps     {line}" for line in without_bounds_lines(without_bounds)]
    for trial, row in failed:
        lines += [failure_line(trial, row.error, sweep), f"          run {row.run_id}"]
    if counts[Status.FAILED] > FAILURES_SHOWN:
        lines.append(f"          and {counts[Status.FAILED] - FAILURES_SHOWN} more failed trials")
    print("\n".join(lines))
    return 0


def _relabelled(sweep: Sweep, tracker: Tracker, stale: Mapping[str, Trial]) -> dict[str, str]:
    """Trial id -> label under the sweep's own thresholds; the record is not changed.

    Empty where there are more than `LABELLED_ANEW`; without the trials whose curves the job cannot reduce.
    """
    from orchestrator.reduce import reduce_curves

    if not 0 < len(stale) <= LABELLED_ANEW:
        return {}
    job, thresholds = sweep.job_object(), sweep.thresholds()
    labels: dict[str, str] = {}
    for trial_id, curves in tracker.curves(list(stale)):
        with contextlib.suppress(Exception):  # the job's own code; `map` says what it raises
            labels[trial_id] = reduce_curves(job, stale[trial_id].params, curves, thresholds)[0]
    return labels


def failure_line(trial: Trial, error: str | None, sweep: Sweep) -> str:
    """A failed trial in one line: its values of the axes, and its error."""
    place = trial.text(axis.name for axis in sweep.axes)
    return f"failed    {place}: {last_line(error) if error else 'see its run'}"

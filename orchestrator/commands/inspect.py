"""check, plan and schema: what a sweep file says, before anything is recorded."""

from __future__ import annotations

import argparse
import contextlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.axes import Axis
from orchestrator.commands.advising import caution_lines, cautions, cost_line
from orchestrator.commands.extending import ancestors, extended
from orchestrator.commands.rehearsing import SAMPLE, rehearsed, say_rehearsal
from orchestrator.commands.reported import check_reported
from orchestrator.commands.searching import first_asked, known_trials
from orchestrator.commands.wiring import (
    kept_states,
    load_now,
    load_sweep,
    make_planner,
    measured,
    open_tracker,
    resources_at_hand,
)
from orchestrator.plan.grid_picture import FAILED, FINISHED, grid_picture
from orchestrator.plan.pack import Pack
from orchestrator.plan.planner import Planner
from orchestrator.progress import amount_of_bytes, counted, duration
from orchestrator.records import Status
from orchestrator.sweep.sweep import Sweep

BUSY = 1.2
"""Slowdown above which the machine is reported as in use by others."""


def check(arguments: argparse.Namespace) -> int:
    """Validate the file, including the parameters of every trial."""
    sweep = load_sweep(arguments)
    axes = " x ".join(f"{axis.name} {_extent(axis)}" for axis in sweep.axes) or "no axes"
    most = "at most " if sweep.is_search else ""
    count = f"{sweep.most_trials} trial{'s' * (sweep.most_trials != 1)}"
    # A search without points gives its settings 64 numbers in turn, which is no count of trials.
    is_default = sweep.is_open and "replicates" not in sweep.written.model_fields_set
    replicates = "" if is_default else f"; replicates {sweep.replicates}"
    trials = f"{most}{count} of {sweep.job} ({axes}{replicates})"
    trials += f"; extends {sweep.extends}" if sweep.extends else ""
    print("\n".join([f"{arguments.file}: valid. {trials}", *search_lines(sweep)]))
    some = sweep.sample(min(SAMPLE, sweep.most_trials)) if sweep.is_search else sweep.trials()
    for line in caution_lines(cautions(sweep, some, {})):
        print(line)
    if arguments.rehearse:
        check_reported(sweep, some)
        shape = resources_at_hand(sweep, inline=True)
        planner = make_planner(sweep, measured(sweep, some, shape.device), shape=shape)
        say_rehearsal(rehearsed(planner, sweep, some, shape=shape, known=True), sweep, str(arguments.file))
        for line in sweep.job_object().remarks([trial.params for trial in some], measure=True):
            print(line)
    return 0


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of sweep files."""
    del arguments
    from orchestrator.sweep.schema import main_text

    print(main_text(), end="")
    return 0


def _extent(axis: Axis) -> str:
    return f"{axis.values[0]:g} to {axis.values[-1]:g}" if axis.between else str(len(axis.values))


def search_lines(sweep: Sweep, known: int = 0) -> list[str]:
    """A line that says what a search looks for and when it ends; none for a grid.

    Args:
        sweep: the sweep.
        known: trials that it has asked for already.
    """
    if not sweep.is_search:
        return []
    area = sweep.uncertain_area
    until = "stops " if area is None else f"stops when the uncertain area is {area:g} of the map, or "
    slices = f", in {len(sweep.slices)} slices" if len(sweep.slices) > 1 else ""
    after = counted(sweep.most_trials, "trial")
    if known > sweep.most_trials:
        after += f"; it has {known:,} already, from a run with a larger budget"
    return [f"search    {sweep.search.target.description}{slices}; {until}after {after}"]


def plan(arguments: argparse.Namespace) -> int:
    """Show what a run would do, and estimate its time, memory and cost."""
    sweep = load_sweep(arguments)
    with contextlib.closing(open_tracker(sweep)) as tracker:
        trials = known_trials(sweep, tracker)
        bases = ancestors(sweep)
        if sweep.is_search and not trials and not bases:
            trials = first_asked(sweep)  # other sweeps may have run them
        recorded = tracker.index([trial.id for trial in trials])
        finished = {trial_id for trial_id, state in recorded.items() if state.status is Status.FINISHED}
        before = extended(sweep, bases, tracker, trials, finished)
    taken = {trial.id: trial for each in before for trial in each.trials}
    trials = list({**{trial.id: trial for trial in trials}, **taken}.values())
    todo = [t for t in trials if t.id not in finished and t.id not in taken]
    if sweep.is_search:
        todo += sweep.sample(max(0, sweep.most_trials - len(trials)))
        print("\n".join(search_lines(sweep)))
    said = [f"{len(each.trials)} already finished in {each.text}" for each in before if each.trials]
    own = len(finished - taken.keys())
    if own or not said:
        said.insert(0, f"{own} finished")
    print(f"trials    {len(todo) + len(finished | taken.keys())}: {', '.join(said)}, {len(todo)} to run")
    failed = {i: FAILED for i, state in recorded.items() if state.status is Status.FAILED}
    marks = {**failed, **dict.fromkeys((*finished, *taken), FINISHED)}
    for line in grid_picture(sweep.axes, trials if marks or not sweep.is_search else [], marks):
        print(line)
    if not todo:
        print("nothing to run")
        return 0
    check_reported(sweep, todo)
    shape = resources_at_hand(sweep, inline=arguments.inline)
    planner = make_planner(sweep, measured(sweep, todo, shape.device), shape=shape)
    rehearsal = rehearsed(planner, sweep, todo, shape=shape)
    planner = make_planner(sweep, rehearsal.calibration, shape=shape)
    states = kept_states(sweep, say=print)
    kept = None if states is None else states.extend(todo)
    packs = planner.plan(todo, workers=shape.workers)
    if kept is not None and kept.left:
        packs = [
            replace(pack, seconds=pack.seconds * sum(kept.left.get(t.id, 1.0) for t in pack.trials) / len(pack.trials))
            for pack in packs
        ]
    slowdown = load_now(planner)
    print("\n".join(plan_lines(planner, packs, workers=shape.workers, inline=arguments.inline, slowdown=slowdown)))
    if shape.lacking:
        print(f"waiting   {shape.lacking}; the run waits until a node has it")
    for line in kept.lines if kept is not None else ():
        print(f"kept      {line}")
    seconds = planner.estimate_s(packs, workers=shape.workers, slowdown=slowdown)
    if arguments.price is not None and seconds is not None:
        early_s, _ = planner.early_s(packs, workers=shape.workers, slowdown=slowdown)
        print(cost_line(arguments.price, seconds, shape, early_s=early_s))
    observed = {i: recorded[i].observations for i in finished}
    for line in caution_lines(cautions(sweep, [*trials, *todo], observed, rehearsal)):
        print(line)
    say_rehearsal(rehearsal, sweep, str(arguments.file))
    for line in sweep.job_object().remarks([trial.params for trial in todo]):
        print(line)
    return 0


def plan_lines(planner: Planner, packs: Sequence[Pack], *, workers: int, inline: bool, slowdown: float) -> list[str]:
    """A plan in words."""
    estimate = time_estimate(planner, packs, workers=workers, slowdown=slowdown)
    sizes = [len(pack.trials) for pack in packs]
    size = f"{min(sizes)} to " * (min(sizes) < max(sizes)) + counted(max(sizes), "trial")
    lines = [
        f"packs     {len(packs)}, of {size}",
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
    unknown = "unknown: the job does not state what it reports, or how often"
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

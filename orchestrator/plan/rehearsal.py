"""Times short trainings before a first plan, to learn how long the packs of this sweep take on this machine.

Counts alone (`jobs.job.Cost`) are off by a factor of two, in a way that differs from kind of pack to
kind of pack. So a few packs of the plan are trained for a fraction of a second each, by as many
processes at a time as there will be workers (they share memory, cores and the load of others), and
the ratio of clock to counts is kept. A job that states no cost is timed by whole trials.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.plan.calibration import Calibration, child_environment
from orchestrator.plan.kinds import KindHistory, SweepHistory
from orchestrator.plan.planner import Pack, Planner
from orchestrator.trial import Trial

PACKS = 5
"""Packs that are timed, at most."""
PACK_BUDGET_S = 0.9
"""Seconds of one pack."""
STEP_S = 0.05
"""Packs whose step takes longer are timed with fewer models."""
FEWEST_MODELS = 4
UNSEEN_SHARE = 0.05
"""No rehearsal if a smaller share of the plan is unknown."""
TRIALS_BUDGET_S = 2.0
"""Seconds of whole trials, of a job that states no cost."""
MOST_TRIALS = 4000
COMPUTING = 0.6
"""Share of its time that a trial must be at work, to count as one that does nothing but compute."""
READY_S = 40.0
"""The longest wait for the processes to load what they need."""
GRACE_S = 8.0
"""After the budget: a trial or a pack that takes longer remains unknown."""
SPIN_S = 0.5
"""How long the processes spin."""
_SPIN = f"""
import os, sys, time
for _ in range(int(sys.argv[1]) - 1):
    if os.fork() == 0:
        break
wall, work = time.perf_counter(), time.process_time()
while time.perf_counter() - wall < {SPIN_S}:
    pass
os.write(1, b"%f\\n" % ((time.perf_counter() - wall) / max(time.process_time() - work, 1e-3)))
"""


def rehearse(planner: Planner, trials: Sequence[Trial], *, workers: int, threads: int) -> Calibration:
    """The planner's calibration, with what was timed now for the kinds of packs it did not know.

    Nothing is recorded of these trainings. Where a process cannot be started, or the job cannot be
    timed, the calibration stays as it is.
    """
    packs = planner.plan(trials, workers=workers)
    if not packs:
        return planner.calibration
    if all(pack.counted_s <= 0 for pack in packs):
        return _whole_trials(planner, trials, threads)
    unseen = _unseen(planner, packs)
    if not unseen:
        return planner.calibration
    chosen = [_trimmed(planner, pack) for pack in _spread(unseen)]
    content = [_content(pack.trials) for pack in chosen]
    budget_s = PACK_BUDGET_S
    request = {"packs": content, "whole": None, "budget_s": budget_s}
    answers = _ask(planner, [request] * planner.at_once, threads, 6 * budget_s * len(content))
    timed: dict[int, list[Mapping[str, float]]] = defaultdict(list)
    for answer in answers:
        timed[int(answer["pack"])].append(answer)
    if not timed:
        return planner.calibration
    return _with(planner, unseen, [(chosen[number], found) for number, found in timed.items()])


def _unseen(planner: Planner, packs: Sequence[Pack]) -> list[Pack]:
    """The packs of kinds and shapes that nobody has seen; none where they are a small part of the plan."""
    kinds = planner.calibration.kinds
    unseen = [p for p in packs if not kinds.get(p.kind, KindHistory()).knows(p.shape)]
    known_s = sum(pack.seconds for pack in packs) * (1 - UNSEEN_SHARE)
    return unseen if sum(pack.seconds for pack in packs) - sum(p.seconds for p in unseen) < known_s else []


def _spread(packs: Sequence[Pack]) -> list[Pack]:
    """A few packs, spread over kinds and shapes by the seconds they stand for."""
    unseen, unseen_s = sorted(packs, key=lambda pack: (pack.kind, pack.shape)), sum(pack.seconds for pack in packs)
    chosen: dict[int, Pack] = {}
    passed_s, wanted = 0.0, [(k + 0.5) / PACKS * unseen_s for k in range(PACKS)]
    for number, pack in enumerate(unseen):
        passed_s += pack.seconds
        while wanted and passed_s >= wanted[0]:
            chosen[number] = pack
            wanted.pop(0)
    return list(chosen.values())


def _trimmed(planner: Planner, pack: Pack) -> Pack:
    """The pack with so few models that its step is short."""
    trials = pack.trials
    cost = planner.job.cost(trials[-1].params, extent=planner.job.extent(trials[-1].params), models=len(trials))
    models = len(trials)
    if cost.steps and pack.counted_s > STEP_S * cost.steps:
        models = min(models, max(FEWEST_MODELS, int(models * STEP_S * cost.steps / pack.counted_s)))
    if models == len(trials):
        return pack
    return planner.pack(tuple(trials[len(trials) - 1 - k * len(trials) // models] for k in range(models)))


def _with(
    planner: Planner, unseen: Sequence[Pack], timed: Sequence[tuple[Pack, Sequence[Mapping[str, float]]]]
) -> Calibration:
    """The calibration with these packs' timings, each by several processes; they stand for all that were unseen."""
    points: dict[str, dict[float, float]] = defaultdict(dict)
    first_s: dict[str, float] = defaultdict(float)
    shapes: dict[str, list[float]] = defaultdict(list)
    for pack in unseen:
        shapes[pack.kind].append(pack.shape)
    for pack, found in timed:
        models = len(pack.trials)
        extent = tuple(max(s) for s in zip(*(planner.job.extent(t.params) for t in pack.trials), strict=True))
        costs = [planner.job.cost(trial.params, extent=extent, models=models) for trial in pack.trials]
        mean = {key: statistics.fmean(answer[key] for answer in found) for key in found[0] if key != "pack"}
        seconds = (
            mean["setup_s"]
            + mean["step_s"] * statistics.fmean(cost.steps for cost in costs)
            + mean["report_s"] * statistics.fmean(cost.reports for cost in costs)
        )
        points[pack.kind][round(pack.shape, 2)] = seconds / pack.counted_s
        first_s[pack.kind] = max(first_s[pack.kind], mean["first_s"])
    old = planner.calibration
    kinds = {name: kind for name, kind in old.kinds.items() if name not in shapes}
    for name, seen in shapes.items():
        history = old.kinds.get(name, KindHistory())
        kinds[name] = history.timed(points.get(name, {}), first_s=first_s.get(name, 0.0), shapes=seen)
    return replace(old, kinds=kinds)


def _whole_trials(planner: Planner, trials: Sequence[Trial], threads: int) -> Calibration:
    """With the mean seconds of a few whole trials of this sweep, where none was seen yet."""
    old = planner.calibration
    if planner.sweep_id in old.sweeps:
        return old
    sample = random.Random(0).sample(list(trials), min(len(trials), MOST_TRIALS))
    share = len(sample) // planner.at_once if len(sample) >= planner.at_once else 1
    requests = [
        {"packs": [], "whole": _content(sample[k * share : (k + 1) * share]), "budget_s": TRIALS_BUDGET_S}
        for k in range(min(planner.at_once, len(sample)))
    ]
    answers = _ask(planner, requests, threads, TRIALS_BUDGET_S)
    # A process's first trial pays for imports; it counts where there is nothing else.
    later = [answer for answer in answers if not answer["first"]] or answers
    if not later:
        return old
    count = sum(answer["trials"] for answer in later)
    clock_s, work_s = (sum(answer[name] for answer in later) for name in ("seconds", "work_s"))
    computes = old.machine.device == "cpu" and threads == 1 and work_s * slowdown(planner.at_once) > COMPUTING * clock_s
    seen = SweepHistory(trial_s=(work_s if computes else clock_s) / count, computes=computes)
    return replace(old, sweeps={**old.sweeps, planner.sweep_id: seen})


def _content(trials: Sequence[Trial]) -> dict[str, Any]:
    return {"params": [dict(trial.settings()) for trial in trials], "seeds": [trial.seed for trial in trials]}


@dataclass(eq=False)
class _Process:
    """One rehearsing process and its answers so far."""

    process: subprocess.Popen[str]
    answers: list[dict[str, Any]]
    ready: threading.Event
    reader: threading.Thread


def _ask(planner: Planner, requests: Sequence[Mapping[str, Any]], threads: int, seconds: float) -> list[dict[str, Any]]:
    """Serve each request in a process of its own, all at the same time; their answers together."""
    about = {
        "job": planner.job_name,
        "device": planner.calibration.machine.device,
        "threads": threads,
        "paths": [str(Path.cwd()), *(str(Path(p).resolve()) for p in sys.path if p and Path(p).is_dir())],
    }
    processes: list[_Process] = []
    try:
        for _ in requests:
            processes.append(_start(about))
        deadline = time.monotonic() + READY_S
        for one in processes:
            one.ready.wait(max(0.0, deadline - time.monotonic()))
        if not all(one.ready.is_set() and one.answers for one in processes):
            return []
        for one, request in zip(processes, requests, strict=True):
            _send(one.process, request)
        deadline = time.monotonic() + seconds + GRACE_S
        for one in processes:
            one.reader.join(max(0.0, deadline - time.monotonic()))
        return [answer for one in processes for answer in list(one.answers) if "ready" not in answer]
    except OSError:
        return []
    finally:
        for one in processes:
            one.process.kill()
            one.process.wait()
            one.reader.join()
            for stream in (one.process.stdin, one.process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


def _start(about: Mapping[str, Any]) -> _Process:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.plan.rehearsal_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=child_environment(),
    )
    answers: list[dict[str, Any]] = []
    ready = threading.Event()

    def read() -> None:
        with contextlib.suppress(ValueError):  # killed in the middle of a line
            for line in process.stdout or ():
                answers.append(json.loads(line))
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, name="rehearsal", daemon=True)
    reader.start()
    _send(process, about)
    return _Process(process, answers, ready, reader)


def _send(process: subprocess.Popen[str], content: Mapping[str, Any]) -> None:
    if process.stdin is not None:
        process.stdin.write(json.dumps(content) + "\n")
        process.stdin.flush()


def slowdown(at_once: int) -> float:
    """By what factor `at_once` busy processes are slower than with a core each; 1 where nobody else computes.

    Measured by as many processes in half a second: other programs, their priorities and a container's
    limits all count. 1 too where it cannot be measured.
    """
    # In one session of their own, as Ray's workers are: Linux shares the cores among sessions first.
    command = [sys.executable, "-S", "-E", "-c", _SPIN, str(at_once)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, start_new_session=True)
        return max(1.0, statistics.fmean(map(float, done.stdout.split())))
    except (OSError, ValueError, subprocess.SubprocessError):
        return 1.0

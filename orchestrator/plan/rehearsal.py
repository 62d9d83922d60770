"""Times short trainings before the first plan of a sweep, to learn how long its packs take on this machine.

The counts of the cost model (`jobs.job.Cost`) are off by a factor of about two, which differs between kinds of packs.
Therefore a few packs of the plan are trained for a fraction of a second each, in as many processes at the same time as
there will be workers (they share memory, cores and the load of other programs), and the ratio of measured to counted
time is stored. A job that states no cost is timed by whole trials.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.plan.calibration import Calibration, child_environment, newest_last
from orchestrator.plan.history import KindHistory, SweepHistory
from orchestrator.plan.pack import Pack
from orchestrator.plan.planner import Planner
from orchestrator.trial import Trial

PACKS = 5
"""The most packs that are timed."""
PACK_BUDGET_S = 0.9
"""Seconds for one pack."""
STEP_S = 0.05
"""Packs with longer steps are timed with fewer models."""
FEWEST_MODELS = 4
UNKNOWN_SHARE = 0.05
"""There is no rehearsal if a smaller share of the plan is of unknown kinds."""
TRIALS_BUDGET_S = 2.0
"""Seconds for whole trials of a job that states no cost."""
MOST_TRIALS = 4000
COMPUTING = 0.6
"""Trials that use the CPU for at least this share of their time are assumed to do nothing but compute."""
READY_S = 40.0
"""Timeout for the processes to load what they need."""
END_S = 2.0
"""The longest wait for the last answers of a process that was killed."""
GRACE_S = 8.0
"""Timeout beyond the budget, after which a trial or a pack remains unknown."""
SPIN_S = 0.5
"""Seconds of the busy loop that measures the slowdown."""
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
    """The planner's calibration, with measurements of the kinds of packs that it did not know.

    These trainings are not recorded. The calibration is returned unchanged if a process cannot be started or the job
    cannot be timed.
    """
    packs = planner.plan(trials, workers=workers)
    if not packs:
        return planner.calibration
    if all(pack.counted_s <= 0 for pack in packs):
        return _time_trials(planner, trials, threads)
    unknown = _unknown_packs(planner, packs)
    sample = [_with_short_steps(planner, pack) for pack in _sample(unknown)]
    request = {"packs": [_content(pack.trials) for pack in sample], "whole": None, "budget_s": PACK_BUDGET_S}
    times: dict[int, list[Mapping[str, float]]] = defaultdict(list)
    if sample:
        for answer in _ask(planner, [request] * planner.at_once, threads, 6 * PACK_BUDGET_S * len(sample)):
            times[int(answer["pack"])].append(answer)
    if not times:
        return planner.calibration
    return _with_times(planner, unknown, [(sample[number], answers) for number, answers in times.items()])


def _unknown_packs(planner: Planner, packs: Sequence[Pack]) -> list[Pack]:
    """The packs of unknown kinds and shapes; none if they are a small part of the plan."""
    kinds = planner.calibration.kinds
    unknown = [p for p in packs if not kinds.get(p.kind, KindHistory()).knows(p.shape)]
    known_s = sum(pack.seconds for pack in packs) * (1 - UNKNOWN_SHARE)
    return unknown if sum(pack.seconds for pack in packs) - sum(p.seconds for p in unknown) < known_s else []


def _sample(packs: Sequence[Pack]) -> list[Pack]:
    """At most `PACKS` packs, spread evenly over the seconds of all, by kind and shape."""
    packs, total_s = sorted(packs, key=lambda pack: (pack.kind, pack.shape)), sum(pack.seconds for pack in packs)
    sample: dict[int, Pack] = {}
    passed_s, marks = 0.0, [(k + 0.5) / PACKS * total_s for k in range(PACKS)]
    for number, pack in enumerate(packs):
        passed_s += pack.seconds
        while marks and passed_s >= marks[0]:
            sample[number] = pack
            marks.pop(0)
    return list(sample.values())


def _with_short_steps(planner: Planner, pack: Pack) -> Pack:
    """The pack with so few models that a step takes at most `STEP_S`."""
    trials, count = pack.trials, len(pack.trials)
    steps = planner.job.cost(trials[-1].params, extent=planner.job.extent(trials[-1].params), models=count).steps
    models = count
    if steps and pack.counted_s > STEP_S * steps:
        models = min(count, max(FEWEST_MODELS, int(count * STEP_S * steps / pack.counted_s)))
    return (
        pack if models == count else planner.pack(tuple(trials[count - 1 - k * count // models] for k in range(models)))
    )


def _with_times(
    planner: Planner, unknown: Sequence[Pack], timed: Sequence[tuple[Pack, Sequence[Mapping[str, float]]]]
) -> Calibration:
    """The calibration with the times of a sample of the unknown packs, each measured by several processes."""
    ratios: dict[str, dict[float, float]] = defaultdict(dict)
    first_s: dict[str, float] = defaultdict(float)
    shapes: dict[str, list[float]] = defaultdict(list)
    for pack in unknown:
        shapes[pack.kind].append(pack.shape)
    for pack, answers in timed:
        extent = tuple(max(sizes) for sizes in zip(*(planner.job.extent(t.params) for t in pack.trials), strict=True))
        costs = [planner.job.cost(t.params, extent=extent, models=len(pack.trials)) for t in pack.trials]
        mean = {key: statistics.fmean(answer[key] for answer in answers) for key in answers[0] if key != "pack"}
        seconds = (
            mean["setup_s"]
            + mean["step_s"] * statistics.fmean(cost.steps for cost in costs)
            + mean["report_s"] * statistics.fmean(cost.reports for cost in costs)
        )
        ratios[pack.kind][round(pack.shape, 2)] = seconds / pack.counted_s
        first_s[pack.kind] = max(first_s[pack.kind], mean["first_s"])
    old = planner.calibration
    kinds = {
        kind: old.kinds.get(kind, KindHistory()).with_rehearsal(
            ratios[kind], first_s=first_s[kind], shapes=shapes[kind]
        )
        for kind in shapes
    }
    return replace(old, kinds=newest_last(old.kinds, kinds))


def _time_trials(planner: Planner, trials: Sequence[Trial], threads: int) -> Calibration:
    """The calibration with the mean seconds of a few whole trials, if this sweep was never timed."""
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
    # The first trial of a process includes imports; it counts only if there is no other.
    later = [answer for answer in answers if not answer["first"]] or answers
    if not later:
        return old
    count, clock_s, work_s = (sum(answer[name] for answer in later) for name in ("trials", "seconds", "work_s"))
    computes = old.machine.device == "cpu" and threads == 1 and work_s * slowdown(planner.at_once) > COMPUTING * clock_s
    history = SweepHistory(trial_s=(work_s if computes else clock_s) / count, computes=computes)
    return replace(old, sweeps=newest_last(old.sweeps, {planner.sweep_id: history}))


def _content(trials: Sequence[Trial]) -> dict[str, Any]:
    return {"params": [dict(trial.settings()) for trial in trials], "seeds": [trial.seed for trial in trials]}


class _Child:
    """A child process that times trainings (`orchestrator.plan.rehearsal_worker`), and its answers so far."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.plan.rehearsal_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=child_environment(),
        )
        self.answers: list[dict[str, Any]] = []
        self.ready = threading.Event()
        """Set with the first answer, and when the process ends."""
        self.reader = threading.Thread(target=self._read, name="rehearsal", daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as answers, contextlib.suppress(ValueError):  # killed in the middle of a line
            for line in answers:
                self.answers.append(json.loads(line))
                self.ready.set()
        self.ready.set()

    def send(self, content: Mapping[str, Any]) -> None:
        """Send one line."""
        if self.process.stdin is not None:
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()


@contextlib.contextmanager
def _child() -> Iterator[_Child]:
    child = _Child()
    try:
        yield child
    finally:
        child.process.kill()
        child.process.wait()
        if child.process.stdin is not None:
            with contextlib.suppress(OSError):
                child.process.stdin.close()
        child.reader.join(END_S)  # what the job has started may hold the pipe open


def _ask(planner: Planner, requests: Sequence[Mapping[str, Any]], threads: int, seconds: float) -> list[dict[str, Any]]:
    """The answers to all requests, each served by a process of its own at the same time; none if one cannot start."""
    about = {
        "job": planner.job_name,
        "device": planner.calibration.machine.device,
        "threads": threads,
        "paths": [str(Path.cwd()), *(str(Path(p).resolve()) for p in sys.path if p and Path(p).is_dir())],
    }
    try:
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(_child()) for _ in requests]
            for child in children:
                child.send(about)
            deadline = time.monotonic() + READY_S
            for child in children:
                child.ready.wait(max(0.0, deadline - time.monotonic()))
            if not all(child.answers for child in children):
                return []
            for child, request in zip(children, requests, strict=True):
                child.send(request)
            deadline = time.monotonic() + seconds + GRACE_S
            for child in children:
                child.reader.join(max(0.0, deadline - time.monotonic()))
            return [answer for child in children for answer in list(child.answers) if "ready" not in answer]
    except OSError:
        return []


def slowdown(at_once: int) -> float:
    """The factor by which `at_once` busy processes are slower than with one core each, because of other programs.

    It is measured with as many processes in half a second, so that other programs, priorities and the limits of a
    container are included. 1 if it cannot be measured.
    """
    # In a session of their own, as Ray's workers are: Linux divides the cores among sessions first.
    command = [sys.executable, "-S", "-E", "-c", _SPIN, str(at_once)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, start_new_session=True)
        return max(1.0, statistics.fmean(map(float, done.stdout.split())))
    except (OSError, ValueError, subprocess.SubprocessError):
        return 1.0

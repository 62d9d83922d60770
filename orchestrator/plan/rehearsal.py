"""Times short trainings before the first plan of a sweep, to learn how long its packs take on this machine.

The counts of the cost model (`jobs.job.Cost`) are off by a factor of about two, which differs between kinds of packs.
Therefore a few packs of the plan are trained for a fraction of a second each, in as many processes at the same time as
there will be workers (they share memory, cores and the load of other programs), and the ratio of measured to counted
time is stored. A job that states no cost is timed by whole trials.

A training that fails here would fail in the run too: its error is kept, and so is what whole trials report.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.job import Scalar
from orchestrator.plan.calibration import Calibration, child_environment, newest_last
from orchestrator.plan.history import KindHistory, SweepHistory
from orchestrator.plan.pack import Pack
from orchestrator.plan.planner import Planner
from orchestrator.records import Status
from orchestrator.sanity import TrialFacts
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
LOOK_BUDGET_S = 0.5
"""Seconds for whole trials of a sweep that was timed before."""
GRACE_S = 8.0
"""Timeout beyond the budget, after which a trial or a pack remains unknown."""
LEFT_S = 5.0
"""A whole trial that takes so much longer than the budget is left, and what it has reported until then is kept."""
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


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What short trainings have shown."""

    calibration: Calibration
    """With measurements of the kinds of packs that it did not know; otherwise unchanged."""
    trials: tuple[tuple[Trial, TrialFacts], ...] = ()
    """Whole trials of a job that states no cost, and trials that failed: of a pack, its first one."""


def rehearse(
    planner: Planner,
    trials: Sequence[Trial],
    *,
    workers: int,
    threads: int,
    thresholds: Mapping[str, Scalar] | None = None,
    known: bool = False,
) -> Rehearsal:
    """Train a few packs or trials for a short time. These trainings are not recorded.

    Nothing is known afterwards if a process cannot be started, or if the job cannot be timed.

    Args:
        planner: groups the trials into packs.
        trials: of the sweep.
        workers: packs that run at a time.
        threads: of each worker.
        thresholds: the sweep's, by which whole trials are labelled.
        known: whether packs are trained too whose duration is known.
    """
    packs = planner.plan(trials, workers=workers)
    if not packs:
        return Rehearsal(calibration=planner.calibration)
    ask = _Asker(planner, threads, thresholds or {})
    if all(pack.counted_s <= 0 for pack in packs):
        return _time_trials(planner, trials, ask)
    unknown = _unknown_packs(planner, packs)
    sample = [_with_short_steps(planner, pack) for pack in _sample(unknown or (packs if known else []))]
    request = {"packs": [_content(pack.trials) for pack in sample], "whole": None, "budget_s": PACK_BUDGET_S}
    times: dict[int, list[Mapping[str, float]]] = defaultdict(list)
    failed: dict[int, TrialFacts] = {}
    if sample:
        for answer in ask([request] * (planner.at_once if unknown else 1), 6 * PACK_BUDGET_S * len(sample)):
            if "error" in answer:
                failed[int(answer.get("pack", 0))] = _failure(answer["error"])
            else:
                times[int(answer["pack"])].append(answer)
    calibration = planner.calibration
    if times and unknown:
        calibration = _with_times(planner, unknown, [(sample[number], answers) for number, answers in times.items()])
    found = tuple((sample[number].trials[0], facts) for number, facts in failed.items())
    return Rehearsal(calibration=calibration, trials=found)


def _failure(error: str) -> TrialFacts:
    return TrialFacts(status=Status.FAILED.value, error=error)


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


def _time_trials(planner: Planner, trials: Sequence[Trial], ask: _Asker) -> Rehearsal:
    """Whole trials; the calibration gets their mean seconds, if this sweep was never timed."""
    old = planner.calibration
    timed = planner.sweep_id in old.sweeps
    budget_s = LOOK_BUDGET_S if timed else TRIALS_BUDGET_S
    processes = 1 if timed else planner.at_once
    sample = random.Random(0).sample(list(trials), min(len(trials), MOST_TRIALS))
    share = len(sample) // processes if len(sample) >= processes else 1
    parts = [sample[k * share : (k + 1) * share] for k in range(min(processes, len(sample)))]
    answers: list[dict[str, Any]] = []
    found: list[tuple[Trial, TrialFacts]] = []
    requests = [
        {"packs": [], "whole": _content(part), "budget_s": budget_s, "longest_s": budget_s + LEFT_S} for part in parts
    ]
    for answer in ask(requests, budget_s):
        part = parts[answer["child"]]
        if "facts" in answer:
            found += [(part[int(i)], TrialFacts.from_plain(facts)) for i, facts in answer["facts"].items()]
        elif "error" in answer:
            found.append((part[0], _failure(answer["error"])))
        else:
            answers.append(answer)
    # The first trial of a process includes imports; it counts only if there is no other.
    later = [answer for answer in answers if not answer["first"]] or answers
    if timed or not later:
        return Rehearsal(calibration=old, trials=tuple(found))
    count, clock_s, work_s = (sum(answer[name] for answer in later) for name in ("trials", "seconds", "work_s"))
    spins = slowdown(planner.at_once) if old.machine.device == "cpu" and ask.threads == 1 else 0.0
    computes = work_s * spins > COMPUTING * clock_s
    history = SweepHistory(trial_s=(work_s if computes else clock_s) / count, computes=computes)
    return Rehearsal(
        calibration=replace(old, sweeps=newest_last(old.sweeps, {planner.sweep_id: history})), trials=tuple(found)
    )


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

    def answered(self) -> list[dict[str, Any]]:
        """The answers so far; an error in their place where the process ended by itself without one."""
        answers = list(self.answers)
        if len(answers) > 1 or self.reader.is_alive():
            return answers
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return [{"error": f"the process that trained it {how}"}] if code else answers

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


@dataclass(frozen=True)
class _Asker:
    """Asks child processes, which train at the same time."""

    planner: Planner
    threads: int
    thresholds: Mapping[str, Scalar]

    def __call__(self, requests: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
        """The answers to all requests, each with the number of its request as "child"; none if one cannot start.

        The answer of a process that ended by itself without an answer is an "error".
        """
        about = {
            "job": self.planner.job_name,
            "device": self.planner.calibration.machine.device,
            "threads": self.threads,
            "thresholds": dict(self.thresholds),
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
                return [
                    {"child": number, **answer}
                    for number, child in enumerate(children)
                    for answer in child.answered()
                    if "ready" not in answer
                ]
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

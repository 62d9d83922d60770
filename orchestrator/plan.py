"""From trials to packs: which trials share tensors, how many at a time, in which order.

Trials of one pack key form a class; within it, trials of one extent (width) form a group. The
planner works on groups with counts. A long pack shares the cost of launching operations among more
models, but leaves other workers idle at the end; padding two widths into one pack saves launches,
but computes on zeros. Both are settled by the cost model: for several target durations of a pack,
the best cut of every class is found and the workers' schedule (longest pack first) is simulated;
the plan that ends first is taken.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.job import Job
from orchestrator.calibration import RECORD_S_PER_TRIAL, Calibration
from orchestrator.plan_groups import Class, Segment, classes_of, cut
from orchestrator.trial import Trial

UNKNOWN_COST_PACK = 512
"""The most trials of a pack whose cost nobody knows."""
PACK_OVERHEAD_S = 0.004
"""What the driver and the worker spend on any pack."""
LONGEST_PACK_S = 600.0
"""A pack longer than this loses too much where a worker dies (one trial alone may take longer)."""
STRAGGLER_SHARE = 0.15
"""How far the last pack's duration is expected to be off: what a longer last pack risks."""
PACKS_PER_WORKER = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Candidate numbers of packs for each worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Trials that train as one."""

    trials: tuple[Trial, ...]
    seconds: float
    """Estimated training time; 0 where it is not known."""
    memory_bytes: float = 0.0
    losses: int = 0
    """How many workers it has lost so far (see `orchestrator.failures`)."""


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans the packs of one job on one pool of workers."""

    job_name: str
    job: Job[Any]
    calibration: Calibration
    memory_budget_bytes: float
    """What one worker may use."""

    def plan(self, trials: Sequence[Trial], *, workers: int) -> list[Pack]:
        """Packs that hold every trial once, in the order to run them: the longest first."""
        if not trials:
            return []
        workers = max(1, workers)
        classes = classes_of(self.job, trials, self._seconds)
        if all(group.unknown for one in classes for group in one.groups):
            return self._plan_blind(classes, workers)
        best: tuple[float, list[tuple[Segment, ...]]] | None = None
        for target_s in self._targets(classes, workers):
            segments = [cut(one, target_s, self.memory_budget_bytes, PACK_OVERHEAD_S) for one in classes]
            runs = [(s.pack_seconds + PACK_OVERHEAD_S, s.packs) for parts in segments for s in parts]
            score = makespan(runs, workers) + STRAGGLER_SHARE * max(seconds for seconds, _ in runs)
            if best is None or score < best[0]:
                best = (score, segments)
        if best is None:
            raise RuntimeError("no candidate plan")  # _targets is never empty
        packs = [
            self.pack(trials_)
            for one, parts in zip(classes, best[1], strict=True)
            for segment in parts
            for trials_ in segment.chunks(one)
        ]
        packs.sort(key=lambda pack: -pack.seconds)
        return packs

    def estimate_s(self, packs: Sequence[Pack], *, workers: int) -> float | None:
        """Time until all packs have run and are recorded; None where it is not known."""
        history = self.calibration.history(self.job_name)
        if any(pack.seconds <= 0 for pack in packs):
            return None
        training = makespan([(pack.seconds + PACK_OVERHEAD_S, 1) for pack in packs], max(1, workers))
        record = (history.record_s or RECORD_S_PER_TRIAL) * sum(len(pack.trials) for pack in packs)
        return max(training, record)

    def split(self, trials: Sequence[Trial]) -> list[Pack]:
        """Two packs of half the trials each, their losses counted anew."""
        half = (len(trials) + 1) // 2
        return [self.pack(tuple(part)) for part in (trials[:half], trials[half:]) if part]

    def _seconds(self, trial: Trial, extent: tuple[int, ...], models: int) -> tuple[float, float]:
        """Estimated seconds and memory of a pack."""
        cost = self.job.cost(trial.params, extent=extent, models=models)
        history = self.calibration.history(self.job_name)
        seconds = self.calibration.machine.seconds(cost) * history.ratio
        return seconds, cost.memory_bytes

    def pack(self, trials: tuple[Trial, ...], *, losses: int = 0) -> Pack:
        """These trials as one pack, with its estimate."""
        extents = [self.job.extent(trial.params) for trial in trials]
        extent = tuple(max(sizes) for sizes in zip(*extents, strict=True))
        # Horizons may differ within a pack: the mean of a few members stands for all.
        sample = trials[:: max(1, len(trials) // 8)]
        costs = [self._seconds(trial, extent, len(trials)) for trial in sample]
        seconds = sum(cost[0] for cost in costs) / len(costs)
        if seconds <= 0:
            seconds = (self.calibration.history(self.job_name).trial_s or 0.0) * len(trials)
        return Pack(trials=trials, seconds=seconds, memory_bytes=max(cost[1] for cost in costs), losses=losses)

    def _targets(self, classes: Sequence[Class], workers: int) -> list[float]:
        """Durations of a pack worth trying, in seconds."""
        largest = max(group.seconds(1) for one in classes for group in one.groups)
        everything = sum(group.cheapest_s for one in classes for group in one.groups)
        cap = max(LONGEST_PACK_S, largest)
        share = everything / workers
        targets = {min(cap, max(share / count, 1e-6)) for count in PACKS_PER_WORKER}
        # At small scale launches dominate: packs of twice the work may take hardly longer.
        targets |= {min(cap, 1.05 * largest), min(cap, 2 * largest), min(cap, max(share, 2 * largest))}
        return sorted(targets)

    def _plan_blind(self, classes: Sequence[Class], workers: int) -> list[Pack]:
        """Packs of a job that states no cost: guided by counts, smaller and smaller towards the end."""
        trials = [trial for one in classes for group in one.groups for trial in group.trials]
        keys: list[Hashable] = [
            (number, group.extent) for number, one in enumerate(classes) for group in one.groups for _ in group.trials
        ]
        packs, start = [], 0
        while start < len(trials):
            left = len(trials) - start
            size = min(max(1, left // (workers * 8), min(8, left // (workers * 2))), UNKNOWN_COST_PACK)
            end = start + 1
            while end < min(start + size, len(trials)) and keys[end] == keys[start]:
                end += 1
            packs.append(self.pack(tuple(trials[start:end])))
            start = end
        return packs


def makespan(runs: Sequence[tuple[float, int]], workers: int) -> float:
    """When the last worker ends, with packs handed out longest first.

    Args:
        runs: (seconds, how many packs of that duration).
        workers: how many run at a time.
    """
    free = [0.0] * workers
    for seconds, count in sorted(runs, reverse=True):
        if count >= workers:  # whole rounds of equal packs raise every worker alike
            rounds, count = divmod(count, workers)
            free = [at + rounds * seconds for at in free]
            heapq.heapify(free)
        for _ in range(count):
            heapq.heapreplace(free, free[0] + seconds)
    return max(free)


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """What `phasefront plan` shows."""

    trials: int
    finished: int
    packs: int
    workers: int
    device: str
    estimate_s: float | None
    """Seconds from the first pack to the last record; None where nobody knows."""
    startup_s: float
    memory_bytes: float
    """Of all workers together, at the peak."""
    record_rows: int | None
    """Metric rows for MLflow; None where the job does not say how often it reports."""
    measured: bool
    """False where the estimate rests on stated defaults, because the machine could not be measured."""


def summarise(
    planner: Planner, todo: Sequence[Trial], packs: Sequence[Pack], *, finished: int, workers: int
) -> PlanSummary:
    """The summary of a plan."""
    job = planner.job
    steps = [job.report_steps(trial.params) for trial in todo]
    metrics = len(job.metrics)
    known = metrics > 0 and all(steps)
    heaviest = heapq.nlargest(workers, (pack.memory_bytes for pack in packs))
    return PlanSummary(
        trials=len(todo) + finished,
        finished=finished,
        packs=len(packs),
        workers=workers,
        device=planner.calibration.machine.device,
        estimate_s=planner.estimate_s(packs, workers=workers) if packs else 0.0,
        startup_s=planner.calibration.startup_s or 15.0,
        memory_bytes=math.fsum(heaviest),
        record_rows=sum(steps) * metrics if known else None,
        measured=planner.calibration.machine.measured or planner.calibration.history(planner.job_name).runs > 0,
    )

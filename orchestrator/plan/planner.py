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
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.job import Cost, Job
from orchestrator.plan.calibration import RECORD_S_PER_ROW, RECORD_S_PER_TRIAL, Calibration
from orchestrator.plan.groups import Class, Estimate, Segment, classes_of, cut
from orchestrator.plan.kinds import Tally, kind_of
from orchestrator.trial import Trial

UNKNOWN_COST_PACK = 512
"""The most trials in a pack of unknown cost."""
PACK_OVERHEAD_S = 0.004
"""Time that the driver and the worker spend on any pack."""
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
    """Estimated training time with every trial run to its horizon; 0 if unknown."""
    memory_bytes: float = 0.0
    kind: str = ""
    """See `orchestrator.plan.kinds.kind_of`; empty if the job states no cost."""
    shape: float = 0.0
    """How large its operations are, see `orchestrator.plan.calibration.Machine.shape`."""
    counted_s: float = 0.0
    """The estimate before it was corrected by what was seen."""
    at_most: bool = False
    """Whether its trials may end before their horizon by a criterion of the job."""
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
    at_once: int = 1
    """How many workers share this machine's cores; 1 where they are elsewhere, or the only one."""
    sweep_id: str = ""
    """The sweep whose history says most."""
    tally: Tally = field(default_factory=Tally, compare=False)
    """What the packs of this run have taken so far."""
    _ratios: dict[tuple[str, float], float] = field(default_factory=dict, compare=False, repr=False)

    def plan(self, trials: Sequence[Trial], *, workers: int) -> list[Pack]:
        """Packs that hold every trial once, in the order to run them: the longest first."""
        if not trials:
            return []
        workers = max(1, workers)
        classes = classes_of(self.job, trials, self._estimate_of)
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

    def estimate_s(self, packs: Sequence[Pack], *, workers: int, slowdown: float = 1.0) -> float | None:
        """Time until all packs have run and are recorded; None where it is not known.

        `slowdown` is what others' use of the machine makes of it, see `orchestrator.plan.rehearsal.slowdown`.
        """
        if any(pack.seconds <= 0 for pack in packs):
            return None
        workers = max(1, workers)
        training = makespan([(pack.seconds + PACK_OVERHEAD_S, 1) for pack in packs], workers)
        kinds = {pack.kind for pack in packs}
        training += max((k.first_s for name, k in self.calibration.kinds.items() if name in kinds), default=0.0)
        sweep = self.calibration.sweeps.get(self.sweep_id)
        if kinds != {""} or (sweep is not None and sweep.computes):
            training *= slowdown  # what was timed by the clock was slowed already
        record = self._record_s([trial for pack in packs for trial in pack.trials]) * slowdown
        # The driver runs on the cores that the workers compute on.
        return max(training + record / workers, record)

    def early_s(self, packs: Sequence[Pack], *, workers: int, slowdown: float = 1.0) -> tuple[float | None, bool]:
        """The estimate where trials that may end early do as before, and whether before is this very sweep.

        None where no trial may end early, or none ever ran.
        """
        share, same = self.calibration.early(self.job_name, self.sweep_id)
        if share is None or not any(pack.at_most for pack in packs):
            return None, same
        scaled = [replace(pack, seconds=pack.seconds * share) if pack.at_most else pack for pack in packs]
        return self.estimate_s(scaled, workers=workers, slowdown=slowdown), same

    def took(self, pack: Pack, actual_s: float) -> None:
        """Count a pack that has ended: the next estimates learn from it."""
        self.tally.took(
            kind=pack.kind,
            shape=pack.shape,
            counted_s=pack.counted_s,
            estimated_s=pack.seconds,
            actual_s=actual_s,
            at_most=pack.at_most,
        )

    def _record_s(self, trials: Sequence[Trial]) -> float:
        """Seconds of the driver to record these trials."""
        seen = self.calibration.history(self.job_name).record_s
        if seen is not None:
            return seen * len(trials)
        sample = trials[:: max(1, len(trials) // 50)]
        rows = sum(self.job.report_steps(trial.params) for trial in sample) / len(sample) * len(self.job.metrics)
        return len(trials) * (RECORD_S_PER_TRIAL + rows * RECORD_S_PER_ROW)

    def split(self, trials: Sequence[Trial]) -> list[Pack]:
        """Two packs of half the trials each, their losses counted anew."""
        half = (len(trials) + 1) // 2
        return [self.pack(tuple(part)) for part in (trials[:half], trials[half:]) if part]

    def _estimate_of(self, key: Hashable) -> Estimate:
        """The estimate of packs of one key."""
        kinds: dict[tuple[int, int], str] = {}

        def estimate(trial: Trial, extent: tuple[int, ...], models: int) -> tuple[float, float]:
            cost = self.job.cost(trial.params, extent=extent, models=models)
            return self._corrected(cost, self._kind(key, cost, kinds))[0], cost.memory_bytes

        return estimate

    def _kind(self, key: Hashable, cost: Cost, known: dict[tuple[int, int], str]) -> str:
        """The kind of a pack of this key; `known` keeps those of one key."""
        pace = (cost.steps, cost.reports)
        if pace not in known:
            known[pace] = kind_of(self.job_name, self.job.version, key, cost, self.at_once)
        return known[pace]

    def _corrected(self, cost: Cost, kind: str) -> tuple[float, float]:
        """Estimated seconds of a pack, and its shape."""
        machine = self.calibration.machine
        counted = machine.seconds(cost)
        if counted <= 0:
            return 0.0, 0.0
        shape = machine.shape(cost)
        place = (kind, round(shape, 2))
        if place not in self._ratios:
            self._ratios[place] = self.calibration.ratio(self.job_name, kind, place[1])
        return counted * self._ratios[place], shape

    def pack(self, trials: tuple[Trial, ...], *, losses: int = 0) -> Pack:
        """These trials as one pack, with its estimate."""
        extents = [self.job.extent(trial.params) for trial in trials]
        extent = tuple(max(sizes) for sizes in zip(*extents, strict=True))
        # Horizons may differ within a pack: the mean of a few members stands for all.
        sample = trials[:: max(1, len(trials) // 8)]
        costs = [self.job.cost(trial.params, extent=extent, models=len(trials)) for trial in sample]
        memory_bytes = max(cost.memory_bytes for cost in costs)
        counted_s = sum(self.calibration.machine.seconds(cost) for cost in costs) / len(costs)
        if counted_s <= 0:
            seconds = self.calibration.trial_s(self.job_name, self.sweep_id) * len(trials)
            return Pack(trials=trials, seconds=seconds, memory_bytes=memory_bytes, losses=losses)
        middle = costs[len(costs) // 2]
        kind = self._kind(self.job.pack_key(trials[0].params), middle, {})
        seconds, shape = self._corrected(middle, kind)
        return Pack(
            trials=trials,
            seconds=seconds / self.calibration.machine.seconds(middle) * counted_s,
            memory_bytes=memory_bytes,
            losses=losses,
            kind=kind,
            shape=shape,
            counted_s=counted_s,
            at_most=any(cost.at_most for cost in costs),
        )

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
    """Seconds from the first pack to the last record; None if unknown."""
    slowdown: float
    """What others' use of the machine made of the estimate."""
    at_most: bool
    """Whether trials may end early, so that the estimate is the most a run takes."""
    early_s: float | None
    """The estimate where they end as early as before; None where that is not known."""
    early_seen: bool
    """Whether before is a run of this very sweep, and not only of its job."""
    startup_s: float | None
    """Seconds until the workers stand, as last seen; None: never seen."""
    memory_bytes: float
    """Of all workers together, at the peak."""
    record_rows: int | None
    """Metric rows for MLflow; None where the job does not say how often it reports."""
    measured: bool
    """False where the estimate rests on stated defaults, because the machine could not be measured."""


def summarise(
    planner: Planner,
    todo: Sequence[Trial],
    packs: Sequence[Pack],
    *,
    finished: int,
    workers: int,
    slowdown: float = 1.0,
) -> PlanSummary:
    """The summary of a plan; `slowdown` as in `Planner.estimate_s`."""
    job = planner.job
    steps = [job.report_steps(trial.params) for trial in todo]
    metrics = max((len(job.metrics_of(trial.params)) for trial in todo[:1]), default=len(job.metrics))
    known = metrics > 0 and all(steps)
    early_s, early_seen = planner.early_s(packs, workers=workers, slowdown=slowdown)
    heaviest = heapq.nlargest(workers, (pack.memory_bytes for pack in packs))
    return PlanSummary(
        trials=len(todo) + finished,
        finished=finished,
        packs=len(packs),
        workers=workers,
        device=planner.calibration.machine.device,
        estimate_s=planner.estimate_s(packs, workers=workers, slowdown=slowdown) if packs else 0.0,
        slowdown=slowdown,
        at_most=any(pack.at_most for pack in packs),
        early_s=early_s,
        early_seen=early_seen,
        startup_s=planner.calibration.startup_s,
        memory_bytes=math.fsum(heaviest),
        record_rows=sum(steps) * metrics if known else None,
        measured=planner.calibration.machine.measured
        or planner.calibration.history(planner.job_name).runs > 0
        or planner.sweep_id in planner.calibration.sweeps,
    )

"""Planning: which trials share a pack, how large packs are, and in which order they run.

Large packs share the cost of launching tensor operations among more models, but may leave workers idle at the end.
Padding two extents (widths) to one pack saves launches, but computes on zeros. The cost model settles both: for several
target durations of a pack, the best cut into packs is computed (`orchestrator.plan.groups`) and the schedule of the
workers (longest pack first) is simulated. The plan that ends first is chosen.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.job import Cost, Job
from orchestrator.plan.calibration import RECORD_S_PER_ROW, RECORD_S_PER_TRIAL, Calibration
from orchestrator.plan.groups import Estimate, KeyGroup, cut, group_trials
from orchestrator.plan.history import Tally
from orchestrator.plan.pack import Pack, pack_kind
from orchestrator.trial import Trial

UNKNOWN_COST_PACK = 512
"""The most trials in a pack of unknown cost."""
PACK_OVERHEAD_S = 0.004
"""Fixed cost of a pack, for driver and worker together."""
LONGEST_PACK_S = 600.0
"""Upper bound of a pack's duration, because a dying worker loses its pack. A single trial may take longer."""
STRAGGLER_SHARE = 0.15
"""Expected relative error of a pack's duration: the penalty of a long last pack."""
PACKS_PER_WORKER = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Candidates for the number of packs per worker."""


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans the packs of one job on one pool of workers."""

    job_name: str
    job: Job[Any]
    calibration: Calibration
    memory_budget_bytes: float
    """Memory of one worker."""
    at_once: int = 1
    """Number of workers that share the cores of this machine; 1 for workers on other machines."""
    sweep_id: str = ""
    """The sweep whose history is preferred to that of its job."""
    tally: Tally = field(default_factory=Tally, compare=False)
    """The packs of this run that have ended."""
    _ratios: dict[tuple[str, float], float] = field(default_factory=dict, compare=False, repr=False)

    def plan(self, trials: Sequence[Trial], *, workers: int) -> list[Pack]:
        """Packs that contain every trial once, in the order in which to run them: the longest first."""
        if not trials:
            return []
        workers = max(1, workers)
        key_groups = group_trials(self.job, trials, self._estimate_of)
        if all(group.unknown for key_group in key_groups for group in key_group.groups):
            return self._plan_unknown_cost(key_groups, workers)
        plans = []
        for target_s in self._targets(key_groups, workers):
            cuts = [cut(group, target_s, self.memory_budget_bytes, PACK_OVERHEAD_S) for group in key_groups]
            runs = [(s.pack_seconds + PACK_OVERHEAD_S, s.packs) for segments in cuts for s in segments]
            plans.append((makespan(runs, workers) + STRAGGLER_SHARE * max(seconds for seconds, _ in runs), cuts))
        _, best = min(plans, key=lambda plan: plan[0])
        packs = [
            self.pack(chunk)
            for key_group, segments in zip(key_groups, best, strict=True)
            for segment in segments
            for chunk in segment.chunks(key_group)
        ]
        packs.sort(key=lambda pack: -pack.seconds)
        return packs

    def estimate_s(self, packs: Sequence[Pack], *, workers: int, slowdown: float = 1.0) -> float | None:
        """Seconds until all packs have run and are recorded; None if unknown.

        `slowdown` is the factor by which other programs slow this machine (`orchestrator.plan.rehearsal.slowdown`).
        """
        if any(pack.seconds <= 0 for pack in packs):
            return None
        workers = max(1, workers)
        training = makespan([(pack.seconds + PACK_OVERHEAD_S, 1) for pack in packs], workers)
        kinds = {pack.kind for pack in packs}
        training += max((k.first_s for name, k in self.calibration.kinds.items() if name in kinds), default=0.0)
        sweep = self.calibration.sweeps.get(self.sweep_id)
        if kinds != {""} or (sweep is not None and sweep.computes):
            training *= slowdown  # wall-clock times of trials include it already
        record = self._record_s([trial for pack in packs for trial in pack.trials]) * slowdown
        # The driver shares the cores of the workers.
        return max(training + record / workers, record)

    def early_s(self, packs: Sequence[Pack], *, workers: int, slowdown: float = 1.0) -> tuple[float | None, bool]:
        """(the estimate if trials end as early as in past runs, whether these were runs of this sweep).

        The estimate is None if no trial may end early, or if none has run before.
        """
        share, same = self.calibration.early(self.job_name, self.sweep_id)
        if share is None or not any(pack.at_most for pack in packs):
            return None, same
        scaled = [replace(pack, seconds=pack.seconds * share) if pack.at_most else pack for pack in packs]
        return self.estimate_s(scaled, workers=workers, slowdown=slowdown), same

    def _record_s(self, trials: Sequence[Trial]) -> float:
        """Seconds of the driver to record these trials."""
        known = self.calibration.job(self.job_name)
        if known.record_ratio is None and known.record_s is not None:
            return known.record_s * len(trials)
        return self.counted_record_s(trials) * (known.record_ratio or 1.0)

    def counted_record_s(self, trials: Sequence[Trial]) -> float:
        """Seconds to record these trials and the rows that their job states, at the default speed."""
        sample = trials[:: max(1, len(trials) // 50)]
        rows = sum(self.job.report_steps(trial.params) for trial in sample) / len(sample) * len(self.job.metrics)
        return len(trials) * (RECORD_S_PER_TRIAL + rows * RECORD_S_PER_ROW)

    def ended(self, pack: Pack, measured_s: float) -> None:
        """Count a pack of this run that has ended."""
        self.tally.add(pack, measured_s, record_s=self.counted_record_s(pack.trials))

    def record_rows(self, trials: Sequence[Trial]) -> int | None:
        """The number of metric rows that these trials report; None if the job does not state it."""
        steps = [self.job.report_steps(trial.params) for trial in trials]
        metrics = max((len(self.job.metrics_of(trial.params)) for trial in trials[:1]), default=len(self.job.metrics))
        return sum(steps) * metrics if metrics > 0 and all(steps) else None

    @property
    def measured(self) -> bool:
        """Whether estimates are based on measurements; otherwise they are based on default speeds."""
        known = self.calibration
        return known.machine.measured or known.job(self.job_name).runs > 0 or self.sweep_id in known.sweeps

    def split(self, trials: Sequence[Trial]) -> list[Pack]:
        """Two packs with half of the trials each."""
        half = (len(trials) + 1) // 2
        return [self.pack(tuple(part)) for part in (trials[:half], trials[half:]) if part]

    def _estimate_of(self, key: Hashable) -> Estimate:
        """The estimate for packs of one pack key."""
        kinds: dict[tuple[int, int], str] = {}

        def estimate(trial: Trial, extent: tuple[int, ...], models: int) -> tuple[float, float]:
            cost = self.job.cost(trial.params, extent=extent, models=models)
            pace = (cost.steps, cost.reports)
            if pace not in kinds:
                kinds[pace] = self._kind(key, cost)
            return self._corrected(cost, kinds[pace])[0], self._memory_bytes(cost, trial, extent, models)

        return estimate

    def _memory_bytes(self, cost: Cost, trial: Trial, extent: tuple[int, ...], models: int) -> float:
        device = self.calibration.machine.device
        if device == "cpu":  # what a cost states
            return cost.memory_bytes
        return self.job.memory_bytes(trial.params, extent=extent, models=models, device=device)

    def _kind(self, key: Hashable, cost: Cost) -> str:
        return pack_kind(self.job_name, self.job.version, key, cost, self.at_once)

    def _corrected(self, cost: Cost, kind: str) -> tuple[float, float]:
        """Estimated seconds of a pack, and its shape."""
        counted_s = self.calibration.machine.seconds(cost)
        if counted_s <= 0:
            return 0.0, 0.0
        shape = self.calibration.machine.shape(cost)
        place = (kind, round(shape, 2))
        if place not in self._ratios:
            self._ratios[place] = self.calibration.ratio(self.job_name, kind, place[1])
        return counted_s * self._ratios[place], shape

    def pack(self, trials: tuple[Trial, ...]) -> Pack:
        """One pack of these trials, with its estimate."""
        extents = [self.job.extent(trial.params) for trial in trials]
        extent = tuple(max(sizes) for sizes in zip(*extents, strict=True))
        # Horizons may differ within a pack: average over a sample of its trials.
        sample = trials[:: max(1, len(trials) // 8)]
        costs = [self.job.cost(trial.params, extent=extent, models=len(trials)) for trial in sample]
        memory_bytes = max(
            self._memory_bytes(cost, trial, extent, len(trials)) for cost, trial in zip(costs, sample, strict=True)
        )
        counted_s = sum(self.calibration.machine.seconds(cost) for cost in costs) / len(costs)
        if counted_s <= 0:
            seconds = self.calibration.trial_s(self.job_name, self.sweep_id) * len(trials)
            return Pack(trials=trials, seconds=seconds, memory_bytes=memory_bytes)
        middle = costs[len(costs) // 2]
        kind = self._kind(self.job.pack_key(trials[0].params), middle)
        seconds, shape = self._corrected(middle, kind)
        return Pack(
            trials=trials,
            seconds=seconds / self.calibration.machine.seconds(middle) * counted_s,
            memory_bytes=memory_bytes,
            kind=kind,
            shape=shape,
            counted_s=counted_s,
            at_most=any(cost.at_most for cost in costs),
        )

    def _targets(self, key_groups: Sequence[KeyGroup], workers: int) -> list[float]:
        """Candidates for the duration of a pack, in seconds."""
        groups = [group for key_group in key_groups for group in key_group.groups]
        largest = max(group.seconds(1) for group in groups)
        cap = max(LONGEST_PACK_S, largest)
        share = sum(group.cheapest_s for group in groups) / workers
        targets = {min(cap, max(share / count, 1e-6)) for count in PACKS_PER_WORKER}
        # Launches dominate in small models: a pack of twice the work may take hardly longer.
        targets |= {min(cap, 1.05 * largest), min(cap, 2 * largest), min(cap, max(share, 2 * largest))}
        return sorted(targets)

    def _plan_unknown_cost(self, key_groups: Sequence[KeyGroup], workers: int) -> list[Pack]:
        """Packs of a job that states no cost: sized by the number of trials left, smaller towards the end."""
        groups = [group for key_group in key_groups for group in key_group.groups]
        left = sum(len(group.trials) for group in groups)
        packs = []
        for group in groups:
            trials = group.trials
            while trials:
                size = min(max(1, left // (workers * 8), min(8, left // (workers * 2))), UNKNOWN_COST_PACK)
                packs.append(self.pack(tuple(trials[:size])))
                left -= len(trials[:size])
                trials = trials[size:]
        return packs


def makespan(runs: Sequence[tuple[float, int]], workers: int) -> float:
    """The time at which the last worker ends, if packs are handed out longest first.

    Args:
        runs: (seconds, number of packs of that duration).
        workers: number of packs that run at a time.
    """
    free = [0.0] * workers
    for seconds, count in sorted(runs, reverse=True):
        if count >= workers:  # whole rounds of equal packs delay all workers equally
            rounds, count = divmod(count, workers)
            free = [at + rounds * seconds for at in free]
            heapq.heapify(free)
        for _ in range(count):
            heapq.heapreplace(free, free[0] + seconds)
    return max(free)

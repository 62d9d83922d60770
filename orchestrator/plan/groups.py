"""Groups of trials that may share a pack, and the best way to cut them for one target duration of a pack."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.job import Job
from orchestrator.trial import Trial

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Pack sizes at which a cost is evaluated; it is interpolated in between."""
MERGE_AT_MOST = 16
"""The most neighbouring extents that may share a pack by padding."""
SAMPLE = 12
"""Trials of a group whose costs are compared to find out whether all cost the same."""

Estimate = Callable[[Trial, tuple[int, ...], int], tuple[float, float]]
"""(trial, extent, models) -> (seconds, bytes) of a pack of `models` such trials."""


@dataclass(eq=False)
class PackCost:
    """Seconds and memory of a pack as a function of its number of models, evaluated lazily."""

    evaluate: Callable[[int], tuple[float, float]]
    _cache: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __call__(self, models: int) -> tuple[float, float]:
        """(seconds, bytes) of a pack of `models` trials."""
        cost = self._cache.get(models)
        if cost is None:
            if models in _SIZES_SET or models > SIZES[-1]:
                cost = self.evaluate(models)
            else:
                right = bisect.bisect_left(SIZES, models)
                low, high = SIZES[right - 1], SIZES[right]
                (s0, m0), (s1, m1) = self(low), self(high)
                part = (models - low) / (high - low)
                cost = (s0 + part * (s1 - s0), m0 + part * (m1 - m0))
            self._cache[models] = cost
        return cost

    def largest(self, limit: int, seconds: float, memory_bytes: float) -> int:
        """The largest pack of at most `limit` models within both bounds; 1 if a single model exceeds them."""

        def fits(models: int) -> bool:
            s, m = self(models)
            return s <= seconds and m <= memory_bytes

        low = 1
        for size in SIZES:
            if size > limit or not fits(size):
                break
            low = size
        high = min(limit, 2 * low)
        while low < high:
            middle = (low + high + 1) // 2
            if fits(middle):
                low = middle
            else:
                high = middle - 1
        return low


_SIZES_SET = frozenset(SIZES)


class ExtentGroup:
    """Trials with one pack key and one extent."""

    def __init__(self, extent: tuple[int, ...], trials: list[Trial], estimate: Estimate) -> None:
        self.extent, self.trials = extent, trials
        self._first, self._estimate = trials[0], estimate
        self.scale = 1.0
        """Mean cost of its trials over the cost of the first."""
        alone = [estimate(trial, extent, 1)[0] for trial in trials[:: max(1, len(trials) // SAMPLE)]]
        self.unknown = not any(alone)
        """Whether the job states no cost."""
        if max(alone) > 1.02 * min(alone):  # horizons differ: sort, so that the trials of a pack end together
            costs = {trial.id: estimate(trial, extent, 1)[0] for trial in trials}
            trials.sort(key=lambda trial: costs[trial.id])
            self.scale = sum(costs.values()) / len(costs) / (costs[self._first.id] or 1.0)
        self._cost = self.padded(extent)

    def padded(self, extent: tuple[int, ...]) -> PackCost:
        """The cost of a pack of this group's trials, padded to `extent`."""

        def evaluate(models: int) -> tuple[float, float]:
            seconds, memory = self._estimate(self._first, extent, models)
            return seconds * self.scale, memory

        return PackCost(evaluate)

    def seconds(self, models: int) -> float:
        """Training time of one pack without padding."""
        return self._cost(models)[0]

    @property
    def cheapest_s(self) -> float:
        """Training time of all trials on one worker, in packs of the best size."""
        count = len(self.trials)
        sizes = [size for size in SIZES if size <= count] or [1]
        return min(self.seconds(size) / size for size in sizes) * count


@dataclass(eq=False)
class KeyGroup:
    """All trials with one pack key, in groups of increasing extent."""

    groups: list[ExtentGroup]
    _costs: dict[tuple[int, int], PackCost] = field(default_factory=dict)

    def cost(self, start: int, stop: int) -> PackCost:
        """The cost of a pack of trials of groups[start:stop], padded to the largest of them."""
        key = (start, stop)
        if key not in self._costs:
            parts = self.groups[start:stop]
            extent = tuple(max(sizes) for sizes in zip(*(g.extent for g in parts), strict=True))
            self._costs[key] = max(parts, key=lambda g: g.scale * len(g.trials)).padded(extent)
        return self._costs[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Neighbouring groups, groups[start:stop], that are cut into packs of equal size."""

    start: int
    stop: int
    packs: int
    pack_seconds: float

    def chunks(self, key_group: KeyGroup) -> Iterator[tuple[Trial, ...]]:
        """The trials of each pack, by increasing extent."""
        trials = [trial for group in key_group.groups[self.start : self.stop] for trial in group.trials]
        for number in range(self.packs):
            low, high = (len(trials) * k // self.packs for k in (number, number + 1))
            yield tuple(trials[low:high])


def group_trials(job: Job[Any], trials: Sequence[Trial], estimate_of: Callable[[Hashable], Estimate]) -> list[KeyGroup]:
    """Group trials by pack key and extent; `estimate_of` returns the estimate for one pack key."""
    by_key: dict[Hashable, dict[tuple[int, ...], list[Trial]]] = {}
    for trial in trials:
        by_extent = by_key.setdefault(job.pack_key(trial.params), {})
        by_extent.setdefault(job.extent(trial.params), []).append(trial)
    key_groups = []
    for key, by_extent in by_key.items():
        estimate = estimate_of(key)
        key_groups.append(KeyGroup([ExtentGroup(extent, by_extent[extent], estimate) for extent in sorted(by_extent)]))
    return key_groups


def cut(key_group: KeyGroup, target_s: float, memory_bytes: float, overhead_s: float) -> tuple[Segment, ...]:
    """The segments with the least total time, with packs of at most `target_s` seconds.

    Dynamic programming over the ordered extents: the best cut of the first n groups extends the best cut of fewer
    groups by one segment.
    """
    counts = [len(group.trials) for group in key_group.groups]
    best: list[tuple[float, tuple[Segment, ...]]] = [(0.0, ())]
    """(seconds, segments) of the first 0, 1, 2... groups."""
    for stop in range(1, len(counts) + 1):
        options: list[tuple[float, Segment]] = []
        models = 0
        for start in range(stop - 1, max(-1, stop - 1 - MERGE_AT_MOST), -1):
            models += counts[start]
            segment, total = _segment(key_group, start, stop, models, target_s, memory_bytes)
            options.append((best[start][0] + total + segment.packs * overhead_s, segment))
        seconds, last = min(options, key=lambda option: option[0])
        best.append((seconds, (*best[last.start][1], last)))
    return best[-1][1]


def _segment(
    key_group: KeyGroup, start: int, stop: int, models: int, target_s: float, memory_bytes: float
) -> tuple[Segment, float]:
    """The best packs of equal size for a segment, and their total seconds on one worker."""
    cost = key_group.cost(start, stop)
    largest = cost.largest(models, target_s, memory_bytes)
    options = []
    for size in {largest, *(s for s in SIZES if largest // 16 <= s < largest)}:
        packs = -(-models // size)
        seconds = cost(-(-models // packs))[0]
        options.append((packs * seconds, packs, seconds))
    total, packs, seconds = min(options)
    return Segment(start=start, stop=stop, packs=packs, pack_seconds=seconds), total

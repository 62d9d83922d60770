"""Groups of trials that may share a pack, and the best way to cut them for one target duration."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.job import Job
from orchestrator.trial import Trial

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Pack sizes at which a cost is evaluated; in between it is interpolated."""
MERGE_AT_MOST = 16
"""Neighbouring extents that may share a pack by padding."""
SAMPLE = 12
"""Trials of a group that are asked whether they cost alike."""

Estimate = Callable[[Trial, tuple[int, ...], int], tuple[float, float]]
"""(trial, extent, models) -> (seconds, bytes) of a pack; of trials of one pack key."""


@dataclass(eq=False)
class Curve:
    """Seconds and memory of a pack against its number of models, evaluated where it is asked for."""

    at: Callable[[int], tuple[float, float]]
    _known: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __call__(self, models: int) -> tuple[float, float]:
        """(seconds, bytes) of a pack of `models` trials."""
        found = self._known.get(models)
        if found is None:
            if models in _SIZES_SET or models > SIZES[-1]:
                found = self.at(models)
            else:
                right = bisect.bisect_left(SIZES, models)
                low, high = SIZES[right - 1], SIZES[right]
                (s0, m0), (s1, m1) = self(low), self(high)
                part = (models - low) / (high - low)
                found = (s0 + part * (s1 - s0), m0 + part * (m1 - m0))
            self._known[models] = found
        return found

    def largest(self, limit: int, seconds: float, memory_bytes: float) -> int:
        """The largest pack of at most `limit` models within both bounds; 1 where even that is beyond them."""

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


@dataclass(eq=False)
class Group:
    """Trials of one class with one extent."""

    extent: tuple[int, ...]
    trials: list[Trial]
    estimate: Estimate

    def __post_init__(self) -> None:
        first = self.trials[0]
        sample = self.trials[:: max(1, len(self.trials) // SAMPLE)]
        alone = [self.estimate(trial, self.extent, 1)[0] for trial in sample]
        self.unknown = not any(alone)
        """Whether the job states no cost."""
        if max(alone) > 1.02 * min(alone):  # horizons differ: like beside like, so that packs end together
            costs = {trial.id: self.estimate(trial, self.extent, 1)[0] for trial in self.trials}
            self.trials.sort(key=lambda trial: costs[trial.id])
            self.scale = sum(costs.values()) / len(costs) / (self.estimate(first, self.extent, 1)[0] or 1.0)
        else:
            self.scale = 1.0
        self._first = first
        self._curve = self.padded(self.extent)

    def padded(self, extent: tuple[int, ...]) -> Curve:
        """The cost of a pack of this group's trials, padded to `extent`."""

        def at(models: int) -> tuple[float, float]:
            seconds, memory = self.estimate(self._first, extent, models)
            return seconds * self.scale, memory

        return Curve(at)

    def seconds(self, models: int) -> float:
        """Of one unpadded pack."""
        return self._curve(models)[0]

    @property
    def cheapest_s(self) -> float:
        """Seconds of all its trials on one worker, in packs of the best size."""
        count = len(self.trials)
        sizes = [size for size in SIZES if size <= count] or [1]
        return min(self.seconds(size) / size for size in sizes) * count


@dataclass(eq=False)
class Class:
    """All trials with one pack key, in groups of increasing extent."""

    groups: list[Group]
    _curves: dict[tuple[int, int], Curve] = field(default_factory=dict)

    def curve(self, start: int, stop: int) -> Curve:
        """The cost of a pack of trials of groups[start:stop], padded to the largest of them."""
        key = (start, stop)
        if key not in self._curves:
            parts = self.groups[start:stop]
            extent = tuple(max(sizes) for sizes in zip(*(g.extent for g in parts), strict=True))
            heaviest = max(parts, key=lambda g: g.scale * len(g.trials))
            self._curves[key] = heaviest.padded(extent)
        return self._curves[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Neighbouring groups that are cut into equal packs."""

    start: int
    stop: int
    packs: int
    pack_seconds: float

    def chunks(self, one: Class) -> Iterator[tuple[Trial, ...]]:
        """The packs' trials, in the order of their extents."""
        trials = [trial for group in one.groups[self.start : self.stop] for trial in group.trials]
        for number in range(self.packs):
            low, high = (len(trials) * k // self.packs for k in (number, number + 1))
            yield tuple(trials[low:high])


def classes_of(job: Job[Any], trials: Sequence[Trial], estimate_of: Callable[[Hashable], Estimate]) -> list[Class]:
    """The trials by pack key, and within it by extent; `estimate_of` gives a key's own estimate."""
    found: dict[Hashable, dict[tuple[int, ...], list[Trial]]] = {}
    for trial in trials:
        by_extent = found.setdefault(job.pack_key(trial.params), {})
        by_extent.setdefault(job.extent(trial.params), []).append(trial)
    classes = []
    for key, by_extent in found.items():
        estimate = estimate_of(key)
        classes.append(Class([Group(extent, by_extent[extent], estimate) for extent in sorted(by_extent)]))
    return classes


def cut(one: Class, target_s: float, memory_bytes: float, overhead_s: float) -> tuple[Segment, ...]:
    """The segments of a class that take the least time in all, with packs of at most `target_s`.

    Dynamic programming over the ordered extents: the best cut of the first n groups extends the
    best cut of fewer by one segment.
    """
    counts = [len(group.trials) for group in one.groups]
    best: list[tuple[float, Segment | None]] = [(0.0, None)]
    for stop in range(1, len(counts) + 1):
        options: list[tuple[float, Segment]] = []
        models = 0
        for start in range(stop - 1, max(-1, stop - 1 - MERGE_AT_MOST), -1):
            models += counts[start]
            segment, total = _segment(one, start, stop, models, target_s, memory_bytes)
            options.append((best[start][0] + total + segment.packs * overhead_s, segment))
        best.append(min(options, key=lambda option: option[0]))
    parts: list[Segment] = []
    at = len(counts)
    while at:
        chosen = best[at][1]
        if chosen is None:
            break
        parts.append(chosen)
        at = chosen.start
    return tuple(reversed(parts))


def _segment(
    one: Class, start: int, stop: int, models: int, target_s: float, memory_bytes: float
) -> tuple[Segment, float]:
    """The best equal packs of a segment, and their seconds on one worker in all."""
    curve = one.curve(start, stop)
    largest = curve.largest(models, target_s, memory_bytes)
    options = []
    for size in {largest, *(s for s in SIZES if largest // 16 <= s < largest)}:
        packs = -(-models // size)
        seconds = curve(-(-models // packs))[0]
        options.append((packs * seconds, packs, seconds))
    total, packs, seconds = min(options)
    return Segment(start=start, stop=stop, packs=packs, pack_seconds=seconds), total

"""What to try next, given what was tried: evidence and pending trials of every slice, and suggestions in batches.

Works on positions only; knows no Optuna, storage or job. No random state is kept between calls: a suggestion depends on
the seed and on what was tried, so an interrupted search continues as it would have.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.job import Scalar
from orchestrator.search.space import Floats, Listed, Slice
from orchestrator.surface.base import ClassSurface, Evidence, Surface, Surrogate, TrialEvidence

FLOOR = 0.1
"""A slice gets suggestions in proportion to its uncertain area plus this share of the mean uncertain area."""
SOBOL_BLOCK = 64
"""Positions of a Sobol sequence are drawn in blocks of a power of two, which keeps it balanced."""
SOBOL_FRUITLESS = 16
"""Blocks in a row without a new position, after which a Sobol sequence ends."""
MOST_COMPARED = 64
"""Unused replicate numbers of a setting that are considered for its next trial."""
MOST_REFUSED = 1000
"""Positions in a row that may be refused before this call stops drawing from the Sobol sequence."""
ROUNDS = 4
"""How often a surrogate is asked again where settings that it suggested are refused."""

Key = tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Proposal:
    """A suggested trial."""

    slice: int
    x: Floats
    """(d,)"""
    setting: Mapping[str, Scalar]
    replicate: int

    @property
    def key(self) -> tuple[int, Key]:
        """Equal for equal settings."""
        return self.slice, tuple(self.x.tolist())


@dataclass(kw_only=True)
class _Box:
    """One slice and what was tried in it."""

    number: int
    slice: Slice
    surrogate: Surrogate[Any]
    quota: int
    """Trials at the start that are spread evenly."""
    seed: int
    told: dict[int, tuple[Floats, TrialEvidence]] = field(default_factory=dict)
    """Trial number -> position and evidence."""
    pending: dict[int, Floats] = field(default_factory=dict)
    """Trial number -> position, of trials that have not ended or have failed: tried, without evidence."""
    tried: dict[Key, set[int]] = field(default_factory=dict)
    """Setting -> replicates asked."""
    asked: int = 0
    surface: Surface | None = None
    fitted: int = 0
    """Trials told when the surface was fitted."""
    sequence: list[Floats] = field(default_factory=list)
    """The Sobol sequence as far as it was drawn."""
    cursor: int = 0
    """All positions of `sequence` before this index were tried."""
    more: Iterator[Floats] | None = None
    grid: Floats | None = None

    def evidence(self) -> Evidence:
        """In the order of the trials' numbers, whatever order they were told in."""
        told = [self.told[number] for number in sorted(self.told)]
        x = np.array([x for x, _ in told]).reshape(len(told), len(self.slice.coordinates))
        return Evidence.of(x, [evidence for _, evidence in told])

    def fit(self) -> Surface | None:
        """The surface fitted to all evidence; None where there is none."""
        if len(self.told) != self.fitted:
            self.surface = self.surrogate.fit(self.evidence(), previous=self.surface)
            self.fitted = len(self.told)
        return self.surface

    def spread(self) -> Iterator[Floats]:
        """The untried positions of its Sobol sequence."""
        while self.cursor < len(self.sequence) and tuple(self.sequence[self.cursor].tolist()) in self.tried:
            self.cursor += 1
        yield from (x for x in self.sequence[self.cursor :] if tuple(x.tolist()) not in self.tried)
        self.more = self.more or self._sobol()
        for x in self.more:
            self.sequence.append(x)
            if tuple(x.tolist()) not in self.tried:
                yield x

    def _sobol(self) -> Iterator[Floats]:
        """Distinct snapped positions of a scrambled Sobol sequence."""
        from scipy.stats import qmc

        d = len(self.slice.coordinates)
        engine = qmc.Sobol(d, scramble=True, rng=np.random.default_rng([self.seed, self.number]))
        seen: set[Key] = set()
        fruitless = 0
        while fruitless < SOBOL_FRUITLESS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # later blocks are warned to be unbalanced
                block = self.slice.snap(engine.random(SOBOL_BLOCK))
            fresh = {key: x for x in block if (key := tuple(x.tolist())) not in seen}
            seen.update(fresh)
            fruitless = 0 if fresh else fruitless + 1
            yield from fresh.values()

    def untried(self, replicates: int) -> Floats:
        """(m, d) settings of a grid that lack a replicate."""
        if self.grid is None:
            sides = [c.at for c in self.slice.coordinates if isinstance(c, Listed)]
            mesh = np.meshgrid(*sides, indexing="ij")
            self.grid = np.stack([side.ravel() for side in mesh], axis=1)
        done = {key for key, asked in self.tried.items() if len(asked) >= replicates}
        left = [i for i, x in enumerate(map(tuple, self.grid.tolist())) if x not in done]
        return self.grid[left]


class _Batch:
    """The proposals of one call."""

    def __init__(self, used: Counter[int]) -> None:
        self.proposals: list[Proposal] = []
        self.replicates: dict[tuple[int, Key], set[int]] = defaultdict(set)
        self.coming: Counter[int] = Counter()
        """Slice -> proposals."""
        self.used = Counter(used)

    def add(self, proposal: Proposal) -> None:
        self.proposals.append(proposal)
        self.replicates[proposal.key].add(proposal.replicate)
        self.coming[proposal.slice] += 1
        self.used[proposal.replicate] += 1

    def __len__(self) -> int:
        return len(self.proposals)


class Proposer:
    """Suggests trials for a space of slices.

    Args:
        slices: where to look.
        surrogate_of: the surrogate of a slice.
        start: trials of all slices together that are spread evenly at first.
        seed: base of all random numbers.
        replicates: R. Replicate numbers 0 to R-1 are spread evenly over the settings. A setting that is suggested again
            gets another of them; once all are used, a setting of a grid is refused, any other gets number R, R+1, ...
        accept: whether a setting and a replicate may be tried; by default all may.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        surrogate_of: Callable[[Slice], Surrogate[Any]],
        *,
        start: int,
        seed: int,
        replicates: int = 1,
        accept: Callable[[Mapping[str, Scalar], int], bool] | None = None,
    ) -> None:
        quota = -(-start // max(1, len(slices)))
        self._boxes = [
            _Box(number=i, slice=slice_, surrogate=surrogate_of(slice_), quota=quota, seed=seed)
            for i, slice_ in enumerate(slices)
        ]
        self._seed, self._replicates, self._accept = seed, max(1, replicates), accept
        self._used: Counter[int] = Counter()
        self._where: dict[int, int] = {}
        self._refused = 0

    @property
    def slices(self) -> list[Slice]:
        """The slices that it searches."""
        return [box.slice for box in self._boxes]

    @property
    def starting(self) -> bool:
        """Whether trials of the even start remain to be asked."""
        return self.start_left > 0

    @property
    def start_left(self) -> int:
        """How many trials of the even start remain to be asked."""
        return sum(max(0, box.quota - box.asked) for box in self._boxes)

    @property
    def told(self) -> int:
        """How many trials have given evidence."""
        return sum(len(box.told) for box in self._boxes)

    # --- what was tried ---

    def asked(self, number: int, slice_: int, x: Floats, replicate: int | None = None) -> None:
        """Note that trial `number` was asked, by this process or another one; called again, its position may differ."""
        box = self._boxes[slice_]
        if self._where.get(number) == slice_ and number in box.pending and np.array_equal(box.pending[number], x):
            return
        self.forget(number)
        used = box.tried.setdefault(tuple(x.tolist()), set())
        if replicate is None:
            replicate = next(r for r in range(len(used) + 1) if r not in used)
        used.add(replicate)
        self._used[replicate] += 1
        self._where[number] = slice_
        box.pending[number] = x
        box.asked += 1

    def tell(self, number: int, evidence: TrialEvidence) -> None:
        """An asked trial has ended."""
        box = self._boxes[self._where[number]]
        x = box.pending.pop(number, None)
        if x is not None:
            box.told[number] = (x, evidence)

    def forget(self, number: int) -> None:
        """Undo `asked` for a trial that has moved; only its replicate number stays used."""
        if number in self._where:
            box = self._boxes[self._where.pop(number)]
            if box.pending.pop(number, None) is not None:
                box.asked -= 1

    def refuse(self, proposal: Proposal) -> None:
        """Never suggest this setting again: it cannot be tried."""
        self._refused -= 1
        box = self._boxes[proposal.slice]
        box.pending[self._refused] = proposal.x
        box.tried[proposal.key[1]] = set(range(max(self._replicates, 1)))

    def is_tried(self, proposal: Proposal) -> bool:
        """Whether this replicate of the setting was asked."""
        slice_, key = proposal.key
        return proposal.replicate in self._boxes[slice_].tried.get(key, ())

    # --- the fit ---

    def surfaces(self) -> list[Surface | None]:
        """The fitted surface of every slice; None where nothing was told."""
        return [box.fit() for box in self._boxes]

    def uncertain_area(self) -> float:
        """The mean over the slices; 1 for a slice without evidence."""
        return float(np.mean(self._areas())) if self._boxes else 0.0

    def _areas(self) -> list[float]:
        return [1.0 if surface is None else surface.uncertain_area() for surface in self.surfaces()]

    # --- what to try ---

    def propose(self, count: int) -> list[Proposal]:
        """Up to `count` trials, the first to be run first; fewer where nothing is left to try."""
        batch = _Batch(self._used)
        while len(batch) < count:
            left = [box for box in self._boxes if box.asked + batch.coming[box.number] < box.quota]
            if not left:
                break
            box = min(left, key=lambda box: (box.asked + batch.coming[box.number], box.number))
            if not self._spread(box, 1, batch):
                box.quota = 0  # a grid smaller than its start
        for _ in range(ROUNDS):
            refused = self._refused
            if len(batch) < count:
                self._by_surrogate(count - len(batch), batch)
            if self._refused == refused:
                break
        if len(batch) < count:
            self._left_over(count, batch)
        return batch.proposals

    def _spread(self, box: _Box, count: int, batch: _Batch) -> int:
        """Take up to `count` next positions of the slice's Sobol sequence; returns how many were taken."""
        taken = fruitless = 0
        for x in box.spread():
            if taken >= count or fruitless > MOST_REFUSED:
                break
            new = self._take(box, x, batch, new_setting=True)
            taken, fruitless = taken + new, 0 if new else fruitless + 1
        return taken

    def _by_surrogate(self, count: int, batch: _Batch) -> None:
        for box, share in zip(self._boxes, self._shares(count), strict=True):
            if not share:
                continue
            surface = box.fit()
            if surface is None:  # all trials are pending or have failed
                self._spread(box, share, batch)
                continue
            here = [p.x for p in batch.proposals if p.slice == box.number]
            d = len(box.slice.coordinates)
            positions = box.surrogate.suggest(
                surface,
                box.evidence(),
                pending=np.array([*box.pending.values(), *here]).reshape(-1, d),
                count=share,
                snap=box.slice.snap,
                rng=np.random.default_rng([self._seed, box.number, box.asked, len(here), -self._refused]),
            )
            for x in positions[:share]:
                self._take(box, x, batch)

    def _shares(self, count: int) -> list[int]:
        """How many of `count` suggestions each slice gets, in proportion to its uncertain area."""
        if len(self._boxes) == 1:
            return [count]
        areas = np.array(self._areas())
        weights = areas + FLOOR * areas.mean() + 1e-9
        exact = count * weights / weights.sum()
        shares = np.floor(exact).astype(int)
        order = np.argsort(shares - exact, kind="stable")
        shares[order[: count - int(shares.sum())]] += 1
        return [int(share) for share in shares]

    def _left_over(self, count: int, batch: _Batch) -> None:
        """Fill up from grids whose surrogate suggests nothing more, the least certain settings first."""
        for box in self._boxes:
            if len(batch) >= count:
                break
            if not box.slice.is_grid:
                continue
            left = box.untried(self._replicates)
            surface = box.fit()
            if isinstance(surface, ClassSurface) and len(left):
                left = left[np.argsort(surface.belief(left).max(axis=1), kind="stable")]
            for x in left:
                if len(batch) >= count:
                    break
                self._take(box, x, batch)

    def _take(self, box: _Box, x: Floats, batch: _Batch, *, new_setting: bool = False) -> bool:
        """Add a proposal at a position; False where no replicate is left or the setting is refused.

        With `new_setting`, a setting that was tried is refused too.
        """
        setting = box.slice.setting(x)
        exact = box.slice.position(setting)
        key = tuple(exact.tolist())
        used = box.tried.get(key, set()) | batch.replicates.get((box.number, key), set())
        free = [r for r in range(min(self._replicates, len(used) + MOST_COMPARED)) if r not in used]
        if (used and new_setting) or (not free and box.slice.is_grid):
            return False
        # Of the numbers that the setting has not had, the one used least often so far.
        replicate = min(free, key=lambda r: (batch.used[r], r)) if free else max(used) + 1
        proposal = Proposal(slice=box.number, x=exact, setting=setting, replicate=replicate)
        if self._accept is not None and not self._accept(setting, replicate):
            self.refuse(proposal)
            return False
        batch.add(proposal)
        return True

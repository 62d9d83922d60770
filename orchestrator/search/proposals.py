"""What to try next, given what was tried: evidence and pending trials of every slice, and suggestions in batches.

It knows no Optuna, no storage and no job: positions in, positions out. Nothing random is kept between two calls: a
suggestion depends on the seed and on what was tried, so that a search that was interrupted goes on as it would have.
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
from orchestrator.surface.base import ClassSurface, Evidence, Surface, Surrogate

FLOOR = 0.1
"""A slice whose boundary is known gets suggestions as if it had this share of the mean uncertain area."""
SOBOL_BLOCK = 64
"""Positions of a Sobol sequence are drawn in blocks of a power of two, as its balance wants it."""
SOBOL_FRUITLESS = 16
"""Blocks in a row without an untried position, after which a Sobol sequence has nothing more to give."""
MOST_COMPARED = 64
"""Replicate numbers among which the least used is looked for."""
MOST_REFUSED = 1000
"""Positions in a row that may be refused before the Sobol sequence is given up for this time."""
ROUNDS = 4
"""How often a target is asked anew where settings that it suggested are refused."""

Key = tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a trial that has ended says (see `Evidence`)."""

    label: int = -1
    value: float = float("nan")
    censored: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Proposal:
    """A trial that would tell much."""

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
    target: Surrogate[Any]
    quota: int
    """Trials at the start that are spread evenly."""
    seed: int
    told: dict[int, tuple[Floats, Told]] = field(default_factory=dict)
    """Trial -> position and what it said."""
    pending: dict[int, Floats] = field(default_factory=dict)
    """Trials that have not ended, and those that failed: tried, and silent."""
    tried: dict[Key, set[int]] = field(default_factory=dict)
    """Setting -> replicates asked."""
    asked: int = 0
    surface: Surface | None = None
    fitted: int = 0
    """Trials told when the surface was fitted."""
    sequence: list[Floats] = field(default_factory=list)
    """The Sobol sequence as far as it was drawn, and how much of it was tried throughout."""
    cursor: int = 0
    more: Iterator[Floats] | None = None
    grid: Floats | None = None

    def evidence(self) -> Evidence:
        """In the order of the trials' numbers, whatever order they were told in."""
        ordered = [self.told[number] for number in sorted(self.told)]
        return Evidence(
            x=np.array([x for x, _ in ordered]).reshape(len(ordered), len(self.slice.coordinates)),
            label=np.array([told.label for _, told in ordered], dtype=np.int64),
            value=np.array([told.value for _, told in ordered], dtype=np.float64),
            censored=np.array([told.censored for _, told in ordered], dtype=np.bool_),
        )

    def fit(self) -> Surface | None:
        """The belief after all that was told; None where nothing was."""
        if len(self.told) != self.fitted:
            self.surface = self.target.fit(self.evidence(), previous=self.surface)
            self.fitted = len(self.told)
        return self.surface

    def spread(self) -> Iterator[Floats]:
        """The positions of its Sobol sequence that were not tried."""
        while self.cursor < len(self.sequence) and tuple(self.sequence[self.cursor].tolist()) in self.tried:
            self.cursor += 1
        yield from (x for x in self.sequence[self.cursor :] if tuple(x.tolist()) not in self.tried)
        self.more = self.more or self._sobol()
        for x in self.more:
            self.sequence.append(x)
            if tuple(x.tolist()) not in self.tried:
                yield x

    def _sobol(self) -> Iterator[Floats]:
        """Snapped positions of a scrambled Sobol sequence, until it gives none that is new."""
        from scipy.stats import qmc

        d = len(self.slice.coordinates)
        engine = qmc.Sobol(d, scramble=True, rng=np.random.default_rng([self.seed, self.number]))
        seen: set[Key] = set()
        fruitless = 0
        while fruitless < SOBOL_FRUITLESS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # on balance: blocks after the first are not a first draw
                block = self.slice.snap(engine.random(SOBOL_BLOCK))
            fresh = {key: x for x in block if (key := tuple(x.tolist())) not in seen}
            seen.update(fresh)
            fruitless = 0 if fresh else fruitless + 1
            yield from fresh.values()

    def untried(self, replicates: int) -> Floats:
        """(m, d) settings of a grid of which some replicate was not asked."""
        if self.grid is None:
            sides = [c.at for c in self.slice.coordinates if isinstance(c, Listed)]
            mesh = np.meshgrid(*sides, indexing="ij")
            self.grid = np.stack([side.ravel() for side in mesh], axis=1)
        done = {key for key, asked in self.tried.items() if len(asked) >= replicates}
        left = [i for i, x in enumerate(map(tuple, self.grid.tolist())) if x not in done]
        return self.grid[left]


class _Draw:
    """The proposals of one batch."""

    def __init__(self, used: Counter[int]) -> None:
        self.found: list[Proposal] = []
        self.replicates: dict[tuple[int, Key], set[int]] = defaultdict(set)
        self.coming: Counter[int] = Counter()
        """Slice -> proposals."""
        self.used = Counter(used)

    def add(self, proposal: Proposal) -> None:
        self.found.append(proposal)
        self.replicates[proposal.key].add(proposal.replicate)
        self.coming[proposal.slice] += 1
        self.used[proposal.replicate] += 1

    def __len__(self) -> int:
        return len(self.found)


class Proposer:
    """Suggests trials for a space of slices.

    Args:
        slices: where to look.
        target_of: what is looked for in a slice.
        start: trials of all slices together that are spread evenly at first.
        seed: base of all random numbers.
        replicates: how many trials a setting may have: numbers 0 to R-1 are spread evenly over the settings, and given
            again to those that the target suggests again. A grid has no more; elsewhere a setting that is worth another
            trial gets one beyond them.
        accept: whether a setting and a replicate may be tried at all; by default all may.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        target_of: Callable[[Slice], Surrogate[Any]],
        *,
        start: int,
        seed: int,
        replicates: int = 1,
        accept: Callable[[Mapping[str, Scalar], int], bool] | None = None,
    ) -> None:
        quota = -(-start // max(1, len(slices)))
        self._boxes = [
            _Box(number=i, slice=one, target=target_of(one), quota=quota, seed=seed) for i, one in enumerate(slices)
        ]
        self._seed, self._replicates, self._accept = seed, max(1, replicates), accept
        self._used: Counter[int] = Counter()
        self._where: dict[int, int] = {}
        self._refused = 0

    @property
    def slices(self) -> list[Slice]:
        """Where it looks."""
        return [box.slice for box in self._boxes]

    @property
    def starting(self) -> bool:
        """Whether trials of the even start are still to be asked."""
        return any(box.asked < box.quota for box in self._boxes)

    @property
    def start_left(self) -> int:
        """How many of them."""
        return sum(max(0, box.quota - box.asked) for box in self._boxes)

    @property
    def told(self) -> int:
        """Trials that have said something."""
        return sum(len(box.told) for box in self._boxes)

    # --- what was tried ---

    def asked(self, number: int, slice_: int, x: Floats, replicate: int | None = None) -> None:
        """A trial was asked (here or elsewhere); `number` is its own. Said again, it may have moved."""
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

    def tell(self, number: int, told: Told) -> None:
        """An asked trial has ended."""
        box = self._boxes[self._where[number]]
        x = box.pending.pop(number, None)
        if x is not None:
            box.told[number] = (x, told)

    def forget(self, number: int) -> None:
        """A trial is not what it was taken for: as if it had never been asked, but for its replicate's number."""
        if number in self._where:
            box = self._boxes[self._where.pop(number)]
            if box.pending.pop(number, None) is not None:
                box.asked -= 1

    def refuse(self, proposal: Proposal) -> None:
        """A setting that cannot be tried; never suggested again."""
        self._refused -= 1
        box = self._boxes[proposal.slice]
        box.pending[self._refused] = proposal.x
        box.tried[proposal.key[1]] = set(range(max(self._replicates, 1)))

    def is_tried(self, proposal: Proposal) -> bool:
        """Whether this replicate of the setting was asked meanwhile."""
        slice_, key = proposal.key
        return proposal.replicate in self._boxes[slice_].tried.get(key, ())

    # --- what is believed ---

    def surfaces(self) -> list[Surface | None]:
        """The belief of every slice, in their order; None where nothing was told."""
        return [box.fit() for box in self._boxes]

    def uncertain_area(self) -> float:
        """The mean over the slices; a slice of which nothing is known counts whole."""
        areas = [1.0 if surface is None else surface.uncertain_area() for surface in self.surfaces()]
        return float(np.mean(areas)) if areas else 0.0

    # --- what to try ---

    def propose(self, count: int) -> list[Proposal]:
        """Up to `count` trials, the first to be run first; fewer where nothing is left to try, or to go by."""
        draw = _Draw(self._used)
        while len(draw) < count:
            left = [box for box in self._boxes if box.asked + draw.coming[box.number] < box.quota]
            if not left:
                break
            box = min(left, key=lambda box: (box.asked + draw.coming[box.number], box.number))
            if not self._spread(box, 1, draw):
                box.quota = 0  # a grid smaller than its start
        for _ in range(ROUNDS):
            refused = self._refused
            if len(draw) < count:
                self._by_belief(count - len(draw), draw)
            if self._refused == refused:
                break
        if len(draw) < count:
            self._left_over(count, draw)
        return draw.found

    def _spread(self, box: _Box, count: int, draw: _Draw) -> int:
        """Take the next positions of the slice's Sobol sequence; how many there were."""
        taken = fruitless = 0
        for x in box.spread():
            if taken >= count or fruitless > MOST_REFUSED:
                break
            new = self._take(box, x, draw, anew=True)
            taken, fruitless = taken + new, 0 if new else fruitless + 1
        return taken

    def _by_belief(self, count: int, draw: _Draw) -> None:
        for box, share in zip(self._boxes, self._shares(count), strict=True):
            if not share:
                continue
            surface = box.fit()
            if surface is None:  # all are pending, or failed
                self._spread(box, share, draw)
                continue
            here = [p.x for p in draw.found if p.slice == box.number]
            d = len(box.slice.coordinates)
            positions = box.target.suggest(
                surface,
                box.evidence(),
                pending=np.array([*box.pending.values(), *here]).reshape(-1, d),
                count=share,
                snap=box.slice.snap,
                rng=np.random.default_rng([self._seed, box.number, box.asked, len(here), -self._refused]),
            )
            for x in positions[:share]:
                self._take(box, x, draw)

    def _shares(self, count: int) -> list[int]:
        """How many of `count` suggestions each slice gets: by its uncertain area, those left over to the largest."""
        if len(self._boxes) == 1:
            return [count]
        areas = np.array([1.0 if s is None else s.uncertain_area() for s in self.surfaces()])
        weights = areas + FLOOR * areas.mean() + 1e-9
        exact = count * weights / weights.sum()
        shares = np.floor(exact).astype(int)
        order = np.argsort(shares - exact, kind="stable")
        shares[order[: count - int(shares.sum())]] += 1
        return [int(share) for share in shares]

    def _left_over(self, count: int, draw: _Draw) -> None:
        """The rest of a grid of which its target wants no more, the least certain settings first."""
        for box in self._boxes:
            if len(draw) >= count:
                break
            if not box.slice.is_grid:
                continue
            left = box.untried(self._replicates)
            surface = box.fit()
            if isinstance(surface, ClassSurface) and len(left):
                left = left[np.argsort(surface.belief(left).max(axis=1), kind="stable")]
            for x in left:
                if len(draw) >= count:
                    break
                self._take(box, x, draw)

    def _take(self, box: _Box, x: Floats, draw: _Draw, *, anew: bool = False) -> bool:
        """Make a position a proposal with its replicate; not where none is left, or the setting is refused."""
        setting = box.slice.setting(x)
        exact = box.slice.position(setting)
        key = tuple(exact.tolist())
        used = box.tried.get(key, set()) | draw.replicates.get((box.number, key), set())
        free = [r for r in range(min(self._replicates, len(used) + MOST_COMPARED)) if r not in used]
        if (used and anew) or (not free and box.slice.is_grid):
            return False
        # The number that was given least often so far, of those that the setting has not had.
        replicate = min(free, key=lambda r: (draw.used[r], r)) if free else max(used) + 1
        proposal = Proposal(slice=box.number, x=exact, setting=setting, replicate=replicate)
        if self._accept is not None and not self._accept(setting, replicate):
            self.refuse(proposal)
            return False
        draw.add(proposal)
        return True

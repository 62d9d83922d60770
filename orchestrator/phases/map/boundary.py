"""Where one phase gives way to another, on a two-dimensional map.

A boundary is the line on which a phase's share of the replicates is 1/2, found by marching squares between the cells'
centres: linear interpolation in the axes' own coordinates (log10 on a log axis). With one replicate it runs half-way
between neighbouring settings whose labels differ: its position is known no better than the grid.

The band is the set of cells whose replicates disagree. It says where the label depends on the seed, not how sure we are
of the line: it is no confidence interval. With R replicates, a cell outside it may still show another label in about
3/R of all seeds (the "rule of three"), and with one replicate there is no band at all.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.scale import AxisScale

Line = NDArray[np.float64]
"""(P, 2) points, x and y."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Boundary:
    """The boundaries of one map."""

    lines: dict[int, tuple[Line, ...]]
    """Label index -> the polylines on which its share is 1/2, in axis units."""
    drawn: tuple[Line, ...]
    """All polylines in drawing positions (u), for a plot."""
    band: NDArray[np.bool_]
    """(X, Y) cells whose replicates disagree."""


def boundary(x: AxisScale, y: AxisScale, share: NDArray[np.float64]) -> Boundary:
    """The boundaries on a grid of shares (X, Y, L); a hole is NaN, and no line is drawn beside it.

    Text axes have no between, so no line crosses them; nor does one cross the gap to a column set apart.
    """
    some = ~np.isnan(share).all(axis=2)
    band = some & (np.nan_to_num(share).max(axis=2) < 1)
    lines: dict[int, tuple[Line, ...]] = {}
    drawn: list[Line] = []
    if x.numeric and y.numeric:
        inner = share[x.special :, y.special :]
        u, v = x.position[x.special :], y.position[y.special :]
        present = np.flatnonzero(np.nan_to_num(inner).max(axis=(0, 1), initial=0) > 0)
        winner = np.nan_to_num(inner).argmax(axis=2)
        for label in present:
            # Of two labels that share a tie the first has it, as on the map: so their boundaries coincide.
            found = half_level(u, v, inner[:, :, label], winner == label, saddle=label == present[0])
            if found:
                lines[int(label)] = tuple(
                    np.column_stack([x.to_value(line[:, 0]), y.to_value(line[:, 1])]) for line in found
                )
                drawn += found
    return Boundary(lines=lines, drawn=tuple(drawn), band=band)


def half_level(
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    share: NDArray[np.float64],
    ties: NDArray[np.bool_] | None = None,
    *,
    saddle: bool = False,
) -> list[Line]:
    """Polylines where `share` (U, V), given at the points u x v, is 1/2.

    A share of exactly 1/2 counts as above where `ties` (U, V) says so. In a saddle the mean of the four corners decides
    which of them are joined; where that is 1/2 too, `saddle` does.
    """
    high = share > 0.5 if ties is None else (share > 0.5) | ((share == 0.5) & ties)
    chains = contours(high, share - 0.5, saddle=saddle)
    return [np.array([_crossing(edge, u, v, share) for edge in chain]) for chain in chains]


Edge = tuple[int, int, int]
"""An edge between neighbouring points of a grid, (direction, i, j): 0 runs along u from point (i, j), 1 along v."""


def contours(high: NDArray[np.bool_], excess: NDArray[np.float64], *, saddle: bool = False) -> list[list[Edge]]:
    """The lines that part the points of a grid that are `high` (U, V) from the others, as the edges that they cross.

    A closed line ends with the edge that it began with. In a saddle the mean of the four corners' `excess` (U, V)
    decides which of them are joined: above 0 the high ones; where it is 0, `saddle` says whether they are. A
    square with a NaN is crossed by no line.
    """
    if min(high.shape) < 2:
        return []
    corners, above = _corners(excess), _corners(high)
    case = (above * np.array([1, 2, 4, 8])[:, None, None]).sum(axis=0)
    case[np.isnan(corners).any(axis=0)] = 0
    ends: dict[Edge, list[Edge]] = defaultdict(list)
    for i, j in zip(*np.nonzero((case != 0) & (case != 15)), strict=True):
        mean = float(corners[:, i, j].mean())
        joined = mean > 0 or (mean == 0 and bool(saddle))
        sides = ((0, int(i), int(j)), (1, int(i) + 1, int(j)), (0, int(i), int(j) + 1), (1, int(i), int(j)))
        for a, b in _segments(int(case[i, j]), joined):
            ends[sides[a]].append(sides[b])
            ends[sides[b]].append(sides[a])
    return _chains(ends)


def _corners(grid: NDArray[Any]) -> NDArray[Any]:
    """(4, U - 1, V - 1) the corners of every square: lower left, lower right, upper right, upper left."""
    return np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]])


_CROSSED = {
    1: ((3, 0),),
    2: ((0, 1),),
    3: ((3, 1),),
    4: ((1, 2),),
    6: ((0, 2),),
    7: ((3, 2),),
    8: ((2, 3),),
    9: ((0, 2),),
    11: ((1, 2),),
    12: ((1, 3),),
    13: ((0, 1),),
    14: ((3, 0),),
}
"""Which sides of a square (bottom, right, top, left) a line joins, by which corners are above."""


def _segments(case: int, joined: bool) -> tuple[tuple[int, int], ...]:
    if case in _CROSSED:
        return _CROSSED[case]
    # Opposite corners: 5 has the lower left and upper right above, 10 the other two.
    return ((3, 2), (0, 1)) if (case == 5) == joined else ((3, 0), (1, 2))


def _crossing(
    edge: Edge, u: NDArray[np.float64], v: NDArray[np.float64], share: NDArray[np.float64]
) -> tuple[float, float]:
    direction, i, j = edge
    k, m = (i + 1, j) if direction == 0 else (i, j + 1)
    first, last = share[i, j], share[k, m]
    t = (0.5 - first) / (last - first) if first != last else 0.5
    return float(u[i] + t * (u[k] - u[i])), float(v[j] + t * (v[m] - v[j]))


def _chains(ends: dict[Edge, list[Edge]]) -> list[list[Edge]]:
    """Join segments into lines: open ones from their ends, then closed ones."""
    chains = []
    left = {edge: list(others) for edge, others in ends.items()}
    starts = [e for e in sorted(left) if len(left[e]) == 1] + sorted(left)
    for start in starts:
        if not left[start]:
            continue
        chain = [start]
        while left[chain[-1]]:
            following = left[chain[-1]].pop()
            left[following].remove(chain[-1])
            chain.append(following)
        chains.append(chain)
    return chains

"""What a search saved: an estimate of how many trials a grid would need for a map that is expected to be as good.

The expected error e of a map is computed from the map itself. For classes, it is the share of the box whose class is
another one, mean(1 - belief in the leading class); for a ridge, the mean distance of the peak along its axis from where
it is drawn, from the width of its 90% band. Then a grid is simulated: its trials show what the map expects at the
grid's points, with the map's own noise, the same surface is fitted to them, and its e is computed. For a metric, e is
at least the difference between the fit and the map, because a Gaussian process that has missed a feature does not know
it; and the e of the search is that of trials simulated at its own settings, so that both are computed in the same way.

Labels are the leading classes, a share `noise()` of them replaced by another class at random; the metric of a level or
a ridge is the expected one, with normal noise. Grids grow, by as many values on every axis, until e is as small as the
search's, or until they have `MOST` points. Between two sizes, and beyond the last, the number is read from the power
law through the last two sizes. If the smallest of them is as good already, the number is that size or less, and which
is not known. The map stands for the truth, so boundaries that it lacks do not count; the grid's
trials are as clean near the boundary as elsewhere, and none is censored: all of that favours the grid. That the map was
learnt at the search's own settings favours the search while the map is still poor.

If the error of the simulated grids does not fall, a bound takes its place: the map that gives each point the label of
the nearest grid point is wrong in L*h/4 of the box on average, where L is the boundary's length (area) in box widths
and h = n^(-1/d) the spacing, so that n = (L/(4e))^d. There is no such bound for a ridge, and then no estimate.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from orchestrator.phases.map.surface_map import FittedMap, FittedSlice, expected_error
from orchestrator.phases.text import plural
from orchestrator.surface.base import ClassSurface, Evidence, Points, RidgeSurface, Surface, lattice

MOST = 2_000
"""Points of the largest grid that is simulated."""
_FIRST = 0.25
"""Points of the first grid, as a share of the trials that the search spent."""
_GROWTH = 2.5
_PROBES = 2_048
_COLUMNS = 64
_REPEATS = 2
"""Simulations of the same trials of a metric."""
_OFF_BY = 0.7979 / (2 * 1.6449)
"""The mean distance of a normal number from its median, as a share of the width of its 90% interval."""
AT_MOST = "at_most"
"""See `Savings.method`."""
MAP, PEAK = "map error", "error of the peak's position"
"""The error in which a grid is to be as good: of classes, and of a ridge."""

_WORSE = (
    "this search needed more trials than a grid. It pays off with a larger budget or fewer axes; with so few trials, "
    "run a grid ('kind: grid')"
)


@runtime_checkable
class Shows(Protocol):
    """A surface of a metric, which can simulate trials."""

    def trials(self, x: Points, rng: np.random.Generator) -> Evidence:
        """Simulated trials at (q, d) positions, with its expectation as the truth."""


@dataclass(frozen=True, kw_only=True)
class Savings:
    """The estimate."""

    trials: int
    """Trials with a result that the search spent."""
    expected_error: float
    """e: the share of the box that its map is expected to get wrong; of a ridge the peak's error, in box widths."""
    grid: float | None = None
    """Points of the grid, in all slices; None without an estimate."""
    method: str = "none"
    """simulated: between two simulated sizes; extrapolated: beyond the last; at_most: the smallest that was simulated,
    or fewer points, without a number; bound: see the module; none."""
    simulated: tuple[tuple[int, float], ...] = ()
    """(points, expected error) of the grids that were simulated, all slices together."""
    key: str
    """Fingerprint of the trials that this was computed from."""
    what: str = MAP
    """What e is."""

    def text(self) -> str:
        """In one line, for people."""
        grid = self.simulated[0][0] if self.method == AT_MOST else self.grid
        worse = "" if grid is None or grid >= self.trials else f": {_WORSE}"
        return f"{plural(self.trials, 'trial')}; {self.beside()}{worse}"

    def beside(self) -> str:
        """What a grid needs, for people."""
        if self.method == AT_MOST:
            return f"a grid of {self.simulated[0][0]:,} trials or fewer is as good (estimate)"
        if self.grid is None:
            return f"what a grid of the same {self.what} needs is not estimated"
        how = {"simulated": "estimate", "extrapolated": "estimate, extrapolated"}.get(self.method, "bound")
        step = int(10 ** max(0, math.floor(math.log10(max(self.grid, 1))) - 1))
        return f"a grid of the same {self.what} needs about {round(self.grid / step) * step:,} ({how})"


def savings(map_: FittedMap, known: Savings | None = None, *, valued: bool = False) -> Savings:
    """The estimate for the whole map.

    Args:
        map_: the map.
        known: an earlier estimate, which is returned if it is of the same trials.
        valued: whether the trials show a metric, and not labels: then only a surface that `Shows` has an estimate.
    """
    key = fingerprint(map_)
    parts = [part for part in map_.fitted if isinstance(part.surface, Shows if valued else ClassSurface)]
    surfaces = [part.surface for part in parts if part.surface is not None]
    what = PEAK if any(isinstance(part.surface, RidgeSurface) for part in map_.fitted) else MAP
    if known is not None and (known.key, known.what) == (key, what):
        return known
    saved = Savings(trials=sum(len(part.evidence) for part in map_.fitted), expected_error=math.nan, key=key, what=what)
    if not surfaces:
        return saved
    rng = np.random.default_rng(0)
    error = float(np.mean([_error_of_search(*pair, rng) for pair in zip(parts, surfaces, strict=True)]))
    dimensions = surfaces[0].dimensions
    curve: list[tuple[int, float]] = []
    each = max(_FIRST * saved.trials / len(parts), 3.0**dimensions)
    while not curve or curve[-1][1] > error:
        sides = round(each ** (1 / dimensions))
        if curve and sides**dimensions * len(parts) > MOST:
            break
        rng = np.random.default_rng(0)
        wrong = [_error_of_grid(part, surface, sides, rng) for part, surface in zip(parts, surfaces, strict=True)]
        curve.append((sides**dimensions * len(parts), float(np.mean(wrong))))
        each = max(each * _GROWTH, (sides + 1.0) ** dimensions)
    grid, method = _read_off(curve, error)
    sizes = [boundary_size(each) for each in surfaces if isinstance(each, ClassSurface)] if method == "none" else []
    if sizes and error > 0 and sum(sizes) > 0:
        grid, method = len(parts) * max(1.0, (float(np.mean(sizes)) / (4 * error)) ** dimensions), "bound"
    return replace(saved, expected_error=error, grid=grid, method=method, simulated=tuple(curve))


def _error(surface: Surface, points: int = 2 * _PROBES) -> float:
    """e of one slice, as its surface expects it; see the module."""
    if isinstance(surface, ClassSurface):
        return expected_error(surface, points=points)
    return _OFF_BY * surface.uncertain_area()


def _error_of_search(part: FittedSlice, surface: Surface, rng: np.random.Generator) -> float:
    """e of a slice as it was searched; for a metric from trials simulated at its own settings, as for a grid."""
    if not isinstance(surface, Shows):
        return _error(surface)
    return float(np.mean([_missed(part.fit(surface.trials(part.evidence.x, rng)), surface) for _ in range(_REPEATS)]))


def _error_of_grid(part: FittedSlice, surface: Surface, sides: int, rng: np.random.Generator) -> float:
    """e after a simulated grid, whose points are the middles of equal cells."""
    middles = [(np.arange(sides) + 0.5) / sides] * surface.dimensions
    x: Points = np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, surface.dimensions)
    if isinstance(surface, Shows):
        return float(np.mean([_missed(part.fit(surface.trials(x, rng)), surface) for _ in range(_REPEATS)]))
    if not isinstance(surface, ClassSurface):
        raise TypeError("a surface of neither classes nor a metric")
    label = surface.label(x)
    present = np.unique(label)
    odd = np.flatnonzero(rng.random(len(label)) < surface.noise())
    if len(present) > 1:
        place = np.searchsorted(present, label[odd])
        label = label.copy()
        label[odd] = present[(place + rng.integers(1, len(present), len(odd))) % len(present)]
    simulated = Evidence(x=x, label=label, value=np.full(len(x), np.nan), censored=np.zeros(len(x), dtype=np.bool_))
    return _error(part.fit(simulated), points=_PROBES)


def _missed(fitted: Surface, truth: Surface) -> float:
    """The expected error of a fit to simulated trials, or its true error if that is larger."""
    expected = _error(fitted, points=_PROBES)
    if isinstance(fitted, RidgeSurface) and isinstance(truth, RidgeSurface):
        at = lattice(_COLUMNS, truth.dimensions - 1)
        return max(expected, float(np.abs(fitted.peak(at)[0] - truth.peak(at)[0]).mean()))
    if isinstance(fitted, ClassSurface) and isinstance(truth, ClassSurface):
        at = lattice(_PROBES, truth.dimensions)
        return max(expected, float((fitted.label(at) != truth.label(at)).mean()))
    return expected


def _read_off(curve: Sequence[tuple[int, float]], error: float) -> tuple[float | None, str]:
    """The size at which the errors of growing grids reach `error`, and the method."""
    if curve[0][1] <= error:
        return None, AT_MOST
    if len(curve) < 2:
        return None, "none"
    (few, high), (many, low) = curve[-2:]
    if not high > low > 0 or error <= 0:
        return None, "none"
    power = math.log(high / low) / math.log(many / few)
    reached = many * (low / error) ** (1 / power)
    if low <= error:
        return reached, "simulated"
    # A grid cannot go on to improve faster than a nearest-neighbour map: far beyond the last size is no estimate.
    return (reached, "extrapolated") if reached <= 30 * many else (None, "none")


def boundary_size(surface: ClassSurface, *, points: int = 8_192, step: float = 0.01) -> float:
    """The length (area, volume) of all boundaries, in box widths.

    By Crofton's formula: a needle of length `step` with a random direction crosses them with probability
    c_d * size * step, where c_d is the mean of |cos| of the angle to a direction: 2/pi in two dimensions, 1/2 in three.
    """
    dimensions = surface.dimensions
    at = lattice(points, dimensions)
    direction = np.random.default_rng(0).standard_normal((points, dimensions))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    crossed = surface.label(at + direction * step / 2) != surface.label(at - direction * step / 2)
    mean_cosine = math.gamma(dimensions / 2) / (math.sqrt(math.pi) * math.gamma((dimensions + 1) / 2))
    return float(crossed.mean()) / (mean_cosine * step)


def fingerprint(map_: FittedMap) -> str:
    """A hash of the evidence of a map."""
    digest = hashlib.blake2b(digest_size=16)
    for part in map_.slices:
        evidence = part.evidence
        order = np.lexsort((evidence.label, *evidence.x.T))
        for column in (evidence.x[order], evidence.label[order], evidence.value[order]):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update(repr(sorted(part.slice.fixed.items())).encode())
    return digest.hexdigest()


def write_savings(saved: Savings, path: Path) -> None:
    """Write the estimate as JSON."""
    error = None if math.isnan(saved.expected_error) else saved.expected_error
    content = {**asdict(saved), "expected_error": error, "text": saved.text()}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_savings(path: Path) -> Savings | None:
    """What `write_savings` wrote; None if there is no such file, or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("text", None)
        error = math.nan if content["expected_error"] is None else content["expected_error"]
        curve = tuple((int(n), float(e)) for n, e in content["simulated"])
        if content["method"] == "simulated" and len(curve) == 1:  # an earlier version gave that size as the number
            content |= {"grid": None, "method": AT_MOST}
        return Savings(**{**content, "expected_error": error, "simulated": curve})
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""What a search saved: how many trials a grid would need for a map that is expected to be as good. An estimate.

Method: the search's map says how far it is expected to be wrong, e. For classes that is the share of it whose class is
another one, mean(1 - the leading class's belief); for a ridge, the mean distance of the peak from where it is drawn,
along its axis, as the width of its 90% band has it. A grid is then simulated: its trials show what the map expects at
the grid's points, with the noise that the map has found, the same surface is fitted to them, and its own e is taken. Of
a metric e is at least what the fit differs by from the map, for a Gaussian process that has missed a feature does not
know it; and the search's own e is that of trials simulated at its own settings, so that like is held to like. Labels
are the leading classes, a share `noise()` of them replaced by another class at random; a level's and a ridge's metric
is the expected one, with normal noise. Grids grow, by as many values on every axis, until e is as small, or until they
have `MOST` points; between two sizes, and beyond the last, the number is read from the power law that the last two
sizes show. The search's map stands for the truth, so boundaries that it does not know do not count; the grid's trials
are as clean near the boundary as elsewhere, and none of them is censored: all of that favours the grid. That the map
was learnt at the search's own settings favours the search, while the map is still poor.

Where the classifier cannot say (the error does not fall), a bound takes its place: the map that gives each point its
nearest grid point's label is wrong in L*h/4 of the box on average, where L is the boundary's length (area) in box
widths and h = n^(-1/d) the spacing, so that n = (L/(4e))^d. For a ridge there is no such bound, and nothing is said.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from orchestrator.phases.map.surface_map import Fit, FittedMap, FittedSlice, expected_error
from orchestrator.phases.text import plural
from orchestrator.surface.base import ClassSurface, Evidence, Points, RidgeSurface, Surface, lattice

MOST = 2_000
"""Points of the largest grid that is simulated."""
_FIRST = 0.25
"""The first grid has this share of the trials that the search spent."""
_GROWTH = 2.5
_PROBES = 2_048
_COLUMNS = 64
_REPEATS = 2
"""Simulations of the same trials of a metric."""
_OFF_BY = 0.7979 / (2 * 1.6449)
"""The mean distance of a normal number from its median, as a share of the width of its 90% interval."""
MAP, PEAK = "map error", "error of the peak's position"
"""What a grid is to be as good in: for classes, and for a ridge."""


@runtime_checkable
class Shows(Protocol):
    """A belief of a metric: it knows what trials would show."""

    def trials(self, x: Points, rng: np.random.Generator) -> Evidence:
        """What trials at (q, d) positions would show, were what it expects the truth."""


@dataclass(frozen=True, kw_only=True)
class Savings:
    """The estimate."""

    trials: int
    """That the search spent, with a result."""
    expected_error: float
    """e: the share of the box that its map is expected to get wrong; of a ridge the peak's error, in box widths."""
    grid: float | None
    """Points of the grid, in all slices; None where nothing can be said."""
    method: str
    """simulated: between two simulated sizes; extrapolated: beyond the last; bound: see the module; none."""
    simulated: tuple[tuple[int, float], ...]
    """(points, expected error) of the grids that were simulated, all slices together."""
    key: str
    """Fingerprint of the trials that this was computed from."""
    what: str = MAP
    """What e is."""

    def text(self) -> str:
        """In one line, for people."""
        return f"{plural(self.trials, 'trial')}; {self.beside()}"

    def beside(self) -> str:
        """What a grid needs, for people."""
        if self.grid is None:
            return f"what a grid of the same {self.what} needs is not estimated"
        how = {"simulated": "estimate", "extrapolated": "estimate, extrapolated"}.get(self.method, "bound")
        return f"a grid of the same {self.what} needs about {_rounded(self.grid):,} ({how})"


def _rounded(value: float) -> int:
    step = int(10 ** max(0, math.floor(math.log10(max(value, 1))) - 1))
    return round(value / step) * step


def savings(found: FittedMap, known: Savings | None = None, *, valued: bool = False) -> Savings:
    """Estimate for the whole map.

    Args:
        found: the map.
        known: an earlier estimate, which is returned where it is of the same trials.
        valued: whether the trials show a metric, and not labels: then only a surface that `Shows` has an estimate.
    """
    key = fingerprint(found)
    spent = sum(len(one.evidence) for one in found.fitted)
    parts = [one for one in found.fitted if isinstance(one.surface, Shows if valued else ClassSurface)]
    surfaces = [one.surface for one in parts if one.surface is not None]
    what = PEAK if any(isinstance(one.surface, RidgeSurface) for one in found.fitted) else MAP
    if known is not None and (known.key, known.what) == (key, what):
        return known
    if not surfaces:
        return Savings(
            trials=spent, expected_error=math.nan, grid=None, method="none", simulated=(), key=key, what=what
        )
    rng = np.random.default_rng(0)
    error = float(np.mean([_error_of_search(one, surface, rng) for surface, one in zip(surfaces, parts, strict=True)]))
    dimensions = surfaces[0].dimensions
    curve: list[tuple[int, float]] = []
    each = max(_FIRST * spent / len(parts), 3.0**dimensions)
    while not curve or curve[-1][1] > error:
        sides = round(each ** (1 / dimensions))
        if curve and sides**dimensions * len(parts) > MOST:
            break
        rng = np.random.default_rng(0)
        wrong = [_error_of_grid(surface, one.fit, sides, rng) for surface, one in zip(surfaces, parts, strict=True)]
        curve.append((sides**dimensions * len(parts), float(np.mean(wrong))))
        each = max(each * _GROWTH, (sides + 1.0) ** dimensions)
    grid, method = _read_off(curve, error)
    classes = [surface for surface in surfaces if isinstance(surface, ClassSurface)]
    if grid is None and classes:
        length = float(np.mean([boundary_size(surface) for surface in classes]))
        if error > 0 and length > 0:
            grid, method = len(parts) * max(1.0, (length / (4 * error)) ** dimensions), "bound"
    return Savings(
        trials=spent, expected_error=error, grid=grid, method=method, simulated=tuple(curve), key=key, what=what
    )


def _error(surface: Surface, points: int = 2 * _PROBES) -> float:
    """e of one slice as its belief has it; see the module."""
    if isinstance(surface, ClassSurface):
        return expected_error(surface, points=points)
    return _OFF_BY * surface.uncertain_area()


def _error_of_search(one: FittedSlice, surface: Surface, rng: np.random.Generator) -> float:
    """e of a slice as it was searched; of a metric from trials simulated where its own are, as a grid's are."""
    if not isinstance(surface, Shows):
        return _error(surface)
    return float(np.mean([_missed(one.fit(surface.trials(one.evidence.x, rng)), surface) for _ in range(_REPEATS)]))


def _error_of_grid(surface: Surface, fit: Fit, sides: int, rng: np.random.Generator) -> float:
    """e after a simulated grid."""
    if not isinstance(surface, Shows):
        return _error(_gridded(surface, fit, sides, rng), points=_PROBES)
    return float(np.mean([_missed(_gridded(surface, fit, sides, rng), surface) for _ in range(_REPEATS)]))


def _missed(fitted: Surface, truth: Surface) -> float:
    """What a fit to simulated trials believes that it misses, and no less than what it does."""
    believed = _error(fitted, points=_PROBES)
    if isinstance(fitted, RidgeSurface) and isinstance(truth, RidgeSurface):
        at = lattice(_COLUMNS, truth.dimensions - 1)
        return max(believed, float(np.abs(fitted.peak(at)[0] - truth.peak(at)[0]).mean()))
    if isinstance(fitted, ClassSurface) and isinstance(truth, ClassSurface):
        at = lattice(_PROBES, truth.dimensions)
        return max(believed, float((fitted.label(at) != truth.label(at)).mean()))
    return believed


def _gridded(surface: Surface, fit: Fit, sides: int, rng: np.random.Generator) -> Surface:
    """The surface after a simulated grid, whose points are the middles of equal cells."""
    middles = (np.arange(sides) + 0.5) / sides
    x: Points = np.stack(np.meshgrid(*[middles] * surface.dimensions, indexing="ij"), axis=-1).reshape(
        -1, surface.dimensions
    )
    if isinstance(surface, Shows):
        return fit(surface.trials(x, rng))
    if not isinstance(surface, ClassSurface):
        raise TypeError("neither a belief in classes nor one of a metric")
    label = surface.label(x)
    shown = np.unique(label)
    odd = np.flatnonzero(rng.random(len(label)) < surface.noise())
    if len(shown) > 1:
        place = np.searchsorted(shown, label[odd])
        label = label.copy()
        label[odd] = shown[(place + rng.integers(1, len(shown), len(odd))) % len(shown)]
    value = np.full(len(x), np.nan)
    return fit(Evidence(x=x, label=label, value=value, censored=np.zeros(len(x), dtype=np.bool_)))


def _read_off(curve: Sequence[tuple[int, float]], error: float) -> tuple[float | None, str]:
    """Where the errors of growing grids come down to `error`."""
    if curve[-1][1] <= error and len(curve) == 1:
        return float(curve[0][0]), "simulated"
    if len(curve) < 2:
        return None, "none"
    (few, high), (many, low) = curve[-2:]
    if not high > low > 0 or error <= 0:
        return None, "none"
    power = math.log(high / low) / math.log(many / few)
    # A grid cannot fall faster than a nearest-neighbour map forever: what is far beyond the last size is no estimate.
    reached = many * (low / error) ** (1 / power)
    if low <= error:
        return reached, "simulated"
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


def fingerprint(found: FittedMap) -> str:
    """A hash of what the trials of a map say."""
    digest = hashlib.blake2b(digest_size=16)
    for one in found.slices:
        order = np.lexsort((one.evidence.label, *one.evidence.x.T))
        for column in (one.evidence.x[order], one.evidence.label[order], one.evidence.value[order]):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update(repr(sorted(one.slice.fixed.items())).encode())
    return digest.hexdigest()


def write_savings(found: Savings, path: Path) -> None:
    """Write the estimate as JSON."""
    content = {**asdict(found), "text": found.text()}
    if math.isnan(found.expected_error):
        content["expected_error"] = None
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_savings(path: Path) -> Savings | None:
    """What `write_savings` wrote; None where there is nothing that can be read as that."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return Savings(
            trials=said["trials"],
            expected_error=math.nan if said["expected_error"] is None else said["expected_error"],
            grid=said["grid"],
            method=said["method"],
            simulated=tuple((int(n), float(e)) for n, e in said["simulated"]),
            key=said["key"],
            what=said.get("what", MAP),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None

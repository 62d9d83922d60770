"""What a search saved: how many trials a grid would need for a map that is expected to be as good. An estimate.

Method: the search's map says what share of it is expected to be wrong, e = mean(1 - the leading class's belief). A grid
is then simulated: its labels are the map's leading classes at the grid's points, a share `noise()` of them replaced by
another class at random; the same classifier is fitted to them, and its own expected error is taken. Grids grow
until that is at most e, or until they have `MOST` points; between two sizes, and beyond the last, the number is read
from the power law that the last two sizes show. The search's map stands for the truth, so boundaries that it does not
know do not count; the grid's labels are as clean near the boundary as elsewhere: both favour the grid.

Where the classifier cannot say (the error does not fall), a bound takes its place: the map that gives each point its
nearest grid point's label is wrong in L*h/4 of the box on average, where L is the boundary's length (area) in box
widths and h = n^(-1/d) the spacing, so that n = (L/(4e))^d.
A level is read off a metric's values, which such a simulation does not have: for it nothing is said.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from orchestrator.phases.surface_map import Fit, FittedMap, expected_error, lattice
from orchestrator.phases.text import plural
from orchestrator.surface.base import ClassSurface, Evidence, Points

MOST = 2_000
"""Points of the largest grid that is simulated."""
_FIRST = 0.25
"""The first grid has this share of the trials that the search spent."""
_GROWTH = 2.5
_PROBES = 2_048


@dataclass(frozen=True, kw_only=True)
class Savings:
    """The estimate."""

    trials: int
    """That the search spent, with a result."""
    expected_error: float
    """e: the share of the box that its map is expected to get wrong."""
    grid: float | None
    """Points of the grid, in all slices; None where nothing can be said."""
    method: str
    """simulated: between two simulated sizes; extrapolated: beyond the last; bound: see the module; none."""
    simulated: tuple[tuple[int, float], ...]
    """(points, expected error) of the grids that were simulated, all slices together."""
    key: str
    """Fingerprint of the trials that this was computed from."""

    def text(self) -> str:
        """In one line, for people."""
        return f"{plural(self.trials, 'trial')}; {self.beside()}"

    def beside(self) -> str:
        """What a grid needs, for people."""
        if self.grid is None:
            return "what a grid of the same map error needs cannot be said"
        how = {"simulated": "estimate", "extrapolated": "estimate, extrapolated"}.get(self.method, "bound")
        return f"a grid of the same map error needs about {_rounded(self.grid):,} ({how})"


def _rounded(value: float) -> int:
    step = int(10 ** max(0, math.floor(math.log10(max(value, 1))) - 1))
    return round(value / step) * step


def savings(found: FittedMap, known: Savings | None = None) -> Savings:
    """Estimate for the whole map; `known` is returned where it is of the same trials."""
    key = fingerprint(found)
    if known is not None and known.key == key:
        return known
    spent = sum(len(one.evidence) for one in found.fitted)
    parts = [one for one in found.fitted if isinstance(one.surface, ClassSurface)]
    surfaces = [one.surface for one in parts if isinstance(one.surface, ClassSurface)]
    if not surfaces:
        return Savings(trials=spent, expected_error=math.nan, grid=None, method="none", simulated=(), key=key)
    error = float(np.mean([expected_error(surface) for surface in surfaces]))
    dimensions = surfaces[0].dimensions
    curve: list[tuple[int, float]] = []
    each = max(_FIRST * spent / len(parts), 3.0**dimensions)
    while not curve or curve[-1][1] > error:
        sides = round(each ** (1 / dimensions))
        if curve and sides**dimensions * len(parts) > MOST:
            break
        rng = np.random.default_rng(0)
        wrong = [
            expected_error(_gridded(surface, one.fit, sides, rng), points=_PROBES)
            for surface, one in zip(surfaces, parts, strict=True)
        ]
        curve.append((sides**dimensions * len(parts), float(np.mean(wrong))))
        each = max(each * _GROWTH, (sides + 1.0) ** dimensions)
    grid, method = _read_off(curve, error)
    if grid is None:
        length = float(np.mean([boundary_size(surface) for surface in surfaces]))
        if error > 0 and length > 0:
            grid, method = len(parts) * max(1.0, (length / (4 * error)) ** dimensions), "bound"
    return Savings(trials=spent, expected_error=error, grid=grid, method=method, simulated=tuple(curve), key=key)


def _gridded(surface: ClassSurface, fit: Fit, sides: int, rng: np.random.Generator) -> ClassSurface:
    """The classifier after a simulated grid, whose points are the middles of equal cells."""
    middles = (np.arange(sides) + 0.5) / sides
    x: Points = np.stack(np.meshgrid(*[middles] * surface.dimensions, indexing="ij"), axis=-1).reshape(
        -1, surface.dimensions
    )
    label = surface.label(x)
    shown = np.unique(label)
    odd = np.flatnonzero(rng.random(len(label)) < surface.noise())
    if len(shown) > 1:
        place = np.searchsorted(shown, label[odd])
        label = label.copy()
        label[odd] = shown[(place + rng.integers(1, len(shown), len(odd))) % len(shown)]
    value = np.full(len(x), np.nan)
    fitted = fit(Evidence(x=x, label=label, value=value, censored=np.zeros(len(x), dtype=np.bool_)))
    if not isinstance(fitted, ClassSurface):
        raise TypeError("a belief in classes was fitted, and now one of another kind")
    return fitted


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
            grid=said["grid"], method=said["method"],
            simulated=tuple((int(n), float(e)) for n, e in said["simulated"]), key=said["key"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""What the panels of a fitted map show, computed once for the still and the interactive picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.map.boundary_data import BoundaryLine, ridge_cuts, ridge_lines
from orchestrator.phases.map.box import BoxAxis
from orchestrator.phases.map.contour import band_edges
from orchestrator.phases.map.raster import SURE, Raster, in_chunks
from orchestrator.phases.map.surface_map import (
    FittedMap,
    FittedSlice,
    Plane,
    Spread,
    planes,
    ridge_of,
    spread_of,
    trials_text,
    without_result,
)
from orchestrator.phases.text import place_text
from orchestrator.phases.theory.plane import TheoryPlane
from orchestrator.surface.base import ClassSurface, Points, RidgeSurface

TINT, BAND_TINT = 0.5, 0.2
"""How much of its colour a label's field has: where the classifier is sure, and in the band."""
BOUNDARY = "boundary (equal belief)"
GIVEN_SEEDS = "90% band given these seeds"
OVER_SEEDS = "90% band over seeds"
OPEN = "not reached: which side is open"
RIDGE_RASTER = 161


@dataclass(frozen=True, kw_only=True, eq=False)
class MapPanel:
    """A plane of classes, the trials in it, and those that failed there."""

    of: FittedSlice
    plane: Plane
    labels: NDArray[np.int64]
    """(n,) the class of each trial at `plane.at`; -1 if it is undetermined."""
    rows: NDArray[np.int64]
    """(n,) its row of the table."""
    failed: Points
    """(f, 2) positions in the plane."""
    theory: TheoryPlane | None = None
    """What the job's theory predicts in the plane."""

    def drawn(self, at: Points) -> Points:
        """(q, 2) positions in the plane as drawing positions."""
        return np.column_stack([self.plane.x.drawn(at[:, 0]), self.plane.y.drawn(at[:, 1])])

    @property
    def given_seeds(self) -> Raster:
        """What the band given these seeds is taken from."""
        return self.plane.given_seeds or self.plane.raster

    @property
    def pale(self) -> NDArray[np.bool_]:
        """(N, N) the points of the raster that are drawn paler: in the band over seeds, or given them without one."""
        raster, band = self.plane.raster, self.plane.over_seeds or self.given_seeds
        at = np.stack(np.meshgrid(raster.points, raster.points, indexing="ij"), axis=-1).reshape(-1, 2)
        return np.asarray(band.at(at).max(axis=1).reshape(raster.label.shape) < SURE, dtype=np.bool_)

    @property
    def edges(self) -> list[Points]:
        """The edges of the band given these seeds, in drawing positions."""
        return [self.drawn(line) for line in band_edges(self.given_seeds)]

    @property
    def lines(self) -> list[Points]:
        """The boundary, in drawing positions."""
        return [self.drawn(crossing.points) for crossing in self.plane.lines]


def panels_of(fitted_map: FittedMap, failed: Sequence[int]) -> list[MapPanel]:
    """A panel for every plane of every slice of classes; `failed` are rows of the table."""
    return [
        MapPanel(
            of=fitted,
            plane=plane,
            labels=fitted.evidence.label[plane.near],
            rows=fitted.rows[plane.near],
            failed=without_result(fitted, failed, plane),
        )
        for fitted in fitted_map.fitted
        if isinstance(fitted.surface, ClassSurface)
        for plane in planes(fitted)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgePanel:
    """The expected metric over a plane, and the line of its peaks; positions are drawing positions."""

    fixed: Mapping[str, Scalar | None]
    """Axis -> value of what is held in it."""
    spread: Spread
    """Of the trials."""
    x: BoxAxis
    y: BoxAxis
    mean: NDArray[np.float64]
    """(R, R) the expected metric, x first."""
    across: NDArray[np.float64]
    """(P,) positions along x at which the peak is given."""
    low: NDArray[np.float64]
    """(P,) the 5% quantile of the peak's position along y."""
    middle: NDArray[np.float64]
    high: NDArray[np.float64]
    trials: Points
    """(n, 2)"""
    value: NDArray[np.float64]
    """(n,) the metric of each trial; NaN if it has none."""

    @property
    def called(self) -> str:
        """Where it is, with the names of the style."""
        return place_text(self.fixed)

    @property
    def shown(self) -> str:
        """Which trials are drawn in it; empty where nothing is cut."""
        return trials_text(len(self.trials), self.spread)


def ridge_panels(fitted_map: FittedMap) -> list[RidgePanel]:
    """A panel for every line of every ridge."""
    ridges = [(fitted, ridge) for fitted in fitted_map.fitted if (ridge := ridge_of(fitted)) is not None]
    return [
        _ridge_panel(fitted, ridge, line, held, near)
        for fitted, ridge in ridges
        for line, (held, near) in zip(ridge_lines(fitted, ridge), ridge_cuts(fitted, ridge), strict=True)
    ]


def _ridge_panel(
    fitted: FittedSlice, ridge: RidgeSurface, line: BoundaryLine, held: Mapping[int, float], near: NDArray[np.int64]
) -> RidgePanel:
    axes = fitted.slice.axes
    by_name = {axis.name: axis for axis in axes}
    x, y = by_name[line.axes[0]], by_name[line.axes[1]]
    over = axes.index(x)
    side = np.linspace(0, 1, RIDGE_RASTER)
    at = np.tile(np.array([held.get(a, 0.0) for a in range(len(axes))]), (RIDGE_RASTER**2, 1))
    at[:, over], at[:, ridge.along] = (grid.ravel() for grid in np.meshgrid(side, side, indexing="ij"))
    low, middle, high = (y.drawn(y.unit(points[:, 1])) for points in (line.at_5, line.points, line.at_95))
    trials = fitted.evidence.x[near]
    return RidgePanel(
        fixed=line.fixed,
        spread=spread_of(axes, held, trials),
        x=x,
        y=y,
        mean=in_chunks(ridge.mean, at).reshape(RIDGE_RASTER, RIDGE_RASTER),
        across=x.drawn(x.unit(line.points[:, 0])),
        low=low,
        middle=middle,
        high=high,
        trials=np.column_stack([x.drawn(trials[:, over]), y.drawn(trials[:, ridge.along])]),
        value=fitted.evidence.value[near],
    )

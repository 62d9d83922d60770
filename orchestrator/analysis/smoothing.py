"""Smoothing of curves with a window proportional to the step, and the lower envelope of a cloud of points.

A curve is smoothed by local linear regression in log(1 + step) with tricube weights (Cleveland 1979, J. Amer. Statist.
Assoc. 74, 829, with a window of fixed width in place of a fixed number of neighbours). The window is symmetric in
log-step, so the smoothed curve has no lag, unlike an exponential moving average; a straight line in log-step is
reproduced exactly, at the ends too.

Shapes: N steps, R curves.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from orchestrator.analysis.estimate import Floats, Integers, increasing

WINDOW: Final = 1.5
"""Half-width of the window as a factor: a step is averaged with those from step / 1.5 to step * 1.5."""
_BLOCK: Final = 512


def smooth(step: Any, values: Any, *, window: float = WINDOW) -> Floats:
    """Curves smoothed in log-step; NaN is left out, and stays NaN where a window has no value.

    Args:
        step: (N,) steps (or widths, samples), increasing; at least 0 unless the window is 1.
        values: (..., N) curves at these steps.
        window: half-width of the window as a factor, at least 1; 1 does not smooth.

    Raises:
        ValueError: the steps do not increase, or are negative and smoothed; the shapes differ; the window is below 1.
    """
    steps = increasing("step", step)
    curves = np.asarray(values, dtype=np.float64)
    if curves.shape[-1:] != steps.shape:
        raise ValueError(f"values: as many as steps ({len(steps)}), not {curves.shape}")
    if not window >= 1:
        raise ValueError(f"window: a factor of at least 1, not {window}")
    if window == 1:
        return curves.copy()
    if steps[0] < 0:
        raise ValueError(f"step: from 0 on for a window of {window}, not {steps[0]:g}")
    if len(steps) < 2:
        return curves.copy()
    position, half = np.log1p(steps), float(np.log(window))
    flat = curves.reshape(-1, len(steps))
    present = ~np.isnan(flat)
    out = np.empty_like(flat)
    for start in range(0, len(steps), _BLOCK):
        end = min(start + _BLOCK, len(steps))
        low = int(np.searchsorted(position, position[start] - half))
        high = int(np.searchsorted(position, position[end - 1] + half, side="right"))
        distance = (position[None, low:high] - position[start:end, None]) / half
        weight = np.clip(1 - np.abs(distance) ** 3, 0, None) ** 3
        if present.all():
            out[:, start:end] = flat[:, low:high] @ _rows(weight, distance).T
        else:
            for r, row in enumerate(flat):
                value = np.where(present[r, low:high], row[low:high], 0.0)
                out[r, start:end] = _rows(weight * present[r, low:high], distance) @ value
    return out.reshape(curves.shape)


def _rows(weight: Floats, distance: Floats) -> Floats:
    """(M, K) coefficients of the local linear fit at distance 0; NaN for a row without weight."""
    s0, s1, s2 = (np.einsum("mk,mk->m", weight, distance**power) for power in (0, 1, 2))
    determinant = s0 * s2 - s1 * s1
    line = determinant > 1e-9 * s0 * s0
    coefficients: Floats = np.full(weight.shape, np.nan)
    both = (s2[:, None] - s1[:, None] * distance) * weight
    np.divide(both, determinant[:, None], out=coefficients, where=line[:, None])
    # One step in the window, or several almost at one place: their weighted mean.
    np.divide(weight, s0[:, None], out=coefficients, where=((s0 > 0) & ~line)[:, None])
    return coefficients


def lower_envelope(x: Any, y: Any) -> Integers:
    """Indices of the points on the lower convex hull in log-log, from left to right.

    With x the compute of every point of every curve and y its loss, these are the compute-optimal points between which
    a power law is a straight line (Kaplan et al. 2020, arXiv 2001.08361, figure 13; Hoffmann et al. 2022, arXiv
    2203.15556, approach 1). Points after the smallest y are on the hull but not on the frontier; they are left out.

    Args:
        x, y: (N,) positive numbers; points that are not finite and positive are left out.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"x and y: two arrays of one length, not {a.shape} and {b.shape}")
    with np.errstate(invalid="ignore"):
        usable = np.flatnonzero((a > 0) & (b > 0) & np.isfinite(a) & np.isfinite(b))
    order = usable[np.lexsort((b[usable], a[usable]))]
    u, v = (np.log(np.where(np.isin(np.arange(len(a)), usable), values, 1.0)) for values in (a, b))
    hull: list[int] = []
    for i in order:
        if hull and u[i] == u[hull[-1]]:
            continue
        while len(hull) > 1:
            p, q = hull[-2], hull[-1]
            if (u[q] - u[p]) * (v[i] - v[p]) - (v[q] - v[p]) * (u[i] - u[p]) > 0:
                break
            hull.pop()
        hull.append(int(i))
    last = int(np.argmin(v[hull])) if hull else -1
    return np.array(hull[: last + 1], dtype=np.int64)

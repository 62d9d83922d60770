"""Reductions that the jobs share: from a curve to observations, and from a sweep's trials to one curve.

Shapes: N report steps of a trial.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.job import AFTER, BY, Censored, Curves, Observations, P, as_dict, report_before

Values = NDArray[np.float64]
Steps = NDArray[np.int64]


def first_at_least(step: Steps, value: Values, level: float) -> float | Censored:
    """The first step at which the curve is at or above `level`, censored at the last step."""
    return first_where(step, value >= level)


def first_at_most(step: Steps, value: Values, level: float) -> float | Censored:
    """The first step at which the curve is at or below `level`, censored at the last step."""
    return first_where(step, value <= level)


def first_not_finite(step: Steps, value: Values) -> float | Censored:
    """The first step at which the curve is NaN or infinite (the trial has diverged), censored at the last step."""
    return first_where(step, ~np.isfinite(value))


def first_where(step: Steps, condition: NDArray[np.bool_]) -> float | Censored:
    """The first step at which the condition holds, censored at the last step (at 0 without any step)."""
    where = np.flatnonzero(condition)
    return float(step[where[0]]) if len(where) else Censored(horizon(step))


def crossing(name: str, step: Steps, condition: NDArray[np.bool_]) -> dict[str, float | Censored]:
    """`name`: the first report at which the condition holds, censored at the last; and where that is reached,
    `<name>_after`: the report before it, so that the event is known to lie in (`<name>_after`, `name`].

    Before the first report there is step 0. An event that begins and ends between two reports is not seen. A curve of
    one report gives no `<name>_after`.
    """
    first = first_where(step, condition)
    if isinstance(first, Censored) or len(step) < 2:
        return {name: first}
    return {name: first, name + AFTER: report_before(step, first)}


def exactly(name: str, first: float | Censored) -> dict[str, float | Censored]:
    """`name`: a step that was looked for at every step, as `crossing` gives it."""
    return {name: first} | ({} if isinstance(first, Censored) else {name + AFTER: max(first - 1, 0.0)})


def horizon(step: Steps) -> float:
    """The last step of a curve; 0 without any step."""
    return float(step[-1]) if len(step) else 0.0


def gap(first: float | Censored, second: float | Censored, end: float) -> float | Censored:
    """Steps from one event to another; censored at what was left until `end` where an event was not reached."""
    if isinstance(first, Censored):
        return Censored(end)
    return second - first if isinstance(second, float) else Censored(end - first)


def gap_between(
    name: str, observations: Observations, first: str, second: str, end: float
) -> dict[str, float | Censored]:
    """`name`: the `gap` of two steps, with the bounds that follow from theirs where both have them.

    With whole steps in (a, b] and (c, d] the gap is in (c - b, d - a - 1].
    """
    of = observations
    return {name: gap(of[first], of[second], end), **gap_bounds(name, of, first, second)}


def gap_bounds(name: str, observations: Observations, first: str, second: str) -> dict[str, float | Censored]:
    """The bounds of `gap_between` alone."""
    needed = [observations.get(key) for key in (first, first + AFTER, second, second + AFTER)]
    known = [value for value in needed if isinstance(value, float)]
    if len(known) < len(needed):
        return {}
    b, a, d, c = known
    return {name + AFTER: c - b, name + BY: max(d - a - 1, d - b)}


def final_values(curves: Curves, names: Iterable[str]) -> dict[str, float | Censored]:
    """`final_<metric>`: the last value of each of these metrics; censored at 0 without any step."""
    return {f"final_{name}": float(v[-1]) if len(v := curves.values[name]) else Censored(0.0) for name in names}


def best_value(curves: Curves, metric: str, *, largest: bool) -> dict[str, float | Censored]:
    """`best_<metric>`: the largest or smallest finite value of a metric over the reported steps.

    NaN where no value is finite; censored at 0 without any step.
    """
    values = curves.values[metric]
    finite = values[np.isfinite(values)]
    if len(finite):
        return {f"best_{metric}": float(finite.max() if largest else finite.min())}
    return {f"best_{metric}": math.nan if len(values) else Censored(0.0)}


def peak_observations(metric: str) -> tuple[str, ...]:
    """What earlier versions observed of a trial: the most prominent maximum of its own curve, against a fixed 0.01.

    One curve has bumps of its own, so a peak is that of a mean over replicates (`analysis:` in a sweep file).
    """
    peak, second, first = f"{metric}_peak", f"second_minimum_{metric}", f"first_minimum_{metric}"
    return peak, f"{peak}_step", second, "second_minimum_step", first, "first_minimum_step"


def peak_and_minima(curves: Curves, metric: str, prominence: float) -> dict[str, float | Censored]:
    """The `peak_observations`, for a search of an earlier version that looks for one of them.

    The peak is the interior maximum that stands highest above the minima on both sides of it, at least `prominence`
    above the higher one; values that are not finite are left out. Without a peak the first minimum is that of the whole
    curve, and the others are censored at the last step; without any finite value all of them are.
    """
    finite = np.isfinite(curves.values[metric])
    step, values = curves.step[finite], curves.values[metric][finite]
    peak: int | None = None
    if len(values) >= 3:
        before = np.minimum.accumulate(values)[:-2]
        after = np.minimum.accumulate(values[::-1])[::-1][2:]
        height = values[1:-1] - np.maximum(before, after)
        best = int(np.argmax(height))
        peak = best + 1 if height[best] >= max(prominence, 1e-12) else None
    places = (
        peak,
        None if peak is None else peak + int(np.argmin(values[peak:])),
        int(np.argmin(values[:peak])) if len(values) else None,
    )
    pairs = [
        Censored(horizon(curves.step)) if place is None else float(source[place])
        for place in places
        for source in (values, step)
    ]
    return dict(zip(peak_observations(metric), pairs, strict=True))


def parameter_counts(trained: int, *, examples: int, outputs: int) -> dict[str, float]:
    """`parameters`: the trained parameters of a network, without padding; `parameters_per_label`: per number that it
    is trained to output, which are `examples` times `outputs` (the classes, or 1 in regression).
    """
    return {"parameters": float(trained), "parameters_per_label": trained / (examples * outputs)}


LEARNING_PHASES = ("comprehension", "grokking", "memorization", "confusion", "inversion")
"""The labels of `learning_phase`."""


def learning_phase(train: float | Censored, test: float | Censored, gap: float | Censored, grokking_gap: float) -> str:
    """The four phases of Liu et al. 2022 (arXiv 2205.10343, Table 1), and "inversion".

    Args:
        train: the step at which the training criterion is reached (memorisation).
        test: the step at which the test criterion is reached (generalisation). Where it is reached although the
            training criterion is not, the phase is "inversion" (Doshi et al. 2024: wrong labels in the training set).
        gap: steps from `train` to `test`.
        grokking_gap: the gap from which on a trial is "grokking" and not "comprehension".
    """
    memorised = isinstance(train, float)
    if not isinstance(test, float):
        return "memorization" if memorised else "confusion"
    if not memorised:
        return "inversion"
    return "comprehension" if isinstance(gap, float) and gap < grokking_gap else "grokking"


def medians_along(
    trials: Sequence[tuple[P, Observations]],
    axis: str,
    hidden: Collection[str],
    names: Sequence[str],
    *,
    not_finite: float | None = None,
) -> Mapping[str, tuple[Values, ...]]:
    """Medians of observations over replicates along one axis, for each setting of the other parameters.

    Args:
        trials: parameters and observations of a sweep's trials.
        axis: the attribute of the parameters that is the axis.
        hidden: the parameters that make up the axis, which do not distinguish curves.
        names: the observations; a trial in which one of them is missing or censored is left out.
        not_finite: the value that replaces one that is not finite; None leaves the trial out.

    Returns:
        A suffix that names the setting by the parameters that vary (e.g. "/label_noise 0.1") -> the places on the axis
        in increasing order, and the medians of each observation there. Curves of fewer than three points are left out.
    """
    settings = [{k: v for k, v in as_dict(params).items() if k not in hidden} for params, _ in trials]
    varying = [k for k in (settings[0] if settings else {}) if len({s[k] for s in settings}) > 1]
    groups: dict[str, dict[float, list[list[float]]]] = {}
    for (params, observations), setting in zip(trials, settings, strict=True):
        row = [value for name in names if isinstance(value := observations.get(name), float)]
        if not_finite is not None:
            row = [value if np.isfinite(value) else not_finite for value in row]
        if len(row) == len(names) and np.isfinite(row).all():
            label = "".join(f"/{k} {setting[k]}" for k in varying)
            groups.setdefault(label, {}).setdefault(getattr(params, axis), []).append(row)
    return {
        label: tuple(np.array([(x, *np.median(points[x], axis=0)) for x in sorted(points)]).T)
        for label, points in groups.items()
        if len(points) >= 3
    }

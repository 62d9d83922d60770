"""What a step map shows, in words and as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.analysis.estimate import Estimate
from orchestrator.analysis.peaks import FALSE_POSITIVES, PeakSearch
from orchestrator.phases.layout import quantity
from orchestrator.phases.steps import MetricMap, StepMap, StepSlice
from orchestrator.phases.text import number, percent, plural, words


def interval_text(estimate: Estimate) -> str:
    """A number with its interval, e.g. `47 [40, 61]`."""
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def heading(step_map: StepMap, of: MetricMap) -> str:
    """A line about what was read."""
    counts = of.count.max(axis=1, initial=0)
    some = counts[counts > 0]
    if not len(some):
        return "no finite value"
    replicates = f"{some.min()}" if some.min() == some.max() else f"{some.min()} to {some.max()}"
    cells = plural(len(some), "setting") if step_map.diagram.joined == 1 else plural(len(some), "cell")
    text = f"mean over {replicates} replicates  ·  {cells} × {plural(len(step_map.steps), 'step')}"
    if of.partial:
        text += f"  ·  {percent(of.partial / max((of.count > 0).sum(), 1))} over fewer (ended or diverged)"
    return text


def peak_lines(step_map: StepMap, of: MetricMap) -> list[str]:
    """The peaks along the axis and along the steps in words, slice by slice; slices without one are counted."""
    axis, last, subject = words(step_map.axis.name), len(step_map.steps) - 1, _subject(of.metric)
    along_axis, along_steps = [], []
    for one in of.slices:
        if last in one.along_axis:
            search = one.along_axis[last]
            along_axis.append((one.panel.title, search.peak is not None, outcome(search, axis)))
        if one.along_steps:
            along_steps.append((one.panel.title, *_of_slice(step_map, one)))
    head = f"peak of {subject} along {axis} at step {number(int(step_map.steps[-1]))}"
    lines = _lines(head, along_axis, "takes two replicates and three numbers on the axis")
    tested = sum(len(one.along_axis) for one in of.slices)
    found = sum(search.peak is not None for one in of.slices for search in one.along_axis.values())
    if tested > len(along_axis):
        lines[-1] += f"; at all steps: {found} of {tested}, each tested by itself"
    return lines + _lines(f"peak of {subject} along the steps", along_steps, "takes two replicates and three steps")


def _lines(head: str, outcomes: list[tuple[str, bool, str]], needs: str) -> list[str]:
    """A line for each slice with a peak (title, whether there is one, outcome), and one for all others."""
    if not outcomes:
        return [f"{head}: not tested, it {needs}"]
    if len(outcomes) == 1:
        return [f"{head}: {outcomes[0][2]}"]
    lines = [f"{head}, {title}: {text}" for title, found, text in outcomes if found]
    none = len(outcomes) - len(lines)
    others = "all slices" if not lines else plural(none, "other slice")
    return [*lines, f"{head}: none in {others}"] if none else lines


def _of_slice(step_map: StepMap, one: StepSlice) -> tuple[bool, str]:
    axis = step_map.axis
    peaks = {x: search for x, search in one.along_steps.items() if search.peak is not None}
    tested = f"{plural(len(one.along_steps), 'value')} of {words(axis.name)}, each tested by itself"
    if not peaks:
        least = min(one.along_steps.values(), key=lambda search: search.p_value)
        return False, f"none at {tested} (smallest p = {least.p_value:.2g}, n = {least.replicates})"
    x, search = max(peaks.items(), key=lambda item: item[1].prominence)
    highest = f"highest at {words(axis.name)} {axis.text(x)}: {outcome(search, 'step')}"
    return True, f"at {len(peaks)} of {tested}; {highest}"


def _subject(metric: str) -> str:
    return f"1 - {metric}" if quantity(metric) == "accuracy" else metric


def outcome(search: PeakSearch, place: str) -> str:
    """The peak with its intervals, or that there is none, and how many replicates say so."""
    if search.peak is None:
        ratio, threshold = number(max(search.ratio, 0.0)), number(search.threshold)
        return f"none, as falls of {ratio} standard errors do not exceed {threshold} {evidence(search)}"
    at, height = interval_text(search.peak.x), interval_text(search.peak.height)
    return f"{place} {at}, height {height} {evidence(search)}"


def evidence(search: PeakSearch) -> str:
    """The p value and the number of replicates."""
    least = "p < " if search.p_value < FALSE_POSITIVES / 4 else "p = "
    return f"({least}{max(search.p_value, FALSE_POSITIVES / 4):.2g}, n = {search.replicates})"


def write_table(step_map: StepMap, path: Path) -> None:
    """Write the map as Parquet: a row per metric, setting and step with a value.

    Columns: `metric`, the axes, `step`, `mean`, `low`, `high` (of the mean's 90% interval; null for one replicate) and
    `replicates`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    diagram = step_map.diagram
    names = ("metric", *(axis.name for axis in diagram.axes), "step", "mean", "low", "high", "replicates")
    parts: list[Any] = []
    for of in step_map.maps:
        cell, step = np.nonzero(of.count)
        columns: dict[str, list[Any]] = {"metric": [of.metric] * len(cell)}
        for a, axis in enumerate(diagram.axes):
            # An axis of text keeps its text; Arrow holds one type in a column.
            values: list[Any] = [axis.values[v] for v in diagram.codes[cell, a]]
            mixed = len({type(v) for v in values if v is not None}) > 1 and any(isinstance(v, str) for v in values)
            columns[axis.name] = [None if v is None else str(v) for v in values] if mixed else values
        columns["step"] = step_map.steps[step].tolist()
        for name, part in (("mean", of.mean), ("low", of.low), ("high", of.high)):
            columns[name] = [v if math.isfinite(v) else None for v in part[cell, step].tolist()]
        columns["replicates"] = of.count[cell, step].tolist()
        parts.append(pa.table({name: columns[name] for name in names}))
    pq.write_table(pa.concat_tables(parts), path, compression="zstd")


def write_peaks(step_map: StepMap, path: Path) -> None:
    """Write every search for a peak as JSON."""
    rows = []
    for of in step_map.maps:
        for one in of.slices:
            for kind, searches in (("along_steps", one.along_steps), ("along_axis", one.along_axis)):
                for k, search in searches.items():
                    at = (
                        {step_map.axis.name: step_map.axis.values[k]}
                        if kind == "along_steps"
                        else {"step": int(step_map.steps[k])}
                    )
                    where = dict(one.panel.fixed) | at
                    rows.append({"metric": _subject(of.metric), "kind": kind, "where": where} | _as_json(search))
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _as_json(search: PeakSearch) -> dict[str, Any]:
    numbers = ("prominence", "standard_error", "ratio", "threshold", "p_value", "replicates")
    peak = None
    if search.peak is not None:
        peak = {name: _estimate(estimate) for name, estimate in vars(search.peak).items()}
    return {name: _finite(getattr(search, name)) for name in numbers} | {"peak": peak}


def _estimate(estimate: Estimate) -> Mapping[str, float | None]:
    return {name: _finite(getattr(estimate, name)) for name in ("value", "low", "high", "level")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

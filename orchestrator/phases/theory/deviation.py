"""How far what was measured lies from what theory says, in standard errors: one row per setting and observation.

Two rules. The mean of R replicates with spread s deviates from a prediction v with standard error e by
(mean - v) / sqrt(s^2 / R + e^2). Steps, and whatever was not reached somewhere, are held against the median: a censored
replicate is later than any that was reached, and a step is known to a whole step (1/12 is added to the variance).

What no standard error can tell is not counted but named by its `verdict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Censored
from orchestrator.phases.layout import quantity
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import number, percent, plural
from orchestrator.phases.theory.ask import Asked
from orchestrator.phases.theory.spread import Floats, Spread, spread

COMPARED = "compared"
ONE = "one replicate"
HEAVY = "heavy tails"
INFINITE = "prediction not finite"
NOT_FINITE = "replicates not finite"
NEITHER = "neither reached"
MEASURED_ONLY = "reached, against theory"
PREDICTED_ONLY = "not reached, against theory"
VERDICTS = {
    COMPARED: "a deviation in standard errors",
    ONE: "one replicate has no spread; the relative difference is given",
    HEAVY: "one replicate makes up most of the squared spread: the mean's standard error means little",
    INFINITE: "the predicted mean, or its standard error, is not finite",
    NOT_FINITE: "some replicate's value is NaN or infinite",
    NEITHER: "not reached by the median replicate, nor expected to be by then",
    MEASURED_ONLY: "reached by the median replicate, though not expected to be by then",
    PREDICTED_ONLY: "not reached by the median replicate at a time by which it was expected",
}
"""Verdict -> what it means."""

_ROUNDING = 1e-9
"""Relative difference that is none, where neither side has any spread."""
_WORST_LISTED = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class Deviations:
    """D rows, by observation, then by setting."""

    observation: NDArray[np.object_]
    setting: NDArray[np.int64]
    """(D,) index into `Asked.params`."""
    rule: NDArray[np.object_]
    """(D,) mean or median."""
    value: Floats
    """(D,) predicted; NaN where it is not to be reached."""
    not_by: Floats
    """(D,) the step by which it is predicted not to be reached; NaN where a value is predicted."""
    value_error: Floats
    """(D,) the prediction's own standard error."""
    source: NDArray[np.object_]
    measured: Spread
    """(D,) each."""
    standard_error: Floats
    """(D,) of the difference."""
    deviation: Floats
    """(D,) in standard errors, by the row's rule; NaN where it cannot be told, infinite where neither side spreads."""
    median_deviation: Floats
    """(D,) the same with the median and its standard error in place of the mean, whatever the rule."""
    verdict: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.setting)

    @property
    def center(self) -> Floats:
        """(D,) the mean or the median, by the rule."""
        return np.where(self.rule == "mean", self.measured.mean, self.measured.median)

    @property
    def relative(self) -> Floats:
        """(D,) (measured - predicted) / |predicted|."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((self.center - self.value) / np.abs(self.value), dtype=np.float64)

    @property
    def compared(self) -> NDArray[np.bool_]:
        """(D,) whether the deviation counts."""
        return np.asarray(self.verdict == COMPARED, dtype=np.bool_)

    def worst(self) -> int | None:
        """The row that deviates most of those that count."""
        rows = np.flatnonzero(self.compared)
        return int(rows[np.abs(self.deviation[rows]).argmax()]) if len(rows) else None

    def chance(self) -> float:
        """How often so large a worst deviation would come by chance: Student's t, were all rows independent."""
        from scipy.special import stdtr

        rows = np.flatnonzero(self.compared)
        tail = 2 * stdtr(np.maximum(self.measured.replicates[rows] - 1, 1), -np.abs(self.deviation[rows]))
        return float(-np.expm1(len(rows) * np.log1p(-tail.min()))) if len(rows) and tail.min() < 1 else 1.0


def deviations(asked: Asked, table: TrialTable) -> Deviations:
    """Hold every predicted observation against what was measured; settings of which nothing was are left out."""
    parts = [_of(name, asked, table) for name in asked.observed() if name in table.observations]
    if not parts:
        return _empty()
    return Deviations(**{key: _joined([part[key] for part in parts]) for key in parts[0]})


def _of(name: str, asked: Asked, table: TrialTable) -> dict[str, Any]:
    column = table.observations[name]
    everywhere = spread(asked.setting, len(asked.params), column)
    told = [s for s, said in enumerate(asked.said) if name in said and said[name].step is None]
    rows = np.array([s for s in told if everywhere.replicates[s]], dtype=np.int64)
    found = [asked.said[s][name] for s in rows]
    value = np.array([np.nan if isinstance(p.value, Censored) else p.value for p in found], dtype=np.float64)
    not_by = np.array([p.value.at if isinstance(p.value, Censored) else np.nan for p in found], dtype=np.float64)
    error = np.array([p.standard_error for p in found], dtype=np.float64)
    step = quantity(name) == "step"
    by_median = step or bool(column.censored.any()) or bool(np.isfinite(not_by).any())
    seen = Spread(**{key: part[rows] for key, part in vars(everywhere).items()})
    with np.errstate(invalid="ignore"):
        # A difference of steps is a whole number too.
        whole = by_median & (value % 1 == 0) & (seen.median % 1 == 0)
    rounding = np.where(whole | step, 1 / 12, 0.0)
    own = seen.median_error if by_median else seen.mean_error
    total = np.sqrt(own**2 + error**2 + rounding)
    deviation = _scaled(seen.median if by_median else seen.mean, value, total)
    verdict = _verdicts(seen, value, not_by, error, by_median=by_median)
    by_medians = _scaled(seen.median, value, np.sqrt(seen.median_error**2 + error**2 + rounding))
    untold = verdict == INFINITE
    deviation[untold] = np.nan
    return {
        "observation": _same(name, rows),
        "setting": rows,
        "rule": _same("median" if by_median else "mean", rows),
        "value": value,
        "not_by": not_by,
        "value_error": error,
        "source": np.array([p.source for p in found], dtype=object),
        "measured": seen,
        "standard_error": total,
        "deviation": deviation,
        "verdict": verdict,
        "median_deviation": np.where(untold, np.nan, by_medians),
    }


def _verdicts(seen: Spread, value: Floats, not_by: Floats, error: Floats, *, by_median: bool) -> NDArray[np.object_]:
    """(D,) the last that holds of these."""
    verdict = _same(COMPARED, value)
    verdict[seen.replicates < 2] = ONE
    if not by_median:
        verdict[seen.heavy] = HEAVY
        verdict[seen.not_finite > 0] = NOT_FINITE
    else:
        never, absent = np.isfinite(not_by), np.isnan(seen.median)
        # Beyond its own bound neither side says anything: a later number is no contradiction.
        verdict[absent & never] = NEITHER
        verdict[absent & ~never] = PREDICTED_ONLY
        verdict[~absent & never] = MEASURED_ONLY
        verdict[(absent & (value > seen.bound)) | (never & (seen.median >= not_by))] = NEITHER
        verdict[absent & (seen.censored == 0)] = NOT_FINITE
    verdict[(np.isnan(not_by) & ~np.isfinite(value)) | ~np.isfinite(error)] = INFINITE
    return verdict


def _scaled(measured: Floats, value: Floats, error: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        off = measured - value
        none = (error == 0) & (np.abs(off) <= _ROUNDING * np.abs(value))
        return np.asarray(np.where(none, 0.0, off / error), dtype=np.float64)


def _same(text: str, like: NDArray[Any]) -> NDArray[np.object_]:
    return np.full(len(like), text, dtype=object)


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Spread):
        return Spread(**{key: np.concatenate([vars(part)[key] for part in parts]) for key in vars(parts[0])})
    return np.concatenate(parts)


def _empty() -> Deviations:
    none, nothing = np.zeros(0), np.zeros(0, dtype=object)
    whole = np.zeros(0, dtype=np.int64)
    measured = Spread(
        reached=whole,
        censored=whole,
        not_finite=whole,
        bound=none,
        mean=none,
        deviation=none,
        heavy=np.zeros(0, dtype=np.bool_),
        median=none,
        median_error=none,
    )
    return Deviations(
        observation=nothing,
        setting=whole,
        rule=nothing,
        value=none,
        not_by=none,
        value_error=none,
        source=nothing,
        measured=measured,
        standard_error=none,
        deviation=none,
        median_deviation=none,
        verdict=nothing,
    )


def write_deviations(found: Deviations, asked: Asked, axes: Sequence[str], path: Path) -> None:
    """Write the table as Parquet, one column per axis first; null where there is no number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen = found.measured
    columns: dict[str, Any] = {
        "observation": pa.array(found.observation, pa.string()),
        "rule": pa.array(found.rule, pa.string()),
        "predicted": _nullable(found.value),
        "predicted_not_by": _nullable(found.not_by),
        "prediction_error": _nullable(found.value_error),
        "measured": _nullable(found.center),
        "replicates": pa.array(seen.replicates),
        "not_reached": pa.array(seen.censored),
        "not_finite": pa.array(seen.not_finite),
        "mean": _nullable(seen.mean),
        "standard_deviation": _nullable(seen.deviation),
        "median": _nullable(seen.median),
        "median_error": _nullable(seen.median_error),
        "standard_error": _nullable(found.standard_error),
        "deviation": _nullable(found.deviation),
        "median_deviation": _nullable(found.median_deviation),
        "relative_difference": _nullable(found.relative),
        "verdict": pa.array(found.verdict, pa.string()),
        "source": pa.array(found.source, pa.string()),
    }
    places = {
        f"param.{name}" if name in columns else name: [getattr(asked.params[s], name, None) for s in found.setting]
        for name in axes
    }
    pq.write_table(pa.table({**places, **columns}), path, compression="zstd")


def _nullable(values: Floats) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.float64(), mask=np.isnan(values))


def place(asked: Asked, setting: int, axes: Sequence[str]) -> str:
    """A setting in words: `features=30, teacher=random`."""
    values = [(name, getattr(asked.params[setting], name, None)) for name in axes]
    return ", ".join(
        f"{name}={number(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v}" for name, v in values
    )


def summary_line(found: Deviations, asked: Asked, axes: Sequence[str]) -> str:
    """The whole comparison in one line."""
    names = plural(len(set(found.observation)), "observation")
    text = f"theory: {plural(len(found), 'prediction')} of {names}"
    worst = found.worst()
    if worst is not None:
        at = place(asked, int(found.setting[worst]), axes)
        size = abs(found.deviation[worst])
        errors = f"{size:.1f} standard errors" if np.isfinite(size) else "infinitely many standard errors"
        text += f"; worst deviation {errors} ({found.observation[worst]}{' at ' + at if at else ''})"
    else:
        text += "; no standard errors" + (" with one replicate" if (found.verdict == ONE).any() else "")
        relative = np.abs(found.relative[np.isfinite(found.relative)])
        if len(relative):
            text += f"; median difference {percent(float(np.median(relative)))}"
    counts = {v: int((found.verdict == v).sum()) for v in (HEAVY, INFINITE, NOT_FINITE, MEASURED_ONLY, PREDICTED_ONLY)}
    said = [f"{n:,} {verdict}" for verdict, n in counts.items() if n]
    return text + ("; not counted: " + ", ".join(said) if said else "")


def write_text(found: Deviations, asked: Asked, axes: Sequence[str], path: Path, *, more: Sequence[str] = ()) -> None:
    """Write the comparison for people: a line, each observation, what the verdicts mean, the rows that deviate most."""
    lines = [summary_line(found, asked, axes), *more]
    if found.worst() is not None:
        chance = found.chance()
        lines.append(
            f"So large a worst one comes by chance in {100 * chance:.2g}% of such tables (Student's t, were the rows "
            "independent; settings that share their seeds are not)."
        )
    if holes := asked.holes():
        lines.append(f"Theory is {holes}.")
    lines.append("")
    header = ("observation", "rule", "rows", "counted", "rms", "worst", "beyond 3", "source")
    body = []
    for name in dict.fromkeys(found.observation):
        rows = found.observation == name
        counted = found.deviation[rows & found.compared]
        rms = f"{np.sqrt(np.mean(counted**2)):.2f}" if len(counted) else "-"
        most = f"{counted[np.abs(counted).argmax()]:+.2f}" if len(counted) else "-"
        counts = f"{rows.sum():,}", f"{len(counted):,}", rms, most, f"{(np.abs(counted) > 3).sum():,}"
        body.append((name, found.rule[rows][0], *counts, "; ".join(dict.fromkeys(found.source[rows]))))
    lines += _aligned(header, body)
    present = set(found.verdict)
    lines += ["", "verdicts"]
    lines += [f"  {(found.verdict == v).sum():>7,}  {v}: {text}" for v, text in VERDICTS.items() if v in present]
    size = np.where(np.isnan(found.deviation), -1.0, np.abs(found.deviation))
    differ = np.isin(found.verdict.astype(str), (MEASURED_ONLY, PREDICTED_ONLY))
    order = np.lexsort((-np.nan_to_num(np.abs(found.relative)), -size, ~differ))[:_WORST_LISTED]
    title = f"the {len(order)} rows that deviate most" if len(found) > len(order) else "all rows, the worst first"
    lines += ["", "`by median` holds the median against the same prediction: no mean, where values are skewed."]
    lines += ["", f"{title} (all are in theory_deviation.parquet)" if len(found) > len(order) else title]
    columns = (*axes, "observation", "predicted", "measured", "± error", "deviation", "by median", "%", "R", "verdict")
    lines += _aligned(columns, [_row(found, asked, axes, int(d)) for d in order])
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def _row(found: Deviations, asked: Asked, axes: Sequence[str], d: int) -> tuple[str, ...]:
    where = [getattr(asked.params[found.setting[d]], name, None) for name in axes]
    seen = found.measured
    predicted = number(found.value[d]) if np.isnan(found.not_by[d]) else f"not by {number(found.not_by[d])}"
    by_median = found.rule[d] == "median"
    center = found.center[d]
    measured = f"not by {number(seen.bound[d])}" if by_median and np.isnan(center) else number(center)
    return (
        *(number(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else str(v) for v in where),
        str(found.observation[d]),
        predicted,
        measured,
        _shown(found.standard_error[d], ".3g"),
        _shown(found.deviation[d], "+.2f"),
        _shown(found.median_deviation[d], "+.2f"),
        _shown(100 * found.relative[d], "+.2g"),
        str(seen.replicates[d]),
        str(found.verdict[d]),
    )


def _shown(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(value, form)


def _aligned(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [tuple(header), *map(tuple, body)]
    width = [max(len(row[k]) for row in rows) for k in range(len(header))]
    return ["  ".join(text.ljust(w) for text, w in zip(row, width, strict=True)) for row in rows]

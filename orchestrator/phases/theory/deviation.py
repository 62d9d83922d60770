"""How far what was measured lies from what theory predicts, in standard errors: one row per setting and observation.

There are two rules. The mean of R replicates with standard deviation s deviates from a prediction v with standard error
e by (mean - v) / sqrt(s^2 / R + e^2). Steps, and whatever was not reached in some replicate, are compared by their
median: a censored replicate counts as later than any that was reached, and a step is known to a whole step, or to the
interval between two reports (the square of its length over 12 is added to the variance). A row whose deviation means
nothing is not counted; its `verdict` says why.

Shapes: N trials, S settings, D rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Censored
from orchestrator.phases.diagram import CellValues, cell_values, ranked_quantile
from orchestrator.phases.layout import quantity
from orchestrator.phases.table import ObservationColumn, TrialTable
from orchestrator.phases.text import number, percent, plural
from orchestrator.phases.theory.ask import Answers

Floats = NDArray[np.float64]

HEAVY_SHARE = 0.5
"""Share of the sum of squares above which one replicate dominates it: the mean's standard error means little then."""
HEAVY_FROM = 16
"""Replicates from which on that can be recognised (of 16 normal ones, one in a hundred sets would look so)."""

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
    HEAVY: "one replicate makes up most of the sum of squares: the mean's standard error means little",
    INFINITE: "the predicted mean, or its standard error, is not finite",
    NOT_FINITE: "the value of some replicate is NaN or infinite",
    NEITHER: "the median was not reached, and was not expected to be",
    MEASURED_ONLY: "the median was reached, and was not expected to be",
    PREDICTED_ONLY: "the median was not reached, and was expected to be",
}
"""Verdict -> what it means."""

_ROUNDING = 1e-9
"""Relative difference that is none, where neither side has any spread."""
_WORST_LISTED = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread(CellValues):
    """One observation over S settings: its replicates' location and spread."""

    mean: Floats
    """(S,) of the finite values; NaN where there are none."""
    deviation: Floats
    """(S,) their standard deviation (n - 1); NaN for fewer than two."""
    heavy: NDArray[np.bool_]
    """(S,) whether one of many replicates makes up most of the sum of squares."""
    median_error: Floats
    """(S,) half the distance between the quantiles 1/2 -+ 1/(2 sqrt R): where the sign test puts +-1 standard error.

    The lower half alone where the upper quantile was not reached; NaN for fewer than two replicates.
    """

    @property
    def replicates(self) -> NDArray[np.int64]:
        """(S,) replicates that were observed."""
        return self.reached + self.censored + self.not_finite

    @property
    def mean_error(self) -> Floats:
        """(S,) standard error of the mean."""
        return np.asarray(self.deviation / np.sqrt(np.maximum(self.reached, 1)), dtype=np.float64)


def spread(
    setting: NDArray[np.int64], settings: int, column: ObservationColumn, bounds: tuple[Floats, Floats] | None = None
) -> Spread:
    """Reduce one observation of N trials, each of a setting (N,), to its `settings` settings, as `cell_values`."""
    quantile = ranked_quantile(setting, settings, column)
    values = cell_values(setting, settings, column, quantile, bounds=bounds)
    finite, count = column.reached & np.isfinite(column.value), values.reached
    where, value = setting[finite], column.value[finite]
    mean = np.bincount(where, value, minlength=settings) / np.maximum(count, 1)
    # A second pass about the first mean: exact to rounding where the spread is small beside the mean.
    mean += np.bincount(where, value - mean[where], minlength=settings) / np.maximum(count, 1)
    off = (value - mean[where]) ** 2
    total, largest = np.bincount(where, off, minlength=settings), np.zeros(settings)
    np.maximum.at(largest, where, off)
    replicates = count + values.censored + values.not_finite
    half = 0.5 / np.sqrt(np.maximum(replicates, 1))
    low, high = quantile(0.5 - half), quantile(0.5 + half)
    with np.errstate(invalid="ignore"):
        error = np.where(np.isfinite(high), (high - low) / 2, values.median - low)
    return Spread(
        **vars(values),
        mean=np.where(count > 0, mean, np.nan),
        deviation=np.where(count > 1, np.sqrt(total / np.maximum(count - 1, 1)), np.nan),
        heavy=(count >= HEAVY_FROM) & (largest > HEAVY_SHARE * total),
        median_error=np.where(np.isfinite(error + values.median) & (replicates > 1), error, np.nan),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Deviations:
    """D rows, by observation, then by setting."""

    answers: Answers
    observation: NDArray[np.object_]
    setting: NDArray[np.int64]
    """(D,) index into `Answers.params`."""
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
    """(D,) in standard errors, by the row's rule; NaN where unknown, infinite where neither side spreads."""
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
        """The counted row that deviates most."""
        rows = np.flatnonzero(self.compared)
        return int(rows[np.abs(self.deviation[rows]).argmax()]) if len(rows) else None

    def chance(self) -> float:
        """The probability of a worst deviation this large by chance (Student's t, rows taken as independent)."""
        from scipy.special import stdtr

        rows = np.flatnonzero(self.compared)
        tail = 2 * stdtr(np.maximum(self.measured.replicates[rows] - 1, 1), -np.abs(self.deviation[rows]))
        return float(-np.expm1(len(rows) * np.log1p(-tail.min()))) if len(rows) and tail.min() < 1 else 1.0

    def summary(self) -> str:
        """The whole comparison in one line."""
        text = f"theory: {plural(len(self), 'prediction')} of {plural(len(set(self.observation)), 'observation')}"
        worst = self.worst()
        if worst is not None:
            at = self.answers.place(int(self.setting[worst]))
            size = abs(self.deviation[worst])
            errors = f"{size:.1f} standard errors" if np.isfinite(size) else "infinitely many standard errors"
            text += f"; worst deviation {errors} ({self.observation[worst]}{' at ' + at if at else ''})"
        else:
            text += "; no standard errors" + (" with one replicate" if (self.verdict == ONE).any() else "")
            relative = np.abs(self.relative[np.isfinite(self.relative)])
            if len(relative):
                text += f"; median difference {percent(float(np.median(relative)))}"
        counts = {v: (self.verdict == v).sum() for v in (HEAVY, INFINITE, NOT_FINITE, MEASURED_ONLY, PREDICTED_ONLY)}
        not_counted = [f"{n:,} {verdict}" for verdict, n in counts.items() if n]
        return text + ("; not counted: " + ", ".join(not_counted) if not_counted else "")


def deviations(answers: Answers, table: TrialTable) -> Deviations | None:
    """Compare every predicted observation with what was measured; None where no setting has both."""
    parts = [_rows_of(name, answers, table) for name in answers.observed() if name in table.observations]
    if not any(len(part["setting"]) for part in parts):
        return None
    return Deviations(answers=answers, **{key: _joined([part[key] for part in parts]) for key in parts[0]})


def _rows_of(name: str, answers: Answers, table: TrialTable) -> dict[str, Any]:
    column = table.observations[name]
    everywhere = spread(answers.setting, len(answers.params), column, table.bounds(name))
    predicted = [s for s, given in enumerate(answers.predictions) if name in given and given[name].step is None]
    rows = np.array([s for s in predicted if everywhere.replicates[s]], dtype=np.int64)
    given = [answers.predictions[s][name] for s in rows]
    value = np.array([np.nan if isinstance(p.value, Censored) else p.value for p in given], dtype=np.float64)
    not_by = np.array([p.value.at if isinstance(p.value, Censored) else np.nan for p in given], dtype=np.float64)
    error = np.array([p.standard_error for p in given], dtype=np.float64)
    step = quantity(name) == "step"
    by_median = step or bool(column.censored.any()) or bool(np.isfinite(not_by).any())
    measured = Spread(**{key: part[rows] for key, part in vars(everywhere).items()})
    with np.errstate(invalid="ignore"):
        # A difference of steps is a whole number too.
        whole = by_median & (value % 1 == 0) & (measured.median % 1 == 0)
    length = np.where(np.isfinite(measured.to), np.maximum(measured.to - measured.above, 1), 1)
    rounding = np.where(whole | step, length**2 / 12, 0.0)
    center, own = (measured.median, measured.median_error) if by_median else (measured.mean, measured.mean_error)
    total = np.sqrt(own**2 + error**2 + rounding)
    verdict = _verdicts(measured, value, not_by, error, by_median=by_median)
    by_medians = in_standard_errors(measured.median, value, np.sqrt(measured.median_error**2 + error**2 + rounding))
    return {
        "observation": _filled(name, rows),
        "setting": rows,
        "rule": _filled("median" if by_median else "mean", rows),
        "value": value,
        "not_by": not_by,
        "value_error": error,
        "source": np.array([p.source for p in given], dtype=object),
        "measured": measured,
        "standard_error": total,
        "deviation": np.where(verdict == INFINITE, np.nan, in_standard_errors(center, value, total)),
        "verdict": verdict,
        "median_deviation": np.where(verdict == INFINITE, np.nan, by_medians),
    }


def _verdicts(
    measured: Spread, value: Floats, not_by: Floats, error: Floats, *, by_median: bool
) -> NDArray[np.object_]:
    """(D,) the verdict of each row; later ones take precedence."""
    verdict = _filled(COMPARED, value)
    verdict[measured.replicates < 2] = ONE
    if not by_median:
        verdict[measured.heavy] = HEAVY
        verdict[measured.not_finite > 0] = NOT_FINITE
    else:
        never, absent = np.isfinite(not_by), np.isnan(measured.median)
        # Beyond its own bound neither side says anything: a later number is no contradiction.
        verdict[absent & never] = NEITHER
        verdict[absent & ~never] = PREDICTED_ONLY
        verdict[~absent & never] = MEASURED_ONLY
        verdict[(absent & (value > measured.bound)) | (never & (measured.median >= not_by))] = NEITHER
        verdict[absent & (measured.censored == 0)] = NOT_FINITE
    verdict[(np.isnan(not_by) & ~np.isfinite(value)) | ~np.isfinite(error)] = INFINITE
    return verdict


def in_standard_errors(measured: Floats, value: Floats, error: Floats) -> Floats:
    """(measured - value) / error; 0 where there is no error and both are equal but for rounding."""
    with np.errstate(divide="ignore", invalid="ignore"):
        off = measured - value
        none = (error == 0) & (np.abs(off) <= _ROUNDING * np.abs(value))
        return np.asarray(np.where(none, 0.0, off / error), dtype=np.float64)


def _filled(text: str, like: NDArray[Any]) -> NDArray[np.object_]:
    return np.full(len(like), text, dtype=object)


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Spread):
        return Spread(**{key: np.concatenate([vars(part)[key] for part in parts]) for key in vars(parts[0])})
    return np.concatenate(parts)


def write_deviations(rows: Deviations, path: Path) -> None:
    """Write the table as Parquet, one column per axis first; null where there is no number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    measured = rows.measured
    numbers = {
        "predicted": rows.value,
        "predicted_not_by": rows.not_by,
        "prediction_error": rows.value_error,
        "measured": rows.center,
        "replicates": measured.replicates,
        "not_reached": measured.censored,
        "not_finite": measured.not_finite,
        "mean": measured.mean,
        "standard_deviation": measured.deviation,
        "median": measured.median,
        "median_error": measured.median_error,
        "standard_error": rows.standard_error,
        "deviation": rows.deviation,
        "median_deviation": rows.median_deviation,
        "relative_difference": rows.relative,
    }
    columns: dict[str, Any] = {
        "observation": pa.array(rows.observation, pa.string()),
        "rule": pa.array(rows.rule, pa.string()),
        **{name: pa.array(values, mask=np.isnan(values)) for name, values in numbers.items()},
        "verdict": pa.array(rows.verdict, pa.string()),
        "source": pa.array(rows.source, pa.string()),
    }
    places = {
        f"param.{name}" if name in columns else name: [rows.answers.value(s, name) for s in rows.setting]
        for name in rows.answers.axes
    }
    pq.write_table(pa.table({**places, **columns}), path, compression="zstd")


def write_text(rows: Deviations, path: Path, *, more: Sequence[str] = ()) -> None:
    """Write the comparison as text: a summary, each observation, what the verdicts mean, the worst rows."""
    lines = [rows.summary(), *more]
    if rows.worst() is not None:
        lines.append(
            f"A worst deviation this large occurs by chance in {100 * rows.chance():.2g}% of such tables "
            "(Student's t, were the rows independent; settings that share their seeds are not)."
        )
    if holes := rows.answers.holes():
        lines.append(f"Theory is {holes}.")
    lines.append("")
    header = ("observation", "rule", "rows", "counted", "rms", "worst", "beyond 3", "source")
    body = []
    for name in dict.fromkeys(rows.observation):
        own = rows.observation == name
        counted = rows.deviation[own & rows.compared]
        rms = f"{np.sqrt(np.mean(counted**2)):.2f}" if len(counted) else "-"
        most = f"{counted[np.abs(counted).argmax()]:+.2f}" if len(counted) else "-"
        counts = f"{own.sum():,}", f"{len(counted):,}", rms, most, f"{(np.abs(counted) > 3).sum():,}"
        body.append((name, rows.rule[own][0], *counts, "; ".join(dict.fromkeys(rows.source[own]))))
    lines += _aligned(header, body)
    present = set(rows.verdict)
    lines += ["", "verdicts"]
    lines += [f"  {(rows.verdict == v).sum():>7,}  {v}: {text}" for v, text in VERDICTS.items() if v in present]
    size = np.where(np.isnan(rows.deviation), -1.0, np.abs(rows.deviation))
    differ = np.isin(rows.verdict.astype(str), (MEASURED_ONLY, PREDICTED_ONLY))
    order = np.lexsort((-np.nan_to_num(np.abs(rows.relative)), -size, ~differ))[:_WORST_LISTED]
    title = f"the {len(order)} rows that deviate most" if len(rows) > len(order) else "all rows, the worst first"
    lines += ["", "`by median` compares the median with the same prediction; it differs where values are skewed."]
    lines += ["", f"{title} (all are in theory_deviation.parquet)" if len(rows) > len(order) else title]
    columns = ("observation", "predicted", "measured", "± error", "deviation", "by median", "%", "R", "verdict")
    lines += _aligned((*rows.answers.axes, *columns), [_row(rows, int(d)) for d in order])
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def _row(rows: Deviations, d: int) -> tuple[str, ...]:
    center, bound = rows.center[d], rows.measured.bound[d]
    return (
        *(rows.answers.text(int(rows.setting[d]), name) for name in rows.answers.axes),
        str(rows.observation[d]),
        number(rows.value[d]) if np.isnan(rows.not_by[d]) else f"not by {number(rows.not_by[d])}",
        f"not by {number(bound)}" if rows.rule[d] == "median" and np.isnan(center) else number(center),
        _shown(rows.standard_error[d], ".3g"),
        _shown(rows.deviation[d], "+.2f"),
        _shown(rows.median_deviation[d], "+.2f"),
        _shown(100 * rows.relative[d], "+.2g"),
        str(rows.measured.replicates[d]),
        str(rows.verdict[d]),
    )


def _shown(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(value, form)


def _aligned(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [tuple(header), *map(tuple, body)]
    width = [max(len(row[k]) for row in rows) for k in range(len(header))]
    return ["  ".join(text.ljust(w) for text, w in zip(row, width, strict=True)) for row in rows]

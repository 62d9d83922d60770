"""The data dictionary: what each column of the tables means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.job import AFTER, ParamSpec, bounded, specs
from orchestrator.axes import Axis
from orchestrator.phases.table import names_of
from orchestrator.results.curves import axis_column, metric_column
from orchestrator.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One column."""

    table: str
    """"trials" or "curves"."""
    column: str
    type: str
    """Of Arrow: string, int64, double, bool."""
    unit: str
    """"" if it has none, or it is not known."""
    meaning: str


TRIAL = {
    "trial_id": "Hash of the trial's job, parameters, seed and replicate.",
    "run_id": "MLflow run; null if the trial was never recorded.",
    "replicate": "Number of the replicate: it selects the seed.",
    "phase": "Label of the trial under the sweep's thresholds; null unless it is finished.",
    "bounds_from_schedule": "Whether bounds of its steps are not recorded, but follow from its schedule of reports.",
    "status": "RUNNING, FINISHED, FAILED, KILLED, or MISSING (never recorded).",
}
"""Columns of the table of trials that every sweep has."""
PREFIXES = {
    "final_": "Value of {} at the last step (not the best one).",
    "best_": "Largest or smallest finite value of {} over all reported steps (not the last one).",
}
"""Beginning of an observation's name -> its meaning, with the rest of the name."""


def trial_entries(table: Any, trials: Sequence[Trial]) -> list[Entry]:
    """The columns of the table of trials, an `arrow_table`."""
    params, observations = names_of(table)
    known = _specs(trials)
    meanings = {name: ("", meaning) for name, meaning in TRIAL.items()}
    for name, column in params.items():
        meanings[column] = _of_param(name, known)
    for name, column in observations.items():
        unit = "steps" if (bounded(name, observations) or name).endswith("_step") else ""
        meanings[column] = unit, _of_bound(name, observations) or _of_observation(name)
        meanings[f"{column}_censored_at"] = unit, f"Bound up to which {name} was not reached; null if it was reached."
    return [
        Entry(table="trials", column=f.name, type=str(f.type), unit=meanings[f.name][0], meaning=meanings[f.name][1])
        for f in table.schema
    ]


def curve_entries(metrics: Sequence[str], axes: Sequence[Axis], trials: Sequence[Trial]) -> list[Entry]:
    """The columns of the table of curves with these metrics."""
    known = _specs(trials)
    entries = [
        ("trial_id", "string", "", TRIAL["trial_id"]),
        ("step", "int64", "steps", "Optimiser steps until the values of the row were measured."),
    ]
    taken = [metric_column(name) for name in metrics]
    for axis in axes:
        values = {type(getattr(trial.params, axis.name, None)) for trial in trials} - {type(None)}
        kind = {bool: "bool", int: "int64", float: "double"}.get(next(iter(values), str), "string")
        entries.append((axis_column(axis.name, taken), kind, *_of_param(axis.name, known)))
    entries.append(("replicate", "int64", "", TRIAL["replicate"]))
    absent = "null: not reported at this step; NaN: measured as NaN."
    entries += [(metric_column(name), "double", "", f"Metric {name} of the job; {absent}") for name in metrics]
    return [Entry(table="curves", column=c, type=k, unit=u, meaning=m) for c, k, u, m in entries]


def param_meaning(name: str, trials: Sequence[Trial]) -> str:
    """What a parameter means, with its unit, in a few words."""
    unit, text = _of_param(name, _specs(trials[:64]))
    return text.removeprefix("Parameter: ").rstrip(".") + (f" ({unit})" if unit else "")


def _specs(trials: Sequence[Trial]) -> dict[str, ParamSpec]:
    kinds = dict.fromkeys(type(trial.params) for trial in trials)
    return {name: spec for kind in kinds for name, spec in specs(kind).items()}


def _of_param(name: str, known: dict[str, ParamSpec]) -> tuple[str, str]:
    spec = known.get(name)
    return (spec.unit, f"Parameter: {spec.meaning}") if spec else ("", f"Parameter {name}.")


def _of_bound(name: str, observations: Mapping[str, str]) -> str:
    """The meaning of a bound of a step; "" where the observation is none."""
    of = bounded(name, observations)
    if not of:
        return ""
    event = f"The event of {of} came"
    return f"{event} {'after this' if name.endswith(AFTER) else 'by this, the last possible one'}; null: not bounded."


def _of_observation(name: str) -> str:
    absent = "null: not reached, or not observed."
    for prefix, meaning in PREFIXES.items():
        if name.startswith(prefix):
            return f"{meaning.format(name.removeprefix(prefix))} {absent[0].upper()}{absent[1:]}"
    return f"Observation {name} of the job; {absent}"

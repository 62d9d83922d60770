"""The sweep file as a model: its keys, their types and ranges, whatever the job is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema

from orchestrator.analyses.kinds import KINDS, AnalysisWritten, analysis_kind
from orchestrator.axes import AXIS_MODELS, AxisModel, AxisWritten, FileModel, ScalarValue, ValuesAxis, axis_kind, key
from orchestrator.errors import NOTHING, did_you_mean, nearest
from orchestrator.outages import PATIENCE_S
from orchestrator.phases.style import FigureStyle
from orchestrator.sweep.document import Document, Keys
from orchestrator.target import TARGETS, PhaseTarget, TargetWritten, target_type

MOST_BUDGET = 2_000_000
"""The largest budget that a search may have."""


def _auto(written: Any) -> None:
    if written != "auto":
        raise ValueError("not auto")


Auto = Annotated[None, BeforeValidator(_auto), WithJsonSchema({"const": "auto", "type": "string"})]
"""None, written as `auto`: the program decides."""


def _seconds(written: Any) -> Any:
    """Seconds of a duration such as `30m`; anything else unchanged."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", written) if isinstance(written, str) else None
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else written


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, strict=True, allow_inf_nan=False),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^(?![0.]+\s*[smh]$)[0-9]+([.][0-9]+)?\s*[smh]$"},
            ]
        }
    ),
]
"""A time in seconds, written as a number or with a unit."""


class Resources(FileModel):
    """What the sweep may use."""

    workers: Annotated[int, Field(ge=1)] | Auto = key(
        None, "Worker processes; auto is one per core, or per GPU.", "a whole number >= 1, or auto"
    )
    max_share: float = key(
        1.0, "The share of a cluster, or of this machine, that workers may take.", "a number > 0 and <= 1", gt=0, le=1
    )
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "Where models train; auto is cuda where there is one.", "one of auto, cpu, cuda"
    )
    cpus_per_worker: float = key(1.0, "CPU cores that a worker takes.", "a number > 0", gt=0)
    gpus_per_worker: Annotated[float, Field(gt=0, lt=1)] | Annotated[float, Field(ge=1, multiple_of=1)] | Auto = key(
        None,
        "GPUs that a worker takes, on cuda: whole ones, or a part of one.",
        "a whole number >= 1, a number > 0 and < 1, or auto",
    )
    memory_gb: Annotated[float, Field(gt=0)] | Auto = key(
        None, "Memory that a worker's pack may take, in GB, beyond libraries.", "a number > 0, or auto"
    )
    accelerator_type: str | None = key(
        None,
        "The accelerator that the node of a worker must have, as Ray calls it; null is any.",
        "text such as L4, H100 or GeForce-RTX-5090, or null",
        pattern=r"^[^\s:]+$",
    )
    custom: dict[str, Annotated[float, Field(ge=0.0001)]] = key(
        {},
        "Custom resources of the cluster's nodes that a worker takes.",
        "a mapping of name to amount such as {licence: 1}",
    )
    trial_timeout: Duration | None = key(
        None,
        "The longest that a trial, or a pack of trials that train together, may take; null sets no limit.",
        "a number of seconds > 0, a duration such as 90s, 30m or 1.5h, or null",
    )
    checkpoints: str | None = key(
        "auto",
        "Where the state of long packs is saved, so that they continue after a loss: a folder that all workers share, "
        "or a bucket. auto is a folder in the output folder on one machine, and nothing on a cluster; null is nothing.",
        "auto, a folder, an address such as s3://bucket/folder or gs://bucket/folder, or null",
        min_length=1,
    )
    checkpoint_interval: Duration | Auto = key(
        None,
        "Time between two checkpoints of a pack; auto is 5 minutes, and less where nodes are lost.",
        "a number of seconds > 0, a duration such as 90s, 10m or 1.5h, or auto",
    )
    keep: Literal["final"] | None = key(
        None,
        "Which states stay where checkpoints are: final is those at the end of trials, so that a sweep with more steps "
        "continues from them; null is none.",
        "final, or null",
    )


class Tracking(FileModel):
    """Where curves are recorded."""

    uri: str = key(
        "sqlite:///mlflow.db",
        "MLflow's tracking address; without it, $MLFLOW_TRACKING_URI, or sqlite:///mlflow.db.",
        "text such as sqlite:///mlflow.db, postgresql://user@host/db, http://host:5000",
        min_length=1,
    )
    experiment: str = key(
        "phasefront", "MLflow's experiment.", "text of 1 to 256 characters", min_length=1, max_length=256
    )
    artifacts: str | None = key(
        None, "Where a new experiment keeps its artifacts; null lets MLflow decide.", "text, or null"
    )
    patience: Duration = key(
        PATIENCE_S,
        "How long a run goes on without a record that does not answer; then it ends and can be resumed.",
        "a number of seconds > 0, or a duration such as 90s, 10m or 1.5h",
    )


class UntilKeys(FileModel):
    """When a search may end before its budget is spent."""

    uncertain_area: float = key(
        ...,
        "The share of the map in which it is not yet known on which side of the boundary it lies.",
        "a number > 0 and < 1",
        gt=0,
        lt=1,
    )


class SearchKeys(FileModel):
    """Which trials are run, and when there are enough."""

    kind: Literal["grid", "boundary"] = key(
        "grid",
        "grid runs every trial; boundary the trials that are most informative about the boundary.",
        "one of grid, boundary",
    )
    target: TargetWritten = key(
        PhaseTarget(),
        "The boundary that the search looks for.",
        ", ".join(target.example for target in TARGETS[:-1]) + f" or {TARGETS[-1].example}",
    )
    budget: int | None = key(
        None, "The most trials, replicates included.", "a whole number from 1 to 2000000", ge=1, le=MOST_BUDGET
    )
    until: UntilKeys | None = key(None, "End as soon as the boundary is known so well.", "{uncertain_area: NUMBER}")
    batch: Annotated[int, Field(ge=1)] | Auto = key(
        None,
        "The most trials that have been asked for and have not ended; auto is 32, or 2 for every worker.",
        "a whole number >= 1, or auto",
    )
    start: int = key(
        64,
        "Trials spread evenly before the first are chosen by what is known; at most half of the budget.",
        "a whole number from 4 to 100000",
        ge=4,
        le=100_000,
    )
    storage: str = key(
        "sqlite:///optuna.db",
        "Where Optuna keeps the study: the address of a database of its own.",
        "text such as sqlite:///optuna.db, postgresql+psycopg2://user@host/db",
        min_length=1,
    )
    seed: int | None = key(
        None,
        "Of the search's own random numbers; by default the sweep's.",
        "a whole number from 0 to 2^63 - 1, or null",
        ge=0,
        le=2**63 - 1,
    )


class SweepFile(FileModel):
    """A sweep: one job, the axes it is varied along, and where the results go."""

    name: str | None = key(
        None,
        "The sweep's name in MLflow and in paths; by default the file's name.",
        "text without / and \\, not beginning with a dot, at most 200 characters",
        pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}$",
    )
    job: str = key(..., "What is trained.", "a built-in job, or your own as my_package.my_module:MyJob", min_length=1)
    axes: dict[str, AxisWritten] = key(
        {}, "The parameters that vary, each with its values.", "a mapping of parameter to axis"
    )
    zip: list[list[str]] = key(
        [], "Groups of axes that advance together instead of being crossed.", "a list of lists of axes"
    )
    fixed: dict[str, ScalarValue] = key(
        {}, "Parameters that are the same in all trials.", "a mapping of parameter to value"
    )
    replicates: int = key(
        1,
        "Trials at every setting; they differ in every random number. Left out in a search "
        "with an axis without points: 64, of which each setting gets one.",
        "a whole number from 1 to 1000000",
        ge=1,
        le=1_000_000,
    )
    seed: int = key(0, "Base of every random number.", "a whole number from 0 to 2^63 - 1", ge=0, le=2**63 - 1)
    search: SearchKeys = key(SearchKeys(), "Which trials are run; without it, all of the grid.", "a mapping")
    phases: dict[str, ScalarValue] = key(
        {}, "The job's thresholds, by which a trial gets its phase.", "a mapping of threshold to value"
    )
    analysis: list[AnalysisWritten] | None = key(
        None,
        "What is computed of the finished trials; by default what the job proposes. [] computes nothing.",
        "a list of analyses such as {kind: peak, of: final_test_error, along: width}",
    )
    figure: FigureStyle = key(FigureStyle(), "How its figures look.", "a mapping")
    resources: Resources = key(Resources(), "What the sweep may use.", "a mapping")
    tracking: Tracking = key(Tracking(), "Where curves are recorded.", "a mapping")
    output: str | None = key(
        None, "Folder of the files that a run makes; by default phasefront-out/NAME.", "a path", min_length=1
    )
    extends: str | None = key(
        None,
        "Another sweep file, whose keys hold where this one does not set them, and whose finished trials are not "
        "trained again.",
        "a path relative to this file",
        min_length=1,
    )


SECTIONS = ("axes", "zip", "fixed", "search", "phases", "analysis", "figure", "resources", "tracking")
"""Keys that may have no value, as where everything below them is commented out."""

_AXIS: TypeAdapter[Any] = TypeAdapter(AxisWritten)


def parse_axis(written: Any) -> AxisModel:
    """An axis that is known to be well formed."""
    parsed: AxisModel | list[Any] = _AXIS.validate_python(written)
    return ValuesAxis(values=parsed) if isinstance(parsed, list) else parsed


def check_form(document: Document) -> SweepFile | None:
    """The document as a model, with the mistakes noted.

    Sections that are not well formed are left out, so that the others are checked further; None where that is no help.
    """
    for section in SECTIONS:
        if document.data.get(section, NOTHING) is None and (section,) not in document.broken:
            del document.data[section]
    try:
        return SweepFile.model_validate(document.data)
    except ValidationError as error:
        _note(document, error)
    sound = {section: value for section, value in document.data.items() if not document.wrong_under((section,))}
    with contextlib.suppress(ValidationError):
        return SweepFile.model_validate({"job": "not named", **sound})
    return None


def _note(document: Document, error: ValidationError) -> None:
    errors: dict[Keys, str] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        keys, kind = _real(document, item["loc"]), item["type"]
        errors.setdefault((*keys, item["loc"][-1]) if kind == "missing" else keys, kind)
    misspelt = {_meant(document, keys) for keys, kind in errors.items() if kind == "extra_forbidden"}
    for keys, kind in errors.items():
        if (kind == "missing" and keys in misspelt) or any(keys[:n] in document.broken for n in range(len(keys) + 1)):
            continue
        model, name = model_at(document, keys[:-1]), str(keys[-1])
        if kind == "missing":
            valid = valid_values(model, name)
            rule = f"'{name}' is missing" + (f": {valid}" if valid else "")
            document.add(keys[:-1], rule, key=len(keys) > 1, next_step=f"add '{name}: ...'")
        elif kind == "extra_forbidden":
            unknown(document, keys, "key", names_of(model))
        elif len(keys) == 2 and keys[0] == "axes":
            _bad_axis(document, keys)
        elif len(keys) == 2 and keys[0] == "analysis":
            _bad_analysis(document, keys)
        else:
            _bad_value(document, keys, kind)


def _meant(document: Document, keys: Keys) -> Keys | None:
    """The key that an unknown one most likely means."""
    names = names_of(model_at(document, keys[:-1]))
    near = _without_colon(str(keys[-1]), names)[0] or nearest(str(keys[-1]), names)
    return (*keys[:-1], near) if near else None


def _real(document: Document, location: tuple[str | int, ...]) -> Keys:
    """A location of pydantic's without what is not in the file (the names of a union's branches)."""
    keys: Keys = ()
    # axes, NAME, branch of the union, ...: a branch may have the name of a key
    if location[0] in ("axes", "analysis") or location[:2] == ("search", "target"):
        location = (*location[:2], *location[3:])
    for part in location:
        if document.get((*keys, part)) is not NOTHING:
            keys = (*keys, part)
    return keys


def model_at(document: Document, keys: Keys) -> type[BaseModel] | None:
    """The model of the mapping at `keys`, where its keys are fixed."""
    if not keys:
        return SweepFile
    plain: dict[Keys, type[BaseModel]] = {("resources",): Resources, ("tracking",): Tracking, ("figure",): FigureStyle}
    if keys in plain:
        return plain[keys]
    if len(keys) == 2 and keys[0] == "axes":
        return AXIS_MODELS.get(axis_kind(document.get(keys)) or "")
    if len(keys) == 2 and keys[0] == "analysis":
        return KINDS.get(analysis_kind(document.get(keys)) or "")
    if keys == ("search", "target"):
        target = target_type(document.get(keys))
        return target if target and target.model_fields else None
    if keys == ("search", "until"):
        return UntilKeys
    return SearchKeys if keys == ("search",) else None


def names_of(model: type[BaseModel] | None) -> tuple[str, ...]:
    """A model's keys as the file writes them."""
    return tuple(info.alias or name for name, info in model.model_fields.items()) if model else ()


def valid_values(model: type[BaseModel] | None, name: str) -> str:
    """The valid values of a key, in words."""
    for own, info in model.model_fields.items() if model else ():
        if name == (info.alias or own) and isinstance(info.json_schema_extra, dict):
            return str(info.json_schema_extra["x-valid"])
    return ""


_OWN_KEYS = {
    "seed": "for several seeds of each setting write 'replicates: 3' beside 'axes:'; their first one is 'seed:'",
    "replicate": "write 'replicates: 3' beside 'axes:'",
}
"""Names of what is no parameter, because the sweep file has a key of its own for it."""


def unknown(document: Document, keys: Keys, kind: str, valid: Iterable[str], *, where: str = "") -> None:
    """Note that the key at `keys` is not one of the valid ones."""
    name, valid = str(keys[-1]), tuple(valid)
    rule, next_step = f"unknown {kind} '{name}'{where}", did_you_mean(name, valid)
    if kind == "parameter":
        next_step = _OWN_KEYS.get(name.rstrip("s"), next_step)
    if hidden := re.findall(r"[^\S ]|[\u200b-\u200f\ufeff]", name):
        next_step = f"remove the invisible U+{ord(hidden[0]):04X} from the line: type the blanks anew"
    meant, value = _without_colon(str(keys[-1]), valid)
    if meant:
        rule, next_step = f"a colon is missing in '{name}'", f"write '{meant}: {value}'"
    document.add(keys, rule, key=True, choices=valid, next_step=next_step)


def _without_colon(written: str, valid: Iterable[str]) -> tuple[str, str]:
    """The key and the value in a name that is both, as in {scale: log, from: 1, to 10}; else two empty ones."""
    name, _, value = written.partition(" ")
    return (name, value.strip()) if value and name in valid else ("", "")


def _bad_axis(document: Document, keys: Keys) -> None:
    """An axis that does not say what it is, or is not an axis at all."""
    written = document.get(keys)
    kinds = tuple(AXIS_MODELS)
    if isinstance(written, list):
        rule = f"empty grid: axis '{keys[-1]}' has no values"
        document.add(keys, rule, value=written, next_step="list at least one")
    elif not isinstance(written, dict):
        next_step = f"[{written}] for an axis of one value, or put it under 'fixed:'"
        if written is None:
            next_step = "for example {scale: log, from: 0.1, to: 10, points: 16}"
        rule = "an axis is a list of values, or a mapping with a scale"
        document.add(keys, rule, value=written, next_step=next_step)
    elif "scale" in written:
        scale = written["scale"]
        next_step = did_you_mean(scale, kinds) if isinstance(scale, str) else ""
        document.add((*keys, "scale"), "unknown scale", value=scale, choices=kinds, next_step=next_step)
    else:
        valid = tuple(dict.fromkeys(name for model in AXIS_MODELS.values() for name in names_of(model)))
        strange = [name for name in written if name not in valid]
        for name in strange:
            unknown(document, (*keys, name), "key", valid)
        others = tuple(name for name in document.data.get("axes", ()) if name != keys[-1])
        if not strange and document.place(keys, key=True).source and others:
            rule = f"'{keys[-1]}' is no axis of the file, and this does not make it one: 'scale' is missing"
            step = did_you_mean(str(keys[-1]), others, "name one of these, or give it a scale too")
            document.add(keys, rule, key=True, choices=others, next_step=step)
        elif not strange:
            rule, next_step = "'scale' is missing, and so are 'values'", "add for example 'scale: log'"
            document.add(keys, rule, key=True, choices=kinds, next_step=next_step)


def _bad_analysis(document: Document, keys: Keys) -> None:
    """An entry of `analysis:` that does not say what it is, or is not an analysis at all."""
    written = document.get(keys)
    kinds = tuple(KINDS)
    if not isinstance(written, dict):
        rule = "an analysis is a mapping with a kind"
        document.add(
            keys, rule, value=written, next_step="for example {kind: peak, of: final_test_error, along: width}"
        )
    elif "kind" in written:
        kind = written["kind"]
        next_step = did_you_mean(kind, kinds) if isinstance(kind, str) else ""
        document.add((*keys, "kind"), "unknown kind of analysis", value=kind, choices=kinds, next_step=next_step)
    else:
        document.add(keys, "'kind' is missing", choices=kinds, next_step="add for example 'kind: peak'")


_ITEMS = {
    "zip": "the name of an axis",
    "tune": "the name of an axis",
    "form": "one of power, floor, critical, broken",
    "include": "a number",
    "labels": "text",
    "colours": "'#RRGGBB', for example '#4477AA'",
    "panels": "phase or the name of an observation",
    "custom": "a number >= 0.0001",
}
"""The valid values in a list, where it is not one of plain values."""


def _bad_value(document: Document, keys: Keys, kind: str) -> None:
    owner = next((n for n in range(len(keys) - 1, -1, -1) if model_at(document, keys[:n]) is not None), 0)
    name, written = str(keys[owner]), document.get(keys)
    valid = valid_values(model_at(document, keys[:owner]), name)
    if owner + 1 < len(keys):
        valid = _ITEMS.get(name, "a finite number, text, true or false")
        if keys[0] == "zip" and len(keys) == 2:
            valid = "a list of axes"
    empty = "empty grid: " if kind in ("greater_than_equal", "too_short") and name in ("points", "values") else ""
    rule = f"{empty}'{'.'.join(map(str, keys[owner:]))}' must be {valid}"
    document.add(keys, rule, value=written, next_step=_advice(keys[owner:], written, valid))


_EXAMPLES = {
    "name": "my_sweep",
    "extends": "other.yaml",
    "job": "grokking",
    "axes": "{weight_decay: [0.1, 1]}",
    "zip": "[[width, steps]]",
    "fixed": "{steps: 1000}",
    "replicates": "3",
    "seed": "0",
    "search": "{kind: boundary, budget: 400}",
    "target": "{metric: final_test_accuracy, level: 0.5}",
    "budget": "400",
    "until": "{uncertain_area: 0.01}",
    "uncertain_area": "0.01",
    "batch": "32",
    "start": "64",
    "analysis": "[{kind: peak, of: final_test_error, along: width}]",
    "of": "final_test_error",
    "along": "width",
    "window": "1.5",
    "between": "optimiser",
    "tune": "[learning_rate, weight_decay]",
    "size": "modulus",
    "error": "0.1",
    "family_wise_error": "0.05",
    "metric": "final_test_accuracy",
    "level": "0.5",
    "ridge": "final_test_error",
    "points": "16",
    "values": "[1, 2, 3]",
    "from": "1",
    "to": "10",
    "include": "[1]",
    "workers": "2",
    "accelerator_type": "L4",
    "custom": "{licence: 1}",
    "cpus_per_worker": "1",
    "gpus_per_worker": "1",
    "memory_gb": "4",
    "trial_timeout": "30m",
    "patience": "10m",
    "uri": "sqlite:///mlflow.db",
    "storage": "sqlite:///optuna.db",
    "experiment": "phasefront",
    "figure": "{width: single}",
    "width": "single",
    "labels": "{weight_decay: '$\\lambda$'}",
    "colours": "{grokking: '#EEBB33'}",
    "panels": "[phase, generalisation_step]",
}
"""An example of a valid value for each key that takes more than a choice of words."""


def number_advice(text: str) -> str:
    """What to write in place of text that begins like a number."""
    if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text.strip(), re.IGNORECASE):
        return "write it without quotes"
    if re.fullmatch(r"\d+(\.\d+)? ?%", text):
        return f"did you mean {float(text.rstrip(' %')) / 100:g}?"
    return "write a plain number, such as 0.001 or 10000: with a decimal point, and without a unit"


def _advice(keys: Keys, written: object, valid: str) -> str:
    """What to write as the value of `keys`, the first of which is a key of a model."""
    name = str(keys[0])
    if len(keys) > 1:
        if name == "fixed" and isinstance(written, list | dict):
            return f"'{keys[1]}' varies then: move it to 'axes:'"
        if name in ("fixed", "phases") and len(keys) == 2:
            return "give it one value, or remove it"
    if valid.startswith("text") and isinstance(written, int | float):
        return "put it in quotes"
    if isinstance(written, str):
        if name == "device" and "gpu" in written.lower():
            return "write 'device: cuda'"
        if valid.startswith("one of") and (
            step := did_you_mean(written, re.split(r", |; ", valid.removeprefix("one of ")))
        ):
            return step
        if "number" in valid and "duration" not in valid and written.strip().lstrip("+-")[:1].isdecimal():
            return number_advice(written)
        words = [word for word in ("phase", "auto", "null", "single", "double") if re.search(rf"\b{word}\b", valid)]
        if step := did_you_mean(written, words):
            return step
        if name == "target":
            metric = f"for a metric 'target: {{metric: {written}, level: 0.5}}'"
            return f"for where phases change, '{written}' among them, write 'target: phase'; {metric}"
    if name == "gpus_per_worker" and written == 0:
        return "to train without a GPU write 'device: cpu'"
    if len(keys) > 1 or name not in _EXAMPLES:
        return ""
    if isinstance(written, list) and not valid.startswith(("a list", "a mapping")):
        return f"write one value without brackets, for example '{name}: {_EXAMPLES[name]}'"
    return f"write for example '{name}: {_EXAMPLES[name]}'"

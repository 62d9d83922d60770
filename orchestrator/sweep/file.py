"""The sweep file as a model: its keys, their types and ranges, whatever the job is."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from orchestrator.axes import AXIS_MODELS, AxisModel, AxisWritten, FileModel, ScalarValue, ValuesAxis, axis_kind, key
from orchestrator.errors import NOTHING, nearest
from orchestrator.sweep.document import Document, Keys
from orchestrator.target import TARGETS, PhaseTarget, TargetWritten, target_type

MOST_BUDGET = 2_000_000
"""The largest budget that a search may have."""


class ResourcesKeys(FileModel):
    """What the sweep may use."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = key(
        "auto", meaning="Worker processes; auto is one per core, or per GPU.", valid="a whole number >= 1, or auto"
    )
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", meaning="Where models train; auto is cuda where there is one.", valid="one of auto, cpu, cuda"
    )
    cpus_per_worker: float = key(1.0, meaning="CPU cores that a worker takes.", valid="a number > 0", gt=0)
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = key(
        "auto", meaning="GPUs that a worker takes, on cuda.", valid="a number >= 0, or auto"
    )
    memory_gb: Annotated[float, Field(gt=0)] | Literal["auto"] = key(
        "auto", meaning="Memory that a worker's pack may take, in GB.", valid="a number > 0, or auto"
    )


class Tracking(FileModel):
    """Where curves are recorded."""

    uri: str = key(
        "sqlite:///mlflow.db",
        meaning="MLflow's tracking address; without it, $MLFLOW_TRACKING_URI, or sqlite:///mlflow.db.",
        valid="text such as sqlite:///mlflow.db, postgresql://user@host/db, http://host:5000",
        min_length=1,
    )
    experiment: str = key("phasefront", meaning="MLflow's experiment.", valid="text, not empty", min_length=1)
    artifacts: str | None = key(
        None, meaning="Where a new experiment keeps its artifacts; null lets MLflow decide.", valid="text, or null"
    )


class UntilKeys(FileModel):
    """When a search may end before its budget is spent."""

    uncertain_area: float = key(
        meaning="The share of the map in which it is not yet known on which side of the boundary it lies.",
        valid="a number > 0 and < 1",
        gt=0,
        lt=1,
    )


class SearchKeys(FileModel):
    """Which trials are run, and when there are enough."""

    kind: Literal["grid", "boundary"] = key(
        "grid",
        meaning="grid runs every trial; boundary those that tell most about where one phase ends.",
        valid="one of grid, boundary",
    )
    target: TargetWritten = key(
        PhaseTarget(),
        meaning="The boundary that the search looks for.",
        valid=", ".join(target.example for target in TARGETS[:-1]) + f" or {TARGETS[-1].example}",
    )
    budget: int | None = key(
        None,
        meaning="The most trials, replicates counted.",
        valid="a whole number from 1 to 2000000",
        ge=1,
        le=MOST_BUDGET,
    )
    until: UntilKeys | None = key(
        None, meaning="End as soon as the boundary is known so well.", valid="{uncertain_area: NUMBER}"
    )
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = key(
        "auto",
        meaning="The most trials that have been asked for and have not ended; auto is 32, or 2 for every worker.",
        valid="a whole number >= 1, or auto",
    )
    start: int = key(
        64,
        meaning="Trials spread evenly before the first are chosen by what is known; at most half of the budget.",
        valid="a whole number from 4 to 100000",
        ge=4,
        le=100_000,
    )
    storage: str = key(
        "sqlite:///optuna.db",
        meaning="Where Optuna keeps the study: the address of a database of its own.",
        valid="text such as sqlite:///optuna.db, postgresql+psycopg2://user@host/db",
        min_length=1,
    )
    seed: int | None = key(
        None,
        meaning="Of the search's own random numbers; by default the sweep's.",
        valid="a whole number from 0 to 2^63 - 1, or null",
        ge=0,
        le=2**63 - 1,
    )


class SweepFile(FileModel):
    """A sweep: one job, the axes it is varied along, and where the results go."""

    name: str | None = key(
        None,
        meaning="The sweep's name in MLflow and in paths; by default the file's name.",
        valid="text without / and \\, not beginning with a dot, at most 200 characters",
        pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}$",
    )
    job: str = key(
        meaning="What is trained.", valid="a built-in job, or your own as my_package.my_module:MyJob", min_length=1
    )
    axes: dict[str, AxisWritten] = key(
        {}, meaning="The parameters that vary, each with its values.", valid="a mapping of parameter to axis"
    )
    zip: list[list[str]] = key(
        [], meaning="Groups of axes that advance together instead of being crossed.", valid="a list of lists of axes"
    )
    fixed: dict[str, ScalarValue] = key(
        {}, meaning="Parameters that are the same in all trials.", valid="a mapping of parameter to value"
    )
    replicates: int = key(
        1,
        meaning="Trials at every setting; they differ in every random number. Left out in a search "
        "with an axis without points: 64, of which each setting gets one.",
        valid="a whole number from 1 to 1000000",
        ge=1,
        le=1_000_000,
    )
    seed: int = key(
        0,
        meaning="Base of every random number.",
        valid="a whole number from 0 to 2^63 - 1",
        ge=0,
        le=2**63 - 1,
    )
    search: SearchKeys = key(
        SearchKeys(), meaning="Which trials are run; without it, all of the grid.", valid="a mapping"
    )
    phases: dict[str, ScalarValue] = key(
        {}, meaning="The job's thresholds, by which a trial gets its phase.", valid="a mapping of threshold to value"
    )
    resources: ResourcesKeys = key(ResourcesKeys(), meaning="What the sweep may use.", valid="a mapping")
    tracking: Tracking = key(Tracking(), meaning="Where curves are recorded.", valid="a mapping")
    output: str | None = key(
        None,
        meaning="Folder of the files that a run makes; by default phasefront-out/NAME.",
        valid="a path",
        min_length=1,
    )


SECTIONS = ("axes", "zip", "fixed", "search", "phases", "resources", "tracking")
"""Keys that may stand without a value, as where all that is below them is commented out."""

_AXIS: TypeAdapter[Any] = TypeAdapter(AxisWritten)


def parse_axis(written: Any) -> AxisModel:
    """An axis that is known to be well formed."""
    parsed: AxisModel | list[Any] = _AXIS.validate_python(written)
    return ValuesAxis(values=parsed) if isinstance(parsed, list) else parsed


def check_form(document: Document) -> SweepFile | None:
    """The document as a model; None where its mistakes, which are noted, leave none."""
    for section in SECTIONS:
        if document.data.get(section, NOTHING) is None and (section,) not in document.broken:
            del document.data[section]
    try:
        return SweepFile.model_validate(document.data)
    except ValidationError as error:
        _note(document, error)
    return None


def _note(document: Document, error: ValidationError) -> None:
    found: dict[Keys, str] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        keys, kind = _real(document, item["loc"]), item["type"]
        found.setdefault((*keys, item["loc"][-1]) if kind == "missing" else keys, kind)
    misspelt = {_meant(document, keys) for keys, kind in found.items() if kind == "extra_forbidden"}
    for keys, kind in found.items():
        if (kind == "missing" and keys in misspelt) or any(keys[:n] in document.broken for n in range(len(keys) + 1)):
            continue
        if kind == "missing":
            _missing(document, keys)
        elif kind == "extra_forbidden":
            _unknown(document, keys)
        elif len(keys) == 2 and keys[0] == "axes":
            _bad_axis(document, keys)
        else:
            _bad_value(document, keys, kind)


def _meant(document: Document, keys: Keys) -> Keys | None:
    """The key that an unknown one most likely means."""
    model = model_at(document, keys[:-1])
    near = nearest(str(keys[-1]), names_of(model)) if model else None
    return (*keys[:-1], near) if near else None


def _real(document: Document, location: tuple[str | int, ...]) -> Keys:
    """A location of pydantic's without what is not in the file (the names of a union's branches)."""
    keys: Keys = ()
    # axes, NAME, branch of the union, ...: a branch may be called like a key
    if location[0] == "axes" or location[:2] == ("search", "target"):
        location = (*location[:2], *location[3:])
    for part in location:
        if document.get((*keys, part)) is not NOTHING:
            keys = (*keys, part)
    return keys


def model_at(document: Document, keys: Keys) -> type[BaseModel] | None:
    """The model of the mapping at `keys`, where its keys are fixed."""
    if not keys:
        return SweepFile
    if keys in (("resources",), ("tracking",)):
        return ResourcesKeys if keys == ("resources",) else Tracking
    if len(keys) == 2 and keys[0] == "axes":
        return AXIS_MODELS.get(axis_kind(document.get(keys)) or "")
    if keys == ("search", "target"):
        target = target_type(document.get(keys))
        return target if target and target.model_fields else None
    if keys == ("search", "until"):
        return UntilKeys
    return SearchKeys if keys == ("search",) else None


def names_of(model: type[BaseModel]) -> tuple[str, ...]:
    """A model's keys as the file writes them."""
    return tuple(info.alias or name for name, info in model.model_fields.items())


def valid_values(model: type[BaseModel], name: str) -> str:
    """The valid values of a key, in words."""
    for own, info in model.model_fields.items():
        if name == (info.alias or own) and isinstance(info.json_schema_extra, dict):
            return str(info.json_schema_extra["x-valid"])
    return ""


def _missing(document: Document, keys: Keys) -> None:
    model = model_at(document, keys[:-1])
    valid = valid_values(model, str(keys[-1])) if model else ""
    rule = f"'{keys[-1]}' is missing" + (f": {valid}" if valid else "")
    document.add(keys[:-1], rule, key=len(keys) > 1, next_step=f"add '{keys[-1]}: ...'")


def _unknown(document: Document, keys: Keys) -> None:
    model = model_at(document, keys[:-1])
    valid = names_of(model) if model else ()
    unknown(document, keys, "key", valid)


def unknown(document: Document, keys: Keys, kind: str, valid: tuple[str, ...], *, where: str = "") -> None:
    """Note that the key at `keys` is none of the valid ones."""
    name = str(keys[-1])
    near = nearest(name, valid)
    document.add(
        keys,
        f"unknown {kind} '{name}'{where}",
        key=True,
        choices=valid,
        next_step=f"did you mean '{near}'?" if near else "",
    )


def _bad_axis(document: Document, keys: Keys) -> None:
    """An axis that says not what it is, or is no axis at all."""
    written = document.get(keys)
    kinds = tuple(AXIS_MODELS)
    if isinstance(written, list):
        document.add(keys, f"empty grid: axis '{keys[-1]}' has no values", value=written, next_step="list at least one")
    elif not isinstance(written, dict):
        document.add(
            keys,
            "an axis is a list of values, or a mapping with a scale",
            value=written,
            next_step=f"[{written}] for an axis of one value, or put it under 'fixed:'"
            if written is not None
            else "for example {scale: log, from: 0.1, to: 10, points: 16}",
        )
    elif "scale" in written:
        scale = written["scale"]
        near = nearest(scale, kinds) if isinstance(scale, str) else None
        document.add(
            (*keys, "scale"),
            "unknown scale",
            value=scale,
            choices=kinds,
            next_step=f"did you mean '{near}'?" if near else "",
        )
    else:
        valid = tuple(dict.fromkeys(name for model in AXIS_MODELS.values() for name in names_of(model)))
        strange = [name for name in written if name not in valid]
        for name in strange:
            unknown(document, (*keys, name), "key", valid)
        if not strange:
            document.add(
                keys,
                "'scale' is missing, and so are 'values'",
                key=True,
                choices=kinds,
                next_step="add for example 'scale: log'",
            )


def _bad_value(document: Document, keys: Keys, kind: str) -> None:
    written = document.get(keys)
    owner = next((n for n in range(len(keys) - 1, -1, -1) if model_at(document, keys[:n]) is not None), 0)
    model, name = model_at(document, keys[:owner]), str(keys[owner])
    valid = valid_values(model, name) if model else ""
    if owner + 1 < len(keys):
        valid = {"zip": "the name of an axis", "include": "a number"}.get(name, "a finite number, text, true or false")
        if keys[0] == "zip" and len(keys) == 2:
            valid = "a list of axes"
    empty = "empty grid: " if kind in ("greater_than_equal", "too_short") and name in ("points", "values") else ""
    document.add(
        keys,
        f"{empty}'{'.'.join(map(str, keys[owner:]))}' must be {valid}",
        value=written,
        next_step=_advice(keys[owner:], written, valid),
    )


_EXAMPLES = {
    "name": "my_sweep",
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
    "metric": "final_test_accuracy",
    "level": "0.5",
    "ridge": "final_test_error",
    "points": "16",
    "values": "[1, 2, 3]",
    "from": "1",
    "to": "10",
    "include": "[1]",
    "workers": "2",
    "cpus_per_worker": "1",
    "gpus_per_worker": "1",
    "memory_gb": "4",
    "uri": "sqlite:///mlflow.db",
    "storage": "sqlite:///optuna.db",
    "experiment": "phasefront",
}
"""A valid value of every key that more than a few words can be written at."""


def _advice(keys: Keys, written: object, valid: str) -> str:
    """What to write in place of the value of `keys`, the first of which is a key of the file's own."""
    name = str(keys[0])
    if len(keys) > 1:
        if name == "fixed" and isinstance(written, list | dict):
            return f"'{keys[1]}' varies then: move it to 'axes:'"
        if name in ("fixed", "phases") and len(keys) == 2:
            return "give it one value, or remove it"
    if valid.startswith("text") and isinstance(written, int | float):
        return "put it in quotes"
    if isinstance(written, str):
        near = nearest(written, valid.removeprefix("one of ").split(", ")) if valid.startswith("one of") else None
        if near:
            return f"did you mean '{near}'?"
        if "number" in valid and written.strip().lstrip("+-")[:1].isdecimal():
            return "write it without quotes"
        words = [word for word in ("phase", "auto", "null") if re.search(rf"\b{word}\b", valid)]
        if near := nearest(written, words):
            return f"did you mean '{near}'?"
        if name == "target":
            return f"for a metric write 'target: {{metric: {written}, level: 0.5}}'"
    if len(keys) > 1 or name not in _EXAMPLES:
        return ""
    if isinstance(written, list) and not valid.startswith(("a list", "a mapping")):
        return f"write one value without brackets, for example '{name}: {_EXAMPLES[name]}'"
    return f"write for example '{name}: {_EXAMPLES[name]}'"

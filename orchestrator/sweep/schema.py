"""The sweep file's JSON Schema, by which an editor completes and checks it.

Made from the same models that check the file; for every built-in job it knows the names, types,
ranges and meanings of the parameters and thresholds. Rules that join several values are checked by
the program alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.catalogue import BUILT_IN, load_job
from jobs.job import Job, ParamSpec, specs
from orchestrator.sweep.file import SECTIONS, SweepFile

Schema = dict[str, Any]

_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
_ENVIRONMENT: Schema = {"$ref": "#/$defs/environment"}
_AXIS_MODELS = ("LinearAxis", "LogAxis", "IntegerAxis", "ValuesAxis")
_POINTS_OF_A_GRID: Schema = {
    "if": {
        "not": {
            "anyOf": [
                {
                    "properties": {
                        "search": {
                            "type": "object",
                            "properties": {"kind": {"const": "boundary"}},
                            "required": ["kind"],
                        }
                    },
                    "required": ["search"],
                },
                {"required": ["extends"]},
            ]
        }
    },
    "then": {
        "properties": {
            "axes": {
                "additionalProperties": {
                    "if": {"type": "object", "required": ["from"]},
                    "then": {"required": ["points"]},
                }
            }
        }
    },
}
"""Without a boundary search every axis from here to there says how many points it has."""
_CHANGED_AXIS: Schema = {
    "description": "Changes the axis of the file that this one extends.",
    "type": "object",
    "not": {"anyOf": [{"required": ["scale"]}, {"required": ["values"]}]},
    "properties": {name: {} for name in ("from", "to", "points", "include", "when")},
    "additionalProperties": False,
}
_EXTENDS: Schema = {"required": ["extends"]}
_ALONE: Schema = {
    "if": {"not": _EXTENDS},
    "then": {
        "required": ["job"],
        "properties": {
            "axes": {
                "additionalProperties": {"anyOf": [{"not": {"type": "object"}}, {"not": {"$ref": "#/$defs/changed"}}]}
            }
        },
    },
}
"""A file that extends no other names its job, and describes each axis."""


def sweep_schema(job_names: Iterable[str] = tuple(BUILT_IN)) -> Schema:
    """The schema (draft 2020-12) of a sweep file, with the parameters of these jobs."""
    schema: Schema = _tidy(SweepFile.model_json_schema(by_alias=True, mode="validation"))
    names = tuple(job_names)
    schema["$defs"]["environment"] = {
        "type": "string",
        "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-.*)?\}",
        "description": "A value from the environment: ${NAME} or ${NAME:-default}.",
    }
    properties = schema["properties"]
    properties["job"] = {
        "description": properties["job"]["description"],
        "anyOf": [{"enum": list(names)}, {"type": "string", "pattern": "^[^:]+:[^:]+$"}, _ENVIRONMENT],
    }
    for section in SECTIONS:
        described = properties[section].pop("description")
        properties[section] = {"description": described, "anyOf": [properties[section], {"type": "null"}]}
    schema["$defs"]["changed"] = _CHANGED_AXIS
    axes = properties["axes"]["anyOf"][0]
    axes["additionalProperties"] = {"anyOf": [axes["additionalProperties"], {"$ref": "#/$defs/changed"}]}
    schema["required"] = [name for name in schema["required"] if name != "job"]
    schema["allOf"] = [_ALONE, *(_for_job(name, load_job(name)) for name in names)]
    schema |= _POINTS_OF_A_GRID
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Phasefront sweep", **schema}


def main_text() -> str:
    """What `python -m orchestrator schema` prints: configs/sweep.schema.json."""
    return json.dumps(sweep_schema(), indent=1, ensure_ascii=False) + "\n"


def _tidy(node: Any) -> Any:
    """Pydantic's schema without its own titles and notes; numbers may come from the environment as well."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {
        key: {name: _tidy(value) for name, value in below.items()} if key in ("properties", "$defs") else _tidy(below)
        for key, below in node.items()
        if key not in ("x-valid", "title", "default")
    }
    union = [branch.get("anyOf", [branch])[0] for branch in made.get("anyOf", [])]
    if union[:4] == [{"type": "boolean"}, {"type": "integer"}, {"type": "number"}, {"type": "string"}]:
        made["anyOf"] = [{"type": ["boolean", "number", "string"]}, *made["anyOf"][4:]]
    if made.get("type") in ("integer", "number", "boolean"):
        described = {"description": made.pop("description")} if "description" in made else {}
        return {**described, "anyOf": [made, _ENVIRONMENT]}
    return made


def _for_job(name: str, job: Job[Any]) -> Schema:
    """What the file may hold where `job` is this one."""
    thresholds = specs(job.Thresholds)
    then: Schema = {
        "phases": _values(thresholds),
        "fixed": _values({} if job.open_params else specs(job.Params), is_open=job.open_params),
    }
    if not job.open_params:
        axes = {param: _axis(spec) for param, spec in specs(job.Params).items()}
        then["axes"] = {"type": ["object", "null"], "properties": axes, "additionalProperties": False}
    return {
        "if": {"properties": {"job": {"const": name}}, "required": ["job"]},
        "then": {"properties": then},
    }


def _values(known: Mapping[str, ParamSpec], *, is_open: bool = False) -> Schema:
    properties = {name: {**_described(spec), **_value(spec)} for name, spec in known.items()}
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": is_open}


def _axis(spec: ParamSpec) -> Schema:
    listed = {"type": "array", "minItems": 1, "items": _value(spec)}
    models: list[Schema] = [{"$ref": f"#/$defs/{model}"} for model in _AXIS_MODELS]
    if spec.type in (bool, str):
        models = models[-1:]
    value = _value(spec)
    several: Schema = {"items": value}
    inside = {"values": several, "include": several, "from": value, "to": value}
    return {**_described(spec), "anyOf": [listed, *models], "properties": inside}


def _described(spec: ParamSpec) -> Schema:
    unit = f", in {spec.unit}" if spec.unit else ""
    schema: Schema = {"description": f"{spec.meaning}{unit}. Valid: {spec.describe_range()}."}
    if not spec.required:
        schema["default"] = spec.default
    return schema


def _value(spec: ParamSpec) -> Schema:
    bounds = {
        "minimum": spec.low,
        "maximum": spec.high,
        "exclusiveMinimum": spec.above,
        "exclusiveMaximum": spec.below,
    }
    schema: Schema = {"enum": list(spec.choices)} if spec.choices else {"type": _TYPES[spec.type]}
    schema |= {word: bound for word, bound in bounds.items() if bound is not None}
    return schema if schema.get("type") == "string" else {"anyOf": [schema, _ENVIRONMENT]}

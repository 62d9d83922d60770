"""The JSON Schema agrees with the program on what is valid, and with the committed copy."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from jobs.catalogue import BUILT_IN, load_job
from jobs.job import specs
from orchestrator.sweep.schema import main_text, sweep_schema
from orchestrator.sweep.yaml import read

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

GOOD: dict[str, Any] = {
    "name": "x",
    "job": "grokking",
    "axes": {
        "weight_decay": {"scale": "log", "from": 0.1, "to": 10, "points": 16, "include": [0]},
        "data_fraction": {"scale": "linear", "from": 0.2, "to": 0.9, "points": "${POINTS:-4}"},
        "width": {"scale": "integer", "from": 2, "to": 300, "points": 20},
        "operation": ["add", "divide"],
        "heads": {"values": [1, 4], "when": {"model": ["transformer"]}},
    },
    "zip": [["width", "weight_decay"]],
    "fixed": {"steps": 3000, "label_noise": "${NOISE}"},
    "replicates": 2,
    "phases": {"memorised_accuracy": 0.9},
    "resources": {"workers": "auto", "memory_gb": 2.5, "accelerator_type": "L4", "custom": {"licence": 0.5}},
    "tracking": None,
}


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = sweep_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def changed(*keys: str, to: Any) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    below = data
    for key in keys[:-1]:
        below = below[key]
    below[keys[-1]] = to
    return data


def test_the_committed_schema_is_the_generated_one() -> None:
    command = "python -m orchestrator schema > configs/sweep.schema.json"
    assert (CONFIGS / "sweep.schema.json").read_text() == main_text(), f"run: {command}"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_sweep_file_validates(validator: Any, path: Path) -> None:
    assert [error.message for error in validator.iter_errors(read(path).data)] == []


def test_examples_in_the_documentation_validate(validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(GOOD)] == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("replicats",), 2),
        (("replicates",), 0),
        (("replicates",), "many"),
        (("seed",), True),
        (("job",), "groking"),
        (("axes", "weight_decy"), [1]),
        (("axes", "weight_decay"), []),
        (("axes", "weight_decay"), 3),
        (("axes", "weight_decay"), [-1]),
        (("axes", "weight_decay"), {"values": [-1]}),
        (("axes", "weight_decay"), {"scale": "log", "from": 0, "to": 1, "points": 3}),
        (("axes", "weight_decay"), {"scale": "lin", "from": 0, "to": 1, "points": 3}),
        (("axes", "weight_decay"), {"scale": "linear", "from": 0, "to": 1}),
        (("axes", "weight_decay"), {"scale": "linear", "from": 0, "to": 1, "points": 0}),
        (("axes", "data_fraction"), {"scale": "linear", "from": 0.1, "to": 1, "points": 3}),
        (("axes", "operation"), ["add", "divde"]),
        (("axes", "operation"), {"scale": "linear", "from": 0, "to": 1, "points": 3}),
        (("axes", "heads"), [1.5]),
        (("fixed", "stepz"), 1),
        (("fixed", "steps"), 0),
        (("fixed", "steps"), "many"),
        (("fixed", "model"), "transformr"),
        (("phases", "memorized"), 0.9),
        (("phases", "memorised_accuracy"), 2),
        (("zip",), ["width"]),
        (("resources", "workers"), 0),
        (("resources", "device"), "gpu"),
        (("resources", "accelerator_type"), "nvidia:L4"),
        (("resources", "accelerator_type"), 4090),
        (("resources", "custom"), ["licence"]),
        (("resources", "custom"), {"licence": 0}),
        (("resources", "trial_timeout"), 0),
        (("resources", "trial_timeout"), "0s"),
        (("resources", "trial_timeout"), "0.0 h"),
        (("tracking",), {"patience": "00m"}),
        (("tracking",), {"url": "x"}),
    ],
)
def test_the_schema_refuses_values_that_the_program_refuses(validator: Any, keys: tuple[str, ...], value: Any) -> None:
    assert list(validator.iter_errors(changed(*keys, to=value)))


@pytest.mark.parametrize("value", [0.5, "90s", "0.5 h", "10m", None])
def test_the_schema_accepts_durations(validator: Any, value: Any) -> None:
    assert list(validator.iter_errors(changed("resources", "trial_timeout", to=value))) == []


def test_a_user_defined_job_may_have_any_parameters(validator: Any) -> None:
    data = {"job": "my_package.my_module:MyJob", "axes": {"anything": [1]}, "fixed": {"more": "x"}, "phases": {"p": 1}}
    assert list(validator.iter_errors(data)) == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_parameter_of_a_built_in_job_is_described(name: str) -> None:
    job = load_job(name)
    (rules,) = [
        r["then"]["properties"]
        for r in sweep_schema()["allOf"]
        if r["if"].get("properties", {}).get("job") == {"const": name}
    ]
    for section, params in (("axes", job.Params), ("fixed", job.Params), ("phases", job.Thresholds)):
        for parameter, spec in specs(params).items():
            described = rules[section]["properties"][parameter]
            assert spec.meaning in described["description"]
            assert spec.describe_range() in described["description"]


def test_the_schema_is_plain_json() -> None:
    assert json.loads(main_text()) == sweep_schema()

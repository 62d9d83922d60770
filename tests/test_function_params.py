"""Parameters of a plain function: undeclared ones are plain data of any name, declared ones are checked."""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.catalogue import load_job
from jobs.declared import open_params
from jobs.function import FunctionJob
from jobs.job import Job, JobNotFound, Member, ParamError, Params, as_dict, param
from tests.packing import curves_of


def noisy_decay(params, seed, device, report):  # type: ignore[no-untyped-def]
    """A user's function, without a single annotation."""
    report(1, loss=params["rate"])


@dataclass(frozen=True, kw_only=True)
class DecayParams(Params):
    """A user's own parameters."""

    rate: float = param(0.1, above=0, high=2, meaning="decay")
    steps: int = param(5, low=1, high=1000, meaning="steps")


def declared(params: DecayParams, seed: int, device: str, report: Callable[..., None]) -> None:
    for step in range(params.steps):
        report(step, loss=params.rate / (1 + step))


def annotated_as_text(params: "DecayParams", seed: int, device: str, report: Any) -> None:
    report(1, loss=params.rate)


NOT_CALLABLE = 3


def test_open_parameters_are_plain_data_of_their_own_types() -> None:
    values = {"rate": 1, "name": "x", "flag": True, "decay": 0.5}
    params = FunctionJob(noisy_decay).params_for(values)
    assert as_dict(params) == values
    assert [type(v) for v in as_dict(params).values()] == [int, str, bool, float]
    other = FunctionJob(noisy_decay).params_for({**values, "rate": 1.0})
    assert type(as_dict(other)["rate"]) is float
    assert type(as_dict(params)["rate"]) is int, "an int and a float of one name live side by side"


def test_each_call_of_a_function_gets_a_new_dict() -> None:
    def greedy(params, seed, device, report):  # type: ignore[no-untyped-def]
        params["x"] += 1
        report(1, x=params["x"])

    shared = open_params({"x": 1})
    found = curves_of(FunctionJob(greedy), [Member(params=shared, seed=1), Member(params=shared, seed=2)])
    assert [float(curve.values["x"][0]) for curve in found.values()] == [2.0, 2.0]
    assert as_dict(shared) == {"x": 1}


def test_open_parameters_are_frozen_equal_and_travel() -> None:
    params = open_params({"a": 1, "b": 2.5})
    assert params == open_params({"a": 1, "b": 2.5})
    assert hash(params) == hash(open_params({"a": 1, "b": 2.5}))
    assert params != open_params({"a": 1, "b": 2.0})
    assert pickle.loads(pickle.dumps(params)) == params
    with pytest.raises(AttributeError):
        params.a = 2  # type: ignore[attr-defined]


def test_a_type_is_made_once_for_a_sweep() -> None:
    assert len({type(open_params({"a": k, "b": 0.1 * k})) for k in range(1000)}) == 1


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"a": None}, "a"),
        ({"a": [1]}, "a"),
        ({"a": math.nan}, "a"),
        ({"a": math.inf}, "a"),
        ({"learning-rate": 1}, "learning-rate"),
        ({"lambda": 1}, "lambda"),
        ({"__init__": 1}, "__init__"),
    ],
)
def test_a_value_that_is_no_plain_data_is_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ParamError) as refused:
        open_params(values)
    assert refused.value.name == name


def test_declared_parameters_check_names_and_ranges() -> None:
    job = FunctionJob(declared)
    assert not job.open_params
    assert job.Params is DecayParams
    assert job.params_for({"rate": 1}) == DecayParams(rate=1.0)
    with pytest.raises(ParamError, match="rates"):
        job.params_for({"rates": 1.0})
    with pytest.raises(ParamError, match="rate"):
        job.params_for({"rate": 3.0})
    found = curves_of(job, [Member(params=job.params_for({"rate": 0.5, "steps": 2}), seed=1)])[0]
    assert found.values["loss"].tolist() == [0.5, 0.25]


def test_an_annotation_may_be_text() -> None:
    assert FunctionJob(annotated_as_text).Params is DecayParams


def test_two_functions_do_not_share_their_parameters() -> None:
    assert FunctionJob(declared).Params is DecayParams
    assert FunctionJob(noisy_decay).open_params
    assert Job.open_params is False


def test_a_version_of_the_function_is_the_jobs() -> None:
    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        report(1, x=1)

    assert FunctionJob(train).version == 1
    train.version = 4  # type: ignore[attr-defined]
    assert FunctionJob(train).version == 4
    train.version = "new"  # type: ignore[attr-defined]
    with pytest.raises(JobNotFound, match="whole number"):
        FunctionJob(train)


def test_the_catalogue_wraps_a_function_and_names_what_is_none() -> None:
    job = load_job(f"{__name__}:noisy_decay")
    assert isinstance(job, FunctionJob)
    with pytest.raises(JobNotFound, match=r"has no job 'noise'; it has: .*noisy_decay"):
        load_job(f"{__name__}:noise")
    with pytest.raises(JobNotFound, match="neither a function nor a subclass"):
        load_job(f"{__name__}:NOT_CALLABLE")


def test_a_function_of_other_arguments_is_no_job() -> None:
    with pytest.raises(JobNotFound, match=r"train\(params, seed, device, report\)"):
        FunctionJob(lambda params, seed: None)
    with pytest.raises(JobNotFound, match=r"train\(params, seed, device, report\)"):
        FunctionJob(lambda params, seed, device, report, more: None)


def test_an_annotation_that_cannot_serve_is_refused() -> None:
    @dataclass
    class Bare:
        x: list[int]

    def of_a_bare_class(params, seed, device, report):  # type: ignore[no-untyped-def]
        pass

    of_a_bare_class.__annotations__["params"] = Bare
    with pytest.raises(JobNotFound, match="the type of its parameter 'x' is not known"):
        FunctionJob(of_a_bare_class)
    of_a_bare_class.__annotations__["params"] = "NoSuchName"
    with pytest.raises(JobNotFound, match="NoSuchName"):
        FunctionJob(of_a_bare_class)
    of_a_bare_class.__annotations__["params"] = "dict[str, float]"
    assert FunctionJob(of_a_bare_class).open_params

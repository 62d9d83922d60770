"""How functions declare their parameters, and which of them a function has read."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from jobs.declared import WatchedParams
from jobs.function import FunctionJob
from jobs.job import JobNotFound, Member, ParamError, as_dict, param, specs
from orchestrator.trial import Trial
from tests.packing import curves_of


def by_name(learning_rate=0.1, *, width: int, kind: Literal["sgd", "adam"] = "sgd", seed, report):  # type: ignore[no-untyped-def]
    report(width, loss=learning_rate, seed=seed % 7, adam=kind == "adam")


def with_device(*, noise: int | float = 1, device, seed, report):  # type: ignore[no-untyped-def]
    report(1, loss=noise, on_cpu=device == "cpu")


def any_names(*, seed, report, **params):  # type: ignore[no-untyped-def]
    report(1, total=sum(params.values()))


@dataclass
class Settings:
    width: int
    learning_rate: float = 0.1
    rate: float = param(0.5, low=0, high=1, meaning="share")

    @property
    def product(self) -> float:
        return self.width * self.learning_rate


def of_dataclass(settings: Settings, seed, device, report):  # type: ignore[no-untyped-def]
    report(1, loss=settings.product, rate=settings.rate)


def plain(params, seed, device, report, *, verbose=False):  # type: ignore[no-untyped-def]
    report(1, loss=params["learning_rate"])


def values(job: FunctionJob, **given: Any) -> dict[str, float]:
    curves = curves_of(job, [Member(params=job.params_for(given), seed=9)])[0]
    return {name: float(curve[-1]) for name, curve in curves.values.items()}


def test_arguments_are_parameters_with_the_types_and_defaults_that_they_declare() -> None:
    job = FunctionJob(by_name)
    assert {name: (spec.type, spec.required) for name, spec in specs(job.Params).items()} == {
        "learning_rate": (float, False),
        "width": (int, True),
        "kind": (str, False),
    }
    assert values(job, width=3) == {"loss": 0.1, "seed": 2.0, "adam": 0.0}
    assert values(job, width=3, kind="adam", learning_rate=1)["loss"] == 1.0
    for wrong in ({"width": 3, "rate": 1.0}, {"learning_rate": 0.1}, {"width": 0.5}, {"width": 1, "kind": "sgdd"}):
        with pytest.raises(ParamError):
            job.params_for(wrong)
    for huge in ({"width": 10**400}, {"width": 3, "learning_rate": 10**400}):
        with pytest.raises(ParamError, match="must be a"):
            job.params_for(huge)
    assert values(FunctionJob(with_device)) == {"loss": 1.0, "on_cpu": 1.0}
    assert values(FunctionJob(with_device), noise=2)["loss"] == 2.0


def test_a_function_of_any_names_gets_them_by_name() -> None:
    job = FunctionJob(any_names)
    assert job.open_params
    assert values(job, a=1, b=0.5) == {"total": 1.5}
    with pytest.raises(ParamError, match="seed: is an argument that every trial of this function gets"):
        job.params_for({"a": 1, "seed": 3})


def test_a_plain_dataclass_is_made_of_the_parameters() -> None:
    job = FunctionJob(of_dataclass)
    assert values(job, width=4) == {"loss": pytest.approx(0.4), "rate": 0.5}
    with pytest.raises(ParamError, match="learnig_rate"):
        job.params_for({"width": 4, "learnig_rate": 1.0})
    with pytest.raises(ParamError, match="rate"):
        job.params_for({"width": 4, "rate": 2.0})


def test_a_keyword_after_the_four_arguments_is_no_parameter_so_that_trials_keep_their_ids() -> None:
    job = FunctionJob(plain)
    assert job.open_params
    trial = Trial(job="m:f", job_version=1, params=job.params_for({"learning_rate": 0.5}), replicate=0)
    assert trial.id == "fd0474f8dea98ad637cf146b97391401"


def undeclared(*, learning_rate, seed, report):  # type: ignore[no-untyped-def]
    pass


def listed(*, sizes=(1, 2), seed, report):  # type: ignore[no-untyped-def]
    pass


def of_another_type(*, width: int = 0.5, seed, report):  # type: ignore[no-untyped-def,assignment]
    pass


def of_no_choice(*, kind: Literal["a", "b"] = "c", seed, report):  # type: ignore[no-untyped-def,assignment]
    pass


def mixed(*, kind: Literal["a", 1] = "a", seed, report):  # type: ignore[no-untyped-def]
    pass


def unfinished(*, width: Absent = 3, seed, report):  # type: ignore  # noqa: F821
    pass


def number_first(learning_rate: float, seed, device, report):  # type: ignore[no-untyped-def]
    pass


@dataclass
class Listed:
    sizes: list[int] = field(default_factory=list)


def of_list(settings: Listed, seed, device, report):  # type: ignore[no-untyped-def]
    pass


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (undeclared, "the type of its parameter 'learning_rate' is not known"),
        (listed, "the type of its parameter 'sizes' is not known"),
        (of_another_type, "the default of its parameter 'width' must be of type int"),
        (of_no_choice, "the default of its parameter 'kind' must be one of a, b"),
        (mixed, "the type of its parameter 'kind' is not known"),
        (unfinished, "the annotation 'Absent' of 'width' does not exist"),
        (number_first, "its first argument 'learning_rate' gets all parameters as a dict; to take them by name, put"),
        (of_list, "field 'sizes' of Listed has a default_factory"),
        (lambda width, *, seed: None, "is not a job"),
        (lambda *args, seed, report: None, "is not a job"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_declaration_that_cannot_serve_is_refused(function: Any, said: str) -> None:
    with pytest.raises(JobNotFound, match=said.replace("(", r"\(")):
        FunctionJob(function)


GIVEN = {"a": 1, "b": 2.0, "c": "x"}


@pytest.mark.parametrize(
    ("read", "unread"),
    [
        (lambda p: p["a"], {"b", "c"}),
        (lambda p: p.get("b", 3), {"a", "c"}),
        (lambda p: p.get("d"), {"a", "b", "c"}),
        (lambda p: p.pop("c"), {"a", "b"}),
        (lambda p: "a" in p, {"b", "c"}),
        (lambda p: dict(**p), set()),
        (lambda p: dict(p), set()),
        (lambda p: {**p}, set()),
        (lambda p: list(p), set()),
        (lambda p: p | {"d": 1}, set()),
        (lambda p: {"d": 1} | p, set()),
        (lambda p: p.copy(), set()),
        (lambda p: copy.copy(p), set()),
        (lambda p: copy.deepcopy(p), set()),
        (lambda p: list(p.items()), set()),
        (lambda p: list(p.values()), set()),
        (lambda p: json.dumps(p), set()),
        (lambda p: (lambda a, **rest: rest)(**p), set()),
        (lambda p: None, {"a", "b", "c"}),
    ],
)
def test_what_is_read_of_a_dict_is_noticed_in_every_way_to_read_it(read: Any, unread: set[str]) -> None:
    watched = WatchedParams(GIVEN)
    got, expected = read(watched), read(dict(GIVEN))
    assert got == expected
    assert watched.unread == unread


def test_the_first_trial_of_a_process_is_watched_and_the_others_get_a_plain_dict() -> None:
    kinds: list[type] = []

    def train(params, seed, device, report):  # type: ignore[no-untyped-def]
        kinds.append(type(params))
        report(1, loss=params["rate"])

    job = FunctionJob(train)
    members = [Member(params=job.params_for({"rate": 0.1, "spare": k}), seed=k) for k in range(3)]
    ends = [dict(report.unread) for report in job.train(members, device="cpu") if len(report.finished)]
    assert {k: v for end in ends for k, v in end.items()} == {0: ("spare",)}
    assert kinds == [WatchedParams, dict, dict]
    assert not any(report.unread for report in job.train(members, device="cpu"))
    assert as_dict(members[0].params) == {"rate": 0.1, "spare": 0}

"""`search:` in a sweep file: valid values, their meaning, and messages for mistakes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from jobs.catalogue import BUILT_IN
from orchestrator.errors import UserError
from orchestrator.search.space import Continuous, Listed, Whole
from orchestrator.sweep.schema import sweep_schema
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.yaml import read

JOB = "job: jobs_for_tests:Descent\n"
AXES = """\
axes:
  learning_rate: {scale: log, from: 0.01, to: 1}
  dimension: {scale: integer, from: 1, to: 40}
  model: [plain, heavy]
"""
POINTS = """\
axes:
  learning_rate: {scale: log, from: 0.01, to: 1, points: 5}
  weight_decay: {scale: linear, from: 0, to: 2, points: 3}
"""
SEARCH = "search: {kind: boundary, budget: 50}\n"
SOUGHT = POINTS + "search: {kind: boundary, budget: 9, target: "


def load(tmp_path: Path, text: str, *overrides: str) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(JOB + text)
    return Sweep.load(path, overrides)


def test_axes_without_points_are_searched_in_between(tmp_path: Path) -> None:
    sweep = load(tmp_path, AXES + SEARCH)
    assert sweep.is_search and sweep.is_open
    assert [dict(one.fixed) for one in sweep.slices] == [{"model": "plain"}, {"model": "heavy"}]
    rate, size = sweep.slices[0].coordinates
    assert isinstance(rate, Continuous) and isinstance(size, Whole)
    assert (sweep.most_trials, sweep.trials()) == (50, [])
    sample = sweep.sample(20)
    assert len(sample) == 20
    assert {trial.settings()["model"] for trial in sample} == {"plain", "heavy"}


def test_with_points_the_trials_are_those_of_the_grid(tmp_path: Path) -> None:
    search = load(tmp_path, POINTS + SEARCH)
    grid = load(tmp_path, POINTS)
    assert not search.is_open
    assert {trial.id for trial in search.trials()} == {trial.id for trial in grid.trials()}
    (one,) = search.slices
    assert all(isinstance(coordinate, Listed) for coordinate in one.coordinates)
    x = one.snap(np.random.default_rng(0).random((500, 2)))
    found = [search.trial(one.setting(row), 0) for row in x]
    assert {trial.id for trial in found if trial is not None} == {trial.id for trial in grid.trials()}


def test_a_grid_keeps_its_identity(tmp_path: Path) -> None:
    bare, said = load(tmp_path, POINTS), load(tmp_path, POINTS + "search: {kind: grid}\n")
    assert bare.id == said.id
    assert load(tmp_path, POINTS + "search:\n").id == bare.id


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("search.budget=60", True),
        ("search.batch=8", True),
        ("search.storage=sqlite:///other.db", True),
        ("search.until={uncertain_area: 0.01}", True),
        ("search.start=32", False),
        ("search.seed=7", False),
        ("search.target={metric: final_loss, level: 0.5}", False),
        ("search.kind=grid", False),
        ("axes.learning_rate.to=2", False),
    ],
)
def test_the_target_is_part_of_the_identity_of_a_search_and_the_stopping_rule_is_not(
    tmp_path: Path, override: str, same: bool
) -> None:
    text = POINTS + "search: {kind: boundary, budget: 50}\n"
    overrides = [override]
    if override == "search.kind=grid":
        overrides = ["search={kind: grid}"]
    assert (load(tmp_path, text, *overrides).id == load(tmp_path, text).id) is same


def test_points_make_another_search_than_none(tmp_path: Path) -> None:
    two = AXES.replace("to: 1}", "to: 1, points: 2}").replace("to: 40}", "to: 40, points: 2}")
    assert load(tmp_path, AXES + SEARCH).id != load(tmp_path, two + SEARCH).id


@pytest.mark.parametrize(
    "search",
    [
        "{kind: boundary, budget: 50, seed: 3, batch: 4}",
        "{kind: boundary, until: {uncertain_area: 0.05}, target: {metric: final_loss, level: 0.5}}",
        "{kind: boundary, budget: 9, target: {ridge: final_loss, along: dimension}, storage: 'sqlite:///x.db'}",
    ],
)
def test_the_resolved_file_is_the_same_search(tmp_path: Path, search: str) -> None:
    sweep = load(tmp_path, AXES + f"search: {search}\n")
    again = tmp_path / "again.yaml"
    again.write_text(sweep.resolved_yaml())
    assert Sweep.load(again).id == sweep.id
    assert Sweep.load(again).search == sweep.search


WRONG: dict[str, tuple[str, ...]] = {
    "no end": (AXES + "search: {kind: boundary}", "6:1: a boundary search needs a stopping rule", "add 'budget: 400'"),
    "budget of a grid": (POINTS + "search: {budget: 9}", "'budget' is for a boundary search", "add 'kind: boundary'"),
    "no points in a grid": (AXES, "3:3: 'points' is missing"),
    "unknown key": (POINTS + "search: {kind: boundary, bugdet: 9}", "unknown key 'bugdet'", "did you mean 'budget'?"),
    "unknown kind": (POINTS + "search: {kind: boundry, budget: 9}", "'kind' must be one of grid", "mean 'boundary'?"),
    "zero budget": (
        POINTS + "search: {kind: boundary, budget: 0}",
        "5:34: 'budget' must be a whole number",
        "value: 0",
        "next:  write for example 'budget: 400'",
    ),
    "two budgets": (
        POINTS + "search: {kind: boundary, budget: [20, 30]}",
        "'budget' must be a whole number",
        "next:  write one value without brackets, for example 'budget: 400'",
    ),
    "a bare area": (
        POINTS + "search: {kind: boundary, until: 1.5}",
        "'until' must be {uncertain_area: NUMBER}",
        "next:  write for example 'until: {uncertain_area: 0.01}'",
    ),
    "unknown target": (SOUGHT + "phases}", "'target' must be phase, {metric", "did you mean 'phase'?"),
    "a bare metric": (SOUGHT + "final_loss}", "'target' must be phase", "'target: {metric: final_loss, level: 0.5}'"),
    "misspelt ridge": (SOUGHT + "{rigde: a, along: learning_rate}}", "unknown key 'rigde'", "did you mean 'ridge'?"),
    "a falling axis": (
        "axes: {learning_rate: {scale: log, from: 1, to: 0.1}}\n" + SEARCH,
        "an axis rises: 'from' must be less than 'to' (0.1)",
        "write 'from: 0.1, to: 1",
    ),
    "an axis of one value": (
        "axes: {learning_rate: {scale: log, from: 1, to: 1}}\n" + SEARCH,
        "an axis rises: 'from' must be less than 'to'",
        "or put it under 'fixed:'",
    ),
    "half a level": (SOUGHT + "{metric: a}}", "'level' is missing: a number"),
    "half a ridge": (SOUGHT + "{ridge: a}}", "'along' is missing"),
    "level as text": (
        SOUGHT + "{metric: a, level: x}}",
        "'level' must be a number",
        "value: 'x'",
    ),
    "strange target": (
        SOUGHT + "{metric: a, level: 1, levle: 2}}",
        "unknown key 'levle'",
        "did you mean 'level'?",
    ),
    "along no axis": (
        SOUGHT + "{ridge: a, along: weight_decai}}",
        "'weight_decai' is no axis with a scale everywhere",
        "did you mean 'weight_decay'?",
    ),
    "along a list": (
        AXES + "search: {kind: boundary, budget: 9, target: {ridge: a, along: model}}",
        "'model' is no axis with a scale everywhere",
        "valid: learning_rate, dimension",
    ),
    "area": (
        POINTS + "search: {kind: boundary, until: {uncertain_area: 1}}",
        "'uncertain_area' must be a number > 0 and < 1",
    ),
    "strange until": (
        POINTS + "search: {kind: boundary, until: {area: 1}}",
        "unknown key 'area'",
        "valid: uncertain_area",
    ),
    "no scale": (
        "axes: {model: [plain, heavy]}\n" + SEARCH,
        "has 1 to 4 axes with a scale; it has 0 where model is plain",
    ),
    "a ridge along all": (
        "axes: {weight_decay: {scale: linear, from: 0, to: 1}}\n"
        "search: {kind: boundary, budget: 9, target: {ridge: a, along: weight_decay}}",
        "has 2 to 4 axes with a scale; it has 1",
    ),
    "fewer trials than slices": (
        AXES + "search: {kind: boundary, budget: 1}",
        "there are 2 slices",
        "raise the budget",
    ),
    "include": (
        "axes: {weight_decay: {scale: log, from: 1, to: 9, include: [0]}}\n" + SEARCH,
        "'include' requires 'points'",
    ),
    "condition": (
        AXES + "  steps: {values: [1, 2], when: {dimension: 4}}\n" + SEARCH,
        "its condition is on 'dimension', which a boundary search varies",
    ),
    "half zipped": (
        "axes:\n  weight_decay: {scale: linear, from: 0, to: 1}\n"
        "  learning_rate: {scale: log, from: 0.1, to: 1, points: 2}\nzip: [[weight_decay, learning_rate]]\n" + SEARCH,
        "either all of the zipped axes have points, or none of them",
    ),
    "half zipped, of another length": (
        "axes:\n  weight_decay: {scale: linear, from: 0, to: 1}\n"
        "  learning_rate: {scale: log, from: 0.1, to: 1, points: 3}\nzip: [[weight_decay, learning_rate]]\n" + SEARCH,
        "either all of the zipped axes have points, or none of them",
    ),
    "one database": (
        POINTS
        + "search: {kind: boundary, budget: 9, storage: 'sqlite:///mlflow.db'}\ntracking: {uri: 'sqlite:///mlflow.db'}",
        "the study needs its own database",
    ),
    "out of range": (
        "axes: {dimension: {scale: integer, from: 1, to: 101}}\n" + SEARCH,
        "'dimension' must be a whole number",
        "value: 101",
    ),
    "inside": (
        "axes: {dimension: {scale: integer, from: 2, to: 40}}\nfixed: {heads: 2}\n" + SEARCH,
        "'heads' must divide dimension",
    ),
}


@pytest.mark.parametrize(("text", "said"), [(text, said) for text, *said in WRONG.values()], ids=list(WRONG))
def test_a_mistake_is_said_with_its_place(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert caught.value.text.startswith(str(tmp_path))
    for words in said:
        assert words in caught.value.text


@pytest.mark.parametrize(
    ("search", "meant"),
    [
        ("until: {uncertan_area: .1}", "uncertain_area"),
        ("budget: 9, target: {metrc: a, levle: 1}", "metric"),
        ("budget: 9, target: {rigde: a, along: learning_rate}", "ridge"),
        ("budget: 9, target: {rigde: a}", "ridge"),
    ],
)
def test_what_is_misspelt_comes_first_and_is_not_missing_too(tmp_path: Path, search: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, AXES + f"search: {{kind: boundary, {search}}}\n")
    said = [mistake for mistake in caught.value.mistakes if f"did you mean '{meant}'?" in mistake.next_step]
    assert len(said) == 1
    assert f"'{meant}' is missing" not in caught.value.text


@pytest.mark.parametrize("job", sorted(BUILT_IN))
def test_a_metric_that_no_trial_of_a_built_in_job_has_is_refused_before_anything_runs(tmp_path: Path, job: str) -> None:
    params = {"ridge": "weight_decay: {scale: log, from: 0.1, to: 1}, noise_variance: {scale: linear, from: 0, to: 1}"}
    axes = params.get(job, "weight_decay: {scale: log, from: 0.1, to: 1}, init_scale: {scale: log, from: 1, to: 8}")
    path = tmp_path / "it.yaml"
    sought = "level: 0.5" if job == "grokking" else "along: " + axes.partition(":")[0]
    kind = "metric" if job == "grokking" else "ridge"
    text = f"job: {job}\naxes: {{{axes}}}\nsearch: {{kind: boundary, budget: 9, target: {{{kind}: NAME, {sought}}}}}\n"
    path.write_text(text.replace("NAME", "final_test_los"))
    with pytest.raises(UserError) as caught:
        Sweep.load(path)
    (mistake,) = caught.value.mistakes
    assert mistake.place == f"{path}:3:{text.splitlines()[2].index('NAME') + 1}"
    assert mistake.rule == f"job '{job}' has no observation 'final_test_los'"
    assert mistake.value == "final_test_los"
    assert "final_test_loss" in mistake.choices
    assert mistake.next_step == "did you mean 'final_test_loss'?"
    for name in mistake.choices:
        path.write_text(text.replace("NAME", str(name)))
        assert Sweep.load(path).metric_place == mistake.place


def test_a_metric_that_an_option_adds_may_be_looked_for_with_it(tmp_path: Path) -> None:
    path = tmp_path / "it.yaml"
    path.write_text(
        "job: grokking\naxes: {weight_decay: {scale: log, from: 0.1, to: 1}}\n"
        "search: {kind: boundary, budget: 9, target: {metric: final_gradient_norm, level: 0.5}}\n"
    )
    with pytest.raises(UserError, match="has no observation 'final_gradient_norm'"):
        Sweep.load(path)
    assert Sweep.load(path, ["fixed.progress=basic"]).is_search
    assert Sweep.load(path, ["axes.progress=[none, basic]"]).is_search


def test_a_metric_and_its_final_value_are_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_function.py").write_text("def train(params, seed, device, report):\n    report(1, loss=1.0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "it.yaml"
    path.write_text(
        "job: plain_function:train\naxes: {lr: {scale: log, from: 0.1, to: 1}}\n"
        "search: {kind: boundary, budget: 9, target: {metric: loss, level: 0.5}}\n"
    )
    sweep, full = Sweep.load(path), Sweep.load(path, ["search.target={metric: final_loss, level: 0.5}"])
    assert sweep.search == full.search
    assert sweep.id == full.id
    assert "metric: final_loss" in sweep.resolved_yaml()
    path.write_text(
        "job: grokking\naxes: {weight_decay: {scale: log, from: 0.1, to: 1}}\n"
        "search: {kind: boundary, budget: 9, target: {metric: test_accuracy, level: 0.5}}\n"
    )
    assert Sweep.load(path).id == Sweep.load(path, ["search.target.metric=final_test_accuracy"]).id


def test_a_search_for_where_a_function_diverges_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search without `phases` and `target` has the id of before; it is refused unless its file says what it means."""
    (tmp_path / "plain_function.py").write_text("def train(params, seed, device, report):\n    report(1, loss=1.0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "it.yaml"
    path.write_text(
        "job: plain_function:train\naxes: {lr: {scale: log, from: 0.1, to: 1}}\nsearch: {kind: boundary, budget: 9}\n"
    )
    sweep = Sweep.load(path)
    with pytest.raises(UserError, match="every trial has the label 'finished', unless it diverges") as caught:
        sweep.stop_if_refused()
    assert "add 'phases: {metric: NAME, level: NUMBER}'" in caught.value.text
    assert Sweep.load(path, ["search.target=phase"]).id == "7b7f23e5ff26b1e24b0e943fb1fc0714"
    assert Sweep.load(path, ["phases={metric: loss, level: 0.5}"]).is_search


def test_a_user_defined_job_may_have_observations_that_are_not_known_in_advance(tmp_path: Path) -> None:
    sweep = load(tmp_path, AXES + "search: {kind: boundary, budget: 9, target: {metric: peak, level: 0.5}}\n")
    assert sweep.metric_place.endswith(":6:54")


@pytest.mark.parametrize("text", [AXES + SEARCH, POINTS, POINTS + "search: {kind: grid}\n", POINTS + SEARCH])
def test_the_schema_accepts_values_that_the_program_accepts(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)
    data: Any = read(tmp_path / "sweep.yaml", (), {}).data
    jsonschema.Draft202012Validator(json.loads(json.dumps(sweep_schema()))).validate(data)


@pytest.mark.parametrize("text", [AXES, POINTS + "search: {kind: boundry}\n", POINTS + "search: {target: 3}\n"])
def test_the_schema_refuses_searches_that_the_program_refuses(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError):
        load(tmp_path, text)
    data: Any = read(tmp_path / "sweep.yaml", (), {}).data
    assert not jsonschema.Draft202012Validator(sweep_schema()).is_valid(data)

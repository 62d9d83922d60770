"""A sweep: the trials that a file defines, and its identity."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.job import as_dict
from orchestrator.sweep.file import Resources
from orchestrator.sweep.sweep import Sweep

JOB = "jobs_for_tests:Descent"
OTHER = {"name": "it", "seed": 3, "replicates": 2, "fixed": {"steps": 7}}

AXES: dict[str, st.SearchStrategy[list[Any]]] = {
    "dimension": st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True),
    "learning_rate": st.lists(st.floats(0.01, 10), min_size=1, max_size=4, unique=True),
    "weight_decay": st.lists(st.floats(0, 100), min_size=1, max_size=4, unique=True),
    "nesterov": st.lists(st.booleans(), min_size=1, unique=True),
    "model": st.lists(st.sampled_from(["plain", "heavy", "transformer"]), min_size=1, unique=True),
    "label": st.lists(st.text("ab${}:'\" #", max_size=5), min_size=1, max_size=4, unique=True),
}


def axis_sets(*names: str) -> st.SearchStrategy[dict[str, list[Any]]]:
    return st.fixed_dictionaries({}, optional={name: AXES[name] for name in names or AXES})


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("sweeps") / "it.yaml"

    def load(data: dict[str, Any] | str, overrides: Sequence[str] = (), **environ: str) -> Sweep:
        if isinstance(data, dict):
            data = yaml.safe_dump({"job": JOB, **data}, sort_keys=False).replace("${", "$${")
        path.write_text(data)
        return Sweep.load(path, overrides, environ)

    return load


def settings(sweep: Sweep, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(trial.params, name) for name in names) for trial in sweep.first]


@given(axes=axis_sets(), replicates=st.integers(1, 3))
def test_crossed_axes_expand_to_their_product_without_duplicates(
    load: Any, axes: dict[str, list[Any]], replicates: int
) -> None:
    trials = load({"axes": axes, "replicates": replicates}).trials()
    assert len(trials) == replicates * math.prod(map(len, axes.values()))
    assert len({trial.id for trial in trials}) == len(trials)
    expected = {*itertools.product(*axes.values(), range(replicates))}
    assert {(*(getattr(t.params, name) for name in axes), t.replicate) for t in trials} == expected


@given(
    pairs=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=8),
    other=AXES["nesterov"],
)
def test_zipped_axes_expand_to_their_distinct_pairs(load: Any, pairs: list[tuple[int, int]], other: list[bool]) -> None:
    axes = {"steps": [a for a, _ in pairs], "weight_decay": [b for _, b in pairs], "nesterov": other}
    sweep = load({"axes": axes, "zip": [["steps", "weight_decay"]]})
    assert len(sweep.trials()) == len(set(pairs)) * len(other)
    assert set(settings(sweep, "steps", "weight_decay")) == set(pairs)
    assert [len(axis.values) for axis in sweep.axes[:2]] == [len(pairs)] * 2


@given(models=AXES["model"], labels=AXES["label"], among=AXES["model"], fixed=st.booleans())
def test_a_conditional_axis_takes_its_fixed_or_default_value_elsewhere(
    load: Any, models: list[str], labels: list[str], among: list[str], fixed: bool
) -> None:
    among = [*among, models[0]]
    axes = {"label": {"values": labels, "when": {"model": among}}, "model": models}
    sweep = load({"axes": axes, "fixed": {"label": "elsewhere"} if fixed else {}})
    elsewhere = "elsewhere" if fixed else ""
    expected = {(m, label) for m in models for label in (labels if m in among else [elsewhere])}
    assert sorted(settings(sweep, "model", "label")) == sorted(expected)


def test_what_zipped_conditions_make_alike_is_one_trial(load: Any) -> None:
    axes = {
        "label": {"values": ["a", "b", "c"], "when": {"model": "heavy"}},
        "weight_decay": [1, 1, 2],
        "model": ["plain", "heavy"],
    }
    sweep = load({"axes": axes, "zip": [["label", "weight_decay"]]})
    found = settings(sweep, "model", "label", "weight_decay")
    assert sorted(found) == [
        ("heavy", "a", 1),
        ("heavy", "b", 1),
        ("heavy", "c", 2),
        ("plain", "", 1),
        ("plain", "", 2),
    ]


def test_a_condition_sees_other_axes_fixed_parameters_and_defaults(load: Any) -> None:
    for when in ({"steps": [1, 2]}, {"steps": 1, "dimension": 4}, {"dimension": [4]}, {"model": "plain", "label": "x"}):
        axes = {"weight_decay": {"values": [1, 2], "when": when}, "steps": [1, 9]}
        sweep = load({"axes": axes, "fixed": {"label": "x"}})
        assert len(sweep.trials()) == (3 if "steps" in when else 4)


def test_values_have_the_type_of_their_parameter(load: Any) -> None:
    sweep = load({"axes": {"steps": [1.0, 2], "weight_decay": [1, 0]}, "fixed": {"learning_rate": 1}})
    assert settings(sweep, "steps", "weight_decay") == [(1, 1.0), (1, 0.0), (2, 1.0), (2, 0.0)]
    assert {type(v) for axis in sweep.axes for v in axis.values} == {int, float}
    assert type(sweep.fixed["learning_rate"]) is float


def test_a_value_written_twice_is_one_value(load: Any) -> None:
    assert load({"axes": {"weight_decay": [1, 1.0, 2]}}).axes[0].values == (1.0, 2.0)


def test_a_range_axis_has_the_documented_points(load: Any) -> None:
    sweep = load(
        "job: jobs_for_tests:Descent\naxes:\n"
        "  weight_decay: {scale: log, from: 0.1, to: 10, points: 3, include: [0]}\n"
        "  learning_rate: {scale: linear, from: 1e-1, to: 0.5, points: 5}\n"
        "  steps: {scale: integer, from: 1, to: 4, points: 20}\n"
        "  nesterov: [true, false]\n"
    )
    assert [(axis.name, axis.scale, axis.values) for axis in sweep.axes] == [
        ("weight_decay", "log", (0.0, 0.1, 1.0, 10.0)),
        ("learning_rate", "linear", (0.1, 0.2, 0.3, 0.4, 0.5)),
        ("steps", "integer", (1, 2, 3, 4)),
        ("nesterov", "values", (True, False)),
    ]


def test_without_axes_there_are_replicates_alone(load: Any) -> None:
    for text in ("", "axes:\n", "axes: {}\nfixed:\nzip:\nphases:\nresources:\ntracking:\n"):
        sweep = load(f"job: {JOB}\nreplicates: 3\n" + text)
        assert [trial.replicate for trial in sweep.trials()] == [0, 1, 2]


def test_replicates_share_their_parameters_and_differ_in_their_seeds(load: Any) -> None:
    trials = load({"axes": {"weight_decay": [1, 2]}, "replicates": 3}).trials()
    assert len({id(trial.params) for trial in trials}) == 2
    assert len({trial.seed for trial in trials[:3]}) == 3
    assert [trial.seed for trial in trials[:3]] == [trial.seed for trial in trials[3:]]


def test_defaults_are_those_of_the_documentation(load: Any) -> None:
    sweep = load(f"job: {JOB}\n")
    assert (sweep.name, sweep.replicates, sweep.seed) == ("it", 1, 0)
    assert sweep.resources == Resources()
    assert (sweep.resources.workers, sweep.resources.device, sweep.resources.cpus_per_worker) == (None, "auto", 1.0)
    assert (sweep.tracking.uri, sweep.tracking.experiment) == ("sqlite:///mlflow.db", "phasefront")
    assert sweep.tracking.artifacts is None
    assert sweep.output == Path("phasefront-out/it")


def test_resources_and_tracking_are_read(load: Any) -> None:
    resources = {"workers": 3, "device": "cpu", "cpus_per_worker": 0.5, "gpus_per_worker": 0.25, "memory_gb": 2}
    sweep = load({"resources": resources, "tracking": {"uri": "u", "experiment": "e", "artifacts": "a"}, "output": "o"})
    assert sweep.resources == Resources(
        workers=3, device="cpu", cpus_per_worker=0.5, gpus_per_worker=0.25, memory_gb=2.0
    )
    assert (sweep.tracking.uri, sweep.tracking.experiment, sweep.tracking.artifacts) == ("u", "e", "a")
    assert sweep.output == Path("o")


def test_accelerators_and_custom_resources_are_read_and_change_no_trial(load: Any) -> None:
    asked = {"accelerator_type": "L4", "custom": {"licence": 2, "scratch": 0.5}}
    sweep, plain = load({"resources": asked}), load({})
    assert (sweep.resources.accelerator_type, sweep.resources.custom) == ("L4", {"licence": 2, "scratch": 0.5})
    assert (plain.resources.accelerator_type, plain.resources.custom) == (None, {})
    assert [trial.id for trial in sweep.trials()] == [trial.id for trial in plain.trials()]
    assert sweep.id == plain.id
    assert load(sweep.resolved_yaml()).resources == sweep.resources
    assert "accelerator" not in plain.resolved_yaml() and "custom" not in plain.resolved_yaml(), "as recorded before"


def test_thresholds_are_the_files_over_the_jobs(load: Any) -> None:
    plain, set_, same = load({}), load({"phases": {"far_loss": 5}}), load({"phases": {"far_loss": 1}})
    assert as_dict(set_.thresholds()) == {"arrived_loss": 0.1, "far_loss": 5.0}
    assert plain.thresholds_fingerprint() == same.thresholds_fingerprint() != set_.thresholds_fingerprint()
    assert {t.id for t in plain.trials()} == {t.id for t in set_.trials()}


def test_the_same_file_gives_the_same_sweep(load: Any) -> None:
    first, second = load(OTHER), load(OTHER)
    assert first == second
    assert first.id == second.id
    assert len(first.id) == 32
    assert [t.id for t in first.trials()] == [t.id for t in second.trials()]


@pytest.mark.parametrize("key", [*OTHER, "axes", "job"])
def test_a_change_of_trials_or_name_changes_the_identity(load: Any, key: str) -> None:
    new = {
        "name": "other",
        "seed": 4,
        "replicates": 5,
        "fixed": {"steps": 8},
        "axes": {"steps": [7]},
        "job": "jobs_for_tests:train",
    }
    changed = {**OTHER, key: new[key]}
    if key == "axes":
        del changed["fixed"]
    assert load(changed).id != load(OTHER).id


@pytest.mark.parametrize(
    "override",
    ["resources.workers=2", "tracking.uri=x", "output=x", "phases.far_loss=9", "fixed.steps=7.0", "axes={}"],
)
def test_a_change_that_affects_no_trial_keeps_the_identity(load: Any, override: str) -> None:
    assert load(OTHER, [override]).id == load(OTHER).id


def test_trials_of_two_sweeps_with_equal_content_are_equal(load: Any) -> None:
    wide = load({"name": "a", "axes": {"steps": [5, 6, 7], "weight_decay": [0, 1]}})
    narrow = load({"name": "b", "axes": {"weight_decay": [1]}, "fixed": {"steps": 6}})
    assert {t.id for t in narrow.trials()} < {t.id for t in wide.trials()}


@given(
    axes=axis_sets("nesterov", "model", "label", "weight_decay"),
    rate=st.floats(1e-6, 1),
    points=st.integers(1, 9),
    name=st.text("ab ${}:'\"#-~é", min_size=1, max_size=8),
)
def test_the_resolved_file_is_the_same_sweep(
    load: Any, axes: dict[str, Any], rate: float, points: int, name: str
) -> None:
    axes["learning_rate"] = {"scale": "log", "from": rate, "to": 1.0, "points": points, "include": [2]}
    axes["dimension"] = {
        "scale": "integer",
        "from": 1,
        "to": 3,
        "points": points,
        "when": {"model": ["heavy", "plain"]},
    }
    fixed = {} if "model" in axes else {"model": "heavy"}
    if "model" in axes:
        axes["model"] = sorted({*axes["model"], "plain"})
    sweep = load({"name": name, "axes": axes, "fixed": fixed, "replicates": 2, "phases": {"far_loss": 3}})
    again = load(sweep.resolved_yaml())
    assert again.id == sweep.id
    assert again.axes == sweep.axes
    assert [t.id for t in again.trials()] == [t.id for t in sweep.trials()]
    assert again.resolved_yaml() == sweep.resolved_yaml()


def test_the_resolved_file_holds_overrides_and_environment_but_no_password(load: Any) -> None:
    text = f"job: {JOB}\nseed: ${{SEED}}\ntracking: {{uri: 'postgresql://me:${{PASSWORD}}@host:5432/db'}}\n"
    sweep = load(text, ["replicates=4"], SEED="8", PASSWORD="s3:cr@t")
    assert sweep.tracking.uri == "postgresql://me:s3:cr@t@host:5432/db"
    resolved = yaml.safe_load(sweep.resolved_yaml())
    assert (resolved["seed"], resolved["replicates"]) == (8, 4)
    assert resolved["tracking"]["uri"] == "postgresql://me:${PASSWORD}@host:5432/db"
    assert load(sweep.resolved_yaml(), PASSWORD="s3:cr@t").tracking.uri == sweep.tracking.uri


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:///a@b.db", "sqlite:///a@b.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:a/b@c@host/db", "postgresql://me:***@host/db"),
        ("https://me:secret@host/x", "https://me:***@host/x"),
        ("postgresql:///db?user=me&password=secret&x=1", "postgresql:///db?user=me&password=***&x=1"),
    ],
)
def test_passwords_are_left_out_however_they_are_written(load: Any, uri: str, shown: str) -> None:
    resolved = load({"tracking": {"uri": uri}}).resolved_yaml()
    assert yaml.safe_load(resolved)["tracking"]["uri"] == shown


def test_the_process_environment_is_read_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "it.yaml").write_text(f"job: {JOB}\nseed: ${{PHASEFRONT_TEST_SEED}}\n")
    monkeypatch.setenv("PHASEFRONT_TEST_SEED", "12")
    assert Sweep.load(tmp_path / "it.yaml").seed == 12


def test_a_plain_function_takes_any_parameters(load: Any) -> None:
    axes = {"rate": [0.1, 0.2], "kind": ["a", "b"], "depth": {"values": [1, 2], "when": {"kind": "b"}}}
    sweep = load({"job": "jobs_for_tests:train", "axes": axes, "fixed": {"flag": True}, "replicates": 2})
    found = [trial.settings() for trial in sweep.first]
    assert len(sweep.trials()) == 2 * (2 + 4)
    assert {"rate": 0.1, "kind": "a", "flag": True} in found
    assert {"rate": 0.2, "kind": "b", "depth": 2, "flag": True} in found


def test_a_zipped_axis_may_fall(load: Any) -> None:
    sweep = load(
        "job: jobs_for_tests:Descent\naxes:\n"
        "  learning_rate: {scale: log, from: 0.1, to: 10, points: 3}\n"
        "  weight_decay: {scale: log, from: 10, to: 0.1, points: 3}\n"
        "zip: [[learning_rate, weight_decay]]\n"
    )
    assert settings(sweep, "learning_rate", "weight_decay") == [(0.1, 10.0), (1.0, 1.0), (10.0, 0.1)]


def test_an_overridden_number_of_points_is_a_finer_axis(load: Any) -> None:
    text = f"job: {JOB}\naxes:\n  weight_decay: {{scale: log, from: 1, to: 9, points: 3}}\n"
    assert len(load(text).trials()) == 3
    assert len(load(text, ["axes.weight_decay.points=48", "replicates=2"]).trials()) == 96

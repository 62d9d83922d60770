"""`extends:` joins two sweep files, and a run trains the difference only."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from recorded_sweeps import recorded_folder

from jobs.catalogue import load_job
from orchestrator.audit import digests
from orchestrator.cli import main
from orchestrator.commands import extending
from orchestrator.commands.wiring import open_tracker, sweep_record
from orchestrator.dispatch.source import source_of
from orchestrator.errors import UserError
from orchestrator.sweep.schema import sweep_schema
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.yaml import read

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, when it is imported here

BASE = """\
name: first
job: grokking
axes:
  weight_decay: {scale: log, from: 0.1, to: 10, points: 3, include: [0]}
  data_fraction: {scale: linear, from: 0.25, to: 0.85, points: 3}
  operation: [add, multiply]
zip: []
fixed: {steps: 30, width: 8, modulus: 7}
replicates: 2
phases: {grokking_gap: 100}
tracking: {uri: "sqlite:///a.db", experiment: x}
output: out/first
"""


def loaded(folder: Path, text: str, *overrides: str, base: str = BASE) -> Sweep:
    (folder / "base.yaml").write_text(base)
    (folder / "more.yaml").write_text(text)
    return Sweep.load(folder / "more.yaml", overrides, {})


def mistakes(folder: Path, text: str, *overrides: str, base: str = BASE) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder, text, *overrides, base=base)
    return caught.value.text.replace(f"{folder}/", "")


def test_what_is_not_set_is_that_of_the_other_file_but_for_name_and_output(tmp_path: Path) -> None:
    more = loaded(tmp_path, "extends: base.yaml\nreplicates: 3\nfixed: {width: 16}\n")
    base = Sweep.load(tmp_path / "base.yaml", environ={})
    assert (more.name, str(more.output), more.replicates) == ("more", "phasefront-out/more", 3)
    assert more.fixed == {"steps": 30, "width": 16, "modulus": 7} and more.axes == base.axes
    assert more.tracking == base.tracking and more.thresholds() == base.thresholds()


def test_an_extended_sweep_is_the_sweep_written_in_full(tmp_path: Path) -> None:
    more = loaded(tmp_path, "name: first\nextends: base.yaml\naxes: {weight_decay: {points: 5}}\nreplicates: 3\n")
    (tmp_path / "full.yaml").write_text(BASE.replace("points: 3, i", "points: 5, i").replace("cates: 2", "cates: 3"))
    full = Sweep.load(tmp_path / "full.yaml", environ={})
    assert (more.id, more.trials()) == (full.id, full.trials())
    (tmp_path / "resolved.yaml").write_text(more.resolved_yaml())
    assert Sweep.load(tmp_path / "resolved.yaml", environ={}).id == more.id  # without the other file
    shared = {t.id for t in more.trials()} & {t.id for t in Sweep.load(tmp_path / "base.yaml", environ={}).trials()}
    assert len(shared) == 4 * 3 * 2 * 2  # all of the first grid


def test_an_axis_with_a_scale_or_a_list_replaces_the_other_one(tmp_path: Path) -> None:
    changed = "{weight_decay: [1, 2], data_fraction: {scale: linear, from: 0.5, to: 0.6, points: 2}}"
    text = f"extends: base.yaml\naxes: {changed}\n"
    values = {axis.name: axis.values for axis in loaded(tmp_path, text).axes}
    assert values == {"weight_decay": (1.0, 2.0), "data_fraction": (0.5, 0.6), "operation": ("add", "multiply")}


def test_a_parameter_moves_between_fixed_and_axes(tmp_path: Path) -> None:
    more = loaded(tmp_path, "extends: base.yaml\nfixed: {weight_decay: 1}\naxes: {steps: [10, 20]}\n")
    assert [axis.name for axis in more.axes] == ["data_fraction", "operation", "steps"]
    assert more.fixed == {"width": 8, "modulus": 7, "weight_decay": 1.0}


def test_a_conditional_axis_of_the_other_file_keeps_its_fixed_value(tmp_path: Path) -> None:
    base = BASE.replace("fixed: {", "fixed: {momentum: 0.5, ").replace(
        "  operation",
        "  momentum: {values: [0.1, 0.9], when: {optimiser: sgd}}\n  optimiser: [adamw, sgd]\n  operation",
    )
    assert loaded(tmp_path, "extends: base.yaml\n", base=base).axes == Sweep.load(tmp_path / "base.yaml").axes


def test_files_extend_each_other_in_a_row_and_relative_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "third.yaml").write_text("extends: ../more.yaml\nseed: 3\naxes:\n")
    loaded(tmp_path, "extends: ./base.yaml\nreplicates: 4\n")
    third = Sweep.load(tmp_path / "deep" / "third.yaml", environ={})
    assert (third.seed, third.replicates, len(third.axes)) == (3, 4, 3)
    assert [base.name for base in extending.ancestors(third)] == ["more", "first"]


def test_a_search_of_the_other_kind_replaces_all_of_it(tmp_path: Path) -> None:
    base = BASE + "search: {kind: boundary, budget: 20, start: 8}\n"
    assert loaded(tmp_path, "extends: base.yaml\nsearch: {budget: 40}\n", base=base).search.start == 8
    assert not loaded(tmp_path, "extends: base.yaml\nsearch: {kind: grid}\n", base=base).is_search


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("extends: bose.yaml\n", "more.yaml:1:10: there is no such file\n  value: 'bose.yaml'\n"),
        ("extends: bose.yaml\n", "next:  did you mean 'base.yaml'?"),
        ("extends: more.yaml\n", "more.yaml:1:10: these files extend each other in a circle: more.yaml -> more.yaml"),
        ("extends: [base.yaml]\n", "more.yaml:1:10: 'extends' must be a path relative to this file"),
        ("extends: base.yaml\naxes: {weight_decay: {points: 0}}", "more.yaml:2:31: empty grid: 'points' must be"),
        ("extends: base.yaml\naxes: {width: {points: 4}}", "more.yaml:2:8: 'scale' is missing"),
    ],
)
def test_a_mistake_has_its_place(tmp_path: Path, text: str, says: str) -> None:
    assert says in mistakes(tmp_path, text)


def test_a_mistake_of_the_other_file_has_its_place_there(tmp_path: Path) -> None:
    base = BASE.replace("replicates: 2", "replicates: ${NONE}\nsede: 3")
    said = mistakes(tmp_path, "extends: base.yaml\n", base=base)
    assert "base.yaml:9:13: the environment variable NONE is not set" in said and "base.yaml:10:1: unknown key" in said
    said = mistakes(tmp_path, "extends: base.yaml\nreplicates: 3\n", base=base)
    assert "NONE" not in said and "base.yaml:10:1: unknown key 'sede'" in said
    (tmp_path / "base.yaml").write_text("extends: more.yaml\n")
    with pytest.raises(UserError, match=r"base.yaml:1:10: .* circle: more.yaml -> base.yaml -> more.yaml"):
        Sweep.load(tmp_path / "more.yaml")
    said = mistakes(tmp_path, "extends: base.yaml\n", "extends=other.yaml")
    assert "--set extends=other.yaml: 'extends' is written in the file" in said


def test_the_schema_knows_what_a_file_that_extends_may_leave_out() -> None:
    validator = jsonschema.Draft202012Validator(sweep_schema())

    def valid(**data: object) -> bool:
        return not list(validator.iter_errors(data))

    assert valid(extends="base.yaml", axes={"weight_decay": {"points": 5}})
    assert valid(extends="base.yaml", axes={"weight_decay": {"from": 0.01}}, search=None)
    assert not valid(axes={"weight_decay": [1]})  # no job
    assert not valid(job="m:f", axes={"weight_decay": {"points": 5}})
    assert not valid(extends="base.yaml", axes={"weight_decay": {"pionts": 5}})
    assert not valid(extends=3)


# --- runs ---

JOB = """\
from pathlib import Path

def train(params, seed, device, report):
    with Path("trained.txt").open("a") as file:
        file.write(f"{params['rate']:g} {seed}\\n")
    for step in range(1, params["steps"] + 1):
        report(step, loss=params["rate"] / step, **({"odd": float("nan")} if step % 2 else {}))
    return {"gain": params["rate"] * (1 + seed % 7)}
"""
FIRST = """\
name: first
job: mine:train
axes: {rate: [0.1, 0.2]}
fixed: {steps: 4}
replicates: 2
phases: {metric: loss, level: 0.03}
tracking: {uri: "sqlite:///a.db", experiment: one}
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first sweep has run."""
    folder = tmp_path_factory.mktemp("extends")
    (folder / "mine.py").write_text(JOB)
    (folder / "first.yaml").write_text(FIRST)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        in_folder(patch)
        assert main(["run", "first.yaml", "--inline", "--quiet", "--no-map"]) == 0
    return folder


def in_folder(patch: pytest.MonkeyPatch) -> None:
    """Load `mine` of the current folder anew."""
    patch.setattr(sys, "path", [str(Path.cwd()), *sys.path])
    patch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("mine", None)  # not through `patch`, which would put the module back at the end
    load_job.cache_clear()
    source_of.cache_clear()


@pytest.fixture
def desk(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    in_folder(monkeypatch)
    yield tmp_path
    in_folder(monkeypatch)


def trained() -> list[str]:
    return sorted(Path("trained.txt").read_text().splitlines())


def ran(*arguments: str) -> int:
    return main(["run", "more.yaml", "--inline", "--quiet", "--no-map", *arguments])


ELSEWHERE = ["{uri: 'sqlite:///a.db', experiment: two}", "{uri: 'sqlite:///b.db'}"]


@pytest.mark.parametrize("tracking", ["{}", ELSEWHERE[1]], ids=["same", "another"])
def test_only_the_difference_is_trained_and_the_record_is_consistent(
    desk: Path, capsys: pytest.CaptureFixture[str], tracking: str
) -> None:
    Path("more.yaml").write_text(
        f"extends: first.yaml\naxes: {{rate: [0.1, 0.15, 0.2]}}\nreplicates: 3\ntracking: {tracking}\n"
    )
    before = trained()
    where = "" if tracking == "{}" else " (sqlite:///a.db, experiment one)"
    assert main(["plan", "more.yaml", "--inline"]) == 0
    assert f"trials    9: 4 already finished in first{where}, 5 to run" in capsys.readouterr().out
    Path("trained.txt").write_text("\n".join(before) + "\n")  # without those of the rehearsal
    assert ran() == 0
    assert len(trained()) == 9 and len(set(trained())) == 9
    out = capsys.readouterr().out
    assert "5 trials finished" in out and "4 were finished before" in out
    for command in (["audit", "more.yaml"], ["audit", "first.yaml"]):
        assert main(command) == 0, capsys.readouterr().out
    assert ran() == 0 and len(trained()) == 9
    assert main(["plan", "more.yaml", "--inline"]) == 0
    assert "to run" in capsys.readouterr().out
    first, more = Sweep.load("first.yaml"), Sweep.load("more.yaml")
    with contextlib.closing(open_tracker(first)) as old, contextlib.closing(open_tracker(more)) as new:
        ids = [trial.id for trial in first.trials()]
        assert digests(ids, old.curves) == digests(ids, new.curves)
        rows, copies = ({row.trial_id: row for row in tracker.rows(ids)} for tracker in (old, new))
        assert [repr(r.recorded) for r in rows.values()] == [repr(c.recorded) for c in copies.values()]  # NaN in it
        assert [r.trained for r in rows.values()] == [c.trained for c in copies.values()]
    if tracking != "{}":
        with contextlib.closing(sqlite3.connect("b.db")) as connection:
            origins = connection.execute("SELECT value FROM tags WHERE key = 'phasefront.copied_from'").fetchall()
        assert sorted(origins) == sorted((f"run {r.run_id} of sqlite:///a.db, experiment one",) for r in rows.values())


def test_a_copy_that_was_interrupted_is_completed_and_made_once(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extending, "BATCH", 1)
    Path("more.yaml").write_text(f"extends: first.yaml\ntracking: {ELSEWHERE[0]}\n")
    sweep = Sweep.load("more.yaml")
    stops = iter([False, False, True, True])
    with contextlib.closing(open_tracker(sweep, stopping=lambda: False)) as tracker:
        tracker.open_sweep(sweep_record(sweep))
        extending.take_over(sweep, tracker, say=print, stopping=lambda: next(stops))
        (begun,) = [trial for trial in sweep.trials() if trial.id not in tracker.index([t.id for t in sweep.trials()])][
            :1
        ]
        tracker.begin([begun])  # a driver that was killed in the middle of a copy
    assert "copied 2 finished trials of first" in capsys.readouterr().out
    assert ran() == 0 and len(trained()) == 4
    assert main(["audit", "more.yaml"]) == 0, capsys.readouterr().out


def test_copies_are_labelled_under_the_thresholds_of_the_sweep(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.yaml").write_text(f"extends: first.yaml\nphases: {{level: 0.01}}\ntracking: {ELSEWHERE[0]}\n")
    assert ran() == 0 and len(trained()) == 4
    assert "phases: at or above 4" in capsys.readouterr().out  # below 2 in the first
    assert main(["audit", "more.yaml"]) == 0


@pytest.mark.parametrize("tracking", ["{}", ELSEWHERE[0]], ids=["same", "experiment"])
def test_a_search_begins_with_the_finished_trials_in_its_space(
    desk: Path, capsys: pytest.CaptureFixture[str], tracking: str
) -> None:
    Path("more.yaml").write_text(
        "extends: first.yaml\naxes: {rate: {scale: log, from: 0.1, to: 0.4}}\nreplicates: 2\n"
        f"search: {{kind: boundary, budget: 7, start: 4}}\ntracking: {tracking}\n"
    )
    assert main(["plan", "more.yaml", "--inline"]) == 0
    assert "4 already finished in first" in capsys.readouterr().out
    Path("trained.txt").write_text("")
    assert ran() == 0
    assert len(trained()) == 3
    assert main(["audit", "more.yaml"]) == 0, capsys.readouterr().out


def test_a_record_of_an_earlier_version_is_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("more.yaml").write_text("extends: grid.yaml\ntracking: {experiment: another}\n")
    assert ran() == 0
    said = capsys.readouterr().out
    assert "0 trials finished" in said, said
    assert main(["audit", "more.yaml"]) == 0, capsys.readouterr().out
    assert read(Path("grid.yaml")).data["replicates"] == Sweep.load("more.yaml").replicates

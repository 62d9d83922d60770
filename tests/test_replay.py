"""A recorded trial can be trained again: its curve is identical bit for bit, or the differences are reported."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.job import Curves
from orchestrator.cli import EXIT_MISTAKE, EXIT_OUTAGE, main
from orchestrator.commands import wiring
from orchestrator.dispatch.environment import IN_ONE_PIECE, Environment, TrainingRecord, environment_of, pack_digest
from orchestrator.replay import compare

SWEEP = """
name: replayed
job: double_descent
axes:
  width: [5, 20, 33]
  label_noise: [0, 0.2]
fixed: {pool: 300, test_count: 100, steps: 40, curve_points: 8}
tracking: {uri: "sqlite:///record.db"}
output: out
"""

Query = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small sweep has run."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "sweep.yaml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "sweep.yaml", "--inline", "--quiet", "--no-map"]) == 0
    return folder


@pytest.fixture
def record(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Query:
    """A copy of the record that a test may spoil; the test runs beside it. Queries, and changes, its database."""
    (tmp_path / "record.db").write_bytes((recorded / "record.db").read_bytes())
    monkeypatch.chdir(tmp_path)

    def query(sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(tmp_path / "record.db")
        try:
            rows = connection.execute(sql).fetchall()
            connection.commit()
            return rows
        finally:
            connection.close()

    return query


def trial_runs(record: Query) -> list[str]:
    return [run for (run,) in record("SELECT run_uuid FROM tags WHERE key = 'phasefront.trained' ORDER BY run_uuid")]


def replay(run: str, *more: str) -> int:
    # By its whole path: MLflow keeps what it has opened by an address.
    return main(["replay", run, "--tracking", f"sqlite:///{Path.cwd()}/record.db", *more])


def test_a_trial_replayed_with_its_pack_is_the_recorded_one_bit_for_bit(
    record: Query, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = trial_runs(record)
    assert len(runs) == 6
    for run in (runs[0], runs[-1]):
        assert replay(run) == 0
        said = capsys.readouterr().out
        assert "bit for bit" in said
        assert "the same environment as recorded" in said


def test_a_trial_replayed_alone_is_the_recorded_one_within_the_tolerance(
    record: Query, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(trial_runs(record)[2], "--alone") == 0
    assert "alone: as requested" in capsys.readouterr().out


def test_a_curve_that_was_changed_in_the_last_bit_is_found(record: Query, capsys: pytest.CaptureFixture[str]) -> None:
    run = trial_runs(record)[0]
    ((value, step),) = record(
        f"SELECT value, step FROM metrics WHERE run_uuid = '{run}' AND key = 'train_loss' ORDER BY step DESC LIMIT 1"
    )
    changed = float(np.nextafter(value, np.inf))
    record(f"UPDATE metrics SET value = {changed!r} WHERE run_uuid = '{run}' AND key = 'train_loss' AND step = {step}")
    assert replay(run) == 1
    assert "DIFFERENT, although environment and pack are the same" in capsys.readouterr().out


def test_in_another_environment_the_tolerance_applies(record: Query, capsys: pytest.CaptureFixture[str]) -> None:
    run = trial_runs(record)[0]
    text = record(f"SELECT value FROM tags WHERE run_uuid = '{run}' AND key = 'phasefront.trained'")[0][0]
    elsewhere = json.dumps(json.loads(text) | {"torch": "1.0"}, separators=(",", ":"))
    record(f"UPDATE tags SET value = '{elsewhere}' WHERE run_uuid = '{run}' AND key = 'phasefront.trained'")
    near = f"UPDATE metrics SET value = value * 1.001 WHERE run_uuid = '{run}' AND key = 'train_loss'"
    record(near)
    assert replay(run) == 0
    said = capsys.readouterr().out
    assert "torch: 1.0," in said
    assert "the same within 0.02" in said
    assert replay(run, "--tolerance", "1e-6") == 1
    assert "beyond the tolerance of 1e-06: train_loss from step" in capsys.readouterr().out


@pytest.mark.parametrize("continued", [20, None])
def test_a_trial_that_may_have_been_continued_may_differ_within_the_tolerance(
    record: Query, capsys: pytest.CaptureFixture[str], continued: int | None
) -> None:
    """Its first part may have been trained in another pack. A record of an earlier version does not say (None)."""
    run = trial_runs(record)[0]
    trained = json.loads(_tag(record, run))
    assert trained.pop("continued") == IN_ONE_PIECE
    text = json.dumps(trained if continued is None else trained | {"continued": continued}, separators=(",", ":"))
    record(f"UPDATE tags SET value = '{text}' WHERE run_uuid = '{run}' AND key = 'phasefront.trained'")
    what = "at step 20, from a checkpoint" if continued else "does not say whether the trial was continued"
    assert replay(run) == 0
    said = capsys.readouterr().out
    assert "bit for bit" in said and (what in said) == (continued is not None)
    record(f"UPDATE metrics SET value = value * 1.001 WHERE run_uuid = '{run}' AND key = 'train_loss'")
    assert replay(run) == 0
    said = capsys.readouterr().out
    assert "the same within 0.02" in said and what in said and "DIFFERENT" not in said
    record(f"UPDATE metrics SET value = value * 2 WHERE run_uuid = '{run}' AND key = 'train_loss'")
    assert replay(run) == 1
    assert "DIFFERENT beyond the tolerance" in capsys.readouterr().out


def test_a_row_that_is_missing_is_found(record: Query, capsys: pytest.CaptureFixture[str]) -> None:
    run = trial_runs(record)[0]
    record(f"DELETE FROM metrics WHERE run_uuid = '{run}' AND step = 1 AND key = 'test_loss'")
    assert replay(run) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_an_incomplete_pack_is_replayed_alone_with_a_note(record: Query, capsys: pytest.CaptureFixture[str]) -> None:
    run = next(run for run in trial_runs(record) if _size(record, run) > 1)
    pack = json.loads(_tag(record, run))["pack"]
    other = next(r for r in trial_runs(record) if r != run and json.loads(_tag(record, r))["pack"] == pack)
    record(f"DELETE FROM tags WHERE run_uuid = '{other}' AND key = 'phasefront.trained'")
    assert replay(run) == 0
    assert "not all of the" in capsys.readouterr().out


def _tag(record: Query, run: str) -> str:
    return str(record(f"SELECT value FROM tags WHERE run_uuid = '{run}' AND key = 'phasefront.trained'")[0][0])


def _size(record: Query, run: str) -> int:
    return int(json.loads(_tag(record, run))["of"])


def test_a_damaged_tag_of_another_trial_of_the_pack_is_treated_alike(
    record: Query, capsys: pytest.CaptureFixture[str]
) -> None:
    run = next(run for run in trial_runs(record) if _size(record, run) > 1)
    pack = json.loads(_tag(record, run))["pack"]
    other = next(r for r in trial_runs(record) if r != run and json.loads(_tag(record, r))["pack"] == pack)
    damaged = f"UPDATE tags SET value = substr(value, 1, 60) WHERE run_uuid = '{other}' AND key = 'phasefront.trained'"
    record(damaged)
    assert replay(run) == 0
    assert "not all of the" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (None, "no such run"),
        ("parent", "a sweep's parent run"),
        ("DELETE FROM tags WHERE key = 'phasefront.trained'", "must have a record of its training"),
        (
            "UPDATE tags SET value = replace(value, '\"version\":', '\"version\":7') WHERE key = 'phasefront.trained'",
            "version",
        ),
        ("UPDATE tags SET value = 'no_such_module:Job' WHERE key = 'phasefront.job'", "cannot be imported"),
        ("UPDATE tags SET value = substr(value, 1, 9) WHERE key = 'phasefront.trained'", "tags must be as"),
        ("UPDATE tags SET value = '{' WHERE key = 'phasefront.params'", "tags must be as"),
        ("DELETE FROM tags WHERE key = 'phasefront.job'", "tags must be as"),
        ("UPDATE tags SET value = '..:x' WHERE key = 'phasefront.job'", "a module is named as in an import"),
        ("UPDATE tags SET value = '[1]' WHERE key = 'phasefront.params'", "no parameters of a trial: '[1]'"),
        (f"UPDATE tags SET value = '{'[' * 7000}' WHERE key = 'phasefront.params'", "nested too deeply"),
        (
            "UPDATE tags SET value = replace(value, '\"at\":', '\"at\":99') WHERE key = 'phasefront.trained'",
            "no record of a training",
        ),
        (
            "UPDATE tags SET value = replace(value, ':-1', ':true') WHERE key = 'phasefront.trained'",
            "no record of a training",
        ),
        (
            'UPDATE tags SET value = replace(value, \'"threads":\', \'"threads":[],"x":\') '
            "WHERE key = 'phasefront.trained'",
            "no record of a training",
        ),
    ],
)
def test_a_run_that_cannot_be_replayed_is_reported_without_a_traceback(
    record: Query, capsys: pytest.CaptureFixture[str], spoil: str | None, what: str
) -> None:
    run = trial_runs(record)[0]
    if spoil == "parent":
        run = record("SELECT run_uuid FROM tags WHERE key = 'phasefront.sweep_id'")[0][0]
    elif spoil is None:
        run = "0" * 32
    else:
        record(spoil)
    assert replay(run) == EXIT_MISTAKE
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said


MODULE = """\
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
def train(params, seed, device, report):
    report(1, loss=1.0)
"""


@pytest.mark.parametrize(
    "spec", ["os:system", "shutil:rmtree", "numpy:savetxt", "elsewhere:train", "jobs.job:specs", "__main__:main"]
)
def test_code_that_a_record_names_is_not_imported_from_anywhere(
    record: Query, capsys: pytest.CaptureFixture[str], spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    folder.mkdir()
    (folder / "elsewhere.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    record(f"UPDATE tags SET value = '{spec}' WHERE key = 'phasefront.job'")
    assert replay(trial_runs(record)[0]) == EXIT_MISTAKE
    said = capsys.readouterr().err
    assert "the record names code that is no job of this folder or of this installation" in said
    assert f"value: '{spec}, in " in said
    assert not (folder / "imported").exists()


def test_the_place_of_the_code_is_said(
    record: Query, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trial_runs(record)[0]
    assert replay(run) == 0
    assert "code      built in" in capsys.readouterr().out
    Path("of_the_folder.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    record("UPDATE tags SET value = 'of_the_folder:train' WHERE key = 'phasefront.job'")
    replay(run)
    assert Path("imported").exists()


@pytest.mark.parametrize(
    ("address", "what", "code"),
    [
        ("foo://x", "is not the address", EXIT_MISTAKE),
        ("memory:", "holds nothing", EXIT_MISTAKE),
        ("sqlite:///nothere.db", "holds nothing", EXIT_MISTAKE),
        ("postgresql://u:secret@nosuch.invalid/x", "not known", EXIT_MISTAKE),
        ("postgresql://u:secret@127.0.0.1:1/x", "127.0.0.1", EXIT_OUTAGE),
        ("http://127.0.0.1:1", "127.0.0.1", EXIT_OUTAGE),
    ],
)
def test_an_address_without_a_record_is_said_and_stays_as_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
    what: str,
    code: int,
) -> None:
    monkeypatch.setattr(wiring, "READING_PATIENCE_S", 0.5)
    monkeypatch.chdir(tmp_path)
    assert main(["replay", "0" * 32, "--tracking", address]) == code
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_cannot_be_trained_again_is_no_fault_of_the_program(
    record: Query, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.double_descent.job import DoubleDescent

    def broken(*given: object, **named: object) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(DoubleDescent, "train", broken)
    assert replay(trial_runs(record)[0]) == 1
    assert "the training failed: RuntimeError: no more memory" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "much"])
def test_a_tolerance_is_a_number_from_0(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "0" * 32, "--tolerance", text])
    assert stopped.value.code == EXIT_MISTAKE
    assert "must be a number >= 0" in capsys.readouterr().err


def test_how_a_trial_was_trained_reads_back() -> None:
    trained = TrainingRecord(
        pack=pack_digest(["a", "b"]),
        at=1,
        of=2,
        seed=2**64 - 1,
        version=3,
        environment=environment_of("double_descent", "cpu"),
        continued=2**62,
    )
    assert TrainingRecord.parse(trained.text()) == trained
    assert len(trained.text()) < 400, "it goes with every trial"
    with pytest.raises(ValueError, match="no record of a training"):
        TrainingRecord.parse('{"pack": "x"}')


def test_the_order_of_a_pack_is_part_of_its_digest() -> None:
    assert pack_digest(["a", "b"]) != pack_digest(["b", "a"])


def test_settings_show_the_differences() -> None:
    one = Environment(code="1", python="3.11", torch="2.8", numpy="2.0", device="x86_64 AVX2", threads=1)
    assert one.differences(one) == []
    assert one.differences(replace(one, threads=4)) == ["threads: 1, 4"]


numbers = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=1, max_size=8)


@given(numbers)
def test_a_curve_is_itself(values: list[float]) -> None:
    curves = Curves(step=np.arange(len(values)), values={"loss": np.array(values)})
    found = compare(curves, curves, tolerance=0.0)
    assert found.exact
    assert found.within
    assert found.deviation["loss"][0] == 0


@given(numbers, st.data())
def test_a_changed_value_is_never_the_same_curve(values: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(values) - 1))
    other = np.array(values)
    other[place] = data.draw(
        st.floats().filter(lambda x: not (x == values[place] or (np.isnan(x) and np.isnan(values[place]))))
    )
    one = Curves(step=np.arange(len(values)), values={"loss": np.array(values)})
    found = compare(one, Curves(step=one.step, values={"loss": other}))
    assert not found.exact
    if np.isnan(values[place]) != np.isnan(other[place]) or np.isinf(values[place]) or np.isinf(other[place]):
        assert not found.within, "a number and none, or an infinity, are no neighbours"

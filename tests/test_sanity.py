"""What the first trials tell: facts of curves, warnings, the rehearsal, and the record of a run that was killed."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import driver, record, trials, wait_for
from hypothesis import given
from hypothesis import strategies as st
from servers import empty_sqlite

import phasefront
from jobs.catalogue import load_job
from jobs.function import FunctionJob, FunctionThresholds
from jobs.job import Censored
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.sanity import TRACKED, Collector, FirstTrials, MetricFacts, TrialFacts, explained, report
from orchestrator.target import LevelTarget
from orchestrator.trial import Trial

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, when it is imported here

BY_LOSS = FunctionThresholds(metric="loss", level=0.5)


def train(params, seed, device, report):  # type: ignore[no-untyped-def]
    report(1, loss=params["rate"])


JOB = FunctionJob(train)


def trial(k: int) -> Trial:
    return Trial(job="it:train", job_version=1, params=JOB.params_for({"rate": 0.1, "k": k}), replicate=0)


def result(k: int, status: Status = Status.FINISHED, **observations: Any) -> TrialResult:
    return TrialResult(trial(k).id, status, "below", observations)


curves = st.lists(st.floats(allow_nan=True) | st.none(), min_size=1, max_size=20)


@given(curves=st.lists(curves, min_size=1, max_size=4), cut=st.integers(0, 20))
def test_facts_are_those_of_the_whole_curve_however_its_rows_come(curves: list[list[float | None]], cut: int) -> None:
    collector = Collector(JOB, BY_LOSS)
    for some in (slice(0, cut), slice(cut, None)):
        rows = [(k, step, v) for k, curve in enumerate(curves) for step, v in list(enumerate(curve, 3))[some]]
        ids = sorted({k for k, _, _ in rows})
        if rows:
            collector.rows(
                CurveRows(
                    trial_ids=tuple(map(str, ids)),
                    metrics=("spare", "loss"),
                    trial=np.array([ids.index(k) for k, _, _ in rows], dtype=np.int32),
                    step=np.array([step for _, step, _ in rows]),
                    values=np.array([[math.nan, math.nan if v is None else v] for _, _, v in rows]),
                    present=np.array([[False, v is not None] for _, _, v in rows]),
                )
            )
    for k, curve in enumerate(curves):
        at = [(step, v) for step, v in enumerate(curve, 3) if v is not None]
        bad = [step for step, v in at if not math.isfinite(v)]
        expected = (
            {"loss": MetricFacts(values=len(at), first=at[0][0], last=at[-1][0], not_finite=len(bad))} if at else {}
        )
        found = collector.facts[str(k)].metrics
        assert {name: (f.values, f.first, f.last, f.not_finite) for name, f in found.items()} == {
            name: (f.values, f.first, f.last, f.not_finite) for name, f in expected.items()
        }
        if bad:
            assert found["loss"].since == bad[0]


def test_facts_travel_as_plain_data_and_only_of_a_few_trials() -> None:
    collector = Collector(JOB, BY_LOSS)
    for k in range(3 * TRACKED):
        collector.end(trial(k).params, result(k, final_loss=0.25, reached=Censored(9.0)))
    collector.unread({trial(0).id: ("k",), "another": ("k",)})
    assert len(collector.facts) == TRACKED
    facts = collector.facts[trial(0).id]
    assert facts.observed == {"final_loss": 0.25, "reached": None}
    assert TrialFacts.from_plain(facts.plain()) == facts


@pytest.mark.parametrize(
    ("error", "given", "said"),
    [
        ("Traceback\nKeyError: 'lr'", ["learning_rate", "lrr"], "KeyError: 'lr' (the sweep gives lrr)"),
        ("KeyError: 'width'", ["a", "b"], "KeyError: 'width' (the sweep gives a, b)"),
        ("KeyError: 'a'", ["a", "b"], "KeyError: 'a'"),
        ("KeyError: 'a'", [], "KeyError: 'a'"),
        ("KeyError: 3", ["a"], "KeyError: 3"),
        (
            "TypeError: f() got an unexpected keyword argument 'decai'",
            ["decay"],
            "TypeError: f() got an unexpected keyword argument 'decai' (the sweep gives decay)",
        ),
        ("TypeError: f() got an unexpected keyword argument 'x'", ["decay"], None),
        ("ValueError: KeyError: 'x' y", ["xx"], None),
    ],
)
def test_a_missing_parameter_is_explained_by_what_the_sweep_gives(
    error: str, given: list[str], said: str | None
) -> None:
    assert explained(error, given) == (said or error.splitlines()[-1])


def test_a_report_names_only_what_is_odd() -> None:
    whole = MetricFacts(values=20, first=1, last=20)
    sound = [
        TrialFacts(metrics={"loss": whole}, status="FINISHED", phase=p, unread=()) for p in ("below", "at or above")
    ]
    assert report(sound, JOB, BY_LOSS) == [
        "first 2 trials: loss (20 values, steps 1 to 20); labels: below 1, at or above 1"
    ]
    assert report([], JOB, BY_LOSS) == []
    running = [TrialFacts(metrics={"loss": whole})]
    assert report(running, JOB, BY_LOSS, title="rehearsed") == [
        "rehearsed 1 trial (1 did not end in this time): loss (20 values, steps 1 to 20)"
    ]


def first(say: Any) -> FirstTrials:
    return FirstTrials(JOB, FunctionThresholds(metric="test_acuracy", level=0.5), place="it.yaml:4:9", say=say)


def test_a_metric_that_eight_trials_lack_ends_the_run_unless_an_earlier_one_had_it() -> None:
    watch = first(lambda _: None)
    for k in range(7):
        watch.ended(trial(k), result(k, final_test_accuracy=1.0))
        watch.ended(trial(k), result(k, Status.FAILED))
    with pytest.raises(UserError, match="8 trials finished without it") as caught:
        watch.ended(trial(7), result(7, final_test_accuracy=1.0))
    assert caught.value.mistakes[0].place == "it.yaml:4:9"
    assert caught.value.mistakes[0].choices == ("test_accuracy",)

    known = first(lambda _: None)
    for k in range(20):
        known.finished(result(k, final_test_accuracy=1.0))
    known.finished(result(20, final_test_acuracy=1.0))
    for k in range(21, 40):
        known.ended(trial(k), result(k, final_test_accuracy=1.0))
    known.close()


def test_a_function_that_names_the_metric_may_leave_it_out() -> None:
    def rarely(params, seed, device, report):  # type: ignore[no-untyped-def]
        report(1, loss=1.0)

    rarely.metrics = ("loss", "test_acuracy")  # type: ignore[attr-defined]
    watch = FirstTrials(FunctionJob(rarely), FunctionThresholds(metric="test_acuracy"), place="", say=lambda _: None)
    for k in range(20):
        watch.ended(trial(k), result(k, final_loss=1.0))
    watch.close()


def test_the_report_is_made_once_after_four_trials_or_at_the_end() -> None:
    lines: list[str] = []
    watch = FirstTrials(JOB, FunctionThresholds(), place="", say=lines.append)
    for k in range(3):
        watch.ended(trial(k), result(k, final_loss=1.0))
    assert lines == []
    watch.ended(trial(3), result(3, final_loss=1.0))
    assert [line.partition(":")[0] for line in lines] == ["first 4 trials"]
    watch.ended(trial(4), result(4, final_loss=1.0))
    watch.close()
    assert len(lines) == 1
    few: list[str] = []
    watch = FirstTrials(JOB, FunctionThresholds(), place="", say=few.append)
    watch.ended(trial(0), result(0, final_loss=1.0))
    watch.close()
    assert [line.partition(":")[0] for line in few] == ["first 1 trial"]


@pytest.mark.parametrize(("grid", "warned"), [(0, True), (4, True), (5, False)])
def test_one_label_of_the_first_trials_is_no_warning_where_they_are_a_corner_of_a_grid(grid: int, warned: bool) -> None:
    lines: list[str] = []
    watch = FirstTrials(JOB, FunctionThresholds(metric="loss", level=5.0), place="", say=lines.append, grid=grid)
    for k in range(4):
        watch.ended(trial(k), result(k, final_loss=1.0))
    watch.close()
    assert any("all are 'below'" in line for line in lines) == warned


@pytest.mark.parametrize(("before", "warned"), [(1.0, True), (9.0, False)])
@pytest.mark.parametrize("by", ["phases", "target"])
def test_one_side_is_no_warning_where_trials_of_an_earlier_run_are_on_the_other(
    by: str, before: float, warned: bool
) -> None:
    lines: list[str] = []
    thresholds = FunctionThresholds(metric="loss", level=5.0) if by == "phases" else FunctionThresholds()
    target = LevelTarget(metric="final_loss", level=5.0) if by == "target" else None
    watch = FirstTrials(JOB, thresholds, place="", say=lines.append, target=target)
    earlier = result(9, final_loss=before)
    watch.finished(replace(earlier, phase="at or above" if by == "phases" and before > 5.0 else "below"))
    for k in range(4):
        watch.ended(trial(k), result(k, final_loss=1.0))
    assert any("all are " in line for line in lines) == warned


def test_a_search_that_goes_on_is_not_warned_of_one_label_once_it_has_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    empty_sqlite(tmp_path / "mlflow.db")
    (tmp_path / "mine_narrow.py").write_text(
        'def train(params, seed, device, report):\n    report(1, loss=params["a"])\n\n\ntrain.metrics = ("loss",)\n'
    )
    (tmp_path / "sweep.yaml").write_text(
        "job: mine_narrow:train\naxes: {a: {scale: linear, from: 0, to: 1, points: 101}}\n"
        'phases: {metric: loss, level: 0.97}\ntracking: {uri: "sqlite:///mlflow.db"}\n'
        "search: {kind: boundary, budget: 8}\n"
    )
    both, later = False, []
    for budget in (8, 12, 16, 20, 24):
        assert main(["run", "sweep.yaml", "--inline", "--no-map", "--set", f"search.budget={budget}"]) == 0
        said = capsys.readouterr().out
        later += [said] * both
        both = "at or above" in said.partition("\nphases: ")[2]
    assert any("labels: below 4" in said for said in later)
    assert not any("all are " in said for said in later)


def test_a_label_by_the_first_time_is_marked_where_the_level_is_lost_again() -> None:
    grokking = load_job("grokking")
    params, thresholds = grokking.params_for({}), grokking.Thresholds()
    lost = {
        "memorisation_step": 10.0,
        "generalisation_step": 20.0,
        "generalisation_gap": 10.0,
        "final_test_accuracy": 0.05,
        "final_train_accuracy": 1.0,
    }
    assert grokking.phase(params, lost, thresholds) == "comprehension"
    assert grokking.mark(params, lost, thresholds).startswith("reached and lost: the test accuracy passed 0.9")
    assert grokking.mark(params, {**lost, "final_test_accuracy": 0.95}, thresholds) == ""
    assert grokking.mark(params, {**lost, "generalisation_step": Censored(100.0)}, thresholds) == ""
    assert grokking.mark(params, {**lost, "diverged_step": 30.0}, thresholds) == ""


MINE = """\
import time
def train(params, seed, device, report):
    report(1, loss=params["learning_rate"])
    if params.get("seconds"):
        report(2, loss=1.0)
        time.sleep(params["seconds"])
"""
SWEEP = """\
job: mine_too:train
axes: {AXIS: [0.1, 0.2]}
phases: {metric: loss, level: 0.5}
tracking: {uri: "sqlite:///mlflow.db"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_too.py").write_text(MINE)
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("AXIS", "learning_rate"))
    (tmp_path / "wrong.yaml").write_text(SWEEP.replace("AXIS", "learnig_rate"))
    return tmp_path


@pytest.mark.parametrize("command", [["plan"], ["check", "--rehearse"]], ids=" ".join)
def test_a_rehearsal_finds_the_misspelt_parameter_of_a_function(
    command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "wrong.yaml"]) == 0
    assert main([command[0], "wrong.yaml", *command[1:], "--set", "resources.workers=1"]) == 2
    said = capsys.readouterr().err
    assert "KeyError: 'learning_rate' (the sweep gives learnig_rate)" in said
    assert "rehearsal failed in 2 of 2 trials" in said
    assert "mine_too.py:3" in said
    assert "Traceback" not in said
    assert not (folder / "mlflow.db").exists()


def test_a_rehearsal_shows_what_is_reported_and_that_a_long_trial_did_not_end(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["--set", "resources.workers=1", "--set", "axes.learning_rate=[0.1]"]
    assert main(["check", "sweep.yaml", "--rehearse", *one, "--set", "fixed={seconds: 600, spare: 1}"]) == 0
    said = capsys.readouterr().out
    assert "rehearsed 1 trial (1 did not end in this time): loss (1 value, at step 1)" in said
    code = main(["check", "sweep.yaml", "--rehearse", *one, "--set", "phases.metric=los", "--set", "fixed={spare: 1}"])
    assert code == 2
    printed = capsys.readouterr()
    assert "warning: the sweep gives spare, and 1 watched trial did not read it" in printed.out
    assert "no trial reports 'los', the metric of 'phases': 1 trial finished without it" in printed.err
    assert "did you mean 'loss'?" in printed.err


FAILING = """\
def train(params, seed, device, report):
    report(1, loss=1.0)
    if params["rate"] > 0.1:
        raise ValueError("rate is too large")
"""


def test_status_shows_tracebacks_and_what_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty_sqlite(folder / "mlflow.db")
    (folder / "mine_failing.py").write_text(FAILING)
    (folder / "sweep.yaml").write_text(
        'job: mine_failing:train\naxes: {rate: [0.1, 0.2, 0.3]}\ntracking: {uri: "sqlite:///mlflow.db"}\n'
    )
    assert main(["run", "sweep.yaml", "--inline", "--quiet", "--no-map"]) == 1
    assert "2 trials failed; tracebacks: phasefront status sweep.yaml\n" in capsys.readouterr().err
    assert main(["status", "sweep.yaml"]) == 0
    said = capsys.readouterr().out
    assert "driver    none: nothing runs\nto run    2: 2 failed. To resume: phasefront run sweep.yaml\n" in said
    assert "traceback rate=0.2, replicate=0, the first of 2 with this error\n" in said
    assert said.count("Traceback") == 1
    assert 'mine_failing.py", line 4, in train' in said
    with pytest.raises(UserError, match="is no metric of this sweep") as caught:
        phasefront.load("sweep.yaml").curves(metrics=["los"])
    assert caught.value.mistakes[0].next_step == "did you mean 'loss'?"


def test_status_after_a_killed_driver_says_that_nothing_of_the_sweep_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty_sqlite(folder / "mlflow.db")
    command = ("run", "sweep.yaml", "--inline", "--no-map", "--set", "fixed.seconds=600")
    with driver(*command, cwd=folder) as running:
        wait_for("a trial that trains", lambda: bool(trials(record(folder / "mlflow.db"))), running)
        assert main(["status", "sweep.yaml", "--set", "fixed.seconds=600"]) == 0
        said = capsys.readouterr().out
        assert f"process {running.popen.pid}, since" in said
        assert "writes to this experiment" in said
        assert "to run" not in said
        os.kill(running.popen.pid, signal.SIGKILL)
        running.popen.wait()
    assert main(["status", "sweep.yaml", "--set", "fixed.seconds=600"]) == 0
    said = capsys.readouterr().out
    assert "0 finished, 2 handed out when their driver ended, 0 failed" in said
    assert "driver    none: nothing runs\n" in said
    assert (
        "to run    2: 2 handed out when their driver ended. "
        "To resume: phasefront run sweep.yaml --set fixed.seconds=600\n"
    ) in said
    other = ("--set", "name=other", "--set", "fixed.seconds=700")
    with driver("run", "sweep.yaml", "--inline", "--no-map", *other, cwd=folder) as running:
        wait_for("a trial of another sweep", lambda: len(trials(record(folder / "mlflow.db"))) > 2, running)
        assert main(["status", "sweep.yaml", *other]) == 0
        said = capsys.readouterr().out
        assert "0 finished, 2 handed out, 0 failed" in said
        assert "writes to this experiment\n" in said and "to run" not in said
        assert main(["status", "sweep.yaml", "--set", "fixed.seconds=600"]) == 0
        said = capsys.readouterr().out
    assert "0 finished, 2 handed out when their driver ended, 0 failed" in said
    assert "writes to this experiment, for another sweep\n" in said
    assert "to run    2: 2 handed out when their driver ended. To resume, when that run has ended: phasefront" in said

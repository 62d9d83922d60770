"""MLflow's client reads what the tracker wrote, and both write the same rows."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from servers import empty_sqlite
from tracking_contract import OTHER, SWEEP, content, finished, rows, trial
from tracking_drivers import another_driver, open_when_free

from jobs.job import Censored
from orchestrator.errors import UserError
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.tracking import database
from orchestrator.tracking.address import quiet_mlflow
from orchestrator.tracking.factory import open_tracker
from orchestrator.tracking.layout import (
    DRIVER,
    LONGEST_TAG,
    MOST_FOUND,
    PARENTS_ALONE,
    axis_metrics,
    description,
    params,
    trial_tags,
)
from orchestrator.tracking.run_table import RunTable

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    quiet_mlflow("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """These tests read the database beside the tracker, so it does not buffer, unless a test sets another time."""
    monkeypatch.setattr(database, "WRITE_EVERY_S", -1.0)


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{empty_sqlite(tmp_path / 'some folder' / 'mlflow.db')}"


@pytest.fixture
def tracker(uri):
    tracker = open_tracker(uri, experiment="tests")
    tracker.open_sweep(SWEEP)
    yield tracker
    tracker.close()


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri, condition=""):
    from mlflow.entities import ViewType

    mlflow = client(uri)
    number = mlflow.get_experiment_by_name("tests").experiment_id
    return mlflow.search_runs([number], condition, run_view_type=ViewType.ALL, max_results=1000)


def dump(uri, *tables):
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        found = {table: sorted(map(repr, connection.execute(f"SELECT * FROM {table}"))) for table in tables}
    connection.close()
    return found


def test_mlflow_s_client_reads_a_nested_run_with_everything(tracker, uri):
    one = trial(3)
    tracker.begin([one])
    tracker.record(rows([one], [0, 1, 7]))
    tracker.end([finished(one, step=7.0, never=Censored(100.0))])
    parent, nested = sorted(runs_of(uri), key=lambda run: "phasefront.trial_id" in run.data.tags)
    assert [run.info.run_id for run in runs_of(uri, PARENTS_ALONE)] == [parent.info.run_id]
    assert PARENTS_ALONE in parent.data.tags["mlflow.note.content"]
    assert nested.info.status == "FINISHED"
    assert nested.info.end_time >= nested.info.start_time
    assert nested.info.run_name == "rate=0.0333333 width=4 #1"
    assert (
        nested.data.params
        == dict(params(one))
        == {
            "rate": repr(0.1 / 3),
            "width": "4",
            "bias": "true",
            "optimiser": "adamw",
            "replicate": "1",
        }
    )
    tags = nested.data.tags
    assert dict(trial_tags(one, SWEEP, parent.info.run_id)).items() <= tags.items()
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert tags["phasefront.phase"] == "grokking"
    assert json.loads(tags["phasefront.censored"]) == {"never": 100.0}
    axes = {"axis/rate": 0.1 / 3, "axis/width": 4.0}
    assert nested.data.metrics == {"loss": 1.0, "test/accuracy": 2.0, "step": 7.0, **axes}
    history = client(uri).get_metric_history(nested.info.run_id, "loss")
    start = nested.info.start_time
    assert [(m.step, m.value, m.timestamp - start) for m in history] == [(0, 0.0, 0), (1, 1 / 7, 1), (7, 1.0, 7)]
    assert (
        runs_of(uri, "tags.`phasefront.phase` = 'grokking' and params.width = '4' and metrics.step < 8")[0].info.run_id
        == nested.info.run_id
    )


def test_the_parent_has_the_sweep_s_name_files_and_metrics(tracker, uri, tmp_path):
    table = tmp_path / "x.parquet"
    table.write_bytes(b"123")
    tracker.attach({"trials.parquet": table, "maps/x.parquet": table})
    tracker.end_sweep("FINISHED", {"peak": 60.0})
    tracker.end_sweep("FINISHED", {"peak": 50.0})
    (parent,) = runs_of(uri)
    assert (parent.info.run_name, parent.info.status) == ("a sweep", "FINISHED")
    assert parent.data.tags["phasefront.sweep_id"] == SWEEP.sweep_id
    assert parent.data.metrics == {"peak": 50.0}
    mlflow = client(uri)
    listed = {file.path for file in mlflow.list_artifacts(parent.info.run_id)}
    assert listed == {"sweep.yaml", "trials.parquet", "maps"}
    assert Path(mlflow.download_artifacts(parent.info.run_id, "sweep.yaml")).read_text() == SWEEP.resolved_yaml
    assert (Path(uri.removeprefix("sqlite:///")).parent / "mlruns").is_dir()


def test_latest_metrics_are_those_that_mlflow_itself_would_keep(tracker, uri, tmp_path):
    from mlflow.entities import Metric

    one, chance = trial(), random.Random(5)
    values = [chance.choice([math.nan, math.inf, -math.inf, 0.5, -2.0]) for _ in range(12)]
    tracker.begin([one])
    for step, value in enumerate(values):
        tracker.record(
            CurveRows(
                trial_ids=(one.id,),
                metrics=("loss",),
                trial=np.zeros(1, dtype=np.int32),
                step=np.array([step]),
                values=np.array([[value]]),
            )
        )
    tracker.end([finished(one)])
    (ours,) = runs_of(uri, "tags.`phasefront.trial_id` LIKE '%'")
    theirs = client(f"sqlite:///{empty_sqlite(tmp_path / 'theirs.db')}")
    run = theirs.create_run(theirs.create_experiment("tests")).info.run_id
    start = ours.info.start_time
    axes = [Metric(name, value, start - 2000, 0) for name, value in axis_metrics(one, SWEEP.axes)]
    theirs.log_batch(run, metrics=[Metric("loss", value, start + step, step) for step, value in enumerate(values)])
    theirs.log_batch(run, metrics=axes)
    columns = "key, value, timestamp, step, is_nan"
    for table in ("metrics", "latest_metrics"):
        assert _select(uri, columns, table) == _select(f"sqlite:///{tmp_path / 'theirs.db'}", columns, table)


def _select(uri, columns, table):
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    found = sorted(connection.execute(f"SELECT {columns} FROM {table}"))
    connection.close()
    return found


def test_latest_metrics_of_a_killed_driver_s_trials_are_completed(tracker, uri):
    one, two = trial(0), trial(1)
    tracker.begin([one, two])
    tracker.record(rows([one, two], [0, 5]))
    tracker.close()
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    with connection:
        connection.execute("DELETE FROM latest_metrics")
    connection.close()
    again = open_tracker(uri, experiment="tests")
    again.open_sweep(SWEEP)
    assert again.reconcile() == 2
    assert [run.data.metrics for run in runs_of(uri, "params.width = '1'")] == [
        {"loss": 5 / 7, "test/accuracy": 1 + 5 / 7, **dict(axis_metrics(one, SWEEP.axes))}
    ]
    assert [run.data.metrics["loss"] for run in runs_of(uri, "params.width = '2'")] == [1000 + 5 / 7]
    again.close()


def test_writing_twice_leaves_the_tables_as_they_are(tracker, uri):
    trials = [trial(n) for n in range(3)]
    tables = ("runs", "params", "tags", "metrics", "latest_metrics")

    def write():
        tracker.begin(trials)
        tracker.record(rows(trials, [0, 1, 2]))
        tracker.end([finished(t, a=1.0, loss=3.0) for t in trials])

    write()
    once = dump(uri, *tables)
    write()
    twice = dump(uri, *tables)
    assert {table: twice[table] for table in tables if table != "runs"} == {
        table: once[table] for table in tables if table != "runs"
    }
    assert len(twice["runs"]) == len(once["runs"]) == 4


def test_a_run_that_the_user_has_deleted_is_absent_and_created_again(tracker, uri):
    one = trial()
    for attempt in range(3):
        assert tracker.index([one.id]) == {}
        tracker.begin([one])
        tracker.record(rows([one], [0, attempt + 1]))
        tracker.end([finished(one)])
        (row,) = tracker.rows([one.id])
        assert dict(tracker.curves([one.id]))[one.id].step.tolist() == [0, attempt + 1]
        if attempt < 2:
            client(uri).delete_run(row.run_id)
    again = open_tracker(uri, experiment="tests")
    assert next(iter(again.rows([one.id]))).run_id == row.run_id
    again.close()


def test_a_run_that_a_server_named_is_found(tracker, uri):
    """The run is as the HTTP tracker writes it."""
    from mlflow.entities import RunTag

    one, mlflow = trial(), client(uri)
    number = mlflow.get_experiment_by_name("tests").experiment_id
    run = mlflow.create_run(number, tags=dict(trial_tags(one, SWEEP, "x" * 32))).info.run_id
    mlflow.log_batch(run, tags=[RunTag("phasefront.phase", "grokking")])
    mlflow.set_terminated(run)
    tracker.close()
    again = open_tracker(uri, experiment="tests")
    again.open_sweep(OTHER)
    assert again.index([one.id])[one.id].phase == "grokking"
    assert next(iter(again.rows([one.id]))).run_id == run
    again.begin([one])
    assert len(runs_of(uri, f"tags.`phasefront.trial_id` = '{one.id}'")) == 1
    again.close()


def test_one_parent_for_a_sweep_however_often_it_is_opened(uri):
    for _ in range(3):
        tracker = open_tracker(uri, experiment="tests")
        tracker.open_sweep(SWEEP)
        tracker.close()
    assert len(runs_of(uri)) == 1


def test_the_same_trial_in_two_experiments_is_two_runs(tracker, uri):
    one = trial()
    other = open_tracker(uri, experiment="other")
    other.open_sweep(SWEEP)
    tracker.begin([one])
    tracker.end([finished(one)])
    assert other.index([one.id]) == {}
    other.begin([one])
    assert next(iter(other.rows([one.id]))).run_id != next(iter(tracker.rows([one.id]))).run_id
    other.close()


def test_a_long_traceback_keeps_its_end(tracker, uri):
    one = trial()
    tracker.begin([one])
    error = ("\0x" * 90 + "\n") * 100 + "ValueError: the cause"
    tracker.end([TrialResult(trial_id=one.id, status=Status.FAILED, error=error)])
    (run,) = runs_of(uri, "attributes.status = 'FAILED'")
    error = run.data.tags["phasefront.error"]
    assert error.endswith("ValueError: the cause")
    assert len(error) == LONGEST_TAG


def test_reading_creates_nothing(tmp_path):
    tracker = open_tracker(f"sqlite:///{tmp_path}/none/mlflow.db", experiment="tests")
    assert content(tracker, [trial()]) == ({}, [], [])
    tracker.close()
    assert not (tmp_path / "none").exists()


def test_a_statement_count_does_not_grow_with_the_trials(tracker, monkeypatch):
    """Set-based: index, begin, end and rows of 200 trials take as many statements as of 2."""
    monkeypatch.setattr(database, "WRITE_EVERY_S", math.inf)

    def statements(trials):
        seen = []
        connection = tracker._database.create().bulk.connection
        connection.set_trace_callback(
            lambda text: seen.append(re.split(r"VALUES|json_each|end_time =|sequence =", text)[0])
        )
        tracker.begin(trials)
        tracker.record(rows(trials, [0]))
        tracker.end([finished(t, a=1.0) for t in trials])
        tracker.index([t.id for t in trials])
        list(tracker.rows([t.id for t in trials]))
        list(tracker.curves([t.id for t in trials]))
        connection.set_trace_callback(None)
        inserts = {text for text in seen if text.startswith("INSERT")}  # SQLite traces executemany row by row
        return [text for text in seen if text not in inserts], inserts

    few, many = statements([trial(n) for n in range(2)]), statements([trial(n) for n in range(100, 300)])
    assert many == few


def test_a_reader_looks_for_the_runs_of_other_drivers_once_however_many_trials_it_reads(tracker, uri, monkeypatch):
    """That reads the table of all runs: once for each chunk would take a time that grows with the square of trials."""
    trials = [trial(n) for n in range(6)]
    tracker.begin(trials)
    monkeypatch.setattr(database, "CHUNK", 2)
    looked, refresh = [], RunTable.refresh
    monkeypatch.setattr(RunTable, "refresh", lambda self: looked.append(1) or refresh(self))
    reader = open_tracker(uri, experiment="tests")
    assert len(list(reader.rows([t.id for t in trials], settings=False))) == 6
    assert len(looked) == 2, "when it opens the record, and when it reads"
    reader.close()


def test_a_file_that_is_not_a_database_is_a_user_s_error(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database, whatever it may be called" * 100)
    tracker = open_tracker(f"sqlite:///{file}", experiment="tests")
    for call in (lambda: tracker.index([trial().id]), lambda: tracker.open_sweep(SWEEP)):
        with pytest.raises(UserError, match="cannot be opened"):
            call()
    tracker.close()


@pytest.mark.parametrize(
    "uri", ["mysql://x/y", "mlruns", "file:///tmp/x", "sqlite://", "sqlite:///:memory:", "", "s3://x"]
)
def test_an_invalid_address_is_a_user_s_error_that_names_the_choices(uri):
    with pytest.raises(UserError, match=re.escape("sqlite:///mlflow.db")):
        open_tracker(uri, experiment="tests")


def test_an_experiment_deleted_in_mlflow_is_a_user_s_error_with_the_way_out(tracker, uri):
    mlflow = client(uri)
    mlflow.delete_experiment(mlflow.get_experiment_by_name("tests").experiment_id)
    tracker.close()
    again = open_tracker(uri, experiment="tests")
    assert again.index([trial().id]) == {}
    with pytest.raises(UserError, match="mlflow experiments restore"):
        again.open_sweep(SWEEP)
    again.close()


def test_a_relative_file_is_in_the_current_folder(tmp_path, monkeypatch):
    empty_sqlite(tmp_path / "here" / "mlflow.db")
    monkeypatch.chdir(tmp_path / "here")
    tracker = open_tracker("sqlite:///mlflow.db", experiment="tests")
    tracker.open_sweep(SWEEP)
    monkeypatch.chdir(tmp_path)
    tracker.begin([trial()])
    tracker.close()
    assert len(runs_of(f"sqlite:///{tmp_path}/here/mlflow.db")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_retried_trial_leaves_nothing_of_its_first_training_in_the_tables(tracker, uri, monkeypatch):
    """Rows and latest metrics, written or buffered."""
    one, two = trial(0), trial(1)
    for every_s in (0.0, math.inf):
        monkeypatch.setattr(database, "WRITE_EVERY_S", every_s)
        tracker.begin([one, two])
        tracker.record(rows([one, two], [0, 9], metrics=("loss", "gone")))
    tracker.begin([one, two])
    tracker.record(rows([one, two], [0, 4], metrics=("loss",), shift=0.5))
    tracker.end([finished(one), finished(two)])
    tracker.index([])
    expected = [("loss", 0.5, 0), ("loss", 0.5 + 4 / 7, 4), ("loss", 1000.5, 0), ("loss", 1000.5 + 4 / 7, 4)]
    axes = [(name, value, 0) for each in (one, two) for name, value in axis_metrics(each, SWEEP.axes)]
    assert _select(uri, "key, value, step", "metrics") == sorted([*axes, *expected])
    assert _select(uri, "key, value, step", "latest_metrics") == sorted([*axes, *expected[1::2]])


def test_a_statement_count_of_a_retry_does_not_grow_with_the_trials(tracker):
    def statements(trials):
        seen = []
        tracker.begin(trials)
        tracker.record(rows(trials, [0]))
        tracker.index([])
        connection = tracker._database.create().bulk.connection
        connection.set_trace_callback(lambda text: seen.append(re.split(r"VALUES|json_each|sequence =", text)[0]))
        tracker.begin(trials)
        connection.set_trace_callback(None)
        inserts = {text for text in seen if text.startswith("INSERT")}  # SQLite traces executemany row by row
        return [text for text in seen if text not in inserts], inserts

    assert statements([trial(n) for n in range(100, 300)]) == statements([trial(n) for n in range(2)])


def test_databases_with_equal_run_ids_differ_in_when_the_sweep_was_created(tmp_path):
    runs = []
    for name in ("one", "two"):
        tracker = open_tracker(f"sqlite:///{empty_sqlite(tmp_path / f'{name}.db')}", experiment="tests")
        runs.append((tracker.open_sweep(SWEEP), tracker.sweep_start_ms))
        tracker.close()
    (one, start), (two, later) = runs
    assert one == two and 0 < start < later


def test_a_second_process_is_refused_until_the_first_has_died(uri):
    one = trial()
    with another_driver(uri, "tests") as process:
        second = open_tracker(uri, experiment="tests")
        with pytest.raises(UserError, match="another phasefront run") as caught:
            second.open_sweep(SWEEP)
        assert caught.value.mistakes[0].place == uri
        assert second.index([one.id])[one.id].status is Status.RUNNING
        assert second.find_sweep(SWEEP.sweep_id) == second.open_sweep(SWEEP, running=False)
        second.close()
        elsewhere = open_tracker(uri, experiment="another")
        elsewhere.open_sweep(SWEEP)
        elsewhere.close()
        process.kill()
        process.wait()
        second = open_tracker(uri, experiment="tests")
        second.open_sweep(SWEEP)
        assert second.reconcile() == 1
        second.close()


# Processes that are killed at any moment, and several that start at once.

KILLED = """
import sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from tracking_contract import SWEEP, finished, rows, trial
from orchestrator.tracking.factory import open_tracker
tracker = open_tracker(sys.argv[1], experiment="tests")
tracker.open_sweep(SWEEP)
print("open", flush=True)
trials = [trial(n) for n in range(40)]
for start in range(0, 40, 8):
    pack = trials[start : start + 8]
    tracker.begin(pack)
    for step in range(0, 60, 3):
        tracker.record(rows(pack, [step, step + 1, step + 2]))
    tracker.end([finished(t, a=1.0) for t in pack])
tracker.reconcile()
tracker.end_sweep("FINISHED", {"b": 1.0})
tracker.close()
"""


def write_all(uri, *, kill_after_s=None):
    command = [sys.executable, "-c", KILLED, uri, str(HERE), str(HERE.parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"open\n"
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(process.pid, signal.SIGKILL)
        return process.wait()


@pytest.mark.slow
def test_killed_at_any_moment_the_same_writes_converge_to_the_undisturbed_record(tmp_path, uri):
    trials = [trial(n) for n in range(40)]
    calm = f"sqlite:///{empty_sqlite(tmp_path / 'calm.db')}"
    assert write_all(calm) == 0
    chance, killed = random.Random(7), 0
    for _ in range(4):
        killed += write_all(uri, kill_after_s=chance.uniform(0.01, 0.25)) == -signal.SIGKILL
        connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
        torn = connection.execute(
            "SELECT COUNT(*) FROM (SELECT COUNT(*) c FROM metrics m JOIN runs r USING (run_uuid) "
            "WHERE m.timestamp >= r.start_time GROUP BY run_uuid, step HAVING c <> 2)"
        ).fetchone()
        connection.close()
        assert torn == (0,)
    assert killed >= 1
    assert write_all(uri) == 0
    mine, theirs = (open_tracker(address, experiment="tests") for address in (uri, calm))
    assert content(mine, trials) == content(theirs, trials)
    mine.close()
    theirs.close()
    columns = "m.key, m.value, m.timestamp - r.start_time, m.step, m.is_nan, m.run_uuid"
    for table in ("metrics", "latest_metrics"):
        joined = f"{table} m JOIN runs r USING (run_uuid) WHERE r.name <> 'a sweep'"
        assert _select(uri, columns, joined) == _select(calm, columns, joined)
    tags = f"tags WHERE key <> '{DRIVER}'"  # which names the process
    for columns, table in (("run_uuid, name, status", "runs"), ("*", "params"), ("*", tags)):
        assert _select(uri, columns, table) == _select(calm, columns, table)


def _open_one(uri, results):
    tracker = open_tracker(uri, experiment="tests")
    results.put(open_when_free(tracker))
    tracker.close()


@pytest.mark.slow
def test_two_first_starts_at_once_make_one_database(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [spawn.Process(target=_open_one, args=(uri, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert results.get() == results.get()
    assert len(runs_of(uri)) == 1


def test_a_description_begins_with_its_links_and_fits_in_a_tag():
    found = description(SWEEP, "7", "abc", ["a boundary"] * 50)
    plain = description(SWEEP, "7", "abc")
    assert "![" not in plain and "get-artifact?path=phase_diagram.png&run_uuid=abc" in found
    assert found.index("#/experiments/7/runs/abc/artifacts/phase_diagram.html") < found.index("![")
    assert found.count("- a boundary") == MOST_FOUND
    for text in (found, plain):
        assert PARENTS_ALONE in text and "tags.`mlflow.parentRunId` = 'abc'" in text
        assert 'metrics."axis/rate" > 1' in text
        assert "searchFilter=tags.%60mlflow.parentRunId%60%20%3D%20%27abc%27" in text
    assert len(description(replace(SWEEP, name="n" * 9000), "7", "abc")) == LONGEST_TAG

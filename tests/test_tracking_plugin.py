"""The bulk store under MLflow's client and server writes and reads the same data as MLflow's own store."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys

import pytest
from servers import empty_sqlite, mlflow_server, postgres_server

from orchestrator.tracking.address import quiet_mlflow


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    quiet_mlflow("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")


def exercise(uri, folder):
    """Use everything that the bulk store implements itself, by MLflow's client; return what the client then reads."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    number = client.create_experiment("exercise", tags={"a": "b"})
    run = client.create_run(number, start_time=1000, tags={"t": "1"}, run_name="name").info.run_id
    values = [0.5, math.nan, math.inf, -math.inf, 3, 2.5]
    metrics = [Metric("m", value, 10 + step % 4, step % 4) for step, value in enumerate(values)]
    for _ in range(2):
        client.log_batch(
            run,
            metrics=[*metrics, *metrics, Metric("n/x y", 1.0, 5, 0)],
            params=[Param("p", "x"), Param("q", "tab\there")],
            tags=[RunTag("t", "2"), RunTag("u", "\N{SNOWMAN}\n\\N")],
        )
    client.log_metric(run, "m", 7.0, timestamp=9, step=3)
    client.log_metric(run, "m", 8.0, timestamp=99, step=3)
    client.log_batch(run, metrics=[Metric("many", float(n), 1000 + n, n) for n in range(1000)])
    client.log_param(run, "r", 1)
    client.set_tag(run, "mlflow.runName", "other")
    refused = []
    for action in (
        lambda: client.log_batch(run, params=[Param("p", "changed")]),
        lambda: client.log_batch(run, metrics=[Metric("bad%name", 1.0, 0, 0)]),
        lambda: client.log_batch(run, metrics=[Metric("m", 1.0, -1, 0)]),
        lambda: client.log_metric("0" * 32, "m", 1.0),
        lambda: client.create_run("999"),
        lambda: client.create_run(number, tags={"mlflow.runName": "a"}, run_name="b"),
    ):
        with pytest.raises(MlflowException) as caught:
            action()
        refused.append(caught.value.error_code)
    client.set_terminated(run, "FAILED", end_time=2000)
    gone = client.create_run(number).info.run_id
    client.delete_run(gone)
    for action in (lambda: client.log_metric(gone, "m", 1.0), lambda: client.set_terminated(gone)):
        with pytest.raises(MlflowException) as caught:
            action()
        refused.append(caught.value.error_code)
    file = folder / "artifact.txt"
    file.write_text("content")
    client.log_artifact(run, str(file), "sub")
    read = client.get_run(run)
    info = read.info
    client.create_registered_model("model")
    return {
        "info": (info.run_name, info.status, info.start_time, info.end_time, info.user_id, info.lifecycle_stage),
        "metrics": {key: repr(value) for key, value in read.data.metrics.items()},
        "params": read.data.params,
        "tags": read.data.tags,
        "history": [(repr(m.value), m.step, m.timestamp) for m in client.get_metric_history(run, "m")],
        "many": len(client.get_metric_history(run, "many")),
        "found": [r.info.run_name for r in client.search_runs([number], "metrics.m > 7 and params.p = 'x'")],
        "files": [f.path for f in client.list_artifacts(run, "sub")],
        "refused": refused,
    }


def tables(file):
    connection = sqlite3.connect(file)
    run, row = "name, source_type, source_name, entry_point_name, status, source_version", "key, value, step, is_nan"
    found = {
        table: sorted(map(repr, connection.execute(f"SELECT {columns} FROM {table}")))
        for table, columns in (
            ("runs WHERE name = 'other'", run),
            ("metrics", f"{row}"),
            ("latest_metrics", f"timestamp, {row}"),
        )
    }
    connection.close()
    return found


@pytest.fixture(scope="module")
def mlflow_s_own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return exercise(f"sqlite:///{empty_sqlite(folder / 'own.db')}", folder), tables(folder / "own.db")


def test_the_sqlite_plugin_writes_and_reads_as_mlflow_s_store_does(tmp_path, mlflow_s_own):
    file = empty_sqlite(tmp_path / "with space" / "plugin.db")
    assert (exercise(f"phasefront-sqlite:///{file}", tmp_path), tables(file)) == mlflow_s_own
    assert (file.parent / "mlruns").is_dir()


@pytest.mark.slow
def test_the_postgresql_plugin_reads_as_mlflow_s_store_does(tmp_path, mlflow_s_own, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with postgres_server() as uri:
        assert exercise(f"phasefront-{uri}", tmp_path) == mlflow_s_own[0]


@pytest.mark.slow
def test_mlflow_s_server_on_the_plugin_serves_its_client(tmp_path, mlflow_s_own):
    file = empty_sqlite(tmp_path / "server.db")
    with mlflow_server(f"phasefront-sqlite:///{file}", tmp_path / "artifacts") as uri:
        assert exercise(uri, tmp_path) == mlflow_s_own[0]
    assert tables(file) == mlflow_s_own[1]


KILLED = """
import os, sys
import sqlalchemy
from orchestrator.tracking.address import database_address
from orchestrator.tracking.connection import mlflow_store
count = 0
def counted(*given):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os._exit(77)
sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", counted)
mlflow_store(database_address(f"sqlite:///{sys.argv[1]}/mlflow.db"), "tests")
"""


def test_a_process_killed_while_a_database_is_created_leaves_none_that_cannot_be_opened(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run([*command, "400"], check=False).returncode == 77
    assert not (tmp_path / "mlflow.db").exists()
    assert subprocess.run([*command, "0"], check=False).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]

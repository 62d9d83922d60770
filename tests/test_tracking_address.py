"""Parsing and printing of tracking addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import Outage, UserError
from orchestrator.outages import Patience
from orchestrator.tracking.address import database_address, shown
from orchestrator.tracking.http_api import MlflowApi
from orchestrator.tracking.replay_source import ReplaySource


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://user:secret@host/database", "postgresql://user:***@host/database"),
        (
            "phasefront-postgresql+psycopg://user:se:cr@t@host:5432/x",
            "phasefront-postgresql+psycopg://user:***@host:5432/x",
        ),
        (
            "postgresql://host/database?user=me&password=secret&sslmode=require",
            "postgresql://host/database?user=me&password=***&sslmode=require",
        ),
        ("http://user:secret@host:5000", "http://user:***@host:5000"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////data/a:b.db", "sqlite:////data/a:b.db"),
        ("memory:", "memory:"),
    ],
)
def test_an_address_is_printed_without_its_password(uri, expected):
    assert shown(uri) == expected


@pytest.mark.parametrize("path", ["file:/x/m.db?uri=true", "file:m.db", "m.db?timeout=5", "m.db?", "/x?y/m.db"])
def test_what_sqlite_would_drop_from_an_address_is_refused(path: str) -> None:
    for prefix in ("", "phasefront-"):
        with pytest.raises(UserError, match="is a path alone"):
            database_address(f"{prefix}sqlite:///{path}")


def test_a_folder_that_no_address_can_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would make another file, whose name ends before the question mark."""
    (folder := tmp_path / "a?b").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="without \\? in any folder"):
        database_address("sqlite:///mlflow.db")


def test_a_password_reaches_the_driver_and_no_message():
    assert ":secret@" in database_address("postgresql+psycopg2://me:secret@host/x").uri
    with pytest.raises(UserError) as caught:
        database_address("mysql://me:secret@host/x")
    assert "secret" not in caught.value.text
    with pytest.raises(UserError) as caught:
        MlflowApi("http://me:secret@nosuch.invalid:1", place="tracking.uri").connect()
    assert "secret" not in caught.value.text
    for host in ("127.0.0.1", "nosuch.invalid"):
        patience = Patience("the record", limit_s=0.0, say=print)
        with pytest.raises((UserError, Outage)) as caught_replay:
            ReplaySource(f"http://me:secret@{host}:1", place="--tracking", patience=patience)
        assert "secret" not in caught_replay.value.text

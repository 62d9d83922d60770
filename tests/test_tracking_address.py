"""Parsing and printing of tracking addresses."""

from __future__ import annotations

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

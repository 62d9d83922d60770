"""Connecting to a Ray cluster: the part that needs no Ray."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dispatch.ray_connection import connect, expect_answer
from orchestrator.errors import UserError
from tests.driving import environment


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that is taken, so that nobody else comes to listen there, and that does not answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_reported_before_ray_connects(
    silent: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", scheme + silent)
    with pytest.raises(UserError) as told:
        connect()
    assert told.value.text.startswith(f"RAY_ADDRESS: no Ray cluster answers at {silent}")
    assert "cluster/local/head.sh" in told.value.text
    assert "unset RAY_ADDRESS" in told.value.text


def test_a_host_without_a_name_is_the_same_mistake() -> None:
    with pytest.raises(UserError, match=r"no Ray cluster answers at nowhere\.invalid:6379"):
        expect_answer("nowhere.invalid:6379")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_something_listens_ray_may_try(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        expect_answer(f"{scheme}127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["auto", "local", "http://127.0.0.1:1", "anyscale://place", "host", "host:99999"])
def test_any_other_address_is_left_to_ray(address: str) -> None:
    expect_answer(address)


@pytest.mark.slow
def test_a_run_without_its_cluster_ends_as_a_users_mistake(silent: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def train(params, seed, device, report):\n    report(1, loss=params['lr'])\n")
    (tmp_path / "sweep.yaml").write_text("name: lost\njob: mine:train\naxes:\n  lr: {values: [1.0, 2.0]}\n")
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", "sweep.yaml"],
        cwd=tmp_path,
        env=environment({"RAY_ADDRESS": silent}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2, ended.stderr
    assert f"RAY_ADDRESS: no Ray cluster answers at {silent}" in ended.stderr
    assert "Traceback" not in ended.stderr

"""Every kind of store keeps the contract: a folder, a file system of pyarrow, and a bucket of an S3 server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.checkpoints.contents import BadCheckpoint, encoded
from orchestrator.checkpoints.store import ArrowStore, FolderStore, Store, StoreError, below, open_store, part_of
from tests.test_checkpoints import saved_trial

GOOD = encoded([saved_trial("a", 5), saved_trial("b", 6)], source="s")
OTHER = encoded([saved_trial("c", 9)], source="s")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a bucket on a server of this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/shelf", method="PUT")).close()
        yield f"s3://shelf/deep/folder?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


@pytest.fixture(params=["folder", "arrow", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "deep" / "folder"))
    if request.param == "arrow":
        return ArrowStore(f"file://{tmp_path}/deep/folder")
    return open_store(below(request.getfixturevalue("s3"), tmp_path.name))


def test_what_is_written_is_read_listed_and_deleted(store: Store) -> None:
    assert store.names() == [] and store.read("a.safetensors") is None
    store.delete_parts()
    store.write("a.safetensors", OTHER)
    store.write("a.safetensors", GOOD)
    store.write("b.safetensors", OTHER)
    assert store.names() == ["a.safetensors", "b.safetensors"], "and nothing half-written"
    assert store.read("a.safetensors") == GOOD
    assert store.table("a.safetensors").steps == {"a": 5, "b": 6}
    store.delete("a.safetensors")
    store.delete("a.safetensors")
    assert store.names() == ["b.safetensors"] and store.read("a.safetensors") is None


def test_other_files_are_not_listed(store: Store) -> None:
    store.write("a.safetensors", GOOD)
    store.write("notes.txt", b"the user's")
    assert store.names() == ["a.safetensors"]


def part_of_dead_process(name: str) -> str:
    command = f"from orchestrator.checkpoints.store import part_of; print(part_of({name!r}))"
    return subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout.strip()


def test_only_what_a_dead_writer_left_is_removed(store: Store) -> None:
    """A writer of another machine may live, as far as this one knows."""
    dead = part_of_dead_process("a.safetensors")
    elsewhere = re.sub(r"\.[0-9a-f]{8}-", ".00000000-", dead)
    others = [part_of("a.safetensors"), elsewhere, "a.safetensors.0123abcd.part", "notes.part", "b.safetensors"]
    for name in (dead, *others):
        store.write(name, GOOD)
    store.delete_parts()
    assert store.read(dead) is None
    assert [store.read(name) for name in others] == [GOOD] * len(others)


@pytest.mark.parametrize("address", ["{}", "file://{}"])
def test_what_was_left_long_ago_is_removed(tmp_path: Path, address: str) -> None:
    store = open_store(str(tmp_path)) if address == "{}" else ArrowStore(address.format(tmp_path))
    others, old = ["notes.part", "b.safetensors"], [part_of("a.safetensors"), "a.safetensors.0123abcd.part"]
    for name in (*others, *old):
        store.write(name, GOOD)
        os.utime(tmp_path / name, (0, 0))
    store.delete_parts()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_file_that_is_no_checkpoint_is_refused(store: Store) -> None:
    store.write("a.safetensors", b"12345678901234567890")
    store.write("b.safetensors", b"")
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(BadCheckpoint):
            store.table(name)
    with pytest.raises(StoreError):
        store.table("none.safetensors")


def test_the_kind_of_an_address(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), FolderStore)
    assert isinstance(open_store(f"file://{tmp_path}"), FolderStore)
    assert isinstance(open_store("C:/data"), FolderStore)


@pytest.mark.slow
def test_a_server_that_has_gone_is_a_store_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no secret is in its text."""
    away = "s3://key:hidden-secret@shelf/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    actions: list[Callable[[Store], object]] = [
        lambda store: store.write("a.safetensors", GOOD),
        lambda store: store.read("a.safetensors"),
        lambda store: store.names(),
    ]
    for action in actions:
        with pytest.raises(StoreError) as error:
            action(open_store(away))
        assert "hidden-secret" not in str(error.value)

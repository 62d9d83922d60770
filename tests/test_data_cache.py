"""Data sets that several workers of a machine need at once are made by one of them."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driving import wait_for
from tests.image_files import write_cifar, write_idx

WORKERS = 3

LOADS = """
import dataclasses, json, sys
from jobs.data import images
name, address, digests = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
images.SOURCES[name] = dataclasses.replace(images.SOURCES[name], address=address, files=digests)
print("here", flush=True)
print(len(images.load_images(name).x), flush=True)
"""

GENERATES = """
import sys, time
import mnist1d.data
original = mnist1d.data.make_dataset
def make_dataset(arguments):
    with open(sys.argv[1], "a") as log:
        log.write("made\\n")
    time.sleep(0.5)
    return original(arguments)
mnist1d.data.make_dataset = make_dataset
from jobs.data.mnist1d import mnist1d
print(len(mnist1d(60, 40)[0]))
"""


class Server(http.server.ThreadingHTTPServer):
    """Counts what is asked for; answers once the gate is open."""

    def __init__(self, folder: Path) -> None:
        self.counts, self.gate = Counter[str](), threading.Event()
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.counts[self.path] += 1
        self.server.gate.wait(60)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    serving = Server(tmp_path / "served")
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield serving
    serving.gate.set()
    serving.shutdown()
    thread.join()
    serving.server_close()


def environ(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PHASEFRONT_DATA": str(tmp_path / "data")}


def loaders(server: Server, tmp_path: Path, name: str) -> list[subprocess.Popen[str]]:
    """Processes that load a data set, all of which have begun."""
    files = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in sorted((tmp_path / "served").iterdir())}
    names = "{" + ", ".join(f'"{file}": "{digest}"' for file, digest in files.items()) + "}"
    command = [sys.executable, "-c", LOADS, name, server.address, names]
    found = [
        subprocess.Popen(command, env=environ(tmp_path), stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)
    ]
    for process in found:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
    return found


def answers(processes: list[subprocess.Popen[str]]) -> list[str]:
    return [process.communicate()[0].strip() for process in processes]


def test_workers_that_need_an_archive_at_once_download_it_once(server: Server, tmp_path: Path) -> None:
    path = write_cifar(tmp_path / "served" / "cifar-10-binary.tar.gz")
    processes = loaders(server, tmp_path, "cifar10")
    wait_for("a request", lambda: server.counts.total() > 0)
    time.sleep(0.5)
    server.gate.set()
    assert answers(processes) == ["300"] * WORKERS
    assert server.counts == {f"/{path.name}": 1}


def test_workers_that_need_several_files_at_once_download_each_once(server: Server, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "idx")
    for file in folder.iterdir():
        file.rename(tmp_path / "served" / file.name)
    server.gate.set()
    assert len(set(answers(loaders(server, tmp_path, "mnist")))) == 1
    assert set(server.counts.values()) == {1} and len(server.counts) == 4


def test_a_worker_that_is_killed_while_it_downloads_leaves_it_to_another(server: Server, tmp_path: Path) -> None:
    write_cifar(tmp_path / "served" / "cifar-10-binary.tar.gz")
    first, *others = loaders(server, tmp_path, "cifar10")
    wait_for("a request", lambda: server.counts.total() > 0)
    for process in (first, *others[:-1]):  # whichever downloads; if it is the last one, it goes on
        process.send_signal(signal.SIGKILL)
    server.gate.set()
    assert answers([others[-1]]) == ["300"]
    answers([first, *others[:-1]])
    assert server.counts.total() <= WORKERS


def test_workers_that_need_generated_data_at_once_generate_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GENERATES, str(log)], env=environ(tmp_path), stdout=subprocess.PIPE, text=True
        )
        for _ in range(WORKERS)
    ]
    assert answers(processes) == ["60"] * WORKERS
    assert log.read_text() == "made\n"

"""Each worker has a GPU of its own, or a slice of one: with the names of slices, where there is no GPU."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from driving import environment, run, wait_for
from servers import free_port

pytestmark = pytest.mark.slow
SLICES = "MIG-6d1fd0e9-a,MIG-0b9c5d1c-b"
JOB = """\
import os, time
from pathlib import Path
def train(*, x: float, seed, device, report):
    Path(FOLDER, f"seen-{x:g}.txt").write_text(f"{device} {os.environ['CUDA_VISIBLE_DEVICES']}")
    time.sleep(2)
    report(1, loss=x)
"""
BROKEN = """\
import os, time
def train(*, x: float, seed, device, report):
    time.sleep(0.3)
    if os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-0b9c5d1c-b":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    report(1, loss=x)
"""
SWEEP = """\
job: seen:train
axes: {x: [1, 2, 3, 4]}
resources: {device: cuda, cpus_per_worker: 0.5}
output: out
"""


def write(folder: Path) -> None:
    (folder / "seen.py").write_text(f"FOLDER = {str(folder)!r}\n{JOB}")
    (folder / "sweep.yaml").write_text(SWEEP)


def seen(folder: Path) -> set[str]:
    return {file.read_text() for file in folder.glob("seen-*.txt")}


def test_each_worker_of_a_local_run_has_a_slice(tmp_path: Path) -> None:
    write(tmp_path)
    code, text = run("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ={"CUDA_VISIBLE_DEVICES": SLICES})
    assert code == 0, text
    assert seen(tmp_path) == {f"cuda {name}" for name in SLICES.split(",")}


def test_a_node_whose_slices_are_named_and_counted_gives_each_worker_one(tmp_path: Path) -> None:
    write(tmp_path)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
    port = free_port()
    sockets = tempfile.mkdtemp(prefix="pf-", dir="/tmp")  # a socket's path may hold 107 bytes
    ray = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    head = subprocess.Popen(
        [*ray, "--num-gpus=2", "--include-dashboard=false", f"--temp-dir={sockets}"],
        env=environment({**token, "CUDA_VISIBLE_DEVICES": SLICES}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        wait_for("the head", answers)
        address = {"RAY_ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
        code, text = run("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ={**token, **address})
        assert code == 0, text
        assert seen(tmp_path) == {f"cuda {name}" for name in SLICES.split(",")}
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(sockets, ignore_errors=True)


def test_a_broken_gpu_fails_no_trial_and_gets_no_packs(tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(BROKEN)
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("[1, 2, 3, 4]", str(list(range(30)))))
    code, text = run("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ={"CUDA_VISIBLE_DEVICES": SLICES})
    assert code == 0, text
    assert "GPU MIG-0b9c5d1c-b of" in text and "gets no packs for 30 minutes" in text
    assert "30 trials finished" in text

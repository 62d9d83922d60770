"""Whole sweeps on a GPU: `phasefront plan`, `run` and `audit` through Ray and MLflow, from sweep file to figures.

`python -m tests.benchmarks.gpu_sweep [--device cuda] [--replicates 20] [--packs-per-gpu 1,4]`; `--device cpu` runs the
same commands at small sizes, so that the program is known to work before a GPU is at hand. Start-up is stated apart: it
is everything outside the time from the first pack handed out to the last trial recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).with_name("peer_sweep.yaml")
GROKKING = """
name: grokking-on-a-gpu
job: grokking
axes:
  weight_decay: {scale: log, from: 0.1, to: 10, points: 12}
  data_fraction: {scale: linear, from: 0.25, to: 0.8, points: 12}
fixed: {model: quadratic_mlp, modulus: 97, width: 256, steps: 3000}
replicates: 1
"""
TRANSFORMER = """
name: transformer-on-a-gpu
job: grokking
axes:
  data_fraction: {scale: linear, from: 0.3, to: 0.8, points: 6}
fixed:
  {model: transformer, modulus: 97, width: 128, loss: cross_entropy, learning_rate: 0.001, weight_decay: 1.0,
   steps: 2000, batch_size: 512, curve_points: 40}
replicates: 4
"""


def phasefront(folder: Path, *arguments: str) -> tuple[float, str]:
    """Run a command in `folder`; its seconds and its output.

    Raises:
        SystemExit: it failed.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"phasefront {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began, done.stdout


def sweep(text: str, settings: dict[str, Any], resources: dict[str, Any]) -> str:
    """One row of the table."""
    content = yaml.safe_load(text)
    content["resources"] = resources
    content["fixed"] |= settings.pop("fixed", {})
    content |= settings
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
        _, planned = phasefront(folder, "plan", "sweep.yaml")
        wall, _ = phasefront(folder, "run", "sweep.yaml")
        _, audited = phasefront(folder, "audit", "sweep.yaml")
        run = json.loads(next((folder / "phasefront-out").rglob("run.json")).read_text())
        pictures = len(list((folder / "phasefront-out").rglob("*.png")))
    estimate = re.search(r"^time +(.*)$", planned, re.MULTILINE)
    rows = re.search(r"^rows +(.*)$", planned, re.MULTILINE)
    cells = [
        str(content["name"]),
        f"{run['workers']} workers",
        f"{run['done']} trials, {run['failed']} failed",
        f"{run['done'] / run['seconds']:.3g} trials/s",
        f"{run['seconds']:.1f} s, of it training {run['train_s'] / run['workers']:.1f} s a worker",
        f"plan: {estimate.group(1) if estimate else 'none'}",
        rows.group(1) if rows else "",
        f"{wall - run['seconds']:.1f} s of start-up and figures",
        f"{pictures} PNG",
        re.sub(r"\s+", " ", audited.strip().splitlines()[-1]),
    ]
    return "| " + " | ".join(cells) + " |"


def numbers(text: str) -> Sequence[int]:
    """Whole numbers, by comma."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--replicates", type=int, default=20, help="of the perceptrons' sweep of 38 settings")
    parser.add_argument("--packs-per-gpu", type=numbers, default=(1, 4), help="workers that share one GPU, by comma")
    given = parser.parse_args()
    cuda = given.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; `--device cpu` runs the same commands at small sizes")
    print(f"{torch.cuda.get_device_name() if cuda else 'CPU'}; torch {torch.__version__}, {os.cpu_count()} cores")
    for share in given.packs_per_gpu:
        resources = {"device": given.device, "gpus_per_worker": 1 / share if share > 1 else 1} if cuda else {}
        if not cuda:
            resources = {"device": "cpu", "workers": share}
        small: dict[str, Any] = {} if cuda else {"fixed": {"steps": 50}}
        replicates = given.replicates if cuda else 1
        print(sweep(PEERS.read_text(), {"replicates": replicates, **small}, dict(resources)), flush=True)
        small = {} if cuda else {"fixed": {"steps": 20, "modulus": 7, "width": 16}}
        print(sweep(GROKKING, dict(small), dict(resources)), flush=True)
        print(sweep(TRANSFORMER, {"replicates": 4 if cuda else 1, **small}, dict(resources)), flush=True)


if __name__ == "__main__":
    main()

"""What packs are compared with: the device's own rates, and plain PyTorch with one model a process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu.measure import TURNS, Bench
from tests.benchmarks.gpu.report import OverTimeError, Report, counted, middle, number, spread

ROOT = Path(__file__).resolve().parents[3]


def machine_rates(report: Report, bench: Bench, scale: int) -> None:
    """The measured fp32 matrix rate and copy bandwidth, and the constants by which the planner predicts."""
    n, device = 8192 // scale, bench.device

    def timed(work: Callable[[], Any], count: int) -> float:
        work()
        bench.wait()
        began = time.perf_counter()
        for _ in range(count):
            work()
        bench.wait()
        return (time.perf_counter() - began) / count

    try:
        with report.limited():
            a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
            out = torch.empty_like(a)
            products = [2 * n**3 / timed(lambda: torch.mm(a, b, out=out), 5) / 1e12 for _ in range(TURNS)]
            report.row(f"fp32 matrix product, {n}", "", middle(products, " TFLOP/s"), spread(products))
            bench.flop_per_s = 1e12 * sorted(products)[TURNS // 2]
            big = torch.empty(2**30 // scale**2, dtype=torch.uint8, device=device)
            copies = [2 * len(big) / timed(big.clone, 10) / 1e9 for _ in range(TURNS)]
            report.row("copy", "", middle(copies, " GB/s"), spread(copies))
            bench.bytes_per_s = 1e9 * sorted(copies)[TURNS // 2]
    except OverTimeError as over:
        report.missing("rates of the device", "", str(over))
    machine = bench.machine
    report.row(
        "the planner's constants",
        "probe" if machine.measured else "defaults",
        f"{machine.matmul_flop_per_s / 1e12:.3g} TFLOP/s",
        "n = 1" if machine.measured else "",
        "",
        "",
        f"{1e6 * machine.launch_s:.3g} us a launch, {1e12 * machine.element_s:.3g} ps an element; no rehearsal",
    )


def compare(report: Report, width: int, processes: int, steps: int, device: str, best: float) -> None:
    """A row: steps per second of this many processes together, and the best pack's ratio to them."""
    case, way = f"plain PyTorch, width {width}", counted(processes, "process")
    command = [sys.executable, "-m", "tests.benchmarks.gpu.plain", device, str(width), str(steps)]
    limit_s, limit = report.limit(3)  # processes start slowly where there are many

    def run(_: int) -> float:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=limit_s)
        return float(json.loads(done.stdout.splitlines()[-1])["rate"])

    if limit_s <= 0:
        report.missing(case, way, limit)
        return
    try:
        with ThreadPoolExecutor(processes) as pool:
            rate = sum(pool.map(run, range(processes)))
    except subprocess.TimeoutExpired:
        report.missing(case, way, limit)
    except subprocess.CalledProcessError as error:
        report.missing(case, way, (error.stderr.strip().splitlines() or ["no message"])[-1][:200])
    else:
        note = f"the best pack: {number(best / rate)} times" if best else "no pack to compare with"
        report.row(case, way, middle([rate], " model-steps/s"), "n = 1", "", "", note)

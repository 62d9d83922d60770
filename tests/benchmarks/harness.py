"""Information that every benchmark prints with its results: hardware, versions, number of runs, spread."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"


def machine() -> str:
    """One line: processor, cores, memory, Python."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return f"{cpu}, {os.cpu_count()} cores, {kib / 2**20:.0f} GiB; Python {platform.python_version()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def versions(*packages: str) -> str:
    """`name version` of each installed package."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)


def spread(values: Sequence[float], form: str = "{:.3g}") -> str:
    """Median, and the range where there are several."""
    text = form.format(statistics.median(values))
    if len(values) > 1:
        text += f" [{form.format(min(values))} - {form.format(max(values))}; n = {len(values)}]"
    return text


def timed(work: Callable[[], Any], runs: int) -> list[float]:
    """Wall seconds of each of `runs` calls."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds


def run_json(command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None) -> dict[str, Any]:
    """Run a program and read the JSON of its last line.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"{command}: exit {done.returncode}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def matmul_rate(seconds: float = 1.0) -> float:
    """Floating-point operations per second of one core's float32 matrix product (1,024 x 1,024), best of many."""
    code = (
        "import json, time, torch; torch.set_num_threads(1); a = torch.randn(1024, 1024); o = torch.empty_like(a); "
        "best = 1e9; end = time.perf_counter() + SECONDS\n"
        "while time.perf_counter() < end:\n"
        "    s = time.perf_counter(); torch.mm(a, a, out=o); best = min(best, time.perf_counter() - s)\n"
        "print(json.dumps({'rate': 2 * 1024**3 / best}))"
    ).replace("SECONDS", str(seconds))
    return float(run_json([sys.executable, "-c", code])["rate"])


def goal(name: str, value: float, least: float) -> str:
    """A line that says whether a figure reaches its goal."""
    return f"{'reached' if value >= least else 'MISSED '}  {name}: {value:.3g} (goal >= {least:g})"

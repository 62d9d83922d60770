"""100,000 trivial trials through plan, run, record, resume and map; and the memory of the driver.

`python tests/benchmarks/bench_scale.py [--trials N] [--turns N]`. A trial is a plain function that
reports one metric at five steps (trivial_job.py). Each command is a process of its own, as a user calls it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from harness import ROOT, goal, machine, spread, versions

SWEEP = """
name: scale
job: trivial_job:train
axes: {{x: {{scale: linear, from: 0, to: 1, points: {points}}}}}
replicates: {replicates}
output: {folder}/out
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""


def command(verb: str, sweep: Path) -> dict[str, Any]:
    """Run one command; its wall seconds, the peak memory of its own process, and its output."""
    import subprocess

    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", verb, str(sweep)],
        cwd=sweep.parent,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            peak[0] = max([peak[0], *(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))])
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.communicate()[0]
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{verb}: exit {process.returncode}\n{output}")
    return {"seconds": time.perf_counter() - began, "peak_gb": peak[0] * 1024 / 1e9, "output": output}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    replicates = 10
    print(f"{arguments.trials} trivial trials: {machine()}; {versions('ray', 'mlflow', 'sqlalchemy')}")
    rates, resumes, peaks = [], [], []
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as folder:
            sweep = Path(folder) / "scale.yaml"
            text = SWEEP.format(points=arguments.trials // replicates, replicates=replicates, folder=folder)
            sweep.write_text(text)
            for verb in ("check", "plan", "run", "run", "map", "status"):
                done = command(verb, sweep)
                print(f"{verb:7} {done['seconds']:7.1f} s, peak memory {done['peak_gb']:.2f} GB", flush=True)
                if verb == "run" and len(rates) == len(resumes):
                    run = json.loads((Path(folder) / "out" / "run.json").read_text())
                    rates.append(run["done"] / run["seconds"])
                    peaks.append(done["peak_gb"])
                    print(f"        {run}")
                elif verb == "run":
                    resumes.append(done["seconds"])
                    assert f"{arguments.trials} were finished before" in done["output"], done["output"]
    print(f"trials/s recorded: {spread(rates)}; resume {spread(resumes)} s; driver's peak {spread(peaks)} GB")
    print(goal("trials/s, recorded", statistics.median(rates), 1000))
    print(goal("30 s over the seconds of a resume with nothing to do", 30 / statistics.median(resumes), 1))
    print(goal("1.5 GB over the driver's peak memory", 1.5 / statistics.median(peaks), 1))


if __name__ == "__main__":
    main()

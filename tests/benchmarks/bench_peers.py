"""The peers' sweep, side by side: `phasefront run` with MLflow, Ray Tune with and without MLflow, JAX vmap.

`python tests/benchmarks/bench_peers.py [--turns N] [--without jax,tune_mlflow]`. The programs take turns
on an otherwise idle machine; ratios are taken within a turn. JAX gets an environment of its own
(.bench/jax, made at the first call). Seconds are each program's own, start-up apart (Ray, imports): of
Phasefront from the first pack handed out to the last trial recorded; of Ray Tune the call of fit(); of JAX the
whole loop, compilation included, as its user pays it. The whole process's wall time is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from harness import PEERS, ROOT, goal, machine, matmul_rate, run_json, spread, versions

STEPS, BATCH, EXAMPLES, REPORTS = 2000, 100, 5000, 40
SWEEP = Path(__file__).with_name("peer_sweep.yaml")


def trial_flop(width: int) -> float:
    """Floating-point operations of one trial: forward and backward of every step, and the evaluations."""
    layers = [(40, width), (width, width), (width, 10)]
    forward = sum(a * b for a, b in layers)
    # No gradient with respect to the inputs is needed.
    step = 3 * forward - layers[0][0] * layers[0][1]
    return 2.0 * (STEPS * BATCH * step + REPORTS * EXAMPLES * forward)


def phasefront(replicates: int, env: dict[str, str]) -> dict[str, Any]:
    """One run from scratch: a new database, every trial."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "orchestrator", "run", str(SWEEP), "--set", f"replicates={replicates}"]
        command += ["--set", f"output={folder}/out", "--set", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        wall = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        run = json.loads((Path(folder) / "out" / "run.json").read_text())
        return {**run, "trials": run["done"], "wall": wall}


def peer(name: str, replicates: int, env: dict[str, str]) -> dict[str, Any]:
    """One run of a peer program."""
    python = sys.executable
    script, extra = "ray_tune_double_descent.py", []
    if name == "tune":
        extra = ["--no-mlflow"]
    if name == "jax":
        python, script = str(jax_python()), "jax_vmap_double_descent.py"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = run_json(
            [python, str(PEERS / script), "--replicates", str(replicates), *extra], env=env, cwd=Path(folder)
        )
    return {**result, "wall": time.perf_counter() - began}


def jax_python() -> Path:
    """The interpreter of JAX's own environment, made where there is none."""
    folder = ROOT / ".bench" / "jax"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "jax", "mnist1d"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--peer-replicates", type=int, default=1, help="of Ray Tune, whose rate does not depend on it")
    parser.add_argument("--without", default="", help="peers to leave out, by comma")
    arguments = parser.parse_args()
    env = dict(os.environ)
    peers = [name for name in ("tune_mlflow", "tune", "jax") if name not in arguments.without.split(",")]
    print(f"peers' sweep: {machine()}; {versions('torch', 'ray', 'mlflow')}")
    widths = sorted({int(300 ** (i / 19) * 2 ** (1 - i / 19)) for i in range(20)})
    flop = statistics.mean(trial_flop(width) for width in widths)
    rates: dict[str, list[float]] = {name: [] for name in ("phasefront", *peers)}
    shares, overheads, walls = [], [], []
    for turn in range(arguments.turns):
        limit = (os.cpu_count() or 1) * matmul_rate() / flop
        ours = phasefront(arguments.replicates, env)
        rates["phasefront"].append(ours["trials"] / ours["seconds"])
        shares.append(rates["phasefront"][-1] / limit)
        overheads.append(1 - ours["train_s"] / (ours["workers"] * ours["seconds"]))
        walls.append(ours["wall"])
        print(f"turn {turn + 1}: limit {limit:.2f} trials/s; phasefront {ours}", flush=True)
        for name in peers:
            result = peer(name, arguments.replicates if name == "jax" else arguments.peer_replicates, env)
            rates[name].append(result["trials_per_s"])
            print(f"turn {turn + 1}: {name} {result['trials_per_s']} trials/s, wall {result['wall']:.1f} s", flush=True)
    for name, values in rates.items():
        print(f"{name}: {spread(values)} trials/s")
    print(f"whole process of phasefront run: {spread(walls)} s wall; mean work of a trial {flop / 1e9:.1f} GFLOP")
    for name, least in (("tune_mlflow", 25), ("tune", 8), ("jax", 6)):
        if name in rates:
            ratio = statistics.median(a / b for a, b in zip(rates["phasefront"], rates[name], strict=True))
            print(goal(f"trials/s over {name}", ratio, least))
    print(goal("share of the matrix-product limit", statistics.median(shares), 0.4), f"- {spread(shares)}")
    print(
        goal("share of the wall time that is training", 1 - statistics.median(overheads), 0.9), f"- {spread(overheads)}"
    )


if __name__ == "__main__":
    main()

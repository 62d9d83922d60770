"""Grokking, full batch: packs against a plain PyTorch loop, on every core at once.

One process a core on both sides, the same steps and measurements; the two sides take turns, and the
ratio is taken within each turn. `python tests/benchmarks/bench_grokking.py [--turns N]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness import PEERS, ROOT, goal, machine, run_json, spread, versions

CASES: list[dict[str, Any]] = [
    {"model": "quadratic_mlp", "modulus": 13, "width": 64, "steps": 1500, "plain": 2, "packed": 64, "goal": 5},
    {"model": "quadratic_mlp", "modulus": 31, "width": 200, "steps": 500, "plain": 2, "packed": 16, "goal": 2},
    {"model": "transformer", "modulus": 59, "width": 128, "steps": 60, "plain": 1, "packed": 4, "goal": 1.3},
]
POINTS = 40


def packed(case: dict[str, Any], seed: int) -> None:
    """Train one pack in this process and print its JSON line."""
    sys.path.insert(0, str(ROOT))
    import torch

    from jobs.grokking.job import Grokking
    from jobs.grokking.params import GrokkingParams
    from jobs.job import Member

    torch.set_num_threads(1)
    loss = {"loss": "squared"} if case["model"] == "quadratic_mlp" else {"loss": "cross_entropy", "learning_rate": 1e-3}
    shared = {k: case[k] for k in ("model", "modulus", "width")} | loss | {"data_fraction": 0.5, "weight_decay": 1.0}
    job = Grokking()

    def train(models: int, steps: int) -> None:
        params = GrokkingParams(steps=steps, curve_points=POINTS, **shared)
        for _ in job.train([Member(params=params, seed=seed + i) for i in range(models)], device="cpu"):
            pass

    train(1, 5)
    began = time.perf_counter()
    train(case["packed"], case["steps"])
    print(json.dumps({"models": case["packed"], "seconds": time.perf_counter() - began}))


def turn(case: dict[str, Any], cores: int, side: str) -> float:
    """Trials per second of all cores together."""
    plain = [sys.executable, str(PEERS / "plain_grokking.py"), "--points", str(POINTS)]
    for name in ("model", "modulus", "width", "steps"):
        plain += [f"--{name}", str(case[name])]
    commands = [
        [*plain, "--models", str(case["plain"]), "--seed", str(100 * core)]
        if side == "plain"
        else [sys.executable, __file__, "--packed", json.dumps(case), "--seed", str(100 * core)]
        for core in range(cores)
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor(cores) as pool:
        results = list(pool.map(lambda command: run_json(command, env=env), commands))
    return sum(result["models"] / result["seconds"] for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--packed", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.packed:
        packed(json.loads(arguments.packed), arguments.seed)
        return
    cores = os.cpu_count() or 1
    print(f"grokking, full batch, {cores} processes of one thread; {machine()}; {versions('torch')}")
    verdicts = []
    for case in CASES:
        rates = {side: [] for side in ("plain", "packed")}
        for _ in range(arguments.turns):
            for side, values in rates.items():
                values.append(turn(case, cores, side))
        ratios = [b / a for a, b in zip(rates["plain"], rates["packed"], strict=True)]
        name = f"{case['model']} p = {case['modulus']}, width {case['width']}, {case['steps']} steps"
        sides = ", ".join(f"{side} {spread(values)} trials/s" for side, values in rates.items())
        print(f"{name}: {sides}, ratio {spread(ratios)}")
        verdicts.append(goal(name, statistics.median(ratios), case["goal"]))
    print(*verdicts, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except subprocess.SubprocessError as error:
        raise SystemExit(str(error)) from error

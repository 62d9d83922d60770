"""Module jobs against a plain PyTorch loop and the hand-written packed perceptron.

`python -m tests.benchmarks.bench_module`. Both sides train in one thread, with the same steps and measurements;
processor time is compared, so that the figures hold for one process per core; it contains the drawing of the data.
Start-up is apart: how a pack trains is chosen beforehand, as for 20,000 steps, and what that takes is printed.
`--repeats N` repeats the whole; `--models M` trains M models a pack; `--steps N` trains longer (always with ten
measurements); `--jax PYTHON` compares the perceptrons with JAX too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.double_descent.job import DoubleDescent
from jobs.job import Member
from jobs.module import Data, ModuleJob, ModuleParams, Random, param
from jobs.module import pack as packs

PLAIN = 2
"""Models that the plain loop trains; its time is per model."""
LONG = 20_000
JAX = Path(__file__).parent / "peers" / "jax_vmap_mlp.py"
GOALS = {"mlp 16": 4.0, "mlp 64": 2.3, "mlp 256": 1.2, "transformer 32": 0.95, "cnn 1-8-16": 0.95}
STEPS = {"mlp 16": 1000, "mlp 64": 600, "mlp 256": 600, "transformer 32": 60, "cnn 1-8-16": 200}


class Transformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(32, width), nn.Parameter(0.02 * torch.randn(8, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second, self.read = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(functional.gelu(self.up(self.second(x))))
        return self.read(x[:, -1])


class Bench(ModuleJob):
    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        kind: str = param("mlp 16", choices=tuple(GOALS), meaning="network")

    def model(self, params: Any) -> nn.Module:
        name, _, size = params.kind.partition(" ")
        if name == "transformer":
            return Transformer(int(size))
        if name == "cnn":
            layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            layers += [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 10))
        w = int(size)
        return nn.Sequential(nn.Linear(40, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 10))

    def data(self, params: Any, random: Random) -> Data:
        name = params.kind.partition(" ")[0]
        train, test = (4000, 1000) if name == "mlp" else (1024, 256)
        y = random.integers("y", 10, train + test)
        if name == "transformer":
            x = random.integers("x", 32, train + test, 8)
        elif name == "cnn":
            x = random.normal("x", train + test, 1, 12, 12)
        else:
            x = random.normal("x", train + test, 40)
        return Data(train=(x[:train], y[:train]), test=(x[train:], y[train:]))


def plain_s(job: Bench, member: Member[Any]) -> float:
    """Processor seconds of a plain PyTorch loop for one model."""
    p = member.params
    reports = set(job.schedule(p).tolist())
    began = time.thread_time()
    torch.manual_seed(member.seed)
    model, data = job.model(p), job.data(p, Random.of_seed(member.seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=p.learning_rate, momentum=p.momentum)
    (x, y), step = data.train, 0
    while step < p.steps:
        order = torch.randperm(len(x))
        for rows in order.split(p.batch_size):
            if step == p.steps or len(rows) < p.batch_size:
                break
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
            if step in reports:
                model.eval()
                with torch.no_grad():
                    for inputs, labels in (data.train, data.test):
                        output = model(inputs)
                        functional.cross_entropy(output, labels).item()
                        (output.argmax(1) == labels).float().mean().item()
                model.train()
    return time.thread_time() - began


def packed_s(job: Any, members: list[Member[Any]]) -> float:
    """Processor seconds per model of a pack."""
    began = time.thread_time()
    for _ in job.train(members, device="cpu"):
        pass
    return (time.thread_time() - began) / len(members)


def chosen(job: Bench, members: list[Member[Any]], device: str = "cpu") -> packs.Way:
    """How these trials would train if they were long; the next pack trains so."""
    packs._CHOSEN.clear()
    longer = [packs.trial_of(job, k, replace(m, params=replace(m.params, steps=LONG))) for k, m in enumerate(members)]
    return packs._way(job, longer, device)


def measured(kind: str, models: int, steps: int) -> tuple[str, float]:
    """A line of the table, and the ratio."""
    job = Bench()
    batch = 256 if kind.startswith("transformer") else 100
    values = {"kind": kind, "optimiser": "sgd", "learning_rate": 0.01, "batch_size": batch, "curve_points": 10}
    params = job.params_for({**values, "steps": steps})
    members = [Member(params=params, seed=k + 1) for k in range(models)]
    began = time.thread_time()
    way = chosen(job, members)
    packed_s(job, [replace(m, params=replace(params, steps=4, curve_points=2)) for m in members])
    start_s = time.thread_time() - began
    plain = statistics.median(plain_s(job, member) for member in members[:PLAIN])
    packed = packed_s(job, members)
    how = "one at a time" if way.size == 1 else f"{way.size} stacked{', recorded' * way.recorded}"
    ratio = plain / packed
    times = f"{1e3 * plain / steps:.3f} -> {1e3 * packed / steps:.3f} ms a step"
    return f"{kind:<16} {ratio:5.2f} (goal {GOALS[kind]:g})  {times}; {how}; start-up {start_s:.1f} s", ratio


def against_hand_written(models: int) -> tuple[str, float]:
    """The module job's perceptron of width 64 against the hand-written one, with the same numbers."""
    steps, hand = STEPS["mlp 64"], DoubleDescent()
    values = {"width": 64, "pool": 4000, "test_count": 1000, "data": "gaussian_teacher", "inputs": 40}
    p = hand.params_for({**values, "batch_size": 100, "steps": steps, "curve_points": 10})
    members = [Member(params=p, seed=k + 1) for k in range(models)]
    packed_s(hand, members[:2])
    theirs = packed_s(hand, members)
    job = Bench()
    common = {"kind": "mlp 64", "optimiser": "sgd", "learning_rate": 0.01, "curve_points": 10, "steps": steps}
    stacked = [Member(params=job.params_for(common), seed=m.seed) for m in members]
    chosen(job, stacked)
    ours = packed_s(job, stacked)
    return f"{'hand-written 64':<16} {theirs / ours:5.2f} (goal 0.6)", theirs / ours


def against_jax(python: str, kind: str, models: int) -> tuple[str, float]:
    """Processor time of JAX by hand over that of a module job; compilation, and the choice how it trains, included."""
    job, width = Bench(), kind.removeprefix("mlp ")
    common = {"kind": kind, "optimiser": "sgd", "learning_rate": 0.01, "curve_points": 10, "steps": STEPS[kind]}
    params = job.params_for(common)
    reports = ",".join(map(str, job.schedule(params).tolist()))
    command = [python, str(JAX), "--width", width, "--models", str(models), "--reports", reports]
    jax = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    packs._CHOSEN.clear()
    packs._ALONE.clear()
    ours_s = models * packed_s(job, [Member(params=params, seed=k + 1) for k in range(models)])
    again_s = models * packed_s(job, [Member(params=params, seed=k + 1) for k in range(models)])
    later_s = jax["cpu_s"] - jax["first_report_cpu_s"]
    ratio = jax["cpu_s"] / ours_s
    text = f"{'jax, ' + kind:<16} {ratio:5.2f} (goal 2)  {jax['cpu_s']:.1f} -> {ours_s:.1f} s"
    return f"{text}; without start-up {later_s:.2f} -> {again_s:.2f} s", ratio


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--models", type=int, default=32)
    parser.add_argument("--steps", type=int, help="of the trainings that are compared with the plain loop")
    parser.add_argument("--kinds", nargs="*", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--jax", metavar="PYTHON", help="compare with JAX too, in the environment of this interpreter")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("ratio of processor time, plain PyTorch loop over module job")
    ratios: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        for kind in arguments.kinds:
            line, ratio = measured(kind, arguments.models, arguments.steps or STEPS[kind])
            ratios.setdefault(kind, []).append(ratio)
            print(line, flush=True)
        for kind in arguments.kinds if arguments.jax else ():
            if kind.startswith("mlp"):
                line, ratio = against_jax(arguments.jax, kind, arguments.models)
                ratios.setdefault(f"jax, {kind}", []).append(ratio)
                print(line, flush=True)
        if "mlp 64" in arguments.kinds:
            line, ratio = against_hand_written(arguments.models)
            ratios.setdefault("hand-written 64", []).append(ratio)
            print(line, flush=True)
    if arguments.repeats > 1:
        for name, values in ratios.items():
            print(f"{name:<16} median {np.median(values):.2f} [{min(values):.2f}-{max(values):.2f}], n = {len(values)}")


if __name__ == "__main__":
    main()

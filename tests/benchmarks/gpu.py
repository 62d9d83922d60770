"""Packs on one GPU: the device law on real values, and speed against one model at a time and one process per model.

Needs torch and numpy alone; ends within eight minutes. `python -m tests.benchmarks.gpu [--device cuda]`; `--device cpu`
runs the same cases at small sizes, so that the program is known to work before a GPU is at hand.

A rate is model-steps per second, from the difference of a long and a short training of the same pack: neither the
start-up nor the evaluations count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from jobs.double_descent import fused  # noqa: E402
from jobs.double_descent.image_job import ImageDoubleDescent  # noqa: E402
from jobs.double_descent.image_params import ImageParams  # noqa: E402
from jobs.double_descent.job import DoubleDescent  # noqa: E402
from jobs.double_descent.params import DoubleDescentParams  # noqa: E402
from jobs.grokking.job import Grokking  # noqa: E402
from jobs.grokking.params import GrokkingParams  # noqa: E402
from jobs.job import Job, Member, Params  # noqa: E402
from jobs.packed import capture  # noqa: E402
from jobs.ridge.job import Ridge  # noqa: E402
from jobs.ridge.params import RidgeParams  # noqa: E402
from tests.image_files import write_cifar  # noqa: E402

TURNS = 3
PERCEPTRON: dict[str, Any] = {"data": "gaussian_teacher", "pool": 1000, "test_count": 100, "batch_size": 100}
GROK: dict[str, Any] = {"data_fraction": 0.5, "weight_decay": 1.0}
CLASSIFIED: dict[str, Any] = {"loss": "cross_entropy", "learning_rate": 1e-3}
SMALL: dict[str, Any] = {"steps": 25, "curve_points": 10}

LAW: list[tuple[str, Job[Any], list[Params]]] = [
    (
        "perceptron, SGD",
        DoubleDescent(),
        [DoubleDescentParams(width=w, label_noise=0.2, **PERCEPTRON, **SMALL) for w in (3, 17, 64)],
    ),
    (
        "perceptron, AdamW",
        DoubleDescent(),
        [DoubleDescentParams(width=w, optimiser="adamw", **PERCEPTRON, **SMALL) for w in (5, 9)],
    ),
    ("perceptron, squared", DoubleDescent(), [DoubleDescentParams(width=12, loss="squared", **PERCEPTRON, **SMALL)]),
    (
        "quadratic",
        Grokking(),
        [GrokkingParams(modulus=13, width=40, weight_decay=w, data_fraction=0.6, **SMALL) for w in (0.0, 1.0)],
    ),
    (
        "embedding perceptron",
        Grokking(),
        [GrokkingParams(model="embedding_mlp", modulus=13, width=20, **CLASSIFIED, **SMALL)],
    ),
    ("transformer", Grokking(), [GrokkingParams(model="transformer", modulus=13, width=32, **CLASSIFIED, **SMALL)]),
    ("ridge", Ridge(), [RidgeParams()]),
]


class Report:
    """Prints a table row by row, so that what was measured survives an early end."""

    def __init__(self, budget_s: float) -> None:
        self._ends = time.monotonic() + budget_s

    @property
    def over(self) -> bool:
        return time.monotonic() > self._ends

    def row(self, name: str, *cells: str) -> None:
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median and range."""
    middle = f"{statistics.median(values):.3g}{unit}"
    return f"{middle} [{min(values):.3g} - {max(values):.3g}; n = {len(values)}]" if len(values) > 1 else middle


def curves(job: Job[Any], params: Sequence[Params], device: str) -> dict[tuple[int, int, str], float]:
    """(member, step, metric) -> value."""
    pack = [Member(params=p, seed=7 + i) for i, p in enumerate(params)]
    return {
        (int(position), report.step, metric): float(value)
        for report in job.train(pack, device=device)
        for metric, values in report.values.items()
        for position, value in zip(report.members, values, strict=True)
    }


def device_law(report: Report, device: str) -> None:
    """Largest deviation of a loss between the CPU and the device, relative to its size (absolute below 1)."""
    for name, job, params in LAW:
        try:
            here, there = curves(job, params, "cpu"), curves(job, params, device)
        except Exception as error:  # one job that fails on a GPU must not hide the others' results
            report.row(f"law: {name}", f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            continue
        same = here.keys() == there.keys()
        worst = (
            max(abs(there[k] - v) / max(1.0, abs(v)) for k, v in here.items() if "loss" in k[2] and np.isfinite(v))
            if same
            else float("nan")
        )
        report.row(
            f"law: {name}", f"{len(here)} values", "same steps" if same else "OTHER STEPS", f"deviation {worst:.1e}"
        )


def seconds(make: Callable[[int], Params], job: Job[Any], models: int, steps: int, device: str) -> float:
    """From the first report to the last; each report reads values from the device and so waits for it."""
    pack = [Member(params=make(steps), seed=i) for i in range(models)]
    reports = iter(job.train(pack, device=device))
    next(reports)
    began = time.perf_counter()
    for _ in reports:
        pass
    return time.perf_counter() - began


def pack_rate(make: Callable[[int], Params], job: Job[Any], models: int, device: str, room_s: float) -> list[float]:
    """Model-steps per second, `TURNS` times."""
    short, steps = 32, 64
    base = min(seconds(make, job, models, short, device) for _ in range(2))
    while (spent := seconds(make, job, models, steps, device) - base) < room_s and steps < 1 << 15:
        steps *= max(2, min(8, int(room_s / max(spent, 1e-3))))
    rates = []
    for _ in range(TURNS):
        difference = -seconds(make, job, models, short, device) + seconds(make, job, models, steps, device)
        rates.append(models * (steps - short) / difference if difference > 0 else float("nan"))
    return rates


def memory_of(work: Callable[[], Any], device: str) -> str:
    """Peak bytes of the device's memory that `work` allocated."""
    if not device.startswith("cuda"):
        work()
        return ""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"


def plain(width: int, steps: int, device: str) -> None:
    """One perceptron, by ordinary PyTorch; prints its steps per second as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(1000, 40, device=device), torch.randint(10, (1000,), device=device)
    model = torch.nn.Sequential(
        torch.nn.Linear(40, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    ).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train(count: int) -> None:
        order = torch.randperm(1000, device=device)
        for step in range(count):
            if step % 10 == 0:
                order = torch.randperm(1000, device=device)
            rows = order[step % 10 * 100 : step % 10 * 100 + 100]
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    train(50)
    began = time.perf_counter()
    train(steps)
    print(json.dumps({"rate": steps / (time.perf_counter() - began)}))


def plain_rate(width: int, processes: int, steps: int, device: str) -> float:
    """Steps per second of this many processes together."""
    command = [sys.executable, __file__, "--device", device, "--plain", str(width), "--steps", str(steps)]

    def run(_: int) -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout.splitlines()[-1])["rate"])

    with ThreadPoolExecutor(processes) as pool:
        return sum(pool.map(run, range(processes)))


def machine_rates(report: Report, device: str, scale: int) -> None:
    """The measured fp32 matrix rate and copy bandwidth."""
    n = 8192 // scale
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    big = torch.empty(2**30 // scale**2, dtype=torch.uint8, device=device)

    def timed(work: Callable[[], Any], count: int) -> float:
        work()
        wait(device)
        began = time.perf_counter()
        for _ in range(count):
            work()
        wait(device)
        return (time.perf_counter() - began) / count

    products = [2 * n**3 / timed(lambda: torch.mm(a, b, out=a.new_empty(n, n)), 5) / 1e12 for _ in range(TURNS)]
    report.row(f"fp32 matrix product, {n}", spread(products, " TFLOP/s"))
    copies = [2 * len(big) / timed(big.clone, 10) / 1e9 for _ in range(TURNS)]
    report.row("copy", spread(copies, " GB/s"))


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def perceptron(width: int) -> Callable[[int], Params]:
    return lambda steps: DoubleDescentParams(width=width, steps=steps, curve_points=2, **PERCEPTRON)


def grok(**settings: Any) -> Callable[[int], Params]:
    return lambda steps: GrokkingParams(steps=steps, curve_points=2, **GROK, **settings)


def images(archive: Path, **settings: Any) -> Callable[[int], Params]:
    given = {"archive": str(archive), "test_count": 16, "train_evaluated": 16, "curve_points": 2} | settings
    return lambda steps: ImageParams(steps=steps, **given)


def convolutions(report: Report, device: str, scale: int, room_s: float) -> None:
    """Rates of packs of convolutional networks on random images of CIFAR-10's size, batch 128."""
    with tempfile.TemporaryDirectory() as folder:
        archive = write_cifar(Path(folder) / "images.tar.gz", train=1000 // scale, test=16)
        for model, width, sizes in (("cnn5", 8, (1, 8, 32)), ("cnn5", 64, (1, 8)), ("preact_resnet18", 16, (1, 4))):
            for models in sizes if scale == 1 else (1,) if width == 8 else ():
                if report.over:
                    return
                make = images(archive, model=model, width=width, pool=5 * (1000 // scale), batch_size=128 // scale)
                case(
                    report,
                    f"{model}, width {width}, {models} models",
                    make,
                    ImageDoubleDescent(),
                    models,
                    device,
                    room_s,
                )


def packs(report: Report, device: str, scale: int, room_s: float) -> None:
    """Rates of packs, kernel by kernel and captured; memory; the ratio to one process per model."""
    large = scale == 1
    best: dict[int, float] = {}
    for width in (8, 16, 32, 64, 256, 512) if large else (8, 64):
        flops = 3 * 2 * 100 * (40 * width + width * width + 10 * width)
        for models in (1, 10, 100, 1000, 10_000) if large else (1, 10):
            if report.over or models * width * width > 1e8 or (width in (16, 32) and models < 100):
                continue
            name = f"perceptron, width {width}, {models} models"
            small = width <= fused.WIDEST
            rate = case(report, name, perceptron(width), DoubleDescent(), models, device, room_s, flops, small=small)
            if models <= 1000:
                best[width] = max(rate, best.get(width, 0.0))
    for width in (64, 256):
        for processes in sorted({1, min(16, os.cpu_count() or 1)}) if width in best else ():
            if report.over:
                return
            rate = plain_rate(width, processes, 2000 // scale, device)
            report.row(
                f"plain PyTorch, width {width}, {processes} processes",
                f"{rate:.3g} model-steps/s (n = 1)",
                f"the best pack: {best[width] / rate:.0f} times",
            )
    cases: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
        ("quadratic p = 31, width 200", {"modulus": 31, "width": 200}, (1, 10, 100, 1000)),
        ("quadratic p = 97, width 500", {"modulus": 97, "width": 500}, (1, 10, 50)),
        (
            "transformer p = 97, width 128",
            {"model": "transformer", "modulus": 97, "width": 128, **CLASSIFIED},
            (1, 4, 16),
        ),
    ]
    for name, settings, sizes in (
        cases if large else [("quadratic p = 13, width 64", {"modulus": 13, "width": 64}, (1, 10))]
    ):
        for models in sizes:
            if report.over:
                return
            case(report, f"{name}, {models} models", grok(**settings), Grokking(), models, device, room_s)


def case(
    report: Report,
    name: str,
    make: Callable[[int], Params],
    job: Job[Any],
    models: int,
    device: str,
    room_s: float,
    flops: float = 0.0,
    small: bool = False,
) -> float:
    """One row; the rate of the captured pack. A small perceptron is trained by the fused kernel too."""
    ways = ("eager",)
    if device.startswith("cuda"):
        ways = ("eager", "captured", "fused") if small and fused.available() else ("eager", "captured")
    found: dict[str, list[float]] = {}
    peak = ""
    fused.ONLY_MEASURED = False
    for way in ways:
        capture.ENABLED, fused.ENABLED = way == "captured", way == "fused"
        rates: list[float] = []
        try:
            peak = memory_of(lambda r=rates: r.extend(pack_rate(make, job, models, device, room_s)), device)
        except Exception as error:  # out of memory, a step that cannot be captured, a kernel that is not compiled
            report.row(name, f"{way}: {str(error).splitlines()[0][:200]}")
            break
        found[way] = rates
    capture.ENABLED = fused.ENABLED = fused.ONLY_MEASURED = True
    medians = {way: statistics.median(rates) for way, rates in found.items()}
    if not medians:
        return 0.0
    main = "captured" if "captured" in found else "eager"
    cells = [spread(found[main], " model-steps/s"), f"{1e6 * models / medians[main]:.0f} us a step"]
    if main != "eager":
        cells.append(f"{medians[main] / medians['eager']:.2f} times eager")
    if "fused" in found:
        cells.append(f"fused: {spread(found['fused'])}, {medians['fused'] / medians[main]:.2f} times captured")
    if flops:
        cells.append(f"{medians[main] * flops / 1e12:.3g} TFLOP/s")
    report.row(name, *cells, peak)
    return medians[main]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=300, help="no case begins after this many seconds")
    parser.add_argument("--room", type=float, default=0.4, help="seconds of one timed training")
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        plain(given.plain, given.steps, given.device)
        return
    cuda = given.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; `--device cpu` runs the same cases at small sizes")
    name = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    print(f"{name}; torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")
    report, scale = Report(given.seconds), 1 if cuda else 8
    device_law(report, given.device)
    machine_rates(report, given.device, scale)
    convolutions(report, given.device, scale, given.room)
    packs(report, given.device, scale, given.room)


if __name__ == "__main__":
    main()

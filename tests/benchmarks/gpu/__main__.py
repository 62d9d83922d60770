"""Packs on one GPU: the device law on real values, speed, memory, and what the planner predicted of both.

`python -m tests.benchmarks.gpu [--device cuda]` needs torch and numpy alone, prints one table and ends within eight
minutes: a row that takes more than `--row` seconds, and what remains after `--seconds`, is "not measured".

`--dry` runs the same cases on a CPU at small sizes, so that the program is known to work before a GPU is at hand.
Memory is that of the tensors, and nothing is captured or fused. Steps go through torch.compile with a backend that
traces them and compiles nothing, so that no C++ compiler is needed: their curves are compared, their speed is not
measured. `--backend inductor` compiles them.

A rate is model-steps per second, from the difference of a long and a short training of the same pack: neither the
start-up nor the evaluations count. Predicted time is that of the planner before any rehearsal, by the constants that
its probe measures first. Shares of the device's rates are by the planner's counts.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from jobs.job import Member
from orchestrator.plan import calibration
from tests.benchmarks.gpu import cases
from tests.benchmarks.gpu.measure import TRACED, Bench, Case, curves, deviation, measure, summary
from tests.benchmarks.gpu.rates import ROOT, compare, machine_rates
from tests.benchmarks.gpu.report import OverTimeError, Report
from tests.benchmarks.harness import machine, versions
from tests.image_files import write_cifar

LAST_S = 475.0
"""The process ends after so many seconds even where the GPU's driver hangs."""


def described(device: str) -> str:
    """Hardware, versions and commit."""
    gpu = ""
    if device == "cuda":
        gpu = f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB; "
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return f"{gpu}{machine()}; {versions('torch', 'numpy', 'triton')}; CUDA {torch.version.cuda}; commit {commit}"


def device_law(report: Report, archive: str, device: str) -> None:
    """Largest deviation of a loss between the CPU and the device."""
    for name, job, params in cases.law(archive):
        pack = [Member(params=p, seed=7 + i) for i, p in enumerate(params)]
        try:
            with report.limited():
                here, there = curves(job, pack, "cpu"), curves(job, pack, device)
        except OverTimeError as over:
            report.missing(f"law: {name}", "as in a sweep", str(over))
            continue
        except Exception as error:  # one job that fails on a GPU must not hide the others' results
            text = (str(error).splitlines() or [""])[0][:200]
            report.row(f"law: {name}", "as in a sweep", "FAILED", "", "", "", f"{type(error).__name__}: {text}")
            continue
        off = deviation(here, there)
        text = "OTHER STEPS" if off is None else f"deviation {off:.1e}"
        report.row(f"law: {name}", "as in a sweep", text, f"n = {len(here)} values")


def rows(report: Report, bench: Bench, archive: str, *, large: bool) -> None:
    """All packs, the ones that matter most first."""
    device = bench.device
    sizes = (1, 10, 100, 1000, 10_000) if large else (1, 10)
    for width in (64, 256) if large else (64,):
        best = measured(report, bench, cases.perceptrons(width, sizes, device))
        for processes in sorted({1, min(16, os.cpu_count() or 1)}):
            compare(report, width, processes, 2000 if large else 250, device, best)
    measured(report, bench, cases.grokking(device, large=large))
    measured(report, bench, cases.modules(large=large))
    measured(report, bench, cases.convolutions(archive, device, large=large))
    # Of 1 and 10 models, and of 10,000, the time allows few.
    further = {8: sizes, 512: sizes[2:], 32: sizes[2:4], 16: sizes[2:4]} if large else {8: sizes}
    for width, few in further.items():
        measured(report, bench, cases.perceptrons(width, few, device))


def measured(report: Report, bench: Bench, packs: Iterable[Case]) -> float:
    """The best rate of packs of at most 1,000 models."""
    return max((rate for case in packs if (rate := measure(report, bench, case)) and case.models <= 1000), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dry", dest="device", action="store_const", const="cpu", help="the same as --device cpu")
    parser.add_argument("--seconds", type=float, default=440, help="nothing is measured after this many seconds")
    parser.add_argument("--row", type=float, default=20, help="the longest time of one row, in seconds")
    parser.add_argument("--room", type=float, default=0.15, help="seconds of one timed training, about")
    parser.add_argument("--backend", help="of torch.compile; by default inductor on a GPU, aot_eager on a CPU")
    given = parser.parse_args()
    cuda = given.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; `--dry` runs the same cases at small sizes")
    if not cuda:
        torch.set_num_threads(1)
    faulthandler.dump_traceback_later(LAST_S, exit=True)
    report = Report(given.seconds, given.row)
    print(described(given.device) + "\n")
    report.header()
    bench = Bench(
        device=given.device,
        machine=calibration.measure(given.device),
        room_s=given.room if cuda else given.room / 5,
        backend=given.backend or ("inductor" if cuda else TRACED),
    )
    with tempfile.TemporaryDirectory() as folder:
        archive = str(write_cifar(Path(folder) / "images.tar.gz", train=1000 if cuda else 125, test=16))
        device_law(report, archive, given.device)
        machine_rates(report, bench, 1 if cuda else 8)
        rows(report, bench, archive, large=cuda)
    summary(report, bench)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()

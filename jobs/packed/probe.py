"""The speed of this machine at the three parts of a pack's cost: `python -m jobs.packed.probe`.

Prints one JSON line: seconds per launched operation, floating-point operations per second of batched matrix products,
and seconds per visited element, for one thread of a CPU or for a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch

_REPEATS = 7


def measure(device: str, threads: int = 1) -> dict[str, float | str]:
    """The three speeds, each the best of a few repeats (other load only slows); takes about a second on a CPU."""
    torch.set_num_threads(threads)
    big = device.startswith("cuda")
    models, rows, width = (64, 512, 256) if big else (16, 100, 96)
    left = torch.randn(models, rows, width, device=device)
    right = torch.randn(models, width, width, device=device)
    out = torch.empty(models, rows, width, device=device)
    tiny = torch.randn(16, device=device)
    values = torch.randn(1 << (24 if big else 18), device=device)
    kept = torch.empty_like(values)
    launch_s = _seconds(lambda: tiny.add_(1e-9), device, 2000)
    matmul_s = _seconds(lambda: torch.bmm(left, right, out=out), device, 100)
    visit_s = _seconds(lambda: torch.mul(values, values, out=kept), device, 200)
    return {
        "device": device,
        "threads": threads,
        "launch_s": launch_s,
        "matmul_flop_per_s": 2.0 * models * rows * width * width / max(matmul_s - launch_s, matmul_s / 10),
        "element_s": max(visit_s - launch_s, visit_s / 10) / len(values),
    }


def _seconds(work: Callable[[], object], device: str, count: int) -> float:
    """Seconds of one call."""

    def once() -> float:
        began = time.perf_counter()
        for _ in range(count):
            work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    once()
    return min(once() for _ in range(_REPEATS))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.device, arguments.threads)))


if __name__ == "__main__":
    main()

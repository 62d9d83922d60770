"""The peak memory of a pack is known before it trains, to a tenth; the planner cuts packs by it."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils import backend_registration

from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.packed import loop
from jobs.packed.storages import PeakMemory
from orchestrator.plan.calibration import DEFAULT_CUDA, Calibration
from orchestrator.plan.planner import Planner
from orchestrator.trial import Trial
from tests.gpu_dry.stand_in import NAME
from tests.memory_packs import packs

ROOT = Path(__file__).parent.parent
WITHIN = 0.1
FEWEST_PACKS = 20
HAS_STAND_IN = not torch.cuda.is_available() and hasattr(
    backend_registration, "_setup_privateuseone_for_python_backend"
)


def table(device: str) -> dict[str, tuple[float, int]]:
    """Pack -> predicted and counted bytes; in a process of its own, as the stand-in is registered once and for all."""
    command = [sys.executable, "-m", "tests.memory_packs", device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=True)
    results: dict[str, tuple[float, int]] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            NAME,
            marks=[
                pytest.mark.long,
                pytest.mark.skipif(not HAS_STAND_IN, reason="torch cannot register a stand-in"),
            ],
        ),
    ],
)
def test_the_predicted_peak_memory_is_that_of_the_training_to_a_tenth(device: str) -> None:
    found = table(device)
    assert len(found) >= FEWEST_PACKS
    off = {name: f"{p / c:.2f}" for name, (p, c) in found.items() if abs(p / c - 1) > WITHIN}
    assert not off, off


KINDS = [
    "perceptrons, full batch",
    "images, CNN on signals",
    "grokking, p = 31",
    "grokking, embedding",
    "module, AdamW",
]


@pytest.mark.parametrize("name", KINDS)
def test_the_memory_of_a_pack_is_freed_when_it_ends(name: str) -> None:
    """The next pack of the worker would find less than the planner counts with until Python's collector runs."""
    (pack,) = (pack for pack in packs("") if pack.name == name)
    pack.counted("cpu")  # what is loaded once remains
    gc.disable()
    try:
        counting = PeakMemory()
        with counting:
            for _ in pack.job.train(pack.members, device="cpu"):
                pass
        assert counting.storages.live < 0.01 * counting.storages.peak
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grokking, p = 31", "perceptrons, full batch", "ridge, relu features"])
def test_the_counted_peak_is_that_of_the_allocator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's profiler. It does not see tensors on numpy's memory, which these packs do not have."""
    (pack,) = (pack for pack in packs("") if pack.name == name)
    counted = pack.counted("cpu")
    monkeypatch.setattr(loop, "OFFER_S", 1e9)
    monkeypatch.setattr(loop, "FIRST_PIECE", 10**9)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        for _ in pack.job.train(pack.members, device="cpu"):
            pass
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert peak == pytest.approx(counted, rel=0.02)


def test_what_is_freed_is_no_longer_counted() -> None:
    with PeakMemory() as mode:
        kept = torch.zeros(10)
        kept.view(5, 2).add_(1)
        torch.ones(1000)
        assert (mode.storages.live, mode.storages.peak) == (40, 4040)


def test_a_pack_fits_the_memory_of_a_gpu_with_the_larger_pieces_that_it_measures_there() -> None:
    job, budget = DoubleDescent(), 3e8
    params = DoubleDescentParams(width=256, steps=10)

    def bytes_of(models: int, device: str) -> float:
        return job.memory_bytes(params, extent=job.extent(params), models=models, device=device)

    trials = [Trial(job="double_descent", job_version=job.version, params=params, replicate=k) for k in range(64)]
    planner = Planner(
        job_name="double_descent",
        job=job,
        calibration=Calibration(machine=DEFAULT_CUDA),
        memory_budget_bytes=budget,
    )
    planned = planner.plan(trials, workers=1)
    assert bytes_of(64, "cpu") < budget < bytes_of(64, "cuda")
    assert all(pack.memory_bytes == bytes_of(len(pack.trials), "cuda") <= budget for pack in planned)

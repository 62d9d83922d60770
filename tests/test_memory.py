"""The peak memory of a pack is known before it trains, to a tenth; the planner cuts packs by it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from jobs.catalogue import load_job
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.packed.storages import PeakMemory
from orchestrator.plan.calibration import DEFAULT_CPU, DEFAULT_CUDA, Calibration, Machine
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
        pytest.param(NAME, marks=pytest.mark.skipif(not HAS_STAND_IN, reason="torch cannot register a stand-in")),
    ],
)
def test_the_predicted_peak_memory_is_that_of_the_training_to_a_tenth(device: str) -> None:
    found = table(device)
    assert len(found) >= FEWEST_PACKS
    off = {name: f"{p / c:.2f}" for name, (p, c) in found.items() if abs(p / c - 1) > WITHIN}
    assert not off, off


@pytest.mark.parametrize("name", ["perceptrons, width 64", "grokking, embedding", "grokking, transformer"])
def test_the_counted_peak_is_that_of_pytorch_s_allocator(name: str) -> None:
    """What an operation uses within itself is not counted: it is small here."""
    (pack,) = (pack for pack in packs("") if pack.name == name)
    counted = pack.counted("cpu")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        for _ in pack.job.train(pack.members, device="cpu"):
            pass
    totals = [
        total for event in profiler.profiler.kineto_results.experimental_event_tree() for total in allocated(event)
    ]
    assert counted == pytest.approx(max(totals) - min(0, min(totals)), rel=WITHIN)


def allocated(event: object) -> list[int]:
    """The allocator's total after each allocation of an event and of those within it."""
    found, waiting = [], [event]
    while waiting:
        at = waiting.pop()
        if at.typed[0] == torch._C._profiler._EventType.Allocation:  # type: ignore[attr-defined]
            found.append(at.typed[1].total_allocated)  # type: ignore[attr-defined]
        waiting.extend(at.children)  # type: ignore[attr-defined]
    return found


def test_what_is_freed_is_no_longer_counted() -> None:
    with PeakMemory() as mode:
        kept = torch.zeros(10)
        kept.view(5, 2).add_(1)
        torch.ones(1000)
        assert (mode.storages.live, mode.storages.peak) == (40, 4040)


def plans(machine: Machine, budget: float) -> list[int]:
    """Sizes of the packs of 64 equal perceptrons."""
    params = DoubleDescentParams(width=256, pool=4000, steps=1000)
    trials = [
        Trial(job="double_descent", job_version=DoubleDescent.version, params=params, replicate=k) for k in range(64)
    ]
    planner = Planner(
        job_name="double_descent",
        job=load_job("double_descent"),
        calibration=Calibration(machine=machine),
        memory_budget_bytes=budget,
    )
    planned = planner.plan(trials, workers=1)
    assert all(pack.memory_bytes <= budget * 1.001 for pack in planned)
    return sorted(len(pack.trials) for pack in planned)


def test_a_pack_fits_the_memory_of_a_gpu_with_the_larger_pieces_that_it_measures_there() -> None:
    budget = 3e8
    assert len(plans(DEFAULT_CUDA, budget)) > len(plans(DEFAULT_CPU, budget))
    assert len(plans(DEFAULT_CUDA, 100 * budget)) == 1

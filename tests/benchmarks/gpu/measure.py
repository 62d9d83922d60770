"""How a pack is measured: rates, memory and the planner's predictions, in each way to train its steps."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch._dynamo.utils import counters

from jobs.double_descent import fused
from jobs.job import Job, Member, Params
from jobs.packed import capture, loop
from jobs.packed.block import weakly
from jobs.packed.storages import PeakMemory
from orchestrator.plan.calibration import Machine
from tests.benchmarks.gpu.report import OverTimeError, Report, middle, spread, within

TURNS = 3
SHORT = 32
"""Steps of the short training of a pair."""
LONGEST = 1 << 15
MEMORY_STEPS = 160
"""Steps of the training whose memory is measured: several chunks of batches."""
TRACED = "aot_eager"
"""A backend of `torch.compile` that traces, differentiates and functionalises, and compiles nothing."""
_WARM_UP = 8
"""Steps before a compiled step is captured: it is compiled again for the numbers of the host that change."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Packs of one kind."""

    name: str
    job: Job[Any]
    make: Callable[[int], Params]
    """Parameters by the number of steps."""
    models: int
    ways: Sequence[str]
    prepare: Callable[[Sequence[Member[Any]], str], str] = lambda pack, device: ""
    """Called first, with the pack and the device; returns a note."""

    def pack(self, steps: int) -> list[Member[Any]]:
        """Trials that differ in their seeds."""
        return [Member(params=self.make(steps), seed=seed) for seed in range(self.models)]

    @property
    def main(self) -> str:
        """The way of which memory is measured, and time compared with what was predicted."""
        return "captured" if "captured" in self.ways else self.ways[0]

    def step_s(self, machine: Machine) -> float:
        """Seconds of a step of the pack, by the planner's counts."""
        short, long = (self._cost(SHORT), self._cost(SHORT + 1000))
        return (machine.seconds(long) - machine.seconds(short)) / 1000

    def operations(self) -> tuple[float, float]:
        """Of a step, by the planner's counts: operations of matrix products, bytes visited by other operations."""
        short, long = (self._cost(SHORT), self._cost(SHORT + 1000))
        visits = long.element_visits - short.element_visits
        return (long.matmul_flop - short.matmul_flop) / 1000, 4 * visits / 1000

    def _cost(self, steps: int) -> Any:
        params = self.make(steps)
        return self.job.cost(params, extent=self.job.extent(params), models=self.models)

    def memory_bytes(self, device: str) -> float:
        """Predicted peak of a training of `MEMORY_STEPS`."""
        params = self.make(MEMORY_STEPS)
        return self.job.memory_bytes(params, extent=self.job.extent(params), models=self.models, device=device)


@dataclass(kw_only=True)
class Bench:
    """What all packs are measured with, and the ratios of predicted to measured values."""

    device: str
    machine: Machine
    room_s: float
    """Seconds of one timed training, about."""
    backend: str | Callable[..., Any]
    """Of `torch.compile`."""
    flop_per_s: float = 0.0
    """Measured rate of fp32 matrix products; 0: unknown."""
    bytes_per_s: float = 0.0
    """Measured rate of a copy; 0: unknown."""
    times: list[float] = field(default_factory=list)
    """Predicted over measured step; of captured packs on a GPU."""
    memories: list[float] = field(default_factory=list)
    """Predicted over measured peak memory, of the same."""

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Until the device has finished."""
        if self.cuda:
            torch.cuda.synchronize()


def curves(job: Job[Any], pack: Sequence[Member[Any]], device: str) -> dict[tuple[int, int, str], float]:
    """(member, step, metric) -> value."""
    return {
        (int(position), report.step, metric): float(value)
        for report in job.train(pack, device=device)
        for metric, values in report.values.items()
        for position, value in zip(report.members, values, strict=True)
    }


def deviation(here: dict[tuple[int, int, str], float], there: dict[tuple[int, int, str], float]) -> float | None:
    """Largest difference of a loss, relative to its size (absolute below 1); None: the curves have other steps."""
    if here.keys() != there.keys():
        return None
    losses = [(value, there[key]) for key, value in here.items() if "loss" in key[2] and np.isfinite(value)]
    return max((abs(other - value) / max(1.0, abs(value)) for value, other in losses), default=None)


@contextlib.contextmanager
def trained_by(way: str, backend: str | Callable[..., Any]) -> Iterator[None]:
    """Packs are trained kernel by kernel ("eager"), "captured", "compiled" and captured, or by the "fused" kernel."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(capture, "ENABLED", way in ("captured", "compiled")))
        stack.enter_context(patch.object(fused, "ENABLED", way == "fused"))
        stack.enter_context(patch.object(fused, "ONLY_MEASURED", False))
        stack.enter_context(patch.object(capture, "weakly", _compiler(backend) if way == "compiled" else weakly))
        if way == "compiled":
            stack.enter_context(patch.object(capture, "_WARM_UP", _WARM_UP))
            torch._dynamo.reset()
            counters.clear()
            stack.callback(torch._dynamo.reset)
        yield


def _compiler(backend: str | Callable[..., Any]) -> Callable[[Any], Callable[..., None]]:
    """Compiles the steps of blocks; as `jobs.packed.block.weakly`, it does not hold the block."""

    @cache
    def of_class(step: Callable[..., None]) -> Callable[..., None]:
        return torch.compile(step, backend=backend)

    def compiled(method: Any) -> Callable[..., None]:
        step, block = of_class(method.__func__), weakref.ref(method.__self__)
        return lambda *inputs: step(block(), *inputs)

    return compiled


def graphs() -> str:
    """What `torch.compile` has made since it was last reset."""
    made, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    return f"{made} graphs, {breaks} breaks"


def measure(report: Report, bench: Bench, case: Case) -> float:
    """One row for each way; the best rate, 0 where nothing was measured."""
    predicted_s, best, eager = case.step_s(bench.machine), 0.0, 0.0
    for way in case.ways:
        row = _Row(predicted_s=predicted_s, eager=eager)
        try:
            with report.limited(3 if way == "compiled" else 1), trained_by(way, bench.backend):
                row.measure(bench, case, way)
        except OverTimeError as over:
            row.notes.append(str(over))
        except Exception as error:  # out of memory, a step that cannot be captured, a kernel that is not compiled
            row.notes.append(
                f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else repr(error)
            )
        if way == "eager" and row.rates:
            eager = statistics.median(row.rates)
        report.row(case.name, way, *row.cells(bench, case))
        if row.rates:
            best = max(best, statistics.median(row.rates))
            if way == case.main:
                bench.times.append(row.predicted_s / row.step_s(case))
        if row.peak:
            bench.memories.append(case.memory_bytes(bench.device) / row.peak)
    return best


@dataclass(kw_only=True)
class _Row:
    predicted_s: float
    eager: float
    """Rate of the eager pack; 0: unknown."""
    rates: list[float] = field(default_factory=list)
    """Model-steps per second."""
    peak: float = 0.0
    """Bytes; 0: unknown."""
    notes: list[str] = field(default_factory=list)

    def step_s(self, case: Case) -> float:
        return case.models / statistics.median(self.rates)

    def measure(self, bench: Bench, case: Case, way: str) -> None:
        if way == "compiled":
            self._compile(bench, case)
            if bench.backend == TRACED:
                self.notes.append(f"traced by the backend {TRACED}, which compiles nothing: no speed to measure")
                return
        if note := case.prepare(case.pack(SHORT), bench.device):
            self.notes.append(note)
        if way == case.main:
            self.peak = peak_bytes(bench, case)
        for rate in rates(bench, case):
            self.rates.append(rate)
        if not self.rates:
            self.notes.append("a long training took less time than a short one")

    def _compile(self, bench: Bench, case: Case) -> None:
        """Train a few steps compiled, which compiles them, and eager."""
        began = time.perf_counter()
        there = curves(case.job, case.pack(SHORT), bench.device)
        self.notes.append(f"{graphs()}, {time.perf_counter() - began:.1f} s for the first {SHORT} steps")
        with trained_by("eager", bench.backend):
            off = deviation(curves(case.job, case.pack(SHORT), bench.device), there)
        self.notes.append("OTHER STEPS than eager" if off is None else f"deviation from eager {off:.1e}")

    def cells(self, bench: Bench, case: Case) -> list[str]:
        """The columns after case and way."""
        planned = f"planned {_time(self.predicted_s)}"
        memory = ""
        if self.peak:
            predicted = case.memory_bytes(bench.device)
            memory = f"{self.peak / 2**20:.3g} MiB, predicted {predicted / 2**20:.3g} MiB: {predicted / self.peak:.2f}"
        if not self.rates:
            return ["not measured", "", planned, memory, "; ".join(self.notes)]
        step_s, (flop, visited) = self.step_s(case), case.operations()
        notes = [f"{statistics.median(self.rates) / self.eager:.2f} times eager"] if self.eager else []
        if bench.flop_per_s:
            notes.append(f"{flop / step_s / bench.flop_per_s:.1%} of the matrix rate")
        if bench.bytes_per_s:
            notes.append(f"{visited / step_s / bench.bytes_per_s:.1%} of the copy rate")
        return [
            middle(self.rates, " model-steps/s"),
            spread(self.rates),
            f"{_time(step_s)}, {planned}: {self.predicted_s / step_s:.2f}",
            memory,
            "; ".join(notes + self.notes),
        ]


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} us" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


def seconds(case: Case, steps: int, device: str) -> float:
    """From the first report to the last; each report reads values from the device and so waits for it."""
    reports = iter(case.job.train(case.pack(steps), device=device))
    next(reports)
    began = time.perf_counter()
    for _ in reports:
        pass
    return time.perf_counter() - began


def rates(bench: Bench, case: Case) -> Iterator[float]:
    """Model-steps per second, at most `TURNS` times: none where a long training took less time than a short one."""
    steps = 2 * SHORT
    base = seconds(case, SHORT, bench.device)
    while (spent := seconds(case, steps, bench.device) - base) < bench.room_s and steps < LONGEST:
        steps *= max(2, min(8, int(bench.room_s / max(spent, 1e-3))))
    for _ in range(TURNS):
        difference = -seconds(case, SHORT, bench.device) + seconds(case, steps, bench.device)
        if difference > 0:
            yield case.models * (steps - SHORT) / difference


def peak_bytes(bench: Bench, case: Case) -> float:
    """Peak of the device's memory that a training of `MEMORY_STEPS` allocates; counted by tensors on a CPU."""
    gc.collect()
    if not bench.cuda:
        # The pieces of a training must not depend on the machine's speed.
        with patch.object(loop, "OFFER_S", 1e9), patch.object(loop, "FIRST_PIECE", 10**9), PeakMemory() as counting:
            seconds(case, MEMORY_STEPS, bench.device)
        return float(counting.storages.peak)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds(case, MEMORY_STEPS, bench.device)
    return float(torch.cuda.max_memory_allocated() - before)


def summary(report: Report, bench: Bench) -> None:
    """The predictions of all packs."""
    for name, ratios, goal in (("time", bench.times, 0.3), ("memory", bench.memories, 0.1)):
        if ratios:
            cells = (middle(ratios), spread(ratios), "", "", within(ratios, goal))
            report.row(f"predicted / measured {name}", "all packs", *cells)
        else:
            report.missing(f"predicted / measured {name}", "all packs", "no pack was measured")

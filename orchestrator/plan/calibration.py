"""Speed of this machine, and corrections of the cost model learnt from past runs.

A short probe (`jobs.packed.probe`, a process of its own, so that the driver never loads torch)
measures the machine once. Short real trainings (`orchestrator.plan.rehearsal`), and then the times of
actual runs, correct the counts, for each kind of pack apart (`orchestrator.plan.kinds`). All is kept in one small
file per machine under the user's cache folder. Losing it costs nothing but a few seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.job import Cost
from orchestrator.plan.kinds import KindHistory, SweepHistory, Tally

PROBE_TIMEOUT_S = 30.0
"""A probe takes about three seconds, loading torch included; a machine this slow gets the defaults."""
MEMORY = 0.5
"""Weight of the newest run in the exponential average of past runs."""
RATIO_BOUNDS = (0.02, 50.0)
"""An actual/estimated ratio beyond these is an accident, not a property of the job."""
RECORD_S_PER_TRIAL = 0.0004
"""Seconds of the driver to begin and end the run of one trial, where no run has measured it."""
RECORD_S_PER_ROW = 6e-6
"""Seconds of the driver to record one value of a curve, where no run has measured it."""
KEPT = 400
"""Kinds of packs, and sweeps, that are remembered: the newest."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one worker of this machine takes for the counts of a `Cost`."""

    launch_s: float = 6e-6
    """Seconds per tensor operation launched."""
    matmul_flop_per_s: float = 5e10
    """Float32 matrix-product rate."""
    element_s: float = 4e-10
    """Seconds per element visited by other operations."""
    device: str = "cpu"
    measured: bool = False
    """False: the values are stated defaults."""
    memory_bytes: float | None = None
    """Of the device, where it is a GPU and was measured."""

    def seconds(self, cost: Cost) -> float:
        """Time of a pack, by the counts alone."""
        return (
            cost.launches * self.launch_s
            + cost.matmul_flop / self.matmul_flop_per_s
            + cost.element_visits * self.element_s
            + cost.seconds
        )

    def shape(self, cost: Cost) -> float:
        """How large a pack's operations are: log of what they compute over what launching them takes."""
        launching = cost.launches * self.launch_s
        rest = self.seconds(cost) - launching
        return math.log(rest / launching) if launching > 0 and rest > 0 else 0.0


DEFAULT_CPU = Machine()
DEFAULT_CUDA = Machine(launch_s=8e-6, matmul_flop_per_s=1.5e13, element_s=4e-12, device="cuda")


@dataclass(frozen=True, kw_only=True)
class JobHistory:
    """What past runs of a job say. Empty for a job never run here."""

    ratio: float = 1.0
    """Actual over counted training seconds: the correction of kinds of packs that were never timed."""
    early: float | None = None
    """Share of the estimated seconds that trials took which could end early."""
    trial_s: float | None = None
    """Training seconds of one trial: the estimate for a job that states no cost."""
    record_s: float | None = None
    """Seconds of the driver to record one trial."""
    runs: int = 0

    def learn(self, *, estimated_s: float, actual_s: float, trials: int, record_s: float | None = None) -> JobHistory:
        """The history with one more run.

        Args:
            estimated_s: what the packs that ended were estimated at, this history's ratio included; 0: unknown.
            actual_s: what they took.
            trials: how many trials they held.
            record_s: seconds of the driver to record them all.
        """
        if trials < 1 or actual_s <= 0:
            return self
        ratio = self.ratio
        if estimated_s > 0:
            seen = self.ratio * actual_s / estimated_s
            weight = MEMORY if self.runs else 1.0
            mixed = math.exp((1 - weight) * math.log(self.ratio) + weight * math.log(max(seen, 1e-9)))
            ratio = min(max(mixed, RATIO_BOUNDS[0]), RATIO_BOUNDS[1])
        return replace(
            self,
            ratio=ratio,
            trial_s=_mix(self.trial_s, actual_s / trials),
            record_s=_mix(self.record_s, None if record_s is None else record_s / trials),
            runs=self.runs + 1,
        )


def _mix(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return old if new is None else new
    return (1 - MEMORY) * old + MEMORY * new


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Everything the planner knows of a machine."""

    machine: Machine = DEFAULT_CPU
    jobs: Mapping[str, JobHistory] = field(default_factory=dict)
    kinds: Mapping[str, KindHistory] = field(default_factory=dict)
    """Of each kind of pack that was timed or run, the oldest first (see `orchestrator.plan.kinds.kind_of`)."""
    sweeps: Mapping[str, SweepHistory] = field(default_factory=dict)
    """Of sweeps, by their id, the oldest first."""
    startup_s: float | None = None
    """Seconds from the start of a pool of workers to its readiness, as last seen."""

    def ratio(self, job: str, kind: str, shape: float) -> float:
        """Actual over counted seconds of a pack: as its kind was seen, or its job's other kinds, or the job."""
        own = self.kinds.get(kind)
        if own is not None and own.points:
            return own.ratio(shape)
        family = kind.partition("/")[0]
        others = [
            point for name, other in self.kinds.items() if name.partition("/")[0] == family for point in other.points
        ]
        return KindHistory(points=tuple(others)).blurred(shape) if others else self.history(job).ratio

    def history(self, job: str) -> JobHistory:
        """What past runs of a job say."""
        return self.jobs.get(job, JobHistory())

    def trial_s(self, job: str, sweep_id: str) -> float:
        """Seconds of one trial of a job that states no cost; 0: never seen."""
        sweep = self.sweeps.get(sweep_id)
        return (sweep and sweep.trial_s) or self.history(job).trial_s or 0.0

    def early(self, job: str, sweep_id: str) -> tuple[float | None, bool]:
        """(share of the estimate after which trials ended that may, whether in a run of this very sweep)."""
        sweep = self.sweeps.get(sweep_id)
        if sweep is not None and sweep.early is not None:
            return sweep.early, True
        return self.history(job).early, False

    def learnt(
        self,
        *,
        job: str,
        sweep_id: str,
        tally: Tally,
        trials: int,
        train_s: float,
        record_s: float,
        startup_s: float | None,
    ) -> Calibration:
        """With what a run took.

        Args:
            trials: how many trials its packs held.
            train_s: seconds of training in all, over workers.
            record_s: seconds of the driver to record them.
            startup_s: until the pool stood; None: there was none to start.
        """
        if trials < 1 or train_s <= 0:
            return self
        old = self.history(job)
        expected_s = tally.counted_s * old.ratio * train_s / tally.actual_s if tally.actual_s else 0.0
        history = old.learn(estimated_s=expected_s, actual_s=train_s, trials=trials, record_s=record_s)
        history = replace(history, early=_mix(old.early, tally.early))
        kinds = {name: kind for name, kind in self.kinds.items() if name not in tally.seen}
        for name, seen in tally.seen.items():
            kinds[name] = self.kinds.get(name, KindHistory()).learn(seen)
        sweeps = {name: sweep for name, sweep in self.sweeps.items() if name != sweep_id}
        sweeps[sweep_id] = SweepHistory(early=tally.early, trial_s=train_s / trials)
        return replace(
            self,
            jobs={**self.jobs, job: history},
            kinds=kinds,
            sweeps=sweeps,
            startup_s=self.startup_s if startup_s is None else startup_s,
        )


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CACHE_HOME/phasefront`, or `~/.cache/phasefront`."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "phasefront"


def cache_file(device: str) -> Path:
    """This machine's file for one device type and one number of cores."""
    key = f"{platform.node()} {platform.machine()} {platform.processor()} {os.cpu_count()} {device}"
    return cache_folder() / f"machine-{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}.json"


def load(device: str, *, probe: bool = True) -> Calibration:
    """The calibration of this machine, measured now where it never was (unless `probe` is False)."""
    calibration = _read(cache_file(device), device)
    if probe and not calibration.machine.measured:
        calibration = replace(calibration, machine=measure(device))
        if calibration.machine.measured:
            save(calibration)
    return calibration


def save(calibration: Calibration) -> None:
    """Keep a calibration, where the cache folder can be written."""
    path = cache_file(calibration.machine.device)
    data = {
        "machine": asdict(calibration.machine),
        "jobs": {name: asdict(history) for name, history in calibration.jobs.items()},
        "kinds": {name: asdict(kind) for name, kind in list(calibration.kinds.items())[-KEPT:]},
        "sweeps": {name: asdict(sweep) for name, sweep in list(calibration.sweeps.items())[-KEPT:]},
        "startup_s": calibration.startup_s,
    }
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # a cache that cannot be kept costs only time
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(data, indent=1))
        scratch.replace(path)


def _read(path: Path, device: str) -> Calibration:
    empty = Calibration(machine=DEFAULT_CUDA if device == "cuda" else DEFAULT_CPU)
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        return Calibration(
            machine=Machine(**data["machine"]),
            jobs={name: JobHistory(**history) for name, history in data["jobs"].items()},
            kinds={name: KindHistory.from_json(kind) for name, kind in data["kinds"].items()},
            sweeps={name: SweepHistory(**sweep) for name, sweep in data["sweeps"].items()},
            startup_s=data["startup_s"],
        )
    except (OSError, ValueError, TypeError, KeyError):
        return empty


def child_environment() -> dict[str, str]:
    """The environment variables of a child process that imports this package."""
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}


def measure(device: str) -> Machine:
    """Probe this machine in a process of its own; the stated defaults where that is not possible."""
    fallback = DEFAULT_CUDA if device == "cuda" else DEFAULT_CPU
    command = [sys.executable, "-m", "jobs.packed.probe", "--device", device]
    environ = child_environment()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True, env=environ)
        data = json.loads(done.stdout.strip().splitlines()[-1])
        machine = replace(
            fallback,
            launch_s=float(data["launch_s"]),
            matmul_flop_per_s=float(data["matmul_flop_per_s"]),
            element_s=float(data["element_s"]),
            memory_bytes=data.get("memory_bytes"),
            measured=True,
        )
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError, TypeError):
        return fallback
    rates = (machine.launch_s, machine.matmul_flop_per_s, machine.element_s)
    return machine if all(math.isfinite(rate) and rate > 0 for rate in rates) else fallback

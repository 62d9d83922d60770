"""The speed of this machine, and corrections of the cost model learnt from past runs.

A short probe (`jobs.packed.probe`, in a child process, so that the driver never loads torch) measures the machine once.
Short trainings (`orchestrator.plan.rehearsal`) and the times of past runs then correct the counts of the cost model,
separately for each kind of pack (`orchestrator.plan.history`). One small file per machine in the user's cache folder
stores it all; losing that file costs a few seconds.
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
from typing import Any, TypeVar

from jobs.job import Cost
from orchestrator.host import usable_cpus
from orchestrator.plan.history import JobHistory, KindHistory, SweepHistory, Tally, average, recorded, updated

T = TypeVar("T")

PROBE_TIMEOUT_S = 30.0
"""Timeout of the probe, which takes about three seconds with the import of torch. After it, the defaults apply."""
RECORD_S_PER_TRIAL = 0.0004
"""Default: seconds of the driver to begin and end the run of one trial."""
RECORD_S_PER_ROW = 6e-6
"""Default: seconds of the driver to record one value of a curve."""
HISTORIES_KEPT = 400
"""Number of kinds of packs, and of sweeps, that are stored: the newest ones."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The speed of one worker of this machine, in the units that a `Cost` counts."""

    launch_s: float = 6e-6
    """Seconds to launch one tensor operation."""
    matmul_flop_per_s: float = 5e10
    """Speed of float32 matrix products."""
    element_s: float = 4e-10
    """Seconds per element visited by other operations."""
    device: str = "cpu"
    measured: bool = False
    """False if the values are the defaults."""
    memory_bytes: float | None = None
    """Memory of a measured GPU."""

    def seconds(self, cost: Cost) -> float:
        """Time of a pack according to the counts alone."""
        return (
            self._launch_s(cost)
            + cost.matmul_flop / self.matmul_flop_per_s
            + cost.element_visits * self.element_s
            + cost.seconds
        )

    def shape(self, cost: Cost) -> float:
        """The size of a pack's tensor operations: log of the time to compute them over the time to launch them."""
        launch_s = self._launch_s(cost)
        compute_s = self.seconds(cost) - launch_s
        return math.log(compute_s / launch_s) if launch_s > 0 and compute_s > 0 else 0.0

    def _launch_s(self, cost: Cost) -> float:
        if self.device == "cpu" or cost.gpu_launches is None:
            return cost.launches * self.launch_s
        return cost.gpu_launches * self.launch_s


DEFAULT_CPU = Machine()
DEFAULT_CUDA = Machine(launch_s=8e-6, matmul_flop_per_s=1.5e13, element_s=4e-12, device="cuda")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Everything the planner knows about a machine."""

    machine: Machine = DEFAULT_CPU
    jobs: Mapping[str, JobHistory] = field(default_factory=dict)
    kinds: Mapping[str, KindHistory] = field(default_factory=dict)
    """By kind of pack (see `orchestrator.plan.pack.pack_kind`), the oldest first."""
    sweeps: Mapping[str, SweepHistory] = field(default_factory=dict)
    """By sweep id, the oldest first."""
    startup_s: float | None = None
    """Start-up time of the last pool of workers, in seconds."""

    def ratio(self, job: str, kind: str, shape: float) -> float:
        """Measured over counted seconds of a pack: of its kind, else of its job's other kinds, else of the job."""
        own = self.kinds.get(kind)
        if own is not None and own.points:
            return own.ratio(shape)
        prefix = kind.partition("/")[0] + "/"
        others = [point for name, history in self.kinds.items() if name.startswith(prefix) for point in history.points]
        return KindHistory(points=tuple(others)).smoothed_ratio(shape) if others else self.job(job).ratio

    def job(self, name: str) -> JobHistory:
        """The history of a job."""
        return self.jobs.get(name, JobHistory())

    def trial_s(self, job: str, sweep_id: str) -> float:
        """Seconds of one trial of a job that states no cost; 0 if unknown."""
        sweep = self.sweeps.get(sweep_id)
        return (sweep and sweep.trial_s) or self.job(job).trial_s or 0.0

    def early(self, job: str, sweep_id: str) -> tuple[float | None, bool]:
        """(share of the estimate taken by trials that could end early, whether it was measured for this sweep)."""
        sweep = self.sweeps.get(sweep_id)
        if sweep is not None and sweep.early is not None:
            return sweep.early, True
        return self.job(job).early, False

    def with_run(
        self, job: str, sweep_id: str, tally: Tally, train_s: float, record_s: float, startup_s: float | None
    ) -> Calibration:
        """With the measurements of one more run.

        Args:
            job: name of the job.
            sweep_id: the sweep.
            tally: the packs that ended.
            train_s: training seconds, summed over workers.
            record_s: seconds of the driver to record the trials.
            startup_s: until the workers were ready; None if none were started.
        """
        if tally.trials < 1 or train_s <= 0:
            return self
        old = self.job(job)
        history = JobHistory(
            ratio=old.ratio if tally.ratio is None else updated(old.ratio, tally.ratio, runs=old.runs),
            early=average(old.early, tally.early),
            trial_s=average(old.trial_s, train_s / tally.trials),
            record_s=old.record_s,
            record_ratio=recorded(old.record_ratio, record_s / tally.record_counted_s, trials=tally.trials)
            if tally.record_counted_s > 0 and record_s > 0
            else old.record_ratio,
            runs=old.runs + 1,
        )
        kinds = {name: self.kinds.get(name, KindHistory()).with_run(times) for name, times in tally.times.items()}
        return replace(
            self,
            jobs={**self.jobs, job: history},
            kinds=newest_last(self.kinds, kinds),
            sweeps=newest_last(
                self.sweeps, {sweep_id: SweepHistory(early=tally.early, trial_s=train_s / tally.trials)}
            ),
            startup_s=self.startup_s if startup_s is None else startup_s,
        )


def newest_last(old: Mapping[str, T], new: Mapping[str, T]) -> dict[str, T]:
    """Both, with the new entries at the end, so that the oldest can be dropped."""
    return {**{name: value for name, value in old.items() if name not in new}, **new}


def cache_file(device: str) -> Path:
    """The file of this machine, for a device type and a number of usable cores, in `$XDG_CACHE_HOME` or `~/.cache`."""
    key = f"{platform.node()} {platform.machine()} {platform.processor()} {usable_cpus()} {device}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phasefront"
    return folder / f"machine-{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}.json"


def load(device: str, *, probe: bool = True) -> Calibration:
    """The calibration of this machine. It is measured now if it never was, unless `probe` is False."""
    calibration = _read(cache_file(device), device)
    if probe and not calibration.machine.measured:
        calibration = replace(calibration, machine=measure(device))
        if calibration.machine.measured:
            save(calibration)
    return calibration


def save(calibration: Calibration) -> None:
    """Store a calibration, if the cache folder is writable."""
    path = cache_file(calibration.machine.device)
    data = asdict(calibration)
    for histories in (data["kinds"], data["sweeps"]):
        for name in list(histories)[:-HISTORIES_KEPT]:
            del histories[name]
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # without the cache, later plans only take longer
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(data, indent=1))
        scratch.replace(path)


def _read(path: Path, device: str) -> Calibration:
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
        return Calibration(machine=DEFAULT_CUDA if device == "cuda" else DEFAULT_CPU)


def child_environment() -> dict[str, str]:
    """The environment variables of a child process that imports this package."""
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}


def measure(device: str) -> Machine:
    """Measure this machine in a child process; the defaults if that fails."""
    fallback = DEFAULT_CUDA if device == "cuda" else DEFAULT_CPU
    command, environ = [sys.executable, "-m", "jobs.packed.probe", "--device", device], child_environment()
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

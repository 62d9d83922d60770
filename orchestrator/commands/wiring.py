"""From a sweep to its tracker, workers and planner: where implementations are chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.dispatch.base import Dispatcher
from orchestrator.errors import UserError
from orchestrator.plan.calibration import Calibration, Machine

if TYPE_CHECKING:
    import argparse

    from orchestrator.plan.planner import Planner
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import SweepRecord, Tracker
    from orchestrator.trial import Trial

CPU_MEMORY_SHARE = 0.6
"""Share of the machine's memory that all workers together may use."""
GPU_MEMORY_SHARE = 0.8
GPU_MEMORY_BYTES = 16e9
"""Assumed for a GPU that was not measured."""


def load_sweep(arguments: argparse.Namespace) -> Sweep:
    """The sweep that the arguments name.

    Raises:
        UserError: see `Sweep.load`.
    """
    from orchestrator.sweep.sweep import Sweep

    overrides = list(arguments.overrides)
    if getattr(arguments, "workers", None) is not None:
        overrides.append(f"resources.workers={arguments.workers}")
    return lasting(Sweep.load(Path(arguments.file), overrides), Path.cwd())


def lasting(sweep: Sweep, folder: Path) -> Sweep:
    """The sweep with permanent places for its files, where `folder` is Ray's temporary copy for a submitted job.

    Ray deletes that copy; relative paths of SQLite files and of the output folder are then relative to
    `$PHASEFRONT_HOME` (by default `~/phasefront`) on the head node.
    """
    if "working_dir_files" not in folder.parts:
        return sweep
    home = Path(os.environ.get("PHASEFRONT_HOME") or Path.home() / "phasefront")
    return replace(
        sweep,
        tracking=sweep.tracking.model_copy(update={"uri": _lasting_uri(sweep.tracking.uri, home)}),
        search=sweep.search.model_copy(update={"storage": _lasting_uri(sweep.search.storage, home)}),
        output=home / sweep.output,
    )


def _lasting_uri(uri: str, home: Path) -> str:
    """The address of a SQLite file; a relative path becomes one below `home`."""
    scheme, separator, path = uri.partition(":///")
    if not separator or scheme not in ("sqlite", "phasefront-sqlite") or path.startswith("/"):
        return uri
    home.mkdir(parents=True, exist_ok=True)
    return f"{scheme}:///{home / path}"


def sweep_record(sweep: Sweep) -> SweepRecord:
    """What the parent run records of the sweep."""
    from orchestrator.tracking.base import SweepRecord

    return SweepRecord(
        sweep_id=sweep.id,
        name=sweep.name,
        job=sweep.job,
        resolved_yaml=sweep.resolved_yaml(),
        thresholds=sweep.thresholds_fingerprint(),
        axes=tuple(axis.name for axis in sweep.axes),
    )


def open_tracker(sweep: Sweep) -> Tracker:
    """The tracker at the sweep's address."""
    from orchestrator.tracking import factory

    tracking = sweep.tracking
    return factory.open_tracker(tracking.uri, experiment=tracking.experiment, artifacts=tracking.artifacts)


def nothing_recorded(sweep: Sweep, place: str, run: str) -> UserError:
    """The error of a command that needs a record where there is none; `run` is the command that makes one."""
    rule = "nothing is recorded of this sweep yet"
    return UserError(rule, place=place, value=sweep.record_shown, next_step=run)


def on_cluster() -> bool:
    """Whether packs run on a Ray cluster that is already started."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def resources_at_hand(sweep: Sweep, *, inline: bool) -> tuple[int, str]:
    """(workers, device type) that a run would use now; connects to a cluster, but does not start one."""
    wanted = sweep.resources
    if inline:
        return 1, inline_device(sweep)
    if on_cluster():
        from orchestrator.dispatch.ray_connection import cluster_shape, connected

        with connected():
            workers, device = cluster_shape(
                cpus_per_worker=wanted.cpus_per_worker, gpus_per_worker=wanted.gpus_per_worker, device=wanted.device
            )
        return max(1, workers if wanted.workers is None else min(workers, wanted.workers)), device
    gpus = local_gpus()
    device = ("cuda" if gpus else "cpu") if wanted.device == "auto" else wanted.device
    if wanted.workers is not None:
        return wanted.workers, device
    if device == "cuda":
        return max(1, int(gpus / (wanted.gpus_per_worker or 1.0))), device
    return max(1, int(cores() / wanted.cpus_per_worker)), device


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_gpus() -> int:
    """NVIDIA devices of this machine that are visible to this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def inline_device(sweep: Sweep) -> str:
    """The device of packs that run in this process."""
    return ("cuda" if local_gpus() else "cpu") if sweep.resources.device == "auto" else sweep.resources.device


def make_pool(sweep: Sweep, *, inline: bool) -> Callable[[], Dispatcher]:
    """A function that starts the pool of workers."""
    resources = sweep.resources

    def make() -> Dispatcher:
        if inline:
            from orchestrator.dispatch.inline import InlineDispatcher
            from orchestrator.dispatch.worker import prepare

            prepare(threads=max(1, int(resources.cpus_per_worker)), job=sweep.job)
            return InlineDispatcher(device=inline_device(sweep))
        from orchestrator.dispatch.ray_pool import RayDispatcher

        return RayDispatcher(
            job=sweep.job,
            workers=resources.workers,
            device=resources.device,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
        )

    return make


def make_planner(sweep: Sweep, calibration: Calibration, *, workers: int) -> Planner:
    """The planner that groups the sweep's trials into packs, for a number of workers."""
    from orchestrator.plan.planner import Planner

    local = calibration.machine.device == "cpu" and not on_cluster()
    return Planner(
        job_name=sweep.job,
        job=sweep.job_object(),
        calibration=calibration,
        memory_budget_bytes=memory_budget(sweep, calibration.machine, workers=workers),
        at_once=min(workers, cores()) if local else 1,
        sweep_id=sweep.id,
    )


def load_now(planner: Planner) -> float:
    """The factor by which other processes slow the workers of this machine now; 1 for workers elsewhere."""
    from orchestrator.plan.rehearsal import slowdown

    machine = planner.calibration.machine
    return 1.0 if machine.device != "cpu" or on_cluster() else slowdown(planner.at_once)


def rehearsed(planner: Planner, sweep: Sweep, trials: Sequence[Trial], *, workers: int) -> Planner:
    """The planner after short trainings of the packs whose cost it does not know, where they can run here."""
    from orchestrator.plan.calibration import save
    from orchestrator.plan.rehearsal import rehearse

    if on_cluster() and not local_gpus() and planner.calibration.machine.device != "cpu":
        return planner
    threads = max(1, int(sweep.resources.cpus_per_worker))
    calibration = rehearse(planner, trials, workers=workers, threads=threads)
    if calibration != planner.calibration:
        save(calibration)
    return make_planner(sweep, calibration, workers=workers)


def memory_budget(sweep: Sweep, machine: Machine, *, workers: int) -> float:
    """Bytes that the packs of one worker may use."""
    if sweep.resources.memory_gb is not None:
        return sweep.resources.memory_gb * 1e9
    if machine.device == "cuda":
        share = min(1.0, sweep.resources.gpus_per_worker or 1.0)
        return GPU_MEMORY_SHARE * (machine.memory_bytes or GPU_MEMORY_BYTES) * share
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8e9
    return CPU_MEMORY_SHARE * total / (workers if not on_cluster() else max(1, cores()))


def measured(sweep: Sweep, trials: Sequence[Trial], device: str) -> Calibration:
    """The speed of this machine; it is measured now where the job states costs and it never was."""
    from orchestrator.plan.calibration import load

    job = sweep.job_object()
    probe = False
    if trials:
        cost = job.cost(trials[0].params, extent=job.extent(trials[0].params), models=1)
        probe = bool(cost.launches or cost.matmul_flop or cost.element_visits)
    return load(device, probe=probe)

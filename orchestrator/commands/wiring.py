"""From a sweep to its tracker, workers and planner: where implementations are chosen."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.dispatch.base import Dispatcher
from orchestrator.dispatch.capacity import Request, Shape
from orchestrator.dispatch.source import source_of
from orchestrator.errors import UserError
from orchestrator.host import usable_cpus, usable_memory_bytes, visible_gpus
from orchestrator.outages import READING_PATIENCE_S, RESUMES, Patience
from orchestrator.plan.calibration import Calibration, Machine
from orchestrator.tracking.address import check_address

if TYPE_CHECKING:
    import argparse

    from orchestrator.checkpoints.kept import KeptStates
    from orchestrator.checkpoints.known import Checkpoints
    from orchestrator.plan.planner import Planner
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import SweepRecord, Tracker
    from orchestrator.trial import Trial

CPU_MEMORY_SHARE = 0.6
"""Share of a node's memory that the packs of all its workers together may use."""
GPU_MEMORY_SHARE = 0.8
GPU_MEMORY_BYTES = 16e9
"""Assumed for a GPU that was not measured."""


def say(line: str) -> None:
    """Show a line beside the result of a command."""
    print(line, file=sys.stderr, flush=True)  # the stream of now: tests and notebooks replace it


NEW_TRIALS = ("check", "plan", "run", "submit")
"""The commands for sweeps whose trials are to run; the others look at what is recorded."""


def load_sweep(arguments: argparse.Namespace) -> Sweep:
    """The sweep that the arguments name.

    Raises:
        UserError: see `Sweep.load`; and, of a command that is in `NEW_TRIALS`, `Sweep.stop_if_refused`.
    """
    from orchestrator.sweep.sweep import Sweep

    overrides = list(arguments.overrides)
    if getattr(arguments, "workers", None) is not None:
        overrides.append(f"resources.workers={arguments.workers}")
    if getattr(arguments, "width", None) is not None and arguments.output is None:  # else it is that of the file
        overrides.append(f"figure.width={arguments.width}")
    sweep = lasting(Sweep.load(Path(arguments.file), overrides), Path.cwd())
    if getattr(arguments, "command", "") in NEW_TRIALS:
        sweep.stop_if_refused()
    for mistake in sweep.refusals:
        say(f"warning: {mistake.place}: {mistake.rule}; recorded trials are shown, and no further ones can be run")
    check_address(sweep.tracking.uri, place=sweep.address_place)
    for name in sweep.retired:
        say(
            f"warning: {sweep.metric_place}: '{name}' is read off a single trial's curve, where bumps count as peaks; "
            "it is made for this search alone. Peaks of means over replicates, with intervals, are in `analysis:`"
        )
    return sweep


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


def open_tracker(sweep: Sweep, *, stopping: Callable[[], bool] | None = None) -> Tracker:
    """The tracker at the sweep's address, which outlives outages; what it has to say goes to stderr.

    Args:
        sweep: The sweep.
        stopping: Of a run: whether it is being stopped; then an outage is not waited for. Other commands wait for
            `READING_PATIENCE_S` at most.
    """
    from orchestrator.tracking import factory
    from orchestrator.tracking.resilient import ResilientTracker

    tracking, running = sweep.tracking, stopping is not None
    tracker = ResilientTracker(
        factory.open_tracker(tracking.uri, experiment=tracking.experiment, artifacts=tracking.artifacts),
        what=f"the record ({sweep.record_shown})",
        folder=sweep.output,
        patience_s=tracking.patience if running else min(tracking.patience, READING_PATIENCE_S),
        resumes=RESUMES if running else "",
        stopping=stopping or (lambda: False),
    )
    tracker.say = say
    return tracker


def reading_patience(what: str) -> Patience:
    """The patience of a command that reads, with something that does not answer."""
    return Patience(what, limit_s=READING_PATIENCE_S, say=say)


def relabelled(sweep: Sweep, trials: Sequence[Trial], tracker: Tracker) -> int:
    """Label the finished trials again that have labels under other thresholds; how many were."""
    from orchestrator.records import Status
    from orchestrator.relabel import is_stale, relabel_stale

    recorded = tracker.index([trial.id for trial in trials])
    finished = [t for t in trials if t.id in recorded and recorded[t.id].status is Status.FINISHED]
    fingerprint, retired = sweep.thresholds_fingerprint(), sweep.retired
    stale = [t for t in finished if is_stale(recorded[t.id], fingerprint, retired)]
    results = relabel_stale(tracker, sweep.job_object(), stale, sweep.thresholds(), retired=retired)
    return sum(result.status is Status.FINISHED for result in results)


def on_cluster() -> bool:
    """Whether packs run on a Ray cluster that is already started."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def request(sweep: Sweep) -> Request:
    """The pool of workers that the sweep asks for."""
    wanted = sweep.resources
    return Request(
        workers=wanted.workers,
        device=wanted.device,
        cpus_per_worker=wanted.cpus_per_worker,
        gpus_per_worker=wanted.gpus_per_worker,
        pack_bytes=(wanted.memory_gb or 0.0) * 1e9,
        max_share=wanted.max_share,
        accelerator_type=wanted.accelerator_type or "",
        custom=wanted.custom,
    )


def resources_at_hand(sweep: Sweep, *, inline: bool) -> Shape:
    """The pool that a run would use now, of at least one worker; connects to a cluster, but does not start one.

    Raises:
        UserError: this machine has no room for a worker.
    """
    wanted = request(sweep)
    if inline:
        device = inline_device(sweep)
        return Shape(workers=1, device=device, need=wanted.need(device), memory_bytes=usable_memory_bytes())
    if on_cluster():
        from orchestrator.dispatch.ray_connection import connected
        from orchestrator.dispatch.ray_nodes import alive_nodes

        with connected():
            shape = wanted.shape(node.total for node in alive_nodes().values())
        return replace(shape, workers=max(1, shape.workers))
    shape = wanted.shape([wanted.local_node()])
    if not shape.workers:
        raise wanted.no_room(shape)
    return replace(shape, memory_bytes=usable_memory_bytes() / shape.workers)


def inline_device(sweep: Sweep) -> str:
    """The device of packs that run in this process."""
    return ("cuda" if visible_gpus() else "cpu") if sweep.resources.device == "auto" else sweep.resources.device


def make_pool(
    sweep: Sweep,
    *,
    inline: bool,
    training: Callable[[Callable[[], bool]], AbstractContextManager[object]] = nullcontext,
    connected: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Callable[[], Dispatcher]:
    """A function that starts the pool of workers; for its arguments see `InlineDispatcher` and `RayDispatcher`."""
    source = source_of(sweep.job)  # before workers load it, as the files may be edited meanwhile

    def make() -> Dispatcher:
        if inline:
            from orchestrator.dispatch.inline import InlineDispatcher
            from orchestrator.dispatch.worker import prepare

            prepare(threads=max(1, int(sweep.resources.cpus_per_worker)), job=sweep.job)
            return InlineDispatcher(device=inline_device(sweep), training=training, stopping=stopping)
        from orchestrator.dispatch.ray_pool import RayDispatcher

        return RayDispatcher(
            job=sweep.job,
            request=request(sweep),
            source=source,
            say=say,
            connected=connected,
            stopping=stopping,
        )

    return make


def make_checkpoints(sweep: Sweep, *, parent: str, say: Callable[[str], None]) -> Checkpoints | None:
    """The checkpoints of a sweep in its record; None where there are none.

    `parent` is the id of the sweep's run: the same by whatever address the record is reached. It is another in another
    record, unless both are SQLite files whose experiments have equal ids; a checkpoint has all rows of its curves.
    Without an address they are in the output folder, where all workers are on this machine.
    """
    from orchestrator.checkpoints.known import Checkpoints
    from orchestrator.checkpoints.store import below

    address, states = _checkpoint_address(sweep), kept_states(sweep, say=say)
    if address is None:
        return None
    name = f"{'checkpoints' if sweep.resources.checkpoints == 'auto' else sweep.name}-{sweep.id[:8]}"
    keeps = sweep.resources.keep == "final"
    return Checkpoints(
        below(address, f"{name}-{parent[:8]}"),
        earlier=below(address, name),
        interval_s=sweep.resources.checkpoint_interval,
        say=say,
        kept="" if states is None else states.address,
        keeps=keeps,
        states=states,
    )


def kept_states(sweep: Sweep, *, say: Callable[[str], None]) -> KeptStates | None:
    """The final states of trials of this job, which sweeps that keep checkpoints at one place share; None without one.

    Raises:
        UserError: they are to be kept, and cannot be.
    """
    from orchestrator.checkpoints.kept import KeptStates
    from orchestrator.checkpoints.store import below
    from orchestrator.dispatch.source import source_of

    address, job = _checkpoint_address(sweep), sweep.job_object()
    why = "" if job.horizon_params else "the job does not state which parameters only make a training longer"
    if address is None:
        why = "there is no place for checkpoints"
    if why and sweep.resources.keep is not None:
        step = "remove it" if address is not None else "set resources.checkpoints to a folder that all workers share"
        raise UserError(f"final states cannot be kept: {why}", place="resources.keep", value="final", next_step=step)
    if why or address is None:
        return None
    return KeptStates(below(address, "final"), job=job, source=source_of(sweep.job).text, say=say)


def _checkpoint_address(sweep: Sweep) -> str | None:
    """Where checkpoints are; None where there are none."""
    address = sweep.resources.checkpoints
    if address is None or (address == "auto" and on_cluster()):
        return None
    if address == "auto":
        return str(sweep.output.absolute())
    return address if "://" in address else str(Path(address).expanduser().absolute())


def make_planner(sweep: Sweep, calibration: Calibration, *, shape: Shape) -> Planner:
    """The planner that groups the sweep's trials into packs, for a pool of workers."""
    from orchestrator.plan.planner import Planner

    local = calibration.machine.device == "cpu" and not on_cluster()
    return Planner(
        job_name=sweep.job,
        job=sweep.job_object(),
        calibration=calibration,
        memory_budget_bytes=memory_budget(sweep, calibration.machine, share_bytes=shape.memory_bytes),
        at_once=min(shape.workers, usable_cpus()) if local else 1,
        sweep_id=sweep.id,
    )


def load_now(planner: Planner) -> float:
    """The factor by which other processes slow the workers of this machine now; 1 for workers elsewhere."""
    from orchestrator.plan.rehearsal import slowdown

    machine = planner.calibration.machine
    return 1.0 if machine.device != "cpu" or on_cluster() else slowdown(planner.at_once)


def memory_budget(sweep: Sweep, machine: Machine, *, share_bytes: float) -> float:
    """Bytes that the packs of one worker may use, which has this share of the memory of its node."""
    if sweep.resources.memory_gb is not None:
        return sweep.resources.memory_gb * 1e9
    if machine.device == "cuda":
        share = min(1.0, sweep.resources.gpus_per_worker or 1.0)
        return GPU_MEMORY_SHARE * (machine.memory_bytes or GPU_MEMORY_BYTES) * share
    if math.isinf(share_bytes):  # no node yet, or one that does not state its memory
        share_bytes = usable_memory_bytes() / usable_cpus()
    return CPU_MEMORY_SHARE * share_bytes


def measured(sweep: Sweep, trials: Sequence[Trial], device: str) -> Calibration:
    """The speed of this machine; it is measured now where the job states costs and it never was."""
    from orchestrator.plan.calibration import load

    job = sweep.job_object()
    probe = False
    if trials:
        cost = job.cost(trials[0].params, extent=job.extent(trials[0].params), models=1)
        probe = bool(cost.launches or cost.matmul_flop or cost.element_visits)
    return load(device, probe=probe)

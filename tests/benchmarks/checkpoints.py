"""What checkpoints save and what they cost.

`python -m tests.benchmarks.checkpoints --kills 20`: kill the workers and the driver of a sweep of long packs. Prints
how much training each loss cost, and whether the record is that of the undisturbed sweep; exit code 1 if not.

`python -m tests.benchmarks.checkpoints --cost`: save packs of the built-in jobs, and say what that takes of the time at
the default interval. With `--minutes 20`, a pack trains undisturbed for so long at the default interval, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.catalogue import load_job
from orchestrator.checkpoints.interval import interval_s
from orchestrator.checkpoints.saving import PackSaver, Saving
from orchestrator.dispatch.base import Event, PackProgress
from orchestrator.dispatch.worker import execute, prepare
from orchestrator.trial import Trial
from tests.benchmarks.harness import machine, spread, versions
from tests.killing import Losses, killed_processes, killed_run
from tests.runner_kit import task

WAIT_S = 0.05
PACKS: dict[str, tuple[int, dict[str, Any]]] = {
    "grokking": (8, {"steps": 10_000_000}),
    "double_descent": (32, {"epochs": 10_000_000}),
    "ridge": (64, {"solver": "gradient_descent", "steps": 100_000_000}),
    "image_double_descent": (2, {"data": "mnist1d", "model": "cnn_1d", "augment": False, "steps": 10_000_000}),
}
"""Models of a pack, and what differs from the defaults: it trains for longer than is measured."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two checkpoints")
    parser.add_argument("--seconds", type=float, help="of training of each of the four trials; 20 for each kill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", action="store_true", help="without Ray: the worker is a plain process")
    parser.add_argument("--cost", action="store_true", help="measure what checkpoints take of an undisturbed training")
    parser.add_argument("--saves", type=int, default=10, help="with --cost: checkpoints of each job")
    parser.add_argument("--minutes", type=float, default=0.0, help="with --cost: of training at the default interval")
    arguments = parser.parse_args()
    print(f"{machine()}; {versions('torch', 'ray', 'safetensors')}")
    if arguments.cost:
        return cost(arguments.saves, arguments.minutes)
    run = killed_processes if arguments.processes else killed_run
    with tempfile.TemporaryDirectory(prefix="pf-kills-") as folder:
        found = run(
            Path(folder),
            kills=arguments.kills,
            steps=round((arguments.seconds or 20.0 * arguments.kills) / WAIT_S),
            wait_s=WAIT_S,
            interval_s=arguments.interval,
            seed=arguments.seed,
        )
    print(report(found))
    if (done := sum(found.kills.values())) < arguments.kills:
        print(f"the sweep has ended after {done} of {arguments.kills} kills: set --seconds")
        return 1
    return 1 if found.wrong or found.files else 0


def report(found: Losses) -> str:
    """The losses, one after another, and what they were together."""
    kills = ", ".join(f"{count} of a {kind}" for kind, count in found.kills.items())
    lines = [
        f"{sum(found.kills.values())} kills ({kills}) in {found.seconds:.0f} s; interval {found.interval_s:g} s; "
        "a kill of the driver costs each of its packs something, and one amid a checkpoint may cost nothing"
    ]
    for number, lost_s in enumerate(found.lost_s, start=1):
        lines.append(f"  loss {number:>2}: {lost_s:6.2f} s trained again, {lost_s / found.interval_s:5.2f} intervals")
    if found.lost_s:
        most = max(found.lost_s)
        lines.append(
            f"training done again after {len(found.lost_s)} losses: median {statistics.median(found.lost_s):.2f} s, "
            f"most {most:.2f} s, that is {most / found.interval_s:.2f} intervals"
        )
    lines.append(f"checkpoints left: {len(found.files)}; differences from the undisturbed sweep: {len(found.wrong)}")
    return "\n".join([*lines, *found.wrong])


# What they cost


@dataclass(kw_only=True)
class Costs:
    """The checkpoints of one pack."""

    trained_s: float = 0.0
    save_s: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Bytes."""


class _Measured(PackSaver):
    """Counts the time that saving takes, everything included."""

    costs: Costs

    def save(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = super().save(*arguments)
        if result[0] is not None:
            self.costs.save_s.append(time.perf_counter() - began)
            folder = Path(self._saving.folder)
            self.costs.sizes.append((folder / result[0].file).stat().st_size)
        return result


def saved(name: str, *, interval: float | None, saves: int | None = None, seconds: float | None = None) -> Costs:
    """Train a pack of a job until it was saved so often, or for so many seconds."""
    from orchestrator.dispatch import worker

    models, params = PACKS[name]
    job, costs = load_job(name), Costs()
    setting = job.params_for(params)
    trials = [Trial(job=name, job_version=job.version, params=setting, replicate=k) for k in range(models)]
    _Measured.costs = costs
    original, worker.PackSaver = worker.PackSaver, _Measured  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory(prefix="pf-cost-") as folder:
            saving = Saving(folder=folder, continues={}, interval_s=interval)
            run = execute(replace(task(trials), saving=saving), device="cpu")
            for _ in _until(run, costs, saves, seconds):
                pass
    finally:
        worker.PackSaver = original  # type: ignore[misc]
    return costs


def _until(run: Iterator[Event], costs: Costs, saves: int | None, seconds: float | None) -> Iterator[Event]:
    began = time.perf_counter()
    for event in run:
        costs.trained_s = time.perf_counter() - began
        if not isinstance(event, PackProgress) or event.notice:
            raise AssertionError(event)
        yield event
        if (saves is not None and len(costs.save_s) >= saves) or (seconds is not None and costs.trained_s >= seconds):
            return


def cost(saves: int, minutes: float) -> int:
    """Print the table; exit code 1 if checkpoints take more than 1% of the time of the training at their interval."""
    prepare(threads=1, job=None)
    print(f"{'job':22} {'models':>6} {'MB':>8} {'seconds of a checkpoint':42} {'interval':>9} {'share':>7}")
    for name, (models, _) in PACKS.items():
        found = saved(name, interval=1.0, saves=saves)
        seconds = statistics.median(found.save_s)
        every_s = interval_s(seconds, None)
        print(
            f"{name:22} {models:>6} {max(found.sizes) / 1e6:>8.3g} {spread(found.save_s):42} {every_s:>7.0f} s "
            f"{seconds / every_s:>7.3%}",
            flush=True,
        )
    if not minutes:
        return 0
    found = saved("grokking", interval=None, seconds=60 * minutes)
    share = sum(found.save_s) / found.trained_s
    print(
        f"undisturbed, grokking at the default interval: {len(found.save_s)} checkpoints in {found.trained_s:.0f} s "
        f"took {sum(found.save_s):.2f} s, {share:.3%} of the time (one run, no interval)"
    )
    return int(share > 0.01)


if __name__ == "__main__":
    sys.exit(main())

"""The process that times short trainings, started by `orchestrator.plan.rehearsal`.

It reads one JSON line (what to load), says "ready", reads a second (what to time), and prints one
JSON line for each thing timed. Packs train as workers train them (`orchestrator.dispatch.worker`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from jobs.catalogue import load_job
from jobs.job import Job, as_dict
from orchestrator.dispatch.base import PackFailed, PackProgress, PackTask
from orchestrator.dispatch.worker import busy_clock, execute, prepare

WINDOW_S = 0.25
"""A stretch of training this long says what a step takes."""
MOST_WAITING = 4
"""Times its budget that a pack may take on the wall, where others use the cores."""
MOST_STEPS = 100_000
DENSE_STEPS = 4
"""Steps of the training that is measured after each of them."""


class Unfit(Exception):
    """The pack cannot be timed this way: it broke, or the job cannot shorten its trials."""


class Rehearsal:
    """Times short trainings of one pack on one device."""

    def __init__(self, job: Job[Any], task: PackTask, device: str) -> None:
        self._job, self._task, self._device = job, task, device
        self._busy = busy_clock(job, device)

    def time(self, budget_s: float) -> dict[str, float]:
        """Seconds of setting up, of one step, of one report, and what the first training took more than the next.

        Raises:
            Unfit: see there.
        """
        wall_from, busy_from = time.perf_counter(), self._busy()

        def spent() -> float:
            """Share of the budget, of work or of time, that is spent."""
            wall_s, busy_s = time.perf_counter() - wall_from, self._busy() - busy_from
            return max(busy_s / budget_s, wall_s / (MOST_WAITING * budget_s))

        cold_s, dense_s = self._train(DENSE_STEPS, 64)
        dense_s /= DENSE_STEPS - 1
        # Of the stretch, all but one report is steps: so long that the difference is no noise.
        wanted_s = max(WINDOW_S, 4 * dense_s)
        guess_s = max(dense_s * self._step_share(), 1e-7)
        steps = min(MOST_STEPS, max(4, int(wanted_s / guess_s)))
        warm_s, stretch_s = self._train(steps, 2)
        while stretch_s < wanted_s / 2 and steps < MOST_STEPS and spent() < 0.7:
            steps = min(MOST_STEPS, max(2 * steps, int(wanted_s * steps / max(stretch_s, 1e-9))))
            warm_s, stretch_s = self._train(steps, 2)
        # stretch = (steps - 1) step + report; dense = step + report.
        step_s = (stretch_s - dense_s) / (steps - 2)
        if step_s <= 0:
            step_s = stretch_s / steps
        report_s = max(0.0, dense_s - step_s)
        return {
            "setup_s": max(0.0, warm_s - step_s - report_s),
            "step_s": step_s,
            "report_s": report_s,
            "first_s": max(0.0, cold_s - warm_s),
        }

    def _step_share(self) -> float:
        """By the counts, the share of a step in what a step and a report take together."""
        params = self._job.params_for(self._task.params[-1])
        counted: list[float] = []
        for steps, reports in ((2, 2), (1002, 2)):
            shortened = self._job.shortened(params, steps=steps, reports=reports)
            if shortened is None:
                raise Unfit
            extent = self._job.extent(shortened)
            cost = self._job.cost(shortened, extent=extent, models=len(self._task.params))
            # What the three take is of one order of magnitude on all machines: enough for a first guess.
            counted.append(cost.matmul_flop + 10 * cost.element_visits + 1e5 * cost.launches)
        step = (counted[1] - counted[0]) / 1000
        report = max(0.0, counted[0] / 2 - step)
        return step / (step + report) if step > 0 else 1.0

    def _train(self, steps: int, reports: int) -> tuple[float, float]:
        """Seconds until the first report's end, and from there to the last report's."""
        shortened: list[dict[str, Any]] = []
        for values in self._task.params:
            params = self._job.shortened(self._job.params_for(values), steps=steps, reports=reports)
            if params is None:
                raise Unfit
            shortened.append(as_dict(params))
        ends: dict[int, float] = {}
        began = self._busy()
        for event in execute(replace(self._task, params=tuple(shortened)), device=self._device, flush_s=0.0):
            if isinstance(event, PackFailed):
                raise Unfit(event.error)
            if isinstance(event, PackProgress) and event.rows is not None:
                ends[int(event.rows.step.max())] = self._busy()
        if not ends or (steps > 1 and len(ends) < 2):
            raise Unfit("the training did not report")
        first, last = ends[min(ends)], ends[max(ends)]
        return first - began, last - first


def _time_trials(task: PackTask, device: str, budget_s: float) -> None:
    """Train whole trials, in packs that double, and tell how many took how long."""
    began, start = time.perf_counter(), 0
    for turn in count():
        stop = min(len(task.trial_ids), start + (1 if turn < 3 else 1 << min(turn - 2, 9)))
        if stop == start or time.perf_counter() - began > budget_s:
            return
        part = slice(start, stop)
        pack = replace(task, trial_ids=task.trial_ids[part], params=task.params[part], seeds=task.seeds[part])
        at, work_at = time.perf_counter(), time.process_time()
        failed = any(isinstance(event, PackFailed) for event in execute(pack, device=device))
        if not failed:
            clock_s, work_s = time.perf_counter() - at, time.process_time() - work_at
            _say({"trials": stop - start, "seconds": clock_s, "work_s": work_s, "first": turn == 0})
        start = stop


def _say(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), file=_OUT, flush=True)


def _task(job: str, number: int, content: Mapping[str, Sequence[Any]]) -> PackTask:
    seeds = tuple(content["seeds"])
    return PackTask(
        pack_id=f"rehearsal-{number}",
        job=job,
        trial_ids=tuple(f"{i}" for i in range(len(seeds))),
        params=tuple(content["params"]),
        seeds=seeds,
        thresholds={},
    )


_OUT = sys.stdout


def main() -> None:
    """Serve one rehearsal."""
    sys.stdout = sys.stderr  # what a job prints is no answer
    about: dict[str, Any] = json.loads(sys.stdin.readline())
    for path in about["paths"]:
        if path not in sys.path:
            sys.path.append(path)
    job = load_job(about["job"])
    prepare(threads=about["threads"], job=about["job"])
    _say({"ready": True})
    wanted: dict[str, Any] = json.loads(sys.stdin.readline())
    if wanted["whole"] is not None:
        _time_trials(_task(about["job"], 0, wanted["whole"]), about["device"], wanted["budget_s"])
        return
    for number, content in enumerate(wanted["packs"]):
        try:
            timed = Rehearsal(job, _task(about["job"], number, content), about["device"]).time(wanted["budget_s"])
        except Unfit:
            continue
        _say({"pack": number, **timed})


if __name__ == "__main__":
    main()

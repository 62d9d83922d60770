"""The process that times short trainings, started by `orchestrator.plan.rehearsal`.

It reads one JSON line (what to load), answers "ready", reads a second line (what to time), and prints one JSON line for
each measurement. Packs are trained as workers train them (`orchestrator.dispatch.worker`).
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
from jobs.job import Job, as_dict, params_from
from orchestrator.dispatch.base import Event, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.worker import busy_clock, execute, prepare
from orchestrator.records import Status, TrialResult
from orchestrator.sanity import Collector, TrialFacts

WINDOW_S = 0.25
"""Seconds of training from which the time of a step is measured."""
MOST_WALL = 4
"""The most wall-clock time of a pack, in units of its budget, when other programs use the cores."""
MOST_STEPS = 100_000
DENSE_STEPS = 4
"""Steps of the short training that reports after every step."""


class CannotTime(Exception):
    """The pack cannot be timed: it failed, with this error, or the job cannot shorten its trials."""


class PackTimer:
    """Times short trainings of one pack on one device."""

    def __init__(self, job: Job[Any], task: PackTask, device: str) -> None:
        self._job, self._task, self._device = job, task, device
        self._busy = busy_clock(job, device)

    def time(self, budget_s: float) -> dict[str, float]:
        """Seconds of the setup, of one step and of one report, and the additional seconds of the first training.

        Raises:
            CannotTime: the pack failed, or the job cannot shorten its trials.
        """
        wall_start, busy_start = time.perf_counter(), self._busy()

        def spent() -> float:
            """Share of the budget that is spent."""
            wall_s, busy_s = time.perf_counter() - wall_start, self._busy() - busy_start
            return max(busy_s / budget_s, wall_s / (MOST_WALL * budget_s))

        cold_s, dense_s = self._train(DENSE_STEPS, 64)
        dense_s /= DENSE_STEPS - 1
        # A long training with two reports measures steps plus one report: the steps must exceed the noise.
        target_s = max(WINDOW_S, 4 * dense_s)
        step_s = max(dense_s * self._step_share(), 1e-7)
        steps = min(MOST_STEPS, max(4, int(target_s / step_s)))
        warm_s, sparse_s = self._train(steps, 2)
        while sparse_s < target_s / 2 and steps < MOST_STEPS and spent() < 0.7:
            steps = min(MOST_STEPS, max(2 * steps, int(target_s * steps / max(sparse_s, 1e-9))))
            warm_s, sparse_s = self._train(steps, 2)
        # sparse = (steps - 1) step + report; dense = step + report.
        step_s = (sparse_s - dense_s) / (steps - 2)
        if step_s <= 0:
            step_s = sparse_s / steps
        report_s = max(0.0, dense_s - step_s)
        return {
            "setup_s": max(0.0, warm_s - step_s - report_s),
            "step_s": step_s,
            "report_s": report_s,
            "first_s": max(0.0, cold_s - warm_s),
        }

    def _step_share(self) -> float:
        """The share of a step in the time of a step and a report, according to the counts."""
        params = self._job.params_for(self._task.params[-1])
        counted: list[float] = []
        for steps, reports in ((2, 2), (1002, 2)):
            shortened = self._job.shortened(params, steps=steps, reports=reports)
            if shortened is None:
                raise CannotTime
            extent = self._job.extent(shortened)
            cost = self._job.cost(shortened, extent=extent, models=len(self._task.params))
            # These weights have the right order of magnitude on all machines, which is enough for a first guess.
            counted.append(cost.matmul_flop + 10 * cost.element_visits + 1e5 * cost.launches)
        step = (counted[1] - counted[0]) / 1000
        report = max(0.0, counted[0] / 2 - step)
        return step / (step + report) if step > 0 else 1.0

    def _train(self, steps: int, reports: int) -> tuple[float, float]:
        """(seconds until the first report, seconds from there to the last report)."""
        shortened: list[dict[str, Any]] = []
        for values in self._task.params:
            params = self._job.shortened(self._job.params_for(values), steps=steps, reports=reports)
            if params is None:
                raise CannotTime
            shortened.append(as_dict(params))
        ends: dict[int, float] = {}
        start = self._busy()
        for event in execute(replace(self._task, params=tuple(shortened)), device=self._device, flush_s=0.0):
            if isinstance(event, PackFailed):
                raise CannotTime(event.error)
            if isinstance(event, PackProgress):
                if event.rows is not None:
                    ends[int(event.rows.step.max())] = self._busy()
                if error := next((result.error for result in event.results if result.error), None):
                    raise CannotTime(error)
        if not ends or (steps > 1 and len(ends) < 2):
            raise CannotTime
        first, last = ends[min(ends)], ends[max(ends)]
        return first - start, last - first


def _time_trials(job: Job[Any], task: PackTask, device: str, budget_s: float, longest_s: float) -> None:
    """Train whole trials in packs of increasing size; print the time of each pack, and at the end what is known of the
    first trials. A trial that takes longer than `longest_s` is left.
    """
    began, start = time.perf_counter(), 0
    collector = Collector(job, params_from(job.Thresholds, task.thresholds))
    collector.facts.update({trial_id: TrialFacts() for trial_id in task.trial_ids[:1]})
    try:
        for turn in count():
            stop = min(len(task.trial_ids), start + (1 if turn < 3 else 1 << min(turn - 2, 9)))
            if stop == start or time.perf_counter() - began > budget_s:
                return
            part = slice(start, stop)
            pack = replace(task, trial_ids=task.trial_ids[part], params=task.params[part], seeds=task.seeds[part])
            clock_start, work_start = time.perf_counter(), time.process_time()
            failed = False
            for event in execute(pack, device=device):
                failed = _collect(collector, job, pack, event) or failed
                if time.perf_counter() - began > longest_s:
                    return
            if not failed:
                clock_s, work_s = time.perf_counter() - clock_start, time.process_time() - work_start
                _answer({"trials": stop - start, "seconds": clock_s, "work_s": work_s, "first": turn == 0})
            start = stop
    finally:
        _answer({"facts": {trial_id: facts.plain() for trial_id, facts in collector.facts.items()}})


def _collect(collector: Collector, job: Job[Any], pack: PackTask, event: Event) -> bool:
    """Add what an event tells; whether a trial failed."""
    if isinstance(event, PackProgress):
        if event.rows is not None:
            collector.rows(event.rows)
        collector.unread(event.unread)
        for result in event.results:
            params = job.params_for(pack.params[pack.trial_ids.index(result.trial_id)])
            collector.end(params, result)
        return any(result.error for result in event.results)
    if isinstance(event, PackFailed):
        trial_id = event.trial_id or pack.trial_ids[0]
        params = job.params_for(pack.params[pack.trial_ids.index(trial_id)])
        collector.end(params, TrialResult(trial_id, Status.FAILED, error=event.error))
        return True
    return False


def _answer(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), file=_OUT, flush=True)


def _task(about: Mapping[str, Any], number: int, content: Mapping[str, Sequence[Any]]) -> PackTask:
    seeds = tuple(content["seeds"])
    return PackTask(
        pack_id=f"rehearsal-{number}",
        job=about["job"],
        trial_ids=tuple(f"{i}" for i in range(len(seeds))),
        params=tuple(content["params"]),
        seeds=seeds,
        thresholds=about["thresholds"],
    )


_OUT = sys.stdout


def main() -> None:
    """Answer one request."""
    sys.stdout = sys.stderr  # the output of the job must not mix with the answers
    about: dict[str, Any] = json.loads(sys.stdin.readline())
    for path in about["paths"]:
        if path not in sys.path:
            sys.path.append(path)
    job = load_job(about["job"])
    prepare(threads=about["threads"], job=about["job"])
    _answer({"ready": True})
    request: dict[str, Any] = json.loads(sys.stdin.readline())
    if request["whole"] is not None:
        whole = _task(about, 0, request["whole"])
        _time_trials(job, whole, about["device"], request["budget_s"], request["longest_s"])
        return
    for number, content in enumerate(request["packs"]):
        try:
            times = PackTimer(job, _task(about, number, content), about["device"]).time(request["budget_s"])
        except CannotTime as error:
            if str(error):
                _answer({"pack": number, "error": str(error)})
            continue
        _answer({"pack": number, **times})


if __name__ == "__main__":
    main()

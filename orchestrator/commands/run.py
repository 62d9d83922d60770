"""run: everything wired together, signals included."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from orchestrator.commands.browse import browse_lines
from orchestrator.commands.inspect import FAILURES_SHOWN, command_line, failure_line
from orchestrator.commands.publishing import is_published, keep_summary, print_files, publish_record
from orchestrator.commands.searching import examples, history, opened_sampler, trials_at_hand
from orchestrator.commands.wiring import (
    calibration_for,
    load_sweep,
    make_planner,
    make_pool,
    open_tracker,
    resources_at_hand,
    states_cost,
    sweep_record,
)
from orchestrator.dispatch.base import Dispatcher
from orchestrator.progress import duration, for_stream, phase_counts
from orchestrator.records import Status
from orchestrator.runner import Runner, Summary
from orchestrator.tracking.address import shown

if TYPE_CHECKING:
    from orchestrator.plan.planner import Planner
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.trial import Trial

SIGNALS = (signal.SIGINT, signal.SIGTERM)


LEAVE_AFTER_S = 2.0
"""Ray kills a stopped job after three seconds; letting go of a Ray that was started here may take longer."""


class Stopped(BaseException):
    """A signal came while no trial ran: there is nothing to stop but ourselves."""


class Stopper:
    """Turns the first signal into a stop of the run, and the second into the end of the process."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.signal: int = signal.SIGINT
        self.recorded = threading.Event()
        """Set once the record says how every trial stands: from then on the process may end at once."""
        self.at_once = True
        """Before and after the trials a signal raises `Stopped`: starting Ray may take longer than a stop should."""
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals; again after anything that may have taken them (Ray does)."""
        for number in SIGNALS:
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _leave(self) -> None:
        """End the process as soon as the record is whole; a Ray that was started here dies with it."""
        self.recorded.wait()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.stop.is_set():
            os._exit(128 + number)  # a Ray that was started here dies with this process
        self.signal = number
        self.stop.set()
        leave = threading.Timer(LEAVE_AFTER_S, self._leave)
        leave.daemon = True
        leave.start()
        if self.at_once:
            raise Stopped


@contextlib.contextmanager
def watched_signals() -> Iterator[Stopper]:
    """A stopper in force."""
    stopper = Stopper()
    stopper.install()
    try:
        yield stopper
    finally:
        stopper.restore()


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing; 0 where all trials finished, 1 where some failed, 128 + n where signal n stopped it."""
    began = time.monotonic()
    sweep = load_sweep(arguments)
    with watched_signals() as stopper:
        try:
            return _run(arguments, sweep, stopper, began)
        except Stopped:
            print(f"stopped. To go on: {_again(arguments)}", file=sys.stderr)
            return 128 + stopper.signal


def _run(arguments: argparse.Namespace, sweep: Sweep, stopper: Stopper, began: float) -> int:
    tracker = open_tracker(sweep)
    progress = for_stream(sys.stdout, quiet=arguments.quiet)
    try:
        parent = tracker.open_sweep(sweep_record(sweep))
        try:
            most = f"at most {sweep.most_trials} trials" if sweep.is_search else f"{sweep.most_trials} trials"
            progress.say(f"sweep {sweep.name}: {most}, recorded in {shown(sweep.tracking.uri)} (run {parent})")
            planner, workers = _planner(arguments, sweep, examples(sweep))
            with opened_sampler(sweep, tracker, workers=workers) as sampler:
                runner = Runner(
                    job_name=sweep.job,
                    planner=planner,
                    sampler=sampler,
                    tracker=tracker,
                    pool=_pool(arguments, sweep, stopper),
                    progress=progress,
                    thresholds=sweep.thresholds(),
                    fingerprint=sweep.thresholds_fingerprint(),
                    stop=stopper.stop,
                    stopped=lambda summary: _say_stopped(arguments, summary, stopper),
                    starting="trials run in this process" if arguments.inline else "starting workers",
                )
                summary = runner.run()
            progress.close()
            if summary.stopped:
                return 128 + stopper.signal
            stopper.at_once = True
            _learn(planner, summary, inline=arguments.inline)
            metrics: dict[str, float] = {}
            if is_published(sweep, summary, parent):
                print(f"nothing to do: all {summary.skipped} trials are recorded, and drawn in {sweep.output}")
            elif not arguments.no_map and (summary.done or summary.skipped):
                published = publish_record(sweep, trials_at_hand(sweep, tracker), tracker, history=history(sweep))
                metrics = published.metrics
                keep_summary(sweep, summary, tracker, parent)
                print_files(published)
        except Stopped:
            tracker.end_sweep(Status.KILLED.value, {})
            raise
        except BaseException:
            tracker.end_sweep(Status.FAILED.value, {})
            raise
        failed = bool(summary.failed or summary.gave_up)
        tracker.end_sweep(Status.FAILED.value if failed else Status.FINISHED.value, metrics)
        pages = browse_lines(sweep.tracking.uri, tracker.experiment_id, parent)
    finally:
        progress.close()
        tracker.close()
    _report(arguments, sweep, summary, pages, seconds=time.monotonic() - began)
    return 1 if failed else 0


def _planner(arguments: argparse.Namespace, sweep: Sweep, trials: Sequence[Trial]) -> tuple[Planner, int]:
    """The planner, and for how many workers it is."""
    workers, device = resources_at_hand(sweep, inline=arguments.inline)
    calibration = calibration_for(device, needed=states_cost(sweep, trials))
    return make_planner(sweep, calibration, workers=workers), workers


def _pool(arguments: argparse.Namespace, sweep: Sweep, stopper: Stopper) -> Callable[[], Dispatcher]:
    make = make_pool(sweep, inline=arguments.inline)

    def ready() -> Dispatcher:
        try:
            pool = make()
        finally:
            stopper.install()  # Ray installs handlers of its own
        stopper.at_once = False
        return pool

    return ready


def _learn(planner: Planner, summary: Summary, *, inline: bool) -> None:
    """Correct the next estimate by what this run took."""
    from orchestrator.plan.calibration import save

    if summary.trained:
        save(
            planner.calibration.learnt(
                job=planner.job_name,
                sweep_id=planner.sweep_id,
                tally=planner.tally,
                trials=summary.trained,
                train_s=summary.train_s,
                record_s=summary.record_s,
                startup_s=None if inline else summary.startup_s,
            )
        )


def _again(arguments: argparse.Namespace) -> str:
    return command_line(arguments, "run")


def _say_stopped(arguments: argparse.Namespace, summary: Summary, stopper: Stopper) -> None:
    kept = summary.done + summary.skipped
    print(f"stopped: {kept} trials are finished, {summary.killed} were cut short. To go on: {_again(arguments)}")
    stopper.recorded.set()


def _report(arguments: argparse.Namespace, sweep: Sweep, summary: Summary, pages: list[str], *, seconds: float) -> None:
    """The end of a run that took so many seconds in all, for people."""
    took = f" in {duration(seconds)} ({duration(summary.seconds)} of it from first pack to last)"
    print(
        f"{summary.done} trials finished"
        + (took if summary.done else "")
        + (f", {summary.skipped} were finished before" if summary.skipped else "")
        + (f" ({summary.relabelled} of them labelled anew)" if summary.relabelled else "")
        + (f", {summary.failed} failed" if summary.failed else "")
    )
    if summary.phases:
        print(f"phases: {phase_counts(summary.phases)}")
    if summary.done and not summary.measured:
        print(f"warning: {_not_measured(sweep)}")
    print("\n".join([f"curves    {shown(sweep.tracking.uri)}, experiment {sweep.tracking.experiment}", *pages]))
    for failure in summary.failures[:FAILURES_SHOWN]:
        line = failure_line(failure.trial, failure.error, varied=[axis.name for axis in sweep.axes])
        print(line, file=sys.stderr)
    if summary.failed:
        print(
            f"{summary.failed} trials failed; their tracebacks: {command_line(arguments, 'status')}, or the tag of "
            f"each run. They run again with: {_again(arguments)}",
            file=sys.stderr,
        )
    if summary.gave_up:
        print(
            f"stopped early: {summary.gave_up}\nmend the job or the sweep, then: {_again(arguments)}", file=sys.stderr
        )


def _not_measured(sweep: Sweep) -> str:
    """What to do about a job whose trials end without a word."""
    from jobs.function import FunctionJob

    told = (
        f"no metric was reported by the trials of {sweep.job}, so they have no curves, and their phases say nothing\n"
        "  next:  "
    )
    if isinstance(sweep.job_object(), FunctionJob):
        return told + (
            "call report(step, loss=...) in the function, or return a dict such as {'accuracy': ...}; then set "
            "train.version = 2 (one more than it was) beside the function, so that the trials run again"
        )
    return told + "yield jobs.job.Report with values from train, and raise the job's version"

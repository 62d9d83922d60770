"""run: all parts of a run together, with its signals."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from orchestrator.commands.again import as_job, command_line, to_resume
from orchestrator.commands.browse import browse_lines
from orchestrator.commands.extending import take_over
from orchestrator.commands.publishing import counts_of, is_published, keep_summary, print_files, publish_record
from orchestrator.commands.searching import history, known_trials, opened_sampler
from orchestrator.commands.status import FAILURES_SHOWN, failure_line
from orchestrator.commands.wiring import (
    load_sweep,
    make_checkpoints,
    make_planner,
    make_pool,
    measured,
    open_tracker,
    resources_at_hand,
    sweep_record,
)
from orchestrator.dispatch.base import Dispatcher
from orchestrator.progress import ProgressDisplay, counted, duration, for_stream, phase_counts, still
from orchestrator.records import Status, Summary
from orchestrator.runner import Runner
from orchestrator.sanity import FirstTrials

if TYPE_CHECKING:
    from orchestrator.plan.planner import Planner
    from orchestrator.sweep.sweep import Sweep

LEAVE_AFTER_S = 2.0
"""Ray kills a stopped job after three seconds; shutting down a Ray that was started here may take longer."""
ANNOUNCED_S = 90.0
"""The same after SIGUSR1, by which a scheduler announces the end: there is time for checkpoints."""
_ALARM = getattr(signal, "SIGALRM", None)
"""It ends a pack that is to be saved first, and is not in time."""
SAMPLE = 64
"""Trials of a search from which costs are estimated before it starts."""


class Interrupted(BaseException):
    """A signal came while no trial ran, or while one trained in this process: what runs ends at once."""


class Stopper:
    """Stops the run at the first signal, and ends the process at the second.

    Args:
        embedded: Whether the process is not ours, such as that of a notebook: then it never ends here, only SIGINT
            stops the run, and the second one is a `KeyboardInterrupt`.
    """

    def __init__(self, *, embedded: bool = False) -> None:
        self._embedded = embedded
        self.stop = threading.Event()
        self.signal: int = signal.SIGINT
        self.recorded = threading.Event()
        """Set once the status of every trial is recorded: from then on the process may end at any time."""
        self.at_once = True
        """Whether a signal raises `Interrupted`: before and after the trials, as starting Ray can take long, and in
        `training`."""
        self._worth_saving: Callable[[], bool] = lambda: False
        self._before: dict[int, Any] = {}
        self._signals = [signal.SIGINT] if embedded else [signal.SIGINT, signal.SIGTERM]
        if embedded and threading.current_thread() is not threading.main_thread():
            self._signals = []  # Python has no handlers of other threads
        if not embedded and hasattr(signal, "SIGUSR1"):
            self._signals.append(signal.SIGUSR1)
        # A closed terminal stops the run as SIGTERM does, except under nohup, which ignores SIGHUP.
        if not embedded and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._signals.append(signal.SIGHUP)

    @property
    def leave_after_s(self) -> float:
        """How long a stopped run may take to end, once everything is recorded."""
        announced = hasattr(signal, "SIGUSR1") and self.signal == signal.SIGUSR1
        return ANNOUNCED_S if announced else LEAVE_AFTER_S

    def install(self) -> None:
        """Handle the signals; called again after Ray has installed its own handlers."""
        for number in self._signals:
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Reinstall the handlers that were there before."""
        for number, handler in self._before.items():
            if number == _ALARM:
                signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(number, handler)

    @contextlib.contextmanager
    def training(self, worth_saving: Callable[[], bool]) -> Iterator[None]:
        """Inside, a trial trains in this process, which may take long: the first signal ends the block.

        If the pack is `worth_saving` then, it has `leave_after_s` for it.
        """
        try:
            self._worth_saving, self.at_once = worth_saving, True
            yield
        except Interrupted:
            pass
        finally:
            self.at_once, self._worth_saving = False, lambda: False

    @contextlib.contextmanager
    def at_leisure(self) -> Iterator[None]:
        """Inside, the record is written although no trial runs: the first signal does not end the block."""
        try:
            self.at_once = False
            yield
        finally:
            self.at_once = True

    def _leave(self) -> None:
        """End the process as soon as the record is complete; a Ray that was started here dies with it."""
        self.recorded.wait()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._embedded and self.stop.is_set():
            raise KeyboardInterrupt
        if self.stop.is_set():
            os._exit(128 + number)  # a Ray that was started here dies with this process
        self.signal = number
        self.stop.set()
        if not self._embedded:
            leave = threading.Timer(self.leave_after_s, self._leave)
            leave.daemon = True
            leave.start()
        if self.at_once and _ALARM is not None and not self._embedded and self._worth_saving():
            self._before.setdefault(_ALARM, signal.signal(_ALARM, self._overdue))
            signal.setitimer(signal.ITIMER_REAL, self.leave_after_s)
        elif self.at_once:
            raise Interrupted

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.at_once:
            raise Interrupted


@contextlib.contextmanager
def watched_signals(*, embedded: bool = False) -> Iterator[Stopper]:
    """A stopper that handles the signals."""
    stopper = Stopper(embedded=embedded)
    stopper.install()
    try:
        yield stopper
    finally:
        stopper.restore()


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing; 0 where all trials finished, 1 where some failed, 128 + n where signal n stopped it.

    With `--allow-failures` 0 also where some failed, unless the run gave up before it had tried them all.
    """
    began = time.monotonic()
    return run_sweep(load_sweep(arguments), arguments, began=began)


def run_sweep(sweep: Sweep, arguments: argparse.Namespace, *, began: float, embedded: bool = False) -> int:
    """Run what is missing of a sweep that is loaded, see `run`; `embedded`: see `Stopper`."""
    with watched_signals(embedded=embedded) as stopper:
        try:
            return _run(arguments, sweep, stopper, began)
        except Interrupted:
            if not stopper.recorded.is_set():  # otherwise said
                print(f"stopped. To resume: {to_resume(arguments)}", file=sys.stderr)
            return 128 + stopper.signal


def _run(arguments: argparse.Namespace, sweep: Sweep, stopper: Stopper, began: float) -> int:
    tracker = open_tracker(sweep, stopping=stopper.stop.is_set)
    progress = for_stream(sys.stdout, quiet=arguments.quiet)
    try:
        with still("opening the record", progress.say) as tracker.say:
            parent = tracker.open_sweep(replace(sweep_record(sweep), again=as_job(arguments)))
        tracker.say = progress.say
        try:
            most = "at most " * sweep.is_search + counted(sweep.most_trials, "trial")
            progress.say(f"sweep {sweep.name}: {most}, recorded in {sweep.record_shown} (run {parent})")
            shape = resources_at_hand(sweep, inline=arguments.inline)
            trials = sweep.sample(SAMPLE) if sweep.is_search else sweep.trials()
            planner = make_planner(sweep, measured(sweep, trials, shape.device), shape=shape)
            with stopper.at_leisure():
                begun = take_over(sweep, tracker, say=progress.say, stopping=stopper.stop.is_set)
            stopping, workers = stopper.stop.is_set, shape.workers
            with opened_sampler(sweep, tracker, workers=workers, stopping=stopping, begun=begun) as sampler:
                runner = Runner(
                    job_name=sweep.job,
                    planner=planner,
                    sampler=sampler,
                    tracker=tracker,
                    pool=_pool(arguments, sweep, stopper, progress),
                    progress=progress,
                    thresholds=sweep.thresholds(),
                    fingerprint=sweep.thresholds_fingerprint(),
                    retired=sweep.retired,
                    axes=[axis.name for axis in sweep.axes],
                    trial_timeout_s=sweep.resources.trial_timeout,
                    stop=stopper.stop,
                    stopped=lambda summary: _say_stopped(arguments, summary, stopper),
                    starting="trials run in this process" if arguments.inline else "starting workers",
                    first=FirstTrials(
                        sweep.job_object(),
                        sweep.thresholds(),
                        place=sweep.label_place,
                        say=progress.say,
                        grid=0 if sweep.is_search else sweep.most_trials,
                        target=sweep.search.target if sweep.is_search else None,
                    ),
                    checkpoints=make_checkpoints(sweep, parent=parent, say=progress.say),
                    save_s=lambda: stopper.leave_after_s,
                )
                summary = runner.run()
            progress.close()
            if summary.stopped:
                return 128 + stopper.signal
            stopper.at_once = True
            _learn(planner, summary, inline=arguments.inline)
            if summary.skipped:
                tracker.complete(known_trials(sweep, tracker))
            metrics = counts_of(sweep, summary) if arguments.no_map else {}
            if is_published(sweep, summary, tracker, parent, arguments.figures):
                print(f"nothing to do: all {summary.skipped} trials are recorded, and drawn in {sweep.output}")
            elif not arguments.no_map and (summary.done or summary.skipped):
                # It loads what draws: a third of a second that the trials need not wait for.
                from orchestrator.commands.report import keep_report

                published = publish_record(
                    sweep,
                    known_trials(sweep, tracker),
                    tracker,
                    history=history(sweep, tracker),
                    figures=arguments.figures,
                    analyses=True,
                )
                metrics = published.metrics
                keep_summary(sweep, summary, tracker, parent)
                page = keep_report(arguments, sweep, known_trials(sweep, tracker), tracker, published, parent)
                print_files(published)
                print(f"{'report':<25} {page}")
        except Interrupted:
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
    accepted = arguments.allow_failures and not summary.gave_up
    return 1 if failed and not accepted else 0


def _pool(
    arguments: argparse.Namespace, sweep: Sweep, stopper: Stopper, progress: ProgressDisplay
) -> Callable[[], Dispatcher]:
    def connected() -> None:
        stopper.install()  # Ray installs handlers of its own
        stopper.at_once = False  # its waits turn an exception of a handler into a SystemError

    make = make_pool(
        sweep,
        inline=arguments.inline,
        training=stopper.training,
        connected=connected,
        stopping=stopper.stop.is_set,
    )

    def ready() -> Dispatcher:
        try:
            with still("starting workers", progress.say):
                pool = make()
        finally:
            stopper.install()  # where Ray did not get as far as to be connected
        stopper.at_once = False
        return pool

    return ready


def _learn(planner: Planner, summary: Summary, *, inline: bool) -> None:
    """Keep what this run took, for the estimates of later ones."""
    from orchestrator.plan.calibration import save

    if planner.tally.trials:
        times = (summary.train_s, summary.record_s, None if inline else summary.startup_s)
        save(planner.calibration.with_run(planner.job_name, planner.sweep_id, planner.tally, *times))


def _say_stopped(arguments: argparse.Namespace, summary: Summary, stopper: Stopper) -> None:
    kept = summary.done + summary.skipped
    interrupted = f", {summary.handed_out} were handed out" if summary.handed_out else ""
    interrupted += f" ({summary.killed} of them running)" if summary.killed else ""
    print(f"stopped: {counted(kept, 'trial')} finished{interrupted}. To resume: {to_resume(arguments)}")
    stopper.recorded.set()


def _report(arguments: argparse.Namespace, sweep: Sweep, summary: Summary, pages: list[str], *, seconds: float) -> None:
    """Print the result of a run that took `seconds` in all."""
    took = f" in {duration(seconds)} ({duration(summary.seconds)} of it training and recording)"
    print(
        counted(summary.done, "trial")
        + " finished"
        + (took if summary.done else "")
        + (f", {summary.skipped} were finished before" if summary.skipped else "")
        + (f" ({summary.relabelled} of them relabelled)" if summary.relabelled else "")
        + (f", {summary.failed} failed" if summary.failed else "")
    )
    if summary.phases:
        print(f"phases: {phase_counts(summary.phases)}")
    if summary.done and not summary.measured:
        print(f"warning: {_not_measured(sweep)}")
    print("\n".join([f"curves    {sweep.record_shown}", *pages]))
    again = to_resume(arguments)
    lines = [failure_line(trial, result.error, sweep) for trial, result in summary.failures[:FAILURES_SHOWN]]
    if summary.failed:
        lines.append(
            f"{counted(summary.failed, 'trial')} failed; tracebacks: {command_line(arguments, 'status')}\n"
            f"to retry: {again}"
        )
    if summary.gave_up:
        lines.append(f"stopped early: {summary.gave_up}\ncorrect the job or the sweep, then: {again}")
    if lines:
        print("\n".join(lines), file=sys.stderr)


def _not_measured(sweep: Sweep) -> str:
    """What to do about a job whose trials end without reporting a metric."""
    from jobs.function import FunctionJob

    step = "yield jobs.job.Report with values from train, and raise the job's version"
    if isinstance(sweep.job_object(), FunctionJob):
        step = (
            "call report(step, loss=...) in the function, or return a dict such as {'accuracy': ...}; then set "
            "train.version = 2 (one more than it was) beside the function, so that the trials run again"
        )
    rule = f"no metric was reported by the trials of {sweep.job}, so they have no curves and no meaningful phases"
    return f"{rule}\n  next:  {step}"

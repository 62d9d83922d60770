"""status: what is recorded of a sweep, who writes to it, and what would run."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.commands.again import command_line
from orchestrator.commands.browse import browse_lines
from orchestrator.commands.inspect import search_lines
from orchestrator.commands.searching import known_trials, used_study
from orchestrator.commands.wiring import load_sweep, open_tracker, reading_patience
from orchestrator.failures import signature
from orchestrator.progress import duration, phase_counts
from orchestrator.records import Status
from orchestrator.reduce import doubt_lines, doubts, without_bounds_lines
from orchestrator.sanity import explained
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.base import Tracker, TrialRow
from orchestrator.tracking.facts import RecordReader
from orchestrator.tracking.lease import Lease, Process, described, is_held
from orchestrator.trial import Trial

FAILURES_SHOWN = 10
"""Failed trials that are listed one by one."""
TRACEBACKS_SHOWN = 3
"""Different errors whose traceback is printed."""
FIRST_LINES, LAST_LINES = 10, 30
"""Lines of a traceback that are printed: it begins with what the text is, and ends with the error."""
LABELLED_ANEW = 500
"""The most trials whose curves `status` reads, to label them under the sweep's own thresholds."""
LEAST_REST = 9
"""With `--watch`, the time between two readings is at least so many times that of reading."""
_CLEAR = "\033[2J\033[H"
"""Empties a terminal."""
_UNDER_OTHERS = "under other thresholds (`phases:`)"


def status(arguments: argparse.Namespace) -> int:
    """Show how many of the sweep's trials are recorded, in which status and phase, and what would run.

    With `--watch` again and again, until no driver writes to the record or a signal comes.
    """
    sweep = load_sweep(arguments)
    if arguments.watch is None:
        print("\n".join(_state(sweep, arguments).lines))
        return 0
    while True:
        began = time.monotonic()
        state = _state(sweep, arguments)
        if sys.stdout.isatty():
            print(_CLEAR, end="")
        print("\n".join([*state.lines, f"at        {time.strftime('%H:%M:%S')}"]), flush=True)
        if not state.driven:
            return 0
        # Reading a large record takes seconds: the database is the driver's first.
        spent = time.monotonic() - began
        time.sleep(max(arguments.watch, LEAST_REST * spent))


@dataclass(frozen=True, kw_only=True)
class _State:
    lines: list[str]
    driven: bool
    """Whether a driver may be writing to the record."""


def _state(sweep: Sweep, arguments: argparse.Namespace) -> _State:
    job, thresholds = sweep.job_object(), sweep.thresholds()
    counts: Counter[Status] = Counter()
    phases: Counter[str] = Counter()
    stale: dict[str, str] = {}
    """Trial id -> its label under thresholds that are not this sweep's."""
    failures = _Failures(sweep)
    doubted: Counter[str] = Counter()
    marks: Counter[str] = Counter()
    without_bounds = 0
    fingerprint = sweep.thresholds_fingerprint()
    with contextlib.closing(open_tracker(sweep)) as tracker:
        by_id = {trial.id: trial for trial in known_trials(sweep, tracker)}
        study = used_study(sweep, tracker)
        parent = tracker.find_sweep(sweep.id)
        experiment_id = tracker.experiment_id
        pages = browse_lines(sweep.tracking.uri, experiment_id, parent)
        for row in tracker.rows(by_id, settings=False):
            counts[row.recorded.status] += 1
            if row.recorded.status is Status.FINISHED:
                params, observations = by_id[row.trial_id].params, row.recorded.observations
                doubted.update(doubts(job, [(params, observations)]))
                without_bounds += job.completed(params, observations) is not observations
                label = row.recorded.phase or "no phase"
                if row.recorded.thresholds != fingerprint:
                    stale[row.trial_id] = label
                else:
                    phases[label] += 1
                    marks.update(filter(None, [job.mark(params, observations, thresholds)]))
            elif row.recorded.status is Status.FAILED:
                failures.add(by_id[row.trial_id], row)
        relabelled = _relabelled(sweep, tracker, {trial_id: by_id[trial_id] for trial_id in stale})
    phases.update(relabelled.values())
    lines = [f"sweep     {sweep.name} ({sweep.id})", f"record    {sweep.record_shown}"]
    lines += [f"parent    {parent or f'no run yet: {_absence(sweep, experiment_id)}'}", *pages]
    lines += search_lines(sweep, len(by_id))
    if study:
        lines.append(f"study     {study!r} in {sweep.storage_shown}: {len(by_id)} trials asked for")
    driver = Driver() if parent is None else _driver(sweep, parent)
    running = " ".join(filter(None, ["handed out", driver.ended])) if counts[Status.RUNNING] else "handed out"
    words = {
        Status.FINISHED: "finished",
        Status.RUNNING: running,
        Status.FAILED: "failed",
        Status.KILLED: "stopped",
    }
    missing = len(by_id) - counts.total()
    numbers = ", ".join(f"{counts[s]} {text}" for s, text in words.items())
    lines.append(f"trials    {len(by_id)}: {numbers}, {missing} missing")
    if parent is not None:
        lines += driver.lines(counts, missing, command_line(arguments, "run"))
    else:
        count = f"{missing}: " if missing else ""  # a search has not chosen its trials
        lines.append(f"to run    {count}{command_line(arguments, 'run')}")
    if phases:
        lines.append(f"phases    {phase_counts(phases)}")
    others = Counter(label for trial_id, label in stale.items() if trial_id not in relabelled)
    if relabelled:
        lines.append(f"          {len(relabelled)} of them relabelled here only: the record has labels {_UNDER_OTHERS}")
    if others:
        lines.append(f"others    {phase_counts(others)}: the labels of {others.total()} trials {_UNDER_OTHERS}")
    if stale:
        lines.append(f"          to relabel them in the record, without training: {command_line(arguments, 'map')}")
    lines += [f"marked    {count} finished: {mark}" for mark, count in marks.items()]
    lines += [f"doubtful  {line}" for line in doubt_lines(doubted)]
    lines += [f"steps     {line}" for line in without_bounds_lines(without_bounds)]
    return _State(lines=[*lines, *failures.lines()], driven=driver.may_run)


def _absence(sweep: Sweep, experiment_id: str | None) -> str:
    """Why a sweep has no parent run: there is no record, or it has no run of this sweep."""
    from orchestrator.tracking.factory import absence

    experiment, has = f"experiment {sweep.tracking.experiment!r}", "has another record"
    if experiment_id is not None:
        why = f"{experiment} of this record has no run of this sweep, as its file is now"
    elif none := absence(sweep.tracking.uri, place=sweep.address_place):
        why, has = none, "has one"
    else:
        why = f"the record has no {experiment}"
    there = sweep.record_beside
    return why if there is None else f"{why}; {there}, the folder of the sweep file, {has}"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Who writes to the experiment of a sweep.

    Args:
        lease: of the experiment; None where there is none to read.
        runs_another: whether its holder runs another sweep of the experiment, and not this one.
        again: how the sweep was submitted, where its last driver was a job of a cluster.
    """

    lease: Lease | None = None
    runs_another: bool = False
    again: str = ""

    @classmethod
    def of(cls, reader: RecordReader, parent: str | None) -> Driver:
        """The driver of the sweep with this parent run."""
        lease = reader.lease()
        if parent is None:
            return cls(lease=lease)
        opened = reader.opened(parent)
        runs_another = lease is not None and lease.holder is not None and opened.process not in ("", lease.holder.text)
        return cls(lease=lease, runs_another=runs_another, again=opened.again)

    @property
    def _held(self) -> bool | None:
        return None if self.lease is None else is_held(self.lease, Process.this())

    @property
    def runs(self) -> bool | None:
        """Whether a driver runs the sweep; None if that is not known."""
        return False if self.runs_another else self._held

    @property
    def may_run(self) -> bool:
        """Whether trials of the sweep may be running."""
        return self.lease is not None and self.runs is not False

    @property
    def ended(self) -> str:
        """When trials were handed out that are recorded as running; empty where a driver has them now."""
        if self.lease is None:
            return "with no driver"
        if self.runs is False:
            return "when their driver ended"
        return "" if self._held else "at its last sign of life"

    def lines(self, counts: Mapping[Status, int], missing: int, run: str) -> list[str]:
        """Whether a driver writes to the experiment, and what runs when it is started again.

        Args:
            counts: the recorded trials by status.
            missing: trials that are not recorded.
            run: the command that runs them where no job of a cluster did.
        """
        lines = []
        if self._held and self.lease is not None:
            another = ", for another sweep" * self.runs_another
            lines.append(f"driver    {described(self.lease)} writes to this experiment{another}")
            if not self.runs_another:
                return lines
        elif self._held is False and self.lease is not None:
            lines.append("driver    none: nothing runs")
        elif self.lease is not None:
            silent = duration(abs(self.lease.silent_ms) / 1000)
            lines.append(f"driver    not known: {described(self.lease)} gave its last sign of life {silent} ago")
        parts = {
            f"handed out {self.ended}": counts.get(Status.RUNNING, 0),
            "failed": counts.get(Status.FAILED, 0),
            "handed out when a run was stopped": counts.get(Status.KILLED, 0),
            "not begun": missing,
        }
        left = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
        if left:
            when = ", when that run has ended" if self._held else ""
            lines.append(f"to run    {sum(parts.values())}: {left}. To resume{when}: {self.again or run}")
        return lines


def _driver(sweep: Sweep, parent: str) -> Driver:
    from orchestrator.tracking.factory import MEMORY, open_reader

    tracking = sweep.tracking
    if tracking.uri == MEMORY:
        return Driver()
    patience = reading_patience(f"the record ({sweep.record_shown})")
    with contextlib.closing(open_reader(tracking.uri, experiment=tracking.experiment, patience=patience)) as reader:
        return Driver.of(reader, parent)


@dataclass(kw_only=True)
class _Kind:
    """Failures with the same error."""

    first: Trial
    row: TrialRow
    count: int = 1


@dataclass
class _Failures:
    """Failed trials: some one by one, and the traceback of each kind of error once."""

    sweep: Sweep
    shown: list[tuple[Trial, TrialRow]] = field(default_factory=list)
    count: int = 0
    kinds: dict[tuple[str, str], _Kind] = field(default_factory=dict)

    def add(self, trial: Trial, row: TrialRow) -> None:
        """A failed trial."""
        self.count += 1
        if len(self.shown) < FAILURES_SHOWN:
            self.shown.append((trial, row))
        key = signature(row.error or "")
        if key in self.kinds:
            self.kinds[key].count += 1
        elif row.error and len(self.kinds) < TRACEBACKS_SHOWN:
            self.kinds[key] = _Kind(first=trial, row=row)

    def lines(self) -> list[str]:
        """What is said of them."""
        lines: list[str] = []
        for trial, row in self.shown:
            lines += [failure_line(trial, row.error, self.sweep), f"          run {row.run_id}"]
        if self.count > len(self.shown):
            lines.append(f"          and {self.count - len(self.shown)} more failed trials")
        for kind in self.kinds.values():
            others = f", the first of {kind.count} with this error" if kind.count > 1 else ""
            lines.append(f"traceback {_name(kind.first, self.sweep)}{others}")
            text = (kind.row.error or "").rstrip().splitlines()
            cut = len(text) - FIRST_LINES - LAST_LINES
            if cut > 0:
                text[FIRST_LINES:-LAST_LINES] = [f"[... {cut} lines ...]"]
            lines += [f"          {line}".rstrip() for line in text]
        return lines


def _relabelled(sweep: Sweep, tracker: Tracker, stale: Mapping[str, Trial]) -> dict[str, str]:
    """Trial id -> label under the sweep's own thresholds; the record is not changed.

    Empty where there are more than `LABELLED_ANEW`; without the trials whose curves the job cannot reduce.
    """
    from orchestrator.reduce import reduce_curves

    if not 0 < len(stale) <= LABELLED_ANEW:
        return {}
    job, thresholds = sweep.job_object(), sweep.thresholds()
    labels: dict[str, str] = {}
    for trial_id, curves in tracker.curves(list(stale)):
        with contextlib.suppress(Exception):  # the job's own code; `map` says what it raises
            labels[trial_id] = reduce_curves(job, stale[trial_id].params, curves, thresholds)[0]
    return labels


def _name(trial: Trial, sweep: Sweep) -> str:
    return trial.text(axis.name for axis in sweep.axes)


def failure_line(trial: Trial, error: str | None, sweep: Sweep) -> str:
    """A failed trial in one line: its values of the axes, and its error."""
    return f"failed    {_name(trial, sweep)}: {explained(error, trial.settings()) if error else 'see its run'}"

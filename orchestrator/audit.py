"""Checks of a recorded sweep: what must hold in the record whatever happened to machines, networks and processes.

Each invariant is checked from the record alone, for one run at a time. Nothing grows with the length of curves; of
trials, only ids and states are kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from jobs.job import Censored, Curves, Job, Observations, Params
from orchestrator.dispatch.environment import TrainingRecord
from orchestrator.records import Status, phase_metric
from orchestrator.reduce import reduce_curves
from orchestrator.secrets import finder, hide_addresses
from orchestrator.tracking import layout
from orchestrator.tracking.facts import RunFacts
from orchestrator.trial import Trial

CURVES_AT_ONCE = 500
"""Trials whose curves are read by one call."""
TEXTS = (".yaml", ".json", ".csv", ".md", ".txt", ".html")
"""Artifacts that are searched for secrets."""
LIVE = (Status.FINISHED.value, Status.RUNNING.value)

ReadCurves = Callable[[Sequence[str]], Iterable[tuple[str, Curves]]]
"""Trial ids -> (trial id, curves) of those that have any, as `Tracker.curves`."""


class Invariant(StrEnum):
    """What must hold; the value is the sentence that is printed."""

    ROWS_ONCE = "every (run, metric, step) is recorded once"
    ONE_RUN = "a trial has one run, and a sweep one parent run"
    NONE_RUNNING = "no trial is RUNNING while no driver runs the sweep"
    ONE_TRAINING = "a curve is of one training: one set of steps, each at its own time"
    RIGHT_TRIAL = "a run's parameters and seed are those of its trial"
    WHOLE = "a FINISHED trial has a whole curve, an end, observations and a phase"
    REDUCED = "observations and phase are those of the recorded curve"
    EXPLAINED = "a FAILED trial has an error text"
    NO_SECRET = "no password and no secret is recorded"
    LATEST = "latest metrics are the newest rows"
    COMPLETE = "a FINISHED sweep has all its trials, each FINISHED"
    COUNTED = "the parent run's counts are those of its trials"


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One place where an invariant does not hold."""

    invariant: Invariant
    what: str
    run_id: str = ""
    trial_id: str = ""
    resumable: bool = False
    """Whether it is what a driver that was killed leaves behind, and the next run mends: nothing is lost or doubled."""

    @property
    def text(self) -> str:
        """One line: run, trial and what is wrong."""
        where = [f"run {self.run_id}"] * bool(self.run_id) + [f"trial {self.trial_id}"] * bool(self.trial_id)
        return f"{', '.join(where)}: {self.what}" if where else self.what


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the record is compared with: the sweep as its file describes it."""

    sweep_id: str
    job: Job[Any]
    trials: Mapping[str, Trial]
    """By id: all of a grid, or those that a search has asked for."""
    is_grid: bool
    thresholds: Params
    fingerprint: str
    """Of the thresholds, as recorded with each phase."""


@dataclass(kw_only=True)
class Report:
    """The result of an audit."""

    checked: Counter[Invariant] = field(default_factory=Counter)
    """Number of things that each invariant was checked for."""
    violations: list[Violation] = field(default_factory=list)
    resumable: list[Violation] = field(default_factory=list)
    """What the next run mends."""
    runs: int = 0
    """Runs of this sweep, without its parent."""
    rows: int = 0
    """Their curve rows."""
    statuses: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    """FINISHED trials whose phase was not computed again: it is recorded under other thresholds."""


def audit(
    expected: Expected,
    runs: Iterable[RunFacts],
    read_curves: ReadCurves,
    secrets: Mapping[str, str],
    *,
    has_driver: bool | None = None,
) -> Report:
    """Check a recorded sweep.

    Args:
        expected: The sweep.
        runs: Every run of its experiment; those of other sweeps are left out here.
        read_curves: Reads curves of trials.
        secrets: What must not be recorded anywhere, in addition to passwords in addresses -> what holds it.
        has_driver: Whether a driver runs the sweep; None: unknown.
    """
    report, whole = Report(), _WholeSweep(expected, has_driver)
    patterns = _patterns(secrets)
    waiting: dict[str, RunFacts] = {}

    def reduce_waiting() -> None:
        for violation in check_reductions(expected, waiting, read_curves):
            report.violations.append(violation)
        report.checked[Invariant.REDUCED] += len(waiting)
        waiting.clear()

    def note(invariant: Invariant, count: int, violations: Iterable[Violation]) -> None:
        report.checked[invariant] += count
        for violation in violations:
            (report.resumable if violation.resumable else report.violations).append(violation)

    for run in runs:
        trial_id = run.tags.get(layout.TRIAL_ID)
        if run.tags.get(layout.SWEEP_ID) == expected.sweep_id and trial_id is None:
            whole.add_parent(run)
            note(Invariant.NO_SECRET, 1, check_secrets(run, patterns))
            note(Invariant.LATEST, len(run.latest), check_latest(run))
            continue
        if trial_id is None or not (trial_id in expected.trials or whole.may_own(run)):
            continue
        report.runs += 1
        report.rows += sum(curve.rows for curve in run.curves.values())
        report.statuses[run.status] += 1
        whole.add_trial(run)
        trial = expected.trials.get(trial_id)
        note(Invariant.ROWS_ONCE, len(run.curves), check_rows_once(run))
        note(Invariant.NO_SECRET, 1, check_secrets(run, patterns))
        note(Invariant.ONE_TRAINING, len(run.curves), check_one_training(run, expected.job, trial))
        if run.status != Status.RUNNING:  # those of running trials are written every few seconds
            note(Invariant.LATEST, len(run.latest), check_latest(run))
        if run.status == Status.FAILED:
            note(Invariant.EXPLAINED, 1, check_explained(run))
        if trial is None:
            continue
        note(Invariant.RIGHT_TRIAL, 1, check_right_trial(run, trial))
        if run.status == Status.FINISHED:
            note(Invariant.WHOLE, 1, check_whole(run, expected.job, trial))
            if run.tags.get(layout.THRESHOLDS) == expected.fingerprint:
                waiting[trial_id] = run
            else:
                report.skipped += 1
        if len(waiting) >= CURVES_AT_ONCE:
            reduce_waiting()
    reduce_waiting()
    whole.finish(note)
    return report


# --- one run ---


def _trial_of(run: RunFacts) -> str:
    return run.tags.get(layout.TRIAL_ID, "")


def _wrong(invariant: Invariant, run: RunFacts, what: str) -> Violation:
    return Violation(invariant=invariant, what=what, run_id=run.run_id, trial_id=_trial_of(run))


def check_rows_once(run: RunFacts) -> Iterator[Violation]:
    """No step of a curve is recorded twice."""
    for metric, curve in sorted(run.curves.items()):
        if curve.rows != curve.steps:
            what = f"{metric} has {curve.rows} rows at {curve.steps} steps"
            yield _wrong(Invariant.ROWS_ONCE, run, what)


def check_one_training(run: RunFacts, job: Job[Any], trial: Trial | None) -> Iterator[Violation]:
    """All metrics of a run are recorded at the same steps, no more than the job reports, each at its own time.

    A plain function may leave metrics out of a report, so the first rule holds for jobs that declare their metrics.
    """
    for metric, curve in sorted(run.curves.items()):
        if curve.misplaced:
            what = f"{curve.misplaced} rows of {metric} do not have the run's start plus their step as their time"
            yield _wrong(Invariant.ONE_TRAINING, run, what)
        if curve.first < 0:
            yield _wrong(Invariant.ONE_TRAINING, run, f"{metric} begins at step {curve.first}")
        if job.metrics and curve.steps != run.steps:
            what = f"{metric} has {curve.steps} of the run's {run.steps} steps"
            yield _wrong(Invariant.ONE_TRAINING, run, what)
    if trial is None or not job.metrics:
        return
    declared = job.metrics_of(trial.params)
    others = sorted(run.curves.keys() - set(declared))
    if others:
        yield _wrong(Invariant.ONE_TRAINING, run, f"the job does not report {', '.join(others)}")
    most = job.report_steps(trial.params)
    if most and run.steps > most:
        yield _wrong(Invariant.ONE_TRAINING, run, f"{run.steps} steps are recorded; the job reports at most {most}")


def check_right_trial(run: RunFacts, trial: Trial) -> Iterator[Violation]:
    """The recorded parameters and seed are those that the trial's id stands for."""
    settings = trial.settings()
    try:
        recorded = layout.decode_params(run.tags[layout.PARAMS])
    except (KeyError, ValueError):
        yield _wrong(Invariant.RIGHT_TRIAL, run, f"the tag {layout.PARAMS} is missing or not readable")
        return
    # An option that a later release added is not in an earlier record.
    wrong = sorted(name for name, value in recorded.items() if name in settings and settings[name] != value)
    if wrong:
        yield _wrong(Invariant.RIGHT_TRIAL, run, f"the tag {layout.PARAMS} has other values of {', '.join(wrong)}")
    # An axis of another sweep may be a parameter that this job does not have any more.
    on_axes = {
        layout.axis_metric(name): float(value) if isinstance(value, int) else value  # as MLflow stores it
        for name, value in settings.items()
        if f"{layout.AXIS}{name}" in run.axes
    }
    wrong = sorted(name for name, value in on_axes.items() if name and run.axes[name] != value)
    if wrong:
        yield _wrong(Invariant.RIGHT_TRIAL, run, f"other values are recorded as {', '.join(wrong)}")
    if run.params is not None:
        # A driver killed between two requests may leave an unfinished run without params.
        expected = {name: layout.param_text(value) for name, value in recorded.items() if name != "replicate"}
        expected["replicate"] = str(trial.replicate)
        wrong = sorted(name for name, text in expected.items() if run.params.get(name, text) != text)
        missing = sorted(expected.keys() - run.params.keys()) if run.status == Status.FINISHED else []
        if wrong or missing:
            what = f"MLflow's params differ from the tag {layout.PARAMS}: {', '.join([*wrong, *missing])}"
            yield _wrong(Invariant.RIGHT_TRIAL, run, what)
    trained = run.tags.get(layout.TRAINED)
    if trained and run.status == Status.FINISHED:
        try:
            record = TrainingRecord.parse(trained)
        except (KeyError, TypeError, ValueError):
            yield _wrong(Invariant.RIGHT_TRIAL, run, f"the tag {layout.TRAINED} is not readable")
            return
        if record.seed != trial.seed or record.version != trial.job_version:
            what = f"it was trained with seed {record.seed} of version {record.version}; the trial has {trial.seed}"
            yield _wrong(Invariant.RIGHT_TRIAL, run, f"{what} of version {trial.job_version}")


def check_whole(run: RunFacts, job: Job[Any], trial: Trial) -> Iterator[Violation]:
    """A FINISHED trial has its phase, its observations, an end, and every step that the job declares."""
    for tag in (layout.PHASE, layout.OBSERVATIONS, layout.THRESHOLDS):
        if tag not in run.tags:
            yield _wrong(Invariant.WHOLE, run, f"the tag {tag} is missing")
    if run.tags.get(layout.ERROR):
        yield _wrong(Invariant.WHOLE, run, "it is FINISHED and has an error text")
    if run.params is not None and run.end_time is None:  # not shown in bulk over HTTP
        yield _wrong(Invariant.WHOLE, run, "it has no end time")
    missing = sorted(set(job.metrics_of(trial.params)) - run.curves.keys()) if job.metrics else []
    if missing:
        yield _wrong(Invariant.WHOLE, run, f"no curve of {', '.join(missing)}")
    schedule = job.schedule(trial.params)
    least = job.report_steps(trial.params) if schedule is None else len(schedule)
    if run.steps < least and not missing:
        cost = job.cost(trial.params, extent=job.extent(trial.params), models=1)
        last = [run.latest[metric] for metric in run.curves if metric in run.latest]
        diverged = not all(abs(value) < layout.LARGEST for value in last)  # NaN too
        if not cost.at_most and not diverged:
            what = f"{run.steps} of {least} steps are recorded, though the trial cannot end early"
            yield _wrong(Invariant.WHOLE, run, what)


def check_explained(run: RunFacts) -> Iterator[Violation]:
    """A FAILED trial says why."""
    if not run.tags.get(layout.ERROR, "").strip():
        yield _wrong(Invariant.EXPLAINED, run, "it is FAILED without an error text")


def check_latest(run: RunFacts) -> Iterator[Violation]:
    """What MLflow shows as the latest value of a metric is its newest row."""
    if run.outdated:
        what = f"the latest value is missing or not the newest row: {', '.join(run.outdated)}"
        yield _wrong(Invariant.LATEST, run, what)


def passwords_in(text: str) -> bool:
    """Whether a text holds an address with a password, neither replaced by asterisks nor by a variable's name."""
    return hide_addresses(text) != text


def _patterns(secrets: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    """What holds a secret -> what finds it in every form that is hidden elsewhere."""
    held = {name: finder(secret for secret, holder in secrets.items() if holder == name) for name in secrets.values()}
    return {name: pattern for name, pattern in held.items() if pattern is not None}


def check_secrets(run: RunFacts, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[Violation]:
    """No tag, parameter or name of a run has a password or the value of a secret; the message does not repeat it."""
    texts = {"its name": run.name, **{f"the tag {key}": value for key, value in run.tags.items()}}
    texts |= {f"the param {key}": value for key, value in (run.params or {}).items()}
    if layout.SWEEP_ID in run.tags:
        texts |= _artifacts(run.artifacts)
    for place, text in texts.items():
        if passwords_in(text):
            yield _wrong(Invariant.NO_SECRET, run, f"{place} has an address with a password")
        for name, pattern in patterns.items():
            if pattern.search(text):
                yield _wrong(Invariant.NO_SECRET, run, f"{place} has the value of {name}")


def _artifacts(location: str) -> dict[str, str]:
    """The text files of a run whose artifacts are in a local folder."""
    folder = Path(location.removeprefix("file://"))
    if "://" in location.removeprefix("file://") or not location or not folder.is_dir():
        return {}
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in TEXTS)
    return {f"the artifact {path.relative_to(folder)}": path.read_text(errors="replace") for path in files}


def check_reductions(
    expected: Expected, finished: Mapping[str, RunFacts], read_curves: ReadCurves
) -> Iterator[Violation]:
    """Reduce the recorded curves of these FINISHED trials again: the result must be the recorded one.

    This finds curves with missing, foreign or altered rows.
    """
    for trial_id, curves in read_curves(list(finished)) if finished else ():
        run = finished[trial_id]
        try:
            params = expected.trials[trial_id].params
            phase, observations = reduce_curves(expected.job, params, curves, expected.thresholds)
            recorded = layout.decode_observations(run.tags.get(layout.OBSERVATIONS))
        except Exception as error:  # the job's own code on a curve that may be damaged, or a damaged tag
            yield _wrong(Invariant.REDUCED, run, f"its curve cannot be reduced: {type(error).__name__}: {error}")
            continue
        if recorded is None:
            yield _wrong(Invariant.REDUCED, run, f"the tag {layout.OBSERVATIONS} is not readable; `run` makes it again")
            continue
        # A record of an earlier version lacks the observations that its job did not have yet, and may have others that
        # this version does not make any more.
        made = [name for name in recorded or observations if name not in expected.job.retired]
        differs = sorted(name for name in made if not _same(recorded, observations, name))
        if differs:
            yield _wrong(Invariant.REDUCED, run, f"the curve gives other values of {', '.join(differs)}")
        if phase != run.tags.get(layout.PHASE):
            what = f"the curve gives the phase {phase!r}; {run.tags.get(layout.PHASE)!r} is recorded"
            yield _wrong(Invariant.REDUCED, run, what)
        for name, (rows, value) in run.observed.items():
            kept = recorded.get(name)
            if rows == 1 and not (isinstance(kept, float) and _close(layout.as_measured(value), kept)):
                yield _wrong(Invariant.REDUCED, run, f"the metric {name} differs from the tag {layout.OBSERVATIONS}")


def _same(recorded: Observations, computed: Observations, name: str) -> bool:
    if name not in recorded or name not in computed:
        return False
    a, b = recorded[name], computed[name]
    if isinstance(a, Censored) or isinstance(b, Censored):
        return isinstance(a, Censored) and isinstance(b, Censored) and _close(a.at, b.at)
    return _close(a, b)


def _close(a: float, b: float) -> bool:
    """Equal but for rounding: the curve may have been reduced on another machine."""
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


# --- the sweep ---


class _WholeSweep:
    """What is known of all runs once each has been read."""

    def __init__(self, expected: Expected, has_driver: bool | None) -> None:
        self._expected, self._has_driver = expected, has_driver
        self._parents: list[RunFacts] = []
        self._live: dict[str, str] = {}
        """Trial -> its FINISHED or RUNNING run."""
        self._twice: list[tuple[str, str, str]] = []
        self._running: list[tuple[str, str, str]] = []
        """(run, trial, parent)"""
        self._finished: dict[str, tuple[str, bool]] = {}
        """Trial -> its phase, and whether it is recorded under the sweep's thresholds."""
        self._failed: set[str] = set()
        self._foreign: list[tuple[str, str, str]] = []

    def may_own(self, run: RunFacts) -> bool:
        """Whether a run of an unknown trial may be nested under this sweep's parent: which one, is known at the end."""
        return self._expected.is_grid and run.tags.get(layout.PARENT, "")[:24] == self._expected.sweep_id[:24]

    def add_parent(self, run: RunFacts) -> None:
        self._parents.append(run)

    def add_trial(self, run: RunFacts) -> None:
        trial, parent = _trial_of(run), run.tags.get(layout.PARENT, "")
        if trial not in self._expected.trials:
            self._foreign.append((run.run_id, trial, parent))
            return
        if run.status in LIVE:
            if trial in self._live:
                self._twice.append((run.run_id, trial, self._live[trial]))
            self._live[trial] = run.run_id
        if run.status == Status.RUNNING:
            self._running.append((run.run_id, trial, parent))
        if run.status == Status.FINISHED:
            same = run.tags.get(layout.THRESHOLDS) == self._expected.fingerprint
            self._finished[trial] = (run.tags.get(layout.PHASE, ""), same)
        if run.status == Status.FAILED:
            self._failed.add(trial)

    def finish(self, note: Callable[[Invariant, int, Iterable[Violation]], None]) -> None:
        """The invariants of the sweep as a whole."""
        note(Invariant.ONE_RUN, len(self._live) + len(self._parents), self._one_run())
        note(Invariant.NONE_RUNNING, len(self._live), self._none_running())
        ended = [parent for parent in self._parents if parent.status == Status.FINISHED]
        note(Invariant.RIGHT_TRIAL, 0, self._strangers())
        for parent in ended:
            if self._expected.is_grid:
                note(Invariant.COMPLETE, len(self._expected.trials), self._complete(parent))
            if parent.tags.get(layout.THRESHOLDS) == self._expected.fingerprint:
                counts = dict(self._counts())
                known = {name: count for name, count in counts.items() if name in parent.latest}
                note(Invariant.COUNTED, len(known), self._counted(parent, known))

    def _one_run(self) -> Iterator[Violation]:
        for run, trial, other in self._twice:
            what = f"the trial has another FINISHED or RUNNING run: {other}"
            yield Violation(invariant=Invariant.ONE_RUN, what=what, run_id=run, trial_id=trial)
        for parent in self._parents[1:]:
            what = f"the sweep has another parent run: {self._parents[0].run_id}"
            yield _wrong(Invariant.ONE_RUN, parent, what)

    def _none_running(self) -> Iterator[Violation]:
        states = {parent.run_id: parent.status for parent in self._parents}
        for run, trial, parent in self._running:
            state = states.get(parent, "")
            if state and (state != Status.RUNNING or self._has_driver is False):
                killed = state == Status.RUNNING
                what = "it is RUNNING, and " + ("its driver has ended" if killed else f"its sweep is {state}")
                yield Violation(
                    invariant=Invariant.NONE_RUNNING, what=what, run_id=run, trial_id=trial, resumable=killed
                )

    def _strangers(self) -> Iterator[Violation]:
        own = {parent.run_id for parent in self._parents}
        for run, trial, parent in self._foreign:
            if parent in own:
                what = "the sweep has no such trial"
                yield Violation(invariant=Invariant.RIGHT_TRIAL, what=what, run_id=run, trial_id=trial)

    def _complete(self, parent: RunFacts) -> Iterator[Violation]:
        for trial in self._expected.trials:
            if trial not in self._finished:
                state = "is not FINISHED" if trial in self._live or trial in self._failed else "has no finished run"
                what = f"it is FINISHED, and this trial {state}"
                yield Violation(invariant=Invariant.COMPLETE, what=what, run_id=parent.run_id, trial_id=trial)

    def _counts(self) -> Iterator[tuple[str, int]]:
        phases = Counter(phase for phase, _ in self._finished.values())
        yield "trials", len(self._expected.trials)
        yield "failed", len(self._failed - self._finished.keys())
        for label in self._expected.job.phases:
            yield phase_metric(label), phases[label]

    def _counted(self, parent: RunFacts, known: Mapping[str, int]) -> Iterator[Violation]:
        for name, count in known.items():
            if parent.latest[name] != count:
                what = f"its metric {name} is {parent.latest[name]:g}, and the trials give {count}"
                yield _wrong(Invariant.COUNTED, parent, what)


# --- between two audits ---


def digests(trials: Iterable[str], read_curves: ReadCurves) -> dict[str, str]:
    """A digest of each trial's curve: of every (metric, step, value)."""
    found = {}
    for trial, curves in read_curves(list(trials)):
        content = hashlib.blake2b(np.ascontiguousarray(curves.step).tobytes(), digest_size=16)
        for metric in sorted(curves.values):
            content.update(json.dumps(metric).encode())
            content.update(np.ascontiguousarray(curves.values[metric]).tobytes())
            if curves.present is not None:
                content.update(np.ascontiguousarray(curves.present[metric]).tobytes())
        found[trial] = content.hexdigest()
    return found


def regressed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Trials that were FINISHED and are not any more, or whose curve changed; both as `digests` of FINISHED trials."""
    return sorted(trial for trial, digest in before.items() if after.get(trial) != digest)

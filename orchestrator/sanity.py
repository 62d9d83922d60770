"""What the first trials of a sweep tell: which metrics they report, under which labels, and what looks like a mistake.

`run` shows it once a few trials have ended, and `plan` and `check --rehearse` after their rehearsal. The facts are
taken from the rows and results that pass through anyway, of a few trials only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from jobs.function import FunctionJob
from jobs.job import FINAL, Job, Observations, Params
from orchestrator.errors import UserError, did_you_mean, nearest
from orchestrator.printable import last_line
from orchestrator.progress import counted
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.target import LevelTarget, Target
from orchestrator.trial import Trial

TRACKED = 8
"""Trials whose rows are looked at."""
ENOUGH = 4
"""Trials that have ended before the report is made."""
UNREPORTED = 8
"""Trials that have finished without the metric of `phases` before the run ends with an error."""
EARLY = 0.9
"""A metric that is last reported before this share of the steps is mentioned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricFacts:
    """What one trial has reported of one metric."""

    values: int
    first: int
    last: int
    """Steps of the first and the last value."""
    not_finite: int = 0
    since: int = 0
    """Step of the first value that is not finite, if there is one."""

    def plus(self, steps: Any, values: Any) -> MetricFacts:
        """With further values; the steps increase."""
        bad = ~np.isfinite(values)
        since = self.since if self.not_finite or not bad.any() else int(steps[np.argmax(bad)])
        return MetricFacts(
            values=self.values + len(steps),
            first=self.first if self.values else int(steps[0]),
            last=int(steps[-1]),
            not_finite=self.not_finite + int(bad.sum()),
            since=since,
        )


@dataclass(kw_only=True, slots=True)
class TrialFacts:
    """What is known of one trial."""

    metrics: dict[str, MetricFacts] = field(default_factory=dict)
    status: str = Status.RUNNING.value
    phase: str | None = None
    observed: dict[str, float | None] = field(default_factory=dict)
    """Observation -> its value; None: censored."""
    error: str = ""
    unread: tuple[str, ...] | None = None
    """Parameters that the function has not read; None: not known."""
    mark: str = ""
    """See `Job.mark`."""

    @property
    def last_step(self) -> int:
        return max((metric.last for metric in self.metrics.values()), default=0)

    def plain(self) -> dict[str, Any]:
        """As plain data, from which `from_plain` makes it again."""
        return asdict(self)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> TrialFacts:
        """Of `plain`, which may have been JSON."""
        metrics = {name: MetricFacts(**facts) for name, facts in content["metrics"].items()}
        unread = content["unread"]
        return cls(**{**content, "metrics": metrics, "unread": None if unread is None else tuple(unread)})


class Collector:
    """Collects the facts of the first few trials that report or end."""

    def __init__(self, job: Job[Any], thresholds: Params) -> None:
        self._job, self._thresholds = job, thresholds
        self.facts: dict[str, TrialFacts] = {}

    def _of(self, trial_id: str) -> TrialFacts | None:
        if trial_id not in self.facts and len(self.facts) < TRACKED:
            self.facts[trial_id] = TrialFacts()
        return self.facts.get(trial_id)

    def rows(self, rows: CurveRows) -> None:
        """Curve rows; those of other trials are left out."""
        for position, trial_id in enumerate(rows.trial_ids[: 2 * TRACKED]):
            facts = self._of(trial_id)
            if facts is None:
                continue
            mine = rows.trial == position
            steps, values = rows.step[mine], rows.values[mine]
            present = None if rows.present is None else rows.present[mine]
            for column, name in enumerate(rows.metrics):
                held = slice(None) if present is None else present[:, column]
                at = steps[held]
                if len(at):
                    before = facts.metrics.get(name, MetricFacts(values=0, first=0, last=0))
                    facts.metrics[name] = before.plus(at, values[held, column])

    def unread(self, names: Mapping[str, Sequence[str]]) -> None:
        """Trial -> parameters that its function has not read."""
        for trial_id, unread in names.items():
            if (facts := self._of(trial_id)) is not None:
                facts.unread = tuple(unread)

    def end(self, params: Params, result: TrialResult) -> None:
        """A trial has ended."""
        facts = self._of(result.trial_id)
        if facts is None:
            return
        facts.status, facts.phase, facts.error = result.status.value, result.phase, result.error or ""
        facts.observed = {k: v if isinstance(v, float) else None for k, v in result.observations.items()}
        if result.status is Status.FINISHED:
            facts.mark = self._job.mark(params, result.observations, self._thresholds)


def explained(error: str, given: Collection[str]) -> str:
    """The last line of an error, with what the sweep gives where a parameter's name is missing in it."""
    last = last_line(error)
    missing = re.fullmatch(r"KeyError: '(\w+)'", last) or re.search(r"unexpected keyword argument '(\w+)'", last)
    missing = missing or re.search(r"object has no attribute '(\w+)'", last)
    if missing is None or missing[1] in given or not given:
        return last
    near = nearest(missing[1], given)
    if near is None and not last.startswith("KeyError"):
        return last
    return f"{last} (the sweep gives {near or ', '.join(given)})"


def awaited(job: Job[Any], thresholds: Params) -> tuple[str, ...]:
    """The observation that decides the phase, under all its names, if trials have to show that it exists."""
    names = job.labelled_by(thresholds)
    declared = job.named_metrics if isinstance(job, FunctionJob) else ()
    return () if {name.removeprefix(FINAL) for name in names} & {*declared} else names


def unreported(names: Sequence[str], observed: Iterable[str], *, job: Job[Any], place: str, trials: int) -> UserError:
    """The error of a sweep whose trials do not report the metric by which they are labelled.

    Args:
        names: the observation, see `awaited`.
        observed: names of the observations that there are.
        job: of the sweep.
        place: where the sweep file names it.
        trials: how many have finished without it.
    """
    metric = names[0].removeprefix(FINAL)
    reported = tuple(dict.fromkeys(name.removeprefix(FINAL) for name in observed))
    near = did_you_mean(metric, reported, "name one of these")
    return UserError(
        f"no trial reports '{metric}', the metric of 'phases': {counted(trials, 'trial')} finished without it",
        place=place,
        value=metric,
        choices=reported,
        next_step=f"{near} Recorded trials get their labels anew, and are not trained again. "
        + job.reporting_advice.format(metric=metric),
    )


def report(
    facts: Sequence[TrialFacts],
    job: Job[Any],
    thresholds: Params,
    *,
    title: str = "first",
    corner: bool = False,
    target: LevelTarget | None = None,
) -> list[str]:
    """What the trials tell: first a summary, then what looks like a mistake, each with the next step on a line below.

    Args:
        facts: of the trials, failed ones left out.
        job: of the sweep.
        thresholds: of the sweep.
        title: begins the summary.
        corner: whether one label of theirs says nothing: they are neighbours in a corner of a grid, or trials of an
            earlier run have other labels.
        target: the level that a search looks for, unless trials of an earlier run are on both sides.
    """
    if not facts:
        return []
    running = sum(trial.status == Status.RUNNING.value for trial in facts)
    ended = f" ({running} did not end in this time)" if running else ""
    lines = [f"{title} {counted(len(facts), 'trial')}{ended}: {_metrics(facts)}{_labels(facts)}"]
    of_label = [] if corner else _one_label(facts, job, thresholds)
    of_target = [] if target is None or of_label else _one_side(facts, target)
    for warning, step in (*_early(facts), *_odd_values(facts), *of_label, *of_target, *_marks(facts)):
        lines.append(f"warning: {warning}\n  next:  {step}")
    watched = [set(trial.unread) for trial in facts if trial.unread is not None]
    never = set.intersection(*watched) if watched else set()
    if never:
        names = ", ".join(sorted(never))
        lines.append(
            f"warning: the sweep gives {names}, and {counted(len(watched), 'watched trial')} did not read it\n"
            "  next:  correct the name in the function or in the sweep file, or remove it"
        )
    return lines


def _span(numbers: Iterable[int]) -> str:
    some = sorted(set(numbers))
    return f"{some[0]}" if len(some) == 1 else f"{some[0]} to {some[-1]}"


def _metrics(known: Sequence[TrialFacts]) -> str:
    """Metrics with their number of values, first and last step; those that agree in one part."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for trial in known for name in trial.metrics):
        of = [trial.metrics[name] for trial in known if name in trial.metrics]
        values = sorted({facts.values for facts in of})
        last = _span(f.last for f in of)
        steps = f"steps {min(f.first for f in of)} to {last}" if " " not in last else f"the last at step {last}"
        text = f"{_span(values)} values, {steps}" if values != [1] else f"1 value, at step {_span(f.last for f in of)}"
        if len(of) < len(known):
            text += f", in {len(of)} of them"
        groups.setdefault(text, []).append(name)
    return "; ".join(f"{', '.join(names)} ({text})" for text, names in groups.items()) or "no metric"


def _labels(known: Sequence[TrialFacts]) -> str:
    labels = Counter(trial.phase for trial in known if trial.phase is not None)
    return "; labels: " + ", ".join(f"{label} {count}" for label, count in labels.most_common()) if labels else ""


Warnings = list[tuple[str, str]]
"""What is odd, and what to do."""


def _early(known: Sequence[TrialFacts]) -> Warnings:
    """Metrics whose last value is far from the end."""
    found: Warnings = []
    ended = [trial for trial in known if trial.status == Status.FINISHED.value]
    for name in dict.fromkeys(name for trial in ended for name in trial.metrics):
        of = [(trial.metrics[name], trial.last_step) for trial in ended if name in trial.metrics]
        early = [(m, last) for m, last in of if m.last < last and (m.values == 1 or m.last < EARLY * last)]
        if early:
            facts, last = early[0]
            only = "reported once, at" if facts.values == 1 else "last reported at"
            where = f" in {len(early)} of {len(of)} trials" if len(early) < len(of) else ""
            step = f"'{FINAL}{name}' is that value: report {name} at the last step too, or return it"
            found.append((f"{name} is {only} step {facts.last} of {last}{where}", step))
    return found


def _odd_values(known: Sequence[TrialFacts]) -> Warnings:
    """Metrics that are NaN or infinite."""
    found: Warnings = []
    for name in dict.fromkeys(name for trial in known for name in trial.metrics):
        odd = [trial for trial in known if name in trial.metrics and trial.metrics[name].not_finite]
        if odd:
            since = min(trial.metrics[name].since for trial in odd)
            labels = Counter(trial.phase for trial in odd if trial.phase)
            called = f" (labels: {', '.join(f'{k} {n}' for k, n in labels.items())})" if labels else ""
            step = (
                "nothing, if they diverge: that is a result; else report a finite value, or leave the metric out where "
                "it has none"
            )
            what = f"{name} is NaN or infinite in {len(odd)} of {counted(len(known), 'trial')}, first at step {since}"
            found.append((what + called, step))
    return found


def _one_label(known: Sequence[TrialFacts], job: Job[Any], thresholds: Params) -> Warnings:
    """All trials on one side of the level of `phases`."""
    names, level = job.labelled_by(thresholds), getattr(thresholds, "level", None)
    labels = {trial.phase for trial in known if trial.phase is not None}
    finals = [v for t in known for name in names[:1] if (v := t.observed.get(name)) is not None]
    if level is None or len(labels) != 1 or len(finals) < ENOUGH:
        return []
    label, span = names[0].removeprefix(FINAL), extent(finals)
    step = "nothing, if other settings reach the other side; else correct 'level' under 'phases:'"
    return [(f"all are '{labels.pop()}': {label} ends at {span}, and the level is {level:g}", step)]


def _one_side(known: Sequence[TrialFacts], target: LevelTarget) -> Warnings:
    """All trials on one side of the level that a search looks for."""
    values = [v for t in known if (v := t.observed.get(target.metric)) is not None and np.isfinite(v)]
    if len(values) < ENOUGH or len({target.side(value) for value in values}) > 1:
        return []
    side = "at or above" if target.side(values[0]) else "below"
    step = "nothing, if other settings reach the other side; else correct 'level' under 'target:'"
    what = f"all are {side} the level of the search: {target.metric} is {extent(values)}, and the level is "
    return [(f"{what}{target.level:g}", step)]


def extent(values: Sequence[float]) -> str:
    """The range of some values."""
    low, high = (f"{value:.4g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _marks(known: Sequence[TrialFacts]) -> Warnings:
    marks = Counter(trial.mark for trial in known if trial.mark)
    return [(f"{count} of {counted(len(known), 'trial')}: {mark}", MARK_STEP) for mark, count in marks.items()]


MARK_STEP = "the label is by the first time; compare it with the final value, or train longer"
"""What to do about marked trials."""


def marked(job: Job[Any], thresholds: Params, finished: Iterable[tuple[Params, Observations]]) -> list[str]:
    """What `status` and `map` say of finished trials that the job marks, a line for each mark."""
    marks = Counter(job.mark(params, observations, thresholds) for params, observations in finished)
    return [f"{count} finished: {mark}" for mark, count in marks.items() if mark]


class FirstTrials:
    """Watches the trials of a run until the report is made, and until one has the metric of `phases`.

    Args:
        job: of the sweep.
        thresholds: of the sweep.
        place: where the sweep file names the metric of `phases`.
        say: shows a line.
        grid: the number of trials of a grid, whose first ones are neighbours; 0 for a search, where they are spread.
        target: what a search looks for.
    """

    def __init__(
        self,
        job: Job[Any],
        thresholds: Params,
        *,
        place: str,
        say: Callable[[str], None],
        grid: int = 0,
        target: Target | None = None,
    ) -> None:
        self._collector: Collector | None = Collector(job, thresholds)
        self._job, self._thresholds, self._place, self._say = job, thresholds, place, say
        self._awaited = awaited(job, thresholds)
        self._grid, self._without = grid, 0
        self._target = target if isinstance(target, LevelTarget) else None
        self._observed: dict[str, None] = {}
        self._labels_seen: set[str] = set()
        self._sides_seen: set[int] = set()
        """Of the target; as the labels, also in earlier runs."""

    def rows(self, rows: CurveRows) -> None:
        """Curve rows of trials that run."""
        if self._collector is not None:
            self._collector.rows(rows)

    def unread(self, names: Mapping[str, Sequence[str]]) -> None:
        """Trial -> parameters that its function has not read."""
        if self._collector is not None:
            self._collector.unread(names)

    def ended(self, trial: Trial, result: TrialResult) -> None:
        """A trial of this run has ended.

        Raises:
            UserError: enough trials have finished without the metric of `phases`.
        """
        if self._collector is not None:
            self._collector.end(trial.params, result)
            facts = self._collector.facts.values()
            if sum(f.status != Status.RUNNING.value for f in facts) >= ENOUGH:
                self._report()
        self.finished(result)
        if self._awaited and self._without >= UNREPORTED:
            self._refuse()

    def finished(self, result: TrialResult) -> None:
        """A trial has finished, in this run or an earlier one."""
        if self._collector is not None and result.status is Status.FINISHED:
            self._note_sides(result)
        if not self._awaited or result.status is not Status.FINISHED or not result.observations:
            return
        if any(name in result.observations for name in self._awaited):
            self._awaited = ()
            return
        self._without += 1
        self._observed.update(dict.fromkeys(result.observations))

    def _note_sides(self, result: TrialResult) -> None:
        if result.phase is not None:
            self._labels_seen.add(result.phase)
        if self._target is not None:
            value = result.observations.get(self._target.metric)
            if isinstance(value, float) and np.isfinite(value):
                self._sides_seen.add(self._target.side(value))

    def close(self) -> None:
        """The run is over; raises as `ended`."""
        if self._collector is not None and self._collector.facts:
            self._report()
        if self._awaited and self._without:
            self._refuse()

    def _refuse(self) -> None:
        raise unreported(self._awaited, self._observed, job=self._job, place=self._place, trials=self._without)

    def _report(self) -> None:
        facts = [] if self._collector is None else list(self._collector.facts.values())
        self._collector = None
        ended = [trial for trial in facts if trial.status == Status.FINISHED.value]
        corner = len(ended) < self._grid or len(self._labels_seen) > 1
        target = None if len(self._sides_seen) > 1 else self._target
        for line in report(ended, self._job, self._thresholds, corner=corner, target=target):
            self._say(line)

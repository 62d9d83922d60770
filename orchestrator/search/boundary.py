"""`search: boundary`: suggests the trials that tell most about a target, and keeps them in an Optuna study.

The study lists what was asked; the record (MLflow) holds how each trial ended. A search first asks all trials of the
study, then those that only the record holds: finished ones cost nothing, the others are run. So the same command
resumes after a loss of the study, the record or both, and no suggestion is made twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from jobs.job import Observations, Scalar
from orchestrator.axes import Axis
from orchestrator.errors import UserError, did_you_mean
from orchestrator.records import TrialResult
from orchestrator.search.base import Sampler
from orchestrator.search.optuna_sampler import CENSORED, PHASE, REPLICATE, VALUE, StudySampler
from orchestrator.search.proposals import Proposer
from orchestrator.search.space import Slice, locate, setting_of
from orchestrator.search.study import AREA, TOLD, TRIAL_ID, SweepStudy, history_of
from orchestrator.surface.base import Surrogate
from orchestrator.target import MetricTarget, Target
from orchestrator.trial import Trial

BATCH = 32
"""Trials that have been asked and have not ended, at most, unless `batch` says otherwise."""
TrialOf = Callable[[Mapping[str, Scalar], int], Trial | None]
"""The trial of a setting and a replicate; None where the job refuses these values together."""


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """When a search ends."""

    budget: int
    """The most trials, failed ones included."""
    uncertain_area: float | None = None
    """The share of the map in which the boundary may still lie."""


class BoundarySampler(Sampler):
    """Asks trials near a boundary.

    Args:
        study: keeps the suggestions.
        space: the slices to search.
        axes: of the sweep, for the study's distributions.
        target: what to look for.
        phases: the job's phases.
        trial_of: makes a trial of a setting.
        stop: when to end.
        replicates: see `Proposer`.
        start: trials that are spread evenly at first, at most half of the budget.
        batch: the most trials that have been asked and have not ended.
        workers: packs that run at a time; the search asks early enough to keep them busy.
        seed: of the search's random numbers.
        remembered: trials of this search that have finished, under these thresholds or others. Those that the study
            lacks are asked first.
        surrogate_of: the surrogate of a slice, in place of the target's own.
        metric_place: where the sweep file names the metric, for messages.
        metric_known: the job is known to observe the metric; trials of earlier versions may lack it.
        progress: receives (trials told, uncertain area) before every batch, and at a stop by uncertain area; also for
            earlier runs of the search, as far as the study knows. May receive the same point again.
    """

    def __init__(
        self,
        *,
        study: SweepStudy,
        space: Sequence[Slice],
        axes: Sequence[Axis],
        target: Target,
        phases: Sequence[str],
        trial_of: TrialOf,
        stop: StoppingRule,
        replicates: int = 1,
        start: int = 64,
        batch: int | None = None,
        workers: int = 1,
        seed: int = 0,
        remembered: Iterable[Trial] = (),
        surrogate_of: Callable[[Slice], Surrogate[Any]] | None = None,
        metric_place: str = "search.target",
        metric_known: bool = False,
        progress: Callable[[Sequence[tuple[int, float]]], None] | None = None,
    ) -> None:
        self._study, self._target, self._trial_of, self._stop = study, target, trial_of, stop
        self._classes = target.classes(phases)
        self._space = tuple(space)
        self._batch = batch or max(BATCH, 2 * workers)
        self._quantum = max(1, min(self._batch // 4, self._batch - workers))
        self._names = tuple(axis.name for axis in axes)
        self._distributions = {axis.name: _distribution(axis) for axis in axes}
        self._known: set[str] = set()
        """Ids of all trials asked, in this run or an earlier one."""
        grid = replicates * sum(slice_.size or 0 for slice_ in space) if all(s.is_grid for s in space) else stop.budget
        self._expected = min(stop.budget, grid)

        def surrogate(slice_: Slice) -> Surrogate[Any]:
            return target.surrogate(len(self._classes), [c.names for c in slice_.coordinates], replicates)

        self._sampler = StudySampler(
            self._distributions,
            lambda: Proposer(
                space,
                surrogate_of or surrogate,
                start=min(start, max(1, self._expected // 2)),
                seed=seed,
                replicates=replicates,
                accept=self._is_new,
            ),
            seed=seed,
            labels=self._classes,
        )
        self._pending: set[str] = set()
        self._again: deque[tuple[Trial, Mapping[str, Scalar] | None]] = deque()
        """Trials to ask first, each with its setting where the study does not hold it yet."""
        self._done = False
        self._metric_place = metric_place
        self._metric_seen = metric_known or not isinstance(target, MetricTarget)
        self._progress, self._progressed = progress, 0
        self._recall(remembered)

    # --- the contract of a sampler ---

    def ask(self, count: int) -> list[Trial]:
        """Trials of earlier runs first; then suggestions, while no more than a batch of trials is pending."""
        if count <= 0:
            return []
        if self._again:
            return self._ask_again(count)
        room = self._room()
        if not room:
            return []
        if self._is_known_well_enough():
            self._done = not self._pending  # results to come may change that
            return []
        proposer = self.proposer
        proposals = proposer.propose(min(count, room))
        self._done = not proposals and not self._pending
        # The study keeps a point of the uncertain area with the first trial of every batch after the even start.
        has_point = proposals and proposer.told and not proposer.starting
        point = {TOLD: proposer.told, AREA: self._area(proposer)} if has_point else {}
        asked: list[Trial] = []
        for proposal in proposals:
            trial = self._trial_of(proposal.setting, proposal.replicate)
            if trial is not None and trial.id not in self._known:  # two settings may be the same trial
                self._create(trial, proposal.setting, **({} if asked else point))
                asked.append(trial)
        return asked

    def _area(self, proposer: Proposer) -> float:
        """The uncertain area now, also reported to `progress`."""
        area = proposer.uncertain_area()
        if self._progress is not None and proposer.told > self._progressed:
            self._progressed = proposer.told
            self._progress([(proposer.told, area)])
        return area

    def tell(self, result: TrialResult) -> None:
        """Write the result into the study. A failed trial counts as tried and is ignored by the fit."""
        if result.trial_id not in self._pending:
            return
        self._pending.remove(result.trial_id)
        evidence = self._target.evidence(result, self._classes)
        if evidence is None:
            self._study.fail(result.trial_id)
            return
        attributes: dict[str, Any] = {}
        value = evidence.value
        if isinstance(self._target, MetricTarget):
            self._check_metric(self._target.observation, result.observations)
            attributes[VALUE] = value if math.isfinite(value) else None
            if evidence.censored:
                attributes[CENSORED] = True
        else:
            value = float(evidence.label)
        if evidence.label >= 0:
            attributes[PHASE] = self._classes[evidence.label]
        self._study.finish(result.trial_id, attributes, value)

    @property
    def exhausted(self) -> bool:
        """Whether the stopping rule is met, or nothing is left to try."""
        return not self._again and (self._done or len(self._known) >= self._stop.budget)

    @property
    def expected_trials(self) -> int:
        """The budget, or all of a grid that is smaller."""
        return max(self._expected, len(self._known))

    @property
    def proposer(self) -> Proposer:
        """The trials of the study and what is fitted to them, up to date."""
        return self._study.patiently(lambda: self._sampler.follow(self._study.study))

    # --- asking ---

    def _recall(self, remembered: Iterable[Trial]) -> None:
        """Queue what was asked before: all of the study in its order, then what only the record holds."""
        rows = [row for row in self._study.trials() if TRIAL_ID in row.user_attrs]
        if self._progress is not None:
            # A run that was killed may have written a point to the study but not reported it.
            self._progress(history_of(rows))
        alive = {row.user_attrs[TRIAL_ID] for row in rows if row.state != TrialState.FAIL}
        for row in rows:
            trial_id = row.user_attrs[TRIAL_ID]
            if row.state == TrialState.RUNNING:
                self._study.adopt(row)
            if trial_id in self._known:
                continue
            place = locate(self._space, row.params, self._distributions)
            if place is None:
                continue
            trial = self._trial_of(self._space[place[0]].setting(place[1]), row.user_attrs[REPLICATE])
            if trial is None or trial.id != trial_id:
                continue  # of another version of the job
            self._known.add(trial_id)
            # A failed trial runs again, as a new trial of the study: Optuna does not reopen one that has ended.
            self._again.append((trial, None if trial_id in alive else row.params))
        for trial in remembered:
            setting = None if trial.id in self._known else self._setting_of(trial)
            if setting is not None:
                self._known.add(trial.id)
                self._again.append((trial, setting))

    def _setting_of(self, trial: Trial) -> Mapping[str, Scalar] | None:
        """The setting of a recorded trial, without axes that do not exist there; None where it is not in the space."""

        def is_same(setting: Mapping[str, Scalar]) -> bool:
            same = self._trial_of(setting, trial.replicate)
            return same is not None and same.id == trial.id

        return setting_of(self._space, trial.settings(), is_same)

    def _ask_again(self, count: int) -> list[Trial]:
        asked: list[Trial] = []
        while self._again and len(asked) < count:
            trial, new = self._again.popleft()
            if new is not None:
                self._create(trial, new)
            self._pending.add(trial.id)
            asked.append(trial)
        return asked

    def _room(self) -> int:
        """How many trials may be asked now; 0 where it is better to wait for more results."""
        left = self._stop.budget - len(self._known)
        if self._done or left <= 0:
            return 0
        room = self._batch
        start_left = self._sampler.proposer.start_left
        if start_left and not self._known:
            room = max(room, start_left)  # the even start needs no results
        room -= len(self._pending)
        return min(left, room) if not self._pending or room >= min(self._quantum, left) else 0

    def _is_known_well_enough(self) -> bool:
        if self._stop.uncertain_area is None:
            return False
        proposer = self.proposer
        return not proposer.starting and proposer.told > 0 and self._area(proposer) <= self._stop.uncertain_area

    def _is_new(self, setting: Mapping[str, Scalar], replicate: int) -> bool:
        trial = self._trial_of(setting, replicate)
        return trial is not None and trial.id not in self._known

    def _create(self, trial: Trial, setting: Mapping[str, Scalar], **known: float) -> None:
        params = {name: setting[name] for name in self._names if name in setting}
        self._study.create(trial.id, params, self._distributions, trial.replicate, **known)
        self._known.add(trial.id)
        self._pending.add(trial.id)

    def _check_metric(self, metric: str, observations: Observations) -> None:
        """Raise where the first trials have observations and the metric is none of them: it is misspelt.

        Once some trial has had the metric, a trial may lack it.
        """
        self._metric_seen = self._metric_seen or metric in observations
        if not self._metric_seen and observations:
            raise UserError(
                f"no observation '{metric}': trials of this job have others",
                place=self._metric_place,
                value=metric,
                choices=tuple(observations),
                next_step=did_you_mean(metric, observations, "name one of these"),
            )


def _distribution(axis: Axis) -> BaseDistribution:
    """The distribution of an axis in the study: the choices of a list, or the range of the values."""
    if axis.scale == "values":
        return CategoricalDistribution(tuple(dict.fromkeys(axis.values)))
    numbers = [value for value in axis.values if not isinstance(value, str)]
    low, high = min(numbers), max(numbers)
    log = axis.scale != "linear" and low > 0
    if all(isinstance(value, int) for value in numbers):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)

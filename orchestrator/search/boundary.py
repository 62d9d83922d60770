"""`search: boundary`: the trials that tell most about where one phase ends, asked from an Optuna study.

The study is the list of what was asked; the record (MLflow) says how it ended. A search begins by asking all that the
study holds, and what the record holds of this sweep besides: what has finished costs nothing, and what has not is run.
So the same command resumes whatever was lost, study, record or both, and no suggestion is made twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from jobs.job import Censored, Observations, Scalar
from orchestrator.axes import Axis
from orchestrator.errors import UserError, nearest
from orchestrator.search.base import Outcome, Sampler
from orchestrator.search.optuna_sampler import (
    CENSORED,
    PHASE,
    REPLICATE,
    VALUE,
    PhaseBoundarySampler,
    distribution_of,
)
from orchestrator.search.proposals import Proposer
from orchestrator.search.space import Slice, locate
from orchestrator.search.study import AREA, TOLD, TRIAL_ID, SweepStudy, history_of
from orchestrator.surface.base import Surface, Surrogate
from orchestrator.trial import Trial

BATCH = 32
"""Trials that are asked and have not ended, at most, where nothing else is said."""
TrialOf = Callable[[Mapping[str, Scalar], int], Trial | None]
"""The trial of a setting and a replicate; None where the job refuses these values together."""


@dataclass(frozen=True, kw_only=True)
class Sought:
    """What a search looks for, in words of the job."""

    labels: tuple[str, ...]
    """The job's phases."""
    metric: str | None = None
    """The observation of a level or a ridge; None where the phases themselves are the target."""
    level: float | None = None
    along: str | None = None
    """The axis of a ridge."""
    place: str = "search.target"
    """Where the metric is named, for a message."""

    def target(self, one: Slice, *, replicates: int = 1) -> Surrogate[Any]:
        """The target in a slice, in which a setting of a grid may have so many trials."""
        if self.metric is None:
            from orchestrator.surface.phase import PhaseSurrogate

            return PhaseSurrogate(classes=len(self.labels), replicates=replicates)
        if self.level is not None:
            from orchestrator.surface.level import LevelSurrogate

            return LevelSurrogate(level=self.level, classes=3, replicates=replicates)
        from orchestrator.surface.ridge import RidgeSurrogate

        along = one.axis_index(self.along or "")
        if along is None:
            raise ValueError(f"{self.along} is no axis of this slice")
        return RidgeSurrogate(along=along)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the classes of a surface are called."""
        if self.metric is None:
            return self.labels
        return ("below", "at or above", "no value") if self.level is not None else ()


@dataclass(frozen=True, kw_only=True)
class Ends:
    """When a search has done enough."""

    budget: int
    """The most trials, those that failed too."""
    uncertain_area: float | None = None
    """The share of the map in which the boundary may still lie."""


class BoundarySampler(Sampler):
    """Asks trials along a boundary.

    Args:
        study: where suggestions are kept.
        space: where to look.
        axes: of the sweep, for the study's distributions.
        sought: what is looked for.
        trial_of: makes trials of settings.
        ends: when it is enough.
        replicates: see `Proposer`.
        start: trials that are spread evenly at first, at most half of the budget.
        batch: the most trials that are asked and have not ended.
        workers: how many packs run at a time: they are not left idle for the sake of a larger batch.
        seed: of the search's random numbers.
        remembered: trials of this search that have finished, here or under other thresholds; those that the study lacks
            are asked first.
        target_of: the target in a slice, in place of the one that `sought` names.
        progress: told (trials told, uncertain area after them) before every batch, and where that ends the search; of
            an earlier run of the search too, as far as the study knows. The same point may be told again.
    """

    def __init__(
        self,
        *,
        study: SweepStudy,
        space: Sequence[Slice],
        axes: Sequence[Axis],
        sought: Sought,
        trial_of: TrialOf,
        ends: Ends,
        replicates: int = 1,
        start: int = 64,
        batch: int | None = None,
        workers: int = 1,
        seed: int = 0,
        remembered: Iterable[Trial] = (),
        target_of: Callable[[Slice], Surrogate[Any]] | None = None,
        progress: Callable[[Sequence[tuple[int, float]]], None] | None = None,
    ) -> None:
        self._log, self._sought, self._trial_of, self._ends = study, sought, trial_of, ends
        self._space = tuple(space)
        self._batch = batch or max(BATCH, 2 * workers)
        self._quantum = max(1, min(self._batch // 4, self._batch - workers))
        self._names = tuple(axis.name for axis in axes)
        self._distributions = _distributions(axes)
        self._known: dict[str, Trial] = {}
        """Every trial asked, in this run or an earlier one."""
        most = _most(space, replicates)
        self._budget = ends.budget
        self._expected = self._budget if most is None else min(self._budget, most)
        self._sampler = PhaseBoundarySampler.over(
            lambda: Proposer(
                space,
                target_of or partial(sought.target, replicates=replicates),
                start=min(start, max(1, self._expected // 2)),
                seed=seed,
                replicates=replicates,
                accept=self._is_new,
            ),
            self._distributions,
            seed=seed,
            labels=sought.classes,
        )
        self._pending: dict[str, Trial] = {}
        self._again: deque[tuple[Trial, Mapping[str, Scalar] | None]] = deque()
        """Trials to be asked first, and the setting where the study has yet to hold them."""
        self._done = False
        self._metric_seen = sought.metric is None
        self._progress, self._progressed = progress, 0
        self._recall(remembered)

    # --- what a sampler does ---

    def ask(self, count: int) -> list[Trial]:
        """What is known first; then suggestions, as long as no more than a batch of them has not ended."""
        if count <= 0:
            return []
        if self._again:
            return self._ask_again(count)
        room = self._room()
        if not room:
            return []
        if self._is_known_well_enough():
            self._done = not self._pending  # what is still to come may change that
            return []
        proposals = self._sampler.suggest(self._log.study, min(count, room))
        self._done = not proposals and not self._pending
        asked: list[Trial] = []
        known = self._known_so_far() if proposals else {}
        for proposal in proposals:
            trial = self._trial_of(proposal.setting, proposal.replicate)
            if trial is None or trial.id in self._known:
                continue  # `_is_new` has seen to that
            self._create(trial, proposal.setting, **({} if asked else known))
            asked.append(trial)
        return asked

    def _known_so_far(self) -> dict[str, float]:
        """What the first trial of a batch keeps: the uncertain area before it."""
        proposer = self._sampler.proposer
        if proposer.starting or not proposer.told:
            return {}
        return {TOLD: proposer.told, AREA: self._area(proposer)}

    def _area(self, proposer: Proposer) -> float:
        """The uncertain area now, which is said to who follows the search."""
        area = proposer.uncertain_area()
        if self._progress is not None and proposer.told > self._progressed:
            self._progressed = proposer.told
            self._progress([(proposer.told, area)])
        return area

    def tell(self, outcome: Outcome) -> None:
        """The study hears of it; a failed trial is tried, and says nothing."""
        trial = self._pending.pop(outcome.trial.id, None)
        if trial is None:
            return
        if outcome.phase is None:
            self._log.fail(trial.id)
            return
        attributes, value = self._said(outcome)
        self._log.finish(trial.id, attributes, value)

    @property
    def exhausted(self) -> bool:
        """Whether the budget is spent, the boundary is known well enough, or nothing is left to try."""
        return not self._again and (self._done or len(self._known) >= self._budget)

    @property
    def expected_trials(self) -> int:
        """The budget, or all of a grid that is smaller."""
        return max(self._expected, len(self._known))

    # --- what it has found ---

    def surfaces(self) -> list[Surface | None]:
        """What is believed of every slice."""
        return self._sampler.surfaces(self._log.study)

    def uncertain_area(self) -> float:
        """The share of the map in which the boundary may lie."""
        return self._sampler.uncertain_area(self._log.study)

    def close(self) -> None:
        """Let go of the study."""
        self._log.close()

    # --- asking ---

    def _recall(self, remembered: Iterable[Trial]) -> None:
        """Line up what was asked before: all of the study in its order, then what the record alone holds."""
        rows = [row for row in self._log.trials() if TRIAL_ID in row.user_attrs]
        if self._progress is not None:
            # The point of a batch is with its first trial: a run that was killed in between has not said it.
            self._progress(history_of(rows))
        alive = {row.user_attrs[TRIAL_ID] for row in rows if row.state != TrialState.FAIL}
        for row in rows:
            trial_id = row.user_attrs[TRIAL_ID]
            if row.state == TrialState.RUNNING:
                self._log.adopt(row)
            if trial_id in self._known:
                continue
            trial = self._restored(row.params, row.user_attrs[REPLICATE])
            if trial is None or trial.id != trial_id:
                continue  # of another version of the job
            self._known[trial_id] = trial
            # One that failed is run again, and that is a trial of its own in the study: an ended one stays.
            self._again.append((trial, None if trial_id in alive else row.params))
        for trial in remembered:
            setting = None if trial.id in self._known else self._setting_of(trial)
            if setting is not None:
                self._known[trial.id] = trial
                self._again.append((trial, setting))

    def _restored(self, params: Mapping[str, Scalar], replicate: int) -> Trial | None:
        found = locate(self._space, params, self._distributions)
        if found is None:
            return None
        number, x = found
        return self._trial_of(self._space[number].setting(x), replicate)

    def _setting_of(self, trial: Trial) -> Mapping[str, Scalar] | None:
        """The setting that a recorded trial is of, axes that do not exist there left out."""
        settings = trial.settings()
        for one in self._space:
            if any(settings.get(name) != value for name, value in one.fixed.items()):
                continue
            try:
                setting = one.setting(one.position(settings))
            except (KeyError, ValueError):
                continue
            same = self._trial_of(setting, trial.replicate)
            if same is not None and same.id == trial.id:
                return setting
        return None

    def _ask_again(self, count: int) -> list[Trial]:
        asked: list[Trial] = []
        while self._again and len(asked) < count:
            trial, new = self._again.popleft()
            if new is not None:
                self._create(trial, new)
            self._pending[trial.id] = trial
            asked.append(trial)
        return asked

    def _room(self) -> int:
        """How many trials may be asked now; none where a later moment gives a better batch."""
        left = self._budget - len(self._known)
        if self._done or left <= 0:
            return 0
        most = self._batch
        start_left = self._sampler.proposer.start_left
        if start_left and not self._known:
            most = max(most, start_left)  # the start needs no answers
        room = most - len(self._pending)
        return min(left, room) if not self._pending or room >= min(self._quantum, left) else 0

    def _is_known_well_enough(self) -> bool:
        if self._ends.uncertain_area is None:
            return False
        proposer = self._sampler.follow(self._log.study)
        return not proposer.starting and proposer.told > 0 and self._area(proposer) <= self._ends.uncertain_area

    def _is_new(self, setting: Mapping[str, Scalar], replicate: int) -> bool:
        trial = self._trial_of(setting, replicate)
        return trial is not None and trial.id not in self._known

    def _create(self, trial: Trial, setting: Mapping[str, Scalar], **known: float) -> None:
        params = {name: setting[name] for name in self._names if name in setting}
        self._log.create(trial.id, params, self._distributions, trial.replicate, **known)
        self._known[trial.id] = self._pending[trial.id] = trial

    # --- telling ---

    def _said(self, outcome: Outcome) -> tuple[dict[str, Any], float]:
        """What the study keeps of a trial that has ended: attributes, and its value."""
        classes = self._sought.classes
        if self._sought.metric is None:
            return {PHASE: outcome.phase}, float(classes.index(str(outcome.phase)))
        self._check_metric(outcome.observations)
        observed = outcome.observations.get(self._sought.metric)
        is_bound = isinstance(observed, Censored)
        number = observed.at if isinstance(observed, Censored) else math.nan if observed is None else float(observed)
        said: dict[str, Any] = {VALUE: number if math.isfinite(number) else None}
        if is_bound:
            said[CENSORED] = True
        if self._sought.level is not None:
            above = number >= self._sought.level
            if not math.isfinite(number):
                said[PHASE] = classes[2]
            elif above or not is_bound:  # a bound below the level says nothing of the side
                said[PHASE] = classes[int(above)]
        return said, number

    def _check_metric(self, observations: Observations) -> None:
        """A metric that no trial has is a slip of the pen; one that a few lack is not."""
        self._metric_seen = self._metric_seen or self._sought.metric in observations
        if not self._metric_seen and observations:
            near = nearest(str(self._sought.metric), observations)
            raise UserError(
                f"no observation '{self._sought.metric}': trials of this job have others",
                place=self._sought.place,
                value=self._sought.metric,
                choices=tuple(observations),
                next_step=f"did you mean '{near}'?" if near else "name one of these",
            )


def _distributions(axes: Sequence[Axis]) -> dict[str, BaseDistribution]:
    return {
        axis.name: CategoricalDistribution(tuple(dict.fromkeys(axis.values)))
        if axis.scale == "values"
        else distribution_of(axis.values, log=axis.scale != "linear")
        for axis in axes
    }


def _most(space: Sequence[Slice], replicates: int) -> int | None:
    """How many trials there are at all; None where nobody would count them."""
    if not all(one.is_grid for one in space):
        return None
    return replicates * sum(one.size or 0 for one in space)

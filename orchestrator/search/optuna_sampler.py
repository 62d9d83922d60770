"""A sampler for Optuna that looks for a boundary instead of an optimum. It can be used without sweeps or records.

    from optuna.distributions import FloatDistribution, IntDistribution
    from orchestrator.search.optuna_sampler import PhaseBoundarySampler
    from orchestrator.surface.phase import PhaseTarget

    space = {"weight_decay": FloatDistribution(0.01, 10, log=True), "width": IntDistribution(8, 512, log=True)}
    sampler = PhaseBoundarySampler(PhaseTarget(classes=3), space, seed=0)
    study = optuna.create_study(sampler=sampler)

    def objective(trial):
        width = trial.suggest_int("width", 8, 512, log=True)
        weight_decay = trial.suggest_float("weight_decay", 0.01, 10, log=True)
        trial.set_user_attr("phase", train(width, weight_decay))  # a label: "grokking", "memorization", ...
        return 0.0

    study.optimize(objective, n_trials=400, n_jobs=8)

For a level or a ridge the objective returns the metric itself. The sampler reads these user attributes of a trial:

- `phase`: the label (text, or any plain value), for a target with classes;
- `value`: the metric, in place of what the objective returned (null where there is none, as for a diverged trial);
- `censored`: true where the metric is only a lower bound.

Categorical parameters cannot be interpolated: each combination of their choices is searched as a slice of its own, and
most trials go to the slices whose boundary is least known. Several processes may share a study: every ask reads the
trials that are new or had not ended, by one query. Give each process its own seed.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.proposals import Proposal, Proposer
from orchestrator.search.space import MOST_COORDINATES, Continuous, Coordinate, Listed, Slice, Whole, locate
from orchestrator.surface.base import Surface, Surrogate, TrialEvidence

BATCH = 32
"""Suggestions made at a time, from one fit."""
PHASE, VALUE, CENSORED, REPLICATE = "phase", "value", "censored", "replicate"
"""User attributes of a trial."""
MOST_STEPS = 100_000
"""The most values of a float parameter with a step."""


class StudySampler(BaseSampler):
    """Feeds a proposer from a study, and the study from the proposer. Thread-safe.

    Args:
        space: the distribution of every parameter.
        make_proposer: called once for every study that the sampler is used with.
        seed: of random values outside the space.
        batch: see `PhaseBoundarySampler`.
        labels: the labels in the order of their classes; by default in the order in which they occur.
        most_labels: how many classes there are, where `labels` does not say it.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        make_proposer: Callable[[], Proposer],
        *,
        seed: int,
        batch: int = BATCH,
        labels: Sequence[Any] | None = None,
        most_labels: int | None = None,
    ) -> None:
        self._space, self._make = dict(space), make_proposer
        self._batch, self._most_labels = max(1, batch), most_labels if labels is None else len(labels)
        self._rng = np.random.default_rng([seed, 1])
        self._given = list(labels or [])
        self._lock = threading.RLock()
        self._reset("")

    def _reset(self, study_name: str) -> None:
        self._study_name = study_name
        self._proposer = self._make()
        self._labels = list(self._given)
        self._open: set[int] = set()
        """Numbers of the trials that had not ended when they were last read."""
        self._next = 0
        self._queue: deque[Proposal] = deque()
        self._told_at_fit = 0

    # --- what Optuna calls ---

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of the space."""
        return dict(self._space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next suggestion."""
        with self._lock:
            self.follow(study)
            proposal = self._pop()
            if proposal is None:
                return {}
            self._proposer.asked(trial.number, proposal.slice, proposal.x)
            return {name: value for name, value in proposal.setting.items() if name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for a parameter outside the space or where nothing is left to try in it."""
        with self._lock:
            if isinstance(param_distribution, CategoricalDistribution):
                return param_distribution.choices[int(self._rng.integers(len(param_distribution.choices)))]
            coordinate = _coordinate(param_name, param_distribution)
            return coordinate.values(float(coordinate.snap(self._rng.random(1))[0]))[0]

    def reseed_rng(self) -> None:
        """Nothing to do: the threads of `optimize` share one sampler."""

    # --- beyond Optuna's interface ---

    def suggest(self, study: optuna.Study, count: int) -> list[Proposal]:
        """Up to `count` untried settings; fewer where nothing is left to try.

        Add them to the study (`enqueue_trial`, `add_trial`) before the next call.
        """
        with self._lock:
            return self.follow(study).propose(count)

    def surfaces(self, study: optuna.Study) -> list[Surface | None]:
        """The surface of each slice, fitted to all trials of the study; None where a slice has no evidence."""
        with self._lock:
            return self.follow(study).surfaces()

    def uncertain_area(self, study: optuna.Study) -> float:
        """The share of the space in which the most frequent class is uncertain."""
        with self._lock:
            return self.follow(study).uncertain_area()

    @property
    def proposer(self) -> Proposer:
        """The trials and fits, as of the last call."""
        return self._proposer

    @property
    def labels(self) -> list[Any]:
        """The labels in the order of their classes, as far as they are known."""
        return list(self._labels)

    # --- reading the study ---

    def follow(self, study: optuna.Study) -> Proposer:
        """Read the trials that are new or have ended since the last call."""
        if study.study_name != self._study_name:
            self._reset(study.study_name)
        trials = study.get_trials(deepcopy=False)
        for number in [*sorted(self._open), *range(self._next, len(trials))]:
            self._note(trials[number])
        self._next = len(trials)
        return self._proposer

    def _note(self, trial: FrozenTrial) -> None:
        number, ended = trial.number, trial.state.is_finished()
        place = locate(self._proposer.slices, trial.params, self._space)
        if place is not None:
            self._proposer.asked(number, *place, trial.user_attrs.get(REPLICATE))
        elif ended:
            self._proposer.forget(number)  # its parameters lie outside the space
        if not ended:
            self._open.add(number)
            return
        self._open.discard(number)
        evidence = self._evidence(trial)
        if place is not None and evidence is not None:
            self._proposer.tell(number, evidence)

    def _evidence(self, trial: FrozenTrial) -> TrialEvidence | None:
        """None for a failed trial, and for a pruned one without a label."""
        attributes = trial.user_attrs
        if trial.state == TrialState.FAIL or (trial.state == TrialState.PRUNED and PHASE not in attributes):
            return None
        value = attributes[VALUE] if VALUE in attributes else (trial.values or [None])[0]
        return TrialEvidence(
            label=self._class_of(attributes[PHASE]) if PHASE in attributes else -1,
            value=math.nan if value is None else float(value),
            censored=bool(attributes.get(CENSORED, False)),
        )

    def _class_of(self, label: Any) -> int:
        if label not in self._labels:
            if self._most_labels is not None and len(self._labels) >= self._most_labels:
                raise ValueError(
                    f"the label {label!r} is one more than the {self._most_labels} classes of the target: "
                    f"{self._labels}; give the target more classes"
                )
            self._labels.append(label)
        return self._labels.index(label)

    def _pop(self) -> Proposal | None:
        if self._proposer.told - self._told_at_fit >= self._batch:
            self._queue.clear()
        for fresh in (False, True):
            if fresh:
                self._told_at_fit = self._proposer.told
                self._queue.extend(self._proposer.propose(self._batch))
            while self._queue:
                proposal = self._queue.popleft()
                if not self._proposer.is_tried(proposal):
                    return proposal
        return None

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("this sampler cannot be pickled: make a new one, which reads the study")


class PhaseBoundarySampler(StudySampler):
    """Suggests the trials that tell most about where one phase (or side of a level) ends, or where a ridge runs.

    Thread-safe. An ask takes one query of the storage, and once per batch a fit.

    Args:
        target: What is looked for, e.g. `PhaseTarget(classes=K)`.
        space: Parameter -> distribution; one to four of them are numbers.
        seed: Of all random numbers; None draws one.
        start: Trials that are spread evenly at first; `target.start` by default.
        batch: Suggestions made at a time. A smaller batch uses results sooner and costs more fits.
        labels: The K labels in the order of their classes; by default in the order in which they occur.

    Raises:
        ValueError: the space cannot be searched.
    """

    def __init__(
        self,
        target: Surrogate[Any],
        space: Mapping[str, BaseDistribution],
        *,
        seed: int | None = None,
        start: int | None = None,
        batch: int = BATCH,
        labels: Sequence[Any] | None = None,
    ) -> None:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        slices = slices_of_space(space)

        def proposer() -> Proposer:
            return Proposer(slices, lambda _: target, start=target.start if start is None else start, seed=seed)

        most = getattr(target, "classes", None)
        super().__init__(space, proposer, seed=seed, batch=batch, labels=labels, most_labels=most)


def slices_of_space(space: Mapping[str, BaseDistribution]) -> tuple[Slice, ...]:
    """One slice for each combination of categorical choices.

    Raises:
        ValueError: the space has no numeric parameter, or more than four.
    """
    choices = {name: d.choices for name, d in space.items() if isinstance(d, CategoricalDistribution)}
    numbers = {name: d for name, d in space.items() if name not in choices}
    if not 1 <= len(numbers) <= MOST_COORDINATES:
        raise ValueError(f"a boundary search has 1 to {MOST_COORDINATES} numeric parameters; got {list(numbers)}")
    coordinates = tuple(_coordinate(name, distribution) for name, distribution in numbers.items())
    return tuple(
        Slice(fixed=dict(zip(choices, chosen, strict=True)), coordinates=coordinates)
        for chosen in itertools.product(*choices.values())
    )


def _coordinate(name: str, distribution: BaseDistribution) -> Coordinate:
    if isinstance(distribution, IntDistribution):
        return Whole(
            name=name, low=distribution.low, high=distribution.high, log=distribution.log, step=distribution.step
        )
    if not isinstance(distribution, FloatDistribution):
        raise ValueError(f"{name}: a boundary search does not support {type(distribution).__name__}")
    if distribution.step is None:
        return Continuous(name=name, low=distribution.low, high=distribution.high, log=distribution.log)
    steps = math.floor((distribution.high - distribution.low) / distribution.step + 1e-8)
    if steps >= MOST_STEPS:
        raise ValueError(f"{name}: at most {MOST_STEPS} steps; leave 'step' out")
    rows = tuple((distribution.low + k * distribution.step,) for k in range(steps + 1))
    return Listed(columns=(name,), rows=rows, at=np.linspace(0, 1, steps + 1) if steps else np.zeros(1))

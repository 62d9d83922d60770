"""What a job's theory predicts for the settings of a sweep, within a budget of time; holes where it predicts nothing.

Shapes: N trials of the table, S settings (distinct parameters), C cells of the diagram.
"""

from __future__ import annotations

import numbers
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Censored, Job, Params, Prediction, Scalar
from jobs.theory.domain import DomainError
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import is_number, number, plural
from orchestrator.trial import Trial

MOST_SETTINGS = 20_000
"""The most settings that a theory is asked for."""
MOST_SECONDS = 60.0
"""CPU time of the calling thread after which no further setting is asked for."""
_COARSEST = 5
"""Every 2^5th value of an axis is asked for first, then those between, so that the answers are spread out."""

Predictions = Mapping[str, Prediction]


def has_theory(job: Job[Any]) -> bool:
    """Whether the job has a theory."""
    return type(job).theory is not Job.theory


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """A theory's predictions for the settings of a sweep."""

    params: tuple[Params, ...]
    """(S,) the settings, in the table's order."""
    axes: tuple[str, ...]
    """The parameters that name a setting."""
    setting: NDArray[np.int64]
    """(N,) the setting of each trial."""
    cell: NDArray[np.int64]
    """(S,) the cell of each setting."""
    predictions: tuple[Predictions, ...]
    """(S,) empty where the theory was not asked, predicts nothing, or raised."""
    asked: NDArray[np.bool_]
    """(S,) whether it was asked."""
    outside: Counter[str]
    """Message of a `DomainError`, where its formulas do not hold -> settings."""
    raised: Counter[str]
    """Message of any other error -> settings."""

    def observed(self) -> tuple[str, ...]:
        """The observations that it predicts anywhere."""
        return self._names(curves=False)

    def curves(self) -> tuple[str, ...]:
        """The metrics whose curve it predicts anywhere."""
        return self._names(curves=True)

    def _names(self, *, curves: bool) -> tuple[str, ...]:
        named = (item for predictions in self.predictions for item in predictions.items())
        return tuple(dict.fromkeys(name for name, p in named if (p.step is not None) == curves))

    def value(self, setting: int, axis: str) -> Scalar | None:
        """A parameter of a setting; None where it has no such parameter."""
        return getattr(self.params[setting], axis, None)

    def text(self, setting: int, axis: str) -> str:
        """A parameter of a setting in words."""
        value = self.value(setting, axis)
        return number(value) if is_number(value) else str(value)

    def place(self, setting: int) -> str:
        """A setting in words: `features=30, teacher=random`."""
        return ", ".join(f"{axis}={self.text(setting, axis)}" for axis in self.axes)

    def holes(self) -> str:
        """Where it predicts nothing though it might, in words; empty where there is no such setting."""
        parts = []
        if not self.asked.all():
            asked = f"asked of {self.asked.sum():,} of {plural(len(self.params), 'setting')}"
            parts.append(f"{asked}, evenly spread, for time")
        if self.outside:
            text, _ = self.outside.most_common(1)[0]
            parts.append(f"outside its domain at {plural(self.outside.total(), 'setting')} ({text})")
        return "; ".join(parts)

    def warnings(self) -> tuple[str, ...]:
        """The errors of the job's own code."""
        if not self.raised:
            return ()
        text, _ = self.raised.most_common(1)[0]
        return (f"the job's theory failed at {plural(self.raised.total(), 'setting')} ({text}); they are left out",)


def ask(
    job: Job[Any],
    trials: Sequence[Trial],
    table: TrialTable,
    diagram: PhaseDiagram,
    axes: Sequence[str] = (),
    *,
    most: int = MOST_SETTINGS,
    seconds: float = MOST_SECONDS,
) -> Answers:
    """Ask a job's theory for every setting of a sweep, coarsely spaced ones first, until the budget is spent.

    Args:
        job: whose theory.
        trials: of the sweep; those of the table are among them.
        table: all trials.
        diagram: of the table.
        axes: the parameters that name a setting.
        most: the most settings to ask for.
        seconds: CPU time of this thread after which no further setting is asked for.
    """
    by_id = {trial.id: trial.params for trial in trials}
    index: dict[Params, int] = {}
    setting = np.array([index.setdefault(by_id[trial], len(index)) for trial in table.trial_id], dtype=np.int64)
    first = np.full(len(index), len(table), dtype=np.int64)
    np.minimum.at(first, setting, np.arange(len(table)))
    params = tuple(index)
    answers = Answers(
        params=params,
        axes=tuple(axes),
        setting=setting,
        cell=diagram.cell[first],
        predictions=(),
        asked=np.zeros(len(params), dtype=np.bool_),
        outside=Counter(),
        raised=Counter(),
    )
    given: list[Predictions] = [{}] * len(params)
    until = time.thread_time() + seconds
    for s in np.argsort(-_coarseness(diagram)[answers.cell], kind="stable")[:most]:
        if time.thread_time() > until:
            break
        answers.asked[s] = True
        try:
            given[s] = predictions(job, params[s])
        except DomainError as error:
            answers.outside[str(error)] += 1
        except Exception as error:  # A user's own code: the diagram is worth having without it.
            answers.raised[f"{type(error).__name__}: {error}"] += 1
    return replace(answers, predictions=tuple(given))


def predictions(job: Job[Any], params: Params) -> Predictions:
    """The theory's predictions for one setting, each of them checked.

    Raises:
        DomainError: its formulas do not hold there.
        Exception: whatever else a user's own code raises.
    """
    return {str(name): _checked(name, predicted) for name, predicted in job.theory(params).items()}


def _coarseness(diagram: PhaseDiagram) -> NDArray[np.int64]:
    """(C,) the largest k (to a bound) for which the cell is among every 2^k-th value of each numeric axis."""
    level = np.full(len(diagram.codes), _COARSEST)
    for a, axis in enumerate(diagram.axes):
        if axis.numeric:
            code = np.maximum(diagram.codes[:, a] - axis.special, 0)
            own = sum((code % (1 << k) == 0).astype(np.int64) for k in range(1, _COARSEST + 1))
            level = np.minimum(level, own)
    return level


def _checked(name: object, predicted: Prediction) -> Prediction:
    """A prediction whose value has the type that it should have.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(predicted, Prediction):
        raise TypeError(f"{name}: expected a Prediction, not {type(predicted).__name__}")
    if predicted.step is not None:
        step, value = np.asarray(predicted.step, dtype=np.int64), np.asarray(predicted.value, dtype=np.float64)
        if step.ndim != 1 or value.shape != step.shape or (np.diff(step) <= 0).any():
            raise ValueError(f"{name}: a curve needs one value at each of its increasing steps")
        errors = np.broadcast_to(np.asarray(predicted.standard_error, dtype=np.float64), step.shape)
        return replace(predicted, step=step, value=value, standard_error=errors)
    error = float(predicted.standard_error)
    if isinstance(predicted.value, Censored):
        return replace(predicted, standard_error=error)
    if not isinstance(predicted.value, numbers.Real):
        raise TypeError(f"{name}: the value is neither a number, nor Censored, nor given with steps")
    return replace(predicted, value=float(predicted.value), standard_error=error)


class _OnlyPredicted(dict[str, float | Censored]):
    """Observations that raise KeyError for a missing one, even when asked whether it is there."""

    def get(self, key: str, default: Any = None) -> Any:
        return self[key]

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key):
            raise KeyError(key)
        return True


def predicted_phases(answers: Answers, job: Job[Any], thresholds: Params) -> tuple[str | None, ...]:
    """(S,) the phase that the job gives the predicted observations, see `predicted_phase`."""
    settings = zip(answers.params, answers.predictions, strict=True)
    return tuple(predicted_phase(job, params, given, thresholds) for params, given in settings)


def predicted_phase(job: Job[Any], params: Params, given: Predictions, thresholds: Params) -> str | None:
    """The phase that the job gives the predicted observations; None where it needs what is not predicted."""
    observations = _OnlyPredicted(
        {name: p.value for name, p in given.items() if p.step is None and isinstance(p.value, float | Censored)}
    )
    try:
        return job.phase(params, observations, thresholds) if observations else None
    except Exception:  # A job may meet a missing observation with any error.
        return None

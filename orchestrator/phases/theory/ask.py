"""What a job's theory says of the settings of a sweep: asked once a setting, within a budget, holes where it is silent.

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

from jobs.job import Censored, Job, Params, Prediction
from jobs.theory.domain import DomainError
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import plural
from orchestrator.trial import Trial

MOST_SETTINGS = 20_000
"""Settings that a theory is asked of at most."""
MOST_SECONDS = 60.0
"""Time of the asking thread after which no further setting is asked."""
_COARSEST = 5
"""Every 2^5th value of an axis is asked of first, then those between: what is asked is always spread out."""

Predictions = Mapping[str, Prediction]


def has_theory(job: Job[Any]) -> bool:
    """Whether the job offers a theory at all."""
    return type(job).theory is not Job.theory


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A theory's answers."""

    params: tuple[Params, ...]
    """(S,) the settings, in the table's order."""
    setting: NDArray[np.int64]
    """(N,) the setting of each trial."""
    cell: NDArray[np.int64]
    """(S,) the cell of each setting."""
    said: tuple[Predictions, ...]
    """(S,) what was predicted; empty where it was not asked, is silent, or raised."""
    asked: NDArray[np.bool_]
    """(S,) whether it was asked."""
    outside: Counter[str]
    """What it said where its formulas do not hold (`DomainError`) -> settings."""
    raised: Counter[str]
    """What any other error said -> settings."""

    def observed(self) -> tuple[str, ...]:
        """The observations that it predicts anywhere."""
        return self._names(curves=False)

    def curves(self) -> tuple[str, ...]:
        """The metrics whose curve it predicts anywhere."""
        return self._names(curves=True)

    def _names(self, *, curves: bool) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(name for said in self.said for name, p in said.items() if (p.step is not None) == curves)
        )

    def holes(self) -> str:
        """Where it says nothing though it might, in words; empty where there is no such setting."""
        parts = []
        if not self.asked.all():
            asked = f"asked of {self.asked.sum():,} of {plural(len(self.params), 'setting')}"
            parts.append(f"{asked}, evenly spread, for time")
        if self.outside:
            text, _ = self.outside.most_common(1)[0]
            parts.append(f"outside its domain at {plural(self.outside.total(), 'setting')} ({text})")
        return "; ".join(parts)

    def warnings(self) -> tuple[str, ...]:
        """What a user's own code did wrong."""
        if not self.raised:
            return ()
        text, _ = self.raised.most_common(1)[0]
        return (f"the job's theory failed at {plural(self.raised.total(), 'setting')} ({text}); they are left out",)


def ask(
    job: Job[Any],
    trials: Sequence[Trial],
    table: TrialTable,
    diagram: PhaseDiagram,
    *,
    most: int = MOST_SETTINGS,
    seconds: float = MOST_SECONDS,
) -> Asked:
    """Ask a job's theory of every setting of a sweep, coarsely spaced ones first, until the budget is spent.

    Args:
        job: whose theory.
        trials: of the sweep; those of the table are among them.
        table: all trials.
        diagram: of the table.
        most: settings asked of at most.
        seconds: of this thread, after which no further one is asked.
    """
    by_id = {trial.id: trial.params for trial in trials}
    index: dict[Params, int] = {}
    setting = np.array([index.setdefault(by_id[trial], len(index)) for trial in table.trial_id], dtype=np.int64)
    first = np.full(len(index), len(table), dtype=np.int64)
    np.minimum.at(first, setting, np.arange(len(table)))
    cell = diagram.cell[first]
    params = tuple(index)
    said: list[Predictions] = [{}] * len(params)
    asked = np.zeros(len(params), dtype=np.bool_)
    outside: Counter[str] = Counter()
    raised: Counter[str] = Counter()
    until = time.thread_time() + seconds
    for s in np.argsort(-_coarseness(diagram)[cell], kind="stable")[:most]:
        if time.thread_time() > until:
            break
        asked[s] = True
        try:
            said[s] = predictions(job, params[s])
        except DomainError as error:
            outside[str(error)] += 1
        except Exception as error:  # A user's own code: the diagram is worth having without it.
            raised[f"{type(error).__name__}: {error}"] += 1
    return Asked(
        params=params, setting=setting, cell=cell, said=tuple(said), asked=asked, outside=outside, raised=raised
    )


def predictions(job: Job[Any], params: Params) -> Predictions:
    """What the job's theory says of one setting, each prediction checked.

    Raises:
        DomainError: its formulas do not hold there.
        Exception: whatever else a user's own code raises.
    """
    return {str(name): _checked(name, found) for name, found in job.theory(params).items()}


def _coarseness(diagram: PhaseDiagram) -> NDArray[np.int64]:
    """(C,) the largest k (to a bound) for which the cell is among every 2^k-th value of each numeric axis."""
    level = np.full(len(diagram.codes), _COARSEST)
    for a, axis in enumerate(diagram.axes):
        if axis.numeric:
            code = np.maximum(diagram.codes[:, a] - axis.special, 0)
            own = sum((code % (1 << k) == 0).astype(np.int64) for k in range(1, _COARSEST + 1))
            level = np.minimum(level, own)
    return level


def _checked(name: object, found: Prediction) -> Prediction:
    """A prediction whose value has the type that it should have.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(found, Prediction):
        raise TypeError(f"{name}: a Prediction is wanted, not {type(found).__name__}")
    if found.step is not None:
        step, value = np.asarray(found.step, dtype=np.int64), np.asarray(found.value, dtype=np.float64)
        if step.ndim != 1 or value.shape != step.shape or (np.diff(step) <= 0).any():
            raise ValueError(f"{name}: a curve needs one value at each of its increasing steps")
        error = np.broadcast_to(np.asarray(found.standard_error, dtype=np.float64), step.shape)
        return replace(found, step=step, value=value, standard_error=error)
    error_of = float(found.standard_error)
    if isinstance(found.value, Censored):
        return replace(found, standard_error=error_of)
    if not isinstance(found.value, numbers.Real):
        raise TypeError(f"{name}: the value is neither a number, nor Censored, nor given with steps")
    return replace(found, value=float(found.value), standard_error=error_of)


class _OnlyPredicted(dict[str, float | Censored]):
    """Observations of which nothing may be read that is not predicted: not even by asking whether it is there."""

    def get(self, key: str, default: Any = None) -> Any:
        return self[key]

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key):
            raise KeyError(key)
        return True


def predicted_phases(asked: Asked, job: Job[Any], thresholds: Params) -> tuple[str | None, ...]:
    """(S,) the phase that the job gives the predicted observations; None where it needs what is not predicted."""
    return tuple(
        predicted_phase(job, params, said, thresholds) for params, said in zip(asked.params, asked.said, strict=True)
    )


def predicted_phase(job: Job[Any], params: Params, said: Predictions, thresholds: Params) -> str | None:
    """The phase that the job gives the predicted observations; None where it needs what is not predicted."""
    seen = _OnlyPredicted(
        {name: p.value for name, p in said.items() if p.step is None and isinstance(p.value, float | Censored)}
    )
    try:
        return job.phase(params, seen, thresholds) if seen else None
    except Exception:  # A missing observation, by whatever error the job meets it.
        return None

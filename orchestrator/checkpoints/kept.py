"""The final states of earlier sweeps (`resources.keep: final`), and which trials continue from them.

A trial continues from that of a trial that is shorter and in all else the same: job, source, seed and parameters. Its
curve is the one of an undisturbed training, so it must report at the steps at which the shorter one has reported
(`Job.why_not_extended`); otherwise it starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.job import Job, ParamError, Scalar
from orchestrator.checkpoints.contents import BadCheckpoint
from orchestrator.checkpoints.saving import Extension, unusable
from orchestrator.checkpoints.store import StoreError, open_store
from orchestrator.trial import Trial


@dataclass(kw_only=True)
class Extended:
    """What continues from kept states."""

    of_trial: dict[str, Extension] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    """Trial -> the share of its steps that is still to be trained, of those that continue."""
    steps: int = 0
    """Of all trials that were looked for, as long as their schedules say."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why trials start although a shorter one of them is kept -> how many."""

    @property
    def lines(self) -> list[str]:
        """In words."""
        lines = []
        if self.of_trial:
            kept = sum(extension.step for extension in self.of_trial.values())
            share = f"{kept} of {self.steps} steps ({kept / self.steps:.0%}) are not trained again"
            lines.append(f"{len(self.of_trial)} trials continue from the final states of shorter ones: {share}")
        for reason, count in self.reasons.most_common():
            lines.append(f"{count} trials start although the final state of a shorter one is kept: {reason}")
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """A final state in a file."""

    step: int
    trial: str
    file: str
    params: Mapping[str, Scalar]
    source: str


class KeptStates:
    """The final states in a store.

    Args:
        address: of the store.
        job: that trains.
        source: of the job; states of another one are not continued.
        say: called with a line to show.
    """

    def __init__(self, address: str, *, job: Job[Any], source: str, say: Callable[[str], None]) -> None:
        self.address, self._job, self._source, self._say = address, job, source, say
        self._kept: dict[Hashable, list[_Kept]] | None = None
        """What stays the same in a longer trial -> the states, the longest first."""

    def extend(self, trials: Sequence[Trial]) -> Extended:
        """The states from which these trials continue."""
        found = Extended()
        if not self._job.horizon_params:
            return found
        if self._kept is None:
            self._kept = self._read()
        for trial in trials if self._kept else ():
            schedule = self._job.schedule(trial.params)
            horizon = 0 if schedule is None else int(schedule[-1])
            found.steps += horizon
            reasons = []
            for kept in self._kept.get(self._same(trial.settings(), trial.seed), ()):
                step = kept.step
                if step >= horizon:
                    continue
                if kept.source != self._source:
                    reasons.append("it was trained by another version of the job")
                    continue
                try:
                    early = self._job.params_for(kept.params)
                except ParamError:
                    continue
                if why := self._job.why_not_extended(early, trial.params):
                    reasons.append(why)
                    continue
                steps = self._job.schedule(early)
                assert steps is not None
                assert schedule is not None
                through = int(steps[-1] if steps[-1] in schedule else steps[-2] if len(steps) > 1 else 0)
                found.left[trial.id] = 1 - step / horizon
                found.of_trial[trial.id] = Extension(file=kept.file, trial=kept.trial, step=step, through=through)
                break
            else:
                found.reasons.update(reasons[:1])
        return found

    def _same(self, params: Mapping[str, Scalar], seed: int) -> Hashable:
        return seed, frozenset(item for item in params.items() if item[0] not in self._job.horizon_params)

    def _read(self) -> dict[Hashable, list[_Kept]]:
        kept: dict[Hashable, list[_Kept]] = {}
        try:
            store = open_store(self.address)
            names = store.names()
        except StoreError as error:
            self._say(f"final states of shorter trials cannot be read ({error}); the trials start")
            return kept
        said = False
        for name in names:
            try:
                table = store.table(name)
            except (StoreError, BadCheckpoint) as error:
                if not said:  # there may be thousands, as of another version of the format
                    self._say(unusable(name, str(error)))
                said = True
                continue
            for trial, setting in table.settings.items():
                state = _Kept(
                    step=table.steps[trial], trial=trial, file=name, params=setting.params, source=table.source
                )
                kept.setdefault(self._same(setting.params, setting.seed), []).append(state)
        for states in kept.values():
            states.sort(key=lambda state: (state.step, state.trial), reverse=True)
        return kept

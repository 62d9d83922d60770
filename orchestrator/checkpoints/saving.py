"""The worker's part: a pack is saved while it trains, and continues from checkpoints.

A checkpoint that cannot be written or read costs no trial: the training goes on, or the trial starts again, and a
notice says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.job import Member, Report, Scalar
from jobs.state import StateError, TrialState
from orchestrator.checkpoints.contents import BadCheckpoint, SavedCurve, SavedTrial, Setting, decoded, encoded
from orchestrator.checkpoints.interval import Rhythm
from orchestrator.checkpoints.store import SUFFIX, Store, StoreError, open_store
from orchestrator.printable import printable

Positions = NDArray[np.int64]

ASK_S = 1.0
"""How often a worker looks whether it was asked to save its pack."""
ASK_AFTER_S = 20.0
"""A younger pack loses little: it does not look."""
KEPT = 6
"""Checkpoints of a pack that its worker leaves: the newest, and those that may be on their way to the driver, which may
be four events behind (`orchestrator.dispatch.ray_engine.EVENTS_AHEAD`), and the one of which it knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """The final state of a shorter trial, from which a longer one continues."""

    file: str
    trial: str
    """The shorter one."""
    step: int
    through: int
    """The last step whose rows belong to the longer one, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """How a pack is saved: plain data on its way to a worker."""

    folder: str
    """The address of the store."""
    continues: Mapping[str, str]
    """Trial -> the file in which its newest state is; those that start are left out."""
    earlier: str = ""
    """The address of another store, in which a file may be instead; empty for none."""
    interval_s: float | None = None
    """Between two checkpoints; None: chosen from their cost and the life of nodes."""
    life_s: float | None = None
    """The mean life of a node; None while none was lost."""
    kept: str = ""
    """The address of the store of final states; empty for none."""
    keeps: bool = False
    """Whether final states are kept there."""
    extends: Mapping[str, Extension] = field(default_factory=dict)
    """Trial -> the final state that it continues from, of those without a state of their own."""

    @property
    def resumes(self) -> bool:
        """Whether any trial of the pack continues: then it takes less time than a whole training."""
        return bool(self.continues or self.extends)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint that was written."""

    file: str
    steps: Mapping[str, int]
    """Trial -> the step of its state."""


class _Train(Protocol):
    def __call__(self, pack: Sequence[Member[Any]], /) -> Iterator[Report]: ...


class _Curves(Protocol):
    """What takes the reports."""

    def together(self, positions: Sequence[int], /) -> None:
        """These members train together; called before their first report."""

    def restore(self, position: int, saved: SavedTrial, /) -> None:
        """This member continues; called before its first report."""


def new_file(trial_ids: Sequence[str]) -> str:
    """A name for a pack's next checkpoint, which no other has."""
    return f"{files_of(trial_ids)}{uuid.uuid4().hex[:12]}{SUFFIX}"


def files_of(trial_ids: Sequence[str]) -> str:
    """The beginning of the names of a pack's checkpoints; its length is that of any other pack's."""
    return hashlib.blake2b(",".join(trial_ids).encode(), digest_size=12).hexdigest() + "-"


class PackSaver:
    """Saves and continues one pack.

    Args:
        saving: where, and from what.
        trial_ids: of its members, in order.
        source: the source of the job; states of another one are not continued.
        clock: seconds, monotonic.
        asked: 0 where it should be saved now, because the worker may end soon; the mean life of a node, where the
            driver has learnt of it since the pack began; or None.
    """

    def __init__(
        self,
        saving: Saving,
        trial_ids: Sequence[str],
        source: str,
        clock: Callable[[], float],
        asked: Callable[[], float | None],
    ) -> None:
        self._saving, self._trial_ids, self._source, self._clock, self._asked = saving, trial_ids, source, clock, asked
        self._rhythm = Rhythm(began=clock(), fixed_s=saving.interval_s, life_s=saving.life_s)
        self._own: list[str] = []
        """The files that it has written last."""
        self._store: Store | None = None
        self._continued: dict[int, SavedTrial] = {}
        """Position -> what it continues from."""
        self._waiting: set[int] = set()
        """Those of them that have not begun."""
        self._notices: list[str] = []
        self._failing = False
        """Whether the last attempt failed, which was said."""
        self._offers_later = False
        """Whether it is due, and the job will offer states soon."""
        self._began = self._looked = clock()

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._saving.folder)
        return self._store

    # --- continue ---

    def reports(self, train: _Train, members: Sequence[Member[Any]], curves: _Curves) -> Iterator[Report]:
        """The reports of the pack; what continues at the same step trains together, one group after another."""
        if not self._saving.continues and not self._saving.extends:
            yield from train(members)
            return
        self._continued = self._read()
        self._waiting = set(self._continued)
        groups: dict[int, list[int]] = {}
        for position in range(len(members)):
            saved = self._continued.get(position)
            groups.setdefault(0 if saved is None else saved.state.step, []).append(position)
        for _, positions in sorted(groups.items(), reverse=True):
            curves.together(positions)
            yield from self._group(train, members, np.array(positions, dtype=np.int64), curves)

    def _read(self) -> dict[int, SavedTrial]:
        found: dict[int, SavedTrial] = {}
        files: dict[tuple[str, str], list[int]] = {}
        for position, trial in enumerate(self._trial_ids):
            if (place := self._place(trial)) is not None:
                files.setdefault(place, []).append(position)
        for (folder, file), positions in files.items():
            why = "it does not hold this trial"
            trials: Mapping[str, SavedTrial] = {}
            try:
                data = (self._open() if folder == self._saving.folder else open_store(folder)).read(file)
                if data is None and self._saving.earlier:
                    data = open_store(self._saving.earlier).read(file)
                if data is None:
                    why = "it is gone"
                else:
                    trials = decoded(data, source=self._source)
            except Exception as error:  # of any library or file: a checkpoint that cannot be read costs no trial
                why = _why(error)
            here = {p: saved for p in positions if (saved := self._of(p, trials)) is not None}
            if len(here) < len(positions):
                self._notices.append(unusable(file, why))
            found |= here
        return found

    def _place(self, trial: str) -> tuple[str, str] | None:
        """The store and the file that hold the state of a trial; None where it starts."""
        if trial in self._saving.continues:
            return self._saving.folder, self._saving.continues[trial]
        extension = self._saving.extends.get(trial)
        return None if extension is None else (self._saving.kept, extension.file)

    def _of(self, position: int, trials: Mapping[str, SavedTrial]) -> SavedTrial | None:
        """The state of a member in a file."""
        trial = self._trial_ids[position]
        if trial in self._saving.continues:
            return trials.get(trial)
        extension = self._saving.extends[trial]
        shorter = trials.get(extension.trial)
        if shorter is None:
            return None
        return SavedTrial(trial_id=trial, state=shorter.state, curve=shorter.curve.through(extension.through))

    def _group(
        self, train: _Train, members: Sequence[Member[Any]], positions: Positions, curves: _Curves
    ) -> Iterator[Report]:
        saved = {p: self._continued[p] for p in positions.tolist() if p in self._continued}
        if saved:
            group = [replace(members[p], state=saved[p].state if p in saved else None) for p in positions.tolist()]
            reports = iter(train(group))
            try:
                first = next(reports)
            except StopIteration:
                first = None
            except StateError as error:
                place = self._place(self._trial_ids[next(iter(saved))])
                assert place is not None
                self._notices.append(unusable(place[1], str(error)))
                saved = {}
            self._waiting.difference_update(positions.tolist())
            if saved and first is not None:
                for position, trial in saved.items():
                    curves.restore(position, trial)
                yield _placed(first, positions)
                for report in reports:
                    yield _placed(report, positions)
            if saved:
                return
        for report in train([members[p] for p in positions.tolist()]):
            yield _placed(report, positions)

    # --- save ---

    def due(self, report: Report) -> bool:
        """Whether to save the pack with this report; also where something is to be said."""
        if self._notices:
            return True
        if report.state is None:
            return False
        now = self._clock()
        if self._offers_later or self._rhythm.due(now):
            return True
        if now - self._began < ASK_AFTER_S or now - self._looked < ASK_S:
            return False
        self._looked = now
        if (life_s := self._asked()) is None:
            return False
        if life_s > 0:
            self._rhythm.life_s = life_s
            return self._rhythm.due(now)
        return now - self._rhythm.began >= ASK_AFTER_S and now >= self._rhythm.not_before

    def save(self, report: Report, so_far: Callable[[int], SavedCurve]) -> tuple[Saved | None, str]:
        """Write a checkpoint; returns what was written, and lines of notices."""
        notice, self._notices = "\n".join(self._notices), []
        if notice or report.state is None:
            return None, notice
        saved: Saved | None = None
        began = self._clock()
        try:
            states = report.state()
            self._offers_later = not states
            if not states:
                return None, ""
            trials = list(self._trials(states, so_far))
            file, store = new_file(self._trial_ids), self._open()
            store.write(file, encoded(trials, source=self._source))
            saved = Saved(file=file, steps={trial.trial_id: trial.state.step for trial in trials})
            self._keep(file, store)
        except Exception as error:  # of the job's states, of any library or of the store: training goes on
            if not self._failing:
                notice = (
                    f"checkpoints cannot be written ({printable(_why(error))}); training goes on without them, and "
                    "trials whose worker or node is lost have only those that were written before; it is tried again"
                )
        now, self._failing = self._clock(), saved is None
        self._rhythm.saved(now, cost_s=now - began, failed=self._failing)
        return saved, notice

    def end(
        self,
        report: Report,
        *,
        so_far: Callable[[int], SavedCurve],
        params: Sequence[Mapping[str, Scalar]],
        seeds: Sequence[int],
    ) -> None:
        """Keep the states of the trials that end with this report, if that was asked for; before their curves close."""
        if report.final is None or not self._saving.keeps:
            return
        try:
            trials = [
                SavedTrial(
                    trial_id=self._trial_ids[p],
                    state=state,
                    curve=so_far(p),
                    setting=Setting(params=params[p], seed=seeds[p]),
                )
                for p, state in sorted(report.final().items())
            ]
            if trials:
                file = new_file([trial.trial_id for trial in trials])
                open_store(self._saving.kept).write(file, encoded(trials, source=self._source))
        except Exception as error:  # as above
            self._notices.append(
                f"final states cannot be kept ({printable(_why(error))}); longer trainings of these trials will start "
                "again"
            )

    def _keep(self, file: str, store: Store) -> None:
        """The driver deletes what it has replaced; where it is busy for long, files would become many."""
        self._own.append(file)
        for old in self._own[:-KEPT]:
            with contextlib.suppress(StoreError):
                store.delete(old)
        self._own = self._own[-KEPT:]

    def _trials(self, states: Mapping[int, TrialState], so_far: Callable[[int], SavedCurve]) -> Iterator[SavedTrial]:
        for position, state in sorted(states.items()):
            curve = so_far(position)
            if state.through is not None:
                curve = curve.through(state.through)
            yield SavedTrial(trial_id=self._trial_ids[position], state=state, curve=curve)
        for position in sorted(self._waiting):
            yield self._continued[position]


def unusable(file: str, why: str) -> str:
    """The notice of a checkpoint that is refused or cannot be read."""
    return (
        f"checkpoint {file} cannot be used: {printable(why)}; its trials, and those of any other such file, start again"
    )


def _why(error: Exception) -> str:
    own = isinstance(error, BadCheckpoint | StoreError)
    return str(error) if own else f"{type(error).__name__}: {error}"


def _placed(report: Report, positions: Positions) -> Report:
    """A report of some members, with their positions in the whole pack."""
    places = positions.tolist()
    return replace(
        report,
        members=positions[report.members],
        finished=positions[report.finished],
        failed={places[p]: error for p, error in report.failed.items()},
        running=None if report.running is None else places[report.running],
        unread={places[p]: names for p, names in report.unread.items()},
        state=_at(places, report.state),
        final=_at(places, report.final),
    )


_States = Callable[[], Mapping[int, TrialState]]


def _at(places: Sequence[int], states: _States | None) -> _States | None:
    return None if states is None else lambda: {places[p]: held for p, held in states().items()}

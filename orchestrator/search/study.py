"""A sweep's Optuna study: opened, read, and written with one short transaction per trial.

A trial of the study holds the searched parameters. Its user attributes are the trial's id in the record (`trial_id`),
its `replicate`, and its result: `phase`, or `value` and `censored`. Its objective value is the index of the phase, or
the metric; it is shown in Optuna's dashboard and nothing optimises it.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from jobs.job import Scalar
from orchestrator.errors import UserError
from orchestrator.outages import Kind, Patience, Unreachable, is_wrong_address, kind_of, reason
from orchestrator.tracking.address import shown
from orchestrator.tracking.file_system import journal_mode

TRIAL_ID, TOLD, AREA = "trial_id", "told", "uncertain_area"
RECORD = "phasefront.record"
"""A user attribute of a study that an earlier version has named: the record that it belongs to."""
SQLITE_WAIT_S = 5.0
"""How long a write waits for another process; `orchestrator.outages` says so, and tries again."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StudyNames:
    """The studies of one sweep in one record: drivers that write to different records do not share a study.

    Earlier versions named a study without the record. Such a study is continued by the first record that holds one of
    its trials, and keeps its name.
    """

    sweep: str
    """The beginning of the names of all the sweep's studies, in any record; it ends with a space."""
    thresholds: str
    """Under other thresholds, trials have other labels, and the study another name."""
    record: str
    """A digest of the record's address and experiment."""
    holds: Callable[[Sequence[str]], bool]
    """Whether the record holds any of these trials."""

    @property
    def earlier(self) -> str:
        """The name that earlier versions gave the study."""
        return f"{self.sweep}{self.thresholds}"

    @property
    def name(self) -> str:
        """The name of a new study."""
        return f"{self.earlier} {self.record}"

    def is_ours(self, study: FrozenStudy, storage: BaseStorage) -> bool:
        """Whether a study belongs to the sweep in this record."""
        if not study.study_name.startswith(self.sweep):
            return False
        _, _, record = study.study_name.removeprefix(self.sweep).partition(" ")
        record = record or str(study.user_attrs.get(RECORD, ""))
        if record:
            return record == self.record
        trials = storage.get_all_trials(study._study_id, deepcopy=False)
        return self.holds([trial.user_attrs[TRIAL_ID] for trial in trials if TRIAL_ID in trial.user_attrs])

    def choose(self, storage: BaseStorage) -> str:
        """The name of the study to continue or create."""
        studies = {study.study_name: study for study in storage.get_all_studies()}
        earlier = studies.get(self.earlier)
        return self.earlier if self.name not in studies and earlier and self.is_ours(earlier, storage) else self.name


class SweepStudy:
    """One study in one storage. Not thread-safe.

    Args:
        storage: a database address for SQLAlchemy, or an open Optuna storage.
        name: of the study, which is created if it does not exist.
        place: of the address in the sweep file, for messages.
        patience: with a storage that stops to answer; None for none.

    Raises:
        UserError: the storage cannot be opened.
        Outage: from any method, if the storage has not answered for too long.
    """

    def __init__(
        self,
        storage: str | BaseStorage,
        name: str | StudyNames,
        *,
        place: str = "search.storage",
        patience: Patience | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._patience = patience

        def open_study() -> tuple[BaseStorage, optuna.Study, str]:
            try:
                return _open(storage, name)
            except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
                if kind_of(error) is Kind.AWAY and not is_wrong_address(error) and "unable to open" not in str(error):
                    raise  # it is waited for
                raise RuntimeError(_first_line(error)) from None

        try:
            self._storage, self.study, name = self.patiently(open_study)
        except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the study's storage cannot be opened: {_first_line(error)}",
                place=place,
                value=shown(str(storage)),
                choices=("sqlite:///optuna.db", "postgresql+psycopg2://user@host/db", "mysql+pymysql://user@host/db"),
                next_step="check the address, that the database runs, and that it is not MLflow's database",
            ) from error
        self._id = self.patiently(lambda: self._storage.get_study_id_from_name(name))
        self._rows: dict[str, int] = {}

    def patiently(self, do: Callable[[], T]) -> T:
        """Call `do`, again and again while the storage does not answer.

        Raises:
            Outage: it has not answered for too long.
        """
        return do() if self._patience is None else self._patience.call(do)

    def trials(self) -> list[FrozenTrial]:
        """All trials in the order in which they were asked. Do not modify them."""
        return self.patiently(lambda: self.study.get_trials(deepcopy=False))

    def create(
        self,
        trial_id: str,
        params: Mapping[str, Scalar],
        distributions: Mapping[str, BaseDistribution],
        replicate: int,
        **more: float,
    ) -> None:
        """Add a RUNNING trial; `more` are further user attributes."""
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: distributions[name] for name in params},
            user_attrs={TRIAL_ID: trial_id, "replicate": replicate, **more},
        )
        attempts = 0

        def add() -> int:
            nonlocal attempts
            attempts += 1
            if attempts > 1:  # it may have been added although the answer was lost
                running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
                known = set(self._rows.values())
                added = [t._trial_id for t in running if t.user_attrs.get(TRIAL_ID) == trial_id]
                for row in set(added) - known:
                    return int(row)
            return int(self._storage.create_new_trial(self._id, template))

        self._rows[trial_id] = self.patiently(add)

    def adopt(self, trial: FrozenTrial) -> None:
        """Let `finish` and `fail` end a trial that an earlier run left RUNNING."""
        self._rows[trial.user_attrs[TRIAL_ID]] = trial._trial_id

    def finish(self, trial_id: str, attributes: Mapping[str, Any], value: float) -> None:
        """Complete a trial of this run; any other is left as it is. A NaN value is stored as infinity."""
        self._end(trial_id, attributes, TrialState.COMPLETE, [value if not math.isnan(value) else math.inf])

    def fail(self, trial_id: str) -> None:
        """Mark a trial of this run as failed."""
        self._end(trial_id, {}, TrialState.FAIL, None)

    def _end(self, trial_id: str, attributes: Mapping[str, Any], state: TrialState, values: list[float] | None) -> None:
        row = self._rows.get(trial_id)
        if row is None:
            return

        def end() -> None:
            with contextlib.suppress(UpdateFinishedTrialError):  # it has ended, although the answer was lost
                for name, value in attributes.items():
                    self._storage.set_trial_user_attr(row, name, value)
                self._storage.set_trial_state_values(row, state, values)

        self.patiently(end)
        del self._rows[trial_id]

    def close(self) -> None:
        """Close the connections."""
        self._storage.remove_session()


def _open(storage: str | BaseStorage, name: str | StudyNames) -> tuple[BaseStorage, optuna.Study, str]:
    """The storage, the study in it, and its name."""
    opened = optuna.storages.get_storage(_rdb(storage) if isinstance(storage, str) else storage)
    names, name = (name, name.choose(opened)) if isinstance(name, StudyNames) else (None, name)
    study = optuna.create_study(storage=opened, study_name=name, load_if_exists=True)
    if names is not None and name == names.earlier:
        study.set_user_attr(RECORD, names.record)
    return opened, study, name


def read_trials(storage: str, names: StudyNames, *, all_thresholds: bool = False) -> list[FrozenTrial]:
    """The trials of the sweep's study in its record, or of its studies under all thresholds; nothing is changed."""
    trials: list[FrozenTrial] = []
    with _reading(storage) as rdb:
        if rdb is None:
            return []
        for study in rdb.get_all_studies():
            if (all_thresholds or study.study_name in (names.name, names.earlier)) and names.is_ours(study, rdb):
                trials += rdb.get_all_trials(study._study_id, deepcopy=False)
    return trials


def study_name(storage: str, names: StudyNames) -> str:
    """The name of the sweep's study in its record, which may not exist yet; nothing is changed."""
    with _reading(storage) as rdb:
        return names.choose(rdb) if rdb else names.name


@contextmanager
def _reading(storage: str) -> Iterator[BaseStorage | None]:
    """The storage at an address; None if it cannot be opened, or is a file that does not exist.

    Raises:
        Unreachable: A server does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]*).*", storage)
    if file is not None and not Path(file[1]).exists():
        yield None
        return
    try:
        rdb = optuna.storages.get_storage(_rdb(storage))
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        if kind_of(error) is Kind.AWAY and file is None and not is_wrong_address(error):
            raise Unreachable(
                f"the study ({shown(storage)}) does not answer: {reason(error)}",
                next_step="run the same command again when it is back",
            ) from None
        yield None
        return
    try:
        yield rdb
    finally:
        rdb.remove_session()


def history_of(trials: Iterable[FrozenTrial]) -> list[tuple[int, float]]:
    """(trials told, uncertain area) over the course of a search: the first trial of each batch holds a point."""
    return [(int(t.user_attrs[TOLD]), float(t.user_attrs[AREA])) for t in trials if AREA in t.user_attrs]


def _rdb(storage: str) -> optuna.storages.RDBStorage:
    is_sqlite = storage.startswith("sqlite")
    kwargs: dict[str, Any] = {"connect_args": {"timeout": SQLITE_WAIT_S}} if is_sqlite else {"pool_pre_ping": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rdb = optuna.storages.RDBStorage(storage, engine_kwargs=kwargs)
    if is_sqlite:
        file = rdb.engine.url.database
        mode = journal_mode(Path(file)) if file else "WAL"
        sqlalchemy.event.listen(rdb.engine, "connect", partial(_set_journal, mode))
        rdb.engine.dispose()
    return rdb


def _set_journal(mode: str, connection: Any, record: Any) -> None:
    del record
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA journal_mode={mode}")
    if mode == "WAL":
        # A killed process loses nothing with synchronous=NORMAL, and commits do not wait for the disk.
        cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

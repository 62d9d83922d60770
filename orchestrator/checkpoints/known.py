"""The driver's part: which trial continues from which file, and which files are no longer needed.

A file is needed while a trial whose newest state it holds has not ended. Files are deleted in the background.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from queue import SimpleQueue

from orchestrator.checkpoints.contents import BadCheckpoint
from orchestrator.checkpoints.kept import Extended, KeptStates
from orchestrator.checkpoints.saving import Extension, Saved, Saving, files_of, unusable
from orchestrator.checkpoints.store import SUFFIX, Store, StoreError, open_store
from orchestrator.trial import Trial

_FILE = re.compile(rf"[^\s/'\"]*{re.escape(SUFFIX)}[.\w-]*")
"""The name of a checkpoint in a text, or of one that is half-written."""


class Checkpoints:
    """The checkpoints of one sweep.

    Args:
        folder: the address of the store.
        earlier: that of a store that an earlier version shared between records: what is continued from there is deleted
            there, and nothing else.
        interval_s: between two checkpoints of a pack; None: chosen.
        say: called with a line to show.
        kept: the address of the store of final states; empty for none.
        keeps: whether final states are kept there.
        states: those that are there.
    """

    def __init__(
        self,
        folder: str,
        *,
        earlier: str = "",
        interval_s: float | None = None,
        say: Callable[[str], None] = print,
        kept: str = "",
        keeps: bool = False,
        states: KeptStates | None = None,
    ) -> None:
        self._folder, self._earlier, self._interval_s, self._say = folder, earlier, interval_s, say
        self._kept, self._keeps, self._states = kept, keeps, states
        self._extends: dict[str, Extension] = {}
        """Trial -> the final state of a shorter one from which it continues."""
        self._file_of: dict[str, str] = {}
        """Trial -> the file with its newest state."""
        self._step_of: dict[str, int] = {}
        self._held: dict[str, set[str]] = {}
        """File -> the unfinished trials whose newest state it holds."""
        self._released: list[str] = []
        """Files that are not needed once what is recorded is safe."""
        self._named: set[str] = set()
        """Files that a worker of this run has named, or that were found."""
        self._lost: dict[str, set[str]] = {}
        """How the names of a pack's files begin -> its unfinished trials, where its worker may not have named all."""
        self._in_earlier: set[str] = set()
        """Files that were found in the earlier store, and are continued."""
        self._began = self._complete = False
        """Whether a pack was dispatched, and whether no pack is left."""
        self._said: set[str] = set()
        self._deletes: SimpleQueue[str | frozenset[str] | None] = SimpleQueue()
        """A file; or those to keep, for all others; None at the end."""
        self._thread: threading.Thread | None = None

    def find(self, unfinished: Iterable[str]) -> int:
        """Look for checkpoints of trials that an earlier run began; return how many continue.

        What killed writers have left is deleted, and before the first pack also the files that hold no such trial.
        """
        wanted = set(unfinished)
        for folder in (self._folder, self._earlier) if self._earlier else (self._folder,):
            try:
                store = open_store(folder)
                names = store.names()
            except StoreError as error:
                self.note(f"checkpoints of an earlier run cannot be read ({error}); its unfinished trials start again")
                continue
            _delete_parts(store)
            for name in names:
                steps = self._steps(store, name)
                if steps is None:
                    continue
                for trial, step in steps.items():
                    if trial in wanted and step > self._step_of.get(trial, -1):
                        self._put(trial, name, step)
                if folder == self._folder and name not in self._held and not self._began:
                    self._released.append(name)
                if folder == self._earlier and name in self._held:
                    self._in_earlier.add(name)
        return len(wanted & self._file_of.keys())

    def _steps(self, store: Store, name: str) -> Mapping[str, int] | None:
        try:
            return store.table(name).steps
        except (StoreError, BadCheckpoint) as error:
            with contextlib.suppress(StoreError):
                if name not in store.names():  # it was replaced just now
                    return None
            self.note(unusable(name, str(error)))
            return None

    def _put(self, trial: str, file: str, step: int) -> None:
        self._drop(trial)
        self._file_of[trial], self._step_of[trial] = file, step
        self._named.add(file)
        self._held.setdefault(file, set()).add(trial)
        if file in self._released:
            self._released.remove(file)

    def _drop(self, trial: str) -> None:
        file = self._file_of.pop(trial, None)
        self._step_of.pop(trial, None)
        if file is None:
            return
        held = self._held[file]
        held.discard(trial)
        if not held:
            del self._held[file]
            self._released.append(file)

    def extend(self, trials: Sequence[Trial]) -> Extended:
        """Look for final states of shorter trials, from which those of these trials continue that have no state."""
        if self._states is None:
            return Extended()
        found = self._states.extend([trial for trial in trials if trial.id not in self._file_of])
        self._extends |= found.of_trial
        return found

    def step_of(self, trial: str) -> int:
        """The step at which a trial continues; 0 where it starts."""
        extension = self._extends.get(trial)
        return self._step_of.get(trial, 0 if extension is None else extension.step)

    def saving(self, trials: Sequence[str]) -> Saving:
        """How a pack of these trials is saved, and what it continues from."""
        self._began = True
        self._find_unnamed()
        continues = {trial: self._file_of[trial] for trial in trials if trial in self._file_of}
        earlier = self._earlier if self._in_earlier else ""
        extends = {t: self._extends[t] for t in trials if t in self._extends and t not in continues}
        return Saving(
            folder=self._folder,
            earlier=earlier,
            continues=continues,
            interval_s=self._interval_s,
            kept=self._kept,
            keeps=self._keeps,
            extends=extends,
        )

    def lost(self, trials: Sequence[str], *, left: Iterable[str]) -> None:
        """The worker of a pack of these trials has ended: it may have saved the pack and could not say so."""
        self._lost[files_of(trials)] = set(left)

    def _find_unnamed(self) -> None:
        """The newest states of packs that were lost; one listing, however many there are."""
        lost, self._lost = self._lost, {}
        if not lost:
            return
        with contextlib.suppress(StoreError):  # then they continue from what was named
            store = open_store(self._folder)
            for name in store.names():
                left = lost.get(name[: len(next(iter(lost)))])
                if left is None or name in self._named:
                    continue
                with contextlib.suppress(StoreError, BadCheckpoint):  # gone since, or not whole
                    steps = store.table(name).steps
                    for trial in left:
                        if steps.get(trial, -1) > self.step_of(trial):
                            self._put(trial, name, steps[trial])

    def saved(self, saved: Saved, *, left: Container[str]) -> None:
        """A pack has written a checkpoint; `left` are the trials that have not ended."""
        for trial, step in saved.steps.items():
            if trial in left:
                self._put(trial, saved.file, step)

    def ended(self, trials: Iterable[str]) -> None:
        """These trials have ended, and the tracker has their results."""
        ended = set(trials)
        for trial in ended:
            self._drop(trial)
            self._extends.pop(trial, None)
        for left in self._lost.values():
            left -= ended

    def complete(self) -> None:
        """No pack is left: release also what workers wrote that were lost before they could say so."""
        self._complete = True

    def note(self, text: str) -> None:
        """Show lines; those that differ in the name of a file alone, once."""
        for line in text.splitlines():
            if (kind := _FILE.sub("*", line)) not in self._said:
                self._said.add(kind)
                self._say(line)

    @property
    def releases(self) -> bool:
        """Whether there are files that `tidy` would delete."""
        return self._complete or bool(self._released)

    def tidy(self) -> None:
        """Delete the files that are not needed; the record must hold all results so far (`Tracker.settled`)."""
        if not self.releases:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._delete, name="phasefront checkpoints", daemon=True)
            self._thread.start()
        for file in self._released:
            self._deletes.put(file)
        if self._complete:
            self._deletes.put(frozenset(self._held))
        self._released, self._complete = [], False

    def _delete(self) -> None:
        stores: dict[str, Store] = {}
        while (file := self._deletes.get()) is not None:
            if isinstance(file, frozenset):
                with contextlib.suppress(StoreError):  # as below
                    store = stores[self._folder] = stores.get(self._folder) or open_store(self._folder)
                    for name in set(store.names()) - file:
                        store.delete(name)
                continue
            for folder in (self._folder, self._earlier) if file in self._in_earlier else (self._folder,):
                try:
                    stores[folder] = stores.get(folder) or open_store(folder)
                    stores[folder].delete(file)
                except StoreError:
                    continue  # a file that is left takes room, and no more
        for store in stores.values():
            _delete_parts(store)

    def close(self, *, patience_s: float = 10.0) -> None:
        """Wait until what was to be deleted is deleted, though not for long."""
        if self._thread is not None:
            self._deletes.put(None)
            self._thread.join(patience_s)
            self._thread = None


def _delete_parts(store: Store) -> None:
    with contextlib.suppress(StoreError):  # as above
        store.delete_parts()

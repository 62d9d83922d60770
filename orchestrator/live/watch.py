"""What is recorded of a sweep, read again and again while it runs, at a cost that stays with what has changed."""

from __future__ import annotations

from collections import Counter

from orchestrator.records import Status
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.base import Tracker, TrialRow
from orchestrator.trial import Trial


class Watch:
    """The trials of a sweep and their results as of the last `refresh`.

    A refresh asks for the status of the trials that have not finished, and reads the results of those that have ended
    since. It reads no curve. While finished trials are labelled under other thresholds, it reads these again too.

    Args:
        sweep: The sweep.
        trials: Its trials so far; those that a search proposes later are found in the record.
    """

    def __init__(self, sweep: Sweep, trials: list[Trial]) -> None:
        self._sweep, self._fingerprint = sweep, sweep.thresholds_fingerprint()
        self.trials = {trial.id: trial for trial in trials}
        self.rows: dict[str, TrialRow] = {}
        """Trial id -> what is recorded, of the trials that have ended."""
        self.statuses: dict[str, Status] = {}
        self.version = 0
        """Raised by a refresh that has found a result, another label or a new trial."""

    def refresh(self, tracker: Tracker) -> None:
        """Read what has changed."""
        known = len(self.trials)
        if self._sweep.is_search:
            self._find_trials(tracker)
        left = [trial for trial in self.trials if self.statuses.get(trial) is not Status.FINISHED]
        changed = {
            trial: status for trial, status in tracker.statuses(left).items() if self.statuses.get(trial) != status
        }
        ended = [trial for trial, status in changed.items() if status is not Status.RUNNING]
        stale = self._labelled_under_others(self._fingerprint)
        read = [*ended, *(trial for trial in stale if trial not in changed)]
        results = {row.trial_id: row for row in tracker.rows(read, settings=False)} if read else {}
        labels = [(results[trial], self.rows[trial]) for trial in stale if trial in results]
        relabelled = any(new.recorded.thresholds != old.recorded.thresholds for new, old in labels)
        for trial in changed:
            self.rows.pop(trial, None)
        self.rows.update(results)
        self.statuses.update(changed)
        if ended or relabelled or len(self.trials) > known:
            self.version += 1

    def _find_trials(self, tracker: Tracker) -> None:
        """The trials that the search has proposed since."""
        new = [trial for trial in tracker.trials_of(self._sweep.id) if trial not in self.trials]
        for row in tracker.rows(new) if new else ():
            trial = self._sweep.trial(row.params, row.replicate)
            if trial is not None and trial.id == row.trial_id:
                self.trials[trial.id] = trial

    @property
    def counts(self) -> Counter[Status]:
        """Recorded trials by status."""
        return Counter(self.statuses.values())

    @property
    def phases(self) -> Counter[str]:
        """Finished trials by recorded phase."""
        recorded = (row.recorded for row in self.rows.values())
        return Counter(r.phase or "no phase" for r in recorded if r.status is Status.FINISHED)

    @property
    def failed(self) -> list[Trial]:
        """The failed trials, in the order of the sweep."""
        return [trial for key, trial in self.trials.items() if self.statuses.get(key) is Status.FAILED]

    def under_others(self, fingerprint: str) -> int:
        """How many finished trials are labelled under other thresholds."""
        return len(self._labelled_under_others(fingerprint))

    def _labelled_under_others(self, fingerprint: str) -> list[str]:
        recorded = ((trial, row.recorded) for trial, row in self.rows.items())
        return [trial for trial, r in recorded if r.status is Status.FINISHED and r.thresholds != fingerprint]

"""The runs of an experiment's trials behind an MLflow server, kept up to date by reading what has changed."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.tracking import layout
from orchestrator.tracking.http_api import MlflowApi, ServerRun
from orchestrator.tracking.run_table import CLOCKS_MS

_OF_TRIALS = f"tags.`{layout.TRIAL_ID}` LIKE '%'"


@dataclass(frozen=True, slots=True)
class KnownRun:
    """The run of a trial as of the last reading."""

    run_id: str
    status: str
    parent: str
    """The parent run of its sweep."""


class KnownRuns:
    """Trial id -> its run, as of the last `scan` or `refresh`.

    `refresh` asks for the runs that run now and for those that have ended since the last time: its cost does not grow
    with the trials that are recorded. When as many runs were read as the experiment has, it scans instead, which finds
    what the changes do not tell, such as runs of a driver whose clock was wrong.
    """

    def __init__(self, api: MlflowApi, experiment_id: str) -> None:
        self._api, self._experiment_id = api, experiment_id
        self.of_trial: dict[str, KnownRun] = {}
        self._ended_ms = 0
        """The newest end of a run."""
        self._read = 0
        """Runs read since the last scan; a refresh counts as one at least."""

    def scan(self) -> dict[str, ServerRun]:
        """All runs of trials, in pages of 5,000; a finished one if a trial has several."""
        runs: dict[str, ServerRun] = {}
        for run in self._api.search(self._experiment_id, _OF_TRIALS):
            trial = run.tags[layout.TRIAL_ID]
            if trial not in runs or run.status == "FINISHED":
                runs[trial] = run
        self.of_trial, self._read = {}, 0
        for run in runs.values():
            self._note(run)
        return runs

    def refresh(self) -> None:
        """Read what has changed: two requests, and one for 500 runs that are gone or were replaced."""
        if self._read >= len(self.of_trial):
            self.scan()
            return
        before = {trial: run.run_id for trial, run in self.of_trial.items() if run.status == "RUNNING"}
        changed = [
            run
            for condition in ("status = 'RUNNING'", f"end_time >= {self._ended_ms - CLOCKS_MS}")
            for run in self._api.search(self._experiment_id, f"{_OF_TRIALS} AND attributes.{condition}")
        ]
        # A trial with a finished run is begun again where that run was deleted.
        new = {run.tags[layout.TRIAL_ID] for run in changed if run.status != "FINISHED"}
        before |= {trial: self.of_trial[trial].run_id for trial in new & self.of_trial.keys()}
        found = {run.run_id for run in changed}
        lost = {trial: run for trial, run in before.items() if run not in found}
        still = self._api.runs(self._experiment_id, list(lost.values()))
        for trial, run in lost.items():
            if run not in still:  # deleted
                del self.of_trial[trial]
        for each in (*still.values(), *changed):
            self._note(each)
        self._read += max(len(changed) + len(still), 1)

    def _note(self, run: ServerRun) -> None:
        """A finished run of a trial stays its run."""
        trial = run.tags[layout.TRIAL_ID]
        known = self.of_trial.get(trial)
        if known is None or known.status != "FINISHED" or run.status == "FINISHED":
            self.of_trial[trial] = KnownRun(run.run_id, run.status, run.tags.get(layout.PARENT, ""))
        # A driver whose clock was fast would hide the ends that follow.
        self._ended_ms = max(self._ended_ms, min(run.end_time, layout.now_ms()))

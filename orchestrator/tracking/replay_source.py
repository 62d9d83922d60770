"""One recorded trial and its pack, read back with MLflow's own client from any tracking address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.job import Curves, Scalar
from orchestrator.dispatch.environment import Trained
from orchestrator.errors import UserError
from orchestrator.tracking import layout
from orchestrator.tracking.address import PREFIX, database_address, shown
from orchestrator.tracking.factory import MEMORY, open_tracker
from orchestrator.tracking.quiet import quiet_mlflow

PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class RecordedTrial:
    """What replaying a trial needs of its run."""

    run_id: str
    trial_id: str
    job: str
    params: Mapping[str, Scalar]
    trained: Trained
    curves: Curves


@dataclass(frozen=True, kw_only=True)
class PackMember:
    """Another trial of the same pack."""

    trial_id: str
    params: Mapping[str, Scalar]
    trained: Trained


class ReplaySource:
    """Reads runs of one tracking address; creates nothing there.

    Raises:
        UserError: the address is none, holds nothing, or does not answer.
    """

    def __init__(self, uri: str, *, place: str) -> None:
        _look(uri, place)
        quiet_mlflow("mlflow.tracking")
        from mlflow.tracking import MlflowClient

        self._uri = uri
        # MLflow's own store reads what ours wrote: one more check of it.
        self._client = MlflowClient(tracking_uri=uri.removeprefix(PREFIX))

    def trial(self, run_id: str) -> RecordedTrial:
        """The run's trial.

        Raises:
            UserError: there is no such run, or it is no trial that says how it was trained.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except (MlflowException, OSError) as error:
            raise UserError(
                "no such run is recorded there",
                value=f"run {run_id} in {shown(self._uri)} ({str(error).splitlines()[0]})",
                next_step=f"name the record with --tracking URI; {_WHERE_TRIALS}",
            ) from error
        tags: dict[str, str] = run.data.tags
        if layout.TRIAL_ID not in tags:
            what = "is a sweep's parent run, not a trial" if layout.SWEEP_ID in tags else "is no run of phasefront"
            raise UserError(
                "only a trial's run can be replayed", value=f"{run_id}, which {what}", next_step=_WHERE_TRIALS
            )
        text = tags.get(layout.TRAINED)
        if text is None:
            raise UserError(
                "the run must say how it was trained",
                value=f"{run_id} has no tag {layout.TRAINED}: its training did not end, or it is of an older release",
                next_step=_WHERE_TRIALS,
            )
        return RecordedTrial(
            run_id=run_id,
            trial_id=tags[layout.TRIAL_ID],
            job=tags[layout.JOB],
            params=layout.decode_params(tags[layout.PARAMS]),
            trained=Trained.parse(text),
            curves=self._curves(run),
        )

    def _curves(self, run: Any) -> Curves:
        """The run's curves; what has a timestamp before its start is an observation."""
        start = run.info.start_time
        found: dict[str, dict[int, float]] = {}
        for name in sorted(run.data.metrics):
            history = self._client.get_metric_history(run.info.run_id, name)
            rows = {m.step: layout.as_measured(m.value) for m in history if m.timestamp >= start}
            if rows:
                found[name] = rows
        steps = sorted({step for rows in found.values() for step in rows})
        return Curves(
            step=np.array(steps, dtype=np.int64),
            values={name: np.array([rows.get(step, np.nan) for step in steps]) for name, rows in found.items()},
            present={name: np.array([step in rows for step in steps], dtype=np.bool_) for name, rows in found.items()},
        )

    def pack(self, trial: RecordedTrial) -> list[PackMember]:
        """The trials that were trained as one with it, in order, itself included.

        Shorter than `trial.trained.of` where some were trained anew since, in another pack.
        """
        experiment = self._client.get_run(trial.run_id).info.experiment_id
        condition = f"tags.`{layout.TRAINED}` LIKE '%{trial.trained.pack}%'"
        members: dict[int, PackMember] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([experiment], condition, max_results=PAGE, page_token=token)
            for run in page:
                tags = run.data.tags
                trained = Trained.parse(tags[layout.TRAINED])
                if trained.pack == trial.trained.pack:
                    members[trained.at] = PackMember(
                        trial_id=tags[layout.TRIAL_ID],
                        params=layout.decode_params(tags[layout.PARAMS]),
                        trained=trained,
                    )
            token = page.token
            if not token:
                return [members[at] for at in sorted(members)]


def _look(uri: str, place: str) -> None:
    """Whether there is a record at this address: MLflow's client would make a database, or try for minutes."""
    tracker = open_tracker(uri, experiment="", place=place)
    try:
        tracker.find_sweep("0" * 32)
    finally:
        tracker.close()
    nothing = uri == MEMORY
    if uri.removeprefix(PREFIX).startswith("sqlite"):
        file = database_address(uri, place=place).file
        nothing = file is None or not file.exists()
    if nothing:
        raise UserError(
            "there must be a record to replay from",
            place=place,
            value=f"{shown(uri)}, which holds nothing",
            next_step="name the database or the server of the run: --tracking sqlite:///folder/mlflow.db",
        )


_WHERE_TRIALS = "choose a finished trial: its run id is in MLflow's UI and in the trials.parquet of the sweep's output"

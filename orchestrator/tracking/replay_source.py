"""One recorded trial and its pack, read with MLflow's own client from any tracking address."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.job import Curves, Scalar
from orchestrator.dispatch.environment import TrainingRecord
from orchestrator.errors import UserError
from orchestrator.outages import Kind, Patience, Unreachable, kind_of, reason
from orchestrator.tracking import layout
from orchestrator.tracking.address import PREFIX, database_address, quiet_mlflow, shown
from orchestrator.tracking.factory import MEMORY, open_tracker
from orchestrator.tracking.run_table import align, series_of

PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class PackMember:
    """One trial of a pack."""

    trial_id: str
    params: Mapping[str, Scalar]
    trained: TrainingRecord


@dataclass(frozen=True, kw_only=True)
class RecordedTrial(PackMember):
    """What is needed from a trial's run to replay it."""

    run_id: str
    job: str
    curves: Curves


class ReplaySource:
    """Reads runs at one tracking address; creates nothing there.

    Raises:
        UserError: The address is invalid, or has no record.
        Outage: The record does not answer.
    """

    def __init__(self, uri: str, *, place: str, patience: Patience) -> None:
        patience.call(lambda: check_record(uri, place))
        quiet_mlflow("mlflow.tracking")
        from mlflow.tracking import MlflowClient

        self._uri = uri
        # MLflow's own store, not ours: this also checks what ours wrote.
        self._client = MlflowClient(tracking_uri=uri.removeprefix(PREFIX))

    def trial(self, run_id: str) -> RecordedTrial:
        """The run's trial.

        Raises:
            UserError: There is no such run, or it is not a trial with a record of its training.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except (MlflowException, OSError) as error:
            if kind_of(error) is Kind.AWAY:
                raise Unreachable(f"the record does not answer: {reason(error)}") from error
            raise UserError(
                "no such run is recorded there",
                value=f"run {run_id} in {shown(self._uri)} ({str(error).splitlines()[0]})",
                next_step=f"name the record with --tracking URI; {_WHERE_TRIALS}",
            ) from error
        tags: dict[str, str] = run.data.tags
        if layout.TRIAL_ID not in tags:
            what = "is a sweep's parent run, not a trial" if layout.SWEEP_ID in tags else "is not a run of phasefront"
            raise UserError(
                "only a trial's run can be replayed", value=f"{run_id}, which {what}", next_step=_WHERE_TRIALS
            )
        if layout.TRAINED not in tags:
            raise UserError(
                "the run must have a record of its training",
                value=f"{run_id} has no tag {layout.TRAINED}: its training did not end, or it is from an older release",
                next_step=_WHERE_TRIALS,
            )
        try:
            job, member = tags[layout.JOB], _member(tags)
        except (KeyError, ValueError) as error:
            raise UserError(
                "the run's tags must be as they were recorded", value=f"{run_id}: {error}", next_step=_WHERE_TRIALS
            ) from error
        return RecordedTrial(
            run_id=run_id,
            trial_id=member.trial_id,
            job=job,
            params=member.params,
            trained=member.trained,
            curves=self._curves(run),
        )

    def _curves(self, run: Any) -> Curves:
        """The run's curves; rows with a timestamp before its start are observations."""
        series = {}
        for name in run.data.metrics:
            history = self._client.get_metric_history(run.info.run_id, name)
            points = {row.step: row.value for row in history if row.timestamp >= run.info.start_time}
            if points:
                series[name] = series_of(points.items())
        return align(series) if series else Curves(step=np.zeros(0, dtype=np.int64), values={})

    def pack(self, trial: RecordedTrial) -> list[PackMember]:
        """The trials of the pack that it was trained in, in order, itself included.

        Fewer than `trial.trained.of` if some have been trained again since, in another pack, or have damaged tags.
        """
        experiment = self._client.get_run(trial.run_id).info.experiment_id
        condition = f"tags.`{layout.TRAINED}` LIKE '%{trial.trained.pack}%'"
        members: dict[int, PackMember] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([experiment], condition, max_results=PAGE, page_token=token)
            for run in page:
                with contextlib.suppress(KeyError, ValueError):
                    member = _member(run.data.tags)
                    if member.trained.pack == trial.trained.pack:
                        members[member.trained.at] = member
            token = page.token
            if not token:
                return [members[at] for at in sorted(members)]


def _member(tags: Mapping[str, str]) -> PackMember:
    """A trial as the tags of its run name it.

    Raises:
        KeyError: a tag is missing.
        ValueError: a tag cannot be read.
    """
    return PackMember(
        trial_id=tags[layout.TRIAL_ID],
        params=layout.decode_params(tags[layout.PARAMS]),
        trained=TrainingRecord.parse(tags[layout.TRAINED]),
    )


def check_record(uri: str, place: str, *, what: str = "replay from") -> None:
    """Check that there is a record at this address: MLflow's client would create a database, or retry for minutes."""
    tracker = open_tracker(uri, experiment="Default", place=place)
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
            f"there must be a record to {what}",
            place=place,
            value=f"{shown(uri)}, which holds nothing",
            next_step="name the database or the server of the run: --tracking sqlite:///folder/mlflow.db",
        )


_WHERE_TRIALS = "choose a finished trial: its run id is in MLflow's UI and in the trials.parquet of the sweep's output"

"""The sweep file of a recorded sweep, found by a run of it: reads with MLflow's own client, creates nothing."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from orchestrator.errors import UserError
from orchestrator.outages import Kind, Patience, Unreachable, kind_of, reason
from orchestrator.tracking import layout
from orchestrator.tracking.address import PREFIX, quiet_mlflow, shown
from orchestrator.tracking.replay_source import check_record

RUN_ID = re.compile(r"[0-9a-f]{32}")
_OF_A_RUN = re.compile(r"/experiments/[^/]+/runs/([0-9a-f]{32})(?![0-9a-f])")
SWEEP_FILE = "sweep.yaml"


@dataclass(frozen=True, kw_only=True)
class RecordedSweep:
    """A sweep as its parent run holds it."""

    run_id: str
    job: str
    experiment: str
    text: str
    """Its sweep file."""


def run_in_url(url: str) -> tuple[str, str] | None:
    """The tracking address and the run id of a run's page in MLflow's UI; None if it is no such address."""
    parts = urlsplit(url)
    found = _OF_A_RUN.search(parts.fragment) or _OF_A_RUN.search(parts.path)
    if parts.scheme not in ("http", "https") or found is None:
        return None
    path = "" if _OF_A_RUN.search(parts.path) else parts.path.rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), found[1]


def recorded_sweep(uri: str, run_id: str, *, place: str, patience: Patience) -> RecordedSweep:
    """The sweep of a run: its parent run, or one of its trials.

    Raises:
        UserError: There is no such run, or it has no sweep file.
        Outage: The record does not answer.
    """
    patience.call(lambda: check_record(uri, place, what="read"))
    return patience.call(lambda: _read(uri, run_id))


def _read(uri: str, run_id: str) -> RecordedSweep:
    quiet_mlflow("mlflow.tracking", "mlflow.artifacts")
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    address = uri.removeprefix(PREFIX)
    client = MlflowClient(tracking_uri=address)
    next_step = (
        "name the record with tracking=URI, and a run of a sweep: its id is in MLflow's UI and in trials.parquet"
    )
    try:
        run = client.get_run(run_id)
        parent = run.data.tags.get(layout.PARENT)
        if layout.SWEEP_ID not in run.data.tags and parent is not None:
            run = client.get_run(parent)
        tags: dict[str, str] = run.data.tags
        if layout.SWEEP_ID not in tags:
            value = f"{run_id}, which is not a run of phasefront"
            raise UserError("only a run of a sweep can be loaded", value=value, next_step=next_step)
        experiment = client.get_experiment(run.info.experiment_id).name
        with tempfile.TemporaryDirectory() as folder:
            file = download_artifacts(
                run_id=run.info.run_id, artifact_path=SWEEP_FILE, dst_path=folder, tracking_uri=address
            )
            text = Path(file).read_text(encoding="utf-8")
    except (MlflowException, OSError) as error:
        if kind_of(error) is Kind.AWAY:
            raise Unreachable(f"the record does not answer: {reason(error)}") from error
        said = (str(error).splitlines() or [type(error).__name__])[0]
        value = f"run {run_id} in {shown(uri)} ({said})"
        raise UserError("the sweep of this run cannot be read", value=value, next_step=next_step) from error
    return RecordedSweep(run_id=run.info.run_id, job=tags[layout.JOB], experiment=experiment, text=text)

"""Where to look at a record in a browser."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.secrets import secrets_in, shown
from orchestrator.tracking.address import PREFIX
from orchestrator.tracking.layout import PARENTS_ALONE

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens."""


def browse_lines(uri: str, experiment_id: str | None, parent: str | None) -> list[str]:
    """The command that serves a record, unless a server does already, and the pages of its runs.

    MLflow opens an experiment on the page for traces of language models, which is empty for a sweep: the address
    of the runs names the workflow.

    Args:
        uri: The tracking address. Its user name and password are not shown.
        experiment_id: None where MLflow cannot open the record; then there are no lines.
        parent: Run id of the sweep's parent run, where there is one.
    """
    if experiment_id is None:
        return []
    url = urlsplit(uri)
    if url.scheme in ("http", "https"):
        server = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"
        lines = []
    else:
        server = LOCAL_UI
        lines = [f"browse    {_mlflow()} ui --backend-store-uri {_for_shell(uri)}"]
    runs, workflow = f"{server}/#/experiments/{experiment_id}/runs", "?workflowType=machine_learning"
    lines += [f"all runs  {runs}{workflow}", *([f"sweep     {runs}/{parent}{workflow}"] if parent else [])]
    return [*lines, f"sweeps    in the list of runs, the filter  {PARENTS_ALONE}  shows them without their trials"]


def _for_shell(uri: str) -> str:
    """The address as a word of a shell command; where it has a password, by the variable that holds it, if any does."""
    if secrets_in(uri):
        for name, value in os.environ.items():
            if value == uri:
                return f'"${{{name}#{PREFIX}}}"' if uri.startswith(PREFIX) else f'"${name}"'
    return shown(uri.removeprefix(PREFIX))


def _mlflow() -> str:
    """The `mlflow` of this installation, by its path where a shell would not find it."""
    beside = Path(sys.executable).with_name("mlflow")
    return str(beside) if beside.exists() and shutil.which("mlflow") is None else "mlflow"

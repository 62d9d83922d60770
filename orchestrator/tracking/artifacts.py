"""Upload and delete artifacts of a run under given paths."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from orchestrator.errors import UserError


def upload_to(location: str, files: Mapping[str, Path], *, experiment: str) -> None:
    """Upload files (artifact path -> local file) to an artifact location, by MLflow's artifact repository for it.

    Raises:
        UserError: The location cannot be written to.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with writing(
        f"to {location}, the artifact location of experiment {experiment!r}", mend="make it writable from here"
    ):
        upload(files, get_artifact_repository(location).log_artifact)


@contextmanager
def writing(where: str, *, mend: str) -> Iterator[None]:
    """Turn MLflow's errors into a `UserError`: artifacts cannot be written `where`, and `mend` says what to do."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise UserError(
            f"artifacts cannot be written {where}: {error}",
            place="tracking.artifacts",
            next_step=f"{mend}, or use another tracking.experiment with tracking.artifacts set to a place that is",
        ) from error


def upload(files: Mapping[str, Path], log_artifact: Callable[[str, str | None], None]) -> None:
    """Pass each file to MLflow's `log_artifact(local file, artifact folder)`.

    MLflow names an artifact after its local file, so a file with another name is copied first.
    """
    for path, file in files.items():
        artifact = PurePosixPath(path)
        folder = None if str(artifact.parent) == "." else str(artifact.parent)
        if artifact.name == Path(file).name:
            log_artifact(str(file), folder)
            continue
        with tempfile.TemporaryDirectory() as copies:
            log_artifact(str(shutil.copyfile(file, Path(copies, artifact.name))), folder)


def delete_from(location: str, paths: Iterable[str], *, tracking_uri: str | None = None) -> tuple[str, ...]:
    """Delete files at an artifact location, where they exist; return those that may still be there.

    It is not an error if the artifact store cannot delete or list files, or does not allow it.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    refused = (NotImplementedError, MlflowException, requests.RequestException, OSError)
    repository = get_artifact_repository(location, tracking_uri=tracking_uri)
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(str(PurePosixPath(path).parent), []).append(path)
    left = []
    for folder, wanted in by_folder.items():
        try:
            listed = repository.list_artifacts(None if folder == "." else folder)
        except refused:
            left += wanted
            continue
        there = {entry.path for entry in listed if not entry.is_dir}
        for path in there.intersection(wanted):
            try:
                repository.delete_artifacts(path)
            except refused:
                left.append(path)
    return tuple(sorted(left))

"""Files as artifacts of a run, under the paths that the caller gives."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath


def upload(files: Mapping[str, Path], log_artifact: Callable[[str, str | None], None]) -> None:
    """Hand each file to MLflow's `log_artifact(local file, artifact folder)`.

    MLflow names an artifact as its local file: a file that is to be called otherwise is copied first.
    """
    for path, file in files.items():
        artifact = PurePosixPath(path)
        folder = None if str(artifact.parent) == "." else str(artifact.parent)
        if artifact.name == Path(file).name:
            log_artifact(str(file), folder)
            continue
        with tempfile.TemporaryDirectory() as copies:
            renamed = Path(copies, artifact.name)
            shutil.copyfile(file, renamed)
            log_artifact(str(renamed), folder)

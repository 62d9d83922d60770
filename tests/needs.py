"""System programs that some tests need. If one is missing, the test is skipped, or fails in CI."""

import os
import shutil
from pathlib import Path

import pytest


def program(name: str, package: str) -> str:
    """Where the program is; without it the test is skipped, and fails where CI is set."""
    found = shutil.which(name)
    if found is None:
        missing(name, package)
    return str(found)


def postgresql() -> Path:
    """The folder of the newest PostgreSQL server's programs (`initdb`, `postgres`)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    return Path(program("initdb", "postgresql")).parent


def missing(what: str, package: str) -> None:
    text = f"needs {what}: apt-get install {package}"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(text, pytrace=False)
    pytest.skip(text)

"""The command line starts quickly: libraries that only a run needs are not imported to print help."""

import subprocess
import sys

import pytest
from driving import environment

HEAVY = {"torch", "ray", "mlflow", "numpy", "optuna", "sqlalchemy", "pandas", "matplotlib", "plotly", "pyarrow"}


def loaded(text: str) -> set[str]:
    """Top-level packages in the output of `python -X importtime`."""
    lines = (line.rpartition("|")[2].strip() for line in text.splitlines() if line.startswith("import time:"))
    return {name.partition(".")[0] for name in lines}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_loads_no_engine_and_no_numbers(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "orchestrator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    for verb in ("run", "check") if arguments == ["--help"] else ("--set",):
        assert verb in done.stdout
    found = loaded(done.stderr)
    assert "orchestrator" in found
    assert sorted(HEAVY & found) == []

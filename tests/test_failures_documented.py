"""The table of failures in the documentation agrees with `failures.py` and with the command line."""

import re
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.dispatch.base import Cause
from orchestrator.failures import IDENTICAL_FAILURES_BEFORE_STOP, Attempt, Remedy, decide

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "failures.md").read_text()
NO_LIMIT = "no limit"
WORDS = {5: "Five"}


def table(title: str) -> dict[str, list[str]]:
    """First column -> the others, of the first table below a title."""
    lines = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


def attempts(cause: Cause) -> str:
    """How often a trial that is alone in its pack runs, if it always fails in this way."""
    attempt = Attempt()
    for number in range(1, 20):
        decision = decide(cause, size=1, attempt=attempt, error="ValueError: x", node=f"node {number}")
        if decision.remedy is Remedy.FAIL:
            return str(number)
        attempt = decision.attempt
    return NO_LIMIT


@pytest.mark.parametrize("cause", Cause, ids=str)
def test_every_cause_has_its_row_with_the_number_of_attempts(cause: Cause) -> None:
    _, done, documented, _ = table("A trial or its pack")[cause.value]
    assert done
    # The pool gives a pack that was refused to another worker; the runner never sees it.
    assert documented == (NO_LIMIT if cause is Cause.OTHER_SOURCE else attempts(cause))


def test_the_number_of_failures_that_end_a_run_is_documented() -> None:
    assert f"{WORDS[IDENTICAL_FAILURES_BEFORE_STOP]} different trials" in TEXT


def test_every_exit_code_is_documented() -> None:
    documented = {int(code) for codes in table("Exit codes") for code in codes.split(", ")}
    assert documented >= {0, cli.EXIT_FAILED, cli.EXIT_MISTAKE, cli.EXIT_FAULT, cli.EXIT_OUTAGE, cli.EXIT_CLOSED_PIPE}


def test_the_page_is_linked() -> None:
    assert "(docs/failures.md)" in (ROOT / "README.md").read_text()
    assert "failures.md#exit-codes" in (ROOT / "docs" / "commands.md").read_text()

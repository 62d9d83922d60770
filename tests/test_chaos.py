"""A short soak, and that its checks find what is wrong: see `tests/chaos`."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "chaos")]

from tests.chaos.__main__ import plans, table  # noqa: E402
from tests.chaos.driver import SILENT_S, Driver  # noqa: E402
from tests.chaos.faults import KINDS  # noqa: E402
from tests.chaos.rounds import Result, words_of_a_bug  # noqa: E402


def test_a_seed_decides_every_round() -> None:
    def first(seed: int) -> list[str]:
        return [plan.text for plan in islice(plans(seed, isolated=True, clock=True), 30)]

    assert first(1) == first(1) != first(2)


def test_every_kind_is_injected_several_times_in_three_hundred_faults() -> None:
    planned = Counter(kind for plan in islice(plans(1, isolated=True, clock=True), 29) for kind in plan.kinds)
    assert len(KINDS) >= 20
    assert set(planned) == set(KINDS)
    assert min(planned.values()) >= 3


def test_the_table_counts_kinds_and_violations() -> None:
    plan = next(plans(1, isolated=True, clock=True))
    result = Result(plan=plan, injected=["driver killed", "driver killed"], violations=[("driver killed", "lost")])
    assert "| driver killed | 2 | 1 |" in table([result])


def driver_that_said(*lines: tuple[float, str]) -> Driver:
    said = Driver.__new__(Driver)
    said.lines, said.began, said.ended, said._stopped = list(lines), 0.0, 200.0, []
    return said


def test_silence_is_told_from_progress_and_from_a_reason() -> None:
    times = range(0, 200, 5)
    moving = driver_that_said(*((t, f"12:00:00 {t}/900 done, 4 running, 0 failed, 2 trials/s") for t in times))
    assert moving.silences() == []
    stuck = driver_that_said(*((t, f"12:00:00 1/900 done, 4 running, 0 failed, {t} trials/s") for t in times))
    assert len(stuck.silences()) == 1
    waits = "12:00:00 1/900 done, 0 running, 0 failed, waiting: no node has a free CPU"
    assert driver_that_said(*((t, waits) for t in times)).silences() == []
    stuck._stopped = [(0.0, 200.0 - SILENT_S)]  # the harness itself had stopped it
    assert stuck.silences() == []


def test_the_words_of_a_bug_are_found() -> None:
    assert words_of_a_bug("phasefront run: this is a bug in phasefront, not in your sweep")
    assert words_of_a_bug("Traceback (most recent call last):")
    assert not words_of_a_bug("3 trials failed; tracebacks: tag `phasefront.error` of each run")


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_sweep_survives_a_handful_of_faults(tmp_path: Path) -> None:
    table = tmp_path / "results.md"
    command = [sys.executable, "-m", "tests.chaos", "--seed", "1", "--only", "7"]
    done = subprocess.run(
        [*command, "--kinds", "SIGHUP", "clock", "locked", "symbolic", "--results", str(table)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "driver" in table.read_text()

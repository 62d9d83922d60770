"""Functions that do harm fail alone: beside 39 healthy trials, which all finish, by the command line.

Each kind is a function of `hostile_functions`, with the status that its trial must end with and what its error says.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.driving import Driver, driver, record, trials, wait_for
from tests.hostile_functions import HEALTHY

BAD_REPORTS = {
    "surrogate": r"ValueError: cannot read caf\\udce9$",
    "control_characters": r"ValueError: a\\x00b\\x1b\[2Jc$",
    "long_error": r"ValueError: xxx.* characters \.\.\.] x+$",
    "huge_step": r"hostile\.py:\d+: report: the step must be at most 2\*\*62; got 9223372036854775807$",
    "immense_step": r"hostile\.py:\d+: report: the step must be at most 2\*\*62; got a value that cannot be printed$",
    "negative_step": r"hostile\.py:\d+: report: the step must increase from report to report; got -5 after 0$",
    "decreasing_step": r"hostile\.py:\d+: report: the step must increase from report to report; got 3 after 7$",
    "boolean_step": r"hostile\.py:\d+: report: the step must be a whole number; got True$",
    "nan_step": r"hostile\.py:\d+: report: the step must be a whole number; got nan$",
    "text_as_value": r"hostile\.py:\d+: report: metric 'loss' must be one number; got 'low' of type str$",
    "huge_value": r"hostile\.py:\d+: report: metric 'loss' must be one number; int too large to convert to float$",
    "immense_value": r"hostile\.py:\d+: report: metric 'loss' must be one number; got a value that cannot be printed",
    "unprintable_value": r"metric 'loss' must be one number; got a value that cannot be printed of type Unprintable$",
    "bad_return": r"hostile\.py:\d+: return: metric 'loss' must be one number; got .* of type dict$",
    "many_metrics": r"ValueError: the 1001 observations of a trial have [\d,]+ characters .* report fewer metrics",
    "several_errors": r"ExceptionGroup: several \(2 sub-exceptions\)$",
    "error_with_notes": r"(?s)\nhow to go on\\udce9\nValueError: noted$",
    "error_without_text": r"NoText: <exception str\(\) failed>$",
    "sys_exit": r"SystemExit: 3$",
    "interrupt": r"KeyboardInterrupt$",
    "deep_recursion": r"RecursionError: maximum recursion depth exceeded",
}
FEW = ("surrogate", "huge_step", "sys_exit", "interrupt")
"""Of them, for where each takes a new worker."""
FATAL = {
    "much_memory_at_once": r"MemoryError",
    "all_memory": r"MemoryError|lost 3 workers",
    "os_exit": r"(?s)the last words.*lost 3 workers",
    "modules": r"(?s)removed modules of phasefront.*lost 3 workers",
    "segfault": r"(?s)Segmentation fault.*hostile\.py.*lost 3 workers",
    "hang": r"(?s)hostile\.py\", line \d+, in hang\n.*resources\.trial_timeout",
    "hang_with_the_lock": r"(?s)hostile\.py\", line \d+ in hang_with_the_lock\n.*resources\.trial_timeout",
}
HARMLESS = ("nan_value", "infinite_value", "thread")
LEAVING = ("child_processes", "output")


def prepare(folder: Path, kinds: list[str], **resources: float) -> None:
    shutil.copy(Path(__file__).parent / "hostile_functions.py", folder / "hostile.py")
    listed = ", ".join(f"{name}: {value}" for name, value in resources.items())
    (folder / "sweep.yaml").write_text(
        f"name: hostile\njob: hostile:train\naxes:\n  kind: {{values: [{', '.join([*HEALTHY, *kinds])}]}}\n"
        f"resources: {{{listed}}}\n"
    )


def check(folder: Path, running: Driver, fails: Mapping[str, str], finishes: tuple[str, ...]) -> None:
    """39 of 39 healthy trials are finished, the others ended as they should, and nothing is left."""
    text = running.finish()
    by_kind = {run.params["kind"]: run for run in trials(record(folder / "mlflow.db"))}
    assert len(by_kind) == len(HEALTHY) + len(fails) + len(finishes), text
    assert [kind for kind in (*HEALTHY, *finishes) if by_kind[kind].status != "FINISHED"] == []
    for kind in HEALTHY:
        assert [row[:3] for row in by_kind[kind].rows] == [("loss", 0, 2.0)] + [
            ("loss", step, 1.0 / step) for step in range(1, 6)
        ]
    for kind, words in fails.items():
        assert by_kind[kind].status == "FAILED", kind
        error = by_kind[kind].tags["phasefront.error"]
        assert re.search(words, error.rstrip()), f"{kind}:\n{error}"
    assert running.popen.returncode == 1, text
    assert "Traceback" not in text
    assert "bug in phasefront" not in text
    wait_for("the end of everything that it started", lambda: not running.left_behind())


def test_a_report_that_no_record_can_hold_fails_its_trial_alone(tmp_path: Path) -> None:
    """In this process, which is the worst place: a trial shares it with the driver."""
    finishes = ("nan_value", "infinite_value")
    prepare(tmp_path, [*BAD_REPORTS, *finishes])
    with driver("run", "sweep.yaml", "--inline", "--no-map", cwd=tmp_path) as running:
        check(tmp_path, running, BAD_REPORTS, finishes)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's temporary folder; its path is short, because there are sockets below it."""
    folder = tempfile.mkdtemp(prefix="pf-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


def bytes_in(folder: Path) -> int:
    found = subprocess.run(["du", "-sb", str(folder)], capture_output=True, text=True, check=False)  # files may vanish
    return int(found.stdout.split()[0])


@pytest.mark.long
@pytest.mark.slow
def test_whatever_a_trial_does_the_healthy_ones_finish(tmp_path: Path, ray_folder: Path) -> None:
    fails = {kind: BAD_REPORTS[kind] for kind in FEW} | FATAL
    finishes = HARMLESS + LEAVING
    prepare(tmp_path, [*fails, *finishes], workers=2, trial_timeout=5)
    largest = 0
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path, environ={"RAY_TMPDIR": str(ray_folder)}) as running:
        while running.popen.poll() is None:
            largest = max(largest, bytes_in(ray_folder))
            time.sleep(0.2)
        check(tmp_path, running, fails, finishes)
    assert largest < 400e6, "0.8 GB were printed"
    assert not list(ray_folder.glob("ray/session_*"))


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A memory cgroup of 3 GB, below that of this process."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    first = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
    folder = Path(f"/sys/fs/cgroup/memory{first}") / f"pf-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(3 << 30))
    except OSError as error:
        pytest.skip(f"needs a memory cgroup (version 1) that it may divide: {error}")
    yield folder
    wait_for("the end of its processes", lambda: not (folder / "cgroup.procs").read_text())
    folder.rmdir()


@pytest.mark.slow
def test_a_trial_that_takes_all_memory_is_killed_and_fails_alone(tmp_path: Path, small_memory: Path) -> None:
    prepare(tmp_path, ["grows"], workers=2)
    with driver("run", "sweep.yaml", "--no-map", cwd=tmp_path) as running:
        (small_memory / "cgroup.procs").write_text(str(running.popen.pid))
        check(tmp_path, running, {"grows": r"lost 3 workers\..*killed for memory|does not fit into"}, ())

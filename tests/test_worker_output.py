"""What a worker prints is bounded on disk, and its end is shown with a failure."""

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

from orchestrator.dispatch.base import Cause, Event, PackEnded, PackFailed, PackProgress
from orchestrator.dispatch.output import LIMIT_BYTES, LINES, cut, tail, told
from orchestrator.records import Status, TrialResult

PRINTS = """\
import os, sys, time
from pathlib import Path
from orchestrator.dispatch import output
paths = output.files()
output.keep_bounded(paths)
block = b"noise " * 10_000 + b"\\n"
for _ in range(1000):
    os.write(1, block)
    os.write(2, block)
while any(Path(path).stat().st_size > output.LIMIT_BYTES for path in paths):
    time.sleep(0.1)
os.write(1, b"the end\\n")
print(len(paths), file=sys.stderr, flush=True)
os._exit(3)
"""


def test_a_process_that_prints_without_end_leaves_bounded_files(tmp_path: Path) -> None:
    """60 MB to each of two files."""
    out, err = tmp_path / "worker.out", tmp_path / "worker.err"
    with out.open("ab") as out_file, err.open("ab") as err_file:
        code = subprocess.run([sys.executable, "-c", PRINTS], stdout=out_file, stderr=err_file, check=False).returncode
    assert code == 3, err.read_text()[-2000:]
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["worker.err", "worker.err.1", "worker.out", "worker.out.1"]
    assert all(path.stat().st_size <= LIMIT_BYTES for path in tmp_path.iterdir())
    assert tail([str(out)]).endswith("the end")
    assert err.read_text().split()[-1] == "2", "both files were found"


def test_a_file_that_is_cut_keeps_its_end_and_what_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("ab", buffering=0) as file:
        file.write(b"old\n" + b"x" * LIMIT_BYTES)
        cut(str(path))
        file.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "out.1").read_bytes() == b"x" * LIMIT_BYTES


def test_the_tail_is_the_last_lines_that_were_printed_since(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_bytes(b":job_id:01000000\n:actor_name:WorkerActor\nbefore\n")
    err.write_bytes(b"caf\xe9\n")
    assert tail([str(out)], [out.stat().st_size]) == ""
    since = [out.stat().st_size, 0]
    with out.open("ab") as file:
        file.writelines(b"line %d\n" % k for k in range(100))
    assert tail([str(out), str(err)], since) == "\n".join(f"line {k}" for k in range(100 - LINES, 100)) + "\ncaf\ufffd"
    out.write_bytes(b"short\n")  # it was cut
    assert tail([str(out)], [1000]) == "short"
    assert tail([str(tmp_path / "removed")]) == ""


def test_failures_show_what_was_printed_since_the_last_trial_ended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("an earlier pack\n")

    def pack() -> Generator[Event, None, None]:
        def result(trial_id: str, status: Status, error: str | None = None) -> PackProgress:
            return PackProgress(pack_id="p", rows=None, results=(TrialResult(trial_id, status, error=error),))

        def say(text: str) -> None:
            with out.open("a") as file:
                file.write(text + "\n")

        say("first")
        yield result("a", Status.FINISHED)
        say("second")
        yield result("b", Status.FAILED, "ValueError: b")
        say("third")
        yield PackFailed(pack_id="p", cause=Cause.USER_ERROR, error="ValueError: c")
        yield PackEnded(pack_id="p", train_s=0.0)

    finished, failed, broken, ended = told(pack(), [str(out)])
    assert isinstance(finished, PackProgress)
    assert finished.results[0].error is None
    assert isinstance(failed, PackProgress)
    assert failed.results[0].error == "Last output of the worker:\nsecond\n\nValueError: b"
    assert isinstance(broken, PackFailed)
    assert broken.error == "Last output of the worker:\nthird\n\nValueError: c"
    assert isinstance(ended, PackEnded)

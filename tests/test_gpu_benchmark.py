"""`python -m tests.benchmarks.gpu` on a CPU: it runs without a GPU, ends in time, and says what it did not measure."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.packed import capture
from jobs.packed.block import weakly
from orchestrator.plan.calibration import DEFAULT_CPU
from tests.benchmarks.gpu import cases
from tests.benchmarks.gpu.measure import SHORT, TRACED, Bench, Case, curves, deviation, graphs, measure, trained_by
from tests.benchmarks.gpu.report import COLUMNS, OverTimeError, Report, counted, middle, number, spread, within

ROOT = Path(__file__).parent.parent
ALONE = """
import importlib.metadata, runpy, sys
ALLOWED = {"torch", "triton", "numpy", "filelock", "typing_extensions", "setuptools", "sympy", "mpmath", "networkx"}
ALLOWED |= {"jinja2", "markupsafe", "fsspec"}  # what torch needs
FOREIGN = {name for name, owners in importlib.metadata.packages_distributions().items()
           if not any(owner.lower().replace("-", "_") in ALLOWED for owner in owners)}
class Allowed:
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FOREIGN - {"jobs", "orchestrator"}:
            return None
        return next((spec for f in self.finders if (spec := f.find_spec(name, path, target))), None)
    def find_distributions(self, *context):
        finders = [f for f in self.finders if hasattr(f, "find_distributions")]
        return (found for f in finders for found in f.find_distributions(*context))
sys.meta_path[:] = [Allowed(list(sys.meta_path))]
for name in ("ray", "scipy"):
    assert importlib.util.find_spec(name) is None
runpy.run_module("tests.benchmarks.gpu", run_name="__main__")
"""


def dry(*arguments: str) -> list[list[str]]:
    """The table of a dry run in which nothing can be imported but torch, numpy and what torch needs."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "--dry", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return table(done.stdout)


def table(printed: str) -> list[list[str]]:
    """Cells of the lines of a table."""
    return [[c.strip() for c in line[1:-1].split("|")] for line in printed.splitlines() if line.startswith("|")]


def bench(backend: Any = TRACED) -> Bench:
    return Bench(device="cpu", machine=DEFAULT_CPU, room_s=0.01, backend=backend)


def case() -> Case:
    (pack,) = cases.perceptrons(8, (2,), "cpu")
    return pack


@pytest.mark.slow
def test_a_dry_run_measures_every_case_with_torch_and_numpy_alone() -> None:
    head, _, *rows = dry("--room", "0.05", "--row", "120", "--seconds", "250")
    assert tuple(head) == COLUMNS
    assert {len(row) for row in rows} == {len(COLUMNS)}
    laws = [row for row in rows if row[0].startswith("law: ")]
    assert len(laws) == 12
    assert all(row[2] == "deviation 0.0e+00" for row in laws)
    packs = [row for row in rows if "model" in row[0]]
    assert {row[1] for row in packs} == {"eager", "compiled", "chosen"}
    for row in packs:
        if row[1] == "compiled":
            assert row[2] == "not measured"
            assert "which compiles nothing" in row[6]
            assert "deviation from eager" in row[6]
        else:
            assert "MiB, predicted " in row[5]
            if row[2] == "not measured":  # other programs may disturb so short a training
                assert row[6].endswith("a long training took less time than a short one")
                continue
            assert row[2].endswith("model-steps/s"), row
            assert "n = " in row[3]
            assert ", planned " in row[4]
    assert [row[0] for row in rows[-2:]] == ["predicted / measured time", "predicted / measured memory"]
    assert "nan" not in str(rows)


def test_what_the_time_does_not_allow_is_in_the_table_as_not_measured() -> None:
    _, _, *rows = dry("--seconds", "0")
    of_packs = [
        row for row in rows if row[1] in ("as in a sweep", "eager", "compiled", "chosen") or "process" in row[1]
    ]
    assert len(of_packs) > 20
    assert all(row[2] == "not measured" and row[6] == "the benchmark's 0 s are over" for row in of_packs)
    assert [row[2] for row in rows[-2:]] == ["not measured", "not measured"]


def test_a_row_ends_at_its_limit_and_the_next_one_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    def slowly(pack: Any, device: str) -> str:
        time.sleep(60)
        return ""

    report, quick = Report(total_s=60, row_s=1e-3), case()
    slow = Case(name="slow", job=quick.job, make=quick.make, models=2, ways=("eager",), prepare=slowly)
    assert measure(report, bench(), slow) == 0.0
    report = Report(total_s=60, row_s=50)
    measure(report, bench(), Case(name="quick", job=quick.job, make=quick.make, models=2, ways=("eager",)))
    first, second = table(capsys.readouterr().out)
    assert (first[2], first[6]) == ("not measured", "the row's limit of 0.001 s is over")
    assert "MiB, predicted " in second[5]
    assert "limit" not in second[6]


def test_a_limit_holds_in_code_that_catches_exceptions() -> None:
    def stubborn() -> None:
        while True:
            try:
                time.sleep(60)
            except Exception:
                continue

    with pytest.raises(OverTimeError, match=r"row's limit of 0\.05 s"), Report(total_s=60, row_s=0.05).limited():
        stubborn()


def test_a_pack_that_fails_is_a_row_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(pack: Any, device: str) -> str:
        raise RuntimeError("CUDA | out of memory\nmore")

    quick = case()
    failing = Case(name="large", job=quick.job, make=quick.make, models=2, ways=("eager",), prepare=fails)
    assert measure(Report(total_s=60, row_s=50), bench(), failing) == 0.0
    (row,) = table(capsys.readouterr().out)
    assert (row[0], row[2], row[6]) == ("large", "not measured", "RuntimeError: CUDA / out of memory")


def compiled_cases() -> Iterator[Case]:
    yield from cases.perceptrons(8, (2,), "cpu")
    yield from cases.grokking("cpu", large=False)


@pytest.mark.parametrize("pack", [p for p in compiled_cases() if "compiled" in p.ways], ids=lambda p: p.name)
def test_a_step_that_is_compiled_is_the_step(pack: Case) -> None:
    eager = curves(pack.job, pack.pack(SHORT), "cpu")
    with trained_by("compiled", TRACED):
        compiled = curves(pack.job, pack.pack(SHORT), "cpu")
        assert not graphs().startswith("0 graphs")
    off = deviation(eager, compiled)
    assert off is not None
    assert off < 1e-5


def test_a_step_that_is_compiled_wrongly_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    def twice(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            graph(*arguments)
            return graph(*arguments)

        return run

    quick = case()
    pack = Case(name="wrong", job=quick.job, make=quick.make, models=2, ways=("compiled",))
    measure(Report(total_s=60, row_s=50), bench(twice), pack)
    (row,) = table(capsys.readouterr().out)
    assert "deviation from eager" in row[6]
    assert "deviation from eager 0.0" not in row[6]


def test_the_jobs_are_as_before_after_each_way() -> None:
    for way in ("eager", "captured", "compiled", "fused"):
        with trained_by(way, TRACED):
            assert (way in ("captured", "compiled")) == capture.ENABLED
        assert (capture.ENABLED, capture.weakly) == (True, weakly)


def test_curves_of_other_steps_are_not_compared() -> None:
    assert deviation({(0, 0, "train_loss"): 1.0}, {(0, 1, "train_loss"): 1.0}) is None
    assert deviation({(0, 0, "train_loss"): 2.0}, {(0, 0, "train_loss"): 1.0}) == 0.5


def test_numbers_are_printed_with_what_they_are_worth() -> None:
    assert [number(v) for v in (0.012345, 9.876, 123.4, 1234567.0)] == ["0.0123", "9.88", "123", "1,230,000"]
    assert [counted(1, "model"), counted(1000, "model"), counted(16, "process")] == [
        "1 model",
        "1,000 models",
        "16 processes",
    ]
    assert (middle([]), spread([])) == ("not measured", "")
    assert (middle([7.0], " s"), spread([7.0])) == ("7 s", "n = 1")
    assert (middle([3.0, 1.0, 2.0]), spread([3.0, 1.0, 2.0])) == ("2", "1 - 3; n = 3")
    assert within([0.7, 1.0, 1.31, 2.0], 0.3001) == "2 of 4 within 30%"

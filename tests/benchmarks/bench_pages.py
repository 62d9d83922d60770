"""Figures and pages of large sweeps: `map`, `report`, `compare`, both pages in a browser, and what `ui` costs a driver.

`python tests/benchmarks/bench_pages.py [--trials 5000,20000] [--turns N] [--driver-turns N] [--driver-trials N]`. The
records are real: trials of the job `grokking` over weight decay and learning rate, two replicates each, whose curves (5
metrics, 20 steps) are a formula, reduced as usual and written by the tracker into a SQLite file. The browser is
Debian's Chromium. The cost of `ui` is the processor time of `phasefront run --inline` with the page open, compared with
that without it, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from harness import ROOT, machine, spread, versions

sys.path.insert(0, str(ROOT / "tests"))
from browsing import chromium

CHUNK = 1_000
STEPS = tuple(round(10 ** (k / 5)) for k in range(1, 21))
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "weight_norm")
HOVERS = ((0.2, 0.2), (0.8, 0.3), (0.5, 0.5), (0.3, 0.8), (0.7, 0.7))
"""Places in the map, as shares of its width and height."""
GROKKING = """
name: {name}
job: grokking
axes:
  weight_decay: {{scale: log, from: 0.01, to: 10, points: {side}}}
  learning_rate: {{scale: log, from: 0.001, to: 1, points: {side}}}
fixed: {{model: quadratic_mlp, modulus: 11, width: 40}}
replicates: 2
output: out_{name}
tracking: {{uri: "sqlite:///{name}.db", artifacts: artifacts}}
"""
DRIVEN = """
name: driven
job: trivial_job:curve
axes: {{x: {{scale: linear, from: 0, to: 1, points: {points}}}}}
fixed: {{rows: 100}}
replicates: 10
output: out_driven
tracking: {{uri: "sqlite:///driven.db", artifacts: artifacts}}
"""
Times = list[float]
Row = tuple[str, int, Times, str, float]
"""What was measured, the trials, the values, their unit, and the goal (NaN if there is none)."""


def record(file: Path, moved: float) -> None:
    """Record all trials of a sweep; they generalise sooner where weight decay and learning rate are larger."""
    import phasefront
    from jobs.job import Curves
    from orchestrator.commands.wiring import sweep_record
    from orchestrator.records import CurveRows, Status, TrialResult
    from orchestrator.reduce import reduce_curves
    from orchestrator.tracking.factory import open_tracker

    sweep = phasefront.load(file).sweep
    job, thresholds, tracking = sweep.job_object(), sweep.thresholds(), sweep.tracking
    tracker = open_tracker(tracking.uri, experiment=tracking.experiment, artifacts=tracking.artifacts)
    tracker.open_sweep(sweep_record(sweep))
    trials, random = sweep.trials(), np.random.default_rng(0)
    for start in range(0, len(trials), CHUNK):
        part = trials[start : start + CHUNK]
        values = np.empty((len(STEPS), len(part), len(METRICS)))
        results = []
        for k, trial in enumerate(part):
            params: Any = trial.params
            rate = math.log10(params.weight_decay) + math.log10(params.learning_rate) / 3 - moved
            later = 3 - rate + random.normal(0, 0.1)  # log10 of the step of generalisation
            test = 1 / (1 + np.exp(-8 * (np.log10(STEPS) - later)))
            train = 1 / (1 + np.exp(-8 * (np.log10(STEPS) - 1.5)))
            values[:, k] = np.stack([2.4 * (1 - train) + 1e-4, train, 2.4 * (1 - test) + 1e-3, test, 30 + test], axis=1)
            curves = Curves(step=np.array(STEPS), values={name: values[:, k, m] for m, name in enumerate(METRICS)})
            phase, observations = reduce_curves(job, params, curves, thresholds)
            results.append(TrialResult(trial.id, Status.FINISHED, phase, observations))
        tracker.begin(part)
        tracker.record(
            CurveRows(
                trial_ids=tuple(trial.id for trial in part),
                metrics=METRICS,
                trial=np.tile(np.arange(len(part), dtype=np.int32), len(STEPS)),
                step=np.repeat(np.array(STEPS, dtype=np.int64), len(part)),
                values=values.reshape(-1, len(METRICS)),
            )
        )
        tracker.end(results)
    tracker.end_sweep("FINISHED", {})
    tracker.close()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *words]


def ran(folder: Path, turns: int, *words: str) -> Times:
    """Wall seconds of a command, start-up included, in each of some turns."""
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        done = subprocess.run(
            command(*words), cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
        seconds.append(time.perf_counter() - began)
        if done.returncode:
            raise SystemExit(f"{words}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


@contextlib.contextmanager
def ui(folder: Path, file: str) -> Iterator[str]:
    """The address of the page of a sweep."""
    process = subprocess.Popen(
        command("ui", file, "--no-mlflow"), cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def page_of(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(300_000)
    yield page
    page.close()


def drawn(page: Any) -> None:
    """Wait until the browser has drawn what it has."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def opening(browser: Any, address: str, turns: int, *, until: str = "") -> Times:
    """Seconds until a page is loaded and drawn, and an element of it is there; each in a new page."""
    seconds = []
    for _ in range(turns):
        with page_of(browser) as page:
            began = time.perf_counter()
            page.goto(address)
            if until:
                page.locator(until).first.wait_for()
            drawn(page)
            seconds.append(time.perf_counter() - began)
    return seconds


def hovering(browser: Any, address: str, shown: str) -> Times:
    """Seconds from the pointer's arrival at a cell until `shown`, a condition in JavaScript, holds for it."""
    seconds = []
    with page_of(browser) as page:
        page.goto(address)
        page.locator("#plot .xtitle").first.wait_for()
        drawn(page)
        area = page.locator("#plot .nsewdrag").first.bounding_box()
        for x, y in HOVERS:
            before = page.evaluate(f"({shown})()")
            began = time.perf_counter()
            page.mouse.move(area["x"] + x * area["width"], area["y"] + y * area["height"])
            page.wait_for_function(
                f"before => {{ const now = ({shown})(); return now && now !== before; }}", arg=before
            )
            drawn(page)
            seconds.append(time.perf_counter() - began)
    return seconds


TEXT_SHOWN = """() => document.querySelector("#plot .hoverlayer")?.textContent"""
CURVES_SHOWN = """() => document.querySelectorAll("#curves .scatterlayer .trace").length
    && document.querySelector("#setting").textContent"""


def pages(folder: Path, browser: Any, trials: int, turns: int) -> Iterator[Row]:
    """All about sweeps of so many trials."""
    small = trials <= 5_000
    side = round((trials / 2) ** 0.5)
    for name, moved in (("first", 0.0), ("second", 0.5)):
        (folder / f"{name}.yaml").write_text(GROKKING.format(name=name, side=side))
        began = time.perf_counter()
        with contextlib.chdir(folder):
            record(folder / f"{name}.yaml", moved)
        print(f"recorded {2 * side**2:,} trials in {time.perf_counter() - began:.1f} s", flush=True)
    count = 2 * side**2
    yield "map", count, ran(folder, turns, "map", "first.yaml"), "s", 20 if small else math.nan
    yield "report", count, ran(folder, turns, "report", "first.yaml"), "s", math.nan
    report = folder / "out_first" / "report.html"
    yield "size of report.html", count, [report.stat().st_size / 1e6], "MB", 5 if small else math.nan
    compared = ran(folder, turns, "compare", "first.yaml", "second.yaml", "-o", "compared.png")
    yield "compare with a second sweep", count, compared, "s", math.nan
    yield "opening report.html", count, opening(browser, report.as_uri(), turns), "s", 2 if small else math.nan
    picture = folder / "out_first" / "phase_diagram.html"
    until = "#plot .xtitle"
    yield "opening phase_diagram.html", count, opening(browser, picture.as_uri(), turns, until=until), "s", math.nan
    yield "text of a cell in it", count, hovering(browser, picture.as_uri(), TEXT_SHOWN), "s", math.nan
    with ui(folder, "first.yaml") as address:
        yield "opening the page of ui", count, opening(browser, address, turns, until=until), "s", math.nan
        yield "curves of a cell in it", count, hovering(browser, address, CURVES_SHOWN), "s", math.nan


def driver_s(folder: Path, file: str) -> float:
    """Processor seconds of a run, without Ray."""
    process = subprocess.Popen(
        command("run", file, "--inline", "--quiet", "--no-map"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"run: exit {process.returncode}")
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def watched(address: str) -> Iterator[None]:
    """Ask for what an open page asks for."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            for what in ("state", "map"):
                urllib.request.urlopen(address + what, timeout=60).read()
            stop.wait(2)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def driving(turns: int, trials: int) -> Row:
    """The processor time of a driver with `ui` beside it, as a share more than without, in pairs."""
    more = []
    for turn in range(turns):
        spent: dict[bool, float] = {}
        for beside in (False, True) if turn % 2 else (True, False):
            with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
                folder = Path(name)
                (folder / "driven.yaml").write_text(DRIVEN.format(points=trials // 10))
                if beside:
                    stack.enter_context(watched(stack.enter_context(ui(folder, "driven.yaml"))))
                spent[beside] = driver_s(folder, "driven.yaml")
        more.append(100 * (spent[True] / spent[False] - 1))
        print(f"driver: {spent[False]:.2f} s without ui, {spent[True]:.2f} s with it", flush=True)
    mean, half = statistics.mean(more), scipy.stats.t.ppf(0.975, turns - 1) * scipy.stats.sem(more)
    what = f"processor time of a driver, more with ui: mean [95% interval], {turns} pairs"
    return what, trials, [mean - half, mean, mean + half], "%", 1


def table(rows: Sequence[Row]) -> None:
    """Print all, with the goals."""
    print("\n| what | trials | median [range] | goal |\n|---|---|---|---|")
    for what, trials, values, unit, most in rows:
        reached = "reached" if max(values) < most else "MISSED" if min(values) >= most else "undecided"
        goal = "" if math.isnan(most) else f"< {most:g} {unit}: {reached}"
        print(f"| {what} | {trials:,} | {spread(values)} {unit} | {goal} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="5000,20000", help="trials of a sweep, several with commas")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--driver-turns", type=int, default=5)
    parser.add_argument("--driver-trials", type=int, default=5_000)
    arguments = parser.parse_args()
    print(f"figures and pages: {machine()}; {versions('mlflow', 'plotly', 'matplotlib', 'playwright')}", flush=True)
    rows: list[Row] = []
    with chromium() as browser:
        for trials in map(int, filter(None, arguments.trials.split(","))):
            with tempfile.TemporaryDirectory() as name:
                for row in pages(Path(name), browser, trials, arguments.turns):
                    print(f"{row[0]}: {spread(row[2])} {row[3]}", flush=True)
                    rows.append(row)
    if arguments.driver_turns:
        rows.append(driving(arguments.driver_turns, arguments.driver_trials))
    table(rows)


if __name__ == "__main__":
    main()

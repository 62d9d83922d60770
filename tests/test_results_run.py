"""`phasefront.run` from scripts and notebooks."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from results_kit import ROOT, environment
from runner_kit import RAMP
from servers import empty_sqlite

import phasefront
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.progress import Page, Snapshot

SMALL = {"name": "small", "job": RAMP, "axes": {"width": [1, 2, 3]}, "replicates": 2}
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_sqlite(tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)


def test_a_mapping_is_run_and_its_results_are_returned(capfd: pytest.CaptureFixture[str]) -> None:
    sweep = phasefront.run(SMALL, inline=True, draw=False)
    trials = sweep.trials()
    assert set(trials.status) == {"FINISHED"} and len(trials) == 6
    assert len(sweep.curves()) > 6
    shown = capfd.readouterr().out
    assert "6/6 done" in shown and "6 trials finished" in shown
    again = phasefront.run(sweep, inline=True, draw=False, progress=False)
    assert "6 were finished before" in capfd.readouterr().out
    assert again.trials().equals(trials)


def test_the_command_line_goes_on_with_what_a_script_has_run(capfd: pytest.CaptureFixture[str]) -> None:
    phasefront.run(SMALL, inline=True, draw=False, progress=False)
    assert main(["run", "phasefront-out/small/sweep.yaml", "--inline", "--no-map", "--quiet"]) == 0
    assert "6 were finished before" in capfd.readouterr().out


def test_failed_trials_are_listed_with_the_command_that_retries(capfd: pytest.CaptureFixture[str]) -> None:
    content = {**SMALL, "axes": {"trouble": ["none", "raise"]}, "replicates": 1}
    Path("some.yaml").write_text(json.dumps(content))
    sweep = phasefront.run("some.yaml", overrides={"replicates": 3}, inline=True, draw=False, progress=False)
    assert sweep.trials().status.value_counts()[["FINISHED", "FAILED"]].tolist() == [3, 3]
    assert "phasefront run some.yaml --set replicates=3 --inline --quiet --no-map" in capfd.readouterr().err


def test_a_summary_of_a_metric_that_a_function_does_not_report_is_refused() -> None:
    Path("plain.py").write_text("def train(params, seed, device, report):\n    report(1, loss=params['x'])\n")
    sweep = phasefront.run({"name": "plain", "job": "plain:train", "axes": {"x": [1.0, 2.0]}}, inline=True)
    assert sweep.trials(summaries=["loss"]).loss_last.tolist() == [1.0, 2.0]
    for read in (lambda: sweep.trials(summaries=["los"]), lambda: sweep.to_xarray(["los"])):
        with pytest.raises(UserError) as error:
            read()
        assert "valid: loss" in error.value.text and "did you mean 'loss'?" in error.value.text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: phasefront.run(SMALL, workers=0), "must be a whole number >= 1"),
        (lambda: phasefront.run(phasefront.load(SMALL), overrides={"seed": 1}), "give them to `load`"),
    ],
)
def test_a_mistake_is_told(call, text: str) -> None:
    with pytest.raises(UserError, match=text):
        call()


def test_an_interrupted_run_raises_and_the_process_goes_on(tmp_path: Path) -> None:
    code = """
import phasefront
sweep = {"name": "long", "job": "slow:train", "axes": {"x": [1, 2, 3, 4]}}
try:
    phasefront.run(sweep, inline=True, draw=False)
except KeyboardInterrupt:
    import time
    time.sleep(4)
    print("went on:", sorted(phasefront.load(sweep).trials().status.value_counts().loc[lambda n: n > 0].index))
"""
    Path("slow.py").write_text(
        "import time\n"
        "def train(params, seed, device, report):\n"
        "    report(1, loss=params['x'])\n"
        "    open('started', 'w').close()\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    try:
        while not Path("started").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    assert process.returncode == 0, shown
    assert "went on: ['KILLED']" in shown, shown


class Shown:
    """Keeps what a notebook shows."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def __call__(self, page: str) -> "Shown":
        self.pages.append(page)
        return self

    update = __call__


def test_a_notebook_shows_one_bar_that_changes() -> None:
    shown, now = Shown(), [0.0]
    page = Page(shown, clock=lambda: now[0])
    for done in range(11):
        now[0] += 0.1
        page.update(Snapshot(total=10, done=done, workers=2, phases={"<b>": done}))
    page.close()
    assert 3 <= len(shown.pages) <= 6
    assert 'value="10" max="10"' in shown.pages[-1] and "10/10 done" in shown.pages[-1]
    assert "&lt;b&gt; 10" in shown.pages[-1] and "<b>" not in shown.pages[-1]


@pytest.mark.slow
def test_a_run_inside_an_event_loop_after_ray_was_imported(tmp_path: Path) -> None:
    code = f"""
import asyncio, ray, phasefront
async def work():
    return phasefront.run({SMALL!r}, workers=1, draw=False)
sweep = asyncio.run(work())
print("finished:", (sweep.trials().status == "FINISHED").sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0 and "finished: 6" in done.stdout, done.stdout + done.stderr


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=270, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
nbformat.write(notebook, "executed.ipynb")
"""


def test_there_is_a_notebook_for_each_main_phenomenon() -> None:
    assert {"double_descent.ipynb", "grokking.ipynb"} <= {path.name for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), f"outputs in {path.name}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_of_the_documentation_runs(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EXECUTE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=290)
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = [
        output for cell in nbformat.read("executed.ipynb", as_version=4).cells for output in cell.get("outputs", [])
    ]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds and "text/html" in kinds
    assert any("<progress" in output.get("data", {}).get("text/html", "") for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr" and "Traceback" in output["text"]]

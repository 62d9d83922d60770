"""A sweep submitted to a running head: its log, its record, and its curves on MLflow's page."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import needs
import pytest
from driving import MARK, driver, environment, marked, parents, record, run, trials, wait_for
from faults.proxy import Proxy
from servers import free_ports, mlflow_server

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
SWEEP = """\
name: submitted
job: grokking
axes:
  weight_decay: {values: [0.0, 1.0]}
  data_fraction: {scale: linear, from: 0.5, to: 0.8, points: 2}
replicates: 2
fixed: {modulus: 7, steps: 60, width: 16}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@dataclass(frozen=True, kw_only=True)
class Head:
    environ: dict[str, str]
    said: str
    mark: str

    def ray(self, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        command = [RAY, *arguments]
        return subprocess.run(command, cwd=cwd, env=self.environ, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head started and stopped by the scripts, on ports and in a folder of its own, with a token of its own."""
    needs.program("ps", "procps")
    # A socket's path may hold 107 bytes: pytest's own temporary folders are too deep.
    home = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
    port, dashboard, agent, client = free_ports(4)
    mark = uuid.uuid4().hex
    environ = environment(
        {
            "HOME": str(home),
            "PHASEFRONT_RAY_DIR": str(home / "ray"),
            MARK: mark,
            "PORT": str(port),
            "DASHBOARD_PORT": str(dashboard),
            "COLUMNS": "40",  # as a shell may export it
        }
    )
    options = [
        "--num-cpus=2",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
        "--object-store-memory=100000000",
    ]
    scripts = ROOT / "cluster" / "local"
    started = subprocess.run([scripts / "head.sh", *options], env=environ, capture_output=True, text=True, timeout=180)
    try:
        assert started.returncode == 0, started.stderr
        told = dict(re.findall(r"\b(RAY_[A-Z_]+)=(\S+)", started.stdout))
        yield Head(environ={**environ, **told}, said=started.stdout, mark=mark)
    finally:
        stopped = subprocess.run([scripts / "stop.sh"], env=environ, capture_output=True, text=True, timeout=120)
        left = marked(mark)
        for pid in left:
            os.kill(pid, 9)
        shutil.rmtree(home, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stderr
    assert left == [], "stop.sh left processes behind"


@dataclass(frozen=True, kw_only=True)
class Submitted:
    log: str
    folder: Path


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """The documented command, from a folder that holds the sweep; polled until the job has ended."""
    folder = tmp_path_factory.mktemp("submitted")
    project = folder / "project"
    project.mkdir()
    (project / "sweep.yaml").write_text(SWEEP)
    uri = f"sqlite:///{folder}/mlflow.db"
    command = ["python", "-m", "orchestrator", "run", "sweep.yaml", "--set", f"tracking.uri={uri}"]
    sent = head.ray(
        "job", "submit", "--no-wait", "--submission-id=sweep", "--working-dir=.", "--", *command, cwd=project
    )
    assert sent.returncode == 0, sent.stdout + sent.stderr
    seen: list[str] = []

    def ended() -> bool:
        status = head.ray("job", "status", "sweep", "--log-style=record", cwd=project)
        seen.append(status.stdout + status.stderr)
        return re.search(r"succeeded|failed|stopped", seen[-1], re.IGNORECASE) is not None

    wait_for("the job's end", ended)
    log = head.ray("job", "logs", "sweep", "--log-style=record", cwd=project).stdout
    assert re.search("succeeded", seen[-1], re.IGNORECASE), seen[-1] + log
    return Submitted(log=log, folder=folder)


def test_a_head_refuses_clients_without_the_token(head: Head, tmp_path: Path) -> None:
    stranger = {name: value for name, value in head.environ.items() if name not in ("RAY_AUTH_MODE", MARK)}
    stranger["HOME"] = str(tmp_path)
    done = subprocess.run([RAY, "job", "list"], env=stranger, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "uthentication" in done.stdout + done.stderr


def test_a_head_prints_the_next_commands(head: Head) -> None:
    for command in ("cluster/local/worker.sh ", "phasefront submit FILE --set tracking.uri=", "cluster/local/stop.sh"):
        assert command in head.said


USES_EVERY_NODE = """\
import os, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
@ray.remote(num_cpus=0)
class Actor:
    def ready(self):
        return True
ray.init()
for node in ray.nodes():
    actor = Actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
    assert ray.get(actor.ready.remote())
    ray.kill(actor)
time.sleep(5)
print("still", os.listdir())
"""
"""A job whose working folder each node has used and released before the job ends."""


def test_a_worker_on_the_head_s_machine_joins_and_leaves_and_jobs_keep_their_folder(head: Head, tmp_path: Path) -> None:
    found = re.search(r"cluster/local/worker.sh (\S+:\d+)", head.said)
    assert found
    scripts = ROOT / "cluster" / "local"
    options = ["--num-cpus=1", f"--dashboard-agent-listen-port={free_ports(1)[0]}", "--object-store-memory=100000000"]

    def alive() -> int:
        listed = head.ray("list", "nodes", "--format=json", cwd=tmp_path)
        assert listed.returncode == 0, listed.stderr
        return sum(node["state"] == "ALIVE" for node in json.loads(listed.stdout))

    command = [scripts / "worker.sh", found[1], *options]
    joined = subprocess.run(command, env=head.environ, capture_output=True, text=True, timeout=180)
    try:
        assert joined.returncode == 0, joined.stderr
        wait_for("two nodes", lambda: alive() == 2)
        (tmp_path / "job.py").write_text(USES_EVERY_NODE)
        job = head.ray("job", "submit", "--working-dir=.", "--", "python", "job.py", cwd=tmp_path)
        assert "still ['job.py']" in job.stdout, job.stdout + job.stderr
    finally:
        command = [scripts / "stop.sh", "worker"]
        left = subprocess.run(command, env=head.environ, capture_output=True, text=True, timeout=120)
    assert (left.returncode, left.stdout) == (0, "worker stopped\n")
    wait_for("one node", lambda: alive() == 1)


def test_a_submitted_sweep_ends_and_its_log_shows_progress(submitted: Submitted) -> None:
    assert re.search(r"8\s*(/|of)\s*8", submitted.log), submitted.log
    assert "Traceback" not in submitted.log


def test_a_submitted_sweep_is_one_parent_with_a_nested_run_for_each_trial(submitted: Submitted) -> None:
    runs = record(submitted.folder / "mlflow.db")
    (parent,) = parents(runs)
    assert parent.status == "FINISHED"
    nested = trials(runs)
    assert len(nested) == 2 * 2 * 2
    assert {run.parent for run in nested} == {parent.run_id}
    assert {run.status for run in nested} == {"FINISHED"}
    assert {(run.params["weight_decay"], run.params["data_fraction"]) for run in nested} == {
        ("0.0", "0.5"),
        ("0.0", "0.8"),
        ("1.0", "0.5"),
        ("1.0", "0.8"),
    }
    assert all(run.rows for run in nested)


DRAWN = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data
    .filter(trace => trace.type === 'scatter')
    .map(trace => ({metric: trace.metricKey, x: [...trace.x], y: [...trace.y],
                    line: plot.querySelector('.scatterlayer path.js-line')?.getAttribute('d') ?? ''})))"""


def test_mlflows_page_draws_a_trials_curves(submitted: Submitted, tmp_path: Path) -> None:
    chromium = needs.program("chromium", "chromium")
    from playwright.sync_api import sync_playwright

    database = submitted.folder / "mlflow.db"
    trial = trials(record(database))[0]
    curves = {key: [(step, value) for name, step, value, _ in trial.rows if name == key] for key, *_ in trial.rows}
    curves = {key: points for key, points in curves.items() if len(points) > 2}
    assert curves
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with (
        mlflow_server(f"sqlite:///{database}", submitted.folder / "artifacts") as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 2400})
            page.goto(f"{address}/#/experiments/{trial.experiment_id}/runs/{trial.run_id}/model-metrics")
            drawn: list[dict[str, Any]] = []

            def all_drawn() -> bool:
                page.wait_for_timeout(500)
                drawn[:] = page.evaluate(DRAWN)
                return curves.keys() <= {trace["metric"] for trace in drawn if trace["line"]}

            wait_for("a chart for every curve", all_drawn)
            page.screenshot(path=tmp_path / "curves.png")  # for a person to look at
        finally:
            browser.close()
    for trace in drawn:
        if trace["metric"] in curves:
            steps, values = zip(*curves[trace["metric"]], strict=True)
            assert trace["x"] == list(steps)
            assert trace["y"] == pytest.approx(list(values))
            assert trace["line"].count("L") >= 1


GATED = """\
name: gated
job: gated:train
axes: {{x: {{values: [0, 1, 2]}}}}
fixed: {{gate: "{gate}"}}
phases: {{metric: value, level: 0.5}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
output: {folder}/out
"""
GATED_JOB = """\
import pathlib
import time


def train(*, x=0, gate="", seed, report):
    while not pathlib.Path(gate).exists():
        time.sleep(0.1)
    report(1, value=x)
    if x == 2:
        raise ValueError("x is too large")


train.metrics = ("value",)
"""


def gated(folder: Path) -> Path:
    """A project whose trials wait for a file; one of them fails. Its own record would make it too large to submit."""
    project = folder / "project"
    project.mkdir()
    (project / "gated.yaml").write_text(GATED.format(gate=folder / "open", folder=folder))
    (project / "gated.py").write_text(GATED_JOB)
    with (project / "mlflow.db").open("wb") as file:
        file.write(os.urandom(120_000_000))  # random bytes, because the upload is compressed
    return project


def test_a_submitted_sweep_is_followed_stopped_and_resumed(head: Head, tmp_path: Path) -> None:
    project = gated(tmp_path)
    sent = run("submit", "gated.yaml", "--no-wait", cwd=project, environ=head.environ)
    assert sent[0] == 0, sent[1]
    first = re.search(r"submitted (phasefront-gated-\w+)-1 ", sent[1])
    assert first, sent[1]
    refused = run("submit", "gated.yaml", "--workers", "1", cwd=project, environ=head.environ)
    assert refused[0] == 2, refused[1]
    assert "runs already" in refused[1]
    assert "phasefront stop gated.yaml" in refused[1]
    with driver("submit", "gated.yaml", cwd=project, environ=head.environ) as follower:
        wait_for("the followed log", lambda: re.search(r"\b[1-3] running", follower.text()) is not None, follower)
        assert f"{first[1]}-1 runs already" in follower.text()
        stopped = run("stop", "gated.yaml", cwd=project, environ=head.environ)
        assert stopped[0] == 0, stopped[1]
        assert "resumes" in stopped[1]
        text = follower.finish()
    assert follower.popen.returncode == 143, text
    assert f"{first[1]}-1: stopped" in text
    assert "To resume: phasefront submit gated.yaml\n" in text
    looked = run("status", "gated.yaml", cwd=project, environ=head.environ)
    assert "To resume: phasefront submit gated.yaml\n" in looked[1]

    elsewhere = ("gated.yaml", "--set", "tracking.experiment=another")
    other = re.search(r"submitted (\S+) ", run("submit", *elsewhere, "--no-wait", cwd=project, environ=head.environ)[1])
    assert other is not None
    wrong = run("stop", "gated.yaml", cwd=project, environ=head.environ)
    assert f"{first[1]}-1 is not running: stopped" in wrong[1]
    assert f"of this name run {other[1]}: of another record" in wrong[1]
    assert run("stop", *elsewhere, cwd=project, environ=head.environ)[0] == 0

    (tmp_path / "open").touch()
    resumed = run("submit", "gated.yaml", cwd=project, environ=head.environ)
    assert resumed[0] == 1, resumed[1]  # as `phasefront run`: one trial failed by its own fault
    assert f"submitted {first[1]}-2 " in resumed[1]
    assert "ValueError: x is too large" in resumed[1]
    assert "to retry: phasefront submit gated.yaml\n" in resumed[1]
    assert "Traceback" not in resumed[1]
    assert {each.status for each in trials(record(tmp_path / "mlflow.db"))} == {"FINISHED", "FAILED"}
    again = run("logs", "gated.yaml", "--follow", cwd=project, environ=head.environ)
    assert again[0] == 1
    assert "2 trials finished" in again[1]


def test_a_lost_connection_neither_ends_a_job_nor_repeats_its_log(head: Head, tmp_path: Path) -> None:
    project = gated(tmp_path)
    with Proxy.to(head.environ["RAY_API_SERVER_ADDRESS"]) as proxy:
        arguments = ("submit", "gated.yaml", "--address", proxy.uri, "--allow-failures")
        with driver(*arguments, cwd=project, environ=head.environ) as follower:
            wait_for("the followed log", lambda: re.search(r"\b[1-3] running", follower.text()) is not None, follower)
            with proxy.down():
                wait_for("notice of it", lambda: "connection to the head is lost" in follower.text(), follower)
                (tmp_path / "open").touch()
            text = follower.finish()
    assert follower.popen.returncode == 0, text
    assert "the head is back after" in text
    assert text.count("sweep gated: 3 trials") == 1
    assert text.count("2 trials finished") == 1


def test_what_a_wrong_token_and_a_large_folder_are_told(head: Head, tmp_path: Path) -> None:
    project = gated(tmp_path)
    wrong = run("submit", "gated.yaml", cwd=project, environ={**head.environ, "RAY_AUTH_TOKEN": "a" * 64})
    assert wrong[0] == 2, wrong[1]
    assert "its token is missing or wrong" in wrong[1]
    (project / "mlflow.db").rename(project / "images.bin")
    large = run("submit", "gated.yaml", cwd=project, environ=head.environ)
    assert large[0] == 2, large[1]
    assert ".rayignore" in large[1]
    assert "images.bin (114 MiB)" in large[1]
    unknown = run("stop", "gated.yaml", cwd=project, environ=head.environ)
    assert unknown[0] == 2, unknown[1]
    assert "was not submitted" in unknown[1]
    assert "Traceback" not in wrong[1] + large[1] + unknown[1]

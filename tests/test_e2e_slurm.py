"""cluster/slurm/sweep.sbatch on a real Slurm of two nodes: requeued, stopped, beside another job."""

import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import MARK, environment, marked, parents, record, trials, wait_for
from driving import run as run_here
from slurm import Slurm, slurm

SCRIPT = Path(__file__).resolve().parent.parent / "cluster" / "slurm" / "sweep.sbatch"
SWEEP = """\
name: {name}
job: gated:train
axes: {{x: {{scale: linear, from: 0, to: 1, points: 12}}}}
fixed: {{gate: "{gate}", seconds: {seconds}}}
phases: {{metric: value, level: 0.5}}
resources: {{workers: 4}}
"""
JOB = """\
import contextlib, pathlib, time
def may_pass(gate):
    # the gate is open, or there is a ticket, which lets one trial pass
    for ticket in pathlib.Path(gate).parent.glob(pathlib.Path(gate).name + ".*"):
        with contextlib.suppress(FileNotFoundError):
            ticket.unlink()
            return True
    return pathlib.Path(gate).exists()
def train(*, x=0.0, gate="", seconds=0.5, seed, report):
    for step in range(1, 4):
        report(step, value=x * step / 3)
        time.sleep(seconds / 3)
    while x > 0.5 and not may_pass(gate):
        time.sleep(0.1)
train.metrics = ("value",)
"""
BEHEADING = """\
#!/bin/bash
if [[ "$*" == "-m orchestrator run"* ]] && [ ! -e "{once}" ]; then
    touch "{once}"
    pkill -KILL -f "gcs_server .*/pf-$SLURM_JOB_ID-"
    sleep 2
fi
exec "{python}" "$@"
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def nodes(mark: str) -> Iterator[Slurm]:
    with slurm(environment({MARK: mark})) as running:
        yield running
    wait_for("the end of what Slurm and its jobs have started", lambda: marked(mark) == [])


def project(parent: Path, name: str, seconds: float = 0.5) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "gated.py").write_text(JOB)
    (folder / "sweep.yaml").write_text(SWEEP.format(name=name, gate=folder / "open", seconds=seconds))
    return folder


def log(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.glob("phasefront-*.log"))


def finished(folder: Path) -> int:
    return sum(run.status == "FINISHED" for run in trials(record(folder / "mlflow.db")))


def ended(nodes: Slurm, job: str, folder: Path, *, lost: str = "") -> str:
    """Wait for the job's end; its state, and the log. A node that was `lost` could not tidy up."""
    wait_for(f"job {job}", lambda: nodes.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"))
    left = [path for path in Path("/tmp").glob(f"pf-{job}-*") if not (lost and path.name.endswith(lost))]
    assert left == [], "a folder of Ray is left"
    return nodes.state(job) + log(folder)


def test_a_requeued_job_resumes_and_leaves_the_other_job_alone(nodes: Slurm, tmp_path: Path) -> None:
    folder, beside = project(tmp_path, "requeued"), project(tmp_path, "beside")
    job = nodes.submit("--nodes=2", "--cpus-per-task=2", str(SCRIPT), "sweep.yaml", cwd=folder)
    other = nodes.submit("--cpus-per-task=2", str(SCRIPT), "sweep.yaml", "--workers", "2", cwd=beside)
    for at in (folder, beside):
        wait_for("the trials below the gate", lambda at=at: finished(at) >= 4)
    nodes.requeue(job)
    wait_for("the second attempt", lambda: log(folder).count("starting Ray on 2 nodes") == 2)
    assert "Traceback" not in log(folder)
    assert "received at time" not in log(folder)
    for at in (folder, beside):
        (at / "open").touch()
    assert ended(nodes, job, folder).startswith("COMPLETED"), log(folder)
    assert ended(nodes, other, beside).startswith("COMPLETED"), log(beside)
    assert log(beside).count("starting Ray on 1 nodes") == 1, "the other job was disturbed"
    for at in (folder, beside):
        runs = record(at / "mlflow.db")
        assert [run.status for run in parents(runs)][-1] == "FINISHED"
        done = [run for run in trials(runs) if run.status == "FINISHED"]
        assert len(done) == 12
        for run in done:
            assert [(name, step) for name, step, *_ in run.rows] == [("value", step) for step in (1, 2, 3)]
            x = float(run.params["x"])
            assert [value for _, _, value, _ in run.rows] == pytest.approx([x / 3, x * 2 / 3, x])


def curves(folder: Path) -> dict[str, tuple[str, str, tuple[tuple[str, int, float, int], ...]]]:
    """x -> phase, observations and rows of the finished trials, each of which is there once."""
    found = {}
    for run in trials(record(folder / "mlflow.db")):
        if run.status == "FINISHED":
            assert run.params["x"] not in found, "a trial has finished twice"
            found[run.params["x"]] = (run.tags["phasefront.phase"], str(run.observed), run.rows)
    return found


@pytest.mark.long
def test_a_job_that_meets_everything_has_the_record_of_the_undisturbed_sweep(nodes: Slurm, tmp_path: Path) -> None:
    """Requeued twice, near its time limit once, and then one of its nodes is lost; another job beside it goes on.

    Tickets for the gate let each attempt finish a trial, and no more.
    """
    folder, beside = project(tmp_path, "troubled"), project(tmp_path, "beside-troubled")
    where = ("--nodes=2", "--nodelist=n1,n2", "--cpus-per-task=2", "--time=60")
    job = nodes.submit(*where, str(SCRIPT), "sweep.yaml", cwd=folder)
    other = nodes.submit("--nodelist=n1", "--cpus-per-task=2", str(SCRIPT), "sweep.yaml", cwd=beside)
    wait_for("the trials below the gate", lambda: finished(folder) >= 4 and finished(beside) >= 4)

    def attempt(number: int) -> None:
        wait_for(f"attempt {number}", lambda: log(folder).count("starting Ray on 2 nodes") == number)
        before = finished(folder)
        (folder / f"open.{number}").touch()
        wait_for(f"a trial of attempt {number}", lambda: finished(folder) > before)

    for number in (2, 3):
        nodes.requeue(job)
        attempt(number)
    nodes.limit(job, minutes=2)  # at most two are left, so that --signal=B:USR1@120 is due
    wait_for("the requeue", lambda: "the time limit is near" in log(folder) and "requeued" in log(folder))
    wait_for("the queue", lambda: nodes.state(job) == "PENDING")
    nodes.limit(job, minutes=60)
    nodes.start_now(job)
    attempt(4)
    # A node that has not joined yet cannot be lost: three trials are left, and two workers are on the first node.
    both = re.compile("of 4 workers ready|, 3 running")
    wait_for("workers on the second node", lambda: both.search(log(folder).rpartition("starting Ray")[2]) is not None)
    nodes.stop_node("n2")
    try:
        # Whether trials ran there when it was lost depends on which workers were ready first.
        wait_for("the loss", lambda: bool(re.search(r"node \S+ (was lost|has left); ", log(folder))))
        (folder / "open").touch()
        assert ended(nodes, job, folder, lost="n2").startswith("COMPLETED"), log(folder)
        assert log(folder).count("starting Ray") == 4
        wait_for("the end of all that the job has started", lambda: nodes.processes(job) == [])
        assert nodes.state(other) == "RUNNING" and nodes.processes(other), "the other job runs on"
        (beside / "open").touch()
        assert ended(nodes, other, beside).startswith("COMPLETED"), log(beside)
        assert log(beside).count("starting Ray") == 1, "the other job was disturbed"
        wait_for("the end of all that the other job has started", lambda: nodes.processes(other) == [])
    finally:
        nodes.start_node("n2")
        wait_for("the node", lambda: nodes.command("sinfo", "--noheader", "--format=%T %D") == "idle 2")
    undisturbed = project(tmp_path, "undisturbed", seconds=0.0)
    (undisturbed / "open").touch()
    code, text = run_here("run", "sweep.yaml", "--inline", "--no-map", cwd=undisturbed)
    assert code == 0, text
    assert curves(folder) == curves(beside) == curves(undisturbed) and len(curves(folder)) == 12


@pytest.mark.long
def test_a_job_near_its_time_limit_is_requeued(nodes: Slurm, tmp_path: Path) -> None:
    folder = project(tmp_path, "limited")
    job = nodes.submit("--cpus-per-task=2", str(SCRIPT), "sweep.yaml", cwd=folder)
    wait_for("the trials below the gate", lambda: finished(folder) >= 4)
    nodes.command("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@120 sends
    wait_for("the requeue", lambda: "the time limit is near" in log(folder) and "requeued" in log(folder))
    nodes.start_now(job)
    (folder / "open").touch()
    assert ended(nodes, job, folder).startswith("COMPLETED"), log(folder)
    assert finished(folder) == 12


def test_a_cancelled_job_is_not_requeued_and_the_same_command_resumes(nodes: Slurm, tmp_path: Path) -> None:
    folder = project(tmp_path, "cancelled")
    job = nodes.submit("--cpus-per-task=2", str(SCRIPT), "sweep.yaml", cwd=folder)
    wait_for("the trials below the gate", lambda: finished(folder) >= 4)
    nodes.command("scancel", job)
    assert ended(nodes, job, folder).startswith("CANCELLED")
    again = rf"To resume: submit the same job again, as with sbatch \.\.\. {re.escape(str(SCRIPT))} sweep\.yaml$"
    assert re.search(again, log(folder), re.M), log(folder)
    assert [run.status for run in parents(record(folder / "mlflow.db"))] == ["KILLED"]
    (folder / "open").touch()
    again = nodes.submit(str(SCRIPT), "sweep.yaml", cwd=folder)
    assert ended(nodes, again, folder).startswith("COMPLETED"), log(folder)
    assert finished(folder) == 12


@pytest.mark.long
def test_a_lost_node_is_done_without(nodes: Slurm, tmp_path: Path) -> None:
    folder = project(tmp_path, "lost")
    job = nodes.submit("--nodes=2", "--cpus-per-task=2", str(SCRIPT), "sweep.yaml", cwd=folder)
    wait_for("trials on both nodes", lambda: finished(folder) >= 4)
    nodes.stop_node("n2")
    (folder / "open").touch()
    try:
        assert ended(nodes, job, folder, lost="n2").startswith("COMPLETED"), log(folder)
        assert finished(folder) == 12
        assert log(folder).count("starting Ray") == 1
    finally:
        nodes.start_node("n2")
        wait_for("the node", lambda: nodes.command("sinfo", "--noheader", "--format=%T %D") == "idle 2")


@pytest.mark.long
def test_a_lost_first_node_is_a_requeue(nodes: Slurm, tmp_path: Path) -> None:
    folder = project(tmp_path, "first")
    job = nodes.submit("--nodes=2", "--cpus-per-task=2", str(SCRIPT), "sweep.yaml", cwd=folder)
    wait_for("trials on both nodes", lambda: finished(folder) >= 4)
    nodes.stop_node("n1")
    (folder / "open").touch()
    try:
        wait_for("the requeue", lambda: nodes.state(job) == "PENDING")
    finally:
        nodes.start_node("n1")
    nodes.start_now(job)
    assert ended(nodes, job, folder, lost="n1").startswith("COMPLETED"), log(folder)
    assert finished(folder) == 12
    assert log(folder).count("starting Ray") == 2 and log(folder).count("the first node, n1, is lost") == 1


@pytest.mark.long
def test_a_head_that_ends_before_the_driver_reaches_it_is_not_a_mistake(nodes: Slurm, tmp_path: Path) -> None:
    folder = project(tmp_path, "beheaded")
    (folder / "open").touch()
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(BEHEADING.format(once=folder / "once", python=sys.executable))
    python.chmod(0o755)
    path = f"{python.parent}:{nodes.environ['PATH']}"
    job = nodes.submit("--cpus-per-task=2", f"--export=ALL,PATH={path}", str(SCRIPT), "sweep.yaml", cwd=folder)
    wait_for("the requeue", lambda: "the head of Ray has ended" in log(folder) and "requeued" in log(folder))
    nodes.start_now(job)
    assert ended(nodes, job, folder).startswith("COMPLETED"), log(folder)
    assert finished(folder) == 12
    assert log(folder).count("starting Ray") == 2


def test_a_mistake_is_told_and_not_repeated(nodes: Slurm, tmp_path: Path) -> None:
    folder = project(tmp_path, "mistaken")
    job = nodes.submit(str(SCRIPT), "sweeep.yaml", cwd=folder)
    assert ended(nodes, job, folder).startswith("FAILED")
    assert nodes.exit_code(job) == 2
    assert "there is no such file" in log(folder)
    shutil.rmtree(folder)

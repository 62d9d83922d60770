"""The files in cluster/ agree with each other and with this project on versions, commands and authentication."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import needs
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
SCRIPTS = sorted((CLUSTER / "local").glob("*.sh"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}


def manifest(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CLUSTER / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def cluster_specs() -> dict[str, dict[str, Any]]:
    return {
        "RayCluster": manifest("kuberay/raycluster.yaml")["spec"],
        "RayJob": manifest("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"],
    }


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def image_facts() -> tuple[str, str, str]:
    """Tag that the image is built with, Ray of its base, Ray that pip pins."""
    text = (CLUSTER / "Dockerfile").read_text()
    built = re.search(r"docker build .* -t (\S+) ", text)
    base = re.search(r"^ARG RAY_IMAGE=rayproject/ray:([\d.]+)-py(\d)(\d+)-cpu$", text, re.M)
    pinned = re.search(r"ray\[default\]==([\d.]+)", text)
    assert built
    assert base
    assert pinned
    assert f"{base[2]}.{base[3]}" in PROJECT["requires-python"]
    return built[1], base[1], pinned[1]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_every_pod_runs_the_image_of_the_dockerfile_with_the_one_ray(kind: str) -> None:
    image, base, pinned = image_facts()
    spec = cluster_specs()[kind]
    assert {container["image"] for container in containers(spec)} == {image, f"{image}-gpu"}
    assert image == f"phasefront:{PROJECT['version']}"
    assert spec["rayVersion"] == base == pinned
    assert Version(base) in REQUIRED["ray"]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_a_cluster_lets_in_only_who_has_the_token(kind: str) -> None:
    assert cluster_specs()[kind]["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize(("file", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_manifests_are_of_the_stable_interface(file: str, kind: str) -> None:
    loaded = manifest(f"kuberay/{file}")
    assert (loaded["apiVersion"], loaded["kind"]) == ("ray.io/v1", kind)


def test_the_head_drives_and_the_workers_train() -> None:
    for spec in cluster_specs().values():
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert all("num-cpus" not in group["rayStartParams"] for group in spec["workerGroupSpecs"])


def test_the_rayjob_runs_the_documented_command_on_a_sweep_that_exists() -> None:
    entrypoint = manifest("kuberay/rayjob.yaml")["spec"]["entrypoint"]
    words = shlex.split(entrypoint)
    assert words[:4] == ["python", "-m", "orchestrator", "run"]
    workdir = re.search(r"^WORKDIR (\S+)$", (CLUSTER / "Dockerfile").read_text(), re.M)
    assert workdir
    sweep = Path(words[4]).relative_to(workdir[1])
    assert (ROOT / sweep).is_file()
    assert "tracking.uri" not in entrypoint, "the record's address, with its password, stays in the environment"
    assert "uri:" not in (ROOT / sweep).read_text()


def test_the_rayjob_retries_on_a_fresh_cluster_and_leaves_none_behind() -> None:
    spec = manifest("kuberay/rayjob.yaml")["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True


def test_compose_keeps_the_record_in_named_volumes_and_waits_for_health() -> None:
    compose = manifest("compose/docker-compose.yaml")
    services = compose["services"]
    mounted = {volume.partition(":")[0] for service in services.values() for volume in service["volumes"]}
    assert mounted == set(compose["volumes"])
    assert all("healthcheck" in service for service in services.values())
    assert services["database"]["image"] == "postgres:17"
    assert services["mlflow"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg2://")


def test_compose_opens_no_port_to_the_network_unasked_and_holds_no_password() -> None:
    text = (CLUSTER / "compose" / "docker-compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    ports = [port for service in services.values() for port in service["ports"]]
    assert ports
    assert all(re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1\}:\d+:\d+", port) for port in ports)
    assert services["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    for name, value in services["mlflow"]["environment"].items():
        assert ("PASSWORD" in name or "SECRET" in name) == value.startswith("${"), name


def test_mlflow_does_not_run_as_root() -> None:
    lines = (CLUSTER / "compose" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER mlflow"]


def test_the_mlflow_image_holds_a_version_that_the_project_supports() -> None:
    pinned = re.search(r'"mlflow\[auth\]==([\d.]+)"', (CLUSTER / "compose" / "Dockerfile").read_text())
    assert pinned
    assert Version(pinned[1]) in REQUIRED["mlflow"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_files_parse(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["head.sh", "worker.sh", "stop.sh"])
def test_scripts_can_be_run_as_they_are(name: str) -> None:
    script = CLUSTER / "local" / name
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_scripts_stop_only_processes_that_they_started() -> None:
    for script in SCRIPTS:
        code = [line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not re.search(r"ray stop|pkill|killall", "\n".join(code)), script.name


def run_script(name: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PHASEFRONT_RAY_DIR": str(directory)}
    return subprocess.run([CLUSTER / "local" / name], capture_output=True, text=True, env=environ)


FAKE_RAY = """\
#!{python}
import http.server, sys, time

class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/local_raylet_healthz" else 404)
        self.end_headers()

if sys.argv[1] == "start":
    print("block forever", flush=True)
    given = dict(option.split("=") for option in sys.argv if "=" in option)
    if {agent}:
        http.server.HTTPServer(("127.0.0.1", int(given["--dashboard-agent-listen-port"])), Agent).serve_forever()
    time.sleep(600)
"""


@pytest.mark.parametrize("agent", [True, False])
def test_a_head_runs_when_its_agent_answers_at_a_port_that_no_other_program_is_given(
    agent: bool, tmp_path: Path
) -> None:
    needs.program("ps", "procps")
    scripts = shutil.copytree(CLUSTER / "local", tmp_path / "cluster" / "local")
    ray = tmp_path / ".venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.write_text(FAKE_RAY.format(python=sys.executable, agent=agent))
    ray.chmod(0o755)
    environ = {**os.environ, "PHASEFRONT_RAY_DIR": str(tmp_path / "ray"), "AGENT_WAIT_S": "60" if agent else "0.1"}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    done = subprocess.run([scripts / "head.sh"], capture_output=True, text=True, env=environ)
    try:
        assert done.returncode == (0 if agent else 1), done.stderr
        assert ("Ray head is running" in done.stdout) is agent
        port = re.search(r"does not answer at port (\d+)", done.stderr)
        assert agent or (port and 20_000 <= int(port[1]) < 32_768 and "head stopped" in done.stderr)
    finally:
        stopped = subprocess.run([scripts / "stop.sh"], capture_output=True, text=True, env=environ)
    assert ("head stopped" in stopped.stdout) is agent


def test_a_worker_without_an_address_reports_what_is_missing(tmp_path: Path) -> None:
    done = run_script("worker.sh", tmp_path)
    assert done.returncode == 2
    assert "HEAD:PORT" in done.stderr


def test_stopping_when_nothing_runs_is_not_an_error(tmp_path: Path) -> None:
    done = run_script("stop.sh", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"nothing was started from {tmp_path}; PHASEFRONT_RAY_DIR names another folder\n"

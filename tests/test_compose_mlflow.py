"""MLflow as the Compose file starts it, on a real PostgreSQL: reached by another name, by its users alone."""

import contextlib
import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from driving import environment
from servers import free_port, postgres_server, running_mlflow

COMPOSE = Path(__file__).resolve().parent.parent / "cluster" / "compose"
OTHER_NAME = "127.0.0.2"
"""An address of this machine that MLflow knows as little as any name, until it is told."""
PASSWORD = "correct horse battery"
VARIABLES = {
    "POSTGRES_PASSWORD": "of the database",
    "MLFLOW_ADMIN_PASSWORD": PASSWORD,
    "MLFLOW_SECRET_KEY": "a long random text",
    "MLFLOW_HOST": OTHER_NAME,
}
JOB = "def train(params, seed, device, report):\n    report(1, loss=params['lr'])\n"
RUN = ("run", "sweep.yaml", "--inline", "--no-map")
SWEEP = "name: small\njob: mine:train\naxes: {lr: [1.0, 2.0]}\n"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def filled(text: str) -> str:
    """Compose's `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""
    return re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda match: VARIABLES.get(match[1], match[2]), text)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The command, the settings and the users of the service `mlflow`, with this machine's paths and ports."""
    service = yaml.safe_load((COMPOSE / "docker-compose.yaml").read_text())["services"]["mlflow"]
    folder, port = tmp_path_factory.mktemp("compose"), free_port()
    with postgres_server() as database:
        here = database.removeprefix("postgresql://")
        there = "mlflow@database:5432/mlflow"
        settings = {name: filled(value).replace(there, here) for name, value in service["environment"].items()}
        users = folder / "basic_auth.ini"
        assert (COMPOSE / "basic_auth.ini").read_text().count(there) == 1
        users.write_text((COMPOSE / "basic_auth.ini").read_text().replace(there, here))
        settings["MLFLOW_AUTH_CONFIG_PATH"] = str(users)
        paths = {
            "--port=5000": f"--port={port}",
            "--artifacts-destination=/artifacts": f"--artifacts-destination={folder}",
        }
        command = [paths.get(word, filled(word)) for word in service["command"]]
        assert set(paths.values()) < set(command)
        python = [sys.executable, "-W", "ignore", "-m"]
        with running_mlflow([*python, *command], port=port, folder=folder, environ=environment(settings)):
            yield port


def phasefront(*arguments: str, folder: Path, uri: str, password: str = PASSWORD) -> tuple[int, str]:
    (folder / "mine.py").write_text(JOB)
    (folder / "sweep.yaml").write_text(SWEEP)
    account = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    command = [sys.executable, "-m", "orchestrator", *arguments]
    environ = environment({**account, "MLFLOW_TRACKING_URI": uri})
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


def test_a_sweep_is_recorded_under_the_name_that_mlflow_was_given(port: int, tmp_path: Path) -> None:
    code, text = phasefront(*RUN, folder=tmp_path, uri=f"http://{OTHER_NAME}:{port}")
    assert code == 0, text
    assert "2 trials finished" in text


def test_another_name_is_refused_with_the_option_that_allows_it(port: int, tmp_path: Path) -> None:
    code, text = phasefront("status", "sweep.yaml", folder=tmp_path, uri=f"http://127.0.0.3:{port}")
    assert code == 2, text
    assert "denied access (403): Invalid Host header" in text
    assert "mlflow server --allowed-hosts '127.0.0.3,127.0.0.3:*'" in text
    assert "PASSWORD" not in text


def test_a_wrong_password_is_told_from_a_wrong_name(port: int, tmp_path: Path) -> None:
    uri = f"http://{OTHER_NAME}:{port}"
    code, text = phasefront("status", "sweep.yaml", folder=tmp_path, uri=uri, password="a wrong password")
    assert code == 2, text
    assert "denied access (401)" in text
    assert "refuses this user and password: correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in text
    assert "a wrong password" not in text
    stranger = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(stranger):
        stranger.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1")
        assert stranger.getresponse().status == 401

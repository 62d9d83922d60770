"""What `phasefront submit` refuses before anything is sent."""

import http.server
import json
import threading
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.dispatch.job_server import JobServer
from orchestrator.errors import Outage

SWEEP = """\
name: refused
job: grokking
axes: {weight_decay: {values: [0.0, 1.0]}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that what a command sets is undone
        monkeypatch.delenv(name)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert "next:" in text
    return text


def test_a_mistake_in_the_file_is_told_before_anything_is_sent(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sweep.yaml").write_text(SWEEP.replace("weight_decay", "weight_decoy"))
    assert "sweep.yaml:3" in told(capsys, "submit", "sweep.yaml", "--address", "http://127.0.0.1:9")


@pytest.mark.parametrize("command", ["submit", "logs", "stop"])
def test_a_head_that_does_not_answer(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, command, "sweep.yaml", "--address", "http://127.0.0.1:9")
    assert "no Ray head answers at http://127.0.0.1:9" in text


class Agentless(http.server.BaseHTTPRequestHandler):
    """A head without an agent, as Ray's answers."""

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"version": "4", "ray_version": "2.55.0", "ray_commit": "x", "session_name": "x"}))

    def do_POST(self) -> None:
        self._answer(500, "No available agent to submit job, please try again later.")

    do_PUT = do_GET

    def _answer(self, status: int, text: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        del format, arguments


def test_a_head_whose_agent_does_not_answer_is_to_be_restarted(folder: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agentless) as head:
        threading.Thread(target=head.serve_forever, daemon=True).start()
        try:
            server = JobServer(f"http://127.0.0.1:{head.server_port}")
            with pytest.raises(Outage, match="cannot start jobs") as caught:
                server.submit("x", prefix="x", number=1, folder=folder, excludes=(), variables={}, metadata={})
        finally:
            head.shutdown()
    assert "restart the head" in caught.value.next_step


def test_a_file_outside_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert f"cd {folder}" in told(capsys, "submit", "../sweep.yaml")


def test_a_password_is_not_sent_where_ray_would_show_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "postgresql://me:correct-horse@db/mlflow"
    text = told(capsys, "submit", "sweep.yaml", "--set", f"tracking.uri={address}")
    assert "--set tracking.uri" in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    text += told(capsys, "submit", "sweep.yaml")
    assert "MLFLOW_TRACKING_URI" in text
    assert "correct-horse" not in text

"""What `phasefront submit` refuses before anything is sent."""

from pathlib import Path

import pytest

from orchestrator.cli import main

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

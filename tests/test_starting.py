"""First steps: a folder to begin with, and the published sweeps, in a checkout and from a wheel alone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.commands.starting import published
from orchestrator.sweep.schema import main_text
from tests.driving import environment

ROOT = Path(__file__).resolve().parent.parent


def test_a_new_folder_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "first"]) == 0
    made = {path.name: path.read_text() for path in Path("first").iterdir()}
    assert set(made) == {"first.yaml", "train.py", ".rayignore", "sweep.schema.json"}
    assert made["first.yaml"].startswith("# yaml-language-server: $schema=sweep.schema.json\n")
    assert made["sweep.schema.json"] == main_text()
    assert "*.db" in made[".rayignore"]
    step = capsys.readouterr().out.splitlines()[-1]
    assert step == "next:  cd first && phasefront check first.yaml --rehearse && phasefront run first.yaml"

    def phasefront(*arguments: str) -> str:
        command = [sys.executable, "-m", "orchestrator", *arguments]
        environ = environment({"XDG_CACHE_HOME": str(tmp_path / "cache")})
        done = subprocess.run(command, cwd="first", env=environ, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    few = ("--set", "axes.learning_rate.points=5", "--set", "axes.momentum.points=3")
    assert "15 trials" in phasefront("check", "first.yaml", *few, "--set", "replicates=1")
    phasefront("run", "first.yaml", "--inline", "--quiet", *few)
    assert "below | at or above" in phasefront("read", "first.yaml", "--at", "momentum=0.45", *few)
    assert Path("first/phasefront-out/first/phase_diagram.png").exists()

    before = {path: path.read_bytes() for path in Path("first").rglob("*") if path.is_file()}
    assert main(["new", "first"]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("first").rglob("*") if path.is_file()} == before


def test_examples_are_listed_printed_and_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["examples"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[:2]] == ["demo_double_descent", "demo_grokking"]
    assert len(listed) == len(list((ROOT / "configs").rglob("*.yaml"))) + 2 and all(len(line) < 160 for line in listed)
    assert main(["examples", "isotropic_small"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["name"] == "hastie-isotropic-small"
    assert printed.startswith("# yaml-language-server: $schema=sweep.schema.json\n")
    assert main(["examples", "hastie2019/isotropic_small", "--copy"]) == 0
    assert Path("isotropic_small.yaml").read_text() == printed and Path("sweep.schema.json").exists()
    assert main(["examples", "hastie2019/isotropic_small", "--copy"]) == 2
    capsys.readouterr()
    assert main(["check", "isotropic_small.yaml"]) == 0
    assert set(published()) >= {"demo_grokking", "gromov2023/p31_grid"}


@pytest.mark.slow
def test_a_wheel_has_the_examples_and_works_without_the_checkout(tmp_path: Path) -> None:
    """The wheel is unpacked in a folder of its own, and run with the libraries that are installed here."""
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in (n for n in files if n.split("/")[0] in ("orchestrator", "jobs", "configs") or "/" not in n):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    subprocess.run(pip, cwd=source, check=True, timeout=200)
    (wheel,) = tmp_path.glob("phasefront-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "work").mkdir()
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def phasefront(*arguments: str) -> str:
        command = [sys.executable, "-m", "orchestrator", *arguments]
        done = subprocess.run(command, cwd=tmp_path / "work", env=environ, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import orchestrator; print(orchestrator.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "work", env=environ, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(tmp_path / "site"))
    assert "demo_grokking" in phasefront("examples")
    phasefront("examples", "demo_grokking", "--copy")
    assert "512 trials" in phasefront("check", "demo_grokking.yaml")
    phasefront("new", "mine")

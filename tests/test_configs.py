"""The sweep files of the project are valid, and the small ones are small."""

from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.sweep.sweep import Sweep

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
PAPERS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and any(path.glob("*.yaml")))


@pytest.mark.parametrize("name", FILES)
def test_a_sweep_file_of_the_project_is_valid_and_says_what_it_shows(name: str) -> None:
    sweep = Sweep.load(FOLDER / name, environ={})
    sweep.stop_if_refused()
    assert sweep.name
    text = (FOLDER / name).read_text()
    depth = "../" * name.count("/")
    assert text.startswith(f"# yaml-language-server: $schema={depth}sweep.schema.json\n#"), "editors find the schema"


def test_sweep_files_have_names_of_their_own() -> None:
    names = [Sweep.load(FOLDER / name, environ={}).name for name in FILES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("name", FILES)
def test_the_table_of_papers_lists_every_sweep_file(name: str) -> None:
    if "/" in name:
        assert f"]({name})" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "python"])
def test_a_cifar_sweep_needs_only_its_archive(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.image_files import write_cifar

    archive = write_cifar(tmp_path / "small.tar.gz", kind=kind, train=40, test=200)
    monkeypatch.chdir(tmp_path)
    file = str(FOLDER / "nakkiran2019" / "cnn_small.yaml")
    changes = [f"fixed.archive={archive}", "axes.width=[1, 3]", "fixed.steps=12", "output=out"]
    given = [part for change in changes for part in ("--set", change)]
    assert main(["run", file, "--inline", "--quiet", *given]) == 0
    assert (tmp_path / "out" / "phase_diagram.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "4 trials" in said or "4 done" in said, said

"""Shell completion: commands, options, sweep files and published sweeps."""

import shutil
import subprocess
from pathlib import Path

import pytest
from driving import environment

from orchestrator.cli import main


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "phasefront.bash"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


def completed(script: Path, folder: Path, *words: str) -> set[str]:
    """What bash proposes for the last word."""
    for name in ("a.yaml", "b.yml", "c.txt", "inner/d.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    code = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        "function=$(complete -p phasefront | sed -E 's/.*-F ([^ ]+) .*/\\1/')\n"
        '"$function" phasefront "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "-c", code, "bash", str(script), "phasefront", *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return {word.strip() for word in done.stdout.splitlines()}


@pytest.mark.parametrize(
    ("words", "proposed", "not_proposed"),
    [
        (["re"], {"read", "replay", "report"}, {"run"}),
        (["run", ""], {"a.yaml", "b.yml", "inner"}, {"c.txt"}),
        (["run", "inner/"], {"inner/d.yaml"}, {"a.yaml"}),
        (["run", "--all"], {"--allow-failures"}, {"--quiet"}),
        (["compare", ""], {"a.yaml", "c.txt", "inner"}, set()),
        (["map", "a.yaml", "--width", ""], {"single", "double"}, {"a.yaml"}),
        (["examples", "demo"], {"demo_grokking", "demo_double_descent"}, {"a.yaml"}),
        (["completion", ""], {"bash", "zsh", "fish"}, {"a.yaml"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_bash_completes(
    words: list[str], proposed: set[str], not_proposed: set[str], script: Path, tmp_path: Path
) -> None:
    found = completed(script, tmp_path, *words)
    assert proposed <= found
    assert not not_proposed & found


@pytest.mark.parametrize(("shell", "files"), [("zsh", "_files -g '(*.yaml|*.yml)'"), ("fish", "*.yaml")])
def test_other_shells_get_a_script_that_they_can_read(
    shell: str, files: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert files in text and "allow-failures" in text and "demo_grokking" in text
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "ksh"])
    assert ended.value.code == 2
    assert "'ksh'" in capsys.readouterr().err

"""The tutorial is true: its files and commands, as they stand on the page, print what the page says they print.

`python tests/test_tutorial.py FOLDER` runs them in a folder and shows what they print, to write the page by.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from driving import environment

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_VOLATILE = (
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"(\d+ h )?(\d+ min )?\b\d+(\.\d+)? (s|min|h)\b( \d\d (s|min))?", "TIME"),
    (r"\d[\d.,]* (kB|MB|GB)\b", "MEMORY"),
    (r"-?\d+\.\d+(e-?\d+)?|\b\d+(?= *,? *\d*\.\d*\])|(?<=\[)\d+|\b\d+(?=\])", "NUMBER"),
    (r"(/[\w.-]+){2,}", "PATH"),
    (r" +", " "),
)
"""What differs from machine to machine, by its last digits or in width."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of the page."""

    kind: str
    """sh, text, yaml, python."""
    title: str
    """The name of the file that it is, or ""."""
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(kind=kind, title=title, text=text) for kind, title, text in _BLOCK.findall(page)]


def plain(line: str) -> str:
    """A line without what is volatile; of a line of phases, without counts."""
    for pattern, name in _VOLATILE:
        line = re.sub(pattern, name, line)
    return re.sub(r"\d+", "COUNT", line) if line.startswith("phases") else line.strip()


def missing(said: str, printed: str) -> str | None:
    """The first line of the page that was not printed; other lines may be between only where the page has `...`."""
    lines = [plain(line) for line in printed.splitlines()]
    at, anywhere = 0, False
    for line in said.splitlines():
        if line.strip() == "...":
            anywhere = True
            continue
        wanted = plain(line)
        if anywhere:
            while at < len(lines) and lines[at] != wanted:
                at += 1
        if at >= len(lines) or lines[at] != wanted:
            return line
        at, anywhere = at + 1, False
    return None if anywhere or at == len(lines) else "the end"


def run_page(folder: Path) -> Iterator[tuple[str, str | None, str]]:
    """Write the files and run the commands; yields commands, what the page says, and what they have printed."""
    found, cwd = blocks(PAGE.read_text(encoding="utf-8")), folder
    place = folder.parent / "cwd"
    for k, block in enumerate(found):
        if block.title:
            (folder / block.title).write_text(block.text)
        if block.kind != "sh":
            continue
        # `pwd` at the end: a later block is run where this one has gone
        command = ["bash", "-euc", f'{block.text}\npwd > "{place}"']
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        environ = environment({"XDG_CACHE_HOME": str(folder.parent / "cache"), "PATH": path})
        where = {"cwd": cwd, "env": environ, "stdin": subprocess.DEVNULL}
        done = subprocess.run(
            command, **where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
        )  # type: ignore[call-overload]
        assert done.returncode == 0, f"{block.text}\n{done.stdout}"
        cwd = Path(place.read_text().strip())
        after = found[k + 1] if k + 1 < len(found) and found[k + 1].kind == "text" else None
        yield block.text, after and after.text, done.stdout


def test_what_is_volatile_is_not_compared_and_everything_else_is() -> None:
    said = "trials    84: 0 finished\n...\n84 trials finished in 31 s (4.2 s of it)\nmean: 2.783  [2.156, 4]\n"
    printed = "trials  84: 0 finished\nother\n84 trials finished in 1 min 02 s (9 s of it)\nmean: 2.8 [2, 4.25]\n"
    assert missing(said, printed) is None
    assert missing(said, printed.replace("84: 0", "85: 0")) == "trials    84: 0 finished"
    assert missing(said, printed.replace("trials finished in", "finished in")) is not None
    assert missing("a\n", "a\nb\n") == "the end" and missing("a\n...\n", "a\nb\n") is None
    assert missing("a\nb\n", "a\n") == "b"


def test_the_page_has_files_commands_and_what_they_print() -> None:
    found = blocks(PAGE.read_text(encoding="utf-8"))
    assert [block.title for block in found if block.title] == ["first_map.yaml"]
    kinds = [block.kind for block in found]
    assert kinds.count("sh") >= 10 and kinds.count("text") >= 9


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tutorials_commands_print_what_the_page_says(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for commands, said, printed in run_page(folder):
        line = missing(said, printed) if said is not None else None
        assert line is None, f"{commands}\nprinted\n{printed}\nbut the page says: {line}"
    assert (folder / "map.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "phasefront-out" / "first-map" / "report.html").is_file()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    for ran, _, output in run_page(target):
        print(f"$ {ran}{output}", flush=True)

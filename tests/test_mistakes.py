"""A corpus of mistakes: each is answered with what is wrong, where, and what to do next, word for word.

The files in `mistakes/` list them: a sweep file (`sweep`), a module (`mine`), environment variables (`env`), commands
that come before (`given`), whether there is a record (`record`, that of an earlier version), the command, its exit
code and what it says. `head` is a jobs API of a cluster, with its answers; HEAD stands for its address. `files` are
further files, `beside` those in the folder above, `sql` a change
of the record. Without `sweep` or `mine`, the files below are used. All run in this process, without a cluster. After
a change of words, `UPDATE_MISTAKES=1 pytest tests/test_mistakes.py` writes what is said now; read the difference.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs_api import jobs_api
from recorded_sweeps import recorded_folder

from jobs.catalogue import load_job
from orchestrator.cli import main
from orchestrator.dispatch.source import source_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, when it is imported here

FOLDER = Path(__file__).parent / "mistakes"
UPDATE = "UPDATE_MISTAKES" in os.environ
FEWEST = 60
MINE = """\
def train(params, seed, device, report):
    for step in range(1, params["steps"] + 1):
        report(step, loss=params["learning_rate"] / step, accuracy=1 - params["learning_rate"] / step)
"""
SWEEP = """\
job: mine:train
axes: {learning_rate: [0.1, 0.2]}
fixed: {steps: 10}
tracking: {uri: "memory:"}
"""


def corpus() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{file.stem}: {case['mistake']}", case)
        for file in sorted(FOLDER.glob("*.yaml"))
        for case in yaml.safe_load(file.read_text())
    ]


CASES = dict(corpus())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, in which modules are loaded anew."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that what a command sets is undone
        monkeypatch.delenv(name)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    before = set(sys.modules)
    yield work
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    load_job.cache_clear()
    source_of.cache_clear()


def plain(text: str, folder: Path) -> str:
    """The text without what differs between runs and machines, and without the rest of long lists of choices."""
    text = text.replace(f"{folder}/", "").replace(str(folder), "FOLDER").replace(str(folder.parent), "ABOVE")
    text = re.sub(r"\b[0-9a-f]{32}\b", "RUN", text)
    text = re.sub(r"on \S+ \(process \d+, since [\d-]+ [\d:]+ UTC\)", "on HOST (process 1, since THEN)", text)
    text = re.sub(r"process \d+ on \S+?\)", "process 1 on HOST)", text)
    text = re.sub(r"^\d\d:\d\d:\d\d ", "", text, flags=re.M)
    text = re.sub(r"^(  valid: (?:[^\s,]+, ){3})(?:[^\s,]+, ){2,}[^\s,]+$", r"\1...", text, flags=re.M)
    text = re.sub(r"\(choose from 'check', .*?\)", "(choose from COMMANDS)", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def answered(case: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and what is printed: errors, or all where the command succeeds."""
    (folder / "mine.py").write_text(case.get("mine", MINE))
    (folder / "sweep.yaml").write_text(case.get("sweep", SWEEP))
    for name, text in case.get("files", {}).items():
        (folder / name).write_text(text)
    for name, text in case.get("beside", {}).items():
        (folder.parent / name).write_text(text)
    if case.get("record"):
        recorded_folder(folder)
    if "sql" in case:
        with contextlib.closing(sqlite3.connect("record.db")) as connection, connection:
            connection.execute(case["sql"])
    for name, value in case.get("env", {}).items():
        os.environ[name] = value
    for command in case.get("given", ()):
        main(shlex.split(command))
    capsys.readouterr()
    with jobs_api(case["head"]) if "head" in case else contextlib.nullcontext("HEAD") as head:
        try:
            code = main(shlex.split(case["command"].replace("HEAD", head)))
        except SystemExit as end:  # of argparse
            code = int(end.code or 0)
    printed = capsys.readouterr()
    said = (printed.err if code == 2 else printed.out + printed.err).replace(head, "HEAD")
    return code, plain(re.sub(r"\Ausage: .*?\n(?=phasefront)", "", said, flags=re.S), folder)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_answered_as_it_was(
    name: str, desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    for variable in case.get("env", {}):
        monkeypatch.setenv(variable, "")  # restored at the end
    code, said = answered(case, desk, capsys)
    assert "Traceback" not in said or case.get("traceback"), said
    if UPDATE:
        case.update(exit=code, says=said if code == 2 or "says" not in case else case["says"])
        return
    assert code == case["exit"], said
    expected = case["says"].strip()
    if code == 2:
        assert said == expected
    else:
        assert expected in said


def test_the_corpus_is_whole() -> None:
    assert len(CASES) == len(corpus()) >= FEWEST
    kinds = {"cluster", "command", "environment", "job", "record", "sweep_file"}
    assert {file.stem for file in FOLDER.glob("*.yaml")} == kinds
    for name, case in CASES.items():
        if case["exit"] == 2 and not case.get("bare"):
            assert re.search(r"^  next:  |did you mean|valid|must be|required", case["says"], re.M), name


UNCLEAR = ("where both are sure", "comes to no setting twice", "no empty ball of more", "pack alone: as asked")
"""Phrases of earlier versions that users had to read twice."""


def test_unclear_phrases_are_gone() -> None:
    sources = (Path(__file__).parent.parent / "orchestrator").rglob("*.py")
    said = {path.name: path.read_text() for path in sources}
    assert [(name, phrase) for name, text in said.items() for phrase in UNCLEAR if phrase in text] == []


def test_what_is_said_now_is_written() -> None:
    """The last test of this module: see the top."""
    if not UPDATE:
        return

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    for file in sorted(FOLDER.glob("*.yaml")):
        cases = [case for name, case in CASES.items() if name.startswith(f"{file.stem}: ")]
        for case in cases:
            case["says"] = case["says"] if "\n" not in case["says"] else case["says"].strip() + "\n"
        dumped = yaml.dump(cases, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
        file.write_text(dumped.replace("\n- mistake", "\n\n- mistake"))

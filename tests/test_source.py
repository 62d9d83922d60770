"""The source of a job: what it covers, and that a worker with another one refuses a pack."""

import itertools
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.catalogue import load_job
from orchestrator.dispatch.base import Cause, PackEnded, PackFailed, PackTask
from orchestrator.dispatch.source import Source, source_of
from orchestrator.dispatch.worker import execute

Make = Callable[[Mapping[str, str], str], Source]
TRAIN = "def train(params, seed, device, report):\n    report(1, loss=1.0)\n"
_numbers = itertools.count()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The source of a job in a new folder, as a new process finds it; names of modules begin with `own`."""

    def source(files: Mapping[str, str], job: str) -> Source:
        folder = tmp_path / str(next(_numbers))
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for path in [path for path in sys.path if path.startswith(str(tmp_path))]:
            sys.path.remove(path)
        monkeypatch.syspath_prepend(str(folder))
        return again(job)

    return source


def again(job: str) -> Source:
    """The source as a process that starts now finds it."""
    for name in [name for name in sys.modules if name.startswith("own")]:
        del sys.modules[name]
    load_job.cache_clear()
    source_of.cache_clear()
    return source_of(job)


def own_files(source: Source) -> set[str]:
    return {name for name in source.files if not name.startswith("jobs/")}


def test_a_built_in_job_is_the_jobs_package() -> None:
    source = source_of("double_descent")
    assert "jobs/double_descent/job.py" in source.files
    assert own_files(source) == set()
    assert source.text == source_of("ridge").text


def test_a_changed_line_is_another_source_and_names_its_file(make: Make) -> None:
    one = make({"own.py": TRAIN}, "own:train")
    same = make({"own.py": TRAIN}, "own:train")
    other = make({"own.py": TRAIN.replace("1.0", "2.0")}, "own:train")
    assert one == same
    assert one.text != other.text
    assert one.differences(same) == ""
    assert one.differences(other) == f"own.py {one.files['own.py']} here, {other.files['own.py']} there"


FILES = {
    "own.py": f"import own_a\nfrom own_pack.deep import thing\nimport numpy, os\n{TRAIN}",
    "own_a.py": "def late():\n    import own_b\n",
    "own_b.py": "from own_a import late\n",
    "own_pack/__init__.py": "",
    "own_pack/deep.py": "from . import beside\nfrom .inner import last\nthing = 1\n",
    "own_pack/beside.py": "",
    "own_pack/inner/__init__.py": "from .. import up\nlast = 1\n",
    "own_pack/up.py": "",
    "own_unused.py": "not python at all",
    "numbers.csv": "1,2\n",
}


def test_modules_beside_the_job_that_it_imports_are_part_of_it_and_no_others(make: Make) -> None:
    assert own_files(make(FILES, "own:train")) == set(FILES) - {"own_unused.py", "numbers.csv"}


@pytest.mark.parametrize("changed", ["own_a.py", "own_b.py", "own_pack/up.py", "own_pack/inner/__init__.py"])
def test_a_change_of_an_imported_module_is_another_source(make: Make, changed: str) -> None:
    one, other = make(FILES, "own:train"), make({**FILES, changed: FILES[changed] + "# new\n"}, "own:train")
    assert one.text != other.text
    assert one.differences(other).startswith(f"{changed} ")


def test_a_job_in_a_package_imports_relatively(make: Make) -> None:
    files = {
        "own_pack/__init__.py": "",
        "own_pack/job.py": f"from .part import x\n{TRAIN}",
        "own_pack/part.py": "x = 1",
    }
    assert own_files(make(files, "own_pack.job:train")) == set(files)


def test_of_an_installed_package_its_neighbours_are_left_out(make: Make, tmp_path: Path) -> None:
    files = {
        "site-packages/own_pack/__init__.py": f"import own_other\nfrom own_pack import part\n{TRAIN}",
        "site-packages/own_pack/part.py": "",
        "site-packages/own_other.py": "",
        "own.py": "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent / 'site-packages'))\n"
        f"from own_pack import train\n{TRAIN}",
    }
    assert own_files(make(files, "own:train")) == {"own.py"}
    assert own_files(again("own_pack:train")) == {"own_pack/__init__.py", "own_pack/part.py"}


def test_a_function_that_is_defined_elsewhere_belongs_with_the_module_that_names_it(make: Make) -> None:
    files = {"own.py": "from own_a import train\nLIMIT = 1\n", "own_a.py": TRAIN}
    assert own_files(make(files, "own:train")) == {"own.py", "own_a.py"}


def test_a_module_in_an_archive_has_a_source(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for value in ("1.0", "2.0"):
        archive = tmp_path / f"{value}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("own_zipped.py", TRAIN.replace("1.0", value))
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(archive))
            texts.append(again("own_zipped:train").text)
    assert texts[0] != texts[1]


def test_a_module_without_a_file_is_compared_by_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that was typed in interactively."""
    module = type(sys)("typed_in")
    exec(TRAIN, vars(module))
    monkeypatch.setitem(sys.modules, "typed_in", module)
    load_job.cache_clear()
    source_of.cache_clear()
    assert own_files(source_of("typed_in:train")) == set()


def test_the_source_is_that_of_the_first_look(make: Make) -> None:
    """The process has loaded that one, whatever is edited meanwhile."""
    one = make({"own.py": TRAIN}, "own:train")
    Path(str(sys.modules["own"].__file__)).write_text("changed")
    assert source_of("own:train") == one


def test_differences_name_a_release_and_a_few_files() -> None:
    one = Source(release="0.1.0", digest="a", files={f"jobs/{k}.py": "1" for k in range(9)} | {"own.py": "1"})
    other = Source(release="0.2.0", digest="b", files={f"jobs/{k}.py": "2" for k in range(9)})
    assert one.differences(other) == (
        "phasefront 0.1.0 here, 0.2.0 there; own.py 1 here, missing there; "
        "jobs/0.py 1 here, 2 there; jobs/1.py 1 here, 2 there; 7 more files"
    )


# --- the worker ---


def pack(source: str, job: str = "own:train") -> PackTask:
    return PackTask(
        pack_id="p", job=job, trial_ids=("a",), params=({"lr": 1.0},), seeds=(1,), thresholds={}, source=source
    )


def test_a_worker_with_the_drivers_source_trains_and_one_with_another_refuses(make: Make) -> None:
    driver = make({"own.py": TRAIN}, "own:train").text
    assert isinstance([*execute(pack(driver), device="cpu")][-1], PackEnded)
    other = make({"own.py": TRAIN.replace("1.0", "2.0")}, "own:train")
    (refused,) = execute(pack(driver), device="cpu")
    assert isinstance(refused, PackFailed)
    assert (refused.cause, refused.source) == (Cause.OTHER_SOURCE, other)
    assert driver in refused.error
    assert other.text in refused.error
    assert isinstance([*execute(replace(pack(driver), source=""), device="cpu")][-1], PackEnded)


def test_a_worker_without_the_job_refuses(make: Make) -> None:
    driver = make({"own.py": TRAIN}, "own:train").text
    (refused,) = execute(pack(driver, "own_missing:train"), device="cpu")
    assert isinstance(refused, PackFailed)
    assert (refused.cause, refused.source) == (Cause.OTHER_SOURCE, None)
    assert "module 'own_missing' cannot be imported" in refused.error

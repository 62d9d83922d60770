"""Laws of the repository: which part may import what, what may lie where, links of the documentation."""

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINES = {"ray": "orchestrator/dispatch", "mlflow": "orchestrator/tracking", "optuna": "orchestrator/search"}
SCIENCE = {"numpy", "torch", "mnist1d", "jobs"} | set(sys.stdlib_module_names)
FOLDERS = {".ci", ".github", "docs", "cluster", "configs", "jobs", "orchestrator", "tests"}
MOST_TYPE_IGNORES = 8
# A path of somebody's own machine; the image's user in cluster/ is called ray.
OWN_PATH = re.compile(r"(?<![\w./:$}-])/(?:work|root|Users|home(?!/ray\b))/[A-Za-z0-9_.]")


@functools.cache
def project_files() -> tuple[str, ...]:
    """Paths of the files that belong to the project: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout: " + listed.stderr.strip())
    return tuple(sorted(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()))


def modules(*folders: str) -> list[str]:
    inside = tuple(f"{folder}/" for folder in folders)
    return [name for name in project_files() if name.endswith(".py") and name.startswith(inside)]


def imported(source: str) -> Iterator[str]:
    """Top-level packages that a module imports anywhere: at its top, in functions, by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__", "find_spec") and isinstance(node.args[0].value, str):
                yield node.args[0].value.partition(".")[0]


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def imports_of(name: str) -> set[str]:
    return set(imported(text_of(name)))


def test_the_walk_sees_every_way_to_import() -> None:
    source = (
        "import a.b\nfrom c.d import e\n"
        "def f():\n    import g as h\n    importlib.import_module('i.j')\n    __import__('k')\n"
    )
    assert set(imported(source)) == {"a", "c", "g", "i", "k"}


@pytest.mark.parametrize(("engine", "folder"), ENGINES.items())
def test_an_engine_is_imported_in_its_one_folder(engine: str, folder: str) -> None:
    users = [name for name in modules("orchestrator", "jobs") if engine in imports_of(name)]
    assert users or engine == "optuna", f"nothing imports {engine}: has its folder moved?"
    assert [name for name in users if not name.startswith(folder + "/")] == []


def test_the_orchestrator_imports_no_torch() -> None:
    assert [name for name in modules("orchestrator") if "torch" in imports_of(name)] == []


def test_jobs_import_only_numbers_and_the_standard_library() -> None:
    optional = {
        "jobs/grokking/digits.py": {"sklearn"},  # a data set that comes with a package; said so where it is missing
        "jobs/gallery/hull.py": {"scipy"},  # its linear programs
        "jobs/gallery/trees.py": {"sklearn"},  # as the digits, which it needs first
        # Comes with the CUDA builds of torch; not imported where it is missing.
        "jobs/double_descent/fused.py": {"triton"},
        "jobs/double_descent/kernel.py": {"triton"},
    }
    foreign = {name: sorted(imports_of(name) - SCIENCE - optional.get(name, set())) for name in modules("jobs")}
    assert {name: found for name, found in foreign.items() if found} == {}


def test_choosing_and_describing_a_job_loads_no_torch() -> None:
    code = (
        "import json, sys; from jobs.catalogue import BUILT_IN, load_job\n"
        "for name in BUILT_IN: load_job(name).Params, load_job(name).Thresholds\n"
        "print(json.dumps([m for m in ('torch', 'mnist1d', 'scipy') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_types_are_rarely_ignored() -> None:
    ignored = [name for name in modules("orchestrator", "jobs") for _ in re.findall("type: ignore", text_of(name))]
    assert len(ignored) <= MOST_TYPE_IGNORES, ignored


def markdown_links() -> list[tuple[str, str]]:
    """(page, target) of every relative link and picture."""
    pages = [name for name in project_files() if name.endswith(".md")]
    links = [(page, target) for page in pages for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page))]
    return [(page, target) for page, target in links if not target.startswith(("http", "#"))]


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    links = markdown_links()
    assert ("README.md", "docs/jobs.md") in links
    assert [(page, to) for page, to in links if not (ROOT / page).parent.joinpath(to.partition("#")[0]).exists()] == []


def test_only_the_agreed_folders_are_at_the_top() -> None:
    assert {name.partition("/")[0] for name in project_files() if "/" in name} <= FOLDERS


def test_no_file_names_a_path_of_one_machine() -> None:
    assert OWN_PATH.search("x = '/home" + "/ada/runs'")
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name in project_files()
        for number, line in enumerate((ROOT / name).read_text(errors="ignore").splitlines(), start=1)
        if OWN_PATH.search(line)
    ]
    assert found == []


def sweep_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


def test_there_are_sweep_files() -> None:
    assert {"configs/demo_double_descent.yaml", "configs/demo_grokking.yaml"} <= set(sweep_files())


@pytest.mark.parametrize("name", sweep_files())
def test_every_sweep_file_is_valid(name: str) -> None:
    from orchestrator.sweep.sweep import Sweep

    sweep = Sweep.load(ROOT / name)
    assert sweep.trials() or sweep.sample(10)

"""Module jobs on the command line: what is said of them, and the page that introduces them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.job import Cost, Job, Member, Params, Report
from jobs.module import ModuleJob
from jobs.module.pack import why_alone
from orchestrator.cli import main
from orchestrator.commands.starting import _MODULE, _MODULE_SWEEP
from tests.driving import environment
from tests.packing import assert_packed_is_solo

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "modules.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

BAD = """
class Branching(Parity):
    def model(self, params):
        class Branch(nn.Linear):
            def forward(self, x):
                y = super().forward(x)
                return y * 2 if y.mean() > 0 else y

        return Branch(params.bits, 2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def phasefront(*arguments: str, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=cwd,
        env=environment({"XDG_CACHE_HOME": str(cwd / "cache")}),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_the_job_that_new_writes() -> None:
    source = BLOCKS[0]
    assert source.strip() == _MODULE.partition('"""\n\n')[2].strip()
    assert len(source.strip().splitlines()) <= 25
    sweep, (shown,) = (
        yaml.safe_load(_MODULE_SWEEP.format(name="parity")),
        re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL),
    )
    assert yaml.safe_load(shown).items() <= sweep.items()


def jobs_of(block: str) -> list[type[ModuleJob]]:
    names: dict[str, object] = {}
    exec(block, names)
    return [v for v in names.values() if isinstance(v, type) and issubclass(v, ModuleJob) and v is not ModuleJob]


@pytest.mark.parametrize("block", BLOCKS, ids=[re.findall(r"(\w+)\(ModuleJob", block)[0] for block in BLOCKS])
def test_the_jobs_of_the_page_are_stacked(block: str) -> None:
    if "transformers" in block:
        pytest.importorskip("transformers", reason="transformers is not a dependency")
    (job,) = jobs_of(block)
    values = {"steps": 6, "curve_points": 3, "optimiser": "sgd"}
    trained = [Member(params=job().params_for(values), seed=k) for k in range(3)]
    assert why_alone(job(), trained[0].params) == ""
    assert_packed_is_solo(job(), trained)


def test_new_writes_a_module_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "first", "--module"]) == 0
    assert {path.name for path in Path("first").iterdir()} == {
        "first.yaml",
        "my_models.py",
        ".rayignore",
        "sweep.schema.json",
    }
    monkey_path = str(folder / "first")
    sys.path.insert(0, monkey_path)
    try:
        os.chdir("first")
        assert main(["check", "first.yaml"]) == 0
    finally:
        sys.path.remove(monkey_path)
        sys.modules.pop("my_models", None)
    text = capsys.readouterr().out
    assert "16 trials of my_models:Parity" in text
    assert "next:  cd first && phasefront verify-job my_models:Parity && phasefront check first.yaml" in text


@pytest.mark.slow
def test_what_cannot_be_packed_is_named_with_its_line(folder: Path) -> None:
    (folder / "my_models.py").write_text(_MODULE + BAD)
    (folder / "s.yaml").write_text(
        "name: s\njob: my_models:Branching\naxes: {learning_rate: {values: [0.01, 0.02]}}\n"
        "fixed: {steps: 20, curve_points: 4, bits: 5}\n"
    )
    line = next(n for n, text in enumerate((_MODULE + BAD).splitlines(), 1) if "if y.mean()" in text)
    text = phasefront("plan", "s.yaml", "--inline", cwd=folder)
    assert re.search(rf"alone +all trials train one at a time: \S*my_models.py:{line}: vmap", text), text


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_run_as_they_are(folder: Path) -> None:
    (commands,) = re.findall(r"```sh\n(phasefront new .*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        ["bash", "-ec", commands.replace("phasefront", f"{sys.executable} -m orchestrator")],
        cwd=folder,
        env=environment({"XDG_CACHE_HOME": str(folder / "cache")}),
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "verdict       a packed trial is the trial",
        "cheapest  width=16: (20,) -> (2,), 370 parameters",
        "dearest",
    ):
        assert said in done.stdout, done.stdout
    assert (folder / "parity" / "phasefront-out" / "parity" / "phase_diagram.png").exists()


class Shared(Job[Params]):
    """Breaks the law: a trial's curve depends on the size of its pack."""

    class Thresholds(Params):
        pass

    Params = Params
    metrics, phases = ("loss",), ("done",)

    def pack_key(self, params):
        return ()

    def cost(self, params, *, extent, models):
        return Cost(launches=1, matmul_flop=0, element_visits=0, memory_bytes=0)

    def train(self, pack, *, device):
        import numpy as np

        everyone = np.arange(len(pack))
        yield Report(step=1, members=everyone, values={"loss": np.full(len(pack), float(len(pack)))}, finished=everyone)

    def observe(self, params, curves, thresholds):
        return {}

    def phase(self, params, observations, thresholds):
        return "done"


def test_a_job_whose_trials_depend_on_their_pack_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", f"{__name__}:Shared"]) == 1
    text = capsys.readouterr().out
    assert "differ        a pack and each trial alone: at most 6.0e-01 (loss; allowed 0.001)" in text
    assert text.splitlines()[-1] == "verdict       the curves of a trial depend on its pack"


def test_verify_job_says_that_a_module_trains_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-job", "tests.test_module_job:Branching", "--steps", "5"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"alone +all trials train one at a time: \S*test_module_job.py:\d+: vmap", text), text
    assert text.splitlines()[-1] == "verdict       a packed trial is the trial"


def test_a_good_job_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--set", "width=8", "--set", "pool=60", "--set", "test_count=20", "--steps", "5")
    assert main(["verify-job", "double_descent", *few]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "verdict       a packed trial is the trial"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify-job", "nothing"], "no job is called"),
        (["verify-job", "ridge", "--set", "steps"], "must be NAME=VALUE"),
        (["verify-job", "ridge", "--set", "stepz=3"], "is not a parameter of this job"),
    ],
)
def test_mistakes_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error

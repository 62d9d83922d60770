"""A user's own job, a class or a plain function, runs from the folder that contains it."""

from pathlib import Path

import pytest
from driving import parents, record, run, trials

FUNCTION = """\
def train(params, seed, device, report):
    value = 1.0
    for step in range(1, params["steps"] + 1):
        value *= params["decay"]
        report(step, loss=value)
"""
CLASS = '''\
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.job import Cost, Curves, Job, Member, Observations, Params, Report, param


@dataclass(frozen=True, kw_only=True)
class Decay(Params):
    rate: float = param(meaning="share that is left after a step", low=0, high=1)
    steps: int = param(10, meaning="steps", unit="steps", low=1)


@dataclass(frozen=True, kw_only=True)
class Limits(Params):
    small: float = param(0.1, meaning="a loss below this is small", above=0)


class DecayJob(Job[Decay]):
    """Exponential decay."""

    Params = Decay
    Thresholds = Limits
    metrics = ("loss",)
    phases = ("small", "large")

    def pack_key(self, params: Decay) -> Hashable:
        return params.steps

    def cost(self, params: Decay, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=params.steps, matmul_flop=0, element_visits=params.steps * models, memory_bytes=models)

    def train(self, pack: Sequence[Member[Decay]], *, device: str) -> Iterator[Report]:
        rates = np.array([member.params.rate for member in pack])
        members = np.arange(len(pack))
        steps = pack[0].params.steps
        for step in range(1, steps + 1):
            finished = members if step == steps else members[:0]
            yield Report(step=step, members=members, values={"loss": rates**step}, finished=finished)

    def observe(self, params: Decay, curves: Curves, thresholds: Params) -> Observations:
        return {"final_loss": float(curves.values["loss"][-1])}

    def phase(self, params: Decay, observations: Observations, thresholds: Params) -> str:
        return "small" if observations["final_loss"] < thresholds.small else "large"
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "job", "axis", "fixed"),
    [(FUNCTION, "mine:train", "decay", "{steps: 5}"), (CLASS, "mine:DecayJob", "rate", "{steps: 5}")],
    ids=["function", "class"],
)
def test_a_user_defined_job_runs_from_its_folder(tmp_path: Path, source: str, job: str, axis: str, fixed: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "sweep.yaml").write_text(
        f"name: mine\njob: {job}\naxes:\n  {axis}: {{values: [0.5, 0.9]}}\nfixed: {fixed}\nreplicates: 2\n"
    )
    code, text = run("run", "sweep.yaml", cwd=tmp_path)
    assert code == 0, text
    runs = record(tmp_path / "mlflow.db")
    assert [parent.status for parent in parents(runs)] == ["FINISHED"]
    assert len(trials(runs)) == 2 * 2
    for trial in trials(runs):
        rate = float(trial.params[axis])
        assert [row[:2] for row in trial.rows] == [("loss", step) for step in range(1, 6)]
        assert [row[2] for row in trial.rows] == pytest.approx([rate**step for step in range(1, 6)])
    if job.endswith("DecayJob"):
        assert {run_.params["rate"]: run_.tags["phasefront.phase"] for run_ in trials(runs)} == {
            "0.5": "small",
            "0.9": "large",
        }

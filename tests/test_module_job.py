"""Jobs of users' torch modules: a packed trial is the trial, alone and as a plain PyTorch loop trains it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from jobs.job import Member
from jobs.module import Data, ModuleJob, ModuleParams, Random, param
from jobs.module.network import seeded
from jobs.module.pack import why_alone
from jobs.packed.batches import Batches
from tests.driving import parents, record, run, trials
from tests.packing import assert_packed_is_solo, curves_of

PARITY = """\
from dataclasses import dataclass

from torch import nn

from jobs.module import Data, ModuleJob, ModuleParams, param


class Parity(ModuleJob):
    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        bits: int = param(40, low=3, meaning="input bits")
        width: int = param(100, low=1, meaning="hidden units")

    def model(self, params):
        return nn.Sequential(nn.Linear(params.bits, params.width), nn.ReLU(), nn.Linear(params.width, 2))

    def data(self, params, random):
        x = random.bits("x", 4000, params.bits)
        y = x[:, :3].sum(1) % 2
        return Data(train=(x[:1000].float(), y[:1000]), test=(x[1000:].float(), y[1000:]))
"""


class Small(ModuleJob):
    """Three classes, 60 training examples of 6 inputs."""

    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        width: int = param(5, low=1, meaning="hidden units")

    def model(self, params: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(6, params.width), nn.Tanh(), nn.Linear(params.width, 3))

    def data(self, params: Any, random: Random) -> Data:
        x, y = random.normal("x", 90, 6), random.integers("y", 3, 90)
        return Data(train=(x[:60], y[:60]), test=(x[60:], y[60:]))


class Branching(Small):
    """Its forward pass depends on the data."""

    def model(self, params: Any) -> nn.Module:
        class Branch(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = super().forward(x)
                if y.mean() > 0:
                    y = y * 2
                return y

        return Branch(6, 3)


def members(job: ModuleJob, count: int, **values: Any) -> list[Member[Any]]:
    """Trials that differ in learning rate, decay and label noise."""
    return [
        Member(
            params=job.params_for(
                {
                    "steps": 24,
                    "curve_points": 5,
                    "batch_size": 16,
                    "learning_rate": 0.02 * (1 + k),
                    "weight_decay": 0.05 * k,
                    "label_noise": 0.1 * k,
                    **values,
                }
            ),
            seed=101 + k,
        )
        for k in range(count)
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"optimiser": "sgd"},
        {"optimiser": "sgd", "clip_norm": 0.3, "schedule": "cosine", "warmup_steps": 5},
        {"optimiser": "adam", "batch_size": 0, "schedule": "inverse_sqrt", "warmup_steps": 3},
        {"optimiser": "adamw", "clip_norm": 0.3, "schedule": "step", "batch_order": "with_replacement"},
    ],
    ids=["sgd", "clipped", "adam", "adamw"],
)
def test_a_packed_trial_is_the_trial(values: dict[str, Any]) -> None:
    job = Small()
    assert not why_alone(job, members(job, 1, **values)[0].params)
    assert_packed_is_solo(job, members(job, 4, **values))


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_momentum_betas_and_clipping_are_each_trials_own(optimiser: str) -> None:
    """One trial ends early, one has no clipping."""
    job = Small()
    of_each = {
        "momentum": (0.9, 0.0, 0.5, 0.9),
        "beta1": (0.9, 0.0, 0.5, 0.95),
        "beta2": (0.999, 0.9, 0.95, 0.99),
        "clip_norm": (0.3, 0.05, 0.0, 1.0),
        "steps": (24, 24, 24, 9),
        "curve_points": (5, 5, 4, 5),
    }
    trained = [
        Member(params=replace(m.params, **{name: values[k] for name, values in of_each.items()}), seed=m.seed)
        for k, m in enumerate(members(job, 4, optimiser=optimiser, schedule="inverse_sqrt", warmup_steps=3))
    ]
    assert_packed_is_solo(job, trained)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_a_trial_is_what_a_plain_loop_trains(optimiser: str) -> None:
    job = Small()
    (member,) = members(job, 1, optimiser=optimiser, weight_decay=0.1, clip_norm=0.4, schedule="cosine")
    p = member.params
    with seeded(member.seed, "module/init"):
        model = job.model(p)
    data = job.data(p, Random.of_seed(member.seed))
    make: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimiser]
    momentum = {"momentum": p.momentum} if optimiser == "sgd" else {}
    optimizer = make(model.parameters(), lr=p.learning_rate, weight_decay=p.weight_decay, **momentum)
    x, y = data.train
    batches = Batches([member.seed], [60], [16], "shuffled", "cpu")
    for step in range(p.steps):
        rows = batches.draw(step, 1)[0, 0]
        optimizer.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.4)
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * p.rate_factor(step)
        optimizer.step()
    curves = curves_of(job, [member])[0]
    for name, (x, y) in (("train", data.train), ("test", data.test)):
        output = model(x)
        loss, accuracy = functional.cross_entropy(output, y), (output.argmax(1) == y).float().mean()
        assert curves.values[f"{name}_loss"][-1] == pytest.approx(loss.item(), rel=1e-4)
        assert curves.values[f"{name}_accuracy"][-1] == pytest.approx(accuracy.item())


def test_what_cannot_be_stacked_trains_alone_with_the_same_curves() -> None:
    job = Branching()
    trained = members(job, 3)
    reason = why_alone(job, trained[0].params)
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "if y.mean() > 0" in text)
    assert reason.startswith(f"{__file__}:{line}: ") and "control flow" in reason
    assert_packed_is_solo(job, trained, rtol=0, atol=0)


def test_models_that_end_early_leave_the_others_as_they_are() -> None:
    job = Small()
    ends = [member for steps in (6, 24, 9, 24) for member in members(job, 1, steps=steps)]
    trained = [Member(params=m.params, seed=201 + k) for k, m in enumerate(ends)]
    assert assert_packed_is_solo(job, trained).finished == [0, 2, 1, 3]


def test_a_model_that_diverges_leaves_the_others_as_they_are() -> None:
    job = Small()
    trained = [*members(job, 2, optimiser="sgd"), *members(job, 1, optimiser="sgd", learning_rate=90.0, momentum=0.9)]
    trained = [Member(params=m.params, seed=301 + k) for k, m in enumerate(trained)]
    huge = job.params_for({**_values(trained[2].params), "weight_decay": 1000.0})
    trained[2] = Member(params=huge, seed=303)
    course = assert_packed_is_solo(job, trained, rtol=1e-3)
    assert course.finished[0] == 2 and not all(map(torch.isfinite, map(torch.tensor, _last(course.curves[2]))))


def _values(params: Any) -> dict[str, Any]:
    from jobs.job import as_dict

    return as_dict(params)


def _last(curves: Any) -> list[float]:
    return [float(curves.values["train_loss"][-1])]


@pytest.mark.slow
def test_the_example_runs_as_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(PARITY)
    (tmp_path / "parity.yaml").write_text(
        "name: parity\njob: my_models:Parity\naxes:\n  width: {values: [8, 16]}\n"
        "  learning_rate: {values: [0.01, 0.03]}\nfixed: {steps: 30, curve_points: 4}\nreplicates: 2\n"
    )
    code, text = run("run", "parity.yaml", "--inline", cwd=tmp_path)
    assert code == 0, text
    runs = record(tmp_path / "mlflow.db")
    assert [parent.status for parent in parents(runs)] == ["FINISHED"]
    assert len(trials(runs)) == 8
    for trial in trials(runs):
        assert {row[0] for row in trial.rows} == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
        assert trial.tags["phasefront.phase"] in ("confusion", "memorization", "comprehension")

"""Module jobs: what stacked trials do not share is each trial's own; shapes of targets and parameters."""

from typing import Any

import pytest
import torch
from test_module_job import Small, members
from torch import Tensor, nn

from jobs.module import Data, Random
from jobs.module.pack import why_alone
from jobs.module.remarks import remarks
from orchestrator.commands.verifying import _varied
from tests.packing import assert_packed_is_solo, curves_of


class ReadingLoss(Small):
    def loss(self, params: Any, output: Any, target: Tensor) -> Tensor:
        return super().loss(params, output, target) * (1 + 20 * params.learning_rate + params.label_noise)


class ReadingRegulariser(Small):
    def regulariser(self, params: Any, weights: Any) -> Tensor:
        return params.weight_decay * sum(w.square().sum() for w in weights.values())


class ReadingMasks(Small):
    def weight_masks(self, params: Any, weights: Any) -> dict[str, Tensor]:
        return {"0.weight": (weights["0.weight"].abs() > 4 * params.learning_rate).float()}


class ReadingProbe(Small):
    def probe(self, params: Any, model: Any, weights: Any, data: Data) -> dict[str, Tensor]:
        return {"rate": weights["0.bias"].sum() * 0 + params.learning_rate}


class ReadingBatch(Small):
    """Reads it only from the tenth step on, when its trials are stacked already."""

    def batch(self, params: Any, random: Random, step: Tensor) -> tuple[Tensor, Tensor]:
        scale = params.learning_rate if int(step) >= 10 else 1.0
        return scale * random.normal("online", 16, 6), random.integers("target", 3, 16)


@pytest.mark.parametrize("job", [ReadingLoss(), ReadingRegulariser(), ReadingMasks(), ReadingProbe(), ReadingBatch()])
def test_what_a_method_reads_is_the_value_of_each_trial(job: Small) -> None:
    trained = members(job, 3)
    assert_packed_is_solo(job, trained)
    assert why_alone(job, trained[0].params) == ""


def test_trials_of_equal_values_are_stacked_and_the_plan_names_what_is_read() -> None:
    job = ReadingLoss()
    equal = members(job, 4, learning_rate=0.02, label_noise=0.1, weight_decay=0.0)
    assert_packed_is_solo(job, equal)
    (line,) = remarks(job, [member.params for member in members(job, 3)], measure=False)
    assert (
        line == "apart     trials that differ in label_noise, learning_rate train apart: a method of the job reads it"
    )


def test_verify_job_varies_what_trials_of_a_pack_may_differ_in() -> None:
    job = Small()
    params = job.params_for({"steps": 30, "weight_decay": 0.1, "label_noise": 0.2})
    varied = [_varied(job, params, k) for k in range(4)]
    for name in ("learning_rate", "weight_decay", "label_noise", "steps"):
        assert len({getattr(each, name) for each in varied}) == 4, name


class Scalars(Small):
    """One number for each example, and a parameter without dimensions."""

    def model(self, params: Any) -> nn.Module:
        class Scaled(nn.Linear):
            def __init__(self) -> None:
                super().__init__(6, 1)
                self.scale = nn.Parameter(torch.tensor(1.5))

            def forward(self, x: Tensor) -> Tensor:
                return self.scale * super().forward(x)

        return Scaled()

    def data(self, params: Any, random: Random) -> Data:
        x = random.normal("x", 90, 6)
        return Data(train=(x[:60], x[:60, 0]), test=(x[60:], x[60:, 0]))


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_targets_and_parameters_without_dimensions(clip_norm: float) -> None:
    job = Scalars()
    trained = members(job, 3, clip_norm=clip_norm, label_noise=0.0)
    assert_packed_is_solo(job, trained)
    assert why_alone(job, trained[0].params) == ""


def test_a_stop_at_an_accuracy_that_is_not_measured_is_named() -> None:
    job = Scalars()
    with pytest.raises(ValueError, match="stop_accuracy needs an accuracy, and this job measures none"):
        curves_of(job, members(job, 2, stop_accuracy=0.9, label_noise=0.0))

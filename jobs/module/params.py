"""The parameters and thresholds that every module job has. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.job import ParamError, Params, param
from jobs.packed import fields

SCHEDULES = ("constant", "cosine", "inverse_sqrt", "step")


@dataclass(frozen=True, kw_only=True)
class ModuleParams(Params):
    """How a module is trained; a job adds the parameters of its model and of its data."""

    optimiser: str = fields.optimiser("adamw")
    learning_rate: float = fields.learning_rate(0.001, meaning="learning rate, which the schedule multiplies")
    schedule: str = param(
        "constant",
        choices=SCHEDULES,
        meaning="of the learning rate after the warm-up: constant; cosine, to 0 at the last step; inverse_sqrt of the"
        " step; or step, divided by 10 after half and after three quarters of the steps",
    )
    warmup_steps: int = param(0, unit="steps", low=0, high=10_000_000, meaning="linear warm-up of the learning rate")
    momentum: float = fields.momentum(0.9)
    beta1: float = fields.beta1()
    beta2: float = fields.beta2(0.999)
    weight_decay: float = fields.weight_decay()
    clip_norm: float = param(
        0.0, low=0, high=1e6, meaning="largest Euclidean norm of a model's gradient; 0: it is not clipped"
    )
    batch_size: int = param(100, unit="examples", low=0, high=1_000_000, meaning="examples per step; 0: all")
    batch_order: str = param(
        "shuffled", choices=("shuffled", "with_replacement", "cyclic"), meaning="how batches are drawn"
    )
    label_noise: float = fields.label_noise()
    noise_convention: str = fields.noise_convention("redrawn")
    steps: int = fields.steps(1000, meaning="optimiser steps")
    stop_accuracy: float = param(
        0.0, low=0, high=1, meaning="end a trial once train and test accuracy are both at least this; 0: never"
    )
    curve_points: int = fields.curve_points(100)
    matmul_precision: str = fields.matmul_precision()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise ParamError("warmup_steps", f"must be below steps ({self.steps})", self.warmup_steps)

    @property
    def constant_rate(self) -> bool:
        """Whether the learning rate never changes."""
        return self.schedule == "constant" and not self.warmup_steps

    def rate_factor(self, step: int) -> float:
        """The schedule's factor on the learning rate of the step after `step` steps; above 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        if self.schedule == "cosine":
            return max(0.5 * (1 + math.cos(math.pi * done)), 1e-12)
        if self.schedule == "inverse_sqrt":
            return math.sqrt(max(1, self.warmup_steps) / (step + 1))
        if self.schedule == "step":
            return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        return 1.0


RULES = ("grokking", "double_descent", "level")


@dataclass(frozen=True, kw_only=True)
class ModuleThresholds(Params):
    """How the trials of a module job are labelled."""

    rule: str = param(
        "grokking",
        choices=RULES,
        meaning="the phases: those of grokking, of double descent, or below and at or above a level of one metric",
    )
    memorised_accuracy: float = param(0.9, above=0, high=1, meaning="train accuracy that counts as memorised")
    generalised_accuracy: float = param(0.9, above=0, high=1, meaning="test accuracy that counts as generalised")
    learned_loss: float = param(
        0.01, above=0, meaning="loss that counts as memorised or generalised, where no accuracy is measured"
    )
    grokking_gap: float = param(
        1000, unit="steps", above=0, meaning="steps from memorisation to generalisation from which on it is grokking"
    )
    interpolated_error: float = param(
        0.01, low=0, below=1, meaning="training error at or below which the model interpolates its data"
    )
    metric: str = param("", meaning="metric whose final value gives the phase (rule: level)")
    level: float = param(0.0, meaning="final value from which on a trial is 'at or above' (rule: level)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rule == "level") != bool(self.metric):
            rule = "is needed with rule: level" if not self.metric else "needs rule: level"
            line = f"phases: {{rule: level, metric: {self.metric or 'test_accuracy'}, level: {self.level or 0.7:g}}}"
            raise ParamError("metric", rule, self.metric, next_step=f"write {line}")

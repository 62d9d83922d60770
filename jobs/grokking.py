"""Grokking: small networks learn a binary operation from a part of its table.

Protocols: Power et al. 2022 (two-layer transformer, minibatches, warm-up), Nanda et al. 2023 (one
layer, no layer norm, full batch), Gromov 2023 and Doshi et al. 2024 (quadratic perceptron), Liu et
al. 2022, arXiv 2205.10343, Table 1 (phases).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jobs.curves import diverged, first_at_least
from jobs.data.modular import OPERATIONS, set_size, train_count
from jobs.job import (
    AnyParams,
    Censored,
    Cost,
    Curves,
    Job,
    Member,
    Observations,
    ParamError,
    Params,
    Report,
    as_dict,
    log_spaced_steps,
    param,
)

MODELS = ("quadratic_mlp", "embedding_mlp", "transformer")


@dataclass(frozen=True, kw_only=True)
class GrokkingParams(Params):
    """What one network learns, and how."""

    operation: str = param("add", choices=OPERATIONS, meaning="binary operation; divide needs an inverse of y")
    modulus: int = param(97, low=2, high=1000, meaning="p: the operation works on 0..p-1 (120 elements for s5)")
    data_fraction: float = param(0.5, above=0, below=1, meaning="share of the table that is trained on")
    label_noise: float = param(0.0, low=0, high=1, meaning="probability that a training label is replaced")
    noise_convention: str = param(
        "redrawn", choices=("redrawn", "incorrect"), meaning="a replaced label is one of all, or one of the wrong ones"
    )
    model: str = param("quadratic_mlp", choices=MODELS, meaning="architecture")
    width: int = param(
        128, unit="units", low=1, high=16_384,
        meaning="hidden units (quadratic_mlp, embedding_mlp), or the transformer's residual width",
    )  # fmt: skip
    embedding: int = param(128, unit="units", low=1, high=4096, meaning="embedding size (embedding_mlp)")
    layers: int = param(1, unit="layers", low=1, high=4, meaning="transformer blocks, or hidden layers (embedding_mlp)")
    heads: int = param(4, low=1, high=64, meaning="attention heads (transformer); must divide width")
    layer_norm: bool = param(False, meaning="layer norm after each sublayer (transformer)")
    init_scale: float = param(
        1.0, above=0, high=1e3,
        meaning="factor on the initial weights (quadratic_mlp: standard deviation 0.5 / (2 width)^(1/3) times this)",
    )  # fmt: skip
    loss: str = param("squared", choices=("squared", "cross_entropy"), meaning="training loss")
    optimiser: str = param("adamw", choices=("adamw", "adam", "sgd"), meaning="optimiser")
    learning_rate: float = param(0.01, unit="1/step", above=0, high=100, meaning="learning rate after warm-up")
    warmup_steps: int = param(0, unit="steps", low=0, high=1_000_000, meaning="linear warm-up of the learning rate")
    weight_decay: float = param(
        0.0, low=0, high=1e3, meaning="decoupled (adamw), or L2 term in the gradient (adam, sgd)"
    )
    momentum: float = param(0.0, low=0, below=1, meaning="momentum (sgd)")
    beta1: float = param(0.9, low=0, below=1, meaning="decay of the first moment (adam, adamw)")
    beta2: float = param(0.98, low=0, below=1, meaning="decay of the second moment (adam, adamw)")
    batch_size: int = param(
        0, unit="pairs", low=0, high=1_000_000, meaning="pairs a step, drawn epoch by epoch; 0: full batch"
    )
    steps: int = param(10_000, unit="steps", low=1, high=100_000_000, meaning="optimiser steps")
    stop_accuracy: float = param(
        0.0, low=0, high=1,
        meaning="end a trial once train and test accuracy are both at least this (it has generalised); 0: never",
    )  # fmt: skip
    curve_points: int = param(150, low=2, high=320, meaning="log-spaced steps at which the curves are measured")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "transformer" and self.width % self.heads:
            raise ParamError("heads", f"must divide width ({self.width})", self.heads)

    @property
    def elements(self) -> int:
        """Elements of the set the operation works on: network outputs."""
        return set_size(self.operation, self.modulus)

    @property
    def train_pairs(self) -> int:
        """Pairs trained on."""
        return train_count(self.operation, self.modulus, self.data_fraction)

    @property
    def batch(self) -> int:
        """Pairs a step."""
        return min(self.batch_size or self.train_pairs, self.train_pairs)


@dataclass(frozen=True, kw_only=True)
class GrokkingThresholds(Params):
    """Where one phase ends and the next begins (Liu et al. 2022, Table 1)."""

    memorised_accuracy: float = param(0.9, above=0, high=1, meaning="train accuracy that counts as memorised")
    generalised_accuracy: float = param(0.9, above=0, high=1, meaning="test accuracy that counts as generalised")
    grokking_gap: float = param(
        1000, unit="steps", above=0, meaning="steps from memorisation to generalisation from which on it is grokking"
    )


class Grokking(Job[GrokkingParams]):
    """Steps of memorisation and of generalisation, and the phase they make."""

    Params: ClassVar[type[AnyParams]] = GrokkingParams
    Thresholds: ClassVar[type[AnyParams]] = GrokkingThresholds
    metrics: ClassVar[tuple[str, ...]] = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "weight_norm")
    phases: ClassVar[tuple[str, ...]] = (
        "comprehension", "grokking", "memorization", "confusion", "inversion", "diverged",
    )  # fmt: skip
    headline: ClassVar[tuple[str, ...]] = ("generalisation_step", "final_test_accuracy", "memorisation_step")

    def pack_key(self, params: GrokkingParams) -> Hashable:
        shared = as_dict(params)
        for name in _PER_MODEL:
            del shared[name]
        if params.model == "transformer":
            shared["width"] = params.width
        return (*shared.values(), params.batch == params.train_pairs)

    def extent(self, params: GrokkingParams) -> tuple[int, ...]:
        width = () if params.model == "transformer" else (params.width,)
        # A full batch is padded with pairs of weight zero.
        return (*width, params.train_pairs) if params.batch == params.train_pairs else width

    def report_steps(self, params: GrokkingParams) -> int:
        return len(log_spaced_steps(params.steps, params.curve_points))

    def cost(self, params: GrokkingParams, *, extent: tuple[int, ...], models: int) -> Cost:
        from jobs.packed import modular_cost

        return modular_cost.pack_cost(params, extent=extent, models=models, reports=self.report_steps(params))

    def train(self, pack: Sequence[Member[GrokkingParams]], *, device: str) -> Iterator[Report]:
        from jobs.packed import grokking_pack

        return grokking_pack.train(pack, device)

    def observe(self, params: GrokkingParams, curves: Curves, thresholds: Any) -> Observations:
        step, values = curves.step, curves.values
        horizon = float(step[-1]) if len(step) else 0.0
        bad = ~np.isfinite(values["train_loss"])
        memorised = first_at_least(step, values["train_accuracy"], thresholds.memorised_accuracy)
        generalised = first_at_least(step, values["test_accuracy"], thresholds.generalised_accuracy)
        gap: float | Censored = Censored(horizon)
        if isinstance(memorised, float):
            gap = generalised - memorised if isinstance(generalised, float) else Censored(horizon - memorised)
        return {
            "memorisation_step": memorised,
            "generalisation_step": generalised,
            "generalisation_gap": gap,
            "diverged_step": float(step[bad][0]) if diverged(values["train_loss"]) else Censored(horizon),
            **{f"final_{name}": float(curve[-1]) for name, curve in values.items() if len(curve)},
        }

    def phase(self, params: GrokkingParams, observations: Observations, thresholds: Any) -> str:
        """Liu's table; "inversion" (Doshi et al. 2024) where the test passes though training does not."""
        if isinstance(observations["diverged_step"], float):
            return "diverged"
        memorised = isinstance(observations["memorisation_step"], float)
        if not isinstance(observations["generalisation_step"], float):
            return "memorization" if memorised else "confusion"
        if not memorised:
            return "inversion"
        gap = observations["generalisation_gap"]
        return "comprehension" if isinstance(gap, float) and gap < thresholds.grokking_gap else "grokking"


_PER_MODEL = (
    "data_fraction", "label_noise", "width", "init_scale", "learning_rate", "weight_decay", "steps", "curve_points",
)  # fmt: skip

"""Grokking: small networks learn a binary operation from a part of its table.

Protocols: Power et al. 2022 (two-layer transformer, minibatches, warm-up), Nanda et al. 2023 (one
layer, no layer norm, full batch), Gromov 2023 and Doshi et al. 2024 (quadratic perceptron), Liu et
al. 2022, arXiv 2205.10343 (the toy of representation learning, and the phases of its Table 1), Liu,
Michaud and Tegmark 2022, arXiv 2210.01117 (Omnigrok: images, large initial weights), Davies et al.
2023 (capacity as the axis), Prieto et al. 2025 (StableMax, perpGrad), Lee et al. 2024 (Grokfast),
Humayun et al. 2024, arXiv 2402.15555 (local complexity, measured in training).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jobs.curves import first_at_least, first_not_finite
from jobs.grokking.params import BASE_METRICS, MODELS, GrokkingParams
from jobs.job import (
    AnyParams,
    Censored,
    Cost,
    Curves,
    Job,
    Member,
    Observations,
    Params,
    Report,
    as_dict,
    log_spaced_steps,
    param,
)

__all__ = ["MODELS", "Grokking", "GrokkingParams", "GrokkingThresholds"]


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
    metrics: ClassVar[tuple[str, ...]] = BASE_METRICS
    phases: ClassVar[tuple[str, ...]] = (
        "comprehension",
        "grokking",
        "memorization",
        "confusion",
        "inversion",
        "diverged",
    )
    headline: ClassVar[tuple[str, ...]] = ("generalisation_step", "final_test_accuracy", "memorisation_step")

    def metrics_of(self, params: GrokkingParams) -> tuple[str, ...]:
        return params.metrics

    def pack_key(self, params: GrokkingParams) -> Hashable:
        shared = as_dict(params)
        for name in _PER_MODEL:
            del shared[name]
        if params.model == "transformer":
            shared["width"] = params.width
        grokfast = params.grokfast_lambda > 0
        return (*shared.values(), params.batch == params.train_pairs, grokfast)

    def extent(self, params: GrokkingParams) -> tuple[int, ...]:
        width = () if params.model == "transformer" else (params.width,)
        # A full batch is padded with pairs of weight zero.
        return (*width, params.train_pairs) if params.batch == params.train_pairs else width

    def report_steps(self, params: GrokkingParams) -> int:
        return len(log_spaced_steps(params.steps, params.curve_points))

    def cost(self, params: GrokkingParams, *, extent: tuple[int, ...], models: int) -> Cost:
        from jobs.grokking import cost as modular_cost

        return modular_cost.pack_cost(params, extent=extent, models=models, reports=self.report_steps(params))

    def train(self, pack: Sequence[Member[GrokkingParams]], *, device: str) -> Iterator[Report]:
        from jobs.grokking import pack as grokking_pack

        return grokking_pack.train(pack, device)

    def observe(self, params: GrokkingParams, curves: Curves, thresholds: Any) -> Observations:
        step, values = curves.step, curves.values
        horizon = float(step[-1]) if len(step) else 0.0
        memorised = first_at_least(step, values["train_accuracy"], thresholds.memorised_accuracy)
        generalised = first_at_least(step, values["test_accuracy"], thresholds.generalised_accuracy)
        gap: float | Censored = Censored(horizon)
        if isinstance(memorised, float):
            gap = generalised - memorised if isinstance(generalised, float) else Censored(horizon - memorised)
        return {
            "memorisation_step": memorised,
            "generalisation_step": generalised,
            "generalisation_gap": gap,
            "diverged_step": first_not_finite(step, values["train_loss"]),
            **{f"final_{name}": float(values[name][-1]) for name in params.metrics if len(step)},
        }

    def phase(self, params: GrokkingParams, observations: Observations, thresholds: Any) -> str:
        """Liu's table; "inversion" (Doshi et al. 2024) where the test passes though training does not.

        It is inversion too where training passed on the way, and the network has given up wrong labels
        since: at the end the test passes and training does not.
        """
        if isinstance(observations["diverged_step"], float):
            return "diverged"
        train, test = (observations.get(f"final_{name}_accuracy") for name in ("train", "test"))
        if isinstance(train, float) and isinstance(test, float):
            given_up = train < thresholds.memorised_accuracy and test >= thresholds.generalised_accuracy
            if given_up:
                return "inversion"
        memorised = isinstance(observations["memorisation_step"], float)
        if not isinstance(observations["generalisation_step"], float):
            return "memorization" if memorised else "confusion"
        if not memorised:
            return "inversion"
        gap = observations["generalisation_gap"]
        return "comprehension" if isinstance(gap, float) and gap < thresholds.grokking_gap else "grokking"


_PER_MODEL = (
    "data_fraction",
    "label_noise",
    "width",
    "init_scale",
    "learning_rate",
    "weight_decay",
    "steps",
    "curve_points",
    "batch_fraction",
    "embedding_scale",
    "embedding_learning_rate",
    "grokfast_lambda",
    "grokfast_alpha",
    "complexity_radius",
)

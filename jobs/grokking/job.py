"""Grokking: small networks learn a binary operation from part of its table.

Protocols: Power et al. 2022 (two-layer transformer, minibatches, warm-up), Nanda et al. 2023 (one
layer, no layer norm, full batch), Gromov 2023 and Doshi et al. 2024 (quadratic perceptron), Liu et
al. 2022, arXiv 2205.10343 (the toy of representation learning, and the phases of its Table 1), Liu,
Michaud and Tegmark 2022, arXiv 2210.01117 (Omnigrok: images, large initial weights), Davies et al.
2023 (capacity as the axis), Prieto et al. 2025 (StableMax, perpGrad), Lee et al. 2024 (Grokfast),
Humayun et al. 2024, arXiv 2402.15555 (local complexity, measured in training).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jobs import curves as reductions
from jobs.cautions import Caution, gap_out_of_reach, short_horizons
from jobs.grokking import cost, memory
from jobs.grokking.params import BASE_METRICS, GrokkingParams, GrokkingThresholds
from jobs.job import (
    AnyParams,
    Cost,
    Curves,
    Job,
    Member,
    Observations,
    Report,
    Scalar,
    as_dict,
    log_spaced_steps,
)
from jobs.packed.fields import hides_denormals

_PER_MODEL = {
    "data_fraction",
    "label_noise",
    "width",
    "init_scale",
    "learning_rate",
    "weight_decay",
    "steps",
    "curve_points",
    "curve_until",
    "batch_fraction",
    "embedding_scale",
    "embedding_learning_rate",
    "grokfast_lambda",
    "grokfast_alpha",
    "complexity_radius",
}
"""Parameters in which the models of a pack may differ."""

BLOW_UP = 10.0
"""A training that ends at more than this many times its loss before training has diverged."""


_GAP = ("memorisation_step", "generalisation_step")


class Grokking(Job[GrokkingParams]):
    """Steps of memorisation and of generalisation, and the phase that follows from them."""

    Params: ClassVar[type[AnyParams]] = GrokkingParams
    Thresholds: ClassVar[type[AnyParams]] = GrokkingThresholds
    metrics: ClassVar[tuple[str, ...]] = BASE_METRICS
    shares: ClassVar[tuple[str, ...]] = ("train_accuracy", "test_accuracy")
    phases: ClassVar[tuple[str, ...]] = (*reductions.LEARNING_PHASES, "diverged")
    headline: ClassVar[tuple[str, ...]] = ("generalisation_step", "final_test_accuracy", "memorisation_step")
    crossings: ClassVar[tuple[str, ...]] = (*_GAP, "diverged_step", "blow_up_step")

    horizon_params: ClassVar[tuple[str, ...]] = ("steps", "curve_points", "curve_until")

    def analyses(self, thresholds: Any) -> Sequence[Mapping[str, Scalar]]:
        return ({"kind": "times", "of": "generalisation_step"},)

    def metrics_of(self, params: GrokkingParams) -> tuple[str, ...]:
        return params.metrics

    def pack_key(self, params: GrokkingParams) -> Hashable:
        shared = [value for name, value in as_dict(params).items() if name not in _PER_MODEL]
        if params.model == "transformer":
            shared.append(params.width)
        return (*shared, params.batch == params.train_pairs, params.grokfast_lambda > 0)

    def extent(self, params: GrokkingParams) -> tuple[int, ...]:
        width = () if params.model == "transformer" else (params.width,)
        # A full batch is padded with pairs of weight zero.
        return (*width, params.train_pairs) if params.batch == params.train_pairs else width

    def schedule(self, params: GrokkingParams) -> NDArray[np.int64]:
        return log_spaced_steps(params.steps, params.curve_points, params.curve_until)

    def report_steps(self, params: GrokkingParams) -> int:
        # A crossing is reported with the step before it.
        return super().report_steps(params) + 2 * params.levels

    def cost(self, params: GrokkingParams, *, extent: tuple[int, ...], models: int) -> Cost:
        memory_bytes = self.memory_bytes(params, extent=extent, models=models, device="cpu")
        return cost.pack_cost(
            params, extent=extent, models=models, reports=self.report_steps(params), memory_bytes=memory_bytes
        )

    def memory_bytes(self, params: GrokkingParams, *, extent: tuple[int, ...], models: int, device: str) -> float:
        return memory.pack_bytes(params, self.schedule(params), extent=extent, models=models, device=device)

    def train(self, pack: Sequence[Member[GrokkingParams]], *, device: str) -> Iterator[Report]:
        from jobs.grokking.pack import train

        return train(pack, device)

    def observe(self, params: GrokkingParams, curves: Curves, thresholds: Any) -> Observations:
        step, values = curves.step, curves.values
        reached = {"memorised": values["train_accuracy"], "generalised": values["test_accuracy"]}
        memorised, generalised = (v >= getattr(thresholds, f"{name}_accuracy") for name, v in reached.items())
        steps = {
            **reductions.crossing("memorisation_step", step, memorised),
            **reductions.crossing("generalisation_step", step, generalised),
        }
        return {
            **steps,
            **reductions.gap_between("generalisation_gap", steps, *_GAP, reductions.horizon(step)),
            **reductions.crossing("diverged_step", step, ~np.isfinite(values["train_loss"])),
            **reductions.crossing("blow_up_step", step, _blown_up(params, curves, thresholds.memorised_accuracy)),
            **reductions.final_values(curves, params.metrics),
            **reductions.best_value(curves, "test_accuracy", largest=True),
            **reductions.parameter_counts(
                cost.trained_parameters(params), examples=params.train_pairs, outputs=params.outputs
            ),
        }

    def cautions(
        self, settings: Sequence[tuple[GrokkingParams, Observations | None]], thresholds: Any
    ) -> Sequence[Caution]:
        """Horizons that are short for the weight decay, by a law of decoupled decay and of SGD, or for grokking."""
        decays, reached = [], []
        for params, observations in settings:
            if params.weight_decay <= 0 or params.optimiser == "adam":
                continue
            step = None if observations is None else observations.get("generalisation_step")
            if observations is None:
                decays.append((params.learning_rate, params.weight_decay, float(params.steps)))
            elif isinstance(step, float):
                reached.append(params.learning_rate * params.weight_decay * step)
        gap = gap_out_of_reach([params.steps for params, _ in settings], thresholds.grokking_gap)
        return [each for each in (short_horizons(decays, reached), gap) if each is not None]

    def phase(self, params: GrokkingParams, observations: Observations, thresholds: Any) -> str:
        """The phases of `jobs.curves.learning_phase`, or "diverged".

        A trial has diverged if its training loss is not finite, or ends at more than ten times the loss before
        training (`_blown_up`; trials of earlier versions have no such observation).

        A network that had memorised wrong labels and has given them up is "inversion" too: at the end of the training
        the test criterion is met and the training criterion is not.
        """
        if any(isinstance(observations.get(name), float) for name in ("diverged_step", "blow_up_step")):
            return "diverged"
        train, test = (observations.get(f"final_{name}_accuracy") for name in ("train", "test"))
        given_up = isinstance(train, float) and train < thresholds.memorised_accuracy
        if given_up and isinstance(test, float) and test >= thresholds.generalised_accuracy:
            return "inversion"
        names = ("memorisation_step", "generalisation_step", "generalisation_gap")
        memorised, generalised, gap = (observations[name] for name in names)
        return reductions.learning_phase(memorised, generalised, gap, thresholds.grokking_gap)

    def mark(self, params: GrokkingParams, observations: Observations, thresholds: Any) -> str:
        """Whether the test accuracy was reached and is lost at the end: the phase is by the first time."""
        final, level = observations.get("final_test_accuracy"), thresholds.generalised_accuracy
        reached = isinstance(observations.get("generalisation_step"), float)
        if not reached or not isinstance(final, float) or self.phase(params, observations, thresholds) == "diverged":
            return ""
        return "" if final >= level else f"reached and lost: the test accuracy passed {level:g} and ended below it"

    def completed(self, params: GrokkingParams, observations: Observations) -> Observations:
        full = super().completed(params, observations)
        return full if full is observations else {**full, **reductions.gap_bounds("generalisation_gap", full, *_GAP)}

    def doubt(self, params: GrokkingParams, observations: Observations) -> str:
        """Of trials of versions before `blow_up_step` was observed.

        These flushed small numbers to zero on a CPU, and ignored two parameters in transformers.
        """
        if "blow_up_step" in observations:
            return ""
        again = "Train them again in another experiment: --set tracking.experiment=NAME"
        if params.model == "transformer" and (not params.biases or params.activation != "relu"):
            return f"an earlier version trained their transformers with biases and relu (see CHANGELOG.md). {again}"
        if hides_denormals(params.optimiser, params.epsilon):
            return ""
        return (
            "an earlier version trained them with an epsilon below 1e-11; if on a CPU, steps of Adam were too "
            f"long (see CHANGELOG.md). {again}"
        )


def _blown_up(params: GrokkingParams, curves: Curves, memorised_accuracy: float) -> NDArray[np.bool_]:
    """(N,) whether the training loss is above `BLOW_UP` times the loss before training, and stays there.

    The loss before training is that of the first report, after one step, or that of outputs of zero if it is larger: so
    a first step that increases the loss does not count. It never is where the last loss is not finite
    (`diverged_step`), nor where the trial ends with its training set memorised.
    """
    loss = curves.values["train_loss"]
    if not len(loss) or not np.isfinite(loss[-1]) or curves.values["train_accuracy"][-1] >= memorised_accuracy:
        return np.zeros(len(loss), dtype=np.bool_)
    of_zeros = params.loss_factor * (0.5 if params.loss == "squared" else math.log(params.outputs))
    below = np.flatnonzero(loss <= BLOW_UP * max(loss[0], of_zeros))
    return np.arange(len(loss)) > (below[-1] if len(below) else -1)

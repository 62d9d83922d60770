"""Linear models: least squares and ridge regression, by the minimum-norm solution or by gradient descent.

The closed forms of `jobs.theory` hold here, so that the packed training can be checked against mathematics. Double
descent: Hastie et al. 2019 (arXiv 1903.08560), Belkin, Hsu and Xu 2019 (arXiv 1903.07571), Belkin et al. 2019
(random features). Grokking: Liu, Michaud, Tegmark 2022 (arXiv 2210.01117) for large initialisation and weight decay.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jobs import curves as reductions
from jobs.cautions import Caution, peak_outside
from jobs.job import (
    AFTER,
    AnyParams,
    Censored,
    Cost,
    Curves,
    Job,
    Member,
    Observations,
    Prediction,
    Report,
    Scalar,
    log_spaced_steps,
)
from jobs.ridge import cost, memory, theory
from jobs.ridge.params import RidgeParams, RidgeThresholds

_LEVELS = ("train_level_step", "test_level_step")


class Ridge(Job[RidgeParams]):
    """Population risk against samples, features and steps; the four phases of grokking where levels are set."""

    Params: ClassVar[type[AnyParams]] = RidgeParams
    Thresholds: ClassVar[type[AnyParams]] = RidgeThresholds
    horizon_params: ClassVar[tuple[str, ...]] = ("steps", "curve_points", "curve_until")
    metrics: ClassVar[tuple[str, ...]] = (
        "train_loss",
        "test_loss",
        "excess_risk",
        "relative_train_loss",
        "weight_norm",
        "effective_parameters",
        "train_level_step",
        "test_level_step",
    )
    phases: ClassVar[tuple[str, ...]] = (
        *reductions.LEARNING_PHASES,
        "underparameterised",
        "overparameterised",
        "interpolating",
        "diverged",
    )
    headline: ClassVar[tuple[str, ...]] = ("final_test_loss", "test_level_step", "train_level_step")
    crossings: ClassVar[tuple[str, ...]] = ("diverged_step", "interpolation_step")

    retired: ClassVar[tuple[str, ...]] = reductions.peak_observations("test_loss")

    def pack_key(self, params: RidgeParams) -> Hashable:
        wide = params.iterative and params.fitted > params.sample_count
        levels = params.iterative and bool(params.train_level or params.test_level)
        stop = params.iterative and params.stop_at_levels
        return params.design, params.solver, params.precision, wide, levels, stop

    def extent(self, params: RidgeParams) -> tuple[int, ...]:
        return (params.sample_count, params.fitted)

    def analyses(self, thresholds: Any) -> Sequence[Mapping[str, Scalar]]:
        # Near p = n the loss has heavy tails.
        return (
            {"kind": "peak", "of": "final_test_loss", "along": "features", "scale": "log"},
            {"kind": "peak", "of": "final_test_loss", "along": "sample_count", "scale": "log"},
            {"kind": "peak", "of": "test_loss", "along": "step", "scale": "log"},
        )

    def amount(self, params: RidgeParams, name: str) -> float:
        return float(params.fitted) if name == "features" else super().amount(params, name)

    def schedule(self, params: RidgeParams) -> NDArray[np.int64]:
        return log_spaced_steps(params.horizon, params.curve_points, params.curve_until)

    def cost(self, params: RidgeParams, *, extent: tuple[int, ...], models: int) -> Cost:
        memory_bytes = self.memory_bytes(params, extent=extent, models=models, device="cpu")
        return cost.pack_cost(
            params, extent=extent, models=models, reports=self.report_steps(params), memory_bytes=memory_bytes
        )

    def memory_bytes(self, params: RidgeParams, *, extent: tuple[int, ...], models: int, device: str) -> float:
        return memory.ridge_bytes(params, extent=extent, models=models, device=device)

    def train(self, pack: Sequence[Member[RidgeParams]], *, device: str) -> Iterator[Report]:
        from jobs.ridge.pack import train

        return train(pack, device)

    def cautions(
        self, settings: Sequence[tuple[RidgeParams, Observations | None]], thresholds: Any
    ) -> Sequence[Caution]:
        """Sizes on one side of p = n, where the risk of least squares without a penalty has its peak."""
        ratios = [p.fitted / p.sample_count for p, _ in settings if p.weight_decay == 0]
        found = peak_outside(
            ratios,
            low=1.0,
            high=1.0,
            source="the risk of least squares peaks where p = n (Hastie et al. 2019, arXiv 1903.08560)",
            sized="include features (or inputs) near sample_count",
        )
        return () if found is None else (found,)

    def observe(self, params: RidgeParams, curves: Curves, thresholds: Any) -> Observations:
        """Reduce a trial's curves. The level steps are exact: the training checks every step."""
        step, values = curves.step, curves.values
        train, test = (_level_step(step, values[f"{name}_level_step"]) for name in ("train", "test"))
        levels = {**reductions.exactly("train_level_step", train), **reductions.exactly("test_level_step", test)}
        return {
            **reductions.crossing("diverged_step", step, ~np.isfinite(values["train_loss"])),
            **reductions.crossing(
                "interpolation_step", step, values["relative_train_loss"] <= thresholds.interpolated_loss
            ),
            **levels,
            **reductions.gap_between("level_gap", levels, *_LEVELS, reductions.horizon(step)),
            **reductions.final_values(curves, (name for name in self.metrics if not name.endswith("_step"))),
            **reductions.best_value(curves, "test_loss", largest=False),
            **reductions.parameter_counts(params.fitted, examples=params.sample_count, outputs=1),
        }

    def completed(self, params: RidgeParams, observations: Observations) -> Observations:
        full = dict(super().completed(params, observations))
        for name in _LEVELS:  # exact in earlier versions too
            if name + AFTER not in full and isinstance(step := full.get(name), float):
                full |= reductions.exactly(name, step)
        full |= reductions.gap_bounds("level_gap", full, *_LEVELS)
        return full if len(full) > len(observations) else observations

    def observe_retired(self, params: RidgeParams, curves: Curves, thresholds: Any) -> Observations:
        return reductions.peak_and_minima(curves, "test_loss", thresholds.prominence)

    def phase(self, params: RidgeParams, observations: Observations, thresholds: Any) -> str:
        """One of the four phases of grokking where both levels are set, else whether the model interpolates."""
        if isinstance(observations["diverged_step"], float):
            return "diverged"
        if params.iterative and params.train_level and params.test_level:
            train, test, steps = (observations[k] for k in ("train_level_step", "test_level_step", "level_gap"))
            return reductions.learning_phase(train, test, steps, thresholds.grokking_gap)
        final = observations["final_relative_train_loss"]
        if isinstance(final, float) and final <= thresholds.interpolated_loss:
            return "interpolating"
        return "underparameterised" if params.fitted < params.sample_count else "overparameterised"

    def theory(self, params: RidgeParams) -> Mapping[str, Prediction]:
        return theory.predict(params)


def _level_step(step: reductions.Steps, values: reductions.Values) -> float | Censored:
    return float(values[-1]) if len(values) and np.isfinite(values[-1]) else Censored(reductions.horizon(step))

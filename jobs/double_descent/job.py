"""Double descent: perceptrons of any depth and width on MNIST-1D, on images and on Gaussian data.

Protocols: Nakkiran et al. 2019 (arXiv 1912.02292) for the axes and the noise conventions; Greydanus 2020, notebook
deep-double-descent, for MNIST-1D (MLP 40-h-h-10, SGD 0.01 with momentum 0.9, batch 100, 500 epochs, 15% of the labels
redrawn); Belkin et al. 2019 (arXiv 1812.11118) for two-layer networks on a subset of MNIST with the squared loss.
"""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jobs import curves as reductions
from jobs.cautions import Caution, peak_outside
from jobs.double_descent import memory
from jobs.double_descent.params import DoubleDescentParams, DoubleDescentThresholds
from jobs.job import (
    AnyParams,
    Cost,
    Curves,
    Job,
    Member,
    Observations,
    P,
    ParamError,
    Report,
    Scalar,
    as_dict,
    log_spaced_steps,
)
from jobs.packed import cost as mlp

_PER_MODEL = {
    "width",
    "sample_count",
    "data_seed",
    "label_noise",
    "noise_std",
    "init_scale",
    "weight_std",
    "learning_rate",
    "rate_decay",
    "rate_decay_epochs",
    "rate_decay_networks",
    "weight_decay",
    "steps",
    "epochs",
    "curve_points",
    "curve_until",
}
"""Parameters in which the models of a pack may differ."""

FEWEST_PER_LABEL = 0.15
"""Parameters per example and output below which no network here has been found to interpolate."""
_THRESHOLD = (
    "networks interpolate at about one parameter per example and output (Belkin et al. 2019, arXiv 1812.11118); "
    "measured here at 0.17, on MNIST-1D with 15% label noise"
)


class DescentJob(Job[P]):
    """What the double-descent jobs share: test error against width, steps, samples and label noise."""

    Thresholds: ClassVar[type[AnyParams]] = DoubleDescentThresholds
    metrics: ClassVar[tuple[str, ...]] = ("train_loss", "train_error", "test_loss", "test_error")
    shares: ClassVar[tuple[str, ...]] = ("train_error", "test_error")
    phases: ClassVar[tuple[str, ...]] = ("underfitted", "interpolating", "diverged")
    headline: ClassVar[tuple[str, ...]] = ("final_test_error", "final_train_error", "interpolation_step")
    retired: ClassVar[tuple[str, ...]] = reductions.peak_observations("test_error")
    crossings: ClassVar[tuple[str, ...]] = ("diverged_step", "interpolation_step")

    horizon_params: ClassVar[tuple[str, ...]] = ("steps", "epochs", "curve_points", "curve_until")

    def shared(self, params: P) -> tuple[Scalar, ...]:
        """The parameters that all models of a pack have in common."""
        return tuple(value for name, value in as_dict(params).items() if name not in _PER_MODEL)

    @abstractmethod
    def trained_parameters(self, params: P) -> int:
        """Number of trained parameters of the trial's network, without padding."""

    def analyses(self, thresholds: Any) -> Sequence[Mapping[str, Scalar]]:
        return (
            {"kind": "peak", "of": "final_test_error", "along": "width"},
            {"kind": "peak", "of": "final_test_error", "along": "sample_count"},
            {"kind": "peak", "of": "test_error", "along": "step"},
            {"kind": "complexity", "of": "final_train_error", "along": "sample_count", "error": thresholds.emc_error},
            {
                "kind": "threshold",
                "of": "final_train_error",
                "along": "width",
                "error": thresholds.interpolated_error,
            },
        )

    def amount(self, params: Any, name: str) -> float:
        return float(params.used) if name == "sample_count" else super().amount(params, name)

    def schedule(self, params: Any) -> NDArray[np.int64]:
        return log_spaced_steps(params.horizon, params.curve_points, params.curve_until)

    def observe(self, params: Any, curves: Curves, thresholds: Any) -> Observations:
        """Reduce a trial's curves. A peak along the steps belongs to a mean over replicates, not to one trial."""
        step, values = curves.step, curves.values
        return {
            **reductions.crossing("diverged_step", step, ~np.isfinite(values["train_loss"])),
            **reductions.final_values(curves, values),
            **reductions.crossing("interpolation_step", step, values["train_error"] <= thresholds.interpolated_error),
            **reductions.best_value(curves, "test_error", largest=False),
            **reductions.parameter_counts(
                self.trained_parameters(params), examples=params.used, outputs=params.outputs
            ),
        }

    def observe_retired(self, params: Any, curves: Curves, thresholds: Any) -> Observations:
        return reductions.peak_and_minima(curves, "test_error", thresholds.prominence)

    def phase(self, params: P, observations: Observations, thresholds: Any) -> str:
        """Whether the trial interpolates its training data at its end, or has diverged."""
        if isinstance(observations["diverged_step"], float):
            return "diverged"
        final = observations["final_train_error"]
        return "interpolating" if isinstance(final, float) and final <= thresholds.interpolated_error else "underfitted"

    def cautions(self, settings: Sequence[tuple[P, Observations | None]], thresholds: Any) -> Sequence[Caution]:
        """Sizes without the interpolation threshold, unless finished trials show both sides of it."""
        known = {
            self.phase(params, observations, thresholds)
            for params, observations in settings
            if observations is not None
        }
        if {"underfitted", "interpolating"} <= known or not settings:
            return ()
        ratios = [self._per_label(params) for params, _ in settings]
        middle = settings[len(settings) // 2][0]
        found = peak_outside(
            ratios, low=FEWEST_PER_LABEL, high=1.0, source=_THRESHOLD, sized=lambda ratio: self._sized(middle, ratio)
        )
        return () if found is None else (found,)

    def _per_label(self, params: Any) -> float:
        """Trained parameters per example and output."""
        return float(self.trained_parameters(params) / (params.used * params.outputs))

    def _sized(self, params: Any, ratio: float) -> str:
        """The width at which a network like this one has so many parameters per label."""
        low, high = 1, 2**14
        with contextlib.suppress(ParamError):
            while low < high:
                middle = (low + high) // 2
                if self._per_label(replace(params, width=middle)) < ratio:
                    low = middle + 1
                else:
                    high = middle
            if 1 < low < 2**14:
                return (
                    f"include widths near {low}, which have {ratio:g} parameters per label; or change the sample count"
                )
        return f"include networks with about {ratio:g} parameters per label, or change the sample count"

    def summarise(self, trials: Sequence[tuple[P, Observations]], thresholds: Any) -> dict[str, float]:
        """interpolation_width: the smallest width from which on the median final training error is at most
        `interpolated_error`, for each setting of the other axes. Peaks and complexities have intervals: see `analyses`.
        """
        results: dict[str, float] = {}
        errors = ("final_train_error",)
        medians = reductions.medians_along(trials, "width", {"width"}, errors, not_finite=1.0)
        for label, (widths, train) in medians.items():
            fits = train <= thresholds.interpolated_error
            if fits[-1]:
                first = 0 if fits.all() else len(fits) - int(np.argmin(fits[::-1]))
                results[f"interpolation_width{label}"] = float(widths[first])
        return results


class DoubleDescent(DescentJob[DoubleDescentParams]):
    """Test error of perceptrons."""

    Params: ClassVar[type[AnyParams]] = DoubleDescentParams

    def pack_key(self, params: DoubleDescentParams) -> Hashable:
        # Full batches and minibatches are drawn differently. The models of a pack share the schedule of the rate.
        decay = params.decay_steps
        schedule = ((params.rate_decay, decay),) if decay else ()
        return (*self.shared(params), params.batch == params.used, *schedule)

    def trained_parameters(self, params: DoubleDescentParams) -> int:
        return params.parameters

    def extent(self, params: DoubleDescentParams) -> tuple[int, ...]:
        return (params.width,) if params.depth else ()

    def cost(self, params: DoubleDescentParams, *, extent: tuple[int, ...], models: int) -> Cost:
        p, steps, reports = params, params.horizon, self.report_steps(params)
        sizes = mlp.layer_sizes(p.inputs, mlp.padded_width(extent[0] if extent else 1), p.depth, p.outputs)
        macs, parameters, hidden = mlp.multiply_adds(sizes), mlp.parameters(sizes), sum(sizes[1:-1])
        adaptive = p.optimiser != "sgd"
        model_bytes = mlp.step_bytes(sizes, p.batch, p.optimiser)
        blocks = math.ceil(models / mlp.models_per_block(model_bytes, "cpu"))
        # The gradient of the inputs is not computed.
        step_macs = p.batch * (3 * macs - sizes[0] * sizes[1])
        elements = p.batch * (p.inputs + 4 * hidden + 12 * p.outputs) + parameters * (12 if adaptive else 3)
        evaluated = p.used + p.test_count
        of_block = steps * (11 + 6 * p.depth + (10 if adaptive else 0)) + reports * 40
        return Cost(
            launches=blocks * of_block,
            gpu_launches=of_block,
            matmul_flop=2.0 * models * (steps * step_macs + reports * evaluated * macs),
            element_visits=models * (steps * elements + reports * evaluated * (2 * hidden + 8 * p.outputs + p.inputs)),
            memory_bytes=self.memory_bytes(p, extent=extent, models=models, device="cpu"),
            steps=steps,
            reports=reports,
        )

    def memory_bytes(self, params: DoubleDescentParams, *, extent: tuple[int, ...], models: int, device: str) -> float:
        width = extent[0] if extent else 1
        return memory.perceptron_bytes(params, self.schedule(params), width=width, models=models, device=device)

    def train(self, pack: Sequence[Member[DoubleDescentParams]], *, device: str) -> Iterator[Report]:
        from jobs.double_descent.pack import train

        return train(pack, device)

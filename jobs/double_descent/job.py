"""Double descent: perceptrons of any depth and width on MNIST-1D, on images and on Gaussian data.

Protocols: Nakkiran et al. 2019 (arXiv 1912.02292) for the axes and the noise conventions; Greydanus
2020, notebook deep-double-descent, for MNIST-1D (MLP 40-h-h-10, SGD 0.01 with momentum 0.9, batch
100, 500 epochs, 15% of the labels redrawn). Belkin et al. 2019 (arXiv 1812.11118) for two-layer networks on a subset
of MNIST with the squared loss.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jobs.curves import diverged, first_at_most
from jobs.data.images import SOURCES
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

INPUTS = {"mnist1d": 40} | {name: math.prod(source.shape) for name, source in SOURCES.items()}
"""Data set -> its number of inputs, where that is given: MNIST-1D, and images as rows of pixels from 0 to 1."""
DATA_SETS = ("mnist1d", "gaussian_linear", "gaussian_teacher", *SOURCES)


@dataclass(frozen=True, kw_only=True)
class DoubleDescentParams(Params):
    """What one perceptron is trained on, and how."""

    data: str = param("mnist1d", choices=DATA_SETS, meaning="data set")
    pool: int = param(4000, unit="examples", low=2, high=1_000_000, meaning="training examples that are generated")
    sample_count: int = param(
        0,
        unit="examples",
        low=0,
        high=1_000_000,
        meaning="training examples used, a random subset of the pool; 0 means all of it",
    )
    test_count: int = param(1000, unit="examples", low=1, high=1_000_000, meaning="test examples")
    archive: str = param(
        "",
        added=True,
        meaning="an image data set's file or folder on the worker's disk; empty: the standard one in the data folder",
    )
    inputs: int = param(
        40, low=1, high=10_000, meaning="input features (40 for mnist1d, 784 for mnist, 3072 for cifar10)"
    )
    width: int = param(64, unit="units", low=1, high=16_384, meaning="units of each hidden layer")
    depth: int = param(2, unit="layers", low=0, high=16, meaning="hidden layers; 0 is a linear model")
    init_scale: float = param(1.0, above=0, high=1e3, meaning="factor on the initial weights and biases")
    label_noise: float = param(0.0, low=0, high=1, meaning="probability that a training label is replaced")
    noise_convention: str = param(
        "redrawn",
        choices=("redrawn", "incorrect"),
        meaning="a replaced label is one of all classes, or one of the wrong ones",
    )
    noise_std: float = param(
        0.0, low=0, high=1e3, meaning="standard deviation of the training targets' noise (gaussian_linear)"
    )
    loss: str = param("cross_entropy", choices=("cross_entropy", "squared"), meaning="training loss")
    optimiser: str = param("sgd", choices=("sgd", "adam", "adamw"), meaning="optimiser")
    learning_rate: float = param(0.01, unit="1/step", above=0, high=100, meaning="constant learning rate")
    momentum: float = param(0.9, low=0, below=1, meaning="momentum (sgd)")
    beta1: float = param(0.9, low=0, below=1, meaning="decay of the first moment (adam, adamw)")
    beta2: float = param(0.999, low=0, below=1, meaning="decay of the second moment (adam, adamw)")
    weight_decay: float = param(
        0.0, low=0, high=1e3, meaning="L2 term in the gradient (sgd, adam), or decoupled (adamw)"
    )
    batch_size: int = param(100, unit="examples", low=0, high=1_000_000, meaning="examples a step; 0 means all")
    batch_order: str = param(
        "shuffled", choices=("shuffled", "with_replacement", "cyclic"), meaning="how batches are drawn"
    )
    steps: int = param(20_000, unit="steps", low=1, high=100_000_000, meaning="optimiser steps (where epochs is 0)")
    epochs: int = param(0, unit="epochs", low=0, high=10_000_000, meaning="passes over the data; 0: steps says it")
    curve_points: int = param(100, low=2, high=320, meaning="log-spaced steps at which the curves are measured")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_count > self.pool:
            raise ParamError("sample_count", f"must be at most pool ({self.pool})", self.sample_count)
        if self.inputs != INPUTS.get(self.data, self.inputs):
            raise ParamError("inputs", f"must be {INPUTS[self.data]} for data: {self.data}", self.inputs)
        if self.archive and self.data not in SOURCES:
            raise ParamError("archive", "is for image data", self.archive, ("",))
        if self.data == "gaussian_linear" and self.loss != "squared":
            raise ParamError("loss", "must be squared for data: gaussian_linear (regression)", self.loss, ("squared",))
        if self.data == "gaussian_linear" and self.label_noise:
            raise ParamError("label_noise", "needs classes; gaussian_linear has noise_std", self.label_noise)
        if self.data != "gaussian_linear" and self.noise_std:
            raise ParamError("noise_std", "is for data: gaussian_linear; classes have label_noise", self.noise_std)

    @property
    def used(self) -> int:
        """Training examples."""
        return self.sample_count or self.pool

    @property
    def batch(self) -> int:
        """Examples a step."""
        return min(self.batch_size or self.used, self.used)

    @property
    def horizon(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * -(-self.used // self.batch) if self.epochs else self.steps

    @property
    def outputs(self) -> int:
        """Network outputs: one for each class, or one number."""
        if self.data == "gaussian_linear":
            return 1
        return SOURCES[self.data].classes if self.data in SOURCES else 10


@dataclass(frozen=True, kw_only=True)
class DoubleDescentThresholds(Params):
    """Where one phase ends and the next begins."""

    interpolated_error: float = param(
        0.01, low=0, below=1, meaning="training error at or below which the model interpolates its data"
    )
    emc_error: float = param(
        0.1, low=0, below=1, meaning="training error of the effective model complexity (Nakkiran et al. 2019)"
    )
    prominence: float = param(
        0.01, low=0, meaning="how far a test-error peak stands above the minima on both sides, to be one"
    )


class DoubleDescent(Job[DoubleDescentParams]):
    """Test error against width, steps, samples and label noise."""

    Params: ClassVar[type[AnyParams]] = DoubleDescentParams
    Thresholds: ClassVar[type[AnyParams]] = DoubleDescentThresholds
    metrics: ClassVar[tuple[str, ...]] = ("train_loss", "train_error", "test_loss", "test_error")
    phases: ClassVar[tuple[str, ...]] = ("underfitted", "interpolating", "diverged")
    headline: ClassVar[tuple[str, ...]] = ("final_test_error", "final_train_error", "interpolation_step")

    def pack_key(self, params: DoubleDescentParams) -> Hashable:
        shared = as_dict(params)
        for name in _PER_MODEL:
            del shared[name]
        # Full-batch models and minibatch models have batches of another kind.
        return (*shared.values(), params.batch == params.used)

    def extent(self, params: DoubleDescentParams) -> tuple[int, ...]:
        return (params.width,) if params.depth else ()

    def report_steps(self, params: DoubleDescentParams) -> int:
        return len(log_spaced_steps(params.horizon, params.curve_points))

    def cost(self, params: DoubleDescentParams, *, extent: tuple[int, ...], models: int) -> Cost:
        from jobs.packed import cost as mlp_cost

        return mlp_cost.pack_cost(
            inputs=params.inputs,
            width=extent[0] if extent else 1,
            depth=params.depth,
            outputs=params.outputs,
            batch=params.batch,
            steps=params.horizon,
            reports=self.report_steps(params),
            evaluated=params.used + params.test_count,
            examples=params.used,
            models=models,
            adaptive=params.optimiser != "sgd",
        )

    def train(self, pack: Sequence[Member[DoubleDescentParams]], *, device: str) -> Iterator[Report]:
        from jobs.double_descent import pack as double_descent_pack

        return double_descent_pack.train(pack, device)

    def observe(self, params: DoubleDescentParams, curves: Curves, thresholds: Any) -> Observations:
        return observe_curves(curves, thresholds)

    def phase(self, params: DoubleDescentParams, observations: Observations, thresholds: Any) -> str:
        return fit_phase(observations, thresholds)

    def summarise(
        self, trials: Sequence[tuple[DoubleDescentParams, Observations]], thresholds: Any
    ) -> dict[str, float]:
        return summarise_sweep(trials, thresholds)


_PER_MODEL = (
    "width",
    "sample_count",
    "label_noise",
    "noise_std",
    "init_scale",
    "learning_rate",
    "weight_decay",
    "steps",
    "epochs",
    "curve_points",
)


def fit_phase(observations: Observations, thresholds: DoubleDescentThresholds) -> str:
    """Whether a trial interpolates its training data at its end, or has diverged."""
    if isinstance(observations["diverged_step"], float):
        return "diverged"
    final = observations["final_train_error"]
    return "interpolating" if isinstance(final, float) and final <= thresholds.interpolated_error else "underfitted"


def observe_curves(curves: Curves, thresholds: DoubleDescentThresholds) -> dict[str, float | Censored]:
    """Reduce a trial's curves.

    `test_error_peak` is the most prominent interior maximum along the steps (epoch-wise double
    descent), with the minimum before it and after it; censored where none stands out.
    """
    step, train, test = curves.step, curves.values["train_error"], curves.values["test_error"]
    horizon = float(step[-1]) if len(step) else 0.0
    seen: dict[str, float | Censored] = {}
    bad = ~np.isfinite(curves.values["train_loss"])
    seen["diverged_step"] = float(step[bad][0]) if diverged(curves.values["train_loss"]) else Censored(horizon)
    for name, values in curves.values.items():
        seen[f"final_{name}"] = float(values[-1]) if len(values) else Censored(0.0)
    seen["interpolation_step"] = first_at_most(step, train, thresholds.interpolated_error)
    good = np.isfinite(test)
    step, test = step[good], test[good]
    names = ("test_error_peak", "test_error_peak_step", "second_minimum_test_error", "second_minimum_step")
    seen.update(dict.fromkeys(names, Censored(horizon)))
    if not len(test):
        seen["first_minimum_test_error"] = seen["first_minimum_step"] = Censored(horizon)
        return seen
    peak = most_prominent_peak(test, thresholds.prominence)
    first = int(np.argmin(test if peak is None else test[:peak]))
    seen["first_minimum_test_error"], seen["first_minimum_step"] = float(test[first]), float(step[first])
    if peak is not None:
        second = peak + int(np.argmin(test[peak:]))
        found = (test[peak], step[peak], test[second], step[second])
        seen.update({name: float(value) for name, value in zip(names, found, strict=True)})
    return seen


def most_prominent_peak(values: np.ndarray[Any, np.dtype[np.float64]], prominence: float) -> int | None:
    """Position of the interior maximum that stands highest above the lower ground on both its sides.

    None where none stands at least `prominence` above the higher of the two minima.
    """
    if len(values) < 3:
        return None
    before = np.minimum.accumulate(values)[:-2]
    after = np.minimum.accumulate(values[::-1])[::-1][2:]
    height = values[1:-1] - np.maximum(before, after)
    best = int(np.argmax(height))
    return best + 1 if height[best] >= max(prominence, 1e-12) else None


def summarise_sweep(
    trials: Sequence[tuple[DoubleDescentParams, Observations]], thresholds: DoubleDescentThresholds
) -> dict[str, float]:
    """Quantities across a sweep, one per setting of the other axes.

    interpolation_width: the smallest width from which on the median final training error (over
    replicates) is at most `interpolated_error`; test_error_peak_width: the width of the most
    prominent maximum of the median final test error; effective_model_complexity: the largest
    sample count whose median final training error is at most `emc_error` (Nakkiran et al. 2019).
    """
    results: dict[str, float] = {}
    for label, curve in _along(trials, "width").items():
        widths, train, test = curve
        fits = np.array(train) <= thresholds.interpolated_error
        if fits[-1]:
            first = 0 if fits.all() else len(fits) - int(np.argmin(fits[::-1]))
            results[f"interpolation_width{label}"] = float(widths[first])
        peak = most_prominent_peak(np.array(test), thresholds.prominence)
        if peak is not None:
            results[f"test_error_peak_width{label}"] = float(widths[peak])
    for label, (counts, train, _) in _along(trials, "used").items():
        fitted = [count for count, error in zip(counts, train, strict=True) if error <= thresholds.emc_error]
        if fitted:
            results[f"effective_model_complexity{label}"] = float(max(fitted))
    return results


def _along(
    trials: Sequence[tuple[DoubleDescentParams, Observations]], name: str
) -> Mapping[str, tuple[list[int], list[float], list[float]]]:
    """Median final training and test error along one axis, for each setting of the others.

    The key is a suffix that names the setting by the parameters that vary; only curves of at
    least three points are kept.
    """
    hidden = ("width",) if name == "width" else ("sample_count", "pool")
    settings = [{k: v for k, v in as_dict(p).items() if k not in hidden} for p, _ in trials]
    varying = [k for k in (settings[0] if settings else {}) if len({s[k] for s in settings}) > 1]
    groups: dict[str, dict[int, tuple[list[float], list[float]]]] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for (params, seen), setting in zip(trials, settings, strict=True):
        train, test = seen.get("final_train_error"), seen.get("final_test_error")
        if not isinstance(train, float) or not isinstance(test, float):
            continue
        label = "".join(f"/{k} {setting[k]}" for k in varying)
        entry = groups[label][getattr(params, name)]
        entry[0].append(train if np.isfinite(train) else 1.0)
        entry[1].append(test if np.isfinite(test) else 1.0)
    curves = {}
    for label, points in groups.items():
        if len(points) >= 3:
            at = sorted(points)
            medians = [[statistics.median(points[x][i]) for x in at] for i in (0, 1)]
            curves[label] = (at, medians[0], medians[1])
    return curves

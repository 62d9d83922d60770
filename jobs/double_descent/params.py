"""What a perceptron of double descent is trained on, and how; and the thresholds of both double-descent jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.data.images import SOURCES
from jobs.job import ParamError, Params, param
from jobs.packed import cost, fields

INPUTS = {"mnist1d": 40} | {name: math.prod(source.shape) for name, source in SOURCES.items()}
"""Data set -> its number of inputs, where the data set fixes it; images are rows of pixels from 0 to 1."""
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
        meaning="training examples, a random subset of the pool; 0: the whole pool",
    )
    test_count: int = param(1000, unit="examples", low=1, high=1_000_000, meaning="test examples")
    archive: str = param(
        "",
        added=True,
        meaning="an image data set's file or folder on the worker's disk; empty: the standard one in the data folder",
    )
    data_seed: int = fields.data_seed()
    pixels: str = param(
        "original",
        added=True,
        choices=("original", "random"),
        meaning="inputs of each training and test example: in their order, or each example's in a random order of its"
        " own (Zhang et al. 2017), the same for all trials on a data set",
    )
    inputs: int = param(
        40, low=1, high=10_000, meaning="input features (40 for mnist1d, 784 for mnist, 3072 for cifar10)"
    )
    width: int = param(64, unit="units", low=1, high=16_384, meaning="units of each hidden layer")
    depth: int = param(2, unit="layers", low=0, high=16, meaning="hidden layers; 0 is a linear model")
    init_scale: float = fields.init_scale()
    weight_std: float = param(
        0.0,
        added=True,
        low=0,
        high=100,
        meaning="standard deviation of normal initial weights, times init_scale; 0: they are uniform within"
        " 1/sqrt(fan in), as the biases are in any case",
    )
    label_noise: float = fields.label_noise()
    noise_convention: str = fields.noise_convention("redrawn")
    noise_std: float = param(
        0.0, low=0, high=1e3, meaning="standard deviation of the training targets' noise (gaussian_linear)"
    )
    loss: str = param(
        "cross_entropy",
        choices=("cross_entropy", "squared", "class_mean_squared"),
        meaning="training loss; squared: half the squared distance to the one-hot label; class_mean_squared: the mean"
        " squared difference over examples and classes (torch's MSELoss)",
    )
    optimiser: str = fields.optimiser("sgd")
    learning_rate: float = fields.learning_rate(0.01, meaning="learning rate, constant unless rate_decay is below 1")
    rate_decay: float = param(
        1.0, added=True, above=0, high=1, meaning="factor on the learning rate after every rate_decay_epochs epochs"
    )
    rate_decay_epochs: int = param(
        500, added=True, unit="epochs", low=1, high=10_000_000, meaning="epochs between two decays of the learning rate"
    )
    rate_decay_networks: str = param(
        "all",
        added=True,
        choices=("all", "underparameterised"),
        meaning="networks whose learning rate decays: all, or those with at most as many parameters as training"
        " examples times outputs",
    )
    momentum: float = fields.momentum(0.9)
    beta1: float = fields.beta1()
    beta2: float = fields.beta2(0.999)
    weight_decay: float = fields.weight_decay()
    batch_size: int = param(100, unit="examples", low=0, high=1_000_000, meaning="examples per step; 0: all")
    batch_order: str = param(
        "shuffled", choices=("shuffled", "with_replacement", "cyclic"), meaning="how batches are drawn"
    )
    last_batch: str = param(
        "filled",
        added=True,
        choices=("filled", "smaller"),
        meaning="the last of an epoch's shuffled batches is filled from the next epoch, or smaller",
    )
    steps: int = fields.steps(20_000, meaning="optimiser steps (used where epochs is 0)")
    epochs: int = fields.epochs()
    curve_points: int = fields.curve_points(100)
    matmul_precision: str = fields.matmul_precision()
    curve_until: int = fields.curve_until()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_count > self.pool:
            raise ParamError("sample_count", f"must be at most pool ({self.pool})", self.sample_count)
        if self.last_batch == "smaller" and self.batch_order != "shuffled":
            raise ParamError("last_batch", "may be smaller with batch_order: shuffled", self.last_batch, ("filled",))
        if self.inputs != INPUTS.get(self.data, self.inputs):
            raise ParamError("inputs", f"must be {INPUTS[self.data]} for data: {self.data}", self.inputs)
        if self.archive and self.data not in SOURCES:
            raise ParamError("archive", "is for image data", self.archive, ("",))
        if self.data_seed and self.data in SOURCES:
            raise ParamError("data_seed", f"is for generated data, not {self.data}", self.data_seed, (0,))
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
        """Examples per step."""
        return min(self.batch_size or self.used, self.used)

    @property
    def horizon(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * -(-self.used // self.batch) if self.epochs else self.steps

    @property
    def parameters(self) -> int:
        """Trained parameters of the network, without padding."""
        return cost.parameters(cost.layer_sizes(self.inputs, self.width, self.depth, self.outputs))

    @property
    def decay_steps(self) -> int:
        """Optimiser steps between two decays of the learning rate; 0: it is constant."""
        over = self.parameters > self.used * self.outputs
        if self.rate_decay == 1 or (over and self.rate_decay_networks == "underparameterised"):
            return 0
        return self.rate_decay_epochs * -(-self.used // self.batch)

    @property
    def outputs(self) -> int:
        """Network outputs: one per class, or a single number for regression."""
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
        0.1, low=0, below=1, meaning="training error of the effective model complexity that is computed by default"
    )
    prominence: float = fields.prominence()

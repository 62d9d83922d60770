"""What a convolutional network of image double descent is trained on, and how."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.data.images import SOURCES, Source
from jobs.double_descent.networks import TABLES, Layer
from jobs.job import ParamError, Params, param
from jobs.packed import fields

_MNIST1D = Source("", {}, (1, 1, 40), (0.0,), (1.0,), 4_000, 1_000)


@dataclass(frozen=True, kw_only=True)
class ImageParams(Params):
    """What one network is trained on, and how."""

    data: str = param("cifar10", choices=(*SOURCES, "mnist1d"), meaning="data set")
    archive: str = param(
        "", meaning="the data set's file or folder on the worker's disk; empty: the standard one in the data folder"
    )
    pool: int = param(
        0, unit="images", low=0, high=1_000_000, meaning="training images, the first of the data set; 0: all published"
    )
    sample_count: int = param(
        0,
        unit="images",
        low=0,
        high=1_000_000,
        meaning="training images, a random subset of the pool; 0: the whole pool",
    )
    test_count: int = param(
        0, unit="images", low=0, high=1_000_000, meaning="test images, the first of the data set; 0: all published"
    )
    train_evaluated: int = param(
        0, unit="images", low=0, high=1_000_000, meaning="training images that the curves are measured on; 0: all"
    )
    data_seed: int = fields.data_seed()
    model: str = param("preact_resnet18", choices=tuple(TABLES), meaning="network")
    width: int = param(64, unit="channels", low=1, high=1_024, meaning="channels k of the first layer")
    init_scale: float = fields.init_scale()
    label_noise: float = fields.label_noise()
    noise_convention: str = fields.noise_convention("incorrect")
    augment: bool = param(True, meaning="random crops (4 black pixels around) and horizontal flips")
    optimiser: str = fields.optimiser("adam")
    learning_rate: float = fields.learning_rate(1e-4, meaning="initial learning rate")
    rate_every: int = param(
        0,
        unit="steps",
        low=0,
        high=100_000_000,
        meaning="the learning rate falls as 1 / sqrt(1 + step // rate_every); 0: it is constant",
    )
    momentum: float = fields.momentum(0.0)
    beta1: float = fields.beta1()
    beta2: float = fields.beta2(0.999)
    weight_decay: float = fields.weight_decay()
    batch_size: int = param(128, unit="images", low=1, high=1_000_000, meaning="images per step")
    steps: int = fields.steps(500_000, meaning="optimiser steps (used where epochs is 0)")
    epochs: int = fields.epochs()
    curve_points: int = fields.curve_points(100)
    matmul_precision: str = fields.matmul_precision()
    curve_until: int = fields.curve_until()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_count > self.pool_count:
            raise ParamError("sample_count", f"must be at most pool ({self.pool_count})", self.sample_count)
        if (self.model == "cnn_1d") != (self.data == "mnist1d"):
            fitting = ("cnn_1d",) if self.data == "mnist1d" else ("cnn5", "preact_resnet18")
            raise ParamError("model", f"does not fit data: {self.data}", self.model, fitting)
        if self.data == "mnist1d" and self.augment:
            raise ParamError("augment", "is for images; set it to false for data: mnist1d", self.augment, (False,))
        if self.data == "mnist1d" and self.archive:
            raise ParamError("archive", "is not for data: mnist1d, which is generated", self.archive, ("",))
        if self.data_seed and self.data != "mnist1d":
            raise ParamError("data_seed", f"is for data: mnist1d, not {self.data}", self.data_seed, (0,))
        if self.used < 2:
            raise ParamError("sample_count", "must be at least 2 (batch normalisation)", self.used)

    @property
    def source(self) -> Source:
        """What is known of the data set before it is read."""
        return SOURCES.get(self.data, _MNIST1D)

    @property
    def pool_count(self) -> int:
        """Training images that `sample_count` is drawn from."""
        return self.pool or self.source.train

    @property
    def tested(self) -> int:
        """Test images."""
        return self.test_count or self.source.test

    @property
    def classes(self) -> int:
        """Network outputs."""
        return self.source.classes

    @property
    def outputs(self) -> int:
        """As `classes`, by the name that perceptrons have."""
        return self.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.source.shape

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The network's layers."""
        return TABLES[self.model](self.shape[0], self.classes)

    @property
    def used(self) -> int:
        """Training images."""
        return self.sample_count or self.pool_count

    @property
    def batch(self) -> int:
        """Images per step."""
        return min(self.batch_size, self.used)

    @property
    def horizon(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * -(-self.used // self.batch) if self.epochs else self.steps

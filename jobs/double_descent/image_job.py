"""Double descent of convolutional networks on images: Nakkiran et al. 2019 (arXiv 1912.02292).

Their protocol: a pre-activation ResNet18 or a 5-layer CNN of width k (channels k, 2k, 4k, 8k), CIFAR-10 or CIFAR-100,
padded random crop and horizontal flip, batches of 128, cross-entropy without weight decay; Adam at 1e-4 for 4,000
epochs, or SGD without momentum at 0.1 with a rate that falls as 1 / sqrt(1 + step // 512); a noisy label is one of the
wrong classes (`noise_convention: incorrect`), replaced once and for good. Also the MNIST-1D CNN of Greydanus 2020.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jobs.data.images import SOURCES
from jobs.double_descent import networks
from jobs.double_descent.job import DoubleDescent, DoubleDescentThresholds, fit_phase, observe_curves, summarise_sweep
from jobs.job import (
    AnyParams,
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

_MNIST1D = (4_000, 1_000, 10, (1, 1, 40))
"""Of MNIST-1D: training and test examples by default, classes, shape."""


@dataclass(frozen=True, kw_only=True)
class ImageParams(Params):
    """What one network is trained on, and how."""

    data: str = param("cifar10", choices=(*SOURCES, "mnist1d"), meaning="data set")
    archive: str = param(
        "", meaning="the data set's file or folder on the worker's disk; empty: the standard one in the data folder"
    )
    pool: int = param(
        0, unit="images", low=0, high=1_000_000, meaning="the first training images; 0: as many as are published"
    )
    sample_count: int = param(
        0,
        unit="images",
        low=0,
        high=1_000_000,
        meaning="training images used, a random subset of the pool; 0 means all of it",
    )
    test_count: int = param(
        0, unit="images", low=0, high=1_000_000, meaning="the first test images; 0: as many as are published"
    )
    train_evaluated: int = param(
        0, unit="images", low=0, high=1_000_000, meaning="training images that the curves are measured on; 0: all"
    )
    model: str = param("preact_resnet18", choices=tuple(networks.TABLES), meaning="network")
    width: int = param(64, unit="channels", low=1, high=1_024, meaning="channels k of the first layer")
    init_scale: float = param(1.0, above=0, high=1e3, meaning="factor on the initial weights and biases")
    label_noise: float = param(0.0, low=0, high=1, meaning="probability that a training label is replaced")
    noise_convention: str = param(
        "incorrect",
        choices=("redrawn", "incorrect"),
        meaning="a replaced label is one of all classes, or one of the wrong ones",
    )
    augment: bool = param(True, meaning="random crops (4 black pixels around) and horizontal flips")
    optimiser: str = param("adam", choices=("sgd", "adam", "adamw"), meaning="optimiser")
    learning_rate: float = param(1e-4, unit="1/step", above=0, high=100, meaning="initial learning rate")
    rate_every: int = param(
        0,
        unit="steps",
        low=0,
        high=100_000_000,
        meaning="the learning rate falls as 1 / sqrt(1 + step // this); 0: it is constant",
    )
    momentum: float = param(0.0, low=0, below=1, meaning="momentum (sgd)")
    beta1: float = param(0.9, low=0, below=1, meaning="decay of the first moment (adam, adamw)")
    beta2: float = param(0.999, low=0, below=1, meaning="decay of the second moment (adam, adamw)")
    weight_decay: float = param(
        0.0, low=0, high=1e3, meaning="L2 term in the gradient (sgd, adam), or decoupled (adamw)"
    )
    batch_size: int = param(128, unit="images", low=1, high=1_000_000, meaning="images a step")
    steps: int = param(500_000, unit="steps", low=1, high=100_000_000, meaning="optimiser steps (where epochs is 0)")
    epochs: int = param(0, unit="epochs", low=0, high=10_000_000, meaning="passes over the data; 0: steps says it")
    curve_points: int = param(100, low=2, high=320, meaning="log-spaced steps at which the curves are measured")

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
        if self.used < 2:
            raise ParamError("sample_count", "must be at least 2 (batch normalisation)", self.used)

    @property
    def pool_count(self) -> int:
        """Training images that `sample_count` is drawn from."""
        return self.pool or (_MNIST1D[0] if self.data == "mnist1d" else SOURCES[self.data].train)

    @property
    def tested(self) -> int:
        """Test images."""
        return self.test_count or (_MNIST1D[1] if self.data == "mnist1d" else SOURCES[self.data].test)

    @property
    def classes(self) -> int:
        """Network outputs."""
        return _MNIST1D[2] if self.data == "mnist1d" else SOURCES[self.data].classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return _MNIST1D[3] if self.data == "mnist1d" else SOURCES[self.data].shape

    @property
    def used(self) -> int:
        """Training images."""
        return self.sample_count or self.pool_count

    @property
    def batch(self) -> int:
        """Images a step."""
        return min(self.batch_size, self.used)

    @property
    def horizon(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * -(-self.used // self.batch) if self.epochs else self.steps


class ImageDoubleDescent(Job[ImageParams]):
    """Test error of convolutional networks against width, steps, samples and label noise."""

    Params: ClassVar[type[AnyParams]] = ImageParams
    Thresholds: ClassVar[type[AnyParams]] = DoubleDescentThresholds
    metrics: ClassVar[tuple[str, ...]] = DoubleDescent.metrics
    phases: ClassVar[tuple[str, ...]] = DoubleDescent.phases
    headline: ClassVar[tuple[str, ...]] = DoubleDescent.headline

    def pack_key(self, params: ImageParams) -> Hashable:
        shared = as_dict(params)
        for name in _PER_MODEL:
            del shared[name]
        # Batch statistics need batches of one size; full batches are of another kind.
        return (*shared.values(), params.batch, params.batch == params.used)

    def extent(self, params: ImageParams) -> tuple[int, ...]:
        return (params.width,)

    def report_steps(self, params: ImageParams) -> int:
        return len(log_spaced_steps(params.horizon, params.curve_points))

    def cost(self, params: ImageParams, *, extent: tuple[int, ...], models: int) -> Cost:
        measured = min(params.train_evaluated or params.used, params.used) + params.tested
        return networks.pack_cost(
            model=params.model,
            shape=params.shape,
            outputs=params.classes,
            width=extent[0],
            batch=params.batch,
            steps=params.horizon,
            reports=self.report_steps(params),
            evaluated=measured,
            models=models,
            adaptive=params.optimiser != "sgd",
        )

    def train(self, pack: Sequence[Member[ImageParams]], *, device: str) -> Iterator[Report]:
        from jobs.double_descent import image_pack

        return image_pack.train(pack, device)

    def observe(self, params: ImageParams, curves: Curves, thresholds: Any) -> Observations:
        return observe_curves(curves, thresholds)

    def phase(self, params: ImageParams, observations: Observations, thresholds: Any) -> str:
        return fit_phase(observations, thresholds)

    def summarise(self, trials: Sequence[tuple[ImageParams, Observations]], thresholds: Any) -> dict[str, float]:
        return summarise_sweep(trials, thresholds)  # type: ignore[arg-type]


_PER_MODEL = (
    "width",
    "sample_count",
    "label_noise",
    "init_scale",
    "learning_rate",
    "weight_decay",
    "steps",
    "epochs",
    "curve_points",
)

"""The packs that are trained on the stand-in device: every job and optimiser, early leaving, checkpoints, modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.double_descent.image_job import ImageDoubleDescent
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams
from jobs.job import Job, Member, Params
from jobs.ridge.job import Ridge
from jobs.ridge.params import RidgeParams
from tests import test_module_job, test_module_layers, test_states


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pack of one job."""

    name: str
    job: Job[Any]
    pack: list[Member[Any]]
    reached: float = 0.0
    """What the host reads from the device after some reports; before, it reads 0."""


def cases(archive: str) -> Iterator[Case]:
    """All packs. In those of `tests/test_states.py`, one trial leaves early, and others differ in size and rates."""
    for name, (job, params) in (test_states.cases(archive) | _further(archive) | _rarer()).items():
        above = "levels" in name or "stop" in name
        yield Case(name=name, job=job, pack=_members(params), reached=1.0 if above else 0.0)
    yield from _modules()


def _members(params: list[Params]) -> list[Member[Any]]:
    return [Member(params=p, seed=11 + k) for k, p in enumerate(params)]


def _further(archive: str) -> dict[str, tuple[Job[Any], list[Params]]]:
    descent: dict[str, Any] = {"pool": 60, "test_count": 50, "batch_size": 16, "steps": 12, "curve_points": 3}
    add: dict[str, Any] = {"modulus": 7, "width": 16, "steps": 12, "curve_points": 3, "data_fraction": 0.6}
    linear: dict[str, Any] = {"inputs": 12, "sample_count": 20}

    def perceptrons(**changed: Any) -> tuple[Job[Any], list[Params]]:
        return DoubleDescent(), [DoubleDescentParams(**descent | changed, width=w) for w in (3, 17)]

    def modular(**changed: Any) -> tuple[Job[Any], list[Params]]:
        return Grokking(), [GrokkingParams(**add | changed, weight_decay=w) for w in (0.0, 1.0)]

    def solved(**changed: Any) -> tuple[Job[Any], list[Params]]:
        return Ridge(), [RidgeParams(**linear | changed, weight_decay=w) for w in (0.0, 0.1)]

    signals = descent | {"data": "mnist1d", "model": "cnn_1d", "augment": False, "label_noise": 0.2}
    images = [ImageParams(**signals, width=w) for w in (2, 3)]
    return {
        "perceptrons, mnist1d": perceptrons(data="mnist1d", last_batch="smaller", label_noise=0.1),
        "perceptrons, subsets": perceptrons(data="gaussian_teacher", sample_count=40, batch_order="with_replacement"),
        "perceptrons, regression": perceptrons(data="gaussian_linear", loss="squared", inputs=9, batch_order="cyclic"),
        "images, mnist1d": (ImageDoubleDescent(), list(images)),
        "perceptrons, bf16": perceptrons(matmul_precision="bf16"),
        "perceptrons, images as rows": perceptrons(
            data="cifar10", archive=archive, inputs=3072, pool=40, test_count=40, depth=0
        ),
        "perceptrons, one data set": perceptrons(
            data="gaussian_teacher",
            data_seed=3,
            weight_std=0.5,
            loss="class_mean_squared",
            label_noise=0.2,
            noise_convention="incorrect",
            sample_count=33,
            batch_size=0,
            curve_until=5,
        ),
        "images, subset": (
            ImageDoubleDescent(),
            [
                test_states.image_params(
                    archive,
                    model="preact_resnet18",
                    sample_count=23,
                    train_evaluated=9,
                    label_noise=0.2,
                    augment=False,
                    matmul_precision="bf16",
                    optimiser="adamw",
                    steps=8,
                    width=w,
                )
                for w in (1, 2)
            ],
        ),
        "quadratic, tf32": modular(matmul_precision="tf32"),
        "quadratic, sgd": modular(optimiser="sgd", momentum=0.9, loss="stablemax", loss_precision=64),
        "embedding, projected": modular(model="embedding_mlp", embedding=6, perp_grad="layers_rescaled"),
        "embedding, own rate": modular(
            model="embedding_mlp",
            embedding=6,
            embedding_learning_rate=0.1,
            decay_embedding=False,
            optimiser="adam",
            progress="complexity",
            complexity_directions=5,
        ),
        "quadratic, fourier": modular(progress="fourier", batch_size=8, last_batch="smaller"),
        "transformer, equation": modular(
            model="transformer", sequence="equation", vocabulary=20, loss="cross_entropy", layer_norm=True, layers=2
        ),
        "images, grokking": (
            Grokking(),
            [GrokkingParams(**add | {"data_fraction": f}, model="image_mlp", operation="digits") for f in (0.05, 0.1)],
        ),
        "ridge, solved": solved(),
        "ridge, relu features": solved(design="relu", features=15),
        "ridge, linear attention": solved(design="linear_attention", inputs=4, tasks=3),
        "ridge, fourier features": solved(design="fourier", features=30, solver="gradient_descent", steps=12),
    }


def _rarer() -> dict[str, tuple[Job[Any], list[Params]]]:
    """Options that reach code of their own in a step, a measurement or the search for a level."""
    add: dict[str, Any] = {"modulus": 7, "width": 16, "steps": 12, "curve_points": 3, "data_fraction": 0.6}
    long: dict[str, Any] = {"steps": 30, "train_level": 0.5, "test_level": 0.5}
    smaller: dict[str, Any] = {"batch_size": 8, "last_batch": "smaller"}
    descends: dict[str, Any] = {"solver": "gradient_descent", "learning_rate": 0.05, "steps": 12, "curve_points": 3}

    def modular(**changed: Any) -> tuple[Job[Any], list[Params]]:
        return Grokking(), [GrokkingParams(**add | changed, weight_decay=w) for w in (0.0, 1.0)]

    def linear(**changed: Any) -> tuple[Job[Any], list[Params]]:
        given = {"inputs": 12, "sample_count": 20, **descends, **changed}
        return Ridge(), [RidgeParams(**given, weight_decay=w) for w in (0.0, 0.1)]

    return {
        "quadratic, stops": modular(
            stop_accuracy=0.5,
            label_noise=0.1,
            noise_count="exact",
            class_mean=True,
            warmup_steps=3,
            warmup_from_zero=True,
            batch_fraction=0.5,
        ),
        "quadratic, levels in smaller batches": modular(**long, **smaller, grokfast_lambda=2.0),
        "quadratic, all pairs": modular(progress="fourier", perp_grad="whole", matmul_precision="bf16"),
        "embedding, added": modular(
            model="embedding_mlp",
            embedding=6,
            combine="sum",
            activation="gelu",
            layers=3,
            biases=False,
            init="torch",
            loss="stablemax",
            loss_precision=64,
            batch_size=9,
        ),
        "embedding, levels of one-hot": modular(
            model="embedding_mlp", embedding=0, activation="tanh", perp_grad="layers", matmul_precision="tf32", **long
        ),
        "transformer, levels": modular(
            model="transformer",
            loss="cross_entropy",
            layer_norm=True,
            norm_order="grokfast",
            positions="sinusoidal",
            attention_biases=True,
            **long,
            **smaller,
        ),
        "transformer, fourier": modular(
            model="transformer",
            loss="cross_entropy",
            init="nanda",
            progress="fourier",
            sequence="operator",
            biases=False,
            optimiser="sgd",
            layers=2,
        ),
        "images, levels of digits": (
            Grokking(),
            [
                GrokkingParams(
                    **add | {"data_fraction": f},
                    model="image_mlp",
                    operation="digits",
                    train_level=0.5,
                    progress="complexity",
                    complexity_points=5,
                    complexity_directions=4,
                    batch_size=20,
                )
                for f in (0.05, 0.1)
            ],
        ),
        "ridge, orthogonal": linear(
            design="orthogonal", covariance="power_law", teacher="power_law", train_level=0.9, noise_variance=0.1
        ),
        "ridge, wide": linear(teacher="row_space", sample_count=7, precision="float32", curve_until=5),
        "ridge, dense levels": linear(design="relu", features=15, train_level=0.9, test_level=0.95, steps=40),
        "ridge, attention": linear(design="linear_attention", inputs=3, init_scale=1.0),
        "ridge, two scales": linear(
            solver="min_norm",
            covariance="two_scale",
            small_features=4,
            small_scale=0.1,
            small_signal=0.5,
            teacher="equal",
        ),
    }


def _modules() -> Iterator[Case]:
    layers, small = test_module_layers.Layers(), test_module_job.Small()
    pack = test_module_job.members(small, 5, optimiser="adamw", schedule="cosine", warmup_steps=5, clip_norm=0.3)
    yield Case(name="module, adamw with a schedule", job=small, pack=pack)
    early = [m for n in (24, 9, 9, 9) for m in test_module_job.members(small, 1, steps=n, optimiser="sgd")]
    yield Case(name="module, models leave", job=small, pack=early)
    for kind in ("batch_norm", "sdpa_dropout", "buffers", "conv_stride", "group_norm", "attention", "encoder", "tied"):
        yield Case(name=f"module, {kind}", job=layers, pack=test_module_layers.members(layers, kind=kind, steps=12))
    for name, job in (
        ("own batches, masks, probe", test_module_layers.Own()),
        ("PyTorch's optimiser", test_module_layers.RmsProp()),
        ("random numbers of its own", test_module_layers.Noisy()),
    ):
        pack = test_module_layers.members(job, steps=12, schedule="inverse_sqrt", clip_norm=0.3)
        yield Case(name=f"module, {name}", job=job, pack=pack)
    for order in ("with_replacement", "cyclic"):
        given: dict[str, Any] = {"optimiser": "adam", "matmul_precision": "bf16", "label_noise": 0.2}
        pack = test_module_layers.members(layers, kind="conv", steps=12, batch_order=order, **given)
        yield Case(name=f"module, {order}", job=layers, pack=pack)
    pack = test_module_layers.members(layers, steps=12, batch_size=0, stop_accuracy=0.5, schedule="step")
    yield Case(name="module, stops", job=layers, pack=pack, reached=1.0)

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
    for name, (job, params) in (test_states.cases(archive) | _further()).items():
        yield Case(name=name, job=job, pack=_members(params), reached=1.0 if "levels" in name else 0.0)
    yield from _modules()


def _members(params: list[Params]) -> list[Member[Any]]:
    return [Member(params=p, seed=11 + k) for k, p in enumerate(params)]


def _further() -> dict[str, tuple[Job[Any], list[Params]]]:
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


def _modules() -> Iterator[Case]:
    layers, small = test_module_layers.Layers(), test_module_job.Small()
    pack = test_module_job.members(small, 5, optimiser="adamw", schedule="cosine", warmup_steps=5, clip_norm=0.3)
    yield Case(name="module, adamw with a schedule", job=small, pack=pack)
    early = [m for n in (24, 9, 9, 9) for m in test_module_job.members(small, 1, steps=n, optimiser="sgd")]
    yield Case(name="module, models leave", job=small, pack=early)
    for kind in ("batch_norm", "sdpa_dropout", "buffers"):
        yield Case(name=f"module, {kind}", job=layers, pack=test_module_layers.members(layers, kind=kind, steps=12))
    for name, job in (
        ("own batches, masks, probe", test_module_layers.Own()),
        ("PyTorch's optimiser", test_module_layers.RmsProp()),
        ("random numbers of its own", test_module_layers.Noisy()),
    ):
        yield Case(
            name=f"module, {name}", job=job, pack=test_module_layers.members(job, steps=12, schedule="inverse_sqrt")
        )

"""What is measured: the packs whose curves are compared with the CPU's, and those whose rates are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jobs.double_descent import fused
from jobs.double_descent.image_job import ImageDoubleDescent
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams
from jobs.job import Job, Member, Params
from jobs.ridge.job import Ridge
from jobs.ridge.params import RidgeParams
from tests.benchmarks.bench_module import Bench, chosen
from tests.benchmarks.gpu.measure import Case
from tests.benchmarks.gpu.report import counted

PERCEPTRON: dict[str, Any] = {"data": "gaussian_teacher", "pool": 1000, "test_count": 100, "batch_size": 100}
GROK: dict[str, Any] = {"data_fraction": 0.5, "weight_decay": 1.0}
CLASSIFIED: dict[str, Any] = {"loss": "cross_entropy", "learning_rate": 1e-3}
TRANSFORMER: dict[str, Any] = {"model": "transformer", "modulus": 97, "width": 128, **CLASSIFIED}
SMALL: dict[str, Any] = {"steps": 25, "curve_points": 10}
MODULES = Bench()
MOST_PARAMETERS = 1e8
"""Models times squared width: larger packs are left out."""
COMPILED = {(64, 100), (64, 1000), (256, 100)}
"""Widths and models of perceptrons whose steps are compiled too, which takes long."""


def law(archive: str) -> Iterator[tuple[str, Job[Any], list[Params]]]:
    """Packs of all jobs."""
    small = {**PERCEPTRON, **SMALL}
    yield (
        "perceptron, SGD",
        DoubleDescent(),
        [DoubleDescentParams(width=w, label_noise=0.2, **small) for w in (3, 17, 64)],
    )
    yield (
        "perceptron, AdamW",
        DoubleDescent(),
        [DoubleDescentParams(width=w, optimiser="adamw", **small) for w in (5, 9)],
    )
    yield "perceptron, squared", DoubleDescent(), [DoubleDescentParams(width=12, loss="squared", **small)]
    yield (
        "quadratic",
        Grokking(),
        [GrokkingParams(modulus=13, width=40, weight_decay=w, data_fraction=0.6, **SMALL) for w in (0.0, 1.0)],
    )
    given = {"modulus": 13, **CLASSIFIED, **SMALL}
    yield "embedding perceptron", Grokking(), [GrokkingParams(model="embedding_mlp", width=20, **given)]
    yield "transformer", Grokking(), [GrokkingParams(model="transformer", width=32, **given)]
    yield "ridge", Ridge(), [RidgeParams()]
    images: dict[str, Any] = {
        "archive": archive,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "steps": 10,
        "curve_points": 5,
    }
    for model in ("cnn5", "preact_resnet18"):
        params = [ImageParams(model=model, width=w, pool=40, test_count=16, **images) for w in (2, 3)]
        yield f"images, {model}", ImageDoubleDescent(), list(params)
    for kind in ("mlp 16", "cnn 1-8-16", "transformer 32"):
        yield f"module, {kind}", MODULES, [MODULES.params_for({"kind": kind, **SMALL})] * 2


def perceptrons(width: int, sizes: tuple[int, ...], device: str) -> Iterator[Case]:
    """Networks 40-width-width-10, batch 100."""

    def make(steps: int) -> Params:
        return DoubleDescentParams(width=width, steps=steps, curve_points=2, **PERCEPTRON)

    cuda = device.startswith("cuda")
    for models in sizes:
        if models * width * width > MOST_PARAMETERS:
            continue
        ways = ["eager", *["captured"] * cuda]
        if not cuda or (width, models) in COMPILED:
            ways.append("compiled")
        if cuda and width <= fused.WIDEST and fused.available():
            ways.append("fused")
        name = f"perceptron, width {width}, {counted(models, 'model')}"
        yield Case(name=name, job=DoubleDescent(), make=make, models=models, ways=ways)


def modular(name: str, settings: dict[str, Any], sizes: tuple[int, ...], compiled: int, device: str) -> Iterator[Case]:
    """Grokking; the pack of `compiled` models is compiled too."""

    def make(steps: int) -> Params:
        return GrokkingParams(steps=steps, curve_points=2, **GROK, **settings)

    for models in sizes:
        ways = ["eager", *["captured"] * device.startswith("cuda"), *["compiled"] * (models == compiled)]
        yield Case(name=f"{name}, {counted(models, 'model')}", job=Grokking(), make=make, models=models, ways=ways)


def grokking(device: str, *, large: bool) -> Iterator[Case]:
    """Quadratic networks in full batches, and transformers."""
    if large:
        yield from modular("quadratic p = 31, width 200", {"modulus": 31, "width": 200}, (1, 10, 100, 1000), 10, device)
        yield from modular("quadratic p = 97, width 500", {"modulus": 97, "width": 500}, (1, 10, 50), 0, device)
        yield from modular("transformer p = 97, width 128", TRANSFORMER, (1, 4, 16), 4, device)
    else:
        small = TRANSFORMER | {"modulus": 7, "width": 16}
        yield from modular("quadratic p = 13, width 64", {"modulus": 13, "width": 64}, (1, 10), 10, device)
        yield from modular("transformer p = 7, width 16", small, (2,), 2, device)


def modules(*, large: bool) -> Iterator[Case]:
    """Networks of `tests.benchmarks.bench_module`; a module job chooses itself how it trains."""
    many = (
        {"mlp 64": (1, 100, 1000), "cnn 1-8-16": (1, 100), "transformer 32": (1, 32)} if large else {"mlp 16": (1, 10)}
    )
    for kind, sizes in many.items():

        def make(steps: int, kind: str = kind) -> Params:
            given: dict[str, Any] = {"kind": kind, "optimiser": "sgd", "learning_rate": 0.01, "curve_points": 2}
            return MODULES.Params(**given, steps=steps)

        for models in sizes:
            name = f"module, {kind}, {counted(models, 'model')}"
            yield Case(name=name, job=MODULES, make=make, models=models, ways=("chosen",), prepare=_choose)


def _choose(pack: Sequence[Member[Any]], device: str) -> str:
    """Let the job time how the pack trains fastest, as for a long training."""
    way = chosen(MODULES, list(pack), device)
    return "one at a time" if way.size == 1 else f"{way.size} stacked" + ", recorded" * way.recorded


def convolutions(archive: str, device: str, *, large: bool) -> Iterator[Case]:
    """Random images of CIFAR-10's size; batch 128 where large."""
    few = 1 if large else 8
    networks = ("cnn5", 8, (1, 8, 32)), ("cnn5", 64, (1,)), ("preact_resnet18", 16, (1, 4))
    common: dict[str, Any] = {"archive": archive, "pool": 5000 // few, "batch_size": 128 // few, "test_count": 16}
    for model, width, sizes in networks if large else (("cnn5", 8, (1,)),):
        make = _images(model=model, width=width, **common)
        for models in sizes:
            name = f"{model}, width {width}, {counted(models, 'model')}"
            ways = ("eager", "captured") if device.startswith("cuda") else ("eager",)
            yield Case(name=name, job=ImageDoubleDescent(), make=make, models=models, ways=ways)


def _images(**settings: Any) -> Callable[[int], Params]:
    return lambda steps: ImageParams(steps=steps, train_evaluated=16, curve_points=2, **settings)

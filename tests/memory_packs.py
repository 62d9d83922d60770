"""Packs whose peak memory is predicted and counted: `python -m tests.memory_packs DEVICE`.

DEVICE is `cpu`, or `standin`, a GPU without values (`tests/gpu_dry/stand_in.py`). Each line of the output is a pack:
predicted and counted bytes, their ratio, and its name.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.double_descent.image_job import ImageDoubleDescent
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams
from jobs.job import Job, Member
from jobs.packed import loop
from jobs.packed.storages import PeakMemory
from jobs.ridge.job import Ridge
from jobs.ridge.params import RidgeParams
from tests import test_module_job, test_module_layers
from tests.benchmarks.bench_module import Bench
from tests.gpu_dry.stand_in import NAME, StandIn, register
from tests.image_files import write_cifar


@dataclass(frozen=True)
class Pack:
    """Trials that differ in their seeds."""

    name: str
    job: Job[Any]
    members: list[Member[Any]]

    def predicted(self, device: str) -> float:
        """Bytes."""
        params = self.members[0].params
        extent, models = self.job.extent(params), len(self.members)
        return self.job.memory_bytes(params, extent=extent, models=models, device=device)

    def counted(self, device: str) -> int:
        """Peak bytes of the tensors on the device, while the pack trains from its set-up to its end."""
        mode = StandIn() if device == NAME else PeakMemory()
        before = loop.OFFER_S, loop.FIRST_PIECE
        loop.OFFER_S, loop.FIRST_PIECE = 1e9, 10**9  # the pieces of a training must not depend on the machine's speed
        try:
            with mode:
                for _ in self.job.train(self.members, device=device):
                    pass
        finally:
            loop.OFFER_S, loop.FIRST_PIECE = before
        return mode.storages.peak


def packs(archive: str) -> Iterator[Pack]:
    """Packs of all jobs; a training has several chunks of batches, and two reports."""

    def same(name: str, job: Job[Any], models: int, params: Any) -> Pack:
        return Pack(name, job, [Member(params=params, seed=seed + 1) for seed in range(models)])

    def perceptrons(name: str, models: int, **values: Any) -> Pack:
        return same(name, DoubleDescent(), models, DoubleDescentParams(steps=200, curve_points=2, **values))

    def images(name: str, models: int, **values: Any) -> Pack:
        return same(name, ImageDoubleDescent(), models, ImageParams(curve_points=2, **values))

    def modular(name: str, models: int, **values: Any) -> Pack:
        return same(name, Grokking(), models, GrokkingParams(curve_points=2, **values))

    def linear(name: str, models: int, **values: Any) -> Pack:
        return same(name, Ridge(), models, RidgeParams(curve_points=2, **values))

    small: dict[str, Any] = {"data": "cifar10", "archive": archive, "pool": 40, "test_count": 40, "steps": 2}
    descends: dict[str, Any] = {"solver": "gradient_descent", "learning_rate": 0.01, "steps": 100}
    yield perceptrons("perceptrons, width 64", 30, width=64)
    yield perceptrons("perceptrons, width 8, few examples", 100, width=8, pool=1000)
    yield perceptrons("perceptrons, width 16, one data set", 200, width=16, data_seed=3)
    yield perceptrons("perceptrons, width 16, random pixels", 20, width=16, pixels="random", data_seed=-1, pool=2000)
    few: dict[str, Any] = {"data": "gaussian_teacher", "data_seed": 1, "inputs": 10, "pool": 400, "batch_size": 32}
    last = DoubleDescentParams(steps=70, curve_points=2, width=8, **few)
    yield same("perceptrons, a small last chunk", DoubleDescent(), 40, last)
    yield perceptrons(
        "perceptrons, gaussian, Adam", 12, data="gaussian_teacher", width=256, pool=1000, optimiser="adam"
    )
    yield perceptrons(
        "perceptrons, subsets", 40, data="gaussian_teacher", data_seed=1, width=32, sample_count=500, label_noise=0.1
    )
    yield perceptrons(
        "perceptrons, full batch",
        20,
        data="gaussian_linear",
        loss="squared",
        depth=1,
        pool=300,
        batch_size=0,
        width=100,
    )
    yield perceptrons("perceptrons, bf16", 12, width=200, pool=500, matmul_precision="bf16")
    yield perceptrons("perceptrons, full batch, tf32", 6, width=150, pool=300, batch_size=0, matmul_precision="tf32")
    yield images("images, CNN on signals", 16, data="mnist1d", model="cnn_1d", augment=False, width=16, steps=100)
    yield images("images, CNN, bf16", 4, model="cnn5", width=4, batch_size=32, matmul_precision="bf16", **small)
    yield images("images, CNN", 4, model="cnn5", width=4, batch_size=32, **small)
    yield images("images, ResNet", 2, model="preact_resnet18", width=2, batch_size=16, **small)
    yield modular("grokking, p = 31", 20, modulus=31, width=128, steps=100)
    yield modular("grokking, a small last chunk", 20, modulus=31, width=16, batch_size=200, steps=40)
    yield modular("grokking, p = 97", 4, modulus=97, width=256, steps=3)
    yield modular(
        "grokking, Fourier", 10, modulus=31, width=128, optimiser="sgd", batch_size=64, progress="fourier", steps=100
    )
    yield modular("grokking, bf16", 20, modulus=31, width=128, steps=100, matmul_precision="bf16")
    yield modular(
        "grokking, embedding, bf16",
        10,
        model="embedding_mlp",
        modulus=23,
        width=128,
        layers=2,
        steps=10,
        matmul_precision="bf16",
    )
    yield modular("grokking, embedding", 10, model="embedding_mlp", modulus=31, width=128, steps=10)
    yield modular(
        "grokking, complexity", 6, model="embedding_mlp", modulus=23, width=64, layers=3, progress="complexity", steps=5
    )
    transformer: dict[str, Any] = {"model": "transformer", "heads": 4, "loss": "cross_entropy"}
    yield modular("grokking, transformer", 6, modulus=23, width=32, steps=5, **transformer)
    yield modular(
        "grokking, two blocks",
        3,
        modulus=31,
        width=64,
        layers=2,
        batch_size=100,
        layer_norm=True,
        steps=34,
        **transformer,
    )
    yield modular(
        "grokking, transformer, bf16", 6, modulus=23, width=32, steps=5, matmul_precision="bf16", **transformer
    )
    yield linear("ridge, one problem", 1, inputs=50, sample_count=80, design="relu", features=30)
    yield linear("ridge, linear attention", 3, design="linear_attention", inputs=7, sample_count=150)
    yield linear("ridge, solved", 50, inputs=200, sample_count=100)
    yield linear("ridge, gradient descent", 40, inputs=100, sample_count=60, **descends)
    yield linear("ridge, relu features", 20, inputs=50, sample_count=80, design="relu", features=120)
    yield linear("ridge, fourier features", 20, inputs=50, sample_count=80, design="fourier", features=60, **descends)
    small_job, layers = test_module_job.Small(), test_module_layers.Layers()
    yield Pack("module, AdamW", small_job, test_module_job.members(small_job, 9, optimiser="adamw"))
    yield Pack("module, batch norm", layers, test_module_layers.members(layers, kind="batch_norm", steps=12))
    bench = Bench()
    for kind, models, batch, precision in (
        ("mlp 256", 16, 100, "fp32"),
        ("mlp 256", 16, 100, "bf16"),
        ("cnn 1-8-16", 8, 100, "fp32"),
        ("cnn 1-8-16", 2, 50, "fp32"),
        ("transformer 32", 8, 256, "fp32"),
    ):
        values = {"kind": kind, "optimiser": "sgd", "batch_size": batch, "curve_points": 2, "steps": 8}
        params = bench.params_for({**values, "matmul_precision": precision})
        name = f"module, {models} of {kind}, {precision}"
        yield Pack(name, bench, [Member(params=params, seed=k + 1) for k in range(models)])


def main() -> None:
    """Print the table, and the same in JSON as the last line."""
    device = sys.argv[1]
    torch.set_num_threads(1)
    if device == NAME:
        register()
    results: dict[str, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        archive = str(write_cifar(Path(folder) / "small.tar.gz", train=40, test=40))
        for pack in packs(archive):
            predicted, counted = pack.predicted(device), pack.counted(device)
            results[pack.name] = predicted, counted
            print(f"{predicted:14,.0f} {counted:14,} {predicted / counted:6.2f}  {pack.name}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

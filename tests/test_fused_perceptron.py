"""The kernel that trains perceptrons on a GPU, run by Triton's interpreter, compared with the steps of a CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from jobs.double_descent import fused
from jobs.double_descent.block import MLPBlock
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.pack import blocks_of
from jobs.double_descent.params import DoubleDescentParams
from jobs.job import Member
from jobs.packed.optim import Adam
from tests.packing import assert_same_curves, curves_of

STEPS = 100
SMALL: dict[str, Any] = {"pool": 40, "test_count": 20, "steps": STEPS, "curve_points": 5, "data": "gaussian_teacher"}


@pytest.fixture(scope="module")
def kernel() -> Iterator[ModuleType]:
    """A copy of the kernel's module that the interpreter runs, so that a GPU's own is not touched."""
    # Triton is imported after the variable is set: parts of its own language are interpreted only then.
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton, which the CPU builds of torch do not bring: pip install triton")
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_INTERPRET", "1")
    from triton.runtime import interpreter

    make_scope, patch_tensor = interpreter._patch_lang, interpreter._patch_lang_tensor
    patched: dict[str, Any] = {}

    def patch_index(tensor: Any, scope: Any) -> None:
        # As the interpreter does, but by a conversion that numpy 2.4 has not removed.
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def patch_once(function: Any) -> Any:
        # The interpreter patches the language at every call of every function, which takes most of its time.
        part = function.__module__  # each sees parts of the language of its own
        if part not in patched:
            patched[part] = make_scope(function)
        return SimpleNamespace(restore=lambda: None)

    patch.setattr(interpreter, "_patch_lang_tensor", patch_index)
    patch.setattr(interpreter, "_patch_lang", patch_once)
    spec = importlib.util.find_spec("jobs.double_descent.kernel")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for scope in reversed(patched.values()):
        scope.restore()
    patch.undo()


@pytest.fixture
def interpreted(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are made from now on use the kernel."""
    monkeypatch.setattr(fused, "kernel", lambda: kernel)
    monkeypatch.setattr(fused, "used_for", lambda weights, *_: fused.eligible(weights))


def random_pack(number: int) -> tuple[list[Member[DoubleDescentParams]], fused.Launch]:
    """Two models that can share a block, and a way to launch the kernel."""
    draw = np.random.default_rng(number)

    def one(*values: Any) -> Any:
        return values[int(draw.integers(len(values)))]

    optimiser = one("sgd", "adam", "adamw")
    shared: dict[str, Any] = {
        "inputs": int(draw.integers(1, 65)),
        "optimiser": optimiser,
        "loss": one("cross_entropy", "squared", "class_mean_squared"),
        "batch_order": one("shuffled", "with_replacement", "cyclic"),
        "momentum": one(0.0, 0.9),
        "beta2": one(0.95, 0.999),
    }
    if draw.random() < 0.2:
        shared |= {"data": "gaussian_linear", "loss": "squared", "noise_std": 0.1}
    else:
        shared |= {"label_noise": 0.2}
    if shared["batch_order"] == "shuffled":
        shared["last_batch"] = one("filled", "smaller")
    if draw.random() < 0.3:
        shared |= {"rate_decay": 0.7, "rate_decay_epochs": int(draw.integers(1, 9))}
    full = draw.random() < 0.1
    rate = 0.03 if optimiser == "sgd" else 0.003
    most = int(draw.integers(1, 65))
    members = []
    for seed in range(2):
        own: dict[str, Any] = {
            "width": int(draw.integers(1, most + 1)),
            "learning_rate": rate * float(draw.uniform(0.3, 1)),
            "weight_decay": one(0.0, 0.05),
            "sample_count": 0 if "rate_decay" in shared else int(draw.integers(30, 41)),
            "batch_size": 0 if full else int(shared.setdefault("batch_size", draw.integers(1, 17))),
        }
        members.append(Member(params=DoubleDescentParams(**SMALL | shared | own), seed=100 * number + seed))
    return members, fused.Launch(tile=one(16, 32), warps=1, resident=one(True, False))


def trained(members: list[Member[DoubleDescentParams]], steps: int) -> list[MLPBlock]:
    blocks = [block for block, _ in blocks_of(members, "cpu")]
    for block in blocks:
        block.advance(0, 3)
        block.advance(3, steps - 3)
    return blocks


@pytest.mark.parametrize(
    ("number", "steps"),
    [*((n, 12) for n in range(6)), *(pytest.param(n, STEPS, marks=pytest.mark.slow) for n in range(30))],
)
def test_the_steps_are_those_of_a_cpu(
    number: int, steps: int, kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, launch = random_pack(number)
    expected = trained(members, steps)
    untrained = [block for block, _ in blocks_of(members, "cpu")]
    monkeypatch.setattr(fused, "kernel", lambda: kernel)
    monkeypatch.setattr(fused, "used_for", lambda weights, *_: fused.eligible(weights))
    monkeypatch.setattr(fused, "launch_for", lambda *_, **__: launch)
    for before, there, here in zip(untrained, expected, trained(members, steps), strict=True):
        assert here.fused and not there.fused
        assert float((numbers(before)[0] - numbers(there)[0]).abs().max()) > 1e-3, "it must learn something"
        for one, other in zip(numbers(here), numbers(there), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def numbers(block: MLPBlock) -> list[torch.Tensor]:
    """Parameters and the optimiser's state."""
    optimiser = block._optimiser
    state = [optimiser.first, optimiser.second] if isinstance(optimiser, Adam) else [optimiser.gradient]
    return [optimiser.parameters.flat, *(part.flat for part in state)]


def test_models_leave_a_pack_and_rates_decay(interpreted: None) -> None:
    """Whole trainings: blocks shrink as models finish."""
    settings = SMALL | {"batch_size": 8, "rate_decay": 0.5, "rate_decay_epochs": 2, "learning_rate": 0.05}
    members = [
        Member(params=DoubleDescentParams(width=5 * n, **settings | {"steps": 7 * n}), seed=n) for n in (1, 2, 3)
    ]
    found = curves_of(DoubleDescent(), members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "used_for", lambda *_: False)
        expected = curves_of(DoubleDescent(), members)
    for position in range(3):
        assert_same_curves(found[position], expected[position], rtol=1e-5, atol=1e-6)


def test_a_model_that_diverges_is_seen_to_diverge(interpreted: None) -> None:
    settings = SMALL | {"batch_size": 8, "steps": 20, "curve_points": 20, "loss": "squared", "width": 6}
    members = [Member(params=DoubleDescentParams(learning_rate=rate, **settings), seed=3) for rate in (0.01, 90.0)]
    found = curves_of(DoubleDescent(), members)
    calm, wild = found[0], found[1]
    assert np.isfinite(calm.values["train_loss"]).all() and calm.step[-1] == 20
    assert not np.isfinite(wild.values["train_loss"][-1]) and wild.step[-1] < 20


def test_the_kernel_is_for_small_perceptrons_with_two_hidden_layers() -> None:
    def layers(*sizes: int) -> list[torch.Tensor]:
        return [torch.empty(2, a, b) for a, b in pairwise(sizes[:-1])] + [torch.empty(2, sizes[-1], sizes[-2])]

    assert fused.eligible(layers(40, 64, 64, 10))
    assert not fused.eligible(layers(40, 80, 80, 10))
    assert not fused.eligible(layers(784, 64, 64, 10))
    assert not fused.eligible(layers(40, 64, 10))
    assert not fused.eligible(layers(40, 64, 64, 64, 10))


def test_a_cpu_trains_without_the_kernel() -> None:
    members = [Member(params=DoubleDescentParams(width=8, **SMALL), seed=seed) for seed in range(100)]
    assert all(block.fused is None for block, _ in blocks_of(members, "cpu"))


PERCEPTRON = {"inputs": 40, "models": 100, "batch": 100}


@pytest.mark.parametrize("width", [8, 16, 24, 32, 40, 56, 64])
@pytest.mark.parametrize("adam", [False, True])
def test_the_kernel_is_used_for_what_was_measured(width: int, adam: bool) -> None:
    """Padded widths of 40 to 56 were not timed, and Adam's steps at 64 deviated."""
    expected = not adam and (width <= 32 or width == 64)
    assert fused.measured(width=width, adam=adam, **PERCEPTRON) == expected
    for beyond in ({"inputs": 49}, {"models": 99}, {"batch": 129}):
        assert not fused.measured(width=width, adam=adam, **PERCEPTRON | beyond)


CHECKED = {
    False: {
        *((16, 16, 1, "tf32x3"), (16, 32, 2, "tf32x3"), (32, 16, 2, "tf32x3"), (32, 16, 4, "tf32x3")),
        (64, 16, 8, "tf32x3"),
    },
    True: {(16, 16, 1, "ieee"), (32, 16, 4, "ieee")},
}
"""Padded width, tile, warps and precision of kernels that gave the steps of an eager pack on a GPU, by `adam`; nothing
of them was resident."""


@pytest.mark.parametrize("models", [100, 264, 265, 10_000])
@pytest.mark.parametrize("adam", [False, True])
def test_only_kernels_that_were_checked_on_a_gpu_are_launched(models: int, adam: bool) -> None:
    found = set()
    for width in range(8, 72, 8):
        if fused.measured(width=width, adam=False, **PERCEPTRON | {"models": models}) and (width <= 32 or not adam):
            launch = fused.launch_for(width, models=models, adam=adam)
            assert not launch.resident
            padded = 16 if width <= 16 else 32 if width <= 32 else 64
            found.add((padded, launch.tile, launch.warps, launch.precision))
    assert found <= CHECKED[adam] and len(found) == (2 if adam else 3)


def test_a_kernel_that_does_not_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine where the compiler fails."""
    broken = SimpleNamespace(train={(1,): lambda *_, **__: 1 / 0})
    monkeypatch.setattr(fused, "kernel", lambda: broken)
    monkeypatch.setattr(fused, "used_for", lambda *_: True)
    [(block, _)] = blocks_of([Member(params=DoubleDescentParams(width=8, **SMALL), seed=1)], "cpu")
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError.*pip uninstall triton"):
        block.advance(0, 1)

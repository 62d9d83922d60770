"""Faults that the command must find, planted in the training step of perceptrons and in their measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from jobs.double_descent.block import MLPBlock


def _mixed(block: Any) -> None:
    block._output_MOB.add_(torch.ones(1, 1, block._output_MOB.shape[2]))


def _read(block: Any) -> None:
    if block._output_MOB.sum() > 1e9:
        block._output_MOB.zero_()


def _upload(block: Any) -> None:
    block._output_MOB.add_(torch.tensor([0.0], device=block._device))


def _growth(block: Any) -> None:
    block.__dict__.setdefault("history", []).append(block._output_MOB[:, 0, 0].clone())


FAULTS: Mapping[str, tuple[str, Callable[[Any], None]]] = {
    "mixed": ("_train_step", _mixed),
    "read": ("_train_step", _read),
    "upload": ("_train_step", _upload),
    "growth": ("_train_step", _growth),
    "unnamed": ("measure", _read),
}
"""Name -> the method of `MLPBlock` that gets it, and what it does there."""


def plant(name: str) -> None:
    """Put this fault into the perceptrons of this process."""
    method, fault = FAULTS[name]
    sound = getattr(MLPBlock, method)

    def faulty(self: Any, *arguments: Any) -> Any:
        fault(self)
        return sound(self, *arguments)

    setattr(MLPBlock, method, faulty)

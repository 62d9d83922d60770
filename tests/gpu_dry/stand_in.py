"""A device without values: a stand-in for a GPU on a machine that has none.

It is registered with PyTorch as a backend of its own. Its tensors are fake ones: they have shapes, types and a device,
and no values. Tensors on the CPU are real, so that whatever the host computes by itself is what it is beside a GPU. A
read of the device gives one number, `StandIn.answer`.

What this cannot show: kernels, values, speed, and where PyTorch waits for the device within one operation.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from jobs.packed.block import Block
from jobs.packed.host import to_host
from jobs.packed.storages import Storages

NAME = "standin"
"""Of the device."""
ROOT = Path(__file__).parent.parent.parent
_aten = torch.ops.aten


def register() -> str:
    """Register the device in this process, once, and return its name."""
    _setup_privateuseone_for_python_backend(NAME)
    torch.autograd.set_multithreading_enabled(False)  # `place` needs the caller's stack
    return NAME


class MixedDevices(Exception):
    """An operation got tensors of the device and of the CPU."""


class ValueNeeded(Exception):
    """The shape of a result depends on values: the host would wait for them."""


class _Fake(FakeTensorMode):
    avoid_device_init = True  # nothing can be computed on the device


@dataclass(frozen=True)
class Place:
    """Where something happened: the innermost line of the code under test."""

    line: str
    advancing: bool
    """Whether a block was advancing."""
    named: bool
    """Whether it was in `to_host`."""


_PUTS = (_aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default)


def _places_depend_on_values(indices: Sequence[Tensor | None], values: Tensor) -> bool:
    """Whether values are put where a mask is True: a GPU counts such places, unless they all get one value."""
    return values.numel() != 1 and any(index is not None and index.dtype is torch.bool for index in indices)


class StandIn(TorchDispatchMode):
    """While it is active, the device computes shapes, and what crosses its border is counted."""

    answer = 0.0
    """What every read gives."""

    def __init__(self) -> None:
        super().__init__()
        self._fake = _Fake(allow_non_fake_inputs=True)
        self.reads: Counter[Place] = Counter()
        self.uploads: Counter[Place] = Counter()
        self.mixed: Counter[Place] = Counter()
        self.storages = Storages()

    def __enter__(self) -> StandIn:
        # torch.tensor(..., device=...) makes a tensor of the CPU and copies it.
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        device = kwargs.get("device")
        if not there and (device is None or torch.device(device).type != NAME):
            return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            self.reads[place()] += 1
            return torch.full((), self.answer, dtype=there[0].dtype).item()
        if func is _aten._to_copy.default:
            if there and device is not None and torch.device(device).type == "cpu":
                self.reads[place()] += 1
                return torch.full(there[0].shape, self.answer, dtype=kwargs.get("dtype") or there[0].dtype)
            if not there:
                self.uploads[place()] += 1
        elif func is _aten.copy_.default:
            if not isinstance(args[0], FakeTensor):
                self.reads[place()] += 1
                return args[0].fill_(self.answer)
            if len(there) == 1:
                self.uploads[place()] += 1
        elif func in _PUTS and _places_depend_on_values(args[1], args[2]):
            self.reads[place()] += 1
        elif there and any(tensor.dim() for tensor in tensors if not isinstance(tensor, FakeTensor)):
            at = place()
            self.mixed[at] += 1
            raise MixedDevices(f"{func} got tensors of {NAME} and of cpu: {at.line}")
        return self._computed(func, args, kwargs)

    def _computed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            with self._fake:
                out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            at = place()
            self.reads[at] += 1
            raise ValueNeeded(f"the result of {func} depends on values of {NAME}: {at.line}") from error
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                assert leaf.device.type == NAME, f"{func} leaves the device in a way that is not counted"
                self.storages.add(leaf)
        return out

    def live_bytes(self) -> int:
        """Bytes of the tensors that are held on the device."""
        gc.collect()
        return self.storages.live


def place() -> Place:
    """Where the calling operation is in the code under test."""
    frames = list(_frames(sys._getframe(1)))
    own = [
        f for f in frames if f.f_code.co_filename.startswith(str(ROOT)) and "site-packages" not in f.f_code.co_filename
    ]
    inner = next(f for f in own if f.f_code is not to_host.__code__ and f.f_code.co_filename != __file__)
    file = Path(inner.f_code.co_filename).relative_to(ROOT)
    return Place(
        line=f"{file}:{inner.f_lineno} {inner.f_code.co_name}",
        advancing=any(f.f_code.co_name == "advance" and isinstance(f.f_locals.get("self"), Block) for f in own),
        named=any(f.f_code is to_host.__code__ for f in own),
    )


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back

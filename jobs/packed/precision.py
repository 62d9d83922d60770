"""The number format to which a training step rounds the operands of its matrix products and convolutions.

"fp32" rounds nothing. "tf32" (10 bits after the binary point) and "bf16" (7 bits) round both operands and sum in
float32, as tensor cores do. Parameters, gradients, moments and everything that is computed element by element stay
float32, and so do the measurements. A GPU with TF32 rounds in the product itself; elsewhere the operands are rounded
before it, which is slower, and equal but for the order of the sums and how the GPU rounds. Products that PyTorch
computes within other operations (`nn.LSTM`, `nn.Bilinear`) are not rounded before them: a GPU rounds those of
`nn.LSTM` in trials of "tf32", and of no other format.

The formats of PyTorch's backends are switches of the whole process, which a user's module may have set: they are set
for each piece of a training, and restored after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_OPERANDS: dict[Any, tuple[int, ...]] = {
    **dict.fromkeys((_aten.mm, _aten.bmm, _aten.mv, _aten.dot, _aten.linear, _aten.convolution), (0, 1)),
    **dict.fromkeys((_aten.addmm, _aten.baddbmm, _aten.addbmm, _aten.addmv), (1, 2)),
    _aten.convolution_backward: (0, 1, 2),
}
"""Operation -> places of the arguments that are multiplied."""
_AMPERE = (8, 0)
"""The first compute capability with TF32."""


def tf32(x: Tensor) -> Tensor:
    """float32 numbers rounded to the nearest of TF32, ties to even."""
    bits = x.contiguous().view(torch.int32)
    rounded = bits >> 13
    rounded &= 1
    rounded += bits
    rounded += 0xFFF
    rounded &= ~0x1FFF
    return rounded.view(torch.float32)


def bf16(x: Tensor) -> Tensor:
    """float32 numbers rounded to the nearest of bfloat16, ties to even."""
    return x.bfloat16().float()


_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {"tf32": tf32, "bf16": bf16}


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Within it, float32 matrix products and convolutions have this precision: fp32, tf32 or bf16."""
    with contextlib.ExitStack() as stack:
        # The operands of "bf16" are rounded before the product, and TF32 holds them exactly.
        # It must not round those of recurrent layers, which nothing else rounds.
        stack.enter_context(
            _backends("ieee" if precision == "fp32" else "tf32", "tf32" if precision == "tf32" else "ieee")
        )
        if precision != "fp32":
            # The other kernels of attention hide their products.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(_Rounded(precision))
        yield


_SINCE_2_9 = hasattr(torch.backends.cuda.matmul, "fp32_precision")
"""Whether PyTorch names the formats; before 2.9 it has a switch for TF32, and none for a CPU's libraries."""


class _Matmul:
    """PyTorch's older switch of matrix products, as an attribute."""

    precision = property(
        lambda _: torch.get_float32_matmul_precision(), lambda _, value: torch.set_float32_matmul_precision(value)
    )


@contextlib.contextmanager
def _backends(cuda: str, recurrent: str) -> Iterator[None]:
    """Set the formats in which PyTorch's libraries may compute with float32, and cuDNN's recurrent layers."""
    backends: Any = torch.backends
    allowed = cuda == "tf32"
    switches: list[tuple[Any, str, Any]] = [(backends.cudnn, "allow_tf32", allowed)]
    if _SINCE_2_9:
        # The older switches too, and first, as they set formats: PyTorch lets nobody read one that contradicts them,
        # not even `torch.backends.cudnn.flags`, which a user's module may call.
        switches.append((_Matmul(), "precision", "high" if allowed else "highest"))
        exact = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
        formats = {backends.cuda.matmul: cuda, backends.cudnn.conv: cuda, backends.cudnn.rnn: recurrent}
        formats |= dict.fromkeys(exact, "ieee")
        switches += [(library, "fp32_precision", value) for library, value in formats.items()]
    else:
        switches.append((backends.cuda.matmul, "allow_tf32", allowed))
    before = []
    for place, name, _ in switches:
        with contextlib.suppress(RuntimeError):  # of a user's switches that contradict each other
            before.append((place, name, getattr(place, name)))
    try:
        for place, name, value in switches:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


class _Rounded(TorchDispatchMode):
    """Rounds the operands of products, those of backward passes too."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._precision, self._round = precision, _ROUNDING[precision]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if places := _OPERANDS.get(func.overloadpacket):
            args = tuple(self._operand(a) if place in places else a for place, a in enumerate(args))
        return func(*args, **(kwargs or {}))

    def _operand(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype is not torch.float32:
            return x
        if self._precision == "tf32" and x.is_cuda and torch.cuda.get_device_capability(x.device) >= _AMPERE:
            return x
        return self._round(x)

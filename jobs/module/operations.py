"""Operations that are replaced while a module is trained or measured.

PyTorch draws the masks of dropout in a vectorised module from one generator, in an order that depends on the pack. Here
a mask is a function of the trial's seed, of the step and of the position of the call in the forward pass. Fused
attention and recurrent cells have no rule for `torch.func.vmap`; stacked models compute them from their parts. The rule
of an embedding leaves the gradient of its padding out for the first model alone; here it is left out for all.
`nn.Dropout`, `nn.MultiheadAttention`, `nn.GRUCell` and a user's own calls find the replacements in
`torch.nn.functional` and `torch._VF`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jobs.module.data import Random


class _Calls:
    """The dropout calls of one forward pass."""

    def __init__(self, random: Random | None, *, stacked: bool) -> None:
        self._random, self._count, self._stacked = random, 0, stacked

    def kept(self, rate: float, shape: tuple[int, ...]) -> Tensor:
        """Zeros, and 1 / (1 - rate) with probability 1 - rate."""
        if not 0 <= rate <= 1:
            raise ValueError(f"dropout: the rate must be from 0 to 1; got {rate}")
        assert self._random is not None, "nothing is drawn while models are measured"
        drawn = self._random.uniform(f"dropout/{self._count}", *shape)
        self._count += 1
        return (drawn >= rate) / (1 - rate) if rate < 1 else torch.zeros_like(drawn)

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        return input * self.kept(p, tuple(input.shape)).to(input.dtype)

    def channels(self, dimensions: int) -> Callable[..., Tensor]:
        """Dropout of whole channels, with so many dimensions after them."""

        def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            del inplace
            if not training or p == 0:
                return input
            rows = tuple(input.shape[: input.dim() - dimensions])
            return input * self.kept(p, (*rows, *(1,) * dimensions)).to(input.dtype)

        return dropout

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not dropout_p and not self._stacked:
            return _ATTENTION(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            length, width = scores.shape[-2:]
            attn_mask = torch.ones(length, width, dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None:
            masked = attn_mask.dtype == torch.bool
            scores = torch.where(attn_mask, scores, -math.inf) if masked else scores + attn_mask
        return self.dropout(scores.softmax(-1), dropout_p) @ value


def _gates(x: Tensor, state: Tensor, w: tuple[Tensor, ...], parts: int) -> tuple[tuple[Tensor, ...], ...]:
    """The gates' inputs from x and from the state; `w`: both weights, then both biases, which may be None."""
    biases = w[2:] or (None, None)
    of_x, of_state = functional.linear(x, w[0], biases[0]), functional.linear(state, w[1], biases[1])
    return of_x.chunk(parts, -1), of_state.chunk(parts, -1)


def _gru_cell(x: Tensor, state: Tensor, *w: Tensor) -> Tensor:
    (xr, xz, xn), (hr, hz, hn) = _gates(x, state, w, 3)
    new = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return (state - new) * torch.sigmoid(xz + hz) + new


def _lstm_cell(x: Tensor, states: tuple[Tensor, Tensor], *w: Tensor) -> tuple[Tensor, Tensor]:
    of_x, of_state = _gates(x, states[0], w, 4)
    i, f, g, o = (a + b for a, b in zip(of_x, of_state, strict=True))
    cell = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


_ATTENTION: Callable[..., Tensor] = functional.scaled_dot_product_attention
_EMBEDDING: Callable[..., Tensor] = functional.embedding


def _embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *rest: Any, **options: Any) -> Tensor:
    rows = _EMBEDDING(input, weight, None, *rest, **options)
    if padding_idx is None:
        return rows
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), rows.detach(), rows)


@contextlib.contextmanager
def replaced(random: Random | None, *, stacked: bool) -> Iterator[None]:
    """Replace the operations in this context.

    Args:
        random: what the masks of dropout are drawn from; None in a model that is measured.
        stacked: whether the module is vectorised.
    """
    calls = _Calls(random, stacked=stacked)
    new: dict[str, Any] = {
        "dropout": calls.dropout,
        "dropout1d": calls.channels(1),
        "dropout2d": calls.channels(2),
        "dropout3d": calls.channels(3),
        "scaled_dot_product_attention": calls.attention,
        **({"embedding": _embedding} if stacked else {}),
    }
    before = {name: getattr(functional, name) for name in new}
    cells: dict[str, Any] = {"gru_cell": _gru_cell, "lstm_cell": _lstm_cell} if stacked else {}
    try:
        for name, function in cells.items():
            setattr(torch._VF, name, function)
        for name, function in new.items():
            setattr(functional, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(functional, name, function)
        for name in cells:
            delattr(torch._VF, name)


@contextlib.contextmanager
def without_fallback() -> Iterator[None]:
    """An operation without a rule for `torch.func.vmap`, which PyTorch would run model by model, raises an error."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)

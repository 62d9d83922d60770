"""Dropout whose masks are those of the trial and the step, not of the pack.

PyTorch draws the masks of a vectorised module from one generator, in an order that depends on the pack. While a module
of this package trains, the functions below replace those of `torch.nn.functional`; `nn.Dropout`,
`nn.MultiheadAttention` and a user's own calls find them there. A mask is a function of the trial's seed, of the step
and of the position of the call in the forward pass.
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

    def __init__(self, random: Random) -> None:
        self._random, self._count = random, 0

    def kept(self, rate: float, shape: tuple[int, ...]) -> Tensor:
        """Zeros, and 1 / (1 - rate) with probability 1 - rate."""
        if not 0 <= rate <= 1:
            raise ValueError(f"dropout: the rate must be from 0 to 1; got {rate}")
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
        if not dropout_p:
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


_ATTENTION: Callable[..., Tensor] = functional.scaled_dot_product_attention


@contextlib.contextmanager
def keyed_dropout(random: Random) -> Iterator[None]:
    """Draw the masks of dropout from `random` in this context."""
    calls = _Calls(random)
    new: dict[str, Any] = {
        "dropout": calls.dropout,
        "dropout1d": calls.channels(1),
        "dropout2d": calls.channels(2),
        "dropout3d": calls.channels(3),
        "scaled_dot_product_attention": calls.attention,
    }
    before = {name: getattr(functional, name) for name in new}
    try:
        for name, function in new.items():
            setattr(functional, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(functional, name, function)

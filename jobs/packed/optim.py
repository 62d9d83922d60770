"""Optimisers of a pack: one flat state, hyper-parameters per model.

All parameters of a block lie in one (M, P) tensor; layers are views of it. An update is then a
fixed number of tensor operations, whatever the number of layers. Formulas are those of PyTorch's
SGD, Adam and AdamW (without dampening, Nesterov and AMSGrad).

Shapes: M models, P parameters of one model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class FlatParameters:
    """Parameters of M models in one (M, P) tensor, with a view (M, *shape) for each layer."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], models: int, device: torch.device | str) -> None:
        self.shapes = tuple(shapes)
        self.flat = torch.zeros(models, sum(_size(s) for s in shapes), device=device)

    @classmethod
    def like(cls, other: FlatParameters) -> FlatParameters:
        """Zeros of the same shapes."""
        return cls(other.shapes, len(other.flat), other.flat.device)

    def views(self) -> list[Tensor]:
        """One (M, *shape) view per layer."""
        parts = self.flat.split([_size(s) for s in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def keep(self, index: Tensor) -> None:
        """Go on with these models only."""
        self.flat = self.flat[index.to(self.flat.device)].contiguous()


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """What an update needs. Learning rate and weight decay are per model, the rest is shared by the pack."""

    kind: str
    """"sgd", "adam" or "adamw"."""
    learning_rate: Tensor
    """(M,)"""
    weight_decay: Tensor
    """(M,) L2 term added to the gradient (sgd, adam), or decoupled (adamw)."""
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


class Optimiser(ABC):
    """Applies gradients to a `FlatParameters`. A subclass may let the caller accumulate into its state."""

    def __init__(self, settings: OptimiserSettings, parameters: FlatParameters) -> None:
        device = parameters.flat.device
        self.settings = settings
        self.parameters = parameters
        self.learning_rate = settings.learning_rate.to(device).reshape(-1, 1)
        self.weight_decay = settings.weight_decay.to(device).reshape(-1, 1)
        self.any_decay = bool((self.weight_decay != 0).any())
        self.gradient = FlatParameters.like(parameters)
        self._rate = 1.0

    gradient_scale: Tensor | None = None
    """(M, 1) factor that the caller must apply to the loss gradient; None: 1."""
    accumulate: float = 0.0
    """Factor by which the caller must multiply what `gradient` holds before adding the new gradient."""

    def set_rate(self, factor: float) -> None:
        """Use this multiple of the learning rates from the next gradient on (a schedule's value, > 0)."""
        self._rate = factor

    @abstractmethod
    def update(self) -> None:
        """One step, from what the caller has put into `gradient`."""

    def keep(self, index: Tensor) -> None:
        """Go on with these models only. `parameters` is compacted by its owner."""
        index = index.to(self.learning_rate.device)
        self.learning_rate, self.weight_decay = self.learning_rate[index], self.weight_decay[index]
        self.gradient.keep(index)


class SGD(Optimiser):
    """Stochastic gradient descent with momentum.

    The learning rate is folded into the loss gradient and the momentum into the accumulation of
    the weight gradients (beta of the matrix product), so that the state costs no pass of its own:
    `gradient` holds learning rate * velocity. `set_rate` rescales what it holds.
    """

    def __init__(self, settings: OptimiserSettings, parameters: FlatParameters) -> None:
        super().__init__(settings, parameters)
        self.accumulate = settings.momentum
        self.gradient_scale = self.learning_rate
        self._decay = self.learning_rate * self.weight_decay

    def set_rate(self, factor: float) -> None:
        self.accumulate = self.settings.momentum * factor / self._rate
        super().set_rate(factor)
        self.gradient_scale = self.learning_rate * factor
        self._decay = self.gradient_scale * self.weight_decay

    def update(self) -> None:
        """w <- w - v, v = momentum * v + learning rate * (gradient + weight decay * w)."""
        flat, velocity = self.parameters.flat, self.gradient.flat
        if self.any_decay:
            velocity.addcmul_(flat, self._decay)
        flat.sub_(velocity)

    def keep(self, index: Tensor) -> None:
        super().keep(index)
        self.gradient_scale = self.learning_rate * self._rate
        self._decay = self.gradient_scale * self.weight_decay


class Adam(Optimiser):
    """Adam (Kingma and Ba 2015) and, with decoupled weight decay, AdamW (Loshchilov and Hutter 2019)."""

    def __init__(self, settings: OptimiserSettings, parameters: FlatParameters) -> None:
        super().__init__(settings, parameters)
        self.first = FlatParameters.like(parameters)
        self.second = FlatParameters.like(parameters)
        self._steps = 0
        self._decoupled = settings.kind == "adamw"

    def update(self) -> None:
        """One step with PyTorch's order of operations."""
        s = self.settings
        self._steps += 1
        flat, gradient = self.parameters.flat, self.gradient.flat
        if self.any_decay:
            if self._decoupled:
                flat.mul_(1 - self.learning_rate * (self.weight_decay * self._rate))
            else:
                gradient.addcmul_(flat, self.weight_decay)
        self.first.flat.lerp_(gradient, 1 - s.beta1)
        self.second.flat.mul_(s.beta2).addcmul_(gradient, gradient, value=1 - s.beta2)
        # The gradient is spent: its memory takes the denominator.
        denominator = torch.sqrt(self.second.flat, out=gradient)
        denominator.mul_((1 - s.beta2**self._steps) ** -0.5).add_(s.epsilon)
        denominator.reciprocal_().mul_(self.learning_rate * (-self._rate / (1 - s.beta1**self._steps)))
        flat.addcmul_(self.first.flat, denominator)

    def keep(self, index: Tensor) -> None:
        super().keep(index)
        self.first.keep(index)
        self.second.keep(index)


def make_optimiser(settings: OptimiserSettings, parameters: FlatParameters) -> Optimiser:
    """The optimiser that `settings.kind` names."""
    return SGD(settings, parameters) if settings.kind == "sgd" else Adam(settings, parameters)

"""Optimisers of a pack: one flat state, hyperparameters per model.

All parameters of a block are in one flat tensor, layer after layer; a layer is a contiguous view (M, *shape) of it. An
update is a fixed number of tensor operations for any number of layers, and every batched matrix product reads and
writes contiguous memory. Formulas are those of PyTorch's SGD, Adam and AdamW (without dampening, Nesterov or AMSGrad).

Shapes: M models, P parameters of one model.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jobs.packed.state import common, fill
from jobs.state import TrialState


class FlatParameters:
    """Parameters of M models in one flat tensor of M * P numbers, with a view (M, *shape) per layer.

    Args:
        align: every layer begins at a multiple of so many numbers, with zeros in between. cuDNN's convolutions and
            normalisations read 16 bytes at once and fail at other addresses ("misaligned address").
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], models: int, device: torch.device | str, align: int = 1
    ) -> None:
        self.shapes = tuple(shapes)
        self._sizes = [math.prod(shape) for shape in shapes]
        self._align = align
        self.models = models
        self.flat = torch.zeros(sum(self._lengths()), device=device)

    @classmethod
    def like(cls, other: FlatParameters) -> FlatParameters:
        """Zeros of the same shapes."""
        return cls(other.shapes, other.models, other.flat.device, other._align)

    def _lengths(self) -> list[int]:
        """Numbers of each layer in the flat tensor, with the zeros after it."""
        return [-(-self.models * size // self._align) * self._align for size in self._sizes]

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """The layers' parts (M * size,) of a tensor laid out like `flat`."""
        parts = torch.split(flat, self._lengths())
        if self._align == 1:
            return list(parts)
        return [part[: self.models * size] for part, size in zip(parts, self._sizes, strict=True)]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """A tensor laid out like `flat` from one tensor (M * size,) per layer."""
        if self._align != 1:
            parts = [functional.pad(part, (0, -len(part) % self._align)) for part in parts]
        return torch.cat(list(parts)) if parts else self.flat  # a network without normalisations has no such layers

    def views(self) -> list[Tensor]:
        """One contiguous (M, *shape) view per layer."""
        return [part.view(self.models, *shape) for part, shape in zip(self._parts(self.flat), self.shapes, strict=True)]

    def named(self, name: str) -> dict[str, Tensor]:
        """The views with names of their own, `<name>.<layer>`."""
        return {f"{name}.{layer}": view for layer, view in enumerate(self.views())}

    def keep(self, index: Tensor) -> None:
        """Keep these models only."""
        index = index.to(self.flat.device)
        kept = [view[index].reshape(-1) for view in self.views()]
        self.models = len(index)
        self.flat = self._joined(kept)

    def copy(self) -> FlatParameters:
        """The same values in memory of their own."""
        other = copy.copy(self)
        other.flat = self.flat.clone()
        return other

    def norm(self) -> Tensor:
        """(M,) Euclidean norm of each model's parameters."""
        return self.norm_of(self.flat)

    def norm_of(self, flat: Tensor) -> Tensor:
        """(M,) Euclidean norm of each model's part of a tensor laid out like `flat`."""
        squares = (part.view(self.models, -1).square().sum(1) for part in self._parts(flat))
        return sum(squares, torch.zeros(())).sqrt()

    def spread_two(self, first_M: Tensor, rest_M: Tensor) -> Tensor:
        """One value per model over its first layer, another over all other layers."""
        values = [first_M, *[rest_M] * (len(self._sizes) - 1)]
        return self._joined([v.repeat_interleave(size) for v, size in zip(values, self._sizes, strict=True)])

    def spread(self, values_M: Tensor, *, equal: bool) -> Tensor:
        """One value per model laid out over its parameters; a scalar tensor where all models have an `equal` value."""
        return values_M[0] if equal else self.spread_two(values_M, values_M)


def all_equal(values_M: NDArray[Any]) -> bool:
    """Whether all models have the same value."""
    return bool((values_M == values_M[0]).all())


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """Hyperparameters of an optimiser, per model; a single number is that of all models."""

    kind: str
    """"sgd", "adam" or "adamw"."""
    learning_rate: Tensor
    """(M,), on the host."""
    weight_decay: Tensor
    """(M,), on the host: factor of an L2 term in the gradient (sgd, adam), or decoupled (adamw)."""
    momentum: float | Tensor = 0.0
    """Where models differ (M,) float64, on the host; and so both betas."""
    beta1: float | Tensor = 0.9
    beta2: float | Tensor = 0.999
    epsilon: float = 1e-8
    """Of all models."""

    @classmethod
    def of(cls, params: Sequence[Any], epsilon: float = 1e-8) -> OptimiserSettings:
        """From the parameters of a pack's trials (fields of `jobs.packed.fields`)."""
        return cls(
            kind=params[0].optimiser,
            learning_rate=torch.tensor([p.learning_rate for p in params]),
            weight_decay=torch.tensor([p.weight_decay for p in params]),
            momentum=torch.tensor([p.momentum for p in params], dtype=torch.float64),
            beta1=torch.tensor([p.beta1 for p in params], dtype=torch.float64),
            beta2=torch.tensor([p.beta2 for p in params], dtype=torch.float64),
            epsilon=epsilon,
        )


@dataclass(frozen=True, kw_only=True)
class Update:
    """The next K steps of an optimiser in numbers, for a kernel that applies them by itself.

    From a gradient g, which has `gradient_scale` as a factor, SGD computes v = keep * v + g + decay * w and w = w - v.
    Adam and AdamW compute, with the decay as their names say, m = m + (g - m) * keep, v = v * second_keep +
    g * g * second_new and w = w - rate * m / (sqrt(v) * factor + summand).
    """

    first: Tensor
    """v of SGD, or m; flat, changed in place by the kernel."""
    second: Tensor
    """v of Adam; that of SGD otherwise."""
    rate_M: Tensor
    decay_M: Tensor
    """What is added of a parameter to its gradient; what it is multiplied by (adamw)."""
    keep: float
    second_keep: float = 0.0
    second_new: float = 0.0
    corrections_K2: Tensor
    """float32 (factor, summand) of Adam's denominator in each step; not read otherwise."""


class Optimiser(ABC):
    """Applies gradients to a `FlatParameters`."""

    gradient_scale: Tensor | None = None
    """(M,) factor that the caller must apply to the loss gradient; None: 1."""
    accumulate: float = 0.0
    """Factor by which the caller must multiply what `gradient` holds before adding the new gradient."""
    accumulate_flat: Tensor | None = None
    """That factor laid out over the parameters, in place of `accumulate`, where the models' momenta differ."""

    _flat_scale: Tensor | None

    def __init__(self, settings: OptimiserSettings, parameters: FlatParameters) -> None:
        device = parameters.flat.device
        self.settings = settings
        self.parameters = parameters
        # Known to the host too: while a pack trains, nothing is read back from the device.
        self._host_rate, self._host_decay = settings.learning_rate.numpy(), settings.weight_decay.numpy()
        factors = (settings.momentum, settings.beta1, settings.beta2)
        self._host_factors = np.stack([np.broadcast_to(np.asarray(f), len(self._host_rate)) for f in factors])
        self.learning_rate = settings.learning_rate.to(device)
        self.weight_decay = settings.weight_decay.to(device)
        self.gradient = FlatParameters.like(parameters)
        self._rate = 1.0
        self._settle()
        self._prepare()

    @property
    def rate(self) -> float:
        """The factor of `set_rate`."""
        return self._rate

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rates by this factor > 0 of a schedule, from the next gradient on."""
        if factor != self._rate:
            self._rate = factor
            self._prepare()

    def flat_scale(self) -> Tensor | None:
        """`gradient_scale` laid out over the parameters."""
        if self._flat_scale is None and self.gradient_scale is not None:
            equal = all_equal(self._host_rate * self._rate)
            self._flat_scale = self.parameters.spread(self.gradient_scale, equal=equal)
        return self._flat_scale

    @abstractmethod
    def update(self) -> None:
        """One step, from the gradient that the caller has put into `gradient`."""

    @abstractmethod
    def skip(self, steps: int) -> Update:
        """Count these steps, which the caller does instead of `update`, and say what they must do."""

    def _settle(self) -> None:
        """Compute what depends on the remaining models alone."""
        self._momentum, self._beta1, self._beta2 = self._host_factors[:, 0].tolist()

    def _prepare(self) -> None:
        """Compute what depends on the rate and on the remaining models."""
        self._any_decay = bool((self._host_decay != 0).any())
        self._flat_scale = None

    def _states(self) -> list[FlatParameters]:
        return [self.gradient]

    @abstractmethod
    def _saved(self) -> Mapping[str, FlatParameters]:
        """What the next update depends on, besides the parameters and the number of steps."""

    def save(self) -> dict[str, Tensor]:
        """(M, ...) tensors with the parameters and the state: see `Block.save`."""
        rate_M = torch.full((self.parameters.models,), self._rate, dtype=torch.float64)
        return {"rate": rate_M} | self._tensors()

    def _tensors(self) -> dict[str, Tensor]:
        named = self.parameters.named("parameters")
        for name, state in self._saved().items():
            named |= state.named(name)
        return named

    def load(self, states: Sequence[TrialState]) -> None:
        """Continue from what `save` gave; one update was done in each step.

        Raises:
            StateError: a state does not fit.
        """
        fill(self._tensors(), states)
        self._rate = common(states, "rate")
        self._prepare()

    def copy(self) -> Self:
        """An independent copy, with a copy of `parameters`."""
        other = copy.copy(self)  # the other tensors are replaced, never changed in place
        other.parameters, other.gradient = self.parameters.copy(), self.gradient.copy()
        return other

    def keep(self, index: Tensor) -> None:
        """Keep these models only. The owner of `parameters` calls its `keep` before this."""
        here = index.numpy()
        self._host_rate, self._host_decay = self._host_rate[here], self._host_decay[here]
        self._host_factors = self._host_factors[:, here]
        index = index.to(self.learning_rate.device)
        self.learning_rate, self.weight_decay = self.learning_rate[index], self.weight_decay[index]
        for state in self._states():
            state.keep(index)
        self._settle()
        self._prepare()


class SGD(Optimiser):
    """Stochastic gradient descent with momentum.

    The learning rate is applied to the loss gradient, and the momentum in the accumulation of the weight gradients
    (beta of the matrix product), so that the state needs no pass of its own: `gradient` holds learning rate * velocity.
    """

    def _saved(self) -> Mapping[str, FlatParameters]:
        return {"velocity": self.gradient}

    def set_rate(self, factor: float) -> None:
        before = self._rate
        super().set_rate(factor)
        self.accumulate = self._momentum * factor / before
        self.accumulate_flat = None if self._momenta is None else self._momenta * (factor / before)

    def _settle(self) -> None:
        super()._settle()
        momenta = self._host_factors[0]
        each_M = torch.from_numpy(momenta).float().to(self.learning_rate.device)
        self._momenta = None if all_equal(momenta) else self.parameters.spread(each_M, equal=False)

    def _prepare(self) -> None:
        super()._prepare()
        self.accumulate, self.accumulate_flat = self._momentum, self._momenta
        self.gradient_scale = self.learning_rate * self._rate
        equal = all_equal(self._host_rate * self._rate * self._host_decay)
        self._decay = self.parameters.spread(self.gradient_scale * self.weight_decay, equal=equal)

    def update(self) -> None:
        """w <- w - v, v = momentum * v + learning rate * (gradient + weight decay * w)."""
        flat, velocity = self.parameters.flat, self.gradient.flat
        if self._any_decay:
            velocity.addcmul_(flat, self._decay)
        flat.sub_(velocity)

    def skip(self, steps: int) -> Update:
        rate_M = self.learning_rate * self._rate
        velocity = self.gradient.flat
        return Update(
            first=velocity,
            second=velocity,
            rate_M=rate_M,
            decay_M=rate_M * self.weight_decay,
            keep=self.accumulate,
            corrections_K2=velocity,
        )


class Adam(Optimiser):
    """Adam (Kingma and Ba 2015) and, with decoupled weight decay, AdamW (Loshchilov and Hutter 2019)."""

    def __init__(self, settings: OptimiserSettings, parameters: FlatParameters) -> None:
        self.first = FlatParameters.like(parameters)
        self.second = FlatParameters.like(parameters)
        self._steps = 0
        device = parameters.flat.device
        self._count = torch.zeros((), dtype=torch.float64, device=device) if device.type != "cpu" else None
        super().__init__(settings, parameters)

    def copy(self) -> Self:
        other = super().copy()
        other.first, other.second = self.first.copy(), self.second.copy()
        other._count = None if self._count is None else self._count.clone()
        return other

    def _states(self) -> list[FlatParameters]:
        return [self.gradient, self.first, self.second]

    def _saved(self) -> Mapping[str, FlatParameters]:
        # `gradient` holds nothing from one update to the next.
        return {"first_moment": self.first, "second_moment": self.second}

    def load(self, states: Sequence[TrialState]) -> None:
        super().load(states)
        self._steps = states[0].step
        if self._count is not None:
            self._count.fill_(self._steps)

    def _settle(self) -> None:
        super()._settle()
        betas = self._host_factors[1:]
        self._betas: Tensor | None = None
        """(2, M) float64 where the models' betas differ."""
        if not (betas == betas[:, :1]).all():
            self._betas = torch.from_numpy(betas.copy()).to(self.learning_rate.device)
            self._first_new, self._second_new = (
                self.parameters.spread(new_M, equal=False) for new_M in (1 - self._betas).float()
            )

    def _prepare(self) -> None:
        super()._prepare()
        rate_M = self.learning_rate * self._rate
        host_rate_M = self._host_rate * self._rate
        self._uniform = all_equal(host_rate_M)
        self._scalar_step = float(host_rate_M[0]) if self._uniform else 0.0
        self._step_size = self.parameters.spread(rate_M, equal=self._uniform)
        decoupled = self.settings.kind == "adamw"
        self._decay = self.parameters.spread(
            1 - rate_M * self.weight_decay if decoupled else self.weight_decay,
            equal=all_equal(1 - host_rate_M * self._host_decay if decoupled else self._host_decay),
        )

    def update(self) -> None:
        """One step with PyTorch's order of operations; on a GPU the step is counted there, for CUDA graphs."""
        beta1, beta2, epsilon = self._beta1, self._beta2, self.settings.epsilon
        self._steps += 1
        flat, gradient = self.parameters.flat, self.gradient.flat
        if self._any_decay:
            if self.settings.kind == "adamw":
                flat.mul_(self._decay)
            else:
                gradient.addcmul_(flat, self._decay)
        if self._betas is not None:
            self._update_each(self._betas)
            return
        self.first.flat.lerp_(gradient, 1 - beta1)
        self.second.flat.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # The gradient is no longer needed: its memory holds the denominator.
        denominator = torch.sqrt(self.second.flat, out=gradient)
        if self._count is not None:
            self._count.add_(1)
            correction_1, correction_2 = 1 - beta1**self._count, 1 - beta2**self._count
            denominator.mul_(correction_1 * correction_2.rsqrt()).add_(correction_1 * epsilon)
            flat.sub_(torch.div(self.first.flat, denominator, out=denominator).mul_(self._step_size))
            return
        denominator.mul_((1 - beta2**self._steps) ** -0.5).add_(epsilon)
        correction = 1 - beta1**self._steps
        if self._uniform:
            flat.addcdiv_(self.first.flat, denominator, value=-self._scalar_step / correction)
        else:
            torch.div(self.first.flat, denominator, out=denominator).mul_(self._step_size)
            flat.sub_(denominator, alpha=1 / correction)

    def _update_each(self, betas: Tensor) -> None:
        """The step of models whose betas differ: the corrections are in the step size and in epsilon."""
        gradient = self.gradient.flat
        if self._count is not None:
            self._count.add_(1)
        first_M, second_M = 1 - betas ** (self._steps if self._count is None else self._count)
        epsilon_M = (second_M.sqrt() * self.settings.epsilon).float()
        step_M = (second_M.sqrt() / first_M).float() * self.learning_rate * self._rate
        self.first.flat.lerp_(gradient, self._first_new)
        self.second.flat.lerp_(gradient.square_(), self._second_new)
        torch.sqrt(self.second.flat, out=gradient)
        layers = (self.parameters, self.first, self.gradient)
        for weights, first, denominator in zip(*(layer.views() for layer in layers), strict=True):
            shape = (-1, *(1,) * (weights.dim() - 1))
            weights.sub_((first / denominator.add_(epsilon_M.view(shape))).mul_(step_M.view(shape)))

    def skip(self, steps: int) -> Update:
        beta1, beta2 = self._beta1, self._beta2
        rate_M = self.learning_rate * self._rate
        count_K = torch.arange(1, steps + 1, dtype=torch.float64, device=rate_M.device)
        count_K += self._steps if self._count is None else self._count
        first_K, second_K = 1 - beta1**count_K, 1 - beta2**count_K
        self._steps += steps
        if self._count is not None:
            self._count.add_(steps)
        return Update(
            first=self.first.flat,
            second=self.second.flat,
            rate_M=rate_M,
            decay_M=1 - rate_M * self.weight_decay if self.settings.kind == "adamw" else self.weight_decay,
            keep=1 - beta1,
            second_keep=beta2,
            second_new=1 - beta2,
            corrections_K2=torch.stack([first_K * second_K.rsqrt(), first_K * self.settings.epsilon], 1).float(),
        )


def make_optimiser(settings: OptimiserSettings, parameters: FlatParameters) -> Optimiser:
    """The optimiser that `settings.kind` names."""
    return SGD(settings, parameters) if settings.kind == "sgd" else Adam(settings, parameters)

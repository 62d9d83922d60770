"""Adam with what grokking papers change in it: gradients filtered, embeddings trained at a rate of their own.

Shapes: M models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.packed.optim import Adam, FlatParameters, Optimiser, OptimiserSettings, make_optimiser


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What differs from Adam; the default is nothing. Tensors are (M,), one value per model."""

    perp_grad: str = "none"
    """"layers" or "whole": g - (w.g / w.w) w for each layer, or for all parameters as one vector."""
    grokfast_lambda: Tensor | None = None
    """g + lambda * EMA(g), in the place of g (Lee et al. 2024, arXiv 2405.20233); None: g."""
    grokfast_alpha: Tensor | None = None
    """Decay of that moving average, which begins as the first gradient."""
    embedding_rate: Tensor | None = None
    """Learning rate of the first layer; 0 where it is that of all else. None: of no model has it its own."""
    decay_embedding: bool = True
    """Whether weight decay acts on the first layer."""

    @property
    def none(self) -> bool:
        """Whether nothing differs."""
        return self.perp_grad == "none" and self.grokfast_lambda is None and not self.split

    @property
    def split(self) -> bool:
        """Whether the first layer is trained differently."""
        return self.embedding_rate is not None or not self.decay_embedding


def make(settings: OptimiserSettings, parameters: FlatParameters, changes: Changes) -> Optimiser:
    """The plain optimiser where nothing differs."""
    return make_optimiser(settings, parameters) if changes.none else ChangedAdam(settings, parameters, changes)


class ChangedAdam(Adam):
    """Adam or AdamW with `Changes`."""

    def __init__(self, settings: OptimiserSettings, parameters: FlatParameters, changes: Changes) -> None:
        self._perp, self._split = changes.perp_grad, changes.split
        device = parameters.flat.device
        models = parameters.models
        self._lambda = _of_models(changes.grokfast_lambda, models, device)
        self._alpha = _of_models(changes.grokfast_alpha, models, device)
        self._embedding_rate = _of_models(changes.embedding_rate, models, device)
        self._decay_embedding = changes.decay_embedding
        self._average = FlatParameters.like(parameters) if changes.grokfast_lambda is not None else None
        super().__init__(settings, parameters)

    def _states(self) -> list[FlatParameters]:
        return super()._states() + ([self._average] if self._average else [])

    def keep(self, index: Tensor) -> None:
        index = index.to(self._lambda.device)
        self._lambda, self._alpha = self._lambda[index], self._alpha[index]
        self._embedding_rate = self._embedding_rate[index]
        super().keep(index)

    def _prepare(self) -> None:
        super()._prepare()
        if self._average is not None:
            self._lambda_flat = self.parameters.spread(self._lambda)
            self._alpha_flat = self.parameters.spread(1 - self._alpha)
        if not self._split:
            return
        rest = self.learning_rate * self._rate
        first = torch.where(self._embedding_rate > 0, self._embedding_rate * self._rate, rest)
        first_decay = self.weight_decay if self._decay_embedding else torch.zeros_like(self.weight_decay)
        self._step_size = self.parameters.spread_two(first, rest)
        self._uniform = False
        if self.settings.kind == "adamw":
            self._decay = self.parameters.spread_two(1 - first * first_decay, 1 - rest * self.weight_decay)
        else:
            self._decay = self.parameters.spread_two(first_decay, self.weight_decay)

    def update(self) -> None:
        """Filter the gradient, then a step of Adam."""
        gradient = self.gradient.flat
        if self._average is not None:
            if self._steps == 0:
                self._average.flat.copy_(gradient)
            else:
                self._average.flat.lerp_(gradient, self._alpha_flat)
            gradient.addcmul_(self._average.flat, self._lambda_flat)
        if self._perp != "none":
            self._project()
        super().update()

    def _project(self) -> None:
        gradients = [view.flatten(1) for view in self.gradient.views()]
        weights = [view.flatten(1) for view in self.parameters.views()]
        along = [(w * g).sum(1) for w, g in zip(weights, gradients, strict=True)]
        length = [w.square().sum(1) for w in weights]
        if self._perp == "whole":
            along = [torch.stack(along).sum(0)] * len(along)
            length = [torch.stack(length).sum(0)] * len(length)
        for g, w, a, n in zip(gradients, weights, along, length, strict=True):
            # A layer of zeros has no direction to take out.
            g.addcmul_(w, (a / n.clamp(min=1e-30))[:, None], value=-1)


def _of_models(values: Tensor | None, models: int, device: torch.device) -> Tensor:
    return torch.zeros(models, device=device) if values is None else values.to(device)

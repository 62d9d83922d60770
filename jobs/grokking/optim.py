"""Adam with the changes of grokking papers: filtered gradients, and embeddings with a learning rate of their own.

Shapes: M models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from jobs.grokking.params import GrokkingParams
from jobs.packed import optim
from jobs.packed.optim import Adam, FlatParameters, Optimiser, OptimiserSettings, all_equal


def make_optimiser(params: Sequence[GrokkingParams], parameters: FlatParameters) -> Optimiser:
    """The optimiser of a pack's trials; the plain one where they change nothing of Adam."""
    first = params[0]
    own_rate = any(p.embedding_learning_rate for p in params)
    changed = own_rate or not first.decay_embedding or first.perp_grad != "none" or first.grokfast_lambda > 0
    if changed:
        return ChangedAdam(params, parameters)
    return optim.make_optimiser(OptimiserSettings.of(params, first.epsilon), parameters)


class ChangedAdam(Adam):
    """Adam or AdamW with Grokfast, projected gradients, or an embedding that is trained differently.

    Grokfast (Lee et al. 2024, arXiv 2405.20233) replaces the gradient g by g + lambda * EMA(g); the moving average
    starts as the first gradient. perp_grad (Prieto et al. 2025) replaces it by g - (w.g / w.w) w, for each layer or for
    all parameters as one vector. With "layers_rescaled" each layer's gradient then gets its norm back, and two tables
    of a first layer are one layer, as in the authors' code ("layers" takes each of them on its own).
    """

    def __init__(self, params: Sequence[GrokkingParams], parameters: FlatParameters) -> None:
        first, device = params[0], parameters.flat.device
        self._perp, self._decay_embedding = first.perp_grad, first.decay_embedding
        self._one_vector = _one_vector(first)
        lambdas = torch.tensor([p.grokfast_lambda for p in params])
        alphas = torch.tensor([p.grokfast_alpha for p in params])
        self._host_lambda, self._host_alpha = lambdas.numpy(), alphas.numpy()
        self._lambda, self._alpha = lambdas.to(device), alphas.to(device)
        self._embedding_rate = torch.tensor([p.embedding_learning_rate for p in params], device=device)
        """(M,) learning rate of the first layer; 0 where it is that of the others."""
        self._split = not first.decay_embedding or any(p.embedding_learning_rate > 0 for p in params)
        self._average = FlatParameters.like(parameters) if first.grokfast_lambda > 0 else None
        super().__init__(OptimiserSettings.of(params, first.epsilon), parameters)

    def copy(self) -> Self:
        other = super().copy()
        other._average = self._average.copy() if self._average else None
        return other

    def _states(self) -> list[FlatParameters]:
        return super()._states() + ([self._average] if self._average else [])

    def _saved(self) -> Mapping[str, FlatParameters]:
        return {**super()._saved(), **({"average": self._average} if self._average else {})}

    def keep(self, index: Tensor) -> None:
        here = index.numpy()
        self._host_lambda, self._host_alpha = self._host_lambda[here], self._host_alpha[here]
        there = index.to(self._lambda.device)
        self._lambda, self._alpha = self._lambda[there], self._alpha[there]
        self._embedding_rate = self._embedding_rate[there]
        super().keep(index)

    def _prepare(self) -> None:
        super()._prepare()
        if self._average is not None:
            self._lambda_flat = self.parameters.spread(self._lambda, equal=all_equal(self._host_lambda))
            self._alpha_flat = self.parameters.spread(1 - self._alpha, equal=all_equal(1 - self._host_alpha))
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
        along = self._joined([(w * g).sum(1) for w, g in zip(weights, gradients, strict=True)])
        length = self._joined([w.square().sum(1) for w in weights])
        rescaled = self._perp == "layers_rescaled"
        before = self._joined([g.square().sum(1) for g in gradients]) if rescaled else []
        for g, w, a, n in zip(gradients, weights, along, length, strict=True):
            # A layer of zeros has no direction to remove.
            g.addcmul_(w, (a / n.clamp(min=1e-30))[:, None], value=-1)
        if rescaled:
            after = self._joined([g.square().sum(1) for g in gradients])
            for g, old, new in zip(gradients, before, after, strict=True):
                g.mul_((old / new.clamp(min=1e-30)).sqrt()[:, None])

    def _joined(self, values: list[Tensor]) -> list[Tensor]:
        """Values of the parameters' parts, summed over those that are projected as one vector."""
        part = values[self._one_vector]
        values[self._one_vector] = [torch.stack(part).sum(0)] * len(part) if part else []
        return values


def _one_vector(first: GrokkingParams) -> slice:
    """Which parts perp_grad projects as one: all ("whole"), or the two tables of a first layer ("layers_rescaled")."""
    if first.perp_grad == "whole":
        return slice(None)
    if first.perp_grad == "layers_rescaled" and first.model in ("quadratic_mlp", "embedding_mlp"):
        start = int(first.model == "embedding_mlp" and first.embedding > 0)
        return slice(start, start + first.tables)
    return slice(0, 0)

"""What a recording of stacked models computes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from jobs.module.graph import Recorded

MODELS, BATCH = 3, 8


def recorded_and_direct(module: nn.Module, x: Tensor) -> tuple[Any, Any]:
    """Losses and gradients of stacked models with weights of their own, from a recording and without one."""
    names = [name for name, _ in module.named_parameters()]
    weights = [torch.randn(MODELS, *p.shape) for p in module.parameters()]

    def loss(weights: list[Tensor], x: Tensor) -> Any:
        return functional_call(module, dict(zip(names, weights, strict=True)), (x,)).square().mean()

    def differentiated(weights: list[Tensor], x: Tensor) -> Any:
        weights = [weight.detach().requires_grad_() for weight in weights]
        with torch.enable_grad():
            losses = vmap(loss)(weights, x)
            gradients = torch.autograd.grad(losses.sum(), weights)
        return losses.detach(), gradients

    return Recorded("step", differentiated, {})(weights, x), differentiated(weights, x)


@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_of_linear_layers_are_contiguous_and_the_same(bias: bool) -> None:
    layers = [nn.Linear(5, 7, bias=bias), nn.Tanh(), nn.Linear(7, 7, bias=bias), nn.Linear(7, 2, bias=bias)]
    recorded, direct = recorded_and_direct(nn.Sequential(*layers), torch.randn(MODELS, BATCH, 5))
    for one, other in zip((recorded[0], *recorded[1]), (direct[0], *direct[1]), strict=True):
        torch.testing.assert_close(one, other)
    assert all(gradient.is_contiguous() for gradient in recorded[1])


class Twice(nn.Module):
    """Reads a product of matrices and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(BATCH, BATCH))

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product.T.tanh() @ product + product.T @ self.weight.T


def test_a_product_that_is_read_in_both_ways_stays() -> None:
    recorded, direct = recorded_and_direct(Twice(), torch.randn(MODELS, BATCH, BATCH))
    for one, other in zip((recorded[0], *recorded[1]), (direct[0], *direct[1]), strict=True):
        torch.testing.assert_close(one, other)

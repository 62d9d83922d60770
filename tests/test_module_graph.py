"""What a recording of stacked models computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

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


class Matrices(nn.Module):
    """A function of inputs and of matrices of these shapes."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.matrices = nn.ParameterList([nn.Parameter(torch.randn(*shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.matrices)


TRANSPOSES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "a product read in both ways": (lambda x, w: (x @ w).T.tanh() @ (x @ w) + (x @ w).T @ x @ w, ((5, 7),)),
    "a transposed weight": (lambda x, w: functional.linear(x, w.t()), ((5, 7),)),
    "a tied weight": (lambda x, w: functional.linear(functional.linear(x, w).tanh(), w.t()), ((7, 5),)),
    "twice": (lambda x, w: (x @ w).t().t().tanh(), ((5, 7),)),
    "low rank": (lambda x, a, b: functional.linear(x, (a @ b).t()), ((5, 2), (2, 7))),
    "a view of a transpose": (lambda x, w: (x @ w).t().T.reshape(-1).tanh(), ((5, 7),)),
    "strides": (lambda x, w: torch.as_strided((x @ w).t(), (7, 4), (1, 7)).tanh(), ((5, 7),)),
    "in place": (lambda x, w: (x @ w).t().add_(1).mul_(2), ((5, 7),)),
    "attention": (lambda x, q, k: ((x @ q @ (x @ k).t()).softmax(-1) @ x).t().reshape(-1), ((5, 4), (5, 4))),
}


@pytest.mark.parametrize("name", TRANSPOSES)
def test_products_that_other_operations_read_stay(name: str) -> None:
    function, shapes = TRANSPOSES[name]
    recorded, direct = recorded_and_direct(Matrices(function, *shapes), torch.randn(MODELS, BATCH, 5))
    for one, other in zip((recorded[0], *recorded[1]), (direct[0], *direct[1]), strict=True):
        torch.testing.assert_close(one, other)

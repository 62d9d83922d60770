"""A vectorised function recorded once as a list of tensor operations, and replayed.

Stacked models of small networks spend their time in Python: in the forward pass of the module, in `torch.func.vmap` and
in autograd. `torch.fx` records the operations that these launch, those of the gradient included; the recording computes
the same numbers. It is bound to the shapes of its inputs. A function that cannot be recorded is called instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Graphs = dict[tuple[Any, ...], Callable[..., Any] | None]
"""(name of a function, shapes of its inputs) -> its recording; None: it cannot be recorded."""


class Recorded:
    """A function of tensors that is recorded for each combination of shapes that it gets."""

    def __init__(self, name: str, function: Callable[..., Any], graphs: Graphs) -> None:
        """`graphs`: recordings of functions that compute the same of the same inputs, which are added to."""
        self._name, self._function, self._graphs = name, function, graphs

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns, without a gradient."""
        leaves, structure = pytree.tree_flatten(arguments)
        key = (self._name, *(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves))
        if key not in self._graphs:
            self._graphs[key] = _record(self._function, leaves, structure)
        recording = self._graphs[key]
        with torch.no_grad():
            if recording is None:
                return self._function(*arguments)
            return recording([leaf for leaf in leaves if isinstance(leaf, Tensor)])


def _record(function: Callable[..., Any], leaves: list[Any], structure: pytree.TreeSpec) -> Callable[..., Any] | None:
    from torch.fx.experimental.proxy_tensor import make_fx  # takes more than a second to import

    def of_tensors(tensors: list[Tensor]) -> Any:
        rest = iter(tensors)
        whole = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return function(*pytree.tree_unflatten(whole, structure))

    # The recording runs the function: buffers that it changes must not be those of the models.
    copies = [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor)]
    try:
        graph = make_fx(of_tensors)(copies)
        _simplify(graph)
        _untranspose(graph)
    except Exception:  # control flow by a value that all models share; any other error the function raises itself
        return None
    return graph


def _simplify(graph: torch.fx.GraphModule) -> None:
    """Leave out operations that return their input. (A bias under vmap is multiplied by 1.)"""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], torch.fx.Node):
            continue
        source = node.args[0]
        value, before = node.meta.get("val"), source.meta.get("val")
        if not isinstance(value, Tensor) or not isinstance(before, Tensor):
            continue
        same = value.shape == before.shape and value.dtype == before.dtype
        if (
            node.target is aten.detach.default
            or (same and node.target in (aten.view.default, aten.expand.default, aten._unsafe_view.default))
            or (same and node.target is aten.mul.Scalar and node.args[1] == 1 and not any(map(_changes, node.users)))
        ):
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _untranspose(graph: torch.fx.GraphModule) -> None:
    """Compute a product whose transpose is returned as the product of the transposed factors: (A B)' = B' A'.

    The gradient of a layer's weights is such a product; it is then contiguous, as the optimiser reads it. What another
    operation reads stays as it is: the operations were recorded for the strides of their inputs.
    """
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if not _transposes(node) or any(user.op != "output" for user in node.users):
            continue
        product = node.args[0]
        if product.target is not aten.bmm.default or len(product.users) != 1:
            continue
        with graph.graph.inserting_before(product):
            product.args = tuple(_transposed(graph.graph, factor) for factor in reversed(product.args))
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _transposes(node: Any) -> bool:
    """Whether a node of the recording exchanges both dimensions of a stack of matrices."""
    if not isinstance(node, torch.fx.Node) or node.target is not torch.ops.aten.transpose.int or "val" not in node.meta:
        return False
    return {int(d) % 3 for d in node.args[1:]} == {1, 2} and node.meta["val"].dim() == 3  # type: ignore[arg-type]


def _transposed(graph: torch.fx.Graph, factor: Any) -> Any:
    if _transposes(factor):
        return factor.args[0]
    return graph.call_function(torch.ops.aten.transpose.int, (factor, 1, 2))


def _changes(node: torch.fx.Node) -> bool:
    """Whether an operation changes an input, or gives another name to one."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or schema.is_mutable or bool(getattr(node.target, "is_view", False))

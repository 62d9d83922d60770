"""The examples of a grokking pack.

Shape suffixes: M models, P examples of the table, D pixels of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The examples of M models: they share the table; each has a split and noisy labels of its own."""

    x_P: Tensor
    y_P: Tensor
    result_P: Tensor
    order_MP: Tensor
    """Each model's random order of the pairs that it may train on; it trains on the first `count` of them."""
    labels_MP: Tensor
    """Training label of each pair, with noise."""
    elements: int
    """Elements that x and y are drawn from."""
    outputs: int
    """Possible results."""
    official: int = 0
    """Size of the official test set, the last rows of the table; 0: every pair outside the train set is tested."""
    images_PD: Tensor | None = None
    """The images that x numbers, where the task is image classification."""

    def keep(self, index: Tensor) -> Pairs:
        """The examples of these models only."""
        index = index.to(self.x_P.device)
        return replace(self, order_MP=self.order_MP[index], labels_MP=self.labels_MP[index])

"""Grokking networks trained by autograd: what they share, and perceptrons, many as one.

Networks on pairs look up tables over the elements: whatever depends on one element alone (embeddings, and the first
layer applied to them) is computed once per element, not once per pair.

Shape suffixes: M models, B pairs, W padded width, O outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jobs.grokking import local_complexity
from jobs.grokking.block import ModularBlock, look_up

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
}


class AutogradBlock(ModularBlock):
    """Networks given by their forward pass on the views of the flat parameters."""

    def _train_step(self, x_MB: Tensor, y_MB: Tensor, label_MB: Tensor, weight_MB: Tensor) -> None:
        flat = self.parameters.flat
        flat.requires_grad_(True)
        outputs = self.forward(self.parameters.views(), x_MB, y_MB)
        loss = (self.losses(outputs, label_MB) * weight_MB).sum()
        (gradient,) = torch.autograd.grad(loss, flat)
        flat.requires_grad_(False)
        scale = self.optimiser.flat_scale()
        if scale is not None:
            gradient = gradient * scale
        if self.optimiser.accumulate:
            self.optimiser.gradient.flat.mul_(self.optimiser.accumulate).add_(gradient)
        else:
            self.optimiser.gradient.flat.copy_(gradient)
        with torch.no_grad():
            self.optimiser.update()

    def outputs(self, x_MB: Tensor, y_MB: Tensor) -> Tensor:
        with torch.no_grad():
            return self.forward(self.parameters.views(), x_MB, y_MB)

    def _offset(self, bias: Tensor) -> Tensor:
        """The bias; where biases are not trained, zeros without a gradient."""
        return bias if self.shared.biases else bias.detach()


class PerceptronBlock(AutogradBlock):
    """Hidden layers with one activation and a linear readout, after a first layer that a subclass computes.

    Parameters after those of the first layer: for each further layer (W, W) and a bias (1, W), then the readout (O, W)
    and its bias (O, 1). Biases that are not trained stay zero.
    """

    def _set_up(self) -> None:
        self._activate = ACTIVATIONS[self.shared.activation]
        super()._set_up()

    @abstractmethod
    def _first(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        """(M, B, W) pre-activations of the first layer."""

    @property
    @abstractmethod
    def _first_weights(self) -> slice:
        """The positions of the first layer's weights among the parameters; its bias follows them."""

    def _hidden(self, further: Sequence[Tensor], first_MBW: Tensor) -> Iterator[Tensor]:
        """(M, B, W) pre-activations of each hidden layer, in order."""
        yield first_MBW
        for weight, bias in zip(further[0::2], further[1::2], strict=True):
            first_MBW = torch.baddbmm(self._offset(bias), self._activate(first_MBW), weight)
            yield first_MBW

    def forward(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        *further, readout, offsets = layers[self._first_weights.stop + 1 :]
        *_, values = self._hidden(further, self._first(layers, x_MB, y_MB))
        last = self._activate(values).transpose(1, 2)
        return torch.baddbmm(self._offset(offsets), readout, last)[:, : self.pairs.outputs]

    def complexity(self, around: local_complexity.Neighbourhoods) -> Mapping[str, Tensor]:
        if self.shared.activation != "relu":
            return super().complexity(around)
        layers, pairs = self.parameters.views(), self.pairs
        *further, _, _ = layers[self._first_weights.stop + 1 :]
        return local_complexity.measure(
            around,
            lambda rows: self._first(layers, pairs.x_P[rows], pairs.y_P[rows]),
            torch.cat(layers[self._first_weights], 1),
            lambda first: self._hidden(further, first),
        )

    def row_bytes(self) -> int:
        return 4 * 4 * max(shape[-1] for shape in self.parameters.shapes)


class EmbeddingMLPBlock(PerceptronBlock):
    """Embeddings of both elements, concatenated or added, then hidden layers and a linear readout.

    Parameters: embedding (E, D), unless the inputs are one-hot; first layer for x and for y (D, W) each (one for both
    where embeddings are added; D = E where inputs are one-hot) and its bias; then the rest.
    """

    def _first(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        weights, bias = layers[self._first_weights], layers[self._first_weights.stop]
        tables = [torch.bmm(layers[0], w) for w in weights] if self.shared.embedding else weights
        return look_up(tables[0], x_MB) + look_up(tables[-1], y_MB) + self._offset(bias)

    @property
    def _first_weights(self) -> slice:
        start = int(self.shared.embedding > 0)
        return slice(start, start + self.shared.tables)

    def spectrum_table(self) -> Tensor:
        return self.parameters.views()[0]


class ImageMLPBlock(PerceptronBlock):
    """A perceptron on images. Parameters: first layer (pixels, W) and its bias, then the rest."""

    def _set_up(self) -> None:
        self._full_batch: tuple[Tensor, Tensor] | None = None
        super()._set_up()
        if self._fixed is not None:
            # The full batch is the same at every step: its pixels are gathered once.
            self._full_batch = self._fixed[0], self._pixels(self._fixed[0])

    def _pixels(self, x_MB: Tensor) -> Tensor:
        if self._full_batch is not None and x_MB is self._full_batch[0]:
            return self._full_batch[1]
        assert self.pairs.images_PD is not None
        return self.pairs.images_PD[x_MB]

    def _first(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        return torch.baddbmm(self._offset(layers[1]), self._pixels(x_MB), layers[0])

    @property
    def _first_weights(self) -> slice:
        return slice(0, 1)

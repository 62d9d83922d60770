"""Grokking networks trained by autograd: perceptrons and a transformer, many as one.

Networks on pairs look up tables over the elements: whatever depends on one element alone (embeddings, and the first
layer applied to them) is computed once per element, not once per pair. Only the last position of a transformer is read
out, so its last block computes that position alone.

Shape suffixes: M models, B pairs, T positions, V tokens, D residual width, H heads, C width of a head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jobs.grokking import local_complexity
from jobs.grokking.block import ModularBlock, look_up


class AutogradBlock(ModularBlock):
    """Networks given by their forward pass on the views of the flat parameters."""

    def _train_step(self, x_MB: Tensor, y_MB: Tensor, label_MB: Tensor) -> None:
        flat = self.parameters.flat
        flat.requires_grad_(True)
        outputs = self.forward(self.parameters.views(), x_MB, y_MB)
        loss = (self.losses(outputs, label_MB) * self.batches.weights).sum()
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


class PerceptronBlock(AutogradBlock):
    """Hidden layers with one activation and a linear readout, after a first layer that a subclass computes.

    Parameters after those of the first layer: for each further layer (W, W) and a bias (1, W), then the readout (O, W)
    and its bias (O, 1). Biases that are not trained stay zero.
    """

    def _set_up(self) -> None:
        self._activate = torch.relu if self.shared.activation == "relu" else torch.tanh
        super()._set_up()

    @abstractmethod
    def _first(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        """(M, B, W) pre-activations of the first layer."""

    @property
    @abstractmethod
    def _first_weights(self) -> slice:
        """The positions of the first layer's weights among the parameters; its bias follows them."""

    def _offset(self, bias: Tensor) -> Tensor:
        return bias if self.shared.biases else bias.detach()

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


class TransformerBlock(AutogradBlock):
    """A decoder on the tokens x, y and "=": learned positions, attention without bias, ReLU perceptron of 4D.

    Parameters: tokens (E + 1, D), positions (3, D); per block the attention's query, key, value and output (D, D) each,
    the perceptron's (D, 4D), bias, (4D, D), bias, and with layer norm a gain and an offset (1, D) twice; then the
    readout (O, D).
    """

    def forward(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        tokens, positions, *rest = layers
        models, batch, width = x_MB.shape[0], x_MB.shape[1], tokens.shape[2]
        per_block = 12 if self.shared.layer_norm else 8
        # Every input of the first block is one of these rows: x at 0, y at 1, "=" at 2.
        elements = tokens.shape[1] - 1
        first = tokens[:, :elements] + positions[:, 0:1]
        second = tokens[:, :elements] + positions[:, 1:2]
        equals = tokens[:, elements:] + positions[:, 2:3]
        table = torch.cat([first, second, equals], 1)
        place = torch.stack([x_MB, y_MB + elements, torch.full_like(x_MB, 2 * elements)], 2).flatten(1)
        stream: Tensor | None = None
        for block in range(self.shared.layers):
            q, k, v, o, *mlp = rest[block * per_block : (block + 1) * per_block]
            last = block == self.shared.layers - 1
            if stream is None:
                keys, values = (look_up(torch.bmm(table, w), place).view(models, batch, 3, -1) for w in (k, v))
                if last:
                    here, queries = (z.expand(-1, batch, -1)[:, :, None] for z in (equals, torch.bmm(equals, q)))
                else:
                    here = look_up(table, place).view(models, batch, 3, width)
                    queries = look_up(torch.bmm(table, q), place).view(models, batch, 3, -1)
            else:
                keys, values = (_apply(stream, w) for w in (k, v))
                here = stream[:, :, 2:] if last else stream
                queries = _apply(here, q)
            mixed = _apply(_attend(queries, keys, values, self.shared.heads), o)
            stream = self._feed_forward(here + mixed, mlp)
        assert stream is not None  # there is at least one block
        return torch.bmm(rest[-1], stream[:, :, -1].transpose(1, 2))[:, : self.pairs.outputs]

    def spectrum_table(self) -> Tensor:
        return self.parameters.views()[0][:, : self.pairs.elements]

    def _feed_forward(self, stream: Tensor, mlp: Sequence[Tensor]) -> Tensor:
        w_in, b_in, w_out, b_out = mlp[:4]
        if self.shared.layer_norm:
            stream = _norm(stream, mlp[4], mlp[5])
        rows = stream.flatten(1, 2)
        rows = torch.baddbmm(b_out, torch.baddbmm(b_in, rows, w_in).relu(), w_out)
        stream = stream + rows.view_as(stream)
        return _norm(stream, mlp[6], mlp[7]) if self.shared.layer_norm else stream

    def row_bytes(self) -> int:
        return 4 * 12 * self.parameters.shapes[0][1]


def _apply(stream_MBTD: Tensor, weight_MDE: Tensor) -> Tensor:
    return torch.bmm(stream_MBTD.flatten(1, 2), weight_MDE).view(*stream_MBTD.shape[:3], -1)


def _attend(q_MBSD: Tensor, k_MBTD: Tensor, v_MBTD: Tensor, heads: int) -> Tensor:
    """Causal attention of S queries (all three positions, or the last) to three positions."""
    q, k, v = (x.view(*x.shape[:3], heads, -1) for x in (q_MBSD, k_MBTD, v_MBTD))
    # Three positions: for matrices this small a product costs more than explicit sums.
    scores = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) * q.shape[-1] ** -0.5
    if q.shape[2] > 1:
        later = torch.ones(3, 3, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later[:, :, None], -torch.inf)
    mixed: Tensor = (scores.softmax(3).unsqueeze(-1) * v.unsqueeze(2)).sum(3).flatten(3)
    return mixed


def _norm(stream_MBTD: Tensor, gain_M1D: Tensor, offset_M1D: Tensor) -> Tensor:
    normal: Tensor = functional.layer_norm(stream_MBTD, stream_MBTD.shape[-1:])
    scaled: Tensor = normal * gain_M1D.unsqueeze(1) + offset_M1D.unsqueeze(1)
    return scaled

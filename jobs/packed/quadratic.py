"""The quadratic perceptron of Gromov 2023, many as one, with its backward pass written out.

f(a, b) = W2 (U[a] + V[b])^2: the first layer on two one-hot inputs is two table look-ups, its
gradient two scatter-additions. Widths and outputs are padded with zeros, which stay zero.

Shape suffixes: M models, B batch, E elements, W padded width, O padded outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.packed.modular_block import ModularBlock


class QuadraticBlock(ModularBlock):
    """Parameters: U (M, E, W), V (M, E, W), W2 (M, W, O)."""

    def _set_up(self) -> None:
        super()._set_up()
        u, v, w2 = self.parameters.views()
        du, dv, dw2 = self.optimiser.gradient.views()
        self._w2, self._dw2 = w2, dw2
        models, elements, width = u.shape
        batch, outputs, device = self.batches.width, w2.shape[2], u.device
        # U and V of one model follow each other in the flat state: one table of 2E rows per model.
        stride = self.parameters.flat.shape[1]
        self._table = torch.as_strided(self.parameters.flat, (models, 2 * elements, width), (stride, width, 1))
        self._dtable = du, dv
        self._hidden = torch.empty(models, batch, width, device=device)
        self._square = torch.empty_like(self._hidden)
        self._out = torch.empty(models, batch, outputs, device=device)
        self._rows = torch.arange(models, device=device)[:, None] * (2 * elements)
        self._minus_one = torch.full((models * batch, 1), -1.0, device=device)
        self._packed_table = torch.empty(models * 2 * elements, width, device=device)
        self._packed_grad = torch.empty_like(self._packed_table)
        self._elements = elements
        self._fixed_rows: tuple[Tensor, Tensor] | None = None

    def _table_rows(self, x_MB: Tensor, y_MB: Tensor) -> tuple[Tensor, Tensor]:
        return (x_MB + self._rows).reshape(-1), (y_MB + (self._rows + self._elements)).reshape(-1)

    @torch.no_grad()
    def _train_step(self, x_MB: Tensor, y_MB: Tensor, label_MB: Tensor) -> None:
        if self.batches.full:
            if self._fixed_rows is None:
                self._fixed_rows = self._table_rows(x_MB, y_MB)
            x_rows, y_rows = self._fixed_rows
        else:
            x_rows, y_rows = self._table_rows(x_MB, y_MB)
        hidden, square, out = self._hidden, self._square, self._out
        width = hidden.shape[2]
        flat_hidden, flat_square = hidden.view(-1, width), square.view(-1, width)
        table = self._packed_table
        table.view(self._table.shape).copy_(self._table)
        torch.index_select(table, 0, x_rows, out=flat_hidden)
        torch.index_select(table, 0, y_rows, out=flat_square)
        hidden.add_(square)
        torch.mul(hidden, hidden, out=square)
        torch.bmm(square, self._w2, out=out)
        self._loss_gradient(out, label_MB)
        beta = self.optimiser.accumulate
        torch.baddbmm(self._dw2, square.transpose(1, 2), out, beta=beta, out=self._dw2)
        torch.bmm(out, self._w2.transpose(1, 2), out=square)
        hidden.mul_(square).mul_(2)
        grad = self._packed_grad.zero_()
        grad.index_add_(0, x_rows, flat_hidden)
        grad.index_add_(0, y_rows, flat_hidden)
        for target, part in zip(self._dtable, grad.view(self._table.shape).split(self._elements, 1), strict=True):
            if beta:
                target.mul_(beta).add_(part)
            else:
                target.copy_(part)
        self.optimiser.update()

    def _loss_gradient(self, out: Tensor, label_MB: Tensor) -> None:
        """Outputs become d(mean loss)/d(output), in place, times the optimiser's gradient scale."""
        real = out[:, :, : self.pairs.elements]
        if self._loss == "cross_entropy":
            real.copy_(torch.softmax(real, 2))
        out.view(-1, out.shape[2]).scatter_add_(1, label_MB.reshape(-1, 1), self._minus_one)
        scale = self.batches.weights
        if self.optimiser.gradient_scale is not None:
            scale = scale * self.optimiser.gradient_scale
        out.mul_(scale[:, :, None])

    def outputs(self, x_MB: Tensor, y_MB: Tensor) -> Tensor:
        x_rows, y_rows = self._table_rows(x_MB, y_MB)
        table = self._packed_table
        table.view(self._table.shape).copy_(self._table)
        hidden = table[x_rows].add_(table[y_rows]).square_().view(*x_MB.shape, -1)
        return torch.bmm(hidden, self._w2)[:, :, : self.pairs.elements]

    def row_bytes(self) -> int:
        return 4 * (2 * self._w2.shape[1] + 3 * self._w2.shape[2])

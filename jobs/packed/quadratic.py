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
    """Parameters: U (M, E, W), V (M, E, W), W2 (M, O, W). Outputs are (M, O, B): see `jobs.packed.mlp`."""

    def _set_up(self) -> None:
        super()._set_up()
        u, v, self._w2 = self.parameters.views()
        du, dv, self._dw2 = self.optimiser.gradient.views()
        models, elements, width = u.shape
        # Tables of all models in one, (M * E, W): a look-up is one gather for the whole block.
        self._u, self._v, self._du, self._dv = (t.flatten(0, 1) for t in (u, v, du, dv))
        batch, outputs, device = self.batches.width, self._w2.shape[1], u.device
        self._hidden = torch.empty(models, batch, width, device=device)
        self._square = torch.empty_like(self._hidden)
        self._out = torch.empty(models, outputs, batch, device=device)
        self._rows = torch.arange(models, device=device)[:, None] * elements
        self._minus_one = torch.full((models, 1, batch), -1.0, device=device)
        self._fixed_rows = self._table_rows(*self._fixed[:2]) if self._fixed else None

    def _table_rows(self, x_MB: Tensor, y_MB: Tensor) -> tuple[Tensor, Tensor]:
        return (x_MB + self._rows).reshape(-1), (y_MB + self._rows).reshape(-1)

    @torch.no_grad()
    def _train_step(self, x_MB: Tensor, y_MB: Tensor, label_MB: Tensor) -> None:
        x_rows, y_rows = self._fixed_rows or self._table_rows(x_MB, y_MB)
        hidden, square, out = self._hidden, self._square, self._out
        flat_hidden, flat_square = hidden.flatten(0, 1), square.flatten(0, 1)
        torch.index_select(self._u, 0, x_rows, out=flat_hidden)
        torch.index_select(self._v, 0, y_rows, out=flat_square)
        hidden.add_(square)
        torch.mul(hidden, hidden, out=square)
        torch.bmm(self._w2, square.transpose(1, 2), out=out)
        self._loss_gradient(out, label_MB)
        beta = self.optimiser.accumulate
        torch.baddbmm(self._dw2, out, square, beta=beta, out=self._dw2)
        torch.bmm(out.transpose(1, 2), self._w2, out=square)
        hidden.mul_(square)
        for table, rows in ((self._du, x_rows), (self._dv, y_rows)):
            if beta:
                table.mul_(beta / 2)
            else:
                table.zero_()
            # d(h^2) = 2 h dh: the factor comes last, on the small table (a scaled index_add_ is slower).
            table.index_add_(0, rows, flat_hidden).mul_(2)
        self.optimiser.update()

    def _loss_gradient(self, out: Tensor, label_MB: Tensor) -> None:
        """Outputs become d(mean loss)/d(output), in place, times the optimiser's gradient scale."""
        if self._loss == "cross_entropy":
            real = out[:, : self.pairs.elements]
            real.copy_(torch.softmax(real, 1))
        out.scatter_add_(1, label_MB[:, None, :], self._minus_one)
        scale = self.batches.weights
        if self.optimiser.gradient_scale is not None:
            scale = scale * self.optimiser.gradient_scale[:, None]
        out.mul_(scale[:, None, :])

    def outputs(self, x_MB: Tensor, y_MB: Tensor) -> Tensor:
        x_rows, y_rows = self._table_rows(x_MB, y_MB)
        hidden = self._u[x_rows].add_(self._v[y_rows]).square_().view(*x_MB.shape, -1)
        return torch.bmm(self._w2, hidden.transpose(1, 2))[:, : self.pairs.elements]

    def row_bytes(self) -> int:
        return 4 * (2 * self._w2.shape[2] + 3 * self._w2.shape[1])

"""The quadratic perceptron of Gromov 2023, many as one, with its backward pass written out.

f(a, b) = W2 (U[a] + V[b])^2: the first layer on two one-hot inputs is a sum of two table rows, its
gradient a sum over the pairs that used a row; both are bags of rows. Widths and outputs are
padded with zeros, which stay zero.

Shape suffixes: M models, B batch, E elements, W padded width, O padded outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jobs.grokking.block import ModularBlock, look_up
from jobs.grokking.losses import replace_by_gradient


class QuadraticBlock(ModularBlock):
    """Parameters: U (M, E, W), V (M, E, W), W2 (M, O, W). Outputs are (M, O, B): see `jobs.double_descent.block`."""

    def _set_up(self) -> None:
        super()._set_up()
        u, _, self._w2 = self.parameters.views()
        self._dw2 = self.optimiser.gradient.views()[2]
        models, elements, width = u.shape
        # U and V of all models lie first in the flat state: one table of 2 M E rows, U's before V's.
        rows = 2 * models * elements
        self._table = self.parameters.flat[: rows * width].view(rows, width)
        self._dtable = self.optimiser.gradient.flat[: rows * width].view(rows, width)
        batch, outputs, device = self.batches.width, self._w2.shape[1], u.device
        self._square = torch.empty(models, batch, width, device=device)
        self._out = torch.empty(models, outputs, batch, device=device)
        self._first_row = torch.arange(models, device=device)[:, None] * elements
        self._minus_one = torch.full((models, 1, batch), -1.0, device=device)
        self._fixed_rows: Tensor | None = None
        if self._fixed is not None:
            self._fixed_rows = self._table_rows(*self._fixed[:2])
            # The pairs that use each table row, row after row, and where each row's list starts.
            used = self._fixed_rows.flatten()
            self._users = used.argsort(stable=True) // 2
            # As torch.bincount, which reads the largest value back from the device.
            counts = torch.zeros(rows, dtype=torch.int64, device=device).index_add_(0, used, torch.ones_like(used))
            self._first_user = counts.cumsum(0) - counts

    def _table_rows(self, x_MB: Tensor, y_MB: Tensor) -> Tensor:
        """(M * B, 2) rows of U and of V in the table."""
        offset = self._table.shape[0] // 2
        return torch.stack([x_MB + self._first_row, y_MB + (self._first_row + offset)], 2).view(-1, 2)

    @torch.no_grad()
    def _train_step(self, x_MB: Tensor, y_MB: Tensor, label_MB: Tensor, weight_MB: Tensor) -> None:
        rows = self._table_rows(x_MB, y_MB) if self._fixed_rows is None else self._fixed_rows
        square, out = self._square, self._out
        hidden = functional.embedding_bag(rows, self._table, mode="sum")
        torch.mul(hidden, hidden, out=square.view(hidden.shape))
        torch.bmm(self._w2, square.transpose(1, 2), out=out)
        self._loss_gradient(out, label_MB, weight_MB)
        beta = self.optimiser.accumulate
        torch.baddbmm(self._dw2, out, square, beta=beta, out=self._dw2)
        torch.bmm(out.transpose(1, 2), self._w2, out=square)
        hidden.mul_(square.view(hidden.shape))
        if self._fixed_rows is not None:
            bags = functional.embedding_bag(self._users, hidden, self._first_user, mode="sum")
        else:
            bags = torch.zeros_like(self._dtable)
            bags.index_add_(0, rows[:, 0], hidden).index_add_(0, rows[:, 1], hidden)
        # d(h^2) = 2 h dh: the factor comes last, on the small table.
        if beta:
            self._dtable.mul_(beta).add_(bags, alpha=2)
        else:
            torch.mul(bags, 2, out=self._dtable)
        self.optimiser.update()

    def _loss_gradient(self, out: Tensor, label_MB: Tensor, weight_MB: Tensor) -> None:
        """Outputs become d(mean loss)/d(output), in place, times the optimiser's gradient scale."""
        if self.shared.loss_precision == 64 and out.dtype != torch.float64:
            wide = out.double()
            self._loss_gradient(wide, label_MB, weight_MB)
            out.copy_(wide)
            return
        outputs = out[:, : self.pairs.outputs]  # padded outputs and their gradients are 0
        replace_by_gradient(self.shared.loss, outputs, label_MB, self._minus_one.to(out.dtype))
        scale = weight_MB
        if self.shared.class_mean:
            scale = scale * self.shared.loss_factor
        if self.optimiser.gradient_scale is not None:
            scale = scale * self.optimiser.gradient_scale[:, None]
        out.mul_(scale[:, None, :])

    def outputs(self, x_MB: Tensor, y_MB: Tensor) -> Tensor:
        hidden = functional.embedding_bag(self._table_rows(x_MB, y_MB), self._table, mode="sum")
        return torch.bmm(self._w2, hidden.square_().view(*x_MB.shape, -1).transpose(1, 2))[:, : self.pairs.outputs]

    def forward(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        u, v, w2 = layers
        square = (look_up(u, x_MB) + look_up(v, y_MB)).square()
        return torch.bmm(w2, square.transpose(1, 2))[:, : self.pairs.outputs]

    def spectrum_table(self) -> Tensor:
        return self.parameters.views()[0]

    def row_bytes(self) -> int:
        return 4 * (2 * self._w2.shape[2] + 3 * self._w2.shape[1])

"""The transformer of grokking papers, many as one.

Only the positions whose outputs are in the loss are read out, so the last block computes those alone. Whatever depends
on one token alone (the first block's keys and values) is computed once per token and position, not once per pair.

Shape suffixes: M models, B pairs, T positions, R positions that are read, V tokens, D residual width, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jobs.grokking.autograd_block import ACTIVATIONS, AutogradBlock
from jobs.grokking.block import look_up
from jobs.grokking.initial import layout
from jobs.grokking.params import SEQUENCES, SPECIAL_TOKENS


class TransformerBlock(AutogradBlock):
    """A decoder on a sequence of tokens: causal attention and a perceptron of 4D per block; `initial.layout` lists it.

    The outputs are (M, O, R B): those of the answer for all pairs, then, for `sequence: equation`, those of the end.
    """

    def _set_up(self) -> None:
        super()._set_up()
        shared, device = self.shared, self.pairs.x_P.device
        self._activate = ACTIVATIONS[shared.activation]
        self._names = [layer.name for layer in layout(shared, shared.width)]
        self._sequence = SEQUENCES[shared.sequence]
        self._read = 2 if shared.sequence == "equation" else 1
        elements = shared.elements
        self._special = {name: elements + k for k, name in enumerate(SPECIAL_TOKENS)}
        self._waves = sinusoids(len(self._sequence), shared.width).to(device, torch.get_default_dtype())
        self._answers: Tensor | None = None
        if "z" in self._sequence:
            self._answers = torch.zeros(elements * elements, dtype=torch.int64, device=device)
            self._answers[self.pairs.x_P * elements + self.pairs.y_P] = self.pairs.result_P

    def forward(self, layers: Sequence[Tensor], x_MB: Tensor, y_MB: Tensor) -> Tensor:
        shared = self.shared
        named = dict(zip(self._names, layers, strict=True))
        table, place = self._inputs(named, x_MB, y_MB)
        models, batch = x_MB.shape
        before = shared.norm_order == "grokfast"
        stream: Tensor | None = None
        for block in range(shared.layers):
            part = {name.partition("/")[2]: z for name, z in named.items() if name.startswith(f"{block}/")}
            last = block == shared.layers - 1
            if stream is None:
                if before:
                    table = _norm(table, part, "norm 1")
                if last and self._read == 1:
                    # The last token is "=", the same in every pair: the last row of the table.
                    here = table[:, -1:].expand(-1, batch, -1)[:, :, None]
                    queries = _linear(table[:, -1:], part, "query").expand(-1, batch, -1)[:, :, None]
                else:
                    here, queries = (
                        look_up(z, place).view(models, batch, len(self._sequence), -1)
                        for z in (table, _linear(table, part, "query"))
                    )
                keys, values = (
                    look_up(_linear(table, part, name), place).view(models, batch, len(self._sequence), -1)
                    for name in ("key", "value")
                )
                if last and self._read > 1:
                    here, queries = here[:, :, -self._read :], queries[:, :, -self._read :]
            else:
                if before:
                    stream = _norm(stream, part, "norm 1")
                keys, values = (_apply(stream, part, name) for name in ("key", "value"))
                here = stream[:, :, -self._read :] if last else stream
                queries = _apply(here, part, "query")
            mixed = _apply(_attend(queries, keys, values, shared.heads), part, "output")
            stream = self._feed_forward(here + mixed, part, before)
        assert stream is not None  # there is at least one block
        if shared.final_norm:
            stream = _norm(stream, named, "norm")
        rows = stream.transpose(1, 2).flatten(1, 2)
        return torch.bmm(named["readout"], rows.transpose(1, 2))[:, : self.pairs.outputs]

    def _inputs(self, named: Mapping[str, Tensor], x_MB: Tensor, y_MB: Tensor) -> tuple[Tensor, Tensor]:
        """(M, V, D) every input of the first block, and (M, B T) which of them each pair has at each position."""
        tokens, elements = named["tokens"], self.shared.elements
        positions = self._waves if self.shared.positions == "sinusoidal" else named["positions"]
        rows, place, start = [], [], 0
        for position, name in enumerate(self._sequence):
            if name in self._special:
                token, index = tokens[:, self._special[name] : self._special[name] + 1], torch.zeros_like(x_MB)
            else:
                token, index = tokens[:, :elements], {"x": x_MB, "y": y_MB}.get(name, x_MB)
                if name == "z":
                    assert self._answers is not None
                    index = self._answers[x_MB * elements + y_MB]
            rows.append(token + positions[:, position : position + 1])
            place.append(index + start)
            start += token.shape[1]
        return torch.cat(rows, 1), torch.stack(place, 2).flatten(1)

    def _feed_forward(self, stream: Tensor, part: Mapping[str, Tensor], before: bool) -> Tensor:
        after = self.shared.layer_norm and not before
        if after:
            stream = _norm(stream, part, "norm 1")
        rows = (_norm(stream, part, "norm 2") if before else stream).flatten(1, 2)
        b_in, b_out = (self._offset(part[f"{name} bias"]) for name in ("in", "out"))
        rows = torch.baddbmm(b_out, self._activate(torch.baddbmm(b_in, rows, part["in"])), part["out"])
        stream = stream + rows.view_as(stream)
        return _norm(stream, part, "norm 2") if after else stream

    def losses(self, outputs_MOB: Tensor, label_MB: Tensor) -> Tensor:
        if self._read == 1:
            return super().losses(outputs_MOB, label_MB)
        answer, end = outputs_MOB.chunk(2, 2)
        return (super().losses(answer, label_MB) + super().losses(end, self._end(label_MB))) / 2

    def right(self, outputs_MOB: Tensor, label_MB: Tensor) -> Tensor:
        if self._read == 1:
            return super().right(outputs_MOB, label_MB)
        answer, end = outputs_MOB.chunk(2, 2)
        return super().right(answer, label_MB) & super().right(end, self._end(label_MB))

    def _end(self, label_MB: Tensor) -> Tensor:
        return torch.full_like(label_MB, self._special["end"])

    def spectrum_table(self) -> Tensor:
        return self.parameters.views()[0][:, : self.pairs.elements]

    def row_bytes(self) -> int:
        return 4 * 4 * len(self._sequence) * self.parameters.shapes[0][1]


def sinusoids(length: int, width: int) -> Tensor:
    """(1, length, width) the fixed positions of Vaswani et al. 2017, float64.

    The wave of columns 2 i and 2 i + 1 is sin and cos of position / 10000^(2 i / width).
    """
    column = torch.arange(width, dtype=torch.float64)
    rate = 10_000.0 ** (-(column - column % 2) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())[None]


def _linear(rows_MVD: Tensor, part: Mapping[str, Tensor], name: str) -> Tensor:
    bias = part.get(f"{name} bias")
    return torch.bmm(rows_MVD, part[name]) if bias is None else torch.baddbmm(bias, rows_MVD, part[name])


def _apply(stream_MBTD: Tensor, part: Mapping[str, Tensor], name: str) -> Tensor:
    return _linear(stream_MBTD.flatten(1, 2), part, name).view(*stream_MBTD.shape[:3], -1)


def _attend(q_MBSD: Tensor, k_MBTD: Tensor, v_MBTD: Tensor, heads: int) -> Tensor:
    """Causal attention of queries at the last S positions to all T positions."""
    q, k, v = (x.view(*x.shape[:3], heads, -1) for x in (q_MBSD, k_MBTD, v_MBTD))
    # Few positions: for matrices this small a product costs more than explicit sums.
    scores = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) * q.shape[-1] ** -0.5
    queries, positions = q.shape[2], k.shape[2]
    if queries > 1:
        later = torch.ones(queries, positions, dtype=torch.bool, device=q.device).triu(positions - queries + 1)
        scores = scores.masked_fill(later[:, :, None], -math.inf)
    mixed: Tensor = (scores.softmax(3).unsqueeze(-1) * v.unsqueeze(2)).sum(3).flatten(3)
    return mixed


def _norm(stream: Tensor, part: Mapping[str, Tensor], name: str) -> Tensor:
    """Layer norm of (M, ..., D) over D; gain and offset are (M, 1, D)."""
    shape = (len(stream), *[1] * (stream.dim() - 2), -1)
    normal: Tensor = functional.layer_norm(stream, stream.shape[-1:])
    scaled: Tensor = normal * part[f"{name} gain"].view(shape) + part[f"{name} offset"].view(shape)
    return scaled

"""Progress measures of a grokking pack: measures that change before the test accuracy does.

Shapes: M models, E elements (p), D columns of a table over them, F = floor(p / 2) frequencies, B rows, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jobs.grokking.block import ModularBlock

KEY_FREQUENCIES = 5
"""Number of frequencies that are kept or removed (the network of Nanda et al. 2023 has five)."""


def measures(block: ModularBlock) -> Mapping[str, Tensor]:
    """The gradient norm and, for `progress: fourier`, the Fourier measures."""
    further = fourier(block) if block.shared.progress == "fourier" else {}
    return {"gradient_norm": gradient_norm(block), **further}


def gradient_norm(block: ModularBlock) -> Tensor:
    """(M,) norm of the gradient of the mean training loss over the whole train set, without weight decay."""
    flat = block.parameters.flat
    total = torch.zeros_like(flat)
    count = block.batches.counts[:, None]
    with torch.enable_grad():
        flat.requires_grad_(True)
        for x, y, label, trained, _ in block.examples():
            losses = block.losses(block.forward(block.parameters.views(), x, y), label)
            (part,) = torch.autograd.grad(torch.where(trained, losses, 0.0).div(count).sum(), flat)
            total += part
        flat.requires_grad_(False)
    return block.parameters.norm_of(total)


def spectrum(table_MED: Tensor) -> Tensor:
    """(M, F, D) power of each column at the frequencies 1 to p / 2 over Z_p."""
    power: Tensor = torch.fft.rfft(table_MED, dim=1)[:, 1:].abs().square()
    return power


def gini(power_MF: Tensor) -> Tensor:
    """(M,) Gini coefficient: 0 if all frequencies are equal, 1 - 1 / F if there is one (Nanda et al. 2023)."""
    count = power_MF.shape[1]
    ordered = power_MF.sort(1).values
    rank = torch.arange(1, count + 1, device=power_MF.device)
    total = ordered.sum(1).clamp(min=1e-30)
    return (ordered * (2 * rank - count - 1)).sum(1) / (count * total)


def fourier(block: ModularBlock) -> Mapping[str, Tensor]:
    """The embedding's sparsity in frequencies, and Nanda's restricted and excluded loss; (M,) each.

    The logits of all p^2 pairs are averaged over pairs with the same answer s; the averages hold the projection of the
    logits on all waves cos(w s) and sin(w s). The key frequencies (the strongest of the embedding) and the constant of
    these averages make up the restricted logits, whose loss is over all pairs with clean labels. The excluded loss is
    the training loss of the logits without the waves of the key frequencies.

    Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability", section 5.
    Domain: answers s = x + y or x - y modulo p. The key frequencies are those of the current step.
    """
    table = block.spectrum_table()
    pairs = block.pairs
    models, p = len(block.batches.counts), pairs.elements
    assert table is not None  # images have no Fourier measures
    power = spectrum(table)
    total = power.sum(2)
    count = min(KEY_FREQUENCIES, total.shape[1])
    keys = total.topk(count, 1).indices
    strongest = power.max(1).values.sum(1) / power.sum((1, 2)).clamp(min=1e-30)
    x, y = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(p, device=total.device)] * 2, indexing="ij"))
    answer = _answer(block, x, y)
    mean_MOS = torch.zeros(models, pairs.outputs, p, device=total.device)
    rows = block.chunk_rows()
    for start in range(0, p * p, rows):
        part = slice(start, start + rows)
        outputs = block.outputs(x[part].expand(models, -1), y[part].expand(models, -1))
        mean_MOS.index_add_(2, answer[part], outputs / p)
    waves = torch.fft.rfft(mean_MOS, dim=2)
    kept = torch.zeros(models, waves.shape[2], device=total.device).scatter_(1, keys + 1, 1.0)
    key_waves = torch.fft.irfft(waves * kept[:, None], n=p, dim=2)
    restricted = key_waves + mean_MOS.mean(2, keepdim=True)
    classes = torch.arange(p, device=total.device).expand(models, -1)
    return {
        "fourier_gini": gini(total),
        "fourier_top_share": strongest,
        "restricted_loss": block.losses(restricted, classes).mean(1),
        "excluded_loss": _excluded(block, key_waves),
    }


def _answer(block: ModularBlock, x: Tensor, y: Tensor) -> Tensor:
    return (x + y if block.shared.operation == "add" else x - y) % block.pairs.elements


def _excluded(block: ModularBlock, key_waves_MOS: Tensor) -> Tensor:
    """(M,) training loss of the outputs minus the waves of the key frequencies at each pair's answer."""
    total = torch.zeros(len(block.batches.counts), dtype=torch.float64, device=key_waves_MOS.device)
    for x, y, label, trained, _ in block.examples():
        waves = key_waves_MOS.gather(2, _answer(block, x, y)[:, None].expand(-1, key_waves_MOS.shape[1], -1))
        losses = block.losses(block.outputs(x, y) - waves, label)
        total += torch.where(trained, losses, 0.0).sum(1, dtype=torch.float64)
    return total / block.batches.counts

"""Label noise, drawn once from the trial's own key.

Two conventions are in use: "redrawn" replaces a label by one of all K classes (Greydanus 2020; the effective rate is
p (K - 1) / K), "incorrect" by one of the K - 1 wrong ones (Nakkiran et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.packed import random


def noisy_labels(
    labels_MN: Tensor, seeds: Sequence[int], rates: Sequence[float], classes: Sequence[int] | int, convention: str
) -> Tensor:
    """(M, N) labels, each replaced with the label-noise rate of its model; the input is not changed.

    `classes` is the number of classes, one for all models or one for each.
    """
    device = labels_MN.device
    counter = torch.arange(labels_MN.shape[1], device=device)
    count = torch.as_tensor(classes, device=device).reshape(-1, 1)
    chosen = random.uniform(random.stream_keys(seeds, "label noise/which", device), counter)
    hit = chosen < torch.tensor(rates, device=device)[:, None]
    keys = random.stream_keys(seeds, "label noise/what", device)
    if convention == "redrawn":
        other = random.below(keys, counter, count)
    else:
        other = (labels_MN + 1 + random.below(keys, counter, count - 1)) % count
    return torch.where(hit, other, labels_MN)

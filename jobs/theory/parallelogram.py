"""Liu's rank criterion: whether a training set of sums determines the linear representation, without training.

If E_i + E_j = E_m + E_n for all training pairs with i + j = m + n (the parallelograms) has only the solutions
E_k = a + k b, embeddings that satisfy them generalise. The solutions have dimension p - rank, so the criterion is
rank = p - 2.

Source: Liu, Kitouni, Nolte, Michaud, Tegmark, Williams 2022 (arXiv 2205.10343), section 3.2,
equation 7 and figure 4a.
Domain: addition without modulus of 0..p-1, unordered pairs i <= j.

Shapes: S training sets, P = p (p + 1) / 2 pairs, p elements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jobs.theory.domain import DomainError

_CHUNK = 4096
"""Training sets that are evaluated at once."""


def unordered_pairs(p: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) i and (P,) j of every pair with i <= j.

    Raises:
        DomainError: p < 3, where no pairs have equal sums.
    """
    if p < 3:
        raise DomainError("p", "must be a whole number >= 3", p)
    i, j = np.triu_indices(p)
    return i.astype(np.int64), j.astype(np.int64)


def system_rank(p: int, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(S,) rank of the parallelogram system of each training set; at most p - 2.

    Args:
        p: elements.
        chosen: (S, P) which of `unordered_pairs(p)` are in the training set.

    Raises:
        DomainError: a shape does not fit.
    """
    i, j = unordered_pairs(p)
    if chosen.ndim != 2 or chosen.shape[1] != len(i):
        raise DomainError("chosen", f"must have {len(i)} columns", chosen.shape)
    rows = np.zeros((len(i), p))
    np.add.at(rows, (np.arange(len(i)), i), 1.0)
    np.add.at(rows, (np.arange(len(i)), j), 1.0)
    sums = i + j
    ranks = np.empty(len(chosen), dtype=np.int64)
    for begin in range(0, len(chosen), _CHUNK):
        part = chosen[begin : begin + _CHUNK].astype(np.float64)
        gram = np.zeros((len(part), p, p))
        for total in range(2 * p - 1):
            same = sums == total
            if same.sum() < 2:
                continue
            w, r = part[:, same], rows[same]
            count = np.maximum(w.sum(1), 1.0)
            # Pairs of one sum are all equal iff each is their mean: the centred rows span the differences.
            mean = w @ r
            gram += np.einsum("sa,ai,aj->sij", w, r, r) - mean[:, :, None] * mean[:, None, :] / count[:, None, None]
        # The entries are small rationals: eigenvalues are either 0 to rounding or far from it.
        ranks[begin : begin + _CHUNK] = (np.linalg.eigvalsh(gram) > 1e-8).sum(1)
    return ranks


def unique_probability(p: int, train_pairs: int, *, draws: int, seed: int = 0) -> tuple[float, float]:
    """P(rank = p - 2) over uniformly random training sets of `train_pairs` pairs, and its standard error.

    Raises:
        DomainError: `train_pairs` is not in 0..p (p + 1) / 2, or `draws` is below 1.
    """
    pairs = len(unordered_pairs(p)[0])
    if not 0 <= train_pairs <= pairs:
        raise DomainError("train_pairs", f"must be from 0 to {pairs}", train_pairs)
    if draws < 1:
        raise DomainError("draws", "must be at least 1", draws)
    order = np.argsort(np.random.default_rng(seed).random((draws, pairs)), axis=1)
    share = float((system_rank(p, order < train_pairs) == p - 2).mean())
    return share, float(np.sqrt(share * (1 - share) / draws))

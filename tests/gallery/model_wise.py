"""Row 4: grokking along the step and along the size of the model, on one map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from orchestrator.analysis import fits, laws
from tests.gallery.row import LEVEL, SHOWS, UNDECIDED, Finding, Row, above, below, mean_interval, within

MEMORISED, GENERALISED = "memorisation_step", "generalisation_step"
REACHED = 0.9
CONFUSED, MEMORISING, LARGE = 1, 3, 64
"""Embedding sizes."""


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """Along the step, along the embedding size at the last step, and the boundary of generalisation."""
    sizes, decays = (sweep.trials() for sweep in results)
    curves = results[0].curves(["train_accuracy", "test_loss"], axes=True)
    large = sizes[sizes.embedding == LARGE]
    what = f"along the step, embedding {LARGE}"
    yield ratio(f"{what}: step of generalisation over memorisation", large[GENERALISED] / large[MEMORISED])
    first, at, last = humps(curves[curves.embedding == LARGE]).T
    yield ratio(f"{what}: test loss at memorisation over the first", at / first)
    yield ratio(f"{what}: test loss at memorisation over the last", at / last)
    train, test = (smallest(sizes, name) for name in ("final_train_accuracy", "final_test_accuracy"))
    what = "along the embedding, last step"
    yield ratio(f"{what}: size that generalises over size that memorises", test / train)
    loss = {size: cell.sort_values("replicate").final_test_loss.to_numpy() for size, cell in sizes.groupby("embedding")}
    for size in (CONFUSED, LARGE):
        yield ratio(f"{what}: test loss at size {MEMORISING} over size {size}", loss[MEMORISING] / loss[size])
    found = exponent(sizes[sizes.embedding.isin(learning(sizes))], "embedding", GENERALISED)
    yield below("boundary: exponent of generalisation in the embedding size", *found, 0.0, n=sizes.replicate.nunique())
    n = decays.replicate.nunique()
    found = exponent(decays, "weight_decay", GENERALISED)
    yield within("boundary: exponent of generalisation in the weight decay", *found, -1.5, -0.5, n=n)
    found = exponent(decays, "weight_decay", MEMORISED)
    yield within("exponent of memorisation in the weight decay", *found, -0.2, 0.2, n=n)


def ratio(what: str, ratios: Any) -> Finding:
    """The geometric mean is above 1."""
    found, low, high = map(float, np.exp(mean_interval(np.log(ratios))))
    return above(what, found, low, high, 1.0, n=len(ratios))


def humps(curves: Any) -> Any:
    """(N, 3) of N trials: test loss at the first report, where the training set is memorised, at the last report."""
    rows = []
    for _, curve in curves.groupby("replicate"):
        loss, reached = curve.test_loss.to_numpy(), np.flatnonzero(curve.train_accuracy >= REACHED)
        rows.append((loss[0], loss[reached[0]] if len(reached) else np.nan, loss[-1]))
    return np.array(rows)


def smallest(trials: Any, metric: str) -> Any:
    """(N,) the smallest embedding at which each replicate reaches the accuracy at the last step; twice all if none."""
    reached = trials[trials[metric] >= REACHED].groupby("replicate").embedding.min()
    return reached.reindex(sorted(trials.replicate.unique()), fill_value=2 * trials.embedding.max()).to_numpy()


def learning(trials: Any) -> list[int]:
    """Embedding sizes at which at least half of the replicates generalise."""
    share = trials[GENERALISED].notna().groupby(trials.embedding).mean()
    return [int(size) for size in share.index if share[size] >= 0.5]


def exponent(trials: Any, axis: str, step: str) -> tuple[float, float, float]:
    """Of the step along an axis, with interval: a power law, steps known between reports, or not reached."""
    bounds = {"above": trials[f"{step}_after"].fillna(trials.steps), "to": trials[step].fillna(np.inf)}
    data = fits.observations(trials[axis], **bounds)
    b = fits.fit(laws.POWER, data, units=trials.replicate.to_numpy(), level=LEVEL).parameters["b"]
    return -b.value, -b.high, -b.low


ROW = Row(
    number=4,
    name="grokking by step and by size",
    source="Davies, Langosco, Krueger 2023",
    sweeps=("davies2023/embedding_step_small.yaml", "davies2023/weight_decay_step_small.yaml"),
    check=check,
    absent={
        "along the embedding, last step: test loss at size 3 over size 1": UNDECIDED,
        "boundary: exponent of generalisation in the embedding size": UNDECIDED,
    },
    either={"boundary: exponent of generalisation in the embedding size": SHOWS},  # on another processor
)

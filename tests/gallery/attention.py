"""Row 14: in-context learning by linear attention; its double descent, and the diversity of tasks, also by softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tests.gallery.row import Finding, Picture, Point, Row, above, agrees, below, mean_interval, within

NOISE, ALPHA = 0.25, 1.0
"""The noise variance rho with tasks of norm 1, and the length of a context over d."""
NEAR = 1.25
"""Largest ratio of losses that are close."""
CONTEXTS, SIZE = 200, 24
"""Fresh tasks for a draw of training tasks, and d, of the posterior mean."""


def stieltjes(x: float, kappa: float) -> float:
    """E 1 / (l + x) over the eigenvalues l of the covariance of kappa d tasks."""
    c = x + 1 - 1 / kappa
    return 2 / (c + math.sqrt(c * c + 4 * x / kappa))


def expected(tau: float, kappa: float, *, alpha: float = ALPHA, rho: float = NOISE) -> float:
    """Test loss on fresh tasks as d grows, with tau d^2 contexts of alpha d examples and kappa d tasks, without ridge.

    Source: Lu et al. 2024 (arXiv 2405.11751), result 1; read in the authors' code (Pehlevan-Group/icl-asymptotic).
    """
    q = (1 + rho) / alpha
    if tau < 1:
        mu = q * stieltjes(q, kappa / tau)
        bracket = 1 - tau * (1 - mu) ** 2 - (q - rho) / q * mu
        return tau * (1 + q) / (1 - tau) * bracket - 2 * tau * (1 - mu) + rho + 1
    m = stieltjes(q, kappa)
    shared = 0.0 if math.isinf(kappa) else kappa * (m / (kappa + m)) ** 2
    first = (1 / (1 - shared) - 1 / (tau - 1)) * (1 + q) * (q * m) ** 2
    second = (3 - 2 * tau) / (tau - 1) * m * q**2
    return first + second + ((1 + rho) / (tau - 1) * m + 1) * q + rho * m / (tau - 1) + rho


def at_limit(what: str, loss: Any, formula: float, **point: Any) -> Finding:
    """The geometric mean at 1 / d = 0 agrees: the loss of a small d has heavy tails, that of a large one no spread."""
    place = math.log(formula)
    found = agrees(what, limit(np.log(loss)), place, resolution=0.25 / abs(place), **point)
    values = {name: math.exp(getattr(found, name)) for name in ("found", "low", "high", "curve")}
    return replace(found, expected=f"{formula:.4g}", **values)


def limit(loss: Any) -> Any:
    """At 1 / d = 0 by the polynomial in 1 / d through all sizes; `loss` has a column for each d."""
    place = [1 / d for d in loss]
    weights = [math.prod(x / (x - own) for x in place if x != own) for own in place]
    return loss.to_numpy() @ np.array(weights)


def posterior_mean_loss(d: int, tasks: int, draws: int) -> list[float]:
    """Test loss on fresh tasks of the best predictor on the training tasks: their posterior mean (Raventos et al.)."""
    random, losses = np.random.default_rng([d, tasks]), []
    for _ in range(draws):
        w = random.standard_normal((tasks + CONTEXTS, d))
        w /= np.linalg.norm(w, axis=1)[:, None]
        known, fresh = w[:tasks], w[tasks:]
        x = random.standard_normal((CONTEXTS, int(ALPHA * d), d))
        y = np.einsum("nld,nd->nl", x, fresh) + math.sqrt(NOISE) * random.standard_normal(x.shape[:2])
        fit = -np.square(y[:, :, None] - x @ known.T).sum(1) / (2 * NOISE)
        share = np.exp(fit - fit.max(1, keepdims=True))
        miss = share / share.sum(1, keepdims=True) @ known - fresh
        losses.append(float(np.square(miss).sum(1).mean()) + NOISE)
    return losses


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """The formula at every tau and kappa, the peak at every d, and attention beside the posterior mean."""
    contexts, diversity, softmax = (sweep.trials() for sweep in results)
    for trials in (contexts, diversity):
        trials["tau"] = trials.sample_count / trials.inputs**2
    diversity["kappa"] = diversity.tasks / diversity.inputs
    losses = {tau: by_size(cell) for tau, cell in contexts.groupby("tau")}
    for tau, loss in losses.items():
        if tau != 1:  # p = d^2 + d: at tau = 1 the loss grows with d
            series = "a fresh task each, d to infinity"
            yield at_limit(f"tau {tau:g}", loss, expected(tau, math.inf), series=series, x=tau)
    for d in losses[1.0]:
        for tau in (0.5, 2.0):
            yield ratio(f"d {d}: peak, loss at tau 1 over tau {tau:g}", losses[1.0][d], losses[tau][d])
    shared = {cell: by_size(trials) for cell, trials in diversity.groupby(["tau", "kappa"])}
    for (tau, kappa), loss in shared.items():
        if len(loss.columns) > 1:
            yield at_limit(f"tau {tau:g}, kappa {kappa:g}", loss, expected(tau, kappa))
    few, many = (shared[4.0, kappa] for kappa in (0.5, 4.0))
    for d in few:
        yield ratio(f"d {d}, tau 4: diversity, loss at kappa 0.5 over kappa 4", few[d], many[d])
    for (tau, kappa), loss in shared.items():
        if SIZE in loss and tau in (2.0, 4.0):
            attention = loss[SIZE].to_numpy()
            best = np.array(posterior_mean_loss(SIZE, round(kappa * SIZE), len(attention)))
            pair = (attention, best) if tau == 2 else (best, attention)
            names = "attention over posterior mean" if tau == 2 else "posterior mean over attention"
            yield ratio(f"d {SIZE}, tau {tau:g}, kappa {kappa:g}: {names}", *pair)

    yield from transformers(softmax)


def transformers(trials: Any) -> Iterator[Finding]:
    """The softmax transformer beside ridge regression and the posterior mean given the tasks, on old and fresh ones."""
    cells = {int(tasks): cell for tasks, cell in trials.groupby("tasks")}
    few, *some, many = cells
    what = f"softmax, {few} tasks, their contexts: ridge regression over transformer"
    yield ratio(what, *losses_of(cells[few], "train", "ridge", "loss"))
    worse = relative(*losses_of(cells[few], "test", "loss", "posterior"))
    what = f"softmax, {few} tasks, fresh ones: transformer over posterior mean"
    yield within(what, *worse, 1 / NEAR, NEAR, n=len(cells[few]))
    for tasks in some:
        what = f"softmax, {tasks} tasks, fresh ones: posterior mean over transformer"
        yield ratio(what, *losses_of(cells[tasks], "test", "posterior", "loss"))
    what = f"softmax, {many} tasks, their contexts: transformer over posterior mean"
    yield ratio(what, *losses_of(cells[many], "train", "loss", "posterior"))
    worse = relative(*losses_of(cells[many], "test", "loss", "ridge"))
    what = f"softmax, {many} tasks, fresh ones: transformer over ridge regression"
    yield below(what, *worse, NEAR, n=len(cells[many]))


def diversity(results: Sequence[Any]) -> Iterator[Point]:
    """The loss of the softmax transformer over those of the references, by the number of tasks."""
    for tasks, cell in results[2].trials().groupby("tasks"):
        for contexts, kind in (("train", "old"), ("test", "fresh")):
            for reference, of in (("posterior", "the posterior mean"), ("ridge", "ridge regression")):
                found, low, high = relative(*losses_of(cell, contexts, "loss", reference))
                series = f"{kind} tasks, over {of}"
                yield Point(found=found, low=low, high=high, series=series, x=float(tasks))


def losses_of(trials: Any, contexts: str, *predictors: str) -> list[Any]:
    """Losses of these predictors on contexts of the old tasks (train) or of fresh ones (test)."""
    return [trials[f"final_{contexts}_{name}"] for name in predictors]


def by_size(trials: Any) -> Any:
    """The loss of each replicate, a column for each d."""
    return trials.pivot(index="replicate", columns="context_length", values="final_test_loss")


def ratio(what: str, upper: Any, lower: Any) -> Finding:
    """The geometric mean of the ratios is above 1."""
    return above(what, *relative(upper, lower), 1.0, n=len(upper))


def relative(upper: Any, lower: Any) -> tuple[float, float, float]:
    """Geometric mean of the ratios, and its interval."""
    found, low, high = map(float, np.exp(mean_interval(np.log(np.asarray(upper) / np.asarray(lower)))))
    return found, low, high


ROW = Row(
    number=14,
    name="in-context learning",
    source="Lu et al. 2024; Raventos et al. 2023",
    sweeps=("lu2024/contexts_small.yaml", "lu2024/diversity_small.yaml", "raventos2023/task_diversity_small.yaml"),
    check=check,
    axes=("tau: pretraining contexts over d^2", "test loss on fresh tasks"),
    pictures={
        "task_diversity": Picture(
            points=diversity, axes=("tasks of pretraining", "loss of the softmax transformer, ratio")
        )
    },
)

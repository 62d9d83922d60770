"""Row 6: scaling laws with known exponents, and the compute-optimal width that fitted laws predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from orchestrator.analysis.fits import fit, observations
from orchestrator.analysis.laws import POWER, TWO_POWERS
from tests.gallery.benign import expected, params_of
from tests.gallery.row import DOES_NOT, SHOWS, UNDECIDED, Finding, Row, above, agrees, mean_interval, varies, within

COMPUTE, HELD_OUT = np.geomspace(1e3, 1e4, 9), (3e4, 1e5)
"""Features x steps: what the laws are fitted to, and where they are compared with the measured optimum."""
STEPS = (30, 300)
"""Where the widest model follows its power law: beyond the first steps, before it lacks features."""
WIDTHS = (20, 113)
"""Where the last step is that of a trained model, and inputs are left over."""
NEIGHBOURS = 3
NETWORK, BEYOND, INPUTS = np.geomspace(1e5, 1e6, 7), (3e6,), 10
"""The same for the perceptrons, parameters x steps; and their inputs."""


def exponents(a: float, t: float) -> dict[str, float]:
    """Of the excess risk in examples, features and steps, and of the best number of features in compute.

    Variances j^-a, squared coefficients j^-t, no noise. The inputs beyond the first p have the risk sum j^-(a + t); n
    examples determine the first n or so, T steps those with j^-a > 1 / T, so p^-s, n^-s and T^-(s / a), s = a + t - 1.
    Interpolation multiplies the coefficients by j^a kappa, kappa ~ n^-a, so n^-2a where that is slower. At the best p,
    p^-s is to T^-(s / a) in a constant ratio with p T = C: p ~ C^(1 / (1 + a)).

    Source: Cui et al. 2021 (arXiv 2105.15004), noiseless; Lin et al. 2025 (arXiv 2506.08415), b = a + t.
    """
    s = a + t - 1
    return {"examples": min(s, 2 * a), "features": s, "steps": s / a, "optimum": 1 / (1 + a)}


def course(params: Any, features: int, steps: Any) -> Any:
    """Expected excess risk after gradient descent; the unused inputs are noise. Exact once it is trained."""
    place = np.arange(1, params.inputs + 1)
    variances, squares = place**-params.covariance_exponent, place**-params.teacher_exponent
    risk = variances * squares * params.signal / squares.sum()
    left = risk[features:].sum()
    kept = (1 - params.learning_rate * variances[:features]) ** np.asarray(steps, dtype=float)[..., None]
    return (
        left
        + (risk[:features] * kept**2).sum(-1)
        + left * ((1 - kept) ** 2).sum(-1) / (params.sample_count - features - 1)
    )


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """Exponents in examples, features, steps and compute; the best width beyond the computes that are fitted."""
    trials = results[0].trials()
    for (a, t), rows in trials.groupby(["covariance_exponent", "teacher_exponent"]):
        exact = {n: expected(params_of(group)) for n, group in rows.groupby("sample_count")}
        for n, group in rows.groupby("sample_count"):
            risk, series = group.final_excess_risk, f"exponent {exponents(a, t)['examples']:g}"
            yield agrees(f"a {a:g}, t {t:g}, n {n}", risk, exact[n], series=series, x=float(n))
        # What is fitted is the mean logarithm, below the logarithm of the mean by half the variance or so.
        below = np.log(rows.final_excess_risk).groupby(rows.sample_count).var() / 2
        slope = -line(list(exact), [exact[n] * np.exp(-below[n]) for n in exact])
        x, y, seeds = rows.sample_count, rows.final_excess_risk, rows.replicate
        yield from recovered(f"a {a:g}, t {t:g}: in examples", x, y, seeds, slope, exponents(a, t)["examples"])
    yield from compute(results[1])
    yield from network(results[2])


def compute(sweep: Any) -> Iterator[Finding]:
    """What gradient descent gives for features x steps."""
    trials, curves = sweep.trials(), sweep.curves(["excess_risk"], axes=True)
    params = params_of(trials)
    known = exponents(params.covariance_exponent, params.teacher_exponent)
    some = trials[trials.features.between(*WIDTHS)]
    widths = np.unique(some.features)
    slope = -line(widths, [course(params, p, params.steps) for p in widths])
    risk = some.final_excess_risk
    yield from recovered("in features", some.features, risk, some.replicate, slope, known["features"])
    widest = curves.features.max()
    some = curves[(curves.features == widest) & curves.step.between(*STEPS)]
    steps = np.unique(some.step)
    slope = -line(steps, course(params, widest, steps))
    yield from recovered("in steps", some.step, some.excess_risk, some.replicate, slope, known["steps"])

    widths = np.unique(curves.features)
    places = np.append(COMPUTE, HELD_OUT)
    log_risk = np.array([log_risks(seed, widths, places) for _, seed in curves.groupby("replicate")])
    exact = np.log([[course(params, p, c / p) for p in widths] for c in places])
    best, fitted = np.array([optima(widths, seed[: len(COMPUTE)]) for seed in log_risk]), len(COMPUTE)
    seeds, amounts = np.repeat(np.arange(len(best)), fitted), np.tile(COMPUTE, len(best))
    slope = line(COMPUTE, optima(widths, exact[:fitted]))
    yield from recovered("best features in compute", amounts, 1 / best.ravel(), seeds, slope, known["optimum"])
    yield from predicted("best features", widths, log_risk, COMPUTE, HELD_OUT)


def predicted(what: str, widths: Any, log_risk: Any, compute: Any, held_out: Any) -> Iterator[Finding]:
    """The best width of each held-out compute over those that two laws predict, fitted to smaller computes."""
    best, fitted = np.array([optima(widths, seed) for seed in log_risk]), len(compute)
    power = np.polyfit(np.log(compute), np.log(best[:, :fitted]).mean(0), 1)
    by_optima = np.exp(np.polyval(power, np.log(held_out)))
    by_law = by_risks(widths, log_risk.mean(0)[:fitted], compute, held_out)
    for law, forecast in (("optima", by_optima), ("risks", by_law)):
        for c, width, found in zip(held_out, forecast, best[:, fitted:].T, strict=True):
            ratio = map(float, np.exp(mean_interval(np.log(found / width))))
            name = f"C {c:g}: {what} / those predicted by {law} to {compute[-1]:g}"
            yield within(name, *ratio, 0.8, 1.25, n=len(found))


def network(sweep: Any) -> Iterator[Finding]:
    """Perceptrons on a teacher's data: the exponent in the parameters, and the best number of them."""
    trials = sweep.trials()
    b = fit(POWER, observations(trials.parameters, trials.final_test_loss), units=trials.replicate).parameters["b"]
    what, n = "network: exponent of the loss in parameters, 90% interval", trials.replicate.nunique()
    yield above(what, b.value, b.low, b.high, 4 / INPUTS, n=n)
    curves = sweep.curves(["test_loss"], axes=True).rename(
        columns={"parameters": "features", "test_loss": "excess_risk"}
    )
    widths, places = np.unique(curves.features), np.append(NETWORK, BEYOND)
    log_risk = np.array([log_risks(seed, widths, places) for _, seed in curves.groupby("replicate")])
    yield from predicted("best parameters of the network", widths, log_risk, NETWORK, BEYOND)


def recovered(what: str, x: Any, y: Any, seeds: Any, exact: float, known: float) -> Iterator[Finding]:
    """The 90% interval of the fitted exponent has that of the exact risk at these sizes; the limit is within 5%."""
    b = fit(POWER, observations(x, y), units=seeds).parameters["b"]
    n = len(np.unique(seeds))
    verdict = SHOWS if b.covers(exact) else DOES_NOT
    if not varies(b.low, b.high):
        verdict = DOES_NOT
    elif b.high - b.low > 0.1 * exact:
        verdict = UNDECIDED
    yield Finding(
        what=f"{what}: exponent of these sizes, 90% interval",
        expected=f"{exact:.4g}",
        found=b.value,
        low=b.low,
        high=b.high,
        n=n,
        verdict=verdict,
    )
    yield within(f"{what}: limit {known:.4g} within 5%", b.value, b.low, b.high, 0.95 * known, 1.05 * known, n=n)


def line(x: Any, y: Any) -> float:
    """Slope of log y in log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def log_risks(curves: Any, widths: Any, places: Any) -> list[list[float]]:
    """(C, P) of one seed, with C / p steps, between reports on a line in the logarithms; NaN beyond the last."""
    by_width = {p: (np.log(curve.step), np.log(curve.excess_risk)) for p, curve in curves.groupby("features")}
    return [[float(np.interp(np.log(c / p), *by_width[p], right=np.nan)) for p in widths] for c in places]


def optima(widths: Any, log_risk: Any) -> list[float]:
    """(C,) the best width of each compute, by a parabola in log p through the neighbours of the lowest risk."""
    found = []
    for row in np.asarray(log_risk):
        place, risk = np.log(widths[np.isfinite(row)]), row[np.isfinite(row)]
        k = np.clip(np.argmin(risk), NEIGHBOURS, len(risk) - 1 - NEIGHBOURS)
        near = slice(k - NEIGHBOURS, k + NEIGHBOURS + 1)
        square, slope, _ = np.polyfit(place[near], risk[near], 2)
        found.append(float(np.exp(np.clip(-slope / (2 * square), *place[[0, -1]]))))
    return found


def by_risks(widths: Any, log_risk: Any, compute: Any, held_out: Any) -> Any:
    """The best widths of the held-out computes by e + a p^-alpha + b T^-beta (Hoffmann et al. 2022, approach 3)."""
    x, known = np.array([(p, c / p) for c in compute for p in widths]), np.isfinite(log_risk).ravel()
    seen = observations(x[known], np.exp(log_risk).ravel()[known])
    law = fit(TWO_POWERS, seen, loss="huber", resamples=0).parameters
    _, a, alpha, b, beta = (estimate.value for estimate in law.values())
    if min(alpha, beta) <= 0:
        return [np.nan for _ in held_out]  # one of the risks does not fall: there is no best width
    return [(alpha * a / (beta * b) * c**beta) ** (1 / (alpha + beta)) for c in held_out]


ROW = Row(
    number=6,
    name="scaling laws",
    source="Hestness et al. 2017; Kaplan et al. 2020; Hoffmann et al. 2022",
    sweeps=("hoffmann2022/data_small.yaml", "hoffmann2022/compute_small.yaml", "hoffmann2022/network_small.yaml"),
    check=check,
    axes=("examples", "excess risk"),
    absent={
        "C 3e+06: best parameters of the network / those predicted by optima to 1e+06": DOES_NOT,
        "C 3e+06: best parameters of the network / those predicted by risks to 1e+06": UNDECIDED,
    },
    either={"C 3e+06: best parameters of the network / those predicted by optima to 1e+06": UNDECIDED},
)

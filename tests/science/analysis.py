"""The statistics of `orchestrator/analysis` on data whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import expit
from scipy.stats import norm

from orchestrator.analysis.critical import scaled_threshold, threshold
from orchestrator.analysis.emc import Edge, effective_complexity
from orchestrator.analysis.fits import fit, observations
from orchestrator.analysis.laws import CRITICAL, POWER, Law
from orchestrator.analysis.logrank import logrank
from orchestrator.analysis.peaks import find_peak
from orchestrator.analysis.survival import contains, kaplan_meier, median_time, turnbull
from tests.science.check import Check, Result, absolute, at_least, at_most

CURVES = 200
STEPS_PER_EPOCH = 391
STEPS = np.unique(np.geomspace(1, 400 * STEPS_PER_EPOCH, 120).astype(int))
LOG = np.log1p(STEPS)


def fluctuations(random: np.random.Generator, replicates: int, positions: np.ndarray, *, white: float) -> np.ndarray:
    """(R, N) errors of a test error: of a sample of 2,000 examples, which drifts as the network changes, and of SGD."""
    distance = positions[:, None] - positions
    drift = np.linalg.cholesky(np.exp(-0.5 * (distance / 0.6) ** 2) + 1e-9 * np.eye(len(positions)))
    offset = random.standard_normal((replicates, 1))
    smooth = random.standard_normal((replicates, len(positions))) @ drift.T
    return 0.01 * offset + 0.007 * smooth + white * random.standard_normal((replicates, len(positions)))


MONOTONE = {
    "clean, power law": lambda u: 0.3 + 0.6 * np.exp(-u / 2.5),
    "clean, plateau": lambda u: 0.37 + 0.5 * expit(2 * (4 - u)),
    "overfitting, no second descent": lambda u: 0.37 + 0.5 * expit(2 * (4 - u)) + 0.08 * expit(2 * (u - 8)),
}


def nakkiran(u: np.ndarray) -> np.ndarray:
    """Test error of ResNet18 of width 64 at 20% label noise; epochs 20, 60 and 280 as published (arXiv 1912.02292)."""
    epochs = np.array([0, 1, 20, 60, 280, 600])
    return np.asarray(PchipInterpolator(np.log1p(epochs * STEPS_PER_EPOCH), [0.9, 0.55, 0.175, 0.281, 0.211, 0.205])(u))


def greydanus(width: np.ndarray) -> np.ndarray:
    """Test error of an MLP on MNIST-1D at 15% label noise: 46-51% -> 54.0% at width 47 to 61 -> 45.5% at 300."""
    known = np.array([2, 9, 27, 54, 100, 300])
    return np.asarray(PchipInterpolator(np.log(known), [0.75, 0.51, 0.47, 0.54, 0.49, 0.455])(np.log(width)))


def false_peaks() -> Iterator[Result]:
    replicates = (2, 3, 8)
    found = np.zeros((len(replicates), len(MONOTONE)))
    for i, count in enumerate(replicates):
        for j, curve in enumerate(MONOTONE.values()):
            random = np.random.default_rng(count)
            for number in range(CURVES):
                noise = fluctuations(random, count, LOG, white=(0.003, 0.02)[number % 2])
                found[i, j] += find_peak(STEPS, curve(LOG) + noise, resamples=1).peak is not None
    for name, share in zip(MONOTONE, found.mean(0) / CURVES, strict=True):
        yield at_most(f"share of false peaks, {name}", float(share), 0.05)
    for count, share in zip(replicates, found.mean(1) / CURVES, strict=True):
        yield at_most(f"share of false peaks, {count} replicates", float(share), 0.05)


def power() -> Iterator[Result]:
    widths = np.unique(np.geomspace(2, 300, 20).astype(int))
    cases = {
        "along steps, Nakkiran": (STEPS, nakkiran(LOG), LOG, 1.5, 60 * STEPS_PER_EPOCH),
        "along width, Greydanus": (widths, greydanus(widths), np.log(widths), 1.0, 54),
    }
    for name, (x, curve, positions, window, place) in cases.items():
        random = np.random.default_rng(0)
        searches = [
            find_peak(x, curve + fluctuations(random, 8, positions, white=0.01), window=window, resamples=200)
            for _ in range(CURVES)
        ]
        peaks = [search.peak for search in searches if search.peak is not None]
        yield at_least(f"share of peaks found, {name}, 8 replicates", len(peaks) / CURVES, 0.95)
        places = np.array([peak.x.value for peak in peaks])
        yield absolute(f"its place, {name}", float(np.exp(np.log(places).mean())), place, limit=0.1 * place)
        covered = sum(peak.x.covers(place) for peak in peaks) / len(peaks)
        yield at_least(f"coverage of the 90% interval of its place, {name}", covered, 0.85)


def complexity() -> Iterator[Result]:
    """By hand: mean errors 0, 0.05, 0.15, 0.3, so 0.1 lies half-way between 200 and 400 in log n."""
    n = [100, 200, 400, 800]
    error = np.array([[0.0, 0.04, 0.14, 0.3], [0.0, 0.06, 0.16, 0.3]])
    found = effective_complexity(n, error)
    yield absolute("EMC", found.samples.value, 200 * 2**0.5, limit=1e-9)
    yield absolute("EMC, lower bound", found.samples.low, 200 * 2**0.4, limit=1e-9)
    yield absolute("EMC, upper bound", found.samples.high, 200 * 2**0.6, limit=1e-9)
    mean = effective_complexity([100, 200], [[0.0, 0.05], [0.0, 0.05], [0.0, 0.9]])
    yield absolute("largest n that the mean error allows (the median allows 200)", mean.largest_fitted, 100)
    edges = [effective_complexity(n, error * 0 + constant).edge for constant in (0.0, 1.0)]
    yield absolute("censored at both edges", float(edges == [Edge.ABOVE, Edge.BELOW]), 1.0)


def survival_libraries() -> Iterator[Result]:
    """Kaplan-Meier, its interval and median, the log-rank test and Turnbull's estimate against two other libraries."""
    from lifelines import KaplanMeierFitter
    from statsmodels.duration.survfunc import SurvfuncRight, survdiff

    random = np.random.default_rng(0)
    differences: dict[str, list[float]] = {}

    def compare(what: str, ours: np.ndarray | float, theirs: np.ndarray | float) -> None:
        differences.setdefault(what, []).append(float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs)))))

    for _ in range(20):
        time = np.round(np.exp(random.normal(3, 1, 40))) + 1
        reached, group = random.random(40) < 0.7, np.arange(40) % 2
        curve, fitted = kaplan_meier(time, reached, level=0.95), KaplanMeierFitter().fit(time, reached)
        inside = (curve.survival > 0) & (curve.survival < 1)
        right = SurvfuncRight(time, reached)
        compare("Kaplan-Meier, lifelines", curve.survival, fitted.survival_function_.to_numpy()[1:, 0])
        compare("Kaplan-Meier, statsmodels", np.interp(right.surv_times, curve.time, curve.survival), right.surv_prob)
        bounds = np.stack([curve.low, curve.high], 1)[inside]
        compare("its 95% interval, lifelines", bounds, fitted.confidence_interval_.to_numpy()[1:][inside])
        compare("its median, lifelines", curve.median.value, fitted.median_survival_time_)
        excess = logrank(time, np.where(reached, time, np.inf), group, permutations=1).excess[0]
        variance = 0.0
        for at in np.unique(time[reached]):
            risk, first = (time >= at).sum(), ((time >= at) & (group == 0)).sum()
            events = ((time == at) & reached).sum()
            variance += events * first / risk * (1 - first / risk) * (risk - events) / max(risk - 1, 1)
        compare("log-rank chi-squared, statsmodels", excess**2 / variance, survdiff(time, reached, group)[0])
        event = np.exp(random.normal(7, 1, 8))
        above, to = event * random.uniform(0.5, 1, 8), event * random.uniform(1, 1.6, 8)
        estimate = turnbull(above, to)
        theirs = KaplanMeierFitter().fit_interval_censoring(above, to, tol=1e-12).survival_function_
        mass = -np.diff(np.append(1.0, theirs["NPMLE_estimate_lower"].to_numpy()))
        ends = theirs.index.to_numpy()
        share = [mass[(ends > left) & (ends <= right)].sum() for left, right in zip(above, to, strict=True)]
        own = contains(estimate, above, to) @ estimate.mass
        # Their EM stops 4e-5 from the maximum of a flat likelihood.
        compare("log-likelihood of Turnbull's estimate, lifelines", np.log(own).sum(), np.log(share).sum())
    for what, values in differences.items():
        yield absolute(f"largest difference in 20 data sets, {what}", max(values), 0.0, limit=1e-6)


def median_coverage() -> Iterator[Result]:
    """The interval of a median on a coarse schedule with a horizon that a third of the trials do not reach."""
    schedule = np.geomspace(10, 1700, 30)
    for count in (5, 20):
        random, covered = np.random.default_rng(count), 0
        for _ in range(500):
            place = np.searchsorted(schedule, np.exp(random.normal(7, 1, count)))
            above, to = np.append(0, schedule)[place], np.append(schedule, np.inf)[place]
            covered += median_time(above, to).covers(float(np.exp(7)))
        yield at_least(f"coverage of the 90% interval of a median, {count} seeds", covered / 500, 0.88)


SWEEPS = 200
SIGMA = 0.3
"""Of the log of a time, over seeds."""


def exponents(
    law: Law, x: np.ndarray, times: np.ndarray, truth: dict[str, float], *, one_horizon: bool
) -> Iterator[Result]:
    """Known parameters recovered from steps on a schedule of 80 reports, at three shares of censored trials.

    With one horizon for all settings the slow settings are censored; otherwise it is a multiple of a setting's median.
    """
    for share in (0.0, 0.2, 0.5):
        random = np.random.default_rng(7)
        beyond = float(norm.ppf(1 - share)) if share else 5.0
        horizon = times * np.exp(SIGMA * beyond)
        if one_horizon and share:
            many = times * np.exp(SIGMA * random.standard_normal((2000, len(x))))
            horizon = np.full(len(x), np.quantile(many, 1 - share))
        schedule = np.append(0, np.geomspace(times.min() / 4, horizon.max(), 80))
        fits = []
        for _ in range(SWEEPS):
            time = times * np.exp(SIGMA * random.standard_normal(len(x)))
            place, late = np.searchsorted(schedule, time), time > horizon
            above = np.where(late, horizon, schedule[np.maximum(place, 1) - 1])
            to = np.where(late, np.inf, np.append(schedule, np.inf)[place])
            fits.append(fit(law, observations(x, above=above, to=to), resamples=150).parameters)
        for name, value in truth.items():
            found = np.array([parameters[name].value for parameters in fits])
            covered = sum(parameters[name].covers(value) for parameters in fits) / SWEEPS
            where = f"{name}, {share:.0%} censored"
            yield absolute(f"mean of {where}", float(found.mean()), value, limit=float(found.std()))
            yield absolute(f"coverage of the 90% interval of {where}", covered, 0.9, limit=0.05)


def exponent_of_decay() -> Iterator[Result]:
    decay = np.repeat(np.geomspace(0.1, 10, 8), 8)
    yield from exponents(POWER, decay, 300 / decay, {"b": 1.0}, one_horizon=True)


def exponent_of_divergence() -> Iterator[Result]:
    fraction = np.repeat([0.3, 0.32, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7], 8)
    times = 50 * (fraction - 0.27) ** -1.5
    yield from exponents(CRITICAL, fraction, times, {"nu": 1.5, "x_c": 0.27}, one_horizon=False)


def thresholds() -> Iterator[Result]:
    """The critical fraction and its scaling with the size, from shares of seeds."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    random = np.random.default_rng(0)
    fraction, trials = np.linspace(0.2, 0.5, 7), np.full(7, 20)
    covered, difference = 0, 0.0
    for number in range(SWEEPS):
        reached = random.binomial(trials, expit((fraction - 0.33) / 0.05))
        found = threshold(fraction, reached, trials)
        covered += found.critical.covers(0.33)
        if number < 20:
            design = np.stack([np.ones(7), fraction], 1)
            theirs = GLM(np.stack([reached, trials - reached], 1), design, family=Binomial()).fit(tol=1e-12).params
            difference = max(difference, abs(found.critical.value + theirs[0] / theirs[1]))
    yield absolute("largest difference in 20 data sets, critical point, statsmodels", difference, 0.0, limit=1e-6)
    yield absolute("coverage of the 90% interval of a critical point, 20 seeds", covered / SWEEPS, 0.9, limit=0.05)
    size, x = np.repeat([31, 59, 97, 151], 9), np.tile(np.linspace(0.15, 0.55, 9), 4)
    many = np.full(36, 20)
    fits = [
        scaled_threshold(size, x, random.binomial(many, expit((x - 0.33) * 2 * size**0.5)), many, resamples=200)
        for _ in range(SWEEPS)
    ]
    x_log, size_log = np.log(x / 0.33), np.log(size) - np.log(size).mean()
    share = expit((x_log + 0.4 * size_log) * 8 * np.exp(0.5 * size_log))
    moving = [
        scaled_threshold(size, x_log, random.binomial(many, share), many, moves=True, resamples=200)
        for _ in range(SWEEPS)
    ]
    for what, values, truth in (
        ("x_c of four sizes", [f.critical for f in fits], 0.33),
        ("1/nu of four sizes", [f.inverse_nu for f in fits], 0.5),
        ("b, where x_c moves as L^-b", [f.shift for f in moving], 0.4),
    ):
        found_ = np.array([value.value for value in values])
        yield absolute(f"mean of {what}", float(found_.mean()), truth, limit=float(found_.std()))
        covered = sum(value.covers(truth) for value in values)
        yield absolute(f"coverage of the 90% interval of {what}", covered / SWEEPS, 0.9, limit=0.05)


CHECKS = (
    Check(
        name="peaks where there are none",
        source="monotone curves and overfitting, with the noise of a test set and of SGD",
        run=false_peaks,
        slow=True,
    ),
    Check(
        name="power to find a peak",
        source="published double descent, Nakkiran et al. 2019 and Greydanus 2020",
        run=power,
        slow=True,
    ),
    Check(name="effective model complexity", source="Nakkiran et al. 2019, definition 1; by hand", run=complexity),
    Check(name="survival curves and tests", source="lifelines, statsmodels", run=survival_libraries, slow=True),
    Check(name="medians of censored times", source="coverage over samples", run=median_coverage),
    Check(
        name="exponent of the weight decay",
        source="200 synthetic sweeps of 8 settings and 8 seeds, t ~ wd^-1",
        run=exponent_of_decay,
        slow=True,
    ),
    Check(
        name="exponent near a critical point",
        source="200 synthetic sweeps of 8 settings and 8 seeds, t ~ (f - f_c)^-1.5",
        run=exponent_of_divergence,
        slow=True,
    ),
    Check(
        name="critical fraction and its finite-size scaling",
        source="200 synthetic sweeps, 20 seeds a setting; statsmodels",
        run=thresholds,
        slow=True,
    ),
)

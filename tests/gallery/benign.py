"""Row 3: benign and tempered overfitting of minimum-norm least squares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jobs.ridge.params import RidgeParams
from jobs.theory import equivalent
from tests.gallery.row import Finding, Row, above, agrees, below, every, mean_interval

INTERPOLATED = 1e-6


def expected(params: RidgeParams) -> float:
    """Excess risk by the deterministic equivalent."""
    place = np.arange(1, params.inputs + 1)
    if params.covariance == "power_law":
        variances, squares = place**-params.covariance_exponent, place**-params.teacher_exponent
    else:
        spikes = place <= params.inputs - params.small_features
        variances, squares = np.where(spikes, 1.0, params.small_scale**2), spikes.astype(float)
    squares = squares * params.signal / squares.sum()
    n, s2 = params.sample_count, params.noise_variance
    return float(equivalent.excess_risk(n, variances, squares, noise_variance=s2))


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """Along the closed form; the fall for spikes, and the floor for a power law."""
    spiked, power = (sweep.trials() for sweep in results)
    for trials, axis in ((spiked, "small_features"), (power, "covariance_exponent")):
        yield every(f"training loss 0, along {axis}", trials.final_relative_train_loss <= INTERPOLATED)
    for (n, tail), group in spiked.groupby(["sample_count", "small_features"]):
        risk = expected(params_of(group))
        yield agrees(f"n {n}, tail {tail}", group.final_excess_risk, risk, series=f"spikes, n = {n}", x=float(tail))
    for (exponent, n), group in power.groupby(["covariance_exponent", "sample_count"]):
        risk = expected(params_of(group))
        yield agrees(f"j^-{exponent:g}, n {n}", group.final_excess_risk, risk)
        # Limit (a - 1) s2: the noise variance is 1. Vanishing risk would pass below any share of it.
        yield above(
            f"j^-{exponent:g}, n {n}: does not vanish",
            *mean_interval(group.final_excess_risk),
            0.8 * (exponent - 1),
            n=len(group),
        )
    for name, fewer, more in (
        ("tail 250 to 4,000 at n 200", (200, 250), (200, 4000)),
        ("n 50 to 200 with tail n^2 / 10", (50, 250), (200, 4000)),
    ):
        at = {cell: of_cell(spiked, *cell) for cell in (fewer, more)}
        ratio = np.log(at[more] / at[fewer])  # replicates share their seeds
        low_high = np.exp(mean_interval(ratio))
        yield below(f"risk falls, {name} (geometric mean ratio)", *map(float, low_high), 0.5, n=len(ratio))


def params_of(group: Any) -> RidgeParams:
    """The parameters that the trials of a setting share."""
    values = group.iloc[0].to_dict()
    return RidgeParams(**{name: values[name] for name in RidgeParams.__dataclass_fields__ if name in values})


def of_cell(trials: Any, n: int, tail: int) -> Any:
    cell = trials[(trials.sample_count == n) & (trials.small_features == tail)]
    return cell.sort_values("replicate").final_excess_risk.to_numpy()


ROW = Row(
    number=3,
    name="benign overfitting",
    source="Bartlett et al. 2020; Mallinar et al. 2022",
    sweeps=("bartlett2020/spiked_small.yaml", "bartlett2020/power_law_small.yaml"),
    check=check,
    axes=("inputs in the tail", "excess risk"),
)

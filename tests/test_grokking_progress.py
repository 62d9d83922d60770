"""Laws of the progress measures: each against its definition, computed another way; and they change nothing else."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packing import assert_packed_is_solo, curves_of
from plain_grokking import examples, fresh_block, plain_loss, plain_network

from jobs.grokking.job import Grokking
from jobs.grokking.params import BASE_METRICS, BASIC_METRICS, FOURIER_METRICS, GrokkingParams
from jobs.grokking.progress import KEY_FREQUENCIES, gini, spectrum
from jobs.job import Curves, Member

JOB = Grokking()
NETWORKS: dict[str, dict[str, Any]] = {
    "quadratic": {"model": "quadratic_mlp", "width": 20},
    "embedding": {"model": "embedding_mlp", "embedding": 5, "width": 20, "loss": "cross_entropy"},
    "one-hot": {"model": "embedding_mlp", "embedding": 0, "width": 20, "loss": "stablemax"},
    "transformer": {"model": "transformer", "width": 8, "heads": 2, "loss": "cross_entropy"},
}


def member(seed: int = 1, **values: Any) -> Member[GrokkingParams]:
    given_values = {"modulus": 13, "steps": 10, "curve_points": 4, "label_noise": 0.2, "progress": "fourier"} | values
    return Member(params=GrokkingParams(**given_values), seed=seed)


def measured(trial: Member[GrokkingParams]) -> tuple[dict[str, float], Any]:
    """What a trial's untrained block measures, as the second of a pack of two; and the block of the trial alone."""
    other = Member(params=dataclasses.replace(trial.params, data_fraction=0.3), seed=99)
    together = fresh_block([other, trial]).measure()
    return {name: float(value[1]) for name, value in together.items()}, fresh_block([trial])


@pytest.mark.parametrize("operation", ["add", "subtract"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_margin_and_gradient_are_those_of_the_train_set(network: dict[str, Any], operation: str) -> None:
    trial = member(operation=operation, **network)
    seen, block = measured(trial)
    params = trial.params
    plain = plain_network(params, [view[0].clone() for view in block.parameters.views()])
    x, y, _ = examples(params)
    train, noisy = block.pairs.order_MP[0, : params.train_pairs], block.pairs.labels_MP[0]
    outputs, label = plain(x[train], y[train]), noisy[train]
    plain_loss(params, outputs, label).backward()
    squares = sum(float(weight.grad.square().sum()) for weight in plain.parameters() if weight.grad is not None)
    assert seen["gradient_norm"] == pytest.approx(math.sqrt(squares), rel=1e-4)
    outputs = outputs.detach()
    margins = [
        float(row[k] - max(value for j, value in enumerate(row.tolist()) if j != k))
        for row, k in zip(outputs, label.tolist(), strict=True)
    ]
    assert seen["logit_margin"] == pytest.approx(np.mean(margins), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("operation", ["add", "subtract"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_restricted_and_excluded_loss_are_those_of_the_logits_in_two_dimensions(
    network: dict[str, Any], operation: str
) -> None:
    """By the Fourier transform over both inputs: waves of x + y are at (k, k), of x - y at (k, -k)."""
    trial = member(operation=operation, **network)
    seen, block = measured(trial)
    params, p = trial.params, trial.params.modulus
    x, y, result = examples(params)
    logits = block.outputs(x[None], y[None])[0].T.reshape(p, p, p).double()
    table = block.spectrum_table()[0].double()
    angles = 2 * math.pi * torch.arange(1, p // 2 + 1)[:, None] * torch.arange(p) / p
    power = (torch.cos(angles).double() @ table).square().sum(1) + (torch.sin(angles).double() @ table).square().sum(1)
    keys = [int(k) + 1 for k in power.topk(KEY_FREQUENCIES).indices]
    waves = torch.fft.fft2(logits, dim=(0, 1))
    sign = 1 if operation == "add" else -1
    places = [(f % p, sign * f % p) for k in keys for f in (k, -k)]
    kept, removed = torch.zeros_like(waves), waves.clone()
    kept[0, 0] = waves[0, 0]
    for place in places:
        kept[place] = waves[place]
        removed[place] = 0
    restricted, excluded = (torch.fft.ifft2(w, dim=(0, 1)).real.reshape(p * p, p) for w in (kept, removed))
    train = block.pairs.order_MP[0, : params.train_pairs]
    expected = {
        "restricted_loss": plain_loss(params, restricted, result),
        "excluded_loss": plain_loss(params, excluded[train], block.pairs.labels_MP[0][train]),
    }
    for name, value in expected.items():
        assert seen[name] == pytest.approx(float(value), rel=1e-4), name
    ordered = sorted((power / power.sum()).tolist())
    lorenz = np.concatenate([[0], np.cumsum(ordered)])
    area = np.trapezoid(lorenz, dx=1 / len(ordered))
    assert seen["fourier_gini"] == pytest.approx(1 - 2 * area, rel=1e-4, abs=1e-6)


def test_a_network_of_few_frequencies_is_told_from_a_random_one() -> None:
    """Gromov's analytic weights with four frequencies: sparse, whole without the rest, and at a loss without them."""
    p, units, frequencies = 31, 256, (2, 5, 9, 14)
    trial = member(modulus=p, width=units, label_noise=0.0, loss="cross_entropy")
    block = fresh_block([trial])
    random = {name: float(value) for name, value in block.measure().items()}
    k = torch.tensor([frequencies[unit % len(frequencies)] for unit in range(units)])
    first, second = 2 * math.pi * torch.rand(2, units, generator=torch.Generator().manual_seed(1))
    angle = 2 * math.pi * (k * torch.arange(p)[:, None] % p) / p
    u, v, w2 = (view[0] for view in block.parameters.views())
    w2.zero_()
    u[:, :units], v[:, :units] = torch.cos(angle + first), torch.cos(angle + second)
    w2[:p, :units] = torch.cos(angle + first + second)
    seen = {name: float(value) for name, value in block.measure().items()}
    assert seen["fourier_gini"] == pytest.approx(1 - len(frequencies) / (p // 2), abs=0.01)
    assert random["fourier_gini"] < 0.2
    assert seen["fourier_top_share"] == pytest.approx(1.0, abs=1e-4)
    assert random["fourier_top_share"] < 0.5
    assert seen["test_accuracy"] == 1.0
    assert seen["restricted_loss"] < 0.01
    assert seen["excluded_loss"] > math.log(p) / 2


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=20))
def test_the_gini_coefficient_is_half_the_mean_difference_over_the_mean(values: list[float]) -> None:
    differences = np.abs(np.subtract.outer(values, values)).mean()
    expected = differences / (2 * np.mean(values))
    assert float(gini(torch.tensor([values], dtype=torch.float64))) == pytest.approx(expected, abs=1e-9)


def test_the_spectrum_of_a_wave_is_one_frequency() -> None:
    p = 11
    wave = torch.cos(2 * math.pi * 3 * torch.arange(p) / p + 0.7)
    power = spectrum(wave[None, :, None])[0, :, 0]
    assert int(power.argmax()) == 2
    assert float(power[2] / power.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(gini(power[None])) == pytest.approx(1 - 1 / 5, abs=1e-5)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_to_be_measured_changes_nothing_else(network: dict[str, Any]) -> None:
    """Each choice has its curves and no others; those that all have are the same to the bit."""
    names = {"none": (), "basic": BASIC_METRICS, "fourier": BASIC_METRICS + FOURIER_METRICS}
    curves: dict[str, Curves] = {}
    for progress, more in names.items():
        trial = member(**network, progress=progress)
        curves[progress] = curves_of(JOB, [trial])[0]
        assert tuple(curves[progress].values) == BASE_METRICS + more == JOB.metrics_of(trial.params)
        final = {name for name in JOB.observe(trial.params, curves[progress], JOB.Thresholds()) if "final_" in name}
        assert final == {f"final_{name}" for name in BASE_METRICS + more}
    for name in BASE_METRICS:
        for progress in ("basic", "fourier"):
            np.testing.assert_array_equal(curves[progress].values[name], curves["none"].values[name])


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_packed_trial_is_measured_as_the_trial(network: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        members = [member(1, **network), member(2, **network, data_fraction=0.3), member(3, **network, steps=7)]
        assert_packed_is_solo(JOB, members, rtol=1e-7, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)

"""Theory that predicts generalisation without training: rank, analytic weights, weight decay."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.theory import parallelogram, quadratic_weights, weight_decay
from jobs.theory.domain import DomainError


@given(p=st.integers(3, 8), seed=st.integers(0, 1 << 30), share=st.floats(0, 1))
@settings(max_examples=60)
def test_the_rank_is_that_of_the_equations_written_out(p: int, seed: int, share: float) -> None:
    i, j = parallelogram.unordered_pairs(p)
    chosen = np.random.default_rng(seed).random(len(i)) < share
    rows = [np.zeros(p)]
    for a in np.flatnonzero(chosen):
        for b in np.flatnonzero(chosen):
            if i[a] + j[a] == i[b] + j[b]:
                row = np.zeros(p)
                for k, sign in ((i[a], 1), (j[a], 1), (i[b], -1), (j[b], -1)):
                    row[k] += sign
                rows.append(row)
    assert parallelogram.system_rank(p, chosen[None]) == [np.linalg.matrix_rank(np.array(rows))]


@pytest.mark.parametrize("p", [3, 5, 10])
def test_all_pairs_fix_the_representation_and_none_fix_nothing(p: int) -> None:
    pairs = p * (p + 1) // 2
    assert parallelogram.system_rank(p, np.ones((1, pairs), dtype=bool)) == [p - 2]
    assert parallelogram.system_rank(p, np.zeros((1, pairs), dtype=bool)) == [0]
    assert parallelogram.unique_probability(p, pairs, draws=3) == (1.0, 0.0)


def test_more_pairs_never_lower_the_rank() -> None:
    random = np.random.default_rng(0).random((200, 55))
    ranks = [parallelogram.system_rank(10, random < share) for share in (0.2, 0.4, 0.6)]
    assert (ranks[0] <= ranks[1]).all() and (ranks[1] <= ranks[2]).all() and (ranks[0] < ranks[2]).any()


def test_analytic_weights_add_and_narrow_ones_do_not() -> None:
    accuracy = [
        quadratic_weights.quadratic_accuracy(*quadratic_weights.gromov_weights(23, width)) for width in (11, 220)
    ]
    assert accuracy[1] == 1.0 and 1 / 23 < accuracy[0] < 1


@given(p=st.sampled_from([5, 7, 11]), rows=st.integers(1, 20))
@settings(max_examples=10)
def test_the_accuracy_counts_every_pair_once(p: int, rows: int) -> None:
    u, v, w2 = quadratic_weights.gromov_weights(p, 8, seed=1)
    right = 0
    for x in range(p):
        for y in range(p):
            right += int(np.argmax(w2 @ (u[x] + v[y]) ** 2) == (x + y) % p)
    assert quadratic_weights.quadratic_accuracy(u, v, w2, rows=rows) == pytest.approx(right / p**2)


def test_weights_that_only_decay_take_the_time_of_omnigroks_law() -> None:
    norm, wanted, rate, decay = 8.0, 2.0, 1e-3, 0.1
    steps = 0
    while norm > wanted:
        norm *= 1 - rate * decay
        steps += 1
    law = weight_decay.generalisation_time(8.0, wanted, weight_decay=decay, learning_rate=rate)
    assert steps == pytest.approx(float(law), rel=1e-3)
    assert weight_decay.generalisation_time(1.0, 2.0, weight_decay=decay) == 0.0


def test_the_exponent_of_a_power_law_is_found() -> None:
    decays = np.geomspace(0.1, 3, 7)
    slope, error = weight_decay.decay_exponent(decays, 5 * decays**-1.2)
    assert slope == pytest.approx(-1.2) and error < 1e-9
    noisy = 5 / decays * np.exp(np.random.default_rng(0).normal(0, 0.1, 7))
    slope, error = weight_decay.decay_exponent(decays, noisy)
    assert abs(slope + 1) < 3 * error and error > 0.01


@pytest.mark.parametrize(
    ("call", "symbol"),
    [
        (lambda: parallelogram.unordered_pairs(2), "p"),
        (lambda: parallelogram.system_rank(5, np.ones((1, 14), dtype=bool)), "chosen"),
        (lambda: parallelogram.unique_probability(10, 56, draws=1), "train_pairs"),
        (lambda: parallelogram.unique_probability(10, 5, draws=0), "draws"),
        (lambda: quadratic_weights.gromov_weights(10, 4), "p"),
        (lambda: quadratic_weights.gromov_weights(11, 0), "width"),
        (lambda: weight_decay.generalisation_time(1.0, 0.0, weight_decay=1.0), "critical_norm"),
        (lambda: weight_decay.generalisation_time(1.0, 0.5, weight_decay=[1.0, 0.0]), "weight_decay"),
        (lambda: weight_decay.decay_exponent([1.0, 1.0, 1.0], [3.0, 3.0, 3.0]), "weight_decay"),
    ],
)
def test_outside_its_domain_a_formula_says_which_symbol_breaks_which_rule(call: Any, symbol: str) -> None:
    with pytest.raises(DomainError) as caught:
        call()
    assert caught.value.symbol == symbol

"""Laws of the operations' tables, of the split of their pairs, and of label noise."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.labels import CONVENTIONS, noisy_labels
from jobs.data.modular import OPERATIONS, S5_SIZE, operation_pairs, pair_count, set_size, train_count

MODULI = [2, 3, 4, 5, 9, 12, 13, 30, 31]
MODULAR = [operation for operation in OPERATIONS if operation != "s5"]


def rows(operation: str, modulus: int) -> list[tuple[int, int, int]]:
    """(x, y, result) of every pair, as plain integers."""
    return list(zip(*(column.tolist() for column in operation_pairs(operation, modulus)), strict=True))


@pytest.mark.parametrize("p", MODULI)
@pytest.mark.parametrize(
    ("operation", "holds"),
    [
        ("add", lambda x, y, z, p: (z - x - y) % p == 0),
        ("subtract", lambda x, y, z, p: (z + y - x) % p == 0),
        ("multiply", lambda x, y, z, p: (sum([x] * y) - z) % p == 0),
        ("polynomial", lambda x, y, z, p: ((x + y) ** 2 - x * y - z) % p == 0),
        ("divide", lambda x, y, z, p: y * z % p == x),
    ],
)
def test_every_result_fulfils_the_definition(operation, holds, p) -> None:
    table = rows(operation, p)
    assert table
    for x, y, z in table:
        assert 0 <= z < p
        assert holds(x, y, z, p), f"{operation}({x}, {y}) = {z} modulo {p}"


@pytest.mark.parametrize("p", MODULI)
@pytest.mark.parametrize("operation", [name for name in MODULAR if name != "divide"])
def test_a_total_operation_has_every_pair_once(operation: str, p: int) -> None:
    assert Counter((x, y) for x, y, _ in rows(operation, p)) == Counter(itertools.product(range(p), repeat=2))


@pytest.mark.parametrize("p", MODULI)
def test_division_has_a_pair_exactly_where_the_quotient_is_unique(p: int) -> None:
    """y divides x in one way for each x exactly if multiplication by y is a bijection."""
    unique = [y for y in range(p) if len({y * z % p for z in range(p)}) == p]
    assert Counter((x, y) for x, y, _ in rows("divide", p)) == Counter(itertools.product(range(p), unique))


@given(p=st.integers(2, 60))
def test_division_is_no_floor_division(p: int) -> None:
    """It undoes multiplication: (x * y) / y = x, which floor division of the product would give up."""
    quotient = {(x, y): z for x, y, z in rows("divide", p)}
    for x, y, product in rows("multiply", p):
        if math.gcd(y, p) == 1:
            assert quotient[product, y] == x


@given(operation=st.sampled_from(OPERATIONS), p=st.integers(2, 40))
def test_the_pair_count_is_the_number_of_pairs(operation: str, p: int) -> None:
    x, y, result = operation_pairs(operation, p)
    assert len(x) == len(y) == len(result) == pair_count(operation, p)
    assert 0 <= result.min() <= result.max() < set_size(operation, p)


def test_an_unknown_operation_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'power'.*add, subtract"):
        operation_pairs("power", 7)


# The symmetric group of five things. Its elements are numbered in lexicographic order.

PERMUTATIONS = list(itertools.permutations(range(5)))


def s5_table() -> np.ndarray:
    x, y, result = operation_pairs("s5", 97)
    table = np.full((S5_SIZE, S5_SIZE), -1)
    table[x, y] = result
    return table


def test_s5_composes_permutations_the_right_one_first() -> None:
    table = s5_table()
    for (i, after), (j, before) in itertools.product(enumerate(PERMUTATIONS), repeat=2):
        assert PERMUTATIONS[table[i, j]] == tuple(after[before[k]] for k in range(5))


def test_s5_is_a_group_that_does_not_commute() -> None:
    table = s5_table()
    size = S5_SIZE
    assert size == math.factorial(5)
    everything = np.arange(size)
    identity = [e for e in range(size) if (table[e] == everything).all() and (table[:, e] == everything).all()]
    assert len(identity) == 1
    # (x y) z against x (y z), for all 120^3 triples.
    np.testing.assert_array_equal(table[table], table[everything[:, None, None], table])
    # A Latin square: every row and column holds each element once, the identity too, so each has an inverse.
    for axis in (0, 1):
        np.testing.assert_array_equal(
            np.sort(table, axis=axis), np.broadcast_to(everything[:, None] if axis == 0 else everything, table.shape)
        )
    left, right = np.nonzero(table == identity[0])
    np.testing.assert_array_equal(table[right, left], identity[0])
    assert (table != table.T).any()


def test_s5_does_not_depend_on_the_modulus() -> None:
    assert rows("s5", 2) == rows("s5", 97)


@given(operation=st.sampled_from(OPERATIONS), p=st.integers(2, 40), fraction=st.floats(1e-6, 1 - 1e-6))
def test_the_train_set_is_the_rounded_fraction_and_leaves_both_sides_a_pair(
    operation: str, p: int, fraction: float
) -> None:
    pairs, train = pair_count(operation, p), train_count(operation, p, fraction)
    assert 1 <= train <= pairs - 1
    if 1 <= fraction * pairs <= pairs - 1:
        assert abs(train - fraction * pairs) <= 0.5


# Label noise


def noisy(
    rate: float, *, seed: int = 1, count: int = 40_000, classes: int = 7, convention: str = "redrawn"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and noisy labels of one model, (N,) each."""
    clean = torch.arange(count) % classes
    given_labels = clean.clone()
    got = noisy_labels(given_labels[None], seeds=[seed], rates=[rate], classes=classes, convention=convention)[0]
    assert torch.equal(given_labels, clean), "the clean labels must not be touched"
    return clean, got


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("classes", [2, 7, 97])
def test_labels_are_wrong_at_the_effective_rate(convention: str, rate: float, classes: int) -> None:
    clean, got = noisy(rate, classes=classes, convention=convention)
    expected = rate * (classes - 1) / classes if convention == "redrawn" else rate
    deviation = math.sqrt(expected * (1 - expected) / len(clean))
    assert abs((clean != got).double().mean().item() - expected) < 5 * deviation
    assert 0 <= int(got.min()) <= int(got.max()) < classes


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_replaced_label_is_any_of_its_choices_alike(convention: str) -> None:
    classes, count = 7, 70_000
    clean, got = noisy(1.0, classes=classes, count=count, convention=convention)
    shift = torch.bincount((got - clean) % classes, minlength=classes).double()
    choices = shift[1:] if convention == "incorrect" else shift
    if convention == "incorrect":
        assert shift[0] == 0
    expected = count / len(choices)
    chi_squared = ((choices - expected) ** 2 / expected).sum().item()
    assert chi_squared < 30, f"{choices.tolist()}: chance would do this in one of ten thousand draws"


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_without_noise_labels_stay_clean(convention: str) -> None:
    clean, got = noisy(0.0, convention=convention)
    assert torch.equal(clean, got)


@pytest.mark.parametrize("convention", CONVENTIONS)
@given(seed=st.integers(0, 2**64 - 1), other=st.integers(0, 2**64 - 1), rate=st.floats(0.2, 0.9))
def test_noise_stays_put_and_is_the_trials_own(convention: str, seed: int, other: int, rate: float) -> None:
    """The same on every access, in any company, at any place; and another for another seed."""
    clean, alone = noisy(rate, seed=seed, count=300, convention=convention)
    again = noisy(rate, seed=seed, count=300, convention=convention)[1]
    both = noisy_labels(
        clean.expand(2, -1), seeds=[other, seed], rates=[1 - rate, rate], classes=7, convention=convention
    )
    assert torch.equal(alone, again)
    assert torch.equal(alone, both[1])
    if seed != other:
        assert not torch.equal(alone, noisy(rate, seed=other, count=300, convention=convention)[1])


@given(
    seed=st.integers(0, 2**64 - 1),
    low=st.floats(0, 1, allow_subnormal=False),
    high=st.floats(0, 1, allow_subnormal=False),
)
def test_more_noise_replaces_the_same_labels_and_more(seed: int, low: float, high: float) -> None:
    """A sweep over the rate changes the rate alone, not which labels fall first."""
    low, high = sorted((low, high))
    clean, few = noisy(low, seed=seed, count=500)
    many = noisy(high, seed=seed, count=500)[1]
    replaced = few != clean
    assert torch.equal(few[replaced], many[replaced])

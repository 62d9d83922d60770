"""Laws of the operations' tables, of the split of their pairs, and of label noise."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.labels import noisy_labels
from jobs.grokking.modular import OPERATIONS, S5_SIZE, operation_pairs, pair_count, result_count, set_size
from jobs.grokking.params import GrokkingParams
from jobs.grokking.permutations import inverse
from jobs.packed.fields import NOISE_CONVENTIONS

MODULI = [2, 3, 4, 5, 9, 12, 13, 30, 31]
PERMUTING = ["s5", "s5_conjugate", "s5_xyx"]
MODULAR = [operation for operation in OPERATIONS if operation not in (*PERMUTING, "sum")]
PARTIAL = ["divide", "divide_or_subtract", "multiply_nonzero"]


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
        ("multiply_nonzero", lambda x, y, z, p: y > 0 and (sum([x] * y) - z) % p == 0),
        ("polynomial", lambda x, y, z, p: ((x + y) ** 2 - x * y - z) % p == 0),
        ("divide", lambda x, y, z, p: y * z % p == x),
        ("divide_or_subtract", lambda x, y, z, p: y * z % p == x if y % 2 else (z + y) % p == x),
        ("squares", lambda x, y, z, p: ((x + y) ** 2 - 2 * x * y - z) % p == 0),
        ("polynomial_x", lambda x, y, z, p: (x * (x + y + 1) + y**2 - z) % p == 0),
        ("cube", lambda x, y, z, p: (x * (x**2 + y) - z) % p == 0),
        ("cube_y", lambda x, y, z, p: (x * (x**2 + y**2) + y - z) % p == 0),
    ],
)
def test_every_result_fulfils_the_definition(operation, holds, p) -> None:
    table = rows(operation, p)
    assert table
    for x, y, z in table:
        assert 0 <= z < p
        assert holds(x, y, z, p), f"{operation}({x}, {y}) = {z} modulo {p}"


@pytest.mark.parametrize("p", MODULI)
@pytest.mark.parametrize("operation", [name for name in MODULAR if name not in PARTIAL])
def test_a_total_operation_has_every_pair_once(operation: str, p: int) -> None:
    assert Counter((x, y) for x, y, _ in rows(operation, p)) == Counter(itertools.product(range(p), repeat=2))


@pytest.mark.parametrize("p", MODULI)
def test_division_has_a_pair_exactly_where_the_quotient_is_unique(p: int) -> None:
    """y divides x in one way for each x exactly if multiplication by y is a bijection."""
    unique = [y for y in range(p) if len({y * z % p for z in range(p)}) == p]
    assert Counter((x, y) for x, y, _ in rows("divide", p)) == Counter(itertools.product(range(p), unique))


@pytest.mark.parametrize("p", MODULI)
def test_divide_or_subtract_lacks_only_the_odd_y_that_cannot_divide(p: int) -> None:
    kept = [y for y in range(p) if y % 2 == 0 or len({y * z % p for z in range(p)}) == p]
    assert Counter((x, y) for x, y, _ in rows("divide_or_subtract", p)) == Counter(itertools.product(range(p), kept))


def by_search(operation: str, x: int, y: int, p: int) -> int | None:
    """The result by counting on the number line and by search, sharing no arithmetic with the job; None: none."""

    def plus(a: int, b: int) -> int:
        return next(z for z in range(p) if (a + b - z) % p == 0)

    def times(a: int, b: int) -> int:
        total = 0
        for _ in range(b):
            total = plus(total, a)
        return total

    def over(a: int, b: int) -> int | None:
        found = [z for z in range(p) if times(z, b) == a]
        return found[0] if len(found) == 1 else None

    square, minus = times(x, x), next(z for z in range(p) if plus(z, y) == x)
    return {
        "add": lambda: plus(x, y),
        "subtract": lambda: minus,
        "multiply": lambda: times(x, y),
        "multiply_nonzero": lambda: times(x, y) if y else None,
        "divide": lambda: over(x, y),
        "divide_or_subtract": lambda: over(x, y) if y % 2 else minus,
        "squares": lambda: plus(square, times(y, y)),
        "polynomial": lambda: plus(plus(square, times(x, y)), times(y, y)),
        "polynomial_x": lambda: plus(plus(plus(square, times(x, y)), times(y, y)), x),
        "cube": lambda: plus(times(square, x), times(x, y)),
        "cube_y": lambda: plus(plus(times(square, x), times(x, times(y, y))), y),
    }[operation]()


@pytest.mark.parametrize("p", [2, 5, 7, 11])
@pytest.mark.parametrize("operation", MODULAR)
def test_the_whole_table_is_that_of_an_independent_search(operation: str, p: int) -> None:
    """Prime moduli: there an element divides exactly if it is not zero."""
    searched = {(x, y): by_search(operation, x, y, p) for x in range(p) for y in range(p)}
    assert {(x, y): z for x, y, z in rows(operation, p)} == {k: z for k, z in searched.items() if z is not None}


def test_the_table_of_a_large_prime_is_no_overflow() -> None:
    """x^3 for x near 1,000 stays far below 2^63: the cubes agree with Python's own whole numbers."""
    p = 997
    x, y, z = operation_pairs("cube_y", p)
    some = range(0, len(x), 4999)
    assert [int(z[k]) for k in some] == [(int(x[k]) ** 3 + int(x[k]) * int(y[k]) ** 2 + int(y[k])) % p for k in some]


@given(p=st.integers(2, 40))
def test_the_sum_is_not_modular_and_has_each_unordered_pair_once(p: int) -> None:
    table = rows("sum", p)
    assert len(table) == p * (p + 1) // 2 == len({frozenset((x, y)) for x, y, _ in table})
    assert all(z == x + y for x, y, z in table)
    assert {z for _, _, z in table} == set(range(result_count("sum", p)))


def test_the_sum_of_ten_digits_has_the_fifty_five_pairs_of_liu() -> None:
    assert pair_count("sum", 10) == 55
    assert result_count("sum", 10) == 19
    assert GrokkingParams(operation="sum", modulus=10, data_fraction=45 / 55).train_pairs == 45


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
    assert 0 <= result.min() <= result.max() < result_count(operation, p)
    assert max(x.max(), y.max()) < set_size(operation, p)


def test_an_unknown_operation_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'power'.*add, subtract"):
        operation_pairs("power", 7)


# The symmetric group of five things. Its elements are numbered in lexicographic order.

PERMUTATIONS = list(itertools.permutations(range(5)))


def s5_table(operation: str = "s5") -> np.ndarray:
    x, y, result = operation_pairs(operation, 97)
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


def test_the_inverse_undoes_from_both_sides() -> None:
    table, back, everything = s5_table(), inverse(), np.arange(S5_SIZE)
    assert (table[everything, back] == 0).all()
    assert (table[back, everything] == 0).all()
    for i, permutation in enumerate(PERMUTATIONS):
        assert tuple(PERMUTATIONS[back[i]][permutation[k]] for k in range(5)) == tuple(range(5))


def test_conjugation_and_xyx_are_what_they_say_on_the_permutations_themselves() -> None:
    conjugate, sandwich = s5_table("s5_conjugate"), s5_table("s5_xyx")
    number = {permutation: i for i, permutation in enumerate(PERMUTATIONS)}
    for (i, x), (j, y) in itertools.product(enumerate(PERMUTATIONS), repeat=2):
        undone = tuple(x.index(k) for k in range(5))
        assert conjugate[i, j] == number[tuple(x[y[undone[k]]] for k in range(5))]
        assert sandwich[i, j] == number[tuple(x[y[x[k]]] for k in range(5))]


def test_conjugation_keeps_the_class_and_is_an_automorphism() -> None:
    """Cycle lengths stay; (x y x^-1)(x z x^-1) = x (y z) x^-1."""
    table, conjugate = s5_table(), s5_table("s5_conjugate")

    def cycles(permutation: tuple[int, ...]) -> tuple[int, ...]:
        lengths, seen = [], set[int]()
        for start in range(5):
            length = 0
            while start not in seen:
                seen.add(start)
                start, length = permutation[start], length + 1
            lengths.append(length)
        return tuple(sorted(lengths))

    kinds = np.array([hash(cycles(permutation)) for permutation in PERMUTATIONS])
    assert (kinds[conjugate] == kinds[None, :]).all()
    for x in range(0, S5_SIZE, 7):
        np.testing.assert_array_equal(table[conjugate[x][:, None], conjugate[x][None, :]], conjugate[x][table])


@pytest.mark.parametrize("operation", PERMUTING)
def test_s5_does_not_depend_on_the_modulus(operation: str) -> None:
    assert rows(operation, 2) == rows(operation, 97)


@given(operation=st.sampled_from(OPERATIONS), p=st.integers(2, 40), fraction=st.floats(1e-6, 1 - 1e-6))
def test_the_train_set_is_the_rounded_fraction_and_leaves_both_sides_a_pair(
    operation: str, p: int, fraction: float
) -> None:
    pairs = pair_count(operation, p)
    train = GrokkingParams(operation=operation, modulus=p, data_fraction=fraction).train_pairs
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


@pytest.mark.parametrize("convention", NOISE_CONVENTIONS)
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("classes", [2, 7, 97])
def test_labels_are_wrong_at_the_effective_rate(convention: str, rate: float, classes: int) -> None:
    clean, got = noisy(rate, classes=classes, convention=convention)
    expected = rate * (classes - 1) / classes if convention == "redrawn" else rate
    deviation = math.sqrt(expected * (1 - expected) / len(clean))
    assert abs((clean != got).double().mean().item() - expected) < 5 * deviation
    assert 0 <= int(got.min()) <= int(got.max()) < classes


@pytest.mark.parametrize("convention", NOISE_CONVENTIONS)
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


@pytest.mark.parametrize("convention", NOISE_CONVENTIONS)
def test_without_noise_labels_stay_clean(convention: str) -> None:
    clean, got = noisy(0.0, convention=convention)
    assert torch.equal(clean, got)


@pytest.mark.parametrize("convention", NOISE_CONVENTIONS)
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

"""The counter-based generator: a number depends on (seed, stream, counter) only."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.packed import random

MANY = 200_000
SIGMAS = 5.0
"""A fair generator leaves this band once in 1.7 million tests; the numbers are fixed, so it does never or always."""
STARTS = (3 << 20, 18 << 20)
"""Under the key of seed 0, stream "test": the ranges of counters where the lowest and the highest word occur."""


GOLDEN: dict[str, Any] = {
    "keys": [
        [-7646991736970966945, -4469335319096673863],
        [2818958615811666950, -3814084976652131932],
        [-1671231624266477877, -5230682434168074431],
    ],
    "bits": [
        [-1183203784238791675, -6008010962693531399, 1684786037355360392, 3974704743939876745],
        [2543506040425139811, 2871355937225853509, 8516821688099280914, -3105502498778126841],
        [-4309978027702602420, 1161425409416191087, 4091783729776486212, 5614177583126231062],
    ],
    "below": [[935, 674, 91, 215], [137, 155, 461, 831], [766, 62, 221, 304]],
    "permutation": [[2, 1, 6, 0, 3, 5, 4, 7], [2, 0, 6, 1, 7, 4, 3, 5], [5, 6, 0, 1, 7, 3, 2, 4]],
    "uniform": [
        [0.935858428, 0.674305022, 0.091332376, 0.215469182],
        [0.137883723, 0.155656517, 0.461697876, 0.831650317],
        [0.766355574, 0.062961042, 0.221816003, 0.304345191],
    ],
    "normal": [
        [-0.19892895, -0.87816471, -2.18727803, 1.1637218],
        [-1.95611179, 1.90751815, -1.22746813, -0.3278867],
        [-0.32724324, -1.60628057, -1.73498642, -0.15872364],
    ],
}


def keys(*seeds: int, stream: str = "test") -> torch.Tensor:
    return random.stream_keys(seeds, stream)


def count(size: int = MANY) -> torch.Tensor:
    return torch.arange(size)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def test_the_numbers_have_not_changed() -> None:
    """Every recorded trial stands on these: if they must change, the jobs' versions must rise."""
    some, counter = keys(0, 1, (1 << 64) - 1), torch.tensor([0, 1, 2, 1 << 40])
    assert some.tolist() == GOLDEN["keys"]
    assert random.bits(some, counter).tolist() == GOLDEN["bits"]
    assert random.below(some, counter, 1000).tolist() == GOLDEN["below"]
    assert random.permutation(some, 8, epoch=3).tolist() == GOLDEN["permutation"]
    torch.testing.assert_close(random.uniform(some, counter), torch.tensor(GOLDEN["uniform"]), rtol=0, atol=2e-7)
    torch.testing.assert_close(random.normal(some, counter), torch.tensor(GOLDEN["normal"]), rtol=1e-6, atol=1e-7)


def test_an_integer_is_splitmix_of_the_counter_under_the_two_halves_of_the_key() -> None:
    """The same in Python's own integers, which do not wrap by themselves."""
    mask = (1 << 64) - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    some = keys(7, 8)
    for row, (low, high) in enumerate(some.tolist()):
        for counter in (0, 1, 12345, -1, 1 << 62):
            expected = mix(mix((counter * 0x9E3779B97F4A7C15 + low) & mask) ^ (high & mask))
            assert int(random.bits(some, torch.tensor([counter]))[row, 0]) & mask == expected


@given(
    seeds=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=5),
    start=st.integers(0, 1 << 50),
    stream=st.sampled_from(["batch", "init/weight/0"]),
)
@settings(max_examples=30)
def test_neighbours_and_chunks_change_no_number(seeds: list[int], start: int, stream: str) -> None:
    some = keys(*seeds, stream=stream)
    counter = torch.arange(start, start + 64)
    for draw in (random.bits, random.uniform, random.normal, lambda k, c: random.below(k, c, 97)):
        together = draw(some, counter)
        assert together.shape == (len(seeds), 64)
        for row, seed in enumerate(seeds):
            alone = draw(keys(seed, stream=stream), counter)
            assert torch.equal(together[row], alone[0])
            assert torch.equal(together[row, 10:20], draw(keys(seed, stream=stream), counter[10:20])[0])


def test_each_model_may_have_separate_counters() -> None:
    some = keys(3, 4, 5)
    own = torch.tensor([[0, 5], [7, 1 << 33], [2, 2]])
    together = random.bits(some, own)
    for row in range(3):
        assert torch.equal(together[row], random.bits(some[row : row + 1], own[row])[0])
    cube = torch.arange(24).reshape(1, 4, 6)
    assert torch.equal(random.bits(some, cube).flatten(1), random.bits(some, torch.arange(24)))


def test_drawing_changes_neither_keys_nor_counters() -> None:
    some, counter = keys(1, 2), torch.arange(2 * 10).reshape(2, 10)
    before = some.clone(), counter.clone()
    for draw in (random.bits, random.uniform, random.normal):
        draw(some, counter)
    random.below(some, counter, 5)
    assert torch.equal(some, before[0])
    assert torch.equal(counter, before[1])


def test_streams_and_seeds_are_different_generators() -> None:
    drawn = [random.bits(keys(seed, stream=stream), count(1000))[0] for seed in (0, 1) for stream in ("a", "b")]
    assert len(torch.unique(torch.cat(drawn))) == 4000


def test_every_bit_is_fair() -> None:
    bits = random.bits(keys(11), count())[0]
    for place in range(64):
        ones = float(((bits >> place) & 1).sum())
        assert abs(ones - MANY / 2) < SIGMAS * math.sqrt(MANY) / 2, f"bit {place}"


@pytest.mark.parametrize("step", [1, 2, 100, 1 << 32])
def test_neighbouring_counters_are_independent(step: int) -> None:
    some = keys(12)
    here, there = random.uniform(some, count())[0], random.uniform(some, count() + step)[0]
    assert abs(correlation(here, there)) < SIGMAS / math.sqrt(MANY)
    flips = (random.bits(some, count()) ^ random.bits(some, count() + step))[0]
    ones = sum(float(((flips >> place) & 1).sum()) for place in range(64))
    assert abs(ones - 32 * MANY) < SIGMAS * math.sqrt(64 * MANY) / 2


def test_neighbouring_seeds_are_independent() -> None:
    drawn = random.normal(keys(0, 1, 2, 3), count())
    for a in range(4):
        for b in range(a):
            assert abs(correlation(drawn[a], drawn[b])) < SIGMAS / math.sqrt(MANY)


def test_uniform_numbers_are_uniform() -> None:
    u = random.uniform(keys(13), count())[0].double()
    assert abs(float(u.mean()) - 0.5) < SIGMAS * math.sqrt(1 / 12 / MANY)
    cells = torch.histc(u, 100, 0, 1)
    assert_fair(cells)


def test_a_uniform_number_is_never_zero_or_one() -> None:
    """Probability 1 must replace every label: the extreme words are found by search, not waited for."""
    some = keys(0)
    words = [(random.bits(some, torch.arange(start, start + (1 << 20)))[0] >> 40) & 0xFFFFFF for start in STARTS]
    found = {int(word.min()) for word in words} | {int(word.max()) for word in words}
    assert {0, 0xFFFFFF} <= found
    for start in STARTS:
        u = random.uniform(some, torch.arange(start, start + (1 << 20)))
        assert float(u.min()) > 0.0
        assert float(u.max()) < 1.0


def test_normal_numbers_are_normal() -> None:
    z = random.normal(keys(14), count())[0].double()
    assert abs(float(z.mean())) < SIGMAS / math.sqrt(MANY)
    assert abs(float(z.var()) - 1) < SIGMAS * math.sqrt(2 / MANY)
    assert abs(float((z**3).mean())) < SIGMAS * math.sqrt(15 / MANY)
    assert abs(float((z**4).mean()) - 3) < SIGMAS * math.sqrt(96 / MANY)
    for level in (-3.0, -1.0, 0.0, 0.5, 2.0, 3.5):
        share = 0.5 * (1 + math.erf(level / math.sqrt(2)))
        assert abs(float((z < level).double().mean()) - share) < SIGMAS * math.sqrt(share * (1 - share) / MANY)


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 97, 1000])
def test_bounded_numbers_are_uniform_below_the_bound(bound: int) -> None:
    drawn = random.below(keys(15), count(), bound)[0]
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < bound
    assert_fair(torch.bincount(drawn, minlength=bound))


def test_bounds_may_differ_among_models_up_to_31_bits() -> None:
    some = keys(1, 2, 3)
    bounds = torch.tensor([[5], [1000], [1 << 31]])
    together = random.below(some, count(1000), bounds)
    for row in range(3):
        assert torch.equal(together[row], random.below(some[row : row + 1], count(1000), int(bounds[row, 0]))[0])
    assert int(together[2].min()) >= 0
    assert int(together[2].max()) > 1 << 30


def test_a_permutation_holds_each_number_once() -> None:
    for size in (1, 2, 17, 1000):
        drawn = random.permutation(keys(1, 2, 3), size, epoch=5)
        assert torch.equal(drawn.sort(1).values, torch.arange(size).expand(3, size))


def test_a_permutation_depends_on_seed_and_epoch() -> None:
    some = keys(1, 2)
    first, second = random.permutation(some, 100, 0), random.permutation(some, 100, 1)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])
    own = random.permutation(some, 100, torch.tensor([[1], [0]]))
    assert torch.equal(own[0], second[0])
    assert torch.equal(own[1], first[1])


def test_every_place_of_a_permutation_is_uniform() -> None:
    drawn = random.permutation(keys(*range(20_000)), 6)
    for place in range(6):
        assert_fair(torch.bincount(drawn[:, place], minlength=6))
    orders = (drawn * 6 ** torch.arange(6)).sum(1).unique(return_counts=True)[1]
    assert len(orders) == math.factorial(6)
    assert_fair(orders)


def assert_fair(cells: torch.Tensor) -> None:
    """Chi-squared of counts that should be equal, against its mean and standard deviation."""
    freedom = len(cells) - 1
    mean = cells.double().mean()
    chi = float(((cells.double() - mean) ** 2 / mean).sum())
    assert abs(chi - freedom) <= SIGMAS * math.sqrt(2 * freedom) + 10, f"chi squared {chi} of {freedom}"

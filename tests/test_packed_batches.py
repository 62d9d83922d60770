"""Batches: each model gets the batches that it would get alone, and every epoch contains each example once."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.packed import random
from jobs.packed.batches import ORDERS, Batches, _sorted


def make(seeds: list[int], counts: list[int], sizes: list[int], order: str) -> Batches:
    return Batches(seeds=seeds, counts=counts, batch_sizes=sizes, order=order, device="cpu")


def seen(batches: Batches, model: int, step: int, count: int) -> torch.Tensor:
    """(count, size) rows that have a weight in this model's loss."""
    rows = batches.draw(step, count)[:, model]
    return rows[:, batches.weights[model] > 0]


@st.composite
def settings_of_a_pack(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], str]:
    """Models with counts and batch sizes of their own, none of them the full batch."""
    models = draw(st.integers(1, 4))
    seeds = draw(st.lists(st.integers(0, (1 << 64) - 1), min_size=models, max_size=models))
    sizes = draw(st.lists(st.integers(1, 12), min_size=models, max_size=models))
    counts = [size + draw(st.integers(1, 40)) for size in sizes]
    return seeds, counts, sizes, draw(st.sampled_from(ORDERS))


@given(pack=settings_of_a_pack(), step=st.integers(0, 200), count=st.integers(1, 20))
@settings(max_examples=60)
def test_a_models_batches_do_not_depend_on_other_models(
    pack: tuple[list[int], list[int], list[int], str], step: int, count: int
) -> None:
    seeds, counts, sizes, order = pack
    together = make(seeds, counts, sizes, order)
    rows = together.draw(step, count)
    assert rows.shape == (count, len(seeds), max(sizes))
    assert bool((rows >= 0).all())
    assert bool((rows < torch.tensor(counts)[:, None]).all()), "a row without weight must be a valid row too"
    for model, (seed, number, size) in enumerate(zip(seeds, counts, sizes, strict=True)):
        alone = make([seed], [number], [size], order)
        assert torch.equal(seen(together, model, step, count), alone.draw(step, count)[:, 0])


@given(pack=settings_of_a_pack(), step=st.integers(0, 100), parts=st.lists(st.integers(1, 9), min_size=2, max_size=4))
@settings(max_examples=30)
def test_drawing_in_parts_is_drawing_at_once(
    pack: tuple[list[int], list[int], list[int], str], step: int, parts: list[int]
) -> None:
    batches = make(*pack)
    whole = batches.draw(step, sum(parts))
    done = 0
    for part in parts:
        assert torch.equal(whole[done : done + part], batches.draw(step + done, part))
        done += part


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    size=st.integers(1, 50),
    seed=st.integers(0, 1 << 60),
)
@settings(max_examples=40)
def test_a_shuffled_epoch_visits_each_example_once(counts: list[int], size: int, seed: int) -> None:
    size = min(size, min(counts) - 1)
    batches = make([seed + k for k in range(len(counts))], counts, [size] * len(counts), "shuffled")
    epochs = 3
    steps = -(-epochs * max(counts) // size)
    for model, count in enumerate(counts):
        stream = seen(batches, model, 0, steps).flatten()
        orders = [stream[epoch * count : (epoch + 1) * count] for epoch in range(epochs)]
        for order in orders:
            assert order.sort().values.tolist() == list(range(count))
        if count > 12:  # two equal orders of 13 would be a miracle
            assert not torch.equal(orders[0], orders[1])


def test_seeds_order_an_epoch_differently() -> None:
    batches = make([1, 2], [50, 50], [10, 10], "shuffled")
    assert not torch.equal(seen(batches, 0, 0, 5), seen(batches, 1, 0, 5))


def test_cyclic_batches_follow_the_data() -> None:
    batches = make([1, 2], [7, 10], [3, 3], "cyclic")
    for model, count in enumerate((7, 10)):
        assert seen(batches, model, 4, 30).flatten().tolist() == [i % count for i in range(12, 102)]


def test_draws_with_replacement_are_uniform_and_do_repeat() -> None:
    batches = make([1, 2], [20, 33], [8, 8], "with_replacement")
    steps = 5000
    for model, count in enumerate((20, 33)):
        rows = seen(batches, model, 0, steps)
        cells = torch.bincount(rows.flatten(), minlength=count).double()
        chi = float(((cells - cells.mean()) ** 2 / cells.mean()).sum())
        assert abs(chi - (count - 1)) < 5 * math.sqrt(2 * (count - 1))
        repeats = sum(len(set(row)) < 8 for row in rows.tolist()) / steps
        fair = 1 - math.prod((count - k) / count for k in range(8))
        assert abs(repeats - fair) < 5 * math.sqrt(fair * (1 - fair) / steps)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [20, 10**9])
def test_a_full_batch_is_all_the_data_in_its_order(order: str, size: int) -> None:
    batches = make([1, 2, 3], [20, 11, 1], [size] * 3, order)
    assert batches.full
    for model, count in enumerate((20, 11, 1)):
        assert seen(batches, model, 17, 4).tolist() == [list(range(count))] * 4
    assert bool((batches.draw(0, 1) < torch.tensor([20, 11, 1])[:, None]).all())


def test_a_models_weights_are_a_mean() -> None:
    batches = make([1, 2, 3], [20, 11, 9], [4, 5, 1], "shuffled")
    torch.testing.assert_close(batches.weights.sum(1), torch.ones(3))
    for model, size in enumerate((4, 5, 1)):
        used = batches.weights[model][batches.weights[model] > 0]
        torch.testing.assert_close(used, torch.full((size,), 1 / size))


def test_full_and_minibatch_models_do_not_mix() -> None:
    with pytest.raises(ValueError, match="full-batch and minibatch"):
        make([1, 2], [20, 30], [20, 20], "shuffled")


@pytest.mark.parametrize("order", ORDERS)
def test_those_who_stay_go_on_with_their_batches(order: str) -> None:
    seeds, counts, sizes = [5, 6, 7, 8], [20, 31, 12, 25], [4, 9, 3, 8]
    batches = make(seeds, counts, sizes, order)
    expected = [seen(batches, model, 6, 10) for model in range(4)]
    batches.keep(torch.tensor([0, 2]))
    assert batches.width == 4
    for place, model in enumerate((0, 2)):
        assert torch.equal(seen(batches, place, 6, 10), expected[model])
    torch.testing.assert_close(batches.weights.sum(1), torch.ones(2))


@given(seed=st.integers(0, 2**64 - 1), count=st.integers(2, 23), size=st.integers(1, 22), start=st.integers(0, 9))
def test_whole_epochs_end_with_a_smaller_batch(seed: int, count: int, size: int, start: int) -> None:
    """Every epoch holds every row once; the weights of a step's real rows are equal and add up to 1."""
    size = min(size, count - 1)
    other = 40
    batches = Batches([seed, seed + 1], [count, other], [size, other // 3], "whole_epochs", "cpu")
    whole = -(-count // size)
    first, steps = start * whole, 2 * whole
    rows, weights = batches.draw(first, steps)[:, 0], batches.step_weights(first, steps)
    assert weights is not None
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * whole, (epoch + 1) * whole):
            real = weights[step, 0] > 0
            expected = size if step % whole < whole - 1 else count - size * (whole - 1)
            assert int(real.sum()) == expected
            torch.testing.assert_close(weights[step, 0][real], torch.full((expected,), 1 / expected))
            seen += rows[step][real].tolist()
        assert sorted(seen) == list(range(count))
    assert torch.equal(batches.draw(first + 1, 1)[0], batches.draw(first, 2)[1]), "however the steps are asked for"


def test_the_order_on_a_cpu_is_that_of_other_devices() -> None:
    keys = random.bits(random.stream_keys([1, 2, 3], "batch"), torch.arange(5000)[None]).reshape(3, 1, 5000)
    assert torch.equal(_sorted(keys), keys.argsort(dim=2, stable=True))

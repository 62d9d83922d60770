"""Laws of axes and of their product."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.axes import (
    MOST_TRIALS,
    Axis,
    Cycle,
    IntegerAxis,
    LinearAxis,
    LogAxis,
    TooManyTrials,
    ValuesAxis,
    dimensions,
    expand,
    points_of,
    same_on_every_machine,
)

positive = st.floats(1e-6, 1e6)


def axis(name: str, count: int, **more: object) -> Axis:
    return Axis(name=name, scale="values", values=tuple(range(1, count + 1)), **more)  # type: ignore[arg-type]


@given(low=st.integers(1, 500), high=st.integers(1, 100_000), points=st.integers(1, 60))
def test_integer_points_are_the_published_formula(low: int, high: int, points: int) -> None:
    low, high = sorted((low, high))
    made = points_of(IntegerAxis(scale="integer", start=low, to=high, points=points))
    # Rounding may leave a whole number a hair below itself: 7.999999999999998 is 8.
    assert made == sorted({int(w * (1 + 1e-11)) for w in np.geomspace(low, high, points)})
    assert all(type(value) is int for value in made)


@pytest.mark.parametrize("octaves", [6, 8, 12])
def test_doubling_gives_the_powers_of_two(octaves: int) -> None:
    made = points_of(IntegerAxis(scale="integer", start=1, to=2**octaves, points=octaves + 1))
    assert made == [2**k for k in range(octaves + 1)]


def test_integer_points_give_the_widths_of_the_double_descent_notebook() -> None:
    made = points_of(IntegerAxis(scale="integer", start=2, to=300, points=20))
    assert made == [2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 47, 61, 80, 104, 135, 177, 230, 300]


@given(low=positive, high=positive, points=st.integers(2, 50))
def test_log_points_have_a_constant_ratio_and_exact_ends(low: float, high: float, points: int) -> None:
    made = np.array(points_of(LogAxis(scale="log", start=low, to=high, points=points)), dtype=float)
    assert made[0] == low
    assert made[-1] == high
    if not math.isclose(low, high, rel_tol=1e-6):
        assert np.allclose(np.diff(np.log(made)), math.log(high / low) / (points - 1), atol=1e-9)


@given(low=positive, high=positive, points=st.integers(2, 50))
def test_linear_points_are_evenly_spaced_in_the_given_direction(low: float, high: float, points: int) -> None:
    made = np.array(points_of(LinearAxis(scale="linear", start=low, to=high, points=points)), dtype=float)
    if not math.isclose(low, high, rel_tol=1e-6):
        assert np.allclose(np.diff(made), (high - low) / (points - 1), atol=1e-9 * (low + high))


def test_linear_points_are_the_decimal_numbers_that_one_would_write() -> None:
    made = points_of(LinearAxis(scale="linear", start=0.1, to=0.9, points=17))
    assert made == [round(0.1 + 0.05 * n, 2) for n in range(17)]


@given(value=positive, ulps=st.integers(-4, 4))
def test_the_last_bits_of_a_computed_point_do_not_count(value: float, ulps: int) -> None:
    value = same_on_every_machine(value)
    assert same_on_every_machine(value + ulps * math.ulp(value)) == value


@given(extra=st.lists(st.floats(-5, 50), max_size=5), falling=st.booleans())
def test_included_values_stand_in_order_among_the_others_once(extra: list[float], falling: bool) -> None:
    start, to = (10.0, 0.1) if falling else (0.1, 10.0)
    made = points_of(LogAxis(scale="log", start=start, to=to, points=7, include=extra))
    plain = points_of(LogAxis(scale="log", start=start, to=to, points=7))
    assert made == sorted({*plain, *extra}, reverse=falling)  # type: ignore[type-var]


def test_one_point_is_the_start() -> None:
    assert points_of(LinearAxis(scale="linear", start=3, to=9, points=1)) == [3]
    assert points_of(LogAxis(scale="log", start=3, to=9, points=1)) == [3]
    assert points_of(IntegerAxis(scale="integer", start=3, to=9, points=1)) == [3]


def test_listed_values_keep_their_order() -> None:
    assert points_of(ValuesAxis(values=["b", "a", 3, True])) == ["b", "a", 3, True]


@given(st.lists(st.integers(1, 5), max_size=5))
def test_the_grid_of_crossed_axes_is_their_product(lengths: list[int]) -> None:
    axes = [axis(f"a{n}", length) for n, length in enumerate(lengths)]
    settings, never = expand(axes, {"f": 7}, {})
    assert len(settings) == math.prod(lengths)
    assert len({tuple(sorted(s.items())) for s in settings}) == len(settings)
    assert all(s["f"] == 7 and len(s) == len(axes) + 1 for s in settings)
    assert never == set()


@given(st.integers(1, 6), st.integers(2, 4), st.integers(1, 4))
def test_zipped_axes_advance_together(length: int, zipped: int, other: int) -> None:
    axes = [axis(f"z{n}", length, group=0) for n in range(zipped)] + [axis("x", other)]
    settings, _ = expand(axes, {}, {})
    assert len(settings) == length * other
    assert all(len({s[f"z{n}"] for n in range(zipped)}) == 1 for s in settings)


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_a_conditional_axis_multiplies_only_where_its_condition_holds(m: int, n: int, data: st.DataObject) -> None:
    among = data.draw(st.sets(st.integers(1, m), min_size=1))
    axes = [axis("inner", n, when={"outer": tuple(among)}), axis("outer", m)]
    settings, never = expand(axes, {}, {"inner": 99})
    assert len(settings) == len(among) * n + (m - len(among))
    assert all(("inner" in s) == (s["outer"] in among) for s in settings)
    assert never == set()


def test_conditions_see_fixed_values_defaults_and_values_of_absent_axes() -> None:
    axes = [
        axis("a", 2, when={"fixed": (5,)}),
        axis("b", 3, when={"default": (6,)}),
        axis("c", 4, when={"fixed": (0,)}),
        axis("d", 5, when={"c": (77,)}),
    ]
    settings, never = expand(axes, {"fixed": 5, "c": 77}, {"default": 6})
    assert len(settings) == 2 * 3 * 5
    assert {s["c"] for s in settings} == {77}
    assert never == {"c"}


def test_the_last_axis_varies_fastest() -> None:
    settings, _ = expand([axis("a", 2), axis("b", 2)], {}, {})
    assert [(s["a"], s["b"]) for s in settings] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_a_dimension_comes_after_those_its_condition_names() -> None:
    axes = [axis("a", 2, when={"b": (1,)}), axis("b", 2, when={"c": (1,)}), axis("c", 2)]
    assert [d[0].name for d in dimensions(axes)] == ["c", "b", "a"]


def test_conditions_in_a_circle_are_refused() -> None:
    with pytest.raises(Cycle, match="a"):
        dimensions([axis("a", 2, when={"b": (1,)}), axis("b", 2, when={"a": (1,)})])


def test_a_grid_too_large_to_hold_is_refused_before_it_is_made() -> None:
    with pytest.raises(TooManyTrials, match=str(10**9)):
        expand([axis(f"a{n}", 1000) for n in range(3)], {}, {})
    with pytest.raises(TooManyTrials):
        expand([], {}, {}, replicates=MOST_TRIALS + 1)

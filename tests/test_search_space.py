"""The search space: conversion between positions and values, both ways."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.axes import Axis
from orchestrator.search.space import (
    Continuous,
    Coordinate,
    Listed,
    SpaceError,
    Together,
    Whole,
    coordinate_of,
    locate,
    slices_of,
)

UNIT = st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=20).map(np.array)


@st.composite
def continuous(draw: Any) -> Coordinate:
    log = draw(st.booleans())
    end = st.floats(1e-6, 1e6) if log else st.floats(-1e6, 1e6)
    low, high = draw(end), draw(end)
    assume(low == high or abs(high - low) > 1e-6 * max(abs(low), abs(high)))
    return Continuous(name="a", low=low, high=high, log=log)


@st.composite
def whole(draw: Any) -> Coordinate:
    low = draw(st.integers(1, 1000))
    return Whole(name="a", low=low, high=low + draw(st.integers(0, 10**6)), log=draw(st.booleans()))


@st.composite
def listed(draw: Any) -> Coordinate:
    values = draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=30, unique=True))
    scale = draw(st.sampled_from(["linear", "log", "integer"]))
    return coordinate_of((Axis(name="a", scale=scale, values=tuple(values)),))


@st.composite
def together(draw: Any) -> Coordinate:
    low, high = draw(st.integers(1, 50)), draw(st.integers(51, 100))
    first = Axis(name="a", scale="integer", values=(low, high), between=True, group=0)
    second = Axis(name="b", scale="linear", values=(draw(st.floats(-5, 0)), 1.0), between=True, group=0)
    return coordinate_of((first, second))


COORDINATE = st.one_of(continuous(), whole(), listed(), together())


@given(COORDINATE, UNIT)
def test_snapped_positions_stay_where_they_are(coordinate: Coordinate, u: np.ndarray) -> None:
    snapped = coordinate.snap(u)
    assert ((snapped >= 0) & (snapped <= 1)).all()
    assert coordinate.snap(snapped).tolist() == snapped.tolist()


@given(COORDINATE, UNIT)
def test_values_lead_back_to_their_position(coordinate: Coordinate, u: np.ndarray) -> None:
    for at in coordinate.snap(u).tolist():
        values = coordinate.values(at)
        assert len(values) == len(coordinate.names)
        assert coordinate.position(values) == at
        assert coordinate.values(coordinate.position(values)) == values


@given(st.one_of(continuous(), whole()), UNIT)
def test_values_lie_between_the_ends(coordinate: Any, u: np.ndarray) -> None:
    ends = sorted((coordinate.low, coordinate.high))
    assert coordinate.values(0.0) == (coordinate.low,)
    assert all(ends[0] <= coordinate.values(at)[0] <= ends[1] for at in coordinate.snap(u).tolist())
    if coordinate.low != coordinate.high:
        assert coordinate.values(1.0) == (coordinate.high,)


@given(st.integers(1, 40), st.integers(0, 60), st.booleans(), UNIT)
def test_a_whole_number_is_the_nearest_one(low: int, more: int, log: bool, u: np.ndarray) -> None:
    coordinate = Whole(name="a", low=low, high=low + more, log=log)
    every = np.array([coordinate.position((n,)) for n in range(low, low + more + 1)])
    for at, snapped in zip(np.clip(u, 0, 1).tolist(), coordinate.snap(u).tolist(), strict=True):
        assert abs(snapped - at) <= np.abs(every - at).min() + 1e-12


@given(listed(), UNIT)
def test_a_grids_point_is_the_nearest_one(coordinate: Listed, u: np.ndarray) -> None:
    for at, snapped in zip(u.tolist(), coordinate.snap(u).tolist(), strict=True):
        assert abs(snapped - at) <= np.abs(coordinate.at - at).min() + 1e-12


@given(st.floats(1e-3, 1e3), st.floats(1.5, 1e4), st.floats(0, 1))
def test_values_are_short_numbers(low: float, ratio: float, u: float) -> None:
    coordinate = Continuous(name="a", low=low, high=low * ratio, log=True)
    at = float(coordinate.snap(np.array([u]))[0])
    if 0 < at < 1:
        assert len(f"{coordinate.values(at)[0]!r}".replace("-", "").replace(".", "").lstrip("0")) <= 12


def test_zipped_axes_move_together() -> None:
    axes = (
        Axis(name="a", scale="linear", values=(0.0, 1.0), between=True, group=0),
        Axis(name="b", scale="linear", values=(10, 20), between=True, group=0),
    )
    coordinate = coordinate_of(axes)
    assert isinstance(coordinate, Together)
    found = [dict(zip(coordinate.names, coordinate.values(float(u)), strict=True)) for u in (0.0, 0.5, 1.0)]
    assert found == [{"a": 0.0, "b": 10}, {"a": 0.5, "b": 15}, {"a": 1.0, "b": 20}]


WIDTH = Axis(name="width", scale="integer", values=(1, 64), between=True)
DECAY = Axis(name="decay", scale="log", values=(0.0, 0.1, 1.0, 10.0))
MODEL = Axis(name="model", scale="values", values=("a", "b"))
HEADS = Axis(name="heads", scale="integer", values=(1, 8), between=True, when={"model": ("b",)})


def test_a_value_off_its_scale_is_a_slice() -> None:
    slices = slices_of((WIDTH, DECAY), {"steps": 5}, {})
    assert [(dict(one.fixed), [c.names for c in one.coordinates]) for one in slices] == [
        ({"steps": 5}, [("width",), ("decay",)]),
        ({"steps": 5, "decay": 0.0}, [("width",)]),
    ]
    grid = slices[0].coordinates[1]
    assert isinstance(grid, Listed)
    assert grid.at.tolist() == pytest.approx([0, 0.5, 1])


def test_listed_values_and_conditions_make_slices() -> None:
    slices = slices_of((WIDTH, MODEL, HEADS), {}, {})
    assert [(dict(one.fixed), [c.names for c in one.coordinates]) for one in slices] == [
        ({"model": "a"}, [("width",)]),
        ({"model": "b"}, [("width",), ("heads",)]),
    ]


@given(st.data())
def test_a_setting_is_found_in_its_slice(data: st.DataObject) -> None:
    axes = (WIDTH, DECAY, MODEL, HEADS)
    slices = slices_of(axes, {"steps": 5}, {})
    number = data.draw(st.integers(0, len(slices) - 1))
    one = slices[number]
    u = data.draw(st.lists(st.floats(0, 1), min_size=len(one.coordinates), max_size=len(one.coordinates)))
    x = one.snap(np.array([u]))[0]
    found = locate(slices, one.setting(x), {axis.name for axis in axes})
    assert found is not None
    assert found[0] == number
    assert found[1].tolist() == x.tolist()


def test_a_condition_on_a_searched_axis_is_refused() -> None:
    heads = Axis(name="heads", scale="values", values=(1, 2), when={"width": (1,)})
    with pytest.raises(SpaceError, match="which a boundary search varies"):
        slices_of((WIDTH, heads), {}, {})


def test_zipped_points_are_the_grids_own() -> None:
    axes = (
        Axis(name="a", scale="log", values=(1.0, 10.0, 100.0), group=0),
        Axis(name="b", scale="values", values=("x", "y", "z"), group=0),
    )
    (one,) = slices_of(axes, {}, {})
    settings = [one.setting(np.array([u])) for u in one.coordinates[0].snap(np.array([0.1, 0.4, 0.9])).tolist()]
    assert settings == [{"a": 1.0, "b": "x"}, {"a": 10.0, "b": "y"}, {"a": 100.0, "b": "z"}]
    assert one.size == 3


def test_every_point_of_a_grid_has_its_position() -> None:
    axes = (Axis(name="a", scale="linear", values=(3.0, 2.0, 1.0)), Axis(name="b", scale="integer", values=(1, 2, 9)))
    (one,) = slices_of(axes, {}, {})
    places = {tuple(one.position({"a": a, "b": b}).tolist()) for a, b in itertools.product((1.0, 2.0, 3.0), (1, 2, 9))}
    assert len(places) == one.size == 9
    assert (1.0, math.log(2) / math.log(9)) in places

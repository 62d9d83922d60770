"""Laws of the boundary between phases."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Outline

from orchestrator.phases.map.contour import boundary, half_level, outlines_of_labels
from orchestrator.phases.scale import AxisScale, axis_scale


def scale(values: object, spacing: str = "linear") -> AxisScale:
    return axis_scale("x", label="x", spacing=spacing, values=values)  # type: ignore[arg-type]


def two_phases(share: np.ndarray) -> np.ndarray:
    return np.stack([share, 1 - share], axis=2)


def test_the_boundary_of_a_plane_is_a_straight_line_where_it_is_a_half() -> None:
    u, v = np.arange(6.0), np.arange(5.0)
    share = (u[:, None] + 2 * v[None]) / 13
    (line,) = half_level(u, v, share)
    np.testing.assert_allclose(line[:, 0] + 2 * line[:, 1], 6.5, atol=1e-12)
    assert np.ptp(line[:, 1]) == pytest.approx(2.5)


def test_the_boundary_of_a_hill_is_one_closed_line_about_it() -> None:
    u = np.linspace(-1, 1, 41)
    share = 1 - 2 * (u[:, None] ** 2 + u[None] ** 2)
    (line,) = half_level(u, u, share)
    np.testing.assert_array_equal(line[0], line[-1])
    np.testing.assert_allclose(np.hypot(*line.T), 0.5, atol=2e-3)


@given(share=arrays(float, (5, 6), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])))
def test_two_phases_have_the_same_boundary(share: np.ndarray) -> None:
    u, v = np.arange(5.0), np.arange(6.0)
    first = half_level(u, v, share, share >= 0.5, joined=True)
    second = half_level(u, v, 1 - share, share < 0.5)
    points, again = ({tuple(p) for line in lines for p in line.round(9).tolist()} for lines in (first, second))
    assert points == again
    drawn = boundary(scale(range(5)), scale(range(6)), two_phases(share))
    assert {tuple(p) for line in drawn for p in line.round(9).tolist()} == points


@given(share=arrays(float, (5, 5), elements=st.sampled_from([0.0, 0.2, 0.8, 1.0])))
def test_the_boundary_parts_every_two_neighbours_on_different_sides_and_no_others(share: np.ndarray) -> None:
    lines = half_level(np.arange(5.0), np.arange(5.0), share)
    crossed = {tuple(p) for line in lines for p in line.round(9).tolist()}
    for i, j in itertools.product(range(5), range(5)):
        for k, m in ((i + 1, j), (i, j + 1)):
            if k < 5 and m < 5:
                between = any((y == j and i < x < k) if m == j else (x == i and j < y < m) for x, y in crossed)
                assert between == ((share[i, j] > 0.5) != (share[k, m] > 0.5))


def test_with_one_replicate_it_runs_half_way_on_a_log_axis_too() -> None:
    x, y = scale([1.0, 100.0], "log"), scale([0.0, 1.0, 2.0])
    lines = boundary(x, y, two_phases(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])))
    for line in lines:
        np.testing.assert_allclose(line[:, 0], 1.0)  # log10 of the geometric mean
    assert len(lines) == 2


def test_no_line_is_drawn_beside_a_hole() -> None:
    share = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    share[0, 0] = np.nan
    lines = boundary(scale([0.0, 1.0]), scale(range(4)), two_phases(share))
    assert [line[:, 1].min() for line in lines] == [1, 1]


def test_no_line_crosses_the_gap_to_a_column_set_apart_or_a_text_axis() -> None:
    apart = scale([0.0, 1.0, 10.0], "log")
    share = two_phases(np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    assert boundary(apart, scale([0.0, 1.0]), share) == []
    assert boundary(scale(["a", "b", "c"]), scale([0.0, 1.0]), share) == []


def test_an_island_is_enclosed() -> None:
    share = np.zeros((7, 7))
    share[2:5, 2:5] = 1
    (line,) = half_level(np.arange(7.0), np.arange(7.0), share)
    inside = Outline(line)
    assert inside.contains_point((3, 3))
    assert not inside.contains_point((1, 3))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("low", "joined"), [(0.4, True), (0.0, False)])
def test_in_a_saddle_the_mean_decides_which_corners_are_joined(turned: bool, low: float, joined: bool) -> None:
    share = np.array([[0.9, low], [low, 0.9]])[:, :: -1 if turned else 1]
    lines = half_level(np.arange(2.0), np.arange(2.0), share)
    assert len(lines) == 2
    # Each line cuts off one corner: the low ones where the high ones are joined, and the other way round.
    cut = {(round(float(line[:, 0].mean())), round(float(line[:, 1].mean()))) for line in lines}
    assert {bool(share[i, j] < 0.5) for i, j in cut} == {joined}
    assert len(cut) == 2


@given(label=arrays(np.int64, (5, 6), elements=st.sampled_from([-1, 0, 1])))
def test_the_outlines_of_two_classes_coincide_in_saddles_too_and_avoid_holes(label: np.ndarray) -> None:
    lines = [line.tolist() for line in outlines_of_labels(label)]
    segments = Counter(frozenset(map(tuple, pair)) for line in lines for pair in itertools.pairwise(line))
    assert set(segments.values()) <= {2}
    for x, y in {point for segment in segments for point in segment}:
        ends = label[math.floor(x), math.floor(y)], label[math.ceil(x), math.ceil(y)]
        assert sorted(ends) == [0, 1]

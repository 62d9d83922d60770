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

from orchestrator.phases.map.contour import boundary, outlines_of_labels
from orchestrator.phases.scale import AxisScale, axis_scale


def scale(values: object, spacing: str = "linear") -> AxisScale:
    return axis_scale("x", label="x", spacing=spacing, values=values)  # type: ignore[arg-type]


def two_phases(share: np.ndarray) -> np.ndarray:
    return np.stack([share, 1 - share], axis=2)


def lines_of(u: np.ndarray, v: np.ndarray, share: np.ndarray) -> list[np.ndarray]:
    return boundary(scale(u.tolist()), scale(v.tolist()), share if share.ndim == 3 else two_phases(share))


def one_hot(label: np.ndarray, labels: int) -> np.ndarray:
    return np.eye(labels)[label]


def test_the_boundary_of_a_plane_is_a_straight_line_where_it_is_a_half() -> None:
    u, v = np.arange(6.0), np.arange(5.0)
    (line,) = lines_of(u, v, (u[:, None] + 2 * v[None]) / 13)
    np.testing.assert_allclose(line[:, 0] + 2 * line[:, 1], 6.5, atol=1e-8)
    assert np.ptp(line[:, 1]) == pytest.approx(2.5)


def test_the_boundary_of_a_hill_is_one_closed_line_about_it() -> None:
    u = np.linspace(-1, 1, 41)
    (line,) = lines_of(u, u, np.clip(1 - 2 * (u[:, None] ** 2 + u[None] ** 2), 0, 1))
    np.testing.assert_array_equal(line[0], line[-1])
    np.testing.assert_allclose(np.hypot(*line.T), 0.5, atol=2e-3)


def points_of(lines: list[np.ndarray]) -> set[tuple[float, ...]]:
    return {tuple(p) for line in lines for p in line.round(6).tolist()}


@given(label=arrays(np.int64, (5, 5), elements=st.sampled_from([0, 1, 2, 3])))
def test_the_boundary_parts_every_two_neighbours_of_different_phases_and_no_others(label: np.ndarray) -> None:
    crossed = points_of(lines_of(np.arange(5.0), np.arange(5.0), one_hot(label, 4)))
    for i, j in itertools.product(range(5), range(5)):
        for k, m in ((i + 1, j), (i, j + 1)):
            if k < 5 and m < 5:
                assert (((i + k) / 2, (j + m) / 2) in crossed) == (label[i, j] != label[k, m])


@given(label=arrays(np.int64, (5, 5), elements=st.sampled_from([0, 1, 2, 3])))
def test_a_line_ends_at_the_edge_or_where_three_phases_meet_and_nothing_is_drawn_twice(label: np.ndarray) -> None:
    lines = lines_of(np.arange(5.0), np.arange(5.0), one_hot(label, 4))
    steps = Counter(frozenset(map(tuple, pair)) for line in lines for pair in itertools.pairwise(line.tolist()))
    assert set(steps.values()) <= {1}
    for x, y in Counter(tuple(end) for line in lines for end in (line[0].tolist(), line[-1].tolist())):
        met = sum((x, y) in step for step in steps)
        around = {int(label[i, j]) for i in {math.floor(x), math.ceil(x)} for j in {math.floor(y), math.ceil(y)}}
        assert met != 1 or x in (0, 4) or y in (0, 4)
        assert met < 3 or len(around) >= 3


def test_three_phases_meet_in_one_point() -> None:
    label = np.array([[0, 0, 0], [1, 1, 2], [1, 1, 2]])
    lines = lines_of(np.arange(3.0), np.arange(3.0), one_hot(label, 3))
    ends = Counter(tuple(end) for line in lines for end in (line[0].round(6).tolist(), line[-1].round(6).tolist()))
    (meeting,) = (point for point, count in ends.items() if count == 3)
    assert 0.5 < meeting[0] < 1 and meeting[1] == 1.5
    assert sorted(count for count in ends.values()) == [1, 1, 1, 3]


def test_with_one_replicate_it_runs_half_way_on_a_log_axis_too() -> None:
    x, y = scale([1.0, 100.0], "log"), scale([0.0, 1.0, 2.0])
    lines = boundary(x, y, two_phases(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])))
    (line,) = lines
    np.testing.assert_allclose(line[:, 0], 1.0)  # log10 of the geometric mean


def test_no_line_is_drawn_beside_a_hole() -> None:
    share = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    share[0, 0] = np.nan
    lines = boundary(scale([0.0, 1.0]), scale(range(4)), two_phases(share))
    assert [line[:, 1].min() for line in lines] == [1]


def test_no_line_crosses_the_gap_to_a_column_set_apart_or_a_text_axis() -> None:
    apart = scale([0.0, 1.0, 10.0], "log")
    share = two_phases(np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    assert boundary(apart, scale([0.0, 1.0]), share) == []
    assert boundary(scale(["a", "b", "c"]), scale([0.0, 1.0]), share) == []


def test_an_island_is_enclosed() -> None:
    share = np.zeros((7, 7))
    share[2:5, 2:5] = 1
    (line,) = lines_of(np.arange(7.0), np.arange(7.0), share)
    inside = Outline(line)
    assert inside.contains_point((3, 3))
    assert not inside.contains_point((1, 3))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("low", "joined"), [(0.4, True), (0.0, False)])
def test_in_a_saddle_the_mean_decides_which_corners_are_joined(turned: bool, low: float, joined: bool) -> None:
    share = np.array([[0.9, low], [low, 0.9]])[:, :: -1 if turned else 1]
    lines = lines_of(np.arange(2.0), np.arange(2.0), share)
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

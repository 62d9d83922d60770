"""Layout of an axis."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.phases.scale import AxisScale, axis_scale
from orchestrator.phases.text import PALETTE, number

values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30, unique_by=lambda v: float(f"{v:.9g}"))


def scale(*given: object, spacing: str = "values") -> AxisScale:
    return axis_scale("x", label="x", spacing=spacing, values=given)  # type: ignore[arg-type]


@given(values=values, zero=st.booleans(), absent=st.booleans(), spacing=st.sampled_from(["linear", "log", "values"]))
def test_every_value_has_a_separate_cell(values: list[float], zero: bool, absent: bool, spacing: str) -> None:
    laid = scale(*values, *[0.0] * zero, *[None] * absent, spacing=spacing)
    assert set(laid.values) == {*values, *[0.0] * zero, *[None] * absent}
    assert (laid.low < laid.position).all()
    assert (laid.position < laid.high).all()
    assert (laid.high[:-1] <= laid.low[1:] + 1e-9 * np.abs(laid.low[1:])).all()
    edges, index = laid.edges()
    assert sorted(i for i in index if i >= 0) == list(range(len(laid.values)))
    assert len(edges) == len(index) + 1


@given(values=values)
def test_a_zero_on_a_log_axis_has_a_separate_column_and_a_tick(values: list[float]) -> None:
    laid = scale(*values, 0.0, spacing="log")
    if len(values) > 1:
        assert laid.kind == "log"
        assert laid.values[0] == 0
        assert laid.low[1] > laid.high[0]
        assert laid.ticks()[1][0] == "0"
        assert laid.edges()[1].tolist()[:2] == [0, -1]


def test_edges_of_a_log_axis_are_geometric_means() -> None:
    laid = scale(1.0, 10.0, 100.0, spacing="log")
    np.testing.assert_allclose(laid.to_value(laid.high), [math.sqrt(10), math.sqrt(1000), 10**2.5])


def test_edges_of_uneven_values_lie_between_their_neighbours() -> None:
    laid = scale(0.0, 1.0, 4.0, spacing="linear")
    np.testing.assert_allclose(laid.low, [-0.5, 0.5, 2.5])
    np.testing.assert_allclose(laid.high, [0.5, 2.5, 5.5])


@pytest.mark.parametrize(
    ("spacing", "given", "kind"),
    [
        ("integer", (2, 3, 300), "log"),
        ("linear", (1, 10, 1000), "linear"),
        ("values", (2, 9, 27, 61, 135, 300), "log"),
        ("values", (1, 10, 20, 30, 40), "linear"),
        ("values", (0, 5, 15, 20), "linear"),
        ("values", ("tin", "iron"), "category"),
        ("values", (False, True), "category"),
    ],
)
def test_the_scale_is_the_one_that_spaces_the_values_evenly(spacing: str, given: tuple[object, ...], kind: str) -> None:
    assert scale(*given, spacing=spacing).kind == kind


def test_text_keeps_the_order_of_the_file_and_unset_values_come_first() -> None:
    laid = scale("tin", "iron", None)
    assert [laid.text(i) for i in range(3)] == ["not set", "tin", "iron"]


@given(values=values, spacing=st.sampled_from(["linear", "log"]), most=st.integers(3, 12))
def test_ticks_are_few_and_lie_on_the_axis(values: list[float], spacing: str, most: int) -> None:
    laid = scale(*values, spacing=spacing)
    at, texts = laid.ticks(most)
    assert len(at) == len(texts) <= most + 2
    low, high = laid.span
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= u <= high + slack for u in at)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (61, "61"), (0.15, "0.15"), (1e-5, "10⁻⁵"), (2.5e-7, "2.5×10⁻⁷"), (100_000, "10⁵"), (-3.0, "-3")],
)
def test_numbers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


# Viénot, Brettel, Mollon 1999: what a dichromat sees, as a matrix on linear RGB.
_SEEN = {
    "normal": np.eye(3),
    "protanope": np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]),
    "deuteranope": np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]),
}


def _lab(colour: str, seen: np.ndarray) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(seen @ linear, 0, 1) / (to_xyz @ np.ones(3))
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", _SEEN)
def test_the_first_nine_colours_are_distinct_for_colour_blind_readers_too(eye: str) -> None:
    lab = [_lab(colour, _SEEN[eye]) for colour in PALETTE[:9]]
    distances = [float(np.linalg.norm(a - b)) for i, a in enumerate(lab) for b in lab[:i]]
    assert min(distances) > 20  # CIE76; 2.3 is just noticeable

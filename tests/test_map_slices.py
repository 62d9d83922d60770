"""The slices of a map over more than two axes: where they are, which trials they show, and what they are called."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_for_phases import Melt, MeltParams, axis, by_id, product, row
from matplotlib.figure import Figure
from surfaces_for_phases import Formula, above, evidence, one_map

from jobs.job import specs
from orchestrator.axes import Axis
from orchestrator.phases.compare import Side, compare, side
from orchestrator.phases.diagram import phase_diagram
from orchestrator.phases.draw.html import page_of
from orchestrator.phases.draw.html_surface import map_view
from orchestrator.phases.draw.panels import panels_of
from orchestrator.phases.draw.png_compare import draw_comparison
from orchestrator.phases.draw.png_surface import draw_surface
from orchestrator.phases.map.box import BoxAxis, cut
from orchestrator.phases.map.surface_map import held_positions
from orchestrator.phases.style import FigureStyle, drawn_as
from orchestrator.phases.table import TableNote, collect

SPEED = BoxAxis(name="speed", label="speed", kind="linear", low=0.0, high=1.0)
LABELS = FigureStyle(labels={"kind": r"sort $\kappa$", "heat": "warmth"})
AXIS = {"name": "heat", "label": "heat"}


@pytest.mark.parametrize("kind", ["linear", "log"])
@given(most=st.integers(1, 16), low=st.floats(1e-4, 10), length=st.floats(0.1, 1e4), x=st.floats(0, 1))
def test_a_slice_lies_among_its_trials_and_every_trial_in_one_slice(
    kind: str, most: int, low: float, length: float, x: float
) -> None:
    one = BoxAxis(**AXIS, kind=kind, low=low, high=low + length)  # type: ignore[arg-type]
    at, bounds = one.cuts(most)
    ends = np.concatenate([[0], bounds, [1]])
    assert len(at) == most and (ends[:-1] < at).all() and (at < ends[1:]).all()
    parts = held_positions(np.array([[0, 0, x]]), [SPEED, SPEED, one], most)
    assert sum(len(near) for _, near in parts) == 1


@given(values=st.lists(st.floats(0.1, 100), min_size=2, max_size=20, unique=True), most=st.integers(1, 8))
def test_the_slices_of_an_axis_with_values_are_at_its_values(values: list[float], most: int) -> None:
    listed = tuple(sorted(values))
    one = BoxAxis(**AXIS, kind="log", low=listed[0], high=listed[-1], listed=listed)
    at = one.value(one.cuts(most)[0])
    assert np.isclose(at[:, None], listed, rtol=1e-9).any(axis=1).all()
    assert len(at) == len(listed) or len(listed) > most


def test_without_values_a_slice_is_at_a_value_with_few_digits() -> None:
    assert SPEED.value(SPEED.cuts(6)[0]).round(12).tolist() == [0.08, 0.25, 0.4, 0.6, 0.75, 0.9]
    decades = BoxAxis(**AXIS, kind="log", low=1e-4, high=10)
    assert [float(f"{v:.12g}") for v in decades.value(decades.cuts(5)[0])] == [3e-4, 3e-3, 0.03, 0.3, 3]


def box_of(values: Axis, trials: int = 40) -> BoxAxis:
    axes = (axis("heat", 1.0, 2.0, 4.0), axis("load", 0.1, 0.5, 0.9), values)
    made = product(axes)[:trials]
    diagram = phase_diagram("melting", axes, Melt.phases, collect(made, by_id(*(row(t) for t in made))), {})
    (box,) = (box for box in cut(diagram, axes, listed=True)[0].axes if box.name == values.name)
    return box


def test_a_search_anywhere_between_the_ends_has_no_values_unless_they_are_whole_numbers() -> None:
    assert box_of(axis("width", 2, 4, 8, scale="integer")).listed == (2, 4, 8)
    assert box_of(replace(axis("width", 2, 8, scale="integer"), between=True)).listed == tuple(range(2, 9))
    assert box_of(replace(axis("width", 2, 800, scale="integer"), between=True)).listed == ()
    assert box_of(replace(axis("speed", 0.5, 2.0, scale="linear"), between=True)).listed == ()


def titles_of(figure: Figure) -> list[str]:
    return [title for ax in figure.axes if (title := ax.get_title(loc="left"))]


def test_the_title_of_a_slice_says_where_it_is_and_which_trials_it_shows() -> None:
    x = np.array([[0.2, 0.3, z] for z in (0.25, 0.4, 0.45, 0.8)])
    solid = Formula(heights=above(lambda x: x[:, 2] - x[:, 1]), d=3)
    fitted = one_map(solid, evidence(x, solid.label(x)))
    kept: list[Figure] = []
    with drawn_as(FigureStyle(labels={"speed": r"$v$"})):
        draw_surface("a", "", fitted, panels_of(fitted, ()), None, kept.append)
    assert titles_of(kept[0]) == [
        "$v$ 0.08\n0 trials", "$v$ 0.25\n1 trial", "$v$ 0.4\n2 trials, 0.4 to 0.45", "$v$ 0.6\n0 trials",
        "$v$ 0.75\n1 trial, 0.8", "$v$ 0.9\n0 trials",
    ]  # fmt: skip


def test_slices_of_the_page_have_the_names_of_the_style() -> None:
    axes = (axis("heat", 1.0, 2.0, 4.0), axis("load", 0.1, 0.5, 0.9), axis("kind", "iron", "tin"))
    trials = product(axes)
    table = collect(trials, by_id(*(row(t, "solid", melting_step=3.0) for t in trials)))
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    solid = Formula(heights=above(lambda x: x[:, 2] - x[:, 1]), d=3)
    x = np.random.default_rng(0).random((9, 3))
    fitted = one_map(solid, evidence(x, solid.label(x)))
    with drawn_as(FigureStyle(labels={"kind": r"sort $\kappa$", "melting_step": "$t_1$", "speed": "$v$"})):
        views = page_of(diagram, table, ("melting_step",), {})["views"]
        first = map_view(fitted, panels_of(fitted, ()), diagram)["slices"][0]["title"]
    assert [view["name"] for view in views[:2]] == ["phase", "t1"]
    assert [part["title"] for part in views[0]["slices"]] == ["sort κ iron", "sort κ tin"]
    assert [part["where"] for part in views[0]["slices"]] == [{"sort κ": "iron"}, {"sort κ": "tin"}]
    assert first.startswith("v 0.08  ·  ")


def test_the_titles_of_a_comparison_have_the_names_of_the_style(tmp_path: Path) -> None:
    axes = (axis("heat", 1.0, 2.0, 4.0, 8.0), axis("load", 0.1, 0.4, 0.6, 0.9), axis("kind", "iron", "tin"))
    trials = product(axes)

    def of(name: str, level: float) -> Side:
        rows = by_id(*(row(t, "liquid" if t.params.load > level else "solid") for t in trials))  # type: ignore[attr-defined]
        note = TableNote(name=name, phases=Melt.phases, axes=axes, search=False)
        return side(note, collect(trials, rows))

    kept: list[Figure] = []
    with drawn_as(LABELS):
        draw_comparison(compare(of("one", 0.3), of("two", 0.7)), kept.append)
    assert [title for title in titles_of(kept[0]) if "difference" in title] == [
        r"difference, sort $\kappa$ iron",
        r"difference, sort $\kappa$ tin",
    ]

"""Laws of the phase diagram."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_for_phases import Melt, MeltParams, axis, by_id, product, row, trial

from jobs.job import Censored, specs
from orchestrator.axes import Axis
from orchestrator.phases.diagram import CellValues, PhaseDiagram, cell_values, phase_diagram
from orchestrator.phases.layout import grid_of, lay_out, markers
from orchestrator.phases.table import ObservationColumn, collect
from orchestrator.records import Status
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

HEAT, LOAD = axis("heat", 1.0, 2.0, 4.0), axis("load", 0.0, 0.5)


def diagram_of(
    axes: Sequence[Axis], trials: Sequence[Trial], rows: dict[str, TrialRow], most: int | None = None
) -> PhaseDiagram:
    return phase_diagram("d", axes, Melt.phases, collect(trials, rows), specs(MeltParams), most_cells=most)


def cell_at(diagram: PhaseDiagram, **at: object) -> int:
    wanted = [diagram.axes[diagram.axis_index(n)].values.index(v) for n, v in at.items()]  # type: ignore[arg-type]
    columns = [diagram.axis_index(name) for name in at]
    (cell,) = np.flatnonzero((diagram.codes[:, columns] == wanted).all(axis=1))
    return int(cell)


@given(
    labels=st.lists(
        st.sampled_from(["solid", "liquid", "gas", "plasma", "failed", "missing"]), min_size=24, max_size=24
    )
)
def test_every_trial_is_counted_once_in_its_cell(labels: list[str]) -> None:
    trials = product([HEAT, LOAD], replicates=4)
    rows = by_id(
        *(
            row(t, None if label == "failed" else label, Status.FAILED if label == "failed" else Status.FINISHED)
            for t, label in zip(trials, labels, strict=True)
            if label != "missing"
        )
    )
    diagram = diagram_of([HEAT, LOAD], trials, rows)
    truth = Counter(
        ((t.params.heat, t.params.load), label)
        for t, label in zip(trials, labels, strict=True)  # type: ignore[attr-defined]
    )
    for heat in HEAT.values:
        for load in LOAD.values:
            cell, here = cell_at(diagram, heat=heat, load=load), (heat, load)
            counts = dict(zip(diagram.labels, diagram.counts[cell].tolist(), strict=True))
            counts |= {"failed": int(diagram.failed[cell]), "missing": int(diagram.missing[cell])}
            assert counts == {label: truth[here, label] for label in counts}
            if diagram.labelled[cell]:
                assert diagram.agreement[cell] == max(diagram.counts[cell]) / sum(diagram.counts[cell])
            else:
                assert diagram.majority[cell] == -1
                assert math.isnan(diagram.agreement[cell])


def test_labels_are_the_jobs_phases_in_order_and_then_unexpected_ones() -> None:
    trials = product([HEAT])
    diagram = diagram_of([HEAT], trials, by_id(*map(row, trials, ["plasma", "gas", "ash"])))
    assert diagram.labels == ("solid", "liquid", "gas", "ash", "plasma")


def test_a_tie_goes_to_the_first_label_and_the_other_is_the_runner_up() -> None:
    first, second = trials = [trial(0), trial(1)]
    diagram = diagram_of([HEAT], trials, by_id(row(first, "gas"), row(second, "liquid")))
    assert diagram.labels[diagram.majority[0]] == "liquid"
    assert diagram.labels[diagram.runner_up[0]] == "gas"
    assert diagram.agreement[0] == 0.5


def test_axes_with_one_value_are_left_out() -> None:
    axes = [HEAT, axis("width", 5), axis("kind", "tin", "iron")]
    diagram = diagram_of(axes, product(axes), {})
    assert [a.name for a in diagram.axes] == ["heat", "kind"]
    assert diagram.missing.tolist() == [1] * 6


def test_without_varying_axes_the_diagram_is_one_cell() -> None:
    diagram = diagram_of([], [trial(0), trial(1)], {})
    assert diagram.codes.shape == (1, 0)
    assert diagram.replicates == 2
    assert lay_out(diagram).x is None


def test_a_zipped_group_is_one_coordinate_with_partners() -> None:
    axes = [axis("heat", 1.0, 2.0, 3.0, group=0), axis("width", 10, 20, 30, group=0), LOAD]
    trials = [trial(heat=h, width=w, load=v) for h, w in ((1.0, 10), (2.0, 20), (3.0, 30)) for v in LOAD.values]
    diagram = diagram_of(axes, trials, {})
    assert [a.name for a in diagram.axes] == ["heat", "load"]
    assert diagram.partners == {"heat": ("width",)}
    assert len(diagram.codes) == 6


def test_a_zipped_group_keeps_two_axes_if_neither_alone_identifies_the_settings() -> None:
    pairs = ((1.0, 10), (1.0, 20), (2.0, 20))
    axes = [axis("heat", 1.0, 1.0, 2.0, group=0), axis("width", 10, 20, 20, group=0)]
    diagram = diagram_of(axes, [trial(heat=h, width=w) for h, w in pairs], {})
    assert len(diagram.axes) == 2
    assert len(diagram.codes) == 3


def test_a_conditional_axis_is_not_set_where_its_condition_fails() -> None:
    axes = [axis("stirred", False, True), axis("speed", 0.1, 0.2, when={"stirred": (True,)})]
    trials = [trial(stirred=False), trial(stirred=True, speed=0.1), trial(stirred=True, speed=0.2)]
    diagram = diagram_of(axes, trials, {})
    assert diagram.axes[1].values == (None, 0.1, 0.2)
    cells = {tuple(a.text(i) for a, i in zip(diagram.axes, code, strict=True)) for code in diagram.codes.tolist()}
    assert cells == {("false", "not set"), ("true", "0.1"), ("true", "0.2")}


@given(order=st.permutations(range(12)))
def test_the_order_of_trials_is_irrelevant(order: list[int]) -> None:
    trials = product([HEAT, LOAD], replicates=2)
    rows = by_id(*(row(t, Melt.phases[i % 3], x=float(i)) for i, t in enumerate(trials)))
    first, second = (diagram_of([HEAT, LOAD], ts, rows) for ts in (trials, [trials[i] for i in order]))
    np.testing.assert_array_equal(first.counts, second.counts)
    np.testing.assert_array_equal(first.observations["x"].median, second.observations["x"].median)


def reduce(*seen: float | Censored) -> CellValues:
    cell = np.zeros(len(seen), dtype=np.int64)
    censored = np.array([isinstance(v, Censored) for v in seen])
    value = np.array([math.nan if isinstance(v, Censored) else v for v in seen])
    bound = np.array([v.at if isinstance(v, Censored) else math.nan for v in seen])
    return cell_values(cell, 1, ObservationColumn(value=value, reached=~censored, censored_at=bound, censored=censored))


@pytest.mark.parametrize(
    ("seen", "median"),
    [
        ((1.0, 2.0, 9.0), 2.0),
        ((1.0, 2.0), 1.5),
        ((1.0, 2.0, Censored(5.0)), 2.0),
        ((1.0, Censored(5.0)), None),
        ((1.0, Censored(5.0), Censored(5.0)), None),
        ((Censored(5.0),), None),
        ((1.0, 2.0, math.nan), 2.0),
        ((math.inf, math.inf, 3.0), None),
    ],
)
def test_values_that_were_not_reached_sort_after_every_number(
    seen: tuple[float | Censored, ...], median: float | None
) -> None:
    found = reduce(*seen)
    if median is None:
        assert math.isnan(found.median[0])
        assert found.not_reached[0]
    else:
        assert found.median[0] == median
        assert not found.not_reached[0]


@given(data=st.lists(st.tuples(st.integers(0, 4), st.floats(-1e6, 1e6)), min_size=1, max_size=40))
def test_medians_and_ranges_are_those_of_each_cell(data: list[tuple[int, float]]) -> None:
    cell, value = np.array([c for c, _ in data]), np.array([v for _, v in data])
    yes, no = np.ones(len(data), dtype=bool), np.zeros(len(data), dtype=bool)
    found = cell_values(
        cell, 5, ObservationColumn(value=value, reached=yes, censored_at=np.full(len(data), np.nan), censored=no)
    )
    for c in range(5):
        own = value[cell == c]
        if len(own):
            np.testing.assert_allclose(found.median[c], np.median(own), rtol=1e-12, atol=1e-12)
            assert (found.low[c], found.high[c]) == (own.min(), own.max())
        else:
            assert np.isnan([found.median[c], found.low[c], found.high[c]]).all()
            assert not found.not_reached[c]


@given(most=st.integers(4, 60))
def test_joining_cells_keeps_every_trial(most: int) -> None:
    axes = [axis("heat", *(0.0, *np.geomspace(0.1, 10, 16).tolist()), scale="log"), axis("width", *range(1, 10))]
    trials = product(axes, replicates=2)
    whole = diagram_of(axes, trials, by_id(*(row(t, Melt.phases[i % 3]) for i, t in enumerate(trials))))
    joined = diagram_of(axes, trials, by_id(*(row(t, Melt.phases[i % 3]) for i, t in enumerate(trials))), most)
    np.testing.assert_array_equal(joined.counts.sum(axis=0), whole.counts.sum(axis=0))
    assert len(joined.codes) <= max(most, 8 * 2)
    assert joined.joined > 1
    assert joined.axes[0].values[0] == 0  # what is set apart stays apart


def test_x_and_y_are_the_axes_with_most_numbers_and_the_rest_are_slices() -> None:
    axes = [axis("kind", "tin", "iron"), HEAT, axis("width", *range(1, 8)), LOAD]
    diagram = diagram_of(axes, product(axes), {})
    layout = lay_out(diagram)
    assert layout.x is not None
    assert layout.y is not None
    assert {diagram.axes[layout.x].name, diagram.axes[layout.y].name} == {"width", "heat"}
    assert [panel.title for panel in layout.panels] == [
        "kind tin, load 0",
        "kind tin, load 0.5",
        "kind iron, load 0",
        "kind iron, load 0.5",
    ]
    assert sorted(np.concatenate([panel.cells for panel in layout.panels])) == list(range(len(diagram.codes)))


def test_the_axis_with_many_values_is_horizontal_and_the_other_gives_the_line_plots() -> None:
    axes = [axis("load", 0.0, 0.15), axis("width", *range(1, 20), scale="integer")]
    diagram = diagram_of(axes, product(axes), {})
    layout = lay_out(diagram)
    assert layout.x is not None
    assert diagram.axes[layout.x].name == "width"
    assert [panel.title for panel in layout.lines] == ["load 0", "load 0.15"]


def test_scattered_settings_are_not_a_grid() -> None:
    settings = np.random.default_rng(0).random((40, 2)).tolist()
    diagram = diagram_of([HEAT, LOAD], [trial(heat=h, load=v) for h, v in settings], {})
    assert len(diagram.codes) == 40
    assert grid_of(diagram, lay_out(diagram).panels[0], 0, 1) is None


def test_a_metric_marks_the_axis_and_the_setting_that_it_names() -> None:
    axes = [axis("width", *range(1, 20)), axis("load", 0.0, 0.15)]
    layout = lay_out(diagram := diagram_of(axes, product(axes), {}))
    metrics = {
        "interpolation_width/load 0.15": 12.0,
        "test_error_peak_width/load=0.15": 12.0,
        "interpolation_width/load 0.0": 7.0,
        "peak_heat": 3.0,
        "phase/solid": 4.0,
        "widest_width": 19.0,
    }
    found = [[(m.name, m.value) for m in markers(metrics, diagram.axes[0], panel)] for panel in layout.lines]
    assert found == [
        [("interpolation", 7.0), ("widest", 19.0)],
        [("interpolation, test error peak", 12.0), ("widest", 19.0)],
    ]

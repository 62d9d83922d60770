"""The PNG pictures show the content of the diagram: colours are read back from the pixels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_for_phases import Melt, MeltParams, axis, by_id, product, row, trial
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from jobs.job import Censored, specs
from orchestrator.axes import Axis
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.draw.png_lines import draw_curves
from orchestrator.phases.draw.png_map import draw_map
from orchestrator.phases.layout import lay_out
from orchestrator.phases.scale import axis_scale
from orchestrator.phases.style import FigureStyle, drawn_as
from orchestrator.phases.table import collect
from orchestrator.phases.text import NOT_REACHED, PALETTE, label_colour
from orchestrator.records import Status
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

HEAT = axis("heat", 0.0, 0.1, 1.0, 10.0, scale="log")
LOAD = axis("load", 0.0, 0.5, 1.0)


def drawn(axes: Sequence[Axis], trials: Sequence[Trial], rows: dict[str, TrialRow]) -> PhaseDiagram:
    return phase_diagram("a diagram", axes, Melt.phases, collect(trials, rows), specs(MeltParams))


class Picture:
    """A written picture whose panels can be asked for the colour at a place in axis units of their own."""

    def __init__(self, path: Path, figure: Figure) -> None:
        self.pixels, self.figure = imread(path)[:, :, :3], figure

    def at(self, panel: int, u: float, v: float) -> str:
        ax = self.figure.axes[panel]
        column, line = ax.transData.transform((u, v))
        red, green, blue = (round(float(c) * 255) for c in self.pixels[-1 - int(line), int(column)])
        return f"#{red:02X}{green:02X}{blue:02X}"

    def patch(self, panel: int, low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
        ax = self.figure.axes[panel]
        (left, bottom), (right, top) = ax.transData.transform([low, high]).astype(int)
        return self.pixels[len(self.pixels) - top : len(self.pixels) - bottom, left:right]


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Picture]:
    """Draw for real, and keep the figure to know where on it a cell is."""
    kept: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: Any, **more: Any) -> None:
        save(self, *args, **more)
        # From here on its transforms are those of the file.
        self.set_dpi(more["dpi"])
        kept.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)

    def draw(draw_it: Callable[..., None], diagram: PhaseDiagram, *more: Any) -> Picture:
        path = tmp_path / "picture.png"
        draw_it(diagram, lay_out(diagram), *more, path)
        return Picture(path, kept[-1])

    return draw


def test_every_cell_has_the_colour_of_its_label(picture: Callable[..., Picture]) -> None:
    trials = product([HEAT, LOAD])
    labels = {t.id: Melt.phases[(i * 7 + i // 3) % 3] for i, t in enumerate(trials)}
    diagram = drawn([HEAT, LOAD], trials, by_id(*(row(t, labels[t.id]) for t in trials)))
    made = picture(draw_map, diagram, Melt.headline)
    heat, load = diagram.axes
    for t in trials:
        i, j = heat.values.index(t.params.heat), load.values.index(t.params.load)  # type: ignore[attr-defined]
        # Off the centre: boundaries run through centres and along edges.
        u = heat.low[i] + 0.35 * (heat.high[i] - heat.low[i])
        v = load.low[j] + 0.4 * (load.high[j] - load.low[j])
        near = [made.at(0, u + k * 0.05, v + m * 0.03) for k in (-1, 0, 1) for m in (-1, 0, 1)]
        assert near.count(label_colour(Melt.phases.index(labels[t.id]))) >= 5, t.params
    gap = (heat.high[0] + heat.low[1]) / 2
    assert made.at(0, gap, load.position[1]) == "#FFFFFF"


def test_a_split_cell_shows_both_labels_by_their_shares(picture: Callable[..., Picture]) -> None:
    axes = [axis("heat", 1.0, 2.0, scale="linear"), axis("load", 0.0, 1.0)]
    trials = product(axes, replicates=4)
    rows = by_id(*(row(t, "gas" if t.params.heat == 1 and t.replicate == 0 else "solid") for t in trials))  # type: ignore[attr-defined]
    diagram = drawn(axes, trials, rows)
    made = picture(draw_map, diagram, ())
    heat, load = diagram.axes
    patch = made.patch(0, (heat.low[0], load.low[0]), (heat.high[0], load.high[0]))
    gas = np.array([int(label_colour(2)[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    assert np.isclose(patch, gas, atol=0.01).all(axis=2).mean() == pytest.approx(0.25, abs=0.02)
    other = made.patch(0, (heat.low[1], load.low[0]), (heat.high[1], load.high[0]))[4:-4, 4:-4]
    assert not np.isclose(other, gas, atol=0.01).all(axis=2).any()


def test_holes_are_hatched_and_failed_ones_darker_than_missing_ones(picture: Callable[..., Picture]) -> None:
    axes = [axis("heat", 1.0, 2.0, 3.0, scale="linear"), axis("load", 0.0, 1.0)]
    trials = product(axes)
    at = {(t.params.heat, t.params.load): t for t in trials}  # type: ignore[attr-defined]
    failed, missing = at[2.0, 0.0], at[3.0, 1.0]
    rows = by_id(*(row(t) for t in trials if t not in (failed, missing)), row(failed, None, Status.FAILED))
    diagram = drawn(axes, trials, rows)
    made = picture(draw_map, diagram, ())
    heat, load = diagram.axes
    inks = []
    for i, j in ((1, 0), (2, 1)):
        patch = made.patch(0, (heat.low[i], load.low[j]), (heat.high[i], load.high[j]))[6:-6, 6:-6]
        assert np.ptp(patch, axis=2).max() < 0.03, "a hole has no phase's colour"
        assert 0.3 < (patch.min(axis=2) > 0.99).mean() < 0.98, "a hole is white with lines"
        inks.append(float(1 - patch.mean()))
    assert inks[0] > 1.5 * inks[1]


def test_values_that_were_not_reached_are_grey_in_the_heat_map(picture: Callable[..., Picture]) -> None:
    axes = [axis("heat", 1.0, 2.0, 3.0, scale="linear"), axis("load", 0.0, 1.0)]
    trials = product(axes)
    rows = by_id(
        *(row(t, "solid", melting_step=Censored(1000.0) if t.params.heat == 3 else t.params.heat) for t in trials)  # type: ignore[attr-defined]
    )
    diagram = drawn(axes, trials, rows)
    made = picture(draw_map, diagram, ("melting_step",))
    panel = next(i for i, ax in enumerate(made.figure.axes) if ax.get_title(loc="left") == "melting step")
    heat, load = diagram.axes
    off = made.patch(panel, (heat.low[2], load.low[0]), (heat.high[2], load.high[1]))[4:-4, 4:-4]
    assert np.ptp(off, axis=2).max() < 0.03
    grey = int(NOT_REACHED[1:3], 16) / 255
    assert np.isclose(off, grey, atol=0.01).all(axis=2).mean() > 0.6
    assert made.at(panel, heat.position[0], load.position[0]) == "#440154"  # the ends of viridis
    assert made.at(panel, heat.position[1], load.position[0]) == "#FDE725"


def test_lines_pass_through_the_medians_and_the_strip_shows_the_phases(picture: Callable[..., Picture]) -> None:
    axes = [axis("width", 2, 8, 30, 120, scale="integer")]
    trials = product(axes, replicates=3)
    error = {2: 0.9, 8: 0.2, 30: 0.6, 120: 0.1}
    phase = {2: "solid", 8: "liquid", 30: "liquid", 120: "gas"}
    rows = by_id(
        *(row(t, phase[t.params.width], final_error=error[t.params.width] + 0.01 * (t.replicate - 1)) for t in trials)  # type: ignore[attr-defined]
    )
    diagram = drawn(axes, trials, rows)
    made = picture(draw_curves, diagram, ("final_error",), {"melting_width": 30.0})
    (width,) = diagram.axes
    for i, value in enumerate(width.values):
        assert made.at(0, width.position[i], error[value]) == "#222222"  # type: ignore[index]
        strip = made.at(1, width.position[i], 0.5)
        assert strip == label_colour(Melt.phases.index(phase[value]))  # type: ignore[index]
    (legend,) = [found for ax in made.figure.axes if (found := ax.get_legend()) is not None]
    assert [text.get_text() for text in legend.get_texts()][:2] == ["final error", "melting: 30"]
    mark = made.patch(0, (width.position[2] - 0.02, 0.75), (width.position[2] + 0.02, 0.85))
    assert (mark.min(axis=2) < 0.6).any()


def test_the_range_has_no_upper_end_where_a_replicate_was_not_reached(picture: Callable[..., Picture]) -> None:
    axes = [axis("width", 2, 8, 30, scale="integer")]
    trials = product(axes, replicates=5)
    steps: dict[int, Sequence[float | Censored]] = {
        2: [433, 534, 811, Censored(1000), Censored(1000)],
        8: [Censored(1000)] * 5,
        30: [100, 200, 300, 400, 500],
    }
    rows = by_id(*(row(t, melting_step=steps[t.params.width][t.replicate]) for t in trials))  # type: ignore[attr-defined]
    made = picture(draw_curves, drawn(axes, trials, rows), ("melting_step",), {})
    (panel, *_), (width,) = made.figure.axes, drawn(axes, trials, rows).axes
    (band,) = panel.collections
    (corners,) = (path.vertices for path in band.get_paths())
    top = panel.get_ylim()[1]
    assert top > 1000
    ends = [corners[corners[:, 0] == u, 1] for u in width.position]
    assert [(end.min(), end.max()) for end in ends] == [(433, top), (1000, top), (100, 500)]
    legends = [found for ax in made.figure.axes if (found := ax.get_legend()) is not None]
    texts = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert "range of the replicates; no upper end where one did not reach it" in texts


def test_panels_side_by_side_share_one_scale(picture: Callable[..., Picture]) -> None:
    axes = [axis("width", 2, 8, 30, 120, scale="integer"), axis("load", 0.0, 0.5, 1.0)]
    trials = product(axes)
    rows = by_id(*(row(t, final_error=0.1 + 5 * t.params.load) for t in trials))  # type: ignore[attr-defined]
    made = picture(draw_curves, drawn(axes, trials, rows), ("final_error",), {})
    panels = [ax for ax in made.figure.axes if ax.lines]
    assert len(panels) == 3
    assert len({ax.get_ylim() for ax in panels}) == 1
    low, high = panels[0].get_ylim()
    assert low < 0.1
    assert high > 5.1


def assert_legible(figure: Figure) -> None:
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = {id(t): t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()}.values()
    boxes = [(t.get_text(), t.get_tightbbox(renderer)) for t in texts]
    assert len(boxes) > 10
    width, height = figure.bbox.size
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        for other, second in boxes[:i]:
            overlap = min(box.x1, second.x1) - max(box.x0, second.x0), min(box.y1, second.y1) - max(box.y0, second.y0)
            assert min(overlap) <= 1, (text, other)


def varied(trials: Sequence[Trial]) -> dict[str, TrialRow]:
    labels = ("solid", "liquid", "gas", "an unexpected phase")
    return by_id(
        *(
            row(t, labels[i % 4], melting_step=10.0 ** (i % 5), final_error=0.1 * i)
            for i, t in enumerate(trials)
            if i % 11
        )
    )


@pytest.mark.parametrize("count", [1, 2, 5, 12, 13])
def test_texts_of_a_map_do_not_overlap_or_leave_the_picture(picture: Callable[..., Picture], count: int) -> None:
    axes = [HEAT, axis("width", *range(1, 8), scale="integer"), axis("load", *np.linspace(0, 1, count).tolist())]
    trials = product(axes, replicates=2)
    assert_legible(picture(draw_map, drawn(axes, trials, varied(trials)), Melt.headline).figure)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_texts_of_line_plots_do_not_overlap_or_leave_the_picture(picture: Callable[..., Picture], count: int) -> None:
    axes = [axis("width", 2, 3, 5, 9, 16, 40, 300, scale="integer"), axis("load", *np.linspace(0, 1, count).tolist())]
    trials = product(axes, replicates=2)
    made = picture(draw_curves, drawn(axes, trials, varied(trials)), Melt.headline, {"peak_width": 16.0})
    assert_legible(made.figure)


def test_long_names_on_an_axis_do_not_overlap(picture: Callable[..., Picture]) -> None:
    names = [f"quite a long name {i}" for i in range(8)]
    laid = axis_scale("kind", label="kind", spacing="values", values=names)
    axes = [axis("width", *range(1, 9)), axis("load", 0.0, 1.0)]
    trials = product(axes)
    diagram = drawn(axes, trials, varied(trials))
    named = replace(diagram, axes=(laid, diagram.axes[1]))
    assert_legible(picture(draw_map, named, Melt.headline).figure)


def test_scattered_settings_are_points_of_their_labels_colour(picture: Callable[..., Picture]) -> None:
    trials = [trial(heat=1.0 + i, load=((i * 7) % 12) / 12) for i in range(12)]
    axes = [axis("heat", 1.0, 12.0, scale="linear"), axis("load", 0.0, 1.0, scale="linear")]
    diagram = drawn(axes, trials, by_id(*(row(t, Melt.phases[i % 3]) for i, t in enumerate(trials))))
    made = picture(draw_map, diagram, ())
    for i in range(12):
        assert made.at(0, 1.0 + i, ((i * 7) % 12) / 12) == label_colour(i % 3)


def test_a_users_matplotlib_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    trials = product([HEAT, LOAD])
    diagram = drawn([HEAT, LOAD], trials, by_id(*(row(t) for t in trials)))
    draw_map(diagram, lay_out(diagram), (), tmp_path / "plain.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "savefig.dpi": 20}):
        draw_map(diagram, lay_out(diagram), (), tmp_path / "odd.png")
        assert matplotlib.rcParams["font.size"] == 30
    np.testing.assert_array_equal(imread(tmp_path / "plain.png"), imread(tmp_path / "odd.png"))


def test_a_phase_whose_colour_is_given_to_another_takes_a_free_one() -> None:
    style = FigureStyle(colours={"b": PALETTE[0].lower(), "d": PALETTE[2]})
    with drawn_as(style, ("a", "b", "c", "d")):
        colours = [label_colour(k).upper() for k in range(4)]
    assert colours[1] == PALETTE[0] and colours[3] == PALETTE[2] and len(set(colours)) == 4
    with drawn_as(FigureStyle(colours={"b": "#000000"}), ("a", "b", "c")):
        assert [label_colour(k) for k in range(3)] == [PALETTE[0], "#000000", PALETTE[2]]

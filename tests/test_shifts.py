"""How far a boundary has moved between two sweeps, with its interval."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jobs_for_phases import axis, by_id, row, trial
from matplotlib.figure import Figure

from orchestrator.analyses.view import draw
from orchestrator.analysis.estimate import Estimate
from orchestrator.axes import Axis
from orchestrator.cli import main
from orchestrator.commands.compare import _shifts
from orchestrator.phases.compare import Side, side
from orchestrator.phases.diagram import phase_diagram
from orchestrator.phases.map.surface_map import FittedMap
from orchestrator.phases.style import FigureStyle, drawn_as
from orchestrator.phases.table import TableNote, TrialTable, collect, write_table
from orchestrator.results.shifts import Shift, shift_table, shifts

HEAT = tuple(float(f"{v:.6g}") for v in np.geomspace(0.1, 10, 9))
LOAD = tuple(float(f"{v:.6g}") for v in np.linspace(0, 2, 41))
BOX = (axis("heat", *HEAT, scale="log"), axis("load", *LOAD, scale="linear"))


def melted(moved: float, of_seed: Sequence[float], box: Sequence[Axis] = BOX) -> TrialTable:
    """A grid that melts at load = 1 + moved + log10(heat) / 5, and in each seed elsewhere."""
    trials, rows = [], []
    for values in itertools.product(*(a.values for a in box)):
        settings = dict(zip((a.name for a in box), values, strict=True))
        at = 1 + moved + math.log10(float(settings.get("heat", 1.0))) / 5
        for seed, offset in enumerate(of_seed):
            trials.append(trial(seed, **settings))
            rows.append(row(trials[-1], "liquid" if float(settings["load"]) > at + offset else "solid"))
    return collect(trials, by_id(*rows))


def bare(note: TableNote, table: TrialTable) -> Side:
    """A side of which the map is not needed."""
    diagram = phase_diagram(note.name, note.axes, note.phases, table, {})
    return Side(note=note, table=table, diagram=diagram, map=FittedMap(labels=note.phases, slices=()))


def a_side(moved: float, of_seed: Sequence[float], *, name: str = "one", seed: int | None = 0) -> Side:
    note = TableNote(name=name, phases=("solid", "liquid"), axes=BOX, search=False, job="melt", seed=seed)
    return bare(note, melted(moved, of_seed))


def only(found: list[Shift]) -> Shift:
    (shift,) = found
    return shift


SEEDS = (0.0, -0.2, 0.1, 0.2, -0.1)


@pytest.fixture(scope="module")
def sides() -> dict[str, Side]:
    return {
        "first": a_side(0.0, SEEDS),
        "moved": a_side(0.2, SEEDS),
        "other seeds": a_side(0.2, SEEDS, seed=1),
        "one seed": a_side(0.2, SEEDS[:1]),
        "three seeds": a_side(0.2, SEEDS[:3]),
    }


def test_a_shift_is_found_on_every_line_and_over_all(sides: dict[str, Side]) -> None:
    shift = only(shifts(sides["first"], sides["moved"], "load"))
    assert (shift.boundary, shift.along, shift.is_ratio) == ("solid | liquid", "load", False)
    assert len(shift.lines) == len(HEAT) and not shift.left_out
    assert shift.mean.value == pytest.approx(0.2, abs=0.01) and shift.mean.covers(0.2)
    assert all(line.shift.covers(0.2) and line.seeds == 5 for line in shift.lines)
    assert "5 common seeds, paired" in shift.how
    back = only(shifts(sides["moved"], sides["first"], "load"))
    assert back.mean.value == pytest.approx(-shift.mean.value)


def test_common_seeds_are_paired_and_others_are_not(sides: dict[str, Side]) -> None:
    paired = only(shifts(sides["first"], sides["moved"], "load")).mean
    apart = only(shifts(sides["first"], sides["other seeds"], "load"))
    assert "5 and 5 seeds, not paired" in apart.how and apart.mean.value == pytest.approx(paired.value)
    assert apart.mean.high - apart.mean.low > 2 * (paired.high - paired.low)
    fewer = only(shifts(sides["first"], sides["three seeds"], "load"))
    assert "3 common seeds, paired" in fewer.how and fewer.left_out == ("2 seeds of one of them only (3, 4)",)
    assert fewer.mean.value == pytest.approx(0.2, abs=0.02)


def test_an_interval_is_not_narrower_than_the_grids(sides: dict[str, Side]) -> None:
    same = only(shifts(sides["first"], sides["first"], "load"))
    assert same.mean.value == 0 and same.mean.low < -0.03 and same.mean.high > 0.03  # the spacing is 0.05
    assert same.mean.covers(0)


def test_a_shift_that_is_the_rounding_of_its_places_is_zero() -> None:
    def one_line(*of_seed: int) -> Side:
        loads = tuple(k / 10 for k in range(11))
        trials = [trial(seed, load=load) for seed in range(len(of_seed)) for load in loads]
        melts = [k > last for last in of_seed for k in range(len(loads))]
        rows = (row(t, "liquid" if hot else "solid") for t, hot in zip(trials, melts, strict=True))
        box = (axis("load", *loads, scale="linear"),)
        note = TableNote(name="one", phases=("solid", "liquid"), axes=box, search=False, job="melt", seed=None)
        return bare(note, collect(trials, by_id(*rows)))

    first, second = one_line(1, 2, 4), one_line(2, 4, 1)
    shift = only(shifts(first, second, "load"))
    assert shift.lines[0].first.value != shift.lines[0].second.value, "the two means are to differ by rounding"
    assert shift.lines[0].shift.value == 0 == shift.mean.value


def test_one_seed_has_no_interval(sides: dict[str, Side]) -> None:
    one = only(shifts(sides["first"], sides["one seed"], "load"))
    assert math.isnan(one.mean.low) and "one seed has no interval" in one.how
    assert one.mean.value == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("width", ["single", "double"])
def test_the_figure_of_shifts_on_a_page_is_legible_and_has_the_names_of_the_style(
    sides: dict[str, Side], width: str
) -> None:
    shift = only(shifts(sides["first"], sides["moved"], "load"))
    labels = {"solid": "a crystalline solid", "liquid": "melt", "load": r"training fraction $\alpha \beta$"}
    kept: list[Figure] = []
    with drawn_as(FigureStyle.model_validate({"width": width, "labels": labels})):
        both = [shift, replace(shift, boundary="a further solid | gas")]
        table = shift_table([("moved", both)], "the first of the sweeps")
        assert table is not None
        draw("first", table, kept.append)
    kept[0].draw_without_rendering()
    page, texts = kept[0].bbox, [text for ax in kept[0].axes for text in (ax.yaxis.label, ax._left_title)]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) >= 3
    for box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
    assert [ax.get_title(loc="left").replace("\n", " ") for ax in kept[0].axes] == [
        "a crystalline solid | melt",
        "a further solid | gas",
    ]


def test_on_a_logarithmic_axis_it_is_a_ratio_and_lines_without_a_crossing_are_left_out(sides: dict[str, Side]) -> None:
    pair = [a_side(moved, (0.0, 0.04)) for moved in (0.0, 0.1)]
    shift = only(shifts(*pair, "heat"))
    assert shift.is_ratio and shift.left_out and shift.lines
    table = shift_table([("moved", [shift])], "first")
    assert table is not None
    ratio = table.rows[0]["shift"]
    assert isinstance(ratio, Estimate)
    assert ratio.value == pytest.approx(10**-0.5, rel=0.25) and ratio.covers(10**-0.5)
    (note,) = (note for note in table.notes if "left out" in note)
    said = "4 lines on which a seed of one of them does not cross (load 0.85, load 0.9, load 1.25, load 1.3)"
    assert note == f"moved, liquid | solid: left out: {said}"
    assert table.figure is not None and table.figure.y_log
    assert shifts(sides["first"], sides["moved"])[0].along == "load"  # most lines in common


def test_intervals_cover_the_shift_as_often_as_they_say() -> None:
    """The step of the grid is small beside the spread of the seeds here, so that the bootstrap is what is tested."""
    random = np.random.default_rng(1)
    fine = (axis("load", *np.linspace(0, 3, 61).tolist(), scale="linear"),)
    covered = 0
    for _ in range(40):
        common = random.normal(0, 0.3, 6)
        pair = []
        for moved in (0.0, 0.2):
            note = TableNote(name="x", phases=("solid", "liquid"), axes=fine, search=False, job="melt", seed=0)
            table = melted(moved + 0.5, (common + random.normal(0, 0.1, 6)).tolist(), fine)
            pair.append(bare(note, table))
        covered += only(shifts(pair[0], pair[1], "load")).mean.covers(0.2)
    assert 35 <= covered <= 40  # 38 are expected; fewer than 35 happen in 1.4% of the cases


def test_fitted_boundaries_of_a_search_are_compared_by_their_bands() -> None:
    few = (axis("heat", *HEAT[::2], scale="log"), axis("load", *LOAD[::4], scale="linear"))
    pair = []
    for moved, search in ((0.0, False), (0.2, True)):
        note = TableNote(name="x", phases=("solid", "liquid"), axes=few, search=search, job="melt", seed=0)
        pair.append(side(note, melted(moved, SEEDS[:1], few)))
    shift = only(shifts(pair[0], pair[1], "load"))
    assert "bands given these seeds added" in shift.how and len(shift.lines) == 9
    assert shift.mean.value == pytest.approx(0.2, abs=0.07) and shift.mean.covers(0.2)


def test_the_command_compares_several_sweeps_and_writes_table_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (axis("heat", *HEAT[::2], scale="log"), axis("load", *LOAD[::2], scale="linear"))
    for name, moved in (("a", 0.0), ("b", 0.2), ("c", -0.2)):
        note = TableNote(name=name, phases=("solid", "liquid"), axes=few, search=False, job="melt", seed=0)
        write_table(melted(moved, SEEDS[:2], few), tmp_path / f"{name}.parquet", note)
    files = [str(tmp_path / f"{name}.parquet") for name in "abc"]
    assert main(["compare", *files, "--along", "load", "-o", str(tmp_path / "cmp.svg")]) == 0
    said = capsys.readouterr().out
    assert "shift of the boundary along load, difference to a (95% intervals)" in said
    assert {path.name for path in tmp_path.glob("cmp*")} == {"cmp.svg", "cmp_2.svg", "cmp_shift.svg", "cmp_shift.csv"}
    rows = list(csv.DictReader((tmp_path / "cmp_shift.csv").read_text().splitlines()))
    means = {r["sweep"]: float(r["shift"]) for r in rows if r["at"] == "mean over lines"}
    assert means == {"b": pytest.approx(0.2, abs=0.03), "c": pytest.approx(-0.2, abs=0.03)}
    assert len(rows) == 2 * (1 + len(HEAT[::2]))
    assert "heat" in (tmp_path / "cmp_shift.svg").read_text()


def test_sweeps_with_one_axis_have_a_shift_although_they_have_no_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, moved in (("a", 0.0), ("b", 0.2)):
        note = TableNote(name=name, phases=("solid", "liquid"), axes=BOX[1:], search=False, job="melt", seed=0)
        write_table(melted(moved, SEEDS, BOX[1:]), tmp_path / f"{name}.parquet", note)
    files = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    assert main(["compare", *files, "-o", str(tmp_path / "cmp.png")]) == 0
    said = capsys.readouterr().out
    assert "solid | liquid" in said and f"table: {tmp_path / 'cmp_shift.csv'}" in said
    assert {path.name for path in tmp_path.glob("cmp*")} == {"cmp_shift.csv"}


def test_a_sweep_that_refines_another_is_not_paired_with_its_own_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finer axis and a third seed: the first sweep's runs are runs of both."""
    few = (axis("heat", *HEAT[::2], scale="log"), axis("load", *LOAD[::2], scale="linear"))
    for name, box, of_seed in (("a", few, (0.0, 0.1)), ("b", (BOX[0], few[1]), (0.0, 0.1, 0.5))):
        note = TableNote(name=name, phases=("solid", "liquid"), axes=box, search=False, job="melt", seed=0)
        write_table(melted(0.0, of_seed, box), tmp_path / f"{name}.parquet", note)
    files = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    assert main(["compare", *files, "--along", "load", "-o", str(tmp_path / "cmp.png")]) == 0
    said = capsys.readouterr().out
    same = len(HEAT[::2]) * len(LOAD[::2]) * 2
    assert f"bootstrap over 2 and 3 seeds, not paired, because {same} trials of both are the same runs" in said
    assert "b, solid | liquid: left out: its lines at heat 0.1778, 0.5623, 1.778, 5.623, which the first" in said
    rows = list(csv.DictReader((tmp_path / "cmp_shift.csv").read_text().splitlines()))
    assert float(rows[0]["shift"]) == pytest.approx(0.6 / 3 - 0.1 / 2, abs=0.03)


def test_the_same_runs_with_other_labels_are_paired() -> None:
    """As by other thresholds."""
    pair = [on(BOX, moved, name="x", of_seed=SEEDS) for moved in (0.0, 0.2)]
    assert pair[0].table.trial_id == pair[1].table.trial_id
    assert "5 common seeds, paired" in only(shifts(pair[0], pair[1], "load")).how


def test_a_boundary_with_one_line_is_drawn_as_a_point(sides: dict[str, Side]) -> None:
    shift = only(shifts(sides["first"], sides["moved"], "load"))
    single = replace(shift, boundary="liquid | gas", lines=shift.lines[:1])
    table = shift_table([("moved", [shift, single])], "first")
    assert table is not None
    kept: list[Figure] = []
    draw("first", table, kept.append)
    lines, point = (ax.lines[0] for ax in kept[0].axes[:2])
    assert kept[0].axes[1].get_xlim()[0] < 0.1 < 10 < kept[0].axes[1].get_xlim()[1]
    assert len(point.get_xdata()) == 1 and point.get_marker() == "o"
    assert len(lines.get_xdata()) == len(HEAT) and lines.get_linestyle() == "-"


def test_an_axis_that_only_one_of_them_has_leaves_no_line_to_compare() -> None:
    assert shifts(on(BOX[1:], name="a"), on(BOX, name="b")) == []
    assert shifts(on(BOX, name="a"), on(BOX[1:], name="b")) == []


def test_a_ratio_of_one_without_an_interval_is_drawn() -> None:
    pair = [a_side(0.0, (0.0,)) for _ in range(2)]
    table = shift_table([("same", shifts(*pair, "heat"))], "first")
    assert table is not None and {row["shift"].value for row in table.rows} == {1.0}
    kept: list[Figure] = []
    draw("first", table, kept.append)
    assert kept[0].axes[0].get_yscale() == "log"
    kept[0].draw_without_rendering()


def on(box: Sequence[Axis], moved: float = 0.0, *, name: str, of_seed: Sequence[float] = (0.0,)) -> Side:
    note = TableNote(name=name, phases=("solid", "liquid"), axes=tuple(box), search=False, job="melt", seed=0)
    return bare(note, melted(moved, of_seed, box))


def test_the_slices_of_a_third_axis_have_a_mean_each() -> None:
    """Iron melts 0.2 later, tin 0.4 sooner."""
    box = (axis("kind", "iron", "tin"), axis("heat", *HEAT[::4], scale="log"), axis("load", *LOAD, scale="linear"))
    trials, before, after = [], [], []
    for kind, heat, load in itertools.product(*(a.values for a in box)):
        trials.append(trial(0, kind=kind, heat=heat, load=load))
        before.append(row(trials[-1], "liquid" if load > 1.01 else "solid"))
        after.append(row(trials[-1], "liquid" if load > (1.21 if kind == "iron" else 0.61) else "solid"))
    note = TableNote(name="one", phases=("solid", "liquid"), axes=box, search=False, job="melt", seed=0)
    first, second = (bare(note, collect(trials, by_id(*rows))) for rows in (before, after))
    shift = only(shifts(first, second, "load"))
    assert shift.mean.value == pytest.approx(-0.1)
    assert {where: mean.value for where, mean in shift.slices} == {
        "kind iron": pytest.approx(0.2),
        "kind tin": pytest.approx(-0.4),
    }
    made = shift_table([("two", [shift])], "one")
    assert made is not None
    assert [r["at"] for r in made.rows[:4]] == [
        "mean over lines",
        "mean over lines at kind iron",
        "mean over lines at kind tin",
        "kind iron, heat 0.1",
    ]
    assert "mean over lines at kind tin" in "\n".join(made.lines())


def test_several_sweeps_are_compared_along_one_axis() -> None:
    few = (axis("heat", *HEAT[::2], scale="log"), axis("load", *LOAD[::2], scale="linear"))
    narrow = (axis("heat", 0.6, 1.7, scale="log"), few[1])  # by itself it would be compared along heat
    third = on(narrow, name="c")
    table = _shifts([on(few, name="a"), on(few, 0.2, name="b"), third], None)
    assert table is not None and table.figure is not None
    assert {(row["sweep"], row["along"]) for row in table.rows} == {("b", "load"), ("c", "load")}
    assert shifts(on(few, name="a"), third)[0].along == "heat"


def test_a_table_has_ratios_or_differences_and_names_what_it_leaves_out() -> None:
    log = (axis("heat", *HEAT, scale="log"), axis("load", *LOAD[::2], scale="linear"))
    linear = (axis("heat", *HEAT, scale="linear"), log[1])
    apart = (axis("heat", *HEAT, scale="log"), axis("load", 5.0, 6.0, scale="linear"))
    sides = [on(log, name="a"), on(log, 0.1, name="b"), on(linear, 0.1, name="c"), on(apart, name="d")]
    table = _shifts(sides, "heat")
    assert table is not None and "ratio to a" in table.title and {row["sweep"] for row in table.rows} == {"b"}
    assert table.figure is not None and "ratio" in table.figure.y_label
    assert [note for note in table.notes if " is left out: " in note] == [
        "c is left out: its shift along heat is a difference, not a ratio; compare it by itself",
        "d is left out: no boundary along heat is in both sweeps",
    ]


def test_a_seed_that_does_not_cross_is_not_counted_where_one_axis_is_logarithmic() -> None:
    log = (axis("heat", *HEAT, scale="log"), axis("load", *LOAD[::2], scale="linear"))
    linear = (axis("heat", *HEAT, scale="linear"), log[1])
    # Where load is at most 1.1, the third seed of the first one is solid at every heat.
    first, second = on(log, name="a", of_seed=(0.0, 0.05, 0.3)), on(linear, name="b", of_seed=(0.0, 0.05, 0.0))
    shift = only(shifts(first, second, "heat"))
    assert shift.left_out and not shift.is_ratio
    assert min(float(line.at["load"]) for line in shift.lines) > 1.1
    assert all(0.1 <= line.first.value <= 10 for line in shift.lines)

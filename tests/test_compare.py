"""Comparison of two maps: size of the difference, common region, and description."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jobs_for_phases import GivenSweep, axis, by_id, row, trial

from orchestrator.axes import Axis
from orchestrator.cli import EXIT_MISTAKE, main
from orchestrator.phases.compare import NotComparable, Side, compare, report, side
from orchestrator.phases.publish import publish
from orchestrator.phases.publish_map import Drawing
from orchestrator.phases.table import TableNote, collect, note_of, read_note, read_table, write_table
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

HEAT = tuple(float(f"{v:.6g}") for v in np.geomspace(0.1, 10, 13))
LOAD = tuple(float(f"{v:.6g}") for v in np.linspace(0, 1, 13))


def axes(heat: tuple[float, ...] = HEAT, load: tuple[float, ...] = LOAD) -> tuple[Axis, Axis]:
    return axis("heat", *heat, scale="log"), axis("load", *load, scale="linear")


def ran(
    shift: float, over: tuple[Axis, ...], *, third: str = "liquid", flipped: int = 0, replicates: int = 1
) -> tuple[list[Trial], dict[str, TrialRow]]:
    """A grid that melts at load = 0.5 + shift + log10(heat) / 5, the first `flipped` settings against the rule."""
    trials, rows = [], []
    for i, values in enumerate(itertools.product(*(a.values for a in over))):
        settings = dict(zip((a.name for a in over), values, strict=True))
        liquid = float(settings["load"]) > 0.5 + shift + math.log10(float(settings["heat"]) or 0.01) / 5
        for replicate in range(replicates):
            trials.append(trial(replicate, **settings))
            rows.append(row(trials[-1], third if liquid != (i < flipped) else "solid"))
    return trials, by_id(*rows)


def a_side(shift: float, over: tuple[Axis, ...] | None = None, name: str = "one", **more) -> Side:
    over = over or axes()
    trials, rows = ran(shift, over, **more)
    note = TableNote(name=name, phases=("solid", "liquid", "gas"), axes=over, search=False)
    return side(note, collect(trials, rows))


def test_a_map_differs_nowhere_from_itself() -> None:
    one = a_side(0.0)
    found = compare(one, one)
    assert (found.area, found.sure_area, found.unmatched) == (0.0, 0.0, ())
    assert found.unsure[0] == found.unsure[1] > 0
    assert one.is_grid and found.cells[0] == found.cells[1]
    assert found.cells[0] is not None and found.cells[0][0] == 169 and found.cells[0][2] < 0.02


def test_the_difference_is_the_area_between_the_two_boundaries_and_the_same_either_way() -> None:
    one, other = a_side(-0.1), a_side(0.15)
    found, back = compare(one, other), compare(other, one)
    assert found.area == pytest.approx(0.25, abs=0.015)
    assert 0.1 < found.sure_area < found.area
    assert (back.area, back.sure_area, back.unsure[::-1], back.cells[::-1]) == (
        found.area,
        found.sure_area,
        found.unsure,
        found.cells,
    )
    assert found.cells[0] is not None and found.cells[0][1] == pytest.approx(0.25, abs=0.04)


def test_only_the_box_that_both_cover_is_compared() -> None:
    upper = tuple(v for v in LOAD if v >= 0.5)
    # In the upper half alone, the lower boundary leaves a strip between them of the half above 0.5.
    found = compare(a_side(0.3), a_side(0.3, axes(load=upper)))
    assert [(a.name, a.low, a.high) for a in found.pairs[0].axes] == [("heat", 0.1, 10.0), ("load", 0.5, 1.0)]
    assert found.area < 0.03
    assert found.cells[0] is not None and found.cells[0][0] == 13 * len(upper)
    with pytest.raises(NotComparable, match=r"load do not overlap: 0 to 0\.25 and 0\.5 to 1"):
        compare(a_side(0.0, axes(load=LOAD[:4])), a_side(0.3, axes(load=upper)))


def test_a_label_that_one_map_lacks_is_a_difference() -> None:
    found = compare(a_side(0.0), a_side(0.0, third="gas"))
    assert found.area == pytest.approx(0.5, abs=0.01)


def test_a_grid_is_held_against_the_other_map_by_the_labels_that_it_shows() -> None:
    found = compare(a_side(0.0, flipped=5), a_side(0.0))
    assert found.cells[0] is not None
    count, by_other, by_own = found.cells[0]
    assert count == 169 and by_other == pytest.approx(5 / 169, abs=1.5 / 169) and by_own <= by_other
    text = "\n".join(report(found))
    assert f"the maps differ in {found.area:.2%} of the area" in text
    assert "the most frequent phase of A's 169 grid cells differs from B's map in" in text


def test_slices_are_matched_by_their_values_and_those_of_one_map_alone_are_named() -> None:
    three = (*axes(HEAT[::2], LOAD[::2]), axis("kind", "iron", "tin"))
    two = (*axes(HEAT[::2], LOAD[::2]), axis("kind", "tin", "lead"))
    found = compare(a_side(0.1, three, "first"), a_side(0.1, two, "second"))
    assert [pair.title for pair in found.pairs] == ["kind tin"] and found.area == 0
    assert found.unmatched == ("first: heat x load at kind iron", "second: heat x load at kind lead")
    with pytest.raises(NotComparable, match="no slice has the same axes"):
        compare(a_side(0.1, three), a_side(0.1))


def test_the_area_of_each_slice_is_said() -> None:
    three = (*axes(HEAT[::2], LOAD[::2]), axis("kind", "iron", "tin"))
    (iron, tin), text = (found := compare(a_side(0.1, three, "first"), a_side(0.35, three, "second"))).by_slice, ""
    text = "\n".join(report(found))
    assert found.area == pytest.approx((iron[0] + tin[0]) / 2) and found.area > 0.1
    assert f"at kind iron: {iron[0]:.2%} of the area, {iron[1]:.2%} outside both bands" in text
    assert f"at kind tin: {tin[0]:.2%} of the area" in text


def test_a_table_stores_the_sweep_data_that_a_map_needs(tmp_path: Path) -> None:
    over = (*axes(), axis("kind", "tin", "iron", when={"stirred": (False,)}))
    sweep = GivenSweep(axes=over)
    trials, rows = ran(0.0, over)
    write_table(collect(trials, rows), tmp_path / "t.parquet", note_of(sweep, search=True))
    note = read_note(tmp_path / "t.parquet")
    assert note == note_of(sweep, search=True)
    assert note is not None and (note.name, note.phases) == ("melting", ("solid", "liquid", "gas"))
    assert [a.values for a in note.axes] == [(0.1, 10.0), (0.0, 1.0), ("tin", "iron")]
    assert note.axes[2].when == {"stirred": (False,)}
    assert len(read_table(tmp_path / "t.parquet")) == len(trials)
    write_table(collect(trials, rows), tmp_path / "bare.parquet")
    assert read_note(tmp_path / "bare.parquet") is None


def test_differences_of_two_sweeps_besides_their_axes_are_named() -> None:
    small = (HEAT[::3], LOAD[::3])
    sides = []
    for kind, level in (("iron", 0.9), ("tin", 0.5)):
        trials, rows = ran(0.0, (*axes(*small), axis("kind", kind), axis("stirred", kind == "tin")))
        table = collect(trials, rows)
        limits = {"level": level, "x": 1}
        note = TableNote(
            name=kind, phases=("solid", "liquid"), axes=axes(*small), search=False, job="melt", thresholds=limits
        )
        sides.append(side(note, table))
    named = ("kind: iron in A, tin in B", "stirred: false in A, true in B", "threshold level: 0.9 in A, 0.5 in B")
    found = compare(*sides)
    assert found.differences == named
    assert {f"      {text}" for text in named} < set(report(found))
    assert compare(sides[0], sides[0]).differences == ()
    assert not any(line.startswith("note") for line in report(compare(sides[0], sides[0])))
    silent = report(compare(sides[0], replace(sides[0], note=replace(sides[0].note, thresholds=None), stale=3)))
    assert "note: the table of B does not contain its thresholds: not compared" in silent
    assert any("3 trials of B have labels under other thresholds" in line for line in silent)
    other = compare(sides[0], replace(sides[0], note=replace(sides[0].note, job="boil"), table=sides[1].table))
    assert other.differences[:2] == ("job: melt in A, boil in B", named[0])


def test_the_picture_names_as_many_differences_as_a_line_holds() -> None:
    from orchestrator.phases.draw.png_compare import MOST_ALSO, _also

    assert _also([]) == [] and _also(["kind: iron in A, tin in B"]) == ["also different: kind: iron in A, tin in B"]
    (line,) = _also([f"parameter_{k}: {k} in A, {k + 1} in B" for k in range(30)])
    shown = line.count("·")
    assert len(line) < MOST_ALSO + 40 and 2 < shown < 30 and line.endswith(f"and {30 - shown} more")
    (line,) = _also(["x" * 1000])
    assert len(line) < MOST_ALSO + 40


def test_trials_and_settings_are_counted_over_the_same_slices_and_the_others_are_named() -> None:
    one = a_side(0.0, axes(heat=(0.0, *HEAT[::2])), replicates=2)  # 0 has no place on a log axis
    first = report(compare(one, one))[0]
    assert first == (
        f"A  one: {7 * 13 * 2} trials with a result, {7 * 13} settings (a grid); left out: heat 0 (26 trials with a "
        "result), where fewer than two numeric axes vary"
    )


@pytest.mark.slow
def test_the_command_compares_folders_and_tables_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift in (("a", -0.1), ("b", 0.1)):
        trials, rows = ran(shift, axes(), replicates=2)
        publish(GivenSweep(axes=axes(), name=name), trials, rows, tmp_path / name, drawing=Drawing())
    bare = tmp_path / "bare.parquet"
    write_table(read_table(tmp_path / "b" / "trials.parquet"), bare)
    out = tmp_path / "new" / "out.png"
    said = []
    for second in (tmp_path / "b", bare):
        assert main(["compare", str(tmp_path / "a"), str(second), "-o", str(out)]) == 0
        said.append(capsys.readouterr().out)
        assert out.read_bytes().startswith(b"\x89PNG")
        out.unlink()
    assert "A  a: 338 trials with a result, 169 settings (a grid)" in said[0]
    assert f"picture: {out}" in said[0]
    assert said[0].splitlines()[2] == said[1].splitlines()[2]
    share = float(said[0].splitlines()[2].split("differ in ")[1].split("%")[0])
    assert share == pytest.approx(20, abs=1.5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda at: at / "nowhere", "is not there"),
        (lambda at: at, "is not there"),
        (lambda at: at / "text.parquet", "is not a table of trials"),
        (lambda at: at / "other.parquet", "is not a table of trials"),
        (lambda at: at / "thin.parquet", "two numeric axes must vary together, and running it again would not change"),
        (lambda at: at / "unfinished.parquet", "next:  phasefront run, then compare"),
        (lambda at: at / "else.parquet", "cannot be compared"),
    ],
)
def test_sweeps_that_cannot_be_compared_are_a_mistake_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make, says: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = tmp_path / "good.parquet"
    write_table(collect(*ran(0.0, axes(HEAT[::3], LOAD[::3]))), good)
    (tmp_path / "text.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    write_table(collect([trial(0, heat=h) for h in HEAT], {}), tmp_path / "thin.parquet")
    write_table(collect(ran(0.0, axes(HEAT[::3], LOAD[::3]))[0], {}), tmp_path / "unfinished.parquet")
    over = (axis("speed", 0.1, 0.2, 0.3, 0.4), axis("load", *LOAD[::3]))
    trials = [trial(0, speed=s, load=v) for s, v in itertools.product(over[0].values, over[1].values)]  # type: ignore[arg-type]
    write_table(collect(trials, by_id(*(row(t) for t in trials))), tmp_path / "else.parquet")
    assert main(["compare", str(good), str(make(tmp_path)), "-o", str(tmp_path / "o.png")]) == EXIT_MISTAKE
    error = capsys.readouterr().err
    assert says in error and str(make(tmp_path)) in error and "Traceback" not in error
    assert not (tmp_path / "o.png").exists()

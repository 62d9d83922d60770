"""Files of a boundary search: lines at the surrogate's boundary, files that can be read back, valid estimates."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boundary_files import read_geojson, read_parquet
from jobs_for_phases import GivenSweep, axis, by_id, row, trial
from surfaces_for_phases import AXES, Formula, above, evidence, one_map, one_slice

from jobs.job import Censored
from orchestrator.phases.map.boundary_data import boundary_lines, write_geojson, write_parquet
from orchestrator.phases.map.contour import crossings
from orchestrator.phases.map.progress_curve import ProgressCurve, refitted, write_csv
from orchestrator.phases.map.raster import CHUNK, plane, rasterise
from orchestrator.phases.map.savings import boundary_size, read_savings, savings, write_savings
from orchestrator.phases.map.surface_map import expected_error, planes
from orchestrator.phases.publish import Published, publish
from orchestrator.phases.publish_map import Drawing
from orchestrator.records import Status
from orchestrator.surface.base import Points
from orchestrator.surface.phase import PhaseSurrogate
from orchestrator.target import LevelTarget, PhaseTarget, RidgeTarget, Target
from orchestrator.trial import Trial

NONE = np.zeros((0, 2)), np.zeros(0, dtype=np.int64)
WAVE = Formula(heights=above(lambda x: x[:, 1] - 0.5 - 0.2 * np.sin(5 * x[:, 0])))
FOUR = Formula(
    heights=lambda x: np.column_stack(
        [-np.hypot(x[:, 0] - a, x[:, 1] - b) for a, b in ((0.2, 0.3), (0.7, 0.2), (0.8, 0.8), (0.25, 0.75))]
    )
)


def test_vertices_lie_on_the_boundary_to_far_less_than_a_square() -> None:
    belief = plane(WAVE, 0, 1, {})
    (line,) = crossings(belief, rasterise(belief, *NONE))
    off = line.points[:, 1] - 0.5 - 0.2 * np.sin(5 * line.points[:, 0])
    assert np.abs(off).max() < 1e-6
    assert {float(line.points[0, 0]), float(line.points[-1, 0])} == {0.0, 1.0}
    assert np.linalg.norm(np.diff(line.points, axis=0), axis=1).max() < 0.01


def test_the_ends_of_the_band_are_where_the_belief_is_5_and_95_percent() -> None:
    slanted = Formula(heights=above(lambda x: (x[:, 0] + 2 * x[:, 1] - 1.4) / math.sqrt(5)), softness=0.02)
    belief = plane(slanted, 0, 1, {})
    (line,) = crossings(belief, rasterise(belief, *NONE))
    known = np.isfinite(line.offsets)
    assert known.mean() > 0.9
    # a is class 0, towards the origin: the 5% quantile of a normal distribution lies 1.645 deviations away.
    assert np.allclose(np.abs(line.offsets[known]), 1.6449 * 0.02, rtol=2e-3)
    at_5, at_95 = line.ends()
    assert np.allclose(slanted.belief(at_5[known[:, 0]])[:, 0], 0.05, atol=1e-3)
    assert np.allclose(slanted.belief(at_95[known[:, 1]])[:, 0], 0.95, atol=1e-3)


def test_a_band_that_never_ends_within_the_box_is_no_number(tmp_path: Path) -> None:
    vague = Formula(heights=above(lambda x: x[:, 0] - 0.5), softness=5.0)
    lines = boundary_lines(one_map(vague, evidence(*NONE)))
    assert lines and all(np.isnan(line.offsets).all() for line in lines)
    write_parquet(lines, tmp_path / "b.parquet")
    write_geojson(lines, tmp_path / "b.geojson")
    for back in (read_parquet(tmp_path / "b.parquet"), read_geojson(tmp_path / "b.geojson")):
        assert np.isnan(back[0].offsets).all() and np.isnan(back[0].at_5).all()


def test_each_pair_of_phases_has_one_line() -> None:
    belief = plane(FOUR, 0, 1, {})
    raster = rasterise(belief, *NONE)
    found = crossings(belief, raster)
    pairs = [(line.a, line.b) for line in found]
    assert all(a < b for a, b in pairs) and len(pairs) == len(set(pairs)) == 5
    for line in found:
        shares = FOUR.belief(line.points)
        assert np.abs(shares[:, line.a] - shares[:, line.b]).max() < 1e-4
        assert (np.sort(shares, axis=1)[:, -2:].sum(axis=1) > 0.6).all()
    # Wherever neighbours of the raster differ, a line passes within two squares.
    label, side = raster.label, raster.points
    i, j = np.nonzero(label[1:] != label[:-1])
    between = np.column_stack([(side[i] + side[i + 1]) / 2, side[j]])
    vertices = np.concatenate([line.points for line in found])
    nearest = np.sqrt(((between[:, None] - vertices[None]) ** 2).sum(axis=2).min(axis=1))
    assert nearest.max() < 0.011


def test_the_raster_is_the_belief_wherever_it_matters_and_asks_little() -> None:
    largest = 0

    def watched(at: Points) -> np.ndarray:
        nonlocal largest
        largest = max(largest, len(at))
        return WAVE.belief(at)

    surface = Formula(heights=WAVE.heights)
    raster = rasterise(plane(surface, 0, 1, {}), *NONE)
    side = raster.points
    exact = surface.belief(np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2))
    exact = exact.reshape(raster.belief.shape)
    assert (raster.label == exact.argmax(axis=2)).all()
    assert (raster.in_band == (exact.max(axis=2) < 0.95)).mean() > 0.9999
    assert np.abs(raster.belief - exact).max() < 0.03
    assert raster.belief.shape[0] == 401 and raster.asked < 0.3 * 401**2

    class Watched(Formula):
        def belief(self, x: Points) -> np.ndarray:
            return watched(x)

    rasterise(plane(Watched(heights=WAVE.heights, softness=3.0), 0, 1, {}), *NONE)
    assert 0 < largest <= CHUNK


def test_an_island_smaller_than_a_coarse_square_is_drawn_where_a_trial_hit_it() -> None:
    centre = np.array([0.4303, 0.7111])
    island = Formula(heights=above(lambda x: 0.006 - np.linalg.norm(x - centre, axis=1)), softness=1e-3)
    belief = plane(island, 0, 1, {})
    assert not crossings(belief, rasterise(belief, *NONE))
    (line,) = crossings(belief, rasterise(belief, centre[None], np.array([1])), stride=1)
    assert np.allclose(np.linalg.norm(line.points - centre, axis=1), 0.006, atol=1e-5)
    assert np.array_equal(line.points[0], line.points[-1])


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_the_boundary_reads_back_from_both_files_in_axis_units(tmp_path: Path, dimensions: int) -> None:
    flat = Formula(heights=above(lambda x: x[:, 1] - 0.3 - 0.2 * x[:, -1]), d=dimensions)
    seen = evidence(np.zeros((0, dimensions)), NONE[1])
    lines = boundary_lines(one_map(flat, seen))
    assert len(lines) == {2: 1, 3: 16, 4: 36}[dimensions]
    write_parquet(lines, tmp_path / "b.parquet")
    write_geojson(lines, tmp_path / "b.geojson")
    for back in (read_parquet(tmp_path / "b.parquet"), read_geojson(tmp_path / "b.geojson")):
        assert len(back) == len(lines)
        for one, same in zip(lines, back, strict=True):
            assert (one.labels, one.axes, dict(one.fixed)) == (same.labels, same.axes, dict(same.fixed))
            for name in ("points", "at_5", "at_95", "offsets", "over_at_5", "over_at_95", "over_offsets"):
                assert np.array_equal(getattr(one, name), getattr(same, name), equal_nan=True)
    for line in lines:
        assert line.axes == ("heat", "load") and line.labels == ("phase 0", "phase 1")
        assert line.points[:, 0].min() >= 0.1 and line.points[:, 0].max() <= 10
        held = {a.name: float(a.unit(np.array(line.fixed[a.name]))) for a in AXES[2:dimensions]}
        last = held[AXES[dimensions - 1].name] if dimensions > 2 else AXES[1].unit(line.points[:, 1])
        assert np.allclose(AXES[1].unit(line.points[:, 1]), 0.3 + 0.2 * last, atol=1e-6)
    features = json.loads((tmp_path / "b.geojson").read_text())["features"]
    assert {feature["geometry"]["type"] for feature in features} == {"LineString"}


def test_an_axis_may_be_called_like_a_column(tmp_path: Path) -> None:
    (line,) = boundary_lines(one_map(WAVE, evidence(*NONE)))
    odd = replace(line, axes=("vertex", "heat_at_5"), fixed={"line": "tin"})
    write_parquet([odd], tmp_path / "b.parquet")
    (back,) = read_parquet(tmp_path / "b.parquet")
    assert back.axes == odd.axes and back.fixed == odd.fixed and np.array_equal(back.points, odd.points)


def test_every_trial_belongs_to_one_of_the_planes_drawn() -> None:
    x = np.random.default_rng(0).random((300, 3))
    solid = Formula(heights=above(lambda x: x[:, 2] - x[:, 1]), d=3)
    drawn = planes(one_slice(solid, evidence(x, solid.label(x))))
    assert len(drawn) == 6
    assert sorted(itertools.chain.from_iterable(p.near.tolist() for p in drawn)) == list(range(300))


@pytest.mark.parametrize(("dimensions", "size"), [(2, 2 * math.pi * 0.3), (3, 4 * math.pi * 0.3**2)])
def test_the_size_of_a_boundary_is_its_length_or_area(dimensions: int, size: float) -> None:
    ball = Formula(heights=above(lambda x: 0.3 - np.linalg.norm(x - 0.5, axis=1)), d=dimensions)
    assert boundary_size(ball, points=60_000) == pytest.approx(size, rel=0.06)


def test_the_expected_error_follows_from_the_surrogate() -> None:
    half = Formula(heights=above(lambda x: x[:, 0] - 0.5), softness=0.05)
    # The mean of 1 - ndtr(|z|) over z is 1/sqrt(2 pi) for either side.
    assert expected_error(half) == pytest.approx(2 * 0.05 / math.sqrt(2 * math.pi), rel=0.02)


@pytest.mark.slow
def test_a_search_near_the_boundary_is_found_to_save_trials_and_is_not_estimated_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.random((120, 2))
    x[30:, 1] = np.clip(0.5 + 0.2 * np.sin(5 * x[30:, 0]) + 0.03 * rng.standard_normal(90), 0, 1)
    fit = PhaseSurrogate(classes=2).fit
    seen = evidence(x, WAVE.label(x))
    found = one_map(fit(seen), seen, fit)
    saved = savings(found)
    assert saved.trials == 120 and saved.method in ("simulated", "extrapolated")
    assert saved.grid is not None and saved.grid > 150
    sizes, errors = zip(*saved.simulated, strict=True)
    assert list(sizes) == sorted(sizes) and errors[-1] < errors[0]
    assert saved.text().startswith("120 trials; a grid of the same map error needs about ")
    assert "estimate" in saved.text()
    write_savings(saved, tmp_path / "s.json")
    kept = read_savings(tmp_path / "s.json")
    assert kept == saved
    assert savings(found, kept) is kept
    other = one_map(fit(seen), evidence(x[:-1], seen.label[:-1]), fit)
    assert kept is not None and savings(other, kept).key != kept.key
    assert read_savings(tmp_path / "nothing.json") is None


def test_the_curve_ends_at_the_map_and_follows_the_order_of_the_trials(tmp_path: Path) -> None:
    x = np.random.default_rng(2).random((100, 2))
    fit = PhaseSurrogate(classes=2).fit
    seen = evidence(x, WAVE.label(x))
    found = one_map(fit(seen), seen, fit)
    curve = refitted(found)
    assert curve.refitted and curve.trials[0] == 16 and curve.trials[-1] == 100
    assert len(curve.trials) <= 12 and (np.diff(curve.trials) > 0).all()
    assert curve.uncertain_area[-1] == found.uncertain_area()
    assert curve.uncertain_area[0] == fit(evidence(x[:16], seen.label[:16])).uncertain_area()
    write_csv(curve, tmp_path / "c.csv")
    rows = [line.split(",") for line in (tmp_path / "c.csv").read_text().splitlines()]
    assert rows[0] == ["trials", "uncertain_area", "refitted"] and {row[2] for row in rows[1:]} == {"true"}
    assert tuple((int(n), float(area)) for n, area, _ in rows[1:]) == curve.pairs()
    assert ProgressCurve.of([(64, 0.5), (32, 0.9), (64, 0.4)]).pairs() == ((32, 0.9), (64, 0.4))


FOUND = (axis("heat", 0.1, 10.0, scale="log"), axis("load", 0.0, 1.0, scale="linear"))
FILES = {
    "phase_diagram.png",
    "phase_diagram.html",
    "trials.parquet",
    "sweep_metrics.json",
    "boundary.parquet",
    "boundary.geojson",
    "search_progress.csv",
    "search_progress.png",
}


def searched(count: int, **more: tuple[object, ...]) -> tuple[list[Trial], dict[str, object]]:
    """Trials at random settings: melting where log10(heat) + load - 1/2 > 0, every 20th failed."""
    rng = np.random.default_rng(3)
    trials, rows = [], []
    for i in range(count):
        heat, load = float(f"{10 ** rng.uniform(-1, 1):.5g}"), float(f"{rng.random():.5g}")
        one = trial(0, heat=heat, load=load, **{name: values[i % len(values)] for name, values in more.items()})
        trials.append(one)
        melted = math.log10(heat) + load - 0.5
        if i % 20 == 7:
            rows.append(row(one, None, Status.FAILED))
            continue
        step = 10 ** (1.5 - melted)
        rows.append(
            row(
                one,
                "liquid" if melted > 0 else "solid",
                melting_step=step if step < 60 else Censored(60.0),
                final_error=float(np.exp(-20 * (math.log10(heat) - load + 0.5) ** 2)),
            )
        )
    return trials, by_id(*rows)  # type: ignore[return-value]


def published(folder: Path, target: Target, count: int = 80, history=(), **more) -> Published:
    trials, rows = searched(count, **more)
    axes = (*FOUND, *(axis(name, *values) for name, values in more.items()))
    return publish(
        GivenSweep(axes=axes), trials, rows, folder, drawing=Drawing(target=target, search=True, history=history)
    )


def page_of(found: Published) -> dict:
    text = found.files["phase_diagram.html"].read_text()
    return json.loads(text.split('<script id="data" type="application/json">')[1].split("</script>")[0])


def test_a_search_for_phases_leaves_map_boundary_curve_and_savings(tmp_path: Path) -> None:
    found = published(tmp_path, PhaseTarget(), history=[(16, 0.9), (80, 0.2)])
    assert set(found.files) == FILES | {"search_savings.json"}
    assert all(path.stat().st_size > 0 for path in found.files.values())
    lines = read_parquet(found.files["boundary.parquet"])
    assert {line.labels for line in lines} == {("solid", "liquid")}
    points = np.concatenate([line.points for line in lines])
    assert np.abs(np.log10(points[:, 0]) + points[:, 1] - 0.5).mean() < 0.1
    assert found.curves == {"uncertain_area": ((16, 0.9), (80, 0.2))}
    assert 0 < found.metrics["uncertain_area"] < 1 and found.metrics["failed"] == 4
    assert any(note.startswith("76 trials; a grid of the same map error") for note in found.notes)
    views = page_of(found)["views"]
    assert [view["name"] for view in views[:3]] == [
        "phase, drawn by the classifier",
        "uncertain area against trials",
        "phase",
    ]
    names = [trace["name"] for trace in views[0]["slices"][0]["traces"]]
    assert {"boundary (equal belief)", "solid", "liquid", "failed"} <= set(names)
    assert any(re.fullmatch(r"90% band .* \(paler\)", name) for name in names), "the legend names what is paler"


def test_the_same_record_in_any_order_draws_the_same_boundary(tmp_path: Path) -> None:
    trials, rows = searched(60)
    sweep = GivenSweep(axes=FOUND)
    texts = []
    for name, order in (("a", trials), ("b", trials[::-1])):
        made = publish(sweep, order, rows, tmp_path / name, drawing=Drawing())
        texts.append(made.files["boundary.geojson"].read_text())
    assert texts[0] == texts[1]


def test_a_failed_trial_does_not_affect_the_map(tmp_path: Path) -> None:
    trials, rows = searched(60)
    sweep = GivenSweep(axes=FOUND)
    drawing = Drawing()
    some = publish(sweep, trials, rows, tmp_path / "a", drawing=drawing)
    kept = [t for t in trials if rows[t.id].recorded.status is Status.FINISHED]  # type: ignore[attr-defined]
    without = publish(sweep, kept, rows, tmp_path / "b", drawing=drawing)
    assert some.files["boundary.geojson"].read_text() == without.files["boundary.geojson"].read_text()


def test_each_value_of_a_category_has_a_separate_map(tmp_path: Path) -> None:
    found = published(tmp_path, PhaseTarget(), kind=("iron", "tin"))
    lines = read_parquet(found.files["boundary.parquet"])
    assert {line.fixed["kind"] for line in lines} == {"iron", "tin"}
    assert [one["title"] for one in page_of(found)["views"][0]["slices"]] == ["kind iron", "kind tin"]


def test_a_value_off_the_scale_is_no_part_of_the_box_and_is_said_to_be_left_out(tmp_path: Path) -> None:
    trials, rows = searched(40)
    cold = [trial(0, heat=0.0, load=load) for load in (0.1, 0.5, 0.9)]
    rows |= by_id(*(row(one, "solid") for one in cold))
    axes = (axis("heat", 0.0, 0.1, 10.0, scale="log"), FOUND[1])
    found = publish(GivenSweep(axes=axes), [*trials, *cold], rows, tmp_path, drawing=Drawing())
    assert any("heat 0" in warning for warning in found.warnings)
    assert min(line.points[:, 0].min() for line in read_parquet(found.files["boundary.parquet"])) >= 0.1


def test_a_level_map_shows_censored_trials_on_their_side(tmp_path: Path) -> None:
    found = published(tmp_path, LevelTarget(metric="melting_step", level=30.0))
    assert set(found.files) == FILES | {"search_savings.json"}
    assert found.metrics["grid_of_same_map_error"] > 0 and found.metrics["expected_map_error"] < 0.1
    points = np.concatenate([line.points for line in read_parquet(found.files["boundary.parquet"])])
    assert np.abs(np.log10(points[:, 0]) + points[:, 1] - 2 + math.log10(30)).mean() < 0.03


def test_a_bound_below_the_level_is_drawn_on_no_side(tmp_path: Path) -> None:
    found = published(tmp_path, LevelTarget(metric="melting_step", level=90.0))
    names = {trace["name"] for trace in page_of(found)["views"][0]["slices"][0]["traces"]}
    assert {"melting step below 90", "not reached: which side is open"} <= names
    assert "melting step 90 or more" not in names


@pytest.mark.slow
def test_a_ridge_is_drawn_as_a_curve_with_its_band(tmp_path: Path) -> None:
    found = published(tmp_path, RidgeTarget(ridge="final_error", along="heat"))
    assert set(found.files) == FILES | {"search_savings.json"}
    assert found.metrics["grid_of_same_peak_error"] > 0 and found.metrics["expected_peak_error"] < 0.1
    assert any("a grid of the same error of the peak's position needs about" in note for note in found.notes)
    (line,) = read_parquet(found.files["boundary.parquet"])
    assert line.labels is None and line.axes == ("load", "heat")
    assert np.abs(np.log10(line.points[:, 1]) - line.points[:, 0] + 0.5).max() < 0.15
    assert (line.at_5[:, 1] <= line.points[:, 1]).all() and (line.points[:, 1] <= line.at_95[:, 1]).all()
    assert page_of(found)["views"][0]["name"] == "final error, drawn by the surface"


@pytest.mark.parametrize("axes", [(), FOUND[:1], FOUND])
def test_the_plain_diagram_is_drawn_if_the_classifier_cannot_draw(tmp_path: Path, axes) -> None:
    one = trial(0, heat=1.0, load=0.5)
    found = publish(GivenSweep(axes=axes), [one], {}, tmp_path, drawing=Drawing(search=True))
    assert "phase_diagram.png" in found.files and "boundary.parquet" not in found.files
    assert any("no map can be fitted" in warning for warning in found.warnings)

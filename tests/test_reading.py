"""Where a boundary crosses a line through the map: per seed, over seeds, and of a search."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jobs_for_phases import Melt, MeltParams, axis, by_id, product, row
from recorded_sweeps import recorded_folder

import phasefront
from jobs.job import specs
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.table import TrialTable, collect
from orchestrator.results.reading import (
    BETWEEN,
    INTERPOLATED,
    OVER_SEEDS,
    Bracket,
    GridLines,
    Line,
    Row,
    _joined,
    _split,
    _steps,
    line_at,
    lines_of,
    read,
)

HEAT = axis("heat", *np.geomspace(0.1, 10, 9).tolist(), scale="log")
LOAD = axis("load", 0.0, 0.5, 1.0)


def readings(melts, at, *, seeds: int = 4, axes=(HEAT, LOAD), along=None, flipped=()) -> list[Row]:
    """Of trials that are liquid where `melts(load, seed)` is at most their heat; `flipped`: (seed, heat's index)."""

    def label(t) -> str:
        liquid = t.params.heat >= melts(t.params.load, t.replicate)
        liquid ^= (t.replicate, HEAT.values.index(t.params.heat)) in flipped
        return "liquid" if liquid else "solid"

    trials = product(list(axes), replicates=seeds)
    rows = by_id(*(row(t, label(t)) for t in trials))
    table = collect(trials, rows)
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    return read(diagram, table, None, at, along)


def test_each_seed_changes_between_two_settings_and_the_mean_is_theirs() -> None:
    found = readings(lambda load, seed: (0.5, 1.1, 1.1, 2.0)[seed], {"load": 0.5})
    assert {r.boundary for r in found} == {"solid | liquid"} and {r.along for r in found} == {"heat"}
    seeds = {r.seed: r for r in found if r.seed is not None}
    assert all(r.interval == BETWEEN for r in seeds.values())
    for seed, melts in enumerate((0.5, 1.1, 1.1, 2.0)):
        low, high = seeds[seed].low, seeds[seed].high
        assert low < melts <= high and high / low == pytest.approx(10**0.25)
        assert seeds[seed].value == pytest.approx(math.sqrt(low * high))
    (over,) = (r for r in found if r.seed is None)
    assert over.interval == OVER_SEEDS
    assert over.value == pytest.approx(float(np.prod([r.value for r in seeds.values()]) ** 0.25))
    assert (
        min(r.low for r in seeds.values()) <= over.low < over.value < over.high <= max(r.high for r in seeds.values())
    )


def by_masks(diagram: PhaseDiagram, table: TrialTable, line: Line) -> list[tuple[str, dict[int, Bracket]]]:
    """`GridLines.brackets` with a mask over all trials for every corner and seed."""
    axis = diagram.axes[line.along]
    code = np.array([diagram.labels.index(p) if p in diagram.labels else -1 for p in table.phase])
    place = diagram.codes[diagram.cell]
    known = (code >= 0) & (place[:, line.along] >= axis.special)
    u = axis.position[place[:, line.along]]
    at = []
    for corner, weight in line.corners:
        there = [place[:, a] == index for a, index in enumerate(corner) if index >= 0]
        at.append((known & np.logical_and.reduce(there), weight))
    pooled = np.logical_or.reduce([here for here, _ in at])
    made = []
    for step in _steps(u[pooled], code[pooled], len(diagram.labels)):
        of_seed = {}
        for seed in np.unique(table.replicate[known]).tolist():
            parts = []
            for here, weight in at:
                own = here & (table.replicate == seed) & (u >= step.low) & (u <= step.high)
                own &= np.isin(code, step.before + step.after)
                parts.append((weight, _split(u[own], np.isin(code[own], step.after))))
            if (found := _joined(parts)) is not None:
                of_seed[seed] = found
        made.append((f"{diagram.labels[step.below]} | {diagram.labels[step.above]}", of_seed))
    return made


@pytest.mark.parametrize("number", range(20))
def test_a_line_has_the_crossings_of_its_own_trials(number: int) -> None:
    """On grids with holes, with noisy labels, on and between the settings."""
    random = np.random.default_rng(number)
    heat = axis("heat", *([0.0] if number % 2 else []), *HEAT.values[::2], scale="log")
    axes = (heat, axis("load", 0.0, 0.5, 1.0, 1.5), axis("kind", "iron", "tin"))
    kept = [t for t in product(list(axes), replicates=4) if random.random() < 0.8]
    labels = random.choice(np.array(["liquid", "gas", "solid"]), size=len(kept))
    rows = [
        row(t, "solid" if t.params.heat < 1 and random.random() < 0.8 else str(label))
        for t, label in zip(kept, labels, strict=True)
    ]
    table = collect(kept, by_id(*(r for r in rows if random.random() < 0.9)))
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    found = 0
    for along, others in (("heat", {"load": (0.5, 0.7)}), ("load", {"heat": (heat.values[-1], 0.5)})):
        lines = GridLines(diagram, table, diagram.axis_index(along))
        for at in others[next(iter(others))]:
            for kind in ("iron", "tin"):
                line = line_at(diagram, {next(iter(others)): at, "kind": kind}, along)
                assert lines.brackets(line) == by_masks(diagram, table, line)
                found += len(lines.brackets(line))
    assert found


def test_seeds_that_agree_have_the_grids_interval() -> None:
    """A boundary is not known better than the distance of the settings, however many seeds agree."""
    (over, *seeds) = readings(lambda load, seed: 1.1, {"load": 0.0})
    assert over.low == pytest.approx(seeds[0].low, rel=0.05) and over.high == pytest.approx(seeds[0].high, rel=0.05)


def test_between_two_values_crossings_are_interpolated() -> None:
    found = readings(lambda load, seed: 0.3 if load < 0.25 else 3.0, {"load": 0.25})
    one = next(r for r in found if r.seed == 0)
    low, high = (
        next(r for r in readings(lambda load, seed, at=at: at, {"load": 0.0}) if r.seed == 0) for at in (0.3, 3.0)
    )
    assert one.value == pytest.approx(math.sqrt(low.value * high.value))


def test_a_seed_that_does_not_cross_is_no_number_and_the_median_is_taken() -> None:
    found = readings(lambda load, seed: 99.0 if seed == 3 else 1.1, {"load": 1.0})
    seeds = {r.seed: r for r in found if r.seed is not None}
    assert seeds[3].value == math.inf and seeds[3].low == pytest.approx(10) and seeds[3].high == math.inf
    (over,) = (r for r in found if r.seed is None)
    assert over.value == pytest.approx(seeds[0].value) and over.high == math.inf


def of_words(*words: str, loads: dict[float, tuple[str, ...]] | None = None, at: float = 0.0) -> list[Row]:
    """Of trials at a load, a seed for each word: the first letters of their labels as heat rises."""
    given = {0.0: words} if loads is None else loads
    axes = (axis("heat", *(float(k) for k in range(1, len(next(iter(given.values()))[0]) + 1))), axis("load", *given))
    label = {"s": "solid", "l": "liquid", "g": "gas"}
    trials = product(list(axes), replicates=len(next(iter(given.values()))))
    rows = by_id(*(row(t, label[given[t.params.load][t.replicate][int(t.params.heat) - 1]]) for t in trials))
    table = collect(trials, rows)
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    return read(diagram, table, None, {"load": at} if len(given) > 1 else {}, "heat")


def test_a_seed_that_skips_a_phase_crosses_both_of_its_boundaries_at_one_place() -> None:
    """Seed 1 sublimates."""
    found = of_words("ssllgg", "sssggg", "ssllgg")
    for boundary, mean, of_seed in (
        ("solid | liquid", 8.5 / 3, (2.5, 3.5, 2.5)),
        ("liquid | gas", 12.5 / 3, (4.5, 3.5, 4.5)),
    ):
        over, *seeds = (r for r in found if r.boundary == boundary)
        assert over.value == pytest.approx(mean) and [r.value for r in seeds] == list(of_seed)
        assert over.low <= over.value - 0.5 and over.high >= over.value + 0.45  # not narrower than the grid
    said = lines_of(found)
    assert said[0] == "solid | liquid: from 'solid' to 'liquid' as heat rises"
    assert said[1].startswith("  mean over 3 seeds: 2.833  [")
    assert [line for line in said if "seed 1" in line] == [
        "  seed 1    3.5, between 3 and 4, directly from 'solid' to 'gas'"
    ] * 2
    assert sum("directly" in line for line in said) == 2


def test_the_interval_of_a_median_is_not_narrower_than_the_grid() -> None:
    found = of_words("ssll", "ssll", "ssss")
    assert found[0].value == 2.5 and found[0].low < 2.1 and found[0].high == math.inf
    said = lines_of(found)
    assert said[1].startswith("  median over 3 seeds: 2.5  [2") and ", no upper end], 95% bootstrap" in said[1]
    assert said[-1] == "  seed 2    above 4, not crossed on the grid"


def test_a_bound_between_two_lines_is_said_to_be_interpolated() -> None:
    """Neither seed crosses on the second line, so that nothing more is known than from where on they may cross."""
    found = of_words(loads={0.0: ("llss", "lsss"), 1.0: ("llll", "llll")}, at=0.5)
    assert lines_of(found)[1:] == [
        "  median over 2 seeds: above 2.5  too few seeds cross for an interval",
        "  seed 0    above 3, interpolated: not crossed on every neighbouring line",
        "  seed 1    above 2.5, interpolated: not crossed on every neighbouring line",
    ]


def test_a_seed_whose_crossing_cannot_be_told_is_named() -> None:
    """As one whose phases come in the other order."""
    found = of_words("ssll", "ssll", "llss")
    assert lines_of(found)[-1] == "  seed 2    no crossing can be told"
    assert math.isnan(found[-1].value) and found[0].value == 2.5


def test_a_setting_is_named_by_the_four_digits_with_which_it_is_printed() -> None:
    at = axis("load", 0.1, 0.0316227766, 0.01, scale="log")
    found = readings(lambda load, seed: 1.1, {"load": 0.03162}, axes=(HEAT, at))
    assert {r.interval for r in found if r.seed is not None} == {BETWEEN}
    found = readings(lambda load, seed: 1.1, {"load": 0.0316}, axes=(HEAT, at))
    assert {r.interval for r in found if r.seed is not None} == {INTERPOLATED}


def test_a_single_trial_with_another_label_moves_no_crossing() -> None:
    found = readings(lambda load, seed: 1.1, {"load": 0.5}, seeds=5, flipped={(2, 1), (3, 8)})
    plain = readings(lambda load, seed: 1.1, {"load": 0.5}, seeds=5)
    assert [(r.seed, r.low, r.high) for r in found if r.seed is not None] == [
        (r.seed, r.low, r.high) for r in plain if r.seed is not None
    ]


def test_one_seed_has_no_interval() -> None:
    (over, _) = readings(lambda load, seed: 1.1, {"load": 0.5}, seeds=1)
    assert (over.low, over.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("at", "along", "says"),
    [
        ({}, None, "give a value of every axis but one: load is missing\n  valid: heat, load\n  next:  --at load=0.5"),
        ({"laod": 1}, None, "did you mean 'load'"),
        ({"load": 7}, None, "'load' runs from 0 to 1"),
        ({"load": 0, "heat": 1}, None, "one axis of numbers must be left"),
        ({"load": 0}, "speed", "is no axis that varies"),
    ],
)
def test_a_line_that_does_not_exist_is_refused(at, along, says: str) -> None:
    with pytest.raises(UserError) as caught:
        readings(lambda load, seed: 1.1, at, along=along)
    assert says in caught.value.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_folder(tmp_path_factory.mktemp("reading"))


def test_the_command_and_the_notebook_read_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    frame = phasefront.load("grid.yaml").read({"data_fraction": 0.675})
    assert frame.columns.tolist() == ["boundary", "along", "seed", "value", "low", "high", "interval"]
    assert len(frame) and frame.seed.dropna().isin([0, 1]).all()
    trials = phasefront.load("grid.yaml").trials()
    own = trials[(trials.data_fraction == 0.675) & (trials.weight_decay > 0)]
    for one in frame[frame.seed.notna() & np.isfinite(frame.value)].to_dict("records"):
        below, above = one["boundary"].split(" | ")
        labels = own[own.replicate == one["seed"]].set_index("weight_decay").phase
        assert one["low"] in labels.index and one["high"] in labels.index
        assert {labels[one["low"]], labels[one["high"]]} & {below, above}
    with pytest.raises(UserError, match=r"^at: is no axis that varies\n(?!.*--)"):
        phasefront.load("grid.yaml").read({"learning_rat": 0.1})
    assert main(["read", "grid.yaml", "--at", "data_fraction=0.675"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("earlier-grid at data_fraction=0.675\n") and "seed 0" in said
    assert main(["read", "grid.yaml", "--at", "data_fraction=0.3"]) == 0
    assert "no boundary: one phase along the whole line" in capsys.readouterr().out


def test_of_a_search_the_fitted_boundary_is_read_with_both_bands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    sweep = phasefront.load("phase_search.yaml")
    boundary = sweep.boundary()
    names = [c for c in sweep.axes if f"{c}_at_5" in boundary.columns]
    vertex = boundary.iloc[len(boundary) // 2]
    frame = sweep.read({names[1]: float(vertex[names[1]])}, along=names[0])
    assert (frame.interval.str.startswith("90% band")).all() and frame.seed.isna().all()
    assert np.abs(np.log(frame.value / vertex[names[0]])).min() < 0.1
    inside = (frame.low <= frame.value) & (frame.value <= frame.high)
    assert inside.all()
    assert main(["read", "phase_search.yaml", "--at", f"{names[1]}={float(vertex[names[1]])}"]) == 0
    assert "fitted boundary" in capsys.readouterr().out


def test_every_column_of_every_table_is_explained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(["map", "grid.yaml", "--classifier", "--step", "test_accuracy"]) == 0
    text = Path("grid/columns.txt").read_text()
    for file in ("trials.parquet", "boundary.parquet", "step_map.parquet"):
        assert f"\n{file}\n" in text
        part = text.split(f"\n{file}\n")[1].split("\n\n")[0]
        for column in pd.read_parquet(f"grid/{file}").columns:
            (line,) = [each for each in part.splitlines() if each.startswith(f"  {column} ")]
            assert len(line.split(None, 1)[1]) > len(column.replace("_", " ")) or column in ("metric",), line
    assert "not as values at the same place along an axis" in " ".join(text.split())

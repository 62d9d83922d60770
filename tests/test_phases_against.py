"""One quantity against another, and where more data hurts: from observations and stored curves, by the command line."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from jobs_for_phases import Melt, MeltParams, axis, by_id, product, row
from recorded_sweeps import recorded_folder

from jobs.job import Censored, Curves, specs
from orchestrator.axes import Axis
from orchestrator.cli import main
from orchestrator.phases.against import NoSuchQuantity, Quantity, against, quantity_of
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.more_data import doubling_figure
from orchestrator.phases.publish_steps import publish_points
from orchestrator.phases.table import TrialTable, collect
from orchestrator.tracking.base import TrialRow

WIDTHS = axis("width", 1, 2, 4, 8, 16, scale="integer")
LOADS = axis("load", 0.1, 0.2, scale="values")


def nothing(trial_ids: Sequence[str]) -> Iterator[tuple[str, Curves]]:
    del trial_ids
    yield from ()


def made(axes: Sequence[Axis], rows: Sequence[TrialRow], trials: Any) -> tuple[PhaseDiagram, TrialTable]:
    table = collect(trials, by_id(*rows))
    return phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams)), table


def test_a_setting_is_a_point_at_the_means_of_its_replicates_with_intervals() -> None:
    random = np.random.default_rng(4)
    trials = product((WIDTHS, LOADS), replicates=4)
    values = {t.id: (float(random.random()), float(random.random())) for t in trials}
    rows = [row(t, final_error=values[t.id][0], norm=values[t.id][1]) for t in trials]
    diagram, table = made((WIDTHS, LOADS), rows, trials)
    x, y = (quantity_of(name, diagram, table, nothing) for name in ("norm", "final_error"))
    figure = against(diagram, table, x, y)
    assert [group.title for group in figure.groups] == ["load 0.1", "load 0.2"]
    for group in figure.groups:
        assert len(group.cells) == 5 and (np.diff(group.x) > 0).all()
        for p, cell in enumerate(group.cells):
            own = np.array([values[table.trial_id[n]] for n in np.flatnonzero(diagram.cell == cell)])
            error, norm = own.mean(axis=0)
            assert (group.x[p], group.y[p], group.count[p]) == pytest.approx((norm, error, 4))
            half = 2.353363435 * own.std(axis=0, ddof=1) / 2  # Student's t, 3 degrees of freedom, 95%
            assert (group.high[p] - error, error - group.low[p]) == pytest.approx((half[0], half[0]))
            assert (group.x_high[p] - norm, norm - group.x_low[p]) == pytest.approx((half[1], half[1]))
    assert "10 settings, mean over 4 replicates with 90% intervals" in figure.lines[0]


def test_a_peak_is_found_along_a_quantity_of_the_setting_and_marked() -> None:
    random = np.random.default_rng(5)
    trials = product((WIDTHS, LOADS), replicates=6)
    rows = []
    for t in trials:
        hump = 0.3 if t.params.width == 4 and t.params.load == 0.1 else 0.0  # type: ignore[attr-defined]
        error = 0.6 - 0.05 * math.log(t.params.width) + hump + 0.01 * random.normal()  # type: ignore[attr-defined]
        rows.append(row(t, final_error=float(error), ratio=t.params.width / 10))  # type: ignore[attr-defined]
    diagram, table = made((WIDTHS, LOADS), rows, trials)
    x, y = (quantity_of(name, diagram, table, nothing) for name in ("ratio", "final_error"))
    figure = against(diagram, table, x, y)
    with_peak, without = figure.groups
    assert with_peak.x[with_peak.marked].tolist() == [0.4] and not without.marked.any()
    assert (with_peak.x_low == with_peak.x).all(), "the same for all replicates"
    assert re.search(r"load 0.1: peak of final_error along ratio: ratio 0.4 \[.*\], .* n = 6\)", figure.lines[1])
    assert "load 0.2: peak of final_error along ratio: none" in figure.lines[2]


def test_what_was_not_reached_is_no_number_and_is_counted() -> None:
    trials = product((WIDTHS,), replicates=2)
    rows = [
        row(t, final_error=0.1, melting_step=Censored(50.0) if (t.params.width, t.replicate) == (4, 1) else 7.0)  # type: ignore[attr-defined]
        for t in trials
    ]
    diagram, table = made((WIDTHS,), rows, trials)
    x, y = (quantity_of(name, diagram, table, nothing) for name in ("width", "melting_step"))
    (group,) = against(diagram, table, x, y).groups
    assert group.x.tolist() == [1, 2, 8, 16]
    assert "1 setting left out, where a replicate has not reached it" in against(diagram, table, x, y).lines[0]


def test_a_metric_is_read_at_the_step_of_an_observation() -> None:
    trials = product((WIDTHS,))
    rows = [row(t, melting_step=Censored(9.0) if t.params.width == 16 else 30.0) for t in trials]  # type: ignore[attr-defined]
    diagram, table = made((WIDTHS,), rows, trials)
    asked: list[str] = []

    def read(trial_ids: Sequence[str]) -> Iterator[tuple[str, Curves]]:
        for trial_id in trial_ids:
            asked.append(trial_id)
            step = np.array([10, 30, 100]) if len(asked) % 2 else np.array([10, 100])
            yield trial_id, Curves(step=step, values={"norm": 2 * np.log1p(step)})

    found = quantity_of("norm@melting_step", diagram, table, read)
    assert len(asked) == 4, "curves of trials that have not melted are not read"
    np.testing.assert_allclose(found.value[~found.censored], 2 * math.log(31))
    assert found.censored.sum() == 1
    with pytest.raises(NoSuchQuantity) as caught:
        quantity_of("loss@melting_step", diagram, table, read)
    assert caught.value.choices == ("norm",)
    with pytest.raises(NoSuchQuantity):
        quantity_of("norm@freezing_step", diagram, table, read)


def test_effective_model_complexity_per_sample_is_an_axis() -> None:
    """A network of width w fits 10 w samples: with the sizes on a grid, EMC/n crosses 1 where the error crosses 0.1."""
    axes = (WIDTHS, axis("heat", 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, scale="log"))
    trials = product(axes, replicates=2)
    rows = []
    for t in trials:
        error = float(np.clip(0.1 + 0.2 * math.log(t.params.heat / (10 * t.params.width)), 0, 1))  # type: ignore[attr-defined]
        rows.append(row(t, final_train_error=error))
    table = collect(trials, by_id(*rows))
    table.params["sample_count"] = table.params["heat"]  # type: ignore[index]
    axes = (WIDTHS, axis("sample_count", *axes[1].values, scale="log"))
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    found = quantity_of("emc_per_sample", diagram, table, nothing)
    inside = np.array(table.params["width"]) < 16
    width, samples = (np.array(table.params[name], dtype=float)[inside] for name in ("width", "sample_count"))
    np.testing.assert_allclose(found.value[inside], 10 * width / samples)
    assert found.censored[~inside].all(), "a width that fits every size has a bound only"


@pytest.mark.parametrize("metric", ["final_error", "final_accuracy"])
def test_more_data_hurts_is_drawn_where_it_does(metric: str, tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    trials = product((WIDTHS, LOADS), replicates=6)
    rows = []
    for t in trials:
        error = 0.5 - 0.05 * math.log(t.params.width) + 0.3 * (t.params.width == 4 and t.params.load == 0.2)  # type: ignore[attr-defined]
        error += 0.01 * random.normal()
        rows.append(row(t, **{metric: float(1 - error if metric == "final_accuracy" else error)}))
    diagram, table = made((WIDTHS, LOADS), rows, trials)
    figure = doubling_figure(diagram, table, quantity_of(metric, diagram, table, nothing), 0)
    first, second = figure.groups
    assert not first.marked.any() and second.x[second.marked].tolist() == [2.0]
    assert "more data hurts at 1 of 8 comparisons of n with 2n" in figure.lines[0]
    assert figure.lines[1].startswith("load 0.2, width 2 to 4: 0.2")
    files = publish_points(figure, tmp_path).files
    table_rows = pq.read_table(files[f"more_data_{metric}.parquet"]).to_pylist()
    assert [(r["load"], r["width"]) for r in table_rows if r["hurts"]] == [(0.2, 2)]
    assert len(table_rows) == 8 and all(r["doubled"] == 2 * r["width"] for r in table_rows)
    for ending in ("png", "html"):
        assert files[f"more_data_{metric}.{ending}"].stat().st_size > 10_000


def test_a_zero_has_a_place_of_its_own_on_a_logarithmic_axis() -> None:
    axes = (axis("heat", 0.0, 0.01, 0.1, 1.0, 10.0, scale="log"),)
    trials = product(axes)
    diagram, table = made(axes, [row(t, final_error=0.2) for t in trials], trials)
    x, y = (quantity_of(name, diagram, table, nothing) for name in ("heat", "final_error"))
    scale = against(diagram, table, x, y).x_scale
    assert scale.kind == "log" and scale.special == 1 and scale.values[0] == 0


def test_nothing_finite_makes_an_empty_figure_that_says_so(tmp_path: Path) -> None:
    trials = product((WIDTHS,))
    diagram, table = made((WIDTHS,), [row(t, final_error=math.nan) for t in trials], trials)
    x, y = (quantity_of(name, diagram, table, nothing) for name in ("width", "final_error"))
    figure = against(diagram, table, x, y)
    assert figure.groups == () and "no setting; 5 trials without a finite value of both" in figure.lines[0]
    assert isinstance(x, Quantity) and publish_points(figure, tmp_path).files


# By the command line, with a record of an earlier version.


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_folder(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a record, in which the command runs."""
    monkeypatch.chdir(folder)
    return folder


def test_map_draws_the_weight_norm_at_the_crossing_from_the_record(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--against", "y=weight_norm@generalisation_step", "x=weight_decay", "--more-data", "final_test_accuracy"]
    assert main(["map", "grid.yaml", *options]) == 0
    said = capsys.readouterr().out
    name = "weight_norm_generalisation_step_against_weight_decay"
    assert f"grid/{name}.png" in said and "left out, where a replicate has not reached it" in said
    rows = pq.read_table(recorded / "grid" / f"{name}.parquet").to_pylist()
    assert rows and all(r["x"] == r["weight_decay"] and r["y"] > 0 and r["replicates"] == 2 for r in rows)
    assert "comparisons of n with 2n" in said
    doubled = pq.read_table(recorded / "grid" / "more_data_final_test_accuracy.parquet").to_pylist()
    assert {r["data_fraction"] for r in doubled} == {0.3} and len(doubled) == 5 and doubled[0]["interpolated"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--against", "x=weight_decay", "z=final_test_loss"], "must be x=NAME y=NAME"),
        (["--against", "x=weight_decay", "y=test_accuracy"], "did you mean 'final_test_accuracy'?"),
        (["--against", "x=weight_decay", "y=final_test_acuracy"], "did you mean 'final_test_accuracy'?"),
        (["--against", "x=emc_per_sample", "y=final_test_accuracy"], "needs an axis sample_count"),
        (["--more-data", "final_error", "--along", "fraction"], "valid: weight_decay, data_fraction"),
    ],
)
def test_a_name_that_is_none_is_a_mistake_with_a_way_out(
    options: list[str], said: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["map", "grid.yaml", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error

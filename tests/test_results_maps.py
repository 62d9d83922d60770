"""Maps, boundaries and figures of a notebook, compared with the files that `map` writes."""

import json
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from recorded_sweeps import recorded_folder
from results_kit import EXPECTED

import phasefront
from orchestrator.cli import main
from orchestrator.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the files of `map` for the grid."""
    folder = recorded_folder(tmp_path_factory.mktemp("maps"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["map", "grid.yaml", "--classifier", "--figures", "svg,pdf", "--step", "test_accuracy"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _beside_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_cells_count_the_replicates_of_each_setting() -> None:
    sweep = phasefront.load("grid.yaml")
    cells, trials = sweep.map().cells(), sweep.trials()
    assert len(cells) == 25 and not cells.duplicated(["weight_decay", "data_fraction"]).any()
    for row in cells.to_dict("records"):
        own = trials[(trials.weight_decay == row["weight_decay"]) & (trials.data_fraction == row["data_fraction"])]
        counts = own.phase.value_counts()
        assert {name: row[f"count/{name}"] for name in counts.index} == counts.to_dict()
        assert counts[row["phase"]] == counts.max() and row["agreement"] == counts.max() / len(own)
        assert (row["finished"], row["failed"], row["missing"]) == (2, 0, 0)
        assert row["generalisation_step_reached"] == own.generalisation_step.notna().mean()
        if row["generalisation_step_reached"] == 1:
            assert row["generalisation_step_median"] == own.generalisation_step.median()
        elif row["generalisation_step_reached"] < 0.5:
            assert np.isnan(row["generalisation_step_median"])
    expected = EXPECTED["grid"]["majority"]
    assert cells.phase.tolist() == expected


def test_the_boundary_is_that_of_the_file() -> None:
    boundary = phasefront.load("grid.yaml").boundary()
    written = pd.read_parquet("grid/boundary.parquet")
    pd.testing.assert_frame_equal(boundary, written)
    assert len(boundary) > 10


def test_a_search_is_fitted_without_being_asked() -> None:
    fitted = phasefront.load("level_search.yaml").map()
    assert 0 < fitted.uncertain_area < 1
    columns = [name for name in fitted.boundary().columns if "over_seeds" not in name]
    assert columns == EXPECTED["level_search"]["boundary_columns"]
    assert isinstance(fitted.figure(), matplotlib.figure.Figure)
    assert isinstance(fitted.plotly(), go.Figure)


def test_a_grid_has_a_boundary_with_the_classifier_only() -> None:
    with pytest.raises(UserError, match=r"map\(classifier=True\)"):
        phasefront.load("grid.yaml").map().boundary()


def test_figures_are_objects_of_matplotlib_and_plotly() -> None:
    drawn = phasefront.load("grid.yaml").map()
    assert drawn.figures == ("phase_diagram", "phase_diagram_lines")
    for name in drawn.figures:
        figure = drawn.figure(name)
        assert isinstance(figure, matplotlib.figure.Figure) and len(figure.axes) > 1
    figure.savefig("figure.pdf")
    assert Path("figure.pdf").read_bytes().startswith(b"%PDF")
    assert figure._repr_png_().startswith(b"\x89PNG")
    page = Path("grid/phase_diagram.html").read_text()
    data = json.loads(page.partition('<script id="data" type="application/json">')[2].partition("</script>")[0])
    assert set(drawn.views) <= {view["name"] for view in data["views"]}
    plotted = drawn.plotly("phase")
    assert isinstance(plotted, go.Figure) and len(plotted.data) > 1
    assert any("data fraction" in str(trace.text) for trace in plotted.data)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda drawn: drawn.figure("phase_digram"), "did you mean 'phase_diagram'?"),
        (lambda drawn: drawn.figure(panels=["phase", "generalisation_stp"]), "did you mean 'generalisation_step'?"),
        (lambda drawn: drawn.plotly("phas"), "did you mean 'phase'?"),
        (lambda drawn: drawn.plotly("phase", "x"), "is no slice of this map"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(call, text: str) -> None:
    with pytest.raises(UserError) as error:
        call(phasefront.load("grid.yaml").map())
    assert text in error.value.text


def test_nothing_recorded_has_no_map() -> None:
    with pytest.raises(UserError, match="nothing is recorded of this sweep yet"):
        phasefront.load("grid.yaml", overrides=["tracking.experiment=another"]).map()


def test_every_figure_is_written_in_every_format(folder: Path) -> None:
    pictures = sorted((folder / "grid").glob("*.png"))
    assert {"phase_diagram.png", "step_map_test_accuracy.png"} <= {picture.name for picture in pictures}
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in picture.with_suffix(".svg").read_bytes()[:1000]
        assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    stale = folder / "grid" / "search_progress.svg"
    stale.write_text("of an earlier map")
    assert main(["map", "grid.yaml"]) == 0
    assert not stale.exists(), "figures that an earlier map had are removed"
    assert (folder / "grid" / "phase_diagram.svg").exists(), "others are drawn again in their formats"


def test_formats_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["map", "grid.yaml", "--figures", "svg,eps"])
    assert stopped.value.code == 2 and "must be png, svg, pdf" in capsys.readouterr().err

"""Where more data hurts, and a metric over an axis and the step, as `analysis:` names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.job import Curves
from orchestrator.analyses.more_data import MoreDataAnalysis
from orchestrator.analyses.step_map import StepMapAnalysis
from orchestrator.analyses.view import draw
from orchestrator.analysis.estimate import Estimate
from orchestrator.cli import main
from tests.analyses_kit import STEPS, axis, row, source, trial

SIZES = (100, 200, 400, 800, 1600)
CURVES = {
    0.0: (0.5, 0.45, 0.4, 0.35, 0.3),
    0.2: (0.4, 0.5, 0.6, 0.45, 0.3),
}
"""Label noise -> test error at each size: at 0.2 it rises from 100 to 400."""


def errors(name: str = "final_test_error", *, replicates: int = 8) -> Any:
    random = np.random.default_rng(0)
    rows = []
    for noise, means in CURVES.items():
        for size, mean in zip(SIZES, means, strict=True):
            for replicate in range(replicates):
                value = mean + 0.01 * random.standard_normal()
                one = trial(replicate, sample_count=size, label_noise=noise)
                rows.append((one, row(one, **{name: 1 - value if "accuracy" in name else value})))
    return source(rows, axis("sample_count", *SIZES), axis("label_noise", *CURVES))


@pytest.mark.parametrize("name", ["final_test_error", "final_test_accuracy"])
def test_a_region_where_more_data_hurts_is_named(name: str, tmp_path: Path) -> None:
    result = MoreDataAnalysis(kind="more_data", of=name).compute(errors(name))
    hurts = [(each["label_noise"], each["sample_count"]) for each in result.rows if each["hurts"]]
    assert len(result.rows) == 8 and hurts == [(0.2, 100), (0.2, 200)]
    assert result.notes[0] == "label noise 0.2: more data hurts from sample_count 100 to 400"
    first = next(each for each in result.rows if each["label_noise"] == 0.2)
    change = first["change"]
    assert isinstance(change, Estimate) and change.low < 0.1 < change.high
    assert float(str(first["adjusted"])) >= float(str(first["p_value"])), "adjusted for the whole table"
    assert result.metrics()[f"analysis/{result.name}/change/label_noise 0.2/sample_count 100"] == change.value
    draw("sweep", result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_family_is_the_whole_table() -> None:
    """One test of many settings at p = .02 each: none is a claim of its own."""
    random = np.random.default_rng(3)
    rows = []
    for noise in np.linspace(0, 0.4, 40).tolist():
        for size in (100, 200):
            for replicate in range(4):
                one = trial(replicate, sample_count=size, label_noise=noise)
                rows.append((one, row(one, final_test_error=0.5 + 0.05 * random.standard_normal())))
    given = source(rows, axis("sample_count", 100, 200), axis("label_noise", *np.linspace(0, 0.4, 40).tolist()))
    result = MoreDataAnalysis(kind="more_data").compute(given)
    assert min(float(str(each["p_value"])) for each in result.rows) < 0.05
    assert not any(each["hurts"] for each in result.rows)
    assert result.notes[0] == "more data is not shown to hurt anywhere"


def test_one_replicate_is_not_tested() -> None:
    result = MoreDataAnalysis(kind="more_data").compute(errors(replicates=1))
    assert {each["hurts"] for each in result.rows} == {None}
    assert result.notes[0].startswith("not tested: it takes two replicates")


def test_a_step_map_has_the_peaks_along_the_axis_and_along_the_steps(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    widths = (4, 8, 16, 32, 64, 128)
    rows, curves = [], {}
    for width in widths:
        for replicate in range(8):
            one = trial(replicate, width=width)
            mean = 0.9 - 0.03 * np.log(STEPS) + 0.2 * np.exp(-((np.log(width / 32)) ** 2))
            values = mean + 0.01 * random.standard_normal(len(STEPS))
            rows.append((one, row(one)))
            curves[one.id] = Curves(step=STEPS, values={"test_error": values})
    given = source(rows, axis("width", *widths), curves=curves)
    result = StepMapAnalysis(kind="step_map", of="test_error", along="width", level=0.8).compute(given)
    model_wise, *epoch_wise = result.rows
    place = model_wise["place"]
    assert (model_wise["peak_along"], model_wise["at"], model_wise["peak"]) == ("width", STEPS[-1], "yes")
    assert isinstance(place, Estimate) and place.value == 32 and place.level == 0.8
    assert [each["at"] for each in epoch_wise] == list(widths)
    assert sum(each["peak"] == "yes" for each in epoch_wise) <= 1, "of six curves without a peak, 2% each"
    assert {"ratio", "threshold"} <= set(result.main) and any("98% quantile" in note for note in result.notes)
    assert result.picture is not None
    result.picture("sweep", tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_a_step_map_without_curves_says_so() -> None:
    rows = [(one := trial(r, width=width), row(one)) for width in (4, 8) for r in range(2)]
    result = StepMapAnalysis(kind="step_map", of="test_error", along="width").compute(source(rows, axis("width", 4, 8)))
    assert result.rows == () and result.notes == ("not drawn: no finished trial has a curve of test_error",)


def test_a_sweep_file_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("linear.yaml").write_text("""\
job: ridge
axes:
  sample_count: [10, 20, 40]
fixed: {features: 20, inputs: 20, noise_variance: 0.5, solver: gradient_descent, steps: 200}
replicates: 3
analysis:
  - {kind: more_data, of: final_test_loss}
  - {kind: step_map, of: test_loss, along: sample_count}
""")
    assert main(["run", "linear.yaml", "--inline", "--quiet"]) == 0
    out = Path("phasefront-out/linear")
    names = ["more_data_final_test_loss_sample_count", "step_map_test_loss_sample_count"]
    assert [each["name"] for each in json.loads((out / "analysis.json").read_text())["analyses"]] == names
    assert {path.name for path in out.glob("analysis_*")} == {
        f"analysis_{n}.{e}" for n in names for e in ("csv", "png")
    }

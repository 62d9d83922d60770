"""Analyses of sweeps with few, failed or odd trials: a table that can be printed, kept and drawn, or a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analyses_kit import STEPS, axis, row, source, trial

from jobs.job import Censored, Curves
from orchestrator.analyses.base import Analysis
from orchestrator.analyses.kinds import _ONE, KINDS
from orchestrator.analyses.result import write_json
from orchestrator.analyses.source import Source
from orchestrator.analyses.view import draw
from orchestrator.axes import Axis
from orchestrator.cli import main
from orchestrator.phases.steps import search_rows
from orchestrator.records import Status

WRITTEN: Sequence[dict[str, Any]] = (
    {"kind": "peak", "of": "final_test_error", "along": "width"},
    {"kind": "peak", "of": "final_test_error", "along": "width", "scale": "log"},
    {"kind": "peak", "of": "test_error", "along": "step"},
    {"kind": "complexity", "of": "final_train_error", "along": "sample_count"},
    {"kind": "threshold", "of": "final_train_error", "along": "width"},
    {"kind": "more_data", "of": "final_test_error", "along": "sample_count"},
    {"kind": "step_map", "of": "test_error", "along": "width"},
    {"kind": "times", "of": "interpolation_step"},
    {"kind": "times", "of": "interpolation_step", "between": "optimiser", "tune": ["learning_rate"]},
    {"kind": "times", "of": "interpolation_step", "between": "width"},
    {"kind": "law", "of": "interpolation_step", "along": "width", "form": ["power", "broken"]},
    {"kind": "critical", "of": "interpolation_step", "along": "sample_count"},
    {"kind": "critical", "of": "interpolation_step", "along": "sample_count", "size": "width"},
    {"kind": "critical", "of": "interpolation_step", "along": "sample_count", "size": "width", "moves": True},
)
WIDTHS, COUNTS, OPTIMISERS = (4, 8, 16), (100, 200), ("sgd", "adam")
AXES: tuple[Axis, ...] = (
    axis("width", *WIDTHS),
    axis("sample_count", *COUNTS),
    axis("optimiser", *OPTIMISERS),
    axis("learning_rate", 0.01, 0.1),
)
NAN, INF = float("nan"), float("inf")


def bent(*, x: float = 1.0, seed: int, report: Callable[..., None]) -> None:
    """A plain function whose loss peaks at x = 0, and whose `shift` is negative where x is."""
    noise = 0.01 * float(np.random.default_rng([seed, abs(int(x))]).random())
    report(1, loss=1 - 0.2 * x * x + noise, shift=x - noise)


SWEEP = """\
name: bent
job: test_analyses_odd:bent
axes:
  x: [-2, -1, 0, 1, 2]
replicates: 4
phases: {metric: loss, level: 0.5}
analysis:
  - """


def plain(place: int) -> dict[str, float | Censored]:
    errors = {"final_test_error": 0.5 + 0.01 * (place % 7), "final_train_error": 0.2 if place % 3 else 0.01}
    return {**errors, "interpolation_step": 100.0 + place, "interpolation_step_after": 90.0 + place}


def trials_of(
    widths: Sequence[int] = WIDTHS,
    counts: Sequence[int] = COUNTS,
    replicates: int = 2,
    observed: Callable[[int], dict[str, float | Censored]] = plain,
    status: Callable[[int], Status] = lambda place: Status.FINISHED,
    curve: Callable[[int], np.ndarray | None] = lambda place: 1 / np.sqrt(STEPS) + 0.01 * np.sin(place + STEPS),
) -> Source:
    settings = [
        (width, count, optimiser, rate, replicate)
        for width in widths
        for count in counts
        for optimiser, rate in (("sgd", 0.01), ("adam", 0.1))
        for replicate in range(replicates)
    ]
    made, curves = [], {}
    for place, (width, count, optimiser, rate, replicate) in enumerate(settings):
        one = trial(replicate, width=width, sample_count=count, optimiser=optimiser, learning_rate=rate)
        finished = status(place) is Status.FINISHED
        made.append((one, row(one, status(place), **(observed(place) if finished else {}))))
        values = curve(place)
        if finished and values is not None:
            curves[one.id] = Curves(step=STEPS[: len(values)], values={"test_error": values})
    return source(made, *AXES, curves=curves)


def alternating(place: int) -> dict[str, float | Censored]:
    """NaN, infinity and nothing at all, in turn."""
    number = (NAN, INF, -INF, 0.3)[place % 4]
    event: float | Censored = (NAN, INF, Censored(2000.0), 0.0)[place % 4]
    return {"final_test_error": number, "final_train_error": number, "interpolation_step": event}


SOURCES: dict[str, Callable[[], Source]] = {
    "no trial": lambda: trials_of(replicates=0),
    "no finished trial": lambda: trials_of(status=lambda place: Status.RUNNING),
    "failed trials only": lambda: trials_of(status=lambda place: Status.FAILED),
    "half of the trials failed": lambda: trials_of(status=lambda p: Status.FAILED if p % 2 else Status.FINISHED),
    "one trial finished": lambda: trials_of(status=lambda p: Status.RUNNING if p else Status.FINISHED),
    "one setting": lambda: trials_of(widths=(4,), counts=(100,)),
    "one replicate": lambda: trials_of(replicates=1),
    "observations missing": lambda: trials_of(observed=lambda place: {}),
    "observations missing in half": lambda: trials_of(observed=lambda p: plain(p) if p % 2 else {}),
    "numbers that are not finite": lambda: trials_of(observed=alternating),
    "infinite throughout": lambda: trials_of(observed=lambda place: dict.fromkeys(plain(0), INF)),
    "never reached": lambda: trials_of(observed=lambda p: {**plain(p), "interpolation_step": Censored(2000.0)}),
    "equal throughout": lambda: trials_of(observed=lambda place: plain(0), curve=lambda place: np.ones(len(STEPS))),
    "zero throughout": lambda: trials_of(observed=lambda p: dict.fromkeys(plain(0), 0.0)),
    "curves missing in half": lambda: trials_of(curve=lambda p: None if p % 2 else 1.0 / STEPS),
    "curves of other lengths": lambda: trials_of(curve=lambda place: 1.0 / STEPS[: 1 + place % len(STEPS)]),
    "curves that are not finite": lambda: trials_of(curve=lambda p: np.full(len(STEPS), (NAN, INF, -INF, 1.0)[p % 4])),
}


@pytest.fixture(scope="module")
def analyses() -> list[Analysis]:
    made: list[Analysis] = [_ONE.validate_python(written) for written in WRITTEN]
    assert {analysis.kind_name for analysis in made} == set(KINDS)
    return made


FAST = ("no finished trial", "one trial finished", "observations missing in half")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SOURCES]
)
@pytest.mark.filterwarnings("error")
def test_every_analysis_has_a_table_that_can_be_kept_and_drawn(
    name: str, analyses: list[Analysis], tmp_path: Path
) -> None:
    given = SOURCES[name]()
    for analysis in analyses:
        result = analysis.compute(given)
        assert result.lines()[0]
        assert all(np.isfinite(value) for value in result.metrics().values())
        write_json([result], tmp_path / "all.json", sweep="odd")
        kept = json.loads((tmp_path / "all.json").read_text())["analyses"][0]
        assert len(kept["rows"]) == len(result.rows)
        if result.rows:
            result.write_csv(tmp_path / "table.csv")
            assert len((tmp_path / "table.csv").read_text().splitlines()) == len(result.rows) + 1
        if result.picture is not None:
            result.picture("odd", tmp_path / "picture.png")
        elif result.figure is not None and result.figure.panels:
            one_panel = replace(result, figure=replace(result.figure, panels=result.figure.panels[-1:]))
            draw("odd", one_panel, tmp_path / "picture.png")


def test_a_peak_along_an_axis_with_negative_values_needs_no_logarithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended in a traceback after the training, also without smoothing."""
    monkeypatch.chdir(tmp_path)
    file = Path("bent.yaml")
    file.write_text(SWEEP + "{kind: peak, of: final_loss, along: x, name: mine, window: 2}\n")
    assert main(["run", "bent.yaml", "--inline", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "bent.yaml:8:64: a window smooths in the logarithm, and axis 'x' has negative values, from -2 on" in said
    assert "write 'window: 1'" in said and not Path("mlruns").exists()

    file.write_text(SWEEP + "{kind: peak, of: final_loss, along: x, name: mine}\n")
    assert main(["run", "bent.yaml", "--inline", "--quiet"]) == 0
    assert "yes   0 [-1, 1]" in capsys.readouterr().out

    # The record of an earlier version, whose sweep file has the window.
    file.write_text(SWEEP + "{kind: peak, of: final_loss, along: x, name: mine, window: 2}\n")
    assert main(["analyse", "bent.yaml"]) == 0
    assert "not tested: a window of 2 smooths in the logarithm, and x has negative values" in capsys.readouterr().out


def test_the_peak_of_a_step_map_may_be_at_a_negative_value() -> None:
    x = np.arange(-4.0, 3.0)
    values = -np.abs(x + 1) + 0.01 * np.random.default_rng(0).random((4, len(x)))
    found = search_rows(x, values, window=1.0)
    assert found is not None and found.peak is not None and found.peak.x.value == -1
    assert search_rows(x, values, window=1.5) is None


def test_negative_observations_are_compared_without_a_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended in a traceback; without `between`, the interval of a negative median of few began at 0."""
    monkeypatch.chdir(tmp_path)
    Path("bent.yaml").write_text(SWEEP + "{kind: times, of: final_shift, between: x, name: mine}\n")
    assert main(["run", "bent.yaml", "--inline", "--quiet"]) == 0
    assert "a pair in which a value is negative has no ratio" in capsys.readouterr().out
    rows = json.loads(Path("phasefront-out/bent/analysis.json").read_text())["analyses"][0]["rows"]
    pairs = {(row["of"], row["against"]): row for row in rows if row["test"] == "paired log-rank"}
    assert pairs[-2, -1]["p_value"] == pairs[1, 2]["p_value"] == 2 / 2**4, "each of four pairs has one order"
    assert pairs[-2, -1]["ratio"] is None and 0 < pairs[1, 2]["ratio"]["value"] <= 0.5
    low = {row["of"]: row["median"]["low"] for row in rows if row["against"] is None}
    assert (low[-2], low[2]) == ("-inf", 0)

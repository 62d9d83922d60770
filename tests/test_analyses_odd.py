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

"""Theory on a map drawn by a classifier: position of its line, evaluated settings, and omissions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_for_phases import GivenSweep, Melt, MeltParams, MeltThresholds, axis, by_id, row, trial
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from jobs.job import Censored, Prediction, specs
from jobs.theory.domain import DomainError
from orchestrator.axes import Axis
from orchestrator.phases.diagram import phase_diagram
from orchestrator.phases.map.classify import classify
from orchestrator.phases.map.surface_map import planes
from orchestrator.phases.publish import Published, publish
from orchestrator.phases.publish_map import Drawing
from orchestrator.phases.table import collect
from orchestrator.phases.theory.overlay import COLOURS
from orchestrator.phases.theory.plane import SIDE, SliceParams, TheoryPlane, asker, theory_plane
from orchestrator.target import LevelTarget, PhaseTarget, Target
from orchestrator.trial import Trial

HEAT = axis("heat", 0.1, 10.0, scale="log")
LOAD = axis("load", 0.0, 1.0, scale="linear")
WIDTH = axis("width", 2, 20, scale="integer")
Theory = Callable[[MeltParams], Mapping[str, float | Censored]]

PHASES = PhaseTarget()


class Told(Melt):
    """A job with a given theory, which keeps what it was asked."""

    def __init__(self, theory: Theory) -> None:
        self._theory, self.asked = theory, list[MeltParams]()

    def theory(self, params: MeltParams) -> Mapping[str, Prediction]:
        self.asked.append(params)
        return {name: Prediction(value=v, source="a formula") for name, v in self._theory(params).items()}


def melted(params: MeltParams) -> float:
    return math.log10(params.heat) + params.load - 0.5


def right(params: MeltParams) -> Mapping[str, float | Censored]:
    """The phases of the trials below, and an error whose level 0.5 is at heat = 1."""
    step = 10 ** -melted(params) if melted(params) > 0 else Censored(9.0)
    return {"melting_step": step, "final_error": 1 / (1 + params.heat**-2)}


def trials_of(*axes: Axis, count: int = 60, **zipped: Callable[[float], Any]) -> list[Trial]:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        settings: dict[str, Any] = {}
        for one in axes:
            low, high = (float(v) for v in one.values)
            at = rng.random()
            value = low * (high / low) ** at if one.scale == "log" else low + at * (high - low)
            settings[one.name] = round(value) if one.scale == "integer" else value
        settings |= {name: of(float(settings[axes[0].name])) for name, of in zipped.items()}
        found.append(trial(0, **settings))
    return found


def rows_of(trials: list[Trial], job: Told) -> dict[str, Any]:
    rows = []
    for one in trials:
        seen = job._theory(one.params)  # type: ignore[arg-type]
        phase = "solid" if isinstance(seen["melting_step"], Censored) else "liquid"
        rows.append(row(one, phase, **seen))
    return by_id(*rows)


def told(
    job: Told,
    axes: tuple[Axis, ...],
    trials: list[Trial],
    target: Target = PHASES,
    *,
    seconds: float = 60.0,
    measured: Theory = right,
) -> TheoryPlane | None:
    table = collect(trials, rows_of(trials, Told(measured)))
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    found = classify(target, diagram, table, axes, listed=True)
    (one,) = found.fitted
    by = {t.id: t.params for t in trials}
    params = [by[table.trial_id[r]] for r in one.slice.rows]
    ask = asker(job, MeltThresholds(), target, found.labels)
    return theory_plane(
        planes(one)[0],
        SliceParams(slice=one.slice, params=params, partners=diagram.partners),
        ask,
        seconds=seconds,
    )


@pytest.mark.parametrize("kind", ["phase", "level"])
def test_the_predicted_line_is_where_theory_puts_it(kind: str) -> None:
    target = PhaseTarget() if kind == "phase" else LevelTarget(metric="final_error", level=0.5)
    job = Told(right)
    found = told(job, (HEAT, LOAD), trials_of(HEAT, LOAD), target)
    assert found is not None
    points = np.concatenate(found.lines)
    off = points[:, 0] + points[:, 1] - 0.5 if kind == "phase" else points[:, 0]
    assert np.abs(off).max() < 2.1 / SIDE / 2**5  # of a square of the lattice, on an axis two decades long
    assert points[:, 1].min() == 0 and points[:, 1].max() == 1
    assert found.compared == 1 and found.differ < 0.05
    assert len(job.asked) < (SIDE + 1) ** 2 / 4
    assert len({(p.heat, p.load) for p in job.asked}) == len(job.asked)


def test_how_much_of_the_map_differs_is_an_area() -> None:
    def late(params: MeltParams) -> Mapping[str, float | Censored]:
        return right(MeltParams(heat=params.heat, load=max(0.0, params.load - 0.5)))

    found = told(Told(late), (HEAT, LOAD), trials_of(HEAT, LOAD))
    # Between log10(heat) = 1/2 - load and 1/2 - max(0, load - 1/2), of a box two decades wide.
    assert found is not None and found.differ == pytest.approx((0.125 + 0.25) / 2, abs=0.03)


def test_a_theory_is_asked_of_whole_numbers_only_and_of_what_the_trials_have_besides() -> None:
    job = Told(lambda p: {"melting_step": 1.0 if p.width > 10 else Censored(9.0), "final_error": 0.0})
    trials = [trial(0, **{**t.settings(), "kind": "tin"}) for t in trials_of(WIDTH, LOAD)]  # type: ignore[arg-type]
    found = told(job, (WIDTH, LOAD), trials, measured=job._theory)
    assert found is not None and {type(p.width) for p in job.asked} == {int}
    assert {p.kind for p in job.asked} == {"tin"}
    (line,) = found.lines
    assert line[:, 0] == pytest.approx(math.log10(10 * 11) / 2)  # the middle, on its log scale


def test_what_is_zipped_to_an_axis_goes_with_it() -> None:
    job = Told(right)
    trials = trials_of(HEAT, LOAD, width=lambda heat: round(10 * heat) + 1, speed=lambda heat: 3 * heat)
    zipped = (
        axis("heat", 0.1, 10.0, scale="log", group=0),
        LOAD,
        axis("speed", 0.3, 30.0, scale="log", group=0),
    )
    assert told(job, zipped, trials) is not None
    inside = [p for p in job.asked if 0.2 < p.heat < 5]
    assert len(inside) > 50
    assert max(abs(p.speed / p.heat - 3) for p in inside) < 1e-6


def test_outside_its_domain_no_line_is_drawn() -> None:
    def partly(params: MeltParams) -> Mapping[str, float | Censored]:
        if params.load > 0.5:
            raise DomainError("loaded too much")
        return right(params)

    found = told(Told(partly), (HEAT, LOAD), trials_of(HEAT, LOAD))
    assert found is not None and found.compared == pytest.approx(0.5, abs=0.02)
    assert np.concatenate(found.lines)[:, 1].max() <= 0.5

    def nowhere(params: MeltParams) -> Mapping[str, float | Censored]:
        raise ZeroDivisionError("a user's own code")

    assert told(Told(nowhere), (HEAT, LOAD), trials_of(HEAT, LOAD)) is None
    silent = Told(lambda _: {"another": 1.0})
    assert told(silent, (HEAT, LOAD), trials_of(HEAT, LOAD)) is None


def test_without_time_nothing_more_is_asked() -> None:
    job = Told(right)
    assert told(job, (HEAT, LOAD), trials_of(HEAT, LOAD), seconds=-1.0) is None
    assert job.asked == []


def test_a_bound_says_nothing_of_a_side_that_it_does_not_reach() -> None:
    level = LevelTarget(metric="any", level=5.0)
    said = [level.side(v) for v in (4.0, 5.0, math.inf, Censored(4.0), Censored(5.0), math.nan, None)]
    assert said == [0, 1, 1, -1, 1, -1, -1]


def published(folder: Path, job: Melt) -> Published:
    trials = trials_of(HEAT, LOAD)
    sweep = GivenSweep(axes=(HEAT, LOAD), job=job)
    return publish(sweep, trials, rows_of(trials, Told(right)), folder, drawing=Drawing(search=True))


def theory_traces(found: Published) -> list[dict[str, Any]]:
    text = found.files["phase_diagram.html"].read_text()
    page = json.loads(text.split('<script id="data" type="application/json">')[1].split("</script>")[0])
    return [t for t in page["views"][0]["slices"][0]["traces"] if t["name"].startswith("theory: ")]


def coloured(found: Published) -> int:
    """Pixels of the PNG in theory's colour."""
    picture = imread(found.files["phase_diagram.png"])[:, :, :3]
    return int((np.abs(picture - np.array(to_rgb(COLOURS[0]))).max(axis=2) < 0.02).sum())


def test_picture_and_page_have_the_line_and_those_of_a_job_without_theory_do_not(tmp_path: Path) -> None:
    with_theory, without = published(tmp_path / "a", Told(right)), published(tmp_path / "b", Melt())
    (trace,) = theory_traces(with_theory)
    assert trace["name"].endswith("% of the map differs")
    points = np.array([(x, y) for x, y in zip(trace["x"], trace["y"], strict=True) if x is not None])
    assert len(points) > 20 and np.abs(points.sum(axis=1) - 0.5).max() < 2.1 / SIDE / 2**5
    assert coloured(with_theory) > 300 and coloured(without) == 0
    assert theory_traces(without) == []

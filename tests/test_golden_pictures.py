"""Every kind of figure looks as it did: golden pictures with a tolerance; fonts are embedded, and text is text."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import golden_pictures
import matplotlib
import numpy as np
import pytest
from analyses_kit import row as descent_row
from analyses_kit import source
from analyses_kit import trial as descent_trial
from jobs_for_phases import GivenSweep, Melt, MeltParams, axis, by_id, product, row
from matplotlib.image import imread, imsave

from jobs.job import Censored, Curves, Observations, Params, Prediction, specs
from orchestrator.analyses.law import LawAnalysis
from orchestrator.analyses.peak import PeakAnalysis
from orchestrator.analyses.publish import analyse
from orchestrator.analyses.times import TimesAnalysis
from orchestrator.axes import Axis
from orchestrator.phases.against import against, quantity_of
from orchestrator.phases.compare import Side, compare, side
from orchestrator.phases.diagram import phase_diagram
from orchestrator.phases.draw.png_compare import draw_comparison
from orchestrator.phases.more_data import doubling_figure
from orchestrator.phases.publish import publish
from orchestrator.phases.publish_map import Drawing
from orchestrator.phases.publish_steps import publish_points, publish_steps
from orchestrator.phases.steps import read_step_map
from orchestrator.phases.style import FigureStyle
from orchestrator.phases.table import TableNote, collect
from orchestrator.records import Status
from orchestrator.target import RidgeTarget
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

BOTH = ("svg", "pdf")
HEAT = axis("heat", *(float(f"{v:.4g}") for v in np.geomspace(0.1, 10, 6)), scale="log")
LOAD = axis("load", *(k / 5 for k in range(6)), scale="linear")
WIDTHS = axis("width", 4, 8, 16, 32, 64, 128, scale="integer")
STEPS = np.unique(np.geomspace(1, 10_000, 30).round().astype(np.int64))
REPLICATES = 3


class Foretold(Melt):
    """With a theory of its phases and curves."""

    headline = ("melting_step",)

    def phase(self, params: MeltParams, observations: Observations, thresholds: Params) -> str:
        return "gas" if observations["melting_step"] == 1.0 else super().phase(params, observations, thresholds)

    def theory(self, params: MeltParams) -> Mapping[str, Prediction]:
        liquid = params.load > 0.45 + 0.2 * math.log10(params.heat)
        return {
            "melting_step": Prediction(value=2.0 if liquid else Censored(9.0), source="a formula"),
            "melted": Prediction(value=params.load + 1 / STEPS, step=STEPS, source="a formula"),
        }


def melts_at(heat: float, replicate: int, shift: float = 0.0) -> float:
    """The load from which it is liquid; every seed has its own line."""
    return 0.5 + shift + 0.2 * math.log10(heat) + 0.07 * (replicate - 1)


def melted(trials: Sequence[Trial], shift: float = 0.0) -> dict[str, TrialRow]:
    """A row per trial: three phases, steps that are partly not reached, errors, and one failed trial."""
    rows = []
    for t in trials:
        p: Any = t.params
        over = p.load - melts_at(p.heat, t.replicate, shift)
        phase = "gas" if over > 0.35 else "liquid" if over > 0 else "solid"
        time = 100 * 10 ** (2 - 3 * over) if over > -0.2 else Censored(30_000.0)
        rows.append(row(t, phase, melting_step=time, final_error=0.5 - 0.4 * math.tanh(over)))
    rows[-1] = row(trials[-1], None, Status.FAILED)
    return by_id(*rows)


def grid(folder: Path) -> dict[str, Path]:
    trials = product((HEAT, LOAD), REPLICATES)
    files = publish(GivenSweep(axes=(HEAT, LOAD)), trials, melted(trials), folder).files
    return {"map": files["phase_diagram.png"], "curves": files["phase_diagram_lines.png"]}


def page(folder: Path) -> dict[str, Path]:
    trials = product((HEAT, LOAD), REPLICATES)
    style = FigureStyle.model_validate(
        {"width": "single", "labels": {"heat": r"heat $\theta$ (K)", "gas": "vapour"}, "colours": {"gas": "#882255"}}
    )
    sweep = GivenSweep(axes=(HEAT, LOAD))
    return {
        "map_page": publish(sweep, trials, melted(trials), folder, style=style, figures=BOTH).files["phase_diagram.png"]
    }


def multiples(folder: Path) -> dict[str, Path]:
    axes = (HEAT, LOAD, axis("kind", "iron", "tin", "lead"))
    trials = product(axes)
    rows = melted([t for t in trials if t.params.kind != "tin" or t.params.load > 0.2])  # type: ignore[attr-defined]
    return {"small_multiples": publish(GivenSweep(axes=axes), trials, rows, folder).files["phase_diagram.png"]}


def boundary(folder: Path) -> dict[str, Path]:
    trials = product((HEAT, LOAD), REPLICATES)
    history = [(27 * k, 0.4 / k) for k in range(1, 9)]
    drawing = Drawing(search=True, history=history)
    files = publish(GivenSweep(axes=(HEAT, LOAD)), trials, melted(trials), folder, drawing=drawing, figures=BOTH).files
    return {"boundary": files["phase_diagram.png"], "search_progress": files["search_progress.png"]}


def ridge(folder: Path) -> dict[str, Path]:
    axes = (HEAT, LOAD)
    trials = product(axes)
    rows = []
    for t in trials:
        p: Any = t.params
        off = math.log10(p.heat) - (p.load - 0.5)
        rows.append(row(t, final_error=0.2 + 0.5 * math.exp(-4 * off * off)))
    drawing = Drawing(target=RidgeTarget(ridge="final_error", along="heat"))
    files = publish(GivenSweep(axes=axes), trials, by_id(*rows), folder, drawing=drawing).files
    return {"ridge": files["phase_diagram.png"]}


def theory(folder: Path) -> dict[str, Path]:
    trials = product((HEAT, LOAD), REPLICATES)

    def read(ids: Sequence[str]) -> Iterator[tuple[str, Curves]]:
        for t in trials:
            if t.id in ids:
                wave = 0.02 * np.cos(np.arange(len(STEPS)) + t.replicate)
                yield t.id, Curves(step=STEPS, values={"melted": t.params.load + 1 / STEPS + wave})  # type: ignore[attr-defined]

    sweep = GivenSweep(axes=(HEAT, LOAD), job=Foretold())
    files = publish(sweep, trials, melted(trials), folder, curves=read).files
    return {"theory": files["phase_diagram.png"], "theory_curves": files["theory_curves.png"]}


def comparison(folder: Path) -> dict[str, Path]:
    folder.mkdir()

    def of(shift: float, name: str) -> Side:
        trials = product((HEAT, LOAD), REPLICATES)
        note = TableNote(name=name, phases=Melt.phases, axes=(HEAT, LOAD), search=False)
        return side(note, collect(trials, melted(trials, shift)))

    for kind in ("png", *BOTH):
        draw_comparison(compare(of(0.0, "one"), of(0.15, "other")), folder / f"comparison.{kind}")
    return {"comparison": folder / "comparison.png"}


def steps(folder: Path) -> dict[str, Path]:
    trials = product((WIDTHS,), 5)
    curves = {}
    for t in trials:
        width = math.log(t.params.width)  # type: ignore[attr-defined]
        bump = np.exp(-((np.log(STEPS / 300)) ** 2)) + np.exp(-((width - math.log(32)) ** 2))
        error = 0.9 - 0.03 * np.log(STEPS) - 0.04 * width + 0.2 * bump
        curves[t.id] = Curves(step=STEPS, values={"error": error + 0.004 * np.cos(3 * t.replicate + STEPS)})
    table = collect(trials, by_id(*(row(t) for t in trials)))
    diagram = phase_diagram("melting", (WIDTHS,), Melt.phases, table, specs(MeltParams))
    made = read_step_map(diagram, table, ("error",), lambda ids: ((i, curves[i]) for i in ids), x=0)
    return {"step_map": publish_steps(made, folder, BOTH).files["step_map_error.png"]}


def points(folder: Path) -> dict[str, Path]:
    axes = (WIDTHS, axis("load", 0.1, 0.2, scale="values"))
    trials = product(axes, 4)
    rows = []
    for t in trials:
        p: Any = t.params
        error = 0.6 - 0.05 * math.log(p.width) + (0.3 if p.width == 16 and p.load < 0.15 else 0)
        rows.append(row(t, final_error=error + 0.01 * math.cos(5 * t.replicate + p.width), ratio=p.width / 10))
    table = collect(trials, by_id(*rows))
    diagram = phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))
    x, y = (quantity_of(name, diagram, table, lambda ids: iter(())) for name in ("ratio", "final_error"))
    beside = publish_points(against(diagram, table, x, y), folder, BOTH).files
    doubled = publish_points(doubling_figure(diagram, table, y, 0), folder, BOTH).files
    return {"against": beside["final_error_against_ratio.png"], "more_data": doubled["more_data_final_error.png"]}


def analyses(folder: Path) -> dict[str, Path]:
    widths = Axis(name="width", values=(2, 8, 16, 32, 64, 128, 300), scale="values")
    decays = Axis(name="weight_decay", values=(0.1, 0.3, 1.0, 3.0), scale="log")

    def rows(*axes: Axis) -> Iterator[tuple[Trial, TrialRow]]:
        for replicate, *values in itertools.product(range(6), *(one.values for one in axes)):
            one = descent_trial(replicate, **dict(zip((one.name for one in axes), values, strict=True)))
            params: Any = one.params
            error = 0.55 - 0.02 * math.log(params.width) + 0.15 * math.exp(-((math.log(params.width / 64)) ** 2))
            time = 300 / (params.weight_decay or 1) * (1 + 0.1 * math.cos(7 * replicate + params.weight_decay))
            reached = time if time < 2900 else Censored(2900.0)
            wave = 0.01 * math.cos(11 * replicate + params.width)
            yield one, descent_row(one, final_test_error=error + wave, interpolation_step=reached)

    times = TimesAnalysis(kind="times", of="interpolation_step", between="weight_decay", name="times")
    law = LawAnalysis(kind="law", of="interpolation_step", along="weight_decay", form=["power"], name="law")
    peak = PeakAnalysis(kind="peak", of="final_test_error", along="width", name="peak")
    files: dict[str, Path] = {}
    for axis_, asked in ((widths, [peak]), (decays, [times, law])):
        given = source(list(rows(axis_)), axis_)
        where = folder / axis_.name
        files |= analyse("descent", asked, given, where, sweep_id="s", thresholds="t", figures=BOTH).files
    return {f"analysis_{name}": files[f"analysis_{name}.png"] for name in ("peak", "times", "law")}


IN_ALL_FORMATS = {"page", "boundary", "comparison", "steps", "points", "analyses"}
"""Drawn as SVG and PDF too: a kind for each module that draws, but for those that are drawn by the same panels."""
KINDS = (grid, page, multiples, boundary, ridge, theory, comparison, steps, points, analyses)


@pytest.mark.parametrize("draw", KINDS, ids=lambda draw: draw.__name__)
def test_a_figure_looks_as_it_did_and_its_text_is_text(draw: Any, tmp_path: Path) -> None:
    for name, path in draw(tmp_path / "made").items():
        golden_pictures.check(name, path)
        if draw.__name__ not in IN_ALL_FORMATS:
            continue
        pdf, svg = path.with_suffix(".pdf").read_bytes(), path.with_suffix(".svg").read_text()
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf, f"{name}: TrueType fonts are embedded"
        assert len(re.findall(r"<text\b", svg)) > 4, f"{name}: text is text"


def test_a_golden_picture_tells_a_change_from_other_hinting_of_text(tmp_path: Path) -> None:
    """Text that is drawn otherwise is no change; a colour, a legend entry and a line are."""
    path = grid(tmp_path / "made")["map"]
    golden = golden_pictures.reduced(path)
    original = matplotlib.rcdefaults

    def without_hints() -> None:
        original()
        matplotlib.rcParams["text.hinting"] = "none"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib, "rcdefaults", without_hints)
        other = grid(tmp_path / "other")["map"]
    assert other.read_bytes() != path.read_bytes()
    most, mean = golden_pictures.difference(golden_pictures.reduced(other), golden)
    assert most < golden_pictures.MOST and mean < golden_pictures.MOST_MEAN, (most, mean)

    pixels = imread(path)[:, :, :3]
    height, width = pixels.shape[:2]
    changed = {name: pixels.copy() for name in ("legend", "line")}
    changed["legend"][int(height * 0.86) :, : width // 3] = 1.0
    changed["line"][height // 3 : height // 2, width // 4 : width // 4 + 6] = 0.0
    for kind, picture in {**changed, "colours": pixels[:, :, ::-1]}.items():
        imsave(tmp_path / f"{kind}.png", picture)
        most, mean = golden_pictures.difference(golden_pictures.reduced(tmp_path / f"{kind}.png"), golden)
        assert most > golden_pictures.MOST or mean > golden_pictures.MOST_MEAN, (kind, most, mean)

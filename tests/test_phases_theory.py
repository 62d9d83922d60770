"""Theory beside the measurement: the table of deviations, excluded cells, drawn lines, and cost."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from driving import run
from jobs_for_phases import GivenSweep, Melt, MeltParams, MeltThresholds, axis, by_id, product, row
from matplotlib.image import imread

from jobs.job import Censored, Curves, Job, Observations, Params, Prediction, specs
from jobs.theory.domain import DomainError
from orchestrator.axes import Axis
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.layout import lay_out
from orchestrator.phases.publish import Published, publish
from orchestrator.phases.table import ObservationColumn, TrialTable, collect
from orchestrator.phases.theory.ask import Answers, ask, has_theory, predicted_phases
from orchestrator.phases.theory.curves import MOST_READ, MOST_SHOWN, read_beside
from orchestrator.phases.theory.deviation import (
    COMPARED,
    HEAVY,
    HEAVY_FROM,
    INFINITE,
    MEASURED_ONLY,
    NEITHER,
    NOT_FINITE,
    ONE,
    PREDICTED_ONLY,
    Deviations,
    deviations,
    spread,
)
from orchestrator.phases.theory.overlay import COLOURS, overlay
from orchestrator.trial import Trial

Theory = Callable[[MeltParams], Mapping[str, Prediction]]
FILES = {"theory_deviation.parquet", "theory_deviation.txt"}
LOADS = axis("load", *(round(0.1 * k, 1) for k in range(1, 11)), scale="linear")


def evenly(name: str, points: int) -> Axis:
    return axis(name, *np.linspace(0, 1, points).tolist(), scale="linear")


class Told(Melt):
    """A job whose theory is given, with the phases of a step and no other observation."""

    def __init__(self, theory: Theory) -> None:
        self._theory = theory

    def theory(self, params: MeltParams) -> Mapping[str, Prediction]:
        return self._theory(params)


def said(value: float | Censored, error: float = 0.0) -> Prediction:
    return Prediction(value=value, source="a formula", standard_error=error)


def table_of(found: Published) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(found.files["theory_deviation.parquet"]).to_pylist()
    return rows


def diagram_of(axes: Sequence[Axis], table: TrialTable) -> PhaseDiagram:
    return phase_diagram("melting", axes, Melt.phases, table, specs(MeltParams))


def asked_of(job: Job[Any], axes: Sequence[Axis], trials: Sequence[Trial], **more: Any) -> tuple[Answers, PhaseDiagram]:
    table = collect(trials, by_id(*(row(t) for t in trials)))
    diagram = diagram_of(axes, table)
    return ask(job, trials, table, diagram, **more), diagram


def compare(theory: Theory, measured: Sequence[float | Censored], name: str = "final_error") -> Deviations:
    """One setting, measured once a replicate."""
    trials = product((axis("load", 0.5),), replicates=len(measured))
    table = collect(trials, by_id(*(row(t, "solid", **{name: m}) for t, m in zip(trials, measured, strict=True))))
    found = deviations(ask(Told(theory), trials, table, diagram_of((), table)), table)
    assert found is not None
    return found


# The numbers.


def test_the_tables_numbers_are_those_of_an_independent_computation(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    trials = product((LOADS,), replicates=7)
    measured = {t.id: float(random.normal(3 * t.params.load, 0.2)) for t in trials}  # type: ignore[attr-defined]
    job = Told(lambda p: {"final_error": said(3 * p.load, 0.05)})
    found = publish(
        GivenSweep(axes=(LOADS,), job=job),
        trials,
        by_id(*(row(t, "solid", final_error=measured[t.id], melting_step=2.0) for t in trials)),
        tmp_path,
    )
    rows = table_of(found)
    assert [r["load"] for r in rows] == list(LOADS.values)
    largest = 0.0
    for r in rows:
        own = [measured[t.id] for t in trials if t.params.load == r["load"]]  # type: ignore[attr-defined]
        mean, s = statistics.fmean(own), statistics.stdev(own)
        deviation = (mean - 3 * r["load"]) / (s**2 / 7 + 0.05**2) ** 0.5
        largest = max(largest, abs(deviation))
        assert r["rule"] == "mean" and r["verdict"] == COMPARED and r["replicates"] == 7
        assert [r["predicted"], r["mean"], r["standard_deviation"], r["deviation"], r["median"]] == pytest.approx(
            [3 * r["load"], mean, s, deviation, statistics.median(own)]
        )
        assert r["relative_difference"] == pytest.approx((mean - 3 * r["load"]) / (3 * r["load"]))
    assert found.metrics["theory_worst_deviation"] == pytest.approx(largest)
    assert found.metrics["theory_predictions"] == 10
    assert f"worst deviation {largest:.1f} standard errors (final_error at load=" in found.notes[0]
    assert found.notes[0].startswith("theory: 10 predictions of 1 observation;")
    assert found.notes[0] in found.files["theory_deviation.txt"].read_text()


def test_a_right_theory_deviates_as_chance_does_and_a_wrong_one_by_far() -> None:
    random = np.random.default_rng(2)
    trials = product((axis("load", *np.linspace(0.1, 1, 60).tolist()),), replicates=12)
    rows = [row(t, final_error=float(random.normal(t.params.load, 0.3))) for t in trials]  # type: ignore[attr-defined]
    table = collect(trials, by_id(*rows))
    sizes = []
    for factor in (1.0, 1.5):
        job = Told(lambda p, factor=factor: {"final_error": said(factor * p.load)})  # type: ignore[misc]
        found = deviations(ask(job, trials, table, diagram_of((), table)), table)
        assert found is not None
        sizes.append((float(np.sqrt(np.mean(found.deviation**2))), found.chance()))
    assert 0.8 < sizes[0][0] < 1.3 and sizes[0][1] > 0.01
    assert sizes[1][0] > 2.5 and sizes[1][1] < 1e-3


def test_a_medians_standard_error_is_that_of_many_medians() -> None:
    """Over settings that are one and the same, the medians spread as much as each says it does."""
    random = np.random.default_rng(3)
    for replicates in (3, 5, 9, 50):
        value = random.normal(size=4000 * replicates)
        sure = np.ones(len(value), dtype=np.bool_)
        column = ObservationColumn(value=value, reached=sure, censored_at=np.full(len(value), np.nan), censored=~sure)
        found = spread(np.arange(4000).repeat(replicates), 4000, column)
        assert np.array_equal(found.median, np.median(value.reshape(4000, -1), axis=1))
        assert np.mean(found.median_error) == pytest.approx(np.std(found.median), rel=0.2)


def test_a_step_is_held_against_the_median_and_censored_replicates_are_later_than_all() -> None:
    measured: list[float | Censored] = [20.0, 22.0, 26.0, 40.0, Censored(50.0)]
    found = compare(lambda p: {"melting_step": said(30.0, 1.0)}, measured, "melting_step")
    # Hazen's quantiles 1/2 -+ 1/(2 sqrt 5) of five lie sqrt(5) / 2 ranks from the middle; the upper was not reached.
    error = 26 - (22 - (5**0.5 / 2 - 1) * 2)
    assert found.rule[0] == "median" and found.verdict[0] == COMPARED
    assert found.center[0] == 26
    assert found.deviation[0] == pytest.approx((26 - 30) / (error**2 + 1 + 1 / 12) ** 0.5)


# What is not counted.


@pytest.mark.parametrize(
    ("predicted", "measured", "name", "verdict"),
    [
        (said(1.0), [1.0, 2.0, 3.0], "final_error", COMPARED),
        (said(1.0), [1.1], "final_error", ONE),
        (said(np.inf), [1.0, 2.0, 3.0], "final_error", INFINITE),
        (said(1.0, np.inf), [1.0, 2.0, 3.0], "final_error", INFINITE),
        (said(1.0), [1.0, np.nan, 3.0], "final_error", NOT_FINITE),
        (said(1.0), [1.0 + k / 100 for k in range(HEAVY_FROM - 1)] + [900.0], "final_error", HEAVY),
        (said(Censored(9.0)), [Censored(9.0)] * 3, "melting_step", NEITHER),
        (said(12.0), [3.0, Censored(9.0), Censored(9.0)], "melting_step", NEITHER),
        (said(Censored(9.0)), [20.0, 21.0, 22.0], "melting_step", NEITHER),
        (said(5.0), [3.0, Censored(9.0), Censored(9.0)], "melting_step", PREDICTED_ONLY),
        (said(Censored(9.0)), [2.0, 3.0, Censored(9.0)], "melting_step", MEASURED_ONLY),
        (said(Censored(9.0)), [4.0], "melting_step", MEASURED_ONLY),
    ],
)
def test_what_no_standard_error_can_tell_is_named_and_not_counted(
    predicted: Prediction, measured: list[float | Censored], name: str, verdict: str
) -> None:
    found = compare(lambda p: {name: predicted}, measured, name)
    assert list(found.verdict) == [verdict]
    assert (found.worst() is None) == (verdict != COMPARED)


def test_an_exact_match_without_any_spread_is_no_deviation_and_a_difference_is_an_infinite_one() -> None:
    assert compare(lambda p: {"final_error": said(0.3)}, [0.1 + 0.2] * 4).deviation[0] == 0
    off = compare(lambda p: {"final_error": said(0.3)}, [0.31] * 4)
    assert np.isinf(off.deviation[0]) and off.chance() == 0


# Holes, errors, and no theory at all.


def half_known(params: MeltParams) -> Mapping[str, Prediction]:
    if params.load > 0.55:
        raise DomainError("load", "must be at most 0.55", params.load)
    return {"final_error": said(params.load)}


def test_outside_its_domain_a_theory_leaves_gaps_with_a_note(tmp_path: Path) -> None:
    trials = product((LOADS,), replicates=3)
    rows = by_id(*(row(t, final_error=0.1 * (1 + t.replicate), melting_step=2.0) for t in trials))
    found = publish(GivenSweep(axes=(LOADS,), job=Told(half_known)), trials, rows, tmp_path)
    assert [r["load"] for r in table_of(found)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert found.warnings == ()
    assert any("outside its domain at 5 settings (load: must be at most 0.55; got" in note for note in found.notes)
    assert set(found.files) > FILES


@pytest.mark.parametrize(
    ("theory", "says"),
    [
        (lambda p: {"final_error": said(1 / (p.load - p.load))}, "ZeroDivisionError"),
        (lambda p: {"final_error": 3.0}, "expected a Prediction, not float"),
        (lambda p: {"final_error": said("much")}, "neither a number"),  # type: ignore[arg-type]
        (lambda p: {"m": Prediction(value=np.ones(2), step=np.arange(3), source="")}, "one value at each"),
        (lambda p: None, "AttributeError"),
    ],
)
def test_a_theory_that_fails_costs_its_predictions_and_not_the_diagram(
    tmp_path: Path, theory: Theory, says: str
) -> None:
    trials = product((LOADS,))
    rows = by_id(*(row(t, final_error=0.5, melting_step=2.0) for t in trials))
    found = publish(GivenSweep(axes=(LOADS,), job=Told(theory)), trials, rows, tmp_path)
    (warning,) = found.warnings
    assert "the job's theory failed at 10 settings" in warning and says in warning
    assert not FILES & set(found.files) and found.files["phase_diagram.png"].exists()


def test_a_job_without_theory_has_no_line_no_file_and_nothing_read(tmp_path: Path) -> None:
    def never(ids: Sequence[str]) -> Iterator[tuple[str, Curves]]:
        raise AssertionError("no curve is to be read")

    trials = product((LOADS,))
    rows = by_id(*(row(t, final_error=0.5) for t in trials))
    found = publish(GivenSweep(axes=(LOADS,)), trials, rows, tmp_path, curves=never)
    assert not has_theory(Melt()) and found.notes == ()
    assert not any("theory" in name for name in (*found.files, *found.metrics))


def test_a_theory_is_asked_once_a_setting_and_evenly_where_it_may_not_be_asked_of_all() -> None:
    calls: list[MeltParams] = []

    def counted(params: MeltParams) -> Mapping[str, Prediction]:
        calls.append(params)
        return {"final_error": said(params.load)}

    axes = evenly("load", 17), evenly("heat", 17)
    asked, diagram = asked_of(Told(counted), axes, product(axes, replicates=2), most=81)
    assert len(calls) == len(set(calls)) == 81
    told = diagram.codes[asked.cell[asked.asked]]
    assert (told % 2 == 0).all()  # every second value of either axis: 9 x 9
    assert "asked of 81 of 289 settings" in asked.holes()
    nothing, _ = asked_of(Told(counted), axes, product(axes), seconds=-1.0)
    assert not nothing.asked.any() and not any(nothing.predictions)


# Maps.

MAP = (evenly("load", 21), evenly("heat", 21))


class Stepwise(Told):
    headline = ("melting_step",)

    def phase(self, params: MeltParams, observations: Observations, thresholds: Params) -> str:
        return "gas" if observations["melting_step"] == 1.0 else super().phase(params, observations, thresholds)


def melts(params: MeltParams) -> Mapping[str, Prediction]:
    return {"melting_step": said(2.0 if params.load > 0.52 else Censored(9.0))}


def test_a_phase_is_predicted_only_from_what_is_predicted() -> None:
    asked, _ = asked_of(Told(melts), MAP, product(MAP))
    phases = predicted_phases(asked, Told(melts), MeltThresholds())
    assert all((phase == "liquid") == (p.load > 0.52) for phase, p in zip(phases, asked.params, strict=True))  # type: ignore[attr-defined]

    class Careful(Told):
        def phase(self, params: MeltParams, observations: Observations, thresholds: Params) -> str:
            return "gas" if observations.get("final_error") is None else "solid"

    assert set(predicted_phases(asked, Careful(melts), MeltThresholds())) == {None}


def test_the_predicted_boundary_is_drawn_once_where_it_is_and_the_caption_counts_the_cells(tmp_path: Path) -> None:
    trials = product(MAP)
    rows = by_id(
        *(row(t, "liquid" if t.params.load > 0.72 else "solid", melting_step=2.0) for t in trials)  # type: ignore[attr-defined]
    )
    table = collect(trials, rows)
    diagram = diagram_of(MAP, table)
    layout = lay_out(diagram)
    asked = ask(Told(melts), trials, table, diagram)
    over = overlay(asked, predicted_phases(asked, Told(melts), MeltThresholds()), diagram)
    told = over.map_of(diagram, layout.panels[0], *map(int, (layout.x or 0, layout.y or 1)))
    assert told is not None
    (line,) = told.lines  # two phases meet in it; it is drawn for one
    across = line[:, 0] if diagram.axes[layout.x or 0].name == "load" else line[:, 1]
    assert np.allclose(across, 0.525) and len(line) == 21
    assert (told.compared, told.differ) == (441, 4 * 21)  # loads 0.55, 0.6, 0.65 and 0.7
    found = publish(GivenSweep(axes=MAP, job=Stepwise(melts)), trials, rows, tmp_path)
    assert found.metrics["theory_phases_that_differ"] == pytest.approx(84 / 441)
    assert "theory: phase of 441 cells; 19% differ" in found.notes
    page = found.files["phase_diagram.html"].read_text()
    assert "theory: 19% of 441 cells differ" in page and COLOURS[0] in page
    assert has_colour(found.files["phase_diagram.png"], COLOURS[0])
    plain = publish(GivenSweep(axes=MAP), trials, rows, tmp_path / "plain")
    assert not has_colour(plain.files["phase_diagram.png"], COLOURS[0])


def test_a_boundary_of_what_was_asked_is_drawn_on_the_coarser_grid() -> None:
    asked, diagram = asked_of(Told(melts), MAP, product(MAP), most=121)
    over = overlay(asked, predicted_phases(asked, Told(melts), MeltThresholds()), diagram)
    layout = lay_out(diagram)
    told = over.map_of(diagram, layout.panels[0], layout.x or 0, layout.y)
    assert told is not None and len(told.lines) == 1 and len(told.lines[0]) == 11


def has_colour(path: Path, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(imread(path)[:, :, :3] - wanted).max(axis=2) < 0.02).any())


# Lines.


def test_a_predicted_line_is_drawn_and_named_beside_the_measured_one(tmp_path: Path) -> None:
    trials = product((LOADS,), replicates=4)
    rows = by_id(*(row(t, final_error=0.2 + 0.1 * t.replicate) for t in trials))
    sweep = GivenSweep(axes=(LOADS,), job=Told(lambda p: {"final_error": said(p.load, 0.01)}))
    found = publish(sweep, trials, rows, tmp_path)
    assert has_colour(found.files["phase_diagram.png"], COLOURS[0])
    page = found.files["phase_diagram.html"].read_text()
    assert "theory (a formula)" in page
    traces = json.loads(page[page.index('{"views"') :].split("</script>")[0].rstrip().rstrip(";"))["views"]
    (line,) = (t for t in traces[0]["slices"][0]["traces"] if t["name"] == "theory (a formula)")
    assert line["y"] == pytest.approx([float(v) for v in LOADS.values])
    (means,) = (t for t in traces[0]["slices"][0]["traces"] if t["name"].startswith("measured mean"))
    assert means["y"] == pytest.approx([0.35] * 10)


# Curves.

STEPS = np.array([1, 10, 100, 1000])


def decays(params: MeltParams) -> Mapping[str, Prediction]:
    return {
        "melted": Prediction(value=params.load / STEPS, step=STEPS, source="decay"),
        "shifted": Prediction(value=params.load / STEPS + 1, step=STEPS, source="decay"),
    }


def test_curves_are_read_of_a_few_settings_and_their_means_are_those_of_numpy(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    trials = product((LOADS,), replicates=5)
    curves = {
        t.id: Curves(
            step=STEPS,
            values={
                "melted": t.params.load / STEPS + random.normal(0, 0.01, 4),  # type: ignore[attr-defined]
                "shifted": random.normal(0, 1, 4),
            },
        )
        for t in trials
    }
    read: list[str] = []

    def reads(ids: Sequence[str]) -> Iterator[tuple[str, Curves]]:
        read.extend(ids)
        return ((i, curves[i]) for i in ids)

    rows = by_id(*(row(t, final_error=0.5) for t in trials))
    table = collect(trials, rows)
    asked = ask(Told(decays), trials, table, diagram_of((LOADS,), table), ["load"])
    found = read_beside(asked, table, reads)
    assert len(read) == len(set(read)) == 5 * MOST_SHOWN <= MOST_READ * MOST_SHOWN
    assert [one.metric for one in found] == ["melted"] * MOST_SHOWN  # the other is predicted to be no other shape
    assert [one.place for one in found] == ["load=0.1", "load=0.4", "load=0.7", "load=1"]
    own = np.array([curves[t.id].values["melted"] for t in trials if t.params.load == 0.4])  # type: ignore[attr-defined]
    assert np.allclose(found[1].mean, own.mean(axis=0), rtol=1e-12)
    error = own.std(axis=0, ddof=1) / 5**0.5
    assert np.allclose(found[1].error, error, rtol=1e-9)
    assert np.allclose(found[1].deviation, (own.mean(axis=0) - 0.4 / STEPS) / error, rtol=1e-6)
    made = publish(GivenSweep(axes=(LOADS,), job=Told(decays)), trials, rows, tmp_path, curves=reads)
    assert has_colour(made.files["theory_curves.png"], COLOURS[0])
    assert any(note.startswith("theory: curves of 1 metric at 4 settings; melted deviates by") for note in made.notes)
    assert not FILES & set(made.files)


def test_where_some_replicates_have_stopped_the_others_are_no_mean() -> None:
    trials = product((axis("load", 0.5),), replicates=3)
    table = collect(trials, by_id(*(row(t) for t in trials)))
    asked = ask(Told(decays), trials, table, diagram_of((), table))
    lengths = dict(zip(table.trial_id, (2, 4, 3), strict=True))

    def reads(ids: Sequence[str]) -> Iterator[tuple[str, Curves]]:
        return ((i, Curves(step=STEPS[: lengths[i]], values={"melted": 1.0 / STEPS[: lengths[i]]})) for i in ids)

    (found,) = read_beside(asked, table, reads)
    assert list(found.step) == [1, 10] and list(found.count) == [3, 3]


# The whole way.

RIDGE = """\
name: least-squares
job: ridge
axes:
  features: [2, 5, 10, 20, 30, 40]
fixed: {sample_count: 12, inputs: 40, noise_variance: 0.1}
replicates: 20
"""
DESCENT = """\
name: descent
job: ridge
axes:
  weight_decay: {scale: log, from: 0.001, to: 1, points: 4}
  init_scale: {scale: log, from: 0.1, to: 10, points: 4}
fixed: {sample_count: 20, inputs: 60, solver: gradient_descent, learning_rate: 0.05, steps: 400, curve_points: 20,
  train_level: 0.01, test_level: 0.8, teacher: random}
replicates: 3
"""


@pytest.mark.slow
def test_a_run_of_the_linear_job_ends_with_its_theory_beside_it(tmp_path: Path) -> None:
    (tmp_path / "ridge.yaml").write_text(RIDGE)
    code, text = run("run", "ridge.yaml", "--inline", cwd=tmp_path)
    assert code == 0, text
    (line,) = (line for line in text.splitlines() if line.startswith("theory: "))
    assert line.startswith("theory: 18 predictions of 3 observations; worst deviation")
    made = tmp_path / "phasefront-out" / "least-squares"
    assert {path.name for path in made.iterdir()} > FILES
    kept = {path.name for path in (tmp_path / "mlruns").rglob("*")}
    assert kept > FILES, kept
    rows = pq.read_table(made / "theory_deviation.parquet").to_pylist()
    told = [r["deviation"] for r in rows if r["verdict"] == COMPARED]
    assert len(told) >= 9 and max(map(abs, told)) < 6
    # Belkin, Hsu and Xu: 2 of 40 features used, 12 examples: (38/40 + 0.1) (1 + 2 / (12 - 2 - 1)).
    (two,) = (r for r in rows if r["features"] == 2 and r["observation"] == "final_test_loss")
    assert two["predicted"] == pytest.approx((38 / 40 + 0.1) * (1 + 2 / 9))


@pytest.mark.slow
def test_a_run_by_gradient_descent_ends_with_its_curves_and_phases_beside_it(tmp_path: Path) -> None:
    (tmp_path / "descent.yaml").write_text(DESCENT)
    code, text = run("run", "descent.yaml", "--inline", cwd=tmp_path)
    assert code == 0, text
    made = tmp_path / "phasefront-out" / "descent"
    assert {*FILES, "theory_curves.png"} < {path.name for path in made.iterdir()}
    assert "theory: phase of 16 cells;" in text and "theory: curves of" in text
    assert has_colour(made / "theory_curves.png", COLOURS[0])
    again_code, again = run("map", "descent.yaml", cwd=tmp_path)
    assert again_code == 0
    theory = [line for line in text.splitlines() if line.startswith("theory: ")]
    assert theory == [line for line in again.splitlines() if line.startswith("theory: ")]

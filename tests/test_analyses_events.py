"""Times to an event, laws and critical points from a sweep's trials, censored ones among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams
from jobs.job import Censored, Scalar
from orchestrator.analyses.critical import CriticalAnalysis
from orchestrator.analyses.law import LawAnalysis
from orchestrator.analyses.result import Result
from orchestrator.analyses.source import Source
from orchestrator.analyses.times import TimesAnalysis
from orchestrator.analyses.view import caption, draw
from orchestrator.analysis.estimate import Estimate
from orchestrator.axes import Axis
from orchestrator.phases.style import FigureStyle, drawn_as
from orchestrator.phases.table import collect
from orchestrator.records import Recorded, Status
from orchestrator.tracking.base import TrialRow
from orchestrator.trial import Trial

EVENT = "generalisation_step"
HORIZON = 3000.0


def source(made: Sequence[tuple[dict[str, Any], int, dict[str, float | Censored]]], *axes: Axis) -> Source:
    """Trials of `grokking` with these parameters, replicates and observations."""
    trials, rows = [], {}
    for params, replicate, observed in made:
        one = Trial(job="grokking", job_version=1, params=GrokkingParams(**params), replicate=replicate)
        recorded = Recorded(
            status=Status.FINISHED, phase="grokking", observations=observed, thresholds="t", through_step=-1
        )
        trials.append(one)
        rows[one.id] = TrialRow(trial_id=one.id, run_id="r", params={}, replicate=replicate, recorded=recorded)
    table = collect(trials, rows)
    params_of = {one.id: one.params for one in trials}
    return Source(
        job=Grokking(),
        axes=axes,
        table=table,
        params=[params_of[trial_id] for trial_id in table.trial_id],
        read=lambda ids, metrics: iter(()),
    )


def axis(name: str, *values: Scalar) -> Axis:
    return Axis(name=name, values=values, scale="values")


def step(time: float) -> dict[str, float | Censored]:
    """The observation of an event that is found by reports 10% apart, within the horizon."""
    if time > HORIZON:
        return {EVENT: Censored(HORIZON)}
    return {EVENT: float(time), f"{EVENT}_after": float(time / 1.1)}


def drawn(result: Result, path: Path) -> None:
    draw("sweep", result, path)
    assert path.stat().st_size > 1000 and result.lines()


def two_optimisers() -> Source:
    random = np.random.default_rng(0)
    made: list[Any] = []
    for replicate in range(8):
        time = 400 * np.exp(0.5 * random.standard_normal())
        for optimiser, factor in (("adamw", 1), ("sgd", 4)):
            made.append(({"optimiser": optimiser}, replicate, step(factor * time)))
    return source(made, axis("optimiser", "adamw", "sgd"))


def test_two_optimisers_are_compared_over_their_common_seeds(tmp_path: Path) -> None:
    result = TimesAnalysis(kind="times", of=EVENT, between="optimiser").compute(two_optimisers())
    adamw, sgd, pair = result.rows
    assert (adamw["of"], sgd["of"], adamw["not_reached"]) == ("adamw", "sgd", 0)
    assert int(str(sgd["not_reached"])) > 0, "what was not reached is counted, and is no time"
    median, ratio = adamw["median"], pair["ratio"]
    assert isinstance(median, Estimate) and isinstance(ratio, Estimate)
    assert median.low < median.value < median.high < HORIZON
    assert adamw["median_after"] == pytest.approx(median.value / 1.1, rel=0.1), "a step lies between two reports"
    assert (pair["of"], pair["against"], pair["test"], pair["trials"]) == ("adamw", "sgd", "paired log-rank", 16)
    assert result.figure is not None and "settings" not in caption(result, result.figure), "three rows of one setting"
    assert ratio.low < 0.25 < ratio.high and pair["p_value"] == pytest.approx(2 / 2**8)
    drawn(result, tmp_path / "figure.png")


def test_without_an_axis_to_compare_each_setting_has_its_median() -> None:
    result = TimesAnalysis(kind="times", of=EVENT).compute(two_optimisers())
    assert [row["optimiser"] for row in result.rows] == ["adamw", "sgd"]
    assert "ratio" not in result.main


def test_three_values_have_a_test_of_all_and_one_for_each_pair() -> None:
    made: list[Any] = [
        ({"weight_decay": decay}, replicate, step(500 + 10 * replicate))
        for decay in (0.1, 0.2, 0.4)
        for replicate in range(5)
    ]
    given = source(made, axis("weight_decay", 0.1, 0.2, 0.4))
    result = TimesAnalysis(kind="times", of=EVENT, between="weight_decay").compute(given)
    tests = [row for row in result.rows if row["against"] is not None]
    assert len(tests) == 4 and all(row["p_value"] == 1 for row in tests), "equal times"


def tuned_optimisers() -> Source:
    """Each optimiser is fastest at a rate of its own; sgd at 1, which is the largest, adamw at 0.1.

    At sgd's rate of 0.1, the first five replicates are fast by luck and the others are slow.
    """
    random = np.random.default_rng(4)
    best = {"adamw": 0.1, "sgd": 1.0}
    made: list[Any] = []
    for replicate in range(12):
        seed = np.exp(0.2 * random.standard_normal())
        for optimiser, factor in (("adamw", 1), ("sgd", 3)):
            for rate in (0.01, 0.1, 1.0):
                for decay in (0.5, 1.0):
                    off = abs(np.log10(rate / best[optimiser]))
                    time = 200 * factor * seed * 4**off * (1.5 if decay < 1 else 1)
                    params = {"optimiser": optimiser, "learning_rate": rate, "weight_decay": decay}
                    made.append((params, replicate, step(time)))
    axes = axis("optimiser", "adamw", "sgd"), axis("learning_rate", 0.01, 0.1, 1.0), axis("weight_decay", 0.5, 1.0)
    return source(made, *axes)


def test_each_optimiser_is_compared_at_the_setting_that_half_of_the_seeds_choose(tmp_path: Path) -> None:
    analysis = TimesAnalysis(kind="times", of=EVENT, between="optimiser", tune=["learning_rate", "weight_decay"])
    result = analysis.compute(tuned_optimisers())
    adamw, sgd, pair = result.rows
    assert adamw["tuned"] == "learning rate 0.1, weight decay 1" and sgd["tuned"] == "learning rate 1, weight decay 1"
    assert (adamw["trials"], sgd["trials"], pair["trials"]) == (6, 6, 12), "the six seeds that chose are left out"
    ratio = pair["ratio"]
    assert isinstance(ratio, Estimate) and ratio.low < 1 / 3 < ratio.high and pair["p_value"] == pytest.approx(2 / 2**6)
    assert any("replicates 0 to 5" in note for note in result.notes)
    assert any("optimiser sgd: the tuned learning_rate is the largest" in note for note in result.notes)
    assert not any("adamw: the tuned learning_rate" in note for note in result.notes)
    drawn(result, tmp_path / "figure.png")


def test_a_setting_is_not_compared_on_the_seeds_that_chose_it() -> None:
    """A setting that is fast by luck on the first seeds is chosen, and then shown as slow as it is."""
    made: list[Any] = []
    for replicate in range(8):
        for optimiser in ("adamw", "sgd"):
            for rate in (0.1, 1.0):
                lucky = replicate < 4 and optimiser == "sgd" and rate == 0.1
                made.append(({"optimiser": optimiser, "learning_rate": rate}, replicate, step(100 if lucky else 400)))
    given = source(made, axis("optimiser", "adamw", "sgd"), axis("learning_rate", 0.1, 1.0))
    result = TimesAnalysis(kind="times", of=EVENT, between="optimiser", tune=["learning_rate"]).compute(given)
    _, sgd, pair = result.rows
    median = sgd["median"]
    assert isinstance(median, Estimate) and median.value == 400 and pair["p_value"] == 1


def test_one_seed_cannot_both_choose_and_be_compared() -> None:
    made: list[Any] = [({"optimiser": o, "learning_rate": 0.1}, 0, step(500)) for o in ("adamw", "sgd")]
    given = source(made, axis("optimiser", "adamw", "sgd"), axis("learning_rate", 0.1))
    result = TimesAnalysis(kind="times", of=EVENT, between="optimiser", tune=["learning_rate"]).compute(given)
    assert result.rows == () and any("only one replicate" in note for note in result.notes)


def test_numbers_of_both_values_are_kept_apart_as_metrics() -> None:
    """Both medians had the same name, so that the later one replaced the other."""
    metrics = TimesAnalysis(kind="times", of=EVENT, between="optimiser").compute(two_optimisers()).metrics()
    name = f"analysis/times_{EVENT}_optimiser"
    assert metrics[f"{name}/median/of adamw"] < metrics[f"{name}/median/of sgd"]
    assert f"{name}/p_value/of adamw/against sgd" in metrics


def test_a_gap_lies_between_both_of_its_bounds() -> None:
    """A gap between two steps has a bound of its own on each side; the upper one was not read."""
    gap = "generalisation_gap"
    made: list[Any] = [
        ({"weight_decay": 1.0}, r, {gap: 500.0 + r, f"{gap}_after": 400.0 + r, f"{gap}_by": 600.0 + r})
        for r in range(3)
    ]
    given = source(made, axis("weight_decay", 1.0))
    (group,) = given.groups()
    above, to = given.bounds(group, gap)
    assert sorted(above.tolist()) == [400, 401, 402] and sorted(to.tolist()) == [600, 601, 602]


def decays(exponent: float) -> Source:
    random = np.random.default_rng(1)
    values = np.geomspace(0.05, 2, 8)
    made: list[Any] = [
        ({"weight_decay": float(w)}, r, step(100 * w**-exponent * np.exp(0.15 * random.standard_normal())))
        for w in values
        for r in range(6)
    ]
    made.append(({"weight_decay": 0.0}, 0, step(10 * HORIZON)))
    return source(made, axis("weight_decay", 0.0, *values.tolist()))


def test_a_law_has_its_exponent_although_trials_did_not_reach_the_event(tmp_path: Path) -> None:
    result = LawAnalysis(kind="law", of=EVENT, along="weight_decay").compute(decays(1.2))
    (row,) = result.rows
    b = row["b"]
    assert row["fit"] == "yes" and isinstance(b, Estimate)
    assert b.low < 1.2 < b.high and b.high - b.low < 0.3
    assert int(str(row["not_reached"])) > 0 and row["left_out"] == 1, "a weight decay of 0 is on no power law"
    drawn(result, tmp_path / "figure.png")


def test_forms_of_a_law_are_compared_on_the_same_trials(tmp_path: Path) -> None:
    analysis = LawAnalysis(kind="law", of=EVENT, along="weight_decay", form=["power", "floor", "broken"])
    result = analysis.compute(decays(1.2))
    by_form = {row["form"]: row for row in result.rows}
    assert list(by_form) == ["power", "floor", "broken"]
    assert {row["trials"] for row in result.rows} == {48}
    assert float(str(by_form["power"]["difference"])) < 2, "the true form is among the good ones"
    assert float(str(by_form["broken"]["aicc"])) > float(str(by_form["power"]["aicc"])), "its parameters are not needed"
    assert sum(float(str(row["weight"])) for row in result.rows) == pytest.approx(1)
    assert by_form["power"]["c"] is None and isinstance(by_form["floor"]["c"], Estimate)
    single = LawAnalysis(kind="law", of=EVENT, along="weight_decay", form=["power"])
    assert single.label == LawAnalysis(kind="law", of=EVENT, along="weight_decay").label
    assert "form" not in single.compute(decays(1.2)).rows[0]
    drawn(result, tmp_path / "figure.png")


def test_a_form_that_cannot_be_fitted_leaves_the_others() -> None:
    made: list[Any] = [({"weight_decay": w}, r, step(500 / w)) for w in (0.5, 1.0) for r in range(4)]
    analysis = LawAnalysis(kind="law", of=EVENT, along="weight_decay", form=["power", "broken"])
    power, broken = analysis.compute(source(made, axis("weight_decay", 0.5, 1.0))).rows
    assert power["fit"] == "yes" and str(broken["fit"]).startswith("none: ") and power["weight"] == 1


def test_a_law_that_cannot_be_fitted_says_why() -> None:
    made: list[Any] = [({"weight_decay": 0.1}, r, step(500)) for r in range(4)]
    analysis = LawAnalysis(kind="law", of=EVENT, along="weight_decay")
    (row,) = analysis.compute(source(made, axis("weight_decay", 0.1))).rows
    assert "at least 2 distinct settings" in str(row["fit"]) and row["b"] is None


@pytest.mark.parametrize(("events", "has_interval"), [(1, False), (2, False), (3, False), (4, False), (5, True)])
def test_a_law_has_no_interval_of_too_few_events(events: int, has_interval: bool, tmp_path: Path) -> None:
    values = [0.1, 0.2, 0.4, 0.8, 1.6]
    noise = [1.0, 1.2, 0.9, 1.1, 0.95]
    times = [100 / w * n for w, n in zip(values, noise, strict=True)][-events:]
    made: list[Any] = [
        ({"weight_decay": w}, 0, step(time))
        for w, time in zip(values, [10 * HORIZON] * (5 - events) + times, strict=True)
    ]
    result = LawAnalysis(kind="law", of=EVENT, along="weight_decay").compute(
        source(made, axis("weight_decay", *values))
    )
    (row,) = result.rows
    b = row["b"]
    assert isinstance(b, Estimate) and np.isfinite(b.value) and np.isfinite(b.low) == has_interval
    few = f"yes, no interval: too few events, {events} event{'' if events == 1 else 's'} for 2 parameters and the scale"
    assert row["fit"] == ("yes" if has_interval else few)
    assert result.figure is not None and bool(result.figure.band) == has_interval
    drawn(result, tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        ({}, "none: no trial has a positive generalisation_step at a positive weight_decay"),
        (step(10 * HORIZON), "none: none of 2 trials reached generalisation_step"),
    ],
)
def test_a_law_without_events_says_so(observed: dict[str, float | Censored], reason: str, tmp_path: Path) -> None:
    made: list[Any] = [({"weight_decay": w}, 0, observed) for w in (0.1, 0.2)]
    result = LawAnalysis(kind="law", of=EVENT, along="weight_decay").compute(
        source(made, axis("weight_decay", 0.1, 0.2))
    )
    assert result.rows[0]["fit"] == reason and result.rows[0]["b"] is None


def fractions(*primes: int, shift: float = 0.0) -> Source:
    """The critical fraction is 0.43, or proportional to modulus^-shift with 0.43 at 47."""
    random = np.random.default_rng(2)
    values = np.linspace(0.2, 0.7, 11)
    made: list[Any] = []
    for modulus in primes:
        for fraction in values:
            share = 1 / (1 + np.exp(-(fraction - 0.43 * (modulus / 47) ** -shift) * modulus))
            for replicate in range(20):
                reached = random.random() < share
                params = {"modulus": modulus, "data_fraction": float(fraction)}
                made.append((params, replicate, step(500 if reached else 2 * HORIZON)))
    return source(made, axis("modulus", *primes), axis("data_fraction", *values.tolist()))


def test_a_critical_point_has_an_interval(tmp_path: Path) -> None:
    result = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction").compute(fractions(31))
    (row,) = result.rows
    critical = row["critical"]
    assert isinstance(critical, Estimate) and row["share"] == "rises"
    assert critical.low < 0.43 < critical.high and critical.high - critical.low < 0.08
    drawn(result, tmp_path / "figure.png")


def test_a_critical_point_beyond_the_settings_is_said_to_be_one() -> None:
    made: list[Any] = []
    for fraction, reached in ((0.2, 0), (0.3, 1), (0.4, 3)):
        for replicate in range(10):
            made.append(({"data_fraction": fraction}, replicate, step(500 if replicate < reached else 2 * HORIZON)))
    given = source(made, axis("data_fraction", 0.2, 0.3, 0.4))
    (row,) = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction").compute(given).rows
    critical = row["critical"]
    assert isinstance(critical, Estimate) and critical.value > 0.4
    assert row["share"] == "rises; one half is beyond the settings, an extrapolation"


@pytest.mark.parametrize(
    ("shares", "scale", "width"),
    [
        ((0, 0, 8, 8), "values", 0),
        ((0, 6, 8, 8), "values", 0),
        ((0, 6, 8, 8), "log", 1),
        ((0, 3, 6, 8), "values", None),
    ],
)
def test_a_width_of_zero_is_that_of_a_grid_too_coarse_for_it(
    shares: Sequence[int], scale: Any, width: float | None
) -> None:
    """With one mixed setting a step is the best fit too."""
    values = (0.2, 0.3, 0.4, 0.5)
    made: list[Any] = [
        ({"data_fraction": fraction}, replicate, step(500 if replicate < reached else 2 * HORIZON))
        for fraction, reached in zip(values, shares, strict=True)
        for replicate in range(8)
    ]
    given = source(made, Axis(name="data_fraction", values=values, scale=scale))
    result = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction").compute(given)
    (found,) = (row["width"] for row in result.rows)
    assert isinstance(found, Estimate) and (found.value == width or width is None)
    notes = [note for note in result.notes if "too coarse for the width" in note]
    assert [note.split(":")[0] for note in notes] == ([] if width is None else [f"width {width} in 1 row"])
    assert all("add values of data_fraction near the critical point" in note for note in notes)


def test_sizes_share_a_critical_point_and_have_an_exponent() -> None:
    given = fractions(23, 47, 97)
    analysis = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction", size="modulus")
    (row,) = analysis.compute(given).rows
    critical, exponent = row["critical"], row["inverse_nu"]
    assert isinstance(critical, Estimate) and isinstance(exponent, Estimate)
    assert critical.low < 0.43 < critical.high
    assert exponent.low < 1 < exponent.high, "the width is as 1 / modulus"
    apart = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction").compute(given)
    assert [each["modulus"] for each in apart.rows] == [23, 47, 97]


def test_a_critical_point_that_moves_with_the_size(tmp_path: Path) -> None:
    """The axis is positive and linear; the law is a power, so it is fitted in the logarithm."""
    analysis = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction", size="modulus", moves=True)
    result = analysis.compute(fractions(23, 47, 97, shift=0.3))
    (row,) = result.rows
    critical, shift, width = row["critical"], row["shift"], row["width"]
    assert isinstance(critical, Estimate) and isinstance(shift, Estimate) and isinstance(width, Estimate)
    assert critical.low < 0.43 < critical.high and critical.high - critical.low < 0.04
    assert shift.low < 0.3 < shift.high and shift.high - shift.low < 0.2
    assert 1 < width.value < 1.3, "a factor, where the fit is in the logarithm"
    drawn(result, tmp_path / "figure.png")


@pytest.mark.parametrize("width", [None, "single"])
def test_the_figure_of_a_critical_point_shows_points_with_intervals_and_the_fit(width: Any) -> None:
    analysis = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction", size="modulus", level=0.8)
    kept: list[Figure] = []
    with drawn_as(FigureStyle(width=width, labels={"modulus": "$p$"})):
        draw("sweep", analysis.compute(fractions(23, 97)), kept.append)
    (legend,) = (legend for legend in (*kept[0].legends, *(a.get_legend() for a in kept[0].axes)) if legend is not None)
    assert [text.get_text() for text in legend.get_texts()] == [
        "$p$ 23, share of 20 trials", "$p$ 97, share of 20 trials", "fitted logistic curve", "half of the trials",
        "critical point, 80% interval", "80% interval of each share",
    ]  # fmt: skip
    panel = kept[0].axes[0]
    curves = [line for line in panel.lines if len(line.get_xdata()) == 201]  # type: ignore[arg-type]
    points = [line for line in panel.lines if line.get_marker() == "o"]
    assert len(points) == len(curves) == len(panel.collections) == 2
    assert [p.get_color() for p in points] == [c.get_color() for c in curves]
    for one, bars in zip(points, panel.collections, strict=True):
        for y, ((_, low), (_, high)) in zip(one.get_ydata(), bars.get_segments(), strict=True):  # type: ignore[arg-type, attr-defined]
            assert low <= y <= high and high > low


def test_a_critical_point_that_is_not_reached_is_no_number() -> None:
    made: list[Any] = [({"data_fraction": f}, r, step(2 * HORIZON)) for f in (0.2, 0.4, 0.6) for r in range(5)]
    given = source(made, axis("data_fraction", 0.2, 0.4, 0.6))
    (row,) = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction").compute(given).rows
    critical = row["critical"]
    assert isinstance(critical, Estimate) and (np.isinf(critical.low) or np.isinf(critical.high))


def test_a_critical_point_without_enough_settings_says_what_is_missing() -> None:
    def share(made: list[Any], size: str | None) -> object:
        given = source(made, axis("data_fraction", 0.2, 0.6), axis("modulus", 23, 47))
        (row,) = CriticalAnalysis(kind="critical", of=EVENT, along="data_fraction", size=size).compute(given).rows
        assert row["critical"] is None
        return row["share"]

    def trials(fractions: Sequence[float], sizes: Sequence[int], time: float = 500) -> list[Any]:
        return [({"data_fraction": f, "modulus": m}, r, step(time)) for f in fractions for m in sizes for r in range(2)]

    assert share(trials([0.2], [23]), None) == "not fitted: fewer than two values of data_fraction"
    assert share(trials([0.2, 0.6], [23]), "modulus") == "not fitted: fewer than two values of modulus"
    assert share(trials([0.2, 0.6], [23, 47]), "modulus") == "not fitted: all of the trials reach it"
    never = trials([0.2, 0.6], [23, 47], time=2 * HORIZON)
    assert share(never, "modulus") == "not fitted: none of the trials reach it"


def test_too_few_trials_are_not_said_to_have_missed_the_event() -> None:
    """A median of one trial has no upper limit, although the trial reached the event."""
    result = TimesAnalysis(kind="times", of=EVENT).compute(source([({}, 0, step(500))]))
    (row,) = result.rows
    assert row["not_reached"] == 0 and isinstance(row["median"], Estimate) and np.isinf(row["median"].high)
    assert any(note.startswith("inf: too few trials have reached it") for note in result.notes)

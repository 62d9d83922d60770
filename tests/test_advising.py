"""What `plan` says beyond counts: each warning where it belongs, and not where it does not; picture; cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from jobs.cautions import short_horizons
from jobs.job import Censored
from orchestrator.cli import main
from orchestrator.commands.advising import CHART_POINTS, cautions, cost_line, few_replicates, many_points, small_budget
from orchestrator.dispatch.capacity import Need, Shape
from orchestrator.plan.calibration import Calibration
from orchestrator.plan.grid_picture import FAILED, FINISHED, grid_picture
from orchestrator.plan.rehearsal import Rehearsal
from orchestrator.sanity import MetricFacts, TrialFacts
from orchestrator.sweep.sweep import Sweep

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def sweep(folder: Path, text: str) -> Sweep:
    (folder / "sweep.yaml").write_text(text)
    return Sweep.load(folder / "sweep.yaml", environ={})


def warned(folder: Path, text: str, finished: dict[str, Any] | None = None) -> str:
    loaded = sweep(folder, text)
    trials = loaded.sample(64) if loaded.is_search else loaded.trials()
    return "\n".join(f"{each.what} | {each.next_step}" for each in cautions(loaded, trials, finished or {}))


GROKKING = "job: grokking\naxes: {{weight_decay: {decays}}}\nfixed: {{steps: {steps}, learning_rate: 0.01}}\n"


def test_a_horizon_that_is_short_for_the_weight_decay_is_warned_of(tmp_path: Path) -> None:
    said = warned(tmp_path, GROKKING.format(decays="[0, 0.01, 0.1, 1]", steps=2000))
    assert "too short for the weight decay in 1 of 3 settings: at weight_decay 0.01" in said
    assert "2000 steps shrink the weights to 82% at least | steps: 10000 reaches" in said


ADAM = "job: grokking\naxes: {weight_decay: [0.01]}\nfixed: {steps: 2000, learning_rate: 0.01, optimiser: adam}\n"


@pytest.mark.parametrize("text", [GROKKING.format(decays="[0, 0.1, 1]", steps=2000), ADAM])
def test_a_horizon_that_is_long_enough_is_not(tmp_path: Path, text: str) -> None:
    assert "horizon" not in warned(tmp_path, text)


SHORT = "job: grokking\naxes: {{{axes}}}\n"
GAP = "grokking_gap 1000 is not below steps"


@pytest.mark.parametrize("search", ["", "search: {kind: boundary, budget: 90}\n"])
def test_a_sweep_too_short_for_any_trial_to_be_grokking_is_warned_of(tmp_path: Path, search: str) -> None:
    axes = "weight_decay: {scale: log, from: 1, to: 9, points: 3}, "
    axes += "data_fraction: {scale: linear, from: 0.3, to: 0.7, points: 3}"
    text = SHORT.format(axes=axes) + "fixed: {steps: 600}\n" + search
    said = warned(tmp_path, text)
    assert f"{GAP} 600: no trial can be labelled grokking | set phases.grokking_gap below 600" in said
    assert "grokking_gap" not in warned(tmp_path, text + "phases: {grokking_gap: 500}\n")


@pytest.mark.parametrize(("steps", "short"), [("[500, 1000]", True), ("[600, 2000]", False)])
def test_a_sweep_with_some_trials_long_enough_to_be_grokking_is_not(tmp_path: Path, steps: str, short: bool) -> None:
    assert (GAP in warned(tmp_path, SHORT.format(axes=f"steps: {steps}, data_fraction: [0.3, 0.7]"))) is short


def test_check_says_what_is_likely_to_go_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "short.yaml"
    file.write_text(SHORT.format(axes="data_fraction: [0.3, 0.7]") + "fixed: {steps: 600}\n")
    assert main(["check", str(file)]) == 0
    assert f"warning: {GAP} 600" in capsys.readouterr().out


def test_finished_trials_replace_the_usual_constant(tmp_path: Path) -> None:
    assert short_horizons([(0.01, 1.0, 100.0)], [0.2] * 5) is None  # generalised long before lr wd t = 1
    late = short_horizons([(0.01, 1.0, 300.0)], [4.0] * 5)
    assert late is not None and "5 finished trials generalised at lr wd t = 4" in late.source
    assert late.next_step.startswith("steps: 400 reaches")
    loaded = sweep(tmp_path, GROKKING.format(decays="[0.1, 1, 2, 3, 4, 5]", steps=2000))
    known: dict[str, Any] = {
        trial.id: {"generalisation_step": 400 / decay if decay < 5 else Censored(2000.0)}
        for trial in loaded.trials()[1:]
        for decay in [trial.settings()["weight_decay"]]
    }
    assert not [each for each in cautions(loaded, loaded.trials(), known) if "horizon" in each.what]  # 4 trials: c = 1
    known[loaded.trials()[-1].id] = {"generalisation_step": 80.0}
    (found,) = [each for each in cautions(loaded, loaded.trials(), known) if "horizon" in each.what]
    assert "in all settings: at weight_decay 0.1" in found.what


DESCENT = "job: double_descent\naxes: {{width: {widths}}}\nfixed: {{pool: 4000, epochs: 5}}\n"


def test_widths_on_one_side_of_the_interpolation_threshold_are_warned_of(tmp_path: Path) -> None:
    below = warned(tmp_path, DESCENT.format(widths="[2, 4, 8, 16]"))
    assert "all networks are below the interpolation threshold" in below and "include widths near 56" in below
    above = warned(tmp_path, DESCENT.format(widths="[200, 300]"))
    assert "all networks are above the interpolation threshold" in above and "include widths near 176" in above


def test_widths_around_it_are_not(tmp_path: Path) -> None:
    assert "interpolation" not in warned(tmp_path, DESCENT.format(widths="[8, 64, 300]"))
    assert "interpolation" not in warned(tmp_path, DESCENT.format(widths="[8]"))  # nothing varies
    loaded = sweep(tmp_path, DESCENT.format(widths="[2, 4, 8, 16]"))
    known: dict[str, Any] = {
        trial.id: {"final_train_error": error, "diverged_step": Censored(1.0)}
        for trial, error in zip(loaded.trials(), [0.5, 0.4, 0.0, 0.0], strict=True)
    }
    assert not cautions(loaded, loaded.trials(), known)  # both sides have been seen
    around = "job: ridge\naxes: {features: [50, 100, 200]}\nfixed: {inputs: 300}\n"
    assert "peak" not in warned(tmp_path, around)
    assert "peak" in warned(tmp_path, around.replace("50, 100", "150, 170"))


@pytest.mark.parametrize("path", ["demo_grokking.yaml", "demo_double_descent.yaml"])
def test_the_demonstrations_have_nothing_to_warn_of(path: str) -> None:
    loaded = Sweep.load(CONFIGS / path, environ={})
    assert not cautions(loaded, loaded.trials(), {})


def test_replicates_that_are_too_few_for_an_interval_are_warned_of(tmp_path: Path) -> None:
    text = (
        DESCENT.format(widths="[8, 64, 300]")
        + "replicates: 4\nanalysis: [{kind: peak, of: final_test_error, along: width}]\n"
    )
    said = warned(tmp_path, text)
    assert "4 replicates are too few for the 90% interval of 'peak_final_test_error_width' | replicates: 5" in said
    (mean,) = few_replicates(sweep(tmp_path, text).written.analysis or (), 4)
    assert "median" not in mean.source and "bootstrap interval of a mean" in mean.source
    random = np.random.default_rng(0)
    for n, told in ((4, mean.source.split()[-3]), (5, mean.next_step.split("(")[1].split()[0])):
        values, picked = random.standard_normal((2_000, n)), random.integers(n, size=(1_000, n))
        low, high = np.quantile(values[:, picked].mean(2), [0.05, 0.95], axis=1)
        assert ((low < 0) & (high > 0)).mean() == pytest.approx(float(told[:-1]) / 100, abs=0.04)
    assert not warned(tmp_path, text.replace("replicates: 4", "replicates: 5"))
    assert "replicates: 6" in warned(tmp_path, text.replace("along: width", "along: width, level: 0.95"))
    tuned = "[{kind: times, of: generalisation_step, between: optimiser, tune: [weight_decay]}]"
    grid = "axes: {optimiser: [adamw, sgd], weight_decay: [1, 2]}\nfixed: {learning_rate: 0.01}\n"
    loaded = sweep(tmp_path, f"job: grokking\n{grid}replicates: 8\nanalysis: {tuned}\n")
    (found,) = few_replicates(loaded.written.analysis or (), 8)
    assert (
        "8 replicates, of which a half is compared, are too few" in found.what and "replicates: 10" in found.next_step
    )
    assert not few_replicates(loaded.written.analysis or (), 10)


def test_more_points_than_the_charts_show_are_warned_of(tmp_path: Path) -> None:
    assert not many_points(CHART_POINTS)
    (found,) = many_points(CHART_POINTS + 1)
    assert "up to 321 points" in found.what and "sample of 320" in found.what
    loaded = sweep(tmp_path, "job: grokking\naxes: {weight_decay: [1]}\n")
    for values in (320, 1000):
        metrics = {"loss": MetricFacts(values=values, first=1, last=values)}
        seen = Rehearsal(calibration=Calibration(), trials=((loaded.trials()[0], TrialFacts(metrics=metrics)),))
        said = [each.what for each in cautions(loaded, loaded.trials(), {}, seen)]
        assert any("up to 1,000 points" in what for what in said) == (values == 1000)


def test_the_limit_is_that_of_the_installed_interface() -> None:
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    wanted = f"maxResults:{CHART_POINTS}"
    assert any(wanted in path.read_text(errors="ignore") for path in folder.glob("*.js")), mlflow.__version__


def test_a_budget_that_is_small_for_the_axes_is_warned_of(tmp_path: Path) -> None:
    text = """\
job: grokking
axes:
  weight_decay: {scale: log, from: 0.1, to: 10}
  data_fraction: {scale: linear, from: 0.2, to: 0.8}
  init_scale: {scale: log, from: 0.1, to: 10}
search: {kind: boundary, budget: 60}
"""
    assert "a budget of 60 trials is small for a search over 3 axes" in warned(tmp_path, text)
    assert "budget" not in warned(tmp_path, text.replace("60", "200"))
    assert not small_budget(20, axes=1, slices=1, grid=None)  # not measured
    assert not small_budget(60, axes=2, slices=1, grid=60)  # all of the grid
    assert small_budget(150, axes=2, slices=2, grid=None)


def test_the_picture_shows_what_is_known_of_each_cell(tmp_path: Path) -> None:
    loaded = sweep(
        tmp_path,
        "job: grokking\naxes: {weight_decay: [0.1, 1, 10], data_fraction: [0.25, 0.5, 0.75]}\nreplicates: 2\n",
    )
    trials = loaded.trials()
    by_cell = {(t.settings()["weight_decay"], t.settings()["data_fraction"], t.replicate): t.id for t in trials}
    state = {by_cell[0.1, f, r]: FINISHED for f in (0.25, 0.5) for r in (0, 1)}
    state |= {by_cell[1.0, 0.25, 0]: FINISHED, by_cell[10.0, 0.75, 1]: FAILED}
    assert grid_picture(loaded.axes, trials, state) == [
        "grid       10  . . x",
        "            1  + . .",
        "          0.1  # # .",
        "          weight_decay upwards, data_fraction 0.25 to 0.75 to the right; "
        "# finished, + partly finished, x failed, runs again, . to run",
    ]


def test_a_long_axis_is_binned_and_a_search_is_drawn_over_its_range(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, "job: grokking\naxes: {weight_decay: {scale: log, from: 0.1, to: 10, points: 200}}\n")
    lines = grid_picture(loaded.axes, loaded.trials(), {loaded.trials()[0].id: FINISHED})
    assert len(lines) == 2 and lines[0].split()[1].startswith("+.") and len(lines[0].split()[1]) == 50
    text = (
        "axes:\n  weight_decay: {scale: log, from: 0.1, to: 10}\n  data_fraction: {scale: linear, from: 0.2, to: 0.8}\n"
    )
    search = sweep(tmp_path, f"job: grokking\n{text}search: {{kind: boundary, budget: 90}}\n")
    some = search.sample(32)
    lines = grid_picture(search.axes, some, {trial.id: FINISHED for trial in some})
    assert len(lines) == 21 and sum(line.count("#") for line in lines[:-1]) > 20
    assert grid_picture(sweep(tmp_path, "job: grokking\n").axes, loaded.trials(), {}) == []


def test_the_cost_names_its_unit() -> None:
    gpus = Shape(workers=4, device="cuda", need=Need(cpus=1, gpus=0.5), memory_bytes=1e9)
    assert (
        cost_line(2.5, 7200, gpus) == "cost      about 10.00 (4 GPU hours), at 2.5 per GPU hour, 2 GPUs for 2 h 00 min"
    )
    assert "about less" not in cost_line(2.5, 1, gpus) and "less than 0.01" in cost_line(2.5, 1, gpus)
    cores = Shape(workers=1, device="cpu", need=Need(), memory_bytes=1e9)
    said = cost_line(0.04, 3600, cores, early_s=1800)
    assert said.startswith(
        "cost      at most 0.04 (1 CPU hours); about 0.02 (0.5 CPU hours) if trials end early, at 0.04"
    )

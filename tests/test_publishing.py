"""Files and metrics that `run` and `map` store in the sweep's parent run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.commands.publishing import is_published, keep_summary, publish_record
from orchestrator.commands.wiring import sweep_record
from orchestrator.phases.publish import MAP_FILES
from orchestrator.records import CurveRows, Status, Summary, TrialResult
from orchestrator.sweep.sweep import Sweep
from orchestrator.target import LevelTarget
from orchestrator.tracking.base import TrialRow
from orchestrator.tracking.memory import MemoryTracker
from orchestrator.trial import Trial

GRID = """\
name: melts
job: jobs_for_phases:Melt
axes:
  heat: {scale: log, from: 0.1, to: 10, points: 6}
  load: {scale: linear, from: 0, to: 1, points: 4}
"""
SEARCH = GRID.replace(", points: 6", "").replace(", points: 4", "") + "search: {kind: boundary, budget: 64}\n"
LINES = "phase_diagram_lines.png"
BOUNDARY = {"boundary.parquet", "boundary.geojson"}


def recorded(
    sweep: Sweep, trials: list[Trial], *, only: str | None = None, tracker: MemoryTracker | None = None
) -> MemoryTracker:
    """A record in which all trials have melted, or not, or all show the same."""
    tracker = tracker or MemoryTracker()
    tracker.open_sweep(sweep_record(sweep))
    tracker.begin(trials)
    for one in trials:
        melted = math.log10(float(one.settings()["heat"])) + float(one.settings()["load"]) - 0.5
        tracker.record(
            CurveRows(
                trial_ids=(one.id,),
                metrics=("melted",),
                trial=np.zeros(1, dtype=np.int32),
                step=np.ones(1, dtype=np.int64),
                values=np.array([[melted]]),
            )
        )
        phase = only or ("liquid" if melted > 0 else "solid")
        observed = {"melting_step": 10**-melted, "final_error": melted}
        tracker.end([TrialResult(trial_id=one.id, status=Status.FINISHED, phase=phase, observations=observed)])
    return tracker


def artifacts(tracker: MemoryTracker) -> set[str]:
    return {path for _, path in tracker.kept.artifacts}


def test_the_parent_run_has_the_files_of_one_map_and_all_that_is_not_a_maps(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(GRID + f"output: {tmp_path / 'out'}\n")
    sweep = Sweep.load(tmp_path / "sweep.yaml")
    trials = sweep.trials()
    tracker = recorded(sweep, trials)
    (tmp_path / "mine.png").write_text("mine")
    tracker.attach({"mine.png": tmp_path / "mine.png", "mine/" + LINES: tmp_path / "mine.png"})
    others = artifacts(tracker)
    for classifier in (False, True, False):
        published = publish_record(sweep, trials, tracker, classifier=classifier)
        assert artifacts(tracker) == others | set(published.files)
        assert {path.name for path in sweep.output.iterdir()} == set(published.files)
        assert (LINES in published.files) is not classifier
        assert (set(published.files) >= BOUNDARY) is classifier
        assert set(published.files) - {"columns.txt"} < MAP_FILES
        assert ("uncertain_area" in published.metrics) is classifier


@pytest.mark.parametrize("history", [(), ((16, 0.9), (40, 0.3))])
def test_a_searchs_curve_ends_with_its_map_and_stays_as_it_was_written(
    history: tuple[tuple[int, float], ...], tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(SEARCH + f"output: {tmp_path / 'out'}\n")
    sweep = Sweep.load(tmp_path / "sweep.yaml")
    trials = sweep.sample(64)
    tracker = recorded(sweep, trials)
    tracker.trace("uncertain_area", history)
    for _ in range(2):
        published = publish_record(sweep, trials, tracker, history=history)
        tracker.annotate(published.metrics)
        (curve,) = tracker.kept.traces.values()
        assert max(curve) == 64 and curve.items() >= dict(history).items()
        assert len(curve) == 3 if history else len(curve) > 5
        last = tracker.kept.metrics[sweep.id, "uncertain_area"]
        assert last == curve[64] == tracker.kept.metrics[sweep.id, "map/uncertain_area"]


def loaded(tmp_path: Path, text: str, name: str = "sweep") -> Sweep:
    (tmp_path / f"{name}.yaml").write_text(text + f"output: {tmp_path / 'out'}\n")
    return Sweep.load(tmp_path / f"{name}.yaml")


class Elsewhere(MemoryTracker):
    """Another record: its runs have other ids."""

    def rows(self, trial_ids: Iterable[str], *, settings: bool = True) -> Iterator[TrialRow]:
        for row in super().rows(trial_ids, settings=settings):
            yield replace(row, run_id=f"other {row.run_id}")


class Created(MemoryTracker):
    """A record whose run ids are those of others; `sweep_start_ms` is 0 as where no record is stated."""

    sweep_start_ms = 0


def test_records_with_equal_run_ids_are_told_apart_by_when_the_sweep_began_there(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, GRID)
    trials = sweep.trials()
    tracker = Created()
    recorded(sweep, trials, tracker=tracker)
    nothing_new = Summary(skipped=len(trials))
    for start, moves in ((0, False), (5, False), (5, False), (7, True), (7, False), (5, True)):
        tracker.sweep_start_ms = start
        if sweep.output.exists():
            assert is_published(sweep, nothing_new, tracker, "parent") is not moves
        said = [line for line in publish_record(sweep, trials, tracker).warnings if "were moved to" in line]
        assert ["another record" in line for line in said] == [True] * moves
        keep_summary(sweep, Summary(done=len(trials)), tracker, "parent")


def test_results_of_another_record_or_a_changed_sweep_are_kept_in_a_folder_of_their_own(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, GRID)
    trials = sweep.trials()
    one = recorded(sweep, trials)
    other = recorded(sweep, trials, tracker=Elsewhere())
    folders = 1
    for tracker, moves in ((one, False), (one, False), (other, True), (other, False), (one, True)):
        if sweep.output.exists():
            (sweep.output / "notes.md").write_text("mine")
        before = (sweep.output / "trials.parquet").read_bytes() if moves else b""
        said = [line for line in publish_record(sweep, trials, tracker).warnings if "were moved to" in line]
        assert len(said) == moves
        folders += moves
        assert len(list(sweep.output.parent.glob(f"{sweep.output.name}*"))) == folders
        if moves:
            kept = Path(said[0].rpartition(" moved to ")[2])
            assert (kept / "trials.parquet").read_bytes() == before and (kept / "phase_diagram.png").exists()
            assert not (kept / "notes.md").exists() and (sweep.output / "notes.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("until", "budget", "asked", "says"),
    [
        (
            0.0001,
            64,
            64,
            "the uncertain area of 0.01% was not reached within the budget; continue with `--set search.budget=128`",
        ),
        (0.0001, 90, 64, "the uncertain area of 0.01% is not reached yet: 64 of at most 90 trials have run"),
        (0.9, 90, 64, "the uncertain area of 90% was reached after 64 trials: `until` ends the search"),
    ],
)
def test_a_search_reports_whether_it_reached_its_stopping_rule(
    until: float, budget: int, asked: int, says: str, tmp_path: Path
) -> None:
    keys = f"budget: {budget}, until: {{uncertain_area: {until}}}"
    sweep = loaded(tmp_path, SEARCH.replace("budget: 64", keys))
    trials = sweep.sample(asked)
    published = publish_record(sweep, trials, recorded(sweep, trials))
    assert published.notes[-1] == says
    assert any(note.startswith("uncertain area") for note in published.notes)


def test_a_larger_budget_is_no_help_where_the_grid_is_spent(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, GRID + "search: {kind: boundary, budget: 64, until: {uncertain_area: 0.0001}}\n")
    trials = sweep.trials()
    published = publish_record(sweep, trials, recorded(sweep, trials))
    assert published.notes[-1].endswith("with all 24 trials of the grid; give the axes more points")
    part = loaded(tmp_path, GRID + "search: {kind: boundary, budget: 20, until: {uncertain_area: 0.0001}}\n")
    published = publish_record(part, trials[:20], recorded(part, trials[:20]))
    assert published.notes[-1].endswith("continue with `--set search.budget=24`")


def test_a_search_that_saw_one_label_has_found_no_boundary_and_saved_nothing(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, SEARCH)
    trials = sweep.sample(64)
    publish_record(sweep, trials, recorded(sweep, trials))
    assert (sweep.output / "search_savings.json").exists()
    published = publish_record(sweep, trials, recorded(sweep, trials, only="solid"))
    assert published.notes == (
        "no boundary was found: only 'solid' in 64 trials",
        "  next:  widen the axes, or change the thresholds under 'phases:'",
    )
    assert "uncertain_area" not in published.metrics, "a surface that has seen one label is sure of it everywhere"
    assert not any("a grid of the same" in note for note in published.notes)
    assert not (sweep.output / "search_savings.json").exists()
    assert not any("grid_of_same" in name for name in published.metrics)


@pytest.mark.parametrize(
    ("metric", "level", "says"),
    [
        ("final_error", 90, r"final_error is -\d\.\d+ to 1\.\d+: choose a level in between, or widen the axes"),
        ("speed", 1, "no trial has a finite value of speed: name another metric, or other settings"),
    ],
)
def test_the_next_step_after_a_level_that_no_trial_passes_has_the_range(
    metric: str, level: float, says: str, tmp_path: Path
) -> None:
    sweep = loaded(tmp_path, SEARCH)
    trials = sweep.sample(64)
    target = LevelTarget(metric=metric, level=level)
    search = sweep.search.model_copy(update={"target": target})
    published = publish_record(replace(sweep, search=search), trials, recorded(sweep, trials))
    assert published.notes[0].startswith("no boundary was found: only ") and len(published.notes) == 2
    assert re.fullmatch(f"  next:  {says}", published.notes[1])


def test_the_map_of_another_sweep_is_kept_and_gives_one_warning(tmp_path: Path) -> None:
    one = loaded(tmp_path, GRID, "one")
    other = loaded(tmp_path, GRID.replace("points: 4", "points: 5"), "other")
    trackers = {sweep.id: recorded(sweep, sweep.trials()) for sweep in (one, other)}
    summary = Summary(done=24)
    said = []
    for sweep in (one, other, other):
        tracker = trackers[sweep.id]
        published = publish_record(sweep, sweep.trials(), tracker)
        said.append([text for text in published.warnings if "another sweep" in text])
        if sweep is one:
            keep_summary(sweep, summary, tracker, "parent")
        nothing_new = Summary(skipped=24)
        assert is_published(one, nothing_new, tracker, "parent") is (sweep is one)
    assert [len(each) for each in said] == [0, 1, 0]
    assert one.id[:12] in said[1][0]
    moved = Path(said[1][0].rpartition("they were moved to ")[2])
    assert (moved / "trials.parquet").exists() and (moved / "run.json").exists()

"""Files written by `publish`: complete and in place, with finite numbers; other files are untouched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs_for_phases import GivenSweep, Melt, MeltWithoutSummary, axis, by_id, product, row

from jobs.job import Censored
from orchestrator.phases.draw import png_map
from orchestrator.phases.publish import MAP_FILES, publish
from orchestrator.phases.publish_map import Drawing
from orchestrator.phases.table import read_table
from orchestrator.records import Status
from orchestrator.sweep.sweep import Sweep

AXES = (axis("width", 2, 8, 30, 120, scale="integer"), axis("load", 0.0, 0.5))
FILES = {"phase_diagram.png", "phase_diagram_lines.png", "phase_diagram.html", "trials.parquet", "sweep_metrics.json"}


def test_the_metrics_count_every_trial_and_include_the_jobs_summary(tmp_path: Path) -> None:
    trials = product(AXES, replicates=3)
    rows = by_id(
        *(row(t, "liquid", melting_step=3.0) for t in trials[:9]),
        *(row(t, "glass", melting_step=Censored(9.0)) for t in trials[9:12]),
        *(row(t, None, Status.FAILED) for t in trials[12:17]),
        row(trials[17], None, Status.RUNNING),
    )
    published = publish(GivenSweep(axes=AXES), trials, rows, tmp_path)
    assert published.metrics == {
        "phase/solid": 0,
        "phase/liquid": 9,
        "phase/gas": 0,
        "phase/glass": 3,
        "failed": 5,
        "missing": 7,
        "trials": 24,
        "melting_width": min(t.params.width for t in trials[:9]),  # type: ignore[attr-defined]
    }
    assert json.loads(published.files["sweep_metrics.json"].read_text()) == published.metrics
    assert published.warnings == ()


def test_publishing_again_replaces_only_files_of_the_map(tmp_path: Path) -> None:
    own = tmp_path / "notes.txt"
    own.write_text("mine")
    trials = product(AXES)
    sweep = GivenSweep(axes=AXES)
    first = publish(sweep, trials, by_id(*(row(t, "gas", melting_step=2.0) for t in trials)), tmp_path)
    before = first.files["phase_diagram.png"].read_bytes()
    second = publish(sweep, trials, by_id(*(row(t, melting_step=1.0) for t in trials)), tmp_path)
    assert set(second.files) == FILES
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "notes.txt"}
    assert own.read_text() == "mine"
    assert second.files["phase_diagram.png"].read_bytes() != before
    assert all(path == tmp_path / name for name, path in second.files.items())


def test_only_files_of_an_earlier_map_are_deleted(tmp_path: Path) -> None:
    """A grid is drawn as it is, by the classifier, and as it is again."""
    axes = (AXES[0], axis("load", 0.0, 0.25, 0.5, scale="linear"))
    trials, sweep = product(axes), GivenSweep(axes=axes)
    rows = by_id(*(row(t, "gas", melting_step=2.0) for t in trials))
    own = {"notes.txt": "mine", "run.json": "{}", "comparison.png": "mine too", "phase_diagram_lines.png.bak": "mine"}
    for name, text in own.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "theory_curves.png").mkdir()  # no file of ours: whatever it is, it stays
    own_names = {*own, "theory_curves.png"}
    drawn: list[set[str]] = []
    for drawing in (None, Drawing(), None):
        published = publish(sweep, trials, rows, tmp_path, drawing=drawing)
        assert {path.name for path in tmp_path.iterdir()} == {*published.files, *own_names}
        assert {*published.files, *published.gone} == MAP_FILES
        drawn.append(set(published.files))
    assert drawn[0] == drawn[2] == FILES
    assert drawn[1] == FILES - {"phase_diagram_lines.png"} | {"boundary.parquet", "boundary.geojson"}
    assert {name: (tmp_path / name).read_text() for name in own} == own


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = product(AXES)
    sweep = GivenSweep(axes=AXES)
    before = publish(sweep, trials, {}, tmp_path).files["phase_diagram.png"].read_bytes()
    here = {path.name for path in tmp_path.iterdir()}

    def half(*args: object, theory: object) -> None:
        path = args[-1]
        assert isinstance(path, Path)
        path.write_bytes(b"half a pic")
        raise OSError("no space left on device")

    monkeypatch.setattr(png_map, "draw_map", half)
    with pytest.raises(OSError, match="no space"):
        publish(sweep, trials, {}, tmp_path)
    assert (tmp_path / "phase_diagram.png").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == here


def test_a_summary_that_raises_loses_its_numbers_but_not_the_diagram(tmp_path: Path) -> None:
    trials = product(AXES)
    published = publish(
        GivenSweep(axes=AXES, job=MeltWithoutSummary()), trials, by_id(*(row(t) for t in trials)), tmp_path
    )
    assert set(published.files) == FILES - {"phase_diagram_lines.png"}
    assert "melting_width" not in published.metrics
    (warning,) = published.warnings
    assert "ZeroDivisionError: nothing melted" in warning


@pytest.mark.parametrize("recorded", [0, 1, 8])
@pytest.mark.parametrize(
    "axes",
    [(), AXES[:1], AXES, (axis("kind", "tin", "iron"), axis("stirred", False, True)), (*AXES, axis("heat", 0.0, 1.0))],
)
def test_any_axes_and_any_part_of_the_record_can_be_published(
    tmp_path: Path, axes: tuple[object, ...], recorded: int
) -> None:
    trials = product(axes, replicates=2)  # type: ignore[arg-type]
    rows = by_id(*(row(t, melting_step=Censored(4.0), final_error=np.nan) for t in trials[:recorded]))
    published = publish(GivenSweep(axes=axes), trials, rows, tmp_path / "new" / "folder")  # type: ignore[arg-type]
    assert len(read_table(published.files["trials.parquet"])) == len(trials)
    assert all(path.stat().st_size > 0 for path in published.files.values())


def test_a_search_without_trials_has_an_empty_diagram(tmp_path: Path) -> None:
    assert publish(GivenSweep(axes=AXES), [], {}, tmp_path).metrics["trials"] == 0


def test_the_same_record_gives_the_same_files(tmp_path: Path) -> None:
    trials = product(AXES, replicates=2)
    rows = by_id(*(row(t, Melt.phases[i % 3], melting_step=float(i)) for i, t in enumerate(trials)))
    first = publish(GivenSweep(axes=AXES), trials, rows, tmp_path / "a")
    second = publish(GivenSweep(axes=AXES), trials[::-1], dict(reversed(rows.items())), tmp_path / "b")
    for name, path in first.files.items():
        assert path.read_bytes() == second.files[name].read_bytes(), name


def test_a_sweep_file_can_be_published(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: melts\njob: jobs_for_phases:Melt\nreplicates: 2\naxes:\n"
        "  heat: {scale: log, from: 0.1, to: 10, points: 5, include: [0]}\n  load: [0.2, 0.4, 0.8]\n"
        "  speed: {values: [0.1, 0.2], when: {stirred: true}}\n  stirred: [false, true]\n"
    )
    sweep = Sweep.load(file)
    trials = sweep.trials()
    published = publish(sweep, trials, by_id(*(row(t, melting_step=2.0) for t in trials)), tmp_path / "out")
    assert published.metrics["phase/solid"] == len(trials) == 6 * 3 * 3 * 2
    assert published.metrics["missing"] == 0


def test_nothing_heavy_is_imported_before_a_picture_is_drawn() -> None:
    code = (
        "import sys, orchestrator.phases.publish, orchestrator.phases.compare\n"
        "heavy = {'matplotlib', 'plotly', 'pyarrow', 'pandas', 'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ}, timeout=120)

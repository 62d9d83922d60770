"""Checkpoints: what a file holds, where it is kept, and what a worker and the driver do with it."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from jobs.catalogue import load_job
from jobs.state import TrialState
from orchestrator.checkpoints.contents import (
    BadCheckpoint,
    SavedCurve,
    SavedTrial,
    decoded,
    encoded,
    header_bytes,
    table_of,
)
from orchestrator.checkpoints.interval import DEFAULT_S, LEAST_S, NodeLives, Rhythm, interval_s
from orchestrator.checkpoints.known import Checkpoints
from orchestrator.checkpoints.saving import KEPT, Saved, Saving, files_of
from orchestrator.checkpoints.store import FolderStore, StoreError, below, open_store
from orchestrator.commands.wiring import make_checkpoints
from orchestrator.dispatch.base import Cause, Event, PackEnded, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.environment import IN_ONE_PIECE, TrainingRecord
from orchestrator.dispatch.inline import InlineDispatcher
from orchestrator.dispatch.ray_engine import _value
from orchestrator.dispatch.source import source_of
from orchestrator.dispatch.worker import execute
from orchestrator.plan.calibration import Calibration
from orchestrator.plan.planner import Planner
from orchestrator.progress import Silent
from orchestrator.records import Status, TrialResult
from orchestrator.runner import Runner
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.base import SweepRecord
from orchestrator.tracking.database import DatabaseTracker
from orchestrator.tracking.resilient import ResilientTracker
from orchestrator.trial import Trial
from tests.jobs_for_checkpoints import NAME
from tests.killing import killed_processes
from tests.runner_kit import Kept, Listed, task


def walk(start: float, **params: Any) -> Trial:
    params_type = load_job(NAME).Params
    return Trial(job=NAME, job_version=1, params=params_type(start=start, **params), replicate=0)


def saved_trial(name: str = "a", step: int = 7, rows: int = 3) -> SavedTrial:
    curve = SavedCurve(
        metrics=("loss", "x/y"),
        step=np.arange(1, rows + 1, dtype=np.int64),
        values=np.arange(2.0 * rows).reshape(rows, 2),
        present=np.ones((rows, 2), dtype=np.bool_),
    )
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "at": np.array(step), "none": np.zeros((0, 2))}
    return SavedTrial(trial_id=name, state=TrialState(step=step, arrays=arrays), curve=curve)


# What a file holds


def test_what_is_written_is_read() -> None:
    trials = [saved_trial("a", 7), saved_trial("b", 9, rows=0)]
    data = encoded(trials, source="1.0+abc")
    found = decoded(data, source="1.0+abc")
    assert list(found) == ["a", "b"]
    for trial in trials:
        read = found[trial.trial_id]
        assert read.state.step == trial.state.step and read.curve.metrics == trial.curve.metrics
        for name, array in trial.state.arrays.items():
            np.testing.assert_array_equal(read.state.arrays[name], array)
            assert read.state.arrays[name].dtype == array.dtype and read.state.arrays[name].shape == array.shape
        np.testing.assert_array_equal(read.curve.values, trial.curve.values)
    table = table_of(data[: header_bytes(data[:8])])
    assert table.steps == {"a": 7, "b": 9} and table.source == "1.0+abc"


GOOD = encoded([saved_trial("a"), saved_trial("b")], source="s")


@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(BadCheckpoint):
        decoded(GOOD[:length], source="s")


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    """Nothing is read otherwise than it was written: the file is refused, or the byte says nothing (JSON's spaces)."""
    data = bytearray(GOOD)
    data[place] ^= change
    try:
        found = decoded(bytes(data), source="s")
    except BadCheckpoint:
        return
    assert encoded(found.values(), source="s") == GOOD


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadCheckpoint):
        decoded(data, source="")
    with pytest.raises(BadCheckpoint):
        table_of(data)


class Evil:
    """Pickled, it writes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def header(**contents: Any) -> bytes:
    text = json.dumps(contents).encode()
    return len(text).to_bytes(8, "little") + text


def test_foreign_and_malicious_files_are_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    deep = b"[" * 200_000
    files = {
        "a pickle": pickle.dumps(Evil(mark)),
        "another's safetensors": save({"w": np.zeros(3)}),
        "a length beyond the file": (10**7).to_bytes(8, "little") + b"{}",
        "a length of terabytes": (1 << 42).to_bytes(8, "little") + b"{}",
        "JSON that is too deep": len(deep).to_bytes(8, "little") + deep,
        "a tensor beyond the file": header(
            __metadata__={
                "phasefront_checkpoint": "1",
                "contents": json.dumps({"source": "", "trials": []}),
                "digest": "",
            },
            w={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        ),
        "trials that are numbers": save(
            {}, {"phasefront_checkpoint": "1", "contents": json.dumps({"source": "", "trials": [1, 2]}), "digest": ""}
        ),
        "a step that is no number": save(
            {"w": np.zeros(1)},
            {
                "phasefront_checkpoint": "1",
                "contents": json.dumps({"source": "", "trials": [{"id": "a", "step": "rm -rf", "metrics": []}]}),
                "digest": "",
            },
        ),
    }
    for what, data in files.items():
        with pytest.raises(BadCheckpoint):
            decoded(data, source="")
        assert not mark.exists(), what


def test_another_version_and_another_source_are_named() -> None:
    other = GOOD.replace(b'"phasefront_checkpoint":"1"', b'"phasefront_checkpoint":"2"')
    assert other != GOOD
    with pytest.raises(BadCheckpoint, match="format '2'"):
        decoded(other, source="s")
    with pytest.raises(BadCheckpoint, match="another version of the job"):
        decoded(GOOD, source="t")


# Where it is kept


def test_a_folder_keeps_whole_files_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "deep" / "folder"))
    assert isinstance(store, FolderStore) and store.names() == [] and store.read("a.safetensors") is None
    store.write("a.safetensors", b"1" * 100)
    store.write("a.safetensors", GOOD)
    (tmp_path / "deep" / "folder" / ".a.safetensors.1.part").write_bytes(b"half")
    (tmp_path / "deep" / "folder" / "notes.txt").write_text("the user's")
    assert store.names() == ["a.safetensors"] and store.read("a.safetensors") == GOOD
    assert store.table("a.safetensors").steps == {"a": 7, "b": 7}
    store.delete("a.safetensors")
    store.delete("a.safetensors")
    assert store.names() == []
    assert (tmp_path / "deep" / "folder" / "notes.txt").exists(), "nothing else is deleted"


def test_a_pipe_among_the_files_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    store = open_store(str(tmp_path))
    store.write("a.safetensors", GOOD)
    assert store.names() == ["a.safetensors"] and Checkpoints(str(tmp_path)).find(["a"]) == 1


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    store.write("a.safetensors", b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.write("a.safetensors", b"after")
    assert store.read("a.safetensors") == b"before" and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_addresses_keep_their_options() -> None:
    assert below("s3://bucket/x?region=eu-1", "name") == "s3://bucket/x/name?region=eu-1"
    assert below("s3://bucket/", "name") == "s3://bucket/name"
    assert below("/data/what?", "name") == "/data/what?/name"


def test_an_address_that_leads_nowhere_is_a_store_error() -> None:
    with pytest.raises(StoreError):
        open_store("hdfs://nowhere:1/x").names()


# When a pack is saved


def test_the_interval_is_youngs_on_nodes_that_die_and_cheap_elsewhere() -> None:
    assert interval_s(0.1, None) == DEFAULT_S
    assert interval_s(30.0, None) == 3000.0, "at most 1% of the time"
    assert interval_s(0.5, 600.0) == pytest.approx(24.49, abs=0.01)
    assert interval_s(1e-6, 600.0) == LEAST_S
    assert interval_s(60.0, 3600.0) == pytest.approx(657.3, abs=0.1)
    assert interval_s(0.5, 1e9) == DEFAULT_S


@given(st.floats(0, 1e4), st.floats(1, 1e9), st.floats(1, 1e9))
def test_nodes_that_live_longer_are_saved_less_often(cost_s: float, life_s: float, other_s: float) -> None:
    short, long = sorted((life_s, other_s))
    assert LEAST_S <= interval_s(cost_s, short) <= interval_s(cost_s, long) <= interval_s(cost_s, None)
    assert cost_s / interval_s(cost_s, None) <= 0.01 * (1 + 1e-9)


def test_a_pack_is_due_after_the_interval_and_again_after_another() -> None:
    rhythm = Rhythm(began=100.0, fixed_s=10.0)
    assert [rhythm.due(t) for t in (100.0, 109.9, 110.0)] == [False, False, True]
    rhythm.saved(115.0, cost_s=5.0)
    assert [rhythm.due(t) for t in (116.0, 125.0)] == [False, True]


def test_the_life_of_nodes_is_the_time_of_all_over_the_number_that_was_lost() -> None:
    lives = NodeLives()
    lives.passed(0.0, 4)
    lives.passed(100.0, 4)
    assert lives.mean_s is None
    lives.lost()
    lives.lost()
    lives.passed(200.0, 2)
    assert lives.mean_s == 300.0


# What a worker does


class Clock:
    """Each reading is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def ran(pack: PackTask, *, until: int | None = None) -> tuple[list[PackProgress], Event | None]:
    """The events of a pack, up to a number of checkpoints; then its worker dies."""
    events: list[PackProgress] = []
    run = execute(pack, device="cpu", clock=Clock(), flush_s=3.0)
    for event in run:
        if not isinstance(event, PackProgress):
            return events, event
        events.append(event)
        if until is not None and sum(e.saved is not None for e in events) == until:
            run.close()
            break
    return events, None


def rows(events: Sequence[PackProgress]) -> dict[str, dict[int, tuple[float, ...]]]:
    found: dict[str, dict[int, tuple[float, ...]]] = {}
    for event in events:
        if event.rows is not None:
            for r, t in enumerate(event.rows.trial):
                curve = found.setdefault(event.rows.trial_ids[t], {})
                step = int(event.rows.step[r])
                assert step not in curve, "a row was sent twice"
                curve[step] = tuple(event.rows.values[r])
    return found


def results(events: Sequence[PackProgress]) -> dict[str, tuple[Any, ...]]:
    return {r.trial_id: (r.status, r.phase, dict(r.observations)) for event in events for r in event.results}


def latest(events: Sequence[PackProgress]) -> Saved:
    return [event.saved for event in events if event.saved is not None][-1]


TRIALS = [walk(0.1), walk(0.2, every=3), walk(0.3, steps=17)]


def pack_of(trials: Sequence[Trial], folder: Path, **continues: str) -> PackTask:
    saving = Saving(folder=str(folder), continues=continues, interval_s=10.0)
    return replace(task(trials), saving=saving, source="")


def test_a_pack_that_lost_its_worker_continues(tmp_path: Path) -> None:
    """Twice; the curves, observations and phases are those of the undisturbed pack, and little is trained again."""
    undisturbed, _ = ran(task(TRIALS))
    first, _ = ran(pack_of(TRIALS, tmp_path), until=1)
    saved = latest(first)
    assert set(saved.steps) == {t.id for t in TRIALS}
    (step,) = set(saved.steps.values())
    assert 0 < step < 17
    again = pack_of(TRIALS, tmp_path, **dict.fromkeys(saved.steps, saved.file))
    second, _ = ran(again, until=4)
    later = latest(second)
    left = [t for t in TRIALS if t.id in later.steps]
    assert len(left) == 2 and results(second).keys() == {TRIALS[2].id}
    third, last = ran(pack_of(left, tmp_path, **dict.fromkeys(later.steps, later.file)))
    assert isinstance(last, PackEnded)
    ended = results(second) | results(third)
    assert ended == results(undisturbed)
    expected = rows(undisturbed)
    assert rows(third) == {t.id: expected[t.id] for t in left}
    assert rows(second)[TRIALS[2].id] == expected[TRIALS[2].id]


def test_no_two_checkpoints_share_a_name(tmp_path: Path) -> None:
    """So no file changes while it is read, and one worker of a pack replaces nothing of another. A few are kept."""
    events, _ = ran(pack_of(TRIALS, tmp_path))
    again, _ = ran(pack_of(TRIALS, tmp_path))
    files = [event.saved.file for event in (*events, *again) if event.saved is not None]
    assert len(files) >= 6 and len(set(files)) == len(files)
    own = [event.saved.file for event in again if event.saved is not None]
    assert {path.name for path in tmp_path.iterdir()} & set(own) == set(own[-KEPT:])


def test_a_worker_that_was_given_up_does_no_harm(tmp_path: Path) -> None:
    """It goes on beside the one that continues its pack, and is behind; the newer state is continued."""
    first = execute(pack_of(TRIALS, tmp_path), device="cpu", clock=Clock(), flush_s=3.0)
    saved = next(e.saved for e in first if isinstance(e, PackProgress) and e.saved is not None)
    continued = latest(ran(pack_of(TRIALS, tmp_path, **dict.fromkeys(saved.steps, saved.file)), until=2)[0])
    late = next(e.saved for e in first if isinstance(e, PackProgress) and e.saved is not None)
    first.close()
    trial = TRIALS[0].id
    assert late.steps[trial] < continued.steps[trial]
    assert open_store(str(tmp_path)).table(continued.file).steps == continued.steps


def test_trials_from_several_checkpoints_and_new_ones_share_a_pack(tmp_path: Path) -> None:
    a, b, c, new = walk(0.1), walk(0.2), walk(0.3), walk(0.4)
    undisturbed = rows(ran(task([a, b, c, new]))[0])
    one = latest(ran(pack_of([a, b], tmp_path), until=1)[0])
    two = latest(ran(pack_of([c], tmp_path), until=2)[0])
    assert one.steps[a.id] != two.steps[c.id]
    continues = {a.id: one.file, b.id: one.file, c.id: two.file}
    mixed, _ = ran(pack_of([a, new, c, b], tmp_path, **continues), until=1)
    saved = latest(mixed)
    assert set(saved.steps) >= {a.id, b.id}, "what has not begun is in the new checkpoint, too"
    rest, last = ran(pack_of([a, new, c, b], tmp_path, **continues))
    assert isinstance(last, PackEnded) and rows(rest) == undisturbed


def test_a_result_says_with_which_trials_it_was_trained_and_where_it_was_continued(tmp_path: Path) -> None:
    a, b, new = walk(0.1), walk(0.2), walk(0.4)

    def trained(events: Sequence[PackProgress]) -> dict[str, TrainingRecord]:
        return {r.trial_id: TrainingRecord.parse(r.trained) for event in events for r in event.results}

    whole = trained(ran(task([a, b]))[0])
    assert {record.continued for record in whole.values()} == {IN_ONE_PIECE}
    saved = latest(ran(pack_of([a, b], tmp_path), until=1)[0])
    found = trained(ran(pack_of([a, new, b], tmp_path, **dict.fromkeys(saved.steps, saved.file)))[0])
    for trial, at in ((a, 0), (b, 1)):
        record = found[trial.id]
        assert record == replace(whole[trial.id], continued=saved.steps[trial.id]) and (record.at, record.of) == (at, 2)
    alone = trained(ran(task([new]))[0])
    assert found[new.id] == alone[new.id]


def test_a_damaged_checkpoint_costs_the_work_and_not_the_trial(tmp_path: Path) -> None:
    undisturbed = rows(ran(task(TRIALS))[0])
    saved = latest(ran(pack_of(TRIALS, tmp_path), until=1)[0])
    file = tmp_path / saved.file
    whole = file.read_bytes()
    again = pack_of(TRIALS, tmp_path, **dict.fromkeys(saved.steps, saved.file))
    other = encoded([saved_trial("a")], source=source_of(NAME).text)
    for damage, text in ((whole[:-5], "damaged"), (b"x" * 50, "safetensors"), (None, "gone"), (other, "this trial")):
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        events, last = ran(again)
        notices = [event.notice for event in events if event.notice]
        assert len(notices) == 1 and text in notices[0] and "start again" in notices[0]
        assert isinstance(last, PackEnded) and rows(events) == undisturbed


def test_a_state_that_the_job_refuses_starts_again(tmp_path: Path) -> None:
    trial = walk(0.1)
    curve = replace(saved_trial().curve, metrics=("x", "total"))
    bad = TrialState(step=3, arrays={"x": np.array(np.nan), "total": np.array(0.0)})
    data = encoded([SavedTrial(trial_id=trial.id, state=bad, curve=curve)], source=source_of(NAME).text)
    open_store(str(tmp_path)).write("bad.safetensors", data)
    events, last = ran(pack_of([trial], tmp_path, **{trial.id: "bad.safetensors"}))
    assert "not finite" in next(event.notice for event in events if event.notice)
    assert isinstance(last, PackEnded) and rows(events) == rows(ran(task([trial]))[0])


def test_a_store_that_takes_nothing_costs_nothing(tmp_path: Path) -> None:
    """The training goes on, and says so once."""
    (tmp_path / "file").write_text("no folder")
    events, last = ran(pack_of(TRIALS, tmp_path / "file" / "below"))
    notices = [event.notice for event in events if event.notice]
    assert len(notices) == 1 and "training goes on without them" in notices[0]
    assert isinstance(last, PackEnded) and rows(events) == rows(ran(task(TRIALS))[0])


def test_a_store_that_comes_back_is_used_again(tmp_path: Path) -> None:
    """It was away for a while: of days of training, not all that follow are without a checkpoint."""
    (tmp_path / "kept").write_text("no folder")
    trials = [walk(0.1, steps=200)]
    run = execute(pack_of(trials, tmp_path / "kept"), device="cpu", clock=Clock(), flush_s=3.0)
    saved: list[Saved] = []
    notices: list[str] = []
    events: list[PackProgress] = []
    for event in run:
        if isinstance(event, PackProgress):
            events.append(event)
            if event.notice:
                notices.append(event.notice)
                (tmp_path / "kept").unlink()
            if event.saved:
                saved.append(event.saved)
    assert len(notices) == 1 and "it is tried again" in notices[0]
    assert saved and rows(events) == rows(ran(task(trials))[0])
    assert open_store(str(tmp_path / "kept")).table(saved[-1].file).steps == saved[-1].steps


def test_a_store_that_does_not_answer_takes_one_percent_of_the_time_at_most() -> None:
    rhythm = Rhythm(began=0.0, fixed_s=10.0)
    rhythm.saved(60.0, cost_s=50.0, failed=True)
    assert [rhythm.due(t) for t in (100.0, 5059.0, 5061.0)] == [False, False, True]
    rhythm.saved(5061.0, cost_s=0.1)
    assert rhythm.due(5072.0)


@pytest.mark.parametrize("bad", ["a complex number", "an error of the job"])
def test_a_state_that_cannot_be_written_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    def states(*_: Any) -> Any:
        def state() -> dict[int, TrialState]:
            if bad == "an error of the job":
                raise KeyError("w")
            return {0: TrialState(step=1, arrays={"w": np.zeros(2, dtype=np.complex128)})}

        return state

    undisturbed = rows(ran(task(TRIALS))[0])
    monkeypatch.setattr("tests.jobs_for_checkpoints._states", states)
    events, last = ran(pack_of(TRIALS, tmp_path))
    notices = [event.notice for event in events if event.notice]
    assert len(notices) == 1 and "training goes on without them" in notices[0]
    assert isinstance(last, PackEnded) and rows(events) == undisturbed


def test_any_error_while_a_checkpoint_is_read_costs_the_work_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = latest(ran(pack_of(TRIALS, tmp_path), until=1)[0])

    def broken(self: FolderStore, name: str) -> bytes:
        raise MemoryError(name)

    monkeypatch.setattr(FolderStore, "read", broken)
    events, last = ran(pack_of(TRIALS, tmp_path, **dict.fromkeys(saved.steps, saved.file)))
    (notice,) = [event.notice for event in events if event.notice]
    assert "MemoryError" in notice and "start again" in notice
    assert isinstance(last, PackEnded) and rows(events) == rows(ran(task(TRIALS))[0])


def test_a_head_that_does_not_answer_fails_no_training() -> None:
    """Without a connection, Ray's internal store raises."""
    assert _value("key") is None


def test_a_pack_in_this_process_does_not_continue_from_another_source(tmp_path: Path) -> None:
    """`--inline` names no source in its tasks."""
    saved = latest(ran(pack_of(TRIALS, tmp_path), until=1)[0])
    store = open_store(str(tmp_path))
    assert store.table(saved.file).source == source_of(NAME).text
    data = store.read(saved.file)
    assert data is not None
    store.write(saved.file, encoded(decoded(data, source="").values(), source="1.0+other"))
    events, _ = ran(pack_of(TRIALS, tmp_path, **dict.fromkeys(saved.steps, saved.file)))
    (notice,) = [event.notice for event in events if event.notice]
    assert "another version of the job" in notice
    assert rows(events) == rows(ran(task(TRIALS))[0])


def test_a_pack_learns_while_it_trains_how_long_nodes_live(tmp_path: Path) -> None:
    """Its interval was that of nodes that stay; it is saved in the new one, and not all the time."""
    pack = pack_of([walk(0.1, steps=200)], tmp_path)
    pack = replace(pack, saving=replace(pack.saving, interval_s=None))  # type: ignore[type-var]

    def saves(life_s: float | None) -> int:
        run = execute(pack, device="cpu", clock=Clock(), flush_s=3.0, asked=lambda: life_s)
        return sum(isinstance(event, PackProgress) and event.saved is not None for event in run)

    assert saves(None) <= 2
    assert 2 < saves(600.0) < saves(0.0)


def test_a_short_pack_writes_nothing(tmp_path: Path) -> None:
    pack = pack_of(TRIALS, tmp_path / "folder")
    events, _ = ran(replace(pack, saving=replace(pack.saving, interval_s=None)))  # type: ignore[type-var]
    assert not (tmp_path / "folder").exists() and not any(event.saved or event.notice for event in events)


# What the driver does


def test_a_file_is_deleted_when_its_last_trial_has_ended_or_moved(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    store = open_store(str(folder))
    for name in ("one", "two", "other"):
        store.write(f"{name}.safetensors", GOOD)
    known = Checkpoints(str(folder))
    known.saved(Saved(file="one.safetensors", steps={"a": 5, "b": 5, "c": 5}), left=("a", "b"))
    known.saved(Saved(file="two.safetensors", steps={"b": 8}), left=("a", "b"))
    assert known.saving(["a", "b", "c"]).continues == {"a": "one.safetensors", "b": "two.safetensors"}
    known.ended(["b"])
    known.tidy()
    known.ended(["a"])
    assert known.saving(["a", "b"]).continues == {}
    known.close()
    assert store.names() == ["one.safetensors", "other.safetensors"], "deleted only once the record has the results"
    known.tidy()
    known.close()
    assert store.names() == ["other.safetensors"]


class Slow(Kept):
    """It holds what was written only after a flush, if then."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed, self.settles_at_last = 0, True

    def settled(self) -> bool:
        return self.settles_at_last and self.flushed > 0

    def flush(self) -> None:
        self.flushed += 1


@pytest.mark.parametrize("settles", [True, False])
def test_files_stay_until_the_record_holds_the_results(tmp_path: Path, settles: bool) -> None:
    """Those of the last packs are deleted, too."""
    folder = str(tmp_path / "kept")
    open_store(folder).write("done.safetensors", GOOD)
    tracker = Slow()
    tracker.settles_at_last = settles
    trial = walk(0.1)
    tracker.begin([trial])
    tracker.end([TrialResult(trial.id, Status.KILLED)])
    job = load_job(NAME)
    summary = Runner(
        job_name=NAME,
        planner=Planner(job_name=NAME, job=job, calibration=Calibration(), memory_budget_bytes=1e9),
        sampler=Listed([trial]),
        tracker=tracker,
        pool=InlineDispatcher,
        progress=Silent(),
        thresholds=job.Thresholds(),
        fingerprint="",
        checkpoints=Checkpoints(folder, interval_s=1e-6),
    ).run()
    assert summary.done == 1
    names = open_store(folder).names()
    assert names == [] if settles else "done.safetensors" in names and len(names) > 1


class LosesNews(InlineDispatcher):
    """Its node is lost, twice, with the news of the checkpoint that the pack has written last."""

    def __init__(self) -> None:
        super().__init__(clock=Clock(), flush_s=3.0)
        self.continued: list[int] = []
        """The step at which each attempt continues."""
        self.unreported: list[int] = []
        """The step of each checkpoint of which the driver does not hear."""
        self._reported = 0

    def submit(self, tasks: Sequence[PackTask]) -> None:
        super().submit(tasks)
        (pack,) = tasks
        assert pack.saving is not None
        self.continued += [open_store(pack.saving.folder).table(f).steps[t] for t, f in pack.saving.continues.items()]
        self._reported = 0

    def poll(self, timeout_s: float) -> list[Event]:
        events = super().poll(timeout_s)
        for event in events:
            if isinstance(event, PackProgress) and event.saved is not None:
                self._reported += 1
                if self._reported > 2 and len(self.unreported) < 2:
                    self.unreported += event.saved.steps.values()
                    self.close()
                    return [PackFailed(pack_id=event.pack_id, cause=Cause.NODE_LOST, error="the node is gone")]
        return events


def test_a_pack_whose_node_was_lost_continues_from_the_newest_checkpoint_that_was_written(tmp_path: Path) -> None:
    """Also from one of which the driver has not heard, because its news was lost with the node."""
    trial, folder, tracker = walk(0.1, steps=100), str(tmp_path / "kept"), Kept()
    pool, job = LosesNews(), load_job(NAME)
    summary = Runner(
        job_name=NAME,
        planner=Planner(job_name=NAME, job=job, calibration=Calibration(), memory_budget_bytes=1e9),
        sampler=Listed([trial]),
        tracker=tracker,
        pool=lambda: pool,
        progress=Silent(),
        thresholds=job.Thresholds(),
        fingerprint="",
        checkpoints=Checkpoints(folder, interval_s=10.0),
    ).run()
    assert summary.done == 1 and len(pool.unreported) == 2
    assert pool.continued == pool.unreported
    assert tracker.curve(trial, "total") == {
        step: row[1] for step, row in rows(ran(task([trial]))[0])[trial.id].items()
    }
    assert not Path(folder).exists(), "no file is left"


def test_a_run_that_is_complete_leaves_no_checkpoint(tmp_path: Path) -> None:
    """Not even those of a worker that was lost before it could name them."""
    folder = tmp_path / "kept"
    known = Checkpoints(str(folder))
    store = open_store(str(folder))
    for name in ("named", "unnamed"):
        store.write(f"{name}.safetensors", GOOD)
    known.saved(Saved(file="named.safetensors", steps={"a": 5, "b": 5}), left=("a", "b"))
    known.ended(["b"])
    known.complete()
    known.tidy()
    known.close()
    assert store.names() == ["named.safetensors"], "what a trial without a result may need is kept"
    known.ended(["a"])
    known.tidy()
    known.close()
    assert not folder.exists()


def test_a_run_that_is_complete_leaves_no_checkpoint_of_which_it_has_never_heard(tmp_path: Path) -> None:
    """Of a worker that was lost with its first one, or of a driver that was killed when it had recorded all results."""
    folder = tmp_path / "kept"
    open_store(str(folder)).write("unnamed.safetensors", GOOD)
    known = Checkpoints(str(folder))
    known.complete()
    assert known.releases
    known.tidy()
    known.close()
    assert not folder.exists()


def test_a_trial_that_failed_with_its_last_worker_keeps_no_checkpoint(tmp_path: Path) -> None:
    """The next pack looks for what lost workers have written; this trial has no next attempt."""
    folder = tmp_path / "kept"
    known = Checkpoints(str(folder))
    assert known.saving(["a", "b"]).continues == {}
    open_store(str(folder)).write(f"{files_of(['a', 'b'])}1.safetensors", GOOD)
    known.lost(["a", "b"], left=["a", "b"])
    known.ended(["a"])
    assert set(known.saving(["b"]).continues) == {"b"}
    known.ended(["b"])
    assert known.saving(["c"]).continues == {}
    known.complete()
    known.tidy()
    known.close()
    assert not folder.exists()


def test_a_search_that_looks_again_counts_the_trials_that_it_looks_for(tmp_path: Path) -> None:
    """Not those that train meanwhile."""
    store = open_store(str(tmp_path))
    known = Checkpoints(str(tmp_path))
    known.saving(["a", "b"])
    store.write("now.safetensors", GOOD)
    known.saved(Saved(file="now.safetensors", steps={"a": 7, "b": 7}), left=["a", "b"])
    assert known.find(["x"]) == 0
    assert known.find(["x", "b"]) == 1


def test_a_file_that_is_deleted_while_a_search_looks_again_is_not_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a worker that has replaced it, or by this run's own thread. One that stays and cannot be read is."""
    store, said, names = open_store(str(tmp_path)), list[str](), FolderStore.names
    known = Checkpoints(str(tmp_path), say=said.append)
    known.saving(["a"])
    for name in ("gone", "here"):
        store.write(f"{name}.safetensors", GOOD)

    def deleted_since(self: FolderStore) -> list[str]:
        listed = names(self)
        (tmp_path / "gone.safetensors").unlink(missing_ok=True)
        return listed

    monkeypatch.setattr(FolderStore, "names", deleted_since)
    assert known.find(["a"]) == 1 and known.saving(["a"]).continues == {"a": "here.safetensors"}
    assert said == []
    (tmp_path / "folder.safetensors").mkdir()
    assert known.find(["a"]) == 1 and len(said) == 1 and "folder.safetensors cannot be used" in said[0]


def test_what_is_found_while_packs_train_is_not_deleted(tmp_path: Path) -> None:
    """A search looks again for trials that it proposes later; a worker may have written a file just now."""
    store = open_store(str(tmp_path))
    known = Checkpoints(str(tmp_path))
    assert known.find(["x"]) == 0
    known.saving(["x"])
    store.write("new.safetensors", GOOD)
    assert known.find(["y"]) == 0
    known.tidy()
    known.close()
    assert store.names() == ["new.safetensors"]


def test_what_is_buffered_is_not_settled(tmp_path: Path) -> None:
    inner = DatabaseTracker(f"sqlite:///{tmp_path}/record.db", experiment="e")
    tracker = ResilientTracker(inner, what="the record", folder=tmp_path)
    tracker.open_sweep(SweepRecord(sweep_id="5" * 32, name="s", job=NAME, resolved_yaml="", thresholds=""))
    try:
        tracker.begin([walk(0.1)])
        tracker.flush()
        assert tracker.settled()
        tracker.end([TrialResult(walk(0.1).id, Status.FAILED, error="x")])
        assert not tracker.settled()
        tracker.flush()
        assert tracker.settled()
        tracker._lost(OSError(28, "No space left on device"))
        assert not tracker.settled(), "what is in the spool dies with the driver"
    finally:
        tracker.close()


def test_a_new_driver_finds_the_newest_state_of_each_unfinished_trial(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("1.safetensors", encoded([saved_trial("a", 5), saved_trial("b", 5)], source=""))
    store.write("2.safetensors", encoded([saved_trial("b", 9)], source=""))
    store.write("3.safetensors", encoded([saved_trial("done", 9)], source=""))
    store.write("4.safetensors", b"rubbish")
    said: list[str] = []
    known = Checkpoints(str(tmp_path), say=said.append)
    assert known.find(["a", "b", "c"]) == 2
    assert known.saving(["a", "b", "c"]).continues == {"a": "1.safetensors", "b": "2.safetensors"}
    assert (known.step_of("a"), known.step_of("b"), known.step_of("c")) == (5, 9, 0)
    assert len(said) == 1 and "4.safetensors cannot be used" in said[0]
    known.tidy()
    known.close()
    assert store.names() == ["1.safetensors", "2.safetensors", "4.safetensors"], "what holds no such trial is deleted"


KILLED_WHILE_IT_WRITES = """
import os, signal, sys
from orchestrator.checkpoints.store import open_store
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1]).write("a.safetensors", b"half")
"""


@pytest.mark.parametrize("when", ["the run before", "this run"])
def test_what_a_killed_writer_has_left_is_removed(tmp_path: Path, when: str) -> None:
    """By the next run of the sweep, or at the end of this one; then no folder is left either."""
    folder = tmp_path / "kept"
    known = Checkpoints(str(folder))
    for moment in ("the run before", "this run"):
        if when == moment:
            killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_WRITES, str(folder)], check=False)
            assert killed.returncode == -signal.SIGKILL and len(list(folder.glob(".*.part"))) == 1
        if moment == "the run before":
            assert known.find(["a"]) == 0
    assert folder.exists() == (when == "this run")
    open_store(str(folder)).write("b.safetensors", GOOD)
    known.saved(Saved(file="b.safetensors", steps={"a": 1}), left=["a"])
    known.ended(["a"])
    known.tidy()
    known.close()
    assert not folder.exists()


def test_what_is_wrong_with_many_files_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a run begins, by workers that continue, and by workers that save."""
    said: list[str] = []
    known = Checkpoints(str(tmp_path), say=said.append)
    for name in ("1", "2", "3"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"rubbish")
    assert known.find(["a"]) == 0
    assert len(said) == 1 and "safetensors format" in said[0]
    for trial in TRIALS:
        two, other = walk(0.5, steps=9), f"{trial.id}.safetensors"
        (tmp_path / other).mkdir()
        pack = pack_of([trial, two], tmp_path, **{trial.id: other, two.id: f"gone-{other}"})
        for event in ran(pack)[0]:
            known.note(event.notice)
    assert len(said) == 3 and "Is a directory" in said[1] and "it is gone" in said[2]
    assert all("start again" in line for line in said)

    def refused(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(self), None, str(target))

    monkeypatch.setattr(Path, "replace", refused)
    for trial in TRIALS:
        for event in ran(pack_of([trial], tmp_path))[0]:
            known.note(event.notice)
    assert len(said) == 4 and "cannot be written" in said[3]


def checkpoints_of(folder: Path, *, experiment: str = "e", steps: int = 40, kept: str = "kept") -> Checkpoints:
    """Those of a sweep of one walk, as `run` makes them."""
    file = folder / "sweep.yaml"
    file.write_text(
        f"job: {NAME}\naxes: {{start: [0.1]}}\nfixed: {{steps: {steps}}}\n"
        f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db', experiment: {experiment}}}\n"
        f"resources: {{checkpoints: '{kept if '://' in kept else folder / kept}', checkpoint_interval: 10}}\n"
    )
    checkpoints = make_checkpoints(Sweep.load(file), parent=32 * experiment, say=print)
    assert checkpoints is not None
    return checkpoints


@pytest.mark.parametrize("kept", ["kept", "s3://shelf/kept?x=1"])
def test_records_do_not_share_the_files_of_a_sweep(tmp_path: Path, kept: str) -> None:
    folders = {checkpoints_of(tmp_path, experiment=e, kept=kept).saving([]).folder for e in ("a", "b", "b")}
    assert len(folders) == 2
    assert all(folder.endswith("?x=1") == ("?" in kept) for folder in folders)


def test_the_run_of_one_record_leaves_the_files_of_another(tmp_path: Path) -> None:
    ours, others = (checkpoints_of(tmp_path, experiment=e) for e in ("ours", "others"))
    store = open_store(others.saving([]).folder)
    store.write("a.safetensors", GOOD)
    assert ours.find(["a", "b"]) == 0
    ours.tidy()
    ours.close()
    assert store.names() == ["a.safetensors"]


def test_a_folder_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    """It has no record in its name; files of other records may be there."""
    trial = walk(0.1)
    undisturbed, _ = ran(task([trial]))
    known = checkpoints_of(tmp_path)
    folder = Path(known.saving([]).folder)
    earlier = folder.with_name(folder.name.rpartition("-")[0])
    saved = latest(ran(pack_of([trial], earlier), until=1)[0])
    known.saved(Saved(file="others.safetensors", steps={"ours": 3}), left=["ours"])
    known.ended(["ours"])
    open_store(str(earlier)).write("others.safetensors", GOOD)  # of the same name, in another record
    assert known.find([trial.id]) == 1 and known.step_of(trial.id) == saved.steps[trial.id] > 0
    events, last = ran(replace(task([trial]), saving=known.saving([trial.id]), source=""))
    assert isinstance(last, PackEnded) and rows(events) == rows(undisturbed)
    assert not any(event.notice for event in events)
    assert all(later.steps[trial.id] > saved.steps[trial.id] for e in events if (later := e.saved) is not None)
    for event in events:
        if event.saved is not None:
            known.saved(event.saved, left=[trial.id])
    known.ended([trial.id])
    known.tidy()
    known.close()
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["others.safetensors"]


def test_statuses_of_a_continued_pack_are_those_of_any_other(tmp_path: Path) -> None:
    saved = latest(ran(pack_of(TRIALS, tmp_path), until=1)[0])
    events, _ = ran(pack_of(TRIALS, tmp_path, **dict.fromkeys(saved.steps, saved.file)))
    assert {status for status, _, _ in results(events).values()} == {Status.FINISHED}


def test_a_worker_that_is_killed_again_and_again_loses_an_interval_each_time(tmp_path: Path) -> None:
    """Real processes and SIGKILL; `python -m tests.benchmarks.checkpoints` does it twenty times, and on Ray."""
    found = killed_processes(tmp_path, kills=3, steps=400, wait_s=0.01, interval_s=0.3, seed=2)
    assert found.wrong == [] and found.kills == {"process": 3}

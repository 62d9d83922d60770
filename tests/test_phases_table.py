"""Laws of the table of trials."""

import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_for_phases import by_id, row, trial

from jobs.job import Censored
from orchestrator.phases.table import MISSING, TrialTable, collect, read_table, write_table
from orchestrator.records import Status

observation = st.one_of(st.floats(allow_nan=True), st.floats(0, 1e6).map(Censored))


def same(first: TrialTable, second: TrialTable) -> None:
    for name in ("trial_id", "run_id", "params", "phase", "status"):
        assert getattr(first, name) == getattr(second, name), name
    np.testing.assert_array_equal(first.replicate, second.replicate)
    assert list(first.observations) == list(second.observations)
    for name, column in first.observations.items():
        for part in ("value", "reached", "censored_at", "censored"):
            np.testing.assert_array_equal(getattr(column, part), getattr(second.observations[name], part), name)


@settings(max_examples=25)
@given(seen=st.lists(st.dictionaries(st.sampled_from(["a", "b", "width", "phase"]), observation), max_size=8))
def test_reading_a_written_table_gives_the_same_table(
    seen: list[dict[str, float | Censored]], tmp_path_factory
) -> None:
    path = tmp_path_factory.mktemp("table") / "trials.parquet"
    trials = [trial(heat=float(i)) for i in range(len(seen) + 1)]
    table = collect(trials, by_id(*(row(t, **values) for t, values in zip(trials, seen, strict=False))))
    write_table(table, path)
    same(read_table(path), table)


@given(order=st.permutations(range(12)))
def test_the_order_of_trials_is_irrelevant(order: list[int]) -> None:
    trials = [trial(i % 2, heat=float(i // 2), width=1 + i % 3) for i in range(12)]
    rows = by_id(*(row(t, x=float(i)) for i, t in enumerate(trials)))
    same(collect([trials[i] for i in order], rows), collect(trials, rows))


def test_a_censored_observation_is_null_in_the_file(tmp_path: Path) -> None:
    late, early, none = trial(heat=1.0), trial(heat=2.0), trial(heat=3.0)
    path = tmp_path / "trials.parquet"
    write_table(collect([late, early, none], by_id(row(late, step=Censored(500.0)), row(early, step=20.0))), path)
    read = pq.read_table(path)
    assert read["step"].to_pylist() == [None, 20.0, None]
    assert read["step_censored_at"].to_pylist() == [500.0, None, None]
    assert read["status"].to_pylist() == ["FINISHED", "FINISHED", MISSING]
    assert read["run_id"].to_pylist()[2] is None


def test_a_measured_nan_is_neither_missing_nor_censored(tmp_path: Path) -> None:
    one = trial()
    path = tmp_path / "trials.parquet"
    write_table(collect([one], by_id(row(one, loss=math.nan))), path)
    column = pq.read_table(path)["loss"]
    assert column.null_count == 0
    assert math.isnan(column[0].as_py())
    seen = read_table(path).observations_of(0)
    assert list(seen) == ["loss"]
    assert math.isnan(seen["loss"])  # type: ignore[arg-type]


def test_parameters_keep_their_types_and_their_values_of_each_trial(tmp_path: Path) -> None:
    trials = [
        trial(heat=h, width=w, kind=k, stirred=b) for h, w, k, b in ((0.5, 3, "tin", True), (0.25, 4, "lead", False))
    ]
    path = tmp_path / "trials.parquet"
    write_table(collect(trials, {}), path)
    read = pq.read_table(path)
    types = [read.schema.field(name).type for name in ("heat", "width", "kind", "stirred")]
    assert types == [pa.float64(), pa.int64(), pa.string(), pa.bool_()]
    found = {t["trial_id"]: t for t in read.to_pylist()}
    for t in trials:
        assert {name: found[t.id][name] for name in t.settings()} == dict(t.settings())


def test_only_a_finished_trial_has_a_phase_and_observations() -> None:
    for status in (Status.FAILED, Status.KILLED, Status.RUNNING):
        one = trial()
        table = collect([one], by_id(row(one, "solid", status, step=3.0)))
        assert table.phase == (None,)
        assert table.status == (status.value,)
        assert table.observations_of(0) == {}


def test_a_repeated_trial_counts_once_and_unknown_rows_are_ignored() -> None:
    one, stranger = trial(), trial(heat=9.0)
    assert len(collect([one, one], by_id(row(one), row(stranger)))) == 1


def test_another_parquet_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"trial_id": [str(random.random())]}), path)
    with pytest.raises(ValueError, match="not a table of trials"):
        read_table(path)

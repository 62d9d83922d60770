"""Tables, arrays, maps and analyses of a sweep are the same from PostgreSQL as from SQLite, odd numbers included."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pandas as pd
import pytest
from servers import postgres_server

import phasefront
from orchestrator.cli import main

FUNCTION = """
import math

def train(params, seed, device, report):
    rate, steps = params["rate"], (1, 2, 4, 8)
    for step in steps:
        loss = math.nan if rate < 1 else math.inf if rate > 2 and step > 2 else rate / step + seed % 7 / 100
        report(step, loss=loss, accuracy=-math.inf if rate < 1 else step / 8)
    if params["kind"] == "b":
        report(9, loss=0.5)

train.metrics = ("loss", "accuracy")
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same sweep, run with a record on SQLite and on PostgreSQL; its file in each case."""
    needs.postgresql()
    folder = tmp_path_factory.mktemp("results")
    (folder / "odd_numbers.py").write_text(FUNCTION)
    with pytest.MonkeyPatch.context() as patch, postgres_server() as server:
        patch.chdir(folder)
        files = {}
        for name, uri in (("sqlite", "sqlite:///record.db"), ("postgres", server)):
            files[name] = folder / f"{name}.yaml"
            files[name].write_text(f"""
name: odd
job: odd_numbers:train
axes: {{rate: [0.5, 1.0, 1.5, 2.5], kind: [a, b]}}
replicates: 2
phases: {{metric: loss, level: 0.3}}
analysis:
  - {{kind: peak, of: final_loss, along: rate}}
  - {{kind: step_map, of: loss, along: rate}}
  - {{kind: times, of: final_loss}}
tracking: {{uri: "{uri}"}}
output: out-{name}
""")
            phasefront.run(files[name], inline=True, progress=False)
        yield files


def tables(file: Path) -> dict[str, Any]:
    sweep = phasefront.load(file)
    trials = sweep.trials(summaries=["loss", "accuracy"]).drop(columns="run_id")
    array = sweep.to_xarray(["loss", "accuracy"]).drop_vars("run_id")
    return {"trials": trials, "curves": sweep.curves(axes=True), "cells": sweep.map().cells(), "array": array}


def test_the_tables_are_those_of_sqlite(both: dict[str, Path]) -> None:
    on_sqlite, on_postgres = (tables(both[name]) for name in ("sqlite", "postgres"))
    for name in ("trials", "curves", "cells"):
        pd.testing.assert_frame_equal(on_sqlite[name], on_postgres[name])
    assert on_sqlite["array"].identical(on_postgres["array"])


def test_numbers_that_are_not_finite_are_read_as_they_were_measured(both: dict[str, Path]) -> None:
    curves = phasefront.load(both["postgres"]).curves(axes=True, format="arrow").to_pandas(ignore_metadata=True)
    last = curves[(curves.step == 8)].groupby("rate")
    assert np.isposinf(last.loss.max()[2.5]) and np.isneginf(last.accuracy.min()[0.5])
    assert last.loss.max()[[1.0, 1.5]].between(0.1, 0.3).all()
    arrow = phasefront.load(both["postgres"]).curves(["loss", "accuracy"], axes=True, format="arrow")
    late = arrow.filter(np.asarray(arrow["step"]) == 9)
    assert late["accuracy"].null_count == late.num_rows == 8 and late["loss"].null_count == 0
    early = arrow.filter((np.asarray(arrow["rate"]) == 0.5) & (np.asarray(arrow["step"]) == 8))
    assert early["loss"].null_count == 0 and all(np.isnan(value) for value in early["loss"].to_pylist())


def test_analyses_and_exports_are_those_of_sqlite(both: dict[str, Path], tmp_path: Path) -> None:
    written = {}
    for name, file in both.items():
        assert main(["analyse", str(file)]) == 0
        assert main(["export", str(file), "--format", "csv", "-o", str(tmp_path / name)]) == 0
        out = file.parent / f"out-{name}"
        written[name] = [path.read_text() for path in sorted(out.glob("analysis*.csv"))]
        written[name] += [(tmp_path / name / part).read_text() for part in ("curves.csv", "data_dictionary.csv")]
    assert len(written["sqlite"]) >= 4
    assert written["sqlite"] == written["postgres"]

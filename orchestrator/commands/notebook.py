"""Behind `import phasefront`: the results of a sweep for a notebook or script."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.commands.searching import known_trials
from orchestrator.commands.wiring import open_tracker, reading_patience
from orchestrator.errors import Mistake, UserError
from orchestrator.results.sweep_results import Access, SweepResults
from orchestrator.secrets import learn
from orchestrator.sweep.sweep import Sweep

Overrides = Sequence[str] | Mapping[str, object]
Source = str | Path | Mapping[str, Any]
_DICT = "the sweep"
"""Stands for the file in messages about a sweep that is given as a mapping."""


def load(source: Source, *, overrides: Overrides = (), tracking: str | None = None) -> SweepResults:
    """The results of a sweep; the record is read when they are asked for.

    Args:
        source: a sweep file; a mapping with the content of one; the id of an MLflow run of the sweep (its parent, or
            a trial); or the address of such a run's page in MLflow's UI.
        overrides: values of the file to replace, as of `--set`: `["search.budget=256"]` or `{"search.budget": 256}`.
        tracking: the tracking address of a run id; by default $MLFLOW_TRACKING_URI, or sqlite:///mlflow.db.

    Raises:
        UserError: the file has mistakes, or there is no such run.
        Outage: the record stayed away.
    """
    return results_of(load_sweep(source, overrides=overrides, tracking=tracking))


def run(
    source: Source | Sweep | SweepResults,
    *,
    overrides: Overrides = (),
    workers: int | None = None,
    inline: bool = False,
    progress: bool = True,
    draw: bool = True,
) -> SweepResults:
    """Run the missing trials of a sweep, as `phasefront run` does, and return its results.

    Interrupting it (Ctrl-C, or a notebook's stop button) stops the run with everything recorded, and raises
    `KeyboardInterrupt`. Failed trials are listed on stderr and have the status FAILED.

    Args:
        source: as of `load`, or what `load` has returned. A sweep without a file is kept as `sweep.yaml` in its output
            folder, so that the command line can resume it.
        overrides: as of `load`.
        workers: worker processes, instead of the file's.
        inline: whether trials run in this process without Ray: slower; for debugging a job.
        progress: whether to show a progress bar.
        draw: whether to draw the phase diagram at the end.

    Raises:
        UserError: the sweep has mistakes.
        Outage: the infrastructure stayed away; call it again to resume.
        KeyboardInterrupt: the run was interrupted.
    """
    from orchestrator.commands.run import run_sweep
    from orchestrator.output import guarded_output

    began = time.monotonic()
    loaded = source.sweep if isinstance(source, SweepResults) else source
    if isinstance(loaded, Sweep):
        if overrides:
            rule, step = "cannot be changed in a sweep that is loaded", "give them to `load`"
            raise UserError(rule, place="overrides", value=overrides, next_step=step)
        sweep, file = loaded, None
    else:
        sweep = load_sweep(loaded, overrides=overrides)
        file = sweep.source if sweep.source.is_file() else None
    sweep.stop_if_refused()
    texts = _override_texts(overrides) if file is not None else []
    if workers is not None:
        if workers < 1:
            raise UserError("must be a whole number >= 1", place="workers", value=workers)
        sweep = replace(sweep, resources=sweep.resources.model_copy(update={"workers": workers}))
    if file is None:
        file = sweep.output / "sweep.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(sweep.resolved_yaml(), encoding="utf-8")
    arguments = argparse.Namespace(
        command="run",
        file=file,
        overrides=texts,
        workers=workers,
        inline=inline,
        quiet=not progress,
        no_map=not draw,
        allow_failures=False,
        figures=(),
    )
    with guarded_output(outlive=False):
        code = run_sweep(sweep, arguments, began=began, embedded=True)
    if code > 128:
        raise KeyboardInterrupt
    return results_of(sweep)


def results_of(sweep: Sweep) -> SweepResults:
    """The results of a sweep that is loaded."""
    return SweepResults(
        sweep=sweep, access=Access(open=partial(open_tracker, sweep), trials=partial(known_trials, sweep))
    )


def load_sweep(source: Source, *, overrides: Overrides = (), tracking: str | None = None) -> Sweep:
    """The sweep that is meant, see `load`."""
    from orchestrator.tracking.sweep_source import RUN_ID, run_in_url

    if os.getcwd() not in sys.path:  # noqa: PTH109 - the same text as sys.path holds
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 - `job: my_module:train`, as on the command line
    texts = _override_texts(overrides)
    learn(*texts, *([tracking] if tracking else []))
    if isinstance(source, Mapping):
        base = source.get("extends")
        here = {"extends": str(Path.cwd() / base)} if isinstance(base, str) and base else {}
        return _of_text(_dumped({**source, **here}), texts, called=_DICT)
    text = str(source)
    in_url = run_in_url(text)
    if in_url is not None:
        return _of_run(in_url[1], in_url[0], texts, place=text)
    if "://" in text:
        raise UserError(
            "is not the address of a run's page in MLflow's UI",
            value=text,
            next_step="open a run of the sweep and copy its address, .../#/experiments/ID/runs/RUN; or give its run id",
        )
    if RUN_ID.fullmatch(text) and not Path(text).exists():
        uri = tracking or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        return _of_run(text, uri, texts, place="tracking")
    if tracking is not None:
        step = f"leave out `tracking`, or override it: overrides=['tracking.uri={tracking}']"
        raise UserError("is the address for a run id; a sweep file names its own", place="tracking", next_step=step)
    return Sweep.load(Path(text), texts)


def _override_texts(given: Overrides) -> list[str]:
    """As `--set` takes them."""
    if isinstance(given, str):
        step = f"overrides=[{given!r}]"
        raise UserError("is one text, not a list", place="overrides", value=given, next_step=step)
    if isinstance(given, Mapping):
        return [f"{name}={value if isinstance(value, str) else _dumped(value)}" for name, value in given.items()]
    return list(given)


def _dumped(data: object) -> str:
    """Plain data as JSON, which is YAML; scalars of NumPy are converted."""

    def plain(value: Any) -> Any:
        return value.item() if hasattr(value, "item") else value.tolist() if hasattr(value, "tolist") else str(value)

    return json.dumps(dict(data) if isinstance(data, Mapping) else data, default=plain, indent=1, ensure_ascii=False)


def _of_text(text: str, overrides: Sequence[str], *, called: str, check: Callable[[Path], None] | None = None) -> Sweep:
    """A sweep from the text of its file; messages name it `called`. `check` is called with the file first."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sweep.yaml")
        path.write_text(text, encoding="utf-8")
        try:
            if check is not None:
                check(path)
            sweep = Sweep.load(path, overrides)
        except UserError as error:
            raise UserError.of(_called(called, path, error.mistakes)) from None
    return replace(sweep, source=Path(called), refusals=tuple(_called(called, path, sweep.refusals)))


def _called(called: str, path: Path, mistakes: Sequence[Mistake]) -> list[Mistake]:
    """The mistakes of a temporary file with the name of what it was made from."""
    return [replace(m, place=called if m.place.startswith(str(path)) else m.place) for m in mistakes]


def _of_run(run_id: str, uri: str, overrides: Sequence[str], *, place: str) -> Sweep:
    """The sweep of a recorded run. The job's code is imported only from places that the user has chosen."""
    from orchestrator.commands.recorded_job import recorded_job
    from orchestrator.sweep.yaml import read
    from orchestrator.tracking.address import shown
    from orchestrator.tracking.sweep_source import recorded_sweep

    found = recorded_sweep(uri, run_id, place=place, patience=reading_patience(f"the record ({shown(uri)})"))

    def check(path: Path) -> None:
        for job in {found.job, str(read(path, (), os.environ).data.get("job"))}:
            recorded_job(job, place=f"run {run_id}")

    def quoted(value: str) -> str:
        return json.dumps(value.replace("${", "$${"))

    where = (f"tracking.uri={quoted(uri)}", f"tracking.experiment={quoted(found.experiment)}")
    return _of_text(found.text, [*where, *overrides], called=f"the sweep file of run {found.run_id}", check=check)

"""How sweeps and trials are stored as MLflow runs: tags, encodings, run ids, times.

Every tracker that writes to MLflow, by SQL or over HTTP, uses this layout; it does not import mlflow.

A trial is a nested run. Its parameters are MLflow params (text, for filters and comparisons) and also the tag
`phasefront.params` (JSON, to read back without loss). Its curves are metrics whose timestamp is the run's start plus
the step in milliseconds. Its observations are metrics at step 0 whose timestamp lies before the run's start, so that
an observation is never taken for a point of a curve, even of the same name; they are also the tag
`phasefront.observations`, which includes the censored ones. Its values on the sweep's axes, where they are numbers, are
metrics `axis/NAME` too, because MLflow compares params as text; their time lies before that of the observations.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from urllib.parse import quote

from jobs.job import Censored, Observations, Scalar, is_metric_name
from orchestrator.errors import UserError
from orchestrator.process import Process
from orchestrator.records import Recorded, Status, TrialResult, observations_text
from orchestrator.tracking.base import SweepRecord, TrialRow, check_metric_names
from orchestrator.trial import Trial

TRIAL_ID = "phasefront.trial_id"
SWEEP_ID = "phasefront.sweep_id"
JOB = "phasefront.job"
DRIVER = "phasefront.driver"
"""Of a parent run: the last process that opened the sweep to run it."""
AGAIN = "phasefront.again"
"""Of a parent run: `SweepRecord.again` of that process."""
REPLICATE = "phasefront.replicate"
PARAMS = "phasefront.params"
PHASE = "phasefront.phase"
THRESHOLDS = "phasefront.thresholds"
CENSORED = "phasefront.censored"
OBSERVATIONS = "phasefront.observations"
ERROR = "phasefront.error"
TRAINED = "phasefront.trained"
COPIED = "phasefront.copied_from"
RUN_NAME = "mlflow.runName"
PARENT = "mlflow.parentRunId"
DESCRIPTION = "mlflow.note.content"
MOST_FOUND = 8
"""Lines about the map in a description."""

SETTING_TAGS = (PARAMS, REPLICATE, TRAINED)
PARENTS_ALONE = f"tags.`{SWEEP_ID}` != ''"
"""MLflow's filter for the parent runs of sweeps."""

RESULT_TAGS = (PHASE, THRESHOLDS, CENSORED, OBSERVATIONS, ERROR, TRAINED, COPIED)
"""Tags with the result of a trial; they are deleted when the trial begins again."""
KEPT_TAGS = (ERROR, TRAINED, COPIED)
"""Those of them that stay when a trial is only relabelled."""

LONGEST_TAG = 8000
LONGEST_PARAM = 6000
LONGEST_NAME = 250
LARGEST = 1.7976931348623157e308
"""MLflow stores infinity as the largest finite number of the same sign."""

OBSERVED_BEFORE_MS = 1000
"""An observation is stored this long before the run's start; each relabelling over HTTP adds 1 ms."""

AXIS = "axis/"
"""Prefix of the metrics with a trial's values on the axes."""
AXIS_BEFORE_MS = 2000
"""Such a metric is stored this long before the run's start: it is neither a point of a curve nor an observation."""


def run_id(identity: str, experiment_id: str | int, attempt: int = 0) -> str:
    """The run id of a trial or sweep: 24 digits of its own id, and 8 that hash experiment and attempt.

    Deterministic, so that a repeated insert has the same primary key. `attempt` counts the runs that a user has deleted
    in MLflow.
    """
    return identity[:24] + _suffix(str(experiment_id), attempt)


@lru_cache(maxsize=64)
def _suffix(experiment_id: str, attempt: int) -> str:
    return hashlib.blake2b(f"phasefront/{experiment_id}/{attempt}".encode(), digest_size=4).hexdigest()


def run_name(trial: Trial, axes: Sequence[str]) -> str:
    """Values on the axes and replicate, as in `weight_decay=0.1 fraction=0.5 #2`."""
    values = (f"{name}={_short(getattr(trial.params, name))}" for name in axes if hasattr(trial.params, name))
    return " ".join((*values, f"#{trial.replicate}"))[:LONGEST_NAME] if axes else trial.id[:8]


def _short(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else param_text(value)


def param_text(value: Scalar) -> str:
    """A parameter as MLflow shows it: text unchanged, numbers with all digits."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)  # the same text as JSON, without the cost of an encoder
    return (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAM]


def params(trial: Trial) -> list[tuple[str, str]]:
    """The params of a trial's run."""
    items = [(name, param_text(value)) for name, value in trial.settings().items() if name != "replicate"]
    return [*items, ("replicate", str(trial.replicate))]


def axis_metrics(trial: Trial, axes: Sequence[str]) -> list[tuple[str, float]]:
    """The trial's values on the axes that are numbers, as metrics: MLflow's filters compare params as text."""
    metrics = []
    for axis in axes:
        value, name = getattr(trial.params, axis, None), axis_metric(axis)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name is not None and value is not None and number and math.isfinite(value):
            metrics.append((name, float(value)))
    return metrics


@lru_cache(maxsize=256)
def axis_metric(axis: str) -> str | None:
    """The metric of an axis; None where its name is too long for MLflow."""
    name = f"{AXIS}{axis}"
    return name if is_metric_name(name) else None


def trial_tags(trial: Trial, sweep: SweepRecord, parent: str) -> list[tuple[str, str]]:
    """The tags of a trial's run when it begins, run name and parent first.

    Only what is needed, because with many runs each tag costs a page of an index. User and source are stored with the
    parent.

    Raises:
        UserError: The parameters are too long for a tag.
    """
    settings = json.dumps(dict(trial.settings()), separators=(",", ":"))
    if len(settings) > LONGEST_TAG:
        raise UserError(
            f"a trial's parameters must fit in {LONGEST_TAG} characters of JSON, as an MLflow tag holds no more",
            value=settings,
            next_step="shorten its text parameters: give the name of a file instead of its content",
        )
    return [
        (RUN_NAME, run_name(trial, sweep.axes)),
        (PARENT, parent),
        (TRIAL_ID, trial.id),
        (JOB, trial.job),
        (REPLICATE, str(trial.replicate)),
        (PARAMS, settings),
    ]


def sweep_tags(sweep: SweepRecord, *, running: bool) -> list[tuple[str, str]]:
    """The tags of a sweep's parent run, without its description; `running`: whether this process runs the sweep."""
    again = sweep.again if len(sweep.again) <= LONGEST_TAG else ""
    driver = [(DRIVER, Process.this().text), (AGAIN, again)] if running else []
    return [
        (RUN_NAME, sweep.name[:LONGEST_NAME]),
        ("mlflow.user", user()),
        ("mlflow.source.name", "phasefront"),
        ("mlflow.source.type", "LOCAL"),
        (SWEEP_ID, sweep.sweep_id),
        (JOB, sweep.job),
        (THRESHOLDS, sweep.thresholds),
        *driver,
    ]


def description(sweep: SweepRecord, experiment_id: str, run_id: str, found: Sequence[str] = ()) -> str:
    """The description of a sweep's parent run, in Markdown: what it is, where to look, and filters.

    Args:
        sweep: The sweep.
        experiment_id: Its experiment.
        run_id: Its parent run.
        found: What its map shows, a line each; with them, the picture of the map is part of the description.
    """
    trials = f"tags.`{PARENT}` = '{run_id}'"
    runs, workflow = f"#/experiments/{experiment_id}/runs", "workflowType=machine_learning"
    files = f"{runs}/{run_id}/artifacts"
    links = [
        f"[interactive map]({files}/phase_diagram.html)",
        f"[report]({files}/report.html)",
        f"[sweep file]({files}/sweep.yaml)",
        f"[trials]({runs}?{workflow}&searchFilter={quote(trials, safe='')})",
    ]
    picture = f"![phase diagram](get-artifact?path=phase_diagram.png&run_uuid={run_id})"
    axes = f" over {', '.join(f'`{axis}`' for axis in sweep.axes)}" if sweep.axes else ""
    return "\n".join(
        [
            f"Sweep **{sweep.name}** of `{sweep.job}`{axes}.",
            "",
            # MLflow shows the first lines, and the rest on request.
            " · ".join(links) if found else links[-1],
            "",
            *([picture, "", *(f"- {line}" for line in found[:MOST_FOUND]), ""] if found else []),
            "Filters for the list of runs:",
            "",
            f"- the sweeps without their trials: ``{PARENTS_ALONE}``",
            f"- the trials of this sweep: ``{trials}``",
            *(f'- trials by a value: ``metrics."{AXIS}{axis}" > 1``' for axis in sweep.axes[:1]),
        ]
    )[:LONGEST_TAG]


@lru_cache(maxsize=1)
def user() -> str:
    """The name of the current user; in a container there may be none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def result_tags(result: TrialResult, thresholds: str) -> list[tuple[str, str]]:
    """The tags of a trial that has ended; a tag of RESULT_TAGS that is not among them must be deleted.

    Raises:
        UserError: The observations are too long for a tag.
    """
    tags = [(THRESHOLDS, thresholds)]
    if result.phase is not None:
        tags.append((PHASE, result.phase[:LONGEST_TAG]))
    if result.observations:
        tags.append((OBSERVATIONS, observations_text(result.observations)))
        censored = {name: value.at for name, value in result.observations.items() if isinstance(value, Censored)}
        if censored:
            tags.append((CENSORED, json.dumps(censored)))
    if result.error:
        tags.append((ERROR, _tail(result.error)))
    if result.trained:
        tags.append((TRAINED, result.trained))
    if result.copied_from:
        tags.append((COPIED, result.copied_from))
    for key, text in tags:
        if len(text) > LONGEST_TAG:
            raise UserError(
                f"a trial's observations must fit in {LONGEST_TAG} characters of JSON, as an MLflow tag holds no more",
                value=f"{key} of trial {result.trial_id}: {text}",
                next_step="let the job's `observe` return fewer or shorter names",
            )
    return tags


def _tail(error: str) -> str:
    """The end of a long traceback, which says most."""
    error = error.replace("\0", "")
    return error if len(error) <= LONGEST_TAG else "...\n" + error[4 - LONGEST_TAG :]


def observed_metrics(observations: Observations) -> list[tuple[str, float]]:
    """The observations that are numbers; a censored observation is not a metric."""
    check_metric_names(observations)
    return [(name, float(value)) for name, value in observations.items() if not isinstance(value, Censored)]


def decode_observations(text: str | None) -> Observations | None:
    """The observations from their tag; None if it is damaged: anybody can edit a tag in MLflow's UI."""
    return decode_all_observations([text])[0]


def decode_all_observations(texts: Sequence[str | None]) -> Sequence[Observations | None]:
    """The observations from their tags; empty where there is no tag, None where it is damaged.

    One parse for all is four times as fast.
    """
    try:
        return _decode_all(texts)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        if len(texts) == 1:
            return [None]
        return [decode_observations(text) for text in texts]


def _decode_all(texts: Sequence[str | None]) -> list[Observations]:
    read = json.loads(f"[{','.join(text or '{}' for text in texts)}]")
    if len(read) != len(texts):  # a damaged tag such as {},{}
        raise ValueError("not one object in each text")
    return [
        {
            name: Censored(float(value["censored"])) if isinstance(value, dict) else float(value)
            for name, value in observed.items()
        }
        for observed in read
    ]


def decode_params(text: str) -> dict[str, Scalar]:
    """The parameters from their tag.

    Raises:
        ValueError: It does not hold parameters.
    """
    try:
        params: dict[str, Scalar] = json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error
    if not isinstance(params, dict) or any(isinstance(value, (dict, list)) for value in params.values()):
        raise ValueError(f"no parameters of a trial: {text[:100]!r}")
    return params


class RecordedParams(Mapping[str, Scalar]):
    """The parameters of a trial, read from their tag when they are first asked for: most readers do not ask."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._read: dict[str, Scalar] | None = None

    def _params(self) -> dict[str, Scalar]:
        if self._read is None:
            self._read = decode_params(self._text)
        return self._read

    def __getitem__(self, name: str) -> Scalar:
        return self._params()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._params())

    def __len__(self) -> int:
        return len(self._params())


def status_of(status: str) -> Status:
    """A run's status as that of a trial."""
    return Status(status) if status in Status.__members__ else Status.RUNNING


def recorded(status: str, tags: Mapping[str, str], through_step: int, observations: Observations | None) -> Recorded:
    """The state of a trial from its run's status and tags; with damaged observations, one that must be labelled again.

    Args:
        status: Of the run.
        tags: Of the run.
        through_step: Its last recorded step.
        observations: From `decode_observations`.
    """
    known = status_of(status)
    return Recorded(
        status=known,
        phase=tags.get(PHASE),
        observations=observations or {},
        thresholds="" if observations is None else tags.get(THRESHOLDS, ""),
        through_step=-1 if known is Status.FINISHED else through_step,
    )


def trial_row(trial_id: str, run_id: str, tags: Mapping[str, str], recorded: Recorded) -> TrialRow:
    """A trial as `Tracker.rows` returns it, from its run's tags; without those of its settings, without settings."""
    return TrialRow(
        trial_id=trial_id,
        run_id=run_id,
        params=RecordedParams(tags[PARAMS]) if PARAMS in tags else {},
        replicate=int(tags.get(REPLICATE, 0)) if tags.get(REPLICATE, "0").isdecimal() else 0,
        recorded=recorded,
        error=tags.get(ERROR),
        trained=tags.get(TRAINED, ""),
    )


def now_ms() -> int:
    """The time now, in ms since the epoch."""
    return time.time_ns() // 1_000_000


def as_stored(value: float) -> tuple[float, bool]:
    """A value as MLflow's tables store it: (number, is NaN)."""
    if math.isnan(value):
        return 0.0, True
    return max(-LARGEST, min(LARGEST, value)), False


def as_measured(value: float) -> float:
    """The reverse of `as_stored` for infinities; a measured value is never the largest finite number."""
    return math.copysign(math.inf, value) if abs(value) == LARGEST else value

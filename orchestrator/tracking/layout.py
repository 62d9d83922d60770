"""How a sweep and its trials are laid out as MLflow runs: tags, encodings, run ids, times.

Every tracker that writes to MLflow, by SQL or by HTTP, uses this layout; it imports no mlflow.

A trial is a nested run. Its parameters are MLflow params (text, to filter and compare by) and once
more the tag `phasefront.params` (JSON, to read back without loss). Its curves are metrics whose
timestamp is the run's start plus the step in milliseconds. Its observations are metrics at step 0
whose timestamp lies before the run's start, so that no observation is taken for a point of a curve,
even of the same name; they are once more the tag `phasefront.observations`, with what is censored.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from jobs.job import LONGEST_METRIC_NAME, Censored, Observations, Scalar, is_metric_name
from orchestrator.errors import UserError
from orchestrator.records import Recorded, Status, TrialResult
from orchestrator.tracking.base import SweepRecord
from orchestrator.trial import Trial

TRIAL_ID = "phasefront.trial_id"
SWEEP_ID = "phasefront.sweep_id"
JOB = "phasefront.job"
REPLICATE = "phasefront.replicate"
PARAMS = "phasefront.params"
PHASE = "phasefront.phase"
THRESHOLDS = "phasefront.thresholds"
CENSORED = "phasefront.censored"
OBSERVATIONS = "phasefront.observations"
ERROR = "phasefront.error"
TRAINED = "phasefront.trained"
RUN_NAME = "mlflow.runName"
PARENT = "mlflow.parentRunId"

RESULT_TAGS = (PHASE, THRESHOLDS, CENSORED, OBSERVATIONS, ERROR, TRAINED)
"""Tags that say how a trial ended; a trial that is begun anew has none of them."""
KEPT_TAGS = (ERROR, TRAINED)
"""Of those, what stays where a trial is only labelled anew."""

LONGEST_TAG = 8000
LONGEST_PARAM = 6000
LONGEST_NAME = 250
LARGEST = 1.7976931348623157e308
"""MLflow keeps an infinity as the largest finite number of its sign."""

OBSERVED_BEFORE_MS = 1000
"""An observation's timestamp is this long before the run's start, plus how often it was relabelled by HTTP."""


def run_id(identity: str, experiment_id: str | int, attempt: int = 0) -> str:
    """The run of a trial (or sweep) in an experiment: 24 digits of its own id, 8 of where and which.

    Deterministic, so that a repeated insert meets the same primary key. `attempt` counts the runs
    that a user has deleted in MLflow.
    """
    return identity[:24] + _suffix(str(experiment_id), attempt)


@lru_cache(maxsize=64)
def _suffix(experiment_id: str, attempt: int) -> str:
    return hashlib.blake2b(f"phasefront/{experiment_id}/{attempt}".encode(), digest_size=4).hexdigest()


def run_name(trial: Trial, axes: Sequence[str]) -> str:
    """`weight_decay=0.1 fraction=0.5 #2`: where on the axes, and which replicate."""
    values = (f"{name}={_short(getattr(trial.params, name))}" for name in axes if hasattr(trial.params, name))
    return " ".join((*values, f"#{trial.replicate}"))[:LONGEST_NAME] if axes else trial.id[:8]


def _short(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else param_text(value)


def param_text(value: Scalar) -> str:
    """A parameter as MLflow shows it: text as it is, numbers so that they read back exactly."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)  # as JSON has it, without the cost of an encoder
    return (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAM]


def params(trial: Trial) -> list[tuple[str, str]]:
    """The params of a trial's run."""
    items = [(name, param_text(value)) for name, value in trial.settings().items() if name != "replicate"]
    return [*items, ("replicate", str(trial.replicate))]


def trial_tags(trial: Trial, sweep: SweepRecord, parent: str) -> list[tuple[str, str]]:
    """The tags that a trial's run begins with, run name and parent first.

    No more than are of use: every one costs a page of an index when runs are many. User and source
    are the parent's.
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


def sweep_tags(sweep: SweepRecord) -> list[tuple[str, str]]:
    """The tags of a sweep's parent run."""
    return [
        (RUN_NAME, sweep.name[:LONGEST_NAME]),
        ("mlflow.user", user()),
        ("mlflow.source.name", "phasefront"),
        ("mlflow.source.type", "LOCAL"),
        ("mlflow.note.content", f"Sweep **{sweep.name}** of `{sweep.job}`; the file is the artifact `sweep.yaml`."),
        (SWEEP_ID, sweep.sweep_id),
        (JOB, sweep.job),
        (THRESHOLDS, sweep.thresholds),
    ]


@lru_cache(maxsize=1)
def user() -> str:
    """Whose runs these are; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def result_tags(result: TrialResult, thresholds: str) -> list[tuple[str, str]]:
    """The tags of a trial that has ended; of RESULT_TAGS, those not given must not be there."""
    tags = [(THRESHOLDS, thresholds)]
    if result.phase is not None:
        tags.append((PHASE, result.phase[:LONGEST_TAG]))
    if result.observations:
        tags.append((OBSERVATIONS, _encode(result.observations)))
        censored = {name: value.at for name, value in result.observations.items() if isinstance(value, Censored)}
        if censored:
            tags.append((CENSORED, json.dumps(censored)))
    if result.error:
        tags.append((ERROR, _tail(result.error)))
    if result.trained:
        tags.append((TRAINED, result.trained))
    for key, text in tags:
        if len(text) > LONGEST_TAG:
            raise UserError(
                f"a trial's observations must fit in {LONGEST_TAG} characters of JSON, as an MLflow tag holds no more",
                value=f"{key} of trial {result.trial_id}: {text}",
                next_step="let the job's `observe` return fewer or shorter names",
            )
    return tags


def _tail(error: str) -> str:
    """The end of a traceback says most."""
    error = error.replace("\0", "")
    return error if len(error) <= LONGEST_TAG else "...\n" + error[4 - LONGEST_TAG :]


def observed_metrics(observations: Observations) -> list[tuple[str, float]]:
    """The observations that are numbers: what was not reached is no metric."""
    check_metric_names(observations)
    return [(name, float(value)) for name, value in observations.items() if not isinstance(value, Censored)]


def _encode(observations: Observations) -> str:
    def plain(value: float) -> float | str:
        return float(value) if math.isfinite(value) else str(float(value))

    return json.dumps(
        {
            name: {"censored": plain(value.at)} if isinstance(value, Censored) else plain(value)
            for name, value in observations.items()
        },
        separators=(",", ":"),
    )


def decode_observations(text: str | None) -> Observations:
    """The observations as they were given, from the tag."""
    if not text:
        return {}
    return {
        name: Censored(float(value["censored"])) if isinstance(value, dict) else float(value)
        for name, value in json.loads(text).items()
    }


def decode_params(text: str) -> dict[str, Scalar]:
    """The parameters as they were given, from the tag."""
    found: dict[str, Scalar] = json.loads(text)
    return found


def recorded(status: str, tags: Mapping[str, str], through_step: int) -> Recorded:
    """What a run's status and tags say of its trial."""
    known = Status(status) if status in Status.__members__ else Status.RUNNING
    return Recorded(
        status=known,
        phase=tags.get(PHASE),
        observations=decode_observations(tags.get(OBSERVATIONS)),
        thresholds=tags.get(THRESHOLDS, ""),
        through_step=-1 if known is Status.FINISHED else through_step,
    )


def check_metric_names(names: Iterable[str]) -> None:
    """MLflow's rule for metric names, so that what we write its own client can write and read.

    Raises:
        UserError: a name breaks the rule.
    """
    for name in names:
        if not is_metric_name(name):
            raise UserError(
                f"a metric's name must be 1 to {LONGEST_METRIC_NAME} letters, digits, '_', '-', '.', ' ', ':' or '/', "
                "and neither start with '/' or a space nor go up with '..'",
                value=name,
                next_step="rename the metric in the job that reports it",
            )


def as_stored(value: float) -> tuple[float, bool]:
    """A value as MLflow's tables hold it: (number, is NaN)."""
    if math.isnan(value):
        return 0.0, True
    return max(-LARGEST, min(LARGEST, value)), False


def as_measured(value: float) -> float:
    """The reverse for infinities: a measured value is never the largest finite number."""
    return math.copysign(math.inf, value) if abs(value) == LARGEST else value

"""The contents of a checkpoint: states and curves of a pack's trials, in the safetensors format.

Nothing in such a file is executed when it is read: it holds arrays of numbers and a table of contents in JSON. What is
read is checked: format and version, a digest of everything, and the job's source and the trial's id, which is the hash
of its setting. A digest shows damage; it does not show who wrote the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import LARGEST_STEP, Scalar
from jobs.state import TrialState

FORMAT = "1"
"""Raise it when an earlier version of the program could not continue from such a file."""
_KEY = "phasefront_checkpoint"
_LONGEST_HEADER = 100_000_000
"""Bytes; as the safetensors format has it."""
_LENGTH_BYTES = 8


class BadCheckpoint(Exception):
    """A file cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedCurve:
    """The rows of a trial so far: R rows, K metrics."""

    metrics: tuple[str, ...]
    step: NDArray[np.int64]
    values: NDArray[np.float64]
    """(R, K)"""
    present: NDArray[np.bool_]
    """(R, K) whether each was reported."""

    def through(self, step: int) -> SavedCurve:
        """The rows up to a step."""
        kept = self.step <= step
        return replace(self, step=self.step[kept], values=self.values[kept], present=self.present[kept])


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a trial is, beside its job."""

    params: Mapping[str, Scalar]
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedTrial:
    """One trial of a checkpoint."""

    trial_id: str
    state: TrialState
    curve: SavedCurve
    setting: Setting | None = None
    """Of a final state, from which a longer training may continue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOfContents:
    """What a file says about itself; it can be read without the arrays."""

    source: str
    """Of the job that trained (`Source.text`)."""
    steps: Mapping[str, int]
    """Trial -> the step of its state."""
    settings: Mapping[str, Setting]
    """Trial -> its setting, where the file has it."""


def encoded(trials: Iterable[SavedTrial], *, source: str) -> bytes:
    """The bytes of a file."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {}
    table = []
    for number, trial in enumerate(trials):
        curve = trial.curve
        entry: dict[str, Any] = {"id": trial.trial_id, "step": trial.state.step, "metrics": list(curve.metrics)}
        if trial.setting is not None:
            entry["setting"] = {"params": dict(trial.setting.params), "seed": trial.setting.seed}
        table.append(entry)
        arrays |= {f"{number}/state/{name}": np.asarray(a, order="C") for name, a in trial.state.arrays.items()}
        for name, array in (("step", curve.step), ("values", curve.values), ("present", curve.present)):
            arrays[f"{number}/curve/{name}"] = np.asarray(array, order="C")
    contents = json.dumps({"source": source, "trials": table})
    return bytes(save(arrays, {_KEY: FORMAT, "contents": contents, "digest": _digest(contents, arrays)}))


def _digest(contents: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    total = hashlib.blake2b(contents.encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def header_bytes(beginning: bytes) -> int:
    """How many bytes of a file its table of contents takes, from the first eight.

    Raises:
        BadCheckpoint: it is no such file.
    """
    length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    if len(beginning) < _LENGTH_BYTES or not 2 <= length <= _LONGEST_HEADER:
        raise BadCheckpoint("it is not in the safetensors format")
    return _LENGTH_BYTES + length


def table_of(beginning: bytes) -> TableOfContents:
    """The table of contents, from the first `header_bytes` of a file.

    Raises:
        BadCheckpoint: it is not a checkpoint, or one of another version.
    """
    table = _table(beginning)[1]
    return TableOfContents(
        source=table["source"],
        steps={trial["id"]: trial["step"] for trial in table["trials"]},
        settings={trial["id"]: Setting(**trial["setting"]) for trial in table["trials"] if "setting" in trial},
    )


def _table(data: bytes) -> tuple[Mapping[str, str], dict[str, Any]]:
    end = header_bytes(data)
    if len(data) < end:
        raise BadCheckpoint("it is truncated")
    try:
        about = json.loads(data[_LENGTH_BYTES:end])["__metadata__"]
        version = about[_KEY]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadCheckpoint("it is not a checkpoint of phasefront") from None
    if version != FORMAT:
        raise BadCheckpoint(f"it has the format {version!r}, and this version of phasefront reads {FORMAT!r}")
    try:
        table = json.loads(about["contents"])
        steps = [trial["step"] for trial in table["trials"]]
        texts = [table["source"], about["digest"], *(trial["id"] for trial in table["trials"])]
        texts += [name for trial in table["trials"] for name in trial["metrics"]]
        settings = [trial["setting"] for trial in table["trials"] if "setting" in trial]
        params = [value for each in settings for value in each["params"].values()]
        numbers = [each["seed"] for each in settings]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadCheckpoint("its table of contents is damaged") from None
    if not all(type(step) is int and 0 <= step <= LARGEST_STEP for step in steps):
        raise BadCheckpoint("its table of contents is damaged")
    if not all(type(text) is str for text in texts):
        raise BadCheckpoint("its table of contents is damaged")
    if not all(isinstance(v, Scalar) for v in params) or not all(type(n) is int for n in numbers):
        raise BadCheckpoint("its table of contents is damaged")
    if not all(set(each) == {"params", "seed"} for each in settings):
        raise BadCheckpoint("its table of contents is damaged")
    return about, table


def decoded(data: bytes, *, source: str) -> dict[str, SavedTrial]:
    """The trials of a file, by id.

    Args:
        data: the whole file.
        source: of the job that continues; empty for any.

    Raises:
        BadCheckpoint: it is damaged, of another version, or of another source of the job.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    about, table = _table(data)
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadCheckpoint(f"it is damaged ({error})") from None
    if _digest(about["contents"], arrays) != about["digest"]:
        raise BadCheckpoint("its digest differs: it is damaged")
    if source and table["source"] != source:
        raise BadCheckpoint(f"it was trained by another version of the job ({table['source']})")
    trials = {}
    parts: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        number, _, rest = name.partition("/")
        kind, _, own = rest.partition("/")
        parts.setdefault((number, kind), {})[own] = array
    for place, entry in enumerate(table["trials"]):
        held, curve = parts.get((str(place), "state"), {}), parts.get((str(place), "curve"), {})
        try:
            saved = SavedCurve(
                metrics=tuple(entry["metrics"]),
                step=curve["step"],
                values=curve["values"],
                present=curve["present"],
            )
        except KeyError:
            raise BadCheckpoint("it lacks a curve") from None
        _check(saved)
        trials[entry["id"]] = SavedTrial(
            trial_id=entry["id"], state=TrialState(step=entry["step"], arrays=held), curve=saved
        )
    return trials


def _check(curve: SavedCurve) -> None:
    shape = (len(curve.step), len(curve.metrics))
    kinds = [array.dtype.str for array in (curve.step, curve.values, curve.present)]
    if curve.step.ndim != 1 or curve.values.shape != shape or curve.present.shape != shape:
        raise BadCheckpoint("a curve in it has the wrong shape")
    if kinds != ["<i8", "<f8", "|b1"] or (np.diff(curve.step) <= 0).any():
        raise BadCheckpoint("a curve in it is not valid")
